//! The driver between an engine and a shipper, over real FIFOs and sockets.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    unreachable_pub,
    reason = "a panic fails a test"
)]

mod disk_faults;
mod ends;
mod fake;
mod faulty;
mod lives;
mod pace;
mod panics;

use driver::{Config, Disk, RawConfig, RealDisk, RunError, TableError};
use fake::{
    Behaviour, Container, FakeShipper, PATIENCE, call, call_on, connect, eventually, frame_of,
    numbered_lines,
};
use rustix::io::Errno;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How long a stop may take: the engine kills a plugin 10 s after it has asked it to end.
const STOP_MAX: Duration = Duration::from_secs(5);

const OK: &str = "HTTP/1.1 200 OK";
const NO_ERR: &str = r#"{"Err":""}"#;

/// A host's folders, and the driver on it.
struct Host {
    folder: tempfile::TempDir,
    settings: Vec<(&'static str, String)>,
}

impl Host {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let settings = vec![
            ("PLUGIN_SOCKET", at("plugins/cls.sock")),
            ("STATE_DIR", at("state")),
            ("FIFO_DIR", at("")),
            ("SHIPPER", format!("unix://{}", at("shipper.sock"))),
            ("HOST_NAME", "test-host".into()),
        ];
        Self { folder, settings }
    }

    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.settings.push((name, value.into()));
        self
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn plugin(&self) -> PathBuf {
        self.path().join("plugins/cls.sock")
    }

    fn shipper(&self) -> PathBuf {
        self.path().join("shipper.sock")
    }

    /// Returns the folders of streams that are not over.
    fn streams(&self) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(self.path().join("state")) else {
            return Vec::new();
        };
        let folders = entries.map(|entry| entry.unwrap().path());
        folders
            .filter(|path| path.is_dir() && !path.join("ended.json").exists())
            .filter(|path| path.extension().is_none())
            .collect()
    }

    /// Returns how many damaged folders are kept aside.
    fn damaged_count(&self) -> usize {
        let entries = std::fs::read_dir(self.path().join("state")).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        paths.filter(|path| path.extension().is_some()).count()
    }

    fn config(&self) -> Config {
        let pairs = self.settings.iter();
        let pairs = pairs.map(|(name, value)| (*name, value.as_str()));
        Config::parse(&RawConfig::from_pairs(pairs)).unwrap()
    }

    /// Runs the driver in this process.
    fn run(&self) -> Driver {
        self.run_on(Arc::new(RealDisk))
    }

    /// Runs the driver in this process, with its state on a disk.
    fn run_on(&self, disk: Arc<dyn Disk>) -> Driver {
        let (stop, stopping) = oneshot::channel::<()>();
        let config = self.config();
        #[allow(clippy::disallowed_methods, reason = "Driver owns it")]
        let running = tokio::spawn(driver::run(config, disk, async {
            stopping.await.ok();
        }));
        Driver { stop, running }
    }

    /// Runs the driver on one thread of its own, as the process has it: nothing on it may wait for
    /// the disk.
    fn run_alone(&self, disk: Arc<dyn Disk>) -> LoneDriver {
        let (stop, stopping) = oneshot::channel::<()>();
        let (end, ended) = oneshot::channel();
        let config = self.config();
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().unwrap();
        let thread = std::thread::spawn(move || {
            let stopped = async { stopping.await.unwrap() };
            let run = runtime.block_on(driver::run(config, disk, stopped));
            runtime.shutdown_background();
            end.send(run).ok();
        });
        LoneDriver {
            stop,
            ended,
            thread,
        }
    }

    /// Runs the driver's binary.
    fn spawn(&self) -> tokio::process::Child {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_cls-driver"));
        command.env_clear().stdout(Stdio::null()).kill_on_drop(true);
        command.envs(self.settings.iter().map(|(name, value)| (*name, value)));
        command.spawn().unwrap()
    }

    async fn start(&self, container: &Container, options: &str) -> String {
        let body = container.start_body(options);
        let (status, body) = call(&self.plugin(), "LogDriver.StartLogging", &body).await;
        assert_eq!(status, OK);
        body
    }

    async fn stop(&self, container: &Container) -> Duration {
        self.stop_with(&container.stop_body()).await
    }

    async fn stop_with(&self, body: &str) -> Duration {
        let began = Instant::now();
        let (status, body) = call(&self.plugin(), "LogDriver.StopLogging", body).await;
        assert_eq!((status.as_str(), body.as_str()), (OK, NO_ERR));
        began.elapsed()
    }

    async fn no_stream_is_left(&self) {
        eventually("every stream is retired", || self.streams().is_empty()).await;
    }
}

struct Driver {
    stop: oneshot::Sender<()>,
    running: JoinHandle<Result<(), RunError>>,
}

impl Driver {
    async fn stop(self) -> Duration {
        let began = Instant::now();
        self.stop.send(()).unwrap();
        self.running.await.unwrap().unwrap();
        began.elapsed()
    }

    /// Drops it wherever it stands.
    async fn drop_abruptly(self) {
        self.running.abort();
        self.running.await.unwrap_err();
    }
}

/// A driver on a thread of its own.
struct LoneDriver {
    stop: oneshot::Sender<()>,
    ended: oneshot::Receiver<Result<(), RunError>>,
    thread: std::thread::JoinHandle<()>,
}

impl LoneDriver {
    /// Stops it, in time. What it hangs on is released afterwards, so that a failing test ends.
    async fn stop_within(self, stop_max: Duration, release: impl FnOnce()) {
        let began = Instant::now();
        self.stop.send(()).unwrap();
        let ended = tokio::time::timeout(stop_max, self.ended).await;
        let took = began.elapsed();
        release();
        self.thread.join().unwrap();
        assert!(ended.is_ok(), "not over after {took:?}");
        ended.unwrap().unwrap().unwrap();
    }
}

#[tokio::test]
async fn the_plugin_api_answers_as_dockerd_wants_it() {
    let host = Host::new();
    let driver = host.run();
    drop(connect(&host.plugin()).await); // dockerd's probe
    let mut stream = connect(&host.plugin()).await;
    for _ in 0..2 {
        let (status, body) = call_on(&mut stream, "Plugin.Activate", "").await;
        assert_eq!(
            (status.as_str(), body.as_str()),
            (OK, r#"{"Implements":["LogDriver"]}"#)
        );
        let (status, body) = call_on(&mut stream, "LogDriver.Capabilities", "").await;
        assert_eq!(
            (status.as_str(), body.as_str()),
            (OK, r#"{"Cap":{"ReadLogs":false}}"#)
        );
    }
    let (status, body) = call_on(&mut stream, "LogDriver.ReadLogs", "{}").await;
    assert!(status.starts_with("HTTP/1.1 404 "), "{status}");
    assert!(body.starts_with(r#"{"Err":"/LogDriver.ReadLogs"#), "{body}");
    let (_, body) = call_on(&mut stream, "LogDriver.StartLogging", "").await;
    assert_eq!(body, r#"{"Err":"the request has no body"}"#);
    let (_, body) = call_on(&mut stream, "LogDriver.StartLogging", "{\"File\":1}").await;
    assert!(body.contains("not understood"), "{body}");
    for unknown in ["", "{", r#"{"File":"/nowhere"}"#] {
        let (status, body) = call_on(&mut stream, "LogDriver.StopLogging", unknown).await;
        assert_eq!(
            (status.as_str(), body.as_str()),
            (OK, NO_ERR),
            "{unknown:?}"
        );
    }
    assert!(driver.stop().await < Duration::from_secs(5));
    assert!(!host.plugin().exists());
}

#[tokio::test]
async fn another_http_client_is_served_too() {
    use http_body_util::{BodyExt, Full};
    let host = Host::new();
    let driver = host.run();
    drop(connect(&host.plugin()).await);
    let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new())
        .build::<_, Full<bytes::Bytes>>(hyperlocal::UnixConnector);
    for _ in 0..3 {
        let uri = hyperlocal::Uri::new(host.plugin(), "/Plugin.Activate");
        let request = http::Request::post(uri).body(Full::default()).unwrap();
        let response = client.request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, r#"{"Implements":["LogDriver"]}"#);
    }
    driver.stop().await;
}

#[tokio::test]
async fn a_second_driver_does_not_work_in_the_folder_of_the_first() {
    let host = Host::new();
    let driver = host.run();
    connect(&host.plugin()).await;
    let socket = host.path().join("second.sock").display().to_string();
    let host = host.with("PLUGIN_SOCKET", &socket);
    let second = driver::run(
        host.config(),
        Arc::new(RealDisk),
        std::future::pending::<()>(),
    );
    let ended = tokio::time::timeout(PATIENCE, second).await;
    let locked = matches!(ended, Ok(Err(RunError::Table(TableError::Locked { .. }))));
    assert!(locked, "{ended:?}");
    driver.stop().await;
}

/// A shipper that takes connections and closes them is no reason to connect all the time.
#[tokio::test]
async fn a_shipper_that_closes_every_connection_is_tried_at_growing_intervals() {
    let host = Host::new();
    let listener = tokio::net::UnixListener::bind(host.shipper()).unwrap();
    let driver = host.run();
    let mut connection_count = 0;
    let counting = async {
        loop {
            drop(listener.accept().await.unwrap());
            connection_count += 1;
        }
    };
    let counted = tokio::time::timeout(Duration::from_secs(2), counting).await;
    assert!(counted.is_err());
    assert!((2..40).contains(&connection_count), "{connection_count}");
    driver.stop().await;
}

#[tokio::test]
async fn every_line_arrives_once_in_order_and_nothing_is_left() {
    let host = Host::new();
    let shipper = FakeShipper::start(&host.shipper(), Behaviour::default());
    let driver = host.run();
    let mut container = Container::new(host.path(), "c1");
    assert_eq!(host.start(&container, "{}").await, NO_ERR);
    assert_eq!(
        host.start(&container, "{}").await,
        NO_ERR,
        "a repeated start changes nothing"
    );
    assert_eq!(host.streams().len(), 1);
    container.write_lines(5_000).await;
    assert!(host.stop(&container).await < Duration::from_secs(1));
    container.write_lines(1).await; // dockerd still holds the FIFO
    container.close();
    host.no_stream_is_left().await;
    let log = shipper.log_of("c1");
    assert_eq!(log.lines(), numbered_lines(5_001));
    assert_eq!((log.opens.len(), log.repeated_bytes), (1, 0));
    let end_offset = log.bytes.len() as u64;
    let is_finished = |state: &fake::State| {
        state
            .logs
            .values()
            .any(|log| log.finished == Some(end_offset))
    };
    shipper.wait("the end is told", is_finished).await;
    let open = &log.opens[0];
    assert_eq!((open.host.as_str(), open.resume_offset), ("test-host", 0));
    assert_eq!(open.container.as_ref().unwrap().name, "/name");
    assert!(!container.file.exists(), "the FIFO's file is removed");
    assert_eq!(shipper.state().faults, Vec::<String>::new());
    driver.stop().await;
}

/// Runs `cls-driver journal`; returns its exit code and what it wrote.
async fn journal(host: &Host, arguments: &[&str]) -> (i32, String) {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_cls-driver"));
    command.env_clear().arg("journal").args(arguments);
    command.arg("--state-dir").arg(host.path().join("state"));
    let output = command.output().await.unwrap();
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.code().unwrap(),
        String::from_utf8(text).unwrap(),
    )
}

#[tokio::test]
async fn what_is_acknowledged_is_kept_for_inspection_until_newer_entries_push_it_out() {
    let host = Host::new().with("KEEP_FILE_TOTAL_SIZE", "128k");
    let _shipper = FakeShipper::start(&host.shipper(), Behaviour::default());
    let driver = host.run();
    let log = async |id: &str, options: &str| {
        let mut container = Container::new(host.path(), id);
        host.start(&container, options).await;
        container.write_lines(3).await;
        container.close();
        host.no_stream_is_left().await;
    };
    log("c1", r#"{"keep-file":"true"}"#).await;
    log("c2", r#"{"keep-file":"false"}"#).await;
    let (code, listed) = journal(&host, &["ls"]).await;
    assert_eq!((code, listed.lines().count()), (0, 2), "{listed}");
    let id = listed.lines().nth(1).unwrap().split(' ').next().unwrap();
    for shown in [
        journal(&host, &["show", id]).await,
        journal(&host, &["show", "c1"]).await,
    ] {
        assert_eq!((shown.0, shown.1.lines().count()), (0, 3), "{}", shown.1);
        assert!(shown.1.contains(" stdout 0000000 xxx"), "{}", shown.1);
    }
    let (code, verified) = journal(&host, &["verify"]).await;
    assert_eq!(
        (code, verified.as_str()),
        (0, "1 journals, 3 entries, 0 faults\n")
    );

    // It outlives the process, and goes when there is no room for it.
    driver.stop().await;
    let driver = host.run();
    log("c3", "{}").await;
    assert_eq!(journal(&host, &["show", "c1"]).await.0, 0);
    log("c4", "{}").await;
    let (code, text) = journal(&host, &["show", "c1"]).await;
    assert_eq!(code, 1);
    assert!(text.contains("0 journals have an id"), "{text}");
    let (_, listed) = journal(&host, &["ls"]).await;
    assert_eq!(listed.lines().count(), 3, "{listed}");
    driver.stop().await;

    // Damage is named.
    let state = std::fs::read_dir(host.path().join("state")).unwrap();
    let is_segment = |path: &PathBuf| path.extension().is_some_and(|suffix| suffix == "acked");
    let segment = state
        .map(|folder| folder.unwrap().path())
        .filter(|folder| folder.is_dir())
        .flat_map(|folder| std::fs::read_dir(folder).unwrap())
        .map(|file| file.unwrap().path())
        .find(is_segment)
        .unwrap();
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[4] = 0xff;
    std::fs::write(&segment, bytes).unwrap();
    let (code, verified) = journal(&host, &["verify"]).await;
    assert_eq!(code, 1);
    assert!(
        verified.contains("bytes at offset 0 are no entry"),
        "{verified}"
    );
    assert!(
        verified.contains("2 journals, 5 entries, 1 faults"),
        "{verified}"
    );
}

#[tokio::test]
async fn a_start_that_writes_nothing_ships_nothing_and_leaves_nothing() {
    let host = Host::new();
    let shipper = FakeShipper::start(&host.shipper(), Behaviour::default());
    let driver = host.run();
    let mut container = Container::new(host.path(), "c1");
    assert_eq!(host.start(&container, "null").await, NO_ERR);
    host.stop(&container).await;
    container.close();
    host.no_stream_is_left().await;
    driver.stop().await;
    assert!(shipper.state().logs.is_empty());
}

#[tokio::test]
async fn with_no_shipper_the_writer_never_waits_and_a_stop_is_quick() {
    let host = Host::new();
    let driver = host.run();
    let mut container = Container::new(host.path(), "c1");
    assert_eq!(host.start(&container, "{}").await, NO_ERR);
    let began = Instant::now();
    container.write_lines(100_000).await; // twenty times what the pipe holds
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    assert!(host.stop(&container).await < Duration::from_secs(1));
    container.close();
    let shipper = FakeShipper::start(&host.shipper(), Behaviour::default());
    host.no_stream_is_left().await;
    assert_eq!(shipper.log_of("c1").lines(), numbered_lines(100_000));
    driver.stop().await;
}

#[tokio::test]
async fn a_new_shipper_is_given_everything_from_the_acknowledged_offset_on() {
    let host = Host::new();
    let first = FakeShipper::start(&host.shipper(), Behaviour::default());
    let driver = host.run();
    let mut container = Container::new(host.path(), "c1");
    host.start(&container, "{}").await;
    container.write_lines(1_000).await;
    let bytes = 1_000 * frame_of(&numbered_lines(1)[0]).len();
    let has_all = |state: &fake::State| state.logs.values().any(|log| log.bytes.len() == bytes);
    first.wait("the first shipper has all", has_all).await;
    first.state().behaviour.acks = false;
    container.write_lines(500).await;
    let has_more = |state: &fake::State| state.logs.values().any(|log| log.bytes.len() > bytes);
    first.wait("the first shipper holds some", has_more).await;
    let shared = first.shared();
    drop(first);
    container.write_lines(500).await;
    shared.lock().unwrap().behaviour.acks = true;
    let second = FakeShipper::start_with(&host.shipper(), shared);
    host.stop(&container).await;
    container.close();
    host.no_stream_is_left().await;
    let log = second.log_of("c1");
    assert_eq!(log.lines(), numbered_lines(2_000));
    assert_eq!(log.opens.len(), 2);
    assert_eq!(log.opens[1].resume_offset, bytes as u64);
    assert!(
        log.repeated_bytes > 0,
        "what was held by the first is sent again"
    );
    assert_eq!(second.state().faults, Vec::<String>::new());
    driver.stop().await;
}

#[tokio::test]
async fn the_window_is_kept_and_a_held_stream_does_not_hold_another() {
    let host = Host::new();
    let behaviour = Behaviour {
        window_bytes: 200_000,
        acks: false,
        ..Behaviour::default()
    };
    let shipper = FakeShipper::start(&host.shipper(), behaviour);
    let driver = host.run();
    let mut busy = Container::new(host.path(), "busy");
    let mut quiet = Container::new(host.path(), "quiet");
    host.start(&busy, "{}").await;
    busy.write_lines(20_000).await;
    let is_held = |state: &fake::State| {
        state
            .logs
            .values()
            .any(|log| log.in_flight_bytes_max > 199_000)
    };
    shipper.wait("the window is used", is_held).await;
    host.start(&quiet, "{}").await;
    quiet.write_lines(3).await;
    let has_quiet = |state: &fake::State| {
        state
            .logs
            .values()
            .any(|log| log.container_id == "quiet" && log.bytes.len() > 500)
    };
    shipper.wait("the quiet one is served", has_quiet).await;
    assert_eq!(shipper.log_of("quiet").lines(), numbered_lines(3));
    let most = shipper.log_of("busy").in_flight_bytes_max;
    assert!(most <= 200_000, "{most}");
    driver.stop().await;
}

#[tokio::test]
async fn a_container_that_starts_again_has_two_streams_that_never_mix() {
    let host = Host::new();
    let shipper = FakeShipper::start(&host.shipper(), Behaviour::default());
    let driver = host.run();
    let mut first = Container::new(host.path(), "c1");
    let mut second = Container::new(host.path(), "c1");
    host.start(&first, "{}").await;
    first.write_lines(100).await;
    host.start(&second, "{}").await; // live-restore: no stop in between
    second.write_lines(200).await;
    first.write_lines(100).await;
    first.close();
    second.close();
    host.no_stream_is_left().await;
    let mut counts: Vec<_> = shipper
        .state()
        .logs
        .values()
        .map(|log| log.lines().len())
        .collect();
    counts.sort_unstable();
    assert_eq!(counts, [200, 200]);
    for log in shipper.state().logs.values() {
        assert_eq!(log.lines(), numbered_lines(200));
    }
    driver.stop().await;
}

#[tokio::test]
async fn a_bad_start_says_why_and_leaves_nothing() {
    let host = Host::new();
    let driver = host.run();
    drop(connect(&host.plugin()).await);
    let mut container = Container::new(host.path(), "c1");
    let file = std::mem::replace(&mut container.file, host.path().join("missing"));
    let err = host.start(&container, "{}").await;
    assert!(err.contains("could not open FIFO"), "{err}");
    container.file = host.path().join("plain");
    std::fs::write(&container.file, "x").unwrap();
    let err = host.start(&container, "{}").await;
    assert!(err.contains("is not a FIFO"), "{err}");
    container.file = "relative".into();
    let err = host.start(&container, "{}").await;
    assert!(err.contains("must be an absolute path"), "{err}");
    container.file = file;
    let huge = format!(
        "{{\"tag\":\"{}\"}}",
        "x".repeat(proto::limits::OPEN_BYTES_MAX)
    );
    let err = host.start(&container, &huge).await;
    assert!(
        err.contains("log-opt tag=") && err.contains("the limit is 65536"),
        "{err}"
    );
    let err = host
        .start(&container, r#"{"no-file":"maybe","colour":"red"}"#)
        .await;
    assert!(
        err.contains("no-file=maybe") && err.contains("colour"),
        "{err}"
    );
    assert_eq!(host.streams().len(), 0);
    assert_eq!(
        host.start(&container, "{}").await,
        NO_ERR,
        "the engine may try again"
    );
    driver.stop().await;
}

#[tokio::test]
async fn a_definite_no_of_the_shipper_fails_only_a_container_that_was_just_created() {
    let host = Host::new();
    let behaviour = Behaviour {
        check_faults: vec!["topic_id: no such topic".into()],
        ..Behaviour::default()
    };
    let shipper = FakeShipper::start(&host.shipper(), behaviour);
    let driver = host.run();
    shipper
        .wait("the driver is connected", |state| !state.reports.is_empty())
        .await;
    let container = Container::new(host.path(), "c1");
    let err = host.start(&container, "{}").await;
    assert_eq!(err, r#"{"Err":"topic_id: no such topic"}"#);
    assert_eq!(host.streams().len(), 0);
    shipper.state().behaviour.check_faults.clear();
    assert_eq!(host.start(&container, "{}").await, NO_ERR);
    shipper
        .state()
        .behaviour
        .check_faults
        .push("no longer".into());
    let again = Container::new(host.path(), "c1");
    assert_eq!(
        host.start(&again, "{}").await,
        NO_ERR,
        "a known container is taken on"
    );
    driver.stop().await;
}

#[tokio::test]
async fn a_shipper_that_does_not_answer_is_asked_once_and_the_next_one_at_once() {
    let host = Host::new();
    let behaviour = Behaviour {
        leaves_checks_open: true,
        ..Behaviour::default()
    };
    let silent = FakeShipper::start(&host.shipper(), behaviour);
    let driver = host.run();
    silent
        .wait("the driver is connected", |state| !state.reports.is_empty())
        .await;
    let mut took = Vec::new();
    for name in ["c1", "c2"] {
        let container = Container::new(host.path(), name);
        let began = Instant::now();
        assert_eq!(host.start(&container, "{}").await, NO_ERR);
        took.push(began.elapsed());
    }
    assert!(took[0] >= Duration::from_millis(500), "{took:?}");
    assert!(took[1] < Duration::from_millis(500), "{took:?}");
    drop(silent);
    let behaviour = Behaviour {
        check_faults: vec!["topic_id: no such topic".into()],
        ..Behaviour::default()
    };
    let shipper = FakeShipper::start(&host.shipper(), behaviour);
    shipper
        .wait("the driver is connected", |state| !state.reports.is_empty())
        .await;
    let container = Container::new(host.path(), "c3");
    let err = host.start(&container, "{}").await;
    assert_eq!(err, r#"{"Err":"topic_id: no such topic"}"#);
    driver.stop().await;
}

#[tokio::test]
async fn a_refused_stream_is_journaled_and_opened_again() {
    let host = Host::new();
    let behaviour = Behaviour {
        refusal: Some("not yet".into()),
        ..Behaviour::default()
    };
    let shipper = FakeShipper::start(&host.shipper(), behaviour);
    let driver = host.run();
    let mut container = Container::new(host.path(), "c1");
    host.start(&container, "{}").await;
    container.write_lines(10).await;
    host.stop(&container).await;
    container.close();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(shipper.state().logs.is_empty());
    shipper.state().behaviour.refusal = None;
    host.no_stream_is_left().await;
    assert_eq!(shipper.log_of("c1").lines(), numbered_lines(10));
    driver.stop().await;
}

#[tokio::test]
async fn the_report_accounts_for_every_entry() {
    let host = Host::new();
    let shipper = FakeShipper::start(&host.shipper(), Behaviour::default());
    let driver = host.run();
    let mut container = Container::new(host.path(), "c1");
    host.start(&container, "{}").await;
    container.write_lines(100).await;
    container.write(&frame_of("cut short")[..9]).await;
    container.close();
    host.no_stream_is_left().await;
    let totals = shipper.log_of("c1").totals.unwrap();
    let dropped = totals.dropped_entries.get("cut_short");
    assert_eq!((totals.received_entries, dropped), (101, Some(&1)));
    driver.stop().await;
}

/// The shipper takes nothing: what waits is in the ledger all the same.
#[tokio::test]
async fn entries_that_wait_are_reported_as_received() {
    let host = Host::new();
    let behaviour = Behaviour {
        window_bytes: 1_000,
        acks: false,
        ..Behaviour::default()
    };
    let shipper = FakeShipper::start(&host.shipper(), behaviour);
    let driver = host.run();
    let mut container = Container::new(host.path(), "c1");
    host.start(&container, "{}").await;
    container.write_lines(5_000).await;
    let is_reported = |state: &fake::State| {
        let mut streams = state.reports.iter().flat_map(|report| &report.streams);
        streams.any(|stream| (stream.received_entries, stream.delivered_entries) == (5_000, 0))
    };
    shipper.wait("a report", is_reported).await;
    driver.stop().await;
}

/// By these the shipper knows that the rest of a line has not been written.
#[tokio::test]
async fn a_driver_with_nothing_to_send_says_so_ever_more_rarely() {
    let host = Host::new();
    let shipper = FakeShipper::start(&host.shipper(), Behaviour::default());
    let driver = host.run();
    let mut container = Container::new(host.path(), "c1");
    host.start(&container, "{}").await;
    container.write_lines(1).await;
    let is_quiet = |state: &fake::State| state.gathered_ms.len() > 5;
    shipper.wait("requests without events", is_quiet).await;
    let gathered_ms = shipper.state().gathered_ms.clone();
    let pauses = gathered_ms.array_windows().map(|[last, next]| next - last);
    let pauses: Vec<u64> = pauses.collect();
    // A report, every 5 s, brings one of its own and does not begin anew.
    assert!(pauses.iter().all(|pause| *pause <= 6_000), "{pauses:?}");
    assert!(gathered_ms[1] - gathered_ms[0] <= 1_000, "{pauses:?}");
    assert!(gathered_ms[5] - gathered_ms[0] >= 5_000, "{pauses:?}");
    driver.stop().await;
}

/// A report call that fails alone, while the call that ships goes on, is begun again: otherwise the
/// ledger would show nothing of this host for as long as that call lives.
#[tokio::test]
async fn reports_go_on_after_their_call_has_failed() {
    let host = Host::new();
    let behaviour = Behaviour {
        failing_reports: 1,
        ..Behaviour::default()
    };
    let shipper = FakeShipper::start(&host.shipper(), behaviour);
    let driver = host.run();
    let mut container = Container::new(host.path(), "c1");
    host.start(&container, "{}").await;
    container.write_lines(10).await;
    let is_reported = |state: &fake::State| {
        let mut streams = state.reports.iter().flat_map(|report| &report.streams);
        streams.any(|stream| stream.delivered_entries == 10)
    };
    shipper.wait("a report", is_reported).await;
    driver.stop().await;
}

/// The disk refuses a record; once it takes it, the container outlives the driver.
#[tokio::test]
async fn a_container_starts_although_the_disk_refuses_its_record() {
    let host = Host::new();
    let shipper = FakeShipper::start(&host.shipper(), Behaviour::default());
    let driver = host.run();
    let quiet = Container::new(host.path(), "c0");
    host.start(&quiet, "{}").await;
    let (state, away) = (host.path().join("state"), host.path().join("away"));
    std::fs::rename(&state, &away).unwrap();
    let mut container = Container::new(host.path(), "c1");
    assert_eq!(host.start(&container, "{}").await, NO_ERR);
    container.write_lines(10).await;
    let line_count = |state: &fake::State| {
        let logs = state.logs.values();
        let of_container = logs.filter(|log| log.container_id == "c1");
        of_container.map(|log| log.lines().len()).sum::<usize>()
    };
    shipper
        .wait("its lines arrive", |state| line_count(state) == 10)
        .await;
    std::fs::rename(&away, &state).unwrap();
    eventually("it is on record", || {
        let records = host
            .streams()
            .into_iter()
            .filter(|folder| folder.join("meta.json").exists());
        records.count() == 2
    })
    .await;
    driver.drop_abruptly().await;
    let driver = host.run();
    container.write_lines(10).await;
    shipper
        .wait("its lines arrive again", |state| line_count(state) == 20)
        .await;
    container.close();
    drop(quiet);
    host.no_stream_is_left().await;
    driver.stop().await;
}

/// A loss of power took a journal with its state: its end tells that nothing of it is left, or the ledger
/// would show entries that wait for ever.
#[tokio::test]
async fn what_a_loss_of_power_took_is_told_with_the_end() {
    let host = Host::new();
    let entries_of = |state: &fake::State, received: u64| {
        let mut streams = state.reports.iter().flat_map(|report| &report.streams);
        streams.any(|stream| stream.container_id == "c1" && stream.received_entries == received)
    };
    let shipper = FakeShipper::start(&host.shipper(), Behaviour::without_acks());
    let driver = host.run();
    let mut container = Container::new(host.path(), "c1");
    host.start(&container, "{}").await;
    container.write_lines(100).await;
    shipper
        .wait("what waits is told", |state| entries_of(state, 100))
        .await;
    driver.drop_abruptly().await;
    drop(shipper);
    let folder = host.streams().remove(0);
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if !path.ends_with("meta.json") {
            std::fs::remove_file(path).unwrap();
        }
    }
    std::fs::remove_file(&container.file).unwrap();
    let shipper = FakeShipper::start(&host.shipper(), Behaviour::default());
    let driver = host.run();
    let is_told = |state: &fake::State| {
        let mut logs = state.logs.values();
        logs.any(|log| {
            let totals = log.totals.as_ref();
            totals.is_some_and(|totals| totals.received_entries == 0)
        })
    };
    shipper.wait("nothing of it is left", is_told).await;
    eventually("its folder is gone", || !folder.exists()).await;
    driver.stop().await;
}

#[tokio::test]
async fn a_full_journal_drops_the_oldest_and_says_so_in_the_stream() {
    let host = Host::new()
        .with("JOURNAL_SIZE", "1m")
        .with("JOURNAL_BLOCK_MS_MAX", "200");
    let driver = host.run();
    let mut container = Container::new(host.path(), "c1");
    host.start(&container, "{}").await;
    let began = Instant::now();
    container.write_lines(30_000).await; // 6 MB: six times the journal
    assert!(
        began.elapsed() > Duration::from_millis(200),
        "the container waits first"
    );
    assert!(host.stop(&container).await < Duration::from_secs(1));
    container.close();
    let shipper = FakeShipper::start(&host.shipper(), Behaviour::default());
    host.no_stream_is_left().await;
    let log = shipper.log_of("c1");
    let dropped: u64 = log.holes.iter().map(|hole| hole.entries).sum();
    let lines = log.lines();
    assert_eq!(lines.len() as u64 + dropped, 30_000);
    assert!(dropped > 20_000 && log.holes.iter().all(|hole| hole.reason == "journal_full"));
    assert_eq!(
        lines,
        numbered_lines(30_000)[30_000 - lines.len()..],
        "the newest are kept"
    );
    assert_eq!(shipper.state().faults, Vec::<String>::new());
    driver.stop().await;
}

#[tokio::test]
async fn a_full_journal_costs_no_other_container_a_line() {
    let host = Host::new();
    let driver = host.run();
    let mut still = Container::new(host.path(), "still");
    host.start(&still, "{}").await;
    still.write_lines(20_000).await; // 4 MB: the largest journal
    let mut busy = Container::new(host.path(), "busy");
    let options = r#"{"journal-size":"1m","mode":"non-blocking"}"#;
    host.start(&busy, options).await;
    busy.write_lines(60_000).await;
    for container in [&mut still, &mut busy] {
        host.stop(container).await;
        container.close();
    }
    let shipper = FakeShipper::start(&host.shipper(), Behaviour::default());
    host.no_stream_is_left().await;
    assert!(!shipper.log_of("busy").holes.is_empty());
    assert_eq!(shipper.log_of("still").holes, []);
    assert_eq!(shipper.log_of("still").lines(), numbered_lines(20_000));
    driver.stop().await;
}

/// The bound of all journals: who comes late gets room, and the largest one pays.
#[tokio::test]
async fn the_largest_journal_pays_when_the_host_s_bound_is_reached() {
    let host = Host::new()
        .with("JOURNAL_SIZE", "4m")
        .with("JOURNAL_TOTAL_SIZE", "4m");
    let driver = host.run();
    let mut large = Container::new(host.path(), "large");
    let mut late = Container::new(host.path(), "late");
    for container in [&mut large, &mut late] {
        host.start(container, r#"{"mode":"non-blocking"}"#).await;
    }
    large.write_lines(19_000).await; // 3.7 MB
    let written = tokio::time::timeout(PATIENCE, late.write_lines(7_000)).await;
    assert!(written.is_ok(), "nothing makes room");
    for container in [&mut large, &mut late] {
        host.stop(container).await;
        container.close();
    }
    let shipper = FakeShipper::start(&host.shipper(), Behaviour::default());
    host.no_stream_is_left().await;
    assert_eq!(shipper.log_of("late").lines(), numbered_lines(7_000));
    let log = shipper.log_of("large");
    let dropped: u64 = log.holes.iter().map(|hole| hole.entries).sum();
    let lines = log.lines();
    assert_eq!(lines.len() as u64 + dropped, 19_000);
    assert!(dropped > 0, "nobody has paid");
    let newest = numbered_lines(19_000).split_off(19_000 - lines.len());
    assert_eq!(lines, newest, "the newest are kept");
    driver.stop().await;
}

/// It waits for longer than the bound in all, but gets on by megabytes meanwhile. When it
/// ends, its journal is full, and what did not fit there is in the FIFO.
#[tokio::test]
async fn a_container_that_outruns_the_shipper_and_ends_loses_nothing() {
    let host = Host::new()
        .with("JOURNAL_SIZE", "1m")
        .with("JOURNAL_BLOCK_MS_MAX", "5000");
    // 3 MB/s.
    let behaviour = Behaviour {
        window_bytes: 64 << 10,
        delay: Duration::from_millis(20),
        ..Behaviour::default()
    };
    let shipper = FakeShipper::start(&host.shipper(), behaviour);
    let driver = host.run();
    let mut container = Container::new(host.path(), "c1");
    host.start(&container, "{}").await;
    container.write_lines(90_000).await; // 18 MB: 6 s at that pace
    assert!(host.stop(&container).await < Duration::from_secs(1));
    container.close();
    host.no_stream_is_left().await;
    let log = shipper.log_of("c1");
    assert_eq!(log.holes, []);
    assert_eq!(log.lines(), numbered_lines(90_000));
    assert_eq!(shipper.state().faults, Vec::<String>::new());
    driver.stop().await;
}

/// A shipper that takes little is no shipper to a container that stops: the engine has more than a
/// megabyte for the FIFO before it says so, and nothing else tells that it wants to.
#[tokio::test]
async fn a_shipper_that_takes_little_holds_up_no_container() {
    write_while_the_shipper_takes_little(1 << 20).await;
}

/// Beyond a number of large pipes the kernel gives a process without privileges small ones. Their
/// containers have as much to write, and wait no longer.
#[tokio::test]
async fn a_shipper_that_takes_little_holds_up_no_container_with_a_small_pipe() {
    write_while_the_shipper_takes_little(64 << 10).await;
}

async fn write_while_the_shipper_takes_little(pipe_bytes: usize) {
    let host = Host::new().with("JOURNAL_BLOCK_MS_MAX", "1500");
    // 160 KB/s: a segment is released every 0.8 s.
    let behaviour = Behaviour {
        window_bytes: 16 << 10,
        delay: Duration::from_millis(100),
        ..Behaviour::default()
    };
    let shipper = FakeShipper::start(&host.shipper(), behaviour);
    let driver = host.run();
    let mut container = Container::new(host.path(), "c1");
    host.start(&container, r#"{"journal-size":"1m"}"#).await;
    container.set_pipe_bytes(pipe_bytes).await;
    let began = Instant::now();
    container.write_lines(20_000).await; // 4 MB: half of it fits journal and pipe
    let took = began.elapsed();
    // 13 s at the shipper's pace; two or three times 1 MiB, 1.5 s each.
    assert!(took < Duration::from_secs(7), "{took:?}");
    assert!(host.stop(&container).await < Duration::from_secs(1));
    container.close();
    shipper.state().behaviour = Behaviour::default();
    host.no_stream_is_left().await;
    let log = shipper.log_of("c1");
    let dropped: u64 = log.holes.iter().map(|hole| hole.entries).sum();
    assert_eq!(log.lines().len() as u64 + dropped, 20_000);
    assert_eq!(shipper.state().faults, Vec::<String>::new());
    driver.stop().await;
}

#[tokio::test]
async fn a_journal_in_memory_ships_alike_and_writes_no_segment() {
    let host = Host::new();
    let driver = host.run();
    let mut container = Container::new(host.path(), "c1");
    // Whether `no-file` is read from the options is their parser's test; here it must be harmless.
    assert_eq!(
        host.start(&container, r#"{"no-file":"true"}"#).await,
        NO_ERR
    );
    container.write_lines(2_000).await;
    let shipper = FakeShipper::start(&host.shipper(), Behaviour::default());
    container.close();
    host.no_stream_is_left().await;
    assert_eq!(shipper.log_of("c1").lines(), numbered_lines(2_000));
    driver.stop().await;
}

#[tokio::test]
async fn the_token_goes_with_every_call() {
    let host = Host::new();
    let token = host.path().join("token");
    std::fs::write(&token, "s3cret\n").unwrap();
    let host = host.with("SHIPPER_TOKEN_FILE", token.to_str().unwrap());
    let shipper = FakeShipper::start(&host.shipper(), Behaviour::default());
    let driver = host.run();
    shipper
        .wait("a call", |state| !state.authorizations.is_empty())
        .await;
    assert_eq!(
        shipper.state().authorizations[0].as_deref(),
        Some("Bearer s3cret")
    );
    driver.stop().await;
}

#[tokio::test]
async fn tls_names_both_sides_and_a_stranger_is_not_trusted() {
    let tls = |name: &str| format!("{}/tests/slice/tls/{name}", env!("CARGO_MANIFEST_DIR"));
    let (shipper, port) = FakeShipper::start_tls(Behaviour::default());
    let host = Host::new()
        .with(
            "SHIPPER",
            &format!("http://127.0.0.1:1,https://localhost:{port}"),
        )
        .with("SHIPPER_CERT_FILE", &tls("client.pem"))
        .with("SHIPPER_KEY_FILE", &tls("client.key"));
    // An authority that did not sign the shipper's certificate.
    let host = host.with("SHIPPER_CA_FILE", &tls("client.pem"));
    let driver = host.run();
    let mut container = Container::new(host.path(), "c1");
    assert_eq!(host.start(&container, "{}").await, NO_ERR);
    container.write_lines(10).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    driver.stop().await;
    assert!(shipper.state().authorizations.is_empty());
    let host = host.with("SHIPPER_CA_FILE", &tls("ca.pem"));
    let driver = host.run();
    container.close();
    host.no_stream_is_left().await;
    assert_eq!(shipper.log_of("c1").lines(), numbered_lines(10));
    driver.stop().await;
}

#[tokio::test]
async fn dropped_and_run_again_the_driver_goes_on_where_it_was() {
    let host = Host::new();
    let shipper = FakeShipper::start(&host.shipper(), Behaviour::default());
    let mut container = Container::new(host.path(), "c1");
    let driver = host.run();
    host.start(&container, "{}").await;
    container.write_lines(3_000).await;
    driver.drop_abruptly().await;
    container.write_lines(1_000).await; // the FIFO holds them
    let driver = host.run();
    container.write_lines(1_000).await;
    host.stop(&container).await;
    container.close();
    host.no_stream_is_left().await;
    assert_eq!(shipper.log_of("c1").lines(), numbered_lines(5_000));
    assert_eq!(shipper.state().faults, Vec::<String>::new());
    driver.stop().await;
}

#[tokio::test]
async fn a_stream_whose_fifo_is_gone_is_drained_after_a_restart() {
    let host = Host::new();
    let mut container = Container::new(host.path(), "c1");
    let driver = host.run();
    host.start(&container, "{}").await;
    container.write_lines(1_000).await;
    driver.stop().await;
    container.close();
    std::fs::remove_file(&container.file).unwrap();
    let shipper = FakeShipper::start(&host.shipper(), Behaviour::default());
    let driver = host.run();
    host.no_stream_is_left().await;
    assert_eq!(shipper.log_of("c1").lines(), numbered_lines(1_000));
    driver.stop().await;
}

/// A disk that opens no file of some folders for a while.
#[derive(Debug)]
struct SlowDisk {
    folders: Vec<PathBuf>,
    is_fast: Mutex<bool>,
    changed: Condvar,
}

/// Dropped, the disk is fast: a test that fails must not wait for it for ever.
struct Slowness(Arc<SlowDisk>);

impl Slowness {
    fn of(folders: Vec<PathBuf>) -> Self {
        Self(Arc::new(SlowDisk {
            folders,
            is_fast: Mutex::default(),
            changed: Condvar::new(),
        }))
    }

    fn disk(&self) -> Arc<dyn Disk> {
        Arc::clone(&self.0) as Arc<dyn Disk>
    }
}

impl Drop for Slowness {
    fn drop(&mut self) {
        *self.0.is_fast.lock().unwrap() = true;
        self.0.changed.notify_all();
    }
}

impl Disk for SlowDisk {
    fn open(
        &self,
        path: &Path,
        flags: rustix::fs::OFlags,
    ) -> Result<std::os::fd::OwnedFd, rustix::io::Errno> {
        if self.folders.iter().any(|folder| path.starts_with(folder)) {
            let is_fast = self.is_fast.lock().unwrap();
            drop(self.changed.wait_while(is_fast, |is_fast| !*is_fast));
        }
        RealDisk.open(path, flags)
    }
}

/// A disk that is asked to sync, and takes for ever.
#[derive(Debug, Default)]
struct StuckDisk {
    is_stuck: Mutex<bool>,
    syncs_waiting: AtomicU32,
    changed: Condvar,
}

impl StuckDisk {
    fn set_stuck(&self, is_stuck: bool) {
        *self.is_stuck.lock().unwrap() = is_stuck;
        self.changed.notify_all();
    }

    fn wait(&self) {
        let is_stuck = self.is_stuck.lock().unwrap();
        self.syncs_waiting.fetch_add(1, Ordering::Relaxed);
        drop(self.changed.wait_while(is_stuck, |is_stuck| *is_stuck));
        self.syncs_waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Disk for StuckDisk {
    fn sync(&self, file: std::os::fd::BorrowedFd<'_>) -> Result<(), rustix::io::Errno> {
        self.wait();
        RealDisk.sync(file)
    }

    fn sync_folder(&self, folder: &Path) -> Result<(), rustix::io::Errno> {
        self.wait();
        RealDisk.sync_folder(folder)
    }
}

/// Lets the disk go on when a test ends: its runtime waits for the threads that wait.
struct Unstuck(Arc<StuckDisk>);

impl Drop for Unstuck {
    fn drop(&mut self) {
        self.0.set_stuck(false);
    }
}

/// A sync that takes long, and starts that wait for it, keep no journal from dropping: until it
/// drops, its FIFO is not read.
#[test]
fn a_disk_that_does_not_sync_stops_no_container() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(driver::DISK_THREADS_MAX)
        .build()
        .unwrap();
    runtime.block_on(write_while_the_disk_does_not_sync());
}

async fn write_while_the_disk_does_not_sync() {
    let host = Host::new().with("JOURNAL_SYNC_MS", "10");
    let disk = Arc::new(StuckDisk::default());
    let _unstuck = Unstuck(Arc::clone(&disk));
    let driver = host.run_on(Arc::clone(&disk) as Arc<dyn Disk>);
    let mut container = Container::new(host.path(), "c1");
    let options = r#"{"journal-size":"1m","mode":"non-blocking"}"#;
    host.start(&container, options).await;
    disk.set_stuck(true);
    container.write_lines(1).await;
    eventually("a sync waits", || {
        disk.syncs_waiting.load(Ordering::Relaxed) > 0
    })
    .await;
    let mut starting = Vec::new();
    for number in 0..16 {
        let other = Container::new(host.path(), &format!("other-{number}"));
        let (plugin, body) = (host.plugin(), other.start_body("{}"));
        #[allow(clippy::disallowed_methods, reason = "awaited below")]
        let start = tokio::spawn(async move {
            let (_, answer) = call(&plugin, "LogDriver.StartLogging", &body).await;
            (other, answer)
        });
        starting.push(start);
    }
    eventually("starts wait", || {
        disk.syncs_waiting.load(Ordering::Relaxed) > 3
    })
    .await;
    let written = tokio::time::timeout(PATIENCE, container.write_lines(30_000)).await;
    assert!(written.is_ok(), "nothing is dropped while the disk syncs");
    assert!(host.stop(&container).await < Duration::from_secs(1));
    disk.set_stuck(false);
    for start in starting {
        assert_eq!(start.await.unwrap().1, NO_ERR);
    }
    container.close();
    driver.stop().await;
}

/// Containers are stopped while the driver still looks for their streams: their FIFOs, which the
/// engine unlinks at the answer, are kept until they are read.
#[tokio::test]
async fn a_stop_during_a_long_recovery_loses_nothing() {
    stop_during_a_long_recovery(Container::stop_body).await;
}

/// The engine repeats a stop that failed, as its plugin was killed, without its body.
#[tokio::test]
async fn a_stop_without_a_body_during_a_long_recovery_loses_nothing() {
    stop_during_a_long_recovery(|_| String::new()).await;
}

async fn stop_during_a_long_recovery(stop_body: fn(&Container) -> String) {
    let host = Host::new();
    let mut containers = [
        Container::new(host.path(), "c1"),
        Container::new(host.path(), "c2"),
    ];
    let driver = host.run();
    for container in &mut containers {
        host.start(container, "{}").await;
        container.write_lines(10).await;
    }
    driver.stop().await;
    for container in &mut containers {
        container.write_lines(50).await;
    }
    let slow = Slowness::of(host.streams());
    let driver = host.run_on(slow.disk());
    eventually("the driver listens", || host.plugin().exists()).await;
    for container in &mut containers {
        let took = host.stop_with(&stop_body(container)).await;
        assert!(took < Duration::from_secs(1), "{took:?}");
        container.close();
        std::fs::remove_file(&container.file).unwrap();
    }
    drop(slow);
    let shipper = FakeShipper::start(&host.shipper(), Behaviour::default());
    host.no_stream_is_left().await;
    for id in ["c1", "c2"] {
        assert_eq!(shipper.log_of(id).lines(), numbered_lines(60), "{id}");
    }
    driver.stop().await;
}

/// A disk to which nothing can be written for a while.
#[derive(Debug, Default)]
struct HungDisk {
    hangs: Mutex<bool>,
    changed: Condvar,
}

impl HungDisk {
    fn hang(&self, hangs: bool) {
        *self.hangs.lock().unwrap() = hangs;
        self.changed.notify_all();
    }

    fn wait(&self) {
        let hangs = self.hangs.lock().unwrap();
        drop(self.changed.wait_while(hangs, |hangs| *hangs));
    }
}

impl Disk for HungDisk {
    fn write_at(&self, file: BorrowedFd<'_>, bytes: &[u8], at: u64) -> Result<usize, Errno> {
        self.wait();
        RealDisk.write_at(file, bytes, at)
    }

    fn sync(&self, file: BorrowedFd<'_>) -> Result<(), Errno> {
        self.wait();
        RealDisk.sync(file)
    }

    fn splice(
        &self,
        fifo: BorrowedFd<'_>,
        file: BorrowedFd<'_>,
        at: u64,
        bytes_max: usize,
    ) -> Result<usize, Errno> {
        self.wait();
        RealDisk.splice(fifo, file, at, bytes_max)
    }
}

/// The engine kills a plugin 10 s after it has asked it to end. Neither a shipper that acknowledges
/// nothing nor a disk that takes nothing may use that up.
#[tokio::test]
async fn a_stop_is_over_in_time_although_shipper_and_disk_hang() {
    let host = Host::new();
    let shipper = FakeShipper::start(&host.shipper(), Behaviour::without_acks());
    let disk = Arc::new(HungDisk::default());
    let driver = host.run_alone(Arc::clone(&disk) as Arc<dyn Disk>);
    let mut container = Container::new(host.path(), "c1");
    eventually("the driver listens", || host.plugin().exists()).await;
    assert_eq!(host.start(&container, "{}").await, NO_ERR);
    container.write_lines(100).await;
    let has_lines = |state: &fake::State| state.logs.values().any(|log| log.bytes.len() > 1_000);
    shipper.wait("the driver ships", has_lines).await;
    disk.hang(true);
    container.write_lines(100).await;
    driver.stop_within(STOP_MAX, || disk.hang(false)).await;
}

/// Nor may one on which the state folder can't even be opened.
#[tokio::test]
async fn a_stop_is_over_in_time_although_the_state_folder_hangs() {
    let host = Host::new();
    let slow = Slowness::of(vec![host.path().join("state")]);
    let driver = host.run_alone(slow.disk());
    eventually("the driver listens", || host.plugin().exists()).await;
    driver.stop_within(STOP_MAX, || drop(slow)).await;
    assert!(!host.plugin().exists());
}

/// Containers start, ship and stop while the driver still looks for the streams of earlier ones.
#[tokio::test]
async fn containers_come_and_go_during_a_long_recovery() {
    let host = Host::new();
    let shipper = FakeShipper::start(&host.shipper(), Behaviour::default());
    shipper.state().behaviour = Behaviour::without_acks();
    let mut old = Container::new(host.path(), "old");
    let driver = host.run();
    host.start(&old, "{}").await;
    old.write_lines(10).await;
    driver.stop().await;
    shipper.state().behaviour = Behaviour::default();
    let slow = Slowness::of(host.streams());
    let driver = host.run_on(slow.disk());
    eventually("the driver listens", || host.plugin().exists()).await;
    let mut new = Container::new(host.path(), "new");
    assert_eq!(host.start(&new, "{}").await, NO_ERR);
    new.write_lines(20).await;
    let is_there = |state: &fake::State| {
        let mut logs = state.logs.values();
        logs.any(|log| log.container_id == "new" && log.lines().len() == 20)
    };
    shipper.wait("the new one's lines arrive", is_there).await;
    // It waits for no recovery.
    let took = host.stop(&new).await;
    assert!(took < Duration::from_millis(400), "{took:?}");
    new.close();
    drop(slow);
    old.write_lines(10).await;
    host.stop(&old).await;
    old.close();
    host.no_stream_is_left().await;
    assert_eq!(shipper.log_of("old").lines(), numbered_lines(20));
    assert_eq!(shipper.state().faults, Vec::<String>::new());
    driver.stop().await;
}

/// A disk that was mounted read-only.
#[derive(Debug)]
struct ReadOnlyDisk;

impl Disk for ReadOnlyDisk {
    fn open(
        &self,
        path: &Path,
        flags: rustix::fs::OFlags,
    ) -> Result<std::os::fd::OwnedFd, rustix::io::Errno> {
        use rustix::fs::OFlags;
        match flags.intersects(OFlags::RDWR | OFlags::WRONLY | OFlags::CREATE) {
            true => Err(rustix::io::Errno::ROFS),
            false => RealDisk.open(path, flags),
        }
    }

    fn unlink(&self, _: &Path) -> Result<(), rustix::io::Errno> {
        Err(rustix::io::Errno::ROFS)
    }

    fn mkdir(&self, _: &Path) -> Result<(), rustix::io::Errno> {
        Err(rustix::io::Errno::ROFS)
    }

    fn rmdir(&self, _: &Path) -> Result<(), rustix::io::Errno> {
        Err(rustix::io::Errno::ROFS)
    }

    fn rename(&self, _: &Path, _: &Path) -> Result<(), rustix::io::Errno> {
        Err(rustix::io::Errno::ROFS)
    }
}

/// The driver starts on a disk that takes nothing: old containers go on behind what their journals
/// hold, new ones start, all with what comes in memory.
#[tokio::test]
async fn a_read_only_disk_stops_no_container() {
    let host = Host::new();
    let mut old = Container::new(host.path(), "old");
    let driver = host.run();
    host.start(&old, "{}").await;
    old.write_lines(10).await;
    driver.stop().await;
    old.write_lines(10).await;
    let driver = host.run_on(Arc::new(ReadOnlyDisk));
    eventually("the driver listens", || host.plugin().exists()).await;
    let mut new = Container::new(host.path(), "new");
    assert_eq!(host.start(&new, "{}").await, NO_ERR);
    for container in [&mut old, &mut new] {
        container.write_lines(10).await;
    }
    let shipper = FakeShipper::start(&host.shipper(), Behaviour::default());
    let is_all_there = |state: &fake::State| {
        let count = |id: &str| {
            let mut logs = state.logs.values();
            logs.find(|log| log.container_id == id)
                .map_or(0, |log| log.lines().len())
        };
        (count("old"), count("new")) == (30, 10)
    };
    shipper.wait("all lines arrive", is_all_there).await;
    assert_eq!(shipper.log_of("old").lines(), numbered_lines(30));
    for container in [&mut old, &mut new] {
        assert!(host.stop(container).await < Duration::from_secs(1));
        container.close();
    }
    driver.stop().await;
}

/// Makes a folder as an earlier process left it, after the one of a container whose FIFO is gone.
fn leave_behind(template: &Path, number: usize, change: impl Fn(&Path)) {
    let text = std::fs::read_to_string(template.join("meta.json")).unwrap();
    let template_id = template.file_name().unwrap().to_str().unwrap();
    let id = format!("{number:032x}");
    let text = text.replace(template_id, &id);
    let text = text.replace("\"template\"", &format!("\"old-{number}\""));
    let text = text.replace("/fifo-", &format!("/gone-{number}-"));
    let folder = template.with_file_name(id);
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("meta.json"), text).unwrap();
    let segment = "0".repeat(20);
    std::fs::copy(template.join(&segment), folder.join(&segment)).unwrap();
    change(&folder);
}

fn peak_rss_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let mut lines = status.lines();
    let peak = lines.find(|line| line.starts_with("VmHWM")).unwrap();
    peak.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Thousands of journals of containers that are long gone, some over, some waiting, some damaged:
/// they hold up nobody, and cost little.
#[tokio::test]
async fn thousands_of_old_journals_hold_up_nobody() {
    const OVER: usize = 4_500;
    const WAITING: usize = 400;
    const DAMAGED: usize = 100;
    const DAMAGED_KEPT: usize = 64;
    let host = Host::new();
    let driver = host.run();
    let mut template = Container::new(host.path(), "template");
    host.start(&template, "{}").await;
    template.write_lines(3).await;
    host.stop(&template).await;
    driver.stop().await;
    template.close();
    let folder = host.streams().remove(0);
    for number in 0..OVER + WAITING + DAMAGED {
        leave_behind(&folder, number, |folder| {
            let (meta, segment) = (folder.join("meta.json"), folder.join("0".repeat(20)));
            if number < OVER {
                std::fs::rename(meta, folder.join("ended.json")).unwrap();
                std::fs::rename(&segment, segment.with_extension("acked")).unwrap();
            } else if number < OVER + DAMAGED {
                std::fs::write(meta, "{\"version\":1,").unwrap();
            }
        });
    }
    std::fs::remove_dir_all(&folder).unwrap();
    let shipper = FakeShipper::start(&host.shipper(), Behaviour::default());
    let mut process = host.spawn();
    let began = Instant::now();
    eventually("the driver listens", || host.plugin().exists()).await;
    let listens = began.elapsed();
    let mut container = Container::new(host.path(), "new");
    assert_eq!(host.start(&container, "{}").await, NO_ERR);
    let starts = began.elapsed() - listens;
    container.write_lines(10).await;
    let is_there = |state: &fake::State| {
        let mut logs = state.logs.values();
        logs.any(|log| log.container_id == "new" && log.lines().len() == 10)
    };
    shipper.wait("the new one's lines arrive", is_there).await;
    let arrives = began.elapsed();
    let mut finished_count = 0;
    while finished_count < WAITING {
        let before = finished_count;
        eventually("more of what waited arrives", || {
            let state = shipper.state();
            let finished = state.logs.values().filter(|log| log.finished.is_some());
            finished_count = finished.count();
            finished_count > before
        })
        .await;
    }
    assert!(host.stop(&container).await < Duration::from_secs(1));
    container.close();
    host.no_stream_is_left().await;
    assert_eq!(shipper.state().faults, Vec::<String>::new());
    let took = began.elapsed();
    assert_eq!(host.damaged_count(), DAMAGED_KEPT);
    let peak_kib = peak_rss_kib(process.id().unwrap());
    eprintln!(
        "5,000 old journals: listens after {listens:.1?}, a container starts in {starts:.1?}, its \
         lines arrive after {arrives:.1?}, all is shipped after {took:.1?}, peak RSS {} MiB",
        peak_kib >> 10
    );
    assert!(starts < Duration::from_secs(1), "{starts:?}");
    assert!(peak_kib < 64 << 10, "{peak_kib} KiB");
    process.kill().await.unwrap();
}

/// Kills the real process again and again while a container writes. Nothing may be lost, and only
/// what was in flight may be sent twice.
#[tokio::test]
async fn sigkill_under_load_loses_and_invents_nothing() {
    const KILLS: usize = 8;
    let host = Host::new();
    let shipper = FakeShipper::start(&host.shipper(), Behaviour::default());
    let mut container = Container::new(host.path(), "c1");
    let mut process = host.spawn();
    assert_eq!(host.start(&container, "{}").await, NO_ERR);
    for kill in 0..KILLS {
        let given = |state: &fake::State| state.logs.values().map(|log| log.bytes.len()).sum();
        let given_before: usize = given(&shipper.state());
        container.write_lines(2_000).await;
        let is_at_work = |state: &fake::State| given(state) > given_before;
        shipper.wait("the new process ships", is_at_work).await;
        // What was acknowledged more than 50 ms ago is on disk: so much of each round is not repeated.
        tokio::time::sleep(Duration::from_millis(100)).await;
        container.write_lines(2_000).await;
        process.kill().await.unwrap();
        // The pipe may be full: what does not fit waits for the next process.
        let lines = container.write_lines(200 * kill as u64);
        let spawned = async { host.spawn() };
        ((), process) = tokio::join!(lines, spawned);
    }
    container.write_lines(100).await;
    assert!(host.stop(&container).await < Duration::from_secs(1));
    container.close();
    host.no_stream_is_left().await;
    let count = 100
        + (0..KILLS as u64)
            .map(|kill| 4_000 + 200 * kill)
            .sum::<u64>();
    let log = shipper.log_of("c1");
    assert_eq!(log.lines().len() as u64, count);
    assert_eq!(log.lines(), numbered_lines(count));
    assert_eq!(log.holes, []);
    assert!(log.opens.len() >= KILLS, "{}", log.opens.len());
    // Each kill may repeat what was sent and not yet acknowledged: here about one request.
    let repeated_bytes_max = KILLS as u64 * (512 << 10);
    assert!(
        log.repeated_bytes < repeated_bytes_max,
        "{}",
        log.repeated_bytes
    );
    // SIGTERM is handled, and quickly.
    let pid = i32::try_from(process.id().unwrap()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(5), process.wait()).await;
    assert_eq!(ended.unwrap().unwrap().code(), Some(0));
}

/// Runs the driver's binary with a soft and a hard limit of file descriptors.
fn spawn_limited(host: &Host, soft: u32, hard: u32) -> tokio::process::Child {
    let script = format!("ulimit -Sn {soft} && ulimit -Hn {hard} && exec \"$0\"");
    let mut command = tokio::process::Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_cls-driver")]);
    command.env_clear().stdout(Stdio::null()).kill_on_drop(true);
    command.envs(host.settings.iter().map(|(name, value)| (*name, value)));
    command.spawn().unwrap()
}

/// The backlog of eight containers has more segments than the process may have files; a ninth would
/// be one too many to read.
#[tokio::test]
async fn a_backlog_uses_no_file_descriptors_and_a_container_too_many_is_refused() {
    let host = Host::new().with("JOURNAL_BLOCK_MS_MAX", "600000");
    let _process = spawn_limited(&host, 64, 64);
    let mut containers: Vec<_> = (0..8)
        .map(|number| Container::new(host.path(), &format!("c{number}")))
        .collect();
    for container in &containers {
        assert_eq!(host.start(container, "{}").await, NO_ERR);
    }
    let further = Container::new(host.path(), "further");
    let err = host.start(&further, "{}").await;
    assert!(err.contains("raise the engine's LimitNOFILE"), "{err}");
    for container in &mut containers {
        // 8 MB each: 64 segments in all.
        let written = tokio::time::timeout(PATIENCE, container.write_lines(40_000)).await;
        assert!(written.is_ok(), "{} is not read", container.id);
    }
    for container in &mut containers {
        assert!(host.stop(container).await < Duration::from_secs(1));
        container.close();
    }
    eventually("the end of the others makes room", || {
        containers.iter().all(|container| !container.file.exists())
    })
    .await;
    assert_eq!(host.start(&further, "{}").await, NO_ERR);
    drop(further);
    let shipper = FakeShipper::start(&host.shipper(), Behaviour::default());
    host.no_stream_is_left().await;
    for container in &containers {
        let lines = shipper.log_of(&container.id).lines();
        assert_eq!(lines, numbered_lines(40_000), "{}", container.id);
    }
    assert_eq!(shipper.state().faults, Vec::<String>::new());
}

#[tokio::test]
async fn the_limit_of_file_descriptors_is_raised_as_far_as_it_may() {
    let host = Host::new();
    let process = spawn_limited(&host, 64, 200);
    drop(connect(&host.plugin()).await);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.id().unwrap()));
    let limits = limits.unwrap();
    let mut lines = limits.lines();
    let files = lines.find(|line| line.starts_with("Max open files"));
    let words: Vec<_> = files.unwrap().split_whitespace().collect();
    assert_eq!(words[3..5], ["200", "200"], "{limits}");
}

#[tokio::test]
async fn bad_settings_end_the_process_with_64_and_name_every_fault() {
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_cls-driver"))
        .env_clear()
        .env("LOG_LEVEL", "loud")
        .env("JOURNAL_SIZE", "x")
        .output();
    let output = tokio::time::timeout(PATIENCE, output)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(output.status.code(), Some(64));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.contains("LOG_LEVEL=\"loud\"") && text.contains("JOURNAL_SIZE=\"x\""),
        "{text}"
    );
}
