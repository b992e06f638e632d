//! StartLogging: options are checked, the container is put on record, and its FIFO is read.

use super::containers::Containers;
use super::error::StartError;
use super::request::{Start, StartRequest};
use crate::descriptors;
use crate::isolate::{caught, lock};
use crate::pump::open_fifo;
use crate::stream::Stream;
use crate::table::{Meta, new_journal_id, remove_folder, write_record};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

impl Containers {
    /// Takes on a container: records it, opens its FIFO, and reads from then on. Returns when the
    /// record is on stable storage. Waits for no one but the disk, not for recovery either, and for a
    /// connected shipper's word at most `Checker::ANSWER_WAIT_MAX`.
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
        let containers = Arc::clone(self);
        // A request that the engine gives up on must not leave half a stream: this runs to its end.
        let created = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            containers.find_or_create(start)
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
            !*self.has_recovered.borrow() || self.shared.registry.knows(&start.container_id);
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
    pub(super) fn find_or_create(&self, start: Start) -> Result<Arc<Stream>, StartError> {
        let file = start.file.clone();
        let slot = self.shared.registry.slot_of(&file);
        let mut known = lock(&slot);
        if let Some(stream) = &*known {
            return Ok(Arc::clone(stream));
        }
        let created = caught(|| self.create(start)).unwrap_or_else(|bug| Err(bug.into()));
        match created {
            Ok(stream) => {
                *known = Some(Arc::clone(&stream));
                self.shared.registry.set_slot(file, &slot);
                Ok(stream)
            }
            Err(error) => {
                self.shared.registry.remove_slot(&file);
                Err(error)
            }
        }
    }

    fn create(&self, start: Start) -> Result<Arc<Stream>, StartError> {
        // One that an earlier process has accepted is read, whatever is left: its container writes.
        if !start.is_adopted {
            self.check_descriptors(&start)?;
        }
        let fifo = open_fifo(Path::new(&start.file))?;
        let folder = self.settings.state_dir.join(&start.open.journal_id);
        if let Err(error) = write_record(&*self.shared.disk, &folder, &start.meta()) {
            return self.create_unrecorded(start, &error, fifo);
        }
        let is_in_memory = start.options.no_file;
        match self.journal(&folder, &start.container_id, &start.options) {
            Ok(recovered) => {
                if is_in_memory {
                    self.shared.registry.note_memory(&folder);
                }
                Ok(self.insert(start, Some(folder), recovered, Some(fifo)))
            }
            Err(error) => {
                remove_folder(&*self.shared.disk, &folder);
                Err(error.into())
            }
        }
    }

    fn check_descriptors(&self, start: &Start) -> Result<(), StartError> {
        let needed = match start.options.no_file {
            true => descriptors::MEMORY_STREAM,
            false => descriptors::STREAM,
        };
        let streams = self.shared.registry.streams();
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
        self.shared.signals.sync_wanted.notify_one();
        Ok(stream)
    }
}
