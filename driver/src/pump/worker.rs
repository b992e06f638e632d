//! The loop of the pump: one thread that moves every container's bytes from its FIFO into its journal.
//!
//! A FIFO that is not read stops its container, and later wedges it for good (the engine holds the
//! container's lock while it waits). So this thread never waits for the network, a lock of a
//! reader, or one FIFO for the sake of another: each FIFO gives at most [`ROUND_BYTES_MAX`] per
//! round. Only the disk can hold it up.
//!
//! A FIFO is watched by `epoll`, or read at the times that its [`Beat`] gives, or it rests because its
//! journal is full. With no traffic the thread sleeps without a timer. A FIFO that the kernel refuses to
//! watch (`/proc/sys/fs/epoll/max_user_watches`) is read by time until it does not.

use super::beat::{Beat, INTERVAL_MIN, Turn};
use super::commands::{Command, Shared};
use super::discard::Discard;
use super::fifo::Fifo;
use super::full_journal::{Action, Blocked, FullJournal};
use super::pipes::{PIPE_BYTES, Pipes};
use crate::isolate::{caught, lock};
use crate::journal::{Appended, DropReason};
use crate::logging::Throttle;
use crate::registry::Signals;
use proto::log_opts::Mode;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll};
use rustix::io::Errno;
use std::collections::{BTreeSet, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Bytes that one FIFO may give per round.
const ROUND_BYTES_MAX: usize = 256 << 10;

/// Time between two rounds that look which FIFOs have something: bytes of watched FIFOs that come one by
/// one are read together.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// How often a FIFO that is not watched is tried: one that rests, or that the kernel refuses to watch.
const UNWATCHED_RETRY: Duration = Duration::from_millis(10);

/// Events taken from `epoll` at once.
const EVENTS_MAX: usize = 256;

/// Rounds that empty a FIFO when it is to be drained, or all of them at the end of the process.
const DRAIN_ROUNDS_MAX: usize = 64;

static APPEND_FAILED: Throttle = Throttle::new();

static WATCH_FAILED: Throttle = Throttle::new();

/// Key of the eventfd among the epoll events; a slot's key never has all bits set.
const WAKE_KEY: u64 = u64::MAX;

pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    signals: Arc<Signals>,
    epoll: OwnedFd,
    block_max: Duration,
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_number: HashMap<u32, u32>,
    /// Slots that rest, or that can't be watched.
    unwatched: BTreeSet<u32>,
    /// Slots that are read at a time, by that time.
    paced: BTreeSet<(Duration, u32)>,
    /// The same slots by the time when they were last read.
    last_reads: BTreeSet<(Duration, u32)>,
    pipes: Pipes,
    /// Zero of the pump's times.
    began: Instant,
    /// Bound of the time that bytes may wait in a pipe, whoever allows more.
    hold_max: Duration,
    /// Until when it is not looked which watched FIFOs have something.
    look_at: Duration,
}

/// A place for a FIFO. The generation tells a late event of the last one from the present one's.
#[derive(Default)]
struct Slot {
    generation: u32,
    reading: Option<Reading>,
}

struct Reading {
    fifo: Fifo,
    pipe_bytes: usize,
    /// `epoll` tells of it.
    is_watched: bool,
    beat: Beat,
    /// When it is read next, and when it was read last, while it is paced.
    paced: Option<(Duration, Duration)>,
    full_journal: FullJournal,
    /// Set once the stream has failed.
    discard: Option<Discard>,
    drains: Vec<oneshot::Sender<()>>,
    /// When the first of them came.
    drain_since: Option<Instant>,
}

impl Reading {
    /// Moves at most `bytes_max` bytes from the FIFO to the journal. A stream that has failed takes none: they
    /// are dropped, and counted.
    fn take(&mut self, bytes_max: usize, now: Instant) -> Result<Appended, Errno> {
        let (stream, appender) = (&self.fifo.stream, &mut self.fifo.appender);
        let file = self.fifo.file.as_fd();
        let appended = stream.isolate(|| appender.append(stream.journal(), file, bytes_max, now));
        if let Some(appended) = appended {
            return appended;
        }
        let discard = self.discard.get_or_insert_with(|| {
            // The tail may lie inside of an entry, whose rest is dropped.
            if let Err(bug) = caught(|| stream.journal().note_loss(DropReason::InternalError)) {
                tracing::error!(error = %bug, "could not note a loss");
            }
            Discard::new()
        });
        let (taken, entries) = discard.read(file)?;
        stream.discarded(entries);
        Ok(taken)
    }

    /// Tells who waits for an empty FIFO that it is.
    fn answer_drains(&mut self) {
        self.drain_since = None;
        for reply in self.drains.drain(..) {
            // Who asked may have given up.
            reply.send(()).ok();
        }
    }
}

/// What a round found.
#[derive(Default)]
struct PumpRound {
    has_more: bool,
    has_signal: bool,
    /// How long the next look at the watched FIFOs has time.
    look_interval: Option<Duration>,
}

impl Worker {
    pub(super) fn new(
        signals: Arc<Signals>,
        block_max: Duration,
        hold_max: Duration,
    ) -> Result<Self, Errno> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake_key = epoll::EventData::new_u64(WAKE_KEY);
        epoll::add(&epoll, &wake, wake_key, epoll::EventFlags::IN)?;
        Ok(Self {
            shared: Arc::new(Shared {
                commands: Mutex::new(Vec::new()),
                wake,
            }),
            signals,
            epoll,
            block_max,
            slots: Vec::new(),
            free: Vec::new(),
            by_number: HashMap::new(),
            unwatched: BTreeSet::new(),
            paced: BTreeSet::new(),
            last_reads: BTreeSet::new(),
            pipes: Pipes::of_host(),
            began: Instant::now(),
            hold_max,
            look_at: Duration::ZERO,
        })
    }

    pub(super) fn run(mut self) {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        while self.poll_once(&mut events) == Flow::Continue {}
    }

    /// Waits until there is something to do, and does it.
    fn poll_once(&mut self, events: &mut Vec<epoll::Event>) -> Flow {
        let is_woken = match self.wait(events) {
            Ok(is_woken) => is_woken,
            Err(error) => {
                tracing::error!(%error, "epoll failed");
                return Flow::Stop;
            }
        };
        let now = Instant::now();
        let mut round = PumpRound::default();
        for event in events {
            self.take_event(*event, now, &mut round);
        }
        for index in std::mem::take(&mut self.unwatched) {
            self.read_unwatched(index, now, &mut round);
        }
        self.read_due(now, &mut round);
        if is_woken && self.take_commands(now, &mut round) == Flow::Stop {
            self.drain_all(now);
            return Flow::Stop;
        }
        if let Some(interval) = round.look_interval {
            self.look_at = self.time(now) + interval;
        }
        self.say_last_read(now);
        self.signal(&round);
        Flow::Continue
    }

    /// Waits until a FIFO is due, a watched one has something, or a command comes. Returns whether one
    /// did.
    fn wait(&mut self, events: &mut Vec<epoll::Event>) -> Result<bool, Errno> {
        events.clear();
        let now = self.time(Instant::now());
        let retry = (!self.unwatched.is_empty()).then_some(UNWATCHED_RETRY);
        let due = self.paced.first().map(|(due, _)| due.saturating_sub(now));
        let timeout = retry.into_iter().chain(due).min();
        let look_in = self.look_at.saturating_sub(now);
        if !look_in.is_zero() {
            let timeout = timespec(timeout.map_or(look_in, |timeout| timeout.min(look_in)));
            let mut wake = [PollFd::new(&self.shared.wake, PollFlags::IN)];
            return match poll(&mut wake, Some(&timeout)) {
                Ok(count) => Ok(count > 0),
                Err(Errno::INTR) => Ok(false),
                Err(error) => Err(error),
            };
        }
        self.say_last_read(Instant::now());
        let timeout = timeout.map(timespec);
        let buffer = rustix::buffer::spare_capacity(events);
        match epoll::wait(&self.epoll, buffer, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        Ok(events.iter().any(|event| event.data.u64() == WAKE_KEY))
    }

    fn time(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.began)
    }

    /// Says up to when everything that was written has been read: what waits in the pipe of a paced FIFO
    /// came after its last read.
    fn say_last_read(&self, now: Instant) {
        let paced = self.last_reads.first().map(|(at, _)| self.began + *at);
        let is_looking = self.look_at <= self.time(now);
        let last_look = (!is_looking).then_some(now);
        self.signals
            .set_last_read(paced.into_iter().chain(last_look).min());
    }

    /// Reads the FIFOs that are due.
    fn read_due(&mut self, now: Instant, round: &mut PumpRound) {
        let time = self.time(now);
        let rest = self.paced.split_off(&(time, u32::MAX));
        let due = std::mem::replace(&mut self.paced, rest);
        for (_, index) in due {
            self.read(index, now, round);
        }
    }

    fn take_event(&mut self, event: epoll::Event, now: Instant, round: &mut PumpRound) {
        let key = event.data.u64();
        if key == WAKE_KEY {
            return;
        }
        let (generation, index) = split_key(key);
        let slot = self.slots.get(index as usize);
        if slot.is_none_or(|slot| slot.generation != generation || slot.reading.is_none()) {
            return;
        }
        let flags = event.flags;
        if flags.contains(epoll::EventFlags::IN) {
            let interval = self.hold(index).min(LOOK_INTERVAL);
            let shortest = round.look_interval.unwrap_or(interval);
            round.look_interval = Some(shortest.min(interval));
            self.read(index, now, round);
        } else {
            // No writer and nothing left. No segment is created to learn that.
            self.end(index, round);
        }
    }

    fn read_unwatched(&mut self, index: u32, now: Instant, round: &mut PumpRound) {
        let Some(reading) = self.reading(index) else {
            return;
        };
        let is_resting = reading.full_journal.is_full();
        match pressure(&reading.fifo.file) {
            Pressure::Ended => self.end(index, round),
            // No segment is created to learn that it is empty.
            Pressure::None if !is_resting => {
                self.schedule(index, now, 0);
            }
            Pressure::None | Pressure::Waiting => self.read(index, now, round),
        }
    }

    /// Has a FIFO watched, or else read by time: one that is not read makes its container
    /// unkillable.
    fn watch(&mut self, index: u32) {
        let key = self.key(index);
        let slot = self.slots.get_mut(index as usize);
        let Some(reading) = slot.and_then(|slot| slot.reading.as_mut()) else {
            return;
        };
        if reading.is_watched {
            return;
        }
        match epoll::add(&self.epoll, &reading.fifo.file, key, epoll::EventFlags::IN) {
            Ok(()) => reading.is_watched = true,
            Err(error) => {
                self.unwatched.insert(index);
                if let Some(suppressed_count) = WATCH_FAILED.pass() {
                    tracing::warn!(
                        suppressed_count,
                        %error,
                        container = reading.fifo.stream.container_id(),
                        "could not watch a FIFO; it is read every {UNWATCHED_RETRY:?} until that works"
                    );
                }
            }
        }
    }

    /// Reads one FIFO, its share of a round.
    fn read(&mut self, index: u32, now: Instant, round: &mut PumpRound) {
        let Some(reading) = self.reading(index) else {
            return;
        };
        let mut moved_bytes = 0_usize;
        let outcome = loop {
            let rest = ROUND_BYTES_MAX.saturating_sub(moved_bytes);
            match reading.take(rest, now) {
                Ok(Appended::Moved(bytes)) => {
                    moved_bytes += bytes;
                    break Outcome::Empty;
                }
                Ok(Appended::MovedAndMore(bytes)) => {
                    moved_bytes += bytes;
                    if moved_bytes >= ROUND_BYTES_MAX {
                        break Outcome::More;
                    }
                }
                Ok(Appended::Empty) => break Outcome::Empty,
                Ok(Appended::End) => break Outcome::End,
                Ok(Appended::Full) => break Outcome::Full,
                Err(error) => {
                    if let Some(suppressed_count) = APPEND_FAILED.pass() {
                        let container = reading.fifo.stream.container_id();
                        tracing::error!(
                            suppressed_count,
                            %error,
                            container,
                            "could not take a container's bytes from its FIFO"
                        );
                    }
                    break Outcome::Full;
                }
            }
        };
        reading.full_journal.moved(moved_bytes);
        if moved_bytes > 0 {
            round.has_signal = true;
            let stream = Arc::clone(&reading.fifo.stream);
            self.signals.push_ready(&stream);
        }
        match outcome {
            Outcome::Empty => {
                self.rest_over(index, true);
                self.schedule(index, now, moved_bytes);
            }
            Outcome::More => {
                round.has_more = true;
                self.rest_over(index, false);
                self.pace(index, self.time(now), now);
            }
            Outcome::End => self.end(index, round),
            Outcome::Full => {
                self.unpace(index);
                self.rest(index, now, moved_bytes > 0, round);
            }
        }
    }

    /// Notes that a journal took bytes again, and answers who waits for an empty FIFO.
    fn rest_over(&mut self, index: u32, is_empty: bool) {
        let Some(reading) = self.reading(index) else {
            return;
        };
        // A splice that moved less than it might have is a hint that the FIFO is empty; who stops a
        // container wants to know.
        let has_drain = !reading.drains.is_empty();
        if is_empty && has_drain && pressure(&reading.fifo.file) != Pressure::Waiting {
            reading.answer_drains();
        }
        reading.full_journal.took_all();
    }

    /// Returns how long bytes of a FIFO may wait in its pipe.
    fn hold(&self, index: u32) -> Duration {
        let slot = self.slots.get(index as usize);
        let said = slot.and_then(|slot| slot.reading.as_ref()?.fifo.stream.hold());
        let hold = said.unwrap_or_else(|| self.signals.unopened_hold());
        hold.clamp(INTERVAL_MIN, self.hold_max.max(INTERVAL_MIN))
    }

    /// Has a FIFO read again when its beat says so.
    fn schedule(&mut self, index: u32, now: Instant, moved_bytes: usize) {
        let (time, hold) = (self.time(now), self.hold(index));
        let slot = self.slots.get_mut(index as usize);
        let Some(reading) = slot.and_then(|slot| slot.reading.as_mut()) else {
            return;
        };
        let file = reading.fifo.file.as_fd();
        let turn = reading
            .beat
            .next(time, moved_bytes, reading.pipe_bytes, hold);
        match turn {
            Turn::Watch => {
                reading.pipe_bytes = self.pipes.shrink(file, reading.pipe_bytes);
                self.unpace(index);
                self.watch(index);
            }
            Turn::At(due) => {
                let is_shortest = reading.beat.is_shortest();
                if is_shortest && moved_bytes > reading.pipe_bytes / 2 {
                    reading.pipe_bytes = self.pipes.enlarge(file, reading.pipe_bytes);
                }
                self.pace(index, due, now);
            }
        }
    }

    /// Has a FIFO read at a time, and not before.
    fn pace(&mut self, index: u32, due: Duration, now: Instant) {
        self.unpace(index);
        self.unwatch(index);
        let time = self.time(now);
        if let Some(reading) = self.reading(index) {
            reading.paced = Some((due, time));
            self.paced.insert((due, index));
            self.last_reads.insert((time, index));
        }
    }

    fn unpace(&mut self, index: u32) {
        if let Some((due, read)) = self.reading(index).and_then(|reading| reading.paced.take()) {
            self.paced.remove(&(due, index));
            self.last_reads.remove(&(read, index));
        }
    }

    fn unwatch(&mut self, index: u32) {
        let slot = self.slots.get_mut(index as usize);
        let Some(reading) = slot.and_then(|slot| slot.reading.as_mut()) else {
            return;
        };
        if reading.is_watched {
            // Deleted, not masked: the end of a FIFO is reported whatever the mask says.
            match epoll::delete(&self.epoll, &reading.fifo.file) {
                Ok(()) => reading.is_watched = false,
                Err(error) => tracing::error!(%error, "could not stop watching a FIFO"),
            }
        }
    }

    /// Lets a FIFO rest whose journal is full, and has room made when it has rested enough.
    fn rest(&mut self, index: u32, now: Instant, has_moved: bool, round: &mut PumpRound) {
        self.unwatch(index);
        let time = self.time(now);
        let pressure = self
            .reading(index)
            .map(|reading| pressure(&reading.fifo.file));
        if pressure == Some(Pressure::Ended) {
            self.end(index, round);
            return;
        }
        let Some(slot) = self.slots.get_mut(index as usize) else {
            return;
        };
        let Some(reading) = &mut slot.reading else {
            return;
        };
        let stream = Arc::clone(&reading.fifo.stream);
        reading.full_journal.found_full(time, has_moved);
        self.unwatched.insert(index);
        if pressure == Some(Pressure::None) {
            reading.answer_drains();
            return;
        }
        let blocked = Blocked {
            now: time,
            acked: stream.journal().acked(),
            may_wait: stream.mode() != Mode::NonBlocking,
            stopping_since: reading
                .drain_since
                .map(|at| at.saturating_duration_since(self.began)),
        };
        let action = reading.full_journal.blocked(blocked, self.block_max);
        if action == Action::FallBack {
            reading.fifo.appender.fall_back();
        }
        if action != Action::Rest {
            self.signals.push_needing_room(&stream);
        }
    }

    /// Closes a FIFO that has ended. The engine does not always remove the file.
    fn end(&mut self, index: u32, round: &mut PumpRound) {
        self.unpace(index);
        let Some(slot) = self.slots.get_mut(index as usize) else {
            return;
        };
        let Some(mut reading) = slot.reading.take() else {
            return;
        };
        slot.generation = slot.generation.wrapping_add(1) & (u32::MAX >> 1);
        self.free.push(index);
        self.pipes.forget(reading.pipe_bytes);
        let stream = &reading.fifo.stream;
        self.by_number.remove(&stream.number());
        if let Err(bug) = caught(|| stream.journal().end()) {
            tracing::error!(error = %bug, container = stream.container_id(), "could not end a journal");
        }
        self.signals.ended.notify_one();
        match rustix::fs::unlink(stream.file()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => {
                tracing::debug!(%error, file = %stream.file().display(), "could not remove a FIFO");
            }
        }
        self.signals.push_ready(stream);
        round.has_signal = true;
        reading.answer_drains();
        // Closing the file takes it out of epoll.
    }

    fn take_commands(&mut self, now: Instant, round: &mut PumpRound) -> Flow {
        let mut count = [0; 8];
        match rustix::io::read(&self.shared.wake, &mut count) {
            Ok(_) | Err(Errno::AGAIN) => {}
            Err(error) => tracing::error!(%error, "could not read the pump's eventfd"),
        }
        let commands = std::mem::take(&mut *lock(&self.shared.commands));
        for command in commands {
            match command {
                Command::Add(fifo) => self.add(fifo),
                Command::Drain {
                    stream_number,
                    reply,
                } => self.drain(stream_number, reply, now, round),
                Command::Stop => return Flow::Stop,
            }
        }
        Flow::Continue
    }

    fn add(&mut self, fifo: Fifo) {
        // An earlier process may have enlarged it.
        let pipe_bytes = rustix::pipe::fcntl_getpipe_size(&fifo.file).unwrap_or(PIPE_BYTES);
        let pipe_bytes = self.pipes.adopt(fifo.file.as_fd(), pipe_bytes);
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            u32::try_from(self.slots.len() - 1).expect("fewer streams than 2^32")
        });
        self.by_number.insert(fifo.stream.number(), index);
        if let Some(slot) = self.slots.get_mut(index as usize) {
            slot.reading = Some(Reading {
                fifo,
                pipe_bytes,
                is_watched: false,
                beat: Beat::default(),
                paced: None,
                full_journal: FullJournal::default(),
                discard: None,
                drains: Vec::new(),
                drain_since: None,
            });
        }
        self.watch(index);
    }

    fn drain(
        &mut self,
        stream_number: u32,
        reply: oneshot::Sender<()>,
        now: Instant,
        round: &mut PumpRound,
    ) {
        let Some(index) = self.by_number.get(&stream_number).copied() else {
            return;
        };
        if let Some(reading) = self.reading(index) {
            reading.drains.push(reply);
            reading.drain_since.get_or_insert(now);
        }
        for _ in 0..DRAIN_ROUNDS_MAX {
            match self.reading(index) {
                Some(reading) if !reading.drains.is_empty() && !reading.full_journal.is_full() => {}
                _ => return,
            }
            self.read(index, now, round);
        }
    }

    /// Reads every FIFO empty, as far as its journal takes it: the process ends.
    fn drain_all(&mut self, now: Instant) {
        for index in 0..self.slots.len() {
            let index = u32::try_from(index).expect("fewer streams than 2^32");
            for _ in 0..DRAIN_ROUNDS_MAX {
                let mut round = PumpRound::default();
                self.read(index, now, &mut round);
                if !round.has_more {
                    break;
                }
            }
        }
    }

    fn signal(&self, round: &PumpRound) {
        if round.has_signal {
            self.signals.arrived.notify_one();
            self.signals.sync_wanted.notify_one();
            self.signals.disk_watch_wanted.notify_one();
        }
    }

    fn reading(&mut self, index: u32) -> Option<&mut Reading> {
        self.slots.get_mut(index as usize)?.reading.as_mut()
    }

    fn key(&self, index: u32) -> epoll::EventData {
        let slot = self.slots.get(index as usize);
        let generation = slot.map_or(0, |slot| slot.generation);
        epoll::EventData::new_u64(u64::from(generation) << 32 | u64::from(index))
    }
}

#[derive(PartialEq, Eq)]
enum Flow {
    Continue,
    Stop,
}

enum Outcome {
    Empty,
    More,
    End,
    Full,
}

/// What a FIFO holds for a journal that can't take it.
#[derive(PartialEq, Eq)]
enum Pressure {
    Waiting,
    None,
    Ended,
}

fn pressure(fifo: &OwnedFd) -> Pressure {
    let mut state = [PollFd::new(fifo, PollFlags::IN)];
    match poll(&mut state, Some(&timespec(Duration::ZERO))) {
        Ok(0) => Pressure::None,
        Ok(_)
            if state
                .iter()
                .any(|state| state.revents().contains(PollFlags::IN)) =>
        {
            Pressure::Waiting
        }
        Ok(_) => Pressure::Ended,
        Err(_) => Pressure::Waiting,
    }
}

fn split_key(key: u64) -> (u32, u32) {
    let generation = u32::try_from(key >> 32).unwrap_or(u32::MAX);
    let index = u32::try_from(key & u64::from(u32::MAX)).unwrap_or(u32::MAX);
    (generation, index)
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, JOURNAL_BYTES_MIN, RawConfig};
    use crate::disk::{Disk, RealDisk};
    use crate::journal::{self, Bounds, Budget};
    use crate::pump::commands::PumpHandle;
    use crate::registry::Registry;
    use crate::stream::{NewStream, Stream};
    use crate::table::Retention;

    /// A pump without its thread, and the one stream that it reads.
    struct World {
        worker: Worker,
        stream: Arc<Stream>,
        writer: Option<OwnedFd>,
    }

    impl World {
        async fn new() -> Self {
            let signals = Arc::new(Signals::default());
            let worker =
                Worker::new(Arc::clone(&signals), Duration::from_secs(5), Duration::ZERO).unwrap();
            let shared = Arc::clone(&worker.shared);
            let budget = Arc::new(Budget::new(u64::MAX, u64::MAX));
            let disk: Arc<dyn Disk> = Arc::new(RealDisk);
            let config = Config::parse(&RawConfig::from_pairs([])).unwrap();
            let retention = Arc::new(Retention::from_config(&config, &disk));
            let registry = Registry::new(disk, retention);
            let recovered = journal::in_memory(Bounds::new(JOURNAL_BYTES_MIN), &budget);
            let flags = rustix::pipe::PipeFlags::NONBLOCK;
            let (reader, writer) = rustix::pipe::pipe_with(flags).unwrap();
            let stream = registry.insert(NewStream {
                journal: recovered.journal,
                open: proto::relay::Open::default(),
                mode: Mode::Blocking,
                file: "/none/fifo".into(),
                folder: None,
                keep_file: false,
                is_adopted: false,
            });
            PumpHandle { shared }.add(Fifo {
                stream: Arc::clone(&stream),
                file: reader,
                appender: recovered.appender,
            });
            Self {
                worker,
                stream,
                writer: Some(writer),
            }
        }

        fn write(&self, bytes: &[u8]) {
            let writer = self.writer.as_ref().unwrap();
            assert_eq!(rustix::io::write(writer, bytes), Ok(bytes.len()));
        }

        /// Lets the pump do what there is to do; with nothing to do it is woken.
        fn turn(&mut self) {
            let wake = &self.worker.shared.wake;
            rustix::io::write(wake, &1_u64.to_ne_bytes()).unwrap();
            let mut events = Vec::with_capacity(EVENTS_MAX);
            assert!(self.worker.poll_once(&mut events) == Flow::Continue);
        }

        /// Has the FIFO refused to the pump, as the kernel does beyond `max_user_watches`: a file is
        /// watched once, and here it is already, for nothing.
        fn refuse(&self) {
            let commands = lock(&self.worker.shared.commands);
            let Some(Command::Add(fifo)) = commands.first() else {
                panic!("no FIFO to read");
            };
            let key = epoll::EventData::new_u64(WAKE_KEY - 1);
            let nothing = epoll::EventFlags::empty();
            epoll::add(&self.worker.epoll, &fifo.file, key, nothing).unwrap();
        }

        fn accept(&mut self) {
            let reading = self.worker.slots[0].reading.as_ref().unwrap();
            epoll::delete(&self.worker.epoll, &reading.fifo.file).unwrap();
        }

        fn held_bytes(&self) -> u64 {
            self.stream.journal().held_bytes()
        }
    }

    #[tokio::test]
    async fn a_fifo_that_can_t_be_watched_is_read_by_time_until_it_can() {
        let mut world = World::new().await;
        world.refuse();
        world.turn();
        world.write(b"12345");
        world.turn();
        assert_eq!(world.held_bytes(), 5);
        // So late that it is no line that follows another at once.
        tokio::time::sleep(Duration::from_millis(2)).await;
        world.write(b"6789");
        let mut drained = {
            let shared = Arc::clone(&world.worker.shared);
            PumpHandle { shared }.drain(world.stream.number())
        };
        world.turn();
        assert_eq!((world.held_bytes(), drained.try_recv()), (9, Ok(())));
        assert_eq!(world.worker.unwatched.len(), 1);
        world.accept();
        world.turn();
        assert!(world.worker.unwatched.is_empty());
        tokio::time::sleep(Duration::from_millis(2)).await;
        world.write(b"0");
        world.turn();
        assert_eq!(world.held_bytes(), 10);
    }

    #[tokio::test]
    async fn the_end_of_a_fifo_that_can_t_be_watched_is_noticed() {
        let mut world = World::new().await;
        world.refuse();
        world.turn();
        world.turn();
        assert!(!world.stream.journal().is_complete());
        world.writer = None;
        world.turn();
        assert!(world.stream.journal().is_complete());
    }
}
