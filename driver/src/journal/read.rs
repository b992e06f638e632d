//! What the gatherer reads: the next entries to send, and how many wait behind them.

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::bytes::ReadError;
use super::counters::DropReason;
use super::lock::lock;
use super::reader::Next;
use super::shared::Journal;
use super::walk::{damage_bytes, walk};
use rustix::io::Errno;
use std::sync::atomic::Ordering;

/// Holes that may wait for an acknowledgement; then nothing more is sent until some have it.
const HOLES_PENDING_MAX: usize = 1024;

impl Journal {
    /// Returns what to send next, and counts it as sent. Frames go to the start of `into`, which
    /// holds at least `FRAME_BYTES_MAX` or the rest of a request. `window_bytes` bounds what is
    /// unacknowledged; a stream of which nothing is may always send a frame.
    ///
    /// # Errors
    /// [`ReadError`] if the disk can't read; see [`Self::skip_unreadable`].
    pub(crate) fn next(&self, window_bytes: u64, into: &mut [u8]) -> Result<Next, ReadError> {
        let mut reader = lock(&self.reader);
        // The end is set after the last byte: seen first, the tail seen then is final.
        let ended = self.has_ended.load(Ordering::Acquire);
        let tail = self.tail.load(Ordering::Acquire);
        loop {
            if let Some(hole) = reader.send_hole() {
                return Ok(Next::Hole(hole));
            }
            let limit = reader.next_hole_start().unwrap_or(tail);
            let available = limit.saturating_sub(reader.sent);
            if available == 0 {
                return Ok(reader.finish(ended, tail));
            }
            if reader.holes.len() >= HOLES_PENDING_MAX {
                return Ok(Next::NoCredit { is_window: false });
            }
            let in_flight_bytes_max = self.in_flight_bytes_max();
            let credit = reader.credit_bytes(window_bytes, in_flight_bytes_max);
            let room = into.len();
            let wanted = usize::try_from(available.min(credit)).unwrap_or(usize::MAX);
            let buffer = into.get_mut(..wanted.min(room)).unwrap_or_default();
            let read_bytes = self.read(reader.sent, buffer)?;
            let read = buffer.get(..read_bytes).unwrap_or_default();
            // With nothing in flight the buffer has room for any frame, also beyond the window.
            let bytes_max = usize::try_from(window_bytes).unwrap_or(usize::MAX);
            let walk = walk(read, bytes_max, reader.sent, reader.scanned_to);
            if walk.bytes > 0 {
                return Ok(reader.send_frames(&walk));
            }
            let is_all = read_bytes as u64 == available;
            let is_final = is_all && (ended || limit < tail);
            match damage_bytes(read, walk.is_malformed, is_final) {
                Some(bytes) => {
                    let is_cut = ended && limit == tail && !walk.is_malformed;
                    let reason = if is_cut {
                        DropReason::CutShort
                    } else {
                        DropReason::Malformed
                    };
                    reader.add_damage(bytes as u64, reason);
                }
                None if is_all => return Ok(Next::Idle),
                None if read_bytes < wanted.min(room) => {
                    let offset = reader.sent.saturating_add(read_bytes as u64);
                    let source = Errno::NODATA;
                    return Err(ReadError { offset, source });
                }
                None if (room as u64) < available.min(credit) => return Ok(Next::NoRoom),
                None => {
                    let is_window = window_bytes <= in_flight_bytes_max;
                    return Ok(Next::NoCredit { is_window });
                }
            }
        }
    }

    /// Counts entries that are not sent yet, so that the ledger knows what waits: the next whole ones
    /// that fit `into`, which they are read into. Returns their bytes. What can't be read, or is no
    /// entry, is dealt with when it is to be sent.
    pub(crate) fn count_ahead(&self, into: &mut [u8]) -> usize {
        let mut reader = lock(&self.reader);
        let tail = self.tail.load(Ordering::Acquire);
        let from = reader.first_uncounted();
        let limit = reader.hole_start_behind(from).unwrap_or(tail);
        let wanted = usize::try_from(limit.saturating_sub(from)).unwrap_or(usize::MAX);
        let wanted = wanted.min(into.len());
        let buffer = into.get_mut(..wanted).unwrap_or_default();
        let read_bytes = self.read(from, buffer).unwrap_or(0);
        let read = buffer.get(..read_bytes).unwrap_or_default();
        let walk = walk(read, usize::MAX, from, from);
        reader.count_ahead(&walk);
        walk.bytes
    }

    /// Starts over from the acknowledged offset: what was in flight is unsent again.
    pub(crate) fn rewind(&self) {
        let mut reader = lock(&self.reader);
        reader.sent = reader.acked;
        reader.in_flight_entries = 0;
        reader.boundaries.clear();
        reader.is_finish_sent = false;
    }

    /// Gives up what can't be read, up to the end of its segment.
    pub(crate) fn skip_unreadable(&self) {
        let mut reader = lock(&self.reader);
        let tail = self.tail.load(Ordering::Acquire);
        let limit = reader.next_hole_start().unwrap_or(tail);
        let end = match self.segment_at(reader.sent) {
            Some(segment) => segment.end().min(limit),
            None => limit,
        };
        let bytes = end.saturating_sub(reader.sent);
        if bytes > 0 {
            reader.add_damage(bytes, DropReason::DiskError);
        }
    }
}
