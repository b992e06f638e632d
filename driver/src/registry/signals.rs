//! What the parties tell each other: which streams have something to send, and which need room.

use crate::isolate::lock;
use crate::stream::Stream;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How long bytes may wait in a pipe while there is no shipper.
const HOLD_WITHOUT_SHIPPER: Duration = Duration::from_millis(250);

/// Who has something to do.
#[derive(Debug, Default)]
pub(crate) struct Signals {
    /// Something arrived: for the relay.
    pub(crate) arrived: Notify,
    /// Something arrived: for the syncs of upkeep, when they sleep.
    pub(crate) sync_wanted: Notify,
    /// Something arrived: for the watch over free disk, when it sleeps.
    pub(crate) disk_watch_wanted: Notify,
    /// A journal needs room: for upkeep.
    pub(crate) room_wanted: Notify,
    /// Up to when all that was written has been read; `None`: until now.
    last_read: Mutex<Option<Instant>>,
    /// How long bytes of a stream that no shipper has opened may wait in the pipe.
    unopened_hold: Mutex<Option<Duration>>,
    /// A FIFO has come to its end: for upkeep.
    pub(crate) ended: Notify,
    ready: Mutex<Vec<Arc<Stream>>>,
    needing_room: Mutex<Vec<Arc<Stream>>>,
}

impl Signals {
    /// Says up to when all that was written to the FIFOs has been read; `None`: it is read as it comes.
    pub(crate) fn set_last_read(&self, at: Option<Instant>) {
        *lock(&self.last_read) = at;
    }

    /// Returns up to when all that was written to the FIFOs has been read, and stands among the streams
    /// that have something to send; at most `now`.
    pub(crate) fn last_read(&self, now: Instant) -> Instant {
        lock(&self.last_read).map_or(now, |at| at.min(now))
    }

    /// Says how long bytes of streams that no shipper has opened may wait; `None`: there is no call.
    pub(crate) fn set_unopened_hold(&self, hold: Option<Duration>) {
        *lock(&self.unopened_hold) = hold;
    }

    /// Returns how long bytes of a stream that no shipper has opened may wait.
    pub(crate) fn unopened_hold(&self) -> Duration {
        lock(&self.unopened_hold).unwrap_or(HOLD_WITHOUT_SHIPPER)
    }

    /// Says that a stream has something to send. It stands in the list once.
    pub(crate) fn push_ready(&self, stream: &Arc<Stream>) {
        if stream.set_ready() {
            lock(&self.ready).push(Arc::clone(stream));
        }
    }

    /// Takes the streams that have something to send.
    pub(crate) fn take_ready(&self, into: &mut Vec<Arc<Stream>>) {
        std::mem::swap(&mut *lock(&self.ready), into);
        for stream in into {
            stream.clear_ready();
        }
    }

    /// Takes the streams whose journals need room.
    pub(crate) fn take_needing_room(&self) -> Vec<Arc<Stream>> {
        std::mem::take(&mut lock(&self.needing_room))
    }

    pub(crate) fn push_needing_room(&self, stream: &Arc<Stream>) {
        let mut needing_room = lock(&self.needing_room);
        if !needing_room
            .iter()
            .any(|other| other.number() == stream.number())
        {
            needing_room.push(Arc::clone(stream));
            self.room_wanted.notify_one();
        }
    }
}
