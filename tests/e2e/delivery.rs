//! Lines of containers, however these were started, become records: all, once, in order, with
//! Docker's own time.

use crate::engine::succeed;
use crate::scene::{HOST_NAME, PLUGIN, Record, Scene, contents, full_scene};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use world::chatter::{Shape, demo, json_fields};
use world::processes::TOPIC_ID;

const PLAIN: Shape = Shape::Plain { bytes: 64 };

fn lines(range: std::ops::Range<u64>) -> Vec<String> {
    range.map(|number| PLAIN.line(number)).collect()
}

#[test]
fn every_kind_of_line_is_one_record() {
    full_scene(async |scene| {
        demo_lines_arrive(scene).await;
        scene.forget().await;
        json_members_become_fields(scene).await;
        scene.forget().await;
        times_are_dockers(scene).await;
        scene.forget().await;
        odd_ends_arrive(scene).await;
    });
}

/// Plain, JSON, stderr, UTF-8, and 100 KiB that the engine cuts into pieces.
async fn demo_lines_arrive(scene: &Scene) {
    scene.run("demo", &[], &["--demo"]).await;
    let records = scene.wait_for_records(demo().len()).await;
    assert_eq!(records.len(), demo().len());
    for (is_stderr, line) in demo() {
        let is_json = line.starts_with('{');
        let is_it = |record: &&Record| match is_json {
            true => record.field("user") == Some("1234567"),
            false => record.content() == line,
        };
        let record = records.iter().find(is_it);
        let record = record.unwrap_or_else(|| panic!("{line:.80} has not arrived"));
        let stream = if is_stderr { "stderr" } else { "stdout" };
        assert_eq!(record.field("__stream__"), Some(stream));
        assert_eq!(record.field("__hostname__"), Some(HOST_NAME));
    }
}

async fn json_members_become_fields(scene: &Scene) {
    scene.run("json", &[], &["--json", "--lines", "100"]).await;
    let records = scene.wait_for_records(100).await;
    assert_eq!(records.len(), 100);
    for (number, record) in (0..).zip(&records) {
        for (name, value) in json_fields(number) {
            assert_eq!(
                record.field(name),
                Some(value.as_str()),
                "{name} of {number}"
            );
        }
        assert_eq!(record.field("content"), None);
    }
}

/// `docker logs -t` prints the time that the engine gave each line.
async fn times_are_dockers(scene: &Scene) {
    scene
        .run("times", &[], &["--lines", "50", "--rate", "200"])
        .await;
    let records = scene.wait_for_records(50).await;
    let logs = scene.docker(["logs", "-t", "times"]).await;
    let times: BTreeMap<&str, &str> = logs
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(time, line)| (line, time))
        .collect();
    assert_eq!(times.len(), 50);
    for record in &records {
        let time = humantime::parse_rfc3339(times[record.content()]).unwrap();
        let since_epoch = time.duration_since(std::time::UNIX_EPOCH).unwrap();
        assert_eq!(
            i128::from(record.time_ms()),
            since_epoch.as_millis().try_into().unwrap()
        );
    }
    let is_rising = records
        .windows(2)
        .all(|pair| pair[0].time_ms() <= pair[1].time_ms());
    assert!(is_rising, "{records:?}");
}

/// The last line has no line end; a container writes nothing at all.
async fn odd_ends_arrive(scene: &Scene) {
    scene.run("silent", &[], &["--lines", "0"]).await;
    scene
        .run("cut", &[], &["--lines", "3", "--no-last-newline"])
        .await;
    let records = scene.wait_for_records(3).await;
    assert_eq!(contents(&records), lines(0..3));
}

#[test]
fn many_lines_of_many_containers_arrive_once_and_in_order() {
    const CONTAINERS: usize = 4;
    const LINES: u64 = 50_000;
    full_scene(async |scene| {
        for index in 0..CONTAINERS {
            let name = format!("c{index}");
            let options = ["-d", "--log-opt", "tag={{.Name}}"];
            scene
                .run(&name, &options, &["--lines", &LINES.to_string()])
                .await;
        }
        let count = CONTAINERS * usize::try_from(LINES).unwrap();
        let records = scene.wait_for_records(count).await;
        assert_eq!(records.len(), count);
        let expected = lines(0..LINES);
        for index in 0..CONTAINERS {
            let tag = format!("c{index}");
            let own = records
                .iter()
                .filter(|record| record.tag("tag") == Some(&tag));
            assert!(
                own.map(Record::content).eq(expected.iter()),
                "{tag} is not as written"
            );
        }
        let violations = scene.standin.violations();
        assert!(violations.is_empty(), "{violations:?}");
    });
}

#[test]
fn containers_of_compose_log_through_the_plugin() {
    full_scene(async |scene| {
        let file = scene.engine.folder().join("docker-compose.yml");
        let compose = json!({
            "version": "2.4",
            "services": { "web": {
                "image": "chatter",
                "command": ["--lines", "20"],
                "network_mode": "none",
                "labels": { "team": "blue" },
                "logging": { "driver": PLUGIN, "options": {
                    "topic_id": TOPIC_ID,
                    "labels": "team,com.docker.compose.service",
                }},
            }},
        });
        fs::write(&file, compose.to_string()).unwrap();
        let mut command = scene.engine.compose().await;
        command.arg("-f").arg(file).args(["-p", "e2e", "up", "-d"]);
        succeed(command).await.unwrap();
        let records = scene.wait_for_records(20).await;
        assert_eq!(contents(&records), lines(0..20));
        for record in &records {
            assert_eq!(record.tag("team"), Some("blue"));
            assert_eq!(record.tag("com.docker.compose.service"), Some("web"));
        }
    });
}

#[test]
fn the_engines_default_driver_may_be_the_plugin() {
    full_scene(async |scene| {
        let daemon = json!({
            "log-driver": PLUGIN,
            "log-opts": { "topic_id": TOPIC_ID, "tag": "default", "record-id": "true" },
        });
        scene.engine.stop_dockerd().await.unwrap();
        scene.engine.start_dockerd(&daemon).await.unwrap();
        let run = ["run", "--network=none", "chatter", "--lines", "5"];
        scene.docker(run).await;
        let records = scene.wait_for_records(5).await;
        assert_eq!(contents(&records), lines(0..5));
        assert!(
            records
                .iter()
                .all(|record| record.tag("tag") == Some("default"))
        );
        // An option of the container's own wins; a container may use another driver.
        scene.forget().await;
        let own = [
            "run",
            "--network=none",
            "--log-opt",
            "tag=own",
            "chatter",
            "--lines",
            "1",
        ];
        scene.docker(own).await;
        let other = [
            "run",
            "--network=none",
            "--log-driver=json-file",
            "chatter",
            "--lines",
            "1",
        ];
        scene.docker(other).await;
        let records = scene.wait_for_records(1).await;
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].tag("tag"), Some("own"));
    });
}
