//! What the next request carries: one pass over the streams that have something to say.
//!
//! Pure of network and time: the forwarder hands in the shipper's responses and the present time,
//! and gets a request back. It reads the disk, so it runs on a blocking thread. All state of a
//! call lives here, with one owner at a time, so nothing in it is locked.
//!
//! ```text
//! Waiting ──something to say──▶ Open sent ──Opened──▶ Open ──Finish sent, all acked──▶ retired
//!                                  ▲  └────Refused────▶ Refused ─┐
//!                                  └──────────backoff────────────┘
//! ```
//!
//! A shipper is not assumed hostile, but it may be wrong: what it says of a stream that did not ask,
//! an acknowledgement of what was not sent, ends the call with the reason ([`Round::fault`]), and
//! nothing of it counts. What it says of streams that this call does not know is ignored: it may
//! cross their end.
//!
//! Bounds: a request holds [`REQUEST_BYTES_MAX`] of frames and [`REQUEST_EVENTS_MAX`] events; a stream
//! gives one chunk per turn, and turns go round, so that a busy stream does not delay a quiet one.
//! Beyond [`STREAMS_PER_CALL_MAX`] streams the next waits until one ends.
//!
//! A request says when it was gathered, and since when the stream waits whose turn is next. By that
//! the shipper tells what has not been written, the rest of a line, from what is on its way.

use crate::containers::{Stream, Table};
use crate::fifo::Signals;
use crate::journal::{AckError, Hole, Next, SettledCounts};
use crate::logging::Throttle;
use bytes::{Bytes, BytesMut};
use proto::backoff::Backoff;
use proto::limits::{
    CHUNK_BYTES_MAX, FRAME_BYTES_MAX, REQUEST_EVENTS_MAX, REQUEST_FRAMES_BYTES_MAX,
    REQUEST_OPENS_BYTES_MAX, STREAMS_PER_CALL_MAX,
};
use proto::relay::{
    self, Ack, Chunk, Event, Finish, HostReport, ShipRequest, ShipResponse, event::Kind,
};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Bytes of frames in one request. Half of what the contract allows: twice as much costs 2 MiB of
/// memory and, measured, no less CPU per frame.
const REQUEST_BYTES_MAX: usize = REQUEST_FRAMES_BYTES_MAX / 2;

/// Bytes that are read per report to count entries that wait: some 10 ms of CPU.
const COUNT_BYTES_MAX: usize = 64 << 20;

/// Delay before a stream that was refused is opened again: first, and at most.
const REFUSED_BASE: Duration = Duration::from_secs(1);
const REFUSED_CAP: Duration = Duration::from_secs(30);

/// How often a read may fail before the segment is given up.
const READ_ATTEMPTS_MAX: u32 = 3;

/// Delay before a failed read is tried again.
const READ_RETRY: Duration = Duration::from_secs(1);

static SAVE_FAILED: Throttle = Throttle::new();
static READ_FAILED: Throttle = Throttle::new();
static UNEARNED: Throttle = Throttle::new();

/// What a pass found.
#[derive(Debug, Default)]
pub(crate) struct Round {
    /// What to send, if anything.
    pub(crate) request: Option<ShipRequest>,
    /// The request was full: another one is waiting.
    pub(crate) has_more: bool,
    /// A stream that waited for credit has it.
    pub(crate) has_credit: bool,
    /// When to gather again although nothing happens.
    pub(crate) wake_at: Option<Instant>,
    /// The host's counters, if they were asked for, and the number up to which they tell of streams
    /// that are over.
    pub(crate) report: Option<(HostReport, u64)>,
    /// The shipper broke the contract: the call must end.
    pub(crate) fault: Option<String>,
}

/// Everything that belongs to one call.
#[derive(Debug)]
pub(crate) struct Gatherer {
    table: Arc<Table>,
    signals: Arc<Signals>,
    /// Random bits for the jitter of backoffs.
    seed: u64,
    /// When the call began: zero of the clock that the shipper is told.
    began: Instant,
    /// When the present pass began.
    now: Instant,
    /// When it was last asked which streams have something: what is found now may have come since.
    asked: Instant,
    streams: HashMap<u32, CallStream>,
    /// Streams that have something to say, each once, and since when at most.
    queue: VecDeque<(Instant, u32)>,
    ready: Vec<Arc<Stream>>,
    /// Streams beyond the bound of a call, by number: the oldest comes first.
    surplus: BTreeMap<u32, Arc<Stream>>,
    /// Numbers of streams to try again, and when.
    retries: Vec<(Instant, u32)>,
    buffers: Buffers,
}

/// A stream's part in the call.
#[derive(Debug)]
struct CallStream {
    stream: Arc<Stream>,
    phase: Phase,
    backoff: Backoff,
    /// The reason that was said last.
    refusal: Option<String>,
    is_queued: bool,
    wants_credit: bool,
    /// What the shipper believes: there is more.
    says_more: bool,
    read_failure_count: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Waiting,
    OpenSent,
    Open { window_bytes: u64 },
    Refused,
}

/// A request in the making. Chunks get their bytes when the buffer is complete.
#[derive(Default)]
struct Draft {
    events: Vec<Event>,
    chunks: Vec<(usize, Range<usize>)>,
    used_bytes: usize,
    open_bytes: usize,
}

impl Draft {
    fn push(&mut self, kind: Kind) {
        self.events.push(Event { kind: Some(kind) });
    }

    fn is_full(&self) -> bool {
        self.events.len() >= REQUEST_EVENTS_MAX
            || self.open_bytes >= REQUEST_OPENS_BYTES_MAX
            || REQUEST_BYTES_MAX - self.used_bytes < FRAME_BYTES_MAX
    }
}

impl Gatherer {
    /// Returns a gatherer with no call.
    pub(crate) fn new(table: Arc<Table>, signals: Arc<Signals>, seed: u64) -> Self {
        let now = Instant::now();
        Self {
            table,
            signals,
            seed,
            began: now,
            now,
            asked: now,
            streams: HashMap::new(),
            queue: VecDeque::new(),
            ready: Vec::new(),
            surplus: BTreeMap::new(),
            retries: Vec::new(),
            buffers: Buffers::default(),
        }
    }

    /// Forgets the last call: nothing is in flight, and every stream that has something to say
    /// has to open again. Between calls, so that what is in flight nowhere can be dropped.
    pub(crate) fn reset(&mut self, now: Instant) {
        self.began = now;
        self.now = now;
        self.asked = now;
        self.streams.clear();
        self.queue.clear();
        self.surplus.clear();
        self.retries.clear();
        for stream in self.table.streams() {
            stream.journal().rewind();
            self.enqueue_stream(&stream);
        }
    }

    /// Returns whether anything sent is not acknowledged.
    pub(crate) fn has_in_flight(&self) -> bool {
        self.streams.values().any(|call| {
            let is_open = matches!(call.phase, Phase::Open { .. });
            is_open && call.stream.journal().has_in_flight()
        })
    }

    /// Applies what the shipper said. Blocks on the disk.
    pub(crate) fn apply(&mut self, responses: &mut Vec<ShipResponse>, now: Instant) -> Round {
        self.now = now;
        let mut round = Round::default();
        for response in responses.drain(..) {
            for opened in response.opened {
                self.opened(opened.stream, opened.window_bytes, &mut round);
            }
            for ack in response.acks {
                self.acked(&ack, &mut round);
            }
            for window in response.windows {
                self.resized(window.stream, window.bytes, &mut round);
            }
            for refused in response.refused {
                self.refused(refused.stream, refused.reason);
            }
        }
        round.wake_at = self.retries.iter().map(|&(at, _)| at).min();
        round
    }

    /// Returns how many streams wait to be tried again.
    #[cfg(any(test, feature = "fuzz"))]
    pub(crate) fn retry_count(&self) -> usize {
        self.retries.len()
    }

    /// Returns the host's counters, with those of streams that are over from a number on, and the
    /// number from which on they are new next time.
    pub(crate) fn report(&mut self, finals_from: u64) -> (HostReport, u64) {
        self.count_ahead();
        let (streams, finals_next) = self.table.reports(finals_from);
        let report = HostReport {
            host: self.table.host_name().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            streams,
        };
        (report, finals_next)
    }

    /// Counts what waits in the journals, a part of it at a time if it is much.
    fn count_ahead(&mut self) {
        let mut streams = self.table.streams();
        let mut buffer = self.buffers.take();
        let mut left_bytes = COUNT_BYTES_MAX;
        while left_bytes > 0 && !streams.is_empty() {
            streams.retain(|stream| {
                let bytes = match left_bytes {
                    0 => 0,
                    _ => stream.journal().count_ahead(&mut buffer),
                };
                left_bytes = left_bytes.saturating_sub(bytes);
                bytes > 0
            });
        }
        self.buffers.put(buffer);
    }

    /// Learns that the shipper has noted the last counters of all streams that are over, below a
    /// number. Blocks on the disk.
    pub(crate) fn told(&self, finals_next: u64) {
        self.table.told(finals_next);
    }

    /// Fills a request. With nothing to send there is one only if the shipper is to be told the time.
    /// Blocks on the disk.
    pub(crate) fn gather(&mut self, now: Instant, tells_time: bool, round: &mut Round) {
        self.now = now;
        self.enqueue_ready();
        self.asked = now;
        let mut draft = Draft::default();
        let mut buffer = self.buffers.take();
        while !draft.is_full() {
            let Some((_, number)) = self.queue.pop_front() else {
                break;
            };
            self.turn(number, &mut buffer, &mut draft);
        }
        round.has_more = !self.queue.is_empty();
        round.wake_at = self.retries.iter().map(|&(at, _)| at).min();
        let frames = self.buffers.put(buffer);
        for (index, range) in draft.chunks {
            if let Some(Event {
                kind: Some(Kind::Chunk(chunk)),
            }) = draft.events.get_mut(index)
            {
                chunk.frames = frames.slice(range);
            }
        }
        if tells_time || !draft.events.is_empty() {
            let served_at = self.queue.front().map_or(now, |&(since, _)| since);
            round.request = Some(ShipRequest {
                events: draft.events,
                gathered_ms: Some(self.call_ms(now)),
                served_ms: self.call_ms(served_at),
            });
        }
    }

    /// Says when a request was complete.
    pub(crate) fn stamp(&self, round: &mut Round, now: Instant) {
        if let Some(request) = &mut round.request {
            request.gathered_ms = Some(self.call_ms(now));
        }
    }

    /// Returns a time on the clock that the shipper is told.
    fn call_ms(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.began);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    fn enqueue_ready(&mut self) {
        let mut ready = std::mem::take(&mut self.ready);
        self.signals.take_ready(&mut ready);
        for stream in ready.drain(..) {
            self.enqueue_stream(&stream);
        }
        self.ready = ready;
        let mut due = Vec::new();
        self.retries.retain(|&(at, number)| {
            let is_due = at <= self.now;
            if is_due {
                due.push(number);
            }
            !is_due
        });
        for number in due {
            if let Some(call) = self.streams.get_mut(&number)
                && call.phase == Phase::Refused
            {
                call.phase = Phase::Waiting;
            }
            self.enqueue(number);
        }
    }

    fn enqueue_stream(&mut self, stream: &Arc<Stream>) {
        let number = stream.number();
        if !self.streams.contains_key(&number) {
            if self.streams.len() >= STREAMS_PER_CALL_MAX {
                // It becomes ready again whenever something arrives.
                self.surplus.insert(number, Arc::clone(stream));
                return;
            }
            let seed = self.seed ^ u64::from(number);
            self.streams.insert(
                number,
                CallStream {
                    stream: Arc::clone(stream),
                    phase: Phase::Waiting,
                    backoff: Backoff::new(REFUSED_BASE, REFUSED_CAP, seed),
                    refusal: None,
                    is_queued: false,
                    wants_credit: false,
                    says_more: false,
                    read_failure_count: 0,
                },
            );
        }
        self.enqueue(number);
    }

    fn enqueue(&mut self, number: u32) {
        if let Some(call) = self.streams.get_mut(&number)
            && !call.is_queued
        {
            call.is_queued = true;
            self.queue.push_back((self.asked, number));
        }
    }

    /// Lets a stream say one thing, and queues it again if it may have more.
    fn turn(&mut self, number: u32, buffer: &mut BytesMut, draft: &mut Draft) {
        let Some(call) = self.streams.get_mut(&number) else {
            return;
        };
        call.is_queued = false;
        let journal = call.stream.journal();
        if journal.is_complete() && call.phase == Phase::Waiting {
            self.retire(number);
            return;
        }
        let window_bytes = match call.phase {
            Phase::Open { window_bytes } => window_bytes,
            Phase::Waiting if journal.has_unsent() && journal.unacked_bytes() > 0 => {
                let open = call.stream.open_message();
                draft.open_bytes += prost::Message::encoded_len(&open);
                draft.push(Kind::Open(Box::new(open)));
                call.phase = Phase::OpenSent;
                return;
            }
            Phase::Waiting | Phase::OpenSent | Phase::Refused => return,
        };
        let end = buffer.len().min(draft.used_bytes + CHUNK_BYTES_MAX);
        let into = buffer.get_mut(draft.used_bytes..end).unwrap_or_default();
        call.wants_credit = false;
        let may_have_more = match journal.next(window_bytes, into) {
            Ok(next) => {
                call.read_failure_count = 0;
                call.say(next, draft)
            }
            Err(error) => {
                if let Some(suppressed_count) = READ_FAILED.pass() {
                    tracing::error!(
                        suppressed_count,
                        error = %crate::Chain(&error),
                        container = call.stream.container_id(),
                        "could not read a journal"
                    );
                }
                // What only lacks a file descriptor for now is not given up.
                call.read_failure_count += u32::from(!error.is_shortage());
                if call.read_failure_count >= READ_ATTEMPTS_MAX {
                    call.stream.journal().skip_unreadable();
                    call.read_failure_count = 0;
                }
                call.say_more(true, draft);
                self.retries.push((self.now + READ_RETRY, number));
                false
            }
        };
        if may_have_more {
            self.enqueue(number);
        } else {
            self.retire_if_done(number);
        }
    }

    fn opened(&mut self, number: u32, window_bytes: u64, round: &mut Round) {
        let Some(call) = self.streams.get_mut(&number) else {
            return;
        };
        match call.phase {
            Phase::OpenSent | Phase::Open { .. } => {}
            Phase::Waiting | Phase::Refused => {
                round.fault = Some(call.not_asked("opens"));
                return;
            }
        }
        call.phase = Phase::Open { window_bytes };
        call.says_more = false;
        call.backoff.reset();
        call.refusal = None;
        round.has_credit = true;
        self.enqueue(number);
    }

    fn acked(&mut self, ack: &Ack, round: &mut Round) {
        // A stream that is retired may be acknowledged once more.
        let Some(call) = self.streams.get_mut(&ack.stream) else {
            return;
        };
        if !matches!(call.phase, Phase::Open { .. }) {
            round.fault = Some(call.not_asked("acknowledges"));
            return;
        }
        let fates = SettledCounts {
            delivered: ack.delivered_entries,
            filtered: ack.filtered_entries,
            dead_lettered: ack.dead_lettered_entries,
        };
        match call.stream.journal().ack(ack.offset, fates) {
            Ok(()) => {}
            Err(error @ (AckError::BeyondSent { .. } | AckError::InsideEntry { .. })) => {
                let container = call.stream.container_id();
                round.fault = Some(format!("container {container}: {error}"));
                return;
            }
            Err(error @ AckError::Unearned { .. }) => {
                if let Some(suppressed_count) = UNEARNED.pass() {
                    tracing::error!(
                        suppressed_count,
                        %error,
                        container = call.stream.container_id(),
                        "the shipper claims more entries than it was sent: the rest is not counted"
                    );
                }
            }
            Err(error @ AckError::Save(_)) => {
                if let Some(suppressed_count) = SAVE_FAILED.pass() {
                    tracing::warn!(
                        suppressed_count,
                        error = %crate::Chain(&error),
                        container = call.stream.container_id(),
                        "an acknowledgement is not on disk"
                    );
                }
            }
        }
        if std::mem::take(&mut call.wants_credit) {
            round.has_credit = true;
            self.enqueue(ack.stream);
        }
        self.retire_if_done(ack.stream);
    }

    fn resized(&mut self, number: u32, bytes: u64, round: &mut Round) {
        let Some(call) = self.streams.get_mut(&number) else {
            return;
        };
        if let Phase::Open { window_bytes } = &mut call.phase {
            *window_bytes = bytes;
            if std::mem::take(&mut call.wants_credit) {
                round.has_credit = true;
                self.enqueue(number);
            }
        }
    }

    fn refused(&mut self, number: u32, reason: String) {
        let Some(call) = self.streams.get_mut(&number) else {
            return;
        };
        if matches!(call.phase, Phase::Waiting | Phase::Refused) {
            // Said before: each refusal would be one more to wait for.
            return;
        }
        call.phase = Phase::Refused;
        call.stream.journal().rewind();
        let reason = crate::explain::shown(&reason);
        if call.refusal.as_ref() != Some(&reason) {
            tracing::warn!(
                container = call.stream.container_id(),
                reason,
                "the shipper refuses a container: its entries stay in the journal"
            );
            call.refusal = Some(reason);
        }
        // At least half of it: a refusal is seldom over within a moment.
        let delay = call.backoff.next_delay().max(REFUSED_BASE / 2);
        self.retries.push((self.now + delay, number));
    }

    fn retire_if_done(&mut self, number: u32) {
        let is_done = self.streams.get(&number).is_some_and(|call| {
            let journal = call.stream.journal();
            journal.is_complete() && !journal.has_unsent()
        });
        if is_done {
            self.retire(number);
        }
    }

    fn retire(&mut self, number: u32) {
        if let Some(call) = self.streams.remove(&number) {
            self.table.retire(&call.stream);
        }
        if let Some((_, stream)) = self.surplus.pop_first() {
            self.enqueue_stream(&stream);
        }
    }
}

impl CallStream {
    /// Returns how a shipper broke the contract that answers what this stream did not ask.
    fn not_asked(&self, what: &str) -> String {
        let (number, container) = (self.stream.number(), self.stream.container_id());
        format!("it {what} stream {number} of container {container}, which is not open")
    }

    /// Says whether more will come as soon as there is room in the window, unless that was said last.
    fn say_more(&mut self, has_more: bool, draft: &mut Draft) {
        if std::mem::replace(&mut self.says_more, has_more) != has_more {
            draft.push(Kind::Chunk(Chunk {
                stream: self.stream.number(),
                first_offset: self.stream.journal().sent_offset(),
                frames: Bytes::new(),
                has_more,
            }));
        }
    }

    /// Puts what a stream has to say into the request. Returns whether it may have more.
    fn say(&mut self, next: Next, draft: &mut Draft) -> bool {
        let stream = self.stream.number();
        match next {
            Next::Frames {
                first_offset,
                bytes,
            } => {
                let end = draft.used_bytes + bytes;
                draft
                    .chunks
                    .push((draft.events.len(), draft.used_bytes..end));
                draft.used_bytes = end;
                self.says_more = self.stream.journal().has_unsent();
                draft.push(Kind::Chunk(Chunk {
                    stream,
                    first_offset,
                    frames: Bytes::new(),
                    has_more: self.says_more,
                }));
                true
            }
            Next::Hole(hole) => {
                self.says_more = false;
                draft.push(Kind::Hole(hole_event(stream, &hole)));
                true
            }
            Next::Finish { end_offset } => {
                draft.push(Kind::Finish(Finish {
                    stream,
                    end_offset,
                    totals: None,
                }));
                false
            }
            Next::Idle => false,
            Next::NoCredit { is_window } => {
                self.wants_credit = true;
                self.say_more(is_window, draft);
                false
            }
            Next::NoRoom => true,
        }
    }
}

fn hole_event(stream: u32, hole: &Hole) -> relay::Hole {
    relay::Hole {
        stream,
        first_offset: hole.span.start,
        end_offset: hole.span.end,
        entries: hole.entries,
        first_time_nano: hole.first_time_nano,
        last_time_nano: hole.last_time_nano,
        reason: hole.reason.as_str().to_owned(),
    }
}

/// Buffers of requests, used again when the transport has let go of them: fresh memory would cost
/// more than what is copied into it.
#[derive(Debug, Default)]
struct Buffers {
    lent: Vec<Bytes>,
}

impl Buffers {
    /// Buffers kept: one being sent, one being filled.
    const KEPT_MAX: usize = 2;

    fn take(&mut self) -> BytesMut {
        for _ in 0..self.lent.len() {
            match self.lent.remove(0).try_into_mut() {
                Ok(buffer) => return buffer,
                Err(lent) => self.lent.push(lent),
            }
        }
        BytesMut::zeroed(REQUEST_BYTES_MAX)
    }

    fn put(&mut self, buffer: BytesMut) -> Bytes {
        let buffer = buffer.freeze();
        if self.lent.len() < Self::KEPT_MAX {
            self.lent.push(buffer.clone());
        }
        buffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_used_again_when_no_chunk_of_it_is_left() {
        let mut buffers = Buffers::default();
        let buffer = buffers.take();
        let address = buffer.as_ptr();
        let frames = buffers.put(buffer);
        let chunk = frames.slice(10..20);
        drop(frames);
        assert_ne!(
            buffers.take().as_ptr(),
            address,
            "a chunk is still being sent"
        );
        drop(chunk);
        let buffer = buffers.take();
        assert_eq!(
            (buffer.as_ptr(), buffer.len()),
            (address, REQUEST_BYTES_MAX)
        );
    }
}
