//! When a FIFO is read next: its beat. A pure automaton; times are those since the pump began.
//!
//! ```text
//!            bytes soon after the last ones, or many
//!   Watched ────────────────────────────────────────▶ Paced: interval, on the grid
//!      ▲                                                │   grows while reads find little,
//!      └────────────────────────────────────────────────┘   shrinks while they find much
//!            two reads in a row find nothing, or none for as long as bytes may wait
//! ```
//!
//! A FIFO that is watched is read as soon as something is in it: so a line after a quiet time never
//! waits. Woken for each line of a steady trickle, a read costs many times what the line does. So bytes
//! that follow each other within `hold` gather in the pipe, and the FIFO is read at intervals.
//!
//! Intervals are `hold` halved some times, and due times are multiples of the interval. So all FIFOs of
//! one `hold` share one grid, and one round of the pump serves all that are due.

use std::time::Duration;

/// Least interval: a read is to be worth its system calls.
pub(super) const INTERVAL_MIN: Duration = Duration::from_micros(100);

/// Interval of a FIFO of which the first read finds much: a burst has begun.
const INTERVAL_OF_BURST: Duration = Duration::from_millis(1);

/// Longest interval of a FIFO that may fill its pipe meanwhile. Nothing tells of a pipe that fills, so a
/// burst waits for up to an interval, once.
const INTERVAL_OF_MORE_MAX: Duration = Duration::from_millis(250);

/// Times that an interval is halved at most.
const HALVINGS_MAX: u32 = 16;

/// What is to be done for a FIFO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// It is read when something is in it.
    Watch,
    /// It is read at this time.
    At(Duration),
}

/// The beat of one FIFO.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Beat {
    /// `None` while it is watched.
    interval: Option<Duration>,
    /// When a read last found something.
    moved_at: Option<Duration>,
    /// What that read found.
    moved_bytes: usize,
    empty_reads: u32,
}

impl Beat {
    /// Learns what a read found in a pipe, and returns when the next one is due. Bytes may wait in the
    /// pipe for `hold`.
    pub(super) fn next(
        &mut self,
        now: Duration,
        moved_bytes: usize,
        pipe_bytes: usize,
        hold: Duration,
    ) -> Turn {
        let hold = hold.max(INTERVAL_MIN);
        let quiet = self.moved_at.map(|at| now.saturating_sub(at));
        let interval = match moved_bytes {
            0 => self.interval_after_nothing(quiet, hold),
            _ => self.interval_after(quiet, moved_bytes, pipe_bytes, hold),
        };
        if moved_bytes > 0 {
            self.moved_at = Some(now);
            self.moved_bytes = moved_bytes;
            self.empty_reads = 0;
        }
        self.interval = interval.map(|interval| on_grid(interval, hold));
        match self.interval {
            None => Turn::Watch,
            Some(interval) => Turn::At(next_on_grid(now, interval, hold)),
        }
    }

    /// Returns whether it is as quick as a burst wants it.
    pub(super) fn is_shortest(&self) -> bool {
        self.interval
            .is_some_and(|interval| interval <= INTERVAL_OF_BURST)
    }

    fn interval_after_nothing(
        &mut self,
        quiet: Option<Duration>,
        hold: Duration,
    ) -> Option<Duration> {
        self.empty_reads = self.empty_reads.saturating_add(1);
        let is_quiet = quiet.is_none_or(|quiet| quiet >= hold);
        self.interval.filter(|_| self.empty_reads < 2 && !is_quiet)
    }

    fn interval_after(
        &self,
        quiet: Option<Duration>,
        moved_bytes: usize,
        pipe_bytes: usize,
        hold: Duration,
    ) -> Option<Duration> {
        let is_little = moved_bytes < pipe_bytes / 16;
        let longest = match is_little {
            true => hold,
            false => hold.min(INTERVAL_OF_MORE_MAX),
        };
        let Some(interval) = self.interval else {
            let is_burst = moved_bytes >= pipe_bytes / 8;
            let gap = quiet.filter(|gap| *gap <= hold);
            return match is_burst {
                true => Some(INTERVAL_OF_BURST.min(hold)),
                false => gap.map(|gap| gap.max(INTERVAL_OF_BURST).min(longest)),
            };
        };
        let interval = match moved_bytes >= pipe_bytes / 8 {
            // So long that a quarter of the pipe is full.
            true => share(interval, pipe_bytes / 4, moved_bytes),
            false if is_rising(moved_bytes, self.moved_bytes, pipe_bytes) => interval / 2,
            false => interval * 2,
        };
        Some(interval.clamp(INTERVAL_MIN, longest))
    }
}

/// Returns whether a read found so much more than the one before that a burst may be beginning. What is
/// next to nothing in a pipe doubles by chance.
fn is_rising(moved_bytes: usize, before_bytes: usize, pipe_bytes: usize) -> bool {
    moved_bytes >= before_bytes.saturating_mul(2)
        && moved_bytes >= pipe_bytes / 64
        && before_bytes > 0
}

/// Returns an interval times `part / whole`.
fn share(interval: Duration, part: usize, whole: usize) -> Duration {
    let nanos = interval.as_nanos().saturating_mul(part as u128) / (whole.max(1) as u128);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// Returns the shortest interval of the grid that is not below `wanted`.
fn on_grid(wanted: Duration, hold: Duration) -> Duration {
    let mut interval = hold;
    for _ in 0..HALVINGS_MAX {
        let half = interval / 2;
        if half < wanted || half < INTERVAL_MIN {
            break;
        }
        interval = half;
    }
    interval
}

/// Returns the first time of an interval's grid behind a time. Each `hold` begins the grid anew, so that
/// halves that are no whole nanoseconds do not drift away from it.
fn next_on_grid(now: Duration, interval: Duration, hold: Duration) -> Duration {
    let (now, interval, hold) = (
        now.as_nanos(),
        interval.as_nanos().max(1),
        hold.as_nanos().max(1),
    );
    let since = now % hold;
    let in_hold = (since / interval + 1).saturating_mul(interval).min(hold);
    // What is left behind the last whole interval belongs to it.
    let in_hold = if hold - in_hold < interval {
        hold
    } else {
        in_hold
    };
    let nanos = (now - since).saturating_add(in_hold);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PIPE: usize = 64 << 10;
    const HOLD: Duration = Duration::from_millis(500);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Plays reads (time in ms, bytes found); returns when the next one is due, in ms, 0 for watched.
    fn play(hold: Duration, reads: &[(u64, usize)]) -> Vec<u128> {
        let mut beat = Beat::default();
        let mut turn = |&(at, bytes): &(u64, usize)| match beat.next(ms(at), bytes, PIPE, hold) {
            Turn::Watch => 0,
            Turn::At(due) => due.as_millis(),
        };
        reads.iter().map(&mut turn).collect()
    }

    #[test]
    fn a_table_of_reads() {
        for (what, hold, reads, due) in [
            ("first line", HOLD, &[(1_007, 100)][..], &[0][..]),
            (
                "a line a second",
                HOLD,
                &[(1_007, 100), (2_007, 100)],
                &[0, 0],
            ),
            (
                "ten lines a second gather",
                HOLD,
                &[
                    (1_007, 100),
                    (1_107, 100),
                    (1_125, 100),
                    (1_250, 100),
                    (1_500, 500),
                ],
                &[0, 1_125, 1_250, 1_500, 2_000],
            ),
            (
                "quiet again after hold",
                HOLD,
                &[
                    (1_007, 100),
                    (1_107, 100),
                    (1_250, 100),
                    (1_500, 300),
                    (2_000, 0),
                ],
                &[0, 1_125, 1_500, 2_000, 0],
            ),
            (
                "quiet again after two reads",
                HOLD,
                &[(1_007, 100), (1_027, 100), (1_032, 0), (1_063, 0)],
                &[0, 1_031, 1_062, 0],
            ),
            ("a burst from nothing", HOLD, &[(1_007, PIPE)], &[1_007]),
            (
                "a trickle that turns into a burst",
                HOLD,
                &[
                    (1_000, 100),
                    (1_250, 200),
                    (1_500, 200),
                    (2_000, PIPE),
                    (2_125, PIPE),
                ],
                &[0, 1_500, 2_000, 2_125, 2_156],
            ),
            (
                "a short hold",
                ms(5),
                &[(1_007, 100), (1_107, 100)],
                &[0, 0],
            ),
            (
                "within a short hold",
                ms(5),
                &[(1_007, 100), (1_010, 100)],
                &[0, 1_015],
            ),
        ] {
            assert_eq!(play(hold, reads), due, "{what}");
        }
    }

    proptest! {
        #[test]
        fn no_read_is_late_and_quiet_is_watched(
            hold_ms in 0_u64..1_000,
            reads in prop::collection::vec((0_u64..2_000, 0_usize..2 * PIPE), 1..60),
        ) {
            let hold = ms(hold_ms).max(INTERVAL_MIN);
            let mut beat = Beat::default();
            let mut now = Duration::ZERO;
            let mut quiet_since = Duration::ZERO;
            for (late_ms, bytes) in reads {
                if bytes > 0 {
                    quiet_since = now;
                }
                match beat.next(now, bytes, PIPE, ms(hold_ms)) {
                    Turn::Watch => now += ms(late_ms),
                    Turn::At(due) => {
                        prop_assert!(due > now && due <= now + hold, "{due:?} at {now:?}");
                        prop_assert!(bytes > 0 || now - quiet_since < hold, "paced for nothing");
                        now = due + ms(late_ms % 7);
                    }
                }
            }
        }

        #[test]
        fn fifos_of_one_hold_share_one_grid(wanted in 0_u64..600_000, now in 0_u64..10_000_000) {
            let interval = on_grid(Duration::from_micros(wanted), HOLD);
            prop_assert!(interval <= HOLD && interval >= INTERVAL_MIN);
            // Whoever has an interval twice as long is due with who has this one.
            let now = Duration::from_micros(now);
            let due = next_on_grid(now, HOLD, HOLD);
            prop_assert_eq!(next_on_grid(due - Duration::from_nanos(1), interval, HOLD), due);
        }
    }
}
