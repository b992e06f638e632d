//! Exponential backoff with full jitter: the delay before attempt n is drawn evenly from zero to
//! `base * 2^n`, capped. Full jitter spreads clients that failed together; see "Exponential
//! Backoff And Jitter", AWS Architecture Blog, 2015.

use std::time::Duration;

/// The state of one retry loop.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    attempt_count: u32,
    random: u64,
}

impl Backoff {
    /// Returns a backoff that has not failed yet. `seed` decides the jitter; callers pass random
    /// bits, tests a constant. A cap below the base counts as the base.
    pub fn new(base: Duration, cap: Duration, seed: u64) -> Self {
        Self {
            base,
            cap: cap.max(base),
            attempt_count: 0,
            random: seed,
        }
    }

    /// Returns how long to wait before the next attempt, and counts a failure.
    pub fn next_delay(&mut self) -> Duration {
        let ceiling = self
            .base
            .checked_mul(1_u32.checked_shl(self.attempt_count).unwrap_or(u32::MAX))
            .map_or(self.cap, |delay| delay.min(self.cap));
        self.attempt_count = self.attempt_count.saturating_add(1);
        // A fraction of 2^-32 steps is fine enough for jitter and needs no floating point.
        let fraction = self.next_random() >> 32;
        let nanos = ceiling.as_nanos().saturating_mul(u128::from(fraction)) >> 32;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Returns how many delays were handed out since the last [`reset`](Self::reset).
    pub fn attempt_count(&self) -> u32 {
        self.attempt_count
    }

    /// Forgets all failures: the next delay is short again.
    pub fn reset(&mut self) {
        self.attempt_count = 0;
    }

    /// Steps a SplitMix64 generator; jitter needs spread, not secrecy.
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn delay_stays_below_the_doubled_base_and_the_cap(seed: u64, base_ms in 1_u64..5_000, cap_ms in 1_u64..60_000) {
            let base = Duration::from_millis(base_ms);
            let cap = Duration::from_millis(cap_ms);
            let mut backoff = Backoff::new(base, cap, seed);
            for attempt in 0..80_u32 {
                let doubled = base.saturating_mul(1_u32.checked_shl(attempt).unwrap_or(u32::MAX));
                let delay = backoff.next_delay();
                prop_assert!(delay <= cap.max(base) && delay <= doubled, "attempt {attempt}: {delay:?}");
            }
        }
    }

    #[test]
    fn jitter_uses_the_whole_range() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(1), 7);
        let delays: Vec<_> = (0..1000)
            .map(|_| backoff.next_delay().as_millis())
            .collect();
        assert!(
            delays.iter().any(|&ms| ms < 100) && delays.iter().any(|&ms| ms > 900),
            "{delays:?}"
        );
    }

    #[test]
    fn reset_makes_the_next_delay_short_again() {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(30), 7);
        for _ in 0..20 {
            backoff.next_delay();
        }
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_millis(10));
        assert_eq!(backoff.attempt_count(), 1);
    }
}
