//! Processes die: the plugin under load, the shipper for a while. Containers do not notice, and no
//! line is lost.

use crate::scene::{PLUGIN, Record, Scene, full_scene, scene};
use rustix::process::{Signal, kill_process};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use world::chatter::Shape;
use world::processes::wait_until;

const PLAIN: Shape = Shape::Plain { bytes: 64 };
const DEADLINE: Duration = Duration::from_secs(30);

/// Asserts that every line is there, and that each is in its place the first time it comes. Prints
/// how many came again.
pub(crate) fn assert_at_least_once(records: &[Record], line_count: u64) {
    let mut seen = BTreeSet::new();
    let first_times: Vec<_> = records
        .iter()
        .map(Record::content)
        .filter(|content| seen.insert(*content))
        .collect();
    let duplicates = records.len() - first_times.len();
    eprintln!(
        "{line_count} lines, {} records, {duplicates} duplicates",
        records.len()
    );
    let expected: Vec<_> = (0..line_count).map(|number| PLAIN.line(number)).collect();
    let missing: Vec<_> = expected
        .iter()
        .filter(|line| !seen.contains(line.as_str()))
        .collect();
    assert!(
        missing.is_empty(),
        "{} lines lost, the first: {}",
        missing.len(),
        missing[0]
    );
    assert_eq!(first_times.len(), expected.len(), "lines that nobody wrote");
}

/// Waits until all lines have become records, each at least once.
async fn wait_for_lines(scene: &Scene, line_count: u64) -> Vec<Record> {
    let last = PLAIN.line(line_count - 1);
    let mut records = scene
        .wait_for_records(usize::try_from(line_count).unwrap())
        .await;
    // With duplicates, the count alone does not say that the last line is there.
    while !records.iter().any(|record| record.content() == last) {
        records = scene.wait_for_records(records.len() + 1).await;
    }
    records
}

#[test]
fn a_killed_plugin_loses_nothing() {
    const KILLS: usize = 5;
    const LINES: u64 = 60_000;
    full_scene(async |scene| {
        let chatter = ["--lines", &LINES.to_string(), "--rate", "6000"];
        scene.run("box", &["-d"], &chatter).await;
        for _ in 0..KILLS {
            sleep(Duration::from_millis(1_500)).await;
            kill_plugin(scene).await;
        }
        let records = wait_for_lines(scene, LINES).await;
        assert_at_least_once(&records, LINES);
        assert_eq!(scene.docker(["wait", "box"]).await, "0");
    });
}

/// Kills the plugin's process and waits for the one that the engine starts in its place.
pub(crate) async fn kill_plugin(scene: &Scene) {
    let before = scene.engine.processes("/cls-driver");
    assert_eq!(before.len(), 1, "one plugin process runs");
    kill_process(before[0], Signal::KILL).unwrap();
    let is_replaced = async || {
        let now = scene.engine.processes("/cls-driver");
        now.len() == 1 && now != before
    };
    wait_until("the engine starts the plugin again", DEADLINE, is_replaced)
        .await
        .unwrap();
}

#[test]
fn a_killed_shipper_loses_nothing() {
    const KILLS: usize = 5;
    const LINES: u64 = 60_000;
    full_scene(async |scene| {
        let chatter = ["--lines", &LINES.to_string(), "--rate", "6000"];
        scene.run("box", &["-d"], &chatter).await;
        for _ in 0..KILLS {
            sleep(Duration::from_millis(1_500)).await;
            scene.kill_shipper();
            scene.start_shipper().await;
        }
        let records = wait_for_lines(scene, LINES).await;
        assert_at_least_once(&records, LINES);
    });
}

#[test]
fn without_a_shipper_containers_start_and_stop_as_with_json_file() {
    const RUNS: usize = 5;
    /// What one start or stop may take longer: scheduling of a busy machine, not a time-out.
    const SLACK: Duration = Duration::from_millis(500);
    scene(&[], async |scene| {
        scene.install_plugin(&[]).await;
        let mut with_plugin = Vec::new();
        let mut with_json_file = Vec::new();
        for _ in 0..RUNS {
            with_json_file.push(life(scene, "json-file").await);
            with_plugin.push(life(scene, PLUGIN).await);
        }
        with_plugin.sort();
        with_json_file.sort();
        let (plugin, json_file) = (with_plugin[RUNS / 2], with_json_file[RUNS / 2]);
        eprintln!("run and stop: {plugin:?} with the plugin, {json_file:?} with json-file");
        assert!(
            plugin < json_file + SLACK,
            "{with_plugin:?} against {with_json_file:?}"
        );
        // What they wrote waited in the journals.
        scene.start_shipper().await;
        let records = scene.wait_for_records(RUNS * 1_000).await;
        assert_eq!(records.len(), RUNS * 1_000);
    });
}

/// Returns how long it takes to start a container that writes 1,000 lines, and to stop it.
async fn life(scene: &Scene, driver: &str) -> Duration {
    let began = Instant::now();
    let run = [
        "run",
        "-d",
        "--network=none",
        "--log-driver",
        driver,
        "chatter",
    ];
    let chatter = ["--lines", "1000", "--hold"];
    let id = scene.docker([&run[..], &chatter[..]].concat()).await;
    scene.docker(["stop", &id]).await;
    began.elapsed()
}
