//! From log entries to CLS records, for one stream.
//!
//! ```text
//! entry ─▶ join pieces ─▶ group lines ─▶ filter ─▶ mask ─▶ template ─▶ fields ─▶ Records
//!          (per source)   (per source)   ├ filtered, counted
//! ```
//!
//! A record is a `Log` of CLS, written as protobuf straight into a buffer that is used again: a
//! plain line costs no allocation, no `String` and no tree. Its fields are
//!
//! - what its text has ([`parse`] says how): the members of a JSON object, the pairs of logfmt and so on, or
//!   else the text in `content`;
//! - the container's constant fields ([`metadata`] names all fields);
//! - with `record-id`, `__record_id__`: journal id and offset of the first entry, the same in all
//!   copies of a record;
//! - `__cut__`, if the record is not the whole: `line` says that it is a part of a longer line and
//!   that the other parts are in other records, `value` that text was left out;
//! - `LogParseFailure`, if its text is not of the form that `parse` asks for: the name of the form.
//!
//! Its time is Docker's, of the first entry, in milliseconds, which is what CLS keeps.
//!
//! Filters, template and `parse` act on what a reader takes for a line: joined from its pieces, and
//! grouped if `multiline-pattern` asks for it.
//!
//! Bounds, which make every limit of CLS hold by construction: the text of a record has at most
//! [`RECORD_LINE_BYTES_MAX`] bytes, a record [`RECORD_BYTES_MAX`], and one call into a
//! [`Formatter`] adds at most [`RECORDS_PER_CALL_MAX`] records. So the caller checks its batch
//! after each call, and moves what the last call added to a new one ([`Records::split_off`]) if
//! the batch would be too large.
//!
//! Acknowledgement: everything below [`Formatter::settled_offset`] is in `Records` that were given
//! out, or was filtered. What is pending holds it back, so that a kill in the middle of a stack
//! trace loses no part of it: the journal sends it again. The offset also avoids the inside of a
//! line that is out already, since a journal that began to send there would send half a line; it
//! goes back for that by [`OVERLAP_BYTES_MAX`] at most. What is pending for more than
//! [`HELD_BYTES_MAX`] of the journal goes out as a part.
//!
//! Regular expressions mean what they mean in Go ([`pattern`]).

mod decode;
mod fields;
mod json;
mod keys;
mod lines;
mod mask;
mod metadata;
mod parse;
mod pattern;
mod tag;
mod template;

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use proto::frame::{EntryView, Source};
use proto::limits::{CLS_BODY_BYTES_MAX, CLS_VALUE_BYTES_MAX, CLS_VALUES_BYTES_MAX};
use proto::limits::{CLS_LOGS_MAX, RECORD_LINE_BYTES_MAX};
use proto::log_opts::{LogOpts, LogOptsError, fault};
use proto::relay::{Container, Hole};
use tokio::time::Instant;

use crate::cls::encode::{self, Slot, pair_bytes, put_lossy, put_pair, put_pair_head};
use decode::{Decoder, seen_by_patterns};
pub use mask::{MASK_COUNT, mask_names};

use lines::{Grouper, Head, Joiner, MultilineRule, without_line_end};
use mask::Masks;
use metadata::ConstantFields;
use parse::{Parsed, Parser};
use pattern::Pattern;

/// Bytes of the fields that a record has from its line, encoded. An object beyond it becomes text,
/// which fits: a value may have 1 MiB. No object of that size that is UTF-8 is beyond it: the
/// smallest members, `"abc":1,`, take 8 bytes and become 10.
const LINE_FIELDS_BYTES_MAX: usize = 21 << 16;

/// Bytes of the values among them.
const LINE_VALUES_BYTES_MAX: usize = CLS_VALUE_BYTES_MAX;

/// Bounds of these fields.
const LINE_FIELDS: fields::Rules = fields::Rules {
    key_prefix: b"",
    taken_key: None,
    fields_bytes_max: LINE_FIELDS_BYTES_MAX,
    values_bytes_max: LINE_VALUES_BYTES_MAX,
};

/// Bytes of a record's own frame: tags, lengths, time, record id, mark.
const FRAME_FIELDS_BYTES_MAX: usize = 256;

/// Bytes of one encoded record.
pub const RECORD_BYTES_MAX: usize =
    LINE_FIELDS_BYTES_MAX + metadata::CONSTANT_FIELDS_BYTES_MAX + FRAME_FIELDS_BYTES_MAX;

/// Records that one call into a [`Formatter`] adds at most: of each source an unfinished line,
/// and the group of lines before it.
pub const RECORDS_PER_CALL_MAX: usize = 4;

/// Bytes of the journal that one pending line or group holds back at most. Twice a line of the
/// largest size leaves room for what the other source writes in between.
pub const HELD_BYTES_MAX: u64 = 2 << 20;

/// Bytes by which a settled offset goes back to avoid half a line. Where lines of both sources
/// overlap without end, there is no better place further back.
const OVERLAP_BYTES_MAX: u64 = 256 << 10;

const _: () = assert!(
    HELD_BYTES_MAX + OVERLAP_BYTES_MAX < crate::lane::window::WINDOW_BYTES_MAX,
    "a window must let the rest of a line in"
);
const _: () = assert!(
    RECORD_LINE_BYTES_MAX / 8 * 10 < LINE_FIELDS_BYTES_MAX,
    "the fields of any object that is UTF-8 must fit"
);
const _: () = assert!(
    RECORDS_PER_CALL_MAX
        * (LINE_VALUES_BYTES_MAX + metadata::CONSTANT_FIELDS_BYTES_MAX + FRAME_FIELDS_BYTES_MAX)
        <= CLS_VALUES_BYTES_MAX,
    "the values that one call adds must fit one request"
);
const _: () = assert!(
    RECORDS_PER_CALL_MAX * RECORD_BYTES_MAX + metadata::LOG_TAGS_BYTES_MAX < CLS_BODY_BYTES_MAX,
    "what one call adds must fit one request's body"
);
const _: () = assert!(RECORDS_PER_CALL_MAX <= CLS_LOGS_MAX, "logs of one request");

/// Bytes of a rendered text whose memory is kept between lines.
const KEPT_TEXT_BYTES_MAX: usize = 64 << 10;

const RECORD_ID_KEY: &[u8] = b"__record_id__";
const CUT_KEY: &[u8] = b"__cut__";
const ESCAPED_KEY: &[u8] = b"escaped_bytes";
/// As CLS's own agent names it.
const FAILURE_KEY: &[u8] = b"LogParseFailure";

/// Encoded records, back to back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Records {
    /// `LogGroup.logs` fields: tag `0a`, length, `Log`.
    pub bytes: Vec<u8>,
    /// What the bytes hold, and what became of the entries.
    pub counts: Counts,
    /// The fates that the counts alone do not tell: of entries that share a record, and of those
    /// that went out while older ones were pending.
    pub fates: Vec<Fate>,
}

/// What became of the entries of one record. They are among the [`Counts`] as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fate {
    /// Journal offset behind the last of them.
    pub end: u64,
    /// How many they are.
    pub entries: u64,
    /// Index of their record; `None` if they were filtered.
    pub log: Option<usize>,
}

/// Sums over records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Records.
    pub logs: usize,
    /// Bytes of all values of all records, which CLS bounds per request.
    pub value_bytes: usize,
    /// Entries that are in the records.
    pub delivered_entries: u64,
    /// Entries that a filter dropped.
    pub filtered_entries: u64,
    /// Records that are a part of a longer line (`__cut__=line`).
    pub line_parts: u64,
    /// Records of which text was left out (`__cut__=value`).
    pub cut_values: u64,
    /// Records with bytes that are no text (`escaped_bytes`).
    pub escaped_logs: u64,
    /// Records whose text is not of the form that `parse` asks for (`LogParseFailure`).
    pub unparsed_logs: u64,
    /// Keys that were renamed.
    pub renamed_keys: u64,
    /// What was taken out of lines, by [`mask_names`].
    pub masked: [u64; MASK_COUNT],
}

/// A position in [`Records`], between two calls.
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    bytes: usize,
    counts: Counts,
    fates: usize,
}

/// Where a stream's entries come from.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// The container.
    pub container: &'a Container,
    /// Name of its host.
    pub host: &'a str,
    /// The journal, for the record id.
    pub journal_id: &'a str,
    /// Offset of the first entry to come.
    pub resume_offset: u64,
    /// Which options are left out since they can't work, and why; empty if none.
    pub left_out: &'a str,
}

/// Turns the entries of one stream into records. Entries come in the order of their offsets.
#[derive(Debug)]
pub struct Formatter {
    stdout: Assembly,
    stderr: Assembly,
    multiline: Option<MultilineRule>,
    decoder: Decoder,
    writer: Writer,
    /// Offset behind the last entry.
    next_offset: u64,
    /// Offset of the oldest entry that is pending, `u64::MAX` if none is.
    oldest_pending: u64,
    /// Lines that are out, but overlap what is pending.
    overlap: Span,
    /// Docker's time of the last entry.
    newest_nano: i64,
    log_tags: Vec<u8>,
}

/// What is pending of one source.
#[derive(Debug, Default)]
struct Assembly {
    joiner: Joiner,
    grouper: Grouper,
}

/// From whole lines to records.
#[derive(Debug)]
struct Writer {
    filter: Option<Arc<Pattern>>,
    exclude: Option<Arc<Pattern>>,
    masks: Option<Masks>,
    /// Absent if the text is the line.
    template: Option<template::Compiled>,
    clock: template::Clock,
    rendered: Vec<u8>,
    parser: Parser,
    /// Key of text that is no field.
    content_key: Box<str>,
    stdout: ConstantFields,
    stderr: ConstantFields,
    /// The journal's id, if records carry theirs.
    journal_id: Option<String>,
}

impl Records {
    /// Returns the position behind all records.
    pub fn mark(&self) -> Mark {
        Mark {
            bytes: self.bytes.len(),
            counts: self.counts,
            fates: self.fates.len(),
        }
    }

    /// Removes what was added since `mark` and returns it.
    pub fn split_off(&mut self, mark: Mark) -> Records {
        let counts = self.counts.since(&mark.counts);
        self.counts = mark.counts;
        let mut fates = self.fates.split_off(mark.fates);
        for fate in &mut fates {
            fate.log = fate.log.map(|log| log - mark.counts.logs);
        }
        Records {
            bytes: self.bytes.split_off(mark.bytes),
            counts,
            fates,
        }
    }

    /// Notes the fate of entries that were just put: in the record of index `log`, if there is one
    /// now, or else filtered.
    fn note(&mut self, log: usize, end: u64, entries: u64) {
        let log = (self.counts.logs > log).then_some(log);
        self.fates.push(Fate { end, entries, log });
    }

    /// Removes all records and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.counts = Counts::default();
        self.fates.clear();
    }
}

impl Counts {
    /// Returns what came since an earlier state of the same counts.
    fn since(&self, earlier: &Counts) -> Counts {
        Counts {
            logs: self.logs - earlier.logs,
            value_bytes: self.value_bytes - earlier.value_bytes,
            delivered_entries: self.delivered_entries - earlier.delivered_entries,
            filtered_entries: self.filtered_entries - earlier.filtered_entries,
            line_parts: self.line_parts - earlier.line_parts,
            cut_values: self.cut_values - earlier.cut_values,
            escaped_logs: self.escaped_logs - earlier.escaped_logs,
            unparsed_logs: self.unparsed_logs - earlier.unparsed_logs,
            renamed_keys: self.renamed_keys - earlier.renamed_keys,
            masked: std::array::from_fn(|mask| self.masked[mask] - earlier.masked[mask]),
        }
    }
}

impl Formatter {
    /// Compiles a container's options.
    ///
    /// # Errors
    /// All faults together: regular expressions and tags that do not compile, tags of the template
    /// that the container does not have, constant fields and attributes beyond their bounds.
    pub fn new(opts: &LogOpts, origin: &Origin<'_>) -> Result<Self, LogOptsError> {
        let mut faults = Vec::new();
        let attributes = metadata::attributes(opts, origin).unwrap_or_else(|mut found| {
            faults.append(&mut found);
            Default::default()
        });
        let pattern = opts.multiline.as_ref().map(|rule| rule.pattern.as_str());
        let mut compile = |option, pattern| pattern::compile_option(option, pattern, &mut faults);
        let filter = compile("filter-regex", opts.filter_regex.as_deref());
        let exclude = compile("exclude-regex", opts.exclude_regex.as_deref());
        let pattern = compile("multiline-pattern", pattern);
        let multiline = pattern
            .zip(opts.multiline.as_ref())
            .map(|(pattern, rule)| MultilineRule {
                pattern,
                timeout: rule.timeout,
            });
        let decoder = Decoder::new(opts, &mut faults);
        let values = metadata::tag_values(opts, origin.container, origin.host, &attributes);
        let template = match template::Compiled::new(&opts.template, &values) {
            _ if opts.template.is_identity() => None,
            Ok(template) => Some(template),
            Err(rules) => {
                faults.extend(rules.iter().map(|rule| fault("template", None, rule)));
                None
            }
        };
        let fields = |source| {
            let fields = ConstantFields::new(opts, origin.container, origin.host, source);
            fields.with_left_out(origin.left_out)
        };
        let writer = Writer {
            filter,
            exclude,
            masks: Masks::new(opts, &mut faults),
            template,
            clock: template::Clock::default(),
            rendered: Vec::new(),
            parser: Parser::new(opts, LINE_FIELDS, &mut faults),
            content_key: opts.content_key.as_str().into(),
            stdout: fields(Source::Stdout),
            stderr: fields(Source::Stderr),
            journal_id: opts.record_id.then(|| origin.journal_id.to_owned()),
        };
        let log_tags = metadata::encode_log_tags(&attributes);
        check_bounds(&writer, &log_tags, &mut faults);
        if !faults.is_empty() {
            return Err(LogOptsError { faults });
        }
        Ok(Self {
            stdout: Assembly::default(),
            stderr: Assembly::default(),
            multiline,
            decoder,
            writer: writer.with_taken_key(),
            next_offset: origin.resume_offset,
            oldest_pending: u64::MAX,
            overlap: Span::NONE,
            newest_nano: 0,
            log_tags,
        })
    }

    /// Takes an entry whose frame begins at `offset` and ends before `end`, and adds the records
    /// that are complete thereby.
    #[inline]
    pub fn push(
        &mut self,
        offset: u64,
        end: u64,
        entry: &EntryView<'_>,
        now: Instant,
        records: &mut Records,
    ) {
        self.next_offset = end;
        self.newest_nano = entry.time_nano;
        let head = Head {
            offset,
            end,
            time_nano: entry.time_nano,
            source: entry.source,
            entries: 1,
            is_part: false,
            escaped_bytes: 0,
        };
        if end.saturating_sub(self.oldest_pending) > HELD_BYTES_MAX {
            self.release_oldest(now, records);
        }
        let (assembly, other) = match entry.source {
            Source::Stdout => (&mut self.stdout, &self.stderr),
            Source::Stderr => (&mut self.stderr, &self.stdout),
        };
        if entry.partial.is_none() && assembly.joiner.is_idle() && self.multiline.is_none() {
            let log = records.counts.logs;
            let (head, text) = decoded(&mut self.decoder, head, without_line_end(entry.line));
            self.writer.put(head, text, records);
            if self.oldest_pending != u64::MAX {
                records.note(log, end, 1);
            }
            return;
        }
        let mut out = Out {
            writer: &mut self.writer,
            records,
            other_pending: other.offset(),
            overlap: self.overlap,
        };
        let mut reading = Reading {
            decoder: &mut self.decoder,
            multiline: self.multiline.as_ref(),
            now,
        };
        assembly.push(head, entry, &mut reading, &mut |head, text| {
            out.put(head, text);
        });
        let overlap = out.overlap;
        self.update_pending(overlap);
    }

    /// Adds a record that says which entries are missing at this point of the stream.
    pub fn push_hole(&mut self, hole: &Hole, records: &mut Records) {
        self.next_offset = hole.end_offset;
        let known = [hole.first_time_nano, hole.last_time_nano];
        let time_nano = known.into_iter().find(|nano| *nano > 0);
        let time_nano = time_nano.unwrap_or(self.newest_nano);
        let log = records.counts.logs;
        self.writer.put_hole(hole, time_nano, records);
        records.note(log, hole.end_offset, 0);
    }

    /// Adds the records that have waited long enough: parts of lines whose end did not come, and
    /// groups of lines. To be called only while entries may come; a line whose pieces are held
    /// back in the journal is not late.
    pub fn flush_due(&mut self, now: Instant, records: &mut Records) {
        self.for_each_assembly(now, records, |assembly, reading, out| {
            assembly.flush_due(reading, &mut |head, text| out.put(head, text));
        });
    }

    /// Returns when [`Self::flush_due`] has something to do.
    pub fn next_due(&self) -> Option<Instant> {
        [&self.stdout, &self.stderr]
            .into_iter()
            .flat_map(|assembly| [assembly.joiner.due(), assembly.grouper.due()])
            .flatten()
            .min()
    }

    /// Whether `multiline-pattern` has matched none of many lines.
    pub fn lacks_first_line(&self) -> bool {
        [&self.stdout, &self.stderr]
            .into_iter()
            .any(|assembly| assembly.grouper.lacks_first_line())
    }

    /// Adds all that is pending: the stream has ended.
    pub fn finish(&mut self, now: Instant, records: &mut Records) {
        self.for_each_assembly(now, records, |assembly, reading, out| {
            assembly.finish(reading, &mut |head, text| out.put(head, text));
        });
    }

    /// Returns the offset below which every entry is in records that were added, or filtered.
    /// When those records are delivered, it may be acknowledged. It never goes back.
    #[inline]
    pub fn settled_offset(&self) -> u64 {
        let pending = self.oldest_pending.min(self.overlap.begin);
        self.next_offset.min(pending)
    }

    fn for_each_assembly(
        &mut self,
        now: Instant,
        records: &mut Records,
        mut act: impl FnMut(&mut Assembly, &mut Reading<'_>, &mut Out<'_>),
    ) {
        let mut reading = Reading {
            decoder: &mut self.decoder,
            multiline: self.multiline.as_ref(),
            now,
        };
        let mut out = Out {
            writer: &mut self.writer,
            records,
            other_pending: self.stderr.offset(),
            overlap: self.overlap,
        };
        act(&mut self.stdout, &mut reading, &mut out);
        out.other_pending = self.stdout.offset();
        act(&mut self.stderr, &mut reading, &mut out);
        let overlap = out.overlap;
        self.update_pending(overlap);
    }

    /// Lets a line or group go that holds back too much.
    #[cold]
    fn release_oldest(&mut self, now: Instant, records: &mut Records) {
        let oldest = self.oldest_pending;
        self.for_each_assembly(now, records, |assembly, reading, out| {
            if assembly.offset() == oldest {
                assembly.release(reading, &mut |head, text| out.put(head, text));
            }
        });
    }

    /// Looks at what is pending after lines went out that overlap it, or did so before.
    fn update_pending(&mut self, overlap: Span) {
        self.oldest_pending = self.stdout.offset().min(self.stderr.offset());
        let is_near = self.next_offset.saturating_sub(overlap.begin) <= OVERLAP_BYTES_MAX;
        let is_inside = self.oldest_pending < overlap.end;
        self.overlap = if is_inside && is_near {
            overlap
        } else {
            Span::NONE
        };
    }

    /// Returns the container's attributes as `LogGroup.logTags` fields, tag `2a`.
    pub fn log_tags(&self) -> &[u8] {
        &self.log_tags
    }
}

fn check_bounds(writer: &Writer, log_tags: &[u8], faults: &mut Vec<String>) {
    let mut check = |what: &str, options: &str, bytes: usize, bytes_max: usize| {
        if bytes > bytes_max {
            faults.push(format!(
                "{what} of this container have {bytes} bytes, the limit is {bytes_max}; \
                 ask for less with {options}"
            ));
        }
    };
    check(
        "the constant fields",
        "instance_info and append_container_details_keys",
        writer.stdout.bytes.len(),
        metadata::CONSTANT_FIELDS_BYTES_MAX,
    );
    check(
        "the attributes",
        "labels, labels-regex, env, env-regex and tag",
        log_tags.len(),
        metadata::LOG_TAGS_BYTES_MAX,
    );
}

/// Where the complete texts of one source go.
struct Out<'a> {
    writer: &'a mut Writer,
    records: &'a mut Records,
    /// Offset of the oldest entry that is pending of the other source, or `u64::MAX`.
    other_pending: u64,
    /// The texts that overlap it, and each other.
    overlap: Span,
}

/// A part of the journal.
#[derive(Debug, Clone, Copy)]
struct Span {
    begin: u64,
    end: u64,
}

impl Span {
    const NONE: Self = Self {
        begin: u64::MAX,
        end: 0,
    };
}

impl Out<'_> {
    fn put(&mut self, head: Head, text: &[u8]) {
        if (head.offset..head.end).contains(&self.other_pending) {
            self.overlap.begin = self.overlap.begin.min(head.offset);
            self.overlap.end = self.overlap.end.max(head.end);
        }
        let log = self.records.counts.logs;
        self.writer.put(head, text, self.records);
        self.records.note(log, head.end, head.entries);
    }
}

impl Assembly {
    /// Returns the offset of the oldest entry that is pending, or `u64::MAX`.
    fn offset(&self) -> u64 {
        // A group's lines came before the line that is being joined.
        let oldest = self.grouper.offset().or_else(|| self.joiner.offset());
        oldest.unwrap_or(u64::MAX)
    }

    fn push(
        &mut self,
        head: Head,
        entry: &EntryView<'_>,
        reading: &mut Reading<'_>,
        record: &mut impl FnMut(Head, &[u8]),
    ) {
        let now = reading.now;
        let Self { joiner, grouper } = self;
        joiner.push(head, entry, now, &mut |head, line| {
            reading.take_line(grouper, head, line, record);
        });
    }

    /// Lets go what is pending, as parts.
    fn release(&mut self, reading: &mut Reading<'_>, record: &mut impl FnMut(Head, &[u8])) {
        let Self { joiner, grouper } = self;
        joiner.release(&mut |head, line| reading.take_line(grouper, head, line, record));
        grouper.release(record);
    }

    fn flush_due(&mut self, reading: &mut Reading<'_>, record: &mut impl FnMut(Head, &[u8])) {
        let now = reading.now;
        let Self { joiner, grouper } = self;
        grouper.flush_due(now, record);
        joiner.flush_due(now, &mut |head, line| {
            reading.take_line(grouper, head, line, record);
        });
    }

    fn finish(&mut self, reading: &mut Reading<'_>, record: &mut impl FnMut(Head, &[u8])) {
        let Self { joiner, grouper } = self;
        joiner.finish(&mut |head, line| reading.take_line(grouper, head, line, record));
        grouper.finish(record);
    }
}

/// How whole lines are read.
struct Reading<'a> {
    decoder: &'a mut Decoder,
    multiline: Option<&'a MultilineRule>,
    now: Instant,
}

impl Reading<'_> {
    /// Decodes a whole line, and hands on what is a record thereby.
    fn take_line(
        &mut self,
        grouper: &mut Grouper,
        head: Head,
        line: &[u8],
        record: &mut impl FnMut(Head, &[u8]),
    ) {
        let (head, text) = decoded(self.decoder, head, line);
        match self.multiline {
            Some(rule) => grouper.push(rule, head, text, self.now, record),
            None => record(head, text),
        }
    }
}

/// Decodes a line, and says in its head what is no text in it.
#[inline]
fn decoded<'a>(decoder: &'a mut Decoder, head: Head, line: &'a [u8]) -> (Head, &'a [u8]) {
    let decoded = decoder.decode(line);
    let escaped_bytes = decoded.escaped_bytes;
    (
        Head {
            escaped_bytes,
            ..head
        },
        decoded.text.as_bytes(),
    )
}

impl Writer {
    fn with_taken_key(mut self) -> Self {
        if self.stdout.has_instance {
            self.parser.take_key(metadata::INSTANCE.as_bytes());
        }
        self
    }

    /// Filters a line, and adds its record.
    #[inline]
    fn put(&mut self, head: Head, line: &[u8], records: &mut Records) {
        let seen = seen_by_patterns(line, head.escaped_bytes);
        let is_kept = self
            .filter
            .as_ref()
            .is_none_or(|regex| regex.is_match(&seen))
            && !self
                .exclude
                .as_ref()
                .is_some_and(|regex| regex.is_match(&seen));
        if !is_kept {
            records.counts.filtered_entries += head.entries;
            return;
        }
        if self.masks.is_none() {
            return self.put_kept(head, line, false, records);
        }
        // Taken out meanwhile, since what is masked stands in its memory.
        let masks = self.masks.take();
        if let Some(mut masks) = masks {
            let masked = masks.apply(line, &mut records.counts.masked);
            self.put_kept(head, masked.text, masked.is_cut, records);
            self.masks = Some(masks);
        }
    }

    /// Adds the record of a line that no filter dropped.
    #[inline]
    fn put_kept(&mut self, head: Head, line: &[u8], is_cut: bool, records: &mut Records) {
        let Some(template) = &self.template else {
            return self.put_text(head, line, is_cut, records);
        };
        let mut rendered = std::mem::take(&mut self.rendered);
        let line = template::Line {
            text: line,
            time_nano: head.time_nano,
            source: head.source,
        };
        let is_cut = template.render(line, &mut self.clock, &mut rendered) || is_cut;
        self.put_text(head, &rendered, is_cut, records);
        if rendered.capacity() <= KEPT_TEXT_BYTES_MAX {
            self.rendered = rendered;
        }
    }

    /// Adds the record of a text.
    #[inline]
    fn put_text(&mut self, head: Head, text: &[u8], is_cut: bool, records: &mut Records) {
        let constant = match head.source {
            Source::Stdout => &self.stdout,
            Source::Stderr => &self.stderr,
        };
        let Records { bytes, counts, .. } = records;
        counts.logs += 1;
        counts.delivered_entries += head.entries;
        counts.value_bytes += constant.value_bytes;
        // Right for a plain line without extras; else the length is moved when it is known.
        let guess = TIME_FIELD_BYTES
            + pair_bytes(self.content_key.len(), text.len())
            + constant.bytes.len();
        bytes.reserve(guess + 16);
        let slot = open_log(bytes, guess, head.time_nano);
        let mut is_cut = is_cut;
        let parsed = self.parser.put(text, head.escaped_bytes > 0, bytes);
        if let Parsed::Fields(written) = parsed {
            counts.value_bytes += written.value_bytes;
            counts.renamed_keys += written.renamed_keys;
        } else {
            let content = put_content(bytes, self.content_key.as_bytes(), text);
            counts.value_bytes += content.value_bytes;
            is_cut |= content.is_cut;
        }
        bytes.extend_from_slice(&constant.bytes);
        if let Some(journal_id) = &self.journal_id {
            counts.value_bytes += put_record_id(bytes, journal_id, head.offset);
        }
        if head.is_part || is_cut {
            counts.line_parts += u64::from(head.is_part);
            counts.cut_values += u64::from(is_cut);
            counts.value_bytes += put_cut(bytes, head.is_part, is_cut);
        }
        if head.escaped_bytes > 0 {
            counts.escaped_logs += 1;
            counts.value_bytes += put_escaped_bytes(bytes, head.escaped_bytes);
        }
        if let Parsed::Failure(form) = parsed {
            counts.unparsed_logs += 1;
            counts.value_bytes += put_failure(bytes, form);
        }
        slot.close(bytes);
    }

    fn put_hole(&mut self, hole: &Hole, time_nano: i64, records: &mut Records) {
        let Records { bytes, counts, .. } = records;
        let hole_bytes = hole.end_offset.saturating_sub(hole.first_offset);
        let entries = match hole.entries {
            0 => "an unknown number of".to_owned(),
            entries => entries.to_string(),
        };
        let (reason, _) = hole
            .reason
            .split_at(hole.reason.floor_char_boundary(REASON_BYTES_MAX));
        // One byte is no entry: it stands for what nobody knows.
        let (size, hole_bytes) = match (hole.entries, hole_bytes) {
            (0, 1) => Default::default(),
            (_, bytes) => (format!(" ({bytes} bytes)"), bytes.to_string()),
        };
        let content = format!("{entries} log entries{size} were dropped: {reason}");
        let slot = open_log(bytes, content.len() + 384, time_nano);
        counts.logs += 1;
        let (from, to) = (rfc3339(hole.first_time_nano), rfc3339(hole.last_time_nano));
        for (key, value) in [
            (&*self.content_key, content.as_str()),
            ("__dropped_entries__", &hole.entries.to_string()),
            ("__dropped_bytes__", &hole_bytes),
            ("__dropped_reason__", reason),
            ("__dropped_from__", &from),
            ("__dropped_to__", &to),
        ] {
            // What is not known is not there.
            if value.is_empty() {
                continue;
            }
            put_pair(bytes, encode::CONTENTS, key.as_bytes(), value.as_bytes());
            counts.value_bytes += value.len();
        }
        let (shared, shared_value_bytes) = self.stdout.shared();
        bytes.extend_from_slice(shared);
        counts.value_bytes += shared_value_bytes;
        slot.close(bytes);
    }
}

/// Returns a time of Docker as Docker writes it; no text for 0, which stands for an unknown one.
fn rfc3339(time_nano: i64) -> String {
    let nano = u64::try_from(time_nano).ok().filter(|nano| *nano > 0);
    let time = nano.map(|nano| UNIX_EPOCH + Duration::from_nanos(nano));
    time.map_or_else(String::new, |time| {
        humantime::format_rfc3339_nanos(time).to_string()
    })
}

/// Bytes of a reason as a record shows it.
const REASON_BYTES_MAX: usize = 64;

/// Bytes of the field `time` for any time from 2004 to 2109.
const TIME_FIELD_BYTES: usize = 7;

/// Begins a log with its time in milliseconds. CLS guesses the unit by magnitude; a time before
/// 1970 would be none, so it counts as the first millisecond.
#[inline]
fn open_log(bytes: &mut Vec<u8>, guess: usize, time_nano: i64) -> Slot {
    bytes.push(encode::LOG);
    let slot = Slot::open(bytes, guess);
    let time_ms = usize::try_from(time_nano / 1_000_000).unwrap_or(0).max(1);
    bytes.push(encode::TIME);
    encode::put_varint(bytes, time_ms);
    slot
}

/// What programs for Windows put before the first line of a text.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

struct Content {
    value_bytes: usize,
    is_cut: bool,
}

/// Adds a text, which is UTF-8, as the field of this key.
#[inline]
fn put_content(bytes: &mut Vec<u8>, key: &[u8], text: &[u8]) -> Content {
    debug_assert!(
        std::str::from_utf8(text).is_ok(),
        "lines are decoded before"
    );
    if text.len() <= CLS_VALUE_BYTES_MAX {
        put_pair(bytes, encode::CONTENTS, key, text);
        return Content {
            value_bytes: text.len(),
            is_cut: false,
        };
    }
    put_cut_content(bytes, key, text)
}

/// Adds what CLS takes of a text that is too long.
#[cold]
fn put_cut_content(bytes: &mut Vec<u8>, key: &[u8], text: &[u8]) -> Content {
    let mut value = Vec::with_capacity(text.len().min(CLS_VALUE_BYTES_MAX));
    let is_cut = put_lossy(&mut value, text, CLS_VALUE_BYTES_MAX);
    put_pair(bytes, encode::CONTENTS, key, &value);
    Content {
        value_bytes: value.len(),
        is_cut,
    }
}

/// Adds the record's id, `<journal id>-<offset, 16 hex digits>`, and returns the bytes of its
/// value.
fn put_record_id(bytes: &mut Vec<u8>, journal_id: &str, offset: u64) -> usize {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let value_bytes = journal_id.len() + 1 + 16;
    put_pair_head(bytes, encode::CONTENTS, RECORD_ID_KEY, value_bytes);
    bytes.extend_from_slice(journal_id.as_bytes());
    bytes.push(b'-');
    for byte in offset.to_be_bytes() {
        bytes.push(HEX[usize::from(byte >> 4)]);
        bytes.push(HEX[usize::from(byte & 15)]);
    }
    value_bytes
}

/// Adds the mark of a record that is not the whole, and returns the bytes of its value.
#[cold]
fn put_cut(bytes: &mut Vec<u8>, is_part: bool, is_cut: bool) -> usize {
    let value: &[u8] = match (is_part, is_cut) {
        (true, true) => b"line,value",
        (true, false) => b"line",
        (false, _) => b"value",
    };
    put_pair(bytes, encode::CONTENTS, CUT_KEY, value);
    value.len()
}

/// Adds the mark of a text that is not of the form that was asked for, and returns the bytes of its value.
#[cold]
fn put_failure(bytes: &mut Vec<u8>, form: &str) -> usize {
    put_pair(bytes, encode::CONTENTS, FAILURE_KEY, form.as_bytes());
    form.len()
}

/// Adds the number of bytes that are no text, and returns the bytes of its value.
#[cold]
fn put_escaped_bytes(bytes: &mut Vec<u8>, count: u32) -> usize {
    let value = count.to_string();
    put_pair(bytes, encode::CONTENTS, ESCAPED_KEY, value.as_bytes());
    value.len()
}

#[cfg(test)]
mod tests;
