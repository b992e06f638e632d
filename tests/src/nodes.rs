//! Drivers and shippers as nodes of their own, any number of each and over any transport, where
//! [`Host`](crate::processes::Host) is one pair on a unix socket.

use crate::client;
use crate::dockerd::Dockerd;
use crate::processes::{
    Process, TOPIC_ID, binary, free_address, program, start_driver, start_shipper,
};
use anyhow::Context as _;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// Where a shipper in a network namespace of its own tells of itself.
const ADMIN_PORT: u16 = 9464;

/// How a shipper is set up.
#[derive(Debug, Clone)]
pub struct ShipperSettings {
    /// CLS's endpoint.
    pub endpoint: String,
    /// Keys of `[listen]` besides `unix`, and sections below it.
    pub listen: String,
    /// Keys of `[credentials.default]`.
    pub credentials: String,
    /// Further sections.
    pub sections: String,
    /// What it logs.
    pub log_level: &'static str,
    /// Where it runs, if not beside the test.
    pub netns: Option<Site>,
    /// How many files it may have open, if not as many as the test.
    pub files_max: Option<u64>,
}

/// A network namespace, and the address of whoever is in it.
#[derive(Debug, Clone)]
pub struct Site {
    /// Name of the namespace.
    pub netns: String,
    /// Its address, which the test can reach.
    pub address: IpAddr,
}

/// A shipper.
#[derive(Debug)]
pub struct Shipper {
    /// The process; `None` while it is down.
    pub process: Option<Process>,
    settings: ShipperSettings,
    admin: SocketAddr,
    dir: TempDir,
}

impl Shipper {
    /// Starts a shipper and waits until it is healthy.
    ///
    /// # Errors
    /// If it does not come up.
    pub async fn start(settings: ShipperSettings) -> anyhow::Result<Self> {
        // A namespace of one process has all ports free.
        let admin = match &settings.netns {
            Some(site) => SocketAddr::new(site.address, ADMIN_PORT),
            None => free_address()?,
        };
        let mut shipper = Self {
            process: None,
            settings,
            admin,
            dir: tempfile::tempdir()?,
        };
        shipper.up().await?;
        Ok(shipper)
    }

    /// Starts the process, which is down.
    ///
    /// # Errors
    /// If it does not come up.
    pub async fn up(&mut self) -> anyhow::Result<()> {
        let arguments = ["--log-level", self.settings.log_level];
        let netns = self.settings.netns.as_ref().map(|site| &*site.netns);
        let program = match self.settings.files_max {
            None => program("cls-shipper", netns)?,
            Some(files_max) => {
                // It becomes the program: its process is the one that is signalled.
                let mut command = Command::new("prlimit");
                command.arg(format!("--nofile={files_max}"));
                command.arg(binary("cls-shipper")?);
                command
            }
        };
        let config = self.config();
        let process = start_shipper(program, self.dir(), &config, self.admin, &arguments).await?;
        self.process = Some(process);
        Ok(())
    }

    /// Kills the process.
    ///
    /// # Errors
    /// If it had ended by itself.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.take().context("the shipper runs")?.kill()
    }

    /// Ends the process in good order.
    ///
    /// # Errors
    /// If it had ended by itself, or does not end well.
    pub async fn stop(&mut self) -> anyhow::Result<()> {
        let mut process = self.process.take().context("the shipper runs")?;
        let status = process.terminate().await?;
        anyhow::ensure!(status.success(), "{status}:\n{}", process.output());
        Ok(())
    }

    /// Returns what the admin server answers.
    ///
    /// # Errors
    /// If it does not answer with 200.
    pub async fn admin(&self, path: &str) -> anyhow::Result<String> {
        let body = client::call(self.admin, "GET", path).await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// Returns the address of its admin server.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// Returns a metric without labels.
    ///
    /// # Errors
    /// If there is none of this name.
    pub async fn metric(&self, name: &str) -> anyhow::Result<u64> {
        let metrics = self.admin("/metrics").await?;
        let mut lines = metrics.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value = value.with_context(|| format!("no metric {name} in\n{metrics}"))?;
        Ok(value.parse()?)
    }

    /// Returns all that the process has written.
    pub fn log(&self) -> String {
        read(&self.dir().join("shipper.log"))
    }

    /// Returns the unix socket that it listens on.
    pub fn socket(&self) -> PathBuf {
        self.dir().join("shipper.sock")
    }

    /// Returns its folder.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn config(&self) -> String {
        let ShipperSettings {
            endpoint,
            listen,
            credentials,
            sections,
            ..
        } = &self.settings;
        format!(
            r#"[listen]
unix = "{socket}"
{listen}
[defaults]
endpoint = "{endpoint}"
topic_id = "{TOPIC_ID}"
credentials = "default"
[credentials.default]
{credentials}
[upload]
insecure = true
linger_ms = 100
[dead_letter]
path = "{dead_letters}"
[admin]
listen = "{admin}"
{sections}
"#,
            socket = self.socket().display(),
            dead_letters = self.dir().join("dead-letter.jsonl").display(),
            admin = self.admin,
        )
    }
}

/// A driver with its engine.
#[derive(Debug)]
pub struct Driver {
    /// The engine.
    pub dockerd: Dockerd,
    /// The process.
    pub process: Process,
    dir: TempDir,
}

impl Driver {
    /// Starts a driver with `settings` and waits until it answers.
    ///
    /// # Errors
    /// If it does not come up.
    pub async fn start(settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        Self::start_in(None, settings).await
    }

    /// Starts a driver in a network namespace, or beside the test, and waits until it answers.
    ///
    /// # Errors
    /// If it does not come up.
    pub async fn start_in(netns: Option<&str>, settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let fifo_dir = dir.path().join("logging");
        fs::create_dir(&fifo_dir)?;
        Ok(Self {
            process: start_driver(program("cls-driver", netns)?, dir.path(), settings).await?,
            dockerd: Dockerd::new(&dir.path().join("plugin.sock"), &fifo_dir),
            dir,
        })
    }

    /// Returns all that the process has written.
    pub fn log(&self) -> String {
        read(&self.dir().join("driver.log"))
    }

    /// Returns its folder.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

/// Returns the content of every file below a folder, and the files' names.
///
/// # Errors
/// Those of the file system; a file that goes away meanwhile is none.
pub fn everything_in(dir: &Path) -> std::io::Result<String> {
    let mut all = String::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        all.push_str(&path.to_string_lossy());
        if kind.is_dir() {
            all.push_str(&everything_in(&path)?);
        } else if kind.is_file() {
            all.push_str(&read(&path));
        }
    }
    Ok(all)
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}
