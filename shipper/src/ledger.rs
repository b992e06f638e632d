//! The ledger: what became of every entry, per stream, as the drivers count it.
//!
//! `received = delivered + filtered + dropped + dead-lettered + buffered`. The driver is the one
//! that counts, because its counters live beside the acknowledged offset on disk and so survive
//! both processes; here stands each host's last report, and of streams that are over their last
//! numbers, as long as there is room. What a stream received and has not settled is buffered.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use proto::relay::{HostReport, StreamReport};
use serde::{Deserialize, Serialize};

/// Hosts whose reports are kept. A further one is not shown; its streams are not affected.
const HOSTS_MAX: usize = 10_000;

/// Streams of one host that are over and still shown; the oldest go first.
const ENDED_MAX: usize = 1_000;

/// The last report of each host.
#[derive(Debug, Default)]
pub struct Ledger {
    hosts: Mutex<BTreeMap<String, Host>>,
}

#[derive(Debug, Default)]
struct Host {
    open: Vec<StreamReport>,
    /// By the order in which they ended.
    ended: VecDeque<StreamReport>,
}

impl Host {
    fn put(&mut self, streams: Vec<StreamReport>) {
        self.open.clear();
        for stream in streams {
            if !stream.ended {
                self.open.push(stream);
                continue;
            }
            let is_known = |known: &StreamReport| known.journal_id == stream.journal_id;
            if !self.ended.iter().any(is_known) {
                self.ended.push_back(stream);
            }
        }
        let excess = self.ended.len().saturating_sub(ENDED_MAX);
        self.ended.drain(..excess);
    }

    fn streams(&self) -> impl Iterator<Item = &StreamReport> {
        self.ended.iter().chain(&self.open)
    }
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
    /// Whether the stream is over.
    #[serde(default)]
    pub ended: bool,
}

impl Ledger {
    /// Takes a host's report in place of its last one.
    pub fn put(&self, report: HostReport) {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if hosts.len() < HOSTS_MAX || hosts.contains_key(&report.host) {
            hosts.entry(report.host).or_default().put(report.streams);
        }
    }

    /// Returns one line per stream, by host and container name.
    pub fn lines(&self) -> Vec<Line> {
        let hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let of_host = |(name, host): (&String, &Host)| -> Vec<Line> {
            let lines = host.streams().map(|stream| Line::new(name, stream));
            lines.collect()
        };
        let mut lines: Vec<Line> = hosts.iter().flat_map(of_host).collect();
        lines.sort_by(|a, b| (&a.host, &a.container_name).cmp(&(&b.host, &b.container_name)));
        lines
    }
}

impl Line {
    fn new(host: &str, stream: &StreamReport) -> Self {
        let settled = stream.delivered_entries
            + stream.filtered_entries
            + stream.dead_lettered_entries
            + stream.dropped_entries.values().sum::<u64>();
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
            ended: stream.ended,
        }
    }

    /// Returns each fate that an entry can have, and how many had it; together they are those
    /// received.
    pub fn fates(&self) -> [(&'static str, u64); 5] {
        [
            ("delivered", self.delivered),
            ("filtered", self.filtered),
            ("dropped", self.dropped.values().sum()),
            ("dead_lettered", self.dead_lettered),
            ("buffered", self.buffered),
        ]
    }
}

/// Returns the lines as a table for people.
pub fn table(lines: &[Line]) -> String {
    let mut rows = vec![
        [
            "HOST",
            "CONTAINER",
            "STATE",
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
            if line.ended { "over" } else { "open" }.to_owned(),
            line.received.to_string(),
            line.delivered.to_string(),
            line.filtered.to_string(),
            dropped(&line.dropped),
            line.dead_lettered.to_string(),
            line.buffered.to_string(),
        ]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..9).map(width).collect();
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
    let total: u64 = reasons.values().sum();
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
        let stream = StreamReport {
            journal_id: "j".into(),
            container_id: "c".into(),
            container_name: "/web".into(),
            received_entries,
            delivered_entries: 5,
            filtered_entries: 1,
            dead_lettered_entries: 1,
            dropped_entries: [("journal_full".into(), 2), ("malformed".into(), 0)].into(),
            buffered_bytes: 300,
            ended: false,
        };
        HostReport {
            host: host.into(),
            version: "0".into(),
            streams: vec![stream],
        }
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
        insta::assert_snapshot!(table(&lines), @r"
        HOST  CONTAINER  STATE  RECEIVED  DELIVERED  FILTERED  DROPPED             DEAD  BUFFERED
        a     web        open   12        5          1         2 (journal_full 2)  1     3
        b     web        open   9         5          1         2 (journal_full 2)  1     0
        ");
        for line in lines {
            let sum: u64 = line.fates().iter().map(|(_, entries)| entries).sum();
            assert_eq!(sum, line.received);
        }
    }

    #[test]
    fn what_is_over_stays_until_there_is_no_room() {
        let ledger = Ledger::default();
        let over = |journal: usize| {
            let mut report = report("a", 9);
            report.streams[0].journal_id = journal.to_string();
            report.streams[0].ended = true;
            report
        };
        // Last numbers are repeated.
        for journal in 0..=ENDED_MAX {
            ledger.put(over(journal));
            ledger.put(over(journal));
        }
        ledger.put(report("a", 12));
        let lines = ledger.lines();
        assert_eq!(lines.len(), ENDED_MAX + 1);
        assert!(!lines.iter().any(|line| line.journal_id == "0"));
        assert_eq!(lines.iter().filter(|line| !line.ended).count(), 1);
    }
}
