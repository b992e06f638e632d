//! The shipper behind its wire: a driver's side of the call played by hand, a stand-in for CLS
//! behind it. What a driver may rely on, and what happens when it breaks the contract.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::time::Duration;

use proto::limits::{CHECK_DECODED_BYTES_MAX, MESSAGE_DECODED_BYTES_MAX};
use proto::relay::event::Kind;
use proto::relay::relay_client::RelayClient;
use proto::relay::{
    Ack, CheckRequest, Chunk, Container, Event, Finish, Hole, HostReport, LogEntry, Open,
    PartialLogEntryMetadata, ReportAck, ShipRequest, ShipResponse, StreamReport,
};
use shipper::base::clock::WallClock;
use shipper::config::Config;
use shipper::lane::window::WINDOW_BYTES_MIN;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};
use world::processes::wait_until;
use world::standin::Standin;
use world::standin::config::{Clock, Config as StandinConfig, Key, Topic};
use world::standin::fault::{Fault, FaultKind};

const TOPIC: &str = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";

/// A second topic of the same key.
const OTHER_TOPIC: &str = "00000000-0000-4000-8000-000000000001";

/// A shipper and its CLS, in this process.
struct Site {
    standin: Standin,
    socket: std::path::PathBuf,
    admin: SocketAddr,
    folder: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    config: Config,
    reloads: mpsc::Sender<Config>,
    tasks: JoinSet<()>,
}

impl Site {
    async fn start(upload: &str) -> Self {
        Self::start_listening("", upload).await
    }

    /// Starts a shipper that listens on its unix socket and as `listen` says.
    async fn start_listening(listen: &str, upload: &str) -> Self {
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

    async fn channel(&self) -> Channel {
        connect(format!("unix://{}", self.socket.display())).await
    }

    async fn call(&self) -> Call {
        Call::begin(self.channel().await).await.unwrap()
    }

    /// Returns a metric, with its labels as they are printed.
    async fn metric(&self, name: &str) -> u64 {
        let page = world::client::call(self.admin, "GET", "/metrics").await;
        let page = String::from_utf8(page.unwrap().to_vec()).unwrap();
        let mut lines = page.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().unwrap())
    }

    /// Returns the values of `content` that CLS has, in the order of its context.
    fn contents(&self) -> Vec<String> {
        self.contents_of(TOPIC)
    }

    fn contents_of(&self, topic_id: &str) -> Vec<String> {
        let mut contents = Vec::new();
        for upload in self.standin.uploads(topic_id) {
            upload.visit(|record| {
                contents.push(record.field("content").unwrap_or_default().to_owned());
            });
        }
        contents
    }

    /// Waits until a metric has a value.
    async fn metric_is(&self, name: &str, wanted: u64) {
        wait_until(name, Duration::from_secs(20), async || {
            self.metric(name).await == wanted
        })
        .await
        .unwrap();
    }

    fn dead_letters(&self) -> Vec<String> {
        let path = self.folder.path().join("dead-letter.jsonl");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

/// Connects once somebody listens.
async fn connect(endpoint: String) -> Channel {
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

/// Returns a request of a driver that does not say what the time is.
fn request(kinds: impl IntoIterator<Item = Kind>) -> ShipRequest {
    let event = |kind| Event { kind: Some(kind) };
    ShipRequest {
        events: kinds.into_iter().map(event).collect(),
        ..ShipRequest::default()
    }
}

/// One call of the relay.
struct Call {
    requests: mpsc::Sender<ShipRequest>,
    responses: Streaming<ShipResponse>,
}

impl Call {
    async fn begin(channel: Channel) -> Result<Self, Status> {
        let (requests, receiver) = mpsc::channel(16);
        let responses = RelayClient::new(channel)
            .ship(ReceiverStream::new(receiver))
            .await?;
        Ok(Self {
            requests,
            responses: responses.into_inner(),
        })
    }

    async fn send(&self, kinds: Vec<Kind>) {
        self.requests.send(request(kinds)).await.unwrap();
    }

    /// Sends what a driver has gathered at a time of its own, having served all streams up to another.
    async fn send_at(&self, [gathered_ms, served_ms]: [u64; 2], kinds: Vec<Kind>) {
        let request = ShipRequest {
            gathered_ms: Some(gathered_ms),
            served_ms,
            ..request(kinds)
        };
        self.requests.send(request).await.unwrap();
    }

    /// Reads responses until one satisfies `wanted`; acknowledgements of a stream add up.
    async fn until<T>(
        &mut self,
        mut wanted: impl FnMut(&ShipResponse) -> Option<T>,
    ) -> Result<T, Status> {
        let read = async {
            loop {
                let response = self.responses.message().await?;
                let response = response.ok_or_else(|| Status::ok("the call has ended"))?;
                if let Some(found) = wanted(&response) {
                    return Ok(found);
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), read)
            .await
            .expect("an answer within 20 s")
    }

    async fn acked_to(&mut self, stream: u32, offset: u64) -> Result<Ack, Status> {
        let mut total = Ack {
            stream,
            ..Ack::default()
        };
        self.until(|response| {
            for ack in response.acks.iter().filter(|ack| ack.stream == stream) {
                total.offset = ack.offset;
                total.is_last |= ack.is_last;
                total.delivered_entries += ack.delivered_entries;
                total.filtered_entries += ack.filtered_entries;
                total.dead_lettered_entries += ack.dead_lettered_entries;
            }
            (total.offset >= offset).then_some(total)
        })
        .await
    }
}

fn open(stream: u32, resume_offset: u64, log_opts: &[(&str, &str)]) -> Kind {
    let pairs = log_opts
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    Kind::Open(Box::new(Open {
        stream,
        journal_id: format!("{stream:032x}"),
        container: Some(Container {
            id: "c".repeat(64),
            name: "/web".into(),
            ..Container::default()
        }),
        log_opts: pairs.collect::<HashMap<_, _>>(),
        host: "host-1".into(),
        resume_offset,
    }))
}

fn frames(lines: &[&str]) -> Vec<u8> {
    let mut frames = Vec::new();
    for line in lines {
        let entry = LogEntry {
            source: "stdout".into(),
            time_nano: 1_700_000_000_123_456_789,
            line: line.as_bytes().to_vec(),
            ..LogEntry::default()
        };
        proto::frame::encode(&entry, &mut frames);
    }
    frames
}

fn chunk(stream: u32, first_offset: u64, lines: &[&str]) -> (Kind, u64) {
    let frames = frames(lines);
    let end = first_offset + frames.len() as u64;
    (
        Kind::Chunk(Chunk {
            stream,
            first_offset,
            frames: frames.into(),
            has_more: false,
        }),
        end,
    )
}

#[tokio::test]
async fn entries_become_records_and_are_acknowledged_to_the_end() {
    let site = Site::start("").await;
    let mut call = site.call().await;
    let (entries, end) = chunk(1, 500, &["one", "two", ""]);
    // As they were when the stream was opened, but for those received and dropped.
    let totals = StreamReport {
        journal_id: "of another".into(),
        container_name: "/web".into(),
        received_entries: 10,
        delivered_entries: 4,
        filtered_entries: 1,
        dropped_entries: HashMap::from([("journal_full".into(), 2)]),
        buffered_bytes: end - 500,
        ..StreamReport::default()
    };
    let finish = Kind::Finish(Finish {
        stream: 1,
        end_offset: end,
        totals: Some(Box::new(totals)),
    });
    call.send(vec![open(1, 500, &[]), entries, finish]).await;
    let window = call
        .until(|response| response.opened.first().map(|o| o.window_bytes))
        .await;
    assert!(window.unwrap() >= 32 << 10);
    let ack = call.acked_to(1, end).await.unwrap();
    assert_eq!((ack.offset, ack.delivered_entries), (end, 3));
    assert!(ack.is_last);
    assert_eq!(site.contents(), ["one", "two", ""]);
    // What the driver was told completes its counters, without a report.
    reported(&site, "host-1", 1, 10).await;
    let page = world::client::call(site.admin, "GET", "/api/ledger").await;
    let lines: Vec<serde_json::Value> = serde_json::from_slice(&page.unwrap()).unwrap();
    let counts = ["delivered", "filtered", "buffered", "buffered_bytes"];
    let counts = counts.map(|name| lines[0][name].as_u64().unwrap());
    assert_eq!(counts, [7, 1, 0, 0], "{lines:?}");
    assert_eq!(lines[0]["journal_id"], format!("{:032x}", 1));
    // The stream is closed: its number can be used again.
    call.send(vec![open(1, end, &[])]).await;
    call.until(|response| response.opened.first().copied())
        .await
        .unwrap();
    assert_eq!(site.standin.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn a_gap_ends_the_call_with_the_offsets() {
    let site = Site::start("").await;
    let mut call = site.call().await;
    call.send(vec![open(1, 0, &[]), chunk(1, 7, &["x"]).0])
        .await;
    let status = call.until(|_| None::<()>).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(
        status.message(),
        "stream 1 continues at offset 7, expected 0"
    );
}

#[tokio::test]
async fn a_torn_chunk_ends_the_call() {
    let site = Site::start("").await;
    let mut call = site.call().await;
    let mut torn = frames(&["whole", "torn"]);
    torn.pop();
    let torn = Chunk {
        stream: 1,
        first_offset: 0,
        frames: torn.into(),
        has_more: false,
    };
    call.send(vec![open(1, 0, &[]), Kind::Chunk(torn)]).await;
    let status = call.until(|_| None::<()>).await.unwrap_err();
    assert_eq!(
        status.message(),
        "stream 1 sent a chunk that does not end with a frame"
    );
}

#[tokio::test]
async fn a_hole_becomes_a_record_at_its_place() {
    let site = Site::start("").await;
    let mut call = site.call().await;
    let (before, hole_start) = chunk(1, 0, &["before"]);
    let hole_end = hole_start + 1000;
    let hole = Hole {
        stream: 1,
        first_offset: hole_start,
        end_offset: hole_end,
        entries: 12,
        reason: "journal_full".into(),
        first_time_nano: 1_700_000_000_000_000_001,
        last_time_nano: 1_700_000_002_500_000_000,
    };
    let (after, end) = chunk(1, hole_end, &["after"]);
    call.send(vec![open(1, 0, &[]), before, Kind::Hole(hole), after])
        .await;
    call.acked_to(1, end).await.unwrap();
    assert_eq!(
        site.contents(),
        [
            "before",
            "12 log entries (1000 bytes) were dropped: journal_full",
            "after"
        ]
    );
    let mut fields = Vec::new();
    for upload in site.standin.uploads(TOPIC) {
        upload.visit(|record| {
            let of_hole = ["from", "to", "entries", "bytes", "reason"];
            let of_hole = of_hole.map(|name| record.field(&format!("__dropped_{name}__")));
            fields.extend(
                of_hole
                    .map(|value| Some(value?.to_owned()))
                    .into_iter()
                    .flatten(),
            );
        });
    }
    assert_eq!(
        fields,
        [
            "2023-11-14T22:13:20.000000001Z",
            "2023-11-14T22:13:22.500000000Z",
            "12",
            "1000",
            "journal_full"
        ]
    );
}

#[tokio::test]
async fn bad_options_are_refused_with_all_faults_and_disturb_no_other_stream() {
    let site = Site::start("").await;
    let mut call = site.call().await;
    let bad = [
        ("timeout", "soon"),
        ("colour", "red"),
        ("credentials", "prod"),
    ];
    let (entries, end) = chunk(2, 0, &["fine"]);
    call.send(vec![
        open(1, 0, &bad),
        chunk(1, 0, &["lost?"]).0,
        open(2, 0, &[]),
        entries,
    ])
    .await;
    let (mut refused, mut acked) = (None, 0);
    call.until(|response| {
        refused = refused.take().or_else(|| response.refused.first().cloned());
        acked = response
            .acks
            .iter()
            .map(|ack| ack.offset)
            .fold(acked, u64::max);
        (refused.is_some() && acked >= end).then_some(())
    })
    .await
    .unwrap();
    let reason = refused.unwrap().reason;
    for part in ["timeout", "soon", "colour"] {
        assert!(reason.contains(part), "{part}: {reason}");
    }
    assert_eq!(site.contents(), ["fine"]);
    let mut client = RelayClient::new(site.channel().await);
    let log_opts = bad
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
    let check = CheckRequest {
        log_opts,
        ..CheckRequest::default()
    };
    assert!(client.check(check).await.unwrap().into_inner().faults.len() >= 2);
    let good = client
        .check(CheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(good.faults, Vec::<String>::new());
}

#[tokio::test]
async fn a_stop_delivers_and_acknowledges_what_was_taken() {
    // Long linger and one slot that is busy: at the stop, most records are still unsealed.
    let mut site = Site::start("linger_ms = 60000\nconcurrency_max = 1").await;
    let stall = Fault::new(FaultKind::Stall)
        .delayed(Duration::from_millis(300))
        .times(1);
    site.standin.add_fault(stall);
    let mut call = site.call().await;
    let (first, middle) = chunk(1, 0, &["one"]);
    call.send(vec![open(1, 0, &[]), first]).await;
    let (second, end) = chunk(1, middle, &["two"]);
    call.send(vec![second]).await;
    call.until(|response| response.opened.first().copied())
        .await
        .unwrap();
    stalled(&site).await;
    site.stop.take().unwrap().send(()).unwrap();
    assert_eq!(call.acked_to(1, end).await.unwrap().delivered_entries, 2);
    site.tasks.join_next().await.unwrap().unwrap();
    assert_eq!(site.contents(), ["one", "two"]);
}

#[tokio::test]
async fn a_host_beyond_its_allowance_is_slowed_down_and_loses_nothing() {
    let tenant = "[[tenants]]\nname = \"slow\"\nunix_uid = 0\nbytes_per_s = 14000";
    let site = Site::start(tenant).await;
    let mut call = site.call().await;
    let line = "x".repeat(7_000);
    let (mut offset, mut events) = (0, vec![open(1, 0, &[])]);
    for _ in 0..4 {
        let (entries, end) = chunk(1, offset, &[&line]);
        events.push(entries);
        call.send(std::mem::take(&mut events)).await;
        offset = end;
    }
    // 28 kB at 14 kB/s: a second's worth comes at once, the rest takes its time.
    let began = tokio::time::Instant::now();
    call.acked_to(1, offset).await.unwrap();
    assert!(
        began.elapsed() >= Duration::from_millis(400),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(site.contents().len(), 4);
}

#[tokio::test]
async fn a_host_without_a_tenant_is_refused_with_what_to_do() {
    let site = Site::start("[[tenants]]\nname = \"other\"\nunix_uid = 12345").await;
    let mut client = RelayClient::new(site.channel().await);
    let status = client.check(CheckRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(
        status
            .message()
            .contains("no tenant of the shipper is for uid 0"),
        "{status}"
    );
}

/// Returns a TCP address that nobody used a moment ago.
fn free_address() -> std::net::SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
}

#[tokio::test]
async fn over_tcp_a_host_needs_a_tenant_and_then_ships_as_over_the_unix_socket() {
    let address = free_address();
    let listen = format!("tcp = \"{address}\"");
    let site = Site::start_listening(&listen, "").await;
    let channel = connect(format!("http://{address}")).await;
    let status = Call::begin(channel).await.err().unwrap();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(
        status
            .message()
            .contains("client certificate or a bearer token"),
        "{status}"
    );
    drop(site);

    let address = free_address();
    let listen = format!("tcp = \"{address}\"");
    let site = Site::start_listening(&listen, "[[tenants]]\nname = \"any\"\nanyone = true").await;
    let mut call = Call::begin(connect(format!("http://{address}")).await)
        .await
        .unwrap();
    let (entries, end) = chunk(1, 0, &["over", "tcp"]);
    call.send(vec![open(1, 0, &[]), entries]).await;
    assert_eq!(call.acked_to(1, end).await.unwrap().delivered_entries, 2);
    assert_eq!(site.contents(), ["over", "tcp"]);
}

#[tokio::test]
async fn a_tenant_writes_to_its_own_topics_only() {
    let tenant =
        "[[tenants]]\nname = \"a\"\nunix_uid = 0\ntopics = [\"a-*\"]\nhosts = [\"host-1\"]";
    let site = Site::start(tenant).await;
    let mut call = site.call().await;
    call.send(vec![open(1, 0, &[])]).await;
    let refused = call
        .until(|response| response.refused.first().cloned())
        .await
        .unwrap();
    let rule = format!("topic_id \"{TOPIC}\" is not one that tenant a may use");
    assert_eq!(refused.reason, rule);
    let mut client = RelayClient::new(site.channel().await);
    let request = CheckRequest {
        host: "host-2".into(),
        ..CheckRequest::default()
    };
    let answer = client.check(request).await.unwrap().into_inner();
    let other = "host name \"host-2\" is not one that tenant a may use";
    assert_eq!(answer.faults, [other, &rule]);
    assert_eq!(answer.identity, "a");
    for (asked, expected) in [("open", 1), ("check", 1)] {
        let name = format!("cls_shipper_refusals_total{{tenant=\"a\",asked=\"{asked}\"}}");
        assert_eq!(site.metric(&name).await, expected, "{asked}");
    }
}

/// Whoever can start a container must not have the operator's keys sent to a server of their own.
#[tokio::test]
async fn keys_of_the_shipper_go_nowhere_but_to_the_hosts_that_they_are_for() {
    let site = Site::start("").await;
    let own_server = tokio::net::TcpListener::bind("127.0.0.2:0").await.unwrap();
    let endpoint = format!("http://{}", own_server.local_addr().unwrap());
    let rule = format!(
        "log-opt endpoint={endpoint}: credentials \"default\" may not be used at host 127.0.0.2, \
         allowed: *.cls.tencentcs.com, *.cls.tencentyun.com, 127.0.0.1 \
         ([credentials.default] endpoints)"
    );
    let elsewhere = ("endpoint", endpoint.as_str());
    let mut client = RelayClient::new(site.channel().await);
    let request = CheckRequest {
        host: "host-1".into(),
        log_opts: HashMap::from([("endpoint".into(), endpoint.clone())]),
        ..CheckRequest::default()
    };
    let answer = client.check(request).await.unwrap().into_inner();
    assert_eq!(answer.faults, [rule.as_str()]);
    let mut call = site.call().await;
    call.send(vec![open(1, 0, &[elsewhere]), chunk(1, 0, &["secret"]).0])
        .await;
    let refused = call.until(|response| response.refused.first().cloned());
    assert_eq!(refused.await.unwrap().reason, rule);

    // A container's own keys go where it says.
    let own_keys = [elsewhere, ("secret_id", "i"), ("secret_key", "k")];
    call.send(vec![open(2, 0, &own_keys), chunk(2, 0, &["own"]).0])
        .await;
    let came = tokio::time::timeout(Duration::from_secs(20), own_server.accept());
    came.await
        .expect("an upload to the container's server")
        .unwrap();
}

/// Where keys may be used is a rule that a reload changes: calls begin anew by it.
#[tokio::test]
async fn an_endpoint_that_is_no_longer_allowed_is_refused_to_calls_that_begin_anew() {
    let site = Site::start("").await;
    let mut call = site.call().await;
    let (entries, end) = chunk(1, 0, &["before"]);
    call.send(vec![open(1, 0, &[]), entries]).await;
    call.acked_to(1, end).await.unwrap();
    let mut config = site.config.clone();
    let other = vec!["other.example".to_owned()];
    config.endpoints.insert("default".into(), other);
    site.reloads.send(config).await.unwrap();
    let status = call.until(|_| None::<()>).await.unwrap_err();
    assert_eq!(status.message(), "the call has ended");
    let mut call = site.call().await;
    call.send(vec![open(1, end, &[])]).await;
    let refused = call.until(|response| response.refused.first().cloned());
    assert_eq!(
        refused.await.unwrap().reason,
        "log-opt endpoint: is missing, and by default credentials \"default\" may not be used at \
         host 127.0.0.1, allowed: other.example ([credentials.default] endpoints)"
    );
}

#[tokio::test]
async fn a_driver_that_keeps_no_window_is_told_so_and_others_go_on() {
    let site = Site::start("").await;
    let (mut good, mut bad) = (site.call().await, site.call().await);
    let line = "x".repeat(16_000);
    let (entries, middle) = chunk(1, 0, &[&line, &line]);
    let (beyond, _) = chunk(1, middle, &[&line]);
    bad.send(vec![open(1, 0, &[]), entries, beyond]).await;
    let status = bad.until(|_| None::<()>).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let rule = "beyond its window of 32768";
    assert!(status.message().ends_with(rule), "{status}");
    let (entries, end) = chunk(1, 0, &["fine"]);
    good.send(vec![open(1, 0, &[]), entries]).await;
    good.acked_to(1, end).await.unwrap();
    assert_eq!(site.contents(), ["fine"]);
}

#[tokio::test]
async fn offsets_without_an_end_and_holes_without_number_end_their_call() {
    let site = Site::start("").await;
    let hole = |first_offset, end_offset, reason: &str| {
        Kind::Hole(Hole {
            stream: 1,
            first_offset,
            end_offset,
            reason: reason.to_owned(),
            ..Hole::default()
        })
    };
    let largest = hole(0, u64::MAX, "x");
    let many = std::iter::repeat_with(|| hole(0, 0, "x")).take(2_049);
    for (events, rule) in [
        (
            vec![largest, chunk(1, 0, &["x"]).0],
            "continues at offset 0",
        ),
        (
            vec![hole(0, u64::MAX - 1, "x"), at_the_end()],
            "the largest offset",
        ),
        (many.collect(), "too many holes at once"),
        (vec![hole(0, 1, &"x".repeat(257))], "too long a reason"),
        (
            vec![hole(0, 1, "x"), hole(1, 0, "x")],
            "ends before it begins",
        ),
    ] {
        let mut call = site.call().await;
        call.send([vec![open(1, 0, &[])], events].concat()).await;
        let status = call.until(|_| None::<()>).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(rule), "{rule}: {status}");
    }
    let mut call = site.call().await;
    let finish = std::iter::repeat_with(|| Kind::Finish(Finish::default()));
    call.send(finish.take(4_097).collect()).await;
    let status = call.until(|_| None::<()>).await.unwrap_err();
    assert_eq!(status.message(), "a request has 4097 events, at most 4096");
}

/// Returns a chunk that would go beyond the largest offset.
fn at_the_end() -> Kind {
    Kind::Chunk(Chunk {
        stream: 1,
        first_offset: u64::MAX - 1,
        frames: frames(&["x"]).into(),
        has_more: false,
    })
}

#[tokio::test]
async fn an_open_is_what_it_must_be_and_one_of_an_older_driver_may_lack_the_rest() {
    let site = Site::start("").await;
    let mut call = site.call().await;
    let with = |stream, change: fn(&mut Open)| {
        let Kind::Open(mut open) = open(stream, 0, &[]) else {
            unreachable!("it is an open")
        };
        change(&mut open);
        Kind::Open(open)
    };
    call.send(vec![
        with(1, |open| open.journal_id = "no\nid".into()),
        with(2, |open| open.host = "h".repeat(256)),
        with(3, |open| {
            open.log_opts = [("env".into(), "x".repeat(1 << 20))].into()
        }),
        with(4, |open| open.container = None),
    ])
    .await;
    let (mut reasons, mut opened) = (Vec::new(), Vec::new());
    call.until(|response| {
        reasons.extend(
            response
                .refused
                .iter()
                .map(|refused| refused.reason.clone()),
        );
        opened.extend(response.opened.iter().map(|opened| opened.stream));
        (reasons.len() + opened.len() == 4).then_some(())
    })
    .await
    .unwrap();
    assert_eq!(opened, [4]);
    for (reason, rule) in
        reasons
            .iter()
            .zip(["32 lower-case hex", "host name is 256", "log options and"])
    {
        assert!(reason.contains(rule), "{reason}");
    }
    let (entries, end) = chunk(4, 0, &["of an older one"]);
    call.send(vec![entries]).await;
    call.acked_to(4, end).await.unwrap();
    assert_eq!(site.contents(), ["of an older one"]);
}

/// The kernel says who connects, whatever the socket's mode lets in.
#[tokio::test]
async fn another_user_on_the_unix_socket_is_named_and_refused() {
    const NOBODY: u32 = 65_534;
    let site = Site::start("").await;
    drop(site.channel().await);
    let mode = std::fs::Permissions::from_mode(0o666);
    assert_eq!(
        std::fs::metadata(&site.socket)
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o600
    );
    std::fs::set_permissions(&site.socket, mode).unwrap();
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(site.folder.path(), open).unwrap();
    let socket = site.socket.clone();
    // A user is a property of the thread, and the kernel notes it when the connection is made.
    let connecting = std::thread::spawn(move || {
        let nobody = rustix::process::Uid::from_raw(NOBODY);
        rustix::thread::set_thread_uid(nobody).unwrap();
        let stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    });
    let stream = connecting.join().unwrap();
    let mut stream = Some(tokio::net::UnixStream::from_std(stream).unwrap());
    let connector = tower::service_fn(move |_| {
        let stream = stream.take().map(hyper_util::rt::TokioIo::new);
        std::future::ready(stream.ok_or(std::io::Error::from(std::io::ErrorKind::NotConnected)))
    });
    let endpoint = Endpoint::from_static("http://shipper");
    let channel = endpoint.connect_with_connector(connector).await.unwrap();
    let status = Call::begin(channel).await.err().unwrap();
    assert_eq!(status.code(), Code::Unauthenticated);
    let rule = "no tenant of the shipper is for uid 65534 on the unix socket";
    assert!(status.message().starts_with(rule), "{status}");
}

/// Peers that connect and say nothing, or next to nothing.
#[tokio::test]
async fn connections_without_a_call_are_closed_and_keep_nobody_out() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let address = free_address();
    let listen = format!("tcp = \"{address}\"");
    let site = Site::start_listening(&listen, "[[tenants]]\nname = \"any\"\nanyone = true").await;
    let mut call = Call::begin(connect(format!("http://{address}")).await)
        .await
        .unwrap();
    let began = tokio::time::Instant::now();
    let mut silent = tokio::net::TcpStream::connect(address).await.unwrap();
    let mut slow = tokio::net::TcpStream::connect(address).await.unwrap();
    let mut admin = tokio::net::TcpStream::connect(site.admin).await.unwrap();
    let mut trickled = 0;
    let trickle = async {
        for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".iter().cycle() {
            if slow.write_all(&[*byte]).await.is_err() {
                break;
            }
            trickled += 1;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let closed = async {
        let mut rest = Vec::new();
        silent.read_to_end(&mut rest).await.ok();
        rest.clear();
        admin.write_all(b"GET /healthz HT").await.ok();
        admin.read_to_end(&mut rest).await.ok();
    };
    let both = async { tokio::join!(trickle, closed) };
    tokio::time::timeout(Duration::from_secs(40), both)
        .await
        .unwrap();
    assert!(trickled <= 24, "{trickled} bytes, one a second");
    assert!(began.elapsed() >= Duration::from_secs(15));
    let (entries, end) = chunk(1, 0, &["still there"]);
    call.send(vec![open(1, 0, &[]), entries]).await;
    call.acked_to(1, end).await.unwrap();
}

/// Returns a connection to the relay that comes from a loopback address, or nothing if it is closed.
async fn channel_from(address: &'static str, to: SocketAddr) -> Option<Channel> {
    let connector = tower::service_fn(move |_: tonic::transport::Uri| async move {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(address.parse().unwrap(), 0))?;
        let stream = socket.connect(to).await?;
        Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
    });
    let endpoint = Endpoint::from_static("http://shipper");
    endpoint.connect_with_connector(connector).await.ok()
}

/// Connects from a loopback address.
async fn from(address: &str, to: SocketAddr) -> tokio::net::TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    let address = address.parse().unwrap();
    socket.bind(SocketAddr::new(address, 0)).unwrap();
    socket.connect(to).await.unwrap()
}

/// Returns whether a connection that says nothing is closed at once.
async fn is_closed(stream: &mut tokio::net::TcpStream) -> bool {
    use tokio::io::AsyncReadExt as _;
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(Duration::from_secs(3), stream.read_to_end(&mut rest));
    closed.await.is_ok()
}

#[tokio::test]
async fn one_address_does_not_take_all_places_with_tls_either() {
    let address = free_address();
    let file = |name: &str| {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../driver/tests/slice/tls");
        format!("{folder}/{name}")
    };
    let listen = format!(
        "tcp = \"{address}\"\nconnections_per_address_max = 3\n[listen.tls]\n\
         cert_file = \"{}\"\nkey_file = \"{}\"",
        file("server.pem"),
        file("server.key"),
    );
    let site = Site::start_listening(&listen, "").await;
    drop(site.channel().await);
    let mut silent = Vec::new();
    for _ in 0..3 {
        silent.push(from("127.0.0.2", address).await);
    }
    assert!(is_closed(&mut from("127.0.0.2", address).await).await);
    assert!(!is_closed(&mut from("127.0.0.3", address).await).await);
    drop(silent);
}

/// Whoever is at one address, with whatever it may: others have their places.
#[tokio::test]
async fn one_address_does_not_take_all_places() {
    let address = free_address();
    let listen = format!("tcp = \"{address}\"\nconnections_per_address_max = 3");
    let site = Site::start_listening(&listen, "[[tenants]]\nname = \"any\"\nanyone = true").await;
    connect(format!("http://{address}")).await;
    let mut calls = Vec::new();
    for _ in 0..3 {
        let channel = channel_from("127.0.0.2", address).await.unwrap();
        calls.push(Call::begin(channel).await.unwrap());
    }
    assert!(is_closed(&mut from("127.0.0.2", address).await).await);
    assert_eq!(
        site.metric("cls_shipper_refused_connections_total").await,
        1
    );
    // Another address has its places, and so have all on the unix socket.
    let other = channel_from("127.0.0.3", address).await.unwrap();
    Call::begin(other).await.unwrap();
    for _ in 0..4 {
        calls.push(site.call().await);
    }
    // A connection that ends leaves its place.
    calls.remove(0);
    let comes_in = async || {
        let channel = channel_from("127.0.0.2", address).await;
        match channel {
            Some(channel) => Call::begin(channel).await.is_ok(),
            None => false,
        }
    };
    wait_until("a free place", Duration::from_secs(20), comes_in)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_connection_bears_so_many_calls_and_headers_of_so_many_bytes() {
    let site = Site::start("").await;
    let channel = site.channel().await;
    let mut calls = Vec::new();
    for _ in 0..256 {
        calls.push(Call::begin(channel.clone()).await.unwrap());
    }
    // The next one waits for one of them to end, and with it everything of this connection alone.
    let next = Call::begin(channel.clone());
    let mut next = std::pin::pin!(next);
    let waits = tokio::time::timeout(Duration::from_millis(300), &mut next).await;
    assert!(waits.is_err());
    site.call().await;
    drop(calls.pop());
    tokio::time::timeout(Duration::from_secs(20), next)
        .await
        .expect("a place for the next call")
        .unwrap();
    let mut client = RelayClient::new(site.channel().await);
    let mut request = tonic::Request::new(CheckRequest::default());
    let token = format!("Bearer {}", "x".repeat(20_000));
    let token = token.parse().unwrap();
    request.metadata_mut().insert("authorization", token);
    client.check(request).await.unwrap_err();
    let good = client.check(CheckRequest::default()).await.unwrap();
    assert_eq!(good.into_inner().identity, "local");
}

#[tokio::test]
async fn a_batch_that_is_too_large_is_cut_and_only_its_worst_record_is_given_up() {
    let site = Site::start("").await;
    // 413 for the batch of four, for its first half, and for that half's first record.
    site.standin
        .add_fault(Fault::new(FaultKind::Status(413)).times(3));
    let mut call = site.call().await;
    let (entries, end) = chunk(1, 0, &["a", "b", "c", "d"]);
    call.send(vec![open(1, 0, &[]), entries]).await;
    let ack = call.acked_to(1, end).await.unwrap();
    assert_eq!((ack.delivered_entries, ack.dead_lettered_entries), (3, 1));
    assert_eq!(site.contents(), ["b", "c", "d"]);
    let letters = site.dead_letters();
    assert_eq!(letters.len(), 1);
    assert!(letters[0].contains(r#"["content","a"]"#), "{}", letters[0]);
}

#[tokio::test]
async fn trouble_that_passes_is_retried_and_loses_nothing() {
    let site = Site::start("").await;
    for kind in [
        FaultKind::Status(429),
        FaultKind::HtmlError,
        FaultKind::Reset,
        FaultKind::Status(404),
        FaultKind::Status(403),
    ] {
        site.standin.add_fault(Fault::new(kind).times(1));
    }
    let mut call = site.call().await;
    let (entries, end) = chunk(1, 0, &["x"]);
    call.send(vec![open(1, 0, &[]), entries]).await;
    call.acked_to(1, end).await.unwrap();
    assert_eq!(site.contents(), ["x"]);
    assert_eq!(site.standin.stats().faults.values().sum::<u64>(), 5);
}

#[tokio::test]
async fn a_lost_answer_repeats_the_same_group_under_the_same_id() {
    let site = Site::start("").await;
    site.standin
        .add_fault(Fault::new(FaultKind::DropAfterStore).times(1));
    let mut call = site.call().await;
    let (entries, end) = chunk(1, 0, &["x"]);
    call.send(vec![open(1, 0, &[]), entries]).await;
    call.acked_to(1, end).await.unwrap();
    assert_eq!(site.contents(), ["x", "x"]);
    assert_eq!(site.standin.stats().repeated_groups, 1);
    assert_eq!(site.standin.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn a_dropped_call_takes_its_unsealed_records_along() {
    let site = Arc::new(Site::start("linger_ms = 60000\nconcurrency_max = 1").await);
    let stall = Fault::new(FaultKind::Stall)
        .delayed(Duration::from_millis(300))
        .times(1);
    site.standin.add_fault(stall);
    let mut call = site.call().await;
    let (first, middle) = chunk(1, 0, &["in flight"]);
    call.send(vec![open(1, 0, &[]), first]).await;
    call.until(|response| response.opened.first().copied())
        .await
        .unwrap();
    let (second, end) = chunk(1, middle, &["unsealed"]);
    call.send(vec![second]).await;
    stalled(&site).await;
    drop(call);
    let mut call = site.call().await;
    let (again, _) = chunk(1, 0, &["in flight", "unsealed"]);
    call.send(vec![open(1, 0, &[]), again]).await;
    call.acked_to(1, end).await.unwrap();
    site.metric_is("cls_shipper_batches", 0).await;
    assert_eq!(site.contents(), ["in flight", "unsealed"]);
}

#[tokio::test]
async fn calls_that_are_dropped_in_an_outage_leave_neither_batches_nor_copies() {
    let site = Site::start("").await;
    site.standin.add_fault(Fault::new(FaultKind::Status(503)));
    for _ in 0..5 {
        let call = site.call().await;
        let (entries, _) = chunk(1, 0, &["one", "two"]);
        call.send(vec![open(1, 0, &[]), entries]).await;
        site.metric_is("cls_shipper_batches", 1).await;
        drop(call);
        // What the call had in memory is gone, as its streams are.
        site.metric_is("cls_shipper_batches", 0).await;
    }
    site.standin.clear_faults();
    let mut call = site.call().await;
    let (entries, end) = chunk(1, 0, &["one", "two"]);
    call.send(vec![open(1, 0, &[]), entries]).await;
    call.acked_to(1, end).await.unwrap();
    site.metric_is("cls_shipper_batches", 0).await;
    assert_eq!(site.contents(), ["one", "two"]);
}

#[tokio::test]
async fn a_repeat_leaves_out_the_groups_of_streams_that_are_gone() {
    let site = Site::start("concurrency_max = 1").await;
    let stall = Fault::new(FaultKind::Stall).delayed(OUTAGE).times(1);
    site.standin.add_fault(stall);
    site.standin.add_fault(Fault::new(FaultKind::Status(503)));
    let (mut stays, mut leaves) = (site.call().await, site.call().await);
    let (first, middle) = chunk(1, 0, &["first"]);
    stays.send(vec![open(1, 0, &[]), first]).await;
    stalled(&site).await;
    // Both wait for the only slot, and share the next batch.
    let is_open = |response: &ShipResponse| response.opened.iter().find(|o| o.stream == 9).copied();
    let (entries, _) = chunk(2, 0, &["of the call that leaves"]);
    leaves
        .send(vec![open(2, 0, &[]), entries, open(9, 0, &[])])
        .await;
    leaves.until(is_open).await.unwrap();
    let (entries, end) = chunk(1, middle, &["second"]);
    stays.send(vec![entries]).await;
    tokio::time::timeout(Duration::from_secs(5), async {
        while !site.standin.stats().faults.contains_key("Status(503)") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the batch of both to fail");
    drop(leaves);
    site.metric_is("cls_shipper_streams", 1).await;
    site.standin.clear_faults();
    stays.acked_to(1, end).await.unwrap();
    site.metric_is("cls_shipper_batches", 0).await;
    assert_eq!(site.contents(), ["first", "second"]);
    assert_eq!(site.standin.violations(), Vec::<String>::new());
}

/// Options of a stream whose records of several lines wait 50 ms for their next line.
const MULTILINE: [(&str, &str); 2] = [("multiline-pattern", r"^\S"), ("multiline-timeout", "50ms")];

/// Time in which a record that waits 50 ms for its next line is long overdue.
const OUTAGE: Duration = Duration::from_millis(800);

/// Waits until the stand-in has a request that it stalls.
async fn stalled(site: &Site) {
    tokio::time::timeout(Duration::from_secs(5), async {
        while site.standin.stats().faults.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("an upload to stall");
}

#[tokio::test]
async fn a_record_of_several_lines_is_not_torn_while_its_rest_has_no_window() {
    let site = Site::start("").await;
    let stall = Fault::new(FaultKind::Stall).delayed(OUTAGE).times(1);
    site.standin.add_fault(stall);
    let mut call = site.call().await;
    let (first, middle) = chunk(1, 0, &["first"]);
    call.send_at([0, 0], vec![open(1, 0, &MULTILINE), first])
        .await;
    // With these and the beginning of the record, the window of 64 KiB has no room for an entry of
    // full size.
    let filler = "x".repeat(1_000);
    let lines = [vec![filler.as_str(); 50], vec!["trace:"]].concat();
    let (mut fillers, end) = chunk(1, middle, &lines);
    if let Kind::Chunk(chunk) = &mut fillers {
        chunk.has_more = true;
    }
    let begin = end - frames(&["trace:"]).len() as u64;
    // The record of another stream will be late in between.
    let (other, _) = chunk(2, 0, &["other:"]);
    let other = vec![fillers, open(2, 0, &MULTILINE), other];
    call.send_at([1_000, 1_000], other).await;
    call.acked_to(1, begin).await.unwrap();
    call.send_at([2_000, 2_000], vec![]).await;
    let (rest, end) = chunk(1, end, &["  at main", "last"]);
    let finish = Kind::Finish(Finish {
        stream: 1,
        end_offset: end,
        totals: None,
    });
    call.send_at([3_000, 3_000], vec![rest, finish]).await;
    call.acked_to(1, end).await.unwrap();
    let contents = site.contents();
    let is_end = |text: &&String| **text != filler && **text != "other:";
    let ends: Vec<_> = contents.iter().filter(is_end).collect();
    assert_eq!(ends, ["first", "trace:\n  at main", "last"]);
}

/// Returns a short piece of a long line, as a frame.
fn piece(id: &str, ordinal: i32, last: bool) -> Vec<u8> {
    piece_of(id, ordinal, last, &format!("{id}{ordinal}"))
}

fn piece_of(id: &str, ordinal: i32, last: bool, text: &str) -> Vec<u8> {
    let entry = LogEntry {
        source: "stdout".into(),
        time_nano: 1_700_000_000_123_456_789,
        line: text.into(),
        partial: true,
        partial_log_metadata: Some(PartialLogEntryMetadata {
            last,
            id: id.repeat(64),
            ordinal,
        }),
    };
    let mut frames = Vec::new();
    proto::frame::encode(&entry, &mut frames);
    frames
}

/// What was sent of a stream.
#[derive(Default)]
struct Sent {
    offset: u64,
}

impl Sent {
    fn chunk(&mut self, frames: Vec<u8>, has_more: bool) -> Vec<Kind> {
        let first_offset = self.offset;
        self.offset += frames.len() as u64;
        vec![Kind::Chunk(Chunk {
            stream: 1,
            first_offset,
            frames: frames.into(),
            has_more,
        })]
    }
}

/// A line waits 10 s for its rest: of the host's time, in which its driver has looked for it. What a
/// slow network or many other streams keep from the shipper is not late, however long it takes.
#[tokio::test]
async fn a_long_line_is_torn_by_its_age_and_not_by_a_slow_network() {
    let site = Site::start("").await;
    let mut call = site.call().await;
    let mut sent = Sent::default();
    let mut piece = |id, ordinal, last| sent.chunk(piece(id, ordinal, last), false);
    call.send_at([0, 0], vec![open(1, 0, &[])]).await;
    call.send_at([1_000, 1_000], piece("a", 1, false)).await;
    for gathered_ms in (5_000..60_000).step_by(5_000) {
        call.send_at([gathered_ms, 10_999], vec![]).await;
    }
    call.send_at([60_000, 60_000], piece("a", 2, true)).await;
    call.send_at([61_000, 61_000], piece("b", 1, false)).await;
    call.send_at([66_000, 66_000], vec![]).await;
    call.send_at([70_999, 70_999], piece("b", 2, true)).await;
    call.send_at([71_000, 71_000], piece("c", 1, false)).await;
    call.send_at([76_000, 76_000], vec![]).await;
    call.send_at([81_000, 81_000], vec![]).await;
    // The driver was stopped for an hour.
    call.send_at([82_000, 82_000], piece("d", 1, false)).await;
    call.send_at([3_682_000, 3_682_000], vec![]).await;
    call.send_at([3_683_000, 3_683_000], piece("d", 2, true))
        .await;
    call.acked_to(1, sent.offset).await.unwrap();
    assert_eq!(site.contents(), ["a1a2", "b1b2", "c1", "d1d2"]);
}

/// What the driver says that it has is waited for longer: it may wait for room in the window, of which
/// the driver learns by the same network.
#[tokio::test]
async fn a_long_line_waits_for_what_stands_in_the_journal_for_a_minute() {
    let site = Site::start("").await;
    let mut call = site.call().await;
    let mut sent = Sent::default();
    let mut now_ms = 0;
    let mut wait = async |seconds: u64| {
        for _ in 0..seconds.div_ceil(5) {
            now_ms += 5_000;
            call.send_at([now_ms, now_ms], vec![]).await;
        }
        now_ms
    };
    let now = wait(5).await;
    call.send_at([now, now], vec![open(1, 0, &[])]).await;
    call.send_at([now, now], sent.chunk(piece("a", 1, false), true))
        .await;
    let now = wait(35).await;
    call.send_at([now, now], sent.chunk(piece("a", 2, false), false))
        .await;
    // The rest came to the journal just now, and the window is full.
    let now = wait(5).await;
    call.send_at([now, now], sent.chunk(vec![], true)).await;
    let now = wait(55).await;
    call.send_at([now, now], sent.chunk(piece("a", 3, true), false))
        .await;
    call.send_at([now, now], sent.chunk(piece("b", 1, false), true))
        .await;
    let now = wait(60).await;
    call.send_at([now, now], sent.chunk(piece("b", 2, true), false))
        .await;
    call.acked_to(1, sent.offset).await.unwrap();
    assert_eq!(site.contents(), ["a1a2a3", "b1", "b2"]);
}

/// The same for a record of several lines, whose age is 50 ms.
#[tokio::test]
async fn a_record_of_several_lines_is_torn_by_its_age_and_not_by_a_slow_network() {
    let site = Site::start("").await;
    let mut call = site.call().await;
    let mut offset = 0;
    let mut lines = |lines: &[&str]| {
        let (chunk, end) = chunk(1, offset, lines);
        offset = end;
        vec![chunk]
    };
    call.send_at([0, 0], vec![open(1, 0, &MULTILINE)]).await;
    call.send_at([100, 100], lines(&["slow:"])).await;
    site.metric_is("cls_shipper_received_entries_total", 1)
        .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    call.send_at([5_000, 149], vec![]).await;
    call.send_at([5_001, 149], lines(&["  at main"])).await;
    call.send_at([6_001, 6_001], lines(&["late:"])).await;
    call.send_at([7_001, 7_001], vec![]).await;
    call.send_at([7_002, 7_002], lines(&["  at main"])).await;
    call.send_at([9_000, 9_000], vec![]).await;
    call.acked_to(1, offset).await.unwrap();
    let wanted = ["slow:\n  at main", "late:", "  at main"];
    assert_eq!(site.contents(), wanted);
}

/// Of a driver that does not say what the time is, the shipper's own time counts.
#[tokio::test]
async fn a_long_line_of_a_driver_that_tells_no_time_goes_out_as_well() {
    let site = Site::start("").await;
    let mut call = site.call().await;
    let mut sent = Sent::default();
    let piece = sent.chunk(piece("a", 1, false), false);
    call.send([vec![open(1, 0, &[])], piece].concat()).await;
    call.acked_to(1, sent.offset).await.unwrap();
    assert_eq!(site.contents(), ["a1"]);
}

#[tokio::test]
async fn a_record_of_several_lines_is_not_torn_by_a_stop() {
    let mut site = Site::start("concurrency_max = 1").await;
    let stall = Fault::new(FaultKind::Stall).delayed(OUTAGE).times(1);
    site.standin.add_fault(stall);
    let mut call = site.call().await;
    let (first, middle) = chunk(1, 0, &["first"]);
    call.send(vec![open(1, 0, &MULTILINE), first]).await;
    stalled(&site).await;
    // The lane has something to do when the record is overdue.
    let (more, _) = chunk(1, middle, &["second", "trace:"]);
    call.send(vec![more, open(2, 0, &[])]).await;
    call.until(|response| response.opened.iter().find(|o| o.stream == 2).copied())
        .await
        .unwrap();
    site.stop.take().unwrap().send(()).unwrap();
    site.tasks.join_next().await.unwrap().unwrap();
    // The next shipper gets the rest, and with it the record's beginning.
    assert_eq!(site.contents(), ["first", "second"]);
}

#[tokio::test]
async fn an_acknowledgement_counts_just_the_entries_that_it_covers() {
    let site = Site::start("").await;
    let mut call = site.call().await;
    let piece = |ordinal, last| LogEntry {
        source: "stderr".into(),
        time_nano: 1_700_000_000_123_456_789,
        line: b"long".to_vec(),
        partial: true,
        partial_log_metadata: Some(PartialLogEntryMetadata {
            last,
            id: "a".repeat(64),
            ordinal,
        }),
    };
    let mut begun = Vec::new();
    proto::frame::encode(&piece(1, false), &mut begun);
    begun.extend(frames(&["one", "two"]));
    let middle = begun.len() as u64;
    let chunk = |first_offset, frames: Vec<u8>| {
        Kind::Chunk(Chunk {
            stream: 1,
            first_offset,
            frames: frames.into(),
            has_more: false,
        })
    };
    call.send(vec![
        open(1, 0, &[("exclude-regex", "two")]),
        chunk(0, begun),
    ])
    .await;
    tokio::time::timeout(Duration::from_secs(5), async {
        while site.contents().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the line that overtakes to arrive");
    let mut ended = Vec::new();
    proto::frame::encode(&piece(2, true), &mut ended);
    let end = middle + ended.len() as u64;
    call.send(vec![chunk(middle, ended)]).await;
    let mut total = Ack::default();
    call.until(|response| {
        for ack in &response.acks {
            let counted = ack.delivered_entries + ack.filtered_entries;
            assert!(ack.offset > 0 || counted == 0, "{ack:?} covers nothing");
            total.delivered_entries += ack.delivered_entries;
            total.filtered_entries += ack.filtered_entries;
            total.offset = ack.offset;
        }
        (total.offset >= end).then_some(())
    })
    .await
    .unwrap();
    assert_eq!((total.delivered_entries, total.filtered_entries), (3, 1));
}

#[tokio::test]
async fn the_entries_of_a_joined_record_that_dies_are_all_counted_as_dead() {
    let site = Site::start("").await;
    // 413 for the batch of two records, and for the first alone.
    let refuse = Fault::new(FaultKind::Status(413)).times(2);
    site.standin.add_fault(refuse);
    let mut call = site.call().await;
    let (entries, end) = chunk(1, 0, &["a", " b", " c", "d"]);
    let finish = Kind::Finish(Finish {
        stream: 1,
        end_offset: end,
        totals: None,
    });
    call.send(vec![open(1, 0, &MULTILINE), entries, finish])
        .await;
    let ack = call.acked_to(1, end).await.unwrap();
    assert_eq!((ack.delivered_entries, ack.dead_lettered_entries), (1, 3));
    assert_eq!(site.contents(), ["d"]);
}

/// Two shippers of one configuration: the second one can't have the first one's admin address.
#[tokio::test]
async fn a_second_shipper_that_can_not_start_leaves_the_first_its_socket() {
    let site = Site::start("").await;
    drop(site.channel().await);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let text = format!(
        "[listen]\nunix = \"{}\"\n[admin]\nlisten = \"{}\"\n",
        site.socket.display(),
        taken.local_addr().unwrap(),
    );
    let config = Config::from_table(text.parse().unwrap(), std::iter::empty()).unwrap();
    let never = std::future::pending();
    let error = shipper::run(config, WallClock::system(), never).await;
    let error = error.unwrap_err().to_string();
    assert!(error.starts_with("listen on 127.0.0.1:"), "{error}");
    site.channel().await;
}

/// Sends opens of `count` streams, a thousand a request, as long as the shipper takes them.
async fn flood(requests: &mpsc::Sender<ShipRequest>, count: u32) {
    for first in (0..count).step_by(1_000) {
        let kinds = (first..count.min(first + 1_000)).map(|stream| open(stream, 0, &[]));
        if requests.send(request(kinds)).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn a_call_that_floods_is_ended_and_others_go_on() {
    let site = Site::start("").await;
    let (mut good, mut bad) = (site.call().await, site.call().await);
    let (entries, middle) = chunk(1, 0, &["before"]);
    good.send(vec![open(1, 0, &[]), entries]).await;
    good.acked_to(1, middle).await.unwrap();
    let requests = bad.requests.clone();
    let (status, ()) = tokio::join!(bad.until(|_| None::<()>), flood(&requests, 20_000));
    let status = status.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(
        status.message().contains("at most 16384 streams"),
        "{status}"
    );
    let (entries, end) = chunk(1, middle, &["after"]);
    good.send(vec![entries]).await;
    good.acked_to(1, end).await.unwrap();
    assert_eq!(site.contents(), ["before", "after"]);
}

#[tokio::test]
async fn a_message_beyond_the_bound_ends_its_own_call_only() {
    let site = Site::start("").await;
    let (mut good, mut bad) = (site.call().await, site.call().await);
    let line = "x".repeat(5 << 20);
    let (entries, _) = chunk(1, 0, &[&line]);
    bad.send(vec![open(1, 0, &[]), entries]).await;
    let status = bad.until(|_| None::<()>).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    let (entries, end) = chunk(1, 0, &["fine"]);
    good.send(vec![open(1, 0, &[]), entries]).await;
    good.acked_to(1, end).await.unwrap();
    assert_eq!(site.contents(), ["fine"]);
}

/// Two bytes on the wire are an event, an argument or a stream's report, each of which takes many times
/// that when it is decoded. The reason tells that it was not: a session speaks of events and options, and
/// the ledger keeps what it can.
#[tokio::test]
async fn a_message_that_grows_when_decoded_ends_its_own_call_only() {
    let site = Site::start("[[tenants]]\nname = \"a\"\nunix_uid = 0").await;
    let mut good = site.call().await;
    let (entries, middle) = chunk(1, 0, &["before"]);
    good.send(vec![open(1, 0, &[]), entries]).await;
    good.acked_to(1, middle).await.unwrap();
    let refusal = |status: Status, limit_bytes: usize| {
        assert_eq!(status.code(), Code::OutOfRange, "{status}");
        let rule = format!("takes more than {limit_bytes} bytes once it is decoded, the limit");
        assert!(status.message().contains(&rule), "{status}");
    };

    let mut events = site.call().await;
    let empty = vec![Event::default(); 700_000];
    events
        .requests
        .send(ShipRequest {
            events: empty,
            ..ShipRequest::default()
        })
        .await
        .unwrap();
    let status = events.until(|_| None::<()>).await.unwrap_err();
    refusal(status, MESSAGE_DECODED_BYTES_MAX);

    let container = Container {
        args: vec![String::new(); 1_300_000],
        ..Container::default()
    };
    let mut arguments = site.call().await;
    let open_large = Kind::Open(Box::new(Open {
        container: Some(container.clone()),
        ..Open::default()
    }));
    arguments.send(vec![open_large]).await;
    let status = arguments.until(|_| None::<()>).await.unwrap_err();
    refusal(status, MESSAGE_DECODED_BYTES_MAX);

    let mut reporting = Reporting::begin(&site).await;
    let report = HostReport {
        host: "host-1".into(),
        streams: vec![StreamReport::default(); 300_000],
        ..HostReport::default()
    };
    reporting.reports.send(report).await.unwrap();
    refusal(
        reporting.ended().await.unwrap_err(),
        MESSAGE_DECODED_BYTES_MAX,
    );

    let check = CheckRequest {
        container: Some(container),
        ..CheckRequest::default()
    };
    let checked = RelayClient::new(site.channel().await).check(check).await;
    refusal(checked.unwrap_err(), CHECK_DECODED_BYTES_MAX);

    let refusals = "cls_shipper_refusals_total{tenant=\"a\",asked=\"message\"}";
    assert_eq!(site.metric(refusals).await, 3);
    let (entries, end) = chunk(1, middle, &["after"]);
    good.send(vec![entries]).await;
    good.acked_to(1, end).await.unwrap();
    assert_eq!(site.contents(), ["before", "after"]);
}

#[tokio::test]
async fn a_tenant_that_opens_streams_for_ever_is_refused_the_rest() {
    let tenant = "[[tenants]]\nname = \"a\"\nunix_uid = 0\nstreams_max = 100";
    let site = Site::start(tenant).await;
    let mut call = site.call().await;
    flood(&call.requests, 1_000).await;
    let mut refused = 0;
    let reason = call.until(|response| {
        refused += response.refused.len();
        (refused >= 900).then(|| response.refused[0].reason.clone())
    });
    assert_eq!(
        reason.await.unwrap(),
        "tenant a has 100 open streams, its bound (streams_max)"
    );
    let (entries, end) = chunk(1, 0, &["one of the hundred"]);
    call.send(vec![entries]).await;
    call.acked_to(1, end).await.unwrap();
}

/// A stream whose host's journal always has more, and that says so as far as its window allows.
struct Busy {
    stream: u32,
    offset: u64,
    acked: u64,
    window: u64,
}

impl Busy {
    async fn open(call: &Call, stream: u32, log_opts: &[(&str, &str)]) -> Self {
        call.send(vec![open(stream, 0, log_opts)]).await;
        Self {
            stream,
            offset: 0,
            acked: 0,
            window: WINDOW_BYTES_MIN,
        }
    }

    /// Sends as much as the window has room for.
    async fn fill(&mut self, call: &Call) {
        let line = "x".repeat(8_000);
        loop {
            let (entries, end) = chunk(self.stream, self.offset, &[&line]);
            if end - self.acked > self.window {
                return;
            }
            call.send(vec![entries]).await;
            self.offset = end;
        }
    }

    /// Waits until all is acknowledged, and follows the window.
    async fn settle(&mut self, call: &mut Call) {
        let read = call.until(|response| {
            for window in &response.windows {
                if window.stream == self.stream {
                    self.window = window.bytes;
                }
            }
            for ack in &response.acks {
                if ack.stream == self.stream {
                    self.acked = ack.offset;
                }
            }
            (self.acked >= self.offset).then_some(())
        });
        read.await.unwrap();
    }
}

/// A lane whose windows have grown keeps their bytes in memory when it begins to hold. The budget
/// here is 1 MiB.
#[tokio::test]
async fn a_lane_that_holds_leaves_room_for_the_windows_of_another() {
    let site = Site::start("buffer_bytes_max = 1048576").await;
    let mut call = site.call().await;
    let mut held = Vec::new();
    for stream in 1..=4 {
        held.push(Busy::open(&call, stream, &[]).await);
    }
    for busy in &mut held {
        for _ in 0..6 {
            busy.fill(&call).await;
            busy.settle(&mut call).await;
        }
    }
    let mut failure = Fault::new(FaultKind::Status(404));
    failure.topic_id = Some(TOPIC.to_owned());
    site.standin.add_fault(failure);
    for busy in &mut held {
        busy.fill(&call).await;
    }
    let mut other = Busy::open(&call, 5, &[("topic_id", OTHER_TOPIC)]).await;
    for _ in 0..6 {
        other.fill(&call).await;
        other.settle(&mut call).await;
    }
    assert!(
        other.window >= 4 * WINDOW_BYTES_MIN,
        "{} bytes under way",
        other.window
    );
    let in_memory: u64 = held.iter().map(|busy| busy.offset - busy.acked).sum();
    assert!(
        in_memory > 4 * WINDOW_BYTES_MIN,
        "only {in_memory} bytes are held"
    );
}

/// A hole in the place of what was announced.
#[tokio::test]
async fn a_long_line_does_not_wait_for_what_is_gone() {
    let site = Site::start("").await;
    let mut call = site.call().await;
    let mut sent = Sent::default();
    call.send_at([0, 0], vec![open(1, 0, &[])]).await;
    call.send_at([1_000, 1_000], sent.chunk(piece("a", 1, false), true))
        .await;
    let first_offset = sent.offset;
    sent.offset += 1_000;
    let hole = Hole {
        stream: 1,
        first_offset,
        end_offset: sent.offset,
        entries: 1,
        reason: "journal_full".into(),
        ..Hole::default()
    };
    call.send_at([2_000, 2_000], vec![Kind::Hole(hole)]).await;
    call.send_at([7_000, 7_000], vec![]).await;
    call.send_at([11_000, 11_000], vec![]).await;
    call.acked_to(1, sent.offset).await.unwrap();
    assert_eq!(site.contents()[1], "a1");
}

#[tokio::test]
async fn a_chunk_without_frames_brings_no_acknowledgement() {
    let site = Site::start("").await;
    let mut call = site.call().await;
    let mut sent = Sent::default();
    call.send(vec![open(1, 0, &[])]).await;
    call.send(sent.chunk(vec![], true)).await;
    site.metric_is("cls_shipper_streams", 1).await;
    call.send(sent.chunk(frames(&["first"]), false)).await;
    let first = call.until(|response| response.acks.first().copied());
    assert_eq!(first.await.unwrap().offset, sent.offset);
}

/// A long line needs room beyond its window when none is to be had. Others give back what they have not
/// used for seconds, and the line gets it before it is late.
#[tokio::test]
async fn a_long_line_is_given_room_as_soon_as_there_is_some() {
    let site = Site::start("buffer_bytes_max = 1048576").await;
    let mut call = site.call().await;
    for stream in 2..=5 {
        let mut busy = Busy::open(&call, stream, &[]).await;
        for _ in 0..6 {
            busy.fill(&call).await;
            busy.settle(&mut call).await;
        }
    }
    let mut sent = Sent::default();
    let text = "x".repeat(16 << 10);
    let first = sent.chunk(piece_of("a", 1, false, &text), true);
    call.send([vec![open(1, 0, &[])], first].concat()).await;
    let of_stream = |response: &ShipResponse| {
        let mut windows = response.windows.iter();
        windows.find(|window| window.stream == 1).copied()
    };
    let window = call.until(of_stream).await.unwrap();
    assert_eq!(window.bytes, 2 * WINDOW_BYTES_MIN);
    call.send(sent.chunk(piece_of("a", 2, true, &text), false))
        .await;
    call.acked_to(1, sent.offset).await.unwrap();
    assert!(site.contents().contains(&text.repeat(2)));
}

#[tokio::test]
async fn other_defaults_are_for_calls_that_begin_anew() {
    let site = Site::start("").await;
    let mut call = site.call().await;
    let (entries, middle) = chunk(1, 0, &["by the first"]);
    call.send(vec![open(1, 0, &[]), entries]).await;
    call.acked_to(1, middle).await.unwrap();
    // Nothing but keys, and then nothing at all, has changed: the call goes on.
    for _ in 0..2 {
        let mut config = site.config.clone();
        let inline = config.credentials["default"].clone();
        config.credentials.insert("spare".into(), inline);
        site.reloads.send(config).await.unwrap();
    }
    let mut config = site.config.clone();
    config.defaults.topic_id = Some(OTHER_TOPIC.into());
    site.reloads.send(config).await.unwrap();
    let status = call.until(|_| None::<()>).await.unwrap_err();
    assert_eq!(status.message(), "the call has ended");
    let mut call = site.call().await;
    let (entries, end) = chunk(1, middle, &["by the second"]);
    call.send(vec![open(1, middle, &[]), entries]).await;
    call.acked_to(1, end).await.unwrap();
    assert_eq!(site.contents(), ["by the first"]);
    assert_eq!(site.contents_of(OTHER_TOPIC), ["by the second"]);
}

/// A lane that holds has what it can't acknowledge; the rules change for its host nevertheless.
#[tokio::test]
async fn a_tenant_that_is_no_more_is_put_out_although_its_lane_holds() {
    let site = Site::start("").await;
    site.standin.add_fault(Fault::new(FaultKind::Status(404)));
    let mut call = site.call().await;
    let (entries, _) = chunk(1, 0, &["held"]);
    call.send(vec![open(1, 0, &[]), entries]).await;
    site.metric_is("cls_shipper_batches", 1).await;
    let mut config = site.config.clone();
    let table = "[[tenants]]\nname = \"other\"\nunix_uid = 12345".parse();
    let other = Config::from_table(table.unwrap(), std::iter::empty()).unwrap();
    config.tenants = other.tenants;
    site.reloads.send(config).await.unwrap();
    let status = call.until(|_| None::<()>).await.unwrap_err();
    assert_eq!(status.message(), "the call has ended");
    let status = Call::begin(site.channel().await).await.err().unwrap();
    assert_eq!(status.code(), Code::Unauthenticated);
    site.metric_is("cls_shipper_batches", 0).await;
    assert_eq!(site.contents(), Vec::<String>::new());
}

/// A call of the relay that reports.
struct Reporting {
    reports: mpsc::Sender<HostReport>,
    tasks: JoinSet<Result<ReportAck, Status>>,
}

impl Reporting {
    async fn begin(site: &Site) -> Self {
        let (reports, receiver) = mpsc::channel(16);
        let mut client = RelayClient::new(site.channel().await);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let ended = client.report(ReceiverStream::new(receiver)).await;
            ended.map(tonic::Response::into_inner)
        });
        Self { reports, tasks }
    }

    async fn send(&self, host: &str, stream_count: u32, received_entries: u64) {
        let stream = |number| StreamReport {
            journal_id: format!("{number:032x}"),
            received_entries,
            ..StreamReport::default()
        };
        let report = HostReport {
            host: host.into(),
            version: "0".into(),
            streams: (0..stream_count).map(stream).collect(),
        };
        self.reports.send(report).await.unwrap();
    }

    async fn ended(&mut self) -> Result<ReportAck, Status> {
        let ended = tokio::time::timeout(Duration::from_secs(20), self.tasks.join_next()).await;
        ended.expect("an end within 20 s").unwrap().unwrap()
    }
}

/// Waits until the ledger has so many streams of a host, each with so many entries.
async fn reported(site: &Site, host: &str, stream_count: usize, received: u64) {
    let is_reported = async || {
        let page = world::client::call(site.admin, "GET", "/api/ledger").await;
        let lines: Vec<serde_json::Value> = serde_json::from_slice(&page.unwrap()).unwrap();
        let of_host = lines.iter().filter(|line| line["host"] == host);
        of_host.filter(|line| line["received"] == received).count() == stream_count
    };
    wait_until("a report", Duration::from_secs(20), is_reported)
        .await
        .unwrap();
}

/// Reports end with the rules that they began by, as streams do.
#[tokio::test]
async fn a_host_that_is_no_longer_allowed_reports_no_more() {
    let tenant =
        |host: &str| format!("[[tenants]]\nname = \"a\"\nunix_uid = 0\nhosts = [\"{host}\"]");
    let site = Site::start(&tenant("host-1")).await;
    let mut reporting = Reporting::begin(&site).await;
    reporting.send("host-1", 1, 1).await;
    reported(&site, "host-1", 1, 1).await;
    let mut config = site.config.clone();
    let other = Config::from_table(tenant("host-2").parse().unwrap(), std::iter::empty());
    config.tenants = other.unwrap().tenants;
    site.reloads.send(config).await.unwrap();
    reporting.ended().await.unwrap();

    let mut again = Reporting::begin(&site).await;
    again.send("host-1", 1, 2).await;
    let status = again.ended().await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert_eq!(status.message(), "tenant a may not report for host-1");
    let mut long = Reporting::begin(&site).await;
    long.send(&"h".repeat(256), 1, 2).await;
    let status = long.ended().await.unwrap_err();
    let rule = "the host name is 256 bytes, the limit is 255";
    assert_eq!(status.message(), rule);
    let allowed = Reporting::begin(&site).await;
    allowed.send("host-2", 1, 3).await;
    reported(&site, "host-2", 1, 3).await;
    reported(&site, "host-1", 1, 1).await;
    let refusals = "cls_shipper_refusals_total{tenant=\"a\",asked=\"report\"}";
    assert_eq!(site.metric(refusals).await, 2);
}

/// What the ledger has no place for is counted, and the call goes on.
#[tokio::test]
async fn a_report_of_too_many_streams_is_kept_in_part_and_goes_on() {
    let site = Site::start("[[tenants]]\nname = \"a\"\nunix_uid = 0").await;
    let reporting = Reporting::begin(&site).await;
    reporting.send("host-1", 20_000, 1).await;
    reported(&site, "host-1", 16_384 + 1_024, 1).await;
    reporting.send("host-1", 1, 2).await;
    reported(&site, "host-1", 1, 2).await;
    let refusals = "cls_shipper_refusals_total{tenant=\"a\",asked=\"report\"}";
    assert_eq!(site.metric(refusals).await, 1);
}
