//! The pace of a lane: its requests wait here for a place on the wire, and after a failure for the
//! news that CLS is well again. Those of batches aside take turns, so that they hold one place at most.

use std::sync::atomic::{AtomicBool, Ordering};
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
    aside: tokio::sync::Mutex<()>,
    has_probe: AtomicBool,
}

/// The right to be the one batch of a lane that probes.
#[derive(Debug)]
pub struct Probe<'a>(&'a Pace);

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        self.0.has_probe.store(false, Ordering::Relaxed);
    }
}

/// A place that stays free while a batch waits, because CLS takes no more. The batch has it afterwards.
#[derive(Debug)]
pub struct Hold<'a> {
    pace: &'a Pace,
    is_used: bool,
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        if !self.is_used {
            self.pace.lock().let_go();
            self.pace.has_room.notify_one();
        }
    }
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
            aside: tokio::sync::Mutex::new(()),
            has_probe: AtomicBool::new(false),
        }
    }

    /// Returns how many requests CLS has taken.
    pub fn delivered_count(&self) -> u64 {
        self.lock().delivered_count()
    }

    /// Keeps a place free until the guard is dropped or used.
    pub fn hold(&self) -> Hold<'_> {
        self.lock().hold();
        Hold {
            pace: self,
            is_used: false,
        }
    }

    /// Waits for the turn of a batch that is aside, which ends when the guard is dropped.
    ///
    /// # Cancel safety
    /// Who no longer waits loses its place in the line, and nothing else.
    pub async fn turn_aside(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.aside.lock().await
    }

    /// Returns the right to probe, if no other batch has it.
    pub fn probe(&self) -> Option<Probe<'_>> {
        let had_one = self.has_probe.swap(true, Ordering::Relaxed);
        (!had_one).then(|| Probe(self))
    }

    /// Returns how many requests may be on the wire now.
    pub fn limit(&self) -> usize {
        self.lock().limit()
    }

    /// Waits for a place on the wire. Who has held one comes before the others.
    ///
    /// # Cancel safety
    /// No place is taken before this returns.
    pub async fn place(&self, mut hold: Option<Hold<'_>>) -> Place<'_> {
        loop {
            if let Some(place) = self.free_place(hold.take()) {
                return place;
            }
            self.has_room.notified().await;
        }
    }

    fn free_place(&self, hold: Option<Hold<'_>>) -> Option<Place<'_>> {
        let mut concurrency = self.lock();
        if let Some(mut hold) = hold {
            hold.is_used = true;
            concurrency.let_go();
        }
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
                let place = pace.place(None).await;
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
        pace.place(None).await.end(Ended::Unavailable);
        let mut waiting = JoinSet::new();
        for _ in 0..3 {
            let pace = Arc::clone(&pace);
            waiting.spawn(async move { pace.recovered().await });
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(waiting.try_join_next().is_none());
        pace.place(None).await.end(Ended::Delivered { bytes: 1 });
        waiting.join_all().await;
    }

    /// A quota that is used up is used up for all: who was refused tries first, and alone.
    #[tokio::test(start_paused = true)]
    async fn a_held_place_is_that_of_who_holds_it() {
        let pace = Arc::new(Pace::new(2));
        pace.place(None).await.end(Ended::Overloaded);
        let hold = pace.hold();
        let mut waiting = JoinSet::new();
        let other = Arc::clone(&pace);
        waiting.spawn(async move { drop(other.place(None).await) });
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(
            waiting.try_join_next().is_none(),
            "one place, which is held"
        );
        let place = pace.place(Some(hold)).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(
            waiting.try_join_next().is_none(),
            "one place, which is used"
        );
        drop(place);
        waiting.join_all().await;
        drop(pace.hold());
        drop(pace.place(None).await);
    }
}
