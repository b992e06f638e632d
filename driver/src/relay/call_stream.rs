//! A stream's part in a call.

use super::draft::{Draft, hole_event};
use crate::journal::{Next, Totals};
use crate::stream::Stream;
use bytes::Bytes;
use proto::backoff::Backoff;
use proto::relay::{Chunk, Finish, event::Kind};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Delay before a stream that was refused is opened again: first, and at most.
pub(super) const REFUSED_BASE: Duration = Duration::from_secs(1);

const REFUSED_CAP: Duration = Duration::from_secs(30);

/// A stream's part in the call.
#[derive(Debug)]
pub(super) struct CallStream {
    pub(super) stream: Arc<Stream>,
    pub(super) phase: Phase,
    pub(super) backoff: Backoff,
    /// The reason that was said last.
    pub(super) refusal: Option<String>,
    pub(super) is_queued: bool,
    pub(super) wants_credit: bool,
    /// What the shipper believes: there is more.
    pub(super) says_more: bool,
    pub(super) read_failure_count: u32,
    /// Until then nothing is read, since the last read has failed.
    pub(super) read_retry_at: Option<Instant>,
    /// The journal's counters when it was opened in this call.
    pub(super) opened_with: Totals,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Waiting,
    OpenSent,
    Open { window_bytes: u64 },
    Refused,
}

impl CallStream {
    /// Returns a stream that has not been opened.
    pub(super) fn new(stream: Arc<Stream>, seed: u64) -> Self {
        Self {
            stream,
            phase: Phase::Waiting,
            backoff: Backoff::new(REFUSED_BASE, REFUSED_CAP, seed),
            refusal: None,
            is_queued: false,
            wants_credit: false,
            says_more: false,
            read_failure_count: 0,
            read_retry_at: None,
            opened_with: Totals::default(),
        }
    }

    /// Returns how a shipper broke the contract that answers what this stream did not ask.
    pub(super) fn not_asked(&self, what: &str) -> String {
        let (number, container) = (self.stream.number(), self.stream.container_id());
        format!("it {what} stream {number} of container {container}, which is not open")
    }

    /// Says whether more will come as soon as there is room in the window, unless that was said last.
    pub(super) fn say_more(&mut self, has_more: bool, draft: &mut Draft) {
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
    pub(super) fn say(&mut self, next: Next, draft: &mut Draft) -> bool {
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
                    totals: Some(Box::new(self.stream.last_counters(&self.opened_with))),
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
