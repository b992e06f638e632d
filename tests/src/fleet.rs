//! What tests with any number of drivers and shippers share: the stand-in that all upload to, when
//! its uploads came, and the wait for all lines.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "these are parts of tests: whatever fails here is a panic, and fails the test"
)]

use crate::dockerd::{Info, Pipe};
use crate::nodes::{Driver, Shipper, ShipperSettings};
use crate::oracle::{Report, examine};
use crate::processes::{SECRET_ID, SECRET_KEY, TOPIC_ID, standin_config, wait_until};
use crate::script::Script;
use crate::standin::{Clock, Standin, Upload};
use crate::turn::turn;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{MutexGuard, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Time within which something must happen that nothing holds up.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// The stand-in, and the right to use the machine.
#[derive(Debug)]
pub struct Cloud {
    /// The stand-in.
    pub standin: Arc<Standin>,
    arrivals: watch::Receiver<Vec<Arrival>>,
    _watching: JoinSet<()>,
    _turn: Option<MutexGuard<'static, ()>>,
}

/// When an upload was accepted, and of which host and key it is. One that holds entries of several
/// hosts counts for each of them.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// When it was accepted.
    pub at: Instant,
    /// Id of the key that signed it.
    pub secret_id: String,
    /// The host whose entries it holds.
    pub host: String,
}

impl Cloud {
    /// Starts a stand-in on loopback, once it is this test's turn.
    pub async fn start() -> Self {
        let turn = turn().await;
        let mut cloud = Self::start_at("127.0.0.1:0".parse().unwrap()).await;
        cloud._turn = Some(turn);
        cloud
    }

    /// Starts a stand-in at `address`, for a test that neither loads the machine nor minds its load.
    pub async fn start_at(address: SocketAddr) -> Self {
        let (watcher, mut uploads) = mpsc::channel::<Arc<Upload>>(1_000);
        let standin = Standin::start(address, standin_config(), Clock::system(), Some(watcher))
            .await
            .unwrap();
        let (arrived, arrivals) = watch::channel(Vec::new());
        let mut watching = JoinSet::new();
        watching.spawn(async move {
            while let Some(upload) = uploads.recv().await {
                let of_hosts = Arrival::all_of(&upload);
                arrived.send_modify(|arrivals| arrivals.extend(of_hosts));
            }
        });
        Self {
            standin: Arc::new(standin),
            arrivals,
            _watching: watching,
            _turn: None,
        }
    }

    /// Returns how a shipper is set up that uploads here.
    pub fn shipper(&self, listen: &str, sections: &str) -> ShipperSettings {
        ShipperSettings {
            endpoint: self.standin.endpoint(),
            listen: listen.to_owned(),
            credentials: format!(
                "source = \"inline\"\nsecret_id = \"{SECRET_ID}\"\nsecret_key = \"{SECRET_KEY}\""
            ),
            sections: sections.to_owned(),
            log_level: "info",
            netns: None,
            files_max: None,
        }
    }

    /// Returns all uploads so far.
    pub fn arrivals(&self) -> Vec<Arrival> {
        self.arrivals.borrow().clone()
    }

    /// Waits for an upload that `is_wanted`, and returns when it came.
    pub async fn arrival(&self, is_wanted: impl Fn(&Arrival) -> bool) -> Instant {
        let mut arrivals = self.arrivals.clone();
        let found = arrivals.wait_for(|all| all.iter().any(&is_wanted));
        let found = tokio::time::timeout(DEADLINE, found).await;
        let found = found.expect("an upload within the deadline").unwrap();
        found.iter().find(|arrival| is_wanted(arrival)).unwrap().at
    }

    /// Returns the longest time between two uploads that follow each other and were signed with keys
    /// whose ids begin with `key_prefix`.
    pub fn longest_gap(&self, key_prefix: &str) -> Duration {
        let mut arrivals = self.arrivals();
        arrivals.retain(|arrival| arrival.secret_id.starts_with(key_prefix));
        let gaps = arrivals.windows(2).map(|pair| pair[1].at - pair[0].at);
        gaps.max().unwrap_or_default()
    }

    /// Waits until every line has arrived, or until that takes too long, and reports.
    pub async fn settle(&self, scripts: &[Script]) -> Report {
        let uploads = || self.standin.uploads(TOPIC_ID);
        // The report says what is missing.
        wait_until("all lines", DEADLINE, async || {
            examine(scripts, &uploads()).lost == 0
        })
        .await
        .ok();
        examine(scripts, &uploads())
    }
}

impl Arrival {
    /// Returns an arrival for each host whose entries are in an upload.
    fn all_of(upload: &Upload) -> Vec<Self> {
        let mut hosts = BTreeSet::new();
        upload.visit(|record| {
            let host = record.field("__hostname__").unwrap_or_default();
            if !hosts.contains(host) {
                hosts.insert(host.to_owned());
            }
        });
        let at = Instant::now();
        let arrival = |host| Self {
            at,
            secret_id: upload.secret_id.clone().unwrap_or_default(),
            host,
        };
        hosts.into_iter().map(arrival).collect()
    }
}

/// Threads that write a script each.
#[derive(Debug, Default)]
pub struct Writing {
    threads: Vec<std::thread::JoinHandle<Pipe>>,
    /// What they write.
    pub scripts: Vec<Script>,
}

impl Writing {
    /// Returns one without a thread.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a container on a host that writes `line_count` lines.
    pub async fn start(
        &mut self,
        driver: &mut Driver,
        name: &str,
        line_count: u64,
        lines_per_s: u32,
    ) {
        self.start_with(driver, name, line_count, lines_per_s, &[])
            .await;
    }

    /// As [`Self::start`], with log options.
    pub async fn start_with(
        &mut self,
        driver: &mut Driver,
        name: &str,
        line_count: u64,
        lines_per_s: u32,
        log_opts: &[(&str, &str)],
    ) {
        let info = Info::new(name, log_opts);
        let started = driver.dockerd.start_logging(&info).await;
        let mut pipe = started.unwrap_or_else(|error| panic!("{error:#}\n{}", driver.log()));
        let script = Script::new(name, line_count, 200);
        self.scripts.push(script.clone());
        self.threads.push(std::thread::spawn(move || {
            script.write(&mut pipe, Some(lines_per_s)).unwrap();
            pipe
        }));
    }

    /// Waits until all is written; returns the pipes, which keep the FIFOs open.
    pub async fn finish(&mut self) -> Vec<Pipe> {
        let is_done = async || self.threads.iter().all(|thread| thread.is_finished());
        wait_until("all lines to be written", DEADLINE, is_done)
            .await
            .unwrap();
        let threads = self.threads.drain(..);
        threads.map(|thread| thread.join().unwrap()).collect()
    }
}

/// Waits until a condition holds; what the nodes have written tells why it does not.
pub async fn wait(what: &str, nodes: &str, is_met: impl AsyncFnMut() -> bool) {
    if let Err(error) = wait_until(what, DEADLINE, is_met).await {
        panic!("{error}\n{nodes}");
    }
}

/// Returns which share of all hosts the first of two shippers has, on the average of many looks over
/// a time.
pub async fn mean_share(shippers: [&Shipper; 2], time: Duration) -> f64 {
    const LOOK_PERIOD: Duration = Duration::from_millis(100);
    let until = Instant::now() + time;
    let (mut shares, mut looks) = (0.0, 0.0);
    while Instant::now() < until {
        let mut counts = [0.0; 2];
        for (count, shipper) in counts.iter_mut().zip(shippers) {
            *count = shipper.metric("cls_shipper_hosts").await.unwrap() as f64;
        }
        let [first, second] = counts;
        // A host that is changing is at neither.
        if first + second > 0.0 {
            shares += first / (first + second);
            looks += 1.0;
        }
        tokio::time::sleep(LOOK_PERIOD).await;
    }
    shares / looks
}

/// Starts a driver of a name that dials `shipper`, with further settings.
pub async fn driver(name: &str, shipper: &str, settings: &[(&str, &str)]) -> Driver {
    let first = [
        ("HOST_NAME", name),
        ("SHIPPER", shipper),
        ("LOG_LEVEL", "info"),
    ];
    let all = [&first, settings].concat();
    let started = Driver::start(&all).await;
    started.unwrap_or_else(|error| panic!("{error:#}"))
}

/// Starts a shipper.
pub async fn shipper(settings: ShipperSettings) -> Shipper {
    let started = Shipper::start(settings).await;
    started.unwrap_or_else(|error| panic!("{error:#}"))
}
