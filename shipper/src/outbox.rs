//! What waits to be said to one driver. Uploads put acknowledgements in from any task; the call's
//! response stream takes them out, as many as have gathered, in one message.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use proto::relay::{Ack, Opened, Refused, ShipResponse, Window};
use tokio::sync::Notify;

use crate::ack::Progress;

/// Bounded by the call's streams: at most one entry of each kind per stream.
#[derive(Debug, Default)]
pub struct Outbox {
    waiting: Mutex<Waiting>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    opened: Vec<Opened>,
    refused: Vec<Refused>,
    windows: HashMap<u32, u64>,
    acks: HashMap<u32, Progress>,
}

impl Outbox {
    /// Says that a stream was accepted.
    pub fn open(&self, opened: Opened) {
        self.put(|waiting| waiting.opened.push(opened));
    }

    /// Says that a stream was not accepted.
    pub fn refuse(&self, refused: Refused) {
        self.put(|waiting| waiting.refused.push(refused));
    }

    /// Says that a stream's window has changed.
    pub fn resize(&self, stream: u32, window_bytes: u64) {
        self.put(|waiting| {
            waiting.windows.insert(stream, window_bytes);
        });
    }

    /// Says how far a stream got.
    pub fn acknowledge(&self, stream: u32, progress: Progress) {
        self.put(|waiting| waiting.acks.entry(stream).or_default().extend(progress));
    }

    /// Waits until something may be there.
    ///
    /// # Cancel safety
    /// Nothing is lost: what was put in stays, and so does the wake-up.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Takes everything out; `None` if there is nothing.
    pub fn take(&self) -> Option<ShipResponse> {
        let waiting =
            std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        let response = ShipResponse {
            opened: waiting.opened,
            acks: waiting
                .acks
                .into_iter()
                .map(|(stream, progress)| ack(stream, progress))
                .collect(),
            windows: waiting
                .windows
                .into_iter()
                .map(|(stream, bytes)| Window { stream, bytes })
                .collect(),
            refused: waiting.refused,
        };
        (response != ShipResponse::default()).then_some(response)
    }

    fn put(&self, change: impl FnOnce(&mut Waiting)) {
        change(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_one();
    }
}

fn ack(stream: u32, progress: Progress) -> Ack {
    Ack {
        stream,
        offset: progress.offset,
        delivered_entries: progress.delivered_entries,
        filtered_entries: progress.filtered_entries,
        dead_lettered_entries: progress.dead_lettered_entries,
    }
}
