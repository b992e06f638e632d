//! What the next request carries: one pass over the streams that have something to say.
//!
//! Pure of network and time: the session hands in the shipper's responses and the present time,
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
//! an acknowledgement of what was not sent, ends the call with the reason ([`GatherOutput::fault`]), and
//! nothing of it counts. What it says of streams that this call does not know is ignored: it may
//! cross their end.
//!
//! Bounds: a request holds `REQUEST_BYTES_MAX` of frames and `REQUEST_EVENTS_MAX` events; a stream
//! gives one chunk per turn, and turns go round, so that a busy stream does not delay a quiet one.
//! Beyond [`STREAMS_PER_CALL_MAX`] streams the next waits until one ends.
//!
//! A request says when it was gathered, and since when the stream waits whose turn is next. By that
//! the shipper tells what has not been written, the rest of a line, from what is on its way.

use super::call_stream::{CallStream, Phase, REFUSED_BASE};
use super::draft::{Buffers, Draft};
use super::explain;
use crate::chain::Chain;
use crate::journal::{AckError, SettledCounts};
use crate::logging::Throttle;
use crate::registry::{Registry, Signals};
use crate::stream::Stream;
use bytes::BytesMut;
use proto::limits::{CHUNK_BYTES_MAX, STREAMS_PER_CALL_MAX};
use proto::relay::{
    Ack, Event, HostReport, Opened, ShipRequest, ShipResponse, Window, event::Kind,
};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Bytes that are read per report to count entries that wait: some 10 ms of CPU.
const COUNT_BYTES_MAX: usize = 64 << 20;

/// How long that may take: a cold backlog is read at the disk's pace, and nothing is sent meanwhile.
const COUNT_TIME_MAX: Duration = Duration::from_millis(50);

/// How often a read may fail before the segment is given up.
const READ_ATTEMPTS_MAX: u32 = 3;

/// Delay before a failed read is tried again.
const READ_RETRY: Duration = Duration::from_secs(1);

/// How long bytes may wait in the pipe if the shipper does not say, in milliseconds.
const HOLD_MS_DEFAULT: u32 = 5;

static SAVE_FAILED: Throttle = Throttle::new();

static READ_FAILED: Throttle = Throttle::new();

static UNEARNED: Throttle = Throttle::new();

/// What a pass found.
#[derive(Debug, Default)]
pub(crate) struct GatherOutput {
    /// What to send, if anything.
    pub(crate) request: Option<ShipRequest>,
    /// The request was full: another one is waiting.
    pub(crate) has_more: bool,
    /// A stream that waited for credit has it.
    pub(crate) has_credit: bool,
    /// A stream waits for credit.
    pub(crate) wants_credit: bool,
    /// When to gather again although nothing happens.
    pub(crate) wake_at: Option<Instant>,
    /// The host's counters, if they were asked for.
    pub(crate) report: Option<HostReport>,
    /// The shipper broke the contract: the call must end.
    pub(crate) fault: Option<String>,
}

/// Everything that belongs to one call.
#[derive(Debug)]
pub(crate) struct Gatherer {
    registry: Arc<Registry>,
    signals: Arc<Signals>,
    host_name: String,
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

impl Gatherer {
    /// Returns a gatherer with no call.
    pub(crate) fn new(
        registry: Arc<Registry>,
        signals: Arc<Signals>,
        host_name: &str,
        seed: u64,
    ) -> Self {
        let now = Instant::now();
        Self {
            registry,
            signals,
            host_name: host_name.to_owned(),
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
        self.signals
            .set_unopened_hold(Some(Duration::from_millis(HOLD_MS_DEFAULT.into())));
        for stream in self.registry.streams() {
            stream.set_hold(None);
            stream.isolate(|| stream.journal().rewind());
            self.enqueue_stream(&stream);
        }
    }

    /// Learns that there is no call: bytes may gather in the pipes.
    pub(crate) fn detach(&self) {
        self.signals.set_unopened_hold(None);
    }

    /// Returns whether anything sent is not acknowledged.
    pub(crate) fn has_in_flight(&self) -> bool {
        self.streams.values().any(|call| {
            let is_open = matches!(call.phase, Phase::Open { .. });
            let stream = &call.stream;
            is_open && stream.isolate(|| stream.journal().has_in_flight()) == Some(true)
        })
    }

    /// Applies what the shipper said. Blocks on the disk.
    pub(crate) fn apply(
        &mut self,
        responses: &mut Vec<ShipResponse>,
        now: Instant,
    ) -> GatherOutput {
        self.now = now;
        let mut output = GatherOutput::default();
        for response in responses.drain(..) {
            for opened in response.opened {
                self.isolate(opened.stream, |this| this.opened(&opened, &mut output));
            }
            for ack in response.acks {
                self.isolate(ack.stream, |this| this.acked(&ack, &mut output));
            }
            for window in response.windows {
                self.isolate(window.stream, |this| this.resized(&window, &mut output));
            }
            for refused in response.refused {
                let (number, reason) = (refused.stream, refused.reason);
                self.isolate(number, |this| this.refused(number, reason));
            }
        }
        output.wake_at = self.retries.iter().map(|&(at, _)| at).min();
        output.wants_credit = self.streams.values().any(|call| call.wants_credit);
        output
    }

    /// Returns how many streams wait to be tried again.
    #[cfg(any(test, feature = "fuzz"))]
    pub(crate) fn retry_count(&self) -> usize {
        self.retries.len()
    }

    /// Returns the host's counters.
    pub(crate) fn report(&mut self) -> HostReport {
        self.count_ahead();
        HostReport {
            host: self.host_name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            streams: self.registry.reports(),
        }
    }

    /// Counts what waits in the journals, a part of it at a time if it is much.
    fn count_ahead(&mut self) {
        let mut streams = self.registry.streams();
        let mut buffer = self.buffers.take();
        let mut left_bytes = COUNT_BYTES_MAX;
        let until = Instant::now() + COUNT_TIME_MAX;
        while left_bytes > 0 && !streams.is_empty() {
            streams.retain(|stream| {
                let bytes = match left_bytes {
                    0 => 0,
                    _ if Instant::now() >= until => 0,
                    _ => stream
                        .isolate(|| stream.journal().count_ahead(&mut buffer))
                        .unwrap_or(0),
                };
                left_bytes = left_bytes.saturating_sub(bytes);
                bytes > 0
            });
        }
        self.buffers.put(buffer);
    }

    /// Fills a request. With nothing to send there is one only if the shipper is to be told the time.
    /// Blocks on the disk.
    pub(crate) fn gather(&mut self, now: Instant, tells_time: bool, output: &mut GatherOutput) {
        self.now = now;
        // What was read by then is among what follows.
        let last_read = self.signals.last_read(now);
        self.enqueue_ready();
        self.asked = now;
        let mut draft = Draft::default();
        let mut buffer = self.buffers.take();
        while !draft.is_full() {
            let Some((_, number)) = self.queue.pop_front() else {
                break;
            };
            let mark = draft.mark();
            let visited = self.isolate(number, |this| {
                this.visit_stream(number, &mut buffer, &mut draft);
            });
            if visited.is_none() {
                draft.back_to(&mark);
            }
        }
        output.has_more = !self.queue.is_empty();
        output.wake_at = self.retries.iter().map(|&(at, _)| at).min();
        output.wants_credit = self.streams.values().any(|call| call.wants_credit);
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
            let waits_since = self.queue.front().map_or(now, |&(since, _)| since);
            let served_at = waits_since.min(last_read);
            output.request = Some(ShipRequest {
                events: draft.events,
                gathered_ms: Some(self.call_ms(now)),
                served_ms: self.call_ms(served_at),
            });
        }
    }

    /// Says when a request was complete.
    pub(crate) fn stamp(&self, output: &mut GatherOutput, now: Instant) {
        if let Some(request) = &mut output.request {
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

    /// Works on one stream of the call. One that has failed leaves it: `None`.
    fn isolate(&mut self, number: u32, work: impl FnOnce(&mut Self)) -> Option<()> {
        let stream = Arc::clone(&self.streams.get(&number)?.stream);
        let done = stream.isolate(|| work(self));
        if done.is_none() {
            self.forget(number);
        }
        done
    }

    fn enqueue_stream(&mut self, stream: &Arc<Stream>) {
        if stream.is_failed() {
            return;
        }
        let number = stream.number();
        if !self.streams.contains_key(&number) {
            if self.streams.len() >= STREAMS_PER_CALL_MAX {
                // It becomes ready again whenever something arrives.
                self.surplus.insert(number, Arc::clone(stream));
                return;
            }
            let seed = self.seed ^ u64::from(number);
            let call = CallStream::new(Arc::clone(stream), seed);
            self.streams.insert(number, call);
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
    fn visit_stream(&mut self, number: u32, buffer: &mut BytesMut, draft: &mut Draft) {
        let Some(call) = self.streams.get_mut(&number) else {
            return;
        };
        call.is_queued = false;
        let journal = call.stream.journal();
        if call.stream.is_given_up() || call.stream.is_over_untold() {
            self.forget(number);
            return;
        }
        let window_bytes = match call.phase {
            Phase::Open { window_bytes } => window_bytes,
            Phase::Waiting if journal.has_unsent() && call.stream.has_to_open() => {
                call.opened_with = journal.totals();
                let open = call.stream.open_message();
                draft.open_bytes += prost::Message::encoded_len(&open);
                draft.push(Kind::Open(Box::new(open)));
                call.phase = Phase::OpenSent;
                return;
            }
            Phase::Waiting | Phase::OpenSent | Phase::Refused => return,
        };
        if call.read_retry_at.is_some_and(|at| self.now < at) {
            // Whatever else arrives: what fails now may go well then.
            return;
        }
        call.read_retry_at = None;
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
                        error = %Chain(&error),
                        container = call.stream.container_id(),
                        "could not read a journal"
                    );
                }
                // What only lacks a file descriptor for now is not given up.
                call.read_failure_count += u32::from(!error.is_shortage());
                call.say_more(true, draft);
                let is_given_up = call.read_failure_count >= READ_ATTEMPTS_MAX;
                if is_given_up {
                    call.stream.journal().skip_unreadable();
                    call.read_failure_count = 0;
                } else {
                    let retry_at = self.now + READ_RETRY;
                    call.read_retry_at = Some(retry_at);
                    self.retries.push((retry_at, number));
                }
                is_given_up
            }
        };
        if may_have_more {
            self.enqueue(number);
        }
    }

    fn opened(&mut self, opened: &Opened, output: &mut GatherOutput) {
        let (number, window_bytes) = (opened.stream, opened.window_bytes);
        let Some(call) = self.streams.get_mut(&number) else {
            return;
        };
        match call.phase {
            Phase::OpenSent | Phase::Open { .. } => {}
            Phase::Waiting | Phase::Refused => {
                output.fault = Some(call.not_asked("opens"));
                return;
            }
        }
        call.phase = Phase::Open { window_bytes };
        call.stream
            .set_hold(Some(opened.hold_ms.unwrap_or(HOLD_MS_DEFAULT)));
        call.says_more = false;
        call.backoff.reset();
        call.refusal = None;
        output.has_credit = true;
        self.enqueue(number);
    }

    fn acked(&mut self, ack: &Ack, output: &mut GatherOutput) {
        // A stream that is retired may be acknowledged once more.
        let Some(call) = self.streams.get_mut(&ack.stream) else {
            return;
        };
        if !matches!(call.phase, Phase::Open { .. }) {
            output.fault = Some(call.not_asked("acknowledges"));
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
                output.fault = Some(format!("container {container}: {error}"));
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
                        error = %Chain(&error),
                        container = call.stream.container_id(),
                        "an acknowledgement is not on disk"
                    );
                }
            }
        }
        if std::mem::take(&mut call.wants_credit) {
            output.has_credit = true;
            self.enqueue(ack.stream);
        }
        if ack.is_last {
            self.retire_if_done(ack.stream);
        }
    }

    fn resized(&mut self, window: &Window, output: &mut GatherOutput) {
        let (number, bytes) = (window.stream, window.bytes);
        let Some(call) = self.streams.get_mut(&number) else {
            return;
        };
        if let Phase::Open { window_bytes } = &mut call.phase {
            *window_bytes = bytes;
            if window.hold_ms.is_some() {
                call.stream.set_hold(window.hold_ms);
            }
            if std::mem::take(&mut call.wants_credit) {
                output.has_credit = true;
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
        let reason = explain::shown(&reason);
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

    /// Lets a stream go whose end, with its last counters, the shipper has taken.
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
        if let Some(call) = self.streams.get(&number) {
            self.registry.retire(&call.stream);
        }
        self.forget(number);
    }

    fn forget(&mut self, number: u32) {
        self.streams.remove(&number);
        if let Some((_, stream)) = self.surplus.pop_first() {
            self.enqueue_stream(&stream);
        }
    }
}
