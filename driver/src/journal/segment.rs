//! A segment: a file that holds a range of the journal.

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Segments whose files stay open: the one that is written, and the one before it, which a reader
/// that keeps up has not finished with. A backlog must not use up the process's file descriptors.
pub(super) const OPEN_SEGMENTS_MAX: usize = 2;

/// A file that holds a range of the journal.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) start: u64,
    /// Offset behind the last byte.
    pub(super) end: AtomicU64,
    /// Open for one of the newest [`OPEN_SEGMENTS_MAX`], and for one in memory.
    pub(super) file: Mutex<Option<Arc<OwnedFd>>>,
    pub(super) is_fallback: bool,
}

impl Segment {
    pub(super) fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }
}
