//! Upkeep of the journals: makes room, syncs, watches the disk. All of it on blocking threads, apart
//! from the pump: a slow disk delays these chores and no container.
//!
//! Room is made, and free disk watched, apart from syncing: a sync takes as long as the disk likes, and a
//! FIFO whose journal is full is not read meanwhile. It sleeps without a timer while everything is acknowledged.

mod free_disk;
mod room;
mod sync;

use crate::blocking::blocking;
use crate::config::Config;
use crate::registry::{Registry, Shared, Signals};
use free_disk::FreeDisk;
use room::Room;
use std::sync::Arc;
use std::time::Duration;
use sync::Sync;
use tokio::time::{Instant, sleep, sleep_until};

/// How often free disk is looked at while journals grow.
const DISK_WATCH_INTERVAL: Duration = Duration::from_millis(500);
/// Pause between two looks at the streams that are over.
const RETIRE_PAUSE: Duration = Duration::from_millis(100);

/// The upkeep of all journals.
#[derive(Debug, Clone)]
pub(crate) struct Upkeep {
    signals: Arc<Signals>,
    registry: Arc<Registry>,
    room: Room,
    free_disk: FreeDisk,
    sync: Sync,
    /// Time between two rounds of syncs.
    sync_interval: Duration,
}

impl Upkeep {
    /// Returns what keeps journals, with the bounds that the settings give.
    pub(crate) fn new(config: &Config, shared: Shared) -> Self {
        let Shared {
            disk,
            budget,
            retention,
            registry,
            signals,
        } = shared;
        let free_disk = FreeDisk {
            disk,
            state_dir: config.state_dir.clone(),
            free_bytes_min: config.disk_free_bytes_min,
            budget: Arc::clone(&budget),
            retention,
        };
        Self {
            signals: Arc::clone(&signals),
            registry: Arc::clone(&registry),
            sync: Sync {
                registry: Arc::clone(&registry),
            },
            room: Room {
                registry,
                signals,
                budget,
                free_disk: free_disk.clone(),
            },
            free_disk,
            sync_interval: config.journal_sync_interval(),
        }
    }

    /// Keeps the journals, for ever.
    pub(crate) async fn run(self) {
        tokio::join!(
            self.make_room_always(),
            self.watch_disk_always(),
            self.sync_always(),
            self.retire_ended_always()
        );
    }

    /// Syncs everything that is unacknowledged, at the end of the process. Blocks.
    pub(crate) fn sync_all(&self) {
        self.sync.all();
        self.registry.forget_empty_memory();
    }

    async fn make_room_always(&self) {
        loop {
            self.signals.room_wanted.notified().await;
            let room = self.room.clone();
            blocking(move || room.make()).await;
        }
    }

    /// Looks at free disk as long as journals grow or the disk is low, however long a sync takes.
    async fn watch_disk_always(&self) {
        loop {
            let free_disk = self.free_disk.clone();
            let missing_bytes = blocking(move || free_disk.check()).await.unwrap_or(0);
            if missing_bytes == 0 {
                self.signals.disk_watch_wanted.notified().await;
            }
            sleep(DISK_WATCH_INTERVAL).await;
        }
    }

    /// Streams that are over need no shipper to be small.
    async fn retire_ended_always(&self) {
        loop {
            self.signals.ended.notified().await;
            let registry = Arc::clone(&self.registry);
            blocking(move || registry.retire_ended()).await;
            // Many containers may end at once.
            sleep(RETIRE_PAUSE).await;
        }
    }

    async fn sync_always(&self) {
        let interval = self.sync_interval;
        // What an earlier process has left unsynced is old enough.
        let mut sync_at = Instant::now();
        loop {
            sleep_until(sync_at).await;
            let sync = self.sync.clone();
            sync_at += interval;
            let round = blocking(move || sync.round());
            let has_unacked = round.await.unwrap_or(true);
            // A disk that is slower than that is left in peace in between.
            sync_at = sync_at.max(Instant::now() + interval / 2);
            if !has_unacked {
                self.signals.sync_wanted.notified().await;
                sync_at = Instant::now() + interval;
            }
        }
    }
}
