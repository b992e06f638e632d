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
    /// Looks at free disk once. Returns how many bytes of it are missing; if the disk does not say, none.
    /// Blocks.
    pub(super) fn check(&self) -> u64 {
        match self.disk.free_bytes(&self.state_dir) {
            Ok(free_bytes) => {
                let missing_bytes = self.free_bytes_min.saturating_sub(free_bytes);
                let is_low = missing_bytes > 0;
                self.budget.set_disk_low(is_low);
                if is_low {
                    self.retention.clear();
                }
                missing_bytes
            }
            Err(error) => {
                if let Some(suppressed_count) = NOT_ASKED.pass() {
                    tracing::warn!(suppressed_count, %error, "could not ask for free disk");
                }
                0
            }
        }
    }
}
