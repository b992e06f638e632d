//! A real Docker engine of its own: dockerd and containerd as children of the test, with their own
//! data, sockets and pid files, so that a test may kill and restart them and no other engine on the
//! machine notices.
//!
//! Everything lives in one folder, `/var/tmp/cls-e2e-<pid>-<n>`. The engine has a mount namespace of
//! its own, in which the folder's `run` is `/run`: plugins' sockets, shims' sockets and whatever else
//! engines put there whatever they are told stays in the folder, and all mounts are gone with the
//! last process. The network is that of the test, a namespace as well (`crate::net`). At the end all
//! processes that belong to the folder are killed, and then it is removed. What an earlier run left
//! because it was killed itself is cleared away at the next start, which is why the folder's name has
//! the owner's pid.

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use world::processes::{Process, wait_until};

const PARENT: &str = "/var/tmp";
const PREFIX: &str = "cls-e2e-";
/// The engine ends its containers and plugins when it is asked to end; it gives them 15 s.
const STOP_DEADLINE: Duration = Duration::from_secs(40);
const START_DEADLINE: Duration = Duration::from_secs(60);
/// Makes a folder `/run`, and becomes containerd.
const START_CONTAINERD: &str = r#"mount --bind "$1" /run && exec containerd --config "$2""#;
/// No command of a test takes longer, unless the engine hangs.
const COMMAND_DEADLINE: Duration = Duration::from_secs(90);

/// Where an engine is spoken to. It stays the same when the engine is restarted.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    host: String,
    config: PathBuf,
}

impl Client {
    /// Returns a command that, if it speaks to an engine, speaks to this one.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env_remove("DOCKER_CONTEXT")
            .env("DOCKER_HOST", &self.host)
            .env("DOCKER_CONFIG", &self.config)
            .stdin(std::process::Stdio::null());
        command
    }

    /// Runs the Docker client and returns what it wrote to stdout, without the last line end.
    ///
    /// # Errors
    /// If its status is not 0, with what it wrote to stderr.
    pub(crate) async fn docker(&self, args: &[&str]) -> anyhow::Result<String> {
        let mut command = self.command("docker");
        command.args(args);
        succeed(command).await
    }
}

/// A running engine.
#[derive(Debug)]
pub(crate) struct Engine {
    folder: PathBuf,
    containerd: Process,
    dockerd: Option<Process>,
    flags: Vec<&'static str>,
}

impl Engine {
    /// Starts an engine with `daemon` as its `daemon.json`.
    pub(crate) async fn start(daemon: &Value, flags: &[&'static str]) -> anyhow::Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "the end-to-end tests start an engine of their own, and only root may: run them as root"
        );
        clear_leftovers()?;
        let folder = new_folder()?;
        let containerd = start_containerd(&folder).await?;
        let mut engine = Self {
            folder,
            containerd,
            dockerd: None,
            flags: flags.to_vec(),
        };
        engine.start_dockerd(daemon).await?;
        Ok(engine)
    }

    /// Starts dockerd on what the last one left.
    pub(crate) async fn start_dockerd(&mut self, daemon: &Value) -> anyhow::Result<()> {
        let config = self.folder.join("daemon.json");
        fs::write(&config, daemon.to_string())?;
        let mut command = self.inside("dockerd");
        let path = |name: &str| self.folder.join(name);
        command
            .arg("--config-file")
            .arg(config)
            .arg("--data-root")
            .arg(path("data"))
            .arg("--exec-root")
            .arg(path("exec"))
            .arg("--pidfile")
            .arg(path("dockerd.pid"))
            .arg("--host")
            .arg(self.host())
            .arg("--containerd")
            .arg(path("containerd.sock"))
            // Containers need no network, and engines that may touch the packet filter do.
            .args(["--bridge=none", "--iptables=false", "--ip6tables=false"])
            .args(&self.flags);
        let mut dockerd = Process::start("dockerd", command, &self.folder)?;
        let answers = async || self.try_docker(["version"]).await.is_ok();
        tokio::time::timeout(START_DEADLINE, dockerd.wait_ready(answers))
            .await
            .context("dockerd does not answer")??;
        self.dockerd = Some(dockerd);
        Ok(())
    }

    /// Asks dockerd to end and waits until it has; containers and plugins end with it.
    pub(crate) async fn stop_dockerd(&mut self) -> anyhow::Result<()> {
        let mut dockerd = self.dockerd.take().context("dockerd runs")?;
        dockerd.signal(Signal::TERM)?;
        wait_until("dockerd ends", STOP_DEADLINE, async || {
            !dockerd.is_running()
        })
        .await
    }

    /// Kills dockerd.
    pub(crate) fn kill_dockerd(&mut self) -> anyhow::Result<()> {
        self.dockerd.take().context("dockerd runs")?.kill()
    }

    /// Returns the engine's address.
    pub(crate) fn host(&self) -> String {
        format!("unix://{}", self.folder.join("docker.sock").display())
    }

    /// Returns a way to speak to it that is of no lifetime.
    pub(crate) fn client(&self) -> Client {
        Client {
            host: self.host(),
            config: self.folder.join("client"),
        }
    }

    /// Sends a signal to dockerd: `STOP` and `CONT` freeze and thaw it.
    pub(crate) fn signal_dockerd(&self, signal: Signal) -> anyhow::Result<()> {
        self.dockerd
            .as_ref()
            .context("dockerd runs")?
            .signal(signal)
    }

    /// Returns how many bytes dockerd has written in its life.
    pub(crate) fn written_bytes(&self) -> anyhow::Result<u64> {
        self.dockerd
            .as_ref()
            .context("dockerd runs")?
            .written_bytes()
    }

    /// Returns the folder of this engine, which goes with it.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the folder that is `/run` for the engine, and `/host/run` for the plugin.
    pub(crate) fn run_folder(&self) -> PathBuf {
        run_folder(&self.folder)
    }

    /// Returns a command that runs a program where the engine is: with its mounts.
    pub(crate) fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        let mounts = proc(self.containerd.pid()).join("ns/mnt");
        command.arg(format!("--mount={}", mounts.display()));
        command.args(["--", program]);
        command
    }

    /// Returns the root folder as the engine sees it.
    pub(crate) fn root(&self) -> PathBuf {
        proc(self.containerd.pid()).join("root")
    }

    /// Returns a command that, if it speaks to an engine, speaks to this one.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.client().command(program)
    }

    /// Returns a command of Compose, be it a program of its own or a part of the Docker client.
    pub(crate) async fn compose(&self) -> Command {
        if self.try_docker(["compose", "version"]).await.is_err() {
            return self.command("docker-compose");
        }
        let mut command = self.command("docker");
        command.arg("compose");
        command
    }

    /// Runs the Docker client and returns its output, whatever its status.
    pub(crate) async fn docker_output<'a>(
        &self,
        args: impl IntoIterator<Item = &'a str>,
    ) -> anyhow::Result<Output> {
        let mut command = self.command("docker");
        command.args(args);
        run(command).await
    }

    /// Runs the Docker client and returns what it wrote to stdout, without the last line end.
    ///
    /// # Errors
    /// If its status is not 0, with what it wrote to stderr.
    pub(crate) async fn try_docker<'a>(
        &self,
        args: impl IntoIterator<Item = &'a str>,
    ) -> anyhow::Result<String> {
        let mut command = self.command("docker");
        command.args(args);
        succeed(command).await
    }

    /// Returns the processes of this engine's plugins and containers that run `program`.
    pub(crate) fn processes(&self, program: &str) -> Vec<Pid> {
        let runs = |pid: &Pid| {
            let cmdline = fs::read(proc(*pid).join("cmdline")).unwrap_or_default();
            cmdline.split(|&byte| byte == 0).next() == Some(program.as_bytes())
        };
        isolated_processes(&self.folder)
            .into_iter()
            .filter(runs)
            .collect()
    }

    /// Returns the end of what dockerd wrote, the plugin's own messages among it.
    pub(crate) fn output(&self) -> String {
        let dockerd = self.dockerd.as_ref();
        let output = dockerd.map(Process::output);
        output.unwrap_or_else(|| self.containerd.output())
    }

    /// Returns all that dockerd has written, the plugin's own messages among it.
    pub(crate) fn log(&self) -> String {
        let log = fs::read(self.folder.join("dockerd.log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Ends the engine and removes all that it left.
    pub(crate) async fn end(mut self) -> anyhow::Result<()> {
        if self.dockerd.is_some() {
            // If it hangs, what is to be cleared away is killed all the same.
            self.stop_dockerd().await.ok();
        }
        drop(self.dockerd.take());
        self.containerd.terminate().await.ok();
        clear(&self.folder)
    }
}

/// Runs a command to its end, within [`COMMAND_DEADLINE`].
pub(crate) async fn run(command: Command) -> anyhow::Result<Output> {
    let what = format!("{command:?}");
    let mut command = tokio::process::Command::from(command);
    let output = command.kill_on_drop(true).output();
    tokio::time::timeout(COMMAND_DEADLINE, output)
        .await
        .with_context(|| format!("{what} is not done after {COMMAND_DEADLINE:?}"))?
        .with_context(|| format!("{what} can't be started"))
}

/// Runs a command and returns what it wrote to stdout, without the last line end.
///
/// # Errors
/// If its status is not 0, with what it wrote to stderr.
pub(crate) async fn succeed(command: Command) -> anyhow::Result<String> {
    let what = format!("{command:?}");
    let output = run(command).await?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "{what}: {}\n{stdout}{stderr}",
        output.status
    );
    Ok(stdout.trim_end_matches('\n').to_owned())
}

fn new_folder() -> anyhow::Result<PathBuf> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let folder = Path::new(PARENT).join(format!("{PREFIX}{}-{count}", std::process::id()));
    for folder in [&folder, &run_folder(&folder)] {
        fs::create_dir(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    Ok(folder)
}

fn run_folder(folder: &Path) -> PathBuf {
    folder.join("run")
}

/// Starts a containerd of its own, in a mount namespace of its own. dockerd would otherwise share the
/// machine's, if there is one, and with it the names of containers and plugins.
async fn start_containerd(folder: &Path) -> anyhow::Result<Process> {
    let socket = folder.join("containerd.sock");
    let config = folder.join("containerd.toml");
    let text = format!(
        r#"version = 2
root = "{folder}/containerd"
state = "{folder}/containerd-state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]

[grpc]
address = "{socket}"

[ttrpc]
address = "{socket}.ttrpc"
"#,
        folder = folder.display(),
        socket = socket.display(),
    );
    fs::write(&config, text)?;
    let mut command = Command::new("unshare");
    // What is mounted outside later is seen inside, and nothing the other way round.
    command.args(["--mount", "--propagation=slave", "--", "sh", "-ec"]);
    command.args([START_CONTAINERD, "sh"]);
    command.arg(run_folder(folder)).arg(config);
    let mut containerd = Process::start("containerd", command, folder)?;
    let answers = async || tokio::net::UnixStream::connect(&socket).await.is_ok();
    containerd.wait_ready(answers).await?;
    Ok(containerd)
}

/// Removes what runs that were killed have left.
fn clear_leftovers() -> anyhow::Result<()> {
    for entry in fs::read_dir(PARENT)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let owner = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            clear(&path)?;
        }
    }
    Ok(())
}

/// Kills what belongs to the folder, and removes it.
fn clear(folder: &Path) -> anyhow::Result<()> {
    // Shims are known by the address they were given, and what they started by its mounts.
    for pid in serving_processes(folder)
        .into_iter()
        .chain(isolated_processes(folder))
    {
        // It may have ended meanwhile.
        kill_process(pid, Signal::KILL).ok();
    }
    // Nothing is mounted in it that this process sees; if there were, it would be the host's own.
    let status = Command::new("rm")
        .args(["--recursive", "--force", "--one-file-system", "--"])
        .arg(folder)
        .status()?;
    ensure!(status.success(), "removing {}: {status}", folder.display());
    Ok(())
}

fn proc(pid: Pid) -> PathBuf {
    PathBuf::from(format!("/proc/{}", pid.as_raw_nonzero()))
}

fn all_processes() -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(Pid::from_raw)
        .collect()
}

/// Returns processes other than this one that were given a path in the folder.
fn serving_processes(folder: &Path) -> Vec<Pid> {
    let folder = format!("{}/", folder.display());
    let is_given = |pid: &Pid| {
        let cmdline = fs::read(proc(*pid).join("cmdline")).unwrap_or_default();
        *pid != rustix::process::getpid() && String::from_utf8_lossy(&cmdline).contains(&folder)
    };
    all_processes().into_iter().filter(is_given).collect()
}

/// Returns processes in mount namespaces of their own whose root is from the folder. Others may merely
/// see what is mounted below it: what runs in a network namespace has a copy of this one's mounts.
fn isolated_processes(folder: &Path) -> Vec<Pid> {
    let own = fs::read_link("/proc/self/ns/mnt").ok();
    let folder = format!("{}/", folder.display());
    let is_root_of_it =
        |mount: &str| mount.split(' ').nth(4) == Some("/") && mount.contains(&folder);
    let is_isolated = |pid: &Pid| {
        let namespace = fs::read_link(proc(*pid).join("ns/mnt")).ok();
        let mounts = fs::read_to_string(proc(*pid).join("mountinfo")).unwrap_or_default();
        namespace.is_some() && namespace != own && mounts.lines().any(is_root_of_it)
    };
    all_processes().into_iter().filter(is_isolated).collect()
}
