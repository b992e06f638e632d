//! What a peer costs that sends calls and never ends them: nothing if it is a stranger, and little
//! if it is a tenant's. And whom it keeps out: nobody, with whatever it takes of the shipper's files.
//!
//! Method: a shipper as a process, since it is its memory that is looked at; calls are made by hand,
//! for no client of the relay leaves a message unfinished.

use crate::fleet::{Cloud, driver, shipper};
use crate::transport::Authority;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http_body_util::StreamBody;
use proto::limits::MESSAGE_BYTES_MAX;
use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::Code;
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};
use tower::Service as _;
use world::nodes::Shipper;
use world::processes::free_address;

/// Calls that one peer makes at a time.
const CALLS: usize = 64;
/// Bytes that the end of a message would have.
const WITHHELD_BYTES: usize = 100;
/// Most by which the shipper's memory may grow.
const RSS_GROWTH_BYTES_MAX: u64 = 16 << 20;

/// Returns a body with all but the end of a message, as the peer sends it; it never ends.
fn unfinished() -> Body {
    const PIECE_BYTES: usize = 64 << 10;
    let piece = Bytes::from(vec![b'x'; PIECE_BYTES]);
    let length = u32::try_from(MESSAGE_BYTES_MAX).unwrap().to_be_bytes();
    let head = Bytes::from([&[0][..], &length].concat());
    let mut left = MESSAGE_BYTES_MAX - WITHHELD_BYTES;
    let pieces = std::iter::from_fn(move || {
        let bytes = left.min(PIECE_BYTES);
        left -= bytes;
        (bytes > 0).then(|| piece.slice(..bytes))
    });
    let sent = std::iter::once(head).chain(pieces);
    let frames = sent.map(|bytes| Ok::<_, std::io::Error>(hyper::body::Frame::data(bytes)));
    let stream = futures_util::stream::iter(frames).chain(futures_util::stream::pending());
    Body::new(StreamBody::new(stream))
}

/// Unfinished calls.
struct Flood {
    /// What was said to those that were refused.
    codes: Vec<Code>,
    /// The others, as far as they were answered.
    _under_way: Vec<http::Response<Body>>,
}

/// Makes unfinished calls of a method, all at once, and waits for their answers for a few seconds.
async fn flood(channel: &Channel, method: &str) -> Flood {
    let mut calls: FuturesUnordered<_> = (0..CALLS)
        .map(|_| {
            let mut channel = channel.clone();
            let request = http::Request::post(format!("http://shipper/relay.v1.Relay/{method}"))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(unfinished())
                .unwrap();
            async move {
                std::future::poll_fn(|context| channel.poll_ready(context))
                    .await
                    .unwrap();
                channel.call(request).await.unwrap()
            }
        })
        .collect();
    let (mut codes, mut under_way) = (Vec::new(), Vec::new());
    let answers = async {
        while let Some(response) = calls.next().await {
            match response.headers().get("grpc-status") {
                Some(code) => codes.push(Code::from_bytes(code.as_bytes())),
                None => under_way.push(response),
            }
        }
    };
    timeout(Duration::from_secs(5), answers).await.ok();
    Flood {
        codes,
        _under_way: under_way,
    }
}

fn rss_bytes_max(shipper: &Shipper) -> u64 {
    let process = shipper.process.as_ref().unwrap();
    process.usage().unwrap().rss_bytes_max
}

#[track_caller]
fn check_growth(shipper: &Shipper, before_bytes: u64) {
    let growth_bytes = rss_bytes_max(shipper) - before_bytes;
    eprintln!("{CALLS} unfinished calls: {} KiB", growth_bytes >> 10);
    assert!(growth_bytes <= RSS_GROWTH_BYTES_MAX, "{growth_bytes} bytes");
}

/// Begins unfinished calls as a stranger, each of which must be refused without its end.
async fn check_stranger(shipper: &Shipper, channel: &Channel) {
    let before_bytes = rss_bytes_max(shipper);
    for method in ["Check", "Ship", "Report"] {
        let codes = flood(channel, method).await.codes;
        assert_eq!(codes, vec![Code::Unauthenticated; CALLS], "{method}");
    }
    check_growth(shipper, before_bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_stranger_is_read() {
    let cloud = Cloud::start().await;
    let address = free_address().unwrap();
    let shipper = shipper(cloud.shipper(&format!("tcp = \"{address}\""), "")).await;
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap();
    check_stranger(&shipper, &channel.connect().await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_stranger_is_read_over_tls_either() {
    let cloud = Cloud::start().await;
    let authority = Authority::new("authority");
    authority.sign("server", "localhost", false);
    let address = free_address().unwrap();
    let [cert, key, ca] = ["server.pem", "server.key", "ca.pem"].map(|file| authority.text(file));
    let listen = format!(
        "tcp = \"{address}\"\n[listen.tls]\ncert_file = \"{cert}\"\nkey_file = \"{key}\"\n\
         client_ca_file = \"{ca}\""
    );
    let tenants = "[[tenants]]\nname = \"certificates\"\ncertificate = \"host-*\"";
    let shipper = shipper(cloud.shipper(&listen, tenants)).await;
    check_stranger(&shipper, &over_tls(address, &ca).await).await;
}

/// Returns a connection over TLS on which the peer shows nothing of its own.
async fn over_tls(address: SocketAddr, ca: &str) -> Channel {
    let mut roots = rustls::RootCertStore::empty();
    let certificate = rustls::pki_types::CertificateDer::from_pem_file(ca);
    roots.add(certificate.unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    let connect = tower::service_fn(move |_: tonic::transport::Uri| {
        let connector = connector.clone();
        async move {
            let stream = TcpStream::connect(address).await?;
            let name = ServerName::try_from("localhost").unwrap();
            let stream = connector.connect(name, stream).await?;
            Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
        }
    });
    let endpoint = Endpoint::from_static("http://shipper");
    endpoint.connect_with_connector(connect).await.unwrap()
}

/// A tenant's host may send messages, and has a bound for those that it does not end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unfinished_messages_of_a_tenant_take_little_and_others_go_on() {
    let cloud = Cloud::start().await;
    let address = free_address().unwrap();
    let tenants = "[[tenants]]\nname = \"any\"\nanyone = true";
    let shipper = shipper(cloud.shipper(&format!("tcp = \"{address}\""), tenants)).await;
    let endpoint = format!("http://{address}");
    let mut good = driver("host-1", &endpoint, &[]).await;
    let mut writing = crate::fleet::Writing::new();
    let channel = Endpoint::from_shared(endpoint).unwrap().connect().await;
    let channel = channel.unwrap();
    let before_bytes = rss_bytes_max(&shipper);
    let codes = flood(&channel, "Check").await.codes;
    assert_eq!(codes, vec![Code::OutOfRange; CALLS]);
    let _ships = flood(&channel, "Ship").await;
    let ship = async {
        writing.start(&mut good, "s1", 10, 10).await;
        cloud.arrival(|arrival| arrival.host == "host-1").await;
    };
    let line = timeout(Duration::from_secs(4), ship);
    let (line, _reports) = tokio::join!(line, flood(&channel, "Report"));
    line.expect("a line of another host arrives meanwhile");
    check_growth(&shipper, before_bytes);
}

/// Files of a shipper that has few: a quarter of them are places for connections.
const FEW_FILES: u64 = 256;

/// Connects from a loopback address, keeps what it has, and connects again whenever that is closed.
async fn dial_for_ever(from: &str, to: SocketAddr) {
    use tokio::io::AsyncReadExt as _;
    loop {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        let from = SocketAddr::new(from.parse().unwrap(), 0);
        socket.bind(from).unwrap();
        if let Ok(mut stream) = socket.connect(to).await {
            stream.read_to_end(&mut Vec::new()).await.ok();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_that_dial_for_ever_keep_no_host_out() {
    let cloud = Cloud::start().await;
    let address = free_address().unwrap();
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "TOKENEXAMPLE1X").unwrap();
    let token = token.path().to_str().unwrap();
    let tenants = format!("[[tenants]]\nname = \"a\"\ntoken_file = \"{token}\"\nhosts = [\"*\"]");
    let mut settings = cloud.shipper(&format!("tcp = \"{address}\""), &tenants);
    settings.files_max = Some(FEW_FILES);
    let shipper = shipper(settings).await;
    let mut strangers = tokio::task::JoinSet::new();
    for number in 0..80 {
        let from = ["127.0.0.2", "127.0.0.3"][number % 2];
        strangers.spawn(dial_for_ever(from, address));
    }
    let refused = "cls_shipper_refused_connections_total";
    let all_taken = async || shipper.metric(refused).await.unwrap() > FEW_FILES / 2;
    crate::fleet::wait("all places to be taken", &shipper.log(), all_taken).await;
    for number in 1..=3 {
        let host = format!("host-{number}");
        let endpoint = format!("http://{address}");
        let mut good = driver(&host, &endpoint, &[("SHIPPER_TOKEN_FILE", token)]).await;
        let mut writing = crate::fleet::Writing::new();
        let ship = async {
            writing.start(&mut good, "s1", 10, 100).await;
            cloud.arrival(|arrival| arrival.host == host).await;
        };
        let shipped = timeout(Duration::from_secs(5), ship).await;
        assert!(shipped.is_ok(), "{host}: {}\n{}", good.log(), shipper.log());
    }
}

/// Readers of the admin server that ask for a long page and take next to nothing of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_do_not_read_share_a_page() {
    use proto::relay::relay_client::RelayClient;
    use proto::relay::{HostReport, StreamReport};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    const STREAMS: u32 = 10_000;
    let cloud = Cloud::start().await;
    let shipper = shipper(cloud.shipper("", "")).await;
    let stream = |number: u32| StreamReport {
        journal_id: format!("{number:032x}"),
        container_id: format!("{number:064x}"),
        container_name: "n".repeat(100),
        ..StreamReport::default()
    };
    let report = HostReport {
        host: "host-1".into(),
        streams: (0..STREAMS).map(stream).collect(),
        ..HostReport::default()
    };
    let relay = Endpoint::from_shared(format!("unix://{}", shipper.socket().display())).unwrap();
    let mut relay = RelayClient::new(relay.connect().await.unwrap());
    relay.report(tokio_stream::once(report)).await.unwrap();
    let page_bytes = shipper.admin("/api/ledger").await.unwrap().len();
    assert!(page_bytes > 3 << 20, "{page_bytes} bytes");
    let before_bytes = rss_bytes_max(&shipper);
    let mut readers = Vec::new();
    for from in 0..8 {
        for _ in 0..8 {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            let address = format!("127.0.0.{}:0", 10 + from);
            socket.bind(address.parse().unwrap()).unwrap();
            // What the kernel does not take stays with the shipper.
            socket.set_recv_buffer_size(4 << 10).unwrap();
            let mut reader = socket.connect(shipper.admin_address()).await.unwrap();
            let request = b"GET /api/ledger HTTP/1.1\r\nHost: localhost\r\n\r\n";
            reader.write_all(request).await.unwrap();
            reader.read_exact(&mut [0; 100]).await.unwrap();
            readers.push(reader);
        }
    }
    let growth_bytes = rss_bytes_max(&shipper) - before_bytes;
    eprintln!(
        "{} readers of {page_bytes} bytes: {} KiB",
        readers.len(),
        growth_bytes >> 10
    );
    // Each with a page of its own would take 64 of them.
    assert!(
        growth_bytes < 16 * page_bytes as u64,
        "{growth_bytes} bytes"
    );
}

/// A host whose containers have keys of their own, for a server that takes each request and never
/// answers: as many requests as the shipper will make.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_never_answers_keeps_neither_hosts_nor_health_out() {
    const STREAMS: u32 = 300;
    let cloud = Cloud::start().await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let mut accepting = tokio::task::JoinSet::new();
    let (taken, mut count) = tokio::sync::watch::channel(0);
    accepting.spawn(async move {
        let mut streams = Vec::new();
        while let Ok((stream, _)) = silent.accept().await {
            streams.push(stream);
            taken.send_replace(streams.len());
        }
    });
    let address = free_address().unwrap();
    let tenants = "[[tenants]]\nname = \"any\"\nanyone = true";
    let mut settings = cloud.shipper(&format!("tcp = \"{address}\""), tenants);
    settings.files_max = Some(FEW_FILES);
    let shipper = shipper(settings).await;
    let relay = format!("http://{address}");
    let channel = Endpoint::from_shared(relay.clone()).unwrap();
    let call = crate::relay::Call::begin(channel.connect().await.unwrap()).await;
    let call = call.unwrap();
    for stream in 1..=STREAMS {
        let topic = format!("topic-{stream}");
        let options = [
            ("endpoint", endpoint.as_str()),
            ("topic_id", &topic),
            ("secret_id", "AKIDEXAMPLEOWN"),
            ("secret_key", "SKEXAMPLEOWN"),
            ("timeout", "1h"),
        ];
        let (lines, _) = crate::relay::chunk(stream, 0, &["x"]);
        call.send(vec![crate::relay::open(stream, 0, &options), lines])
            .await;
    }
    let at_bound = count.wait_for(|count| *count >= 32);
    timeout(Duration::from_secs(10), at_bound)
        .await
        .unwrap()
        .unwrap();
    let health = world::client::call(shipper.admin_address(), "GET", "/healthz");
    timeout(Duration::from_secs(1), health)
        .await
        .unwrap()
        .unwrap();
    let mut good = driver("host-2", &relay, &[]).await;
    let mut writing = crate::fleet::Writing::new();
    let ship = async {
        writing.start(&mut good, "s1", 10, 100).await;
        cloud.arrival(|arrival| arrival.host == "host-2").await;
    };
    let shipped = timeout(Duration::from_secs(5), ship).await;
    assert!(shipped.is_ok(), "{}\n{}", good.log(), shipper.log());
    let log = shipper.log();
    assert!(!log.contains("can't accept a connection"), "{log}");
}
