//! The writing side of a journal. It takes no lock but at a new segment, and never waits for a
//! reader.
//!
//! When the disk refuses (any error but "full"), the next bytes go to a segment in memory, at most
//! `FALLBACK_BYTES_MAX` of them: a container must not stop because a disk fails. Every new
//! segment tries the disk again.
//!
//! With no file descriptor left, a segment grows beyond its size: the FIFO must be read.

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::budget::Place;
use super::bytes::is_shortage;
use super::counters::DropReason;
use super::lock::lock;
use super::medium::{Medium as _, Memory};
use super::segment::{OPEN_SEGMENTS_MAX, Segment};
use super::shared::Journal;
use crate::logging::Throttle;
use rustix::io::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

/// Age at which a segment that is acknowledged to its end is left for a new one. The kernel writes
/// dirty pages back after 30 s (`vm.dirty_expire_centisecs`).
const SEGMENT_AGE_MAX: Duration = Duration::from_secs(25);

/// What became of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Appended {
    /// Bytes moved; the FIFO was found empty.
    Moved(usize),
    /// Bytes moved; there may be more, beyond a segment's end or what was asked for.
    MovedAndMore(usize),
    /// The FIFO is empty.
    Empty,
    /// The FIFO is empty and no one will write to it.
    End,
    /// The journal, the host's journals, or the disk is full.
    Full,
}

/// The writing side of a journal: the pump has the only one.
#[derive(Debug)]
pub(crate) struct Appender {
    pub(super) current: Option<Current>,
    pub(super) opened_at: Option<Instant>,
    /// The disk refused the last write: the next segment is in memory.
    pub(super) must_fall_back: bool,
}

/// The segment that is written.
#[derive(Debug, Clone)]
pub(super) struct Current {
    segment: Arc<Segment>,
    /// The segment's, without its lock.
    file: Arc<OwnedFd>,
}

impl Current {
    /// Returns a segment to go on in; `None` if its file is not open.
    pub(super) fn of(segment: &Arc<Segment>) -> Option<Self> {
        let file = lock(&segment.file).clone()?;
        let segment = Arc::clone(segment);
        Some(Self { segment, file })
    }
}

impl Appender {
    /// Moves at most `bytes_max` bytes from a FIFO to the journal's tail.
    ///
    /// # Errors
    /// The disk's word if not even memory takes the bytes. They are still in the FIFO.
    pub(crate) fn append(
        &mut self,
        journal: &Journal,
        fifo: BorrowedFd<'_>,
        bytes_max: usize,
        now: Instant,
    ) -> Result<Appended, Errno> {
        let tail = journal.tail.load(Ordering::Relaxed);
        let mut room = self.room_bytes(journal, tail);
        let Current { segment, file } = match self.usable_segment(journal, tail, now) {
            _ if room == 0 => return Ok(Appended::Full),
            Some(current) => current,
            None => match self.next_segment(journal, tail, now)? {
                Some(current) => current,
                None => return Ok(Appended::Full),
            },
        };
        if segment.is_fallback {
            room = room.min(journal.fallback_room_bytes());
        }
        let position = tail.saturating_sub(segment.start);
        let segment_bytes = journal.segment_bytes(journal.place_of(&segment));
        let segment_room = match segment_bytes.saturating_sub(position) {
            // It has to grow.
            0 => segment_bytes,
            room => room,
        };
        let room = usize::try_from(room.min(segment_room)).unwrap_or(usize::MAX);
        let asked = bytes_max.min(room);
        match journal.medium.splice(fifo, file.as_fd(), position, asked) {
            Ok(0) => Ok(Appended::End),
            Ok(bytes) => {
                journal.appended(&segment, tail, bytes as u64);
                match bytes < asked {
                    true => Ok(Appended::Moved(bytes)),
                    false => Ok(Appended::MovedAndMore(bytes)),
                }
            }
            Err(Errno::AGAIN) => Ok(Appended::Empty),
            Err(Errno::NOSPC | Errno::DQUOT) => {
                journal.is_disk_full.store(true, Ordering::Relaxed);
                Ok(Appended::Full)
            }
            Err(error) if segment.is_fallback || journal.medium.is_memory() => Err(error),
            Err(error) => {
                say_fallen_back(error);
                self.must_fall_back = true;
                self.append(journal, fifo, bytes_max, now)
            }
        }
    }

    /// Puts the next bytes into memory: the disk is full, nothing that is dropped frees it, and
    /// the FIFO must be read.
    pub(crate) fn fall_back(&mut self) {
        self.must_fall_back = true;
    }

    /// Returns the bytes that there is room for where the next ones go.
    fn room_bytes(&self, journal: &Journal, tail: u64) -> u64 {
        let goes_on_in_memory = self
            .current
            .as_ref()
            .is_some_and(|Current { segment, .. }| {
                let bytes = tail.saturating_sub(segment.start);
                segment.is_fallback && bytes < journal.segment_bytes(Place::Memory)
            });
        let is_in_memory =
            self.must_fall_back || self.stays_in_memory(journal) || goes_on_in_memory;
        match journal.fallback_room_bytes() {
            room if is_in_memory && room > 0 => room.min(journal.own_room_bytes()),
            _ => journal.room_bytes(),
        }
    }

    /// Returns whether the next segment is in memory, as the last one is: the disk is low, and would take it for
    /// a moment only.
    fn stays_in_memory(&self, journal: &Journal) -> bool {
        let current = self.current.as_ref();
        let is_fallback = current.is_some_and(|current| current.segment.is_fallback);
        let has_room = journal.fallback_room_bytes() > 0;
        is_fallback && has_room && journal.is_scarce(Place::Disk)
    }

    fn usable_segment(&self, journal: &Journal, tail: u64, now: Instant) -> Option<Current> {
        let current = self.current.as_ref()?;
        let segment = &current.segment;
        let bytes = tail.saturating_sub(segment.start);
        let is_spent = segment.is_fallback && journal.fallback_room_bytes() == 0;
        let segment_bytes = journal.segment_bytes(journal.place_of(segment));
        if bytes >= segment_bytes || self.must_fall_back || is_spent {
            return None;
        }
        let is_old = self
            .opened_at
            .is_some_and(|opened_at| now.duration_since(opened_at) >= SEGMENT_AGE_MAX);
        if is_old && bytes > 0 && journal.acked() == tail {
            return None;
        }
        Some(current.clone())
    }

    /// Starts a segment at the tail: on disk, unless that has just refused. `None` if neither has
    /// room; the next call tries the disk again. For want of a file descriptor the present one
    /// goes on.
    fn next_segment(
        &mut self,
        journal: &Journal,
        tail: u64,
        now: Instant,
    ) -> Result<Option<Current>, Errno> {
        let mut on_disk = None;
        let stays_in_memory = self.stays_in_memory(journal);
        if !std::mem::take(&mut self.must_fall_back) && !stays_in_memory {
            match journal.medium.create(tail) {
                Ok(file) => on_disk = Some(file),
                Err(Errno::NOSPC | Errno::DQUOT) => {
                    journal.is_disk_full.store(true, Ordering::Relaxed);
                    return Ok(None);
                }
                Err(error) if is_shortage(error) && self.current.is_some() => {
                    return Ok(self.current.clone());
                }
                Err(error) => say_fallen_back(error),
            }
        }
        let is_fallback = on_disk.is_none();
        if is_fallback {
            journal.note_loss(DropReason::MemoryLost);
        }
        let file = match on_disk {
            Some(file) => file,
            None if journal.fallback_room_bytes() == 0 => return Ok(None),
            None => Memory.create(tail)?,
        };
        let file = Arc::new(file);
        let segment = Arc::new(Segment {
            start: tail,
            end: AtomicU64::new(tail),
            file: Mutex::new(Some(Arc::clone(&file))),
            is_fallback,
        });
        journal.push_segment(&segment);
        self.opened_at = Some(now);
        self.current = Some(Current { segment, file });
        Ok(self.current.clone())
    }
}

impl Journal {
    fn push_segment(&self, segment: &Arc<Segment>) {
        self.is_folder_dirty.store(true, Ordering::Relaxed);
        let mut segments = lock(&self.segments);
        // An empty one of the same start is what a refusing disk left.
        if segments
            .back()
            .is_some_and(|last| last.start == segment.start)
        {
            segments.pop_back();
        }
        segments.push_back(Arc::clone(segment));
        // Those before it were closed when it was.
        let waiting = segments
            .len()
            .checked_sub(OPEN_SEGMENTS_MAX.saturating_add(1));
        if let Some(waiting) = waiting.and_then(|index| segments.get(index)) {
            self.close(waiting);
        }
    }

    fn appended(&self, segment: &Segment, tail: u64, bytes: u64) {
        let end = tail.saturating_add(bytes);
        segment.end.store(end, Ordering::Release);
        self.tail.store(end, Ordering::Release);
        self.held_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.budget.add(self.place_of(segment), bytes);
        if segment.is_fallback {
            self.fallback_bytes.fetch_add(bytes, Ordering::Relaxed);
        } else {
            self.is_disk_full.store(false, Ordering::Relaxed);
        }
    }
}

fn say_fallen_back(error: Errno) {
    static FALLEN_BACK: Throttle = Throttle::new();
    if let Some(suppressed_count) = FALLEN_BACK.pass() {
        tracing::error!(
            suppressed_count,
            %error,
            "the disk refuses a journal; its next bytes stay in memory and do not survive this process"
        );
    }
}
