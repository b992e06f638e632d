//! The journal: everything that one FIFO gave, until the shipper has finished with it.
//!
//! ```text
//!            released        in flight           buffered
//!         ├─────────────┼────────────────┼──────────────────┤
//! offset  0           acked            sent               tail        sent ≤ walked ≤ tail
//! ```
//!
//! Bytes are numbered from 0 as they came out of the FIFO, for ever. A segment file holds a range
//! of them, raw, and is named by the offset of its first byte (20 digits); the tail is where the
//! last segment ends. There is no header, index or marker: what has been received is exactly what
//! the files' sizes say, so SIGKILL at any instruction loses and repeats nothing. That is also why
//! segment files are never reused: the size of a reused file tells nothing. (Measured on ext4,
//! Linux 6.18: 0.046 µs per 220-byte frame spliced into fresh segments and unlinked, 0.022 µs into
//! reused ones.) Segments are small, so that they are gone before the kernel writes them back.
//!
//! Three parties meet here: the pump appends (one [`Appender`], no lock but at a new segment); the
//! gatherer reads, acknowledges and drops (one lock, [`Reader`]); the keeper syncs. The pump never
//! waits for a reader.
//!
//! Invariants:
//! - **J1** Bytes `[first segment's start, tail)` stand in the segments in order, but for holes.
//! - **J2** `acked ≤ sent ≤ walked ≤ tail`, each a frame boundary unless it is the tail; none ever
//!   goes back, but `sent` to `acked` when a call ends.
//! - **J3** The state is saved before a segment that it makes superfluous is removed.
//! - **J4** A byte is released, in a hole, or readable: never two of them, never none.
//! - **J5** The segments hold at most `bytes_max` bytes; at that the appender says `Full`.
//! - **J6** What is dropped is unsent: whatever a shipper may still acknowledge is not counted
//!   twice.
//! - **J7** A frame is counted as received once, however often it is read. What is not sent yet is
//!   counted ahead now and then; until that has come to the tail, the newest entries are not among
//!   those received.
//!
//! A hole is a range whose entries can't be shipped; it stays in the journal's order, is sent like
//! a chunk, and is counted when it is acknowledged.

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod appender;
pub(crate) mod medium;
mod reader;
mod recovery;
mod state;

pub(crate) use appender::{Appended, Appender};
pub(crate) use recovery::{OpenError, Recovered, in_memory, open, read_state};
pub(crate) use state::{Hole, Saved};

use crate::counters::{Counters, DropReason};
use medium::Medium;
use proto::limits::{CHUNK_BYTES_MAX, FRAME_BYTES_MAX};
use reader::{Reader, Scan, damage_bytes, walk};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// Least bound of a journal: what is in flight takes half, and a segment must remain to be dropped.
pub(crate) const JOURNAL_BYTES_MIN: u64 = 1 << 20;

/// Bytes of a segment. A journal of less than eight such has smaller ones.
const SEGMENT_BYTES_MAX: u64 = 1 << 20;

/// Segments whose files stay open: the one that is written, and the one before it, which a reader
/// that keeps up has not finished with. A backlog must not use up the process's file descriptors.
const OPEN_SEGMENTS_MAX: usize = 2;

/// Holes that may wait for an acknowledgement; then nothing more is sent until some have it.
const HOLES_PENDING_MAX: usize = 1024;

const _: () = assert!(
    JOURNAL_BYTES_MIN / 8 >= FRAME_BYTES_MAX as u64 / 2
        && JOURNAL_BYTES_MIN / 2 >= CHUNK_BYTES_MAX as u64,
    "the smallest journal must let a chunk be in flight and still have a segment to drop"
);

/// The bounds of one journal.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    bytes_max: u64,
    segment_bytes: u64,
}

impl Bounds {
    /// Returns the bounds of a journal of `bytes_max` bytes; less than [`JOURNAL_BYTES_MIN`] counts
    /// as that.
    pub(crate) fn new(bytes_max: u64) -> Self {
        let bytes_max = bytes_max.max(JOURNAL_BYTES_MIN);
        Self {
            bytes_max,
            segment_bytes: (bytes_max / 8).min(SEGMENT_BYTES_MAX),
        }
    }
}

/// What all journals of the host may hold together.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes_max: u64,
    held_bytes: AtomicU64,
    is_disk_low: AtomicBool,
}

impl Budget {
    /// Returns a budget of which nothing is used.
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            held_bytes: AtomicU64::new(0),
            is_disk_low: AtomicBool::new(false),
        }
    }

    /// Says whether free disk has fallen below its floor: then no journal grows.
    pub(crate) fn set_disk_low(&self, is_low: bool) {
        self.is_disk_low.store(is_low, Ordering::Relaxed);
    }

    /// Returns the bytes that all journals hold.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.held_bytes.load(Ordering::Relaxed)
    }

    fn room_bytes(&self) -> u64 {
        if self.is_disk_low.load(Ordering::Relaxed) {
            return 0;
        }
        self.bytes_max.saturating_sub(self.held_bytes())
    }

    fn add(&self, bytes: u64) {
        self.held_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn remove(&self, bytes: u64) {
        self.held_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// One stream's bytes, from FIFO to acknowledgement.
#[derive(Debug)]
pub(crate) struct Journal {
    medium: Box<dyn Medium>,
    bounds: Bounds,
    budget: Arc<Budget>,
    /// Moved by the appender alone, after the bytes are in the segment.
    tail: AtomicU64,
    /// Copy of the reader's, for those who must not wait for its lock.
    acked: AtomicU64,
    /// The FIFO has come to its end: the tail is final.
    has_ended: AtomicBool,
    held_bytes: AtomicU64,
    /// Bytes of `held_bytes` that are in memory because the disk failed.
    fallback_bytes: AtomicU64,
    /// Nothing could be dropped to make room on the host: the host's bounds wait for this journal.
    has_overdraft: AtomicBool,
    /// The disk had no room for the last bytes.
    is_disk_full: AtomicBool,
    /// A segment was created since the folder was synced.
    is_folder_dirty: AtomicBool,
    /// Entries were dropped since the state was synced.
    is_drop_unsynced: AtomicBool,
    segments: Mutex<VecDeque<Arc<Segment>>>,
    reader: Mutex<Reader>,
    sync_marks: Mutex<SyncMarks>,
}

/// A file that holds a range of the journal.
#[derive(Debug)]
struct Segment {
    start: u64,
    /// Offset behind the last byte.
    end: AtomicU64,
    /// Open for one of the newest [`OPEN_SEGMENTS_MAX`], and for one in memory.
    file: Mutex<Option<Arc<OwnedFd>>>,
    is_fallback: bool,
}

impl Segment {
    fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }
}

/// How far the journal is on stable storage.
#[derive(Debug, Default)]
struct SyncMarks {
    synced: u64,
    tail_seen: u64,
}

/// Why a journal takes no more bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shortage {
    /// It has reached a bound of its own.
    Own,
    /// All journals of the host, or the disk, have no room.
    Host,
}

/// What the gatherer may send next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Whole frames, at the start of the buffer.
    Frames {
        /// Offset of the first byte.
        first_offset: u64,
        /// How many bytes.
        bytes: usize,
    },
    /// Entries that are gone.
    Hole(Hole),
    /// The stream has ended and all of it was sent.
    Finish {
        /// The tail.
        end_offset: u64,
    },
    /// Nothing until the FIFO gives more.
    Idle,
    /// Nothing until something is acknowledged or, if the window is what there is no room in, it grows.
    NoCredit {
        /// It is not a bound of the journal's own.
        is_window: bool,
    },
    /// The next frame does not fit the buffer.
    NoRoom,
}

/// How many entries an acknowledgement settles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Fates {
    /// Delivered to CLS.
    pub(crate) delivered: u64,
    /// Filtered by an option.
    pub(crate) filtered: u64,
    /// Put into the dead-letter store.
    pub(crate) dead_lettered: u64,
}

/// Why an acknowledgement was not taken, or not wholly.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AckError {
    /// The shipper acknowledges what it was never sent; nothing changed.
    #[error("acknowledged offset {offset} lies beyond the last sent offset {sent}")]
    BeyondSent {
        /// The acknowledged offset.
        offset: u64,
        /// The last sent one.
        sent: u64,
    },
    /// The shipper acknowledges a part of an entry; nothing changed. What goes on there would not be
    /// understood.
    #[error("acknowledged offset {offset} lies inside of an entry")]
    InsideEntry {
        /// The acknowledged offset.
        offset: u64,
    },
    /// More entries are said to be settled than were sent and are not settled yet. The offset counts,
    /// and of the entries as many as there were.
    #[error("{entries} entries more than were sent are acknowledged")]
    Unearned {
        /// The surplus.
        entries: u64,
    },
    /// The acknowledgement counts, but would be forgotten if the process died now.
    #[error("could not save the acknowledged offset")]
    Save(#[source] Errno),
}

/// A segment could not be read; the journal is as before.
#[derive(Debug, thiserror::Error)]
#[error("could not read journal offset {offset}")]
pub(crate) struct ReadError {
    /// Where.
    pub(crate) offset: u64,
    /// What the disk said.
    #[source]
    pub(crate) source: Errno,
}

impl ReadError {
    /// Returns whether the host lacks something for now, and nothing is wrong with the segment.
    pub(crate) fn is_shortage(&self) -> bool {
        is_shortage(self.source)
    }
}

/// Returns whether there is no file descriptor, or no memory, for now.
fn is_shortage(error: Errno) -> bool {
    matches!(error, Errno::MFILE | Errno::NFILE | Errno::NOMEM)
}

/// What the counters of a journal say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Totals {
    /// Entries received.
    pub(crate) received: u64,
    /// What became of them; holes count from when they are known.
    pub(crate) settled: Counters,
    /// Bytes not yet acknowledged.
    pub(crate) buffered_bytes: u64,
}

impl Journal {
    /// Returns whether the FIFO has ended and everything was acknowledged.
    pub(crate) fn is_complete(&self) -> bool {
        self.has_ended.load(Ordering::Acquire) && self.unacked_bytes() == 0
    }

    /// Returns whether there is anything that a shipper was not told yet.
    pub(crate) fn has_unsent(&self) -> bool {
        let reader = lock(&self.reader);
        let ended = self.has_ended.load(Ordering::Acquire);
        self.tail.load(Ordering::Acquire) > reader.sent || (ended && !reader.is_finish_sent)
    }

    /// Returns the offset behind what was sent.
    pub(crate) fn sent_offset(&self) -> u64 {
        lock(&self.reader).sent
    }

    /// Returns whether anything sent is not acknowledged.
    pub(crate) fn has_in_flight(&self) -> bool {
        let reader = lock(&self.reader);
        reader.sent > reader.acked
    }

    /// Returns whether it is gone when the process ends.
    pub(crate) fn is_in_memory(&self) -> bool {
        self.medium.is_memory()
    }

    /// Returns the offset of the first byte that is not acknowledged.
    pub(crate) fn acked(&self) -> u64 {
        self.acked.load(Ordering::Acquire)
    }

    /// Returns the bytes that are not acknowledged.
    pub(crate) fn unacked_bytes(&self) -> u64 {
        let acked = self.acked();
        self.tail.load(Ordering::Acquire).saturating_sub(acked)
    }

    /// Returns the bytes that the segments hold.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.held_bytes.load(Ordering::Relaxed)
    }

    /// Returns what must give way for the journal to take more bytes, if anything must: who asks
    /// comes later than who was refused, and an acknowledgement may have made room meanwhile.
    pub(crate) fn shortage(&self) -> Option<Shortage> {
        if self.held_bytes() >= self.bounds.bytes_max || self.is_memory_spent() {
            Some(Shortage::Own)
        } else if self.room_bytes() == 0 || self.is_disk_full.load(Ordering::Relaxed) {
            Some(Shortage::Host)
        } else {
            None
        }
    }

    /// Lets the journal grow to its own bound although the host has reached its: nothing else can
    /// make room, and a FIFO that is never read makes a container unkillable.
    pub(crate) fn grant_overdraft(&self) {
        self.has_overdraft.store(true, Ordering::Relaxed);
    }

    /// Says that the FIFO has come to its end. Only the pump, after its last append.
    pub(crate) fn end(&self) {
        self.has_ended.store(true, Ordering::Release);
        for segment in &*lock(&self.segments) {
            self.close(segment);
        }
    }

    /// Returns whether the FIFO has come to its end.
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }

    /// Returns the counters.
    pub(crate) fn totals(&self) -> Totals {
        let reader = lock(&self.reader);
        let mut settled = reader.settled;
        for hole in &reader.holes {
            settled.dropped.add(hole.reason, hole.counted_entries());
        }
        Totals {
            received: settled
                .total()
                .saturating_add(reader.live_entries)
                .saturating_add(reader.ahead_entries),
            settled,
            buffered_bytes: self.unacked_bytes(),
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
        reader.boundaries.clear();
        reader.is_finish_sent = false;
    }

    /// Returns what to send next, and counts it as sent. Frames go to the start of `into`, which
    /// holds at least [`FRAME_BYTES_MAX`] or the rest of a request. `window_bytes` bounds what is
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
            let in_flight_bytes_max = self.bounds.bytes_max / 2;
            let credit = reader.credit_bytes(window_bytes, in_flight_bytes_max);
            let room = into.len();
            let wanted = usize::try_from(available.min(credit)).unwrap_or(usize::MAX);
            let buffer = into.get_mut(..wanted.min(room)).unwrap_or_default();
            let read_bytes = self.read(reader.sent, buffer)?;
            let read = buffer.get(..read_bytes).unwrap_or_default();
            // With nothing in flight the buffer has room for any frame, also beyond the window.
            let bytes_max = usize::try_from(window_bytes).unwrap_or(usize::MAX);
            let walk = walk(read, bytes_max, reader.sent, reader.walked);
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

    /// Takes the shipper's word that everything below `offset` is finished with: saves it, then
    /// releases segments.
    ///
    /// # Errors
    /// See [`AckError`]. An offset that was acknowledged before only adds to the counters.
    pub(crate) fn ack(&self, offset: u64, fates: Fates) -> Result<(), AckError> {
        let mut reader = lock(&self.reader);
        if offset > reader.sent {
            let sent = reader.sent;
            return Err(AckError::BeyondSent { offset, sent });
        }
        if offset > reader.acked && !self.is_boundary(&reader, offset) {
            return Err(AckError::InsideEntry { offset });
        }
        let surplus = reader.settle(offset, fates);
        let saved = self.save(&mut reader);
        self.acked.store(reader.acked, Ordering::Release);
        self.release(&reader);
        saved.map_err(AckError::Save)?;
        match surplus {
            0 => Ok(()),
            entries => Err(AckError::Unearned { entries }),
        }
    }

    /// Drops the oldest unsent segments, about a sixteenth of the journal; returns the bytes that
    /// became free. 0 says that everything is in flight or in the last segment.
    ///
    /// Waits for no stable storage: a FIFO waits for this. Loss of power before the next sync leaves
    /// a gap, which counts as one entry.
    ///
    /// # Errors
    /// [`ReadError`] if the disk can't read what is to be counted; nothing was dropped.
    pub(crate) fn drop_oldest(&self) -> Result<u64, ReadError> {
        let mut reader = lock(&self.reader);
        let tail = self.tail.load(Ordering::Acquire);
        let from = reader.first_unsent();
        let Some(goal) = self.drop_goal(reader.unsent_hole_start().unwrap_or(from)) else {
            return Ok(0);
        };
        if goal > from {
            // Frames of an older hole behind may still be readable: they are counted there.
            let limit = reader.hole_start_behind(from).unwrap_or(tail);
            let scan = self.scan(from, goal.min(limit), limit, reader.walked)?;
            reader.add_dropped(from, &scan);
        }
        let held_bytes = self.held_bytes();
        // A full disk may refuse this too. Then a restart finds a gap, which counts as one entry.
        if let Err(error) = self.save(&mut reader) {
            tracing::warn!(%error, "could not save how many entries were dropped");
        }
        self.is_drop_unsynced.store(true, Ordering::Relaxed);
        self.release(&reader);
        Ok(held_bytes.saturating_sub(self.held_bytes()))
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

    /// Brings to stable storage what was already unacknowledged at the last call and still is.
    /// Returns whether anything is unacknowledged.
    ///
    /// # Errors
    /// The disk's; the bytes are tried again at the next call.
    pub(crate) fn sync_aged(&self) -> Result<bool, Errno> {
        let mut marks = lock(&self.sync_marks);
        let tail = self.tail.load(Ordering::Acquire);
        let stable = marks.synced.max(self.acked());
        if marks.tail_seen > stable {
            self.sync_from(stable)?;
            marks.synced = tail;
        }
        self.sync_drop()?;
        marks.tail_seen = tail;
        Ok(self.acked() < tail)
    }

    /// Brings everything unacknowledged to stable storage.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn sync(&self) -> Result<(), Errno> {
        let mut marks = lock(&self.sync_marks);
        let tail = self.tail.load(Ordering::Acquire);
        let stable = marks.synced.max(self.acked());
        if tail > stable {
            self.sync_from(stable)?;
            marks.synced = tail;
        }
        self.sync_drop()
    }

    /// Brings to stable storage how many entries were dropped.
    fn sync_drop(&self) -> Result<(), Errno> {
        if !self.is_drop_unsynced.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        let synced = self.medium.sync_folder();
        if synced.is_err() {
            self.is_drop_unsynced.store(true, Ordering::Relaxed);
        }
        synced
    }

    fn sync_from(&self, stable: u64) -> Result<(), Errno> {
        let segments: Vec<_> = lock(&self.segments)
            .iter()
            .filter(|segment| segment.end() > stable && !segment.is_fallback)
            .cloned()
            .collect();
        for segment in segments {
            match self.file(&segment) {
                Ok(file) => self.medium.sync(file.as_fd())?,
                // Released meanwhile.
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
        }
        // Clean only behind a sync that was none too early: a segment may be created meanwhile.
        if self.is_folder_dirty.swap(false, Ordering::Relaxed) {
            let synced = self.medium.sync_folder();
            if synced.is_err() {
                self.is_folder_dirty.store(true, Ordering::Relaxed);
            }
            synced?;
        }
        Ok(())
    }

    /// Saves the reader's state into the older slot. A failed save is tried in the same slot
    /// again: the other one is good.
    fn save(&self, reader: &mut Reader) -> Result<(), Errno> {
        let sequence = reader.sequence.wrapping_add(1);
        let saved = reader.saved();
        state::encode(sequence, &saved, &mut reader.slot);
        let at = (sequence % 2).saturating_mul(state::SLOT_STRIDE_BYTES);
        self.medium.save_state(&reader.slot, at)?;
        reader.sequence = sequence;
        Ok(())
    }

    /// Removes the segments that are acknowledged or lie in a hole; never the last one, whose
    /// name says where the journal goes on.
    fn release(&self, reader: &Reader) {
        let mut released = Vec::new();
        {
            let mut segments = lock(&self.segments);
            let last_start = segments.back().map_or(0, |segment| segment.start);
            segments.retain(|segment| {
                let is_needed = segment.start == last_start || reader.needs(segment);
                if !is_needed {
                    released.push(Arc::clone(segment));
                }
                is_needed
            });
        }
        for segment in released {
            self.remove_segment(&segment, reader.acked);
        }
    }

    fn remove_segment(&self, segment: &Segment, acked: u64) {
        let bytes = segment.end().saturating_sub(segment.start);
        self.held_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.budget.remove(bytes);
        self.has_overdraft.store(false, Ordering::Relaxed);
        if segment.is_fallback {
            self.fallback_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return;
        }
        let removed = if segment.end() <= acked {
            self.medium.release(segment.start, bytes)
        } else {
            self.medium.remove(segment.start)
        };
        if let Err(error) = removed {
            // Its bytes were finished with; a restart removes it.
            tracing::warn!(%error, segment = segment.start, "could not remove a journal segment");
        }
    }

    /// Reads bytes at a journal offset, over segment ends; fewer than asked for at a gap or where
    /// the disk has lost some. That some of it lies there is the caller's word (J1).
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<usize, ReadError> {
        let mut filled = 0_usize;
        while filled < into.len() {
            let at = offset.saturating_add(filled as u64);
            let Some(segment) = self.segment_at(at) else {
                break;
            };
            let rest = into.get_mut(filled..).unwrap_or_default();
            let segment_rest = segment.end().saturating_sub(at);
            let wanted = rest
                .len()
                .min(usize::try_from(segment_rest).unwrap_or(usize::MAX));
            let rest = rest.get_mut(..wanted).unwrap_or_default();
            let position = at.saturating_sub(segment.start);
            let read = self
                .file(&segment)
                .and_then(|file| self.medium.read_at(file.as_fd(), position, rest));
            let bytes = match read {
                Ok(bytes) => bytes,
                // What stands before it can be read, and is not given up with it.
                Err(_) if filled > 0 => break,
                Err(source) => return Err(ReadError { offset: at, source }),
            };
            filled = filled.saturating_add(bytes);
            if bytes < wanted {
                break;
            }
        }
        if filled == 0 && !into.is_empty() {
            let source = Errno::NODATA;
            return Err(ReadError { offset, source });
        }
        Ok(filled)
    }

    /// Returns a segment's file, opened for the moment if it is not open.
    fn file(&self, segment: &Segment) -> Result<Arc<OwnedFd>, Errno> {
        let file = lock(&segment.file).clone();
        file.map_or_else(|| self.medium.open(segment.start).map(Arc::new), Ok)
    }

    /// Closes a segment's file, unless it would be gone with it.
    fn close(&self, segment: &Segment) {
        if !segment.is_fallback && !self.medium.is_memory() {
            *lock(&segment.file) = None;
        }
    }

    /// Returns whether an entry ends at an offset that was sent. Nearly always that is where a chunk
    /// ends; otherwise the entries of that chunk are read. One that can't be read is believed.
    fn is_boundary(&self, reader: &Reader, offset: u64) -> bool {
        let mut at = reader.boundary_before(offset);
        if at == offset || reader.is_inside_hole(offset) {
            return at == offset;
        }
        let mut buffer = vec![0; FRAME_BYTES_MAX];
        while at < offset {
            let Ok(bytes) = self.read(at, &mut buffer) else {
                return true;
            };
            let read = buffer.get(..bytes).unwrap_or_default();
            let rest_bytes = usize::try_from(offset.saturating_sub(at)).unwrap_or(usize::MAX);
            let walk = walk(read, rest_bytes.max(1), at, u64::MAX);
            if walk.bytes == 0 {
                // What is damaged is a hole by now, and no entry to read.
                return reader
                    .hole_start_behind(at)
                    .is_some_and(|hole| hole < offset);
            }
            at = at.saturating_add(walk.bytes as u64);
        }
        at == offset
    }

    fn segment_at(&self, offset: u64) -> Option<Arc<Segment>> {
        let segments = lock(&self.segments);
        let index = segments.partition_point(|segment| segment.start <= offset);
        let segment = segments.get(index.checked_sub(1)?)?;
        (segment.end() > offset).then(|| Arc::clone(segment))
    }

    /// Returns up to where to drop so that whole segments become free.
    fn drop_goal(&self, from: u64) -> Option<u64> {
        let stride = (self.bounds.bytes_max / 16).max(1);
        let segments = lock(&self.segments);
        let last_start = segments.back()?.start;
        let mut free_bytes = 0_u64;
        let mut goal = None;
        for segment in segments.iter() {
            if segment.start < from || segment.start == last_start || free_bytes >= stride {
                continue;
            }
            free_bytes = free_bytes.saturating_add(segment.end().saturating_sub(segment.start));
            goal = Some(segment.end());
        }
        goal
    }

    /// Counts the entries from a frame boundary to the first one at or behind `goal`; never beyond
    /// `limit`.
    fn scan(&self, from: u64, goal: u64, limit: u64, walked: u64) -> Result<Scan, ReadError> {
        let mut scan = Scan::new(from);
        let mut buffer = vec![0; CHUNK_BYTES_MAX];
        while scan.end < goal {
            let rest = usize::try_from(limit.saturating_sub(scan.end)).unwrap_or(usize::MAX);
            let wanted = rest.min(buffer.len());
            let read_bytes = self.read(scan.end, buffer.get_mut(..wanted).unwrap_or_default())?;
            let read = buffer.get(..read_bytes).unwrap_or_default();
            if !scan.advance(read, goal, walked) {
                break;
            }
        }
        Ok(scan)
    }

    fn room_bytes(&self) -> u64 {
        let held_bytes = self.held_bytes.load(Ordering::Relaxed);
        let own = self.bounds.bytes_max.saturating_sub(held_bytes);
        if self.has_overdraft.load(Ordering::Relaxed) {
            return own;
        }
        // Two segments are everyone's, so that the host's bounds never stop a quiet container for
        // the sake of a busy one, and so that there is always a whole segment to drop.
        let floor = self.bounds.segment_bytes.saturating_mul(2);
        let host = self.budget.room_bytes();
        own.min(host.max(floor.saturating_sub(held_bytes)))
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.budget.remove(self.held_bytes());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .expect("whoever holds a journal's lock does not panic")
}

#[cfg(test)]
mod tests;
