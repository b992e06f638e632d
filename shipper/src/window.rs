//! Windows: how many unacknowledged bytes each stream may have, so that all of them together stay
//! under the shipper's memory bound, and no stream can block another one.
//!
//! A window starts small, doubles whenever it limits its stream, as long as the budget has room,
//! and shrinks when it lies idle. The bytes beyond a window wait in the host's journal. The first
//! [`WINDOW_BYTES_MIN`] of a stream are granted even when the budget is used up: every stream must
//! be able to move; the true bound is therefore budget + streams × minimum. (A single frame larger
//! than its window may come when nothing is unacknowledged; Docker writes none.)
//!
//! What waits for the rest of a long line is acknowledged only after its end, so a window below it
//! would stop the stream: such a window grows at once, not at the next acknowledgement.
//!
//! A budget counts bytes in memory, a window journal bytes. Records can be larger than the entries
//! they are made of (templates, container details), so windows are scaled by what was measured.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The smallest window: any frame that Docker writes (16.5 KiB) fits.
pub const WINDOW_BYTES_MIN: u64 = 32 << 10;

/// The largest frame that Docker writes: a piece of 16 KiB with its metadata, rounded up.
const DOCKER_FRAME_BYTES_MAX: u64 = 17 << 10;

/// The largest window: 20 ms at 200 MB/s.
pub const WINDOW_BYTES_MAX: u64 = 4 << 20;

/// What all streams may hold in memory together.
#[derive(Debug)]
pub struct Budget {
    bytes_max: u64,
    granted: AtomicU64,
}

impl Budget {
    /// Makes a budget of which nothing is granted.
    pub fn new(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            granted: AtomicU64::new(0),
        }
    }

    /// Returns how many bytes are granted to streams beyond their minimum.
    pub fn granted(&self) -> u64 {
        self.granted.load(Ordering::Relaxed)
    }

    fn try_grant(&self, bytes: u64) -> bool {
        let grant = |granted: u64| {
            granted
                .checked_add(bytes)
                .filter(|sum| *sum <= self.bytes_max)
        };
        self.granted
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, grant)
            .is_ok()
    }

    fn give_back(&self, bytes: u64) {
        self.granted.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The window of one stream. Dropping it gives its bytes back.
#[derive(Debug)]
pub struct Window {
    budget: Arc<Budget>,
    /// Granted memory; what exceeds the minimum counts against the budget.
    bytes: u64,
    /// What the driver was told last.
    announced: u64,
    received_offset: u64,
    acked_offset: u64,
    /// Bytes of entries that wait for the rest of their line or record.
    held_bytes: u64,
    /// Most unacknowledged bytes since the last look at them.
    peak: u64,
    /// Journal bytes and what they became, fading, for the ratio between them.
    raw_bytes: u64,
    encoded_bytes: u64,
}

impl Window {
    /// Makes the window of a stream that resumes at `offset`.
    pub fn new(budget: Arc<Budget>, offset: u64) -> Self {
        Self {
            budget,
            bytes: WINDOW_BYTES_MIN,
            announced: WINDOW_BYTES_MIN,
            received_offset: offset,
            acked_offset: offset,
            held_bytes: 0,
            peak: 0,
            raw_bytes: 0,
            encoded_bytes: 0,
        }
    }

    /// Returns what the driver is told: journal bytes.
    pub fn announced(&self) -> u64 {
        self.announced
    }

    /// Returns whether entries below `settled_offset` keep later ones back: they are under way, and
    /// the window has no room for another entry that Docker may write.
    pub fn is_closed_by(&self, settled_offset: u64) -> bool {
        let unacked_bytes = self.received_offset - self.acked_offset;
        settled_offset > self.acked_offset
            && unacked_bytes + DOCKER_FRAME_BYTES_MAX > self.announced
    }

    /// Counts what a stream sent: `offset` lies behind it.
    pub fn receive(&mut self, offset: u64, encoded_bytes: u64) {
        self.raw_bytes += offset - self.received_offset;
        self.encoded_bytes += encoded_bytes;
        if self.raw_bytes > WINDOW_BYTES_MAX {
            self.raw_bytes /= 2;
            self.encoded_bytes /= 2;
        }
        self.received_offset = offset;
        self.peak = self.peak.max(offset - self.acked_offset);
    }

    /// Counts an acknowledgement. Returns a new window if the old one was in the way.
    pub fn acknowledge(&mut self, offset: u64) -> Option<u64> {
        self.acked_offset = self.acked_offset.max(offset);
        let is_limiting = self.peak >= self.announced / 2;
        if is_limiting && self.bytes < WINDOW_BYTES_MAX && self.budget.try_grant(self.bytes) {
            self.bytes *= 2;
            self.peak = 0;
        }
        self.announce()
    }

    /// Makes room for the rest of a line or record of which everything from `settled_offset` on
    /// waits here, as far as the budget allows. Returns a new window if the old one was too small.
    pub fn hold(&mut self, settled_offset: u64) -> Option<u64> {
        self.held_bytes = self.received_offset.saturating_sub(settled_offset);
        while self.bytes < self.held_bytes + WINDOW_BYTES_MIN
            && self.bytes < WINDOW_BYTES_MAX
            && self.budget.try_grant(self.bytes)
        {
            self.bytes *= 2;
        }
        // Without anything held, a change of the ratio alone can wait for an acknowledgement.
        (self.held_bytes > 0).then(|| self.announce()).flatten()
    }

    /// Halves a window that was mostly idle since the last call. Returns it if it changed.
    pub fn shrink_if_idle(&mut self) -> Option<u64> {
        let is_idle = self.peak < self.announced / 4;
        self.peak = self.received_offset - self.acked_offset;
        if is_idle && self.bytes > WINDOW_BYTES_MIN {
            self.bytes /= 2;
            self.budget.give_back(self.bytes);
        }
        self.announce()
    }

    /// Returns the window in journal bytes, if it differs from what the driver knows by more than
    /// an eighth: small corrections are not worth a message.
    fn announce(&mut self) -> Option<u64> {
        let scaled = if self.encoded_bytes > self.raw_bytes {
            let ratio = u128::from(self.bytes) * u128::from(self.raw_bytes);
            u64::try_from(ratio / u128::from(self.encoded_bytes)).unwrap_or(self.bytes)
        } else {
            self.bytes
        };
        let for_held = (self.held_bytes + WINDOW_BYTES_MIN).min(self.bytes);
        let window = scaled.max(WINDOW_BYTES_MIN).max(for_held);
        (window.abs_diff(self.announced) > self.announced / 8).then(|| {
            self.announced = window;
            window
        })
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes - WINDOW_BYTES_MIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fill_and_ack(window: &mut Window, encoded_per_raw: u64) -> Option<u64> {
        let offset = window.received_offset + window.announced();
        window.receive(offset, window.announced() * encoded_per_raw);
        window.acknowledge(offset)
    }

    #[test]
    fn a_busy_window_grows_to_its_bound_and_an_idle_one_shrinks_back() {
        let budget = Arc::new(Budget::new(64 << 20));
        let mut window = Window::new(Arc::clone(&budget), 7);
        for _ in 0..20 {
            fill_and_ack(&mut window, 1);
        }
        assert_eq!(window.announced(), WINDOW_BYTES_MAX);
        assert_eq!(budget.granted(), WINDOW_BYTES_MAX - WINDOW_BYTES_MIN);
        for _ in 0..20 {
            window.shrink_if_idle();
        }
        assert_eq!(
            (window.announced(), budget.granted()),
            (WINDOW_BYTES_MIN, 0)
        );
    }

    #[test]
    fn records_larger_than_their_entries_narrow_the_window() {
        let budget = Arc::new(Budget::new(64 << 20));
        let mut window = Window::new(budget, 0);
        for _ in 0..40 {
            fill_and_ack(&mut window, 4);
        }
        assert!(
            window.announced() <= WINDOW_BYTES_MAX / 4,
            "{}",
            window.announced()
        );
    }

    #[test]
    fn a_window_has_room_for_the_rest_of_what_is_held() {
        let budget = Arc::new(Budget::new(64 << 20));
        let mut window = Window::new(budget, 0);
        // Records four times as large as their entries would narrow it.
        fill_and_ack(&mut window, 4);
        let settled = window.received_offset;
        while window.received_offset - settled < 1 << 20 {
            window.receive(window.received_offset + WINDOW_BYTES_MIN / 2, 0);
            window.hold(settled);
            let held = window.received_offset - settled;
            assert!(
                window.announced() > held,
                "{} for {held}",
                window.announced()
            );
        }
    }

    #[test]
    fn what_is_held_gets_no_more_than_the_budget_has() {
        let budget = Arc::new(Budget::new(WINDOW_BYTES_MIN));
        let mut window = Window::new(Arc::clone(&budget), 0);
        window.receive(1 << 20, 0);
        window.hold(0);
        assert_eq!(window.announced(), 2 * WINDOW_BYTES_MIN);
        assert_eq!(budget.granted(), WINDOW_BYTES_MIN);
    }

    proptest! {
        #[test]
        fn the_budget_holds_and_comes_back(
            steps in prop::collection::vec((0_usize..8, 0_u8..3, 1_u64..6), 0..300)
        ) {
            let budget = Arc::new(Budget::new(5 << 20));
            let mut windows: Vec<_> = (0..8).map(|_| Window::new(Arc::clone(&budget), 0)).collect();
            for (index, step, ratio) in steps {
                match step {
                    0 => { windows[index].shrink_if_idle(); }
                    1 => { windows[index] = Window::new(Arc::clone(&budget), 0); }
                    _ => { fill_and_ack(&mut windows[index], ratio); }
                }
                prop_assert!(budget.granted() <= 5 << 20);
                prop_assert!(windows[index].announced() >= WINDOW_BYTES_MIN);
            }
            drop(windows);
            prop_assert_eq!(budget.granted(), 0);
        }
    }
}
