//! Room in full journals: the oldest entries are dropped, of the journal that is full or, if the host
//! is, of the largest one.

use crate::chain::Chain;
use crate::journal::{Budget, Shortage};
use crate::logging::Throttle;
use crate::registry::{Registry, Signals};
use crate::stream::Stream;
use std::sync::Arc;

static DROPPED: Throttle = Throttle::new();

static DROP_FAILED: Throttle = Throttle::new();

/// Makes room.
#[derive(Debug, Clone)]
pub(super) struct Room {
    pub(super) registry: Arc<Registry>,
    pub(super) signals: Arc<Signals>,
    pub(super) budget: Arc<Budget>,
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
                held_bytes = self.budget.held_bytes(),
                "journals are full: the oldest entries are dropped, and counted"
            );
        }
    }

    /// Drops the oldest entries for every journal that needs room; returns the bytes freed.
    fn make_room(&self) -> u64 {
        let streams = self.signals.take_needing_room();
        streams
            .iter()
            .map(|stream| self.make_room_for(stream))
            .fold(0, u64::saturating_add)
    }

    fn make_room_for(&self, stream: &Stream) -> u64 {
        let mut freed_bytes = match stream.journal().shortage() {
            // Room was made by an acknowledgement since the pump found none.
            None => return 0,
            Some(Shortage::Own) => 0,
            // The largest journal pays.
            Some(Shortage::Host) => {
                let streams = self.registry.streams();
                let largest = streams
                    .iter()
                    .max_by_key(|other| other.journal().held_bytes());
                largest.map_or(0, |largest| drop_oldest(largest))
            }
        };
        if freed_bytes == 0 {
            freed_bytes = drop_oldest(stream);
        }
        if freed_bytes == 0 {
            stream.journal().grant_overdraft();
        }
        freed_bytes
    }
}

fn drop_oldest(stream: &Stream) -> u64 {
    match stream.journal().drop_oldest() {
        Ok(freed_bytes) => freed_bytes,
        Err(error) => {
            if let Some(suppressed_count) = DROP_FAILED.pass() {
                tracing::error!(
                    suppressed_count,
                    error = %Chain(&error),
                    container = stream.container_id(),
                    "could not drop a journal's oldest entries"
                );
            }
            0
        }
    }
}
