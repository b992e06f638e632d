//! All streams of this process, by number and by FIFO.

use crate::disk::Disk;
use crate::isolate::lock;
use crate::logging::Throttle;
use crate::stream::{NewStream, Stream};
use crate::table::{self, Owner, Retention, remove_folder};
use proto::limits::CHUNK_BYTES_MAX;
use proto::relay::StreamReport;
use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

/// Ids of stopped containers that are remembered, so that their restart is not taken for their
/// first start.
const RECENT_IDS_MAX: usize = 4096;

/// Streams that are over and wait for a shipper, each with a folder and a few KiB of memory. Beyond that the
/// oldest are given up.
const ENDED_STREAMS_MAX: usize = 4096;

/// Streams that were given up whose last counters are told.
const GIVEN_UP_MAX: usize = 1024;

/// Why their entries are dropped.
const TOO_MANY_STREAMS: &str = "too_many_streams";

static GIVEN_UP: Throttle = Throttle::new();

/// All streams of the host.
#[derive(Debug)]
pub(crate) struct Registry {
    disk: Arc<dyn Disk>,
    retention: Arc<Retention>,
    streams: Mutex<Streams>,
    next_number: AtomicU32,
}

/// The stream of a FIFO. Locked while it is created: who repeats the start waits, on a blocking
/// thread, and finds it.
pub(crate) type FileSlot = Arc<Mutex<Option<Arc<Stream>>>>;

#[derive(Debug, Default)]
struct Streams {
    by_number: HashMap<u32, Arc<Stream>>,
    by_file: HashMap<String, FileSlot>,
    recent_ids: VecDeque<String>,
    /// The last counters of streams that were given up, newest first.
    given_up: Vec<StreamReport>,
}

/// The folder of a finished stream.
#[derive(Debug)]
pub(crate) struct LeftoverFolder {
    /// Whose, and where.
    pub(crate) owner: Owner,
    /// Whether its segments are kept for inspection.
    pub(crate) keep_file: bool,
}

impl Registry {
    /// Returns a registry without streams.
    pub(crate) fn new(disk: Arc<dyn Disk>, retention: Arc<Retention>) -> Self {
        Self {
            disk,
            retention,
            streams: Mutex::default(),
            next_number: AtomicU32::new(1),
        }
    }

    /// Enters a stream, and gives it its number.
    pub(crate) fn insert(&self, new: NewStream) -> Arc<Stream> {
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let stream = Arc::new(Stream::new(number, new));
        let mut streams = lock(&self.streams);
        streams.by_number.insert(number, Arc::clone(&stream));
        streams.remember(stream.container_id());
        stream
    }

    /// Returns whether a container has had a stream, of those that are remembered.
    pub(crate) fn knows(&self, container_id: &str) -> bool {
        lock(&self.streams).knows(container_id)
    }

    /// Enters which stream a FIFO has.
    pub(crate) fn set_slot(&self, file: String, slot: &FileSlot) {
        lock(&self.streams).by_file.insert(file, Arc::clone(slot));
    }

    /// Forgets which stream a FIFO has.
    pub(crate) fn remove_slot(&self, file: &str) {
        lock(&self.streams).by_file.remove(file);
    }

    /// Returns whether a FIFO has a stream, or a start is about to give it one.
    pub(crate) fn has_slot(&self, file: &str) -> bool {
        lock(&self.streams).by_file.contains_key(file)
    }

    /// Returns all streams.
    pub(crate) fn streams(&self) -> Vec<Arc<Stream>> {
        lock(&self.streams).by_number.values().cloned().collect()
    }

    /// Forgets a stream that is over. Blocks.
    pub(crate) fn retire(&self, stream: &Stream) {
        self.remove(stream, stream.keep_file);
    }

    fn remove(&self, stream: &Stream, keep_file: bool) {
        let file = stream.file().to_string_lossy();
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
        // Under the lock, so that it is not put on record behind its own back.
        let mut unrecorded = lock(&stream.unrecorded);
        *unrecorded = None;
        let leftover = stream.folder.as_deref().map(|folder| LeftoverFolder {
            owner: owner(folder, stream.container_id()),
            keep_file,
        });
        self.release(leftover);
        tracing::debug!(
            container = stream.container_id(),
            stream = stream.number(),
            "stream retired"
        );
    }

    /// Leaves the segments of finished streams to whoever looks into them, or removes their folders.
    /// Blocks.
    pub(crate) fn release(&self, leftovers: impl IntoIterator<Item = LeftoverFolder>) {
        for leftover in leftovers {
            if self.is_retained(&leftover) {
                self.retention.retain_leftovers(&leftover.owner);
                self.retention.release(&leftover.owner.folder);
            } else {
                remove_folder(&*self.disk, &leftover.owner.folder);
            }
        }
    }

    /// Lets streams go that are over and have nothing to tell, and gives the oldest up that wait for a
    /// shipper beyond [`ENDED_STREAMS_MAX`]. Blocks.
    pub(crate) fn retire_ended(&self) {
        let mut waiting = Vec::new();
        for stream in self.streams() {
            if stream.is_over_untold() {
                stream.isolate(|| self.retire(&stream));
            } else if stream.journal().has_ended() {
                waiting.push(stream);
            }
        }
        waiting.sort_by_key(|stream| stream.number());
        let surplus = waiting.len().saturating_sub(ENDED_STREAMS_MAX);
        for stream in waiting.iter().take(surplus) {
            self.give_up(stream);
        }
    }

    /// Drops all that a stream holds, with its folder. Its last counters go into the next reports.
    fn give_up(&self, stream: &Stream) {
        stream.give_up();
        let mut buffer = vec![0; CHUNK_BYTES_MAX];
        stream.isolate(|| while stream.journal().count_ahead(&mut buffer) > 0 {});
        let totals = stream.journal().totals();
        let dropped = totals.received.saturating_sub(totals.settled.total());
        let mut report = stream.report();
        report.buffered_bytes = 0;
        report
            .dropped_entries
            .insert(TOO_MANY_STREAMS.to_owned(), dropped);
        self.remove(stream, false);
        let mut streams = lock(&self.streams);
        streams.given_up.truncate(GIVEN_UP_MAX - 1);
        streams.given_up.insert(0, report);
        drop(streams);
        if let Some(suppressed_count) = GIVEN_UP.pass() {
            tracing::error!(
                suppressed_count,
                container = stream.container_id(),
                dropped,
                "more than {ENDED_STREAMS_MAX} containers are gone that wait for a shipper: the entries of \
                 the oldest are dropped, and counted"
            );
        }
    }

    fn is_retained(&self, leftover: &LeftoverFolder) -> bool {
        leftover.keep_file && self.retention.is_enabled()
    }

    /// Returns the counters of all streams, and the last ones of those that were given up.
    pub(crate) fn reports(&self) -> Vec<StreamReport> {
        let mut reports = lock(&self.streams).given_up.clone();
        reports.extend(self.streams().iter().map(|stream| stream.report()));
        reports
    }

    pub(crate) fn stream_of(&self, file: &str) -> Option<Arc<Stream>> {
        let slot = lock(&self.streams).by_file.get(file).cloned();
        // A locked slot is of a start that has no answer yet, and so has nothing to stop.
        slot.and_then(|slot| slot.try_lock().ok()?.clone())
    }

    pub(crate) fn slot_of(&self, file: &str) -> FileSlot {
        let mut streams = lock(&self.streams);
        Arc::clone(streams.by_file.entry(file.to_owned()).or_default())
    }

    /// Puts on record the containers whose records the disk has refused; returns whether all of
    /// them stand. Blocks.
    pub(crate) fn record_late(&self) -> bool {
        let mut is_complete = true;
        for stream in self.streams() {
            is_complete &= stream
                .isolate(|| self.record_one_late(&stream))
                .unwrap_or(true);
        }
        is_complete
    }

    /// Notes that a container's entries are in memory. Blocks.
    pub(crate) fn note_memory(&self, folder: &Path) {
        if let Err(error) = table::note_memory(&*self.disk, folder) {
            tracing::debug!(%error, "could not note that a container's entries are in memory");
        }
    }

    /// Says on disk which journals in memory hold nothing that the end of this process loses. Blocks.
    pub(crate) fn forget_empty_memory(&self) {
        for stream in self.streams() {
            let journal = stream.journal();
            let is_empty = journal.is_in_memory() && journal.unacked_bytes() == 0;
            if let Some(folder) = stream.folder.as_deref().filter(|_| is_empty) {
                // What can't be said costs a record that says too much.
                table::forget_memory(&*self.disk, folder).ok();
            }
        }
    }

    /// Returns whether a container is on record.
    fn record_one_late(&self, stream: &Stream) -> bool {
        let mut unrecorded = lock(&stream.unrecorded);
        let (Some(meta), Some(folder)) = (&*unrecorded, &stream.folder) else {
            return true;
        };
        match table::write_record(&*self.disk, folder, meta) {
            Ok(()) => {
                *unrecorded = None;
                self.note_memory(folder);
                tracing::info!(
                    container = stream.container_id(),
                    "the container is on record now"
                );
                true
            }
            Err(error) => {
                tracing::debug!(%error, "could not record a container yet");
                false
            }
        }
    }
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

/// Returns whose segments a folder holds.
pub(crate) fn owner(folder: &Path, container_id: &str) -> Owner {
    Owner {
        folder: folder.into(),
        container_id: container_id.into(),
    }
}
