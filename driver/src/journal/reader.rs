//! The positions and counters of the reading side: what is sent, acknowledged, damaged and dropped. It
//! touches no file; [`Journal`](super::shared::Journal) keeps it behind one lock.

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::counters::{Counters, DropReason};
use super::segment::Segment;
use super::state::{self, Hole, Saved};
use super::walk::{Scan, Walk};
use proto::limits::FRAME_BYTES_MAX;
use std::collections::VecDeque;

/// Boundaries that are remembered: more are in flight only of a stream that trickles behind a lane
/// that holds. Those that are not are found by reading.
const BOUNDARIES_MAX: usize = 1024;

/// Returns whether a restart would not find holes of this kind by reading, or not why they are.
fn is_told_by_nothing_else(reason: DropReason) -> bool {
    match reason {
        DropReason::JournalFull | DropReason::InternalError | DropReason::MemoryLost => true,
        DropReason::Malformed | DropReason::CutShort | DropReason::DiskError => false,
    }
}

/// What the gatherer may send next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Whole frames, at the start of the buffer.
    Frames {
        /// Offset of the first byte.
        first_offset: u64,
        /// How many bytes.
        bytes: usize,
    },
    /// Entries that are gone.
    Hole(Hole),
    /// The stream has ended and all of it was sent.
    Finish {
        /// The tail.
        end_offset: u64,
    },
    /// Nothing until the FIFO gives more.
    Idle,
    /// Nothing until something is acknowledged or, if the window is what there is no room in, it grows.
    NoCredit {
        /// It is not a bound of the journal's own.
        is_window: bool,
    },
    /// The next frame does not fit the buffer.
    NoRoom,
}

/// How many entries an acknowledgement settles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct SettledCounts {
    /// Delivered to CLS.
    pub(crate) delivered: u64,
    /// Filtered by an option.
    pub(crate) filtered: u64,
    /// Put into the dead-letter store.
    pub(crate) dead_lettered: u64,
}

/// The reading side of a journal.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) acked: u64,
    pub(super) sent: u64,
    pub(super) scanned_to: u64,
    /// Entries in `[acked, scanned_to)` outside holes.
    pub(super) unsettled_entries: u64,
    /// Those of them that were sent since the last rewind.
    pub(super) in_flight_entries: u64,
    /// Where the counting of what is not sent yet has come to. Beyond `scanned_to` it is for the ledger
    /// alone: what lies there may still be dropped, or turn out to be damaged.
    pub(super) precounted_to: u64,
    /// Entries in `[scanned_to, precounted_to)`.
    pub(super) precounted_entries: u64,
    pub(super) settled: Counters,
    /// Where what was sent and is not acknowledged begins and ends, ascending: at most
    /// [`BOUNDARIES_MAX`].
    pub(super) boundaries: VecDeque<u64>,
    /// By offset, none below `acked`, none overlapping.
    pub(super) holes: VecDeque<Hole>,
    pub(super) is_finish_sent: bool,
    pub(super) sequence: u64,
    pub(super) slot: Vec<u8>,
}

impl Reader {
    pub(super) fn saved(&self) -> Saved {
        // Damage is found again by reading. Of more holes than fit the newest are kept: a restart
        // finds the older ones as gaps.
        let mut holes: Vec<_> = self
            .holes
            .iter()
            .rev()
            .filter(|hole| is_told_by_nothing_else(hole.reason))
            .take(state::HOLES_MAX)
            .cloned()
            .collect();
        holes.reverse();
        Saved {
            acked: self.acked,
            settled: self.settled,
            holes,
        }
    }

    /// Sends the hole that stands next, if one does.
    pub(super) fn send_hole(&mut self) -> Option<Hole> {
        let sent = self.sent;
        let hole = self.holes.iter().find(|hole| hole.span.start == sent)?;
        let hole = hole.clone();
        self.sent = hole.span.end;
        self.walk_to(self.sent, 0);
        self.note_boundary(hole.span.start);
        self.note_boundary(hole.span.end);
        Some(hole)
    }

    /// Moves `scanned_to`, over entries that were never scanned before.
    fn walk_to(&mut self, offset: u64, new_entries: u64) {
        self.scanned_to = self.scanned_to.max(offset);
        self.precounted_entries = match self.precounted_to > self.scanned_to {
            true => self.precounted_entries.saturating_sub(new_entries),
            false => 0,
        };
    }

    /// Returns where the first entry begins that is not counted.
    pub(super) fn first_uncounted(&self) -> u64 {
        self.behind_holes(self.precounted_to.max(self.scanned_to))
    }

    /// Notes entries that follow those which are counted.
    pub(super) fn count_ahead(&mut self, walk: &Walk) {
        self.precounted_to = self.first_uncounted().saturating_add(walk.bytes as u64);
        self.precounted_entries = self.precounted_entries.saturating_add(walk.new_entries);
    }

    fn note_boundary(&mut self, offset: u64) {
        let is_new = self.boundaries.back().is_none_or(|last| *last < offset);
        if is_new && self.boundaries.len() < BOUNDARIES_MAX {
            self.boundaries.push_back(offset);
        }
    }

    /// Returns the last offset not behind `offset` of which is known that an entry begins there.
    pub(super) fn boundary_before(&self, offset: u64) -> u64 {
        let known = self.boundaries.partition_point(|known| *known <= offset);
        let known = known
            .checked_sub(1)
            .and_then(|index| self.boundaries.get(index));
        known.copied().unwrap_or(0).max(self.acked)
    }

    /// Returns whether a hole holds an offset.
    pub(super) fn is_inside_hole(&self, offset: u64) -> bool {
        let mut holes = self.holes.iter();
        holes.any(|hole| hole.span.start < offset && offset < hole.span.end)
    }

    pub(super) fn next_hole_start(&self) -> Option<u64> {
        self.hole_start_behind(self.sent)
    }

    pub(super) fn finish(&mut self, ended: bool, tail: u64) -> Next {
        if !ended || self.is_finish_sent {
            return Next::Idle;
        }
        self.is_finish_sent = true;
        Next::Finish { end_offset: tail }
    }

    /// Returns the bytes that may be sent. Half the journal is the most that is ever in flight:
    /// the other half can be dropped (J6).
    pub(super) fn credit_bytes(&self, window_bytes: u64, in_flight_bytes_max: u64) -> u64 {
        let window_bytes = window_bytes.min(in_flight_bytes_max);
        let in_flight_bytes = self.in_flight_bytes();
        if in_flight_bytes == 0 {
            return window_bytes.max(FRAME_BYTES_MAX as u64);
        }
        window_bytes.saturating_sub(in_flight_bytes)
    }

    /// Returns the bytes of entries that are sent and not acknowledged. A hole takes no window.
    fn in_flight_bytes(&self) -> u64 {
        let hole_bytes = self
            .holes
            .iter()
            .filter(|hole| hole.span.end <= self.sent)
            .map(|hole| {
                hole.span
                    .end
                    .saturating_sub(hole.span.start.max(self.acked))
            })
            .fold(0_u64, u64::saturating_add);
        let span = self.sent.saturating_sub(self.acked);
        span.saturating_sub(hole_bytes)
    }

    pub(super) fn send_frames(&mut self, walk: &Walk) -> Next {
        let first_offset = self.sent;
        self.sent = self.sent.saturating_add(walk.bytes as u64);
        self.walk_to(self.sent, walk.new_entries);
        self.note_boundary(first_offset);
        self.note_boundary(self.sent);
        self.unsettled_entries = self.unsettled_entries.saturating_add(walk.new_entries);
        self.in_flight_entries = self.in_flight_entries.saturating_add(walk.entries);
        Next::Frames {
            first_offset,
            bytes: walk.bytes,
        }
    }

    /// Makes the next unsent bytes a hole.
    pub(super) fn add_damage(&mut self, bytes: u64, reason: DropReason) {
        let end = self.sent.saturating_add(bytes);
        self.add_lost(self.sent, end, reason);
    }

    /// Makes unsent bytes a hole whose entries nobody can count any more. Nothing else is unsent before
    /// them, but for holes.
    ///
    /// Entries that were counted there are taken back: those behind the hole are counted again as they
    /// are read. If the hole has all of them, it says how many they were.
    pub(super) fn add_lost(&mut self, from: u64, end: u64, reason: DropReason) {
        let counted_to = self.scanned_to.max(self.precounted_to);
        let counted_entries = self
            .unsettled_entries
            .saturating_sub(self.in_flight_entries)
            .saturating_add(self.precounted_entries);
        let entries = match reason {
            DropReason::CutShort => 1,
            DropReason::DiskError if end == counted_to => counted_entries,
            _ => 0,
        };
        if from < counted_to && reason != DropReason::CutShort {
            self.unsettled_entries = self.unsettled_entries.min(self.in_flight_entries);
            self.scanned_to = self.scanned_to.min(from);
            self.precounted_to = from;
            self.precounted_entries = 0;
        }
        let index = self.holes.partition_point(|hole| hole.span.start < from);
        let hole = Hole {
            span: from..end,
            entries,
            first_time_nano: 0,
            last_time_nano: 0,
            reason,
        };
        self.holes.insert(index, hole);
    }

    /// Makes scanned, unsent bytes a hole, or part of the hole that they follow.
    pub(super) fn add_dropped(&mut self, from: u64, scan: &Scan) {
        if scan.end == from {
            return;
        }
        self.unsettled_entries = self.unsettled_entries.saturating_sub(scan.scanned_entries);
        self.walk_to(scan.end, scan.entries.saturating_sub(scan.scanned_entries));
        let sent = self.sent;
        let before = self.holes.iter_mut().find(|hole| {
            let is_unsent = hole.span.start >= sent;
            is_unsent && hole.span.end == from && hole.reason == DropReason::JournalFull
        });
        if let Some(hole) = before {
            hole.span.end = scan.end;
            hole.entries = hole.entries.saturating_add(scan.entries);
            hole.last_time_nano = scan.last_time_nano;
            return;
        }
        let index = self.holes.partition_point(|hole| hole.span.start < from);
        let hole = Hole {
            span: from..scan.end,
            entries: scan.entries,
            first_time_nano: scan.first_time_nano,
            last_time_nano: scan.last_time_nano,
            reason: DropReason::JournalFull,
        };
        self.holes.insert(index, hole);
    }

    /// Returns where the holes that stand next end: the first byte that can still be dropped.
    pub(super) fn first_unsent(&self) -> u64 {
        self.behind_holes(self.sent)
    }

    /// Returns the first offset from one on that is in no hole.
    fn behind_holes(&self, mut offset: u64) -> u64 {
        for hole in &self.holes {
            if hole.span.contains(&offset) {
                offset = hole.span.end;
            }
        }
        offset
    }

    /// Returns where the holes begin that end at an offset, sent or not; the offset if there are none.
    pub(super) fn start_of_holes_before(&self, mut offset: u64) -> u64 {
        for hole in self.holes.iter().rev() {
            if hole.span.end == offset {
                offset = hole.span.start;
            }
        }
        offset
    }

    /// Settles what lies below an offset. Returns by how much the entries exceed those that were
    /// sent: they are not counted, or the ledger would show more than was received.
    pub(super) fn settle(&mut self, offset: u64, fates: SettledCounts) -> u64 {
        self.acked = self.acked.max(offset);
        while self
            .boundaries
            .front()
            .is_some_and(|known| *known < self.acked)
        {
            self.boundaries.pop_front();
        }
        let settled = &mut self.settled;
        let mut surplus: u64 = 0;
        for (count, claimed) in [
            (&mut settled.delivered, fates.delivered),
            (&mut settled.filtered, fates.filtered),
            (&mut settled.dead_lettered, fates.dead_lettered),
        ] {
            let earned = claimed.min(self.unsettled_entries);
            *count = count.saturating_add(earned);
            self.unsettled_entries = self.unsettled_entries.saturating_sub(earned);
            self.in_flight_entries = self.in_flight_entries.saturating_sub(earned);
            surplus = surplus.saturating_add(claimed.saturating_sub(earned));
        }
        while let Some(hole) = self.holes.front() {
            if hole.span.end > self.acked {
                break;
            }
            settled.dropped.add(hole.reason, hole.counted_entries());
            self.holes.pop_front();
        }
        surplus
    }

    /// Returns where the next hole at or behind an offset begins.
    pub(super) fn hole_start_behind(&self, offset: u64) -> Option<u64> {
        let starts = self.holes.iter().map(|hole| hole.span.start);
        starts.into_iter().find(|&start| start >= offset)
    }

    /// Returns whether a byte of a segment is neither acknowledged nor in a hole.
    pub(super) fn needs(&self, segment: &Segment) -> bool {
        let mut covered = segment.start.max(self.acked);
        for hole in &self.holes {
            if hole.span.start <= covered {
                covered = covered.max(hole.span.end);
            }
        }
        covered < segment.end()
    }
}
