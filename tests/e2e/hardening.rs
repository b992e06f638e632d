//! What the processes may do once they run, as the kernel tells it, on a real engine: the plugin
//! after it has given up its rights, the shipper as docker-compose.yml starts it.

use crate::engine::run;
use crate::installing::{DEADLINE, import_shipper, start_compose};
use crate::scene::{Scene, free_address, full_scene, root, scene};
use rustix::process::Pid;
use std::fs;
use world::client;
use world::processes::wait_until;

const SHIPPER_IMAGE: &str = "cls-shipper:hardening";

/// What `/proc/PID` says of a process.
struct Rights {
    status: String,
    limits: String,
}

impl Rights {
    fn of(pid: Pid) -> Self {
        let proc = format!("/proc/{}", pid.as_raw_nonzero());
        let read = |name: &str| fs::read_to_string(format!("{proc}/{name}")).unwrap();
        Self {
            status: read("status"),
            limits: read("limits"),
        }
    }

    fn field(&self, name: &str) -> &str {
        let mut lines = self.status.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value
            .unwrap_or_else(|| panic!("no {name} in {}", self.status))
            .trim()
    }

    fn check_capabilities(&self, sets: &[&str]) {
        for set in sets {
            assert_eq!(self.field(set), "0000000000000000", "{set}");
        }
    }

    fn check_no_core(&self) {
        let is_core = |line: &&str| line.starts_with("Max core file size");
        let line = self.limits.lines().find(is_core).unwrap();
        let limits: Vec<_> = line.split_whitespace().skip(4).take(2).collect();
        assert_eq!(limits, ["0", "0"], "{line}");
    }
}

/// Returns the one process of the scene's containers and plugins that runs a program.
fn process(scene: &Scene, program: &str) -> Pid {
    let found = scene.engine.processes(program);
    assert_eq!(found.len(), 1, "processes that run {program}: {found:?}");
    found[0]
}

#[test]
fn the_plugin_carries_logs_without_any_right() {
    full_scene(async |scene| {
        scene.run("box", &[], &["--lines", "100"]).await;
        assert_eq!(scene.wait_for_records(100).await.len(), 100);
        let rights = Rights::of(process(scene, "/cls-driver"));
        rights.check_capabilities(&["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]);
        assert_eq!(rights.field("NoNewPrivs"), "1");
        assert_eq!(rights.field("Seccomp"), "2", "a filter");
        rights.check_no_core();
        let log = scene.engine.log();
        assert!(
            log.contains("the driver has given up what it does not need"),
            "{log}"
        );
    });
}

#[test]
fn the_shipper_of_the_compose_file_has_no_right_but_to_its_socket() {
    scene(&[], async |scene| {
        import_shipper(scene, SHIPPER_IMAGE).await;
        scene.install_plugin(&[]).await;
        start_compose(scene, SHIPPER_IMAGE).await;
        scene.run("box", &[], &["--lines", "100"]).await;
        assert_eq!(scene.wait_for_records(100).await.len(), 100);
        let pid = process(scene, "/cls-shipper");
        let rights = Rights::of(pid);
        rights.check_capabilities(&["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]);
        assert_eq!(rights.field("NoNewPrivs"), "1");
        assert_eq!(rights.field("Seccomp"), "2", "the engine's own filter");
        rights.check_no_core();
        let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", pid.as_raw_nonzero()));
        let mounts = mounts.unwrap();
        // Fields 5 and 6 are the place and its options.
        let mounted = mounts
            .lines()
            .find(|line| line.split(' ').nth(4) == Some("/"));
        let options = mounted.unwrap().split(' ').nth(5).unwrap();
        assert!(options.split(',').any(|option| option == "ro"), "{options}");
        for shell in ["/bin/sh", "sh"] {
            let mut exec = scene.engine.compose().await;
            exec.arg("-f").arg(root().join("docker-compose.yml"));
            exec.args(["-p", "e2e", "exec", "-T", "shipper", shell]);
            assert!(!run(exec).await.unwrap().status.success(), "{shell} exists");
        }
    });
}

#[test]
fn a_shipper_on_tcp_needs_no_root() {
    scene(&[], async |scene| {
        import_shipper(scene, SHIPPER_IMAGE).await;
        let (listen, admin) = (free_address(), free_address());
        let config = scene.engine.folder().join("nobody.toml");
        let text = format!(
            "[listen]\ntcp = \"{listen}\"\n[admin]\nlisten = \"{admin}\"\n\
             [[tenants]]\nname = \"all\"\nanyone = true\n{}",
            scene.sections()
        );
        fs::write(&config, text).unwrap();
        let mount = format!("{}:/shipper.toml:ro", config.display());
        let restrictions = ["--user=65532:65532", "--read-only", "--cap-drop=ALL"];
        let start = [
            "run",
            "-d",
            "--name=shipper",
            "--network=host",
            "--log-driver=json-file",
        ];
        let image = [SHIPPER_IMAGE, "--config", "/shipper.toml"];
        let volume = ["-v", mount.as_str()];
        let args = [&start[..], &restrictions, &volume, &image];
        scene.docker(args.concat()).await;
        let is_up = async || client::call(admin, "GET", "/readyz").await.is_ok();
        wait_until("the shipper is up", DEADLINE, is_up)
            .await
            .unwrap();
        scene
            .install_plugin(&[&format!("SHIPPER=http://{listen}")])
            .await;
        scene.run("box", &[], &["--lines", "100"]).await;
        assert_eq!(scene.wait_for_records(100).await.len(), 100);
        let rights = Rights::of(process(scene, "/cls-shipper"));
        assert!(
            rights.field("Uid").starts_with("65532"),
            "{}",
            rights.status
        );
        rights.check_no_core();
    });
}
