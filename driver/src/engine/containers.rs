//! What the engine has said of containers, and what becomes of it: a stream whose FIFO is read.
//!
//! ```text
//! start ──▶ FIFO read ──EOF──▶ journal drained ──last ack──▶ finished ──▶ folder removed
//! recovery ─▶ FIFO there: read on        FIFO gone: the journal is drained
//! ```
//!
//! The key is the FIFO's path, not the container: live-restore starts a second stream for a
//! container whose first one was never stopped. A repeated start for the same FIFO changes
//! nothing. A start that writes nothing ships nothing and leaves nothing.

use super::request::{Start, StreamOptions};
use crate::blocking::blocking;
use crate::config::Config;
use crate::descriptors;
use crate::journal::{self, Bounds, Folder, Recovered};
use crate::pump::{Fifo, PumpHandle};
use crate::registry::{Shared, owner};
use crate::relay::Checker;
use crate::stream::{NewStream, Stream};
use crate::table::{TableError, has_lost_memory, journal_folders, lock_state_dir};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio::sync::{Semaphore, watch};

/// Bound of a journal in memory (`no-file=true`), whatever its option says.
const MEMORY_JOURNAL_BYTES_MAX: u64 = 16 << 20;

/// Starts that wait for the disk at once; more wait for these. Each holds a thread of
/// `DISK_THREADS_MAX`, and upkeep and the relay need theirs.
pub(crate) const STARTS_MAX: usize = 4;

/// What is needed to know of the settings.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Folder of the table.
    pub(crate) state_dir: PathBuf,
    /// Folder of the engine's FIFOs.
    pub(crate) fifo_dir: PathBuf,
    /// Host name in every `Open`.
    pub(crate) host_name: String,
    /// Bound of a journal whose container sets none.
    pub(crate) journal_bytes_max: u64,
}

impl Settings {
    /// Returns what the settings say of it.
    pub(crate) fn from_config(config: &Config) -> Self {
        Self {
            state_dir: config.state_dir.clone(),
            fifo_dir: config.fifo_dir.clone(),
            host_name: config.host_name.clone(),
            journal_bytes_max: config.journal_bytes_max,
        }
    }
}

/// All containers of the host.
#[derive(Debug)]
pub(crate) struct Containers {
    pub(super) settings: Settings,
    pub(super) shared: Shared,
    /// Reads their FIFOs.
    pub(super) pump: PumpHandle,
    /// Asks a shipper about options.
    pub(super) checker: Checker,
    /// Folders that earlier processes have left, until recovery takes them: those of containers that
    /// start meanwhile are not among them.
    pub(super) earlier: Mutex<Vec<PathBuf>>,
    /// FIFOs of streams that recovery has not found yet.
    pub(super) pinned_fifos: Mutex<HashMap<String, OwnedFd>>,
    /// File descriptors that all streams may take together.
    pub(super) descriptors_max: u64,
    /// Bounds what [`STARTS_MAX`] says.
    pub(super) starting: Arc<Semaphore>,
    pub(super) has_recovered: watch::Sender<bool>,
    /// Held as long as anyone works with a stream; `None` if the disk gives none.
    _lock: Option<OwnedFd>,
}

impl Containers {
    /// Opens the state folder, and waits for a predecessor that is about to end.
    ///
    /// # Errors
    /// See [`TableError`].
    ///
    /// # Cancel safety
    /// Cancel safe: what a disk holds up is left to a thread.
    pub(crate) async fn open(
        settings: Settings,
        shared: Shared,
        pump: PumpHandle,
        checker: Checker,
    ) -> Result<Self, TableError> {
        let folder = settings.state_dir.clone();
        let lock_file = lock_state_dir(&shared.disk, &folder).await?;
        let earlier = blocking(move || journal_folders(&folder)).await;
        Ok(Self {
            earlier: Mutex::new(earlier.unwrap_or_default()),
            settings,
            shared,
            pump,
            checker,
            pinned_fifos: Mutex::default(),
            descriptors_max: descriptors::streams_max(descriptors::limit()),
            starting: Arc::new(Semaphore::new(STARTS_MAX)),
            has_recovered: watch::Sender::new(false),
            _lock: lock_file,
        })
    }

    pub(super) fn journal(
        &self,
        folder: &Path,
        container_id: &str,
        options: &StreamOptions,
    ) -> Result<Recovered, journal::OpenError> {
        let bytes_max = options
            .journal_bytes_max
            .unwrap_or(self.settings.journal_bytes_max);
        if options.no_file {
            let bounds = Bounds::new(bytes_max.min(MEMORY_JOURNAL_BYTES_MAX));
            return Ok(match has_lost_memory(folder) {
                true => journal::in_memory_after_loss(bounds, &self.shared.budget),
                false => journal::in_memory(bounds, &self.shared.budget),
            });
        }
        let mut medium = Folder::new(Arc::clone(&self.shared.disk), folder.to_path_buf());
        if options.keep_file && self.shared.retention.is_enabled() {
            let (kept, owner) = (
                Arc::clone(&self.shared.retention),
                owner(folder, container_id),
            );
            medium = medium.retaining(Box::new(move |start, bytes| {
                kept.keep(&owner, start, bytes)
            }));
        }
        journal::open(medium, Bounds::new(bytes_max), &self.shared.budget)
    }

    /// Enters a stream and has its FIFO read; without one it has ended.
    pub(super) fn insert(
        &self,
        start: Start,
        folder: Option<PathBuf>,
        recovered: Recovered,
        fifo: Option<OwnedFd>,
    ) -> Arc<Stream> {
        let stream = self.shared.registry.insert(NewStream {
            journal: recovered.journal,
            open: start.open,
            mode: start.options.mode,
            file: PathBuf::from(&start.file),
            folder,
            keep_file: start.options.keep_file,
            is_adopted: start.is_adopted,
        });
        match fifo {
            Some(file) => self.pump.add(Fifo {
                stream: Arc::clone(&stream),
                file,
                appender: recovered.appender,
            }),
            None => stream.journal().end(),
        }
        stream
    }
}
