//! Free disk below its floor: then no journal grows, and what is kept for inspection goes.

use crate::disk::Disk;
use crate::journal::Budget;
use crate::logging::Throttle;
use crate::table::Retention;
use std::path::PathBuf;
use std::sync::Arc;

static NOT_ASKED: Throttle = Throttle::new();

/// Watches free disk.
#[derive(Debug, Clone)]
pub(super) struct FreeDisk {
    pub(super) disk: Arc<dyn Disk>,
    /// Folder whose disk is watched.
    pub(super) state_dir: PathBuf,
    pub(super) free_bytes_min: u64,
    pub(super) budget: Arc<Budget>,
    pub(super) retention: Arc<Retention>,
}

impl FreeDisk {
    /// Looks at free disk once. Blocks.
    pub(super) fn check(&self) {
        match self.disk.free_bytes(&self.state_dir) {
            Ok(free_bytes) => {
                let is_low = free_bytes < self.free_bytes_min;
                self.budget.set_disk_low(is_low);
                if is_low {
                    self.retention.clear();
                }
            }
            Err(error) => {
                if let Some(suppressed_count) = NOT_ASKED.pass() {
                    tracing::warn!(suppressed_count, %error, "could not ask for free disk");
                }
            }
        }
    }
}
