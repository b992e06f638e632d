//! The lanes that exist: made for the first stream that needs one, ended after the last.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::Upload;
use crate::lane::{Lane, LaneKey, SlotId, Stream};
use crate::upload::Uploader;
use crate::window::{Budget, Share};

/// All lanes. Their number is bounded by the number of open streams.
#[derive(Debug)]
pub struct Lanes {
    limits: Upload,
    budget: Arc<Budget>,
    uploader: Arc<Uploader>,
    lanes: Mutex<HashMap<LaneKey, Arc<Lane>>>,
}

impl Lanes {
    /// Makes an empty set whose lanes share `budget` and send through `uploader`.
    pub fn new(limits: Upload, budget: Arc<Budget>, uploader: Arc<Uploader>) -> Self {
        Self {
            limits,
            budget,
            uploader,
            lanes: Mutex::default(),
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
        self.lock().values().for_each(|lane| lane.close());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<LaneKey, Arc<Lane>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
