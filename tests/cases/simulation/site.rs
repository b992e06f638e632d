//! The site of a run: driver and shipper, each in a runtime of its own that can be dropped at any
//! moment, with an engine, CLS, and links between them.

use super::disk::{Faults, Life, SimDisk};
use super::link::{End, Link, Place};
use super::platter::Platter;
use super::schedule::Schedule;
use super::time::Time;
use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use world::dockerd::Dockerd;
use world::standin::Standin;
use world::standin::config::{Clock, Config as StandinConfig, Key};
use world::standin::store::Upload;

/// The topic of all containers.
pub(super) const TOPIC_ID: &str = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";
/// Time at which a run begins.
const BEGIN: Duration = Duration::from_secs(1_795_356_800);

/// One of the two processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    Driver,
    Shipper,
}

/// What both processes share with the rest.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) schedule: Schedule,
    pub(super) time: Time,
    pub(super) disk: Arc<Faults>,
    /// What survives a loss of power, if one comes.
    pub(super) platter: Option<Arc<Platter>>,
    /// Whether power has been lost.
    pub(super) dark: watch::Sender<bool>,
    pub(super) plugin: Arc<Link>,
    pub(super) relay: Arc<Link>,
    pub(super) upstream: Arc<Link>,
    pub(super) standin: Standin,
    /// How wrong the shipper's clock is, in seconds.
    pub(super) clock_error: Arc<AtomicI64>,
    /// Kill the shipper when so many uploads have come; 0 for never.
    kill_at_upload: AtomicU64,
    /// Power was lost, and the disk does not show it yet.
    must_lose: AtomicBool,
    dir: PathBuf,
    address: SocketAddr,
    driver: Running,
    shipper: Running,
    is_over: AtomicBool,
    seen: Mutex<Seen>,
}

/// What happened.
#[derive(Debug, Default)]
struct Seen {
    counts: BTreeMap<String, u64>,
    problems: Vec<String>,
}

/// The process that runs now.
#[derive(Debug, Default)]
struct Running {
    life: Mutex<Option<Arc<Life>>>,
    stop: Mutex<Option<oneshot::Sender<()>>>,
}

/// How a process ended.
#[derive(Debug)]
enum Ended {
    Killed,
    Itself(Result<(), String>),
}

impl Site {
    /// Builds a site in an empty folder, and starts it. `host` is a loopback address that nobody
    /// else uses.
    pub(super) async fn start(
        schedule: Schedule,
        time: Time,
        dir: &Path,
        host: std::net::Ipv4Addr,
        tasks: &mut JoinSet<()>,
    ) -> Arc<Self> {
        for folder in ["fifos", "state", "attic"] {
            std::fs::create_dir(dir.join(folder)).unwrap();
        }
        let loses_power = schedule.loses_power();
        let platter = || Arc::new(Platter::new(dir.join("state"), dir.join("attic")));
        let platter = loses_power.then(platter);
        let address = |port| SocketAddr::from((host, port));
        let (watcher, uploads) = mpsc::channel(1);
        let standin = start_standin(address(8_001), &time, watcher).await;
        let link = || Link::new(time.activity());
        let site = Arc::new(Self {
            schedule,
            disk: Arc::default(),
            platter,
            dark: watch::Sender::new(false),
            must_lose: AtomicBool::new(false),
            plugin: link(),
            relay: link(),
            upstream: link(),
            clock_error: Arc::default(),
            kill_at_upload: AtomicU64::new(0),
            dir: dir.to_owned(),
            address: address(8_000),
            driver: Running::default(),
            shipper: Running::default(),
            is_over: AtomicBool::new(false),
            seen: Mutex::default(),
            standin,
            time,
        });
        site.tell_keys(&key(0));
        let unix = |name: &str| Place::Unix(dir.join(name));
        let (near, far) = (unix("plugin.sock"), unix("driver.sock"));
        tasks.spawn(Arc::clone(&site.plugin).run(near, far));
        let (near, far) = (unix("relay.sock"), unix("shipper.sock"));
        tasks.spawn(Arc::clone(&site.relay).run(near, far));
        let (near, far) = (Place::Tcp(address(8_000)), Place::Tcp(address(8_001)));
        tasks.spawn(Arc::clone(&site.upstream).run(near, far));
        tasks.spawn(Arc::clone(&site).watch_uploads(uploads));
        tasks.spawn(Arc::clone(&site).keep(Who::Driver));
        tasks.spawn(Arc::clone(&site).keep(Who::Shipper));
        site
    }

    /// Returns an engine of this site.
    pub(super) fn dockerd(&self) -> Dockerd {
        Dockerd::new(&self.dir.join("plugin.sock"), &self.dir.join("fifos"))
    }

    /// Returns the folders of the driver's streams.
    pub(super) fn streams(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.join("state")).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        // What is over may stay for a while, for whoever looks into it.
        let is_over = |path: &Path| path.join("ended.json").exists() || is_empty(path);
        // A loss of power that keeps changes out of order may leave some of what was being removed.
        let is_damaged = |path: &Path| path.extension().is_some_and(|name| name == "damaged");
        let open = paths.filter(|path| path.is_dir() && !is_over(path) && !is_damaged(path));
        let name_of = |path: std::path::PathBuf| path.display().to_string();
        open.map(name_of).collect()
    }

    /// Returns the records in the dead-letter store: the values of `content`, with their times.
    pub(super) fn dead_letters(&self) -> Vec<(String, i64)> {
        let text = std::fs::read_to_string(self.dir.join("dead-letter.jsonl")).unwrap_or_default();
        let letter = |line: &str| {
            let letter: serde_json::Value = serde_json::from_str(line).ok()?;
            let fields = letter["fields"].as_array()?;
            let content = fields.iter().find(|field| field[0] == "content")?;
            Some((content[1].as_str()?.to_owned(), letter["time_ms"].as_i64()?))
        };
        text.lines().filter_map(letter).collect()
    }

    /// Returns the shipper's ledger; `None` while it can't be had.
    pub(super) async fn ledger(&self) -> Option<Vec<shipper::show::ledger::Line>> {
        let admin = SocketAddr::from((self.address.ip(), 8_002));
        let asked = world::client::call(admin, "GET", "/api/ledger");
        let answer = tokio::time::timeout(Duration::from_secs(5), asked).await;
        serde_json::from_slice(&answer.ok()?.ok()?).ok()
    }

    /// Counts something that happened.
    pub(super) fn count(&self, what: &str) {
        *self.seen().counts.entry(what.to_owned()).or_default() += 1;
    }

    /// Returns what happened, with how often, and what should not have.
    pub(super) fn seen_so_far(&self) -> (BTreeMap<String, u64>, Vec<String>) {
        let mut counts = self.seen().counts.clone();
        counts.extend(self.disk.injected());
        for (name, link) in [("relay", &self.relay), ("upstream", &self.upstream)] {
            counts.insert(format!("{name} connections cut"), link.cut_count());
        }
        for (kind, count) in self.standin.stats().faults {
            counts.insert(format!("cls {kind}"), count);
        }
        (counts, self.seen().problems.clone())
    }

    /// Notes something that should not have happened.
    pub(super) fn complain(&self, problem: String) {
        self.seen().problems.push(problem);
    }

    /// Kills a process as it stands.
    pub(super) fn kill(&self, who: Who) {
        if let Some(life) = lock(&self.running(who).life).as_ref() {
            life.end();
        }
    }

    /// Kills the driver at its n-th call of the disk from now.
    pub(super) fn kill_driver_at_call(&self, n: u64) {
        if let Some(life) = lock(&self.driver.life).as_ref() {
            life.end_at_call(n);
        }
    }

    /// Takes back a kill that has not happened yet.
    pub(super) fn spare_driver(&self) {
        self.kill_driver_at_call(u64::MAX / 2);
    }

    /// Kills the shipper when CLS has stored the n-th upload from now.
    pub(super) fn kill_shipper_at_upload(&self, n: u64) {
        self.kill_at_upload.store(n, Ordering::Release);
    }

    /// Takes the power from the driver's machine: what runs there ends at once, containers too.
    pub(super) fn lose_power(&self) {
        self.must_lose.store(true, Ordering::Release);
        self.kill(Who::Driver);
        self.dark.send_replace(true);
        // Pipes end with the machine; their names may be on its disk.
        let mut random = fastrand::Rng::with_seed(self.schedule.power_seed);
        for entry in std::fs::read_dir(self.dir.join("fifos")).unwrap() {
            let path = entry.unwrap().path();
            std::fs::remove_file(&path).unwrap();
            if random.bool() {
                let mode = rustix::fs::Mode::RWXU;
                rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode).unwrap();
            }
        }
        self.count("power lost");
    }

    /// Puts the disk into the state in which it is when the power is back.
    fn show_loss(&self) {
        let Some(platter) = &self.platter else { return };
        if self.must_lose.swap(false, Ordering::AcqRel) {
            let mut random = fastrand::Rng::with_seed(self.schedule.power_seed);
            platter.lose_power(&mut random);
        }
        platter.process_begins();
    }

    /// Asks a process to stop in good order.
    pub(super) fn stop(&self, who: Who) {
        if let Some(stop) = lock(&self.running(who).stop).take() {
            stop.send(()).ok();
        }
    }

    /// Ends both processes for good.
    pub(super) fn end(&self) {
        self.is_over.store(true, Ordering::Release);
        self.kill(Who::Driver);
        self.kill(Who::Shipper);
    }

    /// Lets CLS know the n-th key only.
    pub(super) fn replace_keys(&self, n: u64) {
        let (id, secret) = key(n);
        self.standin
            .replace_keys(vec![Key::permanent(&id, &secret)]);
    }

    /// Writes a key into the shipper's file.
    pub(super) fn tell_new_keys(&self, n: u64) {
        self.tell_keys(&key(n));
    }

    fn tell_keys(&self, (id, secret): &(String, String)) {
        let text = serde_json::json!({ "secret_id": id, "secret_key": secret }).to_string();
        let (path, new) = (self.dir.join("key.json"), self.dir.join("key.new"));
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, path).unwrap();
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        lock(&self.seen)
    }

    fn running(&self, who: Who) -> &Running {
        match who {
            Who::Driver => &self.driver,
            Who::Shipper => &self.shipper,
        }
    }

    async fn watch_uploads(self: Arc<Self>, mut uploads: mpsc::Receiver<Arc<Upload>>) {
        let activity = self.time.activity();
        while uploads.recv().await.is_some() {
            activity.fetch_add(1, Ordering::Relaxed);
            let left = self.kill_at_upload.load(Ordering::Acquire);
            if left > 0 {
                self.kill_at_upload.store(left - 1, Ordering::Release);
                if left == 1 {
                    self.kill(Who::Shipper);
                }
            }
        }
    }

    /// Runs a process, and the next one whenever it has ended.
    async fn keep(self: Arc<Self>, who: Who) {
        while !self.is_over.load(Ordering::Acquire) {
            if who == Who::Driver {
                self.show_loss();
            }
            let (died, stop) = (Arc::new(Notify::new()), oneshot::channel());
            let life = Arc::new(self.life(who, Arc::clone(&died)));
            *lock(&self.running(who).life) = Some(Arc::clone(&life));
            *lock(&self.running(who).stop) = Some(stop.0);
            self.revive(who);
            let site = Arc::clone(&self);
            let ended = match who {
                Who::Driver => {
                    let life = Arc::clone(&life);
                    in_a_runtime(&self.time, died, move || site.run_driver(life, stop.1)).await
                }
                Who::Shipper => {
                    in_a_runtime(&self.time, died, move || site.run_shipper(stop.1)).await
                }
            };
            match ended {
                Ended::Killed => self.count(&format!("{who:?} killed")),
                Ended::Itself(Ok(())) => self.count(&format!("{who:?} stopped")),
                Ended::Itself(Err(_)) if life.is_over() => self.count(&format!("{who:?} killed")),
                Ended::Itself(Err(error)) => {
                    self.complain(format!("the {who:?} has ended by itself: {error}"));
                }
            }
            // Nothing of it may be left.
            life.end();
            tokio::time::sleep(Duration::from_millis(self.schedule.restart_ms)).await;
        }
    }

    /// Returns a life that ends with all connections of its process.
    fn life(&self, who: Who, died: Arc<Notify>) -> Life {
        let ends = self.ends(who);
        Life::new(move || {
            for (link, end) in &ends {
                link.kill(*end);
            }
            died.notify_one();
        })
    }

    fn revive(&self, who: Who) {
        for (link, end) in self.ends(who) {
            link.revive(end);
        }
    }

    fn ends(&self, who: Who) -> [(Arc<Link>, End); 2] {
        match who {
            Who::Driver => [
                (Arc::clone(&self.plugin), End::Far),
                (Arc::clone(&self.relay), End::Near),
            ],
            Who::Shipper => [
                (Arc::clone(&self.relay), End::Far),
                (Arc::clone(&self.upstream), End::Near),
            ],
        }
    }

    async fn run_driver(
        self: Arc<Self>,
        life: Arc<Life>,
        stop: oneshot::Receiver<()>,
    ) -> Result<(), String> {
        let path = |name: &str| self.dir.join(name).to_string_lossy().into_owned();
        let raw = driver::RawConfig::from_pairs([
            ("PLUGIN_SOCKET", path("driver.sock").as_str()),
            ("STATE_DIR", &path("state")),
            ("SHIPPER", &format!("unix://{}", path("relay.sock"))),
            ("HOST_NAME", "host-1"),
            ("JOURNAL_SIZE", "64m"),
            ("JOURNAL_FREE_DISK", "0"),
            ("JOURNAL_SYNC_MS", &self.schedule.sync_ms.to_string()),
            (
                "JOURNAL_BLOCK_MS_MAX",
                &self.schedule.block_ms_max.to_string(),
            ),
        ]);
        let config = driver::Config::parse(&raw).map_err(|error| error.to_string())?;
        let disk = SimDisk {
            faults: Arc::clone(&self.disk),
            life,
            activity: self.time.activity(),
            platter: self.platter.clone(),
        };
        let ran = driver::run(config, Arc::new(disk), stopped(stop)).await;
        ran.map_err(|error| error.to_string())
    }

    async fn run_shipper(self: Arc<Self>, stop: oneshot::Receiver<()>) -> Result<(), String> {
        let text = self.shipper_toml();
        let table = text.parse().map_err(|error| format!("{error}"))?;
        let config = shipper::config::Config::from_table(table, std::iter::empty())
            .map_err(|faults| faults.to_string())?;
        let clock_error = Arc::clone(&self.clock_error);
        let time = self.time.clone();
        let clock = shipper::base::clock::WallClock::new(move || {
            let error = clock_error.load(Ordering::Relaxed);
            let now = BEGIN + time.now();
            match u64::try_from(error) {
                Ok(fast) => now + Duration::from_secs(fast),
                Err(_) => now.saturating_sub(Duration::from_secs(error.unsigned_abs())),
            }
        });
        let ran = shipper::run(config, clock, stopped(stop)).await;
        ran.map_err(|error| error.to_string())
    }

    fn shipper_toml(&self) -> String {
        let path = |name: &str| self.dir.join(name).display().to_string();
        let schedule = &self.schedule;
        format!(
            r#"shutdown_grace_ms = 8000
[listen]
unix = "{socket}"
[defaults]
endpoint = "http://{endpoint}"
topic_id = "{TOPIC_ID}"
[credentials.default]
source = "file"
path = "{key}"
[dead_letter]
path = "{dead_letter}"
[admin]
listen = "{ip}:8002"
[[tenants]]
name = "simulated"
anyone = true
[upload]
linger_ms = {linger_ms}
batch_bytes_max = {batch_bytes_max}
batch_logs_max = {batch_logs_max}
concurrency_max = {concurrency_max}
buffer_bytes_max = {buffer_bytes_max}
"#,
            socket = path("shipper.sock"),
            endpoint = self.address,
            key = path("key.json"),
            dead_letter = path("dead-letter.jsonl"),
            ip = self.address.ip(),
            linger_ms = schedule.linger_ms,
            batch_bytes_max = schedule.batch_bytes_max,
            batch_logs_max = schedule.batch_logs_max,
            concurrency_max = schedule.concurrency_max,
            buffer_bytes_max = schedule.buffer_bytes_max,
        )
    }
}

async fn start_standin(
    address: SocketAddr,
    time: &Time,
    watcher: mpsc::Sender<Arc<Upload>>,
) -> Standin {
    let (id, secret) = key(0);
    let config = StandinConfig {
        has_quota: false,
        ..StandinConfig::new(Key::permanent(&id, &secret), TOPIC_ID)
    };
    let time = time.clone();
    let clock = Clock::new(move || BEGIN + time.now());
    Standin::start(address, config, clock, Some(watcher))
        .await
        .unwrap()
}

fn key(n: u64) -> (String, String) {
    (format!("AKIDEXAMPLE{n}"), format!("SKEXAMPLE{n}"))
}

async fn stopped(stop: oneshot::Receiver<()>) {
    if stop.await.is_err() {
        // Nobody will ask.
        std::future::pending::<()>().await;
    }
}

/// Runs a process in a thread and a runtime of its own until it ends or has died.
async fn in_a_runtime<F>(
    time: &Time,
    died: Arc<Notify>,
    process: impl FnOnce() -> F + Send + 'static,
) -> Ended
where
    F: Future<Output = Result<(), String>>,
{
    let (ended, end) = oneshot::channel();
    let seat = time.seat();
    std::thread::Builder::new()
        .name("process".into())
        .spawn(move || {
            let runtime = seat.runtime();
            let how = runtime.block_on(async {
                tokio::select! {
                    biased;
                    () = died.notified() => Ended::Killed,
                    result = process() => Ended::Itself(result),
                }
            });
            // Time waits until somebody knows of the end.
            let _seat = runtime.end();
            ended.send(how).ok();
        })
        .unwrap();
    match end.await {
        Ok(ended) => ended,
        Err(_) => Ended::Itself(Err("its thread has panicked".into())),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns whether a folder holds nothing: all that a disk may keep of one that was removed.
fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}
