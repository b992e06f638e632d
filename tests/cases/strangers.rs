//! What a peer costs that sends calls and never ends them: nothing if it is a stranger, and little
//! if it is a tenant's.
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

/// Makes unfinished calls of a method, all at once. Returns the codes of those that are answered all
/// the same within a few seconds.
async fn flood(channel: &Channel, method: &str) -> Vec<Code> {
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
                let response = channel.call(request).await.ok()?;
                let status = response.headers().get("grpc-status")?.to_str().ok()?;
                Some(Code::from(status.parse::<i32>().ok()?))
            }
        })
        .collect();
    let mut codes = Vec::new();
    let answers = async {
        while let Some(code) = calls.next().await {
            codes.extend(code);
        }
    };
    timeout(Duration::from_secs(5), answers).await.ok();
    codes
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
        let codes = flood(channel, method).await;
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
    let codes = flood(&channel, "Check").await;
    assert_eq!(codes, vec![Code::OutOfRange; CALLS]);
    let mut floods: FuturesUnordered<_> = ["Ship", "Report"]
        .map(|method| flood(&channel, method))
        .into_iter()
        .collect();
    let ship = async {
        writing.start(&mut good, "s1", 10, 10).await;
        cloud.arrival(|arrival| arrival.host == "host-1").await;
    };
    let line = timeout(Duration::from_secs(4), ship);
    let floods = async { while floods.next().await.is_some() {} };
    let (line, ()) = tokio::join!(line, floods);
    line.expect("a line of another host arrives meanwhile");
    check_growth(&shipper, before_bytes);
}
