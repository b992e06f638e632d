//! The time at a call's host, as far as its requests tell of it.
//!
//! An unfinished line, or a record of several lines, goes out when its rest has not come for some time.
//! By the clock of this process that would tear lines behind a slow network, where the rest may be on
//! its way for longer than that. So ages are counted in the host's time, of which each request says two
//! things: when it was gathered, and up to when every stream has been served. What came with a request
//! is late once a later one says that its stream has had a turn since, and still nothing came.
//!
//! A step from one request to the next counts for [`STEP_MAX`] at most: a driver that was stopped has
//! not looked for the rest meanwhile. (That keeps a long line whole, whose age is larger, and not a record
//! of several lines.)
//!
//! A driver that does not say is taken to be here and now: its lines and records can be torn by a slow
//! network, a closed window, or an allowance. Time that stands still, or nearly so, for [`STILL_MAX`] is
//! made to pass: what waits for it holds memory that other hosts may want.

use std::time::Duration;

use proto::relay::ShipRequest;
use tokio::time::Instant;

/// More than the 5 s between the requests of a driver with nothing to send.
const STEP_MAX: Duration = Duration::from_secs(6);

/// How long the time at a host may take to go on by [`MOVE_MIN`]. No driver needs so long to send a
/// request.
const STILL_MAX: Duration = Duration::from_secs(600);

/// See [`STILL_MAX`].
const MOVE_MIN: Duration = Duration::from_secs(10);

/// The time at a host. Its instants lie on the clock of this process, but only those of one host
/// compare.
#[derive(Debug)]
pub(crate) struct HostClock {
    /// What the last request said, if it did.
    gathered_ms: Option<u64>,
    now: Instant,
    served: Instant,
    /// What `served` was when it had moved, and when that was here.
    moved: (Instant, Instant),
}

impl HostClock {
    /// Returns the clock of a host that has said nothing yet.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            gathered_ms: None,
            now,
            served: now,
            moved: (now, now),
        }
    }

    /// Follows a request that came at `now`.
    pub(crate) fn follow(&mut self, request: &ShipRequest, now: Instant) {
        let Some(gathered_ms) = request.gathered_ms else {
            return self.assume_now(now);
        };
        let last_ms = self.gathered_ms.replace(gathered_ms).unwrap_or(gathered_ms);
        let step = Duration::from_millis(gathered_ms.saturating_sub(last_ms));
        self.now += step.min(STEP_MAX);
        let behind = Duration::from_millis(gathered_ms.saturating_sub(request.served_ms));
        let served = self.now.checked_sub(behind).unwrap_or(self.served);
        self.served = self.served.max(served);
        if self.served.saturating_duration_since(self.moved.0) >= MOVE_MIN {
            self.moved = (self.served, now);
        }
    }

    /// Takes the host to be here and now, if it does not say what the time is; and lets time pass where
    /// it stands still. To be called now and then.
    pub(crate) fn assume_now(&mut self, now: Instant) {
        if self.gathered_ms.is_none() {
            self.now = now;
            self.served = now;
        } else if now.saturating_duration_since(self.moved.1) > STILL_MAX {
            self.now += STEP_MAX;
            self.served = self.now;
            self.moved.0 = self.now;
        }
    }

    /// Returns when the last request was gathered: what is in it has come then.
    pub(crate) fn now(&self) -> Instant {
        self.now
    }

    /// Returns up to when every stream has been served: what is due by then is late.
    pub(crate) fn served(&self) -> Instant {
        self.served
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(gathered_ms: u64, served_ms: u64) -> ShipRequest {
        ShipRequest {
            gathered_ms: Some(gathered_ms),
            served_ms,
            ..ShipRequest::default()
        }
    }

    #[test]
    fn time_passes_as_the_host_says_and_not_in_leaps() {
        let (began, late) = (Instant::now(), Instant::now() + Duration::from_secs(3_600));
        let mut clock = HostClock::new(began);
        let after = |ms| began + Duration::from_millis(ms);
        clock.follow(&request(70_000, 70_000), late);
        assert_eq!((clock.now(), clock.served()), (began, began));
        clock.assume_now(began + STILL_MAX);
        assert_eq!((clock.now(), clock.served()), (began, began));
        clock.follow(&request(75_000, 70_500), late);
        assert_eq!((clock.now(), clock.served()), (after(5_000), after(500)));
        // The driver was stopped for a day.
        clock.follow(&request(86_475_000, 86_475_000), late);
        assert_eq!(
            (clock.now(), clock.served()),
            (after(11_000), after(11_000))
        );
    }

    #[test]
    fn nothing_that_a_host_says_turns_time_back() {
        let began = Instant::now();
        let mut clock = HostClock::new(began);
        let (mut now, mut served) = (began, began);
        for said in [
            (5, 9),
            (u64::MAX, 0),
            (0, u64::MAX),
            (1, 0),
            (u64::MAX, u64::MAX),
        ] {
            clock.follow(&request(said.0, said.1), began);
            assert!(now <= clock.now() && served <= clock.served(), "{said:?}");
            (now, served) = (clock.now(), clock.served());
            assert!(served <= now, "{said:?}");
        }
        assert!(now <= began + STEP_MAX * 5);
    }

    #[test]
    fn time_does_not_stand_still_for_ever() {
        let began = Instant::now();
        let clock_after = |seconds: u64, ms_per_second: u64| {
            let mut clock = HostClock::new(began);
            for second in 0..seconds {
                let now = began + Duration::from_secs(second + 1);
                let said_ms = second * ms_per_second;
                clock.follow(&request(said_ms, said_ms), now);
                clock.assume_now(now);
            }
            clock
        };
        // Nine seconds in eleven minutes: nobody is so slow.
        let clock = clock_after(660, 14);
        let told = Duration::from_millis(659 * 14);
        assert!(clock.served() > began + told + STEP_MAX * 50);
        assert_eq!(clock.served(), clock.now());
        // Ten seconds in ten minutes.
        let clock = clock_after(3_600, 17);
        assert_eq!(clock.served(), began + Duration::from_millis(3_599 * 17));
    }

    #[test]
    fn a_host_that_does_not_say_is_here_and_now() {
        let began = Instant::now();
        let mut clock = HostClock::new(began);
        let now = began + Duration::from_secs(100);
        clock.follow(&ShipRequest::default(), now);
        assert_eq!((clock.now(), clock.served()), (now, now));
        clock.assume_now(now + STEP_MAX);
        assert_eq!(clock.served(), now + STEP_MAX);
    }
}
