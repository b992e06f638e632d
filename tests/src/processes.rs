//! The product's processes, as real processes: built, started, waited for, measured and killed.
//!
//! Binaries are looked for in `CLS_BIN_DIR`; without it, a program takes those beside it, and for a
//! test cargo builds them, in the same profile, once per test process. A process is ready when it
//! answers, and is killed when it is dropped.

use crate::client;
use crate::dockerd::Dockerd;
use crate::standin::{Config, Key};
use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::Instant;

/// Time within which a process must be ready, or gone.
const DEADLINE: Duration = Duration::from_secs(30);
/// Time between two looks at a condition.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Waits until `is_met` says so.
///
/// # Errors
/// If that takes longer than `deadline`; `what` names the condition.
pub async fn wait_until(
    what: &str,
    deadline: Duration,
    mut is_met: impl AsyncFnMut() -> bool,
) -> anyhow::Result<()> {
    let began = Instant::now();
    while !is_met().await {
        if began.elapsed() > deadline {
            bail!("{what}: not within {deadline:?}");
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

/// Returns the path of a binary of this workspace.
///
/// # Errors
/// If it is not in `CLS_BIN_DIR`, or can't be built.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    static DIR: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let dir = DIR.get_or_init(|| binary_dir().map_err(|error| format!("{error:#}")));
    let path = dir
        .as_ref()
        .map_err(|error| anyhow::anyhow!("{error}"))?
        .join(name);
    anyhow::ensure!(
        path.is_file(),
        "{} does not exist: run `make build`, or say in CLS_BIN_DIR where the binaries are",
        path.display()
    );
    Ok(path)
}

#[allow(
    clippy::disallowed_methods,
    reason = "the harness has no config: a few variables are all"
)]
fn binary_dir() -> anyhow::Result<PathBuf> {
    if let Ok(dir) = std::env::var("CLS_BIN_DIR") {
        return Ok(dir.into());
    }
    let exe = std::env::current_exe()?;
    let dir = exe.parent().context("an executable is in a folder")?;
    if !dir.ends_with("deps") {
        return Ok(dir.to_owned());
    }
    let dir = dir.parent().context("deps is in a profile's folder")?;
    build(dir)?;
    Ok(dir.to_owned())
}

/// Builds the binaries of this workspace in `dir`, which is `target/[<triple>/]<profile>`.
#[allow(
    clippy::disallowed_methods,
    reason = "the harness has no config: a few variables are all"
)]
fn build(dir: &Path) -> anyhow::Result<()> {
    let mut command = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
    // What cargo told this test about its package would make build scripts run again, and the
    // next build after this one as well.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(is_about_a_package) {
            command.env_remove(name);
        }
    }
    command.args(["build", "--quiet", "--locked", "--bins"]);
    command.args(["--package=driver", "--package=shipper", "--package=world"]);
    command.args(build_options(dir).with_context(|| format!("{} is no profile's", dir.display()))?);
    let status = command.current_dir(env!("CARGO_MANIFEST_DIR")).status()?;
    anyhow::ensure!(status.success(), "building the binaries: {status}");
    Ok(())
}

/// Returns the options with which cargo builds in `dir`, which is `target/[<triple>/]<profile>`.
fn build_options(dir: &Path) -> Option<Vec<String>> {
    let name = |dir: &Path| Some(dir.file_name()?.to_str()?.to_owned());
    let mut profile = name(dir)?;
    if profile == "debug" {
        "dev".clone_into(&mut profile);
    }
    let mut options = vec!["--profile".to_owned(), profile];
    let mut target = dir.parent()?;
    let triple = name(target)?;
    if triple.starts_with(&format!("{}-", std::env::consts::ARCH)) {
        options.extend(["--target".to_owned(), triple]);
        target = target.parent()?;
    }
    options.extend(["--target-dir".to_owned(), target.to_str()?.to_owned()]);
    Some(options)
}

fn is_about_a_package(variable: &str) -> bool {
    let prefixes = [
        "CARGO_PKG_",
        "CARGO_MANIFEST_",
        "CARGO_BIN_",
        "CARGO_CRATE_",
        "CARGO_PRIMARY_",
    ];
    prefixes.iter().any(|prefix| variable.starts_with(prefix))
}

/// Returns the seed of this run: `WORLD_SEED`, or a random one. Who draws from it prints it.
pub fn seed() -> u64 {
    seed_given().unwrap_or_else(|| fastrand::u64(..))
}

/// Returns `WORLD_SEED`: the one seed to repeat.
pub fn seed_given() -> Option<u64> {
    number_given("WORLD_SEED")
}

/// Returns `WORLD_SEEDS`: how many seeds to run.
pub fn seeds_given() -> Option<u64> {
    number_given("WORLD_SEEDS")
}

/// Returns `WORLD_OUTAGE_S`: the longest outage to go through, in seconds.
pub fn outage_given() -> Option<u64> {
    number_given("WORLD_OUTAGE_S")
}

#[allow(
    clippy::disallowed_methods,
    reason = "the harness has no config: a few variables are all"
)]
fn number_given(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Returns a number that a variable says, or what it is without one. For how long and how hard a
/// test tries: what it demands does not depend on it.
///
/// # Panics
/// If the variable is no number.
#[allow(
    clippy::disallowed_methods,
    reason = "the harness has no config: a few variables are all"
)]
pub fn number_of(variable: &str, default: u64) -> u64 {
    let given = std::env::var(variable).ok();
    let number = given.map(|given| given.parse());
    number.map_or(default, |number| {
        number.expect("the variable is a whole number")
    })
}

/// What a process has used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// The most memory it ever had resident, in bytes.
    pub rss_bytes_max: u64,
    /// Processor time of all its threads, user and system.
    pub cpu: Duration,
}

/// A running process.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    output: PathBuf,
}

impl Process {
    /// Starts `command` with its output appended to a file in `dir`.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn start(name: &str, mut command: Command, dir: &Path) -> anyhow::Result<Self> {
        let output = dir.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&output)?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let child = command
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            output,
        })
    }

    /// Returns what the process has written, cut to its end.
    pub fn output(&self) -> String {
        const OUTPUT_BYTES_MAX: usize = 8 << 10;
        let bytes = fs::read(&self.output).unwrap_or_default();
        let start = bytes.len().saturating_sub(OUTPUT_BYTES_MAX);
        String::from_utf8_lossy(&bytes[start..]).into_owned()
    }

    /// Returns the process's id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns whether the process runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until `is_ready` says so.
    ///
    /// # Errors
    /// If the process ends before, or takes too long; the error holds what it wrote.
    pub async fn wait_ready(
        &mut self,
        mut is_ready: impl AsyncFnMut() -> bool,
    ) -> anyhow::Result<()> {
        let began = Instant::now();
        while !is_ready().await {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status}:\n{}", self.name, self.output());
            }
            if began.elapsed() > DEADLINE {
                bail!(
                    "{} is not ready after {DEADLINE:?}:\n{}",
                    self.name,
                    self.output()
                );
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// Kills the process without warning and waits until it is gone.
    ///
    /// # Errors
    /// If it was gone already, with what it wrote.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::KILL)?;
        let status = self.child.wait()?;
        anyhow::ensure!(
            status.signal() == Some(Signal::KILL.as_raw()),
            "{} had ended with {status}:\n{}",
            self.name,
            self.output()
        );
        Ok(())
    }

    /// Asks the process to end and waits until it has.
    ///
    /// # Errors
    /// If it was gone already, or does not end in time.
    pub async fn terminate(&mut self) -> anyhow::Result<ExitStatus> {
        self.end_by(Signal::TERM).await
    }

    /// Sends a signal that ends the process, and waits until it has.
    ///
    /// # Errors
    /// If it was gone already, or does not end in time.
    pub async fn end_by(&mut self, signal: Signal) -> anyhow::Result<ExitStatus> {
        self.signal(signal)?;
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if began.elapsed() > DEADLINE {
                bail!("{} does not end:\n{}", self.name, self.output());
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Sends a signal: `STOP` and `CONT` freeze and thaw the process.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill_process(self.pid(), signal).with_context(|| format!("signalling {}", self.name))
    }

    /// Returns what the process has used until now.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        let proc = PathBuf::from(format!("/proc/{}", self.child.id()));
        let status = fs::read_to_string(proc.join("status"))?;
        let stat = fs::read_to_string(proc.join("stat"))?;
        Ok(Usage {
            rss_bytes_max: parse_rss_max(&status).context("VmHWM is in /proc/PID/status")?,
            cpu: parse_cpu(&stat).context("/proc/PID/stat has 52 fields")?,
        })
    }

    /// Returns how many bytes the process has written in its life, to whatever.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn written_bytes(&self) -> anyhow::Result<u64> {
        let io = fs::read_to_string(format!("/proc/{}/io", self.child.id()))?;
        let line = io.lines().find_map(|line| line.strip_prefix("wchar: "));
        Ok(line.context("wchar is in /proc/PID/io")?.parse()?)
    }

    /// Returns its id.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if the process is gone, which is what they are for.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn parse_rss_max(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

fn parse_cpu(stat: &str) -> Option<Duration> {
    // The second field is the name, in parentheses, and may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    let ticks_per_s = rustix::param::clock_ticks_per_second();
    Some(Duration::from_micros(
        (user + system) * 1_000_000 / ticks_per_s,
    ))
}

/// The shipper's `[upload]` settings.
#[derive(Debug, Clone)]
pub struct UploadSettings {
    /// Most logs in a batch.
    pub batch_logs_max: u64,
    /// Most bytes in a batch.
    pub batch_bytes_max: u64,
    /// Longest time for which a batch waits for more.
    pub linger_ms: u64,
    /// Most requests at once.
    pub concurrency_max: u64,
    /// `lz4`, `zstd` or `none`.
    pub compression: &'static str,
}

impl Default for UploadSettings {
    fn default() -> Self {
        Self {
            batch_logs_max: 10_000,
            batch_bytes_max: 1 << 20,
            linger_ms: 100,
            concurrency_max: 4,
            compression: "lz4",
        }
    }
}

/// The topic that everything here uploads to.
pub const TOPIC_ID: &str = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";
/// The host name that the driver is given.
pub const HOST_NAME: &str = "host-1";
/// Id of the key that everything here signs with, unless a test says otherwise.
pub const SECRET_ID: &str = "AKIDEXAMPLE";
/// That key.
pub const SECRET_KEY: &str = "SKEXAMPLE";

/// Returns the configuration of a stand-in that takes what a [`Host`] uploads, at any speed.
pub fn standin_config() -> Config {
    Config {
        has_quota: false,
        ..Config::new(Key::permanent(SECRET_ID, SECRET_KEY), TOPIC_ID)
    }
}

/// One host: a driver and a shipper as processes, and an engine, in a folder of their own.
#[derive(Debug)]
pub struct Host {
    /// The engine.
    pub dockerd: Dockerd,
    /// The driver; `None` while it is down.
    pub driver: Option<Process>,
    /// The shipper; `None` while it is down.
    pub shipper: Option<Process>,
    endpoint: String,
    upload: UploadSettings,
    admin: SocketAddr,
    dir: TempDir,
}

impl Host {
    /// Starts a host whose shipper uploads to `endpoint`, and waits until it is ready.
    ///
    /// # Errors
    /// If a process does not come up.
    pub async fn start(endpoint: &str, upload: UploadSettings) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let socket = dir.path().join("plugin.sock");
        let fifo_dir = dir.path().join("logging");
        fs::create_dir(&fifo_dir)?;
        let mut host = Self {
            dockerd: Dockerd::new(&socket, &fifo_dir),
            driver: None,
            shipper: None,
            endpoint: endpoint.to_owned(),
            upload,
            admin: free_address()?,
            dir,
        };
        host.start_shipper().await?;
        host.start_driver().await?;
        Ok(host)
    }

    /// Starts the shipper and waits until it is healthy.
    ///
    /// # Errors
    /// If it does not come up.
    pub async fn start_shipper(&mut self) -> anyhow::Result<()> {
        let program = program("cls-shipper", None)?;
        let config = self.shipper_toml();
        let shipper = start_shipper(program, self.dir.path(), &config, self.admin, &[]).await?;
        self.shipper = Some(shipper);
        Ok(())
    }

    /// Starts the driver and waits until it answers.
    ///
    /// # Errors
    /// If it does not come up.
    pub async fn start_driver(&mut self) -> anyhow::Result<()> {
        let dir = self.dir.path();
        let shipper = format!("unix://{}", dir.join("shipper.sock").display());
        let settings = [
            ("SHIPPER", shipper.as_str()),
            ("HOST_NAME", HOST_NAME),
            ("LOG_LEVEL", "info"),
        ];
        self.driver = Some(start_driver(program("cls-driver", None)?, dir, &settings).await?);
        Ok(())
    }

    /// Kills the driver and starts it again, as the engine does with a plugin.
    ///
    /// # Errors
    /// If it had ended by itself, or does not come up again.
    pub async fn restart_driver(&mut self) -> anyhow::Result<()> {
        self.driver.take().context("the driver runs")?.kill()?;
        self.start_driver().await
    }

    /// Kills the shipper and starts it again.
    ///
    /// # Errors
    /// If it had ended by itself, or does not come up again.
    pub async fn restart_shipper(&mut self) -> anyhow::Result<()> {
        self.kill_shipper()?;
        self.start_shipper().await
    }

    /// Kills the shipper.
    ///
    /// # Errors
    /// If it had ended by itself.
    pub fn kill_shipper(&mut self) -> anyhow::Result<()> {
        self.shipper.take().context("the shipper runs")?.kill()
    }

    /// Ends the shipper in good order, so that nothing is in flight, and returns its usage.
    ///
    /// # Errors
    /// If it had ended by itself, or does not end well.
    pub async fn stop_shipper(&mut self) -> anyhow::Result<Usage> {
        let mut shipper = self.shipper.take().context("the shipper runs")?;
        let usage = shipper.usage()?;
        let status = shipper.terminate().await?;
        anyhow::ensure!(
            status.success(),
            "shipper ended with {status}:\n{}",
            shipper.output()
        );
        Ok(usage)
    }

    /// Returns what the shipper's `/api/ledger` shows, one object per stream.
    ///
    /// # Errors
    /// If it does not answer, or with something else than such a list.
    pub async fn ledger<Line: DeserializeOwned>(&self) -> anyhow::Result<Vec<Line>> {
        let lines = client::call(self.admin, "GET", "/api/ledger").await?;
        Ok(serde_json::from_slice(&lines)?)
    }

    /// Returns what driver and shipper have written, for a failed case.
    pub fn output(&self) -> String {
        let of = |process: &Option<Process>| process.as_ref().map(Process::output);
        format!(
            "--- driver\n{}\n--- shipper\n{}",
            of(&self.driver).unwrap_or_default(),
            of(&self.shipper).unwrap_or_default()
        )
    }

    fn shipper_toml(&self) -> String {
        let UploadSettings {
            batch_logs_max,
            batch_bytes_max,
            linger_ms,
            concurrency_max,
            compression,
        } = &self.upload;
        format!(
            r#"[listen]
unix = "{socket}"
tcp = "127.0.0.1:0"

[defaults]
endpoint = "{endpoint}"
topic_id = "{TOPIC_ID}"
credentials = "default"

[credentials.default]
source = "inline"
secret_id = "{SECRET_ID}"
secret_key = "{SECRET_KEY}"

[upload]
linger_ms = {linger_ms}
batch_bytes_max = {batch_bytes_max}
batch_logs_max = {batch_logs_max}
compression = "{compression}"
concurrency_max = {concurrency_max}

[admin]
listen = "{admin}"
"#,
            socket = self.dir.path().join("shipper.sock").display(),
            endpoint = self.endpoint,
            admin = self.admin,
        )
    }
}

/// Returns a command that runs a binary of this workspace, in a network namespace if one is named.
///
/// # Errors
/// As [`binary`].
pub fn program(name: &str, netns: Option<&str>) -> anyhow::Result<Command> {
    let binary = binary(name)?;
    let Some(netns) = netns else {
        return Ok(Command::new(binary));
    };
    // `ip` becomes the program: its process is the one that is signalled.
    let mut command = Command::new("ip");
    command.args(["netns", "exec", netns]).arg(binary);
    Ok(command)
}

/// Starts a shipper in `dir`, with `config` and `arguments`, and waits until its admin server at
/// `admin` answers.
///
/// # Errors
/// If it does not come up.
pub async fn start_shipper(
    mut program: Command,
    dir: &Path,
    config: &str,
    admin: SocketAddr,
    arguments: &[&str],
) -> anyhow::Result<Process> {
    let path = dir.join("shipper.toml");
    fs::write(&path, config)?;
    program.arg("--config").arg(path).args(arguments);
    let mut shipper = Process::start("shipper", program, dir)?;
    shipper
        .wait_ready(async || client::call(admin, "GET", "/healthz").await.is_ok())
        .await?;
    Ok(shipper)
}

/// Starts a driver with its socket and its state in `dir`, and waits until it answers.
///
/// # Errors
/// If it does not come up.
pub async fn start_driver(
    mut program: Command,
    dir: &Path,
    settings: &[(&str, &str)],
) -> anyhow::Result<Process> {
    let socket = dir.join("plugin.sock");
    program.env("PLUGIN_SOCKET", &socket);
    program.env("STATE_DIR", dir.join("state"));
    program.env("FIFO_DIR", dir.join("logging"));
    program.envs(settings.iter().copied());
    let mut driver = Process::start("driver", program, dir)?;
    let is_ready = async || tokio::net::UnixStream::connect(&socket).await.is_ok();
    driver.wait_ready(is_ready).await?;
    Ok(driver)
}

/// Starts `cls-standin` as a process that takes what a [`Host`] uploads, and returns its address.
///
/// # Errors
/// If it does not come up.
pub async fn start_standin(dir: &Path, options: &[&str]) -> anyhow::Result<(Process, SocketAddr)> {
    let address = free_address()?;
    let mut command = Command::new(binary("cls-standin")?);
    command.args(["--listen", &address.to_string()]);
    command.args([
        "--secret-id",
        SECRET_ID,
        "--secret-key",
        SECRET_KEY,
        "--topic",
        TOPIC_ID,
    ]);
    command.args(options);
    let mut standin = Process::start("standin", command, dir)?;
    standin
        .wait_ready(async || client::call(address, "GET", "/stats").await.is_ok())
        .await?;
    Ok((standin, address))
}

/// Returns a loopback address whose port nobody uses now.
///
/// # Errors
/// If there is none.
pub fn free_address() -> std::io::Result<SocketAddr> {
    std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(dir: &Path) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", "echo started; exec sleep 1000"]);
        Process::start("sleeper", command, dir).unwrap()
    }

    #[test]
    fn a_test_builds_in_its_own_profile_for_its_own_target() {
        let options = |dir: &str| build_options(Path::new(dir)).unwrap().join(" ");
        let plain = "--profile dev --target-dir /tree/target";
        assert_eq!(options("/tree/target/debug"), plain);
        let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
        let quick = format!("--profile quick --target {triple} --target-dir /tree/target");
        assert_eq!(options(&format!("/tree/target/{triple}/quick")), quick);
    }

    #[test]
    fn usage_is_read_from_proc() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t 1 kB\n";
        assert_eq!(parse_rss_max(status), Some(2 << 20));
        let stat = "1 (a) b) S 1 1 1 0 -1 4194304 1 2 3 4 150 50 0 0 20 0 1 0 1";
        let ticks_per_s = rustix::param::clock_ticks_per_second();
        let expected = Duration::from_micros(200 * 1_000_000 / ticks_per_s);
        assert_eq!(parse_cpu(stat), Some(expected));
    }

    #[tokio::test]
    async fn a_process_can_be_killed_ended_and_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let mut process = sleeper(dir.path());
        let log = dir.path().join("sleeper.log");
        process
            .wait_ready(async || fs::read(&log).unwrap() == b"started\n")
            .await
            .unwrap();
        assert!(process.usage().unwrap().rss_bytes_max > 0);
        process.kill().unwrap();
        assert!(!process.is_running());
        let status = sleeper(dir.path()).terminate().await.unwrap();
        assert_eq!(status.signal(), Some(Signal::TERM.as_raw()));
    }

    #[tokio::test]
    async fn a_process_that_ends_early_is_never_ready() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo because; exit 3"]);
        let mut process = Process::start("failing", command, dir.path()).unwrap();
        let error = process
            .wait_ready(async || false)
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("exit status: 3") && error.contains("because"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_dropped_process_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let process = sleeper(dir.path());
        let proc = PathBuf::from(format!("/proc/{}", process.child.id()));
        assert!(proc.exists());
        drop(process);
        assert!(!proc.exists());
    }
}
