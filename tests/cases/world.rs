//! What the cases share: a world of their own, one case at a time, and the wait for all lines.

use shipper::show::ledger::Line;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{MutexGuard, mpsc};
use tokio::time::{Instant, timeout};
use world::dockerd::{Info, Pipe};
use world::oracle::{Report, examine};
use world::processes::{Host, TOPIC_ID, UploadSettings, standin_config};
use world::script::Script;
use world::standin::Standin;
use world::standin::config::{Clock, Config};
use world::standin::store::Upload;

pub(crate) use world::turn::{turn, turn_without_runtime};

/// Time without a new record after which no more are waited for.
const PATIENCE: Duration = Duration::from_secs(45);

/// A stand-in, a host, and the right to use the machine: cases that measure time or load it fully
/// would disturb each other.
pub(crate) struct World {
    pub(crate) standin: Standin,
    pub(crate) host: Host,
    _turn: MutexGuard<'static, ()>,
}

impl World {
    pub(crate) async fn start(upload: UploadSettings) -> Self {
        Self::start_with(standin_config(), None, upload).await
    }

    /// Starts a world whose stand-in is made as `config` says and shows `watcher` each upload.
    pub(crate) async fn start_with(
        config: Config,
        watcher: Option<mpsc::Sender<Arc<Upload>>>,
        upload: UploadSettings,
    ) -> Self {
        let turn = turn().await;
        let address = "127.0.0.1:0".parse().unwrap();
        let standin = Standin::start(address, config, Clock::system(), watcher)
            .await
            .unwrap();
        let host = Host::start(&standin.endpoint(), upload).await.unwrap();
        Self {
            standin,
            host,
            _turn: turn,
        }
    }

    /// Starts a container's logging.
    pub(crate) async fn container(&mut self, name: &str, log_opts: &[(&str, &str)]) -> Pipe {
        let started = self
            .host
            .dockerd
            .start_logging(&Info::new(name, log_opts))
            .await;
        started.unwrap_or_else(|error| panic!("{error:#}\n{}", self.host.output()))
    }

    /// Stops a container's logging and returns how long that took.
    pub(crate) async fn stop(&mut self, pipe: Pipe) -> Duration {
        let stopped = self.host.dockerd.stop_logging(pipe).await;
        stopped.unwrap_or_else(|error| panic!("{error:#}\n{}", self.host.output()))
    }

    /// Waits until all lines are written; fails when neither a writer ends nor a record comes.
    pub(crate) async fn finish(&self, mut writers: Writers) -> Vec<Pipe> {
        let mut pipes = Vec::new();
        let mut seen = 0;
        while pipes.len() < writers.count {
            match timeout(PATIENCE, writers.done.recv()).await {
                Ok(pipe) => pipes.extend(pipe),
                Err(_) => {
                    let records = self.standin.stats().records;
                    assert!(
                        records > seen,
                        "a container is blocked\n{}",
                        self.host.output()
                    );
                    seen = records;
                }
            }
        }
        pipes
    }

    pub(crate) fn uploads(&self) -> Vec<Arc<Upload>> {
        self.standin.uploads(TOPIC_ID)
    }

    /// Waits until `is_there` says so of all uploads; gives up when no more records come.
    pub(crate) async fn wait_for(&self, least: u64, is_there: impl Fn(&[Arc<Upload>]) -> bool) {
        let mut last_growth = Instant::now();
        let mut seen = 0;
        loop {
            let records = self.standin.stats().records;
            if records > seen {
                (seen, last_growth) = (records, Instant::now());
                if records >= least && is_there(&self.uploads()) {
                    return;
                }
            }
            if last_growth.elapsed() > PATIENCE {
                // The oracle says what is missing; what the processes wrote may say why.
                eprintln!("{:?}\n{}", self.standin.stats(), self.host.output());
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the ledger accounts for every line of the scripts, none of which is longer than
    /// Docker's pieces. Nothing of a container may be dropped, dead or waiting.
    async fn check_ledger(&self, scripts: &[Script]) {
        let began = Instant::now();
        loop {
            let lines = self.host.ledger().await.unwrap();
            let missing = scripts
                .iter()
                .find(|script| !is_accounted_for(script, &lines));
            let Some(script) = missing else { return };
            assert!(
                began.elapsed() < PATIENCE,
                "the ledger does not account for the {} lines of {}:\n{}",
                script.line_count,
                script.name,
                shipper::show::ledger::table(&lines)
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits for all lines, then ends the shipper so that nothing can follow, and reports.
    pub(crate) async fn settle(&mut self, scripts: &[Script]) -> Report {
        let expected = scripts.iter().map(|script| script.line_count).sum();
        self.wait_for(expected, |uploads| examine(scripts, uploads).lost == 0)
            .await;
        self.check_ledger(scripts).await;
        self.host.stop_shipper().await.unwrap();
        examine(scripts, &self.uploads())
    }
}

fn is_accounted_for(script: &Script, lines: &[Line]) -> bool {
    let own = lines
        .iter()
        .filter(|line| line.container_name.trim_start_matches('/') == script.name);
    let delivered: u64 = own.clone().map(|line| line.delivered).sum();
    let is_all_delivered = |line: &Line| line.received == line.delivered;
    delivered == script.line_count && own.clone().all(is_all_delivered)
}

/// Threads that write scripts, one each; they hand back the pipes they wrote to. A thread whose pipe
/// nobody reads stays behind when its case fails.
pub(crate) struct Writers {
    sender: mpsc::Sender<Pipe>,
    done: mpsc::Receiver<Pipe>,
    count: usize,
}

impl Writers {
    pub(crate) fn new() -> Self {
        let (sender, done) = mpsc::channel(1);
        Self {
            sender,
            done,
            count: 0,
        }
    }

    pub(crate) fn start(&mut self, script: Script, mut pipe: Pipe, lines_per_s: Option<u32>) {
        let sender = self.sender.clone();
        self.count += 1;
        std::thread::spawn(move || {
            script.write(&mut pipe, lines_per_s).unwrap();
            // A case that has failed wants no pipe back.
            sender.blocking_send(pipe).ok();
        });
    }
}
