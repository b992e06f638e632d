//! Tests of the journal over real pipes and files; each names the invariant it holds.
#![allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a panic fails a test"
)]

use super::append::*;
use super::budget::*;
use super::lock::lock;
use super::medium::*;
use super::reader::*;
use super::recover::*;
use super::segment::*;
use super::shared::*;
use super::walk::*;
use super::*;
use crate::config::JOURNAL_BYTES_MIN;
use crate::disk::{Disk, RealDisk};
use proptest::prelude::*;
use proto::limits::{CHUNK_BYTES_MAX, FRAME_BYTES_MAX};
use proto::relay::LogEntry;
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::time::Instant;

const WINDOW: u64 = 1 << 30;

/// A journal, the pipe that feeds it, and what it must hold.
struct World {
    folder: tempfile::TempDir,
    budget: Arc<Budget>,
    bytes_max: u64,
    journal: Journal,
    appender: Appender,
    fifo: (OwnedFd, OwnedFd),
    /// Everything ever received.
    received: Vec<u8>,
    frame_count: u64,
}

impl World {
    fn new(bytes_max: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let budget = Arc::new(Budget::new(u64::MAX, u64::MAX));
        let recovered = reopened(folder.path(), bytes_max, &budget);
        Self {
            folder,
            budget,
            bytes_max,
            journal: recovered.journal,
            appender: recovered.appender,
            fifo: rustix::pipe::pipe().unwrap(),
            received: Vec::new(),
            frame_count: 0,
        }
    }

    /// Ends the process, as it were, and starts the next one.
    fn reopen(&mut self) -> usize {
        let recovered = reopened(self.folder.path(), self.bytes_max, &self.budget);
        self.journal = recovered.journal;
        self.appender = recovered.appender;
        recovered.gap_count
    }

    fn write(&mut self, bytes: &[u8]) -> Appended {
        for piece in bytes.chunks(4096) {
            rustix::io::write(&self.fifo.1, piece).unwrap();
            let appended = self.append();
            let mut unread = [0; 4096];
            let unread_bytes = match rustix::io::ioctl_fionread(&self.fifo.0).unwrap() {
                0 => 0,
                _ => rustix::io::read(&self.fifo.0, &mut unread).unwrap(),
            };
            self.received
                .extend_from_slice(&piece[..piece.len() - unread_bytes]);
            if unread_bytes > 0 {
                return appended;
            }
        }
        Appended::Empty
    }

    fn append(&mut self) -> Appended {
        let (mut moved, mut last) = (0, Appended::Empty);
        while rustix::io::ioctl_fionread(&self.fifo.0).unwrap() > 0 {
            let fifo = self.fifo.0.as_fd();
            last = self
                .appender
                .append(&self.journal, fifo, 1 << 20, Instant::now())
                .unwrap();
            match last {
                Appended::Moved(bytes) | Appended::MovedAndMore(bytes) => moved += bytes,
                _ => return last,
            }
        }
        if moved > 0 {
            Appended::Moved(moved)
        } else {
            last
        }
    }

    fn write_frame(&mut self, line_bytes: usize) -> Appended {
        let written = self.write(&frame(self.frame_count, line_bytes));
        self.frame_count += u64::from(written == Appended::Empty);
        written
    }

    fn next(&self) -> (Next, Vec<u8>) {
        let mut buffer = vec![0; CHUNK_BYTES_MAX];
        let next = self.journal.next(WINDOW, &mut buffer).unwrap();
        if let Next::Frames { bytes, .. } = next {
            buffer.truncate(bytes);
        }
        (next, buffer)
    }

    fn count_ahead(&self, buffer_bytes: usize) -> usize {
        self.journal.count_ahead(&mut vec![0; buffer_bytes])
    }

    /// Sends and acknowledges all there is. Returns how many frames and which holes came.
    fn drain(&self) -> (u64, Vec<Hole>) {
        let (mut frames, mut holes) = (0, Vec::new());
        loop {
            match self.next() {
                (
                    Next::Frames {
                        first_offset,
                        bytes,
                    },
                    sent,
                ) => {
                    let at = usize::try_from(first_offset).unwrap();
                    assert_eq!(sent, self.received[at..at + bytes], "J1 at {first_offset}");
                    let delivered = walk(&sent, usize::MAX, 0, 0).new_entries;
                    let fates = SettledCounts {
                        delivered,
                        ..SettledCounts::default()
                    };
                    self.journal
                        .ack(first_offset + bytes as u64, fates)
                        .unwrap();
                    frames += delivered;
                }
                (Next::Hole(hole), _) => {
                    self.journal
                        .ack(hole.span.end, SettledCounts::default())
                        .unwrap();
                    holes.push(hole);
                }
                (Next::Finish { .. }, _) => {}
                (_, _) => return (frames, holes),
            }
        }
    }
}

fn reopened(folder: &Path, bytes_max: u64, budget: &Arc<Budget>) -> Recovered {
    open(
        Folder::new(Arc::new(RealDisk), folder.to_path_buf()),
        Bounds::new(bytes_max),
        budget,
    )
    .unwrap()
}

fn frame(time_nano: u64, line_bytes: usize) -> Vec<u8> {
    let entry = LogEntry {
        source: "stdout".into(),
        time_nano: 1_700_000_000_000_000_000 + i64::try_from(time_nano).unwrap(),
        line: vec![b'x'; line_bytes],
        partial: false,
        partial_log_metadata: None,
    };
    let mut frames = Vec::new();
    proto::frame::encode(&entry, &mut frames);
    frames
}

fn segment_names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| medium::segment_start(name).is_some())
        .collect();
    names.sort_unstable();
    names
}

#[test]
fn an_idle_journal_leaves_no_file() {
    let world = World::new(JOURNAL_BYTES_MIN);
    assert_eq!(world.next().0, Next::Idle);
    world.journal.end();
    assert_eq!(world.next().0, Next::Finish { end_offset: 0 });
    assert_eq!(std::fs::read_dir(world.folder.path()).unwrap().count(), 0);
}

#[test]
fn what_waits_is_counted_before_it_is_sent() {
    let mut world = World::new(JOURNAL_BYTES_MIN);
    for _ in 0..100 {
        world.write_frame(1_000);
    }
    assert_eq!(world.journal.totals().received, 0);
    assert!(world.count_ahead(50_000) > 40_000);
    let received = world.journal.totals().received;
    assert!((40..50).contains(&received), "{received}");
    while world.count_ahead(50_000) > 0 {}
    assert_eq!(world.journal.totals().received, 100);
    // Damage is counted when it is to be sent, and so are the frames behind it.
    world.write(&[0xff; 100]);
    for _ in 0..10 {
        world.write_frame(1_000);
    }
    assert_eq!(world.count_ahead(50_000), 0);
    assert_eq!(world.journal.totals().received, 100);
    world.journal.end();
    world.drain();
    assert_eq!(world.journal.totals().received, 111);
}

#[test]
fn a_frame_is_sent_when_its_last_byte_is_there() {
    let mut world = World::new(JOURNAL_BYTES_MIN);
    let frame = frame(1, 20);
    world.write(&frame[..frame.len() - 1]);
    assert_eq!(world.next().0, Next::Idle);
    world.write(&frame[frame.len() - 1..]);
    assert_eq!(world.drain(), (1, vec![]));
}

#[test]
fn a_frame_cut_short_at_the_end_is_a_hole_of_one_entry() {
    let mut world = World::new(JOURNAL_BYTES_MIN);
    world.write_frame(10);
    let whole_bytes = world.received.len() as u64;
    world.write(&frame(2, 100)[..50]);
    world.journal.end();
    let (frames, holes) = world.drain();
    assert_eq!(frames, 1);
    assert_eq!(holes.len(), 1);
    assert_eq!(holes[0].span, whole_bytes..whole_bytes + 50);
    assert_eq!(
        (holes[0].reason, holes[0].entries),
        (DropReason::CutShort, 1)
    );
    assert!(world.journal.is_complete());
    assert_eq!(world.journal.totals().received, 2);
}

#[test]
fn damage_is_skipped_to_the_next_boundary_and_counted() {
    let mut world = World::new(JOURNAL_BYTES_MIN);
    world.write_frame(10);
    let start = world.received.len() as u64;
    world.write(b"\x06stdout\x10 what a reader killed mid-frame left");
    let end = world.received.len() as u64;
    world.write_frame(20);
    world.write_frame(30);
    let (frames, holes) = world.drain();
    assert_eq!(frames, 3);
    assert_eq!(holes.len(), 1);
    assert_eq!(
        (holes[0].span.clone(), holes[0].reason),
        (start..end, DropReason::Malformed)
    );
    let totals = world.journal.totals();
    assert_eq!((totals.received, totals.settled.dropped.total()), (4, 1));
}

#[test]
fn segments_are_released_when_acknowledged_but_the_last_one_stays() {
    let mut world = World::new(JOURNAL_BYTES_MIN);
    for _ in 0..100 {
        assert_eq!(world.write_frame(8_000), Appended::Empty);
    }
    assert!(segment_names(world.folder.path()).len() >= 6);
    assert_eq!(world.drain(), (100, vec![]));
    let names = segment_names(world.folder.path());
    let segment_bytes = JOURNAL_BYTES_MIN / 8;
    let last_start = world.received.len() as u64 / segment_bytes * segment_bytes;
    assert_eq!(names, [segment_file_name(last_start)]);
    assert_eq!(
        world.budget.disk_bytes() + world.budget.memory_bytes(),
        world.received.len() as u64 - last_start
    );
    assert_eq!(world.reopen(), 0);
    assert_eq!(world.drain(), (0, vec![]));
    assert_eq!(
        world.journal.totals().received,
        100,
        "the counters are in the state"
    );
}

#[test]
fn what_was_sent_and_not_acknowledged_is_sent_again_after_a_restart() {
    let mut world = World::new(JOURNAL_BYTES_MIN);
    for _ in 0..10 {
        world.write_frame(100);
    }
    let first = frame(0, 100).len() as u64;
    assert!(matches!(
        world.next().0,
        Next::Frames {
            first_offset: 0,
            ..
        }
    ));
    let fates = SettledCounts {
        delivered: 1,
        ..SettledCounts::default()
    };
    world.journal.ack(first, fates).unwrap();
    world.reopen();
    assert!(matches!(world.next().0, Next::Frames { first_offset, .. } if first_offset == first));
    world.journal.rewind();
    assert_eq!(world.drain(), (9, vec![]));
    assert_eq!(world.journal.totals().received, 10, "J7");
}

#[test]
fn an_acknowledgement_of_what_was_never_sent_is_refused() {
    let mut world = World::new(JOURNAL_BYTES_MIN);
    world.write_frame(100);
    let error = world.journal.ack(1, SettledCounts::default()).unwrap_err();
    assert!(matches!(error, AckError::BeyondSent { offset: 1, sent: 0 }));
    assert_eq!(world.drain(), (1, vec![]));
}

#[test]
fn an_acknowledgement_inside_of_an_entry_is_refused_and_nothing_is_lost() {
    let mut world = World::new(JOURNAL_BYTES_MIN);
    for _ in 0..10 {
        world.write_frame(100);
    }
    let frame_bytes = frame(0, 100).len() as u64;
    assert!(matches!(
        world.next().0,
        Next::Frames {
            first_offset: 0,
            ..
        }
    ));
    for inside in [1, frame_bytes - 1, frame_bytes + 1, 10 * frame_bytes - 1] {
        let error = world
            .journal
            .ack(inside, SettledCounts::default())
            .unwrap_err();
        assert!(matches!(error, AckError::InsideEntry { offset } if offset == inside));
    }
    assert_eq!(world.journal.acked(), 0);
    for count in [1, 2, 9, 10] {
        world
            .journal
            .ack(count * frame_bytes, SettledCounts::default())
            .unwrap();
    }
    world.write_frame(100);
    world.journal.rewind();
    assert_eq!(world.drain(), (1, vec![]));
}

#[test]
fn the_window_bounds_what_is_in_flight() {
    let mut world = World::new(4 * JOURNAL_BYTES_MIN);
    for _ in 0..300 {
        world.write_frame(1_000);
    }
    let frame_bytes = frame(0, 1_000).len() as u64;
    let mut buffer = vec![0; CHUNK_BYTES_MAX];
    let window = 20 * frame_bytes + 7;
    // Nothing is in flight: a frame of any size may go, so up to its largest size goes.
    let Next::Frames { bytes, .. } = world.journal.next(window, &mut buffer).unwrap() else {
        panic!("nothing was sent")
    };
    assert!(bytes <= FRAME_BYTES_MAX);
    assert_eq!(
        world.journal.next(window, &mut buffer).unwrap(),
        Next::NoCredit { is_window: true }
    );
    let fates = SettledCounts {
        delivered: bytes as u64 / frame_bytes - 10,
        ..SettledCounts::default()
    };
    world
        .journal
        .ack(bytes as u64 - 10 * frame_bytes, fates)
        .unwrap();
    let next = world.journal.next(window, &mut buffer).unwrap();
    assert!(
        matches!(next, Next::Frames { bytes, .. } if bytes as u64 == 10 * frame_bytes),
        "{next:?}"
    );
    assert_eq!(
        world.journal.next(window, &mut buffer).unwrap(),
        Next::NoCredit { is_window: true }
    );
}

#[test]
fn a_full_journal_says_so_and_drops_the_oldest_unsent() {
    let mut world = World::new(JOURNAL_BYTES_MIN);
    while world.write_frame(5_000) == Appended::Empty {}
    let cut = world.received.len();
    assert!(world.journal.held_bytes() <= JOURNAL_BYTES_MIN, "J5");
    // Half the journal at most is in flight and stays (J6).
    let mut in_flight = 0;
    while let (Next::Frames { bytes, .. }, _) = world.next() {
        in_flight += bytes as u64;
    }
    assert!(in_flight > JOURNAL_BYTES_MIN / 4 && in_flight <= JOURNAL_BYTES_MIN / 2);
    assert!(world.journal.shortage().is_some());
    let freed = world.journal.drop_oldest(u64::MAX);
    assert!(freed >= JOURNAL_BYTES_MIN / 16, "{freed}");
    assert_eq!(world.journal.shortage(), None);
    // What the pipe still had of the frame that did not fit is lost to this test: finish it.
    let missing = frame(world.frame_count, 5_000);
    let known = walk(&world.received, usize::MAX, 0, 0).bytes;
    assert!(cut >= known);
    world.write(&missing[cut - known..]);
    world.frame_count += 1;
    assert_eq!(world.reopen(), 0, "the hole was saved");
    let (frames, holes) = world.drain();
    assert_eq!(holes.len(), 1);
    assert_eq!(holes[0].span.start, in_flight, "J6");
    assert!(holes[0].entries > 0 && holes[0].first_time_nano < holes[0].last_time_nano);
    assert_eq!(frames + holes[0].entries, world.frame_count, "J4");
    let totals = world.journal.totals();
    assert_eq!(totals.received, world.frame_count);
    assert_eq!(totals.settled.delivered, frames);
}

#[test]
fn the_host_budget_leaves_a_quiet_container_two_segments() {
    let mut busy = World::new(1 << 30);
    busy.budget = Arc::new(Budget::new(3 << 20, u64::MAX));
    busy.reopen();
    let other_folder = tempfile::tempdir().unwrap();
    let quiet = reopened(other_folder.path(), 1 << 30, &busy.budget);
    while busy.write_frame(10_000) == Appended::Empty {}
    assert!(busy.budget.disk_bytes() >= 3 << 20);
    assert_eq!(quiet.journal.room_bytes(), 2 << 20);
    assert_eq!(busy.journal.room_bytes(), 0);
    busy.journal.grant_overdraft();
    assert!(busy.journal.room_bytes() > 0);
}

/// Whatever others hold, each journal gets two small segments while the host has next to nothing, and what can
/// be dropped again beyond what is in flight.
#[test]
fn a_low_disk_and_spent_memory_leave_each_journal_two_small_segments() {
    let floor = 128 << 10;
    let mut on_disk = World::new(64 << 20);
    on_disk.budget = Arc::new(Budget::new(u64::MAX, 1 << 20));
    on_disk.reopen();
    on_disk.budget.set_disk_low(true);
    while on_disk.write_frame(10_000) == Appended::Empty {}
    assert_eq!(on_disk.journal.held_bytes(), floor);
    assert_eq!(segment_names(on_disk.folder.path()).len(), 2);
    on_disk.journal.grant_overdraft();
    assert_eq!(on_disk.journal.room_bytes(), 0, "it goes to memory");
    on_disk.appender.fall_back();
    while on_disk.write_frame(10_000) == Appended::Empty {}
    assert_eq!(on_disk.budget.memory_bytes(), 1 << 20);
    // Then on disk again, as far as the overdraft goes. All but the last segment can be dropped.
    assert_eq!(on_disk.budget.disk_bytes(), 2 * floor);
    assert!(on_disk.journal.drop_oldest(u64::MAX) > 0);
    assert_eq!(on_disk.budget.memory_bytes(), 0);
    assert_eq!(on_disk.budget.disk_bytes(), floor / 2);
    assert_eq!(on_disk.write_frame(10_000), Appended::Empty);
    assert!(on_disk.budget.disk_bytes() > 0);

    let other = in_memory(Bounds::new(16 << 20), &on_disk.budget);
    on_disk.budget.set_disk_low(false);
    let taken = on_disk.budget.memory_bytes();
    on_disk
        .budget
        .add(super::budget::Place::Memory, (1 << 20) - taken);
    assert_eq!(other.journal.room_bytes(), floor);
    other
        .journal
        .held_bytes
        .fetch_add(1 << 20, Ordering::Relaxed);
    assert_eq!(other.journal.room_bytes(), 0);
    other.journal.grant_overdraft();
    assert_eq!(other.journal.room_bytes(), floor, "not its own bound");
}

/// A journal that was full when the pump asked for room may not be so when upkeep looks: then
/// nobody has to pay, least of all another container.
#[test]
fn an_acknowledgement_ends_a_shortage() {
    let mut world = World::new(JOURNAL_BYTES_MIN);
    assert_eq!(world.journal.shortage(), None);
    while world.write_frame(10_000) == Appended::Empty {}
    assert_eq!(world.journal.shortage(), Some(Shortage::Own));
    world.drain();
    assert_eq!(world.journal.shortage(), None);
}

#[test]
fn a_shortage_of_the_host_is_told_from_one_s_own() {
    let mut world = World::new(8 << 20);
    world.budget = Arc::new(Budget::new(3 << 20, u64::MAX));
    world.reopen();
    while world.write_frame(10_000) == Appended::Empty {}
    assert_eq!(world.journal.shortage(), Some(Shortage::Host));
    let (mut world, faults) = faulty_world(8 << 20);
    for fault in [Errno::NOSPC, Errno::IO] {
        lock(&faults).splice = Some(fault);
        let expected = match fault {
            Errno::NOSPC => Shortage::Host,
            // The bytes go to memory, and fill their share of it.
            _ => Shortage::Own,
        };
        while world.write_frame(10_000) == Appended::Empty {}
        assert_eq!(world.journal.shortage(), Some(expected), "{fault}");
    }
}

#[test]
fn a_journal_in_memory_works_alike() {
    let budget = Arc::new(Budget::new(u64::MAX, u64::MAX));
    let recovered = in_memory(Bounds::new(JOURNAL_BYTES_MIN), &budget);
    let mut world = World::new(JOURNAL_BYTES_MIN);
    world.journal = recovered.journal;
    world.appender = recovered.appender;
    for _ in 0..50 {
        world.write_frame(5_000);
    }
    assert_eq!(world.drain(), (50, vec![]));
    assert_eq!(segment_names(world.folder.path()), Vec::<String>::new());
}

#[test]
fn aged_bytes_are_synced_once_and_acknowledged_ones_never() {
    let mut world = World::new(JOURNAL_BYTES_MIN);
    assert!(!world.journal.sync_aged().unwrap());
    world.write_frame(10);
    assert!(world.journal.sync_aged().unwrap());
    assert_eq!(lock(&world.journal.sync_marks).synced, 0, "too young");
    assert!(world.journal.sync_aged().unwrap());
    let tail = world.received.len() as u64;
    assert_eq!(lock(&world.journal.sync_marks).synced, tail);
    world.drain();
    assert!(!world.journal.sync_aged().unwrap());
}

#[test]
fn a_segment_that_vanished_is_a_hole_and_the_rest_is_sent() {
    let mut world = World::new(JOURNAL_BYTES_MIN);
    for _ in 0..80 {
        world.write_frame(6_000);
    }
    let names = segment_names(world.folder.path());
    std::fs::remove_file(world.folder.path().join(&names[1])).unwrap();
    assert_eq!(world.reopen(), 1);
    let (frames, holes) = world.drain();
    assert!(frames > 50 && frames < 80, "{frames}");
    assert!(
        holes
            .iter()
            .any(|hole| hole.reason == DropReason::DiskError),
        "{holes:?}"
    );
    assert!(world.journal.acked() == world.received.len() as u64, "J4");
}

/// The segment behind a hole is lost: what comes next does not belong into the one before it, whose
/// file would have zeros in place of the hole and count them.
#[test]
fn a_journal_that_has_lost_its_last_segment_goes_on_in_a_new_one() {
    let mut world = World::new(JOURNAL_BYTES_MIN);
    world.write_frame(10);
    let bytes = world.received.len() as u64;
    let hole = Hole {
        span: bytes..bytes * 2,
        entries: 1,
        first_time_nano: 0,
        last_time_nano: 0,
        reason: DropReason::JournalFull,
    };
    let saved = Saved {
        holes: vec![hole.clone()],
        ..Saved::default()
    };
    let mut slot = Vec::new();
    state::encode(2, &saved, &mut slot);
    std::fs::write(world.folder.path().join(medium::STATE_FILE_NAME), slot).unwrap();
    assert_eq!(world.reopen(), 0);
    world.received.resize(world.received.len() * 2, 0);
    world.write_frame(10);
    assert_eq!(segment_names(world.folder.path()).len(), 2);
    assert_eq!(world.drain(), (2, vec![hole]));
    assert_eq!(world.journal.held_bytes(), bytes);
}

#[test]
fn a_segment_cut_behind_the_reader_s_back_is_given_up_and_the_rest_is_sent() {
    let mut world = World::new(JOURNAL_BYTES_MIN);
    for _ in 0..80 {
        world.write_frame(6_000);
    }
    let names = segment_names(world.folder.path());
    let cut = std::fs::OpenOptions::new()
        .write(true)
        .open(world.folder.path().join(&names[1]))
        .unwrap();
    cut.set_len(20_000).unwrap();
    let mut frames = 0;
    for _ in 0..200 {
        let mut buffer = vec![0; CHUNK_BYTES_MAX];
        match world.journal.next(WINDOW, &mut buffer) {
            Ok(Next::Frames {
                first_offset,
                bytes,
            }) => {
                frames += walk(&buffer[..bytes], usize::MAX, 0, 0).new_entries;
                let end = first_offset + bytes as u64;
                world.journal.ack(end, SettledCounts::default()).unwrap();
            }
            Ok(Next::Hole(hole)) => world
                .journal
                .ack(hole.span.end, SettledCounts::default())
                .unwrap(),
            Ok(_) => break,
            Err(_) => world.journal.skip_unreadable(),
        }
    }
    assert!(frames > 50 && frames < 80, "{frames}");
    assert_eq!(world.journal.acked(), world.received.len() as u64);
}

/// Damage that a loss of power, a user or the disk has done to a journal's folder.
enum Damage {
    None,
    Segment(usize, fn(&mut Vec<u8>)),
    State(fn(&mut Vec<u8>)),
    NoSegment(usize),
    NoState,
}

impl Damage {
    fn happen(&self, folder: &Path) {
        let segment = |index: usize| folder.join(&segment_names(folder)[index]);
        match self {
            Self::None => {}
            Self::Segment(index, apply) => change(&segment(*index), apply),
            Self::State(apply) => change(&folder.join("state"), apply),
            Self::NoSegment(index) => std::fs::remove_file(segment(*index)).unwrap(),
            Self::NoState => std::fs::remove_file(folder.join("state")).unwrap(),
        }
    }
}

fn cut(bytes: &mut Vec<u8>, count: usize) {
    bytes.truncate(bytes.len() - count);
}

const TABLE_LINE_BYTES: usize = 6_000;

fn table_frame_bytes() -> usize {
    frame(0, TABLE_LINE_BYTES).len()
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut content = std::fs::read(path).unwrap();
    change(&mut content);
    std::fs::write(path, content).unwrap();
}

/// What is damaged, and what comes then: frames, holes, and whether the state is set aside.
type Row = (&'static str, Damage, (u64, usize, bool));

fn damage_table() -> [Row; 12] {
    let segment_change = |index, apply: fn(&mut Vec<u8>)| Damage::Segment(index, apply);
    [
        ("none", Damage::None, (78, 0, false)),
        (
            "torn tail",
            segment_change(3, |bytes| cut(bytes, 10)),
            (77, 1, false),
        ),
        (
            "torn header",
            segment_change(3, |bytes| cut(bytes, table_frame_bytes() - 2)),
            (77, 1, false),
        ),
        (
            "zeros behind the tail",
            segment_change(3, |bytes| bytes.extend([0; 5_000])),
            (78, 1, false),
        ),
        (
            "zeros in the middle",
            segment_change(0, |bytes| {
                bytes[5 * table_frame_bytes()..7 * table_frame_bytes()].fill(0);
            }),
            (76, 1, false),
        ),
        (
            "a flipped bit in a header",
            segment_change(0, |bytes| bytes[5 * table_frame_bytes()] ^= 0x40),
            (77, 1, false),
        ),
        ("a missing segment", Damage::NoSegment(1), (55, 3, false)),
        ("a missing state", Damage::NoState, (80, 0, false)),
        ("an empty state", Damage::State(Vec::clear), (80, 0, false)),
        (
            "a state of zeros",
            Damage::State(|bytes| bytes.fill(0)),
            (80, 0, true),
        ),
        (
            "a state of another version",
            Damage::State(|bytes| {
                for slot in [0, 4_096] {
                    bytes[slot + 4] = 9;
                }
            }),
            (80, 0, true),
        ),
        (
            "a flipped bit in the newer slot",
            Damage::State(|bytes| bytes[16] ^= 1),
            (79, 0, false),
        ),
    ]
}

/// A journal of which two frames are acknowledged is damaged and opened again. Everything that comes
/// is as it was written (see [`World::drain`]), and the ledger adds up.
#[test]
fn damage_costs_what_the_table_of_recovery_says() {
    for (what, damage, expected) in damage_table() {
        let mut world = World::new(JOURNAL_BYTES_MIN);
        for _ in 0..80 {
            assert_eq!(world.write_frame(TABLE_LINE_BYTES), Appended::Empty);
        }
        world.next();
        for acked in 1..=2 {
            let fates = SettledCounts {
                delivered: 1,
                ..SettledCounts::default()
            };
            let offset = acked * table_frame_bytes() as u64;
            world.journal.ack(offset, fates).unwrap();
        }
        damage.happen(world.folder.path());
        world.reopen();
        world.journal.end();
        let settled = world.journal.totals().settled.delivered;
        let (frames, holes) = world.drain();
        let is_aside = world.folder.path().join("state.damaged").exists();
        assert_eq!(
            (frames, holes.len(), is_aside),
            expected,
            "{what}: {holes:?}"
        );
        let totals = world.journal.totals();
        let dropped = totals.settled.dropped.total();
        assert_eq!(
            dropped,
            holes.iter().map(Hole::counted_entries).sum::<u64>(),
            "{what}"
        );
        assert_eq!(totals.received, settled + frames + dropped, "{what}");
        assert!(world.journal.is_complete(), "{what}");
    }
}

/// A disk that counts the syncs of folders, and refuses them as it is told.
#[derive(Debug, Default)]
struct SyncDisk {
    folder_syncs: AtomicU64,
    refuses: AtomicBool,
}

impl Disk for SyncDisk {
    fn sync_folder(&self, folder: &Path) -> Result<(), Errno> {
        if self.refuses.load(Ordering::Relaxed) {
            return Err(Errno::IO);
        }
        self.folder_syncs.fetch_add(1, Ordering::Relaxed);
        RealDisk.sync_folder(folder)
    }
}

/// A segment whose name is not on stable storage is lost with the power, however often its bytes were
/// synced: the folder is synced until that succeeds, also for what an earlier process created.
#[test]
fn the_name_of_a_segment_is_synced_with_its_bytes() {
    let mut world = World::new(JOURNAL_BYTES_MIN);
    world.write_frame(10);
    let disk = Arc::new(SyncDisk::default());
    let reopen = |world: &mut World| {
        let medium = Folder::new(
            Arc::clone(&disk) as Arc<dyn Disk>,
            world.folder.path().into(),
        );
        let opened = open(medium, Bounds::new(JOURNAL_BYTES_MIN), &world.budget).unwrap();
        (world.journal, world.appender) = (opened.journal, opened.appender);
    };
    reopen(&mut world);
    disk.refuses.store(true, Ordering::Relaxed);
    assert!(world.journal.sync_aged().is_err());
    disk.refuses.store(false, Ordering::Relaxed);
    assert!(world.journal.sync_aged().unwrap());
    assert_eq!(disk.folder_syncs.load(Ordering::Relaxed), 1);
    // Once is enough.
    world.write_frame(10);
    world.journal.sync().unwrap();
    assert_eq!(disk.folder_syncs.load(Ordering::Relaxed), 1);
}

/// A disk that fails as it is told.
#[derive(Debug)]
struct FaultyDisk(Arc<Mutex<Faults>>);

#[derive(Debug, Default)]
struct Faults {
    create: Option<Errno>,
    splice: Option<Errno>,
    read: Option<Errno>,
    save: Option<Errno>,
}

impl FaultyDisk {
    fn fail(&self, fault: impl Fn(&Faults) -> Option<Errno>) -> Result<(), Errno> {
        fault(&lock(&self.0)).map_or(Ok(()), Err)
    }
}

impl Disk for FaultyDisk {
    fn open(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        if flags.contains(OFlags::TRUNC) {
            self.fail(|faults| faults.create)?;
        }
        RealDisk.open(path, flags)
    }

    fn write_at(&self, file: BorrowedFd<'_>, bytes: &[u8], at: u64) -> Result<usize, Errno> {
        self.fail(|faults| faults.save)?;
        RealDisk.write_at(file, bytes, at)
    }

    fn read_at(&self, file: BorrowedFd<'_>, into: &mut [u8], at: u64) -> Result<usize, Errno> {
        self.fail(|faults| faults.read)?;
        RealDisk.read_at(file, into, at)
    }

    fn splice(
        &self,
        fifo: BorrowedFd<'_>,
        file: BorrowedFd<'_>,
        at: u64,
        bytes_max: usize,
    ) -> Result<usize, Errno> {
        // Memory is no disk.
        if rustix::fs::fcntl_get_seals(file).is_err() {
            self.fail(|faults| faults.splice)?;
        }
        RealDisk.splice(fifo, file, at, bytes_max)
    }
}

fn faulty_world(bytes_max: u64) -> (World, Arc<Mutex<Faults>>) {
    let mut world = World::new(bytes_max);
    let faults = Arc::new(Mutex::new(Faults::default()));
    let disk = Arc::new(FaultyDisk(Arc::clone(&faults)));
    let medium = Folder::new(disk, world.folder.path().to_path_buf());
    let recovered = empty(Box::new(medium), Bounds::new(bytes_max), &world.budget);
    world.journal = recovered.journal;
    world.appender = recovered.appender;
    (world, faults)
}

#[test]
fn a_disk_that_refuses_costs_no_entry_and_is_tried_again() {
    for (create, splice) in [(Some(Errno::IO), None), (None, Some(Errno::IO))] {
        let (mut world, faults) = faulty_world(8 << 20);
        world.write_frame(1_000);
        *lock(&faults) = Faults {
            create,
            splice,
            ..Faults::default()
        };
        for _ in 0..150 {
            assert_eq!(world.write_frame(10_000), Appended::Empty);
        }
        *lock(&faults) = Faults::default();
        for _ in 0..250 {
            assert_eq!(world.write_frame(10_000), Appended::Empty);
        }
        assert!(
            segment_names(world.folder.path()).len() >= 2,
            "the disk is used again"
        );
        assert_eq!(world.drain(), (401, vec![]));
    }
}

#[test]
fn what_a_refusing_disk_puts_into_memory_is_bounded_and_can_be_dropped() {
    let (mut world, faults) = faulty_world(64 << 20);
    lock(&faults).splice = Some(Errno::IO);
    while world.write_frame(10_000) == Appended::Empty {}
    assert!(
        world.journal.held_bytes() <= 2 << 20,
        "{}",
        world.journal.held_bytes()
    );
    assert!(world.journal.drop_oldest(u64::MAX) >= 1 << 20);
    assert!(matches!(world.write(b"x"), Appended::Empty));
}

#[test]
fn without_a_file_descriptor_a_segment_grows_and_nothing_goes_to_memory() {
    for shortage in [Errno::MFILE, Errno::NFILE] {
        let (mut world, faults) = faulty_world(8 << 20);
        world.write_frame(4000);
        lock(&faults).create = Some(shortage);
        for _ in 0..600 {
            world.write_frame(4000); // 2.4 MB: more than two segments
        }
        assert_eq!(world.received.len() as u64, world.journal.unacked_bytes());
        assert_eq!(segment_names(world.folder.path()).len(), 1);
        lock(&faults).create = None;
        world.write_frame(4000);
        assert_eq!(segment_names(world.folder.path()).len(), 2);
        assert_eq!(world.journal.fallback_bytes.load(Ordering::Relaxed), 0);
        assert_eq!(world.drain(), (602, vec![]));
    }
}

#[test]
fn only_the_newest_two_segments_are_open_and_none_once_the_fifo_has_ended() {
    let mut world = World::new(1 << 20);
    let open_files = |world: &World| {
        let segments = lock(&world.journal.segments);
        let is_open = |segment: &&Arc<Segment>| lock(&segment.file).is_some();
        let newest_open = segments.iter().rev().take_while(is_open).count();
        assert_eq!(newest_open, segments.iter().filter(is_open).count());
        newest_open
    };
    for _ in 0..150 {
        world.write_frame(4000); // 600 KB: five segments
    }
    assert_eq!(
        (segment_names(world.folder.path()).len(), open_files(&world)),
        (5, 2)
    );
    world.reopen();
    assert_eq!(open_files(&world), 1);
    world.write_frame(10);
    world.journal.sync().unwrap();
    world.journal.end();
    assert_eq!(open_files(&world), 0);
    assert_eq!(world.drain(), (151, vec![]));
}

#[test]
fn a_full_disk_says_full_and_loses_nothing() {
    let (mut world, faults) = faulty_world(8 << 20);
    world.write_frame(100);
    lock(&faults).splice = Some(Errno::NOSPC);
    rustix::io::write(&world.fifo.1, &frame(1, 100)).unwrap();
    assert_eq!(world.append(), Appended::Full);
    assert!(world.journal.shortage().is_some());
    lock(&faults).splice = None;
    assert!(matches!(world.append(), Appended::Moved(_)));
    assert_eq!(world.journal.shortage(), None);
    world.received.extend(frame(1, 100));
    assert_eq!(world.drain(), (2, vec![]));
}

#[test]
fn a_full_disk_that_nothing_frees_is_passed_by() {
    let (mut world, faults) = faulty_world(8 << 20);
    *lock(&faults) = Faults {
        create: Some(Errno::NOSPC),
        splice: Some(Errno::NOSPC),
        ..Faults::default()
    };
    rustix::io::write(&world.fifo.1, &frame(0, 100)).unwrap();
    assert_eq!(world.append(), Appended::Full);
    world.appender.fall_back();
    assert!(matches!(world.append(), Appended::Moved(_)));
    world.received.extend(frame(0, 100));
    assert_eq!(world.drain(), (1, vec![]));
}

#[test]
fn an_acknowledgement_that_can_t_be_saved_counts_and_is_said() {
    let (mut world, faults) = faulty_world(8 << 20);
    world.write_frame(100);
    world.next();
    lock(&faults).save = Some(Errno::IO);
    let end = world.received.len() as u64;
    let fates = SettledCounts {
        delivered: 1,
        ..SettledCounts::default()
    };
    let error = world.journal.ack(end, fates).unwrap_err();
    assert!(matches!(error, AckError::Save(Errno::IO)));
    assert_eq!(
        (
            world.journal.acked(),
            world.journal.totals().settled.delivered
        ),
        (end, 1)
    );
}

#[test]
fn a_read_that_fails_changes_nothing() {
    let (mut world, faults) = faulty_world(8 << 20);
    world.write_frame(100);
    lock(&faults).read = Some(Errno::IO);
    let mut buffer = vec![0; CHUNK_BYTES_MAX];
    let error = world.journal.next(WINDOW, &mut buffer).unwrap_err();
    assert_eq!((error.offset, error.source), (0, Errno::IO));
    lock(&faults).read = None;
    assert_eq!(world.drain(), (1, vec![]));
}

#[derive(Debug, Clone)]
enum Step {
    Write {
        line_bytes: usize,
    },
    WriteTorn {
        line_bytes: usize,
        at: prop::sample::Index,
    },
    Send,
    AckAll,
    AckOne,
    Rewind,
    Drop,
    Count,
    Sync,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let line_bytes = || prop_oneof![0_usize..300, 4_000_usize..16_384, Just(100_000)];
    prop_oneof![
        8 => line_bytes().prop_map(|line_bytes| Step::Write { line_bytes }),
        2 => (line_bytes(), any::<prop::sample::Index>())
            .prop_map(|(line_bytes, at)| Step::WriteTorn { line_bytes, at }),
        4 => Just(Step::Send),
        2 => Just(Step::AckAll),
        2 => Just(Step::AckOne),
        1 => Just(Step::Rewind),
        1 => Just(Step::Drop),
        2 => Just(Step::Count),
        1 => Just(Step::Sync),
        2 => Just(Step::Reopen),
    ]
}

/// What was sent and not acknowledged: where it ends, and its entries, 0 for a hole.
type InFlight = VecDeque<(u64, u64)>;

fn ack_front(world: &World, in_flight: &mut InFlight) {
    if let Some((end, delivered)) = in_flight.pop_front() {
        let fates = SettledCounts {
            delivered,
            ..SettledCounts::default()
        };
        world.journal.ack(end, fates).unwrap();
    }
}

fn take(world: &mut World, step: &Step, in_flight: &mut InFlight) {
    match step {
        Step::Write { line_bytes } => {
            let frame = frame(world.frame_count, *line_bytes);
            // A frame that is cut by a full journal would be damage; this test has none.
            if world.journal.room_bytes() >= frame.len() as u64 {
                world.write(&frame);
                world.frame_count += 1;
            }
        }
        Step::WriteTorn { line_bytes, at } => {
            let frame = frame(world.frame_count, *line_bytes);
            if world.journal.room_bytes() >= frame.len() as u64 {
                let cut = at.index(frame.len());
                world.write(&frame[..cut]);
                world.reopen();
                in_flight.clear();
                world.write(&frame[cut..]);
                world.frame_count += 1;
            }
        }
        Step::Send => match world.next() {
            (
                Next::Frames {
                    first_offset,
                    bytes,
                },
                sent,
            ) => {
                let at = usize::try_from(first_offset).unwrap();
                assert_eq!(sent, world.received[at..at + bytes], "J1");
                let entries = walk(&sent, usize::MAX, 0, 0).new_entries;
                in_flight.push_back((first_offset + bytes as u64, entries));
            }
            (Next::Hole(hole), _) => in_flight.push_back((hole.span.end, 0)),
            (_, _) => {}
        },
        Step::AckAll => {
            while !in_flight.is_empty() {
                ack_front(world, in_flight);
            }
        }
        Step::AckOne => ack_front(world, in_flight),
        Step::Rewind => {
            world.journal.rewind();
            in_flight.clear();
        }
        Step::Drop => {
            world.journal.drop_oldest(u64::MAX);
        }
        Step::Count => {
            world.count_ahead(150_000);
        }
        Step::Sync => world.journal.sync().unwrap(),
        Step::Reopen => {
            assert_eq!(world.reopen(), 0);
            in_flight.clear();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_happens_every_frame_is_delivered_or_in_a_hole(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::new(JOURNAL_BYTES_MIN);
        let mut in_flight = InFlight::new();
        for step in &steps {
            take(&mut world, step, &mut in_flight);
            let reader = lock(&world.journal.reader);
            let tail = world.journal.tail.load(Ordering::Relaxed);
            prop_assert!(reader.acked <= reader.sent && reader.sent <= reader.scanned_to && reader.scanned_to <= tail, "J2");
            prop_assert!(world.journal.held_bytes() <= JOURNAL_BYTES_MIN, "J5");
            drop(reader);
            prop_assert!(world.journal.totals().received <= world.frame_count, "J7");
        }
        // Whatever was done with them: all are counted, wherever they are.
        while world.count_ahead(1 << 20) > 0 {}
        prop_assert_eq!(world.journal.totals().received, world.frame_count, "J7");
        while !in_flight.is_empty() {
            ack_front(&world, &mut in_flight);
        }
        world.drain();
        let totals = world.journal.totals();
        prop_assert_eq!(totals.buffered_bytes, 0);
        prop_assert_eq!(totals.received, world.frame_count, "J7");
        prop_assert_eq!(totals.settled.delivered + totals.settled.dropped.total(), world.frame_count, "J4");
        prop_assert_eq!(world.budget.disk_bytes() + world.budget.memory_bytes(), world.journal.held_bytes());
    }
}

/// A drop that comes after a rewind ends where an older hole begins, although the first frames of
/// that hole can still be read: holes that overlapped counted entries twice, and the journal then
/// looked for bytes that it had released (J4).
#[test]
fn a_drop_stops_at_the_hole_behind_it() {
    let write = |line_bytes| Step::Write { line_bytes };
    let (drop, send) = (|| Step::Drop, || Step::Send);
    let mut steps: Vec<_> = (0..5).map(|_| write(100_000)).collect();
    steps.extend([send(), Step::AckAll]);
    steps.extend([100_000, 100_000, 12_608, 11_501, 100_000, 100_000].map(write));
    steps.extend([
        send(),
        send(),
        send(),
        drop(),
        Step::Rewind,
        drop(),
        drop(),
        send(),
        drop(),
    ]);
    let mut world = World::new(JOURNAL_BYTES_MIN);
    let mut in_flight = InFlight::new();
    for step in &steps {
        take(&mut world, step, &mut in_flight);
        let reader = lock(&world.journal.reader);
        let spans: Vec<_> = reader.holes.iter().map(|hole| hole.span.clone()).collect();
        assert!(
            spans.windows(2).all(|pair| pair[0].end <= pair[1].start),
            "{spans:?}"
        );
    }
    world.drain();
    let totals = world.journal.totals();
    assert_eq!(
        totals.settled.delivered + totals.settled.dropped.total(),
        world.frame_count,
        "J4"
    );
}

/// A disk of a process that is killed at its n-th call: that call and all later ones do nothing.
#[derive(Debug)]
struct MortalDisk {
    calls: AtomicU64,
    last_call: u64,
}

impl MortalDisk {
    fn is_dead(&self) -> bool {
        self.calls.load(Ordering::Relaxed) >= self.last_call
    }

    fn call(&self) -> Result<(), Errno> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        match self.is_dead() {
            true => Err(Errno::IO),
            false => Ok(()),
        }
    }
}

impl Disk for MortalDisk {
    fn open(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        self.call()?;
        RealDisk.open(path, flags)
    }

    fn unlink(&self, path: &Path) -> Result<(), Errno> {
        self.call()?;
        RealDisk.unlink(path)
    }

    fn write_at(&self, file: BorrowedFd<'_>, bytes: &[u8], at: u64) -> Result<usize, Errno> {
        self.call()?;
        RealDisk.write_at(file, bytes, at)
    }

    fn read_at(&self, file: BorrowedFd<'_>, into: &mut [u8], at: u64) -> Result<usize, Errno> {
        self.call()?;
        RealDisk.read_at(file, into, at)
    }

    fn sync(&self, _: BorrowedFd<'_>) -> Result<(), Errno> {
        self.call()
    }

    fn sync_folder(&self, _: &Path) -> Result<(), Errno> {
        self.call()
    }

    fn splice(
        &self,
        fifo: BorrowedFd<'_>,
        file: BorrowedFd<'_>,
        at: u64,
        bytes_max: usize,
    ) -> Result<usize, Errno> {
        self.call()?;
        RealDisk.splice(fifo, file, at, bytes_max)
    }
}

/// What a process does with its journal until it is killed.
enum Deed {
    /// Takes frames of so many bytes each.
    Write {
        frames: u32,
        line_bytes: usize,
    },
    /// Sends so many chunks.
    Send(u32),
    /// Takes so many acknowledgements.
    Ack(u32),
    Drop,
    Rewind,
    Sync,
}

/// Does deeds with a disk that dies at its n-th call, then goes on with the next process as far as
/// the end of the stream. Returns whether the first process died.
fn live_and_die(deeds: &[Deed], last_call: u64) -> bool {
    let disk = Arc::new(MortalDisk {
        calls: AtomicU64::new(0),
        last_call,
    });
    let mut world = World::new(JOURNAL_BYTES_MIN);
    let medium = Folder::new(
        Arc::clone(&disk) as Arc<dyn Disk>,
        world.folder.path().into(),
    );
    let opened = open(medium, Bounds::new(JOURNAL_BYTES_MIN), &world.budget);
    if let Ok(recovered) = opened {
        (world.journal, world.appender) = (recovered.journal, recovered.appender);
        let mut in_flight = InFlight::new();
        for deed in deeds {
            if !disk.is_dead() {
                act(deed, &disk, &mut world, &mut in_flight);
            }
        }
    }
    let died = disk.is_dead();
    assert_eq!(world.reopen(), 0, "call {last_call}: J3, J4");
    world.append();
    world.journal.end();
    world.drain();
    let totals = world.journal.totals();
    let settled = totals.settled.delivered + totals.settled.dropped.total();
    assert_eq!(
        (totals.received, settled, totals.buffered_bytes),
        (world.frame_count, world.frame_count, 0),
        "call {last_call}: J4, J7"
    );
    let tail = world.journal.tail.load(Ordering::Relaxed);
    assert_eq!(tail, world.received.len() as u64, "call {last_call}: J1");
    died
}

fn act(deed: &Deed, disk: &MortalDisk, world: &mut World, in_flight: &mut InFlight) {
    match *deed {
        Deed::Write { frames, line_bytes } => {
            for _ in 0..frames {
                if disk.is_dead() {
                    return;
                }
                // The engine has written the frame, whatever becomes of the driver.
                let frame = frame(world.frame_count, line_bytes);
                rustix::io::write(&world.fifo.1, &frame).unwrap();
                world.received.extend_from_slice(&frame);
                world.frame_count += 1;
                append_all(world);
            }
        }
        Deed::Send(chunks) => {
            for _ in 0..chunks {
                send_one(world, in_flight);
            }
        }
        Deed::Ack(count) => {
            for _ in 0..count {
                let Some((end, delivered)) = in_flight.pop_front() else {
                    return;
                };
                let fates = SettledCounts {
                    delivered,
                    ..SettledCounts::default()
                };
                // Behind its death nothing that it finds matters.
                world.journal.ack(end, fates).ok();
            }
        }
        Deed::Drop => {
            world.journal.drop_oldest(u64::MAX);
        }
        Deed::Rewind => {
            world.journal.rewind();
            in_flight.clear();
        }
        Deed::Sync => {
            world.journal.sync().ok();
        }
    }
}

fn append_all(world: &mut World) {
    loop {
        let fifo = world.fifo.0.as_fd();
        let appended = world
            .appender
            .append(&world.journal, fifo, 1 << 20, Instant::now());
        match appended {
            Ok(Appended::Moved(_) | Appended::MovedAndMore(_)) => {}
            Ok(Appended::Full) => {
                if world.journal.drop_oldest(u64::MAX) == 0 {
                    return;
                }
            }
            Ok(Appended::Empty | Appended::End) | Err(_) => return,
        }
    }
}

fn send_one(world: &World, in_flight: &mut InFlight) {
    let mut buffer = vec![0; FRAME_BYTES_MAX];
    match world.journal.next(WINDOW, &mut buffer) {
        Ok(Next::Frames {
            first_offset,
            bytes,
        }) => {
            let entries = walk(&buffer[..bytes], usize::MAX, 0, 0).new_entries;
            in_flight.push_back((first_offset + bytes as u64, entries));
        }
        Ok(Next::Hole(hole)) => in_flight.push_back((hole.span.end, 0)),
        _ => {}
    }
}

/// Kills a process at every single call of its disk, one after the other.
fn die_everywhere(deeds: &[Deed]) {
    let mut last_call = 1;
    while live_and_die(deeds, last_call) {
        last_call += 1;
    }
    assert!(last_call > 20, "{last_call} calls are no scenario");
}

#[test]
fn a_kill_at_any_call_while_segments_fill_costs_nothing() {
    die_everywhere(&[
        Deed::Write {
            frames: 45,
            line_bytes: 12_000,
        },
        Deed::Sync,
        Deed::Write {
            frames: 3,
            line_bytes: 0,
        },
    ]);
}

#[test]
fn a_kill_at_any_call_of_an_acknowledgement_costs_nothing() {
    let write = |frames| Deed::Write {
        frames,
        line_bytes: 12_000,
    };
    die_everywhere(&[
        write(30),
        Deed::Send(3),
        Deed::Ack(2),
        write(10),
        Deed::Send(2),
        Deed::Rewind,
        Deed::Sync,
        Deed::Send(4),
        Deed::Ack(9),
    ]);
}

#[test]
fn a_kill_at_any_call_of_a_drop_counts_every_frame_once() {
    let write = |frames| Deed::Write {
        frames,
        line_bytes: 11_000,
    };
    die_everywhere(&[
        write(80),
        Deed::Send(1),
        Deed::Drop,
        write(20),
        Deed::Drop,
        Deed::Ack(1),
        Deed::Send(2),
        Deed::Rewind,
        Deed::Drop,
        write(30),
        Deed::Send(3),
        Deed::Ack(3),
    ]);
}
