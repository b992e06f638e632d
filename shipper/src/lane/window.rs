//! Windows: how many unacknowledged bytes each stream may have, so that all of them together stay
//! under the shipper's memory bound, and no stream or lane can block another one.
//!
//! A window starts small, doubles whenever it limits its stream, as long as the budget has room,
//! and shrinks when it lies idle. The bytes beyond a window wait in the host's journal. The first
//! [`WINDOW_BYTES_MIN`] of a stream are granted even when the budget is used up: every stream must
//! be able to move; the true bound is therefore budget + streams × minimum. (A single frame larger
//! than its window may come when nothing is unacknowledged; Docker writes none.)
//!
//! The streams of a lane share what is granted to it: at most half of what the other lanes leave of
//! the budget. A lane that holds keeps what it has, for its bytes are in memory; so there is always
//! as much left for the others as the last lane to grow has taken. `n` lanes that all want more get
//! an `n + 1`th of the budget each.
//!
//! What waits for the rest of a long line is acknowledged only after its end, so a window below it
//! would stop the stream: such a window grows at once, not at the next acknowledgement; or as soon as
//! the budget has room, which is looked at once a second.
//!
//! A driver that sends beyond its window breaks the contract ([`Window::may_take`]). As it may not have
//! heard of a smaller one yet, the largest of the last half minute counts. A hole takes no window,
//! as it is no entry; its number is bounded instead.
//!
//! A budget counts bytes in memory, a window journal bytes. Records can be larger than the entries
//! they are made of (templates, container details), so windows are scaled by what was measured.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The smallest window: any frame that Docker writes (16.5 KiB) fits.
pub const WINDOW_BYTES_MIN: u64 = 32 << 10;

/// The largest frame that Docker writes: a piece of 16 KiB with its metadata, rounded up. For a larger
/// one there may seem to be room that there is not; what waits for it then goes out after a minute.
const DOCKER_FRAME_BYTES_MAX: u64 = 17 << 10;

/// Looks at a window, one a second, after which a larger one that it had before counts no more:
/// a peer that does not read for so long is dead.
const TOLD_LOOKS: u32 = 30;

/// Unacknowledged holes of a stream; a driver has at most half as many.
const HOLES_MAX: usize = 2_048;

/// The largest window: 20 ms at 200 MB/s.
pub const WINDOW_BYTES_MAX: u64 = 4 << 20;

/// What all streams may hold in memory together.
#[derive(Debug)]
pub struct Budget {
    bytes_max: u64,
    /// Bytes granted beyond minima, to all lanes.
    granted: Mutex<u64>,
}

/// A lane's part of the budget.
#[derive(Debug)]
pub struct Share {
    budget: Arc<Budget>,
    /// Bytes granted to the lane; changes under the lock of the budget only.
    granted: AtomicU64,
}

impl Budget {
    /// Makes a budget of which nothing is granted.
    pub fn new(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            granted: Mutex::default(),
        }
    }

    /// Returns how many bytes are granted to streams beyond their minimum.
    pub fn granted(&self) -> u64 {
        *self.lock()
    }

    /// A count is never half-changed, so a panic elsewhere leaves it usable.
    fn lock(&self) -> MutexGuard<'_, u64> {
        self.granted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// Makes the share of a further lane, of which nothing is granted.
    pub fn new(budget: Arc<Budget>) -> Self {
        Self {
            budget,
            granted: AtomicU64::new(0),
        }
    }

    fn try_grant(&self, bytes: u64) -> bool {
        let mut all = self.budget.lock();
        let of_lane = self.granted.load(Ordering::Relaxed);
        let of_others = *all - of_lane;
        let bytes_max = self.budget.bytes_max.saturating_sub(of_others) / 2;
        let is_granted = of_lane.saturating_add(bytes) <= bytes_max;
        if is_granted {
            *all += bytes;
            self.granted.store(of_lane + bytes, Ordering::Relaxed);
        }
        is_granted
    }

    fn give_back(&self, bytes: u64) {
        let mut all = self.budget.lock();
        *all -= bytes;
        self.granted.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The window of one stream. Dropping it gives its bytes back.
#[derive(Debug)]
pub struct Window {
    share: Arc<Share>,
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
    /// The largest windows that the driver was told of in the present half minute and the last one.
    told: [u64; 2],
    look_count: u32,
    /// Unacknowledged holes: the offset behind each, and its bytes.
    holes: VecDeque<(u64, u64)>,
    hole_bytes: u64,
}

impl Window {
    /// Makes the window of a stream that resumes at `offset`, in the lane of `share`.
    pub fn new(share: Arc<Share>, offset: u64) -> Self {
        Self {
            share,
            bytes: WINDOW_BYTES_MIN,
            announced: WINDOW_BYTES_MIN,
            received_offset: offset,
            acked_offset: offset,
            held_bytes: 0,
            peak: 0,
            raw_bytes: 0,
            encoded_bytes: 0,
            told: [WINDOW_BYTES_MIN; 2],
            look_count: 0,
            holes: VecDeque::new(),
            hole_bytes: 0,
        }
    }

    /// Returns whether a driver that keeps the contract may send so many bytes of frames now; one
    /// frame alone may come whenever nothing is unacknowledged.
    pub fn may_take(&self, frames_bytes: u64, is_one_frame: bool) -> bool {
        let unacked_bytes = self.unacked_bytes();
        let told = self.told.into_iter().fold(WINDOW_BYTES_MIN, u64::max);
        unacked_bytes.saturating_add(frames_bytes) <= told || (unacked_bytes == 0 && is_one_frame)
    }

    /// Counts a hole up to `offset`. Returns whether there may be another one.
    pub fn skip(&mut self, offset: u64) -> bool {
        let bytes = offset - self.received_offset;
        self.holes.push_back((offset, bytes));
        self.hole_bytes += bytes;
        self.received_offset = offset;
        self.holes.len() <= HOLES_MAX
    }

    /// Returns the bytes of frames that are unacknowledged.
    fn unacked_bytes(&self) -> u64 {
        let span = self.received_offset - self.acked_offset;
        span.saturating_sub(self.hole_bytes)
    }

    /// Returns what the driver is told: journal bytes.
    pub fn announced(&self) -> u64 {
        self.announced
    }

    /// Returns whether it has no room for another entry that Docker may write.
    pub fn is_full(&self) -> bool {
        self.unacked_bytes() + DOCKER_FRAME_BYTES_MAX > self.announced
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
        self.peak = self.peak.max(self.unacked_bytes());
    }

    /// Counts an acknowledgement. Returns a new window if the old one was in the way.
    pub fn acknowledge(&mut self, offset: u64) -> Option<u64> {
        self.acked_offset = self.acked_offset.max(offset);
        while let Some(&(end, bytes)) = self.holes.front()
            && end <= self.acked_offset
        {
            self.hole_bytes -= bytes;
            self.holes.pop_front();
        }
        let is_limiting = self.peak >= self.announced / 2;
        if is_limiting && self.bytes < WINDOW_BYTES_MAX && self.share.try_grant(self.bytes) {
            self.bytes *= 2;
            self.peak = 0;
        }
        self.announce()
    }

    /// Makes room for the rest of a line or record of which everything from `settled_offset` on
    /// waits here, as far as the budget allows. Returns a new window if the old one was too small.
    pub fn hold(&mut self, settled_offset: u64) -> Option<u64> {
        let held_bytes = self.received_offset.saturating_sub(settled_offset);
        self.held_bytes = held_bytes.min(self.unacked_bytes());
        while self.bytes < self.held_bytes + WINDOW_BYTES_MIN
            && self.bytes < WINDOW_BYTES_MAX
            && self.share.try_grant(self.bytes)
        {
            self.bytes *= 2;
        }
        // Without anything held, a change of the ratio alone can wait for an acknowledgement.
        (self.held_bytes > 0).then(|| self.announce()).flatten()
    }

    /// Halves a window that was mostly idle since the last call. Returns it if it changed.
    pub fn shrink_if_idle(&mut self) -> Option<u64> {
        let is_idle = self.peak < self.announced / 4;
        self.peak = self.unacked_bytes();
        self.look_count += 1;
        if self.look_count >= TOLD_LOOKS {
            self.look_count = 0;
            self.told = [self.announced, self.told[0]];
        }
        if is_idle && self.bytes > WINDOW_BYTES_MIN {
            self.bytes /= 2;
            self.share.give_back(self.bytes);
        }
        self.announce()
    }

    /// Returns the window in journal bytes, if it differs from what the driver knows by more than
    /// an eighth: smaller corrections are not worth a message, unless they let another entry in.
    fn announce(&mut self) -> Option<u64> {
        let scaled = if self.encoded_bytes > self.raw_bytes {
            let ratio = u128::from(self.bytes) * u128::from(self.raw_bytes);
            u64::try_from(ratio / u128::from(self.encoded_bytes)).unwrap_or(self.bytes)
        } else {
            self.bytes
        };
        let for_held = (self.held_bytes + WINDOW_BYTES_MIN).min(self.bytes);
        let window = scaled.max(WINDOW_BYTES_MIN).max(for_held);
        let has_made_room = self.is_full() && window > self.announced;
        let is_other = window.abs_diff(self.announced) > self.announced / 8;
        (has_made_room || is_other).then(|| {
            self.announced = window;
            self.told[0] = self.told[0].max(window);
            window
        })
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.share.give_back(self.bytes - WINDOW_BYTES_MIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn share(budget: &Arc<Budget>) -> Arc<Share> {
        Arc::new(Share::new(Arc::clone(budget)))
    }

    fn fill_and_ack(window: &mut Window, encoded_per_raw: u64) -> Option<u64> {
        let offset = window.received_offset + window.announced();
        window.receive(offset, window.announced() * encoded_per_raw);
        window.acknowledge(offset)
    }

    #[test]
    fn a_busy_window_grows_to_its_bound_and_an_idle_one_shrinks_back() {
        let budget = Arc::new(Budget::new(64 << 20));
        let mut window = Window::new(share(&budget), 7);
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
    fn a_driver_keeps_to_the_largest_window_that_it_may_know_of() {
        let budget = Arc::new(Budget::new(64 << 20));
        let mut window = Window::new(share(&budget), 0);
        assert!(window.may_take(WINDOW_BYTES_MIN, false));
        assert!(!window.may_take(WINDOW_BYTES_MIN + 1, false));
        assert!(window.may_take(WINDOW_BYTES_MIN + 1, true));
        window.receive(1, 0);
        assert!(!window.may_take(WINDOW_BYTES_MIN, true));
        let largest = fill_and_ack(&mut window, 1).unwrap();
        assert_eq!(largest, 2 * WINDOW_BYTES_MIN);
        for look in 0..2 * TOLD_LOOKS {
            assert!(window.may_take(largest, false), "{look} looks later");
            window.shrink_if_idle();
        }
        assert!(!window.may_take(largest, false));
    }

    #[test]
    fn a_hole_of_any_size_takes_no_window_and_there_are_so_many() {
        let budget = Arc::new(Budget::new(64 << 20));
        let mut window = Window::new(share(&budget), 7);
        assert!(window.skip(u64::MAX - HOLES_MAX as u64));
        window.receive(u64::MAX - HOLES_MAX as u64, 0);
        assert!(window.may_take(WINDOW_BYTES_MIN, false) && !window.is_full());
        window.hold(7);
        for hole in 1..HOLES_MAX as u64 {
            assert!(window.skip(u64::MAX - HOLES_MAX as u64 + hole));
        }
        assert!(!window.skip(u64::MAX));
        window.acknowledge(u64::MAX);
        assert!(window.skip(u64::MAX));
    }

    #[test]
    fn records_larger_than_their_entries_narrow_the_window() {
        let budget = Arc::new(Budget::new(64 << 20));
        let mut window = Window::new(share(&budget), 0);
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
        let mut window = Window::new(share(&budget), 0);
        // Records four times as large as their entries narrow it.
        window.receive(3 << 20, 12 << 20);
        window.acknowledge(3 << 20);
        let settled = window.received_offset;
        while window.received_offset - settled < 1 << 20 {
            window.receive(window.received_offset + WINDOW_BYTES_MIN / 2, 0);
            window.hold(settled);
            let held = window.received_offset - settled;
            assert!(!window.is_full(), "{} for {held}", window.announced());
        }
    }

    #[test]
    fn what_is_held_gets_no_more_than_the_budget_has() {
        let budget = Arc::new(Budget::new(2 * WINDOW_BYTES_MIN));
        let mut window = Window::new(share(&budget), 0);
        window.receive(1 << 20, 0);
        window.hold(0);
        assert_eq!(window.announced(), 2 * WINDOW_BYTES_MIN);
        assert_eq!(budget.granted(), WINDOW_BYTES_MIN);
    }

    #[test]
    fn lanes_that_hold_leave_room_for_one_that_does_not() {
        let budget = Arc::new(Budget::new(16 << 20));
        let lane = |streams: usize| {
            let share = share(&budget);
            let mut windows: Vec<_> = (0..streams)
                .map(|_| Window::new(Arc::clone(&share), 0))
                .collect();
            for _ in 0..20 {
                for window in &mut windows {
                    fill_and_ack(window, 1);
                }
            }
            windows
        };
        let first = lane(4);
        let granted_to_first = budget.granted();
        assert!(granted_to_first <= 8 << 20, "{granted_to_first}");
        let second = lane(4);
        let third = lane(1);
        assert!(third[0].announced() >= 1 << 20, "{}", third[0].announced());
        drop((first, second, third));
        assert_eq!(budget.granted(), 0);
    }

    /// Lanes of the property below, and the windows of each.
    const LANES: usize = 3;
    const WINDOWS: usize = 4;

    proptest! {
        /// Whatever windows do: the budget holds, a lane that has just grown leaves as much as it
        /// has, and what is granted comes back.
        #[test]
        fn the_budget_and_its_shares_hold_and_come_back(
            steps in prop::collection::vec((0..LANES * WINDOWS, 0_u8..5, 1_u64..6), 0..300)
        ) {
            const BYTES_MAX: u64 = 5 << 20;
            let budget = Arc::new(Budget::new(BYTES_MAX));
            let shares: Vec<_> = (0..LANES).map(|_| share(&budget)).collect();
            let new = |index: usize| Window::new(Arc::clone(&shares[index % LANES]), 0);
            let mut windows: Vec<_> = (0..LANES * WINDOWS).map(new).collect();
            for (index, step, ratio) in steps {
                let granted = |lane: &Share| lane.granted.load(Ordering::Relaxed);
                let before = granted(&shares[index % LANES]);
                match step {
                    0 => { windows[index].shrink_if_idle(); }
                    1 => { windows[index] = new(index); }
                    _ => { fill_and_ack(&mut windows[index], ratio); }
                }
                let of_lane = granted(&shares[index % LANES]);
                prop_assert_eq!(shares.iter().map(|lane| granted(lane)).sum::<u64>(), budget.granted());
                prop_assert!(budget.granted() <= BYTES_MAX);
                prop_assert!(of_lane <= before || of_lane <= BYTES_MAX - budget.granted());
                prop_assert!(windows[index].announced() >= WINDOW_BYTES_MIN);
            }
            drop(windows);
            prop_assert_eq!(budget.granted(), 0);
        }
    }
}
