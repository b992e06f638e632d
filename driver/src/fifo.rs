//! The pump: one thread that moves every container's bytes from its FIFO into its journal.
//!
//! A FIFO that is not read stops its container, and later wedges it for good (the engine holds the
//! container's lock while it waits). So this thread never waits for the network, a lock of a
//! reader, or one FIFO for the sake of another: each FIFO gives at most [`ROUND_BYTES_MAX`] per
//! round. Only the disk can hold it up.
//!
//! Pacing: woken for every line, a splice costs many times what the line does. After a round the
//! pump therefore waits a little, so that the pipes (enlarged to 1 MiB) fill; the wait adapts to
//! how full it finds them. With no traffic it sleeps in `epoll` without a timer. A FIFO that the
//! kernel refuses to watch (`/proc/sys/fs/epoll/max_user_watches`) is read by time until it does not.
//!
//! A full journal: the FIFO rests (mode=blocking) while the shipper makes room, or not at all. After
//! `block_max` in which less than [`PATIENCE_BYTES`] moved, the keeper is asked to drop the oldest
//! entries, until that much has moved; and while there is no progress of the shipper at all, the FIFO
//! does not rest again. So that much moves in any `block_max`, however small the pipe is: a container
//! that ends has up to 1.2 MB in the engine's buffers, and its stop waits until they have gone through
//! the FIFO. Of a container that is being stopped it rests only while the shipper makes room: once the
//! engine has let go of the FIFO, what it holds ends with this process.

use crate::containers::Stream;
use crate::journal::{Appended, Appender};
use crate::logging::Throttle;
use proto::log_opts::Mode;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll};
use rustix::fs::{FileType, Mode as FileMode, OFlags};
use rustix::io::Errno;
use std::collections::{BTreeSet, HashMap};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

/// Bytes that one FIFO may give per round.
const ROUND_BYTES_MAX: usize = 256 << 10;

/// Size that pipes are asked to have; also the most that an unprivileged process may ask for.
const PIPE_BYTES: usize = 1 << 20;

/// Wait after a round: never less, so that a round is worth its system calls.
const PACE_MIN: Duration = Duration::from_micros(100);

/// Wait after a round that moved much.
const PACE_BUSY_MAX: Duration = Duration::from_millis(1);

/// Wait after a round that moved little: a thousand slow containers cost 200 rounds a second.
const PACE_QUIET_MAX: Duration = Duration::from_millis(5);

/// What a round must move to count as much.
const BUSY_ROUND_BYTES: usize = 16 << 10;

/// How often a FIFO that is not watched is tried: one that rests, or that the kernel refuses to watch.
const UNWATCHED_RETRY: Duration = Duration::from_millis(10);

/// What moves at least while a full journal has a FIFO rest for `block_max`: about what the engine's
/// buffers hold.
const PATIENCE_BYTES: usize = 1 << 20;

/// How long a FIFO whose journal was full may be without bytes that wait, until its writer counts as
/// not held up: the engine, which has more, fills a small pipe again at once.
const REFILL_MAX: Duration = Duration::from_millis(250);

/// How long the FIFO of a container that is being stopped rests without any byte of it moving. What
/// the engine has let go of is lost if this process dies meanwhile; what is dropped is lost for sure,
/// and CLS may take half a second for a batch.
const STOP_REST_MAX: Duration = Duration::from_secs(1);

/// How long dropping may fail to make room before the next bytes go to memory.
const FALL_BACK_AFTER: Duration = Duration::from_secs(1);

/// Events taken from `epoll` at once.
const EVENTS_MAX: usize = 256;

/// Rounds that empty a FIFO when it is to be drained, or all of them at the end of the process.
const DRAIN_ROUNDS_MAX: usize = 64;

static APPEND_FAILED: Throttle = Throttle::new();
static WATCH_FAILED: Throttle = Throttle::new();

/// What the pump tells the other parties.
#[derive(Debug, Default)]
pub(crate) struct Signals {
    /// Something arrived: for the forwarder.
    pub(crate) arrived: Notify,
    /// Something arrived: for the keeper, when it sleeps.
    pub(crate) keep: Notify,
    /// A journal needs room: for the keeper.
    pub(crate) starve: Notify,
    ready: Mutex<Vec<Arc<Stream>>>,
    starved: Mutex<Vec<Arc<Stream>>>,
}

impl Signals {
    /// Says that a stream has something to send. It stands in the list once.
    pub(crate) fn push_ready(&self, stream: &Arc<Stream>) {
        if stream.set_ready() {
            lock(&self.ready).push(Arc::clone(stream));
        }
    }

    /// Takes the streams that have something to send.
    pub(crate) fn take_ready(&self, into: &mut Vec<Arc<Stream>>) {
        std::mem::swap(&mut *lock(&self.ready), into);
        for stream in into {
            stream.clear_ready();
        }
    }

    /// Takes the streams whose journals need room.
    pub(crate) fn take_starved(&self) -> Vec<Arc<Stream>> {
        std::mem::take(&mut lock(&self.starved))
    }

    fn push_starved(&self, stream: &Arc<Stream>) {
        let mut starved = lock(&self.starved);
        if !starved
            .iter()
            .any(|other| other.number() == stream.number())
        {
            starved.push(Arc::clone(stream));
            self.starve.notify_one();
        }
    }
}

/// A FIFO can't be read; nothing was changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FifoError {
    /// It can't be opened.
    #[error("could not open FIFO {}", path.display())]
    Open {
        /// The path that the engine gave.
        path: PathBuf,
        /// Why.
        #[source]
        source: Errno,
    },
    /// It is something else.
    #[error("{} is not a FIFO", path.display())]
    NotFifo {
        /// The path that the engine gave.
        path: PathBuf,
    },
}

impl FifoError {
    /// Returns whether there is no FIFO any more, rather than no way to open it now.
    pub(crate) fn is_gone(&self) -> bool {
        match self {
            Self::Open { source, .. } => *source == Errno::NOENT,
            Self::NotFifo { .. } => true,
        }
    }
}

/// Opens a FIFO for reading. Never waits for a writer.
///
/// # Errors
/// See [`FifoError`].
pub(crate) fn open(path: &Path) -> Result<OwnedFd, FifoError> {
    let open_error = |source| FifoError::Open {
        path: path.to_path_buf(),
        source,
    };
    let flags = OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fifo =
        rustix::fs::open(path, flags | OFlags::RDONLY, FileMode::empty()).map_err(open_error)?;
    let stat = rustix::fs::fstat(&fifo).map_err(open_error)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Fifo {
        return Err(FifoError::NotFifo {
            path: path.to_path_buf(),
        });
    }
    // epoll reports the end of a FIFO only after a writer has come and gone. If none is left from
    // before this process, this one is it.
    drop(rustix::fs::open(path, flags | OFlags::WRONLY, FileMode::empty()).map_err(open_error)?);
    Ok(fifo)
}

/// A FIFO that the pump is to read.
#[derive(Debug)]
pub(crate) struct Fifo {
    /// Where its bytes go.
    pub(crate) stream: Arc<Stream>,
    /// The read end.
    pub(crate) file: OwnedFd,
    /// The journal's writing side.
    pub(crate) appender: Appender,
}

#[derive(Debug)]
enum Command {
    Add(Fifo),
    Drain {
        stream_number: u32,
        reply: oneshot::Sender<()>,
    },
    Stop,
}

/// Speaks to the pump.
#[derive(Debug, Clone)]
pub(crate) struct PumpHandle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Bounded by the requests that the plugin API serves at once.
    commands: Mutex<Vec<Command>>,
    wake: OwnedFd,
}

impl PumpHandle {
    /// Reads a FIFO from now on.
    pub(crate) fn add(&self, fifo: Fifo) {
        self.command(Command::Add(fifo));
    }

    /// Reads a FIFO until it is empty. The answer comes then, or fails if the FIFO has ended.
    pub(crate) fn drain(&self, stream_number: u32) -> oneshot::Receiver<()> {
        let (reply, drained) = oneshot::channel();
        self.command(Command::Drain {
            stream_number,
            reply,
        });
        drained
    }

    fn command(&self, command: Command) {
        lock(&self.shared.commands).push(command);
        // The counter can't overflow: the pump empties it whenever it wakes.
        if let Err(error) = rustix::io::write(&self.shared.wake, &1_u64.to_ne_bytes()) {
            tracing::error!(%error, "could not wake the pump");
        }
    }
}

/// The pump could not be started.
#[derive(Debug, thiserror::Error)]
#[error("could not start the pump")]
pub struct PumpError(#[source] std::io::Error);

/// The pump's thread. Dropping it reads all FIFOs empty once more and waits for the thread.
#[derive(Debug)]
pub(crate) struct Pump {
    handle: PumpHandle,
    thread: Option<std::thread::JoinHandle<()>>,
    ended: Option<oneshot::Receiver<()>>,
}

impl Pump {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`PumpError`] if the kernel gives no thread or file descriptor.
    ///
    /// # Panics
    /// Outside of a runtime.
    pub(crate) fn start(signals: Arc<Signals>, block_max: Duration) -> Result<Self, PumpError> {
        let failed = |error: Errno| PumpError(error.into());
        let worker = Worker::new(signals, block_max).map_err(failed)?;
        let shared = Arc::clone(&worker.shared);
        let (alive, ended) = oneshot::channel::<()>();
        let runtime = tokio::runtime::Handle::current();
        let thread = std::thread::Builder::new()
            .name("pump".into())
            .stack_size(256 << 10)
            .spawn(move || {
                let _alive = alive;
                // One clock for the pump and the rest of the process.
                let _clock = runtime.enter();
                worker.run();
            })
            .map_err(PumpError)?;
        Ok(Self {
            handle: PumpHandle { shared },
            thread: Some(thread),
            ended: Some(ended),
        })
    }

    /// Returns a way to speak to it.
    pub(crate) fn handle(&self) -> PumpHandle {
        self.handle.clone()
    }

    /// Waits until the thread has ended, which it does not do of itself.
    ///
    /// # Cancel safety
    /// Cancel safe, and may be called again.
    pub(crate) async fn ended(&mut self) {
        if let Some(ended) = &mut self.ended {
            // The sender is never used, only dropped.
            ended.await.ok();
            self.ended = None;
        }
    }

    /// Reads all FIFOs empty once more, and ends the thread. Dropped before that, it leaves the thread
    /// to itself: a disk may hold it up.
    pub(crate) async fn stop(mut self) {
        let thread = self.thread.take();
        self.handle.command(Command::Stop);
        self.ended().await;
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the pump has panicked");
        }
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.handle.command(Command::Stop);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the pump has panicked");
        }
    }
}

/// Key of the eventfd among the epoll events; a slot's key never has all bits set.
const WAKE_KEY: u64 = u64::MAX;

struct Worker {
    shared: Arc<Shared>,
    signals: Arc<Signals>,
    epoll: OwnedFd,
    block_max: Duration,
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_number: HashMap<u32, u32>,
    /// Slots that are read by time.
    unwatched: BTreeSet<u32>,
    pace: Duration,
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
    fullness: Option<Fullness>,
    patience: Option<Patience>,
    /// The acknowledged offset when this FIFO last stopped resting.
    dropping_since_acked: Option<u64>,
    drains: Vec<oneshot::Sender<()>>,
    /// When the first of them came.
    drain_since: Option<Instant>,
}

impl Reading {
    /// Tells who waits for an empty FIFO that it is.
    fn answer_drains(&mut self) {
        self.drain_since = None;
        for reply in self.drains.drain(..) {
            // Who asked may have given up.
            reply.send(()).ok();
        }
    }
}

/// How long a journal has been full.
struct Fullness {
    /// When it last took bytes, or became full.
    moved_at: Instant,
    starved_since: Option<Instant>,
}

/// How long the writer of a FIFO has been held up by a full journal, and what it got rid of meanwhile.
struct Patience {
    since: Instant,
    /// When bytes last waited for the journal.
    waiting_at: Instant,
    moved_bytes: usize,
}

impl Patience {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            waiting_at: now,
            moved_bytes: 0,
        }
    }

    /// Learns that bytes wait; begins anew if enough has moved, or the writer was not held up.
    fn go_on(&mut self, now: Instant) {
        let is_idle = now.duration_since(self.waiting_at) > REFILL_MAX;
        if is_idle || self.moved_bytes >= PATIENCE_BYTES {
            *self = Self::new(now);
        }
        self.waiting_at = now;
    }
}

/// What a round found.
#[derive(Default)]
struct Round {
    moved_bytes: usize,
    has_more: bool,
    /// A FIFO gave more than half of what it holds, or at least an eighth.
    is_half_full: bool,
    is_eighth_full: bool,
    has_signal: bool,
}

impl Worker {
    fn new(signals: Arc<Signals>, block_max: Duration) -> Result<Self, Errno> {
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
            pace: PACE_MIN,
        })
    }

    fn run(mut self) {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        while self.turn(&mut events) == Flow::Continue {}
    }

    /// Waits until there is something to do, and does it.
    fn turn(&mut self, events: &mut Vec<epoll::Event>) -> Flow {
        let timeout = (!self.unwatched.is_empty()).then(|| timespec(UNWATCHED_RETRY));
        events.clear();
        let waited = epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(events),
            timeout.as_ref(),
        );
        if let Err(error) = waited
            && error != Errno::INTR
        {
            tracing::error!(%error, "epoll failed");
            return Flow::Stop;
        }
        let now = Instant::now();
        let mut round = Round::default();
        let mut is_woken = false;
        for event in events {
            is_woken |= event.data.u64() == WAKE_KEY;
            self.take_event(*event, now, &mut round);
        }
        for index in std::mem::take(&mut self.unwatched) {
            self.read_unwatched(index, now, &mut round);
        }
        if is_woken && self.take_commands(now, &mut round) == Flow::Stop {
            self.drain_all(now);
            return Flow::Stop;
        }
        self.signal(&round);
        self.wait(&round);
        Flow::Continue
    }

    fn take_event(&mut self, event: epoll::Event, now: Instant, round: &mut Round) {
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
            self.read(index, now, round);
        } else {
            // No writer and nothing left. No segment is created to learn that.
            self.end(index, round);
        }
    }

    fn read_unwatched(&mut self, index: u32, now: Instant, round: &mut Round) {
        let Some(reading) = self.reading(index) else {
            return;
        };
        let is_resting = reading.fullness.is_some();
        match pressure(&reading.fifo.file) {
            Pressure::Ended => self.end(index, round),
            // No segment is created to learn that it is empty.
            Pressure::None if !is_resting => self.watch(index),
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
    fn read(&mut self, index: u32, now: Instant, round: &mut Round) {
        let Some(reading) = self.reading(index) else {
            return;
        };
        let journal = reading.fifo.stream.journal();
        let mut moved_bytes = 0_usize;
        let outcome = loop {
            let rest = ROUND_BYTES_MAX.saturating_sub(moved_bytes);
            let file = reading.fifo.file.as_fd();
            match reading.fifo.appender.append(journal, file, rest, now) {
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
        round.moved_bytes += moved_bytes;
        round.is_half_full |= moved_bytes > reading.pipe_bytes / 2;
        round.is_eighth_full |= moved_bytes > reading.pipe_bytes / 8;
        if let Some(patience) = &mut reading.patience {
            patience.moved_bytes = patience.moved_bytes.saturating_add(moved_bytes);
        }
        if moved_bytes > 0 {
            round.has_signal = true;
            let stream = Arc::clone(&reading.fifo.stream);
            self.signals.push_ready(&stream);
        }
        match outcome {
            Outcome::Empty => self.rest_over(index, true),
            Outcome::More => {
                round.has_more = true;
                self.rest_over(index, false);
            }
            Outcome::End => self.end(index, round),
            Outcome::Full => self.rest(index, now, moved_bytes > 0, round),
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
        reading.fullness = None;
        self.watch(index);
    }

    /// Lets a FIFO rest whose journal is full, and has room made when it has rested enough.
    fn rest(&mut self, index: u32, now: Instant, has_moved: bool, round: &mut Round) {
        let block_max = self.block_max;
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
        if reading.is_watched {
            // Deleted, not masked: the end of a FIFO is reported whatever the mask says.
            match epoll::delete(&self.epoll, &reading.fifo.file) {
                Ok(()) => reading.is_watched = false,
                Err(error) => tracing::error!(%error, "could not stop watching a FIFO"),
            }
        }
        let fullness = reading.fullness.get_or_insert(Fullness {
            moved_at: now,
            starved_since: None,
        });
        if has_moved {
            fullness.moved_at = now;
            fullness.starved_since = None;
        }
        self.unwatched.insert(index);
        if pressure == Some(Pressure::None) {
            reading.answer_drains();
            return;
        }
        let patience = reading.patience.get_or_insert_with(|| Patience::new(now));
        patience.go_on(now);
        let acked = stream.journal().acked();
        let goes_on_dropping = reading.dropping_since_acked == Some(acked);
        let is_stop_late = reading
            .drain_since
            .is_some_and(|since| now.duration_since(since.max(fullness.moved_at)) >= STOP_REST_MAX);
        let must_drop = stream.mode() == Mode::NonBlocking
            || is_stop_late
            || goes_on_dropping
            || now.duration_since(patience.since) >= block_max;
        if must_drop {
            reading.dropping_since_acked = Some(acked);
            let starved_since = *fullness.starved_since.get_or_insert(now);
            if now.duration_since(starved_since) >= FALL_BACK_AFTER {
                reading.fifo.appender.fall_back();
            }
            self.signals.push_starved(&stream);
        }
    }

    /// Closes a FIFO that has ended. The engine does not always remove the file.
    fn end(&mut self, index: u32, round: &mut Round) {
        let Some(slot) = self.slots.get_mut(index as usize) else {
            return;
        };
        let Some(mut reading) = slot.reading.take() else {
            return;
        };
        slot.generation = slot.generation.wrapping_add(1) & (u32::MAX >> 1);
        self.free.push(index);
        let stream = &reading.fifo.stream;
        self.by_number.remove(&stream.number());
        stream.journal().end();
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

    fn take_commands(&mut self, now: Instant, round: &mut Round) -> Flow {
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
        // A larger pipe is a favour that the kernel may refuse.
        let pipe_bytes = rustix::pipe::fcntl_setpipe_size(&fifo.file, PIPE_BYTES)
            .or_else(|_| rustix::pipe::fcntl_getpipe_size(&fifo.file))
            .unwrap_or(64 << 10);
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
                fullness: None,
                patience: None,
                dropping_since_acked: None,
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
        round: &mut Round,
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
                Some(reading) if !reading.drains.is_empty() && reading.fullness.is_none() => {}
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
                let mut round = Round::default();
                self.read(index, now, &mut round);
                if !round.has_more {
                    break;
                }
            }
        }
    }

    fn signal(&self, round: &Round) {
        if round.has_signal {
            self.signals.arrived.notify_one();
            self.signals.keep.notify_one();
        }
    }

    /// Waits for the pipes to fill, unless a command comes.
    fn wait(&mut self, round: &Round) {
        if round.moved_bytes == 0 || round.has_more {
            return;
        }
        if round.is_half_full {
            self.pace /= 2;
        } else if !round.is_eighth_full {
            self.pace *= 2;
        }
        let is_busy = round.moved_bytes >= BUSY_ROUND_BYTES;
        let pace_max = if is_busy {
            PACE_BUSY_MAX
        } else {
            PACE_QUIET_MAX
        };
        self.pace = self.pace.clamp(PACE_MIN, pace_max);
        let mut wake = [PollFd::new(&self.shared.wake, PollFlags::IN)];
        match poll(&mut wake, Some(&timespec(self.pace))) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => tracing::error!(%error, "poll failed"),
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .expect("whoever holds the pump's locks does not panic")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, RawConfig};
    use crate::containers::{Table, TableSettings};
    use crate::disk::{Disk, RealDisk};
    use crate::journal::{self, Bounds, Budget, JOURNAL_BYTES_MIN};
    use crate::kept::Kept;
    use crate::start::{Start, StartRequest};

    /// A pump without its thread, and the one stream that it reads.
    struct World {
        worker: Worker,
        stream: Arc<Stream>,
        writer: Option<OwnedFd>,
        _state_dir: tempfile::TempDir,
    }

    impl World {
        async fn new() -> Self {
            let state_dir = tempfile::tempdir().unwrap();
            let signals = Arc::new(Signals::default());
            let worker = Worker::new(Arc::clone(&signals), Duration::from_secs(5)).unwrap();
            let shared = Arc::clone(&worker.shared);
            let budget = Arc::new(Budget::new(u64::MAX));
            let table = table(state_dir.path(), &budget, PumpHandle { shared }, signals).await;
            let body = r#"{"File":"/none/fifo","Info":{"ContainerID":"c1","Config":{}}}"#;
            let request: StartRequest = serde_json::from_str(body).unwrap();
            let start = Start::check(request, "host-1").unwrap();
            let recovered = journal::in_memory(Bounds::new(JOURNAL_BYTES_MIN), &budget);
            let flags = rustix::pipe::PipeFlags::NONBLOCK;
            let (reader, writer) = rustix::pipe::pipe_with(flags).unwrap();
            let stream = table.insert(start, None, recovered, Some(reader));
            Self {
                worker,
                stream,
                writer: Some(writer),
                _state_dir: state_dir,
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
            assert!(self.worker.turn(&mut events) == Flow::Continue);
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

    async fn table(
        state_dir: &Path,
        budget: &Arc<Budget>,
        pump: PumpHandle,
        signals: Arc<Signals>,
    ) -> Table {
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        let config = Config::parse(&RawConfig::from_pairs([])).unwrap();
        let kept = Arc::new(Kept::from_config(&config, &disk));
        let settings = TableSettings {
            state_dir: state_dir.to_path_buf(),
            host_name: "host-1".to_owned(),
            journal_bytes_max: JOURNAL_BYTES_MIN,
        };
        let (_, checker) = crate::forward::connection();
        let budget = Arc::clone(budget);
        let table = Table::open(settings, disk, budget, kept, pump, signals, checker);
        table.await.unwrap()
    }

    #[test]
    fn patience_lasts_until_enough_has_moved_or_nothing_waits() {
        let since = Instant::now();
        let check = |gap: Duration, moved_bytes: usize, goes_on: bool| {
            let mut patience = Patience::new(since);
            patience.moved_bytes = moved_bytes;
            patience.go_on(since + gap);
            assert_eq!(
                patience.since == since,
                goes_on,
                "{gap:?}, {moved_bytes} bytes"
            );
            assert_eq!(patience.waiting_at, since + gap);
        };
        let beyond = REFILL_MAX + Duration::from_millis(1);
        check(REFILL_MAX, 0, true);
        check(beyond, 0, false);
        check(UNWATCHED_RETRY, PATIENCE_BYTES - 1, true);
        check(UNWATCHED_RETRY, PATIENCE_BYTES, false);
    }

    #[tokio::test]
    async fn a_fifo_that_can_t_be_watched_is_read_by_time_until_it_can() {
        let mut world = World::new().await;
        world.refuse();
        world.turn();
        world.write(b"12345");
        world.turn();
        assert_eq!(world.held_bytes(), 5);
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
