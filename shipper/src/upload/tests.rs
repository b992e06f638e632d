//! Lanes and uploads against a cloud that fails as a script says, on a paused clock.
//!
//! Method: streams push units (a record of some entries, or an entry that a filter took out) whose
//! content says which they are, so the cloud knows what it has stored. A harness plays the session: it
//! takes acknowledgements, and opens streams that leave or are abandoned again from what is
//! acknowledged, as a driver does.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use proptest::prelude::*;
use prost::Message as _;
use tokio::time::Instant;

use crate::base::clock::WallClock;
use crate::base::secret::Secret;
use crate::base::tasks::Tasks;
use crate::cls::body::{Log, LogGroup, LogGroupList, Pair};
use crate::cls::compress::Compression;
use crate::cls::credentials::Credentials;
use crate::cls::disposition::{Answer, ErrorCode, Outcome};
use crate::cls::request::{Target, Upload};
use crate::config::{CredentialSource, Upload as Limits};
use crate::keys::store::{CredentialRef, CredentialStore};
use crate::lane::outbox::Outbox;
use crate::lane::queue::{Lane, LaneKey, Run, SlotId, Stream, new_context_id};
use crate::lane::receipts::Progress;
use crate::lane::window::Budget;
use crate::send::client::Client;
use crate::send::client::Cloud;
use crate::show::metrics::Metrics;
use crate::upload::batch::Uploader;
use crate::upload::lanes::Lanes;
use crate::upload::letters::DeadLetters;
use crate::upload::wire::Wire;

/// What the cloud does with one request, before it goes by the content.
#[derive(Debug, Clone, Copy)]
enum Step {
    Store,
    Status(u16),
    StoreWithoutAnswer,
    Reset,
    Panic,
}

/// Logs beyond which a body is too large.
const LOGS_MAX: usize = 6;

const POISON: &str = "poison";

/// Topics: that of all streams, but for one that a test watches.
const BUSY: &str = "busy";
const QUIET: &str = "quiet";

#[derive(Debug, Default)]
struct FakeCloud {
    steps: Mutex<VecDeque<(Step, u64)>>,
    /// (stream, unit) of all records that were stored.
    stored: Mutex<BTreeSet<(usize, usize)>>,
    /// When the records of the quiet topic were stored.
    quiet_stored_at: Mutex<Vec<Instant>>,
    key_ids: Mutex<Vec<String>>,
    good_key: Mutex<Option<String>>,
    /// A topic whose requests get no answer.
    silent_topic: Mutex<Option<&'static str>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn status(status: u16, code: &str) -> Outcome {
    Outcome::Answer(Answer {
        status,
        error: ErrorCode::of(code),
        ..Answer::default()
    })
}

fn unit_of(log: &Log) -> (usize, usize) {
    let (stream, unit) = log.contents[0].value.split_once('/').unwrap();
    (stream.parse().unwrap(), unit.parse().unwrap())
}

impl FakeCloud {
    async fn answer(&self, upload: Upload<'_>) -> Outcome {
        let key_id = upload.credentials.id.expose().to_owned();
        lock(&self.key_ids).push(key_id.clone());
        let topic_id = upload.target.topic_id.as_str();
        if lock(&self.silent_topic).is_some_and(|silent| silent == topic_id) {
            tokio::time::sleep(upload.timeout).await;
            return Outcome::Timeout;
        }
        let (step, after_ms) = lock(&self.steps).pop_front().unwrap_or((Step::Store, 5));
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        match step {
            // As a panic, without its message.
            Step::Panic => std::panic::resume_unwind(Box::new("a test's")),
            Step::Status(code) => return status(code, ""),
            Step::Reset => return Outcome::Transport("reset".into()),
            Step::Store | Step::StoreWithoutAnswer => {}
        }
        if lock(&self.good_key)
            .as_ref()
            .is_some_and(|good| *good != key_id)
        {
            return status(401, "AuthFailure.SecretIdNotFound");
        }
        let list = LogGroupList::decode(upload.body.bytes.as_ref()).unwrap();
        let logs: Vec<&Log> = list.groups.iter().flat_map(|group| &group.logs).collect();
        if logs.len() > LOGS_MAX {
            return status(413, "");
        }
        if logs.iter().any(|log| log.contents[0].key == POISON) {
            return status(400, "InvalidContent");
        }
        if topic_id == QUIET {
            let count = logs.len();
            lock(&self.quiet_stored_at).extend(std::iter::repeat_n(Instant::now(), count));
        }
        lock(&self.stored).extend(logs.into_iter().map(unit_of));
        match step {
            Step::StoreWithoutAnswer => Outcome::Timeout,
            _ => status(200, ""),
        }
    }
}

impl Cloud for FakeCloud {
    fn upload<'a>(&'a self, upload: Upload<'a>) -> BoxFuture<'a, Outcome> {
        Box::pin(self.answer(upload))
    }
}

/// A record of some entries, or an entry that a filter took out.
#[derive(Debug, Clone, Copy)]
struct Unit {
    entries: u64,
    is_filtered: bool,
    is_poison: bool,
}

const PLAIN: Unit = Unit {
    entries: 1,
    is_filtered: false,
    is_poison: false,
};

/// A container as its driver knows it.
struct Source {
    index: usize,
    units: Vec<Unit>,
    /// Offset behind each unit: the number of entries so far.
    ends: Vec<u64>,
    /// Units that the open stream has been handed.
    sent: usize,
    acked: Progress,
    outbox: Arc<Outbox>,
    key: LaneKey,
    open: Option<(Arc<Lane>, SlotId)>,
}

struct World {
    cloud: Arc<FakeCloud>,
    lanes: Lanes,
    tasks: Arc<Tasks>,
    metrics: Arc<Metrics>,
    letters: Arc<DeadLetters>,
    /// What was seen in the dead-letter store.
    buried: Mutex<BTreeSet<(usize, usize)>>,
    sources: Vec<Source>,
    _dir: tempfile::TempDir,
}

impl World {
    fn new(cloud: FakeCloud, streams: usize, credentials: CredentialSource) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let limits = Limits {
            linger: Duration::from_millis(50),
            batch_bytes_max: 400,
            batch_logs_max: 10,
            compression: Compression::None,
            concurrency_max: 3,
            buffer_bytes_max: 1 << 20,
        };
        let cloud = Arc::new(cloud);
        let clock = WallClock::new(|| Duration::from_secs(1_700_000_000));
        let tasks = Arc::<Tasks>::default();
        let metrics = Arc::<Metrics>::default();
        let letters = Arc::new(DeadLetters::new(dir.path().join("letters"), 1 << 20));
        let sources = [("default".to_owned(), credentials)].into();
        let uploader = Uploader {
            cloud: Arc::clone(&cloud) as Arc<dyn Cloud>,
            credentials: Arc::new(CredentialStore::new(
                &sources,
                &BTreeMap::new(),
                &clock,
                &Client::default(),
            )),
            clock,
            compression: Compression::None,
            concurrency_max: limits.concurrency_max,
            wire: Wire::new(None),
            dead_letters: Some(Arc::clone(&letters)),
            tasks: Arc::clone(&tasks),
            buffers: Arc::default(),
            metrics: Arc::clone(&metrics),
        };
        let key = LaneKey {
            target: Target {
                endpoint: "h".parse().unwrap(),
                topic_id: BUSY.into(),
            },
            credentials: CredentialRef::Named("default".into()),
            timeout: Duration::from_secs(10),
            attempts_max: 0,
        };
        let budget = Arc::new(Budget::new(limits.buffer_bytes_max));
        let source = |index| Source {
            index,
            units: Vec::new(),
            ends: Vec::new(),
            sent: 0,
            acked: Progress::default(),
            outbox: Arc::default(),
            key: key.clone(),
            open: None,
        };
        Self {
            lanes: Lanes::new(limits, budget, Arc::new(uploader)),
            sources: (0..streams).map(source).collect(),
            cloud,
            tasks,
            metrics,
            letters,
            buried: Mutex::default(),
            _dir: dir,
        }
    }

    fn write(&mut self, index: usize, unit: Unit) {
        let source = &mut self.sources[index];
        let end = source.ends.last().copied().unwrap_or_default() + unit.entries;
        source.units.push(unit);
        source.ends.push(end);
    }

    /// Hands what is written to the lane, in runs of a few records.
    fn send(&mut self, index: usize) {
        let source = &mut self.sources[index];
        if source.open.is_none() {
            source.outbox = Arc::default();
            source.sent = source
                .ends
                .partition_point(|end| *end <= source.acked.offset);
            let stream = Stream::new(
                0,
                new_context_id(),
                String::new(),
                Vec::new(),
                Arc::clone(&source.outbox),
            );
            source.open = Some(self.lanes.join(&source.key, Arc::new(stream)));
        }
        let (lane, slot) = source.open.clone().unwrap();
        while let Some(unit) = source.units.get(source.sent) {
            if unit.is_filtered {
                let progress = Progress {
                    offset: source.ends[source.sent],
                    filtered_entries: 1,
                    ..Progress::default()
                };
                lane.settle(slot, progress);
                source.sent += 1;
            } else {
                lane.push(slot, source.run(), Instant::now());
            }
        }
        lane.wake();
    }

    fn leave(&mut self, index: usize) {
        if let Some((lane, slot)) = self.sources[index].open.take() {
            self.lanes.leave(&lane, slot);
        }
    }

    /// Does what a session does, and checks each acknowledgement.
    fn follow(&mut self) -> Result<(), TestCaseError> {
        for index in 0..self.sources.len() {
            let source = &mut self.sources[index];
            let abandoned = source.outbox.take_abandoned();
            let offset = source.acked.offset;
            let has_acks = source.take_acks();
            prop_assert!(source.acked.offset >= offset, "an offset went back");
            if has_acks {
                self.check(index)?;
            }
            if !abandoned.is_empty() {
                self.leave(index);
                self.send(index);
            }
        }
        Ok(())
    }

    /// Everything below the offset is dealt with, and counted once, as what it is.
    fn check(&self, index: usize) -> Result<(), TestCaseError> {
        let source = &self.sources[index];
        let stored = lock(&self.cloud.stored);
        let mut expected = Progress::default();
        for (number, unit) in source.units.iter().enumerate() {
            if source.ends[number] > source.acked.offset {
                break;
            }
            expected.offset = source.ends[number];
            let at = (index, number);
            if unit.is_filtered {
                expected.filtered_entries += unit.entries;
            } else if unit.is_poison {
                prop_assert!(self.is_buried(at), "{at:?} is no dead letter");
                expected.dead_lettered_entries += unit.entries;
            } else {
                prop_assert!(stored.contains(&at), "{at:?} is not stored");
                expected.delivered_entries += unit.entries;
            }
        }
        prop_assert_eq!(source.acked, expected);
        Ok(())
    }

    fn is_buried(&self, at: (usize, usize)) -> bool {
        let mut buried = lock(&self.buried);
        if !buried.contains(&at) {
            let (letters, _) = self.letters.letters().unwrap();
            let lists = letters.iter().map(|letter| letter.to_list());
            let groups = lists.flat_map(|list| list.groups);
            let logs = groups.flat_map(|group| group.logs);
            buried.extend(logs.map(|log| unit_of(&log)));
        }
        buried.contains(&at)
    }

    fn is_done(&self) -> bool {
        let mut sources = self.sources.iter();
        sources.all(|source| {
            source
                .ends
                .last()
                .is_none_or(|end| *end == source.acked.offset)
        })
    }

    async fn settle(&mut self) -> Result<(), TestCaseError> {
        for index in 0..self.sources.len() {
            self.send(index);
        }
        let began = Instant::now();
        while !self.is_done() {
            prop_assert!(
                began.elapsed() < Duration::from_secs(3_600),
                "a stream is stuck"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
            self.follow()?;
        }
        Ok(())
    }
}

impl Source {
    /// Applies what has been acknowledged; returns whether there was any.
    fn take_acks(&mut self) -> bool {
        let Some(response) = self.outbox.take() else {
            return false;
        };
        for ack in &response.acks {
            let counts = Progress {
                offset: 0,
                delivered_entries: ack.delivered_entries,
                filtered_entries: ack.filtered_entries,
                dead_lettered_entries: ack.dead_lettered_entries,
            };
            self.acked.extend(counts);
            self.acked.offset = ack.offset;
        }
        true
    }

    /// Encodes the next records, up to a filtered one.
    fn run(&mut self) -> Run {
        let (mut logs, mut joined, mut progress) = (Vec::new(), Vec::new(), Progress::default());
        while let Some(unit) = self.units.get(self.sent).filter(|unit| !unit.is_filtered)
            && logs.len() < 4
        {
            if unit.entries != 1 {
                joined.push((logs.len(), unit.entries));
            }
            progress.offset = self.ends[self.sent];
            progress.delivered_entries += unit.entries;
            let key = if unit.is_poison { POISON } else { "content" };
            logs.push(Log {
                time: 1,
                contents: vec![Pair {
                    key: key.to_owned(),
                    value: format!("{}/{}", self.index, self.sent),
                }],
            });
            self.sent += 1;
        }
        let log_count = logs.len();
        let group = LogGroup {
            logs,
            ..LogGroup::default()
        };
        Run {
            logs: group.encode_to_vec(),
            log_count,
            joined,
            progress,
        }
    }
}

fn fixed() -> CredentialSource {
    CredentialSource::Inline(Credentials {
        id: Secret::new("id".into()),
        key: Secret::new("key".into()),
        token: None,
    })
}

fn unit() -> impl Strategy<Value = Unit> {
    (1_u64..4, 0_u8..20).prop_map(|(entries, kind)| Unit {
        entries: if kind < 4 { 1 } else { entries },
        is_filtered: kind < 4,
        is_poison: kind == 4,
    })
}

fn step() -> impl Strategy<Value = (Step, u64)> {
    let step = prop_oneof![
        6 => Just(Step::Store),
        1 => Just(Step::Status(429)),
        1 => Just(Step::Status(500)),
        1 => Just(Step::Status(401)),
        1 => Just(Step::Status(404)),
        1 => Just(Step::StoreWithoutAnswer),
        1 => Just(Step::Reset),
        1 => Just(Step::Panic),
    ];
    (step, 0_u64..300)
}

/// What happens to the streams: units are written, a stream leaves and comes back, time passes.
#[derive(Debug, Clone)]
enum Event {
    Write(usize, Vec<Unit>),
    Reopen(usize),
    Pass(u64),
}

const STREAMS: usize = 3;

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..STREAMS, prop::collection::vec(unit(), 1..12))
            .prop_map(|(index, units)| Event::Write(index, units)),
        1 => (0..STREAMS).prop_map(Event::Reopen),
        3 => (0_u64..400).prop_map(Event::Pass),
    ]
}

fn paused() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
}

async fn live(steps: Vec<(Step, u64)>, events: Vec<Event>) -> Result<(), TestCaseError> {
    let cloud = FakeCloud::default();
    lock(&cloud.steps).extend(steps);
    let mut world = World::new(cloud, STREAMS, fixed());
    for event in events {
        match event {
            Event::Write(index, units) => {
                for unit in units {
                    world.write(index, unit);
                }
                world.send(index);
            }
            Event::Reopen(index) => {
                world.leave(index);
                world.send(index);
            }
            Event::Pass(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
        }
        world.follow()?;
    }
    world.settle().await?;
    for index in 0..STREAMS {
        world.check(index)?;
        world.leave(index);
    }
    prop_assert!(
        world.tasks.finish(Duration::from_secs(3_600)).await,
        "a task hangs"
    );
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever CLS answers, in whatever order, while streams come and go and tasks fail: an entry is
    /// acknowledged once, in order, as what it became, and not before it is stored or buried.
    #[test]
    fn every_entry_is_acknowledged_once_and_never_before_its_delivery(
        steps in prop::collection::vec(step(), 0..60),
        events in prop::collection::vec(event(), 1..40),
    ) {
        paused().block_on(live(steps, events))?;
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_whose_task_fails_starts_over_and_others_do_not() {
    let cloud = FakeCloud::default();
    lock(&cloud.steps).push_back((Step::Panic, 100));
    let mut world = World::new(cloud, 2, fixed());
    world.write(0, PLAIN);
    world.send(0);
    tokio::time::sleep(Duration::from_millis(10)).await;
    world.write(1, PLAIN);
    world.send(1);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.sources[0].outbox.take_abandoned(), [0]);
    assert!(world.sources[1].outbox.take_abandoned().is_empty());
    world.leave(0);
    world.settle().await.unwrap();
    assert_eq!(world.metrics.dead_letters.get(), 0);
}

/// A key revoked long before its successor comes: the batches that hold go on as soon as it is there.
#[tokio::test(start_paused = true)]
async fn a_held_lane_goes_on_at_once_when_its_key_file_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys");
    let pair = |id: &str| format!(r#"{{"secret_id":"{id}","secret_key":"k"}}"#);
    std::fs::write(&path, pair("old")).unwrap();
    let cloud = FakeCloud::default();
    *lock(&cloud.good_key) = Some("new".into());
    let mut world = World::new(cloud, 1, CredentialSource::File(path.clone()));
    (0..40).for_each(|_| world.write(0, PLAIN));
    world.send(0);
    // Long enough for the longest backoff.
    tokio::time::sleep(Duration::from_secs(1_800)).await;
    assert_eq!(lock(&world.cloud.stored).len(), 0);
    std::fs::write(&path, pair("new")).unwrap();
    let replaced = Instant::now();
    world.settle().await.unwrap();
    assert!(
        replaced.elapsed() < Duration::from_secs(2),
        "{:?}",
        replaced.elapsed()
    );
    // And without hurry as long as nothing changes: a batch asks about every 15 s.
    let attempts = lock(&world.cloud.key_ids)
        .iter()
        .filter(|id| *id == "old")
        .count();
    assert!(attempts < 3 * 200, "{attempts} attempts with the old key");
}

/// CLS comes back after an hour: the first batch that gets through wakes the others.
#[tokio::test(start_paused = true)]
async fn after_an_outage_no_batch_waits_for_the_end_of_its_backoff() {
    for code in [503, 404] {
        let cloud = FakeCloud::default();
        lock(&cloud.steps).extend(std::iter::repeat_n((Step::Status(code), 5), 100_000));
        let mut world = World::new(cloud, 1, fixed());
        (0..100).for_each(|_| world.write(0, PLAIN));
        world.send(0);
        tokio::time::sleep(Duration::from_secs(3_600)).await;
        lock(&world.cloud.steps).clear();
        while lock(&world.cloud.stored).is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let recovered = Instant::now();
        world.settle().await.unwrap();
        assert!(
            recovered.elapsed() < Duration::from_secs(1),
            "{code}: {:?}",
            recovered.elapsed()
        );
    }
}

/// A topic says nothing for an hour while 200 streams write to it; a window bounds what each of them has
/// on its way. The records of another topic take as long as before.
#[tokio::test(start_paused = true)]
async fn a_lane_that_fails_for_an_hour_slows_no_other() {
    const STREAMS: usize = 200;
    const WINDOW_UNITS: u64 = 20;
    const WELL_S: usize = 60;
    let mut world = World::new(FakeCloud::default(), STREAMS + 1, fixed());
    world.sources[STREAMS].key.target.topic_id = QUIET.into();
    let mut written_at = Vec::new();
    for second in 0..WELL_S + 3_600 {
        if second == WELL_S {
            *lock(&world.cloud.silent_topic) = Some(BUSY);
        }
        for index in 0..STREAMS {
            let source = &mut world.sources[index];
            source.take_acks();
            let written = source.ends.last().copied().unwrap_or_default();
            if written < source.acked.offset + WINDOW_UNITS {
                world.write(index, PLAIN);
                world.send(index);
            }
        }
        written_at.push(Instant::now());
        world.write(STREAMS, PLAIN);
        world.send(STREAMS);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let acked = |world: &World| world.sources[0].acked.offset;
    assert!(acked(&world) >= WELL_S as u64 - 5 && acked(&world) <= WELL_S as u64);
    let stored_at = lock(&world.cloud.quiet_stored_at).clone();
    assert_eq!(stored_at.len(), written_at.len());
    let took = stored_at
        .iter()
        .zip(&written_at)
        .map(|(at, from)| *at - *from);
    let took: Vec<Duration> = took.collect();
    let (well, failing) = took.split_at(WELL_S);
    assert_eq!(
        well.iter().max(),
        failing.iter().max(),
        "the slowest record"
    );
    lock(&world.cloud.silent_topic).take();
    world.settle().await.unwrap();
}

/// A driver's request may be half way through when the process begins to stop.
#[tokio::test(start_paused = true)]
async fn a_stream_that_opens_while_lanes_close_keeps_no_lane_alive() {
    let mut world = World::new(FakeCloud::default(), 1, fixed());
    world.lanes.close();
    world.write(0, PLAIN);
    world.settle().await.unwrap();
    assert!(world.tasks.finish(Duration::from_secs(60)).await);
}
