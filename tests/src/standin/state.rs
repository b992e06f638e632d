//! What all connections of a stand-in share.

use super::body::Scratch;
use super::config::{Clock, Config, Key};
use super::fault::{FaultKind, Faults};
use super::quota::Quota;
use super::store::{Store, Upload};
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;

/// What a stand-in counts.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Stats {
    /// Uploads received, good or bad.
    pub requests: u64,
    /// Records accepted since the start, also those that were deleted since.
    pub records: u64,
    /// Bytes of all upload bodies as sent.
    pub sent_bytes: u64,
    /// Bytes of all accepted bodies before compression.
    pub plain_bytes: u64,
    /// Groups that came again with an id and bytes that had come before: retries.
    pub repeated_groups: u64,
    /// Answers to uploads by status and error code.
    pub answers: BTreeMap<String, u64>,
    /// Uploads that suffered a fault, by kind.
    pub faults: BTreeMap<String, u64>,
}

/// What all connections share.
#[derive(Debug)]
pub(super) struct State {
    pub(super) config: Config,
    pub(super) clock: Clock,
    pub(super) keys: Shared<Vec<Key>>,
    pub(super) store: Shared<Store>,
    pub(super) stats: Shared<Stats>,
    pub(super) faults: Shared<Faults>,
    pub(super) quota: Shared<Quota>,
    /// Buffers that no request uses now; as many as there were requests at once.
    pub(super) scratches: Shared<Vec<Scratch>>,
    pub(super) watcher: Option<mpsc::Sender<Arc<Upload>>>,
}

impl State {
    pub(super) fn stats(&self) -> Stats {
        let mut stats = self.stats.lock().clone();
        let store = self.store.lock();
        stats.records = store.record_count();
        stats.repeated_groups = store.repeated_groups();
        stats.faults.clone_from(&self.faults.lock().applied);
        stats
    }

    pub(super) fn replace_keys(&self, keys: Vec<Key>) {
        *self.keys.lock() = keys;
        self.faults
            .lock()
            .end(|fault| fault.kind == FaultKind::UntilNewKey);
    }
}

/// A mutex that is never held across an await, and that outlives a panic of its holder: what it
/// guards is counted and listed, never half-changed.
#[derive(Debug, Default)]
pub(super) struct Shared<T>(Mutex<T>);

impl<T> Shared<T> {
    pub(super) fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
