//! The table of containers: what the engine has said, on disk before it gets its answer.
//!
//! ```text
//! STATE_DIR/                      0700
//!   lock                          held by the one driver that works here
//!   <journal id, 32 hex digits>/  one per stream: one FIFO, one start of a container
//!     meta.json                   FIFO and container as the engine gave them, 0600; ended.json once
//!                                 the stream is over
//!     state                       acknowledged offset and counters (`journal/state.rs`)
//!     <start offset, 20 digits>   segments (`journal.rs`)
//!     <start offset>.acked        segments that are kept for inspection (`kept.rs`)
//! ```
//!
//! The engine names a FIFO once, in StartLogging, and never again: not when the driver restarts,
//! crashes or is upgraded. So a stream lives from `meta.json` to the last acknowledgement:
//!
//! ```text
//! start ──▶ FIFO read ──EOF──▶ journal drained ──last ack──▶ retired ──kept.rs──▶ folder removed
//! recovery ─▶ FIFO there: read on        FIFO gone: the journal is drained
//! ```
//!
//! The key is the FIFO's path, not the container: live-restore starts a second stream for a
//! container whose first one was never stopped. A repeated start for the same FIFO changes
//! nothing. A start that writes nothing ships nothing and leaves nothing.

use crate::damaged;
use crate::descriptors;
use crate::disk::Disk;
use crate::fifo::{self, Fifo, FifoError, PumpHandle, Signals};
use crate::final_reports::{FinalReports, Over, Rest};
use crate::forward::Checker;
use crate::journal::DropReason;
use crate::journal::{self, Appender, Bounds, Budget, Journal, Recovered, Totals, read_state};
use crate::journal::{Folder, STATE_DAMAGED_FILE_NAME, STATE_FILE_NAME, segment_start};
use crate::keeper::blocking;
use crate::kept::{self, Kept, Owner, kept_start};
use crate::start::{Start, StartRequest, StreamOptions, new_journal_id};
use proto::limits::OPEN_BYTES_MAX;
use proto::log_opts::{LogOptsError, Mode};
use proto::relay::{self, StreamReport};
use rustix::fs::{FlockOperation, Mode as FileMode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};

/// Bound of a journal in memory (`no-file=true`), whatever its option says.
const MEMORY_JOURNAL_BYTES_MAX: u64 = 16 << 20;

/// Ids of stopped containers that are remembered, so that their restart is not taken for their
/// first start.
const RECENT_IDS_MAX: usize = 4096;

/// How long StopLogging waits for the FIFO to be empty. The engine holds the container meanwhile.
const STOP_WAIT_MAX: Duration = Duration::from_millis(500);

/// Starts that wait for the disk at once; more wait for these. Each holds a thread of
/// [`DISK_THREADS_MAX`](crate::DISK_THREADS_MAX), and the keeper and the forwarder need theirs.
pub(crate) const STARTS_MAX: usize = 4;

/// How long a starting driver waits for its predecessor to end.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(5);

/// Version of `meta.json`.
pub(crate) const META_VERSION: u32 = 1;

/// `meta.json`. What the engine gave stays as it was: another version may read more of it.
#[derive(Serialize, Deserialize)]
pub(crate) struct Meta {
    pub(crate) version: u32,
    pub(crate) journal_id: String,
    pub(crate) file: String,
    pub(crate) info: Box<RawValue>,
}

/// Shows nothing of `info`: log options hold keys, environment and arguments often do.
impl fmt::Debug for Meta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meta")
            .field("version", &self.version)
            .field("journal_id", &self.journal_id)
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

/// One stream.
#[derive(Debug)]
pub(crate) struct Stream {
    journal: Journal,
    /// What `Open` says, but for the offset.
    open: relay::Open,
    mode: Mode,
    file: PathBuf,
    /// Removed with the stream; `None` for one that could not be read and is left as it is.
    folder: Option<PathBuf>,
    keep_file: bool,
    /// An earlier process has taken it on, and may have told of it.
    is_adopted: bool,
    /// What could not be put on record when it started, as the disk refused it.
    unrecorded: Mutex<Option<Meta>>,
    is_ready: AtomicBool,
}

impl Stream {
    /// Returns its number in every call of this process.
    pub(crate) fn number(&self) -> u32 {
        self.open.stream
    }

    /// Returns its journal.
    pub(crate) fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Returns what a full journal does.
    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }

    /// Returns the FIFO's path.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// Returns the container's full id.
    pub(crate) fn container_id(&self) -> &str {
        let container = self.open.container.as_ref();
        container.map_or("", |container| &container.id)
    }

    /// Returns the message that opens it in a call.
    pub(crate) fn open_message(&self) -> relay::Open {
        relay::Open {
            resume_offset: self.journal.acked(),
            ..self.open.clone()
        }
    }

    /// Marks it as having something to send; returns whether it was not marked.
    pub(crate) fn set_ready(&self) -> bool {
        !self.is_ready.swap(true, Ordering::AcqRel)
    }

    /// Takes the mark back, before what it has is looked at.
    pub(crate) fn clear_ready(&self) {
        self.is_ready.store(false, Ordering::Release);
    }

    /// Returns the file descriptors that it takes, at most.
    fn descriptors(&self) -> u64 {
        match self.journal.has_ended() {
            _ if self.journal.is_in_memory() => descriptors::MEMORY_STREAM,
            true => descriptors::ENDED_STREAM,
            false => descriptors::STREAM,
        }
    }

    /// Returns its counters.
    pub(crate) fn report(&self) -> StreamReport {
        report(&self.open, &self.journal.totals())
    }
}

/// Returns a stream's counters as the shipper is told of them.
fn report(open: &relay::Open, totals: &Totals) -> StreamReport {
    let (container_id, container_name) = match &open.container {
        Some(container) => (container.id.clone(), container.name.clone()),
        None => Default::default(),
    };
    let dropped = totals.settled.dropped.iter();
    let dropped =
        dropped.map(|(reason, entries): (DropReason, u64)| (reason.as_str().to_owned(), entries));
    StreamReport {
        journal_id: open.journal_id.clone(),
        container_id,
        container_name,
        received_entries: totals.received,
        delivered_entries: totals.settled.delivered,
        filtered_entries: totals.settled.filtered,
        dead_lettered_entries: totals.settled.dead_lettered,
        dropped_entries: dropped.collect(),
        buffered_bytes: totals.buffered_bytes,
    }
}

/// Returns the last counters of a stream that is over, as its state file has them. Without one, as a
/// loss of power may leave it, nothing was received: a shipper may have been told otherwise.
fn final_report(disk: &Arc<dyn Disk>, folder: &Path, open: &relay::Open) -> Option<StreamReport> {
    // One that can't be read is said where it matters; here it only has nothing to tell.
    let medium = Folder::new(Arc::clone(disk), folder.to_path_buf());
    let saved = read_state(&medium).ok()?;
    let saved = saved.map_or_else(journal::Saved::default, |(_, saved)| saved);
    let totals = Totals {
        received: saved.settled.total(),
        settled: saved.settled,
        buffered_bytes: 0,
    };
    Some(report(open, &totals))
}

/// A container was not taken on. Nothing is left of the attempt; the text is what the user of
/// `docker run` reads.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The engine repeated a request without its body (moby `pkg/plugins/client.go`).
    #[error("the request has no body")]
    EmptyBody,
    /// The body can't be read.
    #[error("the request is not understood: {0}")]
    Json(#[from] serde_json::Error),
    /// The request lacks what a stream needs.
    #[error("the request's {field} is {value:?}, it must be {rule}")]
    Field {
        /// Which.
        field: &'static str,
        /// Its value.
        value: String,
        /// What it should be.
        rule: &'static str,
    },
    /// The log options are bad.
    #[error(transparent)]
    Options(#[from] LogOptsError),
    /// The container says more of itself than a message carries.
    #[error(
        "log options and details of the container are {bytes} bytes, the limit is {OPEN_BYTES_MAX}"
    )]
    TooLarge {
        /// Bytes.
        bytes: usize,
    },
    /// The shipper says that the options can't work.
    #[error("{}", .faults.join("; "))]
    Refused {
        /// The faults, one sentence each.
        faults: Vec<String>,
    },
    /// The FIFO can't be read.
    #[error("{}", crate::Chain(.0))]
    Fifo(#[from] FifoError),
    /// The container could not be recorded.
    #[error("could not record the container in {}: {source}", folder.display())]
    Record {
        /// The stream's folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There are entries, and nothing says whose.
    #[error("the folder holds a journal and no record of its container")]
    NoRecord,
    /// The journal could not be opened.
    #[error("{}", crate::Chain(.0))]
    Journal(#[from] journal::OpenError),
    /// There are no file descriptors for it: a container whose FIFO is not read can't be stopped.
    #[error(
        "no file descriptors are left for a further container: {taken} are taken by others, \
         {needed} are needed, {max} are for containers; raise the engine's LimitNOFILE"
    )]
    Descriptors {
        /// What other containers take.
        taken: u64,
        /// What this one would take.
        needed: u64,
        /// What there are for all containers.
        max: u64,
    },
}

impl StartError {
    /// Returns whether a record on disk is damaged, rather than the disk not to be read now.
    fn is_damage(&self) -> bool {
        match self {
            Self::Json(_) | Self::Field { .. } | Self::TooLarge { .. } | Self::NoRecord => true,
            Self::EmptyBody
            | Self::Options(_)
            | Self::Refused { .. }
            | Self::Fifo(_)
            | Self::Record { .. }
            | Self::Journal(_)
            | Self::Descriptors { .. } => false,
        }
    }
}

/// The table could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The state folder can't be used.
    #[error("could not use state folder {}: {source}", folder.display())]
    StateDir {
        /// The folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another driver works in it.
    #[error("another driver works in state folder {}", folder.display())]
    Locked {
        /// The folder.
        folder: PathBuf,
    },
}

/// What the table needs to know of the settings.
#[derive(Debug, Clone)]
pub(crate) struct TableSettings {
    /// Folder of the table.
    pub(crate) state_dir: PathBuf,
    /// Host name in every `Open`.
    pub(crate) host_name: String,
    /// Bound of a journal whose container sets none.
    pub(crate) journal_bytes_max: u64,
}

/// All streams of the host.
#[derive(Debug)]
pub(crate) struct Table {
    settings: TableSettings,
    disk: Arc<dyn Disk>,
    budget: Arc<Budget>,
    kept: Arc<Kept>,
    pump: PumpHandle,
    signals: Arc<Signals>,
    checker: Checker,
    streams: Mutex<Streams>,
    /// Folders that earlier processes have left, until recovery takes them: those of containers that
    /// start meanwhile are not among them.
    earlier: Mutex<Vec<PathBuf>>,
    /// FIFOs of streams that recovery has not found yet.
    held: Mutex<HashMap<String, OwnedFd>>,
    next_number: AtomicU32,
    /// File descriptors that all streams may take together.
    descriptors_max: u64,
    /// Bounds what [`STARTS_MAX`] says.
    starting: Arc<Semaphore>,
    has_recovered: watch::Sender<bool>,
    /// Held as long as anyone works with a stream; `None` if the disk gives none.
    _lock: Option<OwnedFd>,
}

/// The stream of a FIFO. Locked while it is created: who repeats the start waits, on a blocking
/// thread, and finds it.
type FileSlot = Arc<Mutex<Option<Arc<Stream>>>>;

#[derive(Debug, Default)]
struct Streams {
    by_number: HashMap<u32, Arc<Stream>>,
    by_file: HashMap<String, FileSlot>,
    recent_ids: VecDeque<String>,
    final_reports: FinalReports,
}

impl Table {
    /// Opens the state folder, and waits for a predecessor that is about to end.
    ///
    /// # Errors
    /// See [`TableError`].
    ///
    /// # Cancel safety
    /// Cancel safe: what a disk holds up is left to a thread.
    pub(crate) async fn open(
        settings: TableSettings,
        disk: Arc<dyn Disk>,
        budget: Arc<Budget>,
        kept: Arc<Kept>,
        pump: PumpHandle,
        signals: Arc<Signals>,
        checker: Checker,
    ) -> Result<Self, TableError> {
        let folder = settings.state_dir.clone();
        let lock_file = lock_state_dir(&disk, &folder).await?;
        let earlier = blocking(move || journal_folders(&folder)).await;
        Ok(Self {
            earlier: Mutex::new(earlier.unwrap_or_default()),
            settings,
            disk,
            budget,
            kept,
            pump,
            signals,
            checker,
            streams: Mutex::default(),
            held: Mutex::default(),
            next_number: AtomicU32::new(1),
            descriptors_max: descriptors::streams_max(descriptors::limit()),
            starting: Arc::new(Semaphore::new(STARTS_MAX)),
            has_recovered: watch::Sender::new(false),
            _lock: lock_file,
        })
    }

    /// Takes on a container: records it, opens its FIFO, and reads from then on. Returns when the
    /// record is on stable storage. Waits for no one but the disk, not for recovery either, and for a
    /// connected shipper's word at most [`Checker::ANSWER_WAIT_MAX`].
    ///
    /// # Errors
    /// See [`StartError`].
    pub(crate) async fn start(self: &Arc<Self>, body: &[u8]) -> Result<(), StartError> {
        if body.is_empty() {
            return Err(StartError::EmptyBody);
        }
        let request: StartRequest = serde_json::from_slice(body)?;
        let start = Start::check(request, &self.settings.host_name)?;
        self.check_with_shipper(&start).await?;
        let turn = Arc::clone(&self.starting).acquire_owned().await;
        let table = Arc::clone(self);
        // A request that the engine gives up on must not leave half a stream: this runs to its end.
        let created = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            table.find_or_create(start)
        });
        let stream = created.await.unwrap_or_else(|error| {
            Err(StartError::Record {
                folder: self.settings.state_dir.clone(),
                source: std::io::Error::other(error),
            })
        })?;
        tracing::info!(
            container = stream.container_id(),
            stream = stream.number(),
            "logging started"
        );
        Ok(())
    }

    /// Reads a container's FIFO empty. What its writer still writes, and its end, are awaited in
    /// the background: the engine closes it after the answer. A FIFO that is not known is no
    /// fault: the engine asks again for what was done before.
    pub(crate) async fn stop(&self, file: &str) {
        let Some(stream) = self.stream_to_stop(file).await else {
            return;
        };
        let drained = self.pump.drain(stream.number());
        // An error says that the FIFO has ended already.
        if tokio::time::timeout(STOP_WAIT_MAX, drained).await.is_err() {
            tracing::warn!(
                container = stream.container_id(),
                "the container is stopped before its FIFO is empty; the rest is read later"
            );
        }
        self.signals.keep.notify_one();
        tracing::info!(
            container = stream.container_id(),
            stream = stream.number(),
            "logging stopped"
        );
    }

    /// Answers a stop that does not say whose: the engine repeats a call that failed, as the process
    /// before this one was killed, without its body. Recovery keeps every FIFO that it may mean.
    pub(crate) async fn stop_unnamed(&self) {
        if !self.recovers_soon().await {
            tracing::warn!("a container is stopped while the streams are still looked for");
        }
    }

    /// Finds the streams of earlier processes, reads their FIFOs on, and lets requests in. Blocks.
    pub(crate) fn recover(self: &Arc<Self>) {
        let folders = std::mem::take(&mut *lock(&self.earlier));
        // Containers that may be writing come first; there are few of them.
        let is_live = |folder: &PathBuf| folder.join(META_FILE_NAME).exists();
        let (live, over): (Vec<_>, Vec<_>) = folders.into_iter().partition(is_live);
        self.hold_all(&live);
        let mut found = Found::default();
        let stream_count = self.adopt_all(&live, &mut found);
        if stream_count > 0 {
            tracing::info!(stream_count, "containers of an earlier process taken on");
        }
        self.signals.arrived.notify_one();
        self.signals.keep.notify_one();
        self.has_recovered.send_replace(true);
        lock(&self.held).clear();
        self.adopt_all(&over, &mut found);
        self.kept.adopt(found.kept);
        for (report, rest) in found.over {
            self.note_over(report, Some(rest));
        }
    }

    /// Takes on the streams of some folders; returns how many are not over. A damaged folder stops
    /// no other.
    fn adopt_all(&self, folders: &[PathBuf], found: &mut Found) -> usize {
        let mut stream_count = 0;
        for folder in folders {
            match self.adopt(folder, found) {
                Ok(goes_on) => stream_count += usize::from(goes_on),
                Err(error) => {
                    tracing::error!(
                        error = %crate::Chain(&error),
                        folder = %folder.display(),
                        "could not take on a container of an earlier process"
                    );
                    if error.is_damage() {
                        damaged::set_aside(&*self.disk, &self.settings.state_dir, folder);
                    }
                }
            }
        }
        stream_count
    }

    /// Returns the host's name.
    pub(crate) fn host_name(&self) -> &str {
        &self.settings.host_name
    }

    /// Returns all streams.
    pub(crate) fn streams(&self) -> Vec<Arc<Stream>> {
        lock(&self.streams).by_number.values().cloned().collect()
    }

    /// Forgets a stream of which everything is acknowledged. Blocks.
    pub(crate) fn retire(&self, stream: &Stream) {
        let report = stream.report();
        let file = stream.file.to_string_lossy();
        let slot = self.slot_of(&file);
        let other = lock(&slot)
            .clone()
            .filter(|known| known.number() != stream.number());
        {
            let mut streams = lock(&self.streams);
            streams.by_number.remove(&stream.number());
            if other.is_none() {
                streams.by_file.remove(&*file);
            }
            streams.remember(stream.container_id());
        }
        let report = Some(report).filter(|report| stream.is_adopted || report.received_entries > 0);
        // Under the lock, so that it is not put on record behind its own back.
        let mut unrecorded = lock(&stream.unrecorded);
        *unrecorded = None;
        let rest = stream.folder.as_deref().map(|folder| Rest {
            owner: owner(folder, stream.container_id()),
            keep_file: stream.keep_file,
        });
        self.note_over(report, rest);
        tracing::debug!(
            container = stream.container_id(),
            stream = stream.number(),
            "stream retired"
        );
    }

    /// Notes that a stream is over. Its segments are kept or go; the rest of its folder, which has
    /// the counters, stands until a shipper has noted those. With nothing to tell it goes at once.
    /// Blocks.
    fn note_over(&self, report: Option<StreamReport>, rest: Option<Rest>) {
        if let Some(rest) = &rest {
            if self.keeps(rest) {
                self.kept.keep_rest(&rest.owner);
            } else if report.is_some() {
                remove_segments(&*self.disk, &rest.owner.folder);
            }
            // The next process is to tell of it, and nothing else. Most of those that an earlier
            // process left say so already.
            if report.is_some() {
                end_record(&*self.disk, &rest.owner.folder).ok();
            }
        }
        let released = match report {
            Some(report) => lock(&self.streams)
                .final_reports
                .push(Over { report, rest }),
            None => rest,
        };
        self.release(released);
    }

    /// Learns that a shipper has noted the last counters of all streams below a number. Blocks.
    pub(crate) fn told(&self, finals_next: u64) {
        let told = lock(&self.streams).final_reports.told(finals_next);
        self.release(told);
    }

    /// Leaves folders of streams that are over to whoever looks into them, or removes them.
    fn release(&self, rests: impl IntoIterator<Item = Rest>) {
        for rest in rests {
            if self.keeps(&rest) {
                self.kept.release(&rest.owner.folder);
            } else {
                remove_folder(&*self.disk, &rest.owner.folder);
            }
        }
    }

    fn keeps(&self, rest: &Rest) -> bool {
        rest.keep_file && self.kept.is_enabled()
    }

    /// Returns the counters of all streams, and the last ones of those that are over, from a number
    /// on. Returns the number from which on they are new, too.
    pub(crate) fn reports(&self, finals_from: u64) -> (Vec<StreamReport>, u64) {
        // First those that are over: one that ends meanwhile is told of now or the next time.
        let (mut reports, finals_next) = lock(&self.streams).final_reports.since(finals_from);
        reports.extend(self.streams().iter().map(|stream| stream.report()));
        (reports, finals_next)
    }

    /// Keeps the FIFOs open that some folders name, before any of them is taken on: which of them is
    /// being stopped, the engine may not say.
    fn hold_all(&self, folders: &[PathBuf]) {
        // More can't be taken on, and whoever uses up all descriptors answers nobody.
        let fifos_max = usize::try_from(self.descriptors_max / descriptors::STREAM);
        for folder in folders.iter().take(fifos_max.unwrap_or(usize::MAX)) {
            // A record that can't be read is told of when it is taken on.
            if let Ok(Some(meta)) = read_record(&folder.join(META_FILE_NAME)) {
                self.hold(&meta.file);
            }
        }
    }

    /// Keeps a FIFO open until recovery has found its stream: the engine unlinks it after the answer
    /// to a stop, and with it would go what it still holds.
    fn hold(&self, file: &str) {
        if let Ok(fifo) = fifo::open(Path::new(file)) {
            lock(&self.held).insert(file.to_owned(), fifo);
        }
        // Behind the insertion: who recovers clears it behind its last look.
        if *self.has_recovered.borrow() {
            lock(&self.held).remove(file);
        }
    }

    /// Opens the FIFO of an earlier process's stream; `None` if it is gone.
    fn reopen_fifo(&self, file: &str) -> Result<Option<OwnedFd>, FifoError> {
        if let Some(fifo) = lock(&self.held).remove(file) {
            return Ok(Some(fifo));
        }
        match fifo::open(Path::new(file)) {
            Ok(fifo) => Ok(Some(fifo)),
            Err(error) if error.is_gone() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the stream of a FIFO, waiting for recovery to find it for a while. A FIFO of a stream
    /// that is found later is read then, to its end.
    async fn stream_to_stop(&self, file: &str) -> Option<Arc<Stream>> {
        if let Some(stream) = self.stream_of(file) {
            return Some(stream);
        }
        if !self.recovers_soon().await {
            self.hold(file);
            return None;
        }
        self.stream_of(file)
    }

    /// Waits for recovery for as long as a stop may; returns whether it is over.
    async fn recovers_soon(&self) -> bool {
        let mut has_recovered = self.has_recovered.subscribe();
        let recovered = has_recovered.wait_for(|&has_recovered| has_recovered);
        let waited = tokio::time::timeout(STOP_WAIT_MAX, recovered).await;
        waited.is_ok()
    }

    fn stream_of(&self, file: &str) -> Option<Arc<Stream>> {
        let slot = lock(&self.streams).by_file.get(file).cloned();
        // A locked slot is of a start that has no answer yet, and so has nothing to stop.
        slot.and_then(|slot| slot.try_lock().ok()?.clone())
    }

    /// Asks the shipper, if one is connected, whether the options can work. An engine that
    /// restarts a container gives up on it for good when StartLogging fails, so only a container
    /// that was just created is failed by a no.
    async fn check_with_shipper(&self, start: &Start) -> Result<(), StartError> {
        let faults = self.checker.faults(&start.open).await;
        if faults.is_empty() {
            return Ok(());
        }
        // Before recovery is over, any container may be an old one.
        let is_known =
            !*self.has_recovered.borrow() || lock(&self.streams).knows(&start.container_id);
        if !is_known && start.is_just_created() {
            return Err(StartError::Refused { faults });
        }
        tracing::warn!(
            container = start.container_id,
            ?faults,
            "the shipper does not accept the container's options: its entries stay in the journal"
        );
        Ok(())
    }

    /// Returns the stream of a start's FIFO, created if need be. Blocks.
    fn find_or_create(&self, start: Start) -> Result<Arc<Stream>, StartError> {
        let file = start.file.clone();
        let slot = self.slot_of(&file);
        let mut known = lock(&slot);
        if let Some(stream) = &*known {
            return Ok(Arc::clone(stream));
        }
        let created = self.create(start);
        let mut streams = lock(&self.streams);
        match created {
            Ok(stream) => {
                *known = Some(Arc::clone(&stream));
                streams.by_file.insert(file, Arc::clone(&slot));
                Ok(stream)
            }
            Err(error) => {
                streams.by_file.remove(&file);
                Err(error)
            }
        }
    }

    fn slot_of(&self, file: &str) -> FileSlot {
        let mut streams = lock(&self.streams);
        Arc::clone(streams.by_file.entry(file.to_owned()).or_default())
    }

    fn create(&self, start: Start) -> Result<Arc<Stream>, StartError> {
        self.check_descriptors(&start)?;
        let fifo = fifo::open(Path::new(&start.file))?;
        let folder = self.settings.state_dir.join(&start.open.journal_id);
        if let Err(error) = record(&*self.disk, &folder, &start.meta()) {
            return self.create_unrecorded(start, &error, fifo);
        }
        match self.journal(&folder, &start.container_id, &start.options) {
            Ok(recovered) => Ok(self.insert(start, Some(folder), recovered, Some(fifo))),
            Err(error) => {
                remove_folder(&*self.disk, &folder);
                Err(error.into())
            }
        }
    }

    fn check_descriptors(&self, start: &Start) -> Result<(), StartError> {
        let needed = match start.options.no_file {
            true => descriptors::MEMORY_STREAM,
            false => descriptors::STREAM,
        };
        let streams = self.streams();
        let taken = streams.iter().map(|stream| stream.descriptors()).sum();
        let max = self.descriptors_max;
        match needed > max.saturating_sub(taken) {
            true => Err(StartError::Descriptors { taken, needed, max }),
            false => Ok(()),
        }
    }

    /// Takes on a container although the disk refuses its record: a full disk must not keep
    /// containers from running. Its journal is in memory, and the record is tried again until it
    /// stands.
    fn create_unrecorded(
        &self,
        mut start: Start,
        error: &std::io::Error,
        fifo: OwnedFd,
    ) -> Result<Arc<Stream>, StartError> {
        tracing::error!(
            %error,
            container = start.container_id,
            "could not record a container; until the disk takes its record, what it writes does \
             not survive this process"
        );
        // The next process will find an empty journal, whose offsets begin again.
        let meta = Meta {
            journal_id: new_journal_id(),
            ..start.meta()
        };
        let folder = self.settings.state_dir.join(&meta.journal_id);
        start.options.no_file = true;
        let recovered = self.journal(&folder, &start.container_id, &start.options)?;
        let stream = self.insert(start, Some(folder), recovered, Some(fifo));
        *lock(&stream.unrecorded) = Some(meta);
        self.signals.keep.notify_one();
        Ok(stream)
    }

    /// Puts on record the containers whose records the disk has refused; returns whether all of
    /// them stand. Blocks.
    pub(crate) fn record_late(&self) -> bool {
        let mut is_complete = true;
        for stream in self.streams() {
            let mut unrecorded = lock(&stream.unrecorded);
            let (Some(meta), Some(folder)) = (&*unrecorded, &stream.folder) else {
                continue;
            };
            match record(&*self.disk, folder, meta) {
                Ok(()) => {
                    *unrecorded = None;
                    tracing::info!(
                        container = stream.container_id(),
                        "the container is on record now"
                    );
                }
                Err(error) => {
                    is_complete = false;
                    tracing::debug!(%error, "could not record a container yet");
                }
            }
        }
        is_complete
    }

    /// Takes on the stream of a folder. Returns whether there is anything left to do for it.
    fn adopt(&self, folder: &Path, found: &mut Found) -> Result<bool, StartError> {
        let live = read_record(&folder.join(META_FILE_NAME))?;
        let is_live = live.is_some();
        let record = match live {
            Some(meta) => Some(meta),
            None => read_record(&folder.join(ENDED_FILE_NAME))?,
        };
        let Some(meta) = record else {
            if kept::files(folder, segment_start).is_empty() {
                // The process ended before it had answered the engine.
                remove_folder(&*self.disk, folder);
                return Ok(false);
            }
            return Err(StartError::NoRecord);
        };
        let start = Start::from_meta(meta, &self.settings)?;
        let (owner, keep_file) = (owner(folder, &start.container_id), start.options.keep_file);
        found.kept.extend(kept::find(&owner));
        let adopted = match is_live {
            true => self.take_on(folder, start)?,
            false => Adopted::Over(final_report(&self.disk, folder, &start.open)),
        };
        let Adopted::Over(report) = adopted else {
            return Ok(true);
        };
        found.over.push((report, Rest { owner, keep_file }));
        Ok(false)
    }

    /// Takes on a stream that was not over.
    fn take_on(&self, folder: &Path, start: Start) -> Result<Adopted, StartError> {
        let file = start.file.clone();
        let slot = self.slot_of(&file);
        let mut known = lock(&slot);
        // An engine that has named the path anew has put another FIFO there.
        let fifo = match &*known {
            Some(_) => Ok(None),
            None => self.reopen_fifo(&file),
        };
        let adopted = fifo
            .map_err(StartError::from)
            .and_then(|fifo| self.take_on_with(folder, start, fifo));
        match (&adopted, &*known) {
            (_, Some(_)) => {}
            (Ok(Adopted::GoesOn(stream)), None) => *known = Some(Arc::clone(stream)),
            (Ok(Adopted::Over(_)) | Err(_), None) => {
                lock(&self.streams).by_file.remove(&file);
            }
        }
        if let Ok(Adopted::GoesOn(stream)) = &adopted {
            self.signals.push_ready(stream);
        }
        adopted
    }

    fn take_on_with(
        &self,
        folder: &Path,
        mut start: Start,
        fifo: Option<OwnedFd>,
    ) -> Result<Adopted, StartError> {
        let mut kept_folder = Some(folder.to_path_buf());
        if start.options.no_file {
            if fifo.is_none() {
                return Ok(Adopted::Over(None));
            }
            // What was in memory is gone: the offsets begin again, so the journal is another one.
            start.open.journal_id = new_journal_id();
        }
        let recovered = match self.journal(folder, &start.container_id, &start.options) {
            Ok(recovered) => recovered,
            Err(error) if fifo.is_some() => {
                // The container must not wait for the disk to be repaired.
                tracing::error!(
                    error = %crate::Chain(&error),
                    folder = %folder.display(),
                    "could not open a journal; its container goes on with one in memory"
                );
                kept_folder = None;
                start.options.no_file = true;
                start.open.journal_id = new_journal_id();
                self.journal(folder, &start.container_id, &start.options)?
            }
            Err(error) => return Err(error.into()),
        };
        if recovered.gap_count > 0 {
            tracing::error!(
                gap_count = recovered.gap_count,
                folder = %folder.display(),
                "the disk has lost parts of a journal"
            );
        }
        if fifo.is_none() && recovered.journal.unacked_bytes() == 0 {
            let totals = recovered.journal.totals();
            return Ok(Adopted::Over(Some(report(&start.open, &totals))));
        }
        let stream = self.insert(start, kept_folder, recovered, fifo);
        Ok(Adopted::GoesOn(stream))
    }

    fn journal(
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
            return Ok(journal::in_memory(bounds, &self.budget));
        }
        let mut medium = Folder::new(Arc::clone(&self.disk), folder.to_path_buf());
        if options.keep_file && self.kept.is_enabled() {
            let (kept, owner) = (Arc::clone(&self.kept), owner(folder, container_id));
            medium = medium.retaining(Box::new(move |start, bytes| {
                kept.keep(&owner, start, bytes)
            }));
        }
        journal::open(medium, Bounds::new(bytes_max), &self.budget)
    }

    /// Enters a stream into the table and has its FIFO read; without one it has ended.
    pub(crate) fn insert(
        &self,
        start: Start,
        folder: Option<PathBuf>,
        recovered: Recovered,
        fifo: Option<OwnedFd>,
    ) -> Arc<Stream> {
        let mut open = start.open;
        open.stream = self.next_number.fetch_add(1, Ordering::Relaxed);
        let appender: Appender = recovered.appender;
        let stream = Arc::new(Stream {
            journal: recovered.journal,
            open,
            mode: start.options.mode,
            file: PathBuf::from(&start.file),
            folder,
            keep_file: start.options.keep_file,
            is_adopted: start.is_adopted,
            unrecorded: Mutex::default(),
            is_ready: AtomicBool::new(false),
        });
        {
            let mut streams = lock(&self.streams);
            streams
                .by_number
                .insert(stream.number(), Arc::clone(&stream));
            streams.remember(stream.container_id());
        }
        match fifo {
            Some(file) => self.pump.add(Fifo {
                stream: Arc::clone(&stream),
                file,
                appender,
            }),
            None => stream.journal.end(),
        }
        stream
    }
}

/// What recovery makes of a stream that may not be over.
enum Adopted {
    /// There is something left to do for it.
    GoesOn(Arc<Stream>),
    /// There is not; its last counters.
    Over(Option<StreamReport>),
}

/// What recovery finds of streams that are over.
#[derive(Default)]
struct Found {
    kept: Vec<kept::Found>,
    /// What there is to tell of each, and what it has left.
    over: Vec<(Option<StreamReport>, Rest)>,
}

impl Streams {
    fn knows(&self, container_id: &str) -> bool {
        self.recent_ids.iter().any(|id| id == container_id)
    }

    fn remember(&mut self, container_id: &str) {
        if !self.knows(container_id) {
            self.recent_ids.truncate(RECENT_IDS_MAX - 1);
            self.recent_ids.push_front(container_id.to_owned());
        }
    }
}

/// The record of a stream.
pub(crate) const META_FILE_NAME: &str = "meta.json";
const META_NEW_FILE_NAME: &str = "meta.json.new";
/// What the record is called once the stream is over, and only kept segments are left of it.
pub(crate) const ENDED_FILE_NAME: &str = "ended.json";

fn owner(folder: &Path, container_id: &str) -> Owner {
    Owner {
        folder: folder.into(),
        container_id: container_id.into(),
    }
}

/// Reads a record; `None` if there is none of this name.
fn read_record(path: &Path) -> Result<Option<Meta>, StartError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StartError::Record {
            folder: path.to_path_buf(),
            source,
        }),
    }
}

/// Says on disk that a stream is over: the next process has nothing to do for it.
pub(crate) fn end_record(disk: &dyn Disk, folder: &Path) -> Result<(), Errno> {
    disk.rename(&folder.join(META_FILE_NAME), &folder.join(ENDED_FILE_NAME))
}

/// Puts a stream on record: when this returns, no crash and no loss of power forgets it.
fn record(disk: &dyn Disk, folder: &Path, meta: &Meta) -> std::io::Result<()> {
    let made = make_record(disk, folder, meta);
    if made.is_err() {
        remove_folder(disk, folder);
    }
    made
}

fn make_record(disk: &dyn Disk, folder: &Path, meta: &Meta) -> std::io::Result<()> {
    disk.mkdir(folder)?;
    let new_path = folder.join(META_NEW_FILE_NAME);
    let file = disk.open(&new_path, OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC)?;
    let bytes = serde_json::to_vec(meta)?;
    let mut written_bytes = 0;
    while let Some(rest) = bytes.get(written_bytes..).filter(|rest| !rest.is_empty()) {
        match disk.write_at(file.as_fd(), rest, written_bytes as u64)? {
            0 => return Err(std::io::ErrorKind::WriteZero.into()),
            written => written_bytes += written,
        }
    }
    disk.sync(file.as_fd())?;
    disk.rename(&new_path, &folder.join(META_FILE_NAME))?;
    disk.sync_folder(folder)?;
    let parent = folder.parent().map(|parent| disk.sync_folder(parent));
    Ok(parent.transpose().map(|_| ())?)
}

/// Removes a stream's folder. The record goes last: a folder that is half removed is still a
/// stream that has ended, of which nothing is left. What the disk does not let go is over, and goes
/// when the next process starts.
pub(crate) fn remove_folder(disk: &dyn Disk, folder: &Path) {
    let removed = (|| {
        unlink_segments(disk, folder)?;
        for name in [
            STATE_FILE_NAME,
            STATE_DAMAGED_FILE_NAME,
            META_NEW_FILE_NAME,
            ENDED_FILE_NAME,
            META_FILE_NAME,
        ] {
            match disk.unlink(&folder.join(name)) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok::<_, std::io::Error>(disk.rmdir(folder)?)
    })();
    if let Err(error) = removed
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%error, folder = %folder.display(), "could not remove a stream's folder");
        if let Err(error) = end_record(disk, folder) {
            tracing::debug!(%error, folder = %folder.display(), "could not mark a stream as over");
        }
    }
}

/// Removes the segments of a stream of which only the counters are of use. What the disk does not
/// let go is removed with the folder.
fn remove_segments(disk: &dyn Disk, folder: &Path) {
    if let Err(error) = unlink_segments(disk, folder) {
        tracing::debug!(%error, folder = %folder.display(), "could not remove segments");
    }
}

fn unlink_segments(disk: &dyn Disk, folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        let is_segment = |name: &str| segment_start(name).or(kept_start(name)).is_some();
        if name.to_str().is_some_and(is_segment) {
            disk.unlink(&folder.join(name))?;
        }
    }
    Ok(())
}

/// Makes the state folder and locks it. A disk that takes nothing (read-only, full, failing) is no
/// reason not to start: then there is no lock, and nobody whom it would keep out could write either.
async fn lock_state_dir(
    disk: &Arc<dyn Disk>,
    folder: &Path,
) -> Result<Option<OwnedFd>, TableError> {
    let state_dir_error = |source: std::io::Error| TableError::StateDir {
        folder: folder.to_path_buf(),
        source,
    };
    let opened = {
        let (disk, folder) = (Arc::clone(disk), folder.to_path_buf());
        blocking(move || open_lock(&*disk, &folder)).await
    };
    let opened = opened.unwrap_or_else(|| Err(std::io::Error::other("a thread has failed")));
    let lock_file = match opened {
        Ok(lock_file) => lock_file,
        Err(error) if is_disk_fault(&error) => {
            tracing::error!(
                %error,
                folder = %folder.display(),
                "the disk takes nothing: until it does, what containers write stays in memory and \
                 does not survive this process"
            );
            return Ok(None);
        }
        Err(error) => return Err(state_dir_error(error)),
    };
    let locked = tokio::time::timeout(LOCK_WAIT_MAX, async {
        loop {
            match rustix::fs::flock(&lock_file, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK | Errno::INTR) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                locked => return locked,
            }
        }
    });
    match locked.await {
        Ok(locked) => locked.map_err(|error| state_dir_error(error.into()))?,
        Err(_) => {
            return Err(TableError::Locked {
                folder: folder.to_path_buf(),
            });
        }
    }
    Ok(Some(lock_file))
}

fn open_lock(disk: &dyn Disk, folder: &Path) -> std::io::Result<OwnedFd> {
    std::fs::create_dir_all(folder)?;
    let path = folder.join("lock");
    let opened = rustix::fs::chmod(folder, FileMode::RWXU)
        .and_then(|()| disk.open(&path, OFlags::RDWR | OFlags::CREATE));
    match opened {
        // A lock needs no writing.
        Err(error) if is_disk_fault(&error.into()) => {
            Ok(disk.open(&path, OFlags::RDONLY).map_err(|_| error)?)
        }
        opened => Ok(opened?),
    }
}

/// Returns whether an error is the disk's own, and not that of a path that can't be used.
fn is_disk_fault(error: &std::io::Error) -> bool {
    let faults = [Errno::ROFS, Errno::NOSPC, Errno::DQUOT, Errno::IO];
    Errno::from_io_error(error).is_some_and(|error| faults.contains(&error))
}

/// Returns the folders of a state folder that may be a stream's.
fn journal_folders(state_dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(state_dir).inspect_err(|error| {
        tracing::error!(%error, "could not list the state folder");
    });
    let is_journal = |entry: &std::fs::DirEntry| {
        let name = entry.file_name();
        name.to_str().is_some_and(is_journal_id)
    };
    let entries = entries.into_iter().flatten().flatten();
    entries
        .filter(is_journal)
        .map(|entry| entry.path())
        .collect()
}

pub(crate) fn is_journal_id(name: &str) -> bool {
    name.len() == 32
        && name
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .expect("whoever holds the table's lock does not panic")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    fn meta(info: &str) -> Meta {
        Meta {
            version: META_VERSION,
            journal_id: new_journal_id(),
            file: "/fifo".into(),
            info: RawValue::from_string(info.into()).unwrap(),
        }
    }

    /// A disk that lets nothing go.
    #[derive(Debug)]
    struct Clinging;

    impl Disk for Clinging {
        fn unlink(&self, _: &Path) -> Result<(), Errno> {
            Err(Errno::IO)
        }
    }

    /// A disk that notes what makes a record stable, in order.
    #[derive(Debug, Default)]
    struct Noting(Mutex<Vec<String>>);

    impl Noting {
        fn note(&self, call: &str, path: &Path) {
            let name = path.file_name().unwrap().to_string_lossy();
            lock(&self.0).push(format!("{call} {name}"));
        }
    }

    impl Disk for Noting {
        fn sync(&self, file: std::os::fd::BorrowedFd<'_>) -> Result<(), Errno> {
            let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
            self.note("sync", &std::fs::read_link(link).unwrap());
            RealDisk.sync(file)
        }

        fn rename(&self, from: &Path, to: &Path) -> Result<(), Errno> {
            self.note("rename to", to);
            RealDisk.rename(from, to)
        }

        fn sync_folder(&self, folder: &Path) -> Result<(), Errno> {
            self.note("sync", folder);
            RealDisk.sync_folder(folder)
        }
    }

    #[test]
    fn a_record_is_stable_before_its_start_is_answered() {
        let state_dir = tempfile::tempdir().unwrap();
        let disk = Noting::default();
        record(&disk, &state_dir.path().join("journal"), &meta("{}")).unwrap();
        let state_dir = state_dir.path().file_name().unwrap().to_string_lossy();
        let calls = [
            format!("sync {META_NEW_FILE_NAME}"),
            format!("rename to {META_FILE_NAME}"),
            "sync journal".to_owned(),
            format!("sync {state_dir}"),
        ];
        assert_eq!(*lock(&disk.0), calls);
    }

    #[test]
    fn what_the_disk_does_not_let_go_is_over() {
        let state_dir = tempfile::tempdir().unwrap();
        let folder = state_dir.path().join(new_journal_id());
        record(&RealDisk, &folder, &meta("{}")).unwrap();
        remove_folder(&Clinging, &folder);
        assert!(!folder.join(META_FILE_NAME).exists());
        assert!(folder.join(ENDED_FILE_NAME).exists());
        remove_folder(&RealDisk, &folder);
        assert_eq!(std::fs::read_dir(state_dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_record_is_found_again_and_removed_whole() {
        let state_dir = tempfile::tempdir().unwrap();
        let folder = state_dir.path().join(new_journal_id());
        assert!(is_journal_id(folder.file_name().unwrap().to_str().unwrap()));
        let info = r#"{"ContainerID":"c","Unknown":[1]}"#;
        let meta = meta(info);
        record(&RealDisk, &folder, &meta).unwrap();
        let bytes = std::fs::read(folder.join(META_FILE_NAME)).unwrap();
        let found: Meta = serde_json::from_slice(&bytes).unwrap();
        assert_eq!((found.file, found.info.get()), (meta.file, info));
        let mode = rustix::fs::stat(folder.join(META_FILE_NAME))
            .unwrap()
            .st_mode;
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(folder.join("00000000000000000000"), "x").unwrap();
        remove_folder(&RealDisk, &folder);
        assert_eq!(std::fs::read_dir(state_dir.path()).unwrap().count(), 0);
    }
}
