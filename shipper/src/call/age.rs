//! How long a call lasts: hosts spread over the shippers that there are, as calls over TCP end and
//! begin anew.

use std::time::Duration;

use tokio::time::Instant;

/// How long a call that makes way for another one waits for its acknowledgements, while it reads
/// nothing. A lane that holds does not answer in time, and must not stop the host's other lanes: the
/// call then goes on, and tries again at the next age.
const LEAVE_WAIT_MAX: Duration = Duration::from_secs(2);

/// The shortest stay of a call: a driver takes a shipper that ends its calls at once for none.
const STAY_MIN: Duration = Duration::from_millis(500);

/// How long the call stays, so that hosts spread over shippers anew.
#[derive(Debug, Clone, Copy)]
pub(super) enum CallAge {
    /// For ever: over a unix socket there is no other shipper.
    Unlimited,
    /// Until then, and for `age` more whenever that does not work out.
    Until { at: Instant, age: Duration },
    /// Nothing more is read, and the call ends once all is acknowledged, if that is in time. With
    /// an age, it goes on if not.
    Leaving { by: Instant, age: Option<Duration> },
    /// The call ends.
    Over,
}

impl CallAge {
    /// Begins a stay of between a tenth of `age` and all of it: hosts that came together shall not
    /// leave together. The shorter the shortest one, the sooner they are mixed: with half of `age` they
    /// would all have changed to the next shipper once it is over, and change back in a body.
    pub(super) fn begin(age: Option<Duration>, now: Instant) -> Self {
        use std::hash::{BuildHasher as _, RandomState};
        let Some(age) = age else {
            return Self::Unlimited;
        };
        let share = RandomState::new().hash_one(()) & u64::from(u16::MAX);
        let least = (age / 10).max(STAY_MIN).min(age);
        let jitter = (age - least).mul_f64(share as f64 / f64::from(u16::MAX));
        Self::Until {
            at: now + least + jitter,
            age,
        }
    }

    pub(super) fn is_leaving(self) -> bool {
        matches!(self, Self::Leaving { .. })
    }

    pub(super) fn is_over(self) -> bool {
        matches!(self, Self::Over)
    }

    /// Returns when it changes.
    pub(super) fn due(self) -> Option<Instant> {
        match self {
            Self::Unlimited | Self::Over => None,
            Self::Until { at, .. } => Some(at),
            Self::Leaving { by, .. } => Some(by),
        }
    }

    /// Returns what follows at `now`.
    pub(super) fn next(self, now: Instant) -> Self {
        match self {
            Self::Until { at, age } if at <= now => Self::Leaving {
                by: now + LEAVE_WAIT_MAX,
                age: Some(age),
            },
            Self::Leaving { by, age: Some(age) } if by <= now => Self::begin(Some(age), now),
            Self::Leaving { by, age: None } if by <= now => Self::Over,
            Self::Unlimited | Self::Until { .. } | Self::Leaving { .. } | Self::Over => self,
        }
    }

    /// Returns how a call stays that is to begin anew by other rules: not for long, whatever holds.
    pub(super) fn leave(now: Instant) -> Self {
        Self::Leaving {
            by: now + LEAVE_WAIT_MAX,
            age: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGE: Duration = Duration::from_secs(300);

    /// Returns when a stay that begins at `now` is over.
    fn end(now: Instant) -> Instant {
        let stay = CallAge::begin(Some(AGE), now);
        stay.due().expect("a stay with an age has an end")
    }

    #[test]
    fn a_call_stays_for_its_age_at_most_and_never_for_next_to_nothing() {
        let now = Instant::now();
        for age in [1, 4, 300].map(Duration::from_secs) {
            let least = (age / 10).max(STAY_MIN);
            for _ in 0..10_000 {
                let stay = CallAge::begin(Some(age), now).due().unwrap() - now;
                assert!((least..=age).contains(&stay), "{stay:?} of {age:?}");
            }
        }
        assert!(CallAge::begin(None, now).due().is_none());
    }

    /// A shipper has died, so all its hosts are at the other one; with each stay that ends a host
    /// changes sides. The limits are six standard deviations (of 0.005, for 10,000 hosts) and more away
    /// from what is expected, which makes a chance below 1e-7 for all looks.
    #[test]
    fn hosts_that_came_together_are_spread_once_their_age_is_over() {
        const HOSTS: usize = 10_000;
        let began = Instant::now();
        let mut hosts: Vec<(Instant, bool)> = (0..HOSTS).map(|_| (end(began), false)).collect();
        for tenths in 10..40 {
            let now = began + AGE * tenths / 10;
            for (until, is_at_first) in &mut hosts {
                while *until <= now {
                    *until = end(*until);
                    *is_at_first = !*is_at_first;
                }
            }
            let count = hosts.iter().filter(|(_, is_at_first)| *is_at_first).count();
            let share = count as f64 / HOSTS as f64;
            // Expected: 0.68 at the age itself, between 0.44 and 0.53 from half an age later on.
            let limit = if tenths < 15 { 0.72 } else { 0.6 };
            assert!((1.0 - limit..limit).contains(&share), "{share} at {tenths}");
        }
    }
}
