//! Options that Docker itself reads for the cache behind `docker logs`: the driver takes them, and
//! none of them keeps a line from CLS.

use super::{Case, Outcome, inspect, run_cases};
use crate::scene::{Scene, contents};
use std::fs;
use std::time::Duration;
use world::chatter::Shape;
use world::processes::wait_until;

const PLAIN: Shape = Shape::Plain { bytes: 64 };
const LINES: usize = 1_000;
const WRITES_LINES: &[&str] = &["--lines", "1000"];
const DEADLINE: Duration = Duration::from_secs(10);

pub(super) const CASES: &[Case] = &[
    Case {
        name: "small",
        log_opts: &["max-size=10k", "max-file=2", "compress=false"],
        chatter: WRITES_LINES,
        record_count: LINES,
        check: all_lines_arrive,
        ..Case::NONE
    },
    Case {
        name: "compressed",
        log_opts: &["max-size=10k", "max-file=4", "compress=true"],
        chatter: WRITES_LINES,
        record_count: LINES,
        check: all_lines_arrive,
        ..Case::NONE
    },
    Case {
        name: "off",
        log_opts: &["cache-disabled=true"],
        chatter: WRITES_LINES,
        record_count: LINES,
        check: all_lines_arrive,
        ..Case::NONE
    },
    Case {
        name: "on",
        log_opts: &[
            "cache-disabled=false",
            "cache-max-size=10k",
            "cache-max-file=2",
            "cache-compress=false",
        ],
        chatter: WRITES_LINES,
        record_count: LINES,
        check: all_lines_arrive,
        ..Case::NONE
    },
];

fn all_lines_arrive(outcome: &Outcome) {
    let expected: Vec<_> = (0..).map(|n| PLAIN.line(n)).take(LINES).collect();
    assert_eq!(contents(&outcome.records), expected);
}

/// Runs the cases, and looks at what `docker logs` has of them.
pub(super) async fn check(scene: &Scene) {
    run_cases(scene, CASES).await;
    a_bounded_cache_keeps_the_newest_lines(scene).await;
    old_files_are_compressed(scene).await;
    without_a_cache_docker_logs_says_so(scene).await;
    // Docker goes by `max-size`, `max-file` and `compress`, whose defaults hold all lines.
    assert_eq!(scene.docker(["logs", "on"]).await.lines().count(), LINES);
}

async fn a_bounded_cache_keeps_the_newest_lines(scene: &Scene) {
    let logs = scene.docker(["logs", "small"]).await;
    let lines: Vec<_> = logs.lines().collect();
    // Two files of 10,000 bytes hold at most this many lines.
    assert!((1..=20_000 / 64).contains(&lines.len()), "{}", lines.len());
    let expected: Vec<_> = (LINES - lines.len()..LINES)
        .map(|number| PLAIN.line(number.try_into().unwrap()))
        .collect();
    assert_eq!(lines, expected);
    let files = cache_files(scene, "small").await;
    assert_eq!(files.len(), 2, "{files:?}");
    assert!(!files.iter().any(|file| file.ends_with(".gz")), "{files:?}");
}

async fn old_files_are_compressed(scene: &Scene) {
    // The engine compresses in the background.
    let has_compressed = async || {
        let files = cache_files(scene, "compressed").await;
        files.iter().any(|file| file.ends_with(".gz"))
    };
    wait_until("a file is compressed", DEADLINE, has_compressed)
        .await
        .unwrap();
}

async fn without_a_cache_docker_logs_says_so(scene: &Scene) {
    let output = scene.engine.docker_output(["logs", "off"]).await.unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(message.contains("does not support reading"), "{message}");
}

/// Returns the names of the files of a container's cache.
async fn cache_files(scene: &Scene, container: &str) -> Vec<String> {
    let container = inspect(scene, container).await;
    let id = container["Id"].as_str().unwrap();
    let folder = scene.engine.folder().join("data/containers").join(id);
    let mut names = Vec::new();
    let mut folders = vec![folder];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else if name.contains("cached.log") {
                names.push(name);
            }
        }
    }
    names
}
