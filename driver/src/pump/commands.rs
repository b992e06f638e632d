//! What the pump is told to do.

use super::fifo::Fifo;
use crate::isolate::lock;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use tokio::sync::oneshot;

#[derive(Debug)]
pub(super) enum Command {
    Add(Fifo),
    Drain {
        stream_number: u32,
        reply: oneshot::Sender<()>,
    },
    Stop,
}

/// Speaks to the pump.
#[derive(Debug, Clone)]
pub(crate) struct PumpHandle {
    pub(super) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(super) struct Shared {
    /// Bounded by the requests that the plugin API serves at once.
    pub(super) commands: Mutex<Vec<Command>>,
    pub(super) wake: OwnedFd,
}

impl PumpHandle {
    /// Reads a FIFO from now on.
    pub(crate) fn add(&self, fifo: Fifo) {
        self.command(Command::Add(fifo));
    }

    /// Reads a FIFO until it is empty. The answer comes then, or fails if the FIFO has ended.
    pub(crate) fn drain(&self, stream_number: u32) -> oneshot::Receiver<()> {
        let (reply, drained) = oneshot::channel();
        self.command(Command::Drain {
            stream_number,
            reply,
        });
        drained
    }

    pub(super) fn command(&self, command: Command) {
        lock(&self.shared.commands).push(command);
        // The counter can't overflow: the pump empties it whenever it wakes.
        if let Err(error) = rustix::io::write(&self.shared.wake, &1_u64.to_ne_bytes()) {
            tracing::error!(%error, "could not wake the pump");
        }
    }
}
