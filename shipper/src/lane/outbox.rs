//! What waits to be said to one driver. Uploads put acknowledgements in from any task; the call's
//! response stream takes them out, as many as have gathered, in one message.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use proto::limits::{REASON_BYTES_MAX, RESPONSE_BYTES_MAX};
use proto::relay::{Ack, Opened, Refused, ShipResponse, Window};
use tokio::sync::Notify;

use crate::lane::receipts::Progress;

/// Streams of which one message says that they are accepted, acknowledged, or have another window.
const STREAMS_MAX: usize = 4_096;

/// Streams of which one message says why they are refused.
const REFUSED_MAX: usize = 256;

const _: () = assert!(
    // Numbers take at most 11 bytes with their keys, and an acknowledgement has five.
    STREAMS_MAX * (24 + 60 + 24) + REFUSED_MAX * (REASON_BYTES_MAX + 24) < RESPONSE_BYTES_MAX,
    "a message must be one that drivers take"
);

/// Bounded by the call's streams: at most one entry of each kind per stream, opened anew or not.
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
    abandoned: Vec<u32>,
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

    /// Says that nothing more of a stream will be acknowledged. For the call, not for the driver.
    pub fn abandon(&self, stream: u32) {
        self.put(|waiting| waiting.abandoned.push(stream));
    }

    /// Takes the streams out of which nothing more will be acknowledged.
    pub fn take_abandoned(&self) -> Vec<u32> {
        std::mem::take(&mut self.lock().abandoned)
    }

    /// Waits until something may be there.
    ///
    /// # Cancel safety
    /// Nothing is lost: what was put in stays, and so does the wake-up.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Takes out what one message holds; `None` if there is nothing.
    pub fn take(&self) -> Option<ShipResponse> {
        let mut waiting = self.lock();
        let opened = first(&mut waiting.opened, STREAMS_MAX);
        let refused = first(&mut waiting.refused, REFUSED_MAX);
        let (mut acks, mut windows) = (Vec::new(), Vec::new());
        // What follows may be of a stream that the driver has to know as accepted before.
        if waiting.opened.is_empty() {
            acks = some(&mut waiting.acks);
            windows = some(&mut waiting.windows);
        }
        drop(waiting);
        let response = ShipResponse {
            opened,
            acks: acks
                .into_iter()
                .map(|(stream, progress)| ack(stream, progress))
                .collect(),
            windows: windows
                .into_iter()
                .map(|(stream, bytes)| Window {
                    stream,
                    bytes,
                    hold_ms: None,
                })
                .collect(),
            refused,
        };
        (response != ShipResponse::default()).then_some(response)
    }

    fn put(&self, change: impl FnOnce(&mut Waiting)) {
        change(&mut self.lock());
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes out the first `count_max`.
fn first<T>(waiting: &mut Vec<T>, count_max: usize) -> Vec<T> {
    let rest = waiting.split_off(waiting.len().min(count_max));
    std::mem::replace(waiting, rest)
}

/// Takes out what one message holds: in practice, all.
fn some<T>(waiting: &mut HashMap<u32, T>) -> Vec<(u32, T)> {
    if waiting.len() <= STREAMS_MAX {
        return std::mem::take(waiting).into_iter().collect();
    }
    let streams: Vec<u32> = waiting.keys().copied().take(STREAMS_MAX).collect();
    let taken = streams.into_iter();
    taken
        .filter_map(|stream| waiting.remove_entry(&stream))
        .collect()
}

fn ack(stream: u32, progress: Progress) -> Ack {
    Ack {
        stream,
        offset: progress.offset,
        delivered_entries: progress.delivered_entries,
        filtered_entries: progress.filtered_entries,
        dead_lettered_entries: progress.dead_lettered_entries,
        // The call knows.
        is_last: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;
    use proto::limits::STREAMS_PER_CALL_MAX;
    use std::collections::HashSet;

    #[test]
    fn as_much_as_ever_waits_is_said_in_messages_that_drivers_take_and_in_order() {
        let outbox = Outbox::default();
        let streams = 0..u32::try_from(STREAMS_PER_CALL_MAX).unwrap();
        for stream in streams.clone() {
            outbox.open(Opened {
                stream,
                window_bytes: u64::MAX,
                hold_ms: None,
            });
            outbox.resize(stream, u64::MAX);
            let progress = Progress {
                offset: u64::MAX,
                delivered_entries: u64::MAX,
                filtered_entries: u64::MAX,
                dead_lettered_entries: u64::MAX,
            };
            outbox.acknowledge(stream, progress);
            let reason = "x".repeat(REASON_BYTES_MAX);
            outbox.refuse(Refused { stream, reason });
        }
        let (mut opened, mut acked, mut resized, mut refused) =
            (HashSet::new(), HashSet::new(), HashSet::new(), 0);
        while let Some(response) = outbox.take() {
            assert!(response.encoded_len() < RESPONSE_BYTES_MAX);
            opened.extend(response.opened.iter().map(|opened| opened.stream));
            acked.extend(response.acks.iter().map(|ack| ack.stream));
            resized.extend(response.windows.iter().map(|window| window.stream));
            refused += response.refused.len();
            assert!(acked.is_subset(&opened) && resized.is_subset(&opened));
        }
        assert_eq!(
            [opened.len(), acked.len(), resized.len(), refused],
            [streams.len(); 4]
        );
    }
}
