//! A fake dockerd: it makes FIFOs, calls the plugin and writes frames exactly as the engine does
//! (moby 20.10 to 29; `daemon/logger/adapter.go`, `copier.go`, `pkg/plugins/client.go`).
//!
//! - The FIFO is made 0700 before StartLogging and opened `O_RDWR | O_NONBLOCK`, so that it has a
//!   reader and a writer as long as the engine lives; it holds 64 KiB.
//! - Calls go over one kept-alive connection, with an empty `Host` and no `Content-Type`. A call
//!   that fails in transport is repeated after 1, 2, 4 … s for 30 s in all, and a body that was
//!   sent once is sent empty the next time.
//! - A frame is one `write(2)`; a full pipe makes the writer wait.
//! - A line is cut into pieces of 16 KiB, of equal id and time.
//! - After StopLogging has succeeded the FIFO is closed, then unlinked. If it failed, neither.

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use proto::frame::Source;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use serde_json::{Value, json};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Bytes at which the engine cuts a line.
pub const PIECE_BYTES: usize = 16 << 10;

/// Time after which a call is not repeated any more.
const CALL_RETRIES_MAX: Duration = Duration::from_secs(30);

/// The engine's side of the plugin protocol.
#[derive(Debug)]
pub struct Dockerd {
    socket: PathBuf,
    fifo_dir: PathBuf,
    sender: Option<SendRequest<Full<Bytes>>>,
    connections: JoinSet<hyper::Result<()>>,
}

/// What the engine says of a container.
#[derive(Debug, Clone)]
pub struct Info(Value);

impl Info {
    /// Returns what the engine says of a container with a name and log options, and nothing set.
    pub fn new(name: &str, log_opts: &[(&str, &str)]) -> Self {
        let config: serde_json::Map<_, _> = log_opts
            .iter()
            .map(|(key, value)| ((*key).to_owned(), json!(value)))
            .collect();
        Self(json!({
            "Config": config,
            "ContainerID": random_hex(),
            "ContainerName": format!("/{name}"),
            "ContainerEntrypoint": "sh",
            "ContainerArgs": ["-c", "echo hello"],
            "ContainerImageID": format!("sha256:{}", random_hex()),
            "ContainerImageName": "busybox",
            "ContainerCreated": "2026-11-22T14:04:26.820587421Z",
            "ContainerEnv": ["EMPTY=", "FOO=bar"],
            "ContainerLabels": {"a": "1", "b.c": "2"},
            "LogPath": "",
            "DaemonName": "docker",
        }))
    }
}

impl Dockerd {
    /// Returns an engine that finds the plugin at `socket` and makes its FIFOs in `fifo_dir`.
    pub fn new(socket: &Path, fifo_dir: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
            fifo_dir: fifo_dir.to_owned(),
            sender: None,
            connections: JoinSet::new(),
        }
    }

    /// Starts logging for a container and returns the end that it writes to.
    ///
    /// # Errors
    /// What the engine would tell the user; the FIFO stays, as the engine leaves it.
    pub async fn start_logging(&mut self, info: &Info) -> anyhow::Result<Pipe> {
        let pipe = Pipe::make(&self.fifo_dir)?;
        // The answer does not matter to the engine: without one, it reads no logs back.
        self.call("LogDriver.Capabilities", None).await.ok();
        let file = pipe.path.to_str().context("paths of tests are UTF-8")?;
        self.call(
            "LogDriver.StartLogging",
            Some(&json!({"File": file, "Info": info.0})),
        )
        .await?;
        Ok(pipe)
    }

    /// Stops logging: calls the plugin, closes and unlinks the FIFO. Returns how long the call
    /// took, which is how much longer `docker stop` takes.
    ///
    /// # Errors
    /// If the plugin refuses or can't be reached; the FIFO is then leaked, as the engine does.
    pub async fn stop_logging(&mut self, pipe: Pipe) -> anyhow::Result<Duration> {
        let file = pipe.path.to_str().context("paths of tests are UTF-8")?;
        let before = Instant::now();
        self.call("LogDriver.StopLogging", Some(&json!({"File": file})))
            .await?;
        let took = before.elapsed();
        drop(pipe.fifo);
        match std::fs::remove_file(&pipe.path) {
            // The plugin may unlink the FIFO when it sees the end of it.
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(took),
        }
    }

    /// Calls the plugin, and again after transport errors.
    ///
    /// # Errors
    /// `Err` of the answer, its status, or that there is none within 30 s.
    pub async fn call(&mut self, method: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let mut body = body.map_or(Bytes::new(), |body| format!("{body}\n").into());
        let began = Instant::now();
        let mut pause = Duration::from_secs(1);
        loop {
            let error = match self.connect().await {
                Ok(()) => {
                    // The engine makes the buffer once: what was sent is gone from it.
                    match self.exchange(method, std::mem::take(&mut body)).await {
                        Ok((200, answer)) => return answer_of(method, &answer),
                        Ok((status, answer)) => {
                            let text = String::from_utf8_lossy(&answer).into_owned();
                            bail!("{method}: status {status}: {text}");
                        }
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            if began.elapsed() + pause >= CALL_RETRIES_MAX {
                return Err(error.context(format!("{method}: no answer")));
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }

    /// Connects, unless the last connection can be used again.
    async fn connect(&mut self) -> anyhow::Result<()> {
        if let Some(sender) = &mut self.sender
            && sender.ready().await.is_ok()
        {
            return Ok(());
        }
        let stream = UnixStream::connect(&self.socket).await?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        self.connections.spawn(connection);
        self.sender = Some(sender);
        Ok(())
    }

    async fn exchange(&mut self, method: &str, body: Bytes) -> anyhow::Result<(u16, Bytes)> {
        let request = Request::post(format!("/{method}"))
            .header("host", "")
            .header("user-agent", "Go-http-client/1.1")
            .header("content-length", body.len())
            .header("accept", "application/vnd.docker.plugins.v1.2+json")
            .body(Full::new(body))?;
        let sender = self.sender.as_mut().context("connect comes first")?;
        let answer = sender.send_request(request).await?;
        let status = answer.status().as_u16();
        Ok((status, answer.into_body().collect().await?.to_bytes()))
    }
}

/// Reads an answer of status 200: one JSON object, whose `Err` is what the user sees.
fn answer_of(method: &str, answer: &[u8]) -> anyhow::Result<Value> {
    let answer: Value = serde_json::from_slice(answer).with_context(|| format!("{method}: EOF"))?;
    match answer.get("Err").and_then(Value::as_str) {
        None | Some("") => Ok(answer),
        Some(message) => bail!("{message}"),
    }
}

/// The engine's end of a container's FIFO.
#[derive(Debug)]
pub struct Pipe {
    path: PathBuf,
    fifo: OwnedFd,
    longest_wait: Duration,
    frame: Vec<u8>,
}

impl Pipe {
    /// Makes a FIFO in `fifo_dir` and opens it, as the engine does before it calls the plugin.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn make(fifo_dir: &Path) -> anyhow::Result<Self> {
        let path = fifo_dir.join(random_hex());
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::RWXU)
            .with_context(|| format!("making {}", path.display()))?;
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fifo = rustix::fs::open(&path, flags, Mode::empty())?;
        Ok(Self {
            path,
            fifo,
            longest_wait: Duration::ZERO,
            frame: Vec::new(),
        })
    }

    /// Returns the FIFO's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the bytes that nobody has read yet.
    ///
    /// # Errors
    /// Those of `ioctl(2)`.
    pub fn unread_bytes(&self) -> std::io::Result<u64> {
        Ok(rustix::io::ioctl_fionread(&self.fifo)?)
    }

    /// Returns the longest time that a write had to wait for room.
    pub fn longest_wait(&self) -> Duration {
        self.longest_wait
    }

    /// Writes a whole line, in pieces if it is longer than [`PIECE_BYTES`].
    ///
    /// # Errors
    /// Those of `write(2)` and `poll(2)`, other than a full pipe.
    pub fn write_line(
        &mut self,
        source: Source,
        time_nano: i64,
        line: &[u8],
    ) -> std::io::Result<()> {
        if line.len() < PIECE_BYTES {
            return self.write_frame(source, time_nano, line, None);
        }
        let id = random_hex();
        let mut rest = line;
        for ordinal in 1.. {
            // A line whose length is a multiple of a piece's ends with an empty one.
            let is_last = rest.len() < PIECE_BYTES;
            let (piece, behind) = rest.split_at(rest.len().min(PIECE_BYTES));
            self.write_frame(source, time_nano, piece, Some((&id, ordinal, is_last)))?;
            if is_last {
                break;
            }
            rest = behind;
        }
        Ok(())
    }

    /// Writes what an output ends with when no newline does: a first piece that no other follows.
    ///
    /// # Errors
    /// As [`write_line`](Self::write_line).
    pub fn write_tail(
        &mut self,
        source: Source,
        time_nano: i64,
        tail: &[u8],
    ) -> std::io::Result<()> {
        self.write_frame(source, time_nano, tail, Some((&random_hex(), 1, false)))
    }

    fn write_frame(
        &mut self,
        source: Source,
        time_nano: i64,
        line: &[u8],
        piece: Option<(&str, u64, bool)>,
    ) -> std::io::Result<()> {
        let mut frame = std::mem::take(&mut self.frame);
        encode_frame(&mut frame, source, time_nano, line, piece);
        let written = self.write_all(&frame);
        self.frame = frame;
        written
    }

    /// Writes with one `write(2)`, or more if the pipe has not room enough.
    fn write_all(&mut self, mut bytes: &[u8]) -> std::io::Result<()> {
        while !bytes.is_empty() {
            match rustix::io::write(&self.fifo, bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(rustix::io::Errno::AGAIN) => self.wait_for_room()?,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn wait_for_room(&mut self) -> std::io::Result<()> {
        let before = Instant::now();
        let mut fds = [PollFd::new(&self.fifo, PollFlags::OUT)];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        self.longest_wait = self.longest_wait.max(before.elapsed());
        Ok(())
    }
}

/// Puts one frame into `frame`, whose content is lost. `piece` is id, number and whether it is the
/// last.
fn encode_frame(
    frame: &mut Vec<u8>,
    source: Source,
    time_nano: i64,
    line: &[u8],
    piece: Option<(&str, u64, bool)>,
) {
    frame.clear();
    frame.extend_from_slice(&[0; 4]);
    push_bytes(frame, 1, source.as_str().as_bytes());
    push_number(frame, 2, time_nano.cast_unsigned());
    push_bytes(frame, 3, line);
    if let Some((id, ordinal, is_last)) = piece {
        push_number(frame, 4, 1);
        let mut metadata = Vec::new();
        push_number(&mut metadata, 1, u64::from(is_last));
        push_bytes(&mut metadata, 2, id.as_bytes());
        push_number(&mut metadata, 3, ordinal);
        push_bytes(frame, 5, &metadata);
    }
    let length = u32::try_from(frame.len() - 4).expect("pieces are far shorter");
    frame[..4].copy_from_slice(&length.to_be_bytes());
}

/// Appends a length-delimited field, unless it is empty: proto3 leaves such out.
fn push_bytes(message: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    if !bytes.is_empty() {
        message.push(number << 3 | 2);
        push_varint(message, bytes.len() as u64);
        message.extend_from_slice(bytes);
    }
}

/// Appends a varint field, unless it is zero.
fn push_number(message: &mut Vec<u8>, number: u8, value: u64) {
    if value != 0 {
        message.push(number << 3);
        push_varint(message, value);
    }
}

fn push_varint(message: &mut Vec<u8>, mut value: u64) {
    loop {
        let low = u8::try_from(value & 0x7f).expect("seven bits");
        value >>= 7;
        if value == 0 {
            message.push(low);
            return;
        }
        message.push(low | 0x80);
    }
}

/// Returns 64 random hex digits, the shape of every id of the engine.
fn random_hex() -> String {
    let mut bytes = [0_u8; 32];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .expect("32 bytes never fall short once the kernel has booted");
    hex::encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::frame::{Decoded, EntryView, decode};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixListener;

    /// A plugin that answers each request on its connection with the next of `answers`; returns
    /// the requests as they came. An empty answer closes the connection.
    async fn plugin(listener: UnixListener, answers: Vec<&'static str>) -> Vec<String> {
        let mut requests = Vec::new();
        let mut answers = answers.into_iter();
        'connections: while let Ok((mut stream, _)) = listener.accept().await {
            loop {
                let Some(request) = read_request(&mut stream).await else {
                    continue 'connections;
                };
                requests.push(request);
                let answer = answers.next().unwrap();
                if answer.is_empty() {
                    continue 'connections;
                }
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
                    answer.len()
                );
                stream.write_all((head + answer).as_bytes()).await.unwrap();
                if answers.len() == 0 {
                    return requests;
                }
            }
        }
        requests
    }

    async fn read_request(stream: &mut UnixStream) -> Option<String> {
        let mut text = String::new();
        loop {
            let mut buffer = [0; 4096];
            let count = stream
                .read(&mut buffer)
                .await
                .ok()
                .filter(|&count| count > 0)?;
            text.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
            let (head, body) = text.split_once("\r\n\r\n").unwrap_or_default();
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "));
            if length.is_some_and(|length| length.parse() == Ok(body.len())) {
                return Some(text);
            }
        }
    }

    fn engine(dir: &Path, answers: Vec<&'static str>) -> (Dockerd, JoinSet<Vec<String>>) {
        let socket = dir.join("plugin.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let mut plugins = JoinSet::new();
        plugins.spawn(plugin(listener, answers));
        (Dockerd::new(&socket, dir), plugins)
    }

    async fn start(dir: &Path) -> Pipe {
        let (mut dockerd, _plugin) = engine(dir, vec!["{}", "{}"]);
        dockerd.start_logging(&Info::new("c", &[])).await.unwrap()
    }

    /// Source, time, line, and of a piece the length of its id, its number and whether it is last.
    type Entry = (String, i64, Vec<u8>, Option<(usize, i32, bool)>);

    /// Reads all frames that stand in the FIFO.
    fn drain(path: &Path) -> Vec<Entry> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let fd = rustix::fs::open(path, flags, Mode::empty()).unwrap();
        let mut bytes = Vec::new();
        let mut buffer = [0; 65536];
        while let Ok(count) = rustix::io::read(&fd, &mut buffer) {
            bytes.extend_from_slice(&buffer[..count]);
        }
        let mut entries = Vec::new();
        let mut rest = bytes.as_slice();
        while let Decoded::Frame { entry, frame_bytes } = decode(rest) {
            let view = EntryView::parse(entry).unwrap();
            let piece = view
                .partial
                .map(|piece| (piece.id.len(), piece.ordinal, piece.last));
            entries.push((
                view.source.as_str().into(),
                view.time_nano,
                view.line.into(),
                piece,
            ));
            rest = &rest[frame_bytes..];
        }
        assert_eq!(rest.len(), 0, "whole frames only");
        entries
    }

    #[tokio::test]
    async fn requests_look_like_the_engines() {
        let dir = tempfile::tempdir().unwrap();
        let answers = vec![r#"{"Cap":{"ReadLogs":false}}"#, "{}", r#"{"Err":""}"#];
        let (mut dockerd, mut plugin) = engine(dir.path(), answers);
        let pipe = dockerd
            .start_logging(&Info::new("c1", &[("tag", "x")]))
            .await
            .unwrap();
        let path = pipe.path().to_owned();
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        assert_eq!(
            std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()),
            0o10700
        );
        dockerd.stop_logging(pipe).await.unwrap();
        assert!(!path.exists());
        let requests = plugin.join_next().await.unwrap().unwrap();
        assert!(requests[0].starts_with("POST /LogDriver.Capabilities HTTP/1.1\r\nhost: \r\n"));
        assert!(requests[0].ends_with(
            "content-length: 0\r\naccept: application/vnd.docker.plugins.v1.2+json\r\n\r\n"
        ));
        assert!(!requests[1].contains("content-type"));
        let body: Value =
            serde_json::from_str(requests[1].split("\r\n\r\n").nth(1).unwrap()).unwrap();
        assert_eq!(body["File"].as_str(), path.to_str());
        assert_eq!(body["Info"]["ContainerName"], "/c1");
        assert_eq!(body["Info"]["Config"]["tag"], "x");
        assert!(requests[2].ends_with("\"}\n"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_call_is_repeated_with_an_empty_body() {
        let dir = tempfile::tempdir().unwrap();
        let (mut dockerd, mut plugin) = engine(dir.path(), vec!["", "{}"]);
        dockerd
            .call("LogDriver.StopLogging", Some(&json!({"File": "/f"})))
            .await
            .unwrap();
        let requests = plugin.join_next().await.unwrap().unwrap();
        assert!(requests[0].ends_with("{\"File\":\"/f\"}\n"));
        assert!(requests[1].contains("content-length: 0\r\n") && requests[1].ends_with("\r\n\r\n"));
    }

    #[tokio::test]
    async fn an_error_of_the_plugin_reaches_the_user_and_the_fifo_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (mut dockerd, _plugin) = engine(dir.path(), vec!["{}", r#"{"Err":"bad option"}"#]);
        let error = dockerd
            .start_logging(&Info::new("c", &[]))
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), "bad option");
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            2,
            "socket and FIFO"
        );
    }

    #[tokio::test]
    async fn lines_become_frames_and_long_ones_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let mut pipe = start(dir.path()).await;
        pipe.write_line(Source::Stdout, 5, b"hello").unwrap();
        pipe.write_line(Source::Stderr, 0, b"").unwrap();
        pipe.write_line(Source::Stdout, 6, &[b'x'; PIECE_BYTES])
            .unwrap();
        pipe.write_tail(Source::Stdout, i64::MAX, b"nonl").unwrap();
        let got = drain(pipe.path());
        let text = |text: &str| text.as_bytes().to_vec();
        let expected = [
            ("stdout".into(), 5, text("hello"), None),
            ("stderr".into(), 0, text(""), None),
            (
                "stdout".into(),
                6,
                vec![b'x'; PIECE_BYTES],
                Some((64, 1, false)),
            ),
            ("stdout".into(), 6, text(""), Some((64, 2, true))),
            (
                "stdout".into(),
                i64::MAX,
                text("nonl"),
                Some((64, 1, false)),
            ),
        ];
        assert_eq!(got, expected);
    }

    #[tokio::test]
    async fn a_full_pipe_makes_the_writer_wait() {
        let dir = tempfile::tempdir().unwrap();
        let mut pipe = start(dir.path()).await;
        let path = pipe.path().to_owned();
        let writer = std::thread::spawn(move || {
            for time_nano in 1..=1000 {
                pipe.write_line(Source::Stdout, time_nano, &[b'x'; 1000])
                    .unwrap();
            }
            pipe
        });
        let mut times = Vec::new();
        while times.len() < 1000 {
            tokio::time::sleep(Duration::from_millis(5)).await;
            times.extend(
                drain(&path)
                    .into_iter()
                    .map(|(_, time_nano, _, _)| time_nano),
            );
        }
        assert_eq!(times, (1..=1000).collect::<Vec<_>>());
        assert!(writer.join().unwrap().longest_wait() > Duration::from_millis(1));
    }
}
