//! Brings journals to stable storage by age. A round syncs what the round before has seen, so that no
//! byte is older than two rounds; with the time that it may have waited in the pipe before, that is
//! within `JOURNAL_SYNC_MS` (`Config::journal_sync_interval`).

use crate::logging::Throttle;
use crate::registry::Registry;
use std::sync::Arc;

static SYNC_FAILED: Throttle = Throttle::new();

/// Syncs journals.
#[derive(Debug, Clone)]
pub(super) struct Sync {
    pub(super) registry: Arc<Registry>,
}

impl Sync {
    /// Syncs what has been unacknowledged for a whole round. Returns whether there is a next round:
    /// anything is unacknowledged, or a container not on record.
    pub(super) fn round(&self) -> bool {
        // A record that is missing is reason enough for a next round.
        let mut has_unacked = !self.registry.record_late();
        for stream in self.registry.streams() {
            let Some(synced) = stream.isolate(|| stream.journal().sync_aged()) else {
                continue;
            };
            match synced {
                Ok(is_unacked) => has_unacked |= is_unacked,
                Err(error) => {
                    has_unacked = true;
                    let Some(suppressed_count) = SYNC_FAILED.pass() else {
                        continue;
                    };
                    tracing::warn!(
                        suppressed_count,
                        %error,
                        container = stream.container_id(),
                        "could not sync a journal; loss of power now would cost its last entries"
                    );
                }
            }
        }
        has_unacked
    }

    /// Syncs everything that is unacknowledged. Blocks.
    pub(super) fn all(&self) {
        for stream in self.registry.streams() {
            if let Some(Err(error)) = stream.isolate(|| stream.journal().sync()) {
                tracing::warn!(
                    %error,
                    container = stream.container_id(),
                    "could not sync a journal"
                );
            }
        }
    }
}
