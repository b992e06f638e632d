//! The ledger: what became of every entry, per stream, as the drivers count it.
//!
//! `received = delivered + filtered + dropped + dead-lettered + buffered`. The driver is the one
//! that counts, because its counters live beside the acknowledged offset on disk and so survive
//! both processes; here stands each host's last report. What a stream received and has not settled
//! is buffered.
//!
//! A stream's end brings its last counters, and they are complete with its last acknowledgement
//! ([`Ledger::finish`]): reports that were on their way then change nothing. A stream that a host reports
//! no more, and that did not end here, stays with what was last said of it. Either goes when newer ones
//! push it out.
//!
//! A host may report anything, under as many names as its tenant has. So all that is kept has a
//! bound, and each tenant one of its own: whoever reaches it keeps nobody else out. What finds no
//! place is not shown, which is counted and logged; the streams themselves are not affected. A tenant
//! that makes the most of its bounds takes about 200 MiB here.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use proto::limits::STREAMS_PER_CALL_MAX;
use proto::relay::{HostReport, StreamReport};
use proto::text;
use serde::{Deserialize, Serialize};

/// Hosts of a tenant whose reports are kept.
const TENANT_HOSTS_MAX: usize = 10_000;

/// Streams of a tenant's hosts that are kept.
const TENANT_STREAMS_MAX: usize = 100_000;

/// Streams of one report that are kept: as many as a call has, and some that wait for their turn.
const REPORT_STREAMS_MAX: usize = STREAMS_PER_CALL_MAX + 1_024;

/// Streams of a tenant that are kept although no host reports them any more.
const OVER_MAX: usize = 10_000;

/// Streams of a tenant whose options have a fault that is shown.
const NOTES_MAX: usize = 1_000;

/// Bytes of a name or id that are kept: an id has 64, and Docker's own names are shorter still.
const NAME_BYTES_MAX: usize = 256;

/// Reasons of a stream's drops that are kept, twice what a driver has.
const REASONS_MAX: usize = 8;

/// Bytes of a reason. A longer one, one that is no text, and one too many, counts as [`OTHER_REASON`].
const REASON_BYTES_MAX: usize = 32;

/// What is said of drops whose reasons are not kept.
const OTHER_REASON: &str = "other";

/// The last word of each host on each of its streams.
#[derive(Debug, Default)]
pub struct Ledger {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// What each host has last reported.
    hosts: BTreeMap<String, Reported>,
    /// What each tenant has here, by its name.
    tenants: HashMap<String, Share>,
}

#[derive(Debug)]
struct Reported {
    tenant: String,
    streams: Vec<StreamReport>,
}

/// What a tenant has in the ledger.
#[derive(Debug, Default)]
struct Share {
    host_count: usize,
    /// Streams of its hosts.
    stream_count: usize,
    over: Over,
    /// What is wrong with the options of streams, by journal id.
    notes: HashMap<String, String>,
}

/// One line of the ledger: a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// What is wrong with the container's options, if anything: why its entries wait, or which options
    /// are left out.
    #[serde(default)]
    pub note: String,
}

impl Ledger {
    /// Takes a host's report in place of its last one; what that one had and this one has not is
    /// over. Returns how many of its streams found no place.
    pub fn put(&self, tenant: &str, report: HostReport) -> usize {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let HostReport {
            host, mut streams, ..
        } = report;
        let last = inner.take(&host);
        let share = inner.tenants.entry(tenant.to_owned()).or_default();
        streams.retain(|stream| !share.over.is_complete(&stream.journal_id));
        let is_reported: HashSet<&str> = ids(&streams).collect();
        for stream in last.into_iter().flatten() {
            if !is_reported.contains(stream.journal_id.as_str()) {
                share.over.push(&host, stream, false);
            }
        }
        for id in is_reported {
            share.over.remove(id);
        }
        if share.host_count >= TENANT_HOSTS_MAX {
            return streams.len();
        }
        let stream_count = streams.len();
        let room = TENANT_STREAMS_MAX - share.stream_count;
        let kept = streams.into_iter().take(room.min(REPORT_STREAMS_MAX));
        let streams: Vec<StreamReport> = kept.map(bounded).collect();
        let homeless_count = stream_count - streams.len();
        share.host_count += 1;
        share.stream_count += streams.len();
        let tenant = tenant.to_owned();
        inner.hosts.insert(host, Reported { tenant, streams });
        homeless_count
    }

    /// Takes the last counters of a stream of which everything is acknowledged. What its host still
    /// reports of it is older.
    pub fn finish(&self, tenant: &str, host: &str, stream: StreamReport) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let stream = bounded(stream);
        let reported = inner.hosts.get_mut(host);
        let reported = reported.filter(|reported| reported.tenant == tenant);
        let mut gone_count = 0;
        if let Some(Reported { streams, .. }) = reported {
            gone_count = streams.len();
            streams.retain(|other| other.journal_id != stream.journal_id);
            gone_count -= streams.len();
        }
        let share = inner.tenants.entry(tenant.to_owned()).or_default();
        share.stream_count -= gone_count;
        share.over.push(host, stream, true);
    }

    /// Notes what is wrong with a stream's options; an empty text says that nothing is.
    pub fn note(&self, tenant: &str, journal_id: &str, note: String) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let share = inner.tenants.entry(tenant.to_owned()).or_default();
        if note.is_empty() {
            share.notes.remove(journal_id);
        } else if share.notes.len() < NOTES_MAX || share.notes.contains_key(journal_id) {
            share.notes.insert(journal_id.to_owned(), note);
        }
    }

    /// Learns that a stream is open: if it was over, its last acknowledgement has not reached its driver,
    /// whose reports count again.
    pub fn reopen(&self, tenant: &str, journal_id: &str) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = inner.tenants.get_mut(tenant) {
            share.over.reopen(journal_id);
        }
    }

    /// Returns what became of the entries of each host, also of streams that are no longer shown.
    pub fn sums(&self) -> BTreeMap<String, Sums> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sums: BTreeMap<String, Sums> = BTreeMap::new();
        for (host, reported) in &inner.hosts {
            let of_host = sums.entry(host.clone()).or_default();
            reported
                .streams
                .iter()
                .for_each(|stream| of_host.add(stream));
        }
        for share in inner.tenants.values() {
            for over in share.over.streams.values() {
                sums.entry(over.host.clone()).or_default().add(&over.report);
            }
            for (host, forgotten) in &share.over.forgotten {
                sums.entry(host.clone()).or_default().extend(Sums {
                    buffered: 0,
                    ..*forgotten
                });
            }
        }
        sums
    }

    /// Returns one line per stream, by host and container name.
    pub fn lines(&self) -> Vec<Line> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let reported = inner.hosts.iter().flat_map(|(host, reported)| {
            let share = inner.tenants.get(&reported.tenant);
            let streams = reported.streams.iter();
            streams.map(move |stream| Line::new(host, stream).noted(share))
        });
        let over = inner.tenants.values().flat_map(|share| {
            let lines = share.over.lines();
            lines.map(move |line| line.noted(Some(share)))
        });
        let mut lines: Vec<Line> = reported.chain(over).collect();
        lines.sort_by(|a, b| (&a.host, &a.container_name).cmp(&(&b.host, &b.container_name)));
        lines
    }
}

impl Inner {
    /// Takes out what a host has last reported, whosever it was then.
    fn take(&mut self, host: &str) -> Option<Vec<StreamReport>> {
        let Reported { tenant, streams } = self.hosts.remove(host)?;
        if let Some(share) = self.tenants.get_mut(&tenant) {
            share.host_count -= 1;
            share.stream_count -= streams.len();
        }
        Some(streams)
    }
}

/// Returns what of a stream's report is kept.
fn bounded(mut stream: StreamReport) -> StreamReport {
    let names = [
        &mut stream.journal_id,
        &mut stream.container_id,
        &mut stream.container_name,
    ];
    for name in names {
        name.truncate(name.floor_char_boundary(NAME_BYTES_MAX));
        *name = text::clean(name).into_owned();
    }
    let reasons = &stream.dropped_entries;
    if reasons.len() > REASONS_MAX || !reasons.keys().all(|reason| is_good(reason)) {
        stream.dropped_entries = few_reasons(std::mem::take(&mut stream.dropped_entries));
    }
    stream
}

/// Returns whether a reason can be one of a driver's: a word.
fn is_good(reason: &str) -> bool {
    reason.len() <= REASON_BYTES_MAX && !reason.contains(text::is_obeyed)
}

/// Adds up reasons that are no words or too many, so that the sum stays what it was.
fn few_reasons(reasons: HashMap<String, u64>) -> HashMap<String, u64> {
    let mut few = HashMap::new();
    let mut other = 0_u64;
    for (reason, count) in reasons {
        if !is_good(&reason) || few.len() + 1 >= REASONS_MAX {
            other = other.saturating_add(count);
        } else {
            few.insert(reason, count);
        }
    }
    let named = few.entry(OTHER_REASON.to_owned()).or_insert(0);
    *named = named.saturating_add(other);
    few
}

fn ids(streams: &[StreamReport]) -> impl Iterator<Item = &str> {
    streams.iter().map(|stream| stream.journal_id.as_str())
}

/// Streams that are over.
#[derive(Debug, Default)]
struct Over {
    /// By journal id.
    streams: HashMap<String, OverStream>,
    /// Journal ids by that number.
    by_age: BTreeMap<u64, String>,
    next: u64,
    /// What became of the entries of streams that newer ones have pushed out, by host.
    forgotten: HashMap<String, Sums>,
}

/// What became of a host's entries, over all its streams. All but the last only ever grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sums {
    /// Entries that CLS has accepted.
    pub delivered: u64,
    /// Entries that a filter took out.
    pub filtered: u64,
    /// Entries dropped.
    pub dropped: u64,
    /// Entries in the dead-letter store.
    pub dead_lettered: u64,
    /// Entries that wait, at this moment.
    pub buffered: u64,
}

impl Sums {
    fn add(&mut self, stream: &StreamReport) {
        let dropped = sum(stream.dropped_entries.values());
        self.extend(Self {
            delivered: stream.delivered_entries,
            filtered: stream.filtered_entries,
            dropped,
            dead_lettered: stream.dead_lettered_entries,
            buffered: buffered(stream),
        });
    }

    fn extend(&mut self, more: Self) {
        for (sum, more) in [
            (&mut self.delivered, more.delivered),
            (&mut self.filtered, more.filtered),
            (&mut self.dropped, more.dropped),
            (&mut self.dead_lettered, more.dead_lettered),
            (&mut self.buffered, more.buffered),
        ] {
            *sum = sum.saturating_add(more);
        }
    }
}

#[derive(Debug)]
struct OverStream {
    host: String,
    /// What was last said.
    report: StreamReport,
    /// Rises with time.
    age: u64,
    /// These are its last counters: no report is newer.
    is_complete: bool,
}

impl Over {
    fn push(&mut self, host: &str, report: StreamReport, is_complete: bool) {
        let id = report.journal_id.clone();
        self.remove(&id);
        if self.streams.len() >= OVER_MAX
            && let Some((_, oldest)) = self.by_age.pop_first()
            && let Some(over) = self.streams.remove(&oldest)
        {
            self.forget(&over);
        }
        self.by_age.insert(self.next, id.clone());
        let stream = OverStream {
            host: host.to_owned(),
            report,
            age: self.next,
            is_complete,
        };
        self.streams.insert(id, stream);
        self.next += 1;
    }

    /// Keeps what a stream adds to its host's sums, and nothing else of it.
    fn forget(&mut self, over: &OverStream) {
        let has_room = self.forgotten.len() < TENANT_HOSTS_MAX;
        if has_room || self.forgotten.contains_key(&over.host) {
            let sums = self.forgotten.entry(over.host.clone()).or_default();
            sums.add(&over.report);
        }
    }

    fn is_complete(&self, id: &str) -> bool {
        self.streams.get(id).is_some_and(|over| over.is_complete)
    }

    fn reopen(&mut self, id: &str) {
        if let Some(over) = self.streams.get_mut(id) {
            over.is_complete = false;
        }
    }

    fn remove(&mut self, id: &str) {
        if let Some(over) = self.streams.remove(id) {
            self.by_age.remove(&over.age);
        }
    }

    fn lines(&self) -> impl Iterator<Item = Line> {
        let streams = self.streams.values();
        streams.map(|over| Line::new(&over.host, &over.report))
    }
}

impl Line {
    fn new(host: &str, stream: &StreamReport) -> Self {
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
            buffered: buffered(stream),
            buffered_bytes: stream.buffered_bytes,
            note: String::new(),
        }
    }

    fn noted(mut self, share: Option<&Share>) -> Self {
        if let Some(note) = share.and_then(|share| share.notes.get(&self.journal_id)) {
            self.note.clone_from(note);
        }
        self
    }
}

/// Returns how many entries of a stream wait.
fn buffered(stream: &StreamReport) -> u64 {
    let settled = [
        stream.delivered_entries,
        stream.filtered_entries,
        stream.dead_lettered_entries,
        sum(stream.dropped_entries.values()),
    ];
    stream.received_entries.saturating_sub(sum(&settled))
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
            text::clean(&line.host).into_owned(),
            text::clean(line.container_name.trim_start_matches('/')).into_owned(),
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
    for line in lines.iter().filter(|line| !line.note.is_empty()) {
        let container = line.container_name.trim_start_matches('/');
        text.push_str(&format!("\n{} {container}: {}\n", line.host, line.note));
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

    /// A host may report rows of its own making, and what a terminal obeys.
    #[test]
    fn the_table_has_a_row_for_each_stream_whatever_its_names_are() {
        let ledger = Ledger::default();
        let mut report = report_of("a", "j1", 5);
        let stream = &mut report.streams[0];
        stream.container_name = "/x\nvictim  db  999\u{1b}[2K\u{9b}\u{202e}".into();
        stream.dropped_entries = [("\u{1b}[1A\n".into(), 2)].into();
        ledger.put("t", report);
        let lines = ledger.lines();
        assert_eq!(lines[0].dropped, [("other".to_owned(), 2)].into());
        let table = table(&lines);
        assert_eq!(table.lines().count(), 2, "{table:?}");
        assert!(
            !table.contains(|char| text::is_obeyed(char) && char != '\n'),
            "{table:?}"
        );
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
        ledger.put("t", report_of("a", "j1", 5));
        ledger.put("t", report_of("a", "j2", 6));
        ledger.put("t", report_of("b", "j3", 7));
        let all = [("j1", 5), ("j2", 6), ("j3", 7)].map(|(id, count)| (id.to_owned(), count));
        assert_eq!(received(&ledger), all);
        // Reported again, it is there once.
        ledger.put("t", report_of("a", "j1", 9));
        let all = [("j1", 9), ("j2", 6), ("j3", 7)].map(|(id, count)| (id.to_owned(), count));
        assert_eq!(received(&ledger), all);
    }

    /// Reports travel apart: one that left before the stream's last acknowledgement may come behind it.
    #[test]
    fn a_stream_that_has_ended_is_complete_whatever_report_comes_late() {
        let ledger = Ledger::default();
        ledger.put("t", report_of("a", "j1", 5));
        let last = report_of("a", "j1", 9).streams.remove(0);
        ledger.finish("t", "a", last.clone());
        let ended = [("j1".to_owned(), 9)];
        assert_eq!(received(&ledger), ended);
        ledger.put("t", report_of("a", "j1", 5));
        assert_eq!(received(&ledger), ended);
        ledger.put("t", many("a", 0, 0));
        assert_eq!(received(&ledger), ended);
        // Opened again: the driver has not learned of its end.
        ledger.reopen("t", "j1");
        ledger.put("t", report_of("a", "j1", 7));
        assert_eq!(received(&ledger), [("j1".to_owned(), 7)]);
        ledger.finish("t", "a", last);
        assert_eq!(received(&ledger), ended);
        let inner = ledger.inner.lock().unwrap();
        assert_eq!(inner.tenants["t"].stream_count, 0);
    }

    #[test]
    fn the_oldest_streams_that_are_over_are_forgotten() {
        let ledger = Ledger::default();
        for number in 0..=OVER_MAX + 1 {
            ledger.put("t", report_of("a", &format!("{number:05}"), 1));
        }
        let received = received(&ledger);
        assert_eq!(received.len(), OVER_MAX + 1);
        assert_eq!(received[0].0, "00001");
    }

    fn many(host: &str, first: usize, count: usize) -> HostReport {
        let of = |number| {
            let id = format!("{host}-{number}");
            report_of(host, &id, 5).streams.remove(0)
        };
        HostReport {
            streams: (first..first + count).map(of).collect(),
            ..report_of(host, "", 5)
        }
    }

    #[test]
    fn a_report_has_so_many_streams_and_the_rest_is_not_shown() {
        let ledger = Ledger::default();
        let all = REPORT_STREAMS_MAX + 1;
        assert_eq!(ledger.put("t", many("a", 0, all - 1)), 0);
        assert_eq!(ledger.put("t", many("a", 0, all)), 1);
        assert_eq!(ledger.lines().len(), all - 1);
        // One that found no place is not over, for all that is known.
        let last = ledger.put("t", many("a", 1, all));
        assert_eq!(last, 1);
        let ids: HashSet<String> = ledger.lines().into_iter().map(|l| l.journal_id).collect();
        assert_eq!(ids.len(), all, "and one is over");
        assert!(ids.contains("a-0"));
    }

    /// Under however many names a tenant reports, another one has its place.
    #[test]
    fn a_tenant_at_its_bounds_keeps_nobody_else_out() {
        let ledger = Ledger::default();
        let per_host = 10_000;
        for number in 0..TENANT_STREAMS_MAX / per_host {
            let host = format!("many-{number}");
            assert_eq!(ledger.put("bad", many(&host, 0, per_host)), 0);
        }
        assert_eq!(ledger.put("bad", many("more", 0, 3)), 3);
        assert_eq!(ledger.put("good", many("good", 0, 3)), 0);
        assert_eq!(ledger.lines().len(), TENANT_STREAMS_MAX + 3);
        // A host that has fewer makes room, and what it had is kept within its own bound.
        assert_eq!(ledger.put("bad", many("many-0", 0, 1)), 0);
        assert_eq!(ledger.put("bad", many("more", 0, 3)), 0);
        for number in 0..=TENANT_HOSTS_MAX {
            ledger.put("bad", many(&format!("few-{number}"), 0, 0));
        }
        assert_eq!(ledger.put("bad", many("too-many", 0, 1)), 1);
        assert_eq!(ledger.put("good", many("good", 0, 4)), 0);
        let good = ledger.lines();
        let good = good.iter().filter(|line| line.host == "good");
        assert_eq!(good.count(), 4);
    }

    #[test]
    fn streams_that_are_over_of_one_tenant_push_out_none_of_another() {
        let ledger = Ledger::default();
        ledger.put("good", many("good", 0, 1));
        ledger.put("good", many("good", 1, 1));
        for round in 0..3 {
            ledger.put("bad", many("bad", round * OVER_MAX, OVER_MAX));
        }
        // Nor by naming them.
        let mut stolen = many("bad", 0, 1);
        stolen.streams[0].journal_id = "good-0".into();
        ledger.put("bad", stolen);
        let ids: Vec<_> = received(&ledger).into_iter().map(|(id, _)| id).collect();
        assert_eq!(ids.iter().filter(|id| *id == "good-0").count(), 2);
        assert_eq!(ids.len(), 2 + OVER_MAX + 1);
    }

    #[test]
    fn a_host_is_of_the_tenant_that_has_last_reported_it() {
        let ledger = Ledger::default();
        ledger.put("a", many("h", 0, 2));
        ledger.put("b", many("h", 0, 3));
        assert_eq!(ledger.lines().len(), 3);
        let inner = ledger.inner.lock().unwrap();
        let counts = ["a", "b"].map(|tenant| {
            let share = &inner.tenants[tenant];
            (share.host_count, share.stream_count)
        });
        assert_eq!(counts, [(0, 0), (1, 3)]);
    }

    #[test]
    fn names_are_cut_and_reasons_added_up() {
        let ledger = Ledger::default();
        let mut long = report_of("a", &"j".repeat(1_000), 100);
        let stream = &mut long.streams[0];
        stream.container_name = "\u{e9}".repeat(1_000);
        let reasons = (0..20).map(|number| (format!("reason-{number}"), 1));
        stream.dropped_entries = reasons.chain([("x".repeat(33), 1)]).collect();
        ledger.put("t", long);
        let line = ledger.lines().remove(0);
        assert_eq!(line.journal_id.len(), NAME_BYTES_MAX);
        assert_eq!(line.container_name.len(), NAME_BYTES_MAX);
        assert_eq!(line.dropped.len(), REASONS_MAX);
        assert_eq!(line.dropped[OTHER_REASON], 21 - 7);
        assert_eq!(line.buffered, 100 - 7 - 21, "no drop is forgotten");
        let mut few = report_of("a", "j", 100);
        let one = "x".repeat(REASON_BYTES_MAX);
        few.streams[0].dropped_entries = [(one.clone(), 1)].into();
        ledger.put("t", few);
        let lines = ledger.lines();
        let line = lines.iter().find(|line| line.journal_id == "j").unwrap();
        assert_eq!(line.dropped, [(one, 1)].into());
    }

    #[test]
    fn what_is_not_settled_is_buffered_and_a_new_report_replaces_the_old() {
        let ledger = Ledger::default();
        ledger.put("t", report("b", 9));
        ledger.put("t", report("a", 9));
        ledger.put("t", report("a", 12));
        let lines = ledger.lines();
        assert_eq!(lines.len(), 2);
        assert_eq!((lines[0].host.as_str(), lines[0].buffered), ("a", 3));
        assert_eq!(lines[1].buffered, 0);
        for line in &lines {
            let dropped: u64 = line.dropped.values().sum();
            let sum = line.delivered + line.filtered + dropped + line.dead_lettered + line.buffered;
            assert_eq!(sum, line.received);
        }
        insta::assert_snapshot!(table(&lines), @r"
        HOST  CONTAINER  RECEIVED  DELIVERED  FILTERED  DROPPED             DEAD  BUFFERED
        a     web        12        5          1         2 (journal_full 2)  1     3
        b     web        9         5          1         2 (journal_full 2)  1     0
        ");
    }
}
