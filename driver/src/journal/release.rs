//! What is finished with: the state that says so is saved, and segments that nobody needs go.

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::counters::DropReason;
use super::lock::lock;
use super::reader::Reader;
use super::segment::Segment;
use super::shared::Journal;
use super::state;
use rustix::io::Errno;
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Journal {
    /// Saves the reader's state into the older slot. A failed save is tried in the same slot
    /// again: the other one is good.
    pub(super) fn save(&self, reader: &mut Reader) -> Result<(), Errno> {
        let sequence = reader.sequence.wrapping_add(1);
        let saved = reader.saved();
        state::encode(sequence, &saved, &mut reader.slot);
        let at = (sequence % 2).saturating_mul(state::SLOT_STRIDE_BYTES);
        self.medium.save_state(&reader.slot, at)?;
        reader.sequence = sequence;
        Ok(())
    }

    /// Removes the segments that are acknowledged or lie in a hole; never the last one, whose
    /// name says where the journal goes on.
    pub(super) fn release(&self, reader: &Reader) {
        let mut released = Vec::new();
        {
            let mut segments = lock(&self.segments);
            let last_start = segments.back().map_or(0, |segment| segment.start);
            segments.retain(|segment| {
                let is_needed = segment.start == last_start || reader.needs(segment);
                if !is_needed {
                    released.push(Arc::clone(segment));
                }
                is_needed
            });
        }
        for segment in released {
            self.remove_segment(&segment, reader.acked);
        }
    }

    pub(super) fn remove_segment(&self, segment: &Segment, acked: u64) {
        let bytes = segment.end().saturating_sub(segment.start);
        self.held_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.budget.remove(self.place_of(segment), bytes);
        self.overdraft_bytes.store(0, Ordering::Relaxed);
        if segment.is_fallback {
            self.fallback_bytes.fetch_sub(bytes, Ordering::Relaxed);
            // A note that stays says nothing wrong: what it is about is finished with.
            let reason = DropReason::MemoryLost;
            self.medium.forget_loss(segment.start, reason).ok();
            return;
        }
        let removed = if segment.end() <= acked {
            self.medium.release(segment.start, bytes)
        } else {
            self.medium.remove(segment.start)
        };
        if let Err(error) = removed {
            // Its bytes were finished with; a restart removes it.
            tracing::warn!(%error, segment = segment.start, "could not remove a journal segment");
        }
    }
}
