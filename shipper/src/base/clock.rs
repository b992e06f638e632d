//! The wall clock as a value: `main` makes the real one, tests their own.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Tells the time since the UNIX epoch.
#[derive(Clone)]
pub struct WallClock(Arc<dyn Fn() -> Duration + Send + Sync>);

impl WallClock {
    /// Wraps a source of time.
    pub fn new(now: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The system's clock. A clock set before 1970 counts as 1970.
    pub fn system() -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "the one place that reads the wall clock"
        )]
        Self::new(|| {
            SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default()
        })
    }

    /// Returns the time in UNIX seconds.
    pub fn unix_s(&self) -> u64 {
        (self.0)().as_secs()
    }

    /// Returns the time in UNIX milliseconds.
    pub fn unix_ms(&self) -> i64 {
        i64::try_from((self.0)().as_millis()).unwrap_or(i64::MAX)
    }

    /// Returns bits that differ from call to call, for jitter.
    pub fn seed(&self) -> u64 {
        u64::try_from((self.0)().as_nanos() & u128::from(u64::MAX)).unwrap_or_default()
    }
}

impl fmt::Debug for WallClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WallClock")
    }
}
