//! One stream: one FIFO, one start of a container, one journal. Whatever moves its bytes meets here.

use crate::descriptors;
use crate::isolate::caught;
use crate::journal::{DropReason, Journal, Totals};
use crate::table::Meta;
use proto::log_opts::Mode;
use proto::relay::{self, StreamReport};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// One stream.
#[derive(Debug)]
pub(crate) struct Stream {
    journal: Journal,
    /// What `Open` says, but for the offset.
    open: relay::Open,
    mode: Mode,
    file: PathBuf,
    /// Removed with the stream; `None` for one that could not be read and is left as it is.
    pub(crate) folder: Option<PathBuf>,
    pub(crate) keep_file: bool,
    /// An earlier process has taken it on, and may have told of it.
    pub(crate) is_adopted: bool,
    /// What could not be put on record when it started, as the disk refused it.
    pub(crate) unrecorded: Mutex<Option<Meta>>,
    is_ready: AtomicBool,
    /// Milliseconds that its bytes may wait in the pipe; [`HOLD_UNSAID`] while no shipper has opened it.
    hold_ms: AtomicU32,
    is_given_up: AtomicBool,
    is_failed: AtomicBool,
    /// Entries that the FIFO gave after the stream had failed.
    discarded_entries: AtomicU64,
}

const HOLD_UNSAID: u32 = u32::MAX;

/// What makes a stream.
#[derive(Debug)]
pub(crate) struct NewStream {
    /// Its journal.
    pub(crate) journal: Journal,
    /// What `Open` says, but for the number and the offset.
    pub(crate) open: relay::Open,
    /// What a full journal does.
    pub(crate) mode: Mode,
    /// The FIFO's path.
    pub(crate) file: PathBuf,
    /// Its folder, if it has one that goes with it.
    pub(crate) folder: Option<PathBuf>,
    /// Whether acknowledged segments are kept for inspection.
    pub(crate) keep_file: bool,
    /// An earlier process has taken it on, and may have told of it.
    pub(crate) is_adopted: bool,
}

impl Stream {
    /// Returns a stream with its number, which no other stream of this process has.
    pub(crate) fn new(number: u32, new: NewStream) -> Self {
        Self {
            journal: new.journal,
            open: relay::Open {
                stream: number,
                ..new.open
            },
            mode: new.mode,
            file: new.file,
            folder: new.folder,
            keep_file: new.keep_file,
            is_adopted: new.is_adopted,
            unrecorded: Mutex::default(),
            is_ready: AtomicBool::new(false),
            hold_ms: AtomicU32::new(HOLD_UNSAID),
            is_given_up: AtomicBool::new(false),
            is_failed: AtomicBool::new(false),
            discarded_entries: AtomicU64::new(0),
        }
    }

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

    /// Says how many milliseconds its bytes may wait in the pipe; `None`: no shipper has opened it.
    pub(crate) fn set_hold(&self, hold_ms: Option<u32>) {
        self.hold_ms
            .store(hold_ms.unwrap_or(HOLD_UNSAID), Ordering::Relaxed);
    }

    /// Returns how long its bytes may wait in the pipe; `None` if no shipper has opened it.
    pub(crate) fn hold(&self) -> Option<Duration> {
        match self.hold_ms.load(Ordering::Relaxed) {
            HOLD_UNSAID => None,
            hold_ms => Some(Duration::from_millis(hold_ms.into())),
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

    /// Returns the file descriptors that it takes, at most; of what a refusing disk has put into memory those that
    /// it takes now.
    pub(crate) fn descriptors(&self) -> u64 {
        match self.journal.has_ended() {
            _ if self.journal.is_in_memory() => descriptors::MEMORY_STREAM,
            true => descriptors::ENDED_STREAM + self.journal.open_in_memory(),
            false => descriptors::STREAM + self.journal.open_in_memory(),
        }
    }

    /// Returns whether it is over and no shipper needs to know: nothing was ever received, nor was one told
    /// otherwise.
    pub(crate) fn is_over_untold(&self) -> bool {
        self.journal.is_complete() && !self.is_adopted && self.journal.totals().received == 0
    }

    /// Returns whether a shipper is to open it: there are entries to ship, or its last counters to tell.
    pub(crate) fn has_to_open(&self) -> bool {
        self.journal.unacked_bytes() > 0 || self.journal.has_ended() && !self.is_over_untold()
    }

    /// Has the relay leave it alone from now on.
    pub(crate) fn give_up(&self) {
        self.is_given_up.store(true, Ordering::Release);
    }

    /// Returns whether the relay is to leave it alone.
    pub(crate) fn is_given_up(&self) -> bool {
        self.is_given_up.load(Ordering::Acquire) || self.is_failed()
    }

    /// Works on this stream alone. If that panics, the stream has failed, and nothing else: its FIFO is read
    /// on, what it gives is dropped and counted, and what the journal holds waits for the next process.
    /// `None` if it has failed, now or before.
    pub(crate) fn isolate<T>(&self, work: impl FnOnce() -> T) -> Option<T> {
        if self.is_failed() {
            return None;
        }
        match caught(work) {
            Ok(result) => Some(result),
            Err(panicked) => {
                if !self.is_failed.swap(true, Ordering::AcqRel) {
                    tracing::error!(
                        error = %panicked,
                        container = self.container_id(),
                        stream = self.number(),
                        "a container's stream has failed: what it writes from now on is dropped, and counted; \
                         what is in its journal waits for a new process"
                    );
                }
                None
            }
        }
    }

    /// Returns whether work on it has panicked.
    pub(crate) fn is_failed(&self) -> bool {
        self.is_failed.load(Ordering::Acquire)
    }

    /// Counts entries that the FIFO has given although the stream has failed.
    pub(crate) fn discarded(&self, entries: u64) {
        self.discarded_entries.fetch_add(entries, Ordering::Relaxed);
    }

    /// Returns what a stream's end tells: its counters, of which those that the present call settles are as
    /// they were when it was opened.
    pub(crate) fn last_counters(&self, opened_with: &Totals) -> StreamReport {
        let mut totals = self.journal.totals();
        totals.settled.delivered = opened_with.settled.delivered;
        totals.settled.filtered = opened_with.settled.filtered;
        totals.settled.dead_lettered = opened_with.settled.dead_lettered;
        report(&self.open, &totals)
    }

    /// Returns its counters.
    pub(crate) fn report(&self) -> StreamReport {
        let mut report = report(&self.open, &self.journal.totals());
        let discarded = self.discarded_entries.load(Ordering::Relaxed);
        if discarded > 0 {
            report.received_entries = report.received_entries.saturating_add(discarded);
            let reason = DropReason::InternalError.as_str().to_owned();
            *report.dropped_entries.entry(reason).or_default() += discarded;
        }
        report
    }
}

/// Returns a stream's counters as the shipper is told of them.
pub(crate) fn report(open: &relay::Open, totals: &Totals) -> StreamReport {
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
