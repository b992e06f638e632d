//! Containers that tell what they have written (`world::tally`), so that a test knows exactly what
//! must have arrived, whatever happened meanwhile.

use crate::chaos::run_args;
use crate::engine::Engine;
use crate::scene::{PLUGIN, Scene};
use rustix::process::{Signal, kill_process};
use shipper::show::ledger::Line;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use world::oracle::{Report, examine};
use world::processes::{TOPIC_ID, wait_until};
use world::script::Script;
use world::standin::store::Upload;
use world::tally::{self, Tally};

/// Bytes of a line of these containers.
const LINE_BYTES: usize = 80;
/// Time within which a container must do what it is told.
const DEADLINE: Duration = Duration::from_secs(60);

/// A folder in which containers tell what they have written.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    folder: PathBuf,
}

impl Told {
    /// Creates the folder `name` in `parent`.
    pub(crate) fn create(parent: &Path, name: &str) -> Self {
        let folder = parent.join(name);
        fs::create_dir(&folder).unwrap();
        Self { folder }
    }

    /// Returns what Docker is told to mount.
    pub(crate) fn mount(&self) -> String {
        format!("{}:/told", self.folder.display())
    }

    /// Starts a container that writes `rate` lines per second, to both outputs, through the plugin.
    pub(crate) async fn run(&self, scene: &Scene, name: &str, rate: u64, docker: &[&str]) {
        let (rate, endless, bytes) = (
            rate.to_string(),
            u64::MAX.to_string(),
            LINE_BYTES.to_string(),
        );
        let chatter = [
            "--both", "--rate", &rate, "--lines", &endless, "--bytes", &bytes,
        ];
        scene
            .docker(run_args(name, PLUGIN, &self.mount(), docker, &chatter))
            .await;
    }

    /// Returns all starts so far.
    pub(crate) fn tallies(&self) -> Vec<Tally> {
        tally::read(&self.folder).unwrap()
    }

    /// Waits until a container has begun for the `count`th time. Before, as process 1, it would
    /// ignore a signal.
    pub(crate) async fn wait_for_starts(&self, name: &str, count: usize) {
        let has_begun = async || {
            let tallies = self.tallies();
            tallies.iter().filter(|t| t.container == name).count() == count
        };
        let what = format!("{name} starts for the {count}th time");
        wait_until(&what, DEADLINE, has_begun).await.unwrap();
    }

    /// Waits until all that was written has arrived, and the ledger accounts for all of it.
    pub(crate) async fn settle(&self, scene: &Scene) -> Report {
        let tallies = self.tallies();
        let mut ledger = BTreeMap::new();
        let mut scripts = Vec::new();
        let is_accounted_for = async || {
            ledger = scene.accounts().await;
            scripts = self::scripts(&tallies, &scene.standin.uploads(TOPIC_ID), |_| LINE_BYTES);
            let written: u64 = scripts.iter().map(|script| script.line_count).sum();
            let names = |name: &str| tallies.iter().any(|tally| tally.container == name);
            let ours = ledger
                .values()
                .filter(|line| names(line.container_name.trim_start_matches('/')));
            let sum = |(received, delivered), line: &Line| {
                (received + line.received, delivered + line.delivered)
            };
            ours.fold((0, 0), sum) == (written, written)
        };
        let waited = wait_until(
            "all is delivered and accounted for",
            DEADLINE,
            is_accounted_for,
        );
        let waited = waited.await;
        let report = examine(&scripts, &scene.standin.uploads(TOPIC_ID));
        waited.unwrap_or_else(|error| panic!("{error:#}\n{report}\n{ledger:#?}"));
        report
    }
}

/// Returns what must have arrived; of a start that was killed, all up to the last line that has.
pub(crate) fn scripts(
    tallies: &[Tally],
    uploads: &[Arc<Upload>],
    line_bytes: impl Fn(&str) -> usize,
) -> Vec<Script> {
    let mut arrived: BTreeMap<String, u64> = BTreeMap::new();
    for upload in uploads {
        upload.visit(|record| {
            let content = record.field("content").unwrap_or_default();
            if let Some((name, number)) = Script::parse(content) {
                match arrived.get_mut(name) {
                    Some(count) => *count = (number + 1).max(*count),
                    None => drop(arrived.insert(name.to_owned(), number + 1)),
                }
            }
        });
    }
    let both = |tally: &Tally| {
        let [stdout, stderr] = tally.scripts(line_bytes(&tally.container));
        let counts = tally.counts;
        let counted = |mut script: Script, count: Option<u64>| {
            let arrived = arrived.get(&script.name).copied().unwrap_or(0);
            script.line_count = count.unwrap_or(arrived);
            script
        };
        [
            counted(stdout, counts.map(|counts| counts.stdout)),
            counted(stderr, counts.map(|counts| counts.stderr)),
        ]
    };
    tallies.iter().flat_map(both).collect()
}

/// Lets all containers rest between two lines, and the engine hand on what they have written: what
/// is in the memory of an engine that is killed dies with it, whatever the driver.
pub(crate) async fn rest(engine: &Engine, told: &[&Told]) {
    /// The engine has nothing left when it has written nothing for so long.
    const QUIET: Duration = Duration::from_millis(300);
    let all_rest = async || {
        let writers = signal_writers(engine, Signal::USR1);
        resting_count(told) == writers
    };
    let waited = wait_until("all containers rest", DEADLINE, all_rest).await;
    waited.unwrap();
    let mut seen = (0, Instant::now());
    let is_quiet = async || {
        let bytes = engine.written_bytes().unwrap();
        if bytes != seen.0 {
            seen = (bytes, Instant::now());
        }
        seen.1.elapsed() > QUIET
    };
    let waited = wait_until("the engine is quiet", DEADLINE, is_quiet).await;
    waited.unwrap();
}

/// Lets all containers write on.
pub(crate) async fn write_on(engine: &Engine, told: &[&Told]) {
    let none_rests = async || {
        signal_writers(engine, Signal::USR2);
        resting_count(told) == 0
    };
    let waited = wait_until("all containers write on", DEADLINE, none_rests).await;
    waited.unwrap();
}

fn resting_count(told: &[&Told]) -> usize {
    let count = |told: &&Told| tally::resting_count(&told.folder).unwrap();
    told.iter().map(count).sum()
}

/// Signals all containers; returns how many they are.
fn signal_writers(engine: &Engine, signal: Signal) -> usize {
    let writers = engine.processes("/chatter");
    for writer in &writers {
        // Containers are not stopped meanwhile: one that is gone shows in the count.
        kill_process(*writer, signal).ok();
    }
    writers.len()
}
