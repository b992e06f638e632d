//! Options of the journal: what it is kept in, how large it grows, and what happens then.

use super::{Case, by_case, inspect};
use crate::crashes::kill_plugin;
use crate::scene::{PLUGIN, Record, Scene, contents, scene};
use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;
use world::chatter::Shape;
use world::processes::wait_until;

/// A line now and then, until the test is over.
const TRICKLE: &[&str] = &["--rate", "20", "--lines", "100000"];
const TRICKLE_LINE: Shape = Shape::Plain { bytes: 64 };
/// 4 MB: more than a journal of 1 MiB and the buffers of the engine in front of it together.
const FLOOD: &[&str] = &["--lines", "4000", "--bytes", "1000"];
const FLOOD_LINE: Shape = Shape::Plain { bytes: 1_000 };
const FLOOD_LINES: u64 = 4_000;
/// `journal-size` of the flooded journals.
const JOURNAL_BYTES_MAX: u64 = 1 << 20;
const DEADLINE: Duration = Duration::from_secs(30);

pub(super) const CASES: &[Case] = &[
    Case {
        name: "in-memory",
        log_opts: &["no-file=true"],
        docker: &["-d"],
        chatter: TRICKLE,
        ..Case::NONE
    },
    Case {
        name: "on-disk",
        log_opts: &["no-file=false", "keep-file=true"],
        docker: &["-d"],
        chatter: TRICKLE,
        ..Case::NONE
    },
    Case {
        name: "not-kept",
        log_opts: &["keep-file=false"],
        docker: &["-d"],
        chatter: TRICKLE,
        ..Case::NONE
    },
    Case {
        name: "dropping",
        // Docker's own buffer is to hold the whole, or Docker drops lines as well.
        log_opts: &[
            "mode=non-blocking",
            "max-buffer-size=16m",
            "journal-size=1m",
        ],
        docker: &["-d"],
        chatter: FLOOD,
        ..Case::NONE
    },
    Case {
        name: "waiting",
        log_opts: &["mode=blocking", "journal-size=1m"],
        docker: &["-d"],
        chatter: FLOOD,
        ..Case::NONE
    },
];

/// The shipper is away while containers fill their journals, and the plugin is killed.
#[test]
fn options_bound_and_place_the_journal() {
    scene(&[], async |scene| {
        scene.install_plugin(&["JOURNAL_BLOCK_MS_MAX=600000"]).await;
        for case in CASES {
            case.start(scene).await;
        }
        assert_eq!(scene.docker(["wait", "dropping"]).await, "0");
        for name in ["in-memory", "on-disk", "not-kept"] {
            wait_for_output(scene, name).await;
        }
        assert_eq!(journal_bytes(scene, "in-memory").await, None);
        for name in ["on-disk", "not-kept"] {
            assert!(journal_bytes(scene, name).await > Some(0), "{name}");
        }
        for name in ["dropping", "waiting"] {
            let bytes = journal_bytes(scene, name).await.unwrap();
            let range = JOURNAL_BYTES_MAX / 2..=JOURNAL_BYTES_MAX;
            assert!(range.contains(&bytes), "{name}: {bytes}");
        }
        let waiting = inspect(scene, "waiting").await;
        assert_eq!(waiting["State"]["Running"], true);
        kill_plugin(scene).await;
        scene.start_shipper().await;
        let records = wait_for_the_end(scene).await;
        begins_with(&records["on-disk"], 0);
        begins_with(&records["not-kept"], 0);
        let (loss, rest) = records["in-memory"].split_first().unwrap();
        assert_eq!(loss.field("__dropped_reason__"), Some("memory_lost"));
        let first = number_of(&rest[0]);
        assert!(first > 0, "a journal in memory outlived the driver");
        begins_with(rest, first);
        the_oldest_lines_were_dropped(&records["dropping"]);
        let expected: Vec<_> = (0..FLOOD_LINES).map(|n| FLOOD_LINE.line(n)).collect();
        assert_eq!(contents(&records["waiting"]), expected);
        assert_eq!(scene.docker(["wait", "waiting"]).await, "0");
    });
}

/// Waits until a container has written some lines, and so the driver has them.
async fn wait_for_output(scene: &Scene, name: &str) {
    let has_written = async || scene.docker(["logs", name]).await.lines().count() >= 10;
    wait_until(name, DEADLINE, has_written).await.unwrap();
}

/// Returns how many bytes a container's journal has on disk, if it is there.
async fn journal_bytes(scene: &Scene, name: &str) -> Option<u64> {
    let container = inspect(scene, name).await;
    let container_id = container["Id"].as_str().unwrap();
    let plugin = ["plugin", "inspect", "-f", "{{.Id}}", PLUGIN];
    let plugin = scene.docker(plugin).await;
    let plugins = scene.engine.folder().join("data/plugins");
    let state = plugins.join(plugin).join("propagated-mount/state");
    let is_of_container = |folder: &fs::DirEntry| {
        let meta = fs::read_to_string(folder.path().join("meta.json"));
        meta.is_ok_and(|meta| meta.contains(container_id))
    };
    let mut folders = fs::read_dir(state).unwrap().flatten();
    let folder = folders
        .find(is_of_container)
        .expect("the container is on record");
    let is_segment = |file: &fs::DirEntry| {
        let name = file.file_name();
        name.to_string_lossy().bytes().all(|b| b.is_ascii_digit())
    };
    let segments = fs::read_dir(folder.path()).unwrap().flatten();
    let bytes = segments
        .filter(is_segment)
        .map(|segment| segment.metadata().unwrap().len());
    let bytes: Vec<u64> = bytes.collect();
    (!bytes.is_empty()).then(|| bytes.iter().sum())
}

/// Waits until all of the floods has arrived, and something of each other container.
async fn wait_for_the_end(scene: &Scene) -> BTreeMap<String, Vec<Record>> {
    let last = FLOOD_LINE.line(FLOOD_LINES - 1);
    let mut records = BTreeMap::new();
    let are_there = async || {
        records = by_case(scene.records().await);
        let has = |name: &str, is_it: &dyn Fn(&Record) -> bool| {
            let records: Option<&Vec<Record>> = records.get(name);
            records.is_some_and(|records| records.iter().any(is_it))
        };
        ["dropping", "waiting"]
            .iter()
            .all(|name| has(name, &|record| record.content() == last))
            && ["in-memory", "on-disk", "not-kept"]
                .iter()
                .all(|name| has(name, &|record| record.field("__dropped_reason__").is_none()))
    };
    let waited = wait_until("the lines arrive", DEADLINE, are_there).await;
    let counts = records.iter().map(|(name, of)| (name, of.len()));
    waited.unwrap_or_else(|error| panic!("{error:#}: {:?}", counts.collect::<Vec<_>>()));
    records
}

/// Returns the number of a line.
fn number_of(record: &Record) -> u64 {
    let number = record.content().split(' ').next();
    number.unwrap().parse().unwrap()
}

/// Asserts that a trickle has arrived from this line on, without a gap.
fn begins_with(records: &[Record], first: u64) {
    let expected = (first..).map(|number| TRICKLE_LINE.line(number));
    let expected: Vec<_> = expected.take(records.len()).collect();
    assert_eq!(contents(records), expected);
}

/// Asserts that the newest lines have arrived, and a record for those that have not.
fn the_oldest_lines_were_dropped(records: &[Record]) {
    let (holes, lines): (Vec<_>, Vec<_>) = records
        .iter()
        .cloned()
        .partition(|record| record.field("__dropped_entries__").is_some());
    let dropped = holes.iter().map(|hole| {
        assert_eq!(hole.field("__dropped_reason__"), Some("journal_full"));
        let entries = hole.field("__dropped_entries__");
        entries.unwrap().parse::<u64>().unwrap()
    });
    let dropped: u64 = dropped.sum();
    assert!(dropped > 0 && !lines.is_empty(), "{dropped} dropped");
    let expected: Vec<_> = (dropped..FLOOD_LINES).map(|n| FLOOD_LINE.line(n)).collect();
    assert_eq!(contents(&lines), expected);
}
