//! Room in a full journal: the oldest unsent entries are counted, become a hole, and go.

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::bytes::ReadError;
use super::shared::{Journal, lock};
use super::walk::Scan;
use proto::limits::CHUNK_BYTES_MAX;
use std::sync::atomic::Ordering;

impl Journal {
    /// Drops the oldest unsent segments, about a sixteenth of the journal; returns the bytes that
    /// became free. 0 says that everything is in flight or in the last segment.
    ///
    /// Waits for no stable storage: a FIFO waits for this. Loss of power before the next sync leaves
    /// a gap, which counts as one entry.
    ///
    /// # Errors
    /// [`ReadError`] if the disk can't read what is to be counted; nothing was dropped.
    pub(crate) fn drop_oldest(&self) -> Result<u64, ReadError> {
        let mut reader = lock(&self.reader);
        let tail = self.tail.load(Ordering::Acquire);
        let from = reader.first_unsent();
        let Some(goal) = self.drop_goal(reader.unsent_hole_start().unwrap_or(from)) else {
            return Ok(0);
        };
        if goal > from {
            // Frames of an older hole behind may still be readable: they are counted there.
            let limit = reader.hole_start_behind(from).unwrap_or(tail);
            let scan = self.scan(from, goal.min(limit), limit, reader.scanned_to)?;
            reader.add_dropped(from, &scan);
        }
        let held_bytes = self.held_bytes();
        // A full disk may refuse this too. Then a restart finds a gap, which counts as one entry.
        if let Err(error) = self.save(&mut reader) {
            tracing::warn!(%error, "could not save how many entries were dropped");
        }
        self.is_drop_unsynced.store(true, Ordering::Relaxed);
        self.release(&reader);
        Ok(held_bytes.saturating_sub(self.held_bytes()))
    }

    /// Returns up to where to drop so that whole segments become free.
    fn drop_goal(&self, from: u64) -> Option<u64> {
        let stride = (self.bounds.bytes_max / 16).max(1);
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

    /// Counts the entries from a frame boundary to the first one at or behind `goal`; never beyond
    /// `limit`.
    fn scan(&self, from: u64, goal: u64, limit: u64, scanned_to: u64) -> Result<Scan, ReadError> {
        let mut scan = Scan::new(from);
        let mut buffer = vec![0; CHUNK_BYTES_MAX];
        while scan.end < goal {
            let rest = usize::try_from(limit.saturating_sub(scan.end)).unwrap_or(usize::MAX);
            let wanted = rest.min(buffer.len());
            let read_bytes = self.read(scan.end, buffer.get_mut(..wanted).unwrap_or_default())?;
            let read = buffer.get(..read_bytes).unwrap_or_default();
            if !scan.advance(read, goal, scanned_to) {
                break;
            }
        }
        Ok(scan)
    }
}
