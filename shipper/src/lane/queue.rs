//! Lanes: where the records of many streams become batches.
//!
//! A lane is one (endpoint, topic, credentials, timeout, retries). It holds the encoded records of
//! its streams and decides when a batch is sealed:
//!
//! - a request slot is free (sealing is pulled by uploads, so a sealed batch is a batch in flight,
//!   and what a dead process can duplicate is bounded by the slots), and
//! - the batch is full by bytes or logs, or its oldest record has waited `linger`, or nothing is in
//!   flight. The last one gives a quiet container its low latency; while one request is under way
//!   the next batch grows by itself. A lane with more ready streams than a request has groups does
//!   not use that last rule: it would send many requests with a line each.
//!
//! Bounds. What a lane holds is bounded by its streams' windows (see `window`). A batch stays under
//! CLS's limits by construction: a run is at most one batch (`Run` is cut at the batch's bounds
//! plus one record), streams of a batch are at most [`CLS_GROUPS_MAX`].
//!
//! Order. A stream's runs leave in journal order, its groups carry consecutive numbers in
//! `contextFlow`, and its receipts are pushed in the same step under the lane's lock.
//!
//! A stream that leaves takes its unsealed runs with it, and says so to the batches that hold runs
//! of it: its driver sends all of them again.
//!
//! A batch whose task fails (a panic, which is a bug) leaves receipts that nobody completes. Their streams
//! are abandoned: they are acknowledged no further, and their call makes them start over from there.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto::limits::CLS_GROUPS_MAX;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::cls::request::Target;
use crate::config::Upload;
use crate::keys::store::CredentialRef;
use crate::lane::outbox::Outbox;
use crate::lane::receipts::{AckQueue, Progress, Ticket};
use crate::lane::window::Share;

/// What makes two streams share batches.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LaneKey {
    /// Endpoint and topic.
    pub target: Target,
    /// Key pair.
    pub credentials: CredentialRef,
    /// Bound of one request.
    pub timeout: Duration,
    /// Attempts per batch; 0 is endless.
    pub attempts_max: u32,
}

/// A stream as far as lanes and uploads know it.
#[derive(Debug)]
pub struct Stream {
    /// Number of the stream in its call.
    pub number: u32,
    /// `contextFlow`'s first half: 16 upper-case hex digits, new for each opening of the stream.
    pub context_id: String,
    /// `source` of its groups: the host name.
    pub source: String,
    /// Encoded `logTags` of its groups.
    pub log_tags: Vec<u8>,
    /// Name of its host's tenant.
    pub tenant: String,
    /// Marks of what was sealed.
    acks: Mutex<AckQueue>,
    /// Where acknowledgements go.
    outbox: Arc<Outbox>,
    /// Whether it is gone from its lane.
    has_left: watch::Sender<bool>,
}

/// Encoded records of one stream, contiguous in its journal.
#[derive(Debug)]
pub struct Run {
    /// Encoded logs, a run of `LogGroup.logs`.
    pub logs: Vec<u8>,
    /// Number of logs; at least 1.
    pub log_count: usize,
    /// Logs that are not made of exactly one entry: index and entries.
    pub joined: Vec<(usize, u64)>,
    /// What is covered once this run and those before it are delivered.
    pub progress: Progress,
}

/// A part of a batch: runs of one stream.
#[derive(Debug)]
pub struct Group {
    /// The stream's receipt of this group.
    pub receipt: Receipt,
    /// Pieces of the stream, in order.
    pub runs: Vec<Run>,
    /// Value of `contextFlow`.
    pub context_flow: String,
}

/// What a stream waits for. One that is dropped before it is completed makes the stream start over.
#[derive(Debug)]
pub struct Receipt {
    stream: Arc<Stream>,
    ticket: Option<Ticket>,
}

impl Receipt {
    /// Returns the stream.
    pub fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }

    /// Acknowledges what the receipt covers, as soon as nothing before it is open. `dead_entries` of its
    /// entries are in the dead-letter store.
    pub fn complete(mut self, dead_entries: u64) {
        if let Some(ticket) = self.ticket.take() {
            self.stream.complete(ticket, dead_entries);
        }
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if self.ticket.is_some() {
            self.stream.abandon();
        }
    }
}

/// One lane.
#[derive(Debug)]
pub struct Lane {
    key: LaneKey,
    limits: Upload,
    share: Arc<Share>,
    queue: Mutex<Queue>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    streams: HashMap<SlotId, StreamQueue>,
    /// Streams with runs; the one that waited longest comes first.
    ready: VecDeque<SlotId>,
    next_slot: u64,
    bytes: usize,
    log_count: usize,
    in_flight: usize,
    is_closing: bool,
    is_dead: bool,
}

/// A stream's place in its lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SlotId(u64);

#[derive(Debug)]
struct StreamQueue {
    stream: Arc<Stream>,
    runs: VecDeque<(Instant, Run)>,
    group_count: u64,
}

/// What the lane's task shall do.
#[derive(Debug)]
pub enum Next {
    /// Send this.
    Batch(Vec<Group>),
    /// Look again then, or at the next change.
    WaitUntil(Instant),
    /// Look again at the next change.
    Wait,
    /// The lane is closing and empty.
    End,
}

impl Stream {
    /// Makes a stream whose acknowledgements go to `outbox`.
    pub fn new(
        number: u32,
        context_id: String,
        source: String,
        log_tags: Vec<u8>,
        outbox: Arc<Outbox>,
    ) -> Self {
        Self {
            number,
            context_id,
            source,
            log_tags,
            tenant: String::new(),
            acks: Mutex::default(),
            outbox,
            has_left: watch::Sender::new(false),
        }
    }

    /// Says whose it is.
    #[must_use]
    pub fn of_tenant(self, tenant: &str) -> Self {
        Self {
            tenant: tenant.to_owned(),
            ..self
        }
    }

    /// Returns whether the stream has left its lane: it is acknowledged no further, and its driver
    /// sends again what is not acknowledged.
    pub fn has_left(&self) -> bool {
        *self.has_left.borrow()
    }

    /// Waits until the stream has left its lane.
    pub async fn left(&self) {
        // An error means that the sender is gone, and with it the stream.
        self.has_left.subscribe().wait_for(|left| *left).await.ok();
    }

    /// Ends acknowledgements: the same number may soon be that of another stream of the call.
    fn leave(&self) {
        let _acks = lock(&self.acks);
        self.has_left.send_replace(true);
    }

    /// Covers entries that need no delivery: filtered, or nothing but progress.
    pub fn settle(&self, progress: Progress) {
        let mut acks = lock(&self.acks);
        let ticket = acks.push(progress);
        self.acknowledge(acks.complete(ticket, 0));
    }

    fn complete(&self, ticket: Ticket, dead_entries: u64) {
        let mut acks = lock(&self.acks);
        self.acknowledge(acks.complete(ticket, dead_entries));
    }

    /// Ends acknowledgements, and has the call make the stream start over.
    fn abandon(&self) {
        let mut acks = lock(&self.acks);
        if acks.abandon() && !self.has_left() {
            self.outbox.abandon(self.number);
        }
    }

    /// Called with the acknowledgements locked: none may come after the stream was abandoned or has
    /// left, or what starts over would be counted twice.
    fn acknowledge(&self, acknowledged: Option<Progress>) {
        if let Some(progress) = acknowledged
            && !self.has_left()
        {
            self.outbox.acknowledge(self.number, progress);
        }
    }
}

impl Lane {
    /// Makes an empty lane whose streams' windows come out of `share`.
    pub fn new(key: LaneKey, limits: Upload, share: Share) -> Self {
        Self {
            key,
            limits,
            share: Arc::new(share),
            queue: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// Returns what the lane is for.
    pub fn key(&self) -> &LaneKey {
        &self.key
    }

    /// Returns the share of its streams' windows.
    pub fn share(&self) -> &Arc<Share> {
        &self.share
    }

    /// Adds a stream.
    pub fn join(&self, stream: Arc<Stream>) -> SlotId {
        let mut queue = lock(&self.queue);
        let id = SlotId(queue.next_slot);
        queue.next_slot += 1;
        queue.streams.insert(
            id,
            StreamQueue {
                stream,
                runs: VecDeque::new(),
                group_count: 0,
            },
        );
        id
    }

    /// Removes a stream with what is not sealed, and lets those who hold its batches know.
    pub fn leave(&self, id: SlotId) {
        let mut queue = lock(&self.queue);
        if let Some(slot) = queue.streams.remove(&id) {
            queue.ready.retain(|ready| *ready != id);
            slot.stream.leave();
            for (_, run) in slot.runs {
                queue.bytes -= run.logs.len();
                queue.log_count -= run.log_count;
            }
        }
        drop(queue);
        self.changed.notify_one();
    }

    /// Queues records. The lane looks at them at the next [`wake`](Self::wake), so that everything
    /// one request brought can share a batch.
    ///
    /// # Panics
    /// Never for a stream that has joined and not left.
    pub fn push(&self, id: SlotId, run: Run, now: Instant) {
        let mut queue = lock(&self.queue);
        queue.bytes += run.logs.len();
        queue.log_count += run.log_count;
        let slot = queue
            .streams
            .get_mut(&id)
            .expect("a stream pushes between join and leave");
        slot.runs.push_back((now, run));
        if slot.runs.len() == 1 {
            queue.ready.push_back(id);
        }
    }

    /// Covers entries without a record, behind everything the stream has queued.
    ///
    /// # Panics
    /// Never for a stream that has joined and not left.
    pub fn settle(&self, id: SlotId, progress: Progress) {
        let mut queue = lock(&self.queue);
        let slot = queue
            .streams
            .get_mut(&id)
            .expect("a stream settles between join and leave");
        match slot.runs.back_mut() {
            Some((_, last)) => last.progress.extend(progress),
            None => slot.stream.settle(progress),
        }
    }

    /// Lets the lane's task look at the queue.
    pub fn wake(&self) {
        self.changed.notify_one();
    }

    /// Counts a sealed batch as no longer in flight.
    pub fn release(&self) {
        lock(&self.queue).in_flight -= 1;
        self.changed.notify_one();
    }

    /// Sends what is queued without lingering, then ends.
    pub fn close(&self) {
        lock(&self.queue).is_closing = true;
        self.changed.notify_one();
    }

    /// Says that the lane's task has failed: all its streams start over, in another lane.
    pub fn die(&self) {
        let mut queue = lock(&self.queue);
        queue.is_dead = true;
        for slot in queue.streams.values() {
            slot.stream.abandon();
        }
    }

    /// Returns whether the lane is closed and empty: its task may end.
    pub fn has_ended(&self) -> bool {
        let queue = lock(&self.queue);
        queue.is_closing && queue.ready.is_empty()
    }

    /// Returns whether the lane's task has failed.
    pub fn is_dead(&self) -> bool {
        lock(&self.queue).is_dead
    }

    /// Returns whether all streams have left.
    pub fn has_no_streams(&self) -> bool {
        lock(&self.queue).streams.is_empty()
    }

    /// Waits for a change.
    ///
    /// # Cancel safety
    /// A change that comes while nobody waits is kept.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Seals a batch if it is due. A sealed batch counts as in flight until
    /// [`release`](Self::release).
    pub fn next(&self, now: Instant, in_flight_max: usize) -> Next {
        let mut queue = lock(&self.queue);
        let Some(oldest) = queue.oldest() else {
            return if queue.is_closing {
                Next::End
            } else {
                Next::Wait
            };
        };
        if queue.in_flight >= in_flight_max {
            return Next::Wait;
        }
        let is_full = queue.bytes >= self.limits.batch_bytes_max
            || queue.log_count >= self.limits.batch_logs_max;
        let is_idle = queue.in_flight == 0 && queue.ready.len() <= CLS_GROUPS_MAX;
        let due = oldest + self.limits.linger;
        if !(is_full || is_idle || queue.is_closing || due <= now) {
            return Next::WaitUntil(due);
        }
        queue.in_flight += 1;
        Next::Batch(queue.seal(&self.limits))
    }
}

impl Queue {
    fn oldest(&self) -> Option<Instant> {
        let slot = self.streams.get(self.ready.front()?)?;
        slot.runs.front().map(|(since, _)| *since)
    }

    /// Takes the streams that waited longest, as much of each as fits.
    fn seal(&mut self, limits: &Upload) -> Vec<Group> {
        let mut groups = Vec::with_capacity(self.ready.len().min(CLS_GROUPS_MAX));
        let mut room = Room {
            bytes: limits.batch_bytes_max,
            log_count: limits.batch_logs_max,
        };
        while groups.len() < CLS_GROUPS_MAX
            && let Some(&id) = self.ready.front()
        {
            let slot = self
                .streams
                .get_mut(&id)
                .expect("a ready stream has a slot");
            let runs = slot.take_runs(&mut room, groups.is_empty());
            if runs.is_empty() {
                break;
            }
            for run in &runs {
                self.bytes -= run.logs.len();
                self.log_count -= run.log_count;
            }
            groups.push(slot.seal(runs));
            let is_drained = slot.runs.is_empty();
            self.ready.pop_front();
            if !is_drained {
                self.ready.push_back(id);
            }
        }
        groups
    }
}

/// What a batch still has room for.
struct Room {
    bytes: usize,
    log_count: usize,
}

impl StreamQueue {
    /// Takes the runs that fit; the first run of a batch always does.
    fn take_runs(&mut self, room: &mut Room, is_first: bool) -> Vec<Run> {
        let mut runs = Vec::new();
        while let Some((_, run)) = self.runs.front() {
            let fits = run.logs.len() <= room.bytes && run.log_count <= room.log_count;
            let must_fit = !is_first || !runs.is_empty();
            if must_fit && !fits {
                break;
            }
            room.bytes = room.bytes.saturating_sub(run.logs.len());
            room.log_count = room.log_count.saturating_sub(run.log_count);
            runs.extend(self.runs.pop_front().map(|(_, run)| run));
        }
        runs
    }

    fn seal(&mut self, runs: Vec<Run>) -> Group {
        self.group_count += 1;
        let mut progress = Progress::default();
        for run in &runs {
            progress.extend(run.progress);
        }
        Group {
            context_flow: format!("{}-{:X}", self.stream.context_id, self.group_count),
            receipt: Receipt {
                ticket: Some(lock(&self.stream.acks).push(progress)),
                stream: Arc::clone(&self.stream),
            },
            runs,
        }
    }
}

/// Returns 16 random upper-case hex digits: CLS wants a 64-bit number (document 614/59470). A
/// stream that is opened again gets a new one, because its groups are cut differently.
pub fn new_context_id() -> String {
    use std::hash::{BuildHasher as _, RandomState};
    format!("{:016X}", RandomState::new().hash_one(()))
}

/// Locks; a panic elsewhere leaves counters, not broken structures, so the data stays usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cls::compress::Compression;
    use crate::lane::window::Budget;
    use proptest::prelude::*;

    const LIMITS: Upload = Upload {
        linger: Duration::from_millis(200),
        batch_bytes_max: 1000,
        batch_logs_max: 100,
        compression: Compression::None,
        concurrency_max: 2,
        buffer_bytes_max: 1 << 20,
    };

    fn lane() -> Lane {
        let target = Target {
            endpoint: "h".parse().unwrap(),
            topic_id: "t".into(),
        };
        let credentials = CredentialRef::Named("default".into());
        let timeout = Duration::from_secs(1);
        Lane::new(
            LaneKey {
                target,
                credentials,
                timeout,
                attempts_max: 0,
            },
            LIMITS,
            Share::new(Arc::new(Budget::new(LIMITS.buffer_bytes_max))),
        )
    }

    fn stream(number: u32, outbox: &Arc<Outbox>) -> Arc<Stream> {
        let (context_id, source) = (format!("{number:016X}"), "host".to_owned());
        Arc::new(Stream::new(
            number,
            context_id,
            source,
            Vec::new(),
            Arc::clone(outbox),
        ))
    }

    fn run(offset: u64, bytes: usize) -> Run {
        let progress = Progress {
            offset,
            delivered_entries: 1,
            ..Progress::default()
        };
        Run {
            logs: vec![0; bytes],
            log_count: 1,
            joined: Vec::new(),
            progress,
        }
    }

    /// What `next` says, in a word.
    fn word(next: &Next) -> &'static str {
        match next {
            Next::Batch(_) => "batch",
            Next::WaitUntil(_) => "linger",
            Next::Wait => "wait",
            Next::End => "end",
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_lane_sends_at_once_and_a_busy_one_lingers() {
        let (lane, outbox) = (lane(), Arc::default());
        let slot = lane.join(stream(1, &outbox));
        let start = Instant::now();
        assert_eq!(word(&lane.next(start, 2)), "wait");
        lane.push(slot, run(1, 10), start);
        assert_eq!(word(&lane.next(start, 2)), "batch", "nothing is in flight");
        lane.push(slot, run(2, 10), start);
        assert_eq!(
            word(&lane.next(start, 2)),
            "linger",
            "one batch is in flight"
        );
        assert_eq!(
            word(&lane.next(start + LIMITS.linger, 2)),
            "batch",
            "it has waited long enough"
        );
        lane.push(slot, run(3, 1000), start);
        assert_eq!(
            word(&lane.next(start, 2)),
            "wait",
            "both requests are in flight"
        );
        lane.release();
        assert_eq!(word(&lane.next(start, 2)), "batch", "it is full");
    }

    #[tokio::test(start_paused = true)]
    async fn more_streams_than_a_request_has_groups_wait_for_each_other() {
        let (lane, outbox) = (lane(), Arc::default());
        let now = Instant::now();
        for number in 0..=u32::try_from(CLS_GROUPS_MAX).unwrap() {
            let slot = lane.join(stream(number, &outbox));
            lane.push(slot, run(1, 10), now);
        }
        assert_eq!(word(&lane.next(now, 2)), "linger");
        let Next::Batch(groups) = lane.next(now + LIMITS.linger, 2) else {
            panic!()
        };
        assert_eq!(groups.len(), CLS_GROUPS_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_leaves_takes_its_unsealed_records_along() {
        let (lane, outbox) = (lane(), Arc::default());
        let now = Instant::now();
        let [a, b] = [1, 2].map(|number| lane.join(stream(number, &outbox)));
        lane.push(a, run(1, 10), now);
        lane.push(b, run(1, 10), now);
        lane.leave(a);
        let Next::Batch(groups) = lane.next(now, 2) else {
            panic!()
        };
        assert_eq!(
            groups
                .iter()
                .map(|group| group.receipt.stream().number)
                .collect::<Vec<_>>(),
            [2]
        );
        lane.leave(b);
        lane.close();
        assert_eq!(word(&lane.next(now, 2)), "end");
    }

    #[tokio::test(start_paused = true)]
    async fn filtered_entries_are_acknowledged_behind_what_is_queued() {
        let (lane, outbox) = (lane(), Arc::new(Outbox::default()));
        let slot = lane.join(stream(1, &outbox));
        let filtered = |offset| Progress {
            offset,
            filtered_entries: 1,
            ..Progress::default()
        };
        lane.settle(slot, filtered(10));
        assert_eq!(
            outbox.take().unwrap().acks[0].offset,
            10,
            "nothing stands before it"
        );
        lane.push(slot, run(20, 10), Instant::now());
        lane.settle(slot, filtered(30));
        assert_eq!(outbox.take(), None);
        let Next::Batch(groups) = lane.next(Instant::now(), 2) else {
            panic!()
        };
        lane.settle(slot, filtered(40));
        for group in groups {
            group.receipt.complete(0);
        }
        let ack = outbox.take().unwrap().acks[0];
        assert_eq!(
            (ack.offset, ack.delivered_entries, ack.filtered_entries),
            (40, 1, 2)
        );
    }

    proptest! {
        /// Whatever the sizes: every run leaves once, in its stream's order, in batches under all
        /// limits, with consecutive group numbers.
        #[test]
        fn batches_hold_every_piece_once_and_keep_the_limits(
            pushes in prop::collection::vec((0_usize..15, 1_usize..400), 1..200)
        ) {
            let (lane, outbox) = (lane(), Arc::default());
            let now = Instant::now();
            let slots: Vec<_> = (0..15).map(|number| lane.join(stream(number, &outbox))).collect();
            let mut pushed = vec![0_u64; 15];
            for (index, bytes) in pushes {
                pushed[index] += 1;
                lane.push(slots[index], run(pushed[index], bytes), now);
            }
            lane.close();
            let (mut taken, mut group_count) = (vec![0_u64; 15], vec![0_u64; 15]);
            while let Next::Batch(groups) = lane.next(now, usize::MAX) {
                prop_assert!(!groups.is_empty() && groups.len() <= CLS_GROUPS_MAX);
                let runs = || groups.iter().flat_map(|group| &group.runs);
                prop_assert!(runs().map(|run| run.logs.len()).sum::<usize>() <= LIMITS.batch_bytes_max);
                prop_assert!(runs().count() <= LIMITS.batch_logs_max);
                for group in groups {
                    let index = group.receipt.stream().number as usize;
                    for run in &group.runs {
                        taken[index] += 1;
                        prop_assert_eq!(run.progress.offset, taken[index]);
                    }
                    group_count[index] += 1;
                    prop_assert_eq!(group.context_flow, format!("{:016X}-{:X}", index, group_count[index]));
                }
            }
            prop_assert_eq!(taken, pushed);
        }
    }
}
