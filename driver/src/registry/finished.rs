//! The last counters of finished streams, until a shipper has noted them.
//!
//! What the ledger says of a stream must outlive the processes, like the stream's entries. So the
//! folder of a finished stream stands, with its state, until a shipper has said that it noted
//! the counters: a driver that is killed before that leaves it to the next one. After that, a
//! shipper that is new is told of all that are remembered.

use crate::logging::Throttle;
use crate::table::Owner;
use proto::relay::StreamReport;
use std::collections::VecDeque;

/// Streams that are remembered; then the oldest go.
const REMEMBERED_MAX: usize = 1024;

static FORGOTTEN: Throttle = Throttle::new();

/// A finished stream.
#[derive(Debug, Default)]
pub(crate) struct FinishedStream {
    /// Its last counters.
    pub(crate) report: StreamReport,
    /// What it leaves on disk, if anything.
    pub(crate) leftover: Option<LeftoverFolder>,
}

/// The folder of a finished stream.
#[derive(Debug)]
pub(crate) struct LeftoverFolder {
    /// Whose, and where.
    pub(crate) owner: Owner,
    /// Whether its segments are kept for inspection.
    pub(crate) keep_file: bool,
}

/// The last counters of finished streams, numbered in the order in which they ended.
#[derive(Debug, Default)]
pub(crate) struct FinalReports {
    /// Oldest first.
    finished: VecDeque<FinishedStream>,
    /// Number of the next one.
    next: u64,
    /// Number of the first one that no shipper has noted yet.
    unconfirmed_from: u64,
}

impl FinalReports {
    /// Remembers a stream. Returns the folder of one that is forgotten for it, if there is one
    /// that no shipper has noted.
    pub(crate) fn push(&mut self, finished: FinishedStream) -> Option<LeftoverFolder> {
        let forgotten = match self.finished.len() {
            REMEMBERED_MAX => self.finished.pop_front(),
            _ => None,
        };
        if forgotten.is_some()
            && self.unconfirmed_from < self.next - self.finished.len() as u64
            && let Some(suppressed_count) = FORGOTTEN.pass()
        {
            tracing::warn!(
                suppressed_count,
                "more than {REMEMBERED_MAX} streams are over of which no shipper has noted the \
                 counters since this process began: a ledger may lack the oldest of them"
            );
        }
        self.finished.push_back(finished);
        self.next += 1;
        forgotten.and_then(|finished| finished.leftover)
    }

    /// Returns those from a number on that are remembered, and the number that the next one will
    /// have.
    pub(crate) fn since(&self, number: u64) -> (Vec<StreamReport>, u64) {
        let known = self.finished.iter().skip(self.index_of(number));
        (
            known.map(|finished| finished.report.clone()).collect(),
            self.next,
        )
    }

    /// Learns that a shipper has noted all below a number. Returns the folders that have stood for
    /// that.
    pub(crate) fn confirmed_below(&mut self, number: u64) -> Vec<LeftoverFolder> {
        self.unconfirmed_from = self.unconfirmed_from.max(number.min(self.next));
        let told_count = self.index_of(number);
        let told = self.finished.iter_mut().take(told_count);
        told.filter_map(|finished| finished.leftover.take())
            .collect()
    }

    /// Returns where the stream with a number stands, or would.
    fn index_of(&self, number: u64) -> usize {
        let first = self.next - self.finished.len() as u64;
        let index = usize::try_from(number.saturating_sub(first)).unwrap_or(usize::MAX);
        index.min(self.finished.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn finished(received_entries: u64) -> FinishedStream {
        let owner = Owner {
            folder: Path::new(&received_entries.to_string()).into(),
            container_id: "c".into(),
        };
        FinishedStream {
            report: StreamReport {
                received_entries,
                ..StreamReport::default()
            },
            leftover: Some(LeftoverFolder {
                owner,
                keep_file: false,
            }),
        }
    }

    fn received(reports: &[StreamReport]) -> Vec<u64> {
        reports
            .iter()
            .map(|report| report.received_entries)
            .collect()
    }

    fn folders(leftover: impl IntoIterator<Item = LeftoverFolder>) -> Vec<String> {
        let leftover = leftover.into_iter();
        leftover
            .map(|leftover| leftover.owner.folder.display().to_string())
            .collect()
    }

    #[test]
    fn who_asks_gets_what_is_new_to_him() {
        let mut finals = FinalReports::default();
        assert_eq!(finals.since(0).1, 0);
        for entries in [1, 2] {
            assert!(finals.push(finished(entries)).is_none());
        }
        let (all, next) = finals.since(0);
        assert_eq!((received(&all), next), (vec![1, 2], 2));
        finals.push(finished(3));
        let (new, next) = finals.since(next);
        assert_eq!((received(&new), next), (vec![3], 3));
        assert_eq!(finals.since(next).0, []);
    }

    #[test]
    fn a_folder_stands_until_its_counters_are_noted() {
        let mut finals = FinalReports::default();
        for entries in [1, 2, 3] {
            finals.push(finished(entries));
        }
        assert_eq!(folders(finals.confirmed_below(0)), Vec::<String>::new());
        assert_eq!(folders(finals.confirmed_below(2)), ["1", "2"]);
        assert_eq!(folders(finals.confirmed_below(2)), Vec::<String>::new());
        // A shipper that is new is told of all.
        assert_eq!(received(&finals.since(0).0), [1, 2, 3]);
        assert_eq!(folders(finals.confirmed_below(9)), ["3"]);
    }

    #[test]
    fn the_oldest_are_forgotten_with_their_folders() {
        let mut finals = FinalReports::default();
        let count = REMEMBERED_MAX as u64 + 2;
        let forgotten: Vec<_> = (1..=count)
            .filter_map(|n| finals.push(finished(n)))
            .collect();
        assert_eq!(folders(forgotten), ["1", "2"]);
        let (all, next) = finals.since(1);
        assert_eq!((all.len(), next), (REMEMBERED_MAX, count));
        assert_eq!(received(&all)[0], 3);
        assert_eq!(received(&finals.since(count - 1).0), [count]);
        assert_eq!(folders(finals.confirmed_below(3)), ["3"]);
    }
}
