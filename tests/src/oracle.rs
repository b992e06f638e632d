//! The oracle: what must have arrived, against what did.
//!
//! What must have arrived is given by scripts, see [`crate::script`]. A record names its script and
//! the number of its line; the rest is checked byte for byte.
//!
//! Order is what `contextFlow` says, not arrival: within one contextID, records in the order of
//! (LogGroupID, place in the group) must have rising numbers. A retry of a whole group is a
//! duplicate, not disorder.

use crate::script::Script;
use crate::standin::{Record, Upload, parse_flow};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;

/// A hole in a stream, as its record says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announced {
    /// Entries that are missing; 0 if unknown.
    pub entries: u64,
    /// Why.
    pub reason: String,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    /// Lines that all scripts have.
    pub expected: u64,
    /// Records that arrived.
    pub received: u64,
    /// Lines that never arrived.
    pub lost: u64,
    /// Records beyond the first of their line.
    pub duplicated: u64,
    /// Records behind one of a higher number, in the same context.
    pub out_of_order: u64,
    /// Records that no script has.
    pub spurious: u64,
    /// Records whose time is not Docker's, to the millisecond.
    pub wrong_time: u64,
    /// Records whose payload or output is not the line's.
    pub wrong_payload: u64,
    /// Records without a usable `contextFlow`.
    pub without_context: u64,
    /// The most contextIDs that one script's records have.
    pub contexts_max: usize,
    /// Per script: how often each line came, up to 255.
    pub counts: BTreeMap<String, Vec<u8>>,
    /// Per script: the holes that its stream announced, as often as they came.
    pub holes: BTreeMap<String, Vec<Announced>>,
    /// One sentence per fault, for the first of each kind.
    pub examples: Vec<String>,
}

impl Report {
    /// Returns whether every line arrived once, in order, unchanged.
    pub fn is_exact(&self) -> bool {
        self.is_at_least_once() && self.duplicated == 0 && self.contexts_max <= 1
    }

    /// Returns whether every line arrived, unchanged, in order within each context.
    pub fn is_at_least_once(&self) -> bool {
        [
            self.lost,
            self.out_of_order,
            self.spurious,
            self.wrong_time,
            self.wrong_payload,
            self.without_context,
        ]
        .iter()
        .all(|&count| count == 0)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} lines, {} records: {} lost, {} duplicated, {} out of order, {} spurious, {} with a \
             wrong time, {} with a wrong payload, {} without context, at most {} contexts per script",
            self.expected,
            self.received,
            self.lost,
            self.duplicated,
            self.out_of_order,
            self.spurious,
            self.wrong_time,
            self.wrong_payload,
            self.without_context,
            self.contexts_max,
        )?;
        for example in &self.examples {
            writeln!(f, "  {example:.1000}")?;
        }
        Ok(())
    }
}

/// Compares what scripts have with what arrived.
pub fn examine(scripts: &[Script], uploads: &[Arc<Upload>]) -> Report {
    let mut examination = Examination::new(scripts);
    for upload in uploads {
        let mut place = 0_u64;
        upload.visit(|record| {
            place += 1;
            examination.note(record, place);
        });
    }
    examination.finish()
}

/// Where a record stands in its context.
type Place = (u64, u64);

/// An examination under way.
struct Examination<'s> {
    scripts: HashMap<&'s str, &'s Script>,
    /// Per script and context: place and number of every record, as they came.
    placed: BTreeMap<(&'s str, String), Vec<(Place, u64)>>,
    /// Per script: how often each line came.
    counts: BTreeMap<&'s str, Vec<u8>>,
    /// Holes, with context and time of their record.
    holes: Vec<(String, i64, Announced)>,
    report: Report,
    /// Kinds of faults of which there is an example.
    shown: BTreeSet<&'static str>,
    line: Vec<u8>,
}

impl<'s> Examination<'s> {
    fn new(scripts: &'s [Script]) -> Self {
        let count_of = |script: &Script| usize::try_from(script.line_count).unwrap_or(usize::MAX);
        Self {
            scripts: scripts
                .iter()
                .map(|script| (script.name.as_str(), script))
                .collect(),
            placed: BTreeMap::new(),
            counts: scripts
                .iter()
                .map(|script| (script.name.as_str(), vec![0; count_of(script)]))
                .collect(),
            holes: Vec::new(),
            report: Report {
                expected: scripts.iter().map(|script| script.line_count).sum(),
                ..Report::default()
            },
            shown: BTreeSet::new(),
            line: Vec::new(),
        }
    }

    fn note(&mut self, record: &Record<'_>, place: u64) {
        if let Some(entries) = record.field("__dropped_entries__") {
            self.note_hole(record, entries);
            return;
        }
        self.report.received += 1;
        let content = record.field("content").unwrap_or_default();
        let Some((script, number)) = self.line_of(content, record.log.time) else {
            self.report.spurious += 1;
            self.show("spurious", || format!("{content:?} is of no script"));
            return;
        };
        if let Some(count) = usize::try_from(number)
            .ok()
            .and_then(|index| self.counts.get_mut(script.name.as_str())?.get_mut(index))
        {
            *count = count.saturating_add(1);
        }
        self.check(record, script, number, content);
        let Some((context_id, id)) = record.group.context_flow.and_then(parse_flow) else {
            self.report.without_context += 1;
            let flow = record.group.context_flow;
            self.show("context", || {
                format!("{} line {number} has contextFlow {flow:?}", script.name)
            });
            return;
        };
        let key = (script.name.as_str(), context_id.to_owned());
        self.placed
            .entry(key)
            .or_default()
            .push(((id, place), number));
    }

    fn note_hole(&mut self, record: &Record<'_>, entries: &str) {
        let context = record.group.context_flow.and_then(parse_flow);
        let announced = Announced {
            entries: entries.parse().unwrap_or(0),
            reason: record
                .field("__dropped_reason__")
                .unwrap_or_default()
                .into(),
        };
        let context_id = context.map_or("", |(context_id, _)| context_id);
        self.holes
            .push((context_id.to_owned(), record.log.time, announced));
    }

    /// Returns the script and number that a record names, if there is such a line. An empty line
    /// is known by its time.
    fn line_of(&self, content: &str, time_ms: i64) -> Option<(&'s Script, u64)> {
        if content.is_empty() {
            return self.scripts.values().find_map(|script| {
                let number = script.number_at(time_ms)?;
                (script.line_bytes(number) == 0).then_some((*script, number))
            });
        }
        let (name, number) = Script::parse(content)?;
        let script = *self.scripts.get(name)?;
        (number < script.line_count).then_some((script, number))
    }

    fn check(&mut self, record: &Record<'_>, script: &Script, number: u64, content: &str) {
        let time_ms = script.time_nano(number) / 1_000_000;
        if script.has_given_times && record.log.time != time_ms {
            self.report.wrong_time += 1;
            let (name, got) = (&script.name, record.log.time);
            self.show("time", || {
                format!("{name} line {number}: time {got}, Docker's is {time_ms}")
            });
        }
        let mut line = std::mem::take(&mut self.line);
        script.line(number, &mut line);
        let source = script.source(number).as_str();
        let stream = record.field("__stream__").unwrap_or_default();
        if content.as_bytes() != line || stream != source {
            self.report.wrong_payload += 1;
            let expected = String::from_utf8_lossy(&line);
            self.show("payload", || {
                format!("expected {source} {expected:?}\n       got {stream} {content:?}")
            });
        }
        self.line = line;
    }

    fn show(&mut self, kind: &'static str, example: impl FnOnce() -> String) {
        if self.shown.insert(kind) {
            self.report.examples.push(example());
        }
    }

    /// Returns the script whose lines stand in a hole's context. A context that has nothing but
    /// holes tells by the time of the first line that is missing.
    fn name_of_hole(&self, context_id: &str, time_ms: i64) -> &'s str {
        let mut keys = self.placed.keys();
        if let Some((name, _)) = keys.find(|(_, other)| other == context_id) {
            return name;
        }
        let mut scripts = self.scripts.values();
        let script = scripts.find(|script| script.number_at(time_ms).is_some());
        script.map_or("", |script| &script.name)
    }

    fn finish(mut self) -> Report {
        for (name, counts) in std::mem::take(&mut self.counts) {
            self.report.counts.insert(name.to_owned(), counts.clone());
            let lost = counts.iter().filter(|&&count| count == 0).count() as u64;
            if lost > 0 {
                let ranges = lost_ranges(&counts);
                self.show("lost", || format!("{name} lost {lost} lines: {ranges}"));
            }
            self.report.lost += lost;
            let again = |&count: &u8| u64::from(count.saturating_sub(1));
            self.report.duplicated += counts.iter().map(again).sum::<u64>();
        }
        for (context_id, time_ms, hole) in std::mem::take(&mut self.holes) {
            let name = self.name_of_hole(&context_id, time_ms).to_owned();
            self.report.holes.entry(name).or_default().push(hole);
        }
        let mut contexts: BTreeMap<&str, usize> = BTreeMap::new();
        for ((name, context_id), mut placed) in std::mem::take(&mut self.placed) {
            *contexts.entry(name).or_default() += 1;
            placed.sort_unstable();
            // A group that came twice stands in the same place twice.
            placed.dedup();
            for pair in placed.windows(2) {
                let [(_, before), (place, number)] = pair else {
                    continue;
                };
                if before >= number {
                    self.report.out_of_order += 1;
                    self.show("order", || {
                        format!(
                            "{name} line {number} stands behind line {before}, in context \
                             {context_id} group {:X}",
                            place.0
                        )
                    });
                }
            }
        }
        self.report.contexts_max = contexts.values().copied().max().unwrap_or(0);
        self.report
    }
}

/// Lists the first ranges of lines that never came.
fn lost_ranges(counts: &[u8]) -> String {
    const RANGES_MAX: usize = 8;
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for number in (0..counts.len()).filter(|&number| counts[number] == 0) {
        let is_full = ranges.len() == RANGES_MAX;
        match ranges.last_mut() {
            Some((_, end)) if *end + 1 == number => *end = number,
            _ if is_full => break,
            _ => ranges.push((number, number)),
        }
    }
    let texts = ranges.iter().map(|(first, last)| format!("{first}-{last}"));
    let more = if ranges.len() == RANGES_MAX {
        " …"
    } else {
        ""
    };
    texts.collect::<Vec<_>>().join(", ") + more
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proto::frame::Source;

    fn pair(key: &str, value: &str) -> Vec<u8> {
        field(
            &[field(key.as_bytes(), 1), field(value.as_bytes(), 2)].concat(),
            2,
        )
    }

    fn field(bytes: &[u8], number: u8) -> Vec<u8> {
        let mut message = vec![number << 3 | 2];
        let mut length = bytes.len();
        while length > 0x7f {
            message.push(u8::try_from(length & 0x7f | 0x80).unwrap());
            length >>= 7;
        }
        message.push(u8::try_from(length).unwrap());
        [&message, bytes].concat()
    }

    fn log(time_ms: i64, stream: &str, content: &str) -> Vec<u8> {
        let mut log = vec![0x08];
        prost::encoding::encode_varint(time_ms.cast_unsigned(), &mut log);
        log.extend(pair("content", content));
        log.extend(pair("__stream__", stream));
        field(&log, 1)
    }

    fn content(script: &Script, number: u64) -> String {
        let mut line = Vec::new();
        script.line(number, &mut line);
        String::from_utf8(line).unwrap()
    }

    fn line_log(script: &Script, number: u64) -> Vec<u8> {
        let time_ms = script.time_nano(number) / 1_000_000;
        let content = content(script, number);
        log(time_ms, script.source(number).as_str(), &content)
    }

    fn upload(flow: &str, logs: &[Vec<u8>]) -> Arc<Upload> {
        let group = [logs.concat(), field(flow.as_bytes(), 2)].concat();
        Arc::new(Upload {
            request_id: String::new(),
            topic_id: "t".into(),
            first_record: 0,
            record_count: logs.len(),
            secret_id: None,
            peer_source: None,
            accepted_at: std::time::Duration::ZERO,
            body: Bytes::from(field(&group, 1)),
        })
    }

    fn script() -> Script {
        Script::new("s1", 4, 60)
    }

    fn good() -> Vec<Arc<Upload>> {
        let script = script();
        let logs: Vec<_> = (0..4).map(|number| line_log(&script, number)).collect();
        // Groups may arrive in any order.
        vec![upload("A-2", &logs[2..]), upload("A-1", &logs[..2])]
    }

    #[test]
    fn all_once_in_order_is_exact() {
        let report = examine(&[script()], &good());
        assert!(report.is_exact(), "{report}");
        assert_eq!((report.expected, report.received), (4, 4));
    }

    #[test]
    fn a_lost_line_is_named() {
        let report = examine(&[script()], &good()[..1]);
        assert_eq!(report.lost, 2);
        assert!(!report.is_at_least_once());
        assert!(
            report.to_string().contains("s1 lost 2 lines: 0-1"),
            "{report}"
        );
    }

    #[test]
    fn a_retried_group_is_duplicated_and_not_out_of_order() {
        let mut uploads = good();
        uploads.push(uploads[1].clone());
        let report = examine(&[script()], &uploads);
        assert_eq!((report.duplicated, report.out_of_order), (2, 0));
        assert!(report.is_at_least_once() && !report.is_exact());
    }

    #[test]
    fn times_that_nobody_gave_are_not_compared() {
        let script = Script::of_engine("s1", 1, 60, Source::Stdout);
        let logs = [log(1, "stdout", &content(&script, 0))];
        let report = examine(&[script], &[upload("A-1", &logs)]);
        assert!(report.is_exact(), "{report}");
    }

    #[test]
    fn disorder_shows_within_a_context_only() {
        let script = script();
        let swapped = upload("A-1", &[1, 0, 2, 3].map(|number| line_log(&script, number)));
        let report = examine(std::slice::from_ref(&script), &[swapped]);
        assert_eq!(report.out_of_order, 1);
        assert!(
            report.to_string().contains("line 0 stands behind line 1"),
            "{report}"
        );
        let halves = [
            upload("B-1", &[2, 3].map(|number| line_log(&script, number))),
            upload("A-1", &[0, 1].map(|number| line_log(&script, number))),
        ];
        let report = examine(&[script], &halves);
        assert!(report.is_at_least_once() && report.contexts_max == 2 && !report.is_exact());
    }

    #[test]
    fn a_hole_is_told_by_its_context_or_its_time() {
        let script = script();
        let hole = |time_ms, entries: &str| {
            let mut log = vec![0x08];
            prost::encoding::encode_varint(i64::cast_unsigned(time_ms), &mut log);
            log.extend(pair("__dropped_entries__", entries));
            log.extend(pair("__dropped_reason__", "journal_full"));
            field(&log, 1)
        };
        let time_ms = script.time_nano(0) / 1_000_000;
        let uploads = [
            upload("A-1", &[line_log(&script, 0), hole(1, "2")]),
            upload("B-1", &[hole(time_ms, "3")]),
            upload("C-1", &[hole(1, "4")]),
        ];
        let report = examine(&[script], &uploads);
        assert_eq!((report.received, report.spurious, report.lost), (1, 0, 3));
        let entries = |name: &str| {
            let holes = report.holes[name].iter();
            holes.map(|hole| hole.entries).collect::<Vec<_>>()
        };
        assert_eq!((entries("s1"), entries("")), (vec![2, 3], vec![4]));
        assert_eq!(report.holes["s1"][0].reason, "journal_full");
    }

    #[test]
    fn wrong_records_are_told_apart() {
        let script = script();
        let mut line = Vec::new();
        script.line(1, &mut line);
        let line = std::str::from_utf8(&line).unwrap();
        let time_ms = script.time_nano(1) / 1_000_000;
        let logs = [
            log(time_ms + 1, "stdout", line),
            log(time_ms, "stderr", line),
            log(time_ms, "stdout", line.get(..59).unwrap()),
            log(time_ms, "stdout", "something else"),
            log(time_ms, "stdout", "s1 0000000004 number too high"),
        ];
        let report = examine(&[script], &[upload("not a flow", &logs)]);
        assert_eq!(
            (
                report.wrong_time,
                report.wrong_payload,
                report.spurious,
                report.without_context
            ),
            (1, 2, 2, 3)
        );
        assert_eq!(
            report.examples.len(),
            5,
            "one per kind, and the lost lines: {report}"
        );
    }
}
