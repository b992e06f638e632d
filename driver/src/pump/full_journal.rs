//! What becomes of a FIFO whose journal is full. A pure automaton; times are those since the pump began.
//!
//! The FIFO rests (mode=blocking) while the shipper makes room, or not at all. After `block_max` in which
//! less than [`PATIENCE_BYTES`] moved, upkeep is asked to drop the oldest entries, until that much has
//! moved; and while there is no progress of the shipper at all, the FIFO does not rest again. So that
//! much moves in any `block_max`, however small the pipe is: a container that ends has up to 1.2 MB in
//! the engine's buffers, and its stop waits until they have gone through the FIFO. Of a container that is
//! being stopped it rests only while the shipper makes room: once the engine has let go of the FIFO, what
//! it holds ends with this process.

use std::time::Duration;

/// What moves at least while a full journal has a FIFO rest for `block_max`: about what the engine's
/// buffers hold.
const PATIENCE_BYTES: usize = 1 << 20;

/// How long a FIFO whose journal was full may be without bytes that wait, until its writer counts as
/// not held up: the engine, which has more, fills a small pipe again at once.
const REFILL_MAX: Duration = Duration::from_millis(250);

/// How long the FIFO of a container that is being stopped rests without any byte of it moving. What
/// the engine has let go of is lost if this process dies meanwhile; what is dropped is lost for sure,
/// and CLS may take half a second for a batch.
const STOP_REST_MAX: Duration = Duration::from_secs(1);

/// How long dropping may fail to make room before the next bytes go to memory.
const FALL_BACK_AFTER: Duration = Duration::from_secs(1);

/// What is to be done for a FIFO whose journal takes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// It rests: the shipper may make room.
    Rest,
    /// The oldest entries are dropped.
    MakeRoom,
    /// That has not helped for a while: the next bytes go to memory, too.
    FallBack,
}

/// A look at a FIFO whose journal takes nothing, while bytes wait in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blocked {
    /// When.
    pub(super) now: Duration,
    /// Offset up to which the shipper has acknowledged.
    pub(super) acked: u64,
    /// Whether the container may wait (mode=blocking).
    pub(super) may_wait: bool,
    /// Since when the container is being stopped, if it is.
    pub(super) stopping_since: Option<Duration>,
}

/// The state of one FIFO.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct FullJournal {
    full: Option<Full>,
    held_up: Option<HeldUp>,
    /// The acknowledged offset when entries were last dropped for this FIFO.
    dropped_at_acked: Option<u64>,
}

/// A journal that is full.
#[derive(Debug, Clone, Copy)]
struct Full {
    /// When it last took bytes, or became full.
    moved_at: Duration,
    /// Since when room is asked for.
    asked_since: Option<Duration>,
}

/// The time for which a full journal has held a writer up.
#[derive(Debug, Clone, Copy)]
struct HeldUp {
    since: Duration,
    /// When bytes last waited for the journal.
    waiting_at: Duration,
    /// What the writer got rid of meanwhile.
    moved_bytes: usize,
}

impl FullJournal {
    /// Returns whether the journal took nothing the last time.
    pub(super) fn is_full(&self) -> bool {
        self.full.is_some()
    }

    /// Learns that the journal took bytes.
    pub(super) fn moved(&mut self, bytes: usize) {
        if let Some(held_up) = &mut self.held_up {
            held_up.moved_bytes = held_up.moved_bytes.saturating_add(bytes);
        }
    }

    /// Learns that the journal took all that it was to take.
    pub(super) fn took_all(&mut self) {
        self.full = None;
    }

    /// Learns that the journal is full, perhaps after it took something.
    pub(super) fn found_full(&mut self, now: Duration, has_moved: bool) {
        let full = self.full.get_or_insert(Full {
            moved_at: now,
            asked_since: None,
        });
        if has_moved {
            *full = Full {
                moved_at: now,
                asked_since: None,
            };
        }
    }

    /// Returns what is to be done while bytes wait for a full journal that may hold a container up for
    /// `block_max`.
    pub(super) fn blocked(&mut self, blocked: Blocked, block_max: Duration) -> Action {
        let now = blocked.now;
        let held_up = self.held_up.get_or_insert(HeldUp::new(now));
        held_up.go_on(now);
        let is_too_long = now.saturating_sub(held_up.since) >= block_max;
        let full = self.full.get_or_insert(Full {
            moved_at: now,
            asked_since: None,
        });
        let is_stop_late = blocked
            .stopping_since
            .is_some_and(|since| now.saturating_sub(since.max(full.moved_at)) >= STOP_REST_MAX);
        let is_no_progress = self.dropped_at_acked == Some(blocked.acked);
        if blocked.may_wait && !is_stop_late && !is_no_progress && !is_too_long {
            return Action::Rest;
        }
        self.dropped_at_acked = Some(blocked.acked);
        let asked_since = *full.asked_since.get_or_insert(now);
        match now.saturating_sub(asked_since) >= FALL_BACK_AFTER {
            true => Action::FallBack,
            false => Action::MakeRoom,
        }
    }
}

impl HeldUp {
    fn new(now: Duration) -> Self {
        Self {
            since: now,
            waiting_at: now,
            moved_bytes: 0,
        }
    }

    /// Learns that bytes wait; begins anew if enough has moved, or the writer was not held up.
    fn go_on(&mut self, now: Duration) {
        let is_idle = now.saturating_sub(self.waiting_at) > REFILL_MAX;
        if is_idle || self.moved_bytes >= PATIENCE_BYTES {
            *self = Self::new(now);
        }
        self.waiting_at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Action::{FallBack, MakeRoom, Rest};
    use proptest::prelude::*;

    const BLOCK_MAX: Duration = Duration::from_secs(5);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// A look every 100 ms: what moved before it, what is acknowledged, and what is to be done.
    type Look = (usize, u64, Action);

    fn play(may_wait: bool, stopping_since: Option<u64>, looks: &[Look]) {
        let mut policy = FullJournal::default();
        for (at, &(moved_bytes, acked, expected)) in looks.iter().enumerate() {
            let now = ms(100 * at as u64);
            policy.moved(moved_bytes);
            policy.found_full(now, moved_bytes > 0);
            let blocked = Blocked {
                now,
                acked,
                may_wait,
                stopping_since: stopping_since.map(ms),
            };
            assert_eq!(policy.blocked(blocked, BLOCK_MAX), expected, "look {at}");
        }
    }

    fn times(count: usize, look: Look) -> Vec<Look> {
        vec![look; count]
    }

    #[test]
    fn a_container_waits_for_block_max_and_no_longer() {
        let mut looks = times(50, (0, 0, Rest));
        looks.extend(times(10, (0, 0, MakeRoom)));
        looks.extend(times(5, (0, 0, FallBack)));
        play(true, None, &looks);
    }

    #[test]
    fn one_that_may_not_wait_drops_at_once() {
        let mut looks = times(10, (0, 0, MakeRoom));
        looks.push((0, 0, FallBack));
        // Bytes moved: room is asked for anew.
        looks.extend(times(10, (1, 0, MakeRoom)));
        play(false, None, &looks);
    }

    #[test]
    fn a_stop_is_held_up_for_a_second() {
        let mut looks = times(10, (0, 0, Rest));
        looks.push((0, 0, MakeRoom));
        play(true, Some(0), &looks);
    }

    #[test]
    fn enough_that_moves_begins_the_wait_anew() {
        let mut looks = times(40, (0, 0, Rest));
        looks.push((PATIENCE_BYTES, 0, Rest));
        looks.extend(times(49, (0, 0, Rest)));
        looks.push((0, 0, MakeRoom));
        play(true, None, &looks);
        let mut looks = times(40, (0, 0, Rest));
        looks.push((PATIENCE_BYTES - 1, 0, Rest));
        looks.extend(times(9, (0, 0, Rest)));
        looks.push((0, 0, MakeRoom));
        play(true, None, &looks);
    }

    #[test]
    fn after_a_drop_it_rests_again_only_if_the_shipper_gets_on() {
        let mut looks = times(50, (0, 7, Rest));
        looks.push((0, 7, MakeRoom));
        looks.push((PATIENCE_BYTES, 7, MakeRoom));
        looks.push((PATIENCE_BYTES, 8, Rest));
        play(true, None, &looks);
    }

    proptest! {
        #[test]
        fn no_writer_that_waits_without_end_is_let_rest(
            steps in prop::collection::vec((0_usize..4_096, 0_u64..3), 1..200),
        ) {
            let mut policy = FullJournal::default();
            let (mut moved, mut since) = (0, Duration::ZERO);
            let mut now = Duration::ZERO;
            for (moved_bytes, acked) in steps {
                policy.moved(moved_bytes);
                policy.found_full(now, moved_bytes > 0);
                moved += moved_bytes;
                let blocked = Blocked { now, acked, may_wait: true, stopping_since: None };
                let action = policy.blocked(blocked, BLOCK_MAX);
                if moved >= PATIENCE_BYTES {
                    (moved, since) = (0, now);
                }
                prop_assert!(action != Rest || now - since < BLOCK_MAX, "{now:?}");
                now += ms(100);
            }
        }
    }
}
