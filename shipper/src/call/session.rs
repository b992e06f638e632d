//! One driver's call: its streams, their windows, and the way from a request to the lanes.
//!
//! What a driver may do is checked here: stream numbers, offsets without gaps, whole frames. A
//! request that breaks the contract ends the call with the reason; the driver opens its streams
//! again from the last acknowledged offset, so nothing is lost by it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use proto::frame::{self, Decoded};
use proto::limits::{OPEN_BYTES_MAX, REQUEST_EVENTS_MAX, STREAMS_PER_CALL_MAX};
use proto::relay::event::Kind;
use proto::relay::{
    Chunk, Container, Finish, Hole, Open, Opened, Refused, ShipRequest, ShipResponse, StreamReport,
};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Status, Streaming};
use tracing::{debug, info, warn};

use crate::base::phase::Phase;
use crate::call::age::CallAge;
use crate::call::hints::Hints;
use crate::call::host_clock::HostClock;
use crate::call::opening::{Opening, Understood, understand};
use crate::call::runs::RunBuilder;
use crate::call::shared::{Policy, Shared, cut};
use crate::call::stream::OpenStream;
use crate::keys::store::CredentialRef;
use crate::lane::outbox::Outbox;
use crate::lane::queue::{Lane, LaneKey, Stream, new_context_id};
use crate::lane::receipts::Progress;
use crate::lane::window::Window;
use crate::rules::tenant::Host;

/// How often windows are looked at.
const WINDOW_PERIOD: Duration = Duration::from_secs(1);

/// How far a host may be ahead of its allowance: a second's worth comes at once.
const ALLOWANCE_BURST: Duration = Duration::from_secs(1);

/// Streams of a call that are looked at for late records, for each of its requests; beyond it, once a
/// second.
const LOOKS_PER_REQUEST: usize = 256;

/// Events of one request that are taken: a later driver may send more than this one does.
const EVENTS_MAX: usize = 4 * REQUEST_EVENTS_MAX;

/// Bytes of a hole's reason. It becomes a record; the driver's are a word each.
const HOLE_REASON_BYTES_MAX: usize = 256;

/// Bytes of a host's name, as the driver has it.
const HOST_BYTES_MAX: usize = 255;

/// One call.
pub(crate) struct Session {
    shared: Arc<Shared>,
    host: Host,
    inbound: Streaming<ShipRequest>,
    outbox: Arc<Outbox>,
    streams: HashMap<u32, OpenStream>,
    phase: watch::Receiver<Phase>,
    policy: watch::Receiver<Arc<Policy>>,
    windows_due: Instant,
    host_clock: HostClock,
    /// Earliest time of the host at which a formatter gives up waiting for the rest of a record.
    flush_due: Option<Instant>,
    /// Streams that may be looked at for that.
    looks: usize,
    /// When the host's allowance covers what it has sent; requests are read until shortly before.
    paid_until: Instant,
    age: CallAge,
    has_ended: bool,
}

impl Session {
    /// Begins a call that makes way for another one at `age_max`.
    pub(crate) fn new(
        shared: Arc<Shared>,
        host: Host,
        inbound: Streaming<ShipRequest>,
        policy: watch::Receiver<Arc<Policy>>,
        age_max: Option<Duration>,
    ) -> Self {
        shared.metrics.hosts.inc();
        Self {
            phase: shared.phase.clone(),
            policy,
            shared,
            host,
            inbound,
            outbox: Arc::default(),
            streams: HashMap::new(),
            windows_due: Instant::now() + WINDOW_PERIOD,
            host_clock: HostClock::new(Instant::now()),
            flush_due: None,
            looks: 0,
            paid_until: Instant::now(),
            age: CallAge::begin(age_max, Instant::now()),
            has_ended: false,
        }
    }

    /// Returns the next response, reading and formatting requests until there is one; `None` when
    /// the call is over.
    pub(crate) async fn next(&mut self) -> Option<Result<ShipResponse, Status>> {
        loop {
            self.refuse_abandoned();
            if let Some(mut response) = self.outbox.take() {
                self.follow(&mut response);
                return Some(Ok(response));
            }
            let phase = *self.phase.borrow_and_update();
            if self.has_ended || phase == Phase::Ended {
                return None;
            }
            let now = Instant::now();
            self.follow_age(now);
            if self.age.is_over() || self.age.is_leaving() && self.is_all_acknowledged() {
                debug!("a call ends, for its age or because it is to begin by other rules");
                return None;
            }
            let read_due = Some(self.read_due()).filter(|due| *due > now);
            let may_read = phase == Phase::Serving && read_due.is_none() && !self.age.is_leaving();
            let due = [read_due, self.age.due()];
            let due = due.into_iter().flatten();
            let due = due.fold(self.windows_due, Instant::min);
            tokio::select! {
                biased;
                () = self.outbox.changed() => {}
                _ = self.phase.changed() => {}
                Ok(()) = self.policy.changed() => self.age = CallAge::leave(now),
                () = tokio::time::sleep_until(due) => self.maintain(Instant::now()),
                request = self.inbound.message(), if may_read => {
                    if let Err(status) = self.accept(request) {
                        self.has_ended = true;
                        return Some(Err(status));
                    }
                }
            }
        }
    }

    /// Refuses streams of which a task has failed: their driver opens them again from what is
    /// acknowledged. At a stop, where tasks are ended, the call itself is about to end.
    fn refuse_abandoned(&mut self) {
        for number in self.outbox.take_abandoned() {
            if *self.phase.borrow() != Phase::Serving || !self.streams.contains_key(&number) {
                continue;
            }
            warn!(
                stream = number,
                "a task of a stream has failed, the stream starts over"
            );
            self.shared.metrics.restarted_streams.inc();
            self.close(number);
            let reason = "a task of the shipper has failed, the stream starts over".to_owned();
            self.outbox.refuse(Refused {
                stream: number,
                reason,
            });
        }
    }

    fn follow_age(&mut self, now: Instant) {
        let was_leaving = self.age.is_leaving();
        self.age = self.age.next(now);
        if was_leaving && !self.age.is_leaving() {
            self.flush_due = self.earliest_flush();
        }
    }

    /// Returns whether the driver knows of all that was handed to lanes. What else has come waits
    /// for its rest, which the next call brings, and with it the beginning.
    fn is_all_acknowledged(&self) -> bool {
        let mut streams = self.streams.values();
        streams.all(|stream| stream.acked_offset >= stream.settled_offset)
    }

    /// Returns when the next request may be read: a host may be ahead of its allowance by
    /// [`ALLOWANCE_BURST`].
    fn read_due(&self) -> Instant {
        self.paid_until
            .checked_sub(ALLOWANCE_BURST)
            .unwrap_or(self.paid_until)
    }

    fn pay(&mut self, number: u32, bytes: usize, now: Instant) {
        let stream = self.streams.get(&number);
        if let Some(allowance) = stream.and_then(|stream| stream.allowance.as_ref()) {
            self.paid_until = self.paid_until.max(allowance.pay(bytes, now));
        }
    }

    /// Takes a request in. Lanes are woken once for all its events, so that they share batches.
    fn accept(&mut self, request: Result<Option<ShipRequest>, Status>) -> Result<(), Status> {
        let request = request.inspect_err(|status| {
            self.shared.note_too_large(&self.host, status);
        });
        let Some(request) = request? else {
            self.has_ended = true;
            return Ok(());
        };
        let event_count = request.events.len();
        if event_count > EVENTS_MAX {
            let rule = format!("a request has {event_count} events, at most {EVENTS_MAX}");
            return Err(Status::invalid_argument(rule));
        }
        let now = Instant::now();
        self.host_clock.follow(&request, now);
        let mut touched = Lanes::default();
        for event in request.events {
            match event.kind {
                // Of a kind that a later version knows.
                None => {}
                Some(Kind::Open(open)) => self.open(*open)?,
                Some(Kind::Chunk(chunk)) => self.chunk(&chunk, now, &mut touched)?,
                Some(Kind::Hole(hole)) => self.hole(&hole, now, &mut touched)?,
                Some(Kind::Finish(finish)) => self.finish(finish, now, &mut touched)?,
            }
        }
        self.looks = (self.looks + LOOKS_PER_REQUEST).min(STREAMS_PER_CALL_MAX);
        if self.looks >= self.streams.len() {
            self.flush_if_due(now, &mut touched);
        }
        touched.wake();
        Ok(())
    }

    fn open(&mut self, open: Open) -> Result<(), Status> {
        if self.streams.len() >= STREAMS_PER_CALL_MAX {
            let rule = format!("a call has at most {STREAMS_PER_CALL_MAX} streams");
            return Err(Status::resource_exhausted(rule));
        }
        if self.streams.contains_key(&open.stream) {
            return Err(broken(open.stream, "is opened twice"));
        }
        let number = open.stream;
        let what = Opening::of(&open);
        match self.try_open(open) {
            Ok(stream) => {
                let window_bytes = stream.window.announced();
                self.streams.insert(number, stream);
                self.shared.metrics.streams.inc();
                self.outbox.open(Opened {
                    stream: number,
                    window_bytes,
                    hold_ms: None,
                });
            }
            Err(faults) => {
                what.note(&self.shared, &self.host, &faults);
                let named = what.named(&faults);
                self.shared.note_refusal(&self.host, "open", &[named]);
                self.outbox.refuse(Refused {
                    stream: number,
                    reason: cut(&faults.join("; ")),
                });
            }
        }
        Ok(())
    }

    fn try_open(&self, open: Open) -> Result<OpenStream, Vec<String>> {
        check_open(&open).map_err(|fault| vec![fault])?;
        let Understood {
            key,
            formatter,
            left_out,
        } = understand(&self.shared.policy(), self.host.tenant(), &open)?;
        let faults = self
            .host
            .faults(&open.host, &key.target.topic_id, &key.credentials);
        if !faults.is_empty() {
            return Err(faults);
        }
        let permit = self.host.open_stream().map_err(|fault| vec![fault])?;
        Opening::of(&open).note(&self.shared, &self.host, &left_out);
        let container = open.container.unwrap_or_default();
        self.warn_of(&open.host, &container, &key, &left_out);
        let allowance = self.host.allowance(&open.host, Instant::now());
        info!(
            host = open.host,
            container = container.name,
            journal_id = open.journal_id,
            topic_id = key.target.topic_id,
            resume_offset = open.resume_offset,
            "stream opened"
        );
        self.shared
            .ledger
            .reopen(self.host.tenant(), &open.journal_id);
        let stream = Stream::new(
            open.stream,
            new_context_id(),
            open.host.clone(),
            formatter.log_tags().to_vec(),
            Arc::clone(&self.outbox),
        );
        let stream = Arc::new(stream.of_tenant(self.host.tenant()));
        let (lane, slot) = self.shared.lanes.join(&key, stream);
        Ok(OpenStream {
            formatter,
            window: Window::new(Arc::clone(lane.share()), open.resume_offset),
            lane,
            slot,
            next_offset: open.resume_offset,
            settled_offset: open.resume_offset,
            acked_offset: open.resume_offset,
            ahead: Vec::new(),
            has_more: false,
            flush_from: None,
            end_offset: None,
            journal_id: open.journal_id,
            hints: Hints::new(&container),
            host: open.host,
            acked: Progress::default(),
            totals: None,
            allowance,
            _permit: permit,
        })
    }

    /// Warns of options that work in another way than their user may expect.
    fn warn_of(&self, host: &str, container: &Container, key: &LaneKey, left_out: &[String]) {
        if matches!(key.credentials, CredentialRef::Own(_))
            && self.shared.warned.is_new(host, &container.id)
        {
            warn!(
                host = host,
                container = container.name,
                "secret_id and secret_key are log options of a container, and docker inspect shows \
                 them: use the log option credentials, and keep keys in the shipper"
            );
        }
        if !left_out.is_empty() {
            warn!(
                host = host,
                container = container.name,
                reason = cut(&left_out.join("; ")),
                "options that can't work are left out: the container's lines are shipped without what \
                 they ask for"
            );
        }
    }

    fn chunk(&mut self, chunk: &Chunk, now: Instant, touched: &mut Lanes) -> Result<(), Status> {
        // Events of a stream that was refused cross the refusal on their way.
        let Some(stream) = self.streams.get_mut(&chunk.stream) else {
            return Ok(());
        };
        stream.expect(chunk.stream, chunk.first_offset)?;
        stream.has_more = chunk.has_more;
        if chunk.frames.is_empty() {
            self.note_rest(chunk.stream);
            return Ok(());
        }
        stream.expect_room(chunk)?;
        let mut out = RunBuilder::new(&self.shared, now, &self.host_clock, chunk.frames.len());
        let mut rest: &[u8] = &chunk.frames;
        let mut entry_count = 0;
        while !rest.is_empty() {
            let Decoded::Frame { entry, frame_bytes } = frame::decode(rest) else {
                return Err(broken(
                    chunk.stream,
                    "sent a chunk that does not end with a frame",
                ));
            };
            rest = rest.get(frame_bytes..).unwrap_or_default();
            entry_count += 1;
            stream.push(entry, frame_bytes, &mut out);
        }
        stream.send(&mut out);
        if let Some(window_bytes) = stream.window.hold(stream.settled_offset) {
            self.outbox.resize(chunk.stream, window_bytes);
        }
        self.shared.metrics.received_entries.inc_by(entry_count);
        touched.add(&stream.lane);
        self.note_rest(chunk.stream);
        self.pay(chunk.stream, chunk.frames.len(), now);
        Ok(())
    }

    /// Makes a hole visible in CLS, at its place in the stream.
    fn hole(&mut self, hole: &Hole, now: Instant, touched: &mut Lanes) -> Result<(), Status> {
        let Some(stream) = self.streams.get_mut(&hole.stream) else {
            return Ok(());
        };
        stream.expect(hole.stream, hole.first_offset)?;
        if hole.end_offset < hole.first_offset {
            return Err(broken(
                hole.stream,
                "reports a hole that ends before it begins",
            ));
        }
        if hole.reason.len() > HOLE_REASON_BYTES_MAX {
            return Err(broken(hole.stream, "reports a hole with too long a reason"));
        }
        if !stream.window.skip(hole.end_offset) {
            return Err(broken(hole.stream, "reports too many holes at once"));
        }
        self.shared.metrics.dropped_entries.inc_by(hole.entries);
        let mut out = RunBuilder::new(&self.shared, now, &self.host_clock, 0);
        stream.formatter.push_hole(hole, &mut out.records);
        stream.next_offset = hole.end_offset;
        stream.has_more = false;
        stream.send(&mut out);
        touched.add(&stream.lane);
        self.note_rest(hole.stream);
        Ok(())
    }

    fn finish(&mut self, finish: Finish, now: Instant, touched: &mut Lanes) -> Result<(), Status> {
        let Some(stream) = self.streams.get_mut(&finish.stream) else {
            return Ok(());
        };
        stream.expect(finish.stream, finish.end_offset)?;
        let mut out = RunBuilder::new(&self.shared, now, &self.host_clock, 0);
        stream.formatter.finish(out.host_now, &mut out.records);
        stream.end_offset = Some(finish.end_offset);
        stream.totals = finish.totals;
        stream.send(&mut out);
        touched.add(&stream.lane);
        Ok(())
    }

    /// Keeps windows and streams in step with what the driver is about to be told, and tells it which
    /// streams are over.
    fn follow(&mut self, response: &mut ShipResponse) {
        for ack in &mut response.acks {
            let Some(stream) = self.streams.get_mut(&ack.stream) else {
                continue;
            };
            stream.acked_offset = stream.acked_offset.max(ack.offset);
            stream.acked.extend(ack.into());
            if let Some(window_bytes) = stream.window.acknowledge(ack.offset) {
                self.outbox.resize(ack.stream, window_bytes);
            }
            if stream.end_offset.is_some_and(|end| ack.offset >= end) {
                ack.is_last = true;
                if let Some(counters) = stream.last_counters() {
                    // The ledger lives as long as this process, so the log has them, too.
                    log_end(&stream.host, &counters);
                    let ledger = &self.shared.ledger;
                    ledger.finish(self.host.tenant(), &stream.host, counters);
                }
                self.close(ack.stream);
            } else {
                self.note_rest(ack.stream);
            }
        }
    }

    fn close(&mut self, number: u32) {
        if let Some(stream) = self.streams.remove(&number) {
            self.shared.lanes.leave(&stream.lane, stream.slot);
            self.shared.metrics.streams.dec();
        }
    }

    /// Looks at windows, at the time of a host that does not say it, and, whatever a host with very many
    /// streams may have asked for, at what is late.
    fn maintain(&mut self, now: Instant) {
        if self.windows_due > now {
            return;
        }
        self.windows_due = now + WINDOW_PERIOD;
        for (number, stream) in &mut self.streams {
            let mut resized = stream.window.shrink_if_idle();
            if stream.is_stuck() {
                // Others may have given back what was not to be had before.
                resized = stream.window.hold(stream.settled_offset).or(resized);
                if !stream.is_stuck() {
                    stream.wait_for_rest(&self.host_clock);
                }
            }
            if let Some(window_bytes) = resized {
                self.outbox.resize(*number, window_bytes);
            }
        }
        // What a host is ahead of its allowance has come, and is not read.
        if self.read_due() <= now {
            self.host_clock.assume_now(now);
        }
        let mut touched = Lanes::default();
        self.flush_if_due(now, &mut touched);
        touched.wake();
    }

    /// Flushes records that waited long enough for the rest of themselves. While the process stops or
    /// the call leaves, nothing is late: the next one gets the rest of a record, and with it the
    /// beginning, which is not acknowledged.
    fn flush_if_due(&mut self, now: Instant, touched: &mut Lanes) {
        let served = self.host_clock.served();
        if self.flush_due.is_none_or(|due| due > served) {
            return;
        }
        if *self.phase.borrow() != Phase::Serving || self.age.is_leaving() {
            self.flush_due = None;
            return;
        }
        self.looks = self.looks.saturating_sub(self.streams.len());
        for stream in self.streams.values_mut() {
            if stream.flush_due().is_none_or(|due| due > served) {
                continue;
            }
            if stream.is_kept_back() {
                stream.wait_for_rest(&self.host_clock);
                continue;
            }
            let mut out = RunBuilder::new(&self.shared, now, &self.host_clock, 0);
            stream.formatter.flush_due(served, &mut out.records);
            stream.send(&mut out);
            touched.add(&stream.lane);
        }
        self.flush_due = self.earliest_flush();
    }

    fn earliest_flush(&self) -> Option<Instant> {
        let streams = self.streams.values();
        streams.filter_map(OpenStream::flush_due).min()
    }

    /// Learns of what was received or acknowledged of a stream: how long it waits for its rest.
    fn note_rest(&mut self, number: u32) {
        let Some(stream) = self.streams.get_mut(&number) else {
            return;
        };
        stream.wait_for_rest(&self.host_clock);
        let due = [self.flush_due, stream.flush_due()];
        self.flush_due = due.into_iter().flatten().min();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let numbers: Vec<u32> = self.streams.keys().copied().collect();
        for number in numbers {
            self.close(number);
        }
        self.shared.metrics.hosts.dec();
    }
}

/// The lanes that a request touched, each once.
#[derive(Default)]
struct Lanes(Vec<Arc<Lane>>);

impl Lanes {
    fn add(&mut self, lane: &Arc<Lane>) {
        if !self.0.iter().any(|known| Arc::ptr_eq(known, lane)) {
            self.0.push(Arc::clone(lane));
        }
    }

    fn wake(&self) {
        self.0.iter().for_each(|lane| lane.wake());
    }
}

/// Checks what every `Open` must be, whatever its options are.
fn check_open(open: &Open) -> Result<(), String> {
    let bytes = prost::Message::encoded_len(open);
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if bytes > OPEN_BYTES_MAX {
        Err(format!(
            "log options and details of the container are {bytes} bytes, the limit is \
             {OPEN_BYTES_MAX}"
        ))
    } else if open.journal_id.len() != 32 || !open.journal_id.bytes().all(is_hex) {
        Err("the journal's id must be 32 lower-case hex digits".to_owned())
    } else {
        check_host_name(&open.host)
    }
}

/// Checks what a host says that its name is.
pub(crate) fn check_host_name(host: &str) -> Result<(), String> {
    let bytes = host.len();
    if bytes > HOST_BYTES_MAX {
        let rule = format!("the host name is {bytes} bytes, the limit is {HOST_BYTES_MAX}");
        return Err(rule);
    }
    if host.contains(proto::text::is_obeyed) {
        let host = proto::text::clean(host);
        return Err(format!("the host name \"{host}\" has control characters"));
    }
    Ok(())
}

/// Says what became of a stream's entries, once all of them are settled.
fn log_end(host: &str, counters: &StreamReport) {
    info!(
        host,
        container = counters.container_name,
        journal_id = counters.journal_id,
        received = counters.received_entries,
        delivered = counters.delivered_entries,
        filtered = counters.filtered_entries,
        dropped = counters.dropped_entries.values().sum::<u64>(),
        dead_lettered = counters.dead_lettered_entries,
        "stream finished"
    );
}

pub(super) fn broken(number: u32, what: &str) -> Status {
    Status::invalid_argument(format!("stream {number} {what}"))
}
