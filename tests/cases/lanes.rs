//! What one lane suffers is its own: others go on as before, memory stays bounded, and CLS is not
//! overrun when it comes back.
//!
//! Method: real processes, 200 containers, the stand-in as CLS. Times are compared within a run.

use crate::world::{World, Writers};
use proto::frame::Source;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use world::oracle::examine;
use world::processes::{TOPIC_ID, UploadSettings, standin_config};
use world::script::Script;
use world::standin::config::{Config, Topic};
use world::standin::fault::{Fault, FaultKind};
use world::standin::store::Upload;

/// Containers behind the lane that fails.
const CONTAINERS: usize = 200;
const LINES_PER_S: u32 = 20;
/// The topic of a container that is not to notice.
const QUIET_TOPIC: &str = "00000000-0000-4000-8000-000000000001";
const QUIET_LINES_PER_S: u32 = 200;
/// How long each state of the other lane is watched.
const PHASE: Duration = Duration::from_secs(10);
const PHASE_MS: i64 = 10_000;
/// Time after and before a change in which latencies are not counted.
const CHANGE_MS: i64 = 1_000;

/// What the shipper may have resident: `upload.buffer_bytes_max` (64 MiB), 32 KiB per stream, and
/// itself.
const RSS_BYTES_MAX: u64 = (64 << 20) + 200 * (32 << 10) + (40 << 20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_that_fails_is_not_noticed_by_another_one() {
    let (watcher, uploads) = mpsc::channel(1_000);
    let config = Config {
        topics: vec![Topic::open(TOPIC_ID), Topic::open(QUIET_TOPIC)],
        ..standin_config()
    };
    let mut world = World::start_with(config, Some(watcher), UploadSettings::default()).await;
    let mut measured = JoinSet::new();
    measured.spawn(latencies(uploads));
    let phases = 3 * PHASE;
    let lines_per_phase = |lines_per_s| u64::from(lines_per_s) * PHASE.as_secs();
    let mut writers = Writers::new();
    let mut scripts = Vec::new();
    for number in 0..CONTAINERS {
        let script = Script::new(&format!("s{number}"), 3 * lines_per_phase(LINES_PER_S), 200);
        let pipe = world.container(&script.name, &[]).await;
        writers.start(script.clone(), pipe, Some(LINES_PER_S));
        scripts.push(script);
    }
    let began = Instant::now();
    let quiet = world.container("quiet", &[("topic_id", QUIET_TOPIC)]).await;
    let quiet_lines = 3 * lines_per_phase(QUIET_LINES_PER_S);
    let writer = std::thread::spawn(move || write_timed(quiet, quiet_lines));
    sleep_until(began + PHASE).await;
    // Requests hang until the shipper gives up: that takes its slots, and its batches their memory.
    let mut failure = Fault::new(FaultKind::Stall);
    failure.topic_id = Some(TOPIC_ID.to_owned());
    world.standin.add_fault(failure);
    sleep_until(began + 2 * PHASE).await;
    world.standin.clear_faults();
    sleep_until(began + phases).await;
    world.finish(writers).await;
    writer.join().unwrap();
    let rss_bytes_max = world
        .host
        .shipper
        .as_ref()
        .unwrap()
        .usage()
        .unwrap()
        .rss_bytes_max;
    let report = world.settle(&scripts).await;
    assert!(report.is_at_least_once(), "{report}{}", world.host.output());
    assert_eq!(
        examine(&[], &world.standin.uploads(QUIET_TOPIC)).received,
        quiet_lines
    );
    drop(world);
    let latencies = measured.join_next().await.unwrap().unwrap();
    let [healthy, failing] = [0, 1].map(|phase| {
        let from = latencies.began_ms + phase * PHASE_MS;
        latencies.p99_ms(from + CHANGE_MS, from + PHASE_MS - CHANGE_MS)
    });
    eprintln!(
        "{CONTAINERS} containers behind a lane that fails: p99 of another lane {failing} ms, \
         {healthy} ms while both were well; shipper's peak RSS {} MiB; {report}",
        rss_bytes_max >> 20
    );
    assert!(rss_bytes_max < RSS_BYTES_MAX, "{rss_bytes_max} bytes");
    // Twice, and what one hiccup of a shared machine costs.
    assert!(
        failing <= 2 * healthy + 100,
        "{failing} ms against {healthy} ms"
    );
}

/// Writes lines whose time is the present.
#[allow(
    clippy::disallowed_methods,
    reason = "a thread that plays a container and its engine"
)]
fn write_timed(mut pipe: world::dockerd::Pipe, line_count: u64) -> world::dockerd::Pipe {
    let began = std::time::Instant::now();
    for number in 0..line_count {
        let due = Duration::from_micros(number * 1_000_000 / u64::from(QUIET_LINES_PER_S));
        std::thread::sleep(due.saturating_sub(began.elapsed()));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let time_nano = i64::try_from(now.as_nanos()).unwrap();
        pipe.write_line(Source::Stdout, time_nano, b"a line of a quiet container")
            .unwrap();
    }
    pipe
}

/// Times from Docker's stamp to CLS's answer, of the quiet lane.
struct Latencies {
    /// Time of the first line, UNIX milliseconds.
    began_ms: i64,
    /// Time of each line, and how long it took, in milliseconds.
    lines: Vec<(i64, i64)>,
}

impl Latencies {
    /// Returns the 99th percentile of the lines written from `from` to `to`.
    fn p99_ms(&self, from: i64, to: i64) -> i64 {
        let lines = self.lines.iter().filter(|(at, _)| (from..to).contains(at));
        let mut took: Vec<_> = lines.map(|(_, took)| *took).collect();
        took.sort_unstable();
        assert!(took.len() > 1_000, "{} lines are too few", took.len());
        took[took.len() * 99 / 100]
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "compared with the stamps of the lines"
)]
async fn latencies(mut uploads: mpsc::Receiver<Arc<Upload>>) -> Latencies {
    let mut lines = Vec::new();
    while let Some(upload) = uploads.recv().await {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let now_ms = i64::try_from(now.as_millis()).unwrap();
        if upload.topic_id == QUIET_TOPIC {
            upload.visit(|record| lines.push((record.log.time, now_ms - record.log.time)));
        }
    }
    let began_ms = lines.iter().map(|(at, _)| *at).min().unwrap();
    Latencies { began_ms, lines }
}

/// A CLS that is near, and then far away for all: latency that is not of the lane's making costs it no
/// request in flight for longer than a trial.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_cls_gets_all_requests_that_are_allowed() {
    const CONCURRENCY: u64 = 8;
    let upload = UploadSettings {
        batch_bytes_max: 32 << 10,
        concurrency_max: CONCURRENCY,
        ..UploadSettings::default()
    };
    let mut world = World::start(upload).await;
    for (latency_ms, lines) in [(30, 20_000), (500, 20_000)] {
        let latency = Duration::from_millis(latency_ms);
        world.standin.clear_faults();
        world
            .standin
            .add_fault(Fault::new(FaultKind::Stall).delayed(latency));
        let script = Script::new(&format!("at{latency_ms}"), lines, 200);
        let pipe = world.container(&script.name, &[]).await;
        let mut writers = Writers::new();
        let before = world.standin.stats();
        let began = Instant::now();
        writers.start(script.clone(), pipe, None);
        let pipes = world.finish(writers).await;
        let scripts = [script];
        world
            .wait_for(before.records + lines, |uploads| {
                examine(&scripts, uploads).lost == 0
            })
            .await;
        let took = began.elapsed();
        let requests = world.standin.stats().requests - before.requests;
        // Little's law.
        let in_flight = requests as f64 * latency.as_secs_f64() / took.as_secs_f64();
        eprintln!(
            "{requests} requests that take {latency_ms} ms each: {:.1} s, {in_flight:.1} of \
             {CONCURRENCY} in flight",
            took.as_secs_f64()
        );
        for pipe in pipes {
            world.stop(pipe).await;
        }
        if latency_ms >= 500 {
            assert!(in_flight >= 0.6 * CONCURRENCY as f64, "{in_flight:.1}");
        }
    }
}

/// Requests per second that the herd is allowed, a fiftieth of what CLS allows: enough to be hit.
const QUOTA_REQUESTS_PER_S: f64 = 10.0;

/// A quota that the herd does hit, which costs it little: it needs hardly longer than the quota makes
/// it, and few of its requests are refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_an_outage_the_herd_keeps_to_what_cls_takes() {
    let config = Config {
        has_quota: true,
        partitions: 1,
        requests_per_s: QUOTA_REQUESTS_PER_S,
        ..standin_config()
    };
    let mut world = World::start_with(config, None, UploadSettings::default()).await;
    world.standin.add_fault(Fault::new(FaultKind::Status(503)));
    let mut writers = Writers::new();
    let mut scripts = Vec::new();
    for number in 0..CONTAINERS {
        let script = Script::new(&format!("s{number}"), 1_000, 200);
        let pipe = world.container(&script.name, &[]).await;
        writers.start(script.clone(), pipe, None);
        scripts.push(script);
    }
    world.finish(writers).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = world.standin.stats();
    world.standin.clear_faults();
    let began = Instant::now();
    let expected = scripts.iter().map(|script| script.line_count).sum();
    world
        .wait_for(expected, |uploads| examine(&scripts, uploads).lost == 0)
        .await;
    let took_s = began.elapsed().as_secs_f64();
    let report = world.settle(&scripts).await;
    let after = world.standin.stats();
    let requests = after.requests - before.requests;
    let count_of = |stats: &world::standin::Stats| -> u64 {
        let answers = stats.answers.iter();
        let refused = answers.filter(|(answer, _)| answer.starts_with("429"));
        refused.map(|(_, count)| count).sum()
    };
    let refused = count_of(&after) - count_of(&before);
    let accepted = (requests - refused) as f64;
    // A bucket is full at first.
    let quota_s = (accepted / QUOTA_REQUESTS_PER_S - 1.0).max(0.0);
    eprintln!(
        "after an outage: {requests} requests in {took_s:.1} s, {:.1}/s accepted of \
         {QUOTA_REQUESTS_PER_S} allowed, {refused} refused; the quota alone makes {quota_s:.1} s of \
         it; {report}",
        accepted / took_s
    );
    assert!(report.is_at_least_once(), "{report}{}", world.host.output());
    assert!(refused > 0, "the quota was never hit");
    assert!(
        refused <= requests / 2,
        "{refused} of {requests} requests were refused"
    );
    assert!(
        took_s <= 2.0 * quota_s + 5.0,
        "{took_s:.1} s, where the quota makes {quota_s:.1} s"
    );
}
