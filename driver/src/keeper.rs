//! The keeper of the journals: makes room, syncs, watches the disk. All of it on blocking threads,
//! apart from the pump: a slow disk delays these chores and no container.
//!
//! Room is made apart from syncing: a sync takes as long as the disk likes, and a FIFO whose journal
//! is full is not read meanwhile. It sleeps without a timer while everything is acknowledged.
//! Otherwise a round of syncs comes twice within the age at which bytes must be synced: it syncs what
//! the round before has seen, so that no byte grows older than that.

use crate::containers::{Stream, Table};
use crate::disk::Disk;
use crate::fifo::Signals;
use crate::journal::{Budget, Shortage};
use crate::kept::Kept;
use crate::logging::Throttle;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

static NOT_ASKED: Throttle = Throttle::new();
static SYNC_FAILED: Throttle = Throttle::new();
static DROPPED: Throttle = Throttle::new();
static DROP_FAILED: Throttle = Throttle::new();

/// What the keeper works with.
#[derive(Debug, Clone)]
pub(crate) struct Keeper {
    /// The streams.
    pub(crate) table: Arc<Table>,
    /// What the pump says.
    pub(crate) signals: Arc<Signals>,
    /// What all journals hold.
    pub(crate) budget: Arc<Budget>,
    /// What is kept although it is acknowledged.
    pub(crate) kept: Arc<Kept>,
    /// Where all of it is.
    pub(crate) disk: Arc<dyn Disk>,
    /// Folder whose disk is watched.
    pub(crate) state_dir: PathBuf,
    /// Free disk below which journals stop growing.
    pub(crate) disk_free_bytes_min: u64,
    /// Age at which unacknowledged bytes must be on stable storage.
    pub(crate) sync: Duration,
}

impl Keeper {
    /// Keeps the journals, for ever.
    pub(crate) async fn run(self) {
        tokio::join!(self.make_room_always(), self.sync_always());
    }

    async fn make_room_always(&self) {
        loop {
            self.signals.starve.notified().await;
            let keeper = self.clone();
            let freed_bytes = blocking(move || keeper.make_room()).await.unwrap_or(0);
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
    }

    async fn sync_always(&self) {
        let interval = self.sync / 2;
        // What an earlier process has left unsynced is old enough.
        let mut sync_at = Instant::now();
        loop {
            sleep_until(sync_at).await;
            let keeper = self.clone();
            sync_at += interval;
            let has_unacked = blocking(move || keeper.sync_round()).await.unwrap_or(true);
            // A disk that is slower than that is left in peace in between.
            sync_at = sync_at.max(Instant::now() + interval / 2);
            if !has_unacked {
                self.signals.keep.notified().await;
                sync_at = Instant::now() + interval;
            }
        }
    }

    /// Drops the oldest entries for every journal that needs room; returns the bytes freed.
    fn make_room(&self) -> u64 {
        let starved = self.signals.take_starved();
        starved
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
                let streams = self.table.streams();
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

    /// Syncs what has been unacknowledged for a whole round. Returns whether there is a next round:
    /// anything is unacknowledged, or a container not on record.
    fn sync_round(&self) -> bool {
        match self.disk.free_bytes(&self.state_dir) {
            Ok(free_bytes) => {
                let is_low = free_bytes < self.disk_free_bytes_min;
                self.budget.set_disk_low(is_low);
                if is_low {
                    self.kept.clear();
                }
            }
            Err(error) => {
                if let Some(suppressed_count) = NOT_ASKED.pass() {
                    tracing::warn!(suppressed_count, %error, "could not ask for free disk");
                }
            }
        }
        // A record that is missing is reason enough for a next round.
        let mut has_unacked = !self.table.record_late();
        for stream in self.table.streams() {
            match stream.journal().sync_aged() {
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
    pub(crate) fn sync_all(&self) {
        for stream in self.table.streams() {
            if let Err(error) = stream.journal().sync() {
                tracing::warn!(
                    %error,
                    container = stream.container_id(),
                    "could not sync a journal"
                );
            }
        }
    }
}

fn drop_oldest(stream: &Stream) -> u64 {
    match stream.journal().drop_oldest() {
        Ok(freed_bytes) => freed_bytes,
        Err(error) => {
            if let Some(suppressed_count) = DROP_FAILED.pass() {
                tracing::error!(
                    suppressed_count,
                    error = %crate::Chain(&error),
                    container = stream.container_id(),
                    "could not drop a journal's oldest entries"
                );
            }
            0
        }
    }
}

/// Runs what waits for the disk on a blocking thread; `None` if it panicked, which is said.
pub(crate) async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    match tokio::task::spawn_blocking(job).await {
        Ok(result) => Some(result),
        Err(error) => {
            tracing::error!(%error, "a task on the disk has failed");
            None
        }
    }
}
