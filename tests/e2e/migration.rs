//! Who comes from the Go driver for CLS changes nothing but the plugin: what its README tells users
//! to write works as it stands, for a container, in a Compose file, and in `daemon.json`. Only the
//! endpoint is the stand-in's here, at which containers may have their keys used. The shipper has no
//! defaults and no credentials of its own: all is in the options.

use crate::engine::succeed;
use crate::scene::{PLUGIN, Record, Scene, contents, scene};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use world::chatter::Shape;
use world::processes::{SECRET_ID, SECRET_KEY, TOPIC_ID};

const PLAIN: Shape = Shape::Plain { bytes: 64 };

#[test]
fn specifications_for_the_go_driver_work_unchanged() {
    scene(&[], async |scene| {
        let own_keys = "[own_keys]\nendpoints = [\"*\"]\n";
        scene.start_shipper_with(own_keys).await;
        scene.install_plugin(&[]).await;
        containers_log(scene).await;
        scene.forget().await;
        all_options_are_known(scene).await;
        scene.forget().await;
        a_compose_file_logs(scene).await;
        scene.forget().await;
        daemon_json_logs(scene).await;
    });
}

/// The four options that the Go driver wants.
fn required(scene: &Scene) -> [(&'static str, String); 4] {
    [
        ("endpoint", scene.standin.endpoint()),
        ("secret_id", SECRET_ID.to_owned()),
        ("secret_key", SECRET_KEY.to_owned()),
        ("topic_id", TOPIC_ID.to_owned()),
    ]
}

/// Runs a container with the required options and these; `docker` goes to `docker run` as it is.
async fn run(scene: &Scene, name: &str, docker: &[&str], log_opts: &[&str], chatter: &[&str]) {
    let required = required(scene).map(|(name, value)| format!("{name}={value}"));
    let mut args = docker.to_vec();
    for option in required.iter().map(String::as_str).chain(log_opts.to_vec()) {
        args.extend(["--log-opt", option]);
    }
    scene.run(name, &args, chatter).await;
}

async fn containers_log(scene: &Scene) {
    run(scene, "quick-start", &[], &[], &["--lines", "3"]).await;
    let template = ["template={container_name}: {log}"];
    run(scene, "templated", &[], &template, &["--say", "out:line"]).await;
    let records = scene.wait_for_records(4).await;
    let mut found = contents(&records);
    found.sort_unstable();
    assert_eq!(found[..3], lines(3));
    assert_eq!(found[3..], ["templated: line"]);
    assert!(records.iter().all(is_signed_by_the_container));
}

/// All other options of the Go driver, and those of Docker that it takes.
async fn all_options_are_known(scene: &Scene) {
    let options = [
        "template={log}|{timestamp}|{container_id}|{container_full_id}|{container_name}|\
         {image_id}|{image_full_id}|{image_name}|{daemon_name}|{team}",
        "filter-regex=ERROR",
        "retries=10",
        "timeout=10s",
        "no-file=false",
        "keep-file=true",
        "mode=blocking",
        r#"instance_info={"id":"ins-1","zone":"a"}"#,
        "append_container_details_keys=container_id,container_name,container_image_id,\
         container_image_name",
        "max-file=3",
        "max-size=10m",
        "compress=true",
        "labels=team",
        "labels-regex=^org",
        "env=STAGE",
        "env-regex=^APP",
        "tag={{.Name}}",
    ];
    let says = ["--say", "out:ERROR a", "out:b"];
    run(scene, "all", &["--label=team=blue"], &options, &says).await;
    let records = scene.wait_for_records(1).await;
    assert_eq!(records.len(), 1, "{records:?}");
    let record = &records[0];
    let parts: Vec<_> = record.content().split('|').collect();
    assert_eq!(parts.len(), 10);
    assert_eq!((parts[0], parts[4]), ("ERROR a", "all"));
    assert_eq!((parts[7], parts[9]), ("chatter", "blue"));
    assert_eq!(record.field("__instance__.id"), Some("ins-1"));
    let detail = |name| record.field(&format!("__container_details__.{name}"));
    assert_eq!(detail("container_id"), Some(parts[3]));
    assert_eq!(detail("container_name"), Some("/all"));
    assert_eq!(detail("container_image_id"), Some(parts[6]));
    assert_eq!(detail("container_image_name"), Some("chatter"));

    let options = ["no-file=true", "mode=non-blocking", "max-buffer-size=1m"];
    run(scene, "non-blocking", &[], &options, &["--lines", "1"]).await;
    assert_eq!(scene.wait_for_records(2).await.len(), 2);
}

async fn a_compose_file_logs(scene: &Scene) {
    let [endpoint, secret_id, secret_key, topic_id] = required(scene).map(|(_, value)| value);
    // The image and what it does are the test's, and that it needs no network.
    let compose = format!(
        r#"version: '3.8'
services:
  app:
    image: chatter
    command: ["--lines", "3"]
    network_mode: none
    logging:
      driver: {PLUGIN}
      options:
        endpoint: "{endpoint}"
        secret_id: "{secret_id}"
        secret_key: "{secret_key}"
        topic_id: "{topic_id}"
        template: "{{container_name}}: {{log}}"
"#
    );
    let file = scene.engine.folder().join("go-driver-compose.yml");
    fs::write(&file, compose).unwrap();
    let mut up = scene.engine.compose().await;
    up.arg("-f").arg(file).args(["-p", "go", "up", "-d"]);
    succeed(up).await.unwrap();
    let records = scene.wait_for_records(3).await;
    let name = scene.docker(["ps", "-a", "--format", "{{.Names}}"]).await;
    let expected: Vec<_> = lines(3)
        .iter()
        .map(|line| format!("{name}: {line}"))
        .collect();
    assert_eq!(contents(&records), expected);
    assert!(records.iter().all(is_signed_by_the_container));
}

async fn daemon_json_logs(scene: &mut Scene) {
    let log_opts: BTreeMap<_, _> = required(scene).into_iter().collect();
    let daemon = json!({ "log-driver": PLUGIN, "log-opts": log_opts });
    scene.engine.stop_dockerd().await.unwrap();
    scene.engine.start_dockerd(&daemon).await.unwrap();
    let run = ["run", "--network=none", "chatter", "--lines", "3"];
    scene.docker(run).await;
    let records = scene.wait_for_records(3).await;
    assert_eq!(contents(&records), lines(3));
    assert!(records.iter().all(is_signed_by_the_container));
}

fn lines(count: u64) -> Vec<String> {
    (0..count).map(|number| PLAIN.line(number)).collect()
}

fn is_signed_by_the_container(record: &Record) -> bool {
    record.secret_id.as_deref() == Some(SECRET_ID) && record.topic_id == TOPIC_ID
}
