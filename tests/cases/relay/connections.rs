//! Who may connect, how often, and for how long without a call.

use super::call::Call;
use super::site::{Site, connect, free_address};
use proto::relay::CheckRequest;
use proto::relay::relay_client::RelayClient;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use world::processes::wait_until;

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
    let end = call.begin_stream(1, 0, &["over", "tcp"]).await;
    assert_eq!(call.acked_to(1, end).await.unwrap().delivered_entries, 2);
    assert_eq!(site.contents(), ["over", "tcp"]);
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
    let end = call.begin_stream(1, 0, &["still there"]).await;
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
    // Nobody has called on them: the oldest makes room.
    let mut newest = from("127.0.0.2", address).await;
    assert!(is_closed(&mut silent[0]).await);
    assert!(!is_closed(&mut newest).await);
    assert!(!is_closed(&mut from("127.0.0.3", address).await).await);
    let refused = "cls_shipper_refused_connections_total";
    assert_eq!(site.metric(refused).await, 1);
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
