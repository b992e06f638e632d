//! What the cases with any number of drivers and shippers share: the stand-in that all upload to,
//! when its uploads came, and the wait for all lines.

use crate::world::turn;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{MutexGuard, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use world::dockerd::{Info, Pipe};
use world::nodes::{Driver, Shipper, ShipperSettings};
use world::oracle::{Report, examine};
use world::processes::{SECRET_ID, SECRET_KEY, TOPIC_ID, standin_config, wait_until};
use world::script::Script;
use world::standin::Standin;
use world::standin::config::Clock;
use world::standin::store::Upload;

/// Time within which something must happen that nothing holds up.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// The stand-in, and the right to use the machine.
pub(crate) struct Cloud {
    pub(crate) standin: Arc<Standin>,
    arrivals: watch::Receiver<Vec<Arrival>>,
    _watching: JoinSet<()>,
    _turn: MutexGuard<'static, ()>,
}

/// When an upload was accepted, and of which host and key it is.
#[derive(Debug, Clone)]
pub(crate) struct Arrival {
    pub(crate) at: Instant,
    pub(crate) secret_id: String,
    pub(crate) host: String,
}

impl Cloud {
    pub(crate) async fn start() -> Self {
        let turn = turn().await;
        let address = "127.0.0.1:0".parse().unwrap();
        let (watcher, mut uploads) = mpsc::channel::<Arc<Upload>>(1_000);
        let standin = Standin::start(address, standin_config(), Clock::system(), Some(watcher))
            .await
            .unwrap();
        let (arrived, arrivals) = watch::channel(Vec::new());
        let mut watching = JoinSet::new();
        watching.spawn(async move {
            while let Some(upload) = uploads.recv().await {
                let arrival = Arrival::of(&upload);
                arrived.send_modify(|arrivals| arrivals.push(arrival));
            }
        });
        Self {
            standin: Arc::new(standin),
            arrivals,
            _watching: watching,
            _turn: turn,
        }
    }

    /// Returns how a shipper is set up that uploads here.
    pub(crate) fn shipper(&self, listen: &str, sections: &str) -> ShipperSettings {
        ShipperSettings {
            endpoint: self.standin.endpoint(),
            listen: listen.to_owned(),
            credentials: format!(
                "source = \"inline\"\nsecret_id = \"{SECRET_ID}\"\nsecret_key = \"{SECRET_KEY}\""
            ),
            sections: sections.to_owned(),
            log_level: "info",
        }
    }

    pub(crate) fn arrivals(&self) -> Vec<Arrival> {
        self.arrivals.borrow().clone()
    }

    /// Waits for an upload that `is_wanted`, and returns when it came.
    pub(crate) async fn arrival(&self, is_wanted: impl Fn(&Arrival) -> bool) -> Instant {
        let mut arrivals = self.arrivals.clone();
        let found = arrivals.wait_for(|all| all.iter().any(&is_wanted));
        let found = tokio::time::timeout(DEADLINE, found).await;
        let found = found.expect("an upload within the deadline").unwrap();
        found.iter().find(|arrival| is_wanted(arrival)).unwrap().at
    }

    /// Returns the longest time between two uploads that follow each other.
    pub(crate) fn longest_gap(&self) -> Duration {
        let arrivals = self.arrivals();
        let gaps = arrivals.windows(2).map(|pair| pair[1].at - pair[0].at);
        gaps.max().unwrap_or_default()
    }

    /// Waits until every line has arrived, or until that takes too long, and reports.
    pub(crate) async fn settle(&self, scripts: &[Script]) -> Report {
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
    fn of(upload: &Upload) -> Self {
        let mut host = String::new();
        upload.visit(|record| {
            if host.is_empty() {
                host = record.field("__hostname__").unwrap_or_default().to_owned();
            }
        });
        Self {
            at: Instant::now(),
            secret_id: upload.secret_id.clone().unwrap_or_default(),
            host,
        }
    }
}

/// Threads that write a script each.
pub(crate) struct Writing {
    threads: Vec<std::thread::JoinHandle<Pipe>>,
    pub(crate) scripts: Vec<Script>,
}

impl Writing {
    pub(crate) fn new() -> Self {
        Self {
            threads: Vec::new(),
            scripts: Vec::new(),
        }
    }

    /// Starts a container on a host that writes `line_count` lines.
    pub(crate) async fn start(
        &mut self,
        driver: &mut Driver,
        name: &str,
        line_count: u64,
        lines_per_s: u32,
    ) {
        let started = driver.dockerd.start_logging(&Info::new(name, &[])).await;
        let mut pipe = started.unwrap_or_else(|error| panic!("{error:#}\n{}", driver.log()));
        let script = Script::new(name, line_count, 200);
        self.scripts.push(script.clone());
        self.threads.push(std::thread::spawn(move || {
            script.write(&mut pipe, Some(lines_per_s)).unwrap();
            pipe
        }));
    }

    /// Waits until all is written; returns the pipes, which keep the FIFOs open.
    pub(crate) async fn finish(&mut self) -> Vec<Pipe> {
        let is_done = async || self.threads.iter().all(|thread| thread.is_finished());
        wait_until("all lines to be written", DEADLINE, is_done)
            .await
            .unwrap();
        let threads = self.threads.drain(..);
        threads.map(|thread| thread.join().unwrap()).collect()
    }
}

/// Waits until a condition holds; what the nodes have written tells why it does not.
pub(crate) async fn wait(what: &str, nodes: &str, is_met: impl AsyncFnMut() -> bool) {
    if let Err(error) = wait_until(what, DEADLINE, is_met).await {
        panic!("{error}\n{nodes}");
    }
}

/// Starts a driver of a name that dials `shipper`, with further settings.
pub(crate) async fn driver(name: &str, shipper: &str, settings: &[(&str, &str)]) -> Driver {
    let first = [
        ("HOST_NAME", name),
        ("SHIPPER", shipper),
        ("LOG_LEVEL", "info"),
    ];
    let all = [&first, settings].concat();
    let started = Driver::start(&all).await;
    started.unwrap_or_else(|error| panic!("{error:#}"))
}

pub(crate) async fn shipper(settings: ShipperSettings) -> Shipper {
    let started = Shipper::start(settings).await;
    started.unwrap_or_else(|error| panic!("{error:#}"))
}
