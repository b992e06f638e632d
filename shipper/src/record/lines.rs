//! From entries to whole lines, and from lines to records of several lines, for one source
//! (stdout or stderr). Pure state: what is complete is handed to the caller.
//!
//! Docker sends a line beyond 16 KiB in pieces. Pieces carry an id and a number since Docker
//! 19.03; before, a piece only says that it is one, and the first entry that is none ends the
//! line. The unterminated tail of an output is a piece that says it isn't the last; nothing
//! follows it (moby `daemon/logger/copier.go`).
//!
//! ```text
//! piece of a new id            -> what is pending ends (its end never came), the piece begins a line
//! next piece of the same id    -> appended
//! piece that was seen already  -> ignored (the journal sends again from an acknowledged offset)
//! last piece, or an entry that is no piece -> the line is complete
//! no room for a piece, or age  -> what is pending goes out, marked; the rest follows as a record
//!                                 of its own, marked
//! ```
//!
//! Bounds: a line and a record have at most [`RECORD_LINE_BYTES_MAX`] bytes; an unfinished line
//! waits for [`LINE_AGE_MAX`] after its last piece, and [`LINE_WAIT_MAX`] after its first.

use std::sync::Arc;
use std::time::Duration;

use proto::frame::{EntryView, Partial, Source};
use proto::limits::RECORD_LINE_BYTES_MAX;
use tokio::time::Instant;

use super::decode::seen_by_patterns;
use super::pattern::Pattern;

/// How long a piece of a line waits for the next one. Pieces of a line come within microseconds, unless
/// a process writes without ever ending a line.
pub(super) const LINE_AGE_MAX: Duration = Duration::from_secs(10);

/// How long the first piece of a line waits for the last one, as far as it was written: a process that
/// adds to a line for ever is seen to do so.
pub(super) const LINE_WAIT_MAX: Duration = Duration::from_secs(60);

/// How long a record of several lines may grow at least. A program writes one in milliseconds.
const RECORD_AGE_MIN: Duration = Duration::from_secs(5);

/// Lines of which none matched, when a pattern is said to fit none.
const UNMATCHED_LINES_MAX: u32 = 100;

/// Bytes of a pending text whose memory is kept for the next one.
const KEPT_TEXT_BYTES_MAX: usize = 64 << 10;

/// What is known of a line or record besides its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    /// Journal offset of the first entry.
    pub(super) offset: u64,
    /// Journal offset behind the last entry.
    pub(super) end: u64,
    /// Docker's time of the first entry.
    pub(super) time_nano: i64,
    /// Where it was written to.
    pub(super) source: Source,
    /// Entries that are part of it.
    pub(super) entries: u64,
    /// Whether it is only a part of a line or record.
    pub(super) is_part: bool,
    /// Bytes that are no text, and stand in it as `\xNN`.
    pub(super) escaped_bytes: u32,
}

/// Returns a line without what is left of its end. The engine cuts at the line feed; the carriage
/// returns before it are part of the line end, too: a terminal writes one, and so does Windows.
#[inline]
pub(super) fn without_line_end(line: &[u8]) -> &[u8] {
    match line {
        [.., b'\r'] => {
            let end = line.iter().rposition(|byte| *byte != b'\r');
            &line[..end.map_or(0, |last| last + 1)]
        }
        _ => line,
    }
}

/// A text that is not complete yet. Without a head there is none.
#[derive(Debug, Default)]
struct Pending {
    head: Option<Head>,
    text: Vec<u8>,
}

impl Pending {
    fn begin(&mut self, head: Head, text: &[u8]) {
        self.head = Some(head);
        self.text.clear();
        self.text.extend_from_slice(text);
    }

    /// Appends a text. Returns false if there is no room for it.
    fn append(&mut self, head: &Head, separator: &[u8], text: &[u8]) -> bool {
        let bytes = self.text.len() + separator.len() + text.len();
        let Some(own) = self.head.as_mut() else {
            return false;
        };
        if bytes > RECORD_LINE_BYTES_MAX {
            return false;
        }
        own.end = head.end;
        own.entries += head.entries;
        own.is_part |= head.is_part;
        own.escaped_bytes = own.escaped_bytes.saturating_add(head.escaped_bytes);
        self.text.extend_from_slice(separator);
        self.text.extend_from_slice(text);
        true
    }

    /// Counts an entry in whose text is here already. Returns false if nothing is.
    fn count_in(&mut self, head: &Head) -> bool {
        let own = self.head.as_mut();
        own.map(|own| {
            own.end = head.end;
            own.entries += head.entries;
        })
        .is_some()
    }

    /// Hands the text on, if there is one.
    fn flush(&mut self, complete: &mut impl FnMut(Head, &[u8])) {
        if let Some(head) = self.head.take() {
            complete(head, &self.text);
            self.text.clear();
            if self.text.capacity() > KEPT_TEXT_BYTES_MAX {
                self.text = Vec::new();
            }
        }
    }

    /// Hands the text on as a line that has ended.
    fn flush_line(&mut self, complete: &mut impl FnMut(Head, &[u8])) {
        self.text.truncate(without_line_end(&self.text).len());
        self.flush(complete);
    }

    /// Hands the text on as a part of something longer.
    fn flush_part(&mut self, complete: &mut impl FnMut(Head, &[u8])) {
        if let Some(head) = self.head.as_mut() {
            head.is_part = true;
        }
        self.flush(complete);
    }

    fn offset(&self) -> Option<u64> {
        self.head.map(|head| head.offset)
    }
}

/// Joins the pieces of lines.
#[derive(Debug, Default)]
pub(super) struct Joiner {
    pending: Pending,
    /// The line whose pieces are expected, while it is not complete. Outlives `pending` when a
    /// part of the line went out.
    line: Option<LineId>,
    /// When what is pending began, and when it came to an end.
    came: Option<(Instant, Instant)>,
}

#[derive(Debug)]
struct LineId {
    /// Empty before Docker 19.03.
    id: Box<[u8]>,
    ordinal: i32,
}

impl Joiner {
    /// Whether an entry that is no piece is a line by itself.
    #[inline]
    pub(super) fn is_idle(&self) -> bool {
        self.line.is_none()
    }

    /// Returns the offset of the oldest entry that is kept here.
    pub(super) fn offset(&self) -> Option<u64> {
        self.pending.offset()
    }

    /// Returns when what is pending is too old.
    pub(super) fn due(&self) -> Option<Instant> {
        self.pending.head?;
        let (first, last) = self.came?;
        Some((first + LINE_WAIT_MAX).min(last + LINE_AGE_MAX))
    }

    /// Takes an entry that is a piece or follows one, and hands on what is complete thereby: at
    /// most the line before and the line itself.
    pub(super) fn push(
        &mut self,
        head: Head,
        entry: &EntryView<'_>,
        now: Instant,
        line: &mut impl FnMut(Head, &[u8]),
    ) {
        let Some(piece) = entry.partial else {
            return self.push_whole(head, entry.line, line);
        };
        let is_part = match self.relation(&piece) {
            Relation::Repeated if self.pending.count_in(&head) => return,
            // Nothing is left of what it repeats.
            Relation::Repeated => true,
            // Without pending text a part of the line went out before.
            Relation::Next => self.pending.head.is_none(),
            Relation::AfterGap => true,
            Relation::OfNewLine => {
                // The end of the line before never came.
                self.pending.flush_part(line);
                piece.ordinal > 1
            }
        };
        let head = Head { is_part, ..head };
        let mut first = self.came.map_or(now, |(first, _)| first);
        if !self.pending.append(&head, b"", entry.line) {
            let is_part = is_part || self.pending.head.is_some();
            self.pending.flush_part(line);
            self.pending.begin(Head { is_part, ..head }, entry.line);
            first = now;
        }
        self.came = Some((first, now));
        if piece.last {
            self.line = None;
            self.pending.flush_line(line);
        } else {
            self.expect_after(&piece);
        }
    }

    /// Hands on what is pending because it is too old. The rest of the line may still come.
    pub(super) fn flush_due(&mut self, now: Instant, line: &mut impl FnMut(Head, &[u8])) {
        if self.due().is_some_and(|due| due <= now) {
            self.pending.flush_part(line);
        }
    }

    /// Hands on what is pending because it holds too much back.
    pub(super) fn release(&mut self, line: &mut impl FnMut(Head, &[u8])) {
        self.pending.flush_part(line);
    }

    /// Hands on what is pending because nothing more will come: an unterminated tail, as a rule.
    pub(super) fn finish(&mut self, line: &mut impl FnMut(Head, &[u8])) {
        self.line = None;
        self.pending.flush(line);
    }

    fn push_whole(&mut self, head: Head, text: &[u8], line: &mut impl FnMut(Head, &[u8])) {
        let was = self.line.take();
        let ends_unnamed_line = was.is_some_and(|line| line.id.is_empty());
        if ends_unnamed_line && self.pending.append(&head, b"", text) {
            return self.pending.flush_line(line);
        }
        self.pending.flush_part(line);
        let is_part = ends_unnamed_line; // there was no room, or a part went out before
        line(Head { is_part, ..head }, without_line_end(text));
    }

    fn relation(&self, piece: &Partial<'_>) -> Relation {
        match &self.line {
            Some(line) if *line.id == *piece.id => {
                if piece.id.is_empty() || piece.ordinal == line.ordinal.saturating_add(1) {
                    Relation::Next
                } else if piece.ordinal <= line.ordinal {
                    Relation::Repeated
                } else {
                    Relation::AfterGap
                }
            }
            _ => Relation::OfNewLine,
        }
    }

    fn expect_after(&mut self, piece: &Partial<'_>) {
        match &mut self.line {
            Some(line) if *line.id == *piece.id => line.ordinal = piece.ordinal,
            _ => {
                self.line = Some(LineId {
                    id: piece.id.into(),
                    ordinal: piece.ordinal,
                });
            }
        }
    }
}

/// What a piece is to the line that is being joined.
enum Relation {
    Next,
    AfterGap,
    Repeated,
    OfNewLine,
}

/// When a line begins a record of several lines.
#[derive(Debug)]
pub(super) struct MultilineRule {
    /// Matches the first line of a record.
    pub(super) pattern: Arc<Pattern>,
    /// How long a record waits for its next line.
    pub(super) timeout: Duration,
}

impl MultilineRule {
    /// How long a record may grow, by Docker's times: a pattern that matches no line must not hold lines
    /// for hours.
    fn age_max(&self) -> Duration {
        RECORD_AGE_MIN.max(self.timeout.saturating_mul(5))
    }
}

/// Returns the time between two of Docker's stamps; none if the second is the earlier one.
fn elapsed(from_nano: i64, to_nano: i64) -> Duration {
    let nanos = to_nano.saturating_sub(from_nano);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
}

/// Groups lines into records of several lines.
///
/// A record ends before a line that matches, before a line that has no room, `timeout` after its last
/// line, and before a line that comes too long after its first one. Docker's stamps count for that as well as the time of arrival: after a pause of
/// the shipper, lines come in one rush that were written minutes apart.
#[derive(Debug, Default)]
pub(super) struct Grouper {
    pending: Pending,
    first_nano: i64,
    /// Lines so far.
    line_count: u32,
    has_matched: bool,
    newest_nano: i64,
    due: Option<Instant>,
}

impl Grouper {
    /// Returns the offset of the oldest entry that is kept here.
    pub(super) fn offset(&self) -> Option<u64> {
        self.pending.offset()
    }

    /// Returns when what is pending is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.pending.head?;
        self.due
    }

    /// Takes a line, and hands on the record before it if the line ends it.
    pub(super) fn push(
        &mut self,
        rule: &MultilineRule,
        head: Head,
        text: &[u8],
        now: Instant,
        record: &mut impl FnMut(Head, &[u8]),
    ) {
        let is_first = rule
            .pattern
            .is_match(&seen_by_patterns(text, head.escaped_bytes));
        self.has_matched |= is_first;
        self.line_count = self.line_count.saturating_add(1);
        let is_late = elapsed(self.newest_nano, head.time_nano) > rule.timeout;
        let is_old = elapsed(self.first_nano, head.time_nano) > rule.age_max();
        if is_late || is_first {
            self.pending.flush(record);
            self.begin(head, text);
        } else if is_old || !self.pending.append(&head, b"\n", text) {
            let is_part = head.is_part || self.pending.head.is_some();
            self.pending.flush_part(record);
            self.begin(Head { is_part, ..head }, text);
        }
        self.newest_nano = head.time_nano;
        self.due = Some(now + rule.timeout);
    }

    fn begin(&mut self, head: Head, text: &[u8]) {
        self.first_nano = head.time_nano;
        self.pending.begin(head, text);
    }

    /// Whether the pattern seems to fit no line.
    pub(super) fn lacks_first_line(&self) -> bool {
        !self.has_matched && self.line_count >= UNMATCHED_LINES_MAX
    }

    /// Hands on what is pending because no further line came.
    pub(super) fn flush_due(&mut self, now: Instant, record: &mut impl FnMut(Head, &[u8])) {
        if self.due().is_some_and(|due| due <= now) {
            self.pending.flush(record);
        }
    }

    /// Hands on what is pending because it holds too much back. What follows is another part.
    pub(super) fn release(&mut self, record: &mut impl FnMut(Head, &[u8])) {
        self.pending.flush_part(record);
    }

    /// Hands on what is pending because nothing more will come.
    pub(super) fn finish(&mut self, record: &mut impl FnMut(Head, &[u8])) {
        self.pending.flush(record);
    }
}
