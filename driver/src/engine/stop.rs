//! StopLogging: the FIFO is read empty. Always a success.

use super::containers::Containers;
use crate::isolate::lock;
use crate::pump::open_fifo;
use crate::stream::Stream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long StopLogging waits for the FIFO to be empty. The engine holds the container meanwhile.
const STOP_WAIT_MAX: Duration = Duration::from_millis(500);

impl Containers {
    /// Reads a container's FIFO empty. What its writer still writes, and its end, are awaited in
    /// the background: the engine closes it after the answer. A FIFO that is not known is no
    /// fault: the engine asks again for what was done before.
    pub(crate) async fn stop(self: &Arc<Self>, file: &str) {
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
        self.shared.signals.sync_wanted.notify_one();
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

    /// Returns the stream of a FIFO, waiting for recovery to find it for a while. A FIFO of a stream
    /// that is found later is read then, to its end.
    async fn stream_to_stop(self: &Arc<Self>, file: &str) -> Option<Arc<Stream>> {
        if let Some(stream) = self.shared.registry.stream_of(file) {
            return Some(stream);
        }
        if !self.recovers_soon().await {
            self.pin_fifo(file);
            return None;
        }
        if !self.shared.registry.has_slot(file) {
            self.read_orphan_to_stop(file).await;
        }
        self.shared.registry.stream_of(file)
    }

    /// Waits for recovery for as long as a stop may; returns whether it is over.
    async fn recovers_soon(&self) -> bool {
        let mut has_recovered = self.has_recovered.subscribe();
        let recovered = has_recovered.wait_for(|&has_recovered| has_recovered);
        let waited = tokio::time::timeout(STOP_WAIT_MAX, recovered).await;
        waited.is_ok()
    }
}

impl Containers {
    /// Keeps a FIFO open until recovery has found its stream: the engine unlinks it after the answer
    /// to a stop, and with it would go what it still holds.
    pub(super) fn pin_fifo(&self, file: &str) {
        if let Ok(fifo) = open_fifo(Path::new(file)) {
            lock(&self.pinned_fifos).insert(file.to_owned(), fifo);
        }
        // Behind the insertion: who recovers clears it behind its last look.
        if *self.has_recovered.borrow() {
            lock(&self.pinned_fifos).remove(file);
        }
    }
}
