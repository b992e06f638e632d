//! How much one journal may hold, and all journals of the host together.

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use crate::config::JOURNAL_BYTES_MIN;
use proto::limits::{CHUNK_BYTES_MAX, FRAME_BYTES_MAX};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Bytes of a segment. A journal of less than eight such has smaller ones.
const SEGMENT_BYTES_MAX: u64 = 1 << 20;

const _: () = assert!(
    JOURNAL_BYTES_MIN / 8 >= FRAME_BYTES_MAX as u64 / 2
        && JOURNAL_BYTES_MIN / 2 >= CHUNK_BYTES_MAX as u64,
    "the smallest journal must let a chunk be in flight and still have a segment to drop"
);

/// The bounds of one journal.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(super) bytes_max: u64,
    pub(super) segment_bytes: u64,
}

impl Bounds {
    /// Returns the bounds of a journal of `bytes_max` bytes; less than [`JOURNAL_BYTES_MIN`] counts
    /// as that.
    pub(crate) fn new(bytes_max: u64) -> Self {
        let bytes_max = bytes_max.max(JOURNAL_BYTES_MIN);
        Self {
            bytes_max,
            segment_bytes: (bytes_max / 8).min(SEGMENT_BYTES_MAX),
        }
    }
}

/// What all journals of the host may hold together.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes_max: u64,
    held_bytes: AtomicU64,
    is_disk_low: AtomicBool,
}

impl Budget {
    /// Returns a budget of which nothing is used.
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            held_bytes: AtomicU64::new(0),
            is_disk_low: AtomicBool::new(false),
        }
    }

    /// Says whether free disk has fallen below its floor: then no journal grows.
    pub(crate) fn set_disk_low(&self, is_low: bool) {
        self.is_disk_low.store(is_low, Ordering::Relaxed);
    }

    /// Returns the bytes that all journals hold.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.held_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn room_bytes(&self) -> u64 {
        if self.is_disk_low.load(Ordering::Relaxed) {
            return 0;
        }
        self.room_in_memory_bytes()
    }

    /// Returns the room of a journal that is not on the disk.
    pub(super) fn room_in_memory_bytes(&self) -> u64 {
        self.bytes_max.saturating_sub(self.held_bytes())
    }

    pub(super) fn add(&self, bytes: u64) {
        self.held_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn remove(&self, bytes: u64) {
        self.held_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Why a journal takes no more bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shortage {
    /// It has reached a bound of its own.
    Own,
    /// All journals of the host, or the disk, have no room.
    Host,
}
