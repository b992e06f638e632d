//! The driver's two neighbours: an engine that behaves as dockerd does towards a logging plugin,
//! and a shipper that checks everything the contract says and remembers what it was given.

use proto::frame::{self, Decoded, EntryView};
use proto::relay::event::Kind;
use proto::relay::relay_server::{Relay, RelayServer};
use proto::relay::{
    Ack, CheckRequest, CheckResponse, HostReport, LogEntry, Open, Opened, Refused, ReportAck,
    ShipRequest, ShipResponse, StreamReport,
};
use rustix::fs::{Mode, OFlags};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream, UnixListenerStream};
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

/// How long anything may take that must happen.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What a shipper was given of one journal.
#[derive(Debug, Default, Clone)]
pub struct Log {
    pub container_id: String,
    pub opens: Vec<Open>,
    /// Everything, by offset; holes are zeros.
    pub bytes: Vec<u8>,
    pub holes: Vec<proto::relay::Hole>,
    pub finished: Option<u64>,
    /// The counters that came with the end.
    pub totals: Option<StreamReport>,
    pub acked: u64,
    /// Bytes that were sent more than once.
    pub repeated_bytes: u64,
    /// Most bytes that were unacknowledged when more came.
    pub in_flight_bytes_max: u64,
}

impl Log {
    /// Returns the lines, in order.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut at = 0;
        while at < self.bytes.len() {
            if let Some(hole) = self
                .holes
                .iter()
                .find(|hole| hole.first_offset == at as u64)
            {
                at = usize::try_from(hole.end_offset).unwrap();
                continue;
            }
            let Decoded::Frame { entry, frame_bytes } = frame::decode(&self.bytes[at..]) else {
                panic!("no frame at {at} of {}", self.bytes.len())
            };
            let view = EntryView::parse(entry).unwrap();
            lines.push(String::from_utf8(view.line.to_vec()).unwrap());
            at += frame_bytes;
        }
        lines
    }
}

/// What the shipper does.
#[derive(Debug, Clone)]
pub struct Behaviour {
    pub window_bytes: u64,
    pub acks: bool,
    /// How long a request waits for its answer.
    pub delay: Duration,
    /// How long a stream's lines may wait in the pipe.
    pub hold_ms: Option<u32>,
    pub refusal: Option<String>,
    pub check_faults: Vec<String>,
    /// Whether a question about options stays without an answer.
    pub leaves_checks_open: bool,
    /// Report calls that fail before one is taken.
    pub failing_reports: u32,
}

impl Behaviour {
    /// Takes everything, and acknowledges nothing.
    pub fn without_acks() -> Self {
        Self {
            acks: false,
            ..Self::default()
        }
    }
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            window_bytes: 8 << 20,
            acks: true,
            delay: Duration::ZERO,
            hold_ms: None,
            refusal: None,
            check_faults: Vec::new(),
            leaves_checks_open: false,
            failing_reports: 0,
        }
    }
}

#[derive(Debug, Default)]
pub struct State {
    pub behaviour: Behaviour,
    pub logs: BTreeMap<String, Log>,
    pub reports: Vec<HostReport>,
    /// When the last request with events was gathered, and those without events that followed it.
    pub gathered_ms: Vec<u64>,
    /// Chunks with frames.
    pub chunk_count: usize,
    pub authorizations: Vec<Option<String>>,
    pub faults: Vec<String>,
}

/// A shipper on a unix socket. Dropped, it is gone, calls and all.
pub struct FakeShipper {
    state: Arc<Mutex<State>>,
    /// Its own, so that its connections end with it.
    runtime: Option<Runtime>,
}

impl Drop for FakeShipper {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl FakeShipper {
    pub fn start(socket: &Path, behaviour: Behaviour) -> Self {
        let state = State {
            behaviour,
            ..State::default()
        };
        Self::start_with(socket, Arc::new(Mutex::new(state)))
    }

    /// Starts a shipper that remembers what another one was given.
    pub fn start_with(socket: &Path, state: Arc<Mutex<State>>) -> Self {
        std::fs::remove_file(socket).ok();
        let runtime = runtime();
        let listener = {
            let _guard = runtime.enter();
            UnixListener::bind(socket).unwrap()
        };
        let server = tuned().add_service(service(&state));
        runtime.spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
        let runtime = Some(runtime);
        Self { state, runtime }
    }

    /// Starts a shipper on TCP that asks for a host's certificate. Returns its port, too.
    pub fn start_tls(behaviour: Behaviour) -> (Self, u16) {
        let state = Arc::new(Mutex::new(State {
            behaviour,
            ..State::default()
        }));
        let runtime = runtime();
        let listener = {
            let _guard = runtime.enter();
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            TcpListener::from_std(listener).unwrap()
        };
        let port = listener.local_addr().unwrap().port();
        let tls = ServerTlsConfig::new()
            .identity(Identity::from_pem(
                include_str!("tls/server.pem"),
                include_str!("tls/server.key"),
            ))
            .client_ca_root(Certificate::from_pem(include_str!("tls/ca.pem")));
        let server = tuned()
            .tls_config(tls)
            .unwrap()
            .add_service(service(&state));
        runtime.spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let runtime = Some(runtime);
        (Self { state, runtime }, port)
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn shared(&self) -> Arc<Mutex<State>> {
        Arc::clone(&self.state)
    }

    /// Waits until what was given satisfies a predicate.
    pub async fn wait(&self, what: &str, satisfied: impl Fn(&State) -> bool) {
        eventually(what, || satisfied(&self.state())).await;
        assert_eq!(self.state().faults, Vec::<String>::new());
    }

    /// Returns what was given of the only journal of a container.
    pub fn log_of(&self, container_id: &str) -> Log {
        let state = self.state();
        let mut logs = state
            .logs
            .values()
            .filter(|log| log.container_id == container_id);
        let log = logs
            .next()
            .unwrap_or_else(|| panic!("nothing of {container_id}"))
            .clone();
        assert!(logs.next().is_none(), "two journals of {container_id}");
        log
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

fn tuned() -> Server {
    Server::builder()
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20)
        .max_frame_size(1 << 20)
}

fn service(state: &Arc<Mutex<State>>) -> RelayServer<Service> {
    RelayServer::new(Service(Arc::clone(state)))
        .max_decoding_message_size(proto::limits::MESSAGE_BYTES_MAX)
}

/// Waits until something holds.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    assert!(waited.await.is_ok(), "it never came to be: {what}");
}

struct Service(Arc<Mutex<State>>);

#[tonic::async_trait]
impl Relay for Service {
    type ShipStream = ReceiverStream<Result<ShipResponse, Status>>;

    async fn ship(
        &self,
        request: Request<Streaming<ShipRequest>>,
    ) -> Result<Response<Self::ShipStream>, Status> {
        let authorization = request.metadata().get("authorization");
        let authorization = authorization.map(|value| value.to_str().unwrap().to_owned());
        self.0.lock().unwrap().authorizations.push(authorization);
        let mut requests = request.into_inner();
        let (responses, outbound) = mpsc::channel(16);
        let state = Arc::clone(&self.0);
        #[allow(clippy::disallowed_methods, reason = "it ends with its call")]
        tokio::spawn(async move {
            let mut call = BTreeMap::new();
            while let Some(Ok(request)) = requests.next().await {
                let delay = state.lock().unwrap().behaviour.delay;
                tokio::time::sleep(delay).await;
                let response = take(&mut state.lock().unwrap(), &mut call, request);
                if responses.send(Ok(response)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(outbound)))
    }

    async fn check(&self, _: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        if self.0.lock().unwrap().behaviour.leaves_checks_open {
            return std::future::pending().await;
        }
        Ok(Response::new(CheckResponse {
            faults: self.0.lock().unwrap().behaviour.check_faults.clone(),
            identity: "test".into(),
        }))
    }

    async fn report(
        &self,
        request: Request<Streaming<HostReport>>,
    ) -> Result<Response<ReportAck>, Status> {
        {
            let mut state = self.0.lock().unwrap();
            if let Some(left) = state.behaviour.failing_reports.checked_sub(1) {
                state.behaviour.failing_reports = left;
                return Err(Status::unavailable("not now"));
            }
        }
        let mut reports = request.into_inner();
        while let Some(Ok(report)) = reports.next().await {
            self.0.lock().unwrap().reports.push(report);
        }
        Ok(Response::new(ReportAck {}))
    }
}

/// What a call knows of a stream: its journal, and where it goes on.
type Streams = BTreeMap<u32, (String, u64)>;

fn take(state: &mut State, call: &mut Streams, request: ShipRequest) -> ShipResponse {
    let mut response = ShipResponse::default();
    if !request.events.is_empty() {
        state.gathered_ms.clear();
    }
    state.gathered_ms.extend(request.gathered_ms);
    for event in request.events {
        match event.kind.unwrap() {
            Kind::Open(open) => take_open(state, call, *open, &mut response),
            Kind::Chunk(chunk) => {
                state.chunk_count += usize::from(!chunk.frames.is_empty());
                take_chunk(state, call, &chunk, &mut response);
            }
            Kind::Hole(hole) => {
                let (journal_id, at) = call.get_mut(&hole.stream).unwrap();
                if hole.first_offset != *at || hole.end_offset <= *at {
                    state.faults.push(format!("hole {hole:?} at {at}"));
                }
                *at = hole.end_offset;
                let log = state.logs.get_mut(journal_id).unwrap();
                log.bytes.resize(usize::try_from(*at).unwrap(), 0);
                ack(&state.behaviour, log, hole.stream, *at, 0, &mut response);
                log.holes.push(hole);
            }
            Kind::Finish(finish) => {
                let (journal_id, at) = call.get(&finish.stream).unwrap();
                if finish.end_offset != *at {
                    state.faults.push(format!("finish {finish:?} at {at}"));
                }
                let log = state.logs.get_mut(journal_id).unwrap();
                log.finished = Some(finish.end_offset);
                ack(&state.behaviour, log, finish.stream, *at, 0, &mut response);
                if let Some(ack) = response.acks.last_mut().filter(|_| state.behaviour.acks) {
                    ack.is_last = true;
                }
                log.totals = finish.totals.map(|totals| *totals);
            }
        }
    }
    response
}

fn take_open(state: &mut State, call: &mut Streams, open: Open, response: &mut ShipResponse) {
    let stream = open.stream;
    if let Some(reason) = state.behaviour.refusal.clone() {
        response.refused.push(Refused { stream, reason });
        return;
    }
    call.insert(stream, (open.journal_id.clone(), open.resume_offset));
    let log = state.logs.entry(open.journal_id.clone()).or_default();
    // An acknowledgement may never have reached a driver that was killed.
    log.acked = open.resume_offset;
    log.container_id = open.container.as_ref().unwrap().id.clone();
    log.opens.push(open);
    response.opened.push(Opened {
        stream,
        window_bytes: state.behaviour.window_bytes,
        hold_ms: state.behaviour.hold_ms,
    });
}

fn take_chunk(
    state: &mut State,
    call: &mut Streams,
    chunk: &proto::relay::Chunk,
    response: &mut ShipResponse,
) {
    let (journal_id, at) = call.get_mut(&chunk.stream).unwrap();
    if chunk.first_offset != *at {
        state
            .faults
            .push(format!("chunk at {} after {at}", chunk.first_offset));
    }
    // It says only whether there is more.
    if chunk.frames.is_empty() {
        return;
    }
    let log = state.logs.get_mut(journal_id).unwrap();
    let first = usize::try_from(chunk.first_offset).unwrap();
    let known = log
        .bytes
        .len()
        .min(first + chunk.frames.len())
        .saturating_sub(first);
    if log.bytes.get(first..first + known) != chunk.frames.get(..known) {
        state.faults.push(format!("other bytes at {first}"));
    }
    log.repeated_bytes += known as u64;
    log.bytes.extend_from_slice(&chunk.frames[known..]);
    *at = chunk.first_offset + chunk.frames.len() as u64;
    log.in_flight_bytes_max = log.in_flight_bytes_max.max(*at - log.acked);
    let mut rest = &chunk.frames[..];
    let mut entries = 0;
    while let Decoded::Frame { frame_bytes, .. } = frame::decode(rest) {
        rest = &rest[frame_bytes..];
        entries += 1;
    }
    if !rest.is_empty() || entries == 0 {
        state
            .faults
            .push(format!("{} bytes behind the last frame", rest.len()));
    }
    ack(&state.behaviour, log, chunk.stream, *at, entries, response);
}

fn ack(
    behaviour: &Behaviour,
    log: &mut Log,
    stream: u32,
    offset: u64,
    delivered_entries: u64,
    response: &mut ShipResponse,
) {
    if behaviour.acks {
        log.acked = offset;
        response.acks.push(Ack {
            stream,
            offset,
            delivered_entries,
            ..Ack::default()
        });
    }
}

/// What dockerd does for one container: makes a FIFO, keeps it open, writes frames.
pub struct Container {
    pub id: String,
    pub file: PathBuf,
    writer: Option<OwnedFd>,
    line_count: u64,
}

impl Container {
    pub fn new(folder: &Path, id: &str) -> Self {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let file = folder.join(format!("fifo-{number}"));
        rustix::fs::mkfifoat(rustix::fs::CWD, &file, Mode::RWXU).unwrap();
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let writer = rustix::fs::open(&file, flags, Mode::empty()).unwrap();
        Self {
            id: id.to_owned(),
            file,
            writer: Some(writer),
            line_count: 0,
        }
    }

    /// Returns what StartLogging says, with log options as JSON.
    pub fn start_body(&self, options: &str) -> String {
        let (file, id) = (self.file.display(), &self.id);
        format!(
            r#"{{"File":"{file}","Info":{{"Config":{options},"ContainerID":"{id}","ContainerName":"/name","ContainerEntrypoint":"sh","ContainerArgs":["-c","x"],"ContainerImageID":"sha256:1","ContainerImageName":"bb","ContainerCreated":"{}","ContainerEnv":null,"ContainerLabels":{{}},"LogPath":"","DaemonName":"docker"}}}}
"#,
            now_rfc3339()
        )
    }

    pub fn stop_body(&self) -> String {
        format!("{{\"File\":\"{}\"}}\n", self.file.display())
    }

    /// Writes frames of numbered lines, as fast as they are taken.
    pub async fn write_lines(&mut self, count: u64) {
        for _ in 0..count {
            let line = format!("{:07} {}", self.line_count, "x".repeat(160));
            self.line_count += 1;
            self.write(&frame_of(&line)).await;
        }
    }

    pub async fn write(&self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match rustix::io::write(self.writer.as_ref().unwrap(), bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(rustix::io::Errno::AGAIN) => {
                    tokio::time::sleep(Duration::from_micros(200)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Gives the FIFO another size.
    pub async fn set_pipe_bytes(&self, bytes: usize) {
        let writer = self.writer.as_ref().unwrap();
        rustix::pipe::fcntl_setpipe_size(writer, bytes).unwrap();
    }

    /// Closes the FIFO, as dockerd does after StopLogging, and leaves its file.
    pub fn close(&mut self) {
        self.writer = None;
    }
}

/// Returns the numbered lines that [`Container::write_lines`] writes.
pub fn numbered_lines(count: u64) -> Vec<String> {
    let line = |number| format!("{number:07} {}", "x".repeat(160));
    (0..count).map(line).collect()
}

pub fn frame_of(line: &str) -> Vec<u8> {
    let mut frames = Vec::new();
    let entry = LogEntry {
        source: "stdout".into(),
        time_nano: 1_700_000_000_000_000_000,
        line: line.as_bytes().to_vec(),
        partial: false,
        partial_log_metadata: None,
    };
    frame::encode(&entry, &mut frames);
    frames
}

fn now_rfc3339() -> String {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec;
    let (days, seconds) = (now / 86_400, now % 86_400);
    // Days of a month and year, Howard Hinnant's `civil_from_days`.
    let era_day = days + 719_468;
    let era = era_day / 146_097;
    let day_of_era = era_day % 146_097;
    let year = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.5Z")
}

/// Calls the plugin, byte for byte as dockerd 20.10 does. Returns status line and body.
pub async fn call(socket: &Path, method: &str, body: &str) -> (String, String) {
    let mut stream = connect(socket).await;
    call_on(&mut stream, method, body).await
}

pub async fn connect(socket: &Path) -> UnixStream {
    let connected = tokio::time::timeout(PATIENCE, async {
        loop {
            match UnixStream::connect(socket).await {
                Ok(stream) => return stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    });
    connected.await.expect("the plugin listens")
}

/// Calls the plugin on a connection that stays open.
pub async fn call_on(stream: &mut UnixStream, method: &str, body: &str) -> (String, String) {
    let head = format!(
        "POST /{method} HTTP/1.1\r\nHost: \r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: {}\r\nAccept: application/vnd.docker.plugins.v1.2+json\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&answer).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                let is_length = name.eq_ignore_ascii_case("content-length");
                is_length.then(|| value.trim().parse::<usize>().unwrap())
            });
            if body.len() == length.expect("an answer has a length") {
                let status = head.lines().next().unwrap().to_owned();
                return (status, body.to_owned());
            }
        }
        let read = tokio::time::timeout(PATIENCE, stream.read_buf(&mut answer)).await;
        assert!(
            read.unwrap().unwrap() > 0,
            "the plugin closed the connection"
        );
    }
}
