//! The driver's side of calls without network, pump or clock: a few streams whose journals are in
//! memory, and a script of bytes that stands for the shipper. Whatever the script says,
//!
//! - nothing panics, and what waits is bounded by the streams;
//! - an acknowledgement counts only up to what was sent in this call, and a journal keeps the rest;
//! - the counters never show more entries than were received;
//! - a good shipper that comes afterwards gets every byte that was not acknowledged, and each stream
//!   ends.
//!
//! A property test and the fuzz target `relay` play it. It is in no build of the product.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "a panic is what a model of calls is for"
)]

use crate::config::{Config, JOURNAL_BYTES_MIN, RawConfig};
use crate::disk::{Disk, RealDisk};
use crate::journal::{self, Appended, Bounds, Budget};
use crate::registry::{Registry, Signals};
use crate::relay::{GatherOutput, Gatherer};
use crate::stream::{NewStream, Stream};
use crate::table::Retention;
use prost::Message as _;
use proto::frame;
use proto::limits::MESSAGE_BYTES_MAX;
use proto::log_opts::Mode;
use proto::relay::event::Kind;
use proto::relay::{self, Ack, LogEntry, Opened, Refused, ShipResponse, Window};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Entries of each stream, and the bytes of their lines.
const STREAMS: [(usize, usize); 3] = [(1, 5), (60, 40), (40, 1_000)];

/// Rounds in which a good shipper ends every stream.
const ROUNDS_MAX: usize = 1_000;

/// What all plays share.
#[derive(Debug)]
pub struct CallModel {
    registry: Arc<Registry>,
    signals: Arc<Signals>,
    budget: Arc<Budget>,
    frames: Vec<Vec<u8>>,
}

impl Default for CallModel {
    fn default() -> Self {
        Self::new()
    }
}

impl CallModel {
    /// Makes one.
    ///
    /// # Panics
    /// The defaults of the settings are bad.
    pub fn new() -> Self {
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let config = Config::parse(&RawConfig::from_pairs([])).unwrap();
        let retention = Arc::new(Retention::from_config(&config, &disk));
        Self {
            registry: Arc::new(Registry::new(disk, retention)),
            signals: Arc::new(Signals::default()),
            budget: Arc::new(Budget::new(u64::MAX, u64::MAX)),
            frames: STREAMS.map(|(count, bytes)| frames(count, bytes)).into(),
        }
    }

    /// Plays a script.
    ///
    /// # Panics
    /// What the module promises does not hold.
    pub fn play(&self, script: &[u8]) {
        // Of a play that panicked.
        for stream in self.registry.streams() {
            self.registry.retire(&stream);
        }
        let mut play = Play::new(self);
        let mut script = Script(script);
        while let Some(step) = script.byte() {
            play.step(step, &mut script);
        }
        play.end_well();
    }

    fn stream(&self, number: usize) -> Arc<Stream> {
        let bounds = Bounds::new(JOURNAL_BYTES_MIN);
        let mut recovered = journal::in_memory(bounds, &self.budget);
        let (reads, writes) = rustix::pipe::pipe().unwrap();
        for bytes in self.frames[number].chunks(4 << 10) {
            assert_eq!(rustix::io::write(&writes, bytes), Ok(bytes.len()));
            let (appender, journal) = (&mut recovered.appender, &recovered.journal);
            let appended = appender.append(journal, reads.as_fd(), bytes.len(), Instant::now());
            assert_eq!(appended, Ok(Appended::MovedAndMore(bytes.len())));
        }
        recovered.journal.end();
        self.registry.insert(NewStream {
            journal: recovered.journal,
            open: relay::Open {
                container: Some(relay::Container {
                    id: format!("c{number}"),
                    ..relay::Container::default()
                }),
                ..relay::Open::default()
            },
            mode: Mode::Blocking,
            file: format!("/none/{number}").into(),
            folder: None,
            keep_file: false,
            is_adopted: false,
        })
    }
}

fn frames(count: usize, line_bytes: usize) -> Vec<u8> {
    let mut frames = Vec::new();
    for number in 0..count {
        let entry = LogEntry {
            source: "stdout".to_owned(),
            time_nano: 1_700_000_000_000_000_000,
            line: format!("{number:0line_bytes$}").into_bytes(),
            ..LogEntry::default()
        };
        frame::encode(&entry, &mut frames);
    }
    frames
}

/// What a shipper says, as bytes; what is beyond the end is nothing.
struct Script<'s>(&'s [u8]);

impl<'s> Script<'s> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn small(&mut self) -> usize {
        usize::from(self.byte().unwrap_or(0))
    }

    fn number(&mut self) -> u64 {
        let bytes = std::array::from_fn(|_| self.byte().unwrap_or(0));
        u64::from_le_bytes(bytes)
    }

    fn bytes(&mut self, count: usize) -> &'s [u8] {
        let (bytes, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        bytes
    }
}

/// One of the streams, and what the shipper has seen of it.
struct Actor {
    stream: Arc<Stream>,
    frames: Vec<u8>,
    entry_count: u64,
    /// Offset behind what was sent in this call.
    sent: u64,
}

struct Play<'r> {
    model: &'r CallModel,
    gatherer: Gatherer,
    actors: Vec<Actor>,
    now: Instant,
    /// What a good shipper would answer.
    due: ShipResponse,
}

impl<'r> Play<'r> {
    fn new(model: &'r CallModel) -> Self {
        let actor = |number: usize| Actor {
            stream: model.stream(number),
            frames: model.frames[number].clone(),
            entry_count: STREAMS[number].0 as u64,
            sent: 0,
        };
        let actors = (0..STREAMS.len()).map(actor).collect();
        let (registry, signals) = (&model.registry, &model.signals);
        let mut gatherer = Gatherer::new(Arc::clone(registry), Arc::clone(signals), "host-1", 1);
        let now = Instant::now();
        gatherer.reset(now);
        Self {
            model,
            gatherer,
            actors,
            now,
            due: ShipResponse::default(),
        }
    }

    fn step(&mut self, step: u8, script: &mut Script<'_>) {
        let mut said = ShipResponse::default();
        match step % 10 {
            0 | 1 => return self.gather(step % 10 == 1),
            2 => {
                let due = std::mem::take(&mut self.due);
                return self.hear(due);
            }
            3 => return self.begin_call(),
            4 => {
                let seconds = script.small() as u64;
                self.now += Duration::from_secs(seconds);
                return;
            }
            5 => {
                let count = script.small();
                match ShipResponse::decode(script.bytes(count)) {
                    Ok(decoded) => said = decoded,
                    Err(_) => return,
                }
            }
            6 => said.acks.push(self.ack(script)),
            7 => said.opened.push(Opened {
                stream: self.number(script),
                window_bytes: script.number(),
                hold_ms: None,
            }),
            8 => said.windows.push(Window {
                stream: self.number(script),
                bytes: script.number(),
                hold_ms: None,
            }),
            _ => {
                let (stream, count) = (self.number(script), script.small());
                let reason = String::from_utf8_lossy(script.bytes(count)).into_owned();
                said.refused = vec![Refused { stream, reason }; count];
            }
        }
        self.hear(said);
    }

    /// Returns the number of a stream, or one that none has.
    fn number(&self, script: &mut Script<'_>) -> u32 {
        let actor = self.actors.get(script.small() % (self.actors.len() + 1));
        actor.map_or(u32::MAX, |actor| actor.stream.number())
    }

    fn ack(&self, script: &mut Script<'_>) -> Ack {
        let number = self.number(script);
        let mut actors = self.actors.iter();
        let sent = actors.find(|actor| actor.stream.number() == number);
        let sent = sent.map_or(0, |actor| actor.sent);
        let offset = match script.small() % 5 {
            0 => sent,
            1 => sent + 1,
            2 => sent / 2,
            3 => u64::MAX,
            _ => script.number(),
        };
        let mut count = || match script.small() {
            255 => u64::MAX,
            count => count as u64 / 8,
        };
        Ack {
            stream: number,
            offset,
            delivered_entries: count(),
            filtered_entries: count(),
            dead_lettered_entries: count(),
            is_last: script.small().is_multiple_of(2),
        }
    }

    fn gather(&mut self, tells_time: bool) {
        let mut output = GatherOutput::default();
        self.gatherer.gather(self.now, tells_time, &mut output);
        let Some(request) = output.request else {
            return;
        };
        assert!(request.encoded_len() <= MESSAGE_BYTES_MAX);
        assert!(Some(request.served_ms) <= request.gathered_ms);
        for event in request.events {
            self.note(event.kind.expect("the driver sends what it knows"));
        }
    }

    fn note(&mut self, kind: Kind) {
        let (number, span) = match &kind {
            Kind::Open(open) => (open.stream, open.resume_offset..open.resume_offset),
            Kind::Chunk(chunk) => {
                let end = chunk.first_offset + chunk.frames.len() as u64;
                (chunk.stream, chunk.first_offset..end)
            }
            Kind::Hole(hole) => panic!("nothing was dropped: {hole:?}"),
            Kind::Finish(finish) => (finish.stream, finish.end_offset..finish.end_offset),
        };
        let mut actors = self.actors.iter_mut();
        let actor = actors
            .find(|actor| actor.stream.number() == number)
            .expect("only its streams are sent");
        match kind {
            Kind::Open(_) => {
                assert_eq!(span.end, actor.stream.journal().acked());
                actor.sent = span.end;
                self.due.opened.push(Opened {
                    stream: number,
                    window_bytes: 64 << 10,
                    hold_ms: None,
                });
            }
            Kind::Chunk(chunk) => {
                let [first, end] = [span.start, span.end].map(|at| usize::try_from(at).unwrap());
                assert_eq!(span.start, actor.sent, "without a gap");
                assert_eq!(chunk.frames, actor.frames[first..end]);
                actor.sent = span.end;
                self.due.acks.push(Ack {
                    stream: number,
                    offset: span.end,
                    delivered_entries: entry_count(&chunk.frames),
                    ..Ack::default()
                });
            }
            _ => {
                assert_eq!(span.end, actor.frames.len() as u64);
                self.due.acks.push(Ack {
                    stream: number,
                    offset: span.end,
                    is_last: true,
                    ..Ack::default()
                });
            }
        }
    }

    /// Lets the driver hear what the shipper says, and looks at what it made of it.
    fn hear(&mut self, said: ShipResponse) {
        let before: Vec<u64> = self.acked().collect();
        let output = self.gatherer.apply(&mut vec![said.clone()], self.now);
        for (actor, before) in self.actors.iter().zip(before) {
            let acked = actor.stream.journal().acked();
            let number = actor.stream.number();
            let is_said = |ack: &Ack| ack.stream == number && ack.offset == acked;
            assert!(acked == before || said.acks.iter().any(is_said));
            assert!(
                before <= acked && acked <= actor.sent,
                "{acked} was not sent"
            );
            let totals = actor.stream.journal().totals();
            assert!(totals.received <= actor.entry_count, "{totals:?}");
            let rest = actor.frames.len() as u64 - acked;
            assert_eq!(totals.buffered_bytes, rest, "the rest is kept");
        }
        assert!(self.gatherer.retry_count() <= self.actors.len());
        if output.fault.is_some() {
            self.begin_call();
        }
    }

    fn acked(&self) -> impl Iterator<Item = u64> {
        self.actors
            .iter()
            .map(|actor| actor.stream.journal().acked())
    }

    fn begin_call(&mut self) {
        self.gatherer.reset(self.now);
        self.due = ShipResponse::default();
        for actor in &mut self.actors {
            actor.sent = actor.stream.journal().acked();
        }
    }

    /// Plays a good shipper until every stream has ended.
    fn end_well(mut self) {
        self.begin_call();
        for _ in 0..ROUNDS_MAX {
            if self.model.registry.streams().is_empty() {
                break;
            }
            self.gather(false);
            let due = std::mem::take(&mut self.due);
            self.hear(due);
        }
        for actor in &self.actors {
            let journal = actor.stream.journal();
            assert_eq!(journal.acked(), actor.frames.len() as u64);
            assert_eq!(journal.totals().received, actor.entry_count);
        }
        assert!(self.model.registry.streams().is_empty(), "a stream is left");
    }
}

fn entry_count(mut frames: &[u8]) -> u64 {
    let mut count = 0;
    while let frame::Decoded::Frame { frame_bytes, .. } = frame::decode(frames) {
        frames = &frames[frame_bytes..];
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proto::relay::Event;

    /// What a model needs aoutput it.
    struct Stage {
        runtime: tokio::runtime::Runtime,
    }

    impl Stage {
        fn new() -> Self {
            let runtime = tokio::runtime::Builder::new_current_thread();
            Self {
                runtime: { runtime }.enable_all().build().unwrap(),
            }
        }

        fn model(&self) -> CallModel {
            CallModel::new()
        }
    }

    #[test]
    fn a_request_says_since_when_the_stream_waits_whose_turn_is_next() {
        const LINES: (usize, usize) = (300, 1_000);
        const STREAMS: u32 = 5;
        let stage = Stage::new();
        let _guard = stage.runtime.enter();
        let mut model = stage.model();
        model.frames = vec![frames(LINES.0, LINES.1); STREAMS as usize];
        let streams: Vec<_> = (0..STREAMS as usize).map(|at| model.stream(at)).collect();
        let (registry, signals) = (&model.registry, &model.signals);
        let mut gatherer = Gatherer::new(Arc::clone(registry), Arc::clone(signals), "host-1", 1);
        let began = Instant::now();
        let at = |second: u64| began + Duration::from_secs(second);
        gatherer.reset(at(0));
        let gather = |gatherer: &mut Gatherer, second, tells_time| {
            let mut output = GatherOutput::default();
            gatherer.gather(at(second), tells_time, &mut output);
            let request = output.request?;
            let count = request.events.len();
            Some((count, request.gathered_ms.unwrap(), request.served_ms))
        };
        assert_eq!(gather(&mut gatherer, 1, false), Some((5, 1_000, 1_000)));
        let opened = streams.iter().map(|stream| Opened {
            stream: stream.number(),
            window_bytes: 1 << 20,
            hold_ms: None,
        });
        let response = ShipResponse {
            opened: opened.collect(),
            ..ShipResponse::default()
        };
        gatherer.apply(&mut vec![response], at(2));
        // Two chunks of 256 KiB fill a request; what is left of a stream waits behind the others. What is
        // found may have come since the pass before.
        assert_eq!(gather(&mut gatherer, 3, false), Some((2, 3_000, 1_000)));
        assert_eq!(gather(&mut gatherer, 4, false), Some((2, 4_000, 1_000)));
        assert_eq!(gather(&mut gatherer, 5, false), Some((4, 5_000, 4_000)));
        // The last chunks, and the end of each stream.
        assert_eq!(gather(&mut gatherer, 6, false), Some((7, 6_000, 6_000)));
        assert_eq!(gather(&mut gatherer, 6, false), None);
        assert_eq!(gather(&mut gatherer, 7, true), Some((0, 7_000, 7_000)));
    }

    #[test]
    fn a_shipper_is_told_once_whether_more_waits_for_room_in_the_window() {
        let stage = Stage::new();
        let _guard = stage.runtime.enter();
        let mut model = stage.model();
        let line_frames = frames(1, 1_000);
        let frame_bytes = line_frames.len() as u64;
        model.frames = vec![frames(700, 1_000)];
        let stream = model.stream(0);
        let (registry, signals) = (&model.registry, &model.signals);
        let mut gatherer = Gatherer::new(Arc::clone(registry), Arc::clone(signals), "host-1", 1);
        let now = Instant::now();
        gatherer.reset(now);
        let gather = |gatherer: &mut Gatherer| -> Vec<(usize, bool)> {
            let mut output = GatherOutput::default();
            gatherer.gather(now, false, &mut output);
            let events = output
                .request
                .into_iter()
                .flat_map(|request| request.events);
            let chunk = |event: Event| match event.kind {
                Some(Kind::Chunk(chunk)) => Some((chunk.frames.len(), chunk.has_more)),
                _ => None,
            };
            events.filter_map(chunk).collect()
        };
        let hear = |gatherer: &mut Gatherer, response: ShipResponse| {
            assert_eq!(gatherer.apply(&mut vec![response], now).fault, None);
        };
        assert_eq!(gather(&mut gatherer), []);
        let opened = Opened {
            stream: stream.number(),
            window_bytes: 100 * frame_bytes,
            hold_ms: None,
        };
        let opened = ShipResponse {
            opened: vec![opened],
            ..ShipResponse::default()
        };
        hear(&mut gatherer, opened);
        let sent = gather(&mut gatherer);
        let sent_bytes: usize = sent.iter().map(|(bytes, _)| bytes).sum();
        assert!(sent.iter().all(|(_, has_more)| *has_more), "{sent:?}");
        let resized = |bytes| ShipResponse {
            windows: vec![relay::Window {
                stream: stream.number(),
                bytes,
                hold_ms: None,
            }],
            ..ShipResponse::default()
        };
        // Room for less than a frame: there is nothing new to say.
        hear(&mut gatherer, resized(sent_bytes as u64 + 10));
        assert_eq!(gather(&mut gatherer), []);
        // A bound of the journal's own is in the way, and no window helps.
        hear(&mut gatherer, resized(u64::MAX));
        let mut rest = gather(&mut gatherer);
        rest.extend(gather(&mut gatherer));
        assert_eq!(rest.pop(), Some((0, false)));
        assert!(rest.iter().all(|(_, has_more)| *has_more), "{rest:?}");
        assert_eq!(gather(&mut gatherer), []);
    }

    #[test]
    fn whatever_a_shipper_says_nothing_is_released_unsent_and_all_arrives_afterwards() {
        let stage = Stage::new();
        let _guard = stage.runtime.enter();
        let model = stage.model();
        proptest!(|(script in prop::collection::vec(any::<u8>(), 0..400))| {
            model.play(&script);
        });
    }
}
