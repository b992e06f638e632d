//! The journal as its three parties share it: the pump appends, the gatherer reads and acknowledges,
//! upkeep drops and syncs. The pump takes no lock but at a new segment.

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::budget::{Bounds, Budget, Place, SEGMENT_BYTES_MIN, Shortage};
use super::counters::{Counters, DropReason};
use super::lock::lock;
use super::medium::Medium;
use super::reader::Reader;
use super::segment::Segment;
use crate::isolate;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Bytes that a container's journal holds in memory while its disk refuses to take them.
const FALLBACK_BYTES_MAX: u64 = 2 << 20;

/// One stream's bytes, from FIFO to acknowledgement.
#[derive(Debug)]
pub(crate) struct Journal {
    pub(super) medium: Box<dyn Medium>,
    pub(super) bounds: Bounds,
    pub(super) budget: Arc<Budget>,
    /// Moved by the appender alone, after the bytes are in the segment.
    pub(super) tail: AtomicU64,
    /// Copy of the reader's, for those who must not wait for its lock.
    pub(super) acked: AtomicU64,
    /// The FIFO has come to its end: the tail is final.
    pub(super) has_ended: AtomicBool,
    pub(super) held_bytes: AtomicU64,
    /// Bytes of `held_bytes` that are in memory because the disk failed.
    pub(super) fallback_bytes: AtomicU64,
    /// Up to how many bytes the host's bounds wait for this journal, as nothing could be dropped; 0: they do not.
    pub(super) overdraft_bytes: AtomicU64,
    /// The disk had no room for the last bytes.
    pub(super) is_disk_full: AtomicBool,
    /// A segment was created since the folder was synced.
    pub(super) is_folder_dirty: AtomicBool,
    /// Entries were dropped since the state was synced.
    pub(super) is_drop_unsynced: AtomicBool,
    pub(super) segments: Mutex<VecDeque<Arc<Segment>>>,
    pub(super) reader: Mutex<Reader>,
    pub(super) sync_marks: Mutex<SyncMarks>,
}

/// How far the journal is on stable storage.
#[derive(Debug, Default)]
pub(super) struct SyncMarks {
    pub(super) synced: u64,
    pub(super) tail_seen: u64,
}

/// What the counters of a journal say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Totals {
    /// Entries received.
    pub(crate) received: u64,
    /// What became of them; holes count from when they are known.
    pub(crate) settled: Counters,
    /// Bytes not yet acknowledged.
    pub(crate) buffered_bytes: u64,
}

impl Journal {
    /// Returns whether the FIFO has ended and everything was acknowledged.
    pub(crate) fn is_complete(&self) -> bool {
        self.has_ended.load(Ordering::Acquire) && self.unacked_bytes() == 0
    }

    /// Returns whether there is anything that a shipper was not told yet.
    pub(crate) fn has_unsent(&self) -> bool {
        let reader = lock(&self.reader);
        let ended = self.has_ended.load(Ordering::Acquire);
        self.tail.load(Ordering::Acquire) > reader.sent || (ended && !reader.is_finish_sent)
    }

    /// Returns the offset behind what was sent.
    pub(crate) fn sent_offset(&self) -> u64 {
        lock(&self.reader).sent
    }

    /// Returns whether anything sent is not acknowledged.
    pub(crate) fn has_in_flight(&self) -> bool {
        let reader = lock(&self.reader);
        reader.sent > reader.acked
    }

    /// Returns whether it is gone when the process ends.
    pub(crate) fn is_in_memory(&self) -> bool {
        self.medium.is_memory()
    }

    /// Returns how many segments are open because they are in memory: the disk has refused them.
    pub(crate) fn open_in_memory(&self) -> u64 {
        let segments = isolate::lock(&self.segments);
        let fallbacks = segments.iter().filter(|segment| segment.is_fallback);
        fallbacks.count() as u64
    }

    /// Returns the offset of the first byte that is not acknowledged.
    pub(crate) fn acked(&self) -> u64 {
        self.acked.load(Ordering::Acquire)
    }

    /// Returns the bytes that are not acknowledged.
    pub(crate) fn unacked_bytes(&self) -> u64 {
        let acked = self.acked();
        self.tail.load(Ordering::Acquire).saturating_sub(acked)
    }

    /// Returns the bytes that the segments hold.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.held_bytes.load(Ordering::Relaxed)
    }

    /// Returns what must give way for the journal to take more bytes, if anything must: who asks
    /// comes later than who was refused, and an acknowledgement may have made room meanwhile.
    pub(crate) fn shortage(&self) -> Option<Shortage> {
        if self.held_bytes() >= self.bounds.bytes_max || self.is_memory_spent() {
            Some(Shortage::Own)
        } else if self.room_bytes() == 0 || self.is_disk_full.load(Ordering::Relaxed) {
            Some(Shortage::Host)
        } else {
            None
        }
    }

    /// Lets the journal grow although the host has reached its bound: nothing else can make room, and a FIFO
    /// that is never read makes a container unkillable. To its own bound, or by what can be dropped again.
    pub(crate) fn grant_overdraft(&self) {
        let place = self.place();
        let bytes = match self.is_scarce(place) {
            true => self.placed_bytes().saturating_add(self.floor_bytes()),
            false => self.bounds.bytes_max,
        };
        self.overdraft_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Notes for the next process that what follows the tail may be lost. Only the pump; it takes no lock.
    pub(crate) fn note_loss(&self, reason: DropReason) {
        let tail = self.tail.load(Ordering::Acquire);
        if let Err(error) = self.medium.note_loss(tail, reason) {
            tracing::debug!(%error, "could not note for the next process that something may be lost");
        }
    }

    /// Says that the FIFO has come to its end. Only the pump, after its last append.
    pub(crate) fn end(&self) {
        self.has_ended.store(true, Ordering::Release);
        for segment in &*lock(&self.segments) {
            self.close(segment);
        }
        self.medium.rest();
    }

    /// Returns whether the FIFO has come to its end.
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }

    /// Returns the counters; after a panic they may be off by what that was about.
    pub(crate) fn totals(&self) -> Totals {
        let reader = isolate::lock(&self.reader);
        let mut settled = reader.settled;
        for hole in &reader.holes {
            settled.dropped.add(hole.reason, hole.counted_entries());
        }
        Totals {
            received: settled
                .total()
                .saturating_add(reader.unsettled_entries)
                .saturating_add(reader.precounted_entries),
            settled,
            buffered_bytes: self.unacked_bytes(),
        }
    }
}

impl Journal {
    /// Returns where bytes are that no refusing disk has put into memory.
    pub(super) fn place(&self) -> Place {
        match self.medium.is_memory() {
            true => Place::Memory,
            false => Place::Disk,
        }
    }

    /// Returns where the bytes of a segment are.
    pub(super) fn place_of(&self, segment: &Segment) -> Place {
        match segment.is_fallback {
            true => Place::Memory,
            false => self.place(),
        }
    }

    /// Returns whether the host has so little that journals get the least they need: free disk is low, or all
    /// memory for journals is taken.
    pub(super) fn is_scarce(&self, place: Place) -> bool {
        match place {
            Place::Disk => self.budget.is_disk_low(),
            Place::Memory => self.budget.room_bytes(place) == 0,
        }
    }

    /// Returns at how many bytes a segment is left for a new one.
    pub(super) fn segment_bytes(&self, place: Place) -> u64 {
        match self.is_scarce(place) {
            true => SEGMENT_BYTES_MIN.min(self.bounds.segment_bytes),
            false => self.bounds.segment_bytes,
        }
    }

    /// Returns the bytes that the journal may hold whatever the others do.
    fn floor_bytes(&self) -> u64 {
        self.segment_bytes(self.place()).saturating_mul(2)
    }

    /// Returns whether it holds more than the host leaves everyone.
    pub(crate) fn is_above_floor(&self) -> bool {
        self.placed_bytes() > self.floor_bytes()
    }

    /// Returns the bytes that may be in flight: half of what the journal may hold, so that the other half can be
    /// dropped (J6).
    pub(super) fn in_flight_bytes_max(&self) -> u64 {
        match self.is_scarce(self.place()) {
            true => SEGMENT_BYTES_MIN,
            false => self.bounds.bytes_max / 2,
        }
    }

    /// Returns the bytes that it holds where it is meant to.
    fn placed_bytes(&self) -> u64 {
        let fallback_bytes = self.fallback_bytes.load(Ordering::Relaxed);
        self.held_bytes().saturating_sub(fallback_bytes)
    }

    /// Returns the bytes up to the journal's own bound.
    pub(super) fn own_room_bytes(&self) -> u64 {
        self.bounds.bytes_max.saturating_sub(self.held_bytes())
    }

    pub(super) fn room_bytes(&self) -> u64 {
        let (place, own) = (self.place(), self.own_room_bytes());
        let overdraft_bytes = match place {
            // What a low disk has no room for goes to memory, as long as that has some.
            Place::Disk if self.is_scarce(place) && !self.is_memory_spent() => 0,
            Place::Disk | Place::Memory => self.overdraft_bytes.load(Ordering::Relaxed),
        };
        // Two segments are everyone's, so that the host's bounds never stop a quiet container for
        // the sake of a busy one, and so that there is always a whole segment to drop.
        let least_bytes = self.floor_bytes().max(overdraft_bytes);
        let host = self.budget.room_bytes(place);
        own.min(host.max(least_bytes.saturating_sub(self.placed_bytes())))
    }
}

impl Journal {
    /// Returns the bytes that there is room for in memory while the disk refuses.
    pub(super) fn fallback_room_bytes(&self) -> u64 {
        let held_bytes = self.fallback_bytes.load(Ordering::Relaxed);
        let floor = SEGMENT_BYTES_MIN.saturating_mul(2);
        let host = self.budget.room_bytes(Place::Memory);
        let room = host.max(floor.saturating_sub(held_bytes));
        room.min(FALLBACK_BYTES_MAX.saturating_sub(held_bytes))
    }

    /// Returns whether the bytes wait in memory, because the disk refuses them, and fill their share.
    pub(super) fn is_memory_spent(&self) -> bool {
        self.fallback_room_bytes() == 0
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        let fallback_bytes = self.fallback_bytes.load(Ordering::Relaxed);
        let own_bytes = self.held_bytes().saturating_sub(fallback_bytes);
        self.budget.remove(Place::Memory, fallback_bytes);
        self.budget.remove(self.place(), own_bytes);
    }
}
