//! A configuration file that changes while the shipper runs: on SIGHUP and by itself, with faults
//! and with settings that only a new process can take over.

use crate::fleet::{Cloud, Writing, driver, shipper, wait};
use rustix::process::Signal;
use std::fs;
use world::dockerd::Pipe;
use world::nodes::{Driver, Shipper};
use world::processes::TOPIC_ID;
use world::standin::config::Key;

/// What the shipper says once it has taken a configuration over.
const RELOADED: &str = "configuration reloaded";

/// Waits until the shipper has said something so and so many times.
async fn said(shipper: &Shipper, what: &str, times: usize) {
    let is_said = async || shipper.log().matches(what).count() >= times;
    wait(what, &shipper.log(), is_said).await;
}

/// Writes some lines, which the stand-in must get signed with `key`. Returns the pipes, which keep
/// the FIFOs open.
async fn ship(cloud: &Cloud, driver: &mut Driver, writing: &mut Writing, key: &Key) -> Vec<Pipe> {
    let before = cloud.arrivals().len();
    let name = format!("s{}", writing.scripts.len());
    writing.start(driver, &name, 10, 1_000).await;
    let pipes = writing.finish().await;
    let report = cloud.settle(&writing.scripts).await;
    assert!(report.is_exact(), "{report}");
    for arrival in cloud.arrivals().split_off(before) {
        assert_eq!(arrival.secret_id, key.secret_id);
    }
    pipes
}

/// Adds rules to a shipper's configuration, which takes them over.
async fn add_rules(shipper: &Shipper, rules: &str) {
    let path = shipper.dir().join("shipper.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{text}{rules}")).unwrap();
    let hang_up = shipper.process.as_ref().unwrap().signal(Signal::HUP);
    hang_up.unwrap();
    said(shipper, RELOADED, 1).await;
}

/// A container that writes gets an option from a rule: each of its lines arrives, the first ones as before
/// and the last ones by the rule.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_changes_what_becomes_of_the_lines_of_a_running_container() {
    let cloud = Cloud::start().await;
    let shipper = shipper(cloud.shipper("", "")).await;
    let endpoint = format!("unix://{}", shipper.socket().display());
    let mut driver = driver("host-1", &endpoint, &[]).await;
    let mut writing = Writing::new();
    writing.start(&mut driver, "ruled", 3_000, 1_000).await;
    writing.start(&mut driver, "other", 3_000, 1_000).await;
    cloud.arrival(|_| true).await;
    add_rules(
        &shipper,
        "[[rules]]\nname = \"r\"\nmatch = { container = \"*ruled\" }\nset = { record-id = true }\n",
    )
    .await;
    let pipes = writing.finish().await;
    let report = cloud.settle(&writing.scripts).await;
    assert!(report.is_at_least_once(), "{report}");
    let mut has_id = [Vec::new(), Vec::new()];
    for upload in cloud.standin.uploads(TOPIC_ID) {
        upload.visit(|record| {
            let is_other = record.field("content").unwrap().contains("other");
            has_id[usize::from(is_other)].push(record.field("__record_id__").is_some());
        });
    }
    let [ruled, other] = has_id;
    assert_eq!((ruled.first(), ruled.last()), (Some(&false), Some(&true)));
    assert!(!other.contains(&true), "another container's lines changed");
    drop(pipes);
}

/// The usual reason for a rule: lines wait for a topic that does not exist.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_leads_lines_away_from_a_topic_that_holds_them() {
    let cloud = Cloud::start().await;
    let shipper = shipper(cloud.shipper("", "")).await;
    let endpoint = format!("unix://{}", shipper.socket().display());
    let mut driver = driver("host-1", &endpoint, &[]).await;
    let mut writing = Writing::new();
    let lost = [("topic_id", "no-such-topic")];
    writing
        .start_with(&mut driver, "lost", 1_000, 1_000, &lost)
        .await;
    let pipes = writing.finish().await;
    said(&shipper, "TopicNotExist", 1).await;
    let rule = format!(
        "[[rules]]\nname = \"r\"\nmatch = {{ host = \"host-1\" }}\nset = {{ topic_id = \"{TOPIC_ID}\" }}\n\
         override = true\n"
    );
    add_rules(&shipper, &rule).await;
    let report = cloud.settle(&writing.scripts).await;
    assert!(report.is_exact(), "{report}");
    drop(pipes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_file_is_taken_over_and_a_faulty_one_is_not() {
    let keys = [
        Key::permanent("AKIDEXAMPLE1X", "SKEXAMPLE1X"),
        Key::permanent("AKIDEXAMPLE2X", "SKEXAMPLE2X"),
    ];
    let inline = |key: &Key| {
        let (id, secret) = (&key.secret_id, &key.secret_key);
        format!("source = \"inline\"\nsecret_id = \"{id}\"\nsecret_key = \"{secret}\"")
    };
    let cloud = Cloud::start().await;
    cloud.standin.replace_keys(keys.to_vec());
    let mut settings = cloud.shipper("", "");
    settings.credentials = inline(&keys[0]);
    let mut shipper = shipper(settings).await;
    let endpoint = format!("unix://{}", shipper.socket().display());
    let mut driver = driver("host-1", &endpoint, &[]).await;
    let mut writing = Writing::new();
    let mut pipes = ship(&cloud, &mut driver, &mut writing, &keys[0]).await;

    let path = shipper.dir().join("shipper.toml");
    let first = fs::read_to_string(&path).unwrap();
    let hang_up = |shipper: &Shipper| shipper.process.as_ref().unwrap().signal(Signal::HUP);
    fs::write(
        &path,
        first.replace("linger_ms = 100", "linger_ms = \"soon\""),
    )
    .unwrap();
    hang_up(&shipper).unwrap();
    said(
        &shipper,
        "upload.linger_ms = \"soon\": it must be a whole number",
        1,
    )
    .await;
    said(&shipper, "the one before stays in use", 1).await;
    pipes.extend(ship(&cloud, &mut driver, &mut writing, &keys[0]).await);

    let second = first.replace(&inline(&keys[0]), &inline(&keys[1]));
    fs::write(&path, &second).unwrap();
    hang_up(&shipper).unwrap();
    said(&shipper, RELOADED, 1).await;
    pipes.extend(ship(&cloud, &mut driver, &mut writing, &keys[1]).await);

    // Nobody says that it has changed this time.
    let reloads = shipper.log().matches(RELOADED).count();
    fs::write(&path, first.replace("linger_ms = 100", "linger_ms = 50")).unwrap();
    said(&shipper, RELOADED, reloads + 1).await;
    said(&shipper, "need a restart", 1).await;
    assert!(shipper.log().contains("[upload]"), "{}", shipper.log());
    pipes.extend(ship(&cloud, &mut driver, &mut writing, &keys[0]).await);

    assert!(!shipper.log().contains("SKEXAMPLE"), "{}", shipper.log());
    assert!(shipper.process.as_mut().unwrap().is_running());
    drop(pipes);
}
