//! Upkeep of the journals: makes room, syncs, watches the disk. All of it on blocking threads, apart
//! from the pump: a slow disk delays these chores and no container.
//!
//! Room is made apart from syncing: a sync takes as long as the disk likes, and a FIFO whose journal is
//! full is not read meanwhile. It sleeps without a timer while everything is acknowledged.

mod free_disk;
mod room;
mod sync;

use crate::blocking::blocking;
use crate::config::Config;
use crate::registry::{Shared, Signals};
use free_disk::FreeDisk;
use room::Room;
use std::sync::Arc;
use std::time::Duration;
use sync::Sync;
use tokio::time::{Instant, sleep_until};

/// The upkeep of all journals.
#[derive(Debug, Clone)]
pub(crate) struct Upkeep {
    signals: Arc<Signals>,
    room: Room,
    free_disk: FreeDisk,
    sync: Sync,
    /// Age at which unacknowledged bytes must be on stable storage.
    sync_age: Duration,
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
        Self {
            signals: Arc::clone(&signals),
            sync: Sync {
                registry: Arc::clone(&registry),
            },
            room: Room {
                registry,
                signals,
                budget: Arc::clone(&budget),
            },
            free_disk: FreeDisk {
                disk,
                state_dir: config.state_dir.clone(),
                free_bytes_min: config.disk_free_bytes_min,
                budget,
                retention,
            },
            sync_age: config.journal_sync,
        }
    }

    /// Keeps the journals, for ever.
    pub(crate) async fn run(self) {
        tokio::join!(self.make_room_always(), self.sync_always());
    }

    /// Syncs everything that is unacknowledged. Blocks.
    pub(crate) fn sync_all(&self) {
        self.sync.all();
    }

    async fn make_room_always(&self) {
        loop {
            self.signals.room_wanted.notified().await;
            let room = self.room.clone();
            blocking(move || room.make()).await;
        }
    }

    async fn sync_always(&self) {
        let interval = self.sync_age / 2;
        // What an earlier process has left unsynced is old enough.
        let mut sync_at = Instant::now();
        loop {
            sleep_until(sync_at).await;
            let (free_disk, sync) = (self.free_disk.clone(), self.sync.clone());
            sync_at += interval;
            let round = blocking(move || {
                free_disk.check();
                sync.round()
            });
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
