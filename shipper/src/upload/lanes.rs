//! The lanes that exist: made for the first stream that needs one, ended after the last.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;
use tracing::debug;

use crate::config::Upload;
use crate::lane::queue::{Group, Lane, LaneKey, Next, SlotId, Stream};
use crate::lane::window::{Budget, Share};
use crate::show::metrics::Metrics;
use crate::upload::batch::Uploader;
use crate::upload::pace::Pace;

/// All lanes. Their number is bounded by the number of open streams.
#[derive(Debug)]
pub struct Lanes {
    limits: Upload,
    budget: Arc<Budget>,
    uploader: Arc<Uploader>,
    lanes: Mutex<HashMap<LaneKey, Arc<Lane>>>,
    /// Whether lanes end; changes under the lock of `lanes`.
    is_closing: AtomicBool,
}

impl Lanes {
    /// Makes an empty set whose lanes share `budget` and send through `uploader`.
    pub fn new(limits: Upload, budget: Arc<Budget>, uploader: Arc<Uploader>) -> Self {
        Self {
            limits,
            budget,
            uploader,
            lanes: Mutex::default(),
            is_closing: AtomicBool::new(false),
        }
    }

    /// Puts a stream into its lane, and starts the lane if it is the first one.
    pub fn join(&self, key: &LaneKey, stream: Arc<Stream>) -> (Arc<Lane>, SlotId) {
        let mut lanes = self.lock();
        if lanes.get(key).is_some_and(|lane| lane.is_dead()) {
            lanes.remove(key);
        }
        let lane = lanes.entry(key.clone()).or_insert_with(|| {
            let share = Share::new(Arc::clone(&self.budget));
            let lane = Arc::new(Lane::new(key.clone(), self.limits, share));
            let uploader = Arc::clone(&self.uploader);
            self.uploader
                .tasks
                .spawn(uploader.run_lane(Arc::clone(&lane)));
            lane
        });
        let slot = lane.join(stream);
        // A stream that is opened while the process stops is not to make a lane that nobody ends.
        if self.is_closing.load(Ordering::Relaxed) {
            lane.close();
        }
        (Arc::clone(lane), slot)
    }

    /// Takes a stream out of its lane, and ends the lane if it was the last one. A batch in flight
    /// goes on as long as it holds records of a stream that is still there.
    pub fn leave(&self, lane: &Arc<Lane>, slot: SlotId) {
        let mut lanes = self.lock();
        lane.leave(slot);
        if lane.has_no_streams() {
            lane.close();
            // Another one has the place of a lane that died.
            if lanes
                .get(lane.key())
                .is_some_and(|it| Arc::ptr_eq(it, lane))
            {
                lanes.remove(lane.key());
            }
        }
    }

    /// Lets all lanes send what they hold without lingering, and end.
    pub fn close(&self) {
        let lanes = self.lock();
        self.is_closing.store(true, Ordering::Relaxed);
        lanes.values().for_each(|lane| lane.close());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<LaneKey, Arc<Lane>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Uploader {
    /// Runs a lane until it is closed and empty.
    pub async fn run_lane(self: Arc<Self>, lane: Arc<Lane>) {
        // Also a panic ends it, and an abort: no stream may wait for a lane that is gone.
        let _running = Running::new(&lane, &self.metrics);
        let pace = Arc::new(Pace::new(self.concurrency_max));
        loop {
            match lane.next(Instant::now(), pace.limit()) {
                Next::Batch(groups) => {
                    let (uploader, lane) = (Arc::clone(&self), Arc::clone(&lane));
                    let pace = Arc::clone(&pace);
                    self.tasks.spawn(async move {
                        let streams = streams_of(&groups);
                        // Released also by a panic or an abort: the lane must not leak the slot.
                        let _in_flight = InFlight::new(&lane, &uploader.metrics);
                        tokio::select! {
                            biased;
                            () = uploader.deliver(&lane, groups, &pace) => {}
                            () = all_left(&streams) => {
                                debug!(topic_id = lane.key().target.topic_id,
                                    "a batch ends with its streams, their driver sends it again");
                            }
                        }
                    });
                }
                Next::WaitUntil(due) => {
                    // Both arms only lead to another look.
                    tokio::select! {
                        () = lane.changed() => {}
                        () = tokio::time::sleep_until(due) => {}
                    }
                }
                Next::Wait => lane.changed().await,
                Next::End => return,
            }
        }
    }
}

struct InFlight<'a> {
    lane: &'a Lane,
    metrics: &'a Metrics,
}

impl<'a> InFlight<'a> {
    fn new(lane: &'a Lane, metrics: &'a Metrics) -> Self {
        metrics.batches.inc();
        Self { lane, metrics }
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.metrics.batches.dec();
        self.lane.release();
    }
}

fn streams_of(groups: &[Group]) -> Vec<Arc<Stream>> {
    groups
        .iter()
        .map(|group| Arc::clone(group.receipt.stream()))
        .collect()
}

/// Waits until all of a batch's streams have left.
async fn all_left(streams: &[Arc<Stream>]) {
    for stream in streams {
        stream.left().await;
    }
}

struct Running<'a> {
    lane: &'a Lane,
    metrics: &'a Metrics,
}

impl<'a> Running<'a> {
    fn new(lane: &'a Lane, metrics: &'a Metrics) -> Self {
        metrics.open_topic(&lane.key().target.topic_id);
        Self { lane, metrics }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let topic_id = &self.lane.key().target.topic_id;
        self.metrics.close_topic(topic_id, Instant::now());
        if !self.lane.has_ended() {
            self.lane.die();
        }
    }
}
