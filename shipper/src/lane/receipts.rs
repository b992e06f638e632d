//! In-order acknowledgement over out-of-order completions, for one stream. Pure: no IO, no clock.
//!
//! Every group that leaves for CLS pushes a mark, in journal order. Marks complete in any order;
//! an acknowledgement covers the completed marks at the front and nothing behind the first one
//! that is still open. So an offset is acknowledged only when everything below it has been dealt
//! with, whatever overtook it.
//!
//! A mark that will never complete, because its task has failed, ends the queue: nothing is
//! acknowledged any more, and the stream has to start over from what was.

use std::collections::VecDeque;

use proto::relay::Ack;

/// How far a stream got, and what became of the entries since the mark before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Journal offset below which everything is covered.
    pub offset: u64,
    /// Entries that became part of records.
    pub delivered_entries: u64,
    /// Entries that a filter took out.
    pub filtered_entries: u64,
    /// Entries in the dead-letter store.
    pub dead_lettered_entries: u64,
}

impl Progress {
    /// Adds what comes behind. Offsets never go back.
    pub fn extend(&mut self, next: Progress) {
        self.offset = self.offset.max(next.offset);
        self.delivered_entries += next.delivered_entries;
        self.filtered_entries += next.filtered_entries;
        self.dead_lettered_entries += next.dead_lettered_entries;
    }
}

impl From<&mut Ack> for Progress {
    fn from(ack: &mut Ack) -> Self {
        Self {
            offset: ack.offset,
            delivered_entries: ack.delivered_entries,
            filtered_entries: ack.filtered_entries,
            dead_lettered_entries: ack.dead_lettered_entries,
        }
    }
}

/// Names a mark until it is completed.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// The marks of one stream.
#[derive(Debug, Default)]
pub struct AckQueue {
    /// Number of the mark at the front.
    first: u64,
    marks: VecDeque<Mark>,
    /// Dead entries of marks that are acknowledged, which those behind them are still to count: a record
    /// may be counted by a later mark than that of its group.
    dead_entries: u64,
    is_abandoned: bool,
}

#[derive(Debug)]
struct Mark {
    progress: Progress,
    dead_entries: u64,
    is_complete: bool,
}

impl AckQueue {
    /// Appends a mark. Its offset must not lie below the one before.
    pub fn push(&mut self, progress: Progress) -> Ticket {
        debug_assert!(
            self.marks
                .back()
                .is_none_or(|last| last.progress.offset <= progress.offset)
        );
        self.marks.push_back(Mark {
            progress,
            dead_entries: 0,
            is_complete: false,
        });
        Ticket(self.first + self.marks.len() as u64 - 1)
    }

    /// Completes a mark of which `dead_entries` entries went to the dead-letter store. Returns what
    /// can be acknowledged now, if this made the front complete.
    ///
    /// # Panics
    /// Never for a ticket of this queue: a ticket is used up by its completion.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a ticket is good for one completion"
    )]
    pub fn complete(&mut self, ticket: Ticket, dead_entries: u64) -> Option<Progress> {
        if self.is_abandoned {
            return None;
        }
        let index = usize::try_from(ticket.0 - self.first).expect("marks are held in memory");
        let mark = self
            .marks
            .get_mut(index)
            .expect("a mark leaves only when it is complete");
        mark.is_complete = true;
        mark.dead_entries = dead_entries;
        let mut acknowledged: Option<Progress> = None;
        while self.marks.front().is_some_and(|mark| mark.is_complete) {
            let mut mark = self.marks.pop_front().expect("the front was just seen");
            self.first += 1;
            self.dead_entries += mark.dead_entries;
            let dead_entries = self.dead_entries.min(mark.progress.delivered_entries);
            self.dead_entries -= dead_entries;
            mark.progress.delivered_entries -= dead_entries;
            mark.progress.dead_lettered_entries += dead_entries;
            acknowledged.get_or_insert_default().extend(mark.progress);
        }
        acknowledged
    }

    /// Ends the queue: nothing is acknowledged any more. Returns whether it had not ended yet.
    pub fn abandon(&mut self) -> bool {
        self.marks.clear();
        !std::mem::replace(&mut self.is_abandoned, true)
    }

    /// Returns how many marks are open or wait behind an open one.
    pub fn len(&self) -> usize {
        self.marks.len()
    }

    /// Returns whether everything that was pushed has been acknowledged.
    pub fn is_empty(&self) -> bool {
        self.marks.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn progress(offset: u64) -> Progress {
        Progress {
            offset,
            delivered_entries: 1,
            ..Progress::default()
        }
    }

    proptest! {
        #[test]
        fn acknowledgements_follow_the_oldest_open_mark(
            order in Just((0..40_usize).collect::<Vec<_>>()).prop_shuffle()
        ) {
            let mut queue = AckQueue::default();
            let mut tickets: Vec<_> = (1..=40).map(|n| Some(queue.push(progress(n * 10)))).collect();
            let mut total = Progress::default();
            for index in order {
                // Every other one is a dead letter.
                let dead_entries = index as u64 % 2;
                let acknowledged = queue.complete(tickets[index].take().unwrap(), dead_entries);
                let complete_count = tickets.iter().take_while(|ticket| ticket.is_none()).count() as u64;
                prop_assert_eq!(acknowledged.is_some(), complete_count * 10 > total.offset);
                total.extend(acknowledged.unwrap_or_default());
                let dead_entries = complete_count / 2;
                prop_assert_eq!(total, Progress {
                    offset: complete_count * 10,
                    delivered_entries: complete_count - dead_entries,
                    filtered_entries: 0,
                    dead_lettered_entries: dead_entries,
                });
            }
            prop_assert!(queue.is_empty());
        }
    }

    #[test]
    fn an_abandoned_queue_acknowledges_nothing() {
        let mut queue = AckQueue::default();
        let [a, b] = [1, 2].map(|offset| queue.push(progress(offset)));
        assert_eq!(queue.complete(b, 0), None);
        assert!(queue.abandon());
        assert!(!queue.abandon());
        assert_eq!(queue.complete(a, 0), None);
        let c = queue.push(progress(3));
        assert_eq!(queue.complete(c, 0), None);
    }

    #[test]
    fn marks_pushed_between_completions_keep_their_tickets() {
        let mut queue = AckQueue::default();
        let (a, b) = (queue.push(progress(1)), queue.push(progress(2)));
        assert_eq!(queue.complete(a, 0), Some(progress(1)));
        let c = queue.push(progress(3));
        assert_eq!(queue.complete(c, 1), None);
        let expected = Progress {
            offset: 3,
            delivered_entries: 1,
            filtered_entries: 0,
            dead_lettered_entries: 1,
        };
        assert_eq!(queue.complete(b, 0), Some(expected));
        assert_eq!(queue.len(), 0);
    }
}
