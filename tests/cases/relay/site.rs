//! One shipper and its CLS, in this process.

use super::call::Call;
use shipper::base::clock::WallClock;
use shipper::config::Config;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};
use world::processes::wait_until;
use world::standin::Standin;
use world::standin::config::{Clock, Config as StandinConfig, Key, Topic};
use world::standin::fault::{Fault, FaultKind};

pub(crate) const TOPIC: &str = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";

/// A second topic of the same key.
pub(crate) const OTHER_TOPIC: &str = "00000000-0000-4000-8000-000000000001";

/// Time in which a record that waits 50 ms for its next line is long overdue.
pub(crate) const OUTAGE: Duration = Duration::from_millis(800);

/// A shipper and its CLS, in this process.
pub(crate) struct Site {
    pub(crate) standin: Standin,
    pub(crate) socket: std::path::PathBuf,
    pub(crate) admin: SocketAddr,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) stop: Option<oneshot::Sender<()>>,
    pub(crate) config: Config,
    pub(crate) reloads: mpsc::Sender<Config>,
    pub(crate) tasks: JoinSet<()>,
}

impl Site {
    pub(crate) async fn start(upload: &str) -> Self {
        Self::start_listening("", upload).await
    }

    /// Starts a shipper, and a call to it.
    pub(crate) async fn with_call() -> (Self, Call) {
        let site = Self::start("").await;
        let call = site.call().await;
        (site, call)
    }

    /// Starts a shipper that listens on its unix socket and as `listen` says.
    pub(crate) async fn start_listening(listen: &str, upload: &str) -> Self {
        let key = Key::permanent("AKIDEXAMPLE", "SKEXAMPLE");
        let config = StandinConfig {
            has_quota: false,
            topics: vec![Topic::open(TOPIC), Topic::open(OTHER_TOPIC)],
            ..StandinConfig::new(key, TOPIC)
        };
        let address = "127.0.0.1:0".parse().unwrap();
        let standin = Standin::start(address, config, Clock::system(), None)
            .await
            .unwrap();
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("shipper.sock");
        let admin = free_address();
        let text = format!(
            "shutdown_grace_ms = 5000\n\
             [listen]\nunix = \"{}\"\n{listen}\n\
             [defaults]\nendpoint = \"{}\"\ntopic_id = \"{TOPIC}\"\n\
             [credentials.default]\nsource = \"inline\"\n\
             secret_id = \"AKIDEXAMPLE\"\nsecret_key = \"SKEXAMPLE\"\n\
             [dead_letter]\npath = \"{}\"\n\
             [admin]\nlisten = \"{admin}\"\n\
             [upload]\n{upload}\n",
            socket.display(),
            standin.endpoint(),
            folder.path().join("dead-letter.jsonl").display(),
        );
        let config = Config::from_table(text.parse().unwrap(), std::iter::empty()).unwrap();
        let (stop, stopped) = oneshot::channel();
        let (reloads, reloaded) = mpsc::channel(1);
        let mut tasks = JoinSet::new();
        let first = config.clone();
        tasks.spawn(async move {
            let shutdown = async {
                stopped.await.ok();
            };
            shipper::run_reloading(first, WallClock::system(), reloaded, shutdown)
                .await
                .unwrap();
        });
        Self {
            standin,
            socket,
            admin,
            folder,
            stop: Some(stop),
            config,
            reloads,
            tasks,
        }
    }

    pub(crate) async fn channel(&self) -> Channel {
        connect(format!("unix://{}", self.socket.display())).await
    }

    pub(crate) async fn call(&self) -> Call {
        Call::begin(self.channel().await).await.unwrap()
    }

    /// Returns a metric, with its labels as they are printed.
    pub(crate) async fn metric(&self, name: &str) -> u64 {
        let page = world::client::call(self.admin, "GET", "/metrics").await;
        let page = String::from_utf8(page.unwrap().to_vec()).unwrap();
        let mut lines = page.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().unwrap())
    }

    /// Returns the values of `content` that CLS has, in the order of its context.
    pub(crate) fn contents(&self) -> Vec<String> {
        self.contents_of(TOPIC)
    }

    pub(crate) fn contents_of(&self, topic_id: &str) -> Vec<String> {
        let mut contents = Vec::new();
        for upload in self.standin.uploads(topic_id) {
            upload.visit(|record| {
                contents.push(record.field("content").unwrap_or_default().to_owned());
            });
        }
        contents
    }

    /// Waits until a metric has a value.
    pub(crate) async fn metric_is(&self, name: &str, wanted: u64) {
        wait_until(name, Duration::from_secs(20), async || {
            self.metric(name).await == wanted
        })
        .await
        .unwrap();
    }

    pub(crate) fn dead_letters(&self) -> Vec<String> {
        let path = self.folder.path().join("dead-letter.jsonl");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Makes CLS keep the next upload waiting.
    pub(crate) fn stall(&self, delay: Duration) {
        let stall = Fault::new(FaultKind::Stall).delayed(delay).times(1);
        self.standin.add_fault(stall);
    }

    /// Waits until CLS keeps an upload waiting.
    pub(crate) async fn stalled(&self) {
        let has_one = async || !self.standin.stats().faults.is_empty();
        wait_until("an upload to stall", Duration::from_secs(5), has_one)
            .await
            .unwrap();
    }
}

/// Connects once somebody listens.
pub(crate) async fn connect(endpoint: String) -> Channel {
    let endpoint = Endpoint::from_shared(endpoint).unwrap();
    let connected = async {
        loop {
            match endpoint.connect().await {
                Ok(channel) => return channel,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), connected)
        .await
        .expect("a shipper within 20 s")
}

/// Returns a TCP address that nobody used a moment ago.
pub(crate) fn free_address() -> std::net::SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}
