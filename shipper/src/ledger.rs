//! The ledger: what became of every entry, per stream, as the drivers count it.
//!
//! `received = delivered + filtered + dropped + dead-lettered + buffered`. The driver is the one
//! that counts, because its counters live beside the acknowledged offset on disk and so survive
//! both processes; here stands each host's last report. What a stream received and has not settled
//! is buffered.
//!
//! A driver tells of a stream that is over once, or not at all if it was killed just then: a stream
//! that a host reports no more stays with what was last said of it, until newer ones push it out.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use proto::relay::{HostReport, StreamReport};
use serde::{Deserialize, Serialize};

/// Hosts whose reports are kept. A further one is not shown; its streams are not affected.
const HOSTS_MAX: usize = 10_000;

/// Streams that are kept although no host reports them any more.
const OVER_MAX: usize = 10_000;

/// The last word of each host on each of its streams.
#[derive(Debug, Default)]
pub struct Ledger {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// The last report of each host.
    hosts: BTreeMap<String, HostReport>,
    over: Over,
}

/// One line of the ledger: a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Host name.
    pub host: String,
    /// Container name.
    pub container_name: String,
    /// Full container id.
    pub container_id: String,
    /// Identifies the journal: one start of the container.
    pub journal_id: String,
    /// Entries received.
    pub received: u64,
    /// Entries that CLS has accepted.
    pub delivered: u64,
    /// Entries that a filter took out.
    pub filtered: u64,
    /// Entries dropped, by reason.
    pub dropped: BTreeMap<String, u64>,
    /// Entries in the dead-letter store.
    pub dead_lettered: u64,
    /// Entries that wait in the host's journal or are in flight.
    pub buffered: u64,
    /// Bytes of the entries that wait.
    pub buffered_bytes: u64,
}

impl Ledger {
    /// Takes a host's report in place of its last one; what that one had and this one has not is
    /// over.
    pub fn put(&self, report: HostReport) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let Inner { hosts, over } = &mut *inner;
        if hosts.len() >= HOSTS_MAX && !hosts.contains_key(&report.host) {
            return;
        }
        let host = report.host.clone();
        for stream in &report.streams {
            over.remove(&stream.journal_id);
        }
        let is_reported: HashSet<&str> = ids(&report.streams).collect();
        let last = hosts
            .get_mut(&host)
            .map(|last| std::mem::take(&mut last.streams));
        for stream in last.into_iter().flatten() {
            if !is_reported.contains(stream.journal_id.as_str()) {
                over.push(&host, stream);
            }
        }
        hosts.insert(host, report);
    }

    /// Returns one line per stream, by host and container name.
    pub fn lines(&self) -> Vec<Line> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let reported = inner.hosts.values().flat_map(|report| {
            let streams = report.streams.iter();
            streams.map(|stream| Line::new(&report.host, stream))
        });
        let mut lines: Vec<Line> = reported.chain(inner.over.lines()).collect();
        lines.sort_by(|a, b| (&a.host, &a.container_name).cmp(&(&b.host, &b.container_name)));
        lines
    }
}

fn ids(streams: &[StreamReport]) -> impl Iterator<Item = &str> {
    streams.iter().map(|stream| stream.journal_id.as_str())
}

/// Streams that are over.
#[derive(Debug, Default)]
struct Over {
    /// By journal id: the host, what was last said, and a number that rises with time.
    streams: HashMap<String, (String, StreamReport, u64)>,
    /// Journal ids by that number.
    by_age: BTreeMap<u64, String>,
    next: u64,
}

impl Over {
    fn push(&mut self, host: &str, stream: StreamReport) {
        let id = stream.journal_id.clone();
        self.remove(&id);
        if self.streams.len() >= OVER_MAX
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.streams.remove(&oldest);
        }
        self.by_age.insert(self.next, id.clone());
        self.streams
            .insert(id, (host.to_owned(), stream, self.next));
        self.next += 1;
    }

    fn remove(&mut self, id: &str) {
        if let Some((_, _, age)) = self.streams.remove(id) {
            self.by_age.remove(&age);
        }
    }

    fn lines(&self) -> impl Iterator<Item = Line> {
        let streams = self.streams.values();
        streams.map(|(host, stream, _)| Line::new(host, stream))
    }
}

impl Line {
    fn new(host: &str, stream: &StreamReport) -> Self {
        let settled = [
            stream.delivered_entries,
            stream.filtered_entries,
            stream.dead_lettered_entries,
            sum(stream.dropped_entries.values()),
        ];
        let settled = sum(&settled);
        Self {
            host: host.to_owned(),
            container_name: stream.container_name.clone(),
            container_id: stream.container_id.clone(),
            journal_id: stream.journal_id.clone(),
            received: stream.received_entries,
            delivered: stream.delivered_entries,
            filtered: stream.filtered_entries,
            dropped: stream.dropped_entries.clone().into_iter().collect(),
            dead_lettered: stream.dead_lettered_entries,
            buffered: stream.received_entries.saturating_sub(settled),
            buffered_bytes: stream.buffered_bytes,
        }
    }

    /// Returns each fate that an entry can have, and how many had it; together they are those
    /// received.
    pub fn fates(&self) -> [(&'static str, u64); 5] {
        [
            ("delivered", self.delivered),
            ("filtered", self.filtered),
            ("dropped", sum(self.dropped.values())),
            ("dead_lettered", self.dead_lettered),
            ("buffered", self.buffered),
        ]
    }
}

/// Adds up what a host reports: it may report anything.
fn sum<'n>(counts: impl IntoIterator<Item = &'n u64>) -> u64 {
    let counts = counts.into_iter();
    counts.fold(0, |sum, count| sum.saturating_add(*count))
}

/// Returns the lines as a table for people.
pub fn table(lines: &[Line]) -> String {
    let mut rows = vec![
        [
            "HOST",
            "CONTAINER",
            "RECEIVED",
            "DELIVERED",
            "FILTERED",
            "DROPPED",
            "DEAD",
            "BUFFERED",
        ]
        .map(str::to_owned),
    ];
    for line in lines {
        rows.push([
            line.host.clone(),
            line.container_name.trim_start_matches('/').to_owned(),
            line.received.to_string(),
            line.delivered.to_string(),
            line.filtered.to_string(),
            dropped(&line.dropped),
            line.dead_lettered.to_string(),
            line.buffered.to_string(),
        ]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..8).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn dropped(reasons: &BTreeMap<String, u64>) -> String {
    let total = sum(reasons.values());
    let named: Vec<String> = reasons
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(reason, count)| format!("{reason} {count}"))
        .collect();
    if named.is_empty() {
        total.to_string()
    } else {
        format!("{total} ({})", named.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(host: &str, received_entries: u64) -> HostReport {
        report_of(host, host, received_entries)
    }

    fn report_of(host: &str, journal_id: &str, received_entries: u64) -> HostReport {
        let stream = StreamReport {
            journal_id: journal_id.into(),
            container_id: "c".into(),
            container_name: "/web".into(),
            received_entries,
            delivered_entries: 5,
            filtered_entries: 1,
            dead_lettered_entries: 1,
            dropped_entries: [("journal_full".into(), 2), ("malformed".into(), 0)].into(),
            buffered_bytes: 300,
        };
        HostReport {
            host: host.into(),
            version: "0".into(),
            streams: vec![stream],
        }
    }

    fn received(ledger: &Ledger) -> Vec<(String, u64)> {
        let lines = ledger.lines().into_iter();
        let mut received: Vec<_> = lines.map(|line| (line.journal_id, line.received)).collect();
        received.sort();
        received
    }

    #[test]
    fn a_stream_that_is_over_stays_with_what_was_last_said() {
        let ledger = Ledger::default();
        ledger.put(report_of("a", "j1", 5));
        ledger.put(report_of("a", "j2", 6));
        ledger.put(report_of("b", "j3", 7));
        let all = [("j1", 5), ("j2", 6), ("j3", 7)].map(|(id, count)| (id.to_owned(), count));
        assert_eq!(received(&ledger), all);
        // Reported again, it is there once.
        ledger.put(report_of("a", "j1", 9));
        let all = [("j1", 9), ("j2", 6), ("j3", 7)].map(|(id, count)| (id.to_owned(), count));
        assert_eq!(received(&ledger), all);
    }

    #[test]
    fn the_oldest_streams_that_are_over_are_forgotten() {
        let ledger = Ledger::default();
        for number in 0..=OVER_MAX + 1 {
            ledger.put(report_of("a", &format!("{number:05}"), 1));
        }
        let received = received(&ledger);
        assert_eq!(received.len(), OVER_MAX + 1);
        assert_eq!(received[0].0, "00001");
    }

    #[test]
    fn what_is_not_settled_is_buffered_and_a_new_report_replaces_the_old() {
        let ledger = Ledger::default();
        ledger.put(report("b", 9));
        ledger.put(report("a", 9));
        ledger.put(report("a", 12));
        let lines = ledger.lines();
        assert_eq!(lines.len(), 2);
        assert_eq!((lines[0].host.as_str(), lines[0].buffered), ("a", 3));
        assert_eq!(lines[1].buffered, 0);
        for line in &lines {
            let sum: u64 = line.fates().iter().map(|(_, entries)| entries).sum();
            assert_eq!(sum, line.received);
        }
        insta::assert_snapshot!(table(&lines), @r"
        HOST  CONTAINER  RECEIVED  DELIVERED  FILTERED  DROPPED             DEAD  BUFFERED
        a     web        12        5          1         2 (journal_full 2)  1     3
        b     web        9         5          1         2 (journal_full 2)  1     0
        ");
    }
}
