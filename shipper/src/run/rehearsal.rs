//! The shipper's side of calls without network or TLS: a script of bytes stands for a host. Whatever
//! the script says, nothing panics, only streams that were opened are accepted, and an
//! acknowledgement covers no more bytes and entries than were sent.
//!
//! A property test and the fuzz target `relay` play it. It is in no build of the product.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "a panic is what a rehearsal is for"
)]

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures_util::StreamExt as _;
use http::HeaderMap;
use prost::Message;
use proto::codec::{Bounded, BoundedDecoder};
use proto::frame::{self, Decoded};
use proto::limits::{MESSAGE_BYTES_MAX, RESPONSE_BYTES_MAX};
use proto::relay::event::Kind;
use proto::relay::relay_server::Relay as _;
use proto::relay::{
    CheckRequest, Chunk, Container, Event, Finish, Hole, HostReport, LogEntry, Open, ShipRequest,
    ShipResponse,
};
use tokio::sync::watch;
use tonic::{Request, Streaming};

use crate::base::clock::WallClock;
use crate::base::tasks::Tasks;
use crate::call::arrival::Arrival;
use crate::config::Config;
use crate::keys::store::CredentialStore;
use crate::send::client::Client;
use crate::{base::phase::Phase, call::service::RelayService};

/// Streams that a script speaks of.
const STREAMS: usize = 4;

/// Nobody listens here: what no filter takes out waits.
const CONFIG: &str = "[defaults]\nendpoint = \"http://127.0.0.1:1\"\ntopic_id = \"t\"\n\
    credentials = \"c\"\n[credentials.c]\nsource = \"inline\"\nsecret_id = \"AKIDEXAMPLE\"\n\
    secret_key = \"SKEXAMPLE\"\n";

/// Options that a stream may have; entries of the first are settled at once.
const OPTIONS: [&[(&str, &str)]; 4] = [
    &[("exclude-regex", "")],
    &[],
    &[("multiline-pattern", r"^\S"), ("exclude-regex", "")],
    &[("no-such-option", "x")],
];

/// What all plays share.
#[derive(Debug)]
pub struct Rehearsal {
    service: RelayService,
    _phase: watch::Sender<Phase>,
}

impl Rehearsal {
    /// Makes one, which serves root on the unix socket.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub fn new() -> Self {
        let config = Config::from_table(CONFIG.parse().unwrap(), std::iter::empty()).unwrap();
        let (sender, phase) = watch::channel(Phase::Serving);
        let tasks = Arc::new(Tasks::default());
        let clock = WallClock::system();
        let client = Client::default();
        let credentials = Arc::new(CredentialStore::new(
            &config.credentials,
            &config.endpoints,
            &clock,
            &client,
        ));
        let shared =
            crate::run::assemble::assemble(&config, clock, &credentials, &client, tasks, phase);
        Self {
            service: RelayService(Arc::new(shared)),
            _phase: sender,
        }
    }

    /// Plays a script.
    ///
    /// # Panics
    /// What the module promises does not hold.
    pub async fn play(&self, script: &[u8]) {
        let Some((kind, script)) = script.split_first() else {
            return;
        };
        match kind % 8 {
            0 => self.play_check(script).await,
            1 => self.play_report(script).await,
            2 => self.play_ship(vec![script.to_vec()]).await,
            _ => self.play_ship(Host::new(script).requests()).await,
        }
    }

    /// Returns a request of root on the unix socket.
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let extensions = request.extensions_mut();
        extensions.insert(Arrival::over_unix(Some(0)));
        let caller = self.service.0.admit(&HeaderMap::new(), extensions);
        extensions.insert(caller.unwrap());
        request
    }

    async fn play_check(&self, message: &[u8]) {
        if let Ok(check) = CheckRequest::decode(message) {
            let answer = self.service.check(self.request(check)).await.unwrap();
            assert!(answer.into_inner().encoded_len() < RESPONSE_BYTES_MAX);
        }
    }

    async fn play_report(&self, message: &[u8]) {
        let reports = streaming::<HostReport>(&[message.to_vec()]);
        self.service.report(self.request(reports)).await.ok();
        let shared = &self.service.0;
        shared.metrics.render(tokio::time::Instant::now());
        crate::show::ledger::table(&shared.ledger.lines());
    }

    async fn play_ship(&self, messages: Vec<Vec<u8>>) {
        let sent = Sent::of(&messages);
        let calls = self.request(streaming::<ShipRequest>(&messages));
        let mut responses = self.service.ship(calls).await.unwrap().into_inner();
        let mut settled: HashMap<u32, u64> = HashMap::new();
        while let Some(Ok(response)) = responses.next().await {
            assert!(response.encoded_len() < RESPONSE_BYTES_MAX);
            sent.check(&response, &mut settled);
        }
        drop(responses);
        assert_eq!(self.service.0.metrics.streams.get(), 0);
        assert_eq!(self.service.0.budget.granted(), 0);
    }
}

impl Default for Rehearsal {
    fn default() -> Self {
        Self::new()
    }
}

/// Returns messages as they come over the wire.
fn streaming<M: Bounded>(messages: &[Vec<u8>]) -> Streaming<M> {
    let mut body = Vec::new();
    for message in messages {
        body.push(0);
        let bytes = u32::try_from(message.len()).unwrap();
        body.extend(bytes.to_be_bytes());
        body.extend(message);
    }
    let (decoder, body) = (BoundedDecoder::default(), axum::body::Body::from(body));
    Streaming::new_request(decoder, body, None, Some(MESSAGE_BYTES_MAX))
}

/// What a host has sent at most, by stream.
#[derive(Default)]
struct Sent {
    opened: HashSet<u32>,
    ends: HashMap<u32, u64>,
    entries: HashMap<u32, u64>,
}

impl Sent {
    fn of(messages: &[Vec<u8>]) -> Self {
        let mut sent = Self::default();
        let decoded = messages
            .iter()
            .map_while(|message| ShipRequest::decode(message.as_slice()).ok());
        for kind in decoded.flat_map(|request| request.events) {
            match kind.kind {
                None | Some(Kind::Finish(_)) => {}
                Some(Kind::Open(open)) => {
                    sent.opened.insert(open.stream);
                    sent.reach(open.stream, open.resume_offset);
                }
                Some(Kind::Chunk(chunk)) => {
                    let bytes = chunk.frames.len() as u64;
                    sent.reach(chunk.stream, chunk.first_offset.saturating_add(bytes));
                    *sent.entries.entry(chunk.stream).or_default() += count(&chunk.frames);
                }
                Some(Kind::Hole(hole)) => sent.reach(hole.stream, hole.end_offset),
            }
        }
        sent
    }

    fn reach(&mut self, stream: u32, offset: u64) {
        let end = self.ends.entry(stream).or_default();
        *end = offset.max(*end);
    }

    fn check(&self, response: &ShipResponse, settled: &mut HashMap<u32, u64>) {
        for opened in &response.opened {
            assert!(self.opened.contains(&opened.stream), "{opened:?}");
        }
        for ack in &response.acks {
            assert!(self.ends[&ack.stream] >= ack.offset, "{ack:?}");
            let settled = settled.entry(ack.stream).or_default();
            *settled += ack.delivered_entries + ack.filtered_entries + ack.dead_lettered_entries;
            let sent = self.entries.get(&ack.stream).copied().unwrap_or(0);
            assert!(*settled <= sent, "{ack:?}: {settled} of {sent}");
        }
    }
}

fn count(mut frames: &[u8]) -> u64 {
    let mut count = 0;
    while let Decoded::Frame { frame_bytes, .. } = frame::decode(frames) {
        frames = &frames[frame_bytes..];
        count += 1;
    }
    count
}

/// A host that makes requests of a script, many of which are nearly right.
struct Host<'s> {
    script: &'s [u8],
    next: [u64; STREAMS],
    events: Vec<Event>,
    /// What it says that the time is.
    time: Option<[u64; 2]>,
    requests: Vec<Vec<u8>>,
}

impl<'s> Host<'s> {
    fn new(script: &'s [u8]) -> Self {
        Self {
            script,
            next: [0; STREAMS],
            events: Vec::new(),
            time: None,
            requests: Vec::new(),
        }
    }

    fn requests(mut self) -> Vec<Vec<u8>> {
        while let Some(step) = self.byte() {
            let stream = self.small() % STREAMS;
            match step % 12 {
                0..=2 => self.open(stream),
                3..=6 => self.chunk(stream),
                7 => self.hole(stream),
                8 => {
                    let end_offset = self.offset(stream);
                    self.push(Kind::Finish(Finish {
                        stream: number(stream),
                        end_offset,
                        totals: None,
                    }));
                }
                9 => {
                    let bytes = self.small();
                    let message = self.bytes(bytes).to_vec();
                    self.end_request();
                    self.requests.push(message);
                }
                10 => self.end_request(),
                _ => {
                    self.time = Some([self.number(), self.number()]);
                    self.end_request();
                }
            }
        }
        self.end_request();
        self.requests
    }

    fn open(&mut self, stream: usize) {
        let resume_offset = match self.small() % 4 {
            0 => self.number(),
            1 => u64::MAX,
            _ => 0,
        };
        let options = OPTIONS[self.small() % OPTIONS.len()];
        let pair = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        self.next[stream] = resume_offset;
        self.push(Kind::Open(Box::new(Open {
            stream: number(stream),
            journal_id: format!("{stream:032x}"),
            container: (resume_offset == 0).then(Container::default),
            log_opts: options.iter().map(pair).collect(),
            host: "host-1".to_owned(),
            resume_offset,
        })));
    }

    fn chunk(&mut self, stream: usize) {
        let mut frames = Vec::new();
        for _ in 0..self.small() % 8 {
            let bytes = self.small() * 16;
            let partial = self.small();
            let metadata = proto::relay::PartialLogEntryMetadata {
                last: partial == 3,
                id: "p".to_owned(),
                ordinal: i32::try_from(partial).unwrap(),
            };
            let entry = LogEntry {
                source: "stdout".to_owned(),
                time_nano: 1,
                line: vec![b'x'; bytes],
                partial: partial < 4,
                partial_log_metadata: (partial < 4).then_some(metadata),
            };
            frame::encode(&entry, &mut frames);
        }
        match self.small() % 8 {
            0 => drop(frames.pop()),
            1 => frames.extend([0, 0, 0, 3, 255, 255, 255]),
            2 => {
                let bytes = self.small();
                frames.extend(self.bytes(bytes));
            }
            _ => {}
        }
        let first_offset = self.offset(stream);
        self.next[stream] = first_offset.saturating_add(frames.len() as u64);
        self.push(Kind::Chunk(Chunk {
            stream: number(stream),
            first_offset,
            has_more: frames.len() % 2 == 1,
            frames: frames.into(),
        }));
    }

    fn hole(&mut self, stream: usize) {
        let first_offset = self.offset(stream);
        let end_offset = match self.small() % 4 {
            0 => self.number(),
            1 => u64::MAX,
            _ => first_offset.saturating_add(self.small() as u64),
        };
        self.next[stream] = end_offset;
        let (entries, reason_bytes) = (self.number(), self.small() * 2);
        let times = [self.number(), self.number()].map(u64::cast_signed);
        self.push(Kind::Hole(Hole {
            stream: number(stream),
            first_offset,
            end_offset,
            entries,
            first_time_nano: times[0],
            last_time_nano: times[1],
            reason: "r".repeat(reason_bytes),
        }));
    }

    /// Returns where a stream goes on, or seldom another offset.
    fn offset(&mut self, stream: usize) -> u64 {
        match self.small() {
            254 => self.number(),
            255 => u64::MAX,
            _ => self.next[stream],
        }
    }

    fn push(&mut self, kind: Kind) {
        self.events.push(Event { kind: Some(kind) });
    }

    fn end_request(&mut self) {
        let events = std::mem::take(&mut self.events);
        let request = ShipRequest {
            events,
            gathered_ms: self.time.map(|[gathered_ms, _]| gathered_ms),
            served_ms: self.time.map_or(0, |[_, served_ms]| served_ms),
        };
        self.requests.push(request.encode_to_vec());
    }

    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.script.split_first()?;
        self.script = rest;
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
        let (bytes, rest) = self.script.split_at(count.min(self.script.len()));
        self.script = rest;
        bytes
    }
}

fn number(stream: usize) -> u32 {
    u32::try_from(stream).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn whatever_a_host_says_no_more_is_acknowledged_than_it_sent() {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        let rehearsal = runtime.block_on(async { Rehearsal::new() });
        let scripts = (0_u8..16, prop::collection::vec(any::<u8>(), 0..400));
        proptest!(|((kind, rest) in scripts)| {
            runtime.block_on(rehearsal.play(&[&[kind], rest.as_slice()].concat()));
        });
    }
}
