//! All streams of this process, by number and by FIFO.

use super::finished::{FinalReports, FinishedStream, LeftoverFolder};
use crate::disk::Disk;
use crate::stream::{NewStream, Stream};
use crate::table::{self, Owner, Retention, end_record, remove_folder, remove_segments};
use proto::relay::StreamReport;
use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// Ids of stopped containers that are remembered, so that their restart is not taken for their
/// first start.
const RECENT_IDS_MAX: usize = 4096;

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
    final_reports: FinalReports,
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

    /// Forgets a stream of which everything is acknowledged. Blocks.
    pub(crate) fn retire(&self, stream: &Stream) {
        let report = stream.report();
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
        let report = Some(report).filter(|report| stream.is_adopted || report.received_entries > 0);
        // Under the lock, so that it is not put on record behind its own back.
        let mut unrecorded = lock(&stream.unrecorded);
        *unrecorded = None;
        let leftover = stream.folder.as_deref().map(|folder| LeftoverFolder {
            owner: owner(folder, stream.container_id()),
            keep_file: stream.keep_file,
        });
        self.note_finished(report, leftover);
        tracing::debug!(
            container = stream.container_id(),
            stream = stream.number(),
            "stream retired"
        );
    }

    /// Notes that a stream has finished. Its segments are kept or go; the rest of its folder, which has
    /// the counters, stands until a shipper has noted those. With nothing to tell it goes at once.
    /// Blocks.
    pub(crate) fn note_finished(
        &self,
        report: Option<StreamReport>,
        leftover: Option<LeftoverFolder>,
    ) {
        if let Some(leftover) = &leftover {
            if self.is_retained(leftover) {
                self.retention.retain_leftovers(&leftover.owner);
            } else if report.is_some() {
                remove_segments(&*self.disk, &leftover.owner.folder);
            }
            // The next process is to tell of it, and nothing else. Most of those that an earlier
            // process left say so already.
            if report.is_some() {
                end_record(&*self.disk, &leftover.owner.folder).ok();
            }
        }
        let released = match report {
            Some(report) => lock(&self.streams)
                .final_reports
                .push(FinishedStream { report, leftover }),
            None => leftover,
        };
        self.release(released);
    }

    /// Learns that a shipper has noted the last counters of all streams below a number. Blocks.
    pub(crate) fn reports_confirmed_below(&self, number: u64) {
        let released = lock(&self.streams).final_reports.confirmed_below(number);
        self.release(released);
    }

    /// Leaves folders of finished streams to whoever looks into them, or removes them.
    fn release(&self, leftovers: impl IntoIterator<Item = LeftoverFolder>) {
        for leftover in leftovers {
            if self.is_retained(&leftover) {
                self.retention.release(&leftover.owner.folder);
            } else {
                remove_folder(&*self.disk, &leftover.owner.folder);
            }
        }
    }

    fn is_retained(&self, leftover: &LeftoverFolder) -> bool {
        leftover.keep_file && self.retention.is_enabled()
    }

    /// Returns the counters of all streams, and the last ones of those that have finished, from a number
    /// on. Returns the number from which on they are new, too.
    pub(crate) fn reports(&self, first_unconfirmed: u64) -> (Vec<StreamReport>, u64) {
        // First those that have finished: one that ends meanwhile is told of now or the next time.
        let (mut reports, first_new) = lock(&self.streams).final_reports.since(first_unconfirmed);
        reports.extend(self.streams().iter().map(|stream| stream.report()));
        (reports, first_new)
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
            let mut unrecorded = lock(&stream.unrecorded);
            let (Some(meta), Some(folder)) = (&*unrecorded, &stream.folder) else {
                continue;
            };
            match table::write_record(&*self.disk, folder, meta) {
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .expect("whoever holds the registry's lock does not panic")
}
