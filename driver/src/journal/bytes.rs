//! Reads bytes at a journal offset, over the ends of segments, and opens their files for it.

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::lock::lock;
use super::segment::Segment;
use super::shared::Journal;
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// A segment could not be read; the journal is as before.
#[derive(Debug, thiserror::Error)]
#[error("could not read journal offset {offset}")]
pub(crate) struct ReadError {
    /// Where.
    pub(crate) offset: u64,
    /// What the disk said.
    #[source]
    pub(crate) source: Errno,
}

impl ReadError {
    /// Returns whether the host lacks something for now, and nothing is wrong with the segment.
    pub(crate) fn is_shortage(&self) -> bool {
        is_shortage(self.source)
    }
}

/// Returns whether there is no file descriptor, or no memory, for now.
pub(super) fn is_shortage(error: Errno) -> bool {
    matches!(error, Errno::MFILE | Errno::NFILE | Errno::NOMEM)
}

impl Journal {
    /// Reads bytes at a journal offset, over segment ends; fewer than asked for at a gap or where
    /// the disk has lost some. That some of it lies there is the caller's word (J1).
    pub(super) fn read(&self, offset: u64, into: &mut [u8]) -> Result<usize, ReadError> {
        let mut filled = 0_usize;
        while filled < into.len() {
            let at = offset.saturating_add(filled as u64);
            let Some(segment) = self.segment_at(at) else {
                break;
            };
            let rest = into.get_mut(filled..).unwrap_or_default();
            let segment_rest = segment.end().saturating_sub(at);
            let wanted = rest
                .len()
                .min(usize::try_from(segment_rest).unwrap_or(usize::MAX));
            let rest = rest.get_mut(..wanted).unwrap_or_default();
            let position = at.saturating_sub(segment.start);
            let read = self
                .file(&segment)
                .and_then(|file| self.medium.read_at(file.as_fd(), position, rest));
            let bytes = match read {
                Ok(bytes) => bytes,
                // What stands before it can be read, and is not given up with it.
                Err(_) if filled > 0 => break,
                Err(source) => return Err(ReadError { offset: at, source }),
            };
            filled = filled.saturating_add(bytes);
            if bytes < wanted {
                break;
            }
        }
        if filled == 0 && !into.is_empty() {
            let source = Errno::NODATA;
            return Err(ReadError { offset, source });
        }
        Ok(filled)
    }

    /// Returns a segment's file, opened for the moment if it is not open.
    pub(super) fn file(&self, segment: &Segment) -> Result<Arc<OwnedFd>, Errno> {
        let file = lock(&segment.file).clone();
        file.map_or_else(|| self.medium.open(segment.start).map(Arc::new), Ok)
    }

    /// Closes a segment's file, unless it would be gone with it.
    pub(super) fn close(&self, segment: &Segment) {
        if !segment.is_fallback && !self.medium.is_memory() {
            *lock(&segment.file) = None;
        }
    }

    pub(super) fn segment_at(&self, offset: u64) -> Option<Arc<Segment>> {
        let segments = lock(&self.segments);
        let index = segments.partition_point(|segment| segment.start <= offset);
        let segment = segments.get(index.checked_sub(1)?)?;
        (segment.end() > offset).then(|| Arc::clone(segment))
    }
}
