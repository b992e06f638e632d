//! The pace of a lane: its requests wait here for a place on the wire, and after a failure for the
//! news that CLS is well again.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::upload::concurrency::{Concurrency, Ended, Request};

/// What the batches of a lane share.
#[derive(Debug)]
pub struct Pace {
    concurrency: Mutex<Concurrency>,
    has_room: Notify,
    has_recovered: Notify,
}

/// A request's place on the wire. One that is dropped has ended [`Ended::Otherwise`].
#[derive(Debug)]
pub struct Place<'a> {
    pace: &'a Pace,
    request: Option<Request>,
}

impl Pace {
    /// Makes the pace of a lane that may have up to `concurrency_max` requests on the wire.
    pub fn new(concurrency_max: usize) -> Self {
        Self {
            concurrency: Mutex::new(Concurrency::new(concurrency_max)),
            has_room: Notify::new(),
            has_recovered: Notify::new(),
        }
    }

    /// Returns how many requests may be on the wire now.
    pub fn limit(&self) -> usize {
        self.lock().limit()
    }

    /// Waits for a place on the wire.
    ///
    /// # Cancel safety
    /// No place is taken before this returns.
    pub async fn place(&self) -> Place<'_> {
        loop {
            if let Some(place) = self.free_place() {
                return place;
            }
            self.has_room.notified().await;
        }
    }

    fn free_place(&self) -> Option<Place<'_>> {
        let mut concurrency = self.lock();
        let request = concurrency.start(Instant::now())?;
        // One notice may stand for several places.
        if concurrency.has_room() {
            self.has_room.notify_one();
        }
        Some(Place {
            pace: self,
            request: Some(request),
        })
    }

    /// Waits until CLS is well again after it was not.
    ///
    /// # Cancel safety
    /// Who does not wait at that moment misses it.
    pub async fn recovered(&self) {
        self.has_recovered.notified().await;
    }

    fn end(&self, request: Request, ended: Ended) {
        let has_recovered = self.lock().end(request, ended, Instant::now());
        self.has_room.notify_one();
        if has_recovered {
            self.has_recovered.notify_waiters();
        }
    }

    /// A panic elsewhere leaves counters, not broken structures.
    fn lock(&self) -> MutexGuard<'_, Concurrency> {
        self.concurrency
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place<'_> {
    /// Says how the request ended.
    pub fn end(mut self, ended: Ended) {
        if let Some(request) = self.request.take() {
            self.pace.end(request, ended);
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(request) = self.request.take() {
            self.pace.end(request, Ended::Otherwise);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::task::JoinSet;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn everybody_gets_a_place_and_a_dropped_one_is_free_again() {
        let pace = Arc::new(Pace::new(1));
        let mut waiting = JoinSet::new();
        for number in 0..20 {
            let pace = Arc::clone(&pace);
            waiting.spawn(async move {
                let place = pace.place().await;
                tokio::time::sleep(Duration::from_secs(1)).await;
                match number % 3 {
                    0 => drop(place),
                    1 => place.end(Ended::Unavailable),
                    _ => place.end(Ended::Delivered { bytes: 1 }),
                }
            });
        }
        let began = Instant::now();
        waiting.join_all().await;
        assert_eq!(began.elapsed(), Duration::from_secs(20), "one at a time");
    }

    #[tokio::test(start_paused = true)]
    async fn a_success_after_a_failure_ends_the_wait_of_the_others() {
        let pace = Arc::new(Pace::new(4));
        pace.place().await.end(Ended::Unavailable);
        let mut waiting = JoinSet::new();
        for _ in 0..3 {
            let pace = Arc::clone(&pace);
            waiting.spawn(async move { pace.recovered().await });
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(waiting.try_join_next().is_none());
        pace.place().await.end(Ended::Delivered { bytes: 1 });
        waiting.join_all().await;
    }
}
