//! A request in the making, and the buffers that its chunks share.

use crate::journal::Hole;
use bytes::{Bytes, BytesMut};
use proto::limits::{
    FRAME_BYTES_MAX, REQUEST_EVENTS_MAX, REQUEST_FRAMES_BYTES_MAX, REQUEST_OPENS_BYTES_MAX,
};
use proto::relay::{self, Event, event::Kind};
use std::ops::Range;

/// Bytes of frames in one request. Half of what the contract allows: twice as much costs 2 MiB of
/// memory and, measured, no less CPU per frame.
const REQUEST_BYTES_MAX: usize = REQUEST_FRAMES_BYTES_MAX / 2;

/// A request in the making. Chunks get their bytes when the buffer is complete.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) events: Vec<Event>,
    pub(super) chunks: Vec<(usize, Range<usize>)>,
    pub(super) used_bytes: usize,
    pub(super) open_bytes: usize,
}

impl Draft {
    pub(super) fn push(&mut self, kind: Kind) {
        self.events.push(Event { kind: Some(kind) });
    }

    /// Returns how far it is filled.
    pub(super) fn mark(&self) -> Mark {
        Mark {
            event_count: self.events.len(),
            chunk_count: self.chunks.len(),
            used_bytes: self.used_bytes,
            open_bytes: self.open_bytes,
        }
    }

    /// Takes out what came since a mark.
    pub(super) fn back_to(&mut self, mark: &Mark) {
        self.events.truncate(mark.event_count);
        self.chunks.truncate(mark.chunk_count);
        self.used_bytes = mark.used_bytes;
        self.open_bytes = mark.open_bytes;
    }

    pub(super) fn is_full(&self) -> bool {
        self.events.len() >= REQUEST_EVENTS_MAX
            || self.open_bytes >= REQUEST_OPENS_BYTES_MAX
            || REQUEST_BYTES_MAX - self.used_bytes < FRAME_BYTES_MAX
    }
}

/// How far a request was filled.
pub(super) struct Mark {
    event_count: usize,
    chunk_count: usize,
    used_bytes: usize,
    open_bytes: usize,
}

pub(super) fn hole_event(stream: u32, hole: &Hole) -> relay::Hole {
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
pub(super) struct Buffers {
    lent: Vec<Bytes>,
}

impl Buffers {
    /// Buffers kept: one being sent, one being filled.
    const KEPT_MAX: usize = 2;

    pub(super) fn take(&mut self) -> BytesMut {
        for _ in 0..self.lent.len() {
            match self.lent.remove(0).try_into_mut() {
                Ok(buffer) => return buffer,
                Err(lent) => self.lent.push(lent),
            }
        }
        BytesMut::zeroed(REQUEST_BYTES_MAX)
    }

    pub(super) fn put(&mut self, buffer: BytesMut) -> Bytes {
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
