//! A plugin that comes from a registry, installed and upgraded as README says, while containers
//! write.

use crate::engine::succeed;
use crate::restarts::assert_once;
use crate::scene::{HOST_NAME, PLUGIN, SHIPPER, Scene, free_address, root, scene};
use crate::told::Told;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use tokio::net::TcpStream;
use tokio::time::Instant;
use world::processes::{Process, binary};

/// Lines per second of each container.
const RATE: u64 = 2_000;

/// A registry on loopback, where an engine speaks plain HTTP.
struct Registry {
    address: SocketAddr,
    /// Ends with it.
    _process: Process,
}

impl Registry {
    async fn start(scene: &Scene) -> Self {
        let folder = scene.engine.folder();
        let address = free_address();
        let config = folder.join("registry.yml");
        let text = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
            folder.join("registry").display()
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(config);
        let mut process = Process::start("registry", command, folder).unwrap();
        let answers = async || TcpStream::connect(address).await.is_ok();
        process.wait_ready(answers).await.unwrap();
        Self {
            address,
            _process: process,
        }
    }

    /// Returns how a version of the plugin is called.
    fn reference(&self, version: u32) -> String {
        format!("{}/{PLUGIN}:{version}", self.address)
    }

    /// Packs this tree's plugin and publishes it; every version has a file of its own.
    async fn publish(&self, scene: &Scene, version: u32) {
        let folder = scene.engine.folder().join(format!("version-{version}"));
        let files = folder.join("rootfs");
        fs::create_dir_all(&files).unwrap();
        fs::copy(root().join("config.json"), folder.join("config.json")).unwrap();
        fs::copy(binary("cls-driver").unwrap(), files.join("cls-driver")).unwrap();
        fs::write(files.join("version"), version.to_string()).unwrap();
        let reference = self.reference(version);
        let create = ["plugin", "create", &reference, folder.to_str().unwrap()];
        scene.docker(create).await;
        scene.docker(["plugin", "push", &reference]).await;
        scene.docker(["plugin", "rm", &reference]).await;
    }
}

/// Returns the commands that README gives for the upgrade of a plugin from a registry.
fn upgrade_of_readme(reference: &str) -> String {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let blocks = readme
        .split("```")
        .filter_map(|text| text.strip_prefix("sh\n"));
    let mut upgrades = blocks.filter(|text| text.contains("docker plugin upgrade"));
    let commands = upgrades.next().expect("README says how to upgrade");
    assert_eq!(commands.matches("REMOTE").count(), 1, "{commands}");
    commands.replace("REMOTE", reference)
}

async fn upgrade(scene: &Scene, reference: &str) {
    let mut shell = scene.engine.command("sh");
    shell.args(["-ec", &upgrade_of_readme(reference)]);
    let began = Instant::now();
    succeed(shell).await.unwrap();
    eprintln!("the upgrade to {reference} took {:?}", began.elapsed());
}

/// Returns the version that is installed.
async fn installed(scene: &Scene) -> String {
    let plugin = ["plugin", "inspect", "-f", "{{.Id}}", PLUGIN];
    let plugin = PathBuf::from("data/plugins").join(scene.docker(plugin).await);
    let version = scene.engine.folder().join(plugin).join("rootfs/version");
    fs::read_to_string(version).unwrap()
}

#[test]
fn a_plugin_from_a_registry_is_upgraded_under_load_and_loses_nothing() {
    scene(&[], async |scene| {
        let registry = Registry::start(scene).await;
        for version in [1, 2] {
            registry.publish(scene, version).await;
        }
        let first = registry.reference(1);
        let install = ["plugin", "install", "--grant-all-permissions", "--alias"];
        let host_name = format!("HOST_NAME={HOST_NAME}");
        let install = [&install[..], &[PLUGIN, &first, SHIPPER, &host_name]].concat();
        scene.docker(install).await;
        scene.start_shipper().await;
        let told = Told::create(scene.engine.folder(), "told");
        for name in ["stopped", "lives-on"] {
            told.run(scene, name, RATE, &[]).await;
        }
        scene.wait_for_more_records(1_000).await;
        upgrade(scene, &registry.reference(2)).await;
        assert_eq!(installed(scene).await, "2");
        scene.docker(["stop", "stopped"]).await;
        scene.wait_for_more_records(1_000).await;
        // Once more, with what is not shipped yet in the journals.
        scene.stop_shipper().await;
        upgrade(scene, &first).await;
        assert_eq!(installed(scene).await, "1");
        told.run(scene, "starts-after", RATE, &[]).await;
        scene.start_shipper().await;
        scene.wait_for_more_records(1_000).await;
        scene.docker(["stop", "lives-on", "starts-after"]).await;
        assert_once(&told.settle(scene).await);
    });
}
