//! How many requests of a lane may be on the wire at once. Pure: no IO, time is an argument.
//!
//! The limit doubles with each round of successes until the first trouble, and from then on grows by
//! one a round (AIMD, as in TCP); a round is as many successes as the limit has, and a few at least.
//! What makes it smaller:
//!
//! - **Trouble** (429, 5xx, no answer, no connection) halves it, once for all requests that were on
//!   the wire together: one hiccup that hits eight requests is one trouble.
//! - **Latency**, if it is of our own making. When a round that used the limit takes more than twice
//!   as long per request as the fastest one did, half the limit is tried for a round. If no less got
//!   through, the other half had only been queueing at CLS, and the lower limit stays. If less got
//!   through, the latency has other causes (CLS is slow or far away, batches are larger): the limit
//!   comes back, and this latency is the measure from now on.
//!
//! So a CLS that is far away gets every request it is allowed, one that queues gets about what it
//! works on, and a wrong guess costs half a lane's throughput for one round.
//!
//! Invariants: the limit is at least 1 and at most `limit_max`; no more requests start than it says;
//! neither a limit nor a measure depends on requests that were sent under another limit.

use std::time::Duration;

use tokio::time::Instant;

/// The limit of a lane of which nothing is known.
const LIMIT_START: usize = 2;

/// Successes that a round has at least: fewer measure nothing.
const ROUND_SUCCESSES_MIN: usize = 4;

/// A queue at CLS that is shorter than this is not worth a trial.
const LATENCY_SLACK: Duration = Duration::from_millis(50);

/// The share of a round's throughput that a trial must reach to count as "no less".
const TRIAL_RATE_MIN: f64 = 0.9;

/// The state of one lane.
#[derive(Debug)]
pub struct Concurrency {
    limit_max: usize,
    limit: usize,
    on_wire: usize,
    /// Number of decreases.
    epoch: u64,
    /// Requests on the wire that were sent before the last decrease. While there are any, nothing is
    /// measured: they are what the higher limit brought.
    stale_count: usize,
    is_starting: bool,
    /// Whether the last that was heard of CLS is that it does not work.
    is_failing: bool,
    /// When the limit was last reached.
    full_at: Option<Instant>,
    round: Round,
    /// Latency of the fastest round, or of the last one that was shown not to be of our making.
    measure: Option<Duration>,
    /// What the round before a trial was like.
    trial: Option<Trial>,
}

/// A request on the wire: what must be known of it when it ends.
#[derive(Debug)]
#[must_use = "a request that does not end takes its place for ever"]
pub struct Request {
    epoch: u64,
    sent_at: Instant,
    is_full: bool,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// CLS has this many bytes of it.
    Delivered {
        /// Bytes as sent.
        bytes: usize,
    },
    /// CLS is well, but this was too much.
    Overloaded,
    /// CLS, or the way to it, does not work.
    Unavailable,
    /// CLS refuses, whatever the load.
    Refused,
    /// In a way that says nothing about CLS.
    Otherwise,
}

#[derive(Debug, Default)]
struct Round {
    began_at: Option<Instant>,
    success_count: usize,
    bytes: u64,
    /// Of requests during which the limit was reached.
    full_count: u32,
    latency_sum: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Measured {
    latency: Duration,
    bytes_per_s: f64,
}

#[derive(Debug, Clone, Copy)]
struct Trial {
    limit: usize,
    before: Measured,
}

impl Concurrency {
    /// Makes the state of a lane that may have up to `limit_max` requests on the wire.
    pub fn new(limit_max: usize) -> Self {
        Self {
            limit_max,
            limit: LIMIT_START.min(limit_max),
            on_wire: 0,
            epoch: 0,
            stale_count: 0,
            is_starting: true,
            is_failing: false,
            full_at: None,
            round: Round::default(),
            measure: None,
            trial: None,
        }
    }

    /// Returns how many requests may be on the wire now.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Returns whether another request may start.
    pub fn has_room(&self) -> bool {
        self.on_wire < self.limit
    }

    /// Counts a request as on the wire; `None` if the limit is reached.
    pub fn start(&mut self, now: Instant) -> Option<Request> {
        if !self.has_room() {
            return None;
        }
        self.on_wire += 1;
        if self.stale_count == 0 {
            self.round.began_at.get_or_insert(now);
        }
        let is_full = !self.has_room();
        if is_full {
            self.full_at = Some(now);
        }
        Some(Request {
            epoch: self.epoch,
            sent_at: now,
            is_full,
        })
    }

    /// Counts the end of a request. Returns whether CLS is well again after it was not.
    #[expect(clippy::needless_pass_by_value, reason = "a request ends once")]
    pub fn end(&mut self, request: Request, ended: Ended, now: Instant) -> bool {
        self.on_wire -= 1;
        let is_current = request.epoch == self.epoch;
        if !is_current {
            self.stale_count -= 1;
            self.round = Round::begin(now);
        }
        match ended {
            Ended::Delivered { bytes } => {
                if is_current && self.stale_count == 0 {
                    self.count(&request, bytes, now);
                }
                return std::mem::take(&mut self.is_failing);
            }
            Ended::Overloaded | Ended::Unavailable => {
                self.is_failing |= ended == Ended::Unavailable;
                if is_current {
                    self.trial = None;
                    self.decrease();
                }
            }
            Ended::Refused => self.is_failing = true,
            Ended::Otherwise => {}
        }
        false
    }

    fn count(&mut self, request: &Request, bytes: usize, now: Instant) {
        let round = &mut self.round;
        round.success_count += 1;
        round.bytes += bytes as u64;
        if request.is_full || self.full_at.is_some_and(|at| at >= request.sent_at) {
            round.full_count += 1;
            round.latency_sum += now - request.sent_at;
        }
        if round.success_count >= self.limit.max(ROUND_SUCCESSES_MIN) {
            let measured = round.measured(now);
            self.round = Round::begin(now);
            self.adapt(measured);
        }
    }

    /// Draws the conclusion of a round; one that did not use the limit has none to measure.
    fn adapt(&mut self, measured: Option<Measured>) {
        let Some(measured) = measured else {
            self.grow();
            return;
        };
        if let Some(trial) = self.trial.take() {
            if measured.bytes_per_s >= TRIAL_RATE_MIN * trial.before.bytes_per_s {
                self.learn(measured.latency);
            } else {
                self.limit = trial.limit;
                self.measure = Some(trial.before.latency);
            }
            return;
        }
        let is_slow = self
            .measure
            .is_some_and(|measure| measured.latency > 2 * measure + LATENCY_SLACK);
        if is_slow && self.limit > 1 {
            self.trial = Some(Trial {
                limit: self.limit,
                before: measured,
            });
            self.decrease();
        } else {
            self.learn(measured.latency);
            self.grow();
        }
    }

    fn learn(&mut self, latency: Duration) {
        self.measure = Some(self.measure.map_or(latency, |known| known.min(latency)));
    }

    fn grow(&mut self) {
        let step = if self.is_starting { self.limit } else { 1 };
        self.limit = self.limit_max.min(self.limit + step);
    }

    fn decrease(&mut self) {
        self.limit = (self.limit / 2).max(1);
        self.epoch += 1;
        self.stale_count = self.on_wire;
        self.is_starting = false;
        self.full_at = None;
        self.round = Round::default();
    }
}

impl Round {
    fn begin(now: Instant) -> Self {
        Self {
            began_at: Some(now),
            ..Self::default()
        }
    }

    fn measured(&self, now: Instant) -> Option<Measured> {
        let elapsed = now.saturating_duration_since(self.began_at?);
        let is_measurable = self.full_count as usize * 2 >= self.success_count;
        (is_measurable && !elapsed.is_zero()).then(|| Measured {
            latency: self.latency_sum / self.full_count,
            bytes_per_s: self.bytes as f64 / elapsed.as_secs_f64(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BYTES: usize = 100_000;
    const LIMIT_MAX: usize = 8;

    /// A CLS that a test plays: requests take `latency`, and at most `workers` are worked on at once.
    struct Server {
        latency: Duration,
        workers: usize,
        busy_until: Vec<Instant>,
    }

    /// What a run saw.
    #[derive(Debug, Default)]
    struct Seen {
        delivered: usize,
        limits: Vec<usize>,
    }

    impl Server {
        fn new(latency_ms: u64, workers: usize) -> Self {
            Self {
                latency: Duration::from_millis(latency_ms),
                workers,
                busy_until: Vec::new(),
            }
        }

        /// Returns when a request that comes now is answered.
        fn take(&mut self, now: Instant) -> Instant {
            let workers = self.workers;
            self.busy_until.resize(workers, now);
            let free = self.busy_until.iter_mut().min().unwrap();
            *free = now.max(*free) + self.latency;
            *free
        }

        /// Keeps the lane busy for `seconds`.
        fn load(
            &mut self,
            concurrency: &mut Concurrency,
            from: Instant,
            seconds: u64,
        ) -> (Seen, Instant) {
            let end = from + Duration::from_secs(seconds);
            let (mut now, mut seen) = (from, Seen::default());
            let mut on_wire: Vec<(Instant, Request)> = Vec::new();
            loop {
                while let Some(request) = concurrency.start(now) {
                    on_wire.push((self.take(now), request));
                }
                on_wire.sort_by_key(|(at, _)| *at);
                let (at, request) = on_wire.remove(0);
                now = at;
                concurrency.end(request, Ended::Delivered { bytes: BYTES }, now);
                seen.limits.push(concurrency.limit());
                if now >= end {
                    for (_, request) in on_wire {
                        concurrency.end(request, Ended::Otherwise, now);
                    }
                    return (seen, now);
                }
                seen.delivered += 1;
            }
        }
    }

    fn trouble(concurrency: &mut Concurrency, count: usize, now: Instant) {
        let requests: Vec<_> = (0..count)
            .map(|_| concurrency.start(now).unwrap())
            .collect();
        for request in requests {
            concurrency.end(request, Ended::Overloaded, now);
        }
    }

    #[test]
    fn requests_that_suffer_together_halve_the_limit_once() {
        let (mut concurrency, now) = (Concurrency::new(LIMIT_MAX), Instant::now());
        let (_, now) = Server::new(10, LIMIT_MAX).load(&mut concurrency, now, 10);
        assert_eq!(concurrency.limit(), 8);
        trouble(&mut concurrency, 8, now);
        assert_eq!(concurrency.limit(), 4);
        for expected in [2, 1, 1] {
            trouble(&mut concurrency, 1, now);
            assert_eq!(concurrency.limit(), expected);
        }
        let (seen, _) = Server::new(10, LIMIT_MAX).load(&mut concurrency, now, 10);
        assert_eq!(concurrency.limit(), 8);
        let steps = seen.limits.windows(2);
        assert!(
            steps.into_iter().all(|pair| pair[1] <= pair[0] + 1),
            "by one a round"
        );
    }

    #[test]
    fn a_recovery_is_told_once_and_a_quota_is_no_failure() {
        let (mut concurrency, now) = (Concurrency::new(LIMIT_MAX), Instant::now());
        let mut end = |ended| {
            let request = concurrency.start(now).unwrap();
            concurrency.end(request, ended, now)
        };
        let delivered = Ended::Delivered { bytes: 1 };
        assert!(!end(delivered));
        assert!(!end(Ended::Overloaded));
        assert!(!end(delivered));
        assert!(!end(Ended::Unavailable));
        assert!(!end(Ended::Otherwise));
        assert!(end(delivered));
        assert!(!end(delivered));
        assert!(!end(Ended::Refused));
        assert!(end(delivered));
    }

    #[test]
    fn a_cls_that_queues_gets_about_what_it_works_on_and_loses_no_throughput() {
        for (latency_ms, workers) in [(200, 1), (200, 2), (500, 3), (2_000, 2)] {
            let mut concurrency = Concurrency::new(32);
            let start = Instant::now();
            let mut server = Server::new(latency_ms, workers);
            let (_, now) = server.load(&mut concurrency, start, 200);
            let (seen, _) = server.load(&mut concurrency, now, 400);
            let most = seen.limits.iter().max().unwrap();
            assert!(*most <= 4 * workers + 2, "{workers} workers: up to {most}");
            let capacity = 400_000 * workers / usize::try_from(latency_ms).unwrap();
            assert!(
                seen.delivered * 100 >= capacity * 95,
                "{workers} workers: {} of {capacity}",
                seen.delivered
            );
        }
    }

    #[test]
    fn a_cls_that_becomes_slow_for_all_keeps_its_requests() {
        let mut concurrency = Concurrency::new(LIMIT_MAX);
        let (_, now) = Server::new(20, LIMIT_MAX).load(&mut concurrency, Instant::now(), 20);
        let mut slow = Server::new(1_000, LIMIT_MAX);
        let (seen, now) = slow.load(&mut concurrency, now, 20);
        assert!(seen.limits.contains(&4), "half is tried");
        assert_eq!(concurrency.limit(), LIMIT_MAX);
        let (seen, _) = slow.load(&mut concurrency, now, 100);
        assert!(seen.limits.iter().all(|limit| *limit == LIMIT_MAX));
    }

    proptest! {
        /// However far away CLS is, the lane gets all requests it may have, and keeps them.
        #[test]
        fn distance_costs_no_request(latency_ms in 1_u64..5_000, limit_max in 1_usize..64) {
            let mut concurrency = Concurrency::new(limit_max);
            let mut server = Server::new(latency_ms, limit_max);
            let rounds_s = (latency_ms * 12).div_ceil(1_000);
            let (seen, now) = server.load(&mut concurrency, Instant::now(), rounds_s);
            prop_assert!(seen.limits.windows(2).all(|pair| pair[0] <= pair[1]));
            prop_assert_eq!(concurrency.limit(), limit_max);
            let (seen, _) = server.load(&mut concurrency, now, rounds_s);
            prop_assert!(seen.limits.iter().all(|limit| *limit == limit_max));
        }

        /// Whatever happens: 1 to the bound, and never more on the wire than the bound.
        #[test]
        fn the_bounds_hold(
            limit_max in 1_usize..20,
            steps in prop::collection::vec((0_u8..6, 0_usize..20, 0_u64..3_000), 0..400)
        ) {
            let (mut concurrency, mut now) = (Concurrency::new(limit_max), Instant::now());
            let mut on_wire = Vec::new();
            for (step, index, after_ms) in steps {
                now += Duration::from_millis(after_ms);
                let ended = match step {
                    0 | 1 => {
                        let had_room = on_wire.len() < concurrency.limit();
                        let request = concurrency.start(now);
                        prop_assert_eq!(request.is_some(), had_room);
                        on_wire.extend(request);
                        continue;
                    }
                    2 => Ended::Overloaded,
                    3 => Ended::Unavailable,
                    4 => Ended::Otherwise,
                    _ => Ended::Delivered { bytes: index },
                };
                if !on_wire.is_empty() {
                    let request = on_wire.swap_remove(index % on_wire.len());
                    concurrency.end(request, ended, now);
                }
                prop_assert!((1..=limit_max).contains(&concurrency.limit()));
                prop_assert!(on_wire.len() <= limit_max);
            }
        }
    }
}
