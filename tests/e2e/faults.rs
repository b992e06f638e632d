//! One fault at a time, and what it may cost: commands, lines, duplicates.

use crate::chaos::run_args;
use crate::crashes::{assert_at_least_once, kill_plugin};
use crate::engine::Client;
use crate::scene::{PLUGIN, Scene, contents, full_scene, scene};
use crate::told::Told;
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::path::Path;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixListener;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use world::chatter::Shape;
use world::processes::wait_until;
use world::standin::fault::{Fault, FaultKind};

const PLAIN: Shape = Shape::Plain { bytes: 64 };
const DEADLINE: Duration = Duration::from_secs(60);
/// What starting and stopping a container may take longer than with json-file.
const ADDED_MAX: Duration = Duration::from_secs(1);

/// Runs a command and returns how long it took.
async fn timed(client: &Client, args: &[&str]) -> Duration {
    let began = Instant::now();
    client.docker(args).await.unwrap();
    began.elapsed()
}

/// The commands in the life of a container in which its log driver has a part.
const COMMANDS: [&str; 6] = ["run", "restart", "stop", "start", "kill", "rm"];

/// Containers whose commands are timed.
struct Lives {
    client: Client,
    plugin: Told,
    json_file: Told,
}

impl Lives {
    fn new(scene: &Scene) -> Self {
        Self {
            client: scene.engine.client(),
            plugin: Told::create(scene.engine.folder(), "told-plugin"),
            json_file: Told::create(scene.engine.folder(), "told-json-file"),
        }
    }

    /// Returns how long each command in the life of a container takes that writes 1,000 lines each
    /// time it starts. Calls `before` before each of them.
    async fn life(
        &self,
        driver: &str,
        name: &str,
        before: impl AsyncFn(),
    ) -> [Duration; COMMANDS.len()] {
        let told = match driver {
            PLUGIN => &self.plugin,
            _ => &self.json_file,
        };
        let mount = told.mount();
        let chatter = ["--lines", "1000", "--bytes", "80", "--hold"];
        let mut starts = 0;
        let mut took = [Duration::ZERO; COMMANDS.len()];
        for (took, command) in took.iter_mut().zip(COMMANDS) {
            before().await;
            let args = match command {
                "run" => run_args(name, driver, &mount, &[], &chatter),
                _ => vec![command, name],
            };
            *took = timed(&self.client, &args).await;
            if ["run", "restart", "start"].contains(&command) {
                starts += 1;
                told.wait_for_starts(name, starts).await;
            }
        }
        took
    }

    /// Lets a container live with json-file and one with the plugin, and asserts that no command
    /// takes much longer with the plugin than the slowest does with json-file, which tells how busy
    /// the machine is.
    async fn assert_no_slower(&self, what: &str) {
        let nothing = async || {};
        let json_file = self.life("json-file", what, nothing).await;
        let plugin = self.life(PLUGIN, what, nothing).await;
        eprintln!("{what}: {COMMANDS:?} {plugin:?}, with json-file {json_file:?}");
        let slowest = json_file.iter().max().expect("there are commands");
        for (took, command) in plugin.iter().zip(COMMANDS) {
            assert!(
                *took < *slowest + ADDED_MAX,
                "{what}: {command} took {took:?}"
            );
        }
    }
}

/// What is where the shipper should listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Impostor {
    /// A socket on which nobody listens.
    Refusing,
    Silent,
    Nonsense,
}

/// Accepts connections, and never says anything that is true.
async fn pose(listener: UnixListener, impostor: Impostor) {
    let mut victims = Vec::new();
    while let Ok((mut victim, _)) = listener.accept().await {
        if impostor == Impostor::Nonsense {
            // It may be gone already.
            victim.write_all(&[0xa5; 4096]).await.ok();
        }
        victims.push(victim);
    }
}

#[test]
fn a_shipper_or_cls_in_trouble_slows_no_command() {
    scene(&[], async |scene| {
        scene.install_plugin(&[]).await;
        let lives = Lives::new(scene);
        lives.assert_no_slower("absent").await;
        for impostor in [Impostor::Refusing, Impostor::Nonsense, Impostor::Silent] {
            let socket = scene.socket();
            let listener = UnixListener::bind(&socket).unwrap();
            let mut poses = JoinSet::new();
            match impostor {
                Impostor::Refusing => drop(listener),
                _ => drop(poses.spawn(pose(listener, impostor))),
            }
            // Beyond the longest pause between two attempts of the driver.
            sleep(Duration::from_secs(4)).await;
            let what = format!("{impostor:?}").to_lowercase();
            lives.assert_no_slower(&what).await;
            poses.shutdown().await;
            fs::remove_file(&socket).unwrap();
        }
        scene.start_shipper().await;
        scene.wait_for_more_records(1).await;
        scene.signal_shipper(Signal::STOP);
        lives.assert_no_slower("frozen").await;
        scene.signal_shipper(Signal::CONT);
        scene.standin.go_away().await;
        lives.assert_no_slower("cls-gone").await;
        scene.standin.come_back().await.unwrap();
        scene.standin.add_fault(Fault::new(FaultKind::Stall));
        lives.assert_no_slower("cls-silent").await;
        scene.standin.clear_faults();
        let report = lives.plugin.settle(scene).await;
        assert!(report.is_at_least_once(), "{report}");
    });
}

/// The engine finds the driver gone, and repeats its call a second later.
#[test]
fn a_driver_that_was_just_killed_slows_commands_by_the_engines_own_pause() {
    /// The engine's pause, and what the same command may take longer otherwise.
    const ADDED_BY_KILL_MAX: Duration = Duration::from_secs(1 + 1);
    full_scene(async |scene| {
        let lives = Lives::new(scene);
        let json_file = lives.life("json-file", "json", async || {}).await;
        let kill = async || {
            // The engine gives a plugin up that dies within half a second of its start.
            sleep(Duration::from_secs(2)).await;
            let driver = scene.engine.processes("/cls-driver")[0];
            kill_process(driver, Signal::KILL).unwrap();
        };
        let plugin = lives.life(PLUGIN, "killed", kill).await;
        eprintln!("after a kill: {COMMANDS:?} {plugin:?}, with json-file {json_file:?}");
        for ((plugin, json_file), command) in plugin.iter().zip(&json_file).zip(COMMANDS) {
            let is_fast = *plugin < *json_file + ADDED_BY_KILL_MAX;
            assert!(is_fast, "{command} took {plugin:?}, not {json_file:?}");
        }
        let report = lives.plugin.settle(scene).await;
        assert!(report.is_at_least_once(), "{report}");
    });
}

#[test]
fn a_frozen_driver_holds_up_only_its_own_containers() {
    const FROZEN: Duration = Duration::from_secs(3);
    full_scene(async |scene| {
        let trickle = ["--rate", "500", "--lines", "1000000"];
        for name in ["stopped", "writes-on"] {
            scene.run(name, &["-d"], &trickle).await;
        }
        scene.wait_for_records(100).await;
        let client = scene.engine.client();
        let lives = Lives::new(scene);
        let nothing = async || {};
        let expected = lives.life("json-file", "before", nothing).await;
        let driver = scene.engine.processes("/cls-driver")[0];
        kill_process(driver, Signal::STOP).unwrap();
        let began = Instant::now();
        let others = async {
            let life = lives.life("json-file", "meanwhile", nothing).await;
            for (took, expected) in life.iter().zip(&expected) {
                assert!(*took < *expected + ADDED_MAX, "{life:?}, not {expected:?}");
            }
            sleep((began + FROZEN).saturating_duration_since(Instant::now())).await;
            kill_process(driver, Signal::CONT).unwrap();
            life
        };
        let (stop, others) = tokio::join!(timed(&client, &["stop", "stopped"]), others);
        eprintln!(
            "stop took {stop:?}, of which the driver was frozen {FROZEN:?}; others {others:?}"
        );
        assert!(stop >= FROZEN, "the engine waits for the driver's answer");
        assert!(stop < FROZEN + ADDED_MAX * 2, "stop took {stop:?}");
        // Nothing is wedged.
        lives.life(PLUGIN, "after", nothing).await;
        scene.docker(["rm", "-f", "stopped", "writes-on"]).await;
    });
}

#[test]
fn a_shipper_is_replaced_under_load_without_a_duplicate() {
    const LINES: u64 = 30_000;
    const REPLACEMENTS: u64 = 3;
    full_scene(async |scene| {
        let chatter = ["--lines", &LINES.to_string(), "--rate", "5000"];
        scene.run("box", &["-d"], &chatter).await;
        for number in 1..=REPLACEMENTS {
            let count = LINES * number / (REPLACEMENTS + 2);
            scene
                .wait_for_records(usize::try_from(count).unwrap())
                .await;
            let took = scene.replace_shipper().await;
            eprintln!("the old shipper took {took:?} to end");
        }
        let records = scene
            .wait_for_records(usize::try_from(LINES).unwrap())
            .await;
        assert_at_least_once(&records, LINES);
        assert_eq!(records.len() as u64, LINES, "duplicates");
    });
}

#[test]
fn a_driver_stops_at_once_and_containers_do_so_with_a_full_journal() {
    const LINES: u64 = 20_000;
    /// After 10 s the engine would kill it.
    const DISABLE_MAX: Duration = Duration::from_secs(5);
    /// `JOURNAL_BLOCK_MS_MAX` by default, and the time that a stop takes.
    const STOP_MAX: Duration = Duration::from_secs(5 + 5);
    scene(&[], async |scene| {
        scene.install_plugin(&[]).await;
        let client = scene.engine.client();
        let chatter = ["--lines", &LINES.to_string(), "--rate", "5000"];
        scene.run("box", &["-d"], &chatter).await;
        sleep(Duration::from_secs(1)).await;
        let took = timed(&client, &["plugin", "disable", "-f", PLUGIN]).await;
        eprintln!("disabling the plugin took {took:?}");
        assert!(took < DISABLE_MAX, "disabling the plugin took {took:?}");
        scene.docker(["plugin", "enable", PLUGIN]).await;
        for (name, end) in [("stopped", "stop"), ("killed", "kill")] {
            // More than a journal and all buffers in front of it hold.
            let flood = ["--lines", "20000", "--bytes", "1000"];
            let options = ["-d", "--log-opt=journal-size=1m"];
            scene.run(name, &options, &flood).await;
            wait_until("it waits for its log", DEADLINE, async || is_blocked(scene))
                .await
                .unwrap();
            let took = timed(&client, &[end, name]).await;
            let gone = timed(&client, &["rm", "-f", name]).await;
            eprintln!("{end} with a full journal took {took:?}, rm {gone:?}");
            assert!(took + gone < STOP_MAX, "{end} took {took:?}, rm {gone:?}");
        }
        assert_eq!(scene.docker(["wait", "box"]).await, "0");
        scene.start_shipper().await;
        let lines: Vec<_> = (0..LINES).map(|number| PLAIN.line(number)).collect();
        let are_there = async || {
            let records = scene.records().await;
            let contents = contents(&records);
            let of_box = contents.iter().filter(|content| content.len() == 64);
            of_box.eq(lines.iter())
        };
        wait_until("all lines of the box arrive once", DEADLINE, are_there)
            .await
            .unwrap();
    });
}

/// Returns whether a container waits for room in the pipe to which it writes.
fn is_blocked(scene: &Scene) -> bool {
    let threads = |pid: Pid| {
        let threads = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero()));
        threads.into_iter().flatten().flatten()
    };
    let writers = scene.engine.processes("/chatter");
    writers.into_iter().flat_map(threads).any(|thread| {
        let waits_in = fs::read_to_string(thread.path().join("wchan"));
        waits_in.is_ok_and(|function| function.contains("pipe_write"))
    })
}

/// The state folder is a disk of its own, which is full while containers come and go.
#[test]
fn a_full_disk_stops_no_container() {
    /// Of 8 MiB, more than the journals in memory hold.
    const LINES: u64 = 120_000;
    scene(&[], async |scene| {
        let settings = ["JOURNAL_FREE_DISK=0", "JOURNAL_BLOCK_MS_MAX=100"];
        scene.install_plugin(&settings).await;
        let plugin = ["plugin", "inspect", "-f", "{{.Id}}", PLUGIN];
        let plugin = scene.docker(plugin).await;
        let state = scene.engine.folder().join("data/plugins").join(plugin);
        let state = state.join("propagated-mount/state");
        let mut mount = scene.engine.inside("mount");
        mount.args(["-t", "tmpfs", "-o", "size=16m", "tmpfs"]);
        assert!(mount.arg(&state).status().unwrap().success(), "mount");
        let state = scene.engine.root().join(state.strip_prefix("/").unwrap());
        // The next driver works there from its start on.
        kill_plugin(scene).await;
        scene
            .run("before", &["-d"], &["--lines", "10", "--hold"])
            .await;
        let lock = state.join("lock");
        assert!(lock.exists(), "the driver works on this disk");
        fill(&state);
        let chatter = ["--lines", &LINES.to_string(), "--rate", "20000"];
        scene.run("busy", &["-d"], &chatter).await;
        Lives::new(scene).assert_no_slower("full").await;
        assert_eq!(scene.docker(["wait", "busy"]).await, "0");
        scene.docker(["stop", "before"]).await;
        fs::remove_file(state.join("filler")).unwrap();
        scene.start_shipper().await;
        scene.docker(["start", "before"]).await;
        let mut ledger = Vec::new();
        let is_settled = async || {
            ledger = scene.ledger().await;
            let of = |name: &str| {
                let lines = ledger.iter().filter(|line| line.container_name == name);
                let sum = |(received, buffered), line: &shipper::show::ledger::Line| {
                    (received + line.received, buffered + line.buffered)
                };
                lines.fold((0, 0), sum)
            };
            of("/busy") == (LINES, 0) && of("/before") == (20, 0)
        };
        let waited = wait_until("all is accounted for", DEADLINE, is_settled).await;
        waited.unwrap_or_else(|error| panic!("{error:#}: {ledger:#?}"));
        let busy = ledger.iter().find(|line| line.container_name == "/busy");
        let busy = busy.expect("it is accounted for");
        eprintln!("with a full disk: {busy:?}");
        let dropped: u64 = busy.dropped.values().sum();
        assert_eq!(busy.delivered + dropped, LINES);
    });
}

/// Leaves no byte of a disk free.
fn fill(folder: &Path) {
    let written = fs::write(folder.join("filler"), vec![0; 32 << 20]);
    let error = written.expect_err("the disk is smaller");
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
}
