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

/// Bytes of a segment while the disk is low, or memory is spent: then each journal has two of them.
pub(super) const SEGMENT_BYTES_MIN: u64 = 64 << 10;

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

/// What all journals of the host may hold together, on disk and in memory. Neither takes from the other.
#[derive(Debug)]
pub(crate) struct Budget {
    disk: Share,
    memory: Share,
    is_disk_low: AtomicBool,
}

/// What may be held in one place.
#[derive(Debug)]
struct Share {
    bytes_max: u64,
    held_bytes: AtomicU64,
}

impl Share {
    fn new(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            held_bytes: AtomicU64::new(0),
        }
    }

    fn held_bytes(&self) -> u64 {
        self.held_bytes.load(Ordering::Relaxed)
    }

    fn room_bytes(&self) -> u64 {
        self.bytes_max.saturating_sub(self.held_bytes())
    }
}

/// Where bytes of a journal are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Disk,
    Memory,
}

impl Budget {
    /// Returns a budget of which nothing is used, in bytes on disk and in memory.
    pub(crate) fn new(disk_bytes_max: u64, memory_bytes_max: u64) -> Self {
        Self {
            disk: Share::new(disk_bytes_max),
            memory: Share::new(memory_bytes_max),
            is_disk_low: AtomicBool::new(false),
        }
    }

    /// Says whether free disk has fallen below its floor: then no journal grows.
    pub(crate) fn set_disk_low(&self, is_low: bool) {
        self.is_disk_low.store(is_low, Ordering::Relaxed);
    }

    /// Returns whether free disk has fallen below its floor.
    pub(super) fn is_disk_low(&self) -> bool {
        self.is_disk_low.load(Ordering::Relaxed)
    }

    /// Returns the bytes that all journals hold on disk.
    pub(crate) fn disk_bytes(&self) -> u64 {
        self.disk.held_bytes()
    }

    /// Returns the bytes that all journals hold in memory.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.memory.held_bytes()
    }

    /// Returns the bytes that there is room for. A disk without room has nothing to do with memory.
    pub(super) fn room_bytes(&self, place: Place) -> u64 {
        match place {
            Place::Disk if self.is_disk_low() => 0,
            Place::Disk | Place::Memory => self.share(place).room_bytes(),
        }
    }

    pub(super) fn add(&self, place: Place, bytes: u64) {
        let held_bytes = &self.share(place).held_bytes;
        held_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn remove(&self, place: Place, bytes: u64) {
        let held_bytes = &self.share(place).held_bytes;
        held_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    fn share(&self, place: Place) -> &Share {
        match place {
            Place::Disk => &self.disk,
            Place::Memory => &self.memory,
        }
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
