//! Room in a full journal: the oldest unsent entries are counted, become a hole, and go.

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::counters::DropReason;
use super::lock::lock;
use super::reader::Reader;
use super::shared::Journal;
use super::walk::Scan;
use proto::limits::CHUNK_BYTES_MAX;
use std::sync::atomic::Ordering;

impl Journal {
    /// Drops the oldest unsent segments: about a sixteenth of the journal, or `bytes_max` if that is less,
    /// in whole segments. Returns the bytes that became free. 0 says that everything is in flight or in the
    /// last segment.
    ///
    /// It reads to count, but never needs to: what can't be read, or is cut off by a hole, goes
    /// uncounted. The FIFO waits for this, so it waits for no stable storage either. Loss of power
    /// before the next sync leaves a gap, which counts as one entry.
    pub(crate) fn drop_oldest(&self, bytes_max: u64) -> u64 {
        let mut reader = lock(&self.reader);
        // The end is set after the last byte: seen first, the tail seen then is final.
        let ended = self.has_ended.load(Ordering::Acquire);
        let tail = self.tail.load(Ordering::Acquire);
        let from = reader.first_unsent();
        // A segment whose first bytes are in a hole is free with the rest of it.
        let first = reader.start_of_holes_before(from);
        let Some(goal) = self.drop_goal(first, bytes_max) else {
            return 0;
        };
        self.drop_to(&mut reader, goal, tail, ended);
        let held_bytes = self.held_bytes();
        // A full disk may refuse this too. Then a restart finds a gap, which counts as one entry.
        if let Err(error) = self.save(&mut reader) {
            tracing::warn!(%error, "could not save how many entries were dropped");
        }
        self.is_drop_unsynced.store(true, Ordering::Relaxed);
        self.release(&reader);
        held_bytes.saturating_sub(self.held_bytes())
    }

    /// Makes holes of everything unsent below `goal`. Each round counts what can be read up to the next
    /// hole, and gives up the rest of the segment if that does not reach the goal.
    fn drop_to(&self, reader: &mut Reader, goal: u64, tail: u64, ended: bool) {
        loop {
            let from = reader.first_unsent();
            if from >= goal {
                return;
            }
            // Frames of an older hole behind may still be readable: they are counted there.
            let limit = reader.hole_start_behind(from).unwrap_or(tail);
            let scan = self.scan(from, goal.min(limit), limit, reader.scanned_to);
            reader.add_dropped(from, &scan);
            if scan.end >= goal.min(limit) {
                continue;
            }
            if scan.is_unfinished && limit == tail && !ended {
                // The rest of this entry is still in the FIFO.
                return;
            }
            let segment = self.segment_at(scan.end);
            let end = segment.map_or(limit, |segment| segment.end().min(limit));
            reader.add_lost(scan.end, end, DropReason::DiskError);
        }
    }

    /// Returns up to where to drop so that whole segments become free.
    fn drop_goal(&self, from: u64, bytes_max: u64) -> Option<u64> {
        let stride = (self.bounds.bytes_max / 16).min(bytes_max).max(1);
        let segments = lock(&self.segments);
        let last_start = segments.back()?.start;
        let mut free_bytes = 0_u64;
        let mut goal = None;
        for segment in segments.iter() {
            if segment.start < from || segment.start == last_start || free_bytes >= stride {
                continue;
            }
            free_bytes = free_bytes.saturating_add(segment.end().saturating_sub(segment.start));
            goal = Some(segment.end());
        }
        goal
    }

    /// Counts the entries from a frame boundary to the first one at or behind `goal`, or as far as they
    /// can be read; never beyond `limit`.
    fn scan(&self, from: u64, goal: u64, limit: u64, scanned_to: u64) -> Scan {
        let mut scan = Scan::new(from);
        let mut buffer = vec![0; CHUNK_BYTES_MAX];
        while scan.end < goal {
            let rest = usize::try_from(limit.saturating_sub(scan.end)).unwrap_or(usize::MAX);
            let wanted = rest.min(buffer.len());
            let into = buffer.get_mut(..wanted).unwrap_or_default();
            let Ok(read_bytes) = self.read(scan.end, into) else {
                return scan;
            };
            let read = buffer.get(..read_bytes).unwrap_or_default();
            if !scan.advance(read, goal, scanned_to) {
                scan.is_unfinished = read_bytes == rest;
                return scan;
            }
        }
        scan
    }
}
