//! A scene: an engine with the plugin, a shipper and a stand-in for CLS, all real processes but the
//! stand-in, which runs inside the test and is spoken to over HTTP all the same.

use crate::engine::{Engine, succeed};
use crate::machine::Machine;
use crate::net::in_net;
use anyhow::{Context as _, ensure};
use futures_util::FutureExt as _;
use rustix::process::Signal;
use serde::Deserialize;
use serde_json::json;
use shipper::show::ledger::Line;
use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::time::Instant;
use world::client;
use world::processes::{
    Process, SECRET_ID, SECRET_KEY, TOPIC_ID, binary, standin_config, wait_until,
};
use world::standin::Standin;
use world::standin::config::{Clock, Config, Key, Topic};
use world::standin::store::parse_flow;
use world::turn::turn;

/// Name of the plugin, as a user installs it.
pub(crate) const PLUGIN: &str = "tencent-cls";
/// How the plugin is told where the shipper listens.
pub(crate) const SHIPPER: &str = "SHIPPER=unix:///host/run/shipper.sock";
/// Host name that the plugin is given.
pub(crate) const HOST_NAME: &str = "e2e-host";
/// A second topic, for options that say where records go.
pub(crate) const OTHER_TOPIC_ID: &str = "5a4b3c2d-1e0f-4a5b-8c7d-6e5f4a3b2c1d";
/// Id of the second key.
pub(crate) const OTHER_SECRET_ID: &str = "AKIDOTHER";
/// The second key.
pub(crate) const OTHER_SECRET_KEY: &str = "SKOTHER";
/// Time within which lines must have become records.
const DELIVERY_DEADLINE: Duration = Duration::from_secs(60);

/// An engine, a shipper and a stand-in.
pub(crate) struct Scene {
    pub(crate) engine: Engine,
    pub(crate) standin: Standin,
    shipper: Option<Process>,
    /// Where the shipper that was started last tells of itself.
    admin: SocketAddr,
    /// Records that the stand-in has counted and no longer has.
    forgotten: u64,
}

/// Runs a test in a scene of its own, without a plugin and without a shipper, and clears it away
/// whatever comes of the test. The scene is in a network of its own. The machine is as before.
pub(crate) fn scene(
    flags: &'static [&'static str],
    test: impl AsyncFnOnce(&mut Scene) + Send + 'static,
) {
    let before = Machine::look().unwrap();
    in_net(async |_| play(flags, test).await);
    before.assert_unchanged();
}

async fn play(flags: &[&'static str], test: impl AsyncFnOnce(&mut Scene)) {
    let _turn = turn().await;
    let mut scene = Scene::start(flags).await.unwrap();
    let outcome = AssertUnwindSafe(test(&mut scene)).catch_unwind().await;
    if outcome.is_err() {
        eprintln!("{}", scene.output());
    }
    let ended = scene.end().await;
    match outcome {
        Ok(()) => ended.unwrap(),
        Err(panic) => resume_unwind(panic),
    }
}

/// Runs a test in a scene with plugin and shipper.
pub(crate) fn full_scene(test: impl AsyncFnOnce(&mut Scene) + Send + 'static) {
    scene(&[], async |scene| {
        scene.start_shipper().await;
        scene.install_plugin(&[]).await;
        test(scene).await;
    });
}

/// A record as CLS has it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Record {
    /// Number of its arrival.
    seq: u64,
    /// UNIX time, in the unit in which it was sent.
    time: i64,
    fields: Vec<(String, String)>,
    tags: Vec<(String, String)>,
    #[serde(rename = "contextFlow")]
    context_flow: Option<String>,
    /// Where it went.
    pub(crate) topic_id: String,
    /// The key that signed for it.
    pub(crate) secret_id: Option<String>,
}

impl Record {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        value_of(&self.fields, name)
    }

    pub(crate) fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fields.iter().map(|(name, value)| (&**name, &**value))
    }

    pub(crate) fn tags(&self) -> impl Iterator<Item = (&str, &str)> {
        self.tags.iter().map(|(name, value)| (&**name, &**value))
    }

    pub(crate) fn tag(&self, name: &str) -> Option<&str> {
        value_of(&self.tags, name)
    }

    pub(crate) fn content(&self) -> &str {
        self.field("content").unwrap_or_default()
    }

    /// Returns the time in milliseconds, whatever the unit, which CLS guesses by size as well.
    pub(crate) fn time_ms(&self) -> i64 {
        const MICROS_FROM: i64 = 100_000_000_000_000;
        match self.time {
            micros if micros >= MICROS_FROM => micros / 1_000,
            millis => millis,
        }
    }

    /// Returns where CLS shows the record: by context, then by group, then by place in the group.
    fn place(&self) -> (String, u64, u64) {
        let flow = self.context_flow.as_deref().and_then(parse_flow);
        let (context, group) = flow.unwrap_or_else(|| panic!("no contextFlow: {self:?}"));
        (context.to_owned(), group, self.seq)
    }
}

/// Returns the contents of records.
pub(crate) fn contents(records: &[Record]) -> Vec<&str> {
    records.iter().map(Record::content).collect()
}

/// Reads what a shipper's log says of a stream that has finished.
fn finished(line: &str) -> Option<Line> {
    let (_, fields) = line.split_once(" stream finished ")?;
    let value = |key: &str| {
        let mut fields = fields.split(' ').filter_map(|field| field.split_once('='));
        // Of a shipper that was killed the last line may be cut.
        fields
            .find(|(name, _)| *name == key)
            .map(|(_, value)| value)
    };
    let text = |key: &str| value(key).map(|value| value.trim_matches('"').to_owned());
    let count = |key: &str| value(key)?.parse().ok();
    Some(Line {
        host: text("host")?,
        container_name: text("container")?,
        journal_id: text("journal_id")?,
        received: count("received")?,
        delivered: count("delivered")?,
        filtered: count("filtered")?,
        dropped: BTreeMap::from([("any".to_owned(), count("dropped")?)]),
        dead_lettered: count("dead_lettered")?,
        ..Line::default()
    })
}

fn value_of<'p>(pairs: &'p [(String, String)], name: &str) -> Option<&'p str> {
    let pair = pairs.iter().find(|(key, _)| key == name);
    pair.map(|(_, value)| value.as_str())
}

impl Scene {
    async fn start(flags: &[&'static str]) -> anyhow::Result<Self> {
        let engine = Engine::start(&json!({}), flags).await?;
        let address = "127.0.0.1:0".parse()?;
        let standin = Standin::start(address, cls(), Clock::system(), None).await?;
        let scene = Self {
            engine,
            standin,
            shipper: None,
            admin: address,
            forgotten: 0,
        };
        scene.import("chatter", "chatter").await?;
        Ok(scene)
    }

    /// Makes an image of a program: the one static binary and nothing else.
    pub(crate) async fn import(&self, program: &str, image: &str) -> anyhow::Result<()> {
        let binary = binary(program)?;
        let folder = binary.parent().context("a binary is in a folder")?;
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(folder).args(["-c", program]);
        let mut tar = tar.stdout(Stdio::piped()).spawn()?;
        let mut import = self.engine.command("docker");
        let entrypoint = format!(r#"ENTRYPOINT ["/{program}"]"#);
        import.args(["import", "-c", &entrypoint, "-", image]);
        import.stdin(tar.stdout.take().context("tar's stdout is a pipe")?);
        succeed(import).await?;
        ensure!(tar.wait()?.success(), "tar failed");
        Ok(())
    }

    /// Runs the Docker client, which must succeed, and returns what it wrote to stdout.
    pub(crate) async fn docker<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> String {
        self.engine.try_docker(args).await.unwrap()
    }

    /// Starts a container that logs through the plugin; `chatter` is what it does.
    pub(crate) async fn run(&self, name: &str, options: &[&str], chatter: &[&str]) -> String {
        let args = [
            &[
                "run",
                "--name",
                name,
                "--network=none",
                "--log-driver",
                PLUGIN,
            ],
            options,
            &["chatter"],
            chatter,
        ];
        self.docker(args.concat()).await
    }

    /// Installs the plugin as a user does, from the binary of this tree.
    pub(crate) async fn install_plugin(&self, args: &[&str]) {
        let mut command = self.engine.command(root().join("scripts/plugin.sh"));
        let host_name = format!("HOST_NAME={HOST_NAME}");
        command.args(["install", SHIPPER, &host_name]).args(args);
        command.env("BINARIES", binary("cls-driver").unwrap().parent().unwrap());
        succeed(command).await.unwrap();
    }

    /// Returns the path of the shipper's socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.engine.run_folder().join("shipper.sock")
    }

    /// Starts the shipper with defaults for all that containers need not say, and waits until it
    /// listens.
    pub(crate) async fn start_shipper(&mut self) {
        let sections = self.sections();
        self.start_shipper_with(&sections).await;
    }

    /// Returns the sections of a shipper's configuration that say where records go.
    pub(crate) fn sections(&self) -> String {
        format!(
            r#"[defaults]
endpoint = "{endpoint}"
topic_id = "{TOPIC_ID}"
credentials = "default"

[credentials.default]
source = "inline"
secret_id = "{SECRET_ID}"
secret_key = "{SECRET_KEY}"
"#,
            endpoint = self.standin.endpoint(),
        )
    }

    /// Starts the shipper with these sections of its configuration besides `[listen]` and
    /// `[admin]`, and waits until it listens.
    pub(crate) async fn start_shipper_with(&mut self, sections: &str) {
        let config = self.engine.folder().join("shipper.toml");
        let socket = self.socket();
        // An address of its own: while it is replaced, two of them run.
        let admin = free_address();
        let listen = format!(
            "[listen]\nunix = \"{}\"\n\n[admin]\nlisten = \"{admin}\"\n\n",
            socket.display(),
        );
        fs::write(&config, listen + sections).unwrap();
        let mut command = Command::new(binary("cls-shipper").unwrap());
        command.arg("--config").arg(config);
        let mut shipper = Process::start("shipper", command, self.engine.folder()).unwrap();
        // The socket of a predecessor answers as well.
        let is_ready = async || {
            tokio::net::UnixStream::connect(&socket).await.is_ok()
                && client::call(admin, "GET", "/readyz").await.is_ok()
        };
        shipper.wait_ready(is_ready).await.unwrap();
        self.shipper = Some(shipper);
        self.admin = admin;
    }

    /// Replaces the shipper as one does without a gap: the new one is up before the old one is
    /// asked to end. Returns how long the old one took to end.
    pub(crate) async fn replace_shipper(&mut self) -> Duration {
        let mut old = self.shipper.take().expect("the shipper runs");
        self.start_shipper().await;
        let began = Instant::now();
        let status = old.terminate().await.unwrap();
        assert!(status.success(), "{status}: {}", old.output());
        began.elapsed()
    }

    /// Asks the shipper to end, and waits until it has.
    pub(crate) async fn stop_shipper(&mut self) {
        let mut shipper = self.shipper.take().expect("the shipper runs");
        let status = shipper.terminate().await.unwrap();
        assert!(status.success(), "{status}: {}", shipper.output());
    }

    /// Sends a signal to the shipper: `STOP` and `CONT` freeze and thaw it.
    pub(crate) fn signal_shipper(&self, signal: Signal) {
        let shipper = self.shipper.as_ref().expect("the shipper runs");
        shipper.signal(signal).unwrap();
    }

    /// Returns what the shipper knows of every entry.
    pub(crate) async fn ledger(&self) -> Vec<Line> {
        let lines = client::call(self.admin, "GET", "/api/ledger").await;
        serde_json::from_slice(&lines.unwrap()).unwrap()
    }

    /// Returns what became of every stream: as the ledger says, which lives as long as the shipper's
    /// process, or as the shippers' log says of those that have finished.
    pub(crate) async fn accounts(&self) -> BTreeMap<String, Line> {
        let log = fs::read(self.engine.folder().join("shipper.log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let ledger = self.ledger().await.into_iter();
        let lines = ledger.chain(log.lines().filter_map(finished));
        lines.map(|line| (line.journal_id.clone(), line)).collect()
    }

    /// Returns a path of the plugin's socket on this side.
    pub(crate) async fn plugin_socket(&self) -> PathBuf {
        let plugin = ["plugin", "inspect", "-f", "{{.Id}}", PLUGIN];
        let folder = self.engine.run_folder().join("docker/plugins");
        let folder = folder.join(self.docker(plugin).await);
        // The whole path is longer than an address may be.
        let link = self.engine.folder().join("plugin");
        symlink(folder, &link).unwrap();
        link.join("tencent-cls.sock")
    }

    /// Kills the shipper.
    pub(crate) fn kill_shipper(&mut self) {
        self.shipper
            .take()
            .expect("the shipper runs")
            .kill()
            .unwrap();
    }

    /// Returns what CLS has in all topics, in the order in which it shows it.
    pub(crate) async fn records(&self) -> Vec<Record> {
        let lines = client::call(self.standin.address(), "GET", "/records").await;
        let lines = String::from_utf8(lines.unwrap().to_vec()).unwrap();
        let parse = |line: &str| serde_json::from_str(line).unwrap();
        let mut records: Vec<Record> = lines.lines().map(parse).collect();
        records.sort_by_cached_key(Record::place);
        records
    }

    /// Waits until CLS has this many records, and returns all it has.
    pub(crate) async fn wait_for_records(&self, count: usize) -> Vec<Record> {
        let count = self.forgotten + u64::try_from(count).unwrap();
        let is_there = async || self.standin.stats().records >= count;
        let waited = wait_until("records arrive", DELIVERY_DEADLINE, is_there).await;
        if let Err(error) = waited {
            let arrived = self.records().await.len();
            panic!("{error:#}: {arrived} have arrived");
        }
        self.records().await
    }

    /// Waits until CLS has this many records more than now.
    pub(crate) async fn wait_for_more_records(&self, count: u64) {
        let count = self.standin.stats().records + count;
        let are_there = async || self.standin.stats().records >= count;
        let waited = wait_until("more records arrive", DELIVERY_DEADLINE, are_there).await;
        waited.unwrap();
    }

    /// Removes all containers and all records, for a test that does several things in one scene.
    pub(crate) async fn forget(&mut self) {
        let containers = self.docker(["ps", "-aq"]).await;
        let removal = ["rm", "-f"]
            .into_iter()
            .chain(containers.split_whitespace());
        if !containers.is_empty() {
            self.docker(removal).await;
        }
        let address = self.standin.address();
        client::call(address, "DELETE", "/records").await.unwrap();
        self.forgotten = self.standin.stats().records;
    }

    fn output(&self) -> String {
        let shipper = self.shipper.as_ref().map(Process::output);
        format!(
            "--- engine\n{}\n--- shipper\n{}\n--- CLS\n{:?}",
            self.engine.output(),
            shipper.unwrap_or_default(),
            self.standin.stats(),
        )
    }

    async fn end(self) -> anyhow::Result<()> {
        drop(self.shipper);
        self.engine.end().await
    }
}

/// Returns the configuration of the stand-in: each of the two keys may write to both topics.
fn cls() -> Config {
    let mut config = standin_config();
    config.topics.push(Topic::open(OTHER_TOPIC_ID));
    let other = Key::permanent(OTHER_SECRET_ID, OTHER_SECRET_KEY);
    config.keys.push(other);
    config
}

/// Returns the root of this tree.
pub(crate) fn root() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("tests is a folder of the tree")
}

/// Returns a loopback address whose port nobody uses now.
pub(crate) fn free_address() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}
