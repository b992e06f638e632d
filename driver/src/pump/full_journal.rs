//! What becomes of a FIFO whose journal is full.
//!
//! The FIFO rests (mode=blocking) while the shipper makes room, or not at all. After `block_max` in which
//! less than [`PATIENCE_BYTES`] moved, upkeep is asked to drop the oldest entries, until that much has
//! moved; and while there is no progress of the shipper at all, the FIFO does not rest again. So that
//! much moves in any `block_max`, however small the pipe is: a container that ends has up to 1.2 MB in
//! the engine's buffers, and its stop waits until they have gone through the FIFO. Of a container that is
//! being stopped it rests only while the shipper makes room: once the engine has let go of the FIFO, what
//! it holds ends with this process.

use std::time::Duration;
use tokio::time::Instant;

/// What moves at least while a full journal has a FIFO rest for `block_max`: about what the engine's
/// buffers hold.
pub(super) const PATIENCE_BYTES: usize = 1 << 20;

/// How long a FIFO whose journal was full may be without bytes that wait, until its writer counts as
/// not held up: the engine, which has more, fills a small pipe again at once.
pub(super) const REFILL_MAX: Duration = Duration::from_millis(250);

/// How long the FIFO of a container that is being stopped rests without any byte of it moving. What
/// the engine has let go of is lost if this process dies meanwhile; what is dropped is lost for sure,
/// and CLS may take half a second for a batch.
pub(super) const STOP_REST_MAX: Duration = Duration::from_secs(1);

/// How long dropping may fail to make room before the next bytes go to memory.
pub(super) const FALL_BACK_AFTER: Duration = Duration::from_secs(1);

/// How long a journal has been full.
pub(super) struct Fullness {
    /// When it last took bytes, or became full.
    pub(super) moved_at: Instant,
    pub(super) starved_since: Option<Instant>,
}

/// How long the writer of a FIFO has been held up by a full journal, and what it got rid of meanwhile.
pub(super) struct Patience {
    pub(super) since: Instant,
    /// When bytes last waited for the journal.
    pub(super) waiting_at: Instant,
    pub(super) moved_bytes: usize,
}

impl Patience {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            waiting_at: now,
            moved_bytes: 0,
        }
    }

    /// Learns that bytes wait; begins anew if enough has moved, or the writer was not held up.
    pub(super) fn go_on(&mut self, now: Instant) {
        let is_idle = now.duration_since(self.waiting_at) > REFILL_MAX;
        if is_idle || self.moved_bytes >= PATIENCE_BYTES {
            *self = Self::new(now);
        }
        self.waiting_at = now;
    }
}
