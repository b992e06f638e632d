//! A new process takes over what an earlier one has left: streams, FIFOs, finished streams.

use super::containers::Containers;
use super::error::StartError;
use super::request::Start;
use crate::descriptors;
use crate::isolate::{caught, lock};
use crate::journal::segment_start;
use crate::pump::{FifoError, open_fifo};
use crate::registry::{LeftoverFolder, owner};
use crate::stream::Stream;
use crate::table::{
    ENDED_FILE_NAME, FoundFile, META_FILE_NAME, files, find, new_journal_id, read_record,
    remove_folder, set_aside,
};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

impl Containers {
    /// Finds the streams of earlier processes, reads their FIFOs on, and lets requests in. Blocks.
    pub(crate) fn recover(self: &Arc<Self>) {
        let folders = std::mem::take(&mut *lock(&self.earlier));
        // Containers that may be writing come first; there are few of them.
        let is_live = |folder: &PathBuf| folder.join(META_FILE_NAME).exists();
        let (live, over): (Vec<_>, Vec<_>) = folders.into_iter().partition(is_live);
        self.pin_fifos(&live);
        let mut found = Found::default();
        let stream_count = self.recover_folders(&live, &mut found);
        if stream_count > 0 {
            tracing::info!(stream_count, "containers of an earlier process taken on");
        }
        self.shared.signals.arrived.notify_one();
        self.shared.signals.sync_wanted.notify_one();
        self.has_recovered.send_replace(true);
        lock(&self.pinned_fifos).clear();
        self.recover_folders(&over, &mut found);
        self.shared.retention.recover(found.kept);
        self.shared.registry.release(found.finished);
        self.shared.signals.ended.notify_one();
    }

    /// Takes on the streams of some folders; returns how many are not over. A damaged folder stops
    /// no other.
    fn recover_folders(&self, folders: &[PathBuf], found: &mut Found) -> usize {
        let mut stream_count = 0;
        for folder in folders {
            let recovered = caught(|| self.recover_folder(folder, found));
            match recovered.unwrap_or_else(|bug| Err(bug.into())) {
                Ok(goes_on) => stream_count += usize::from(goes_on),
                Err(error) => {
                    tracing::error!(
                        error = %crate::chain::Chain(&error),
                        folder = %folder.display(),
                        "could not take on a container of an earlier process"
                    );
                    if error.is_damage() {
                        set_aside(&*self.shared.disk, &self.settings.state_dir, folder);
                    }
                }
            }
        }
        stream_count
    }

    /// Keeps the FIFOs open that some folders name, before any of them is taken on: which of them is
    /// being stopped, the engine may not say.
    fn pin_fifos(&self, folders: &[PathBuf]) {
        // More can't be taken on, and whoever uses up all descriptors answers nobody.
        let fifos_max = usize::try_from(self.descriptors_max / descriptors::STREAM);
        for folder in folders.iter().take(fifos_max.unwrap_or(usize::MAX)) {
            // A record that can't be read is told of when it is taken on.
            if let Ok(Some(meta)) = read_record(&folder.join(META_FILE_NAME)) {
                self.pin_fifo(&meta.file);
            }
        }
    }

    /// Opens the FIFO of an earlier process's stream; `None` if it is gone.
    fn reopen_fifo(&self, file: &str) -> Result<Option<OwnedFd>, FifoError> {
        if let Some(fifo) = lock(&self.pinned_fifos).remove(file) {
            return Ok(Some(fifo));
        }
        match open_fifo(Path::new(file)) {
            Ok(fifo) => Ok(Some(fifo)),
            Err(error) if error.is_gone() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes on the stream of a folder. Returns whether there is anything left to do for it.
    fn recover_folder(&self, folder: &Path, found: &mut Found) -> Result<bool, StartError> {
        let live = read_record(&folder.join(META_FILE_NAME))?;
        let is_live = live.is_some();
        let record = match live {
            Some(meta) => Some(meta),
            None => read_record(&folder.join(ENDED_FILE_NAME))?,
        };
        let Some(meta) = record else {
            if files(folder, segment_start).is_empty() {
                // The process ended before it had answered the engine.
                remove_folder(&*self.shared.disk, folder);
                return Ok(false);
            }
            return Err(StartError::NoRecord);
        };
        let start = Start::from_meta(meta, &self.settings.host_name)?;
        let (owner, keep_file) = (owner(folder, &start.container_id), start.options.keep_file);
        found.kept.extend(find(&owner));
        let adopted = match is_live {
            true => self.recover_stream(folder, start)?,
            false => Outcome::Finished,
        };
        if matches!(adopted, Outcome::GoesOn(_)) {
            return Ok(true);
        }
        found.finished.push(LeftoverFolder { owner, keep_file });
        Ok(false)
    }

    /// Takes on a stream that was not over.
    fn recover_stream(&self, folder: &Path, start: Start) -> Result<Outcome, StartError> {
        let file = start.file.clone();
        let slot = self.shared.registry.slot_of(&file);
        let mut known = lock(&slot);
        // An engine that has named the path anew has put another FIFO there.
        let fifo = match &*known {
            Some(_) => Ok(None),
            None => self.reopen_fifo(&file),
        };
        let adopted = fifo
            .map_err(StartError::from)
            .and_then(|fifo| caught(|| self.recover_with_fifo(folder, start, fifo))?);
        match (&adopted, &*known) {
            (_, Some(_)) => {}
            (Ok(Outcome::GoesOn(stream)), None) => *known = Some(Arc::clone(stream)),
            (Ok(Outcome::Finished) | Err(_), None) => {
                self.shared.registry.remove_slot(&file);
            }
        }
        if let Ok(Outcome::GoesOn(stream)) = &adopted {
            self.shared.signals.push_ready(stream);
        }
        adopted
    }

    fn recover_with_fifo(
        &self,
        folder: &Path,
        mut start: Start,
        fifo: Option<OwnedFd>,
    ) -> Result<Outcome, StartError> {
        let mut kept_folder = Some(folder.to_path_buf());
        if start.options.no_file {
            if fifo.is_none() {
                return Ok(Outcome::Finished);
            }
            // What was in memory is gone: the offsets begin again, so the journal is another one.
            start.open.journal_id = new_journal_id();
        }
        let opened = caught(|| self.journal(folder, &start.container_id, &start.options));
        let opened = opened
            .map_err(StartError::from)
            .and_then(|opened| Ok(opened?));
        let recovered = match opened {
            Ok(recovered) => recovered,
            Err(error) if fifo.is_some() => {
                // The container must not wait for the disk to be repaired.
                tracing::error!(
                    error = %crate::chain::Chain(&error),
                    folder = %folder.display(),
                    "could not open a journal; its container goes on with one in memory"
                );
                kept_folder = None;
                start.options.no_file = true;
                start.open.journal_id = new_journal_id();
                self.journal(folder, &start.container_id, &start.options)?
            }
            Err(error) => return Err(error),
        };
        if recovered.gap_count > 0 {
            tracing::error!(
                gap_count = recovered.gap_count,
                folder = %folder.display(),
                "the disk has lost parts of a journal"
            );
        }
        let stream = self.insert(start, kept_folder, recovered, fifo);
        Ok(Outcome::GoesOn(stream))
    }
}

/// What recovery makes of a stream that may not be over.
enum Outcome {
    /// There is something left to do for it.
    GoesOn(Arc<Stream>),
    /// There is not.
    Finished,
}

/// What recovery finds of streams that are over.
#[derive(Default)]
struct Found {
    kept: Vec<FoundFile>,
    finished: Vec<LeftoverFolder>,
}
