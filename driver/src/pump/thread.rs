//! The pump's thread.

use super::commands::{Command, PumpHandle};
use super::worker::Worker;
use crate::config::Config;
use crate::registry::Signals;
use rustix::io::Errno;
use std::sync::Arc;
use tokio::sync::oneshot;

/// The pump could not be started.
#[derive(Debug, thiserror::Error)]
#[error("could not start the pump")]
pub struct PumpError(#[source] std::io::Error);

/// The pump's thread. Dropping it reads all FIFOs empty once more and waits for the thread.
#[derive(Debug)]
pub(crate) struct Pump {
    handle: PumpHandle,
    thread: Option<std::thread::JoinHandle<()>>,
    ended: Option<oneshot::Receiver<()>>,
}

impl Pump {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`PumpError`] if the kernel gives no thread or file descriptor.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub(crate) fn start(signals: Arc<Signals>, config: &Config) -> Result<Self, PumpError> {
        let failed = |error: Errno| PumpError(error.into());
        let worker = Worker::new(signals, config.journal_block_max, config.pipe_hold_max())
            .map_err(failed)?;
        let shared = Arc::clone(&worker.shared);
        let (alive, ended) = oneshot::channel::<()>();
        let runtime = tokio::runtime::Handle::current();
        let thread = std::thread::Builder::new()
            .name("pump".into())
            .stack_size(256 << 10)
            .spawn(move || {
                let _alive = alive;
                // One clock for the pump and the rest of the process.
                let _clock = runtime.enter();
                worker.run();
            })
            .map_err(PumpError)?;
        Ok(Self {
            handle: PumpHandle { shared },
            thread: Some(thread),
            ended: Some(ended),
        })
    }

    /// Returns a way to speak to it.
    pub(crate) fn handle(&self) -> PumpHandle {
        self.handle.clone()
    }

    /// Waits until the thread has ended, which it does not do of itself.
    ///
    /// # Cancel safety
    /// Cancel safe, and may be called again.
    pub(crate) async fn ended(&mut self) {
        if let Some(ended) = &mut self.ended {
            // The sender is never used, only dropped.
            ended.await.ok();
            self.ended = None;
        }
    }

    /// Reads all FIFOs empty once more, and ends the thread. Dropped before that, it leaves the thread
    /// to itself: a disk may hold it up.
    pub(crate) async fn stop(mut self) {
        let thread = self.thread.take();
        self.handle.command(Command::Stop);
        self.ended().await;
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the pump has panicked");
        }
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.handle.command(Command::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the pump has panicked");
        }
    }
}
