//! The last counters of streams that are over. A shipper that was not told of them yet, because it
//! is new or the last one ended before it read them, is told of all that are remembered.

use proto::relay::StreamReport;
use std::collections::VecDeque;

/// Streams that are remembered; then the oldest go.
const REMEMBERED_MAX: usize = 1024;

/// The last counters of streams that are over, numbered in the order in which they ended.
#[derive(Debug, Default)]
pub(crate) struct FinalReports {
    /// Oldest first.
    reports: VecDeque<StreamReport>,
    /// Number of the next one.
    next: u64,
}

impl FinalReports {
    /// Remembers the last counters of a stream; without entries there is nothing to tell.
    pub(crate) fn push(&mut self, report: StreamReport) {
        if report.received_entries > 0 {
            self.push_found(report);
        }
    }

    /// Remembers the last counters of a stream of an earlier process, which may have told of entries
    /// that a loss of power took since.
    pub(crate) fn push_found(&mut self, report: StreamReport) {
        if self.reports.len() == REMEMBERED_MAX {
            self.reports.pop_front();
        }
        self.reports.push_back(report);
        self.next += 1;
    }

    /// Returns those from a number on that are remembered, and the number that the next one will
    /// have.
    pub(crate) fn since(&self, number: u64) -> (Vec<StreamReport>, u64) {
        let new_count = usize::try_from(self.next.saturating_sub(number)).unwrap_or(usize::MAX);
        let skipped = self.reports.len().saturating_sub(new_count);
        let reports = self.reports.iter().skip(skipped).cloned().collect();
        (reports, self.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(received_entries: u64) -> StreamReport {
        StreamReport {
            received_entries,
            ..StreamReport::default()
        }
    }

    fn received(reports: &[StreamReport]) -> Vec<u64> {
        reports
            .iter()
            .map(|report| report.received_entries)
            .collect()
    }

    #[test]
    fn who_asks_gets_what_is_new_to_him() {
        let mut finals = FinalReports::default();
        assert_eq!(finals.since(0).1, 0);
        for entries in [0, 1, 2] {
            finals.push(report(entries));
        }
        let (all, next) = finals.since(0);
        assert_eq!((received(&all), next), (vec![1, 2], 2));
        finals.push(report(3));
        let (new, next) = finals.since(next);
        assert_eq!((received(&new), next), (vec![3], 3));
        assert_eq!(finals.since(next).0, []);
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let mut finals = FinalReports::default();
        let count = REMEMBERED_MAX as u64 + 2;
        (1..=count).for_each(|entries| finals.push(report(entries)));
        let (all, next) = finals.since(1);
        assert_eq!((all.len(), next), (REMEMBERED_MAX, count));
        assert_eq!(received(&all)[0], 3);
        assert_eq!(received(&finals.since(count - 1).0), [count]);
    }
}
