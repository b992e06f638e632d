//! What is installed: the images of both Dockerfiles, unmodified, the plugin made of one and the
//! Compose file with the other; and a plugin that is replaced keeps what it has not shipped yet.

use crate::engine::{run, succeed};
use crate::scene::{PLUGIN, Record, Scene, contents, free_address, full_scene, root, scene};
use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::time::Instant;
use world::chatter::Shape;
use world::processes::{TOPIC_ID, binary, wait_until};

const PLAIN: Shape = Shape::Plain { bytes: 64 };
/// Time within which a shipper must listen.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

#[test]
fn a_replaced_plugin_keeps_settings_and_what_it_has_not_shipped() {
    scene(&[], async |scene| {
        scene.install_plugin(&["LOG_LEVEL=debug"]).await;
        scene.run("box", &[], &["--lines", "100"]).await;
        scene.docker(["rm", "box"]).await;
        scene.install_plugin(&[]).await;
        let settings = ["plugin", "inspect", "-f", "{{.Settings.Env}}", PLUGIN];
        let settings = scene.docker(settings).await;
        assert!(settings.contains("LOG_LEVEL=debug"), "{settings}");
        scene.start_shipper().await;
        let records = scene.wait_for_records(100).await;
        let expected: Vec<_> = (0..100).map(|n| PLAIN.line(n)).collect();
        assert_eq!(contents(&records), expected);
    });
}

/// A replacement that fails half-way leaves no plugin, and the old one's state beside its place.
#[test]
fn a_replacement_that_failed_half_way_is_finished_by_the_next_installation() {
    scene(&[], async |scene| {
        scene.install_plugin(&[]).await;
        scene.run("box", &[], &["--lines", "100"]).await;
        scene.docker(["rm", "box"]).await;
        let id = ["plugin", "inspect", "-f", "{{.Id}}", PLUGIN];
        let id = scene.docker(id).await;
        let data = scene.engine.folder().join("data");
        let state = data.join("plugins").join(id).join("propagated-mount/state");
        let saved = data.join(format!("{PLUGIN}-state"));
        scene.docker(["plugin", "disable", PLUGIN]).await;
        fs::rename(&state, &saved).unwrap();
        // A plugin that has state of its own must not push the saved one away.
        let mut install = scene.engine.command(root().join("scripts/plugin.sh"));
        let binaries = binary("cls-driver").unwrap();
        install
            .arg("install")
            .env("BINARIES", binaries.parent().unwrap());
        let refusal = succeed(install).await.unwrap_err().to_string();
        assert!(refusal.contains(saved.to_str().unwrap()), "{refusal}");
        scene.docker(["plugin", "rm", PLUGIN]).await;
        scene.install_plugin(&[]).await;
        assert!(!saved.exists(), "it was given back");
        scene.start_shipper().await;
        let records = scene.wait_for_records(100).await;
        let expected: Vec<_> = (0..100).map(|n| PLAIN.line(n)).collect();
        assert_eq!(contents(&records), expected);
    });
}

#[test]
fn a_plugin_in_use_is_upgraded_under_its_containers_and_not_removed() {
    const LINES: u64 = 5_000;
    /// Of each of the two containers that leave; they are like the first ones of the one that stays.
    const LEAVING_LINES: u64 = 10;
    /// The engine finds the plugin gone, and repeats its call after 1, 2 and 4 s; after 8 s more it
    /// would give up.
    const STOP_MAX: Duration = Duration::from_secs(1 + 2 + 4 + 1);
    full_scene(async |scene| {
        let chatter = ["--lines", &LINES.to_string(), "--rate", "500", "--hold"];
        scene.run("busy", &["-d"], &chatter).await;
        for _ in 0..2 {
            scene.wait_for_records(100).await;
            let before = scene.engine.processes("/cls-driver");
            let leaving = ["--lines", &LEAVING_LINES.to_string(), "--hold"];
            scene.run("leaves", &["-d"], &leaving).await;
            let stop = async {
                let is_off = async || scene.engine.processes("/cls-driver").is_empty();
                let waited = wait_until("the plugin is off", DEADLINE, is_off).await;
                waited.unwrap();
                let began = Instant::now();
                scene.docker(["stop", "leaves"]).await;
                began.elapsed()
            };
            let upgrade = scene.install_plugin(&["LOG_LEVEL=debug"]);
            let (stop, ()) = tokio::join!(stop, upgrade);
            eprintln!("a stop while the plugin was off took {stop:?}");
            assert!(stop < STOP_MAX, "a stop meanwhile took {stop:?}");
            scene.docker(["rm", "leaves"]).await;
            assert_ne!(scene.engine.processes("/cls-driver"), before);
        }
        let mut uninstall = scene.engine.command(root().join("scripts/plugin.sh"));
        uninstall.arg("uninstall");
        let refusal = succeed(uninstall).await.unwrap_err().to_string();
        assert!(refusal.contains("busy"), "{refusal}");
        let records = scene
            .wait_for_records(usize::try_from(LINES + 2 * LEAVING_LINES).unwrap())
            .await;
        let arrived: BTreeSet<_> = records.iter().map(Record::content).collect();
        let expected: Vec<_> = (0..LINES).map(|number| PLAIN.line(number)).collect();
        assert!(
            arrived.iter().eq(expected.iter()),
            "{} of {LINES} lines",
            arrived.len()
        );
        assert_eq!(scene.docker(["stop", "busy"]).await, "busy");
    });
}

#[test]
fn images_of_the_dockerfiles_work_as_they_are() {
    const TAG: &str = "e2e";
    // On the engine at hand, whose layers the next run finds again.
    let mut build = Command::new(root().join("scripts/images.sh"));
    let built = build.arg(TAG).status().unwrap();
    assert!(built.success(), "building the images: {built}");
    scene(&[], async |scene| {
        for image in ["cls-driver", "cls-shipper"] {
            copy_image(scene, &format!("{image}:{TAG}")).await;
        }
        let driver = format!("cls-driver:{TAG}");
        scene.install_plugin(&["--image", &driver]).await;
        start_compose(scene, &format!("cls-shipper:{TAG}")).await;
        scene.run("box", &[], &["--lines", "100"]).await;
        assert_eq!(scene.wait_for_records(100).await.len(), 100);
        let shipper = format!("cls-shipper:{TAG}");
        let user = ["image", "inspect", "-f", "{{.Config.User}}", &shipper];
        assert_eq!(scene.docker(user).await, "65532:65532");
        let version = "{{index .Config.Labels \"org.opencontainers.image.version\"}}";
        let version = ["image", "inspect", "-f", version, &shipper];
        assert_eq!(scene.docker(version).await, env!("CARGO_PKG_VERSION"));
        let healthy = ["ps", "--quiet", "--filter", "health=healthy"];
        let is_healthy = async || !scene.docker(healthy).await.is_empty();
        let waited = wait_until("the shipper is healthy", DEADLINE, is_healthy).await;
        waited.unwrap();
        let files = files_of(scene, &shipper).await;
        assert_eq!(files, ["cls-shipper"], "nothing else, and no shell");
    });
}

/// Returns the names of an image's files, without those that the engine adds to every container.
async fn files_of(scene: &Scene, image: &str) -> Vec<String> {
    let container = scene.docker(["create", image]).await;
    let archive = scene.engine.folder().join("image.tar");
    let output = format!("--output={}", archive.display());
    scene.docker(["export", &output, &container]).await;
    let list = Command::new("tar")
        .arg("-tf")
        .arg(&archive)
        .output()
        .unwrap();
    let names = String::from_utf8(list.stdout).unwrap();
    let is_added = |name: &&str| {
        let folders = ["dev/", "etc/", "proc/", "sys/"];
        *name == ".dockerenv" || folders.iter().any(|folder| name.starts_with(folder))
    };
    names
        .lines()
        .filter(|name| !is_added(name))
        .map(str::to_owned)
        .collect()
}

/// Copies an image from the engine at hand to the scene's.
async fn copy_image(scene: &Scene, image: &str) {
    let mut save = Command::new("docker")
        .args(["save", image])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut load = scene.engine.command("docker");
    load.arg("load").stdin(save.stdout.take().unwrap());
    succeed(load).await.unwrap();
    assert!(save.wait().unwrap().success(), "saving {image}");
}

/// Makes an image of this tree's shipper: the one static binary and nothing else, as in the Dockerfile.
pub(crate) async fn import_shipper(scene: &Scene, image: &str) {
    scene.import("cls-shipper", image).await.unwrap();
}

/// Starts the shipper of docker-compose.yml and waits until it listens.
pub(crate) async fn start_compose(scene: &Scene, image: &str) {
    let config = scene.engine.folder().join("compose-shipper.toml");
    let text = fs::read_to_string(root().join("deploy/shipper.toml")).unwrap();
    let endpoint = "ap-guangzhou.cls.tencentcs.com";
    let topic_id = "replace-with-your-topic-id";
    assert!(text.contains(endpoint) && text.contains(topic_id), "{text}");
    let text = text
        .replace(endpoint, &scene.standin.endpoint())
        .replace(topic_id, TOPIC_ID);
    fs::write(&config, text).unwrap();
    let mut up = scene.engine.compose().await;
    up.arg("-f").arg(root().join("docker-compose.yml"));
    up.args(["-p", "e2e", "up", "-d"])
        .env("CLS_SHIPPER_IMAGE", image)
        .env("CLS_SHIPPER_RUN", scene.engine.run_folder())
        .env("CLS_SHIPPER_CONFIG", &config)
        .env("CLS_SHIPPER__ADMIN__LISTEN", free_address().to_string())
        .env("TENCENTCLOUD_SECRET_ID", "AKIDEXAMPLE")
        .env("TENCENTCLOUD_SECRET_KEY", "SKEXAMPLE");
    succeed(up).await.unwrap();
    let socket = scene.socket();
    let listens = async || tokio::net::UnixStream::connect(&socket).await.is_ok();
    if let Err(error) = wait_until("the shipper listens", DEADLINE, listens).await {
        let mut logs = scene.engine.compose().await;
        logs.arg("-f").arg(root().join("docker-compose.yml"));
        logs.args(["-p", "e2e", "logs", "shipper"]);
        panic!("{error:#}: {:?}", run(logs).await);
    }
}
