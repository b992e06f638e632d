//! A driver's side of the relay, played by hand: its requests, and what it waits for.

use proto::relay::event::Kind;
use proto::relay::relay_client::RelayClient;
use proto::relay::{
    Ack, Chunk, Container, Event, Finish, LogEntry, Open, Opened, PartialLogEntryMetadata,
    ShipRequest, ShipResponse,
};
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// Returns a request of a driver that does not say what the time is.
pub(crate) fn request(kinds: impl IntoIterator<Item = Kind>) -> ShipRequest {
    let event = |kind| Event { kind: Some(kind) };
    ShipRequest {
        events: kinds.into_iter().map(event).collect(),
        ..ShipRequest::default()
    }
}

/// One call of the relay.
pub(crate) struct Call {
    pub(crate) requests: mpsc::Sender<ShipRequest>,
    responses: Streaming<ShipResponse>,
}

impl Call {
    pub(crate) async fn begin(channel: Channel) -> Result<Self, Status> {
        let (requests, receiver) = mpsc::channel(16);
        let responses = RelayClient::new(channel)
            .ship(ReceiverStream::new(receiver))
            .await?;
        Ok(Self {
            requests,
            responses: responses.into_inner(),
        })
    }

    pub(crate) async fn send(&self, kinds: Vec<Kind>) {
        self.requests.send(request(kinds)).await.unwrap();
    }

    /// Sends what a driver has gathered at a time of its own, having served all streams up to another.
    pub(crate) async fn send_at(&self, [gathered_ms, served_ms]: [u64; 2], kinds: Vec<Kind>) {
        let request = ShipRequest {
            gathered_ms: Some(gathered_ms),
            served_ms,
            ..request(kinds)
        };
        self.requests.send(request).await.unwrap();
    }

    /// Reads responses until one satisfies `wanted`; acknowledgements of a stream add up.
    pub(crate) async fn until<T>(
        &mut self,
        mut wanted: impl FnMut(&ShipResponse) -> Option<T>,
    ) -> Result<T, Status> {
        let read = async {
            loop {
                let response = self.responses.message().await?;
                let response = response.ok_or_else(|| Status::ok("the call has ended"))?;
                if let Some(found) = wanted(&response) {
                    return Ok(found);
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), read)
            .await
            .expect("an answer within 20 s")
    }

    pub(crate) async fn acked_to(&mut self, stream: u32, offset: u64) -> Result<Ack, Status> {
        let mut total = Ack {
            stream,
            ..Ack::default()
        };
        self.until(|response| {
            for ack in response.acks.iter().filter(|ack| ack.stream == stream) {
                total.offset = ack.offset;
                total.is_last |= ack.is_last;
                total.delivered_entries += ack.delivered_entries;
                total.filtered_entries += ack.filtered_entries;
                total.dead_lettered_entries += ack.dead_lettered_entries;
            }
            (total.offset >= offset).then_some(total)
        })
        .await
    }

    /// Waits until the shipper ends the call, and returns why.
    pub(crate) async fn ended(&mut self) -> Status {
        self.until(|_| None::<()>).await.unwrap_err()
    }

    /// Waits until a stream is open, and returns what the shipper says to that.
    pub(crate) async fn opened(&mut self) -> Opened {
        let opened = self.until(|response| response.opened.first().copied());
        opened.await.unwrap()
    }

    /// Waits until a stream is refused, and returns why.
    pub(crate) async fn refused(&mut self) -> String {
        let refused = self.until(|response| response.refused.first().cloned());
        refused.await.unwrap().reason
    }

    /// Opens a stream at an offset and sends lines; returns the offset where they end.
    pub(crate) async fn begin_stream(&self, stream: u32, first_offset: u64, lines: &[&str]) -> u64 {
        let (entries, end) = chunk(stream, first_offset, lines);
        self.send(vec![open(stream, first_offset, &[]), entries])
            .await;
        end
    }

    /// Sends further lines of a stream; returns the offset where they end.
    pub(crate) async fn go_on(&self, stream: u32, first_offset: u64, lines: &[&str]) -> u64 {
        let (entries, end) = chunk(stream, first_offset, lines);
        self.send(vec![entries]).await;
        end
    }
}

pub(crate) fn open(stream: u32, resume_offset: u64, log_opts: &[(&str, &str)]) -> Kind {
    let pairs = log_opts
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    Kind::Open(Box::new(Open {
        stream,
        journal_id: format!("{stream:032x}"),
        container: Some(Container {
            id: "c".repeat(64),
            name: "/web".into(),
            ..Container::default()
        }),
        log_opts: pairs.collect::<HashMap<_, _>>(),
        host: "host-1".into(),
        resume_offset,
    }))
}

/// Says that a stream is over.
pub(crate) fn finish(stream: u32, end_offset: u64) -> Kind {
    Kind::Finish(Finish {
        stream,
        end_offset,
        totals: None,
    })
}

pub(crate) fn frames(lines: &[&str]) -> Vec<u8> {
    let mut frames = Vec::new();
    for line in lines {
        let entry = LogEntry {
            source: "stdout".into(),
            time_nano: 1_700_000_000_123_456_789,
            line: line.as_bytes().to_vec(),
            ..LogEntry::default()
        };
        proto::frame::encode(&entry, &mut frames);
    }
    frames
}

pub(crate) fn chunk(stream: u32, first_offset: u64, lines: &[&str]) -> (Kind, u64) {
    let frames = frames(lines);
    let end = first_offset + frames.len() as u64;
    (
        Kind::Chunk(Chunk {
            stream,
            first_offset,
            frames: frames.into(),
            has_more: false,
        }),
        end,
    )
}

/// Returns a short piece of a long line, as a frame.
pub(crate) fn piece(id: &str, ordinal: i32, last: bool) -> Vec<u8> {
    piece_of(id, ordinal, last, &format!("{id}{ordinal}"))
}

pub(crate) fn piece_of(id: &str, ordinal: i32, last: bool, text: &str) -> Vec<u8> {
    let entry = LogEntry {
        source: "stdout".into(),
        time_nano: 1_700_000_000_123_456_789,
        line: text.into(),
        partial: true,
        partial_log_metadata: Some(PartialLogEntryMetadata {
            last,
            id: id.repeat(64),
            ordinal,
        }),
    };
    let mut frames = Vec::new();
    proto::frame::encode(&entry, &mut frames);
    frames
}

/// What was sent of a stream.
#[derive(Default)]
pub(crate) struct Sent {
    pub(crate) offset: u64,
}

impl Sent {
    pub(crate) fn chunk(&mut self, frames: Vec<u8>, has_more: bool) -> Vec<Kind> {
        let first_offset = self.offset;
        self.offset += frames.len() as u64;
        vec![Kind::Chunk(Chunk {
            stream: 1,
            first_offset,
            frames: frames.into(),
            has_more,
        })]
    }
}

/// Options of a stream whose records of several lines wait 50 ms for their next line.
pub(crate) const MULTILINE: [(&str, &str); 2] =
    [("multiline-pattern", r"^\S"), ("multiline-timeout", "50ms")];

/// Sends opens of `count` streams, a thousand a request, as long as the shipper takes them.
pub(crate) async fn flood(requests: &mpsc::Sender<ShipRequest>, count: u32) {
    for first in (0..count).step_by(1_000) {
        let kinds = (first..count.min(first + 1_000)).map(|stream| open(stream, 0, &[]));
        if requests.send(request(kinds)).await.is_err() {
            return;
        }
    }
}
