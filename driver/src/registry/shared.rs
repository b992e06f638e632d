//! What the rooms of the driver share.

use super::signals::Signals;
use super::streams::Registry;
use crate::config::Config;
use crate::disk::Disk;
use crate::journal::Budget;
use crate::table::Retention;
use std::sync::Arc;

/// Streams, and what all of them have in common.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    /// Where all of it is.
    pub(crate) disk: Arc<dyn Disk>,
    /// What all journals may hold.
    pub(crate) budget: Arc<Budget>,
    /// What is kept although it is acknowledged.
    pub(crate) retention: Arc<Retention>,
    /// All streams.
    pub(crate) registry: Arc<Registry>,
    /// Who has something to do.
    pub(crate) signals: Arc<Signals>,
}

impl Shared {
    /// Returns a host without streams, with the bounds that the settings give.
    pub(crate) fn new(config: &Config, disk: Arc<dyn Disk>) -> Self {
        let retention = Arc::new(Retention::from_config(config, &disk));
        Self {
            budget: Arc::new(Budget::new(
                config.journal_total_bytes_max,
                config.journal_memory_bytes_max,
            )),
            registry: Arc::new(Registry::new(Arc::clone(&disk), Arc::clone(&retention))),
            retention,
            disk,
            signals: Arc::default(),
        }
    }
}
