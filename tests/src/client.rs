//! One HTTP request on a connection of its own, with every header under the caller's control.

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use std::net::SocketAddr;
use tokio::net::TcpStream;

/// Sends a request, as it is, and reads the whole answer.
///
/// # Errors
/// If there is no connection, or it ends before the answer does.
pub async fn send(
    address: SocketAddr,
    request: Request<Full<Bytes>>,
) -> anyhow::Result<Response<Bytes>> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        anyhow::Ok(Response::from_parts(head, body))
    };
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        ended = connection => {
            ended?;
            // The connection has said all it has to say; the answer is in or never comes.
            exchange.await
        }
    }
}

/// Sends a request without a body and returns the answer's, if its status is 200.
///
/// # Errors
/// As [`send`]; also for any other status.
pub async fn call(address: SocketAddr, method: &str, path: &str) -> anyhow::Result<Bytes> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", address.to_string())
        .body(Full::default())
        .context("building a request")?;
    let answer = send(address, request).await?;
    let text = String::from_utf8_lossy(answer.body());
    anyhow::ensure!(
        answer.status() == StatusCode::OK,
        "{method} {path}: {} {text}",
        answer.status()
    );
    Ok(answer.into_body())
}
