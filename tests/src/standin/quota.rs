//! Quotas: per partition 500 requests/s and 5 MB/s of compressed bytes, each a bucket that holds
//! one second's worth.
//!
//! A request is let in while both buckets hold anything, and may overdraw them: a body larger than
//! a bucket must be able to pass. Requests without a hash key go round the partitions.

use std::collections::HashMap;
use std::time::Duration;

/// Requests per second of one partition (CLS document 614/87660).
pub const REQUESTS_PER_S: f64 = 500.0;
/// Compressed bytes per second of one partition.
pub const BYTES_PER_S: f64 = 5_242_880.0;

/// The buckets of all topics.
#[derive(Debug)]
pub struct Quota {
    partitions: usize,
    requests_per_s: f64,
    next: usize,
    buckets: HashMap<(String, usize), Buckets>,
}

#[derive(Debug, Clone, Copy)]
struct Buckets {
    requests: f64,
    bytes: f64,
    filled_at: Duration,
}

impl Quota {
    /// Returns full buckets for topics of `partitions` partitions that take `requests_per_s` each.
    pub fn new(partitions: usize, requests_per_s: f64) -> Self {
        Self {
            partitions: partitions.max(1),
            requests_per_s,
            next: 0,
            buckets: HashMap::new(),
        }
    }

    /// Returns the partition of a hash key: its place in the range of all MD5 sums. Without one the
    /// partitions take turns. `None` if the key is not 32 hex digits.
    pub fn partition(&mut self, hash_key: Option<&[u8]>) -> Option<usize> {
        let Some(hash_key) = hash_key else {
            self.next = (self.next + 1) % self.partitions;
            return Some(self.next);
        };
        if hash_key.len() != 32 {
            return None;
        }
        let digits = std::str::from_utf8(hash_key).ok()?;
        let place = u128::from_str_radix(digits, 16).ok()? >> 64;
        let partition = (place * u128::try_from(self.partitions).ok()?) >> 64;
        usize::try_from(partition).ok()
    }

    /// Takes one request of `bytes` from a partition's buckets; returns whether it is within quota.
    pub fn take(&mut self, topic_id: &str, partition: usize, bytes: usize, now: Duration) -> bool {
        let full = Buckets {
            requests: self.requests_per_s,
            bytes: BYTES_PER_S,
            filled_at: now,
        };
        let buckets = self
            .buckets
            .entry((topic_id.to_owned(), partition))
            .or_insert(full);
        let elapsed_s = now.saturating_sub(buckets.filled_at).as_secs_f64();
        let requests = buckets.requests + elapsed_s * self.requests_per_s;
        buckets.requests = requests.min(self.requests_per_s);
        buckets.bytes = (buckets.bytes + elapsed_s * BYTES_PER_S).min(BYTES_PER_S);
        buckets.filled_at = now;
        if buckets.requests < 1.0 || buckets.bytes <= 0.0 {
            return false;
        }
        buckets.requests -= 1.0;
        buckets.bytes -= u32::try_from(bytes).map_or(f64::INFINITY, f64::from);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_700_000_000);

    #[test]
    fn a_partition_takes_500_requests_in_a_second() {
        let mut quota = Quota::new(1, REQUESTS_PER_S);
        for _ in 0..500 {
            assert!(quota.take("t", 0, 100, NOW));
        }
        assert!(!quota.take("t", 0, 100, NOW));
        assert!(quota.take("other", 0, 100, NOW));
        let refilled = (0..1000).filter(|_| quota.take("t", 0, 1, NOW + Duration::from_secs(1)));
        assert_eq!(refilled.count(), 500);
    }

    #[test]
    fn bytes_may_overdraw_the_bucket_once() {
        let mut quota = Quota::new(1, REQUESTS_PER_S);
        assert!(quota.take("t", 0, 6 << 20, NOW));
        assert!(!quota.take("t", 0, 1, NOW));
        assert!(!quota.take("t", 0, 1, NOW + Duration::from_millis(100)));
        assert!(quota.take("t", 0, 1, NOW + Duration::from_millis(300)));
    }

    #[test]
    fn a_hash_key_picks_its_partition() {
        let mut quota = Quota::new(4, REQUESTS_PER_S);
        let first = b"0".repeat(32);
        let last = b"f".repeat(32);
        assert_eq!(quota.partition(Some(&first)), Some(0));
        assert_eq!(
            quota.partition(Some(b"40000000000000000000000000000000")),
            Some(1)
        );
        assert_eq!(quota.partition(Some(&last)), Some(3));
        assert_eq!(quota.partition(Some(b"xyz")), None);
        assert_eq!(quota.partition(Some(&b"g".repeat(32))), None);
    }

    #[test]
    fn partitions_take_turns_without_a_hash_key() {
        let mut quota = Quota::new(3, REQUESTS_PER_S);
        let mut turns: Vec<_> = (0..6).map(|_| quota.partition(None).unwrap()).collect();
        turns.sort_unstable();
        assert_eq!(turns, [0, 0, 1, 1, 2, 2]);
    }
}
