//! Simulated time that several runtimes share.
//!
//! Each runtime has tokio's paused clock, kept from advancing by itself; a master thread moves all
//! of them together, a step at a time, and takes the next step only when every runtime has done
//! all it had to do and is about to sleep. So a machine that is slow, or busy with something else,
//! makes a run longer and fires no timeout. With nothing going on the steps grow: an outage of an
//! hour takes seconds.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::time::Instant;

/// Step while something goes on.
const STEP_MIN: Duration = Duration::from_millis(5);
/// Step after a while in which nothing went on; well below every timeout of the product.
const STEP_MAX: Duration = Duration::from_millis(100);
/// Real time that a step takes at least: what threads and the kernel have under way goes on.
const STEP_PACE: Duration = Duration::from_micros(150);
/// A pace that took longer says that threads of ours may wait for a processor.
const PACE_LATE: Duration = Duration::from_micros(600);
/// Quiet steps before they grow.
const QUIET_STEPS: u32 = 8;
/// Real time after which a runtime that does not come to rest is waited for no longer.
const REST_WAIT_MAX: Duration = Duration::from_secs(2);

/// The time of one world. The master thread ends when the last clone is dropped.
#[derive(Debug, Clone)]
pub(super) struct Time(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    now: watch::Sender<Duration>,
    followers: Arc<Followers>,
    activity: Arc<AtomicU64>,
    hold_count: Arc<AtomicU64>,
}

/// Keeps the steps short: a thread that no runtime knows of is at work.
#[derive(Debug)]
pub(super) struct Hold(Arc<AtomicU64>);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.followers.is_over.store(true, Ordering::Release);
        self.followers.rested.notify_all();
    }
}

#[derive(Debug, Default)]
struct Followers {
    all: Mutex<Vec<Arc<Follower>>>,
    rested: Condvar,
    is_over: AtomicBool,
}

impl Followers {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Follower>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How far a runtime has come, in nanoseconds of simulated time.
#[derive(Debug, Default)]
struct Follower {
    seen: AtomicU64,
    rested: AtomicU64,
}

/// A place among those that time waits for, for a runtime that is still to be made. Without it, a
/// process whose thread is not given a processor at once would lose seconds of simulated time.
#[derive(Debug)]
pub(super) struct Seat {
    time: Time,
    follower: Arc<Follower>,
}

/// A runtime that follows the time; dropping it drops all its tasks where they stand.
#[derive(Debug)]
pub(super) struct Following {
    runtime: Option<Runtime>,
    seat: Option<Seat>,
    _brake: std::sync::mpsc::Sender<()>,
}

impl Time {
    /// Starts the master.
    pub(super) fn start() -> Self {
        let (now, _) = watch::channel(Duration::ZERO);
        let followers = Arc::new(Followers::default());
        let activity = Arc::new(AtomicU64::new(0));
        let hold_count = Arc::new(AtomicU64::new(0));
        let master = Master {
            now: now.clone(),
            followers: Arc::clone(&followers),
            activity: Arc::clone(&activity),
            hold_count: Arc::clone(&hold_count),
        };
        std::thread::Builder::new()
            .name("time".into())
            .spawn(move || master.run())
            .unwrap();
        Self(Arc::new(Shared {
            now,
            followers,
            activity,
            hold_count,
        }))
    }

    /// Returns what to count up whenever something goes on.
    pub(super) fn activity(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.0.activity)
    }

    /// Keeps the steps short until the guard is dropped.
    pub(super) fn hold(&self) -> Hold {
        self.0.hold_count.fetch_add(1, Ordering::Relaxed);
        Hold(Arc::clone(&self.0.hold_count))
    }

    /// Returns the time since the start.
    pub(super) fn now(&self) -> Duration {
        *self.0.now.borrow()
    }

    /// Returns a runtime, of this thread alone, that follows this time.
    pub(super) fn runtime(&self) -> Following {
        self.seat().runtime()
    }

    /// Lets time wait for a runtime that another thread is about to make.
    pub(super) fn seat(&self) -> Seat {
        let follower = Arc::new(Follower::default());
        self.0.followers.lock().push(Arc::clone(&follower));
        Seat {
            time: self.clone(),
            follower,
        }
    }
}

impl Seat {
    /// Returns the runtime, of this thread alone.
    pub(super) fn runtime(self) -> Following {
        let resting = (
            Arc::clone(&self.follower),
            Arc::clone(&self.time.0.followers),
        );
        let runtime = Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .on_thread_park(move || {
                let (follower, followers) = &resting;
                let seen = follower.seen.load(Ordering::Acquire);
                if follower.rested.swap(seen, Ordering::AcqRel) != seen {
                    let _all = followers.lock();
                    followers.rested.notify_all();
                }
            })
            .build()
            .unwrap();
        // As long as a blocking task runs, tokio does not advance a paused clock by itself.
        let (brake, released) = std::sync::mpsc::channel::<()>();
        runtime.spawn_blocking(move || released.recv().ok());
        let mut now = self.time.0.now.subscribe();
        let at = *now.borrow_and_update();
        self.follower.seen.store(nanos(at), Ordering::Release);
        runtime.spawn(follow(now, at, Arc::clone(&self.follower)));
        Following {
            runtime: Some(runtime),
            seat: Some(self),
            _brake: brake,
        }
    }

    /// Lets time go on without it.
    fn leave(&self) {
        let followers = &self.time.0.followers;
        let mut all = followers.lock();
        all.retain(|other| !Arc::ptr_eq(other, &self.follower));
        followers.rested.notify_all();
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.leave();
    }
}

async fn follow(mut now: watch::Receiver<Duration>, mut at: Duration, follower: Arc<Follower>) {
    while now.changed().await.is_ok() {
        let next = *now.borrow_and_update();
        tokio::time::advance(next - at).await;
        at = next;
        follower.seen.store(nanos(at), Ordering::Release);
    }
}

impl Following {
    /// Runs a future until it is done.
    pub(super) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime
            .as_ref()
            .expect("there until it is dropped")
            .block_on(future)
    }

    /// Ends the runtime. Time waits until its seat is given up, too.
    pub(super) fn end(mut self) -> Seat {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        self.seat.take().expect("there until it is given up")
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        drop(self.seat.take());
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Master {
    now: watch::Sender<Duration>,
    followers: Arc<Followers>,
    activity: Arc<AtomicU64>,
    hold_count: Arc<AtomicU64>,
}

impl Master {
    /// Runs outside of any runtime: its own clock is the real one.
    fn run(self) {
        let mut now = Duration::ZERO;
        let (mut seen_activity, mut quiet_steps) = (0, 0_u32);
        while !self.followers.is_over.load(Ordering::Acquire) {
            self.wait_for_rest(nanos(now));
            let before = Instant::now();
            self.pace();
            let activity = self.activity.load(Ordering::Relaxed);
            let is_quiet = activity == seen_activity
                && self.hold_count.load(Ordering::Relaxed) == 0
                && before.elapsed() < PACE_LATE;
            quiet_steps = match is_quiet {
                true => quiet_steps.saturating_add(1),
                false => 0,
            };
            seen_activity = activity;
            let growth = 1_u32 << quiet_steps.saturating_sub(QUIET_STEPS).min(10);
            now += (STEP_MIN * growth).min(STEP_MAX);
            self.now.send_replace(now);
        }
    }

    fn wait_for_rest(&self, now: u64) {
        let is_busy = |all: &mut Vec<Arc<Follower>>| {
            let is_behind =
                |follower: &Arc<Follower>| follower.rested.load(Ordering::Acquire) < now;
            !self.followers.is_over.load(Ordering::Acquire) && all.iter().any(is_behind)
        };
        let all = self.followers.lock();
        drop(
            self.followers
                .rested
                .wait_timeout_while(all, REST_WAIT_MAX, is_busy),
        );
    }

    fn pace(&self) {
        let all = self.followers.lock();
        let is_on = |_: &mut Vec<Arc<Follower>>| !self.followers.is_over.load(Ordering::Acquire);
        drop(
            self.followers
                .rested
                .wait_timeout_while(all, STEP_PACE, is_on),
        );
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
