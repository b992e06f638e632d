//! Room in full journals: the oldest entries are dropped, of the journal that is full or, if the host
//! is, of the largest one.

use super::free_disk::FreeDisk;
use crate::journal::{Budget, Shortage};
use crate::logging::Throttle;
use crate::registry::{Registry, Signals};
use crate::stream::Stream;
use std::sync::Arc;

static DROPPED: Throttle = Throttle::new();

/// Makes room.
#[derive(Debug, Clone)]
pub(super) struct Room {
    pub(super) registry: Arc<Registry>,
    pub(super) signals: Arc<Signals>,
    pub(super) budget: Arc<Budget>,
    pub(super) free_disk: FreeDisk,
}

impl Room {
    /// Makes room for every journal that needs it, and says so. Blocks.
    pub(super) fn make(&self) {
        let freed_bytes = self.make_room();
        if freed_bytes > 0
            && let Some(suppressed_count) = DROPPED.pass()
        {
            tracing::error!(
                suppressed_count,
                disk_bytes = self.budget.disk_bytes(),
                memory_bytes = self.budget.memory_bytes(),
                "journals are full: the oldest entries are dropped, and counted"
            );
        }
    }

    /// Drops the oldest entries for every journal that needs room; returns the bytes freed.
    fn make_room(&self) -> u64 {
        let streams = self.signals.take_needing_room();
        streams
            .iter()
            .filter_map(|stream| stream.isolate(|| self.make_room_for(stream)))
            .fold(0, u64::saturating_add)
    }

    fn make_room_for(&self, stream: &Stream) -> u64 {
        let journal = stream.journal();
        let mut freed_bytes = match journal.shortage() {
            // Room was made by an acknowledgement since the pump found none.
            None => return 0,
            Some(Shortage::Own) => 0,
            Some(Shortage::Host) => {
                // The disk may have got room since it was last asked: what is dropped is gone.
                let missing_bytes = self.free_disk.check();
                if journal.shortage().is_none() {
                    return 0;
                }
                self.drop_of_largest(journal.is_in_memory(), missing_bytes)
            }
        };
        if freed_bytes == 0 {
            freed_bytes = journal.drop_oldest(u64::MAX);
        }
        if freed_bytes == 0 {
            journal.grant_overdraft();
        }
        freed_bytes
    }

    /// Has the largest journal pay, of those in memory or of those on disk, unless it holds no more than
    /// everyone may: no more than the disk misses, if it is the disk that has no room.
    fn drop_of_largest(&self, is_in_memory: bool, missing_bytes: u64) -> u64 {
        let bytes_max = match missing_bytes {
            0 => u64::MAX,
            missing_bytes => missing_bytes,
        };
        let streams = self.registry.streams();
        let largest = streams
            .iter()
            .filter(|stream| !stream.is_failed())
            .filter(|stream| stream.journal().is_in_memory() == is_in_memory)
            .filter(|stream| stream.journal().is_above_floor())
            .max_by_key(|stream| stream.journal().held_bytes());
        largest
            .and_then(|largest| largest.isolate(|| largest.journal().drop_oldest(bytes_max)))
            .unwrap_or(0)
    }
}
