//! One upload request: build, sign, send, read the answer.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use reqwest::header::{CONTENT_TYPE, DATE, HeaderMap, HeaderValue, RETRY_AFTER};
use serde::Deserialize;

use crate::cls::compress::Compression;
use crate::cls::credentials::Credentials;
use crate::cls::disposition::{Answer, Outcome};
use crate::cls::request::{UPLOAD_PATH, Upload};
use crate::cls::sign::{self, SignedParts, Window};

const CONTENT_TYPE_PROTOBUF: &str = "application/x-protobuf";

/// Bytes of an error body that are read; the rest can't matter and the peer is not trusted.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Bytes of an error message that are kept.
const MESSAGE_BYTES_MAX: usize = 500;

/// Idle connections are closed by us first: CLS does not document its own time, and a request on
/// a connection that just closed is a retry and possibly a duplicate.
const IDLE_MAX: Duration = Duration::from_secs(15);

/// Bound of the TCP and TLS handshake, inside the request's own timeout.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection pool to all endpoints.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
}

/// The client can't be built.
#[derive(Debug, thiserror::Error)]
#[error("HTTP client")]
pub struct ClientError(#[from] reqwest::Error);

/// What takes uploads: CLS, or what a test has in its place.
pub trait Cloud: fmt::Debug + Send + Sync {
    /// Sends one batch once.
    fn upload<'a>(&'a self, upload: Upload<'a>) -> BoxFuture<'a, Outcome>;
}

impl Cloud for Client {
    fn upload<'a>(&'a self, upload: Upload<'a>) -> BoxFuture<'a, Outcome> {
        Box::pin(self.send(upload))
    }
}

impl Client {
    /// Builds a client that trusts Mozilla's roots, which are compiled in: the image has no files.
    ///
    /// # Errors
    /// The TLS library refuses its own configuration.
    ///
    /// # Panics
    /// Never: ring supports the default protocol versions.
    pub fn new() -> Result<Self, ClientError> {
        let roots = rustls::RootCertStore {
            roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
        };
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(
            rustls::crypto::ring::default_provider(),
        ))
        .with_safe_default_protocol_versions()
        .expect("ring supports the default protocol versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .http1_only()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("cls-docker-log-driver/", env!("CARGO_PKG_VERSION")))
            .pool_idle_timeout(IDLE_MAX)
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .build()?;
        Ok(Self { http })
    }

    /// Returns the HTTP client itself, for requests that are not uploads.
    pub fn http(&self) -> &reqwest::Client {
        &self.http
    }

    /// Sends one batch once. The outcome holds no part of the credentials, whatever the answer
    /// quotes.
    pub async fn send(&self, upload: Upload<'_>) -> Outcome {
        let Upload {
            target,
            credentials,
            body,
            timeout,
            now_s,
        } = upload;
        let parts = SignedParts {
            method: "POST",
            path: UPLOAD_PATH,
            params: &[("topic_id", &target.topic_id)],
            headers: &[
                ("host", target.endpoint.host()),
                ("content-type", CONTENT_TYPE_PROTOBUF),
            ],
        };
        let authorization = sign::authorization(credentials, &parts, Window::around(now_s));
        let Ok(headers) = headers(&authorization, credentials, body.compression) else {
            return Outcome::Transport(
                "the credentials hold characters no header can carry".into(),
            );
        };
        let request = self
            .http
            .post(target.url())
            .headers(headers)
            .timeout(timeout)
            .body(body.bytes.clone());
        match request.send().await {
            Ok(response) => Outcome::Answer(read_answer(response, credentials).await),
            Err(error) if error.is_timeout() => Outcome::Timeout,
            Err(error) => Outcome::Transport(cause(error)),
        }
    }
}

fn headers(
    authorization: &str,
    credentials: &Credentials,
    compression: Compression,
) -> Result<HeaderMap, reqwest::header::InvalidHeaderValue> {
    let secret = |text: &str| {
        let mut value = HeaderValue::from_str(text)?;
        value.set_sensitive(true);
        Ok(value)
    };
    let mut headers = HeaderMap::with_capacity(4);
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static(CONTENT_TYPE_PROTOBUF),
    );
    headers.insert(reqwest::header::AUTHORIZATION, secret(authorization)?);
    if let Some(name) = compression.header() {
        headers.insert("x-cls-compress-type", HeaderValue::from_static(name));
    }
    if let Some(token) = &credentials.token {
        headers.insert("x-cls-token", secret(token.expose())?);
    }
    Ok(headers)
}

/// Reads an answer. Trouble with the body of an error leaves the status, which decides alone then.
async fn read_answer(mut response: reqwest::Response, credentials: &Credentials) -> Answer {
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct ErrorBody {
        errorcode: String,
        errormessage: String,
    }
    let header = |name: &str| {
        response
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    let mut answer = Answer {
        status: response.status().as_u16(),
        request_id: credentials.redact(header("x-cls-requestid")),
        retry_after: header(RETRY_AFTER.as_str())
            .parse()
            .ok()
            .map(Duration::from_secs),
        date_s: unix_s(header(DATE.as_str())),
        ..Answer::default()
    };
    let mut body = Vec::new();
    while body.len() < ANSWER_BYTES_MAX {
        match response.chunk().await {
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) | Err(_) => break,
        }
    }
    if answer.status != 200 {
        let error = serde_json::from_slice::<ErrorBody>(&body).unwrap_or_default();
        // Before the message is cut: a part of a key is no match.
        let message = credentials.redact(&error.errormessage);
        answer.message = message.chars().take(MESSAGE_BYTES_MAX).collect();
        answer.code = credentials.redact(&error.errorcode);
    }
    answer
}

/// Reads a time as HTTP writes it.
fn unix_s(date: &str) -> Option<u64> {
    let date = httpdate::parse_http_date(date).ok()?;
    let since = date.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(since.as_secs())
}

/// Returns an error's innermost causes in one line, without the URL.
fn cause(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}
