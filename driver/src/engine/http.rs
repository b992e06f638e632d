//! The engine's logging-plugin API: HTTP/1.1 POST with JSON over a unix socket.
//!
//! What the engine does that one would not expect (dockerd 20.10 to 29; moby `pkg/plugins`,
//! `daemon/logger`): it sends no Content-Type; up to 20.10.25 the Host header is empty; the bodies
//! of Plugin.Activate and LogDriver.Capabilities are empty; a call that failed on the way is
//! repeated without its body; it opens and closes connections without a request, to see whether
//! the plugin is alive; it keeps idle connections for ever, and closing one from this side can
//! make its next call fail; an empty answer fails a call, so every answer is a JSON object.
//!
//! - `/Plugin.Activate` → `{"Implements":["LogDriver"]}`
//! - `/LogDriver.Capabilities` → `{"Cap":{"ReadLogs":false}}`: the engine keeps a bounded cache of
//!   its own for `docker logs`.
//! - `/LogDriver.StartLogging` `{"File","Info"}` → `{"Err":""}`; not empty, it fails `docker run`
//! - `/LogDriver.StopLogging` `{"File"}` → `{"Err":""}` always: an error there leaks the FIFO and
//!   the plugin's reference count until the engine restarts
//! - anything else → 404 and `{"Err":"…"}`

use super::containers::Containers;
use crate::descriptors;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustix::event::{EventfdFlags, eventfd};
use serde::Deserialize;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

/// Bytes of a request's body. The largest is StartLogging's, with the container's environment,
/// labels and arguments; the kernel bounds those to about 2 MiB.
const BODY_BYTES_MAX: usize = 8 << 20;

/// Pause after a failed accept: out of file descriptors, most likely.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Serves the API, for ever. Dropped, it drops its connections. Beyond
/// [`descriptors::connections_max`] they wait in the socket's backlog.
pub(crate) async fn serve(listener: UnixListener, containers: Arc<Containers>) {
    let connections_max = descriptors::connections_max(descriptors::limit());
    let connections_max = usize::try_from(connections_max).unwrap_or(usize::MAX);
    let mut connections = JoinSet::new();
    // Given up for a connection when there is no other file descriptor: a stop must be answered.
    let mut spare = None;
    loop {
        spare = spare.or_else(|| eventfd(0, EventfdFlags::CLOEXEC).ok());
        tokio::select! {
            accepted = listener.accept(), if connections.len() < connections_max => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve_connection(stream, Arc::clone(&containers)));
                }
                Err(error) => {
                    tracing::warn!(%error, "could not accept a connection of the engine");
                    drop(spare.take());
                    match tokio::time::timeout(ACCEPT_RETRY, listener.accept()).await {
                        Ok(Ok((stream, _))) => {
                            connections.spawn(serve_connection(stream, Arc::clone(&containers)));
                        }
                        Ok(Err(_)) => tokio::time::sleep(ACCEPT_RETRY).await,
                        Err(_) => {}
                    }
                }
            },
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a connection of the engine has failed");
                }
            }
        }
    }
}

async fn serve_connection(stream: UnixStream, containers: Arc<Containers>) {
    let service = service_fn(move |request| {
        let containers = Arc::clone(&containers);
        async move { Ok::<_, Infallible>(answer(request, &containers).await) }
    });
    // hyperlocal's server extension serves one connection at a time and closes it after a request.
    let served = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection of the engine ended early");
    }
}

async fn answer(request: Request<Incoming>, containers: &Arc<Containers>) -> Response<Full<Bytes>> {
    if request.method() != Method::POST {
        return err_json(StatusCode::NOT_FOUND, "the plugin API has POST only");
    }
    let path = request.uri().path().to_owned();
    match path.as_str() {
        "/Plugin.Activate" => json(r#"{"Implements":["LogDriver"]}"#.to_owned()),
        "/LogDriver.Capabilities" => json(r#"{"Cap":{"ReadLogs":false}}"#.to_owned()),
        "/LogDriver.StartLogging" => match body(request).await {
            Some(body) => match containers.start(&body).await {
                Ok(()) => err_json(StatusCode::OK, ""),
                Err(fault) => {
                    tracing::warn!(error = %crate::chain::Chain(&fault), "a container was not taken on");
                    err_json(StatusCode::OK, &fault.to_string())
                }
            },
            None => err_json(
                StatusCode::BAD_REQUEST,
                "the request's body could not be read",
            ),
        },
        "/LogDriver.StopLogging" => {
            let body = body(request).await.unwrap_or_default();
            match serde_json::from_slice::<StopRequest>(&body) {
                Ok(stop) => containers.stop(&stop.file).await,
                Err(_) => containers.stop_unnamed().await,
            }
            err_json(StatusCode::OK, "")
        }
        _ => err_json(
            StatusCode::NOT_FOUND,
            &format!("{path} is not part of the log driver API"),
        ),
    }
}

#[derive(Deserialize)]
struct StopRequest {
    #[serde(rename = "File", default)]
    file: String,
}

async fn body(request: Request<Incoming>) -> Option<Bytes> {
    let limited = Limited::new(request.into_body(), BODY_BYTES_MAX);
    match limited.collect().await {
        Ok(body) => Some(body.to_bytes()),
        Err(error) => {
            tracing::warn!(%error, "could not read a request of the engine");
            None
        }
    }
}

fn err_json(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = json(serde_json::json!({ "Err": text }).to_string());
    *response.status_mut() = status;
    response
}

fn json(body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    let content_type = http::HeaderValue::from_static("application/json");
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, content_type);
    response
}
