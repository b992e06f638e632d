//! What a line costs in the driver: its own CPU time and memory, from FIFO to a shipper that
//! acknowledges at once and does nothing else.
//!
//! ```text
//! cargo bench -p driver --bench cost -- [streams] [frames of all streams] [frames a second, 0 = full speed]
//! ```
//!
//! Frames are 220 bytes (a line of 195). The driver is its real process; engine and shipper are
//! this one, and not counted.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    reason = "a measurement; it stops at the first surprise"
)]

use proto::frame::{self, Decoded};
use proto::relay::event::Kind;
use proto::relay::relay_server::{Relay, RelayServer};
use proto::relay::{
    Ack, CheckRequest, CheckResponse, HostReport, LogEntry, Opened, ReportAck, ShipRequest,
    ShipResponse,
};
use rustix::fs::{Mode, OFlags};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// Frames written at once; as the engine's single frames, they fill the pipe's pages densely.
const BATCH_FRAMES: u64 = 100;

fn main() {
    let numbers: Vec<u64> = std::env::args()
        .filter_map(|argument| argument.parse().ok())
        .collect();
    let streams = numbers.first().copied().unwrap_or(1);
    let frames = numbers.get(1).copied().unwrap_or(3_000_000);
    let frames_per_second = numbers.get(2).copied().unwrap_or(0);
    let folder = tempfile::tempdir().unwrap();
    let shipped = Arc::new(AtomicU64::new(0));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    serve(
        &runtime,
        &folder.path().join("shipper.sock"),
        Arc::clone(&shipped),
    );
    let mut driver = Command::new(env!("CARGO_BIN_EXE_cls-driver"))
        .env("PLUGIN_SOCKET", folder.path().join("plugin.sock"))
        .env("STATE_DIR", folder.path().join("state"))
        .env(
            "SHIPPER",
            format!("unix://{}", folder.path().join("shipper.sock").display()),
        )
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let fifos: Vec<_> = (0..streams)
        .map(|number| start(folder.path(), number))
        .collect();
    let idle_cpu = cpu(driver.id());
    let began = Instant::now();
    let writers: Vec<_> = write(fifos, frames / streams, frames_per_second / streams);
    for writer in writers {
        writer.join().unwrap();
    }
    let expected = frames / streams * streams;
    while shipped.load(Ordering::Relaxed) < expected {
        std::thread::sleep(Duration::from_millis(1));
    }
    let wall = began.elapsed();
    let cpu = cpu(driver.id()) - idle_cpu;
    let memory = std::fs::read_to_string(format!("/proc/{}/status", driver.id())).unwrap();
    let memory = memory
        .lines()
        .filter(|line| line.starts_with("VmHWM") || line.starts_with("VmRSS"));
    println!(
        "{streams} streams, {expected} frames in {:.2} s: {:.0} frames/s, driver {:.3} µs of CPU per frame; {}",
        wall.as_secs_f64(),
        expected as f64 / wall.as_secs_f64(),
        cpu.as_secs_f64() * 1e6 / expected as f64,
        memory
            .collect::<Vec<_>>()
            .join(", ")
            .replace(['\t', ' '], "")
    );
    driver.kill().unwrap();
    driver.wait().unwrap();
    runtime.shutdown_background();
}

/// Returns the CPU time of a process, user and system.
fn cpu(pid: u32) -> Duration {
    let schedstat = |path: PathBuf| {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.split(' ')
            .next()
            .and_then(|nanos| nanos.parse::<u64>().ok())
            .unwrap_or(0)
    };
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    Duration::from_nanos(
        tasks
            .map(|task| schedstat(task.unwrap().path().join("schedstat")))
            .sum(),
    )
}

fn write(
    fifos: Vec<std::fs::File>,
    frames: u64,
    frames_per_second: u64,
) -> Vec<std::thread::JoinHandle<()>> {
    // A thread for every stream at full speed; paced ones share one.
    if frames_per_second == 0 {
        let write_all = |mut fifo: std::fs::File| {
            std::thread::spawn(move || {
                let batch = frames_of(BATCH_FRAMES);
                for _ in 0..frames / BATCH_FRAMES {
                    fifo.write_all(&batch).unwrap();
                }
                fifo.write_all(&frames_of(frames % BATCH_FRAMES)).unwrap();
                std::mem::forget(fifo);
            })
        };
        return fifos.into_iter().map(write_all).collect();
    }
    let pace = move || {
        let frame = frames_of(1);
        let began = Instant::now();
        let count = fifos.len() as u64;
        for number in 0..frames * count {
            let due = Duration::from_nanos(number * 1_000_000_000 / (frames_per_second * count));
            std::thread::sleep(due.saturating_sub(began.elapsed()));
            let mut fifo = &fifos[usize::try_from(number % count).unwrap()];
            fifo.write_all(&frame).unwrap();
        }
        std::mem::forget(fifos);
    };
    vec![std::thread::spawn(pace)]
}

fn frames_of(count: u64) -> Vec<u8> {
    let entry = LogEntry {
        source: "stdout".into(),
        time_nano: 1_700_000_000_000_000_000,
        line: vec![b'x'; 195],
        partial: false,
        partial_log_metadata: None,
    };
    let mut frames = Vec::new();
    for _ in 0..count {
        frame::encode(&entry, &mut frames);
    }
    assert_eq!(frames.len() as u64, count * 220);
    frames
}

/// Starts a container; returns its FIFO's write end.
fn start(folder: &Path, number: u64) -> std::fs::File {
    let file = folder.join(format!("fifo-{number}"));
    rustix::fs::mkfifoat(rustix::fs::CWD, &file, Mode::RWXU).unwrap();
    let fifo = rustix::fs::open(&file, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let body = format!(
        r#"{{"File":"{}","Info":{{"Config":{{}},"ContainerID":"{number}"}}}}"#,
        file.display()
    );
    let head = format!(
        "POST /LogDriver.StartLogging HTTP/1.1\r\nHost:\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut socket = loop {
        match std::os::unix::net::UnixStream::connect(folder.join("plugin.sock")) {
            Ok(socket) => break socket,
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    socket.write_all((head + &body).as_bytes()).unwrap();
    let mut answer = [0; 1024];
    let bytes = socket.read(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer[..bytes]);
    assert!(answer.contains(r#"{"Err":""}"#), "{answer}");
    fifo.into()
}

fn serve(runtime: &tokio::runtime::Runtime, socket: &Path, shipped: Arc<AtomicU64>) {
    let _guard = runtime.enter();
    let listener = tokio::net::UnixListener::bind(socket).unwrap();
    let service = RelayServer::new(Service(shipped));
    runtime.spawn(
        tonic::transport::Server::builder()
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(8 << 20)
            .max_frame_size(1 << 20)
            .add_service(service.max_decoding_message_size(proto::limits::MESSAGE_BYTES_MAX))
            .serve_with_incoming(UnixListenerStream::new(listener)),
    );
}

struct Service(Arc<AtomicU64>);

#[tonic::async_trait]
impl Relay for Service {
    type ShipStream = ReceiverStream<Result<ShipResponse, Status>>;

    async fn ship(
        &self,
        request: Request<Streaming<ShipRequest>>,
    ) -> Result<Response<Self::ShipStream>, Status> {
        let mut requests = request.into_inner();
        let (responses, outbound) = tokio::sync::mpsc::channel(16);
        let shipped = Arc::clone(&self.0);
        tokio::spawn(async move {
            while let Some(Ok(request)) = requests.next().await {
                if responses.send(Ok(answer(request, &shipped))).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(outbound)))
    }

    async fn check(&self, _: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        Ok(Response::new(CheckResponse::default()))
    }

    async fn report(
        &self,
        request: Request<Streaming<HostReport>>,
    ) -> Result<Response<ReportAck>, Status> {
        let mut reports = request.into_inner();
        while reports.next().await.is_some() {}
        Ok(Response::new(ReportAck {}))
    }
}

fn answer(request: ShipRequest, shipped: &AtomicU64) -> ShipResponse {
    let mut response = ShipResponse::default();
    for event in request.events {
        match event.kind.unwrap() {
            Kind::Open(open) => response.opened.push(Opened {
                stream: open.stream,
                window_bytes: 8 << 20,
                hold_ms: None,
            }),
            Kind::Chunk(chunk) => {
                let (mut rest, mut entries) = (&chunk.frames[..], 0);
                while let Decoded::Frame { frame_bytes, .. } = frame::decode(rest) {
                    rest = &rest[frame_bytes..];
                    entries += 1;
                }
                shipped.fetch_add(entries, Ordering::Relaxed);
                response.acks.push(Ack {
                    stream: chunk.stream,
                    offset: chunk.first_offset + chunk.frames.len() as u64,
                    delivered_entries: entries,
                    ..Ack::default()
                });
            }
            Kind::Hole(_) | Kind::Finish(_) => {}
        }
    }
    response
}
