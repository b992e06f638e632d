//! One driver's call: its streams, their windows, and the way from a request to the lanes.
//!
//! What a driver may do is checked here: stream numbers, offsets without gaps, whole frames. A
//! request that breaks the contract ends the call with the reason; the driver opens its streams
//! again from the last acknowledged offset, so nothing is lost by it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use proto::frame::{self, Decoded, EntryView, Source};
use proto::limits::{OPEN_BYTES_MAX, REQUEST_EVENTS_MAX, STREAMS_PER_CALL_MAX};
use proto::relay::event::Kind;
use proto::relay::{Chunk, Finish, Hole, Open, Opened, Refused, ShipRequest, ShipResponse};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Status, Streaming};
use tracing::{debug, info, warn};

use crate::credentials::CredentialRef;
use crate::host_clock::HostClock;
use crate::ingest::{Ingest, Phase, Policy, cut};
use crate::lane::outbox::Outbox;
use crate::lane::queue::{Lane, Run, SlotId, Stream, new_context_id};
use crate::lane::receipts::Progress;
use crate::record::{Counts, Fate, Formatter, Origin, Records};
use crate::tenant::{Allowance, Host, StreamPermit};
use crate::window::Window;

/// How often windows are looked at.
const WINDOW_PERIOD: Duration = Duration::from_secs(1);

/// Time of the host in which its driver sends what stands in the journal, once there is room for it,
/// before what waits for it counts as late. Should it not come in its turn, the stream is not to stand
/// still for ever.
const REST_WAIT_MAX: Duration = Duration::from_secs(60);

/// The same for what there is no room for, as long as the budget is used up.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(10);

/// How long a call that makes way for another one waits for its acknowledgements, while it reads
/// nothing. A lane that holds does not answer in time, and must not stop the host's other lanes: the
/// call then goes on, and tries again at the next age.
const LEAVE_WAIT_MAX: Duration = Duration::from_secs(2);

/// The shortest stay of a call: a driver takes a shipper that ends its calls at once for none.
const STAY_MIN: Duration = Duration::from_millis(500);

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
    ingest: Arc<Ingest>,
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
    stay: Stay,
    has_ended: bool,
}

/// How long the call stays, so that hosts spread over shippers anew.
#[derive(Debug, Clone, Copy)]
enum Stay {
    /// For ever: over a unix socket there is no other shipper.
    Unlimited,
    /// Until then, and for `age` more whenever that does not work out.
    Until { at: Instant, age: Duration },
    /// Nothing more is read, and the call ends once all is acknowledged, if that is in time. With
    /// an age, it goes on if not.
    Leaving { by: Instant, age: Option<Duration> },
    /// The call ends.
    Over,
}

impl Stay {
    /// Begins a stay of between a tenth of `age` and all of it: hosts that came together shall not
    /// leave together. The shorter the shortest one, the sooner they are mixed: with half of `age` they
    /// would all have changed to the next shipper once it is over, and change back in a body.
    fn begin(age: Option<Duration>, now: Instant) -> Self {
        use std::hash::{BuildHasher as _, RandomState};
        let Some(age) = age else {
            return Self::Unlimited;
        };
        let share = RandomState::new().hash_one(()) & u64::from(u16::MAX);
        let least = (age / 10).max(STAY_MIN).min(age);
        let jitter = (age - least).mul_f64(share as f64 / f64::from(u16::MAX));
        Self::Until {
            at: now + least + jitter,
            age,
        }
    }

    fn is_leaving(self) -> bool {
        matches!(self, Self::Leaving { .. })
    }

    fn is_over(self) -> bool {
        matches!(self, Self::Over)
    }

    /// Returns when it changes.
    fn due(self) -> Option<Instant> {
        match self {
            Self::Unlimited | Self::Over => None,
            Self::Until { at, .. } => Some(at),
            Self::Leaving { by, .. } => Some(by),
        }
    }

    /// Returns what follows at `now`.
    fn next(self, now: Instant) -> Self {
        match self {
            Self::Until { at, age } if at <= now => Self::Leaving {
                by: now + LEAVE_WAIT_MAX,
                age: Some(age),
            },
            Self::Leaving { by, age: Some(age) } if by <= now => Self::begin(Some(age), now),
            Self::Leaving { by, age: None } if by <= now => Self::Over,
            Self::Unlimited | Self::Until { .. } | Self::Leaving { .. } | Self::Over => self,
        }
    }

    /// Returns how a call stays that is to begin anew by other rules: not for long, whatever holds.
    fn leave(now: Instant) -> Self {
        Self::Leaving {
            by: now + LEAVE_WAIT_MAX,
            age: None,
        }
    }
}

/// One stream of a call.
struct OpenStream {
    formatter: Formatter,
    lane: Arc<Lane>,
    slot: SlotId,
    window: Window,
    next_offset: u64,
    /// What the runs so far cover.
    settled_offset: u64,
    /// What the driver has been told is delivered.
    acked_offset: u64,
    /// Fates of entries behind it, whose counts go with the run that covers them.
    ahead: Vec<Fate>,
    /// The journal has more of the stream.
    has_more: bool,
    /// Nothing is flushed for its age before this time of the host.
    flush_from: Option<Instant>,
    end_offset: Option<u64>,
    /// That of its host, if it has a limit.
    allowance: Option<Allowance>,
    _permit: StreamPermit,
}

impl Session {
    /// Begins a call that makes way for another one at `age_max`.
    pub(crate) fn new(
        ingest: Arc<Ingest>,
        host: Host,
        inbound: Streaming<ShipRequest>,
        policy: watch::Receiver<Arc<Policy>>,
        age_max: Option<Duration>,
    ) -> Self {
        ingest.metrics.hosts.inc();
        Self {
            phase: ingest.phase.clone(),
            policy,
            ingest,
            host,
            inbound,
            outbox: Arc::default(),
            streams: HashMap::new(),
            windows_due: Instant::now() + WINDOW_PERIOD,
            host_clock: HostClock::new(Instant::now()),
            flush_due: None,
            looks: 0,
            paid_until: Instant::now(),
            stay: Stay::begin(age_max, Instant::now()),
            has_ended: false,
        }
    }

    /// Returns the next response, reading and formatting requests until there is one; `None` when
    /// the call is over.
    pub(crate) async fn next(&mut self) -> Option<Result<ShipResponse, Status>> {
        loop {
            self.refuse_abandoned();
            if let Some(response) = self.outbox.take() {
                self.follow(&response);
                return Some(Ok(response));
            }
            let phase = *self.phase.borrow_and_update();
            if self.has_ended || phase == Phase::Ended {
                return None;
            }
            let now = Instant::now();
            self.follow_stay(now);
            if self.stay.is_over() || self.stay.is_leaving() && self.is_all_acknowledged() {
                debug!("a call ends, for its age or because it is to begin by other rules");
                return None;
            }
            let read_due = Some(self.read_due()).filter(|due| *due > now);
            let may_read = phase == Phase::Serving && read_due.is_none() && !self.stay.is_leaving();
            let due = [read_due, self.stay.due()];
            let due = due.into_iter().flatten();
            let due = due.fold(self.windows_due, Instant::min);
            tokio::select! {
                biased;
                () = self.outbox.changed() => {}
                _ = self.phase.changed() => {}
                Ok(()) = self.policy.changed() => self.stay = Stay::leave(now),
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
            self.ingest.metrics.restarted_streams.inc();
            self.close(number);
            let reason = "a task of the shipper has failed, the stream starts over".to_owned();
            self.outbox.refuse(Refused {
                stream: number,
                reason,
            });
        }
    }

    fn follow_stay(&mut self, now: Instant) {
        let was_leaving = self.stay.is_leaving();
        self.stay = self.stay.next(now);
        if was_leaving && !self.stay.is_leaving() {
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
            self.ingest.note_too_large(&self.host, status);
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
                Some(Kind::Finish(finish)) => self.finish(&finish, now, &mut touched)?,
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
        match self.try_open(open) {
            Ok(stream) => {
                let window_bytes = stream.window.announced();
                self.streams.insert(number, stream);
                self.ingest.metrics.streams.inc();
                self.outbox.open(Opened {
                    stream: number,
                    window_bytes,
                    hold_ms: None,
                });
            }
            Err(faults) => {
                self.ingest.note_refusal(&self.host, "open", &faults);
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
        let (opts, key) = self.ingest.policy().router.route(&open.log_opts)?;
        let faults = self
            .host
            .faults(&open.host, &key.target.topic_id, &key.credentials);
        if !faults.is_empty() {
            return Err(faults);
        }
        let permit = self.host.open_stream().map_err(|fault| vec![fault])?;
        let container = open.container.unwrap_or_default();
        if matches!(key.credentials, CredentialRef::Own(_))
            && self.ingest.warned.is_new(&open.host, &container.id)
        {
            warn!(
                host = open.host,
                container = container.name,
                "secret_id and secret_key are log options of a container, and docker inspect shows \
                 them: use the log option credentials, and keep keys in the shipper"
            );
        }
        let origin = Origin {
            container: &container,
            host: &open.host,
            journal_id: &open.journal_id,
            resume_offset: open.resume_offset,
        };
        let formatter = Formatter::new(&opts, &origin).map_err(|error| error.faults)?;
        let allowance = self.host.allowance(&open.host, Instant::now());
        info!(
            host = open.host,
            container = container.name,
            journal_id = open.journal_id,
            topic_id = key.target.topic_id,
            resume_offset = open.resume_offset,
            "stream opened"
        );
        let stream = Arc::new(Stream::new(
            open.stream,
            new_context_id(),
            open.host,
            formatter.log_tags().to_vec(),
            Arc::clone(&self.outbox),
        ));
        let (lane, slot) = self.ingest.lanes.join(&key, stream);
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
            allowance,
            _permit: permit,
        })
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
        let mut out = Out::new(&self.ingest, now, &self.host_clock, chunk.frames.len());
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
        self.ingest.metrics.received_entries.inc_by(entry_count);
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
        self.ingest.metrics.dropped_entries.inc_by(hole.entries);
        let mut out = Out::new(&self.ingest, now, &self.host_clock, 0);
        stream.formatter.push_hole(hole, &mut out.records);
        stream.next_offset = hole.end_offset;
        stream.has_more = false;
        stream.send(&mut out);
        touched.add(&stream.lane);
        self.note_rest(hole.stream);
        Ok(())
    }

    fn finish(&mut self, finish: &Finish, now: Instant, touched: &mut Lanes) -> Result<(), Status> {
        let Some(stream) = self.streams.get_mut(&finish.stream) else {
            return Ok(());
        };
        stream.expect(finish.stream, finish.end_offset)?;
        let mut out = Out::new(&self.ingest, now, &self.host_clock, 0);
        stream.formatter.finish(out.host_now, &mut out.records);
        stream.end_offset = Some(finish.end_offset);
        stream.send(&mut out);
        touched.add(&stream.lane);
        Ok(())
    }

    /// Keeps windows and streams in step with what the driver is about to be told.
    fn follow(&mut self, response: &ShipResponse) {
        for ack in &response.acks {
            let Some(stream) = self.streams.get_mut(&ack.stream) else {
                continue;
            };
            stream.acked_offset = stream.acked_offset.max(ack.offset);
            if let Some(window_bytes) = stream.window.acknowledge(ack.offset) {
                self.outbox.resize(ack.stream, window_bytes);
            }
            if stream.end_offset.is_some_and(|end| ack.offset >= end) {
                self.close(ack.stream);
            } else {
                self.note_rest(ack.stream);
            }
        }
    }

    fn close(&mut self, number: u32) {
        if let Some(stream) = self.streams.remove(&number) {
            self.ingest.lanes.leave(&stream.lane, stream.slot);
            self.ingest.metrics.streams.dec();
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
        if *self.phase.borrow() != Phase::Serving || self.stay.is_leaving() {
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
            let mut out = Out::new(&self.ingest, now, &self.host_clock, 0);
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
        self.ingest.metrics.hosts.dec();
    }
}

impl OpenStream {
    fn expect(&self, number: u32, offset: u64) -> Result<(), Status> {
        if self.end_offset.is_some() {
            return Err(broken(number, "sent an event after its finish"));
        }
        if offset != self.next_offset {
            let expected = self.next_offset;
            let what = format!("continues at offset {offset}, expected {expected}");
            return Err(broken(number, &what));
        }
        Ok(())
    }

    /// Checks that a chunk stays within the window and the offsets that there are.
    fn expect_room(&self, chunk: &Chunk) -> Result<(), Status> {
        let frames: &[u8] = &chunk.frames;
        let bytes = frames.len() as u64;
        if chunk.first_offset.checked_add(bytes).is_none() {
            return Err(broken(chunk.stream, "goes beyond the largest offset"));
        }
        let is_one_frame = match frame::decode(frames) {
            Decoded::Frame { frame_bytes, .. } => frame_bytes == frames.len(),
            Decoded::Incomplete | Decoded::Malformed(_) => false,
        };
        if self.window.may_take(bytes, is_one_frame) {
            return Ok(());
        }
        let window_bytes = self.window.announced();
        let what = format!("sends {bytes} bytes beyond its window of {window_bytes}");
        Err(broken(chunk.stream, &what))
    }

    /// Returns when something that waits for the rest of itself is late, by the host's clock.
    fn flush_due(&self) -> Option<Instant> {
        let due = self.formatter.next_due()?;
        Some(self.flush_from.map_or(due, |from| from.max(due)))
    }

    /// Puts off what is late if its rest stands in the host's journal, from where it comes once there is
    /// room in the window.
    fn wait_for_rest(&mut self, clock: &HostClock) {
        let wait_max = if self.is_stuck() {
            ROOM_WAIT_MAX
        } else {
            REST_WAIT_MAX
        };
        self.flush_from = self.has_more.then(|| clock.now() + wait_max);
    }

    /// Returns whether the host's journal holds what there is no room for, until something is
    /// acknowledged that is under way.
    fn is_kept_back(&self) -> bool {
        self.has_more && self.window.is_full() && self.settled_offset > self.acked_offset
    }

    /// Returns whether the window is full of nothing but what waits here for its rest: an
    /// acknowledgement will not open it.
    fn is_stuck(&self) -> bool {
        self.has_more && self.window.is_full() && self.settled_offset == self.acked_offset
    }

    fn push(&mut self, entry: &[u8], frame_bytes: usize, out: &mut Out<'_>) {
        let offset = self.next_offset;
        self.next_offset += frame_bytes as u64;
        let view = EntryView::parse(entry).unwrap_or_else(|error| {
            // The bytes are all there is, so they are what arrives; dropping them helps nobody.
            let count = out.ingest.metrics.malformed_entries.inc() + 1;
            // Ever more rarely: a host must not fill the log.
            if count.is_power_of_two() {
                warn!(%error, count, "entry is malformed, it is delivered as it is");
            }
            let time_nano = out.ingest.clock.unix_ms().saturating_mul(1_000_000);
            EntryView {
                source: Source::Stdout,
                time_nano,
                line: entry,
                partial: None,
            }
        });
        out.prepare();
        let mark = out.records.mark();
        let formatter = &mut self.formatter;
        let settled_before = formatter.settled_offset();
        formatter.push(
            offset,
            self.next_offset,
            &view,
            out.host_now,
            &mut out.records,
        );
        if out.is_beyond() {
            // The newest records go into a run of their own, and what settled with them as well.
            let newest = out.records.split_off(mark);
            self.hand_over(out, settled_before);
            out.records = newest;
        }
        if out.is_full() {
            self.send(out);
        }
    }

    /// Hands to the lane what there is, with all that has settled, and begins a new run.
    fn send(&mut self, out: &mut Out<'_>) {
        self.hand_over(out, self.formatter.settled_offset());
    }

    fn hand_over(&mut self, out: &mut Out<'_>, settled_offset: u64) {
        self.settled_offset = settled_offset;
        let Records {
            bytes,
            counts,
            fates,
        } = std::mem::take(&mut out.records);
        out.ingest
            .metrics
            .filtered_entries
            .inc_by(counts.filtered_entries);
        self.window.receive(self.next_offset, bytes.len() as u64);
        let joined = fates.iter().filter(|fate| fate.entries != 1);
        let joined = joined.filter_map(|fate| Some((fate.log?, fate.entries)));
        let joined: Vec<_> = joined.collect();
        let progress = self.progress(&counts, fates);
        if counts.logs == 0 {
            self.lane.settle(self.slot, progress);
            out.ingest.buffers.give(bytes);
        } else {
            let run = Run {
                logs: bytes,
                log_count: counts.logs,
                joined,
                progress,
            };
            self.lane.push(self.slot, run, out.now);
        }
    }

    /// Returns what is covered now. Entries that are out but lie behind the settled offset are not
    /// counted before it has passed them: a driver that starts over there sends them again.
    fn progress(&mut self, counts: &Counts, fates: Vec<Fate>) -> Progress {
        let mut progress = Progress {
            offset: self.settled_offset,
            delivered_entries: counts.delivered_entries,
            filtered_entries: counts.filtered_entries,
            dead_lettered_entries: 0,
        };
        for fate in &fates {
            *count_of(&mut progress, fate) -= fate.entries;
        }
        self.ahead.extend(fates);
        self.ahead.retain(|fate| {
            let is_covered = fate.end <= self.settled_offset;
            if is_covered {
                *count_of(&mut progress, fate) += fate.entries;
            }
            !is_covered
        });
        progress
    }
}

fn count_of<'p>(progress: &'p mut Progress, fate: &Fate) -> &'p mut u64 {
    match fate.log {
        Some(_) => &mut progress.delivered_entries,
        None => &mut progress.filtered_entries,
    }
}

/// How far a run may exceed its bound by its last record, before that one is moved on.
const PIECE_EXCESS_BYTES_MAX: usize = 64 << 10;

/// A chunk at least this large formats into a used buffer. A smaller one gets a buffer of its own
/// size: thousands of quiet streams must not sit on buffers that a busy one has grown.
const USED_BUFFER_BYTES_MIN: usize = 64 << 10;

/// Where a stream's records gather until they are a run.
struct Out<'a> {
    ingest: &'a Ingest,
    records: Records,
    now: Instant,
    /// When the request with the entries was gathered.
    host_now: Instant,
    is_large: bool,
}

impl<'a> Out<'a> {
    /// Makes room for the records of `frames_bytes` of entries.
    fn new(ingest: &'a Ingest, now: Instant, clock: &HostClock, frames_bytes: usize) -> Self {
        let is_large = frames_bytes >= USED_BUFFER_BYTES_MIN;
        let buffer = if is_large {
            Vec::new()
        } else {
            Vec::with_capacity(frames_bytes * 3 / 2)
        };
        Self {
            ingest,
            records: Records {
                bytes: buffer,
                ..Records::default()
            },
            now,
            host_now: clock.now(),
            is_large,
        }
    }

    /// Takes a used buffer only when there is something to put into it.
    fn prepare(&mut self) {
        if self.is_large && self.records.bytes.capacity() == 0 {
            self.records.bytes = self.ingest.buffers.take();
        }
    }

    fn is_full(&self) -> bool {
        self.records.bytes.len() >= self.ingest.run_bytes_max
            || self.records.counts.logs >= self.ingest.run_logs_max
    }

    /// Returns whether the last call added more than a batch has room for, so that it must go into
    /// a run of its own.
    fn is_beyond(&self) -> bool {
        self.records.bytes.len() > self.ingest.run_bytes_max + PIECE_EXCESS_BYTES_MAX
            || self.records.counts.logs > self.ingest.run_logs_max
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
    Ok(())
}

fn broken(number: u32, what: &str) -> Status {
    Status::invalid_argument(format!("stream {number} {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGE: Duration = Duration::from_secs(300);

    /// Returns when a stay that begins at `now` is over.
    fn end(now: Instant) -> Instant {
        let stay = Stay::begin(Some(AGE), now);
        stay.due().expect("a stay with an age has an end")
    }

    #[test]
    fn a_call_stays_for_its_age_at_most_and_never_for_next_to_nothing() {
        let now = Instant::now();
        for age in [1, 4, 300].map(Duration::from_secs) {
            let least = (age / 10).max(STAY_MIN);
            for _ in 0..10_000 {
                let stay = Stay::begin(Some(age), now).due().unwrap() - now;
                assert!((least..=age).contains(&stay), "{stay:?} of {age:?}");
            }
        }
        assert!(Stay::begin(None, now).due().is_none());
    }

    /// A shipper has died, so all its hosts are at the other one; with each stay that ends a host
    /// changes sides. The limits are six standard deviations (of 0.005, for 10,000 hosts) and more away
    /// from what is expected, which makes a chance below 1e-7 for all looks.
    #[test]
    fn hosts_that_came_together_are_spread_once_their_age_is_over() {
        const HOSTS: usize = 10_000;
        let began = Instant::now();
        let mut hosts: Vec<(Instant, bool)> = (0..HOSTS).map(|_| (end(began), false)).collect();
        for tenths in 10..40 {
            let now = began + AGE * tenths / 10;
            for (until, is_at_first) in &mut hosts {
                while *until <= now {
                    *until = end(*until);
                    *is_at_first = !*is_at_first;
                }
            }
            let count = hosts.iter().filter(|(_, is_at_first)| *is_at_first).count();
            let share = count as f64 / HOSTS as f64;
            // Expected: 0.68 at the age itself, between 0.44 and 0.53 from half an age later on.
            let limit = if tenths < 15 { 0.72 } else { 0.6 };
            assert!((1.0 - limit..limit).contains(&share), "{share} at {tenths}");
        }
    }
}
