//! The tier of shippers as a service of Docker Swarm: `deploy/stack.yml` as it stands, on a swarm of
//! one node, updated one shipper after the other under load.
//!
//! One node has room for one shipper: a second file gives each task ports of its own, by its slot,
//! and lets the update hurry.

use crate::certificates::Certificates;
use crate::crashes::assert_at_least_once;
use crate::scene::{PLUGIN, Scene, root, scene};
use serde_json::json;
use std::fs;
use std::time::Duration;
use world::processes::{SECRET_ID, SECRET_KEY, TOPIC_ID, wait_until};

const LINES: u64 = 24_000;
const LINES_PER_S: u64 = 1_000;
/// A service is updated at a pace of its own.
const UPDATE_DEADLINE: Duration = Duration::from_secs(90);

/// What differs from `stack.yml` on a swarm of one node. JSON is YAML.
fn one_node(scene: &Scene) -> String {
    let here = json!({
        "version": "3.8",
        "services": { "shipper": {
            "environment": {
                "CLS_SHIPPER__LISTEN__TCP": "127.0.0.1:1946{{.Task.Slot}}",
                "CLS_SHIPPER__ADMIN__LISTEN": "127.0.0.1:1947{{.Task.Slot}}",
                "CLS_SHIPPER__DEFAULTS__ENDPOINT": scene.standin.endpoint(),
                "CLS_SHIPPER__DEFAULTS__TOPIC_ID": TOPIC_ID,
            },
            // Without a period of start: in one, newer engines look every 5 s only.
            "healthcheck": { "interval": "1s", "start_period": "0s" },
            "deploy": {
                "placement": { "max_replicas_per_node": 2 },
                "update_config": { "delay": "1s", "monitor": "2s" },
            },
        }},
    });
    here.to_string()
}

/// Makes the secrets of `stack.yml`.
async fn create_secrets(scene: &Scene, certificates: &Certificates) {
    let key = certificates.path("key.json");
    let content = json!({ "secret_id": SECRET_ID, "secret_key": SECRET_KEY });
    fs::write(&key, content.to_string()).unwrap();
    let files = [
        ("cls-key", "key.json"),
        ("cls-shipper-cert", "localhost.pem"),
        ("cls-shipper-key", "localhost.key"),
        ("cls-hosts-ca", "ca.pem"),
    ];
    for (name, file) in files {
        let path = certificates.path(file);
        scene
            .docker(["secret", "create", name, path.to_str().unwrap()])
            .await;
    }
}

/// Returns the ids of the containers whose health is good.
async fn healthy(scene: &Scene) -> Vec<String> {
    let filters = [
        "--filter",
        "health=healthy",
        "--filter",
        "label=com.docker.stack.namespace=cls",
    ];
    let ids = scene.docker([&["ps", "-q"][..], &filters].concat()).await;
    let mut ids: Vec<_> = ids.lines().map(str::to_owned).collect();
    ids.sort();
    ids
}

/// Makes a swarm of one node and deploys the stack; waits until both shippers are healthy.
async fn deploy(scene: &Scene, certificates: &Certificates) {
    scene
        .import("cls-shipper", "cls-shipper:latest")
        .await
        .unwrap();
    let address = ["--advertise-addr=127.0.0.1", "--listen-addr=127.0.0.1"];
    scene
        .docker([&["swarm", "init"][..], &address].concat())
        .await;
    create_secrets(scene, certificates).await;
    let override_file = certificates.path("one-node.json");
    fs::write(&override_file, one_node(scene)).unwrap();
    let stack = root().join("deploy/stack.yml");
    let files = [
        "-c",
        stack.to_str().unwrap(),
        "-c",
        override_file.to_str().unwrap(),
    ];
    scene
        .docker([&["stack", "deploy"][..], &files, &["cls"]].concat())
        .await;
    let up = async || healthy(scene).await.len() == 2;
    if let Err(error) = wait_until("two healthy shippers", UPDATE_DEADLINE, up).await {
        let tasks = scene
            .docker(["service", "ps", "--no-trunc", "cls_shipper"])
            .await;
        let logs = scene
            .engine
            .docker_output(["service", "logs", "cls_shipper"])
            .await;
        panic!("{error:#}\n{tasks}\n{logs:?}");
    }
}

#[test]
fn a_service_is_updated_under_load_without_loss_or_repeat() {
    scene(&[], update_under_load);
}

async fn update_under_load(scene: &mut Scene) {
    let certificates = Certificates::make(&["localhost", "e2e-host"]).await;
    deploy(scene, &certificates).await;
    let source = format!("tls.source={}", certificates.folder().display());
    scene
        .install_plugin(&[
            &source,
            "SHIPPER=https://localhost:19461,https://localhost:19462",
            "SHIPPER_CA_FILE=/host/tls/ca.pem",
            "SHIPPER_CERT_FILE=/host/tls/e2e-host.pem",
            "SHIPPER_KEY_FILE=/host/tls/e2e-host.key",
        ])
        .await;
    let (lines, rate) = (LINES.to_string(), LINES_PER_S.to_string());
    scene
        .run("box", &["-d"], &["--lines", &lines, "--rate", &rate])
        .await;
    scene.wait_for_records(1_000).await;
    let before = healthy(scene).await;
    let began = tokio::time::Instant::now();
    let update = ["service", "update", "--quiet", "--force", "cls_shipper"];
    scene.docker(update).await;
    let took = began.elapsed();
    let arrived = scene.standin.stats().records;
    let after = healthy(scene).await;
    let records = scene
        .wait_for_records(usize::try_from(LINES).unwrap())
        .await;
    eprintln!(
        "both shippers of a service replaced in {took:?} while a container wrote {LINES_PER_S} \
         lines/s: {} records of {LINES} lines, {arrived} of them when the update was done",
        records.len()
    );
    assert!(arrived < LINES, "the update took longer than the writing");
    assert!(
        after.len() == 2 && after.iter().all(|id| !before.contains(id)),
        "{before:?} {after:?}"
    );
    assert_at_least_once(&records, LINES);
    assert_eq!(records.len() as u64, LINES, "duplicates");
    scene.docker(["rm", "-f", "box"]).await;
    scene.docker(["plugin", "disable", "-f", PLUGIN]).await;
}
