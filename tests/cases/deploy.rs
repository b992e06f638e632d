//! What `deploy/` holds is good: manifests by the schemas of Kubernetes, strictly, and settings by the
//! shipper itself. `tests/e2e/swarm.rs` deploys the stack of Swarm.

use crate::fleet::{Cloud, shipper};
use crate::python::python;
use serde_json::Value;
use shipper::config::Config;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use world::processes::binary;

fn root() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap()
}

/// Returns the files of a folder of the tree with this extension.
fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join(folder)).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let files: Vec<_> = paths
        .filter(|path| path.extension().is_some_and(|own| own == extension))
        .collect();
    assert!(!files.is_empty(), "{folder} has no .{extension}");
    files
}

fn validate(manifests: &[PathBuf]) -> Output {
    let script = root().join("tests/kubernetes/validate.py");
    let mut command = Command::new(python().unwrap());
    command.arg(script).args(manifests).output().unwrap()
}

/// Loads settings with a topic in the place that the examples leave to their reader.
fn load(settings: &Path) {
    // What docker-compose.yml passes on.
    let names = ["TENCENTCLOUD_SECRET_ID", "TENCENTCLOUD_SECRET_KEY"];
    let environment = names.map(|name| (name.to_owned(), "EXAMPLE".to_owned()));
    let text = std::fs::read_to_string(settings).unwrap();
    let filled = text.replace("replace-with-your-topic-id", "a-topic");
    let read =
        |text: &str| Config::from_table(text.parse().unwrap(), environment.clone().into_iter());
    if let Err(faults) = read(&filled) {
        panic!("{}: {faults}", settings.display());
    }
    if filled != text {
        let faults = read(&text).unwrap_err();
        assert!(
            matches!(&faults.0[..], [one] if one.contains("topic_id")),
            "{faults}"
        );
    }
}

#[test]
fn settings_are_good() {
    files("deploy", "toml").iter().for_each(|path| load(path));
}

#[test]
fn manifests_keep_to_the_schema_and_their_settings_are_good() {
    let mut manifests = files("deploy/kubernetes", "yaml");
    manifests.extend(files("deploy/kubernetes/examples", "yaml"));
    let output = validate(&manifests);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let documents: Vec<Value> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let map = documents
        .iter()
        .find(|one| one["kind"] == "ConfigMap")
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let settings = dir.path().join("shipper.toml");
    std::fs::write(&settings, map["data"]["shipper.toml"].as_str().unwrap()).unwrap();
    load(&settings);
}

#[test]
fn a_misspelt_field_of_a_manifest_is_found() {
    let good = std::fs::read_to_string(root().join("deploy/kubernetes/shipper.yaml")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let misspellings = [
        ("readinessProbe:", "readinesProbe:", "readinesProbe"),
        ("maxSurge:", "maxSurg:", "maxSurg"),
        ("podSelector:", "podSelectors:", "podSelectors"),
        ("replicas: 2", "replicas: two", "two"),
    ];
    for (number, (from, to, named)) in misspellings.into_iter().enumerate() {
        assert!(good.contains(from), "{from}");
        let path = dir.path().join(format!("{number}.yaml"));
        std::fs::write(&path, good.replace(from, to)).unwrap();
        let output = validate(&[path]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains(named),
            "{to}: {said}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_health_check_tells_whether_the_shipper_takes_entries() {
    let cloud = Cloud::start().await;
    let mut shipper = shipper(cloud.shipper("", "")).await;
    let config = shipper.dir().join("shipper.toml");
    let check = || {
        let mut command = Command::new(binary("cls-shipper").unwrap());
        command.arg("--config").arg(&config).arg("healthcheck");
        command.output().unwrap()
    };
    let output = check();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, b"ready\n");
    shipper.kill().unwrap();
    let output = check();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said.contains("ask the running shipper at http://"),
        "{said}"
    );
}
