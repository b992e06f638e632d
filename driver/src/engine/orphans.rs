//! FIFOs that nobody reads: their record is damaged, or can't be read now. Their containers would stand
//! still as soon as a pipe is full, and could not be stopped.
//!
//! The engine makes a FIFO, has it named by StartLogging, and writes to it after the answer. So a FIFO that
//! holds bytes and has no stream is one that an earlier process has accepted. It gets a stream of its own,
//! under the name of the FIFO: whose it is, nothing says any more.

use super::containers::Containers;
use super::error::StartError;
use super::request::Start;
use crate::blocking::blocking;
use crate::chain::Chain;
use crate::isolate::caught;
use crate::pump::open_fifo;
use crate::table::{META_VERSION, Meta, new_journal_id};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Time between two looks, while there are FIFOs without a stream.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// What is known of a FIFO without a stream.
enum Fifo {
    /// Somebody has it open for writing, and has written nothing.
    Silent,
    /// It holds bytes.
    Waiting,
    /// Nobody writes to it, and nothing is in it.
    Over,
}

impl Containers {
    /// Reads the FIFOs that recovery has found no stream for, until none is left.
    pub(crate) async fn read_orphans(self: &Arc<Self>) {
        loop {
            let containers = Arc::clone(self);
            let is_done = blocking(move || {
                *containers.has_recovered.borrow() && containers.read_orphans_once()
            });
            if is_done.await == Some(true) {
                return;
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Returns whether every FIFO has a stream, or is over.
    fn read_orphans_once(&self) -> bool {
        let entries = std::fs::read_dir(&self.settings.fifo_dir);
        let entries = entries.into_iter().flatten().flatten();
        let is_fifo = |entry: &std::fs::DirEntry| {
            let file_type = entry.file_type();
            file_type.is_ok_and(|file_type| file_type.is_fifo())
        };
        let mut is_done = true;
        for path in entries.filter(is_fifo).map(|entry| entry.path()) {
            // One that panics is not tried for ever.
            is_done &= caught(|| self.read_orphan(&path)).unwrap_or(true);
        }
        is_done
    }

    /// Has a FIFO read that has no stream and holds bytes. Returns whether it is dealt with. Blocks.
    pub(super) fn read_orphan(&self, path: &Path) -> bool {
        let Some(file) = path.to_str() else {
            return true;
        };
        if self.shared.registry.has_slot(file) {
            return true;
        }
        let found = match open_fifo(path) {
            Ok(fifo) => look(&fifo),
            Err(error) => return error.is_gone(),
        };
        match found {
            Fifo::Over => return true,
            Fifo::Silent => return false,
            Fifo::Waiting => {}
        }
        match self.take_orphan(path, file) {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(
                    error = %Chain(&error),
                    file,
                    "could not read a FIFO that has no record"
                );
                false
            }
        }
    }

    fn take_orphan(&self, path: &Path, file: &str) -> Result<(), StartError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let info = serde_json::json!({
            "ContainerID": name,
            "ContainerName": format!("/unknown-{}", name.get(..12).unwrap_or(&name)),
        });
        let meta = Meta {
            version: META_VERSION,
            journal_id: new_journal_id(),
            file: file.to_owned(),
            info: serde_json::value::to_raw_value(&info)?,
        };
        let start = Start::from_meta(meta, &self.settings.host_name)?;
        let stream = self.find_or_create(start)?;
        tracing::error!(
            file,
            stream = stream.number(),
            "a FIFO has no record that can be read: what its container writes is shipped under the \
             FIFO's name, without the container's options"
        );
        self.shared.signals.arrived.notify_one();
        Ok(())
    }

    /// Has a FIFO read that is about to be closed, if it needs it.
    pub(super) async fn read_orphan_to_stop(self: &Arc<Self>, file: &str) {
        let (containers, path) = (Arc::clone(self), PathBuf::from(file));
        let is_ours = path.starts_with(&self.settings.fifo_dir);
        if is_ours {
            blocking(move || containers.read_orphan(&path)).await;
        }
    }
}

fn look(fifo: &OwnedFd) -> Fifo {
    let mut polled = [PollFd::new(fifo, PollFlags::IN)];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let is_known = poll(&mut polled, Some(&at_once)).is_ok();
    let events = polled[0].revents();
    if !is_known || events.contains(PollFlags::IN) {
        Fifo::Waiting
    } else if events.contains(PollFlags::HUP) {
        Fifo::Over
    } else {
        Fifo::Silent
    }
}
