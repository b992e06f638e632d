//! The stand-in's HTTP surface: routes, faults, and answers.

use crate::standin::auth::SignedParts;
use crate::standin::config::Key;
use crate::standin::fault::{Fault, FaultKind};
use crate::standin::link::{Fate, Link};
use crate::standin::state::State;
use crate::standin::store::{Record, Upload};
use crate::standin::upload::{self, Refusal};
use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use serde::Serialize;
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, UNIX_EPOCH};
use tokio::time::Instant;

type Answer = Response<BoxBody<Bytes, Infallible>>;

/// Answers one request. An error closes the connection without an answer.
pub(super) async fn answer(
    state: &State,
    link: &Link,
    peer: IpAddr,
    request: Request<Incoming>,
) -> io::Result<Answer> {
    let request_id = new_request_id();
    let mut answer = match (request.method(), request.uri().path()) {
        (&Method::POST, "/structuredlog") if state.config.identity.is_some() && !link.is_secure => {
            let message = "an upload without TLS, where TLS is spoken";
            refusal(&Refusal::new(400, "InvalidParam", message))
        }
        (&Method::POST, "/structuredlog") => {
            return structured_log(state, link, peer, request, request_id).await;
        }
        (_, "/structuredlog") => refusal(&Refusal::new(405, "NotSupported", "the method is POST")),
        _ => admin(state, &request).unwrap_or_else(|refused| refusal(&refused)),
    };
    stamp(&mut answer, &request_id, state.clock.now());
    Ok(answer)
}

/// What a fault does to an upload before it is looked at.
enum Before {
    Go,
    Answer(Answer),
    Reset,
}

async fn structured_log(
    state: &State,
    link: &Link,
    peer: IpAddr,
    request: Request<Incoming>,
    request_id: String,
) -> io::Result<Answer> {
    let (head, mut incoming) = request.into_parts();
    let parts = signed_parts(&head);
    let topic_id = parts.param("topic_id").map(String::from_utf8_lossy);
    let fault = state
        .faults
        .lock()
        .take(topic_id.as_deref(), Instant::now());
    drop(topic_id);
    state.stats.lock().requests += 1;
    let mut answer = match before(fault.as_ref()).await {
        Before::Reset => {
            // In the middle of the body if it is long: the first piece has arrived.
            incoming.frame().await;
            link.fate.send_replace(Fate::Reset);
            return std::future::pending().await;
        }
        Before::Answer(answer) => {
            read_body(incoming).await?;
            answer
        }
        Before::Go => {
            let skew_s = fault.as_ref().map_or(0, |fault| fault.skew_s);
            let request = upload::Request {
                parts,
                body: read_body(incoming).await?,
                peer,
                request_id: request_id.clone(),
                now: skewed(state.clock.now(), skew_s),
                is_partial: fault
                    .as_ref()
                    .is_some_and(|f| f.kind == FaultKind::PartialStore),
            };
            accept(state, &request, fault.as_ref()).await?
        }
    };
    after(link, fault.as_ref());
    let skew_s = fault.as_ref().map_or(0, |fault| fault.skew_s);
    stamp(&mut answer, &request_id, skewed(state.clock.now(), skew_s));
    count_answer(state, &answer);
    Ok(answer)
}

async fn before(fault: Option<&Fault>) -> Before {
    let Some(fault) = fault else {
        return Before::Go;
    };
    match fault.kind {
        FaultKind::Status(status) => Before::Answer(refusal(&Refusal::of_status(status))),
        FaultKind::UntilNewKey => Before::Answer(refusal(&Refusal::of_status(401))),
        FaultKind::HtmlError => Before::Answer(html_error()),
        FaultKind::Reset => Before::Reset,
        FaultKind::Stall => match fault.delay {
            Some(delay) => {
                tokio::time::sleep(delay).await;
                Before::Go
            }
            None => std::future::pending().await,
        },
        FaultKind::DropAfterStore
        | FaultKind::Drip
        | FaultKind::PartialStore
        | FaultKind::Skew
        | FaultKind::IdleClose => Before::Go,
    }
}

async fn accept(
    state: &State,
    request: &upload::Request,
    fault: Option<&Fault>,
) -> io::Result<Answer> {
    state.stats.lock().sent_bytes += request.body.as_ref().map_or(0, |body| body.len() as u64);
    let outcome = upload::handle(state, request);
    if let (Some(watcher), Ok(Some(upload))) = (&state.watcher, &outcome) {
        // A watcher that has gone sees nothing more.
        watcher.send(upload.clone()).await.ok();
    }
    match outcome {
        Ok(_) if fault.is_some_and(|fault| fault.kind == FaultKind::DropAfterStore) => {
            Err(io::Error::other("dropped after storing, as asked"))
        }
        Ok(_) => Ok(Response::new(full(Bytes::new()))),
        Err(refused) => Ok(refusal(&refused)),
    }
}

fn after(link: &Link, fault: Option<&Fault>) {
    let Some(fault) = fault else { return };
    match fault.kind {
        FaultKind::Drip => {
            let delay = fault.delay.unwrap_or(DRIP_PER_BYTE);
            let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
            link.drip_ms.store(delay_ms.max(1), Ordering::Relaxed);
        }
        FaultKind::IdleClose => {
            let idle = fault.delay.unwrap_or(IDLE_BEFORE_CLOSE);
            link.fate.send_replace(Fate::CloseAfter(idle));
        }
        _ => {}
    }
}

/// Time per byte of a dripped answer: some 200 bytes take 10 s.
const DRIP_PER_BYTE: Duration = Duration::from_millis(50);
/// Time before an idle connection is closed: enough for the answer to be out.
const IDLE_BEFORE_CLOSE: Duration = Duration::from_millis(50);
/// Bytes of a request's body that are kept; the rest is read and dropped (CLS document 614/16873).
const SENT_BYTES_MAX: usize = 8 << 20;
/// Bytes that are read at most, so that a client sees the answer and not a broken pipe.
const READ_BYTES_MAX: usize = 64 << 20;

/// Reads a whole body; `None` if it is longer than [`SENT_BYTES_MAX`].
async fn read_body(mut incoming: Incoming) -> io::Result<Option<Bytes>> {
    let mut first = Bytes::new();
    let mut rest = Vec::new();
    let mut read_bytes = 0;
    while let Some(frame) = incoming.frame().await {
        let Ok(data) = frame.map_err(io::Error::other)?.into_data() else {
            continue;
        };
        read_bytes += data.len();
        match read_bytes {
            _ if read_bytes > READ_BYTES_MAX => return Err(io::Error::other("endless body")),
            _ if read_bytes > SENT_BYTES_MAX => {}
            _ if first.is_empty() => first = data,
            _ => rest.extend_from_slice(&data),
        }
    }
    let body = if rest.is_empty() {
        first
    } else {
        [&first[..], &rest].concat().into()
    };
    Ok((read_bytes <= SENT_BYTES_MAX).then_some(body))
}

fn signed_parts(head: &http::request::Parts) -> SignedParts {
    let headers = head.headers.iter();
    SignedParts {
        method: head.method.as_str().to_owned(),
        path: head.uri.path().to_owned(),
        params: query_of(head.uri.query()),
        headers: headers
            .map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()))
            .collect(),
    }
}

fn query_of(query: Option<&str>) -> Vec<(String, String)> {
    form_urlencoded::parse(query.unwrap_or_default().as_bytes())
        .into_owned()
        .collect()
}

fn skewed(now: Duration, skew_s: i64) -> Duration {
    let skew = Duration::from_secs(skew_s.unsigned_abs());
    if skew_s < 0 {
        now.saturating_sub(skew)
    } else {
        now + skew
    }
}

// --- what is not the service's: records, faults, keys ---

/// A query parameter that can't be used.
fn bad_param(message: impl ToString) -> Refusal {
    Refusal::new(400, "InvalidParam", message)
}

fn admin(state: &State, request: &Request<Incoming>) -> Result<Answer, Refusal> {
    let params = Params(query_of(request.uri().query()));
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/records") => {
            let since = params.number("since")?.unwrap_or(0);
            let uploads = state.store.lock().uploads(params.get("topic_id"), since);
            Ok(record_lines(uploads, since))
        }
        (&Method::DELETE, "/records") => {
            state.store.lock().clear();
            Ok(json(&()))
        }
        (&Method::GET, "/stats") => Ok(json(&state.stats())),
        (&Method::GET, "/violations") => Ok(json(&state.store.lock().violations())),
        (&Method::GET, "/fault") => Ok(json(&faults_of(state))),
        (&Method::POST, "/fault") => {
            let fault = parse_fault(&params)?;
            state.faults.lock().add(fault);
            Ok(json(&faults_of(state)))
        }
        (&Method::DELETE, "/fault") => {
            state.faults.lock().end(|_| true);
            Ok(json(&()))
        }
        (&Method::POST, "/keys") => {
            state.replace_keys(parse_keys(&params)?);
            Ok(json(&()))
        }
        (_, path) => Err(Refusal::new(
            404,
            "NotSupported",
            format!("{path} does not exist"),
        )),
    }
}

fn parse_fault(params: &Params) -> Result<Fault, Refusal> {
    let kind = params.get("kind").ok_or(bad_param("kind is required"))?;
    let mut fault = Fault::new(kind.parse().map_err(bad_param)?);
    fault.topic_id = params.get("topic_id").map(str::to_owned);
    fault.count = params.number("count")?;
    let seconds: Option<u64> = params.number("seconds")?;
    fault.until = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    fault.delay = params.number("ms")?.map(Duration::from_millis);
    fault.skew_s = params.number("skew_s")?.unwrap_or(0);
    Ok(fault)
}

/// Reads keys from repeated `secret_id`, `secret_key`, `token`: the n-th belong together.
fn parse_keys(params: &Params) -> Result<Vec<Key>, Refusal> {
    let (ids, secrets) = (params.all("secret_id"), params.all("secret_key"));
    if ids.is_empty() || ids.len() != secrets.len() {
        return Err(bad_param(
            "secret_id and secret_key are required, as often as each other",
        ));
    }
    let tokens = params.all("token");
    let pairs = ids.iter().zip(secrets).enumerate();
    let key = |(index, (id, secret)): (usize, (&&str, &str))| Key {
        token: tokens
            .get(index)
            .filter(|token| !token.is_empty())
            .map(|token| (*token).to_owned()),
        ..Key::permanent(id, secret)
    };
    Ok(pairs.map(key).collect())
}

fn faults_of(state: &State) -> Vec<String> {
    let describe = |fault: &Fault| format!("{fault:?}");
    state.faults.lock().active().iter().map(describe).collect()
}

/// The parameters of a query.
struct Params(Vec<(String, String)>);

impl Params {
    fn all(&self, name: &str) -> Vec<&str> {
        let named = self.0.iter().filter(|(key, _)| key == name);
        named.map(|(_, value)| value.as_str()).collect()
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.all(name).first().copied()
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Refusal> {
        let parse = |value: &str| {
            value
                .parse()
                .map_err(|_| bad_param(format!("{name} is a number")))
        };
        self.get(name).map(parse).transpose()
    }
}

/// A record as `GET /records` shows it.
#[derive(Serialize)]
struct RecordLine<'a> {
    seq: u64,
    time: i64,
    fields: Vec<(&'a str, &'a str)>,
    tags: &'a [(&'a str, &'a str)],
    #[serde(rename = "contextFlow")]
    context_flow: Option<&'a str>,
    source: Option<&'a str>,
    filename: Option<&'a str>,
    hostname: Option<&'a str>,
    topic_id: &'a str,
    secret_id: Option<&'a str>,
    request_id: &'a str,
}

fn record_lines(uploads: Vec<Arc<Upload>>, since: u64) -> Answer {
    // One frame per upload, made when the client is ready for it.
    let frames = uploads.into_iter().map(move |upload| {
        let mut lines = Vec::new();
        upload.visit(|record| {
            if record.number >= since {
                write_line(&upload, record, &mut lines);
            }
        });
        Ok(Frame::data(Bytes::from(lines)))
    });
    let mut answer = Response::new(StreamBody::new(stream::iter(frames)).boxed());
    set_header(&mut answer, "content-type", "application/x-ndjson");
    answer
}

fn write_line(upload: &Upload, record: &Record<'_>, lines: &mut Vec<u8>) {
    let line = RecordLine {
        seq: record.number,
        time: record.log.time,
        fields: record.fields().collect(),
        tags: &record.group.tags,
        context_flow: record.group.context_flow,
        source: record.group.source.or(upload.peer_source.as_deref()),
        filename: record.group.filename,
        hostname: record.group.hostname,
        topic_id: &upload.topic_id,
        secret_id: upload.secret_id.as_deref(),
        request_id: &upload.request_id,
    };
    serde_json::to_writer(&mut *lines, &line).expect("a Vec takes all, and keys are strings");
    lines.push(b'\n');
}

// --- answers ---

fn full(body: impl Into<Bytes>) -> BoxBody<Bytes, Infallible> {
    Full::new(body.into()).boxed()
}

fn json<T: Serialize>(value: &T) -> Answer {
    let body = serde_json::to_vec(value).expect("keys are strings");
    let mut answer = Response::new(full(body));
    set_header(&mut answer, "content-type", "application/json");
    answer
}

#[derive(Serialize)]
struct ErrorBody<'a> {
    errorcode: &'a str,
    errormessage: &'a str,
}

fn refusal(refused: &Refusal) -> Answer {
    let mut answer = json(&ErrorBody {
        errorcode: refused.code,
        errormessage: &refused.message,
    });
    *answer.status_mut() = status(refused.status);
    answer.extensions_mut().insert(refused.code);
    answer
}

fn html_error() -> Answer {
    let page = "<html><body><h1>500 Internal Server Error</h1></body></html>";
    let mut answer = Response::new(full(page));
    *answer.status_mut() = status(500);
    set_header(&mut answer, "content-type", "text/html");
    answer
}

fn status(code: u16) -> http::StatusCode {
    http::StatusCode::from_u16(code).expect("all codes here are between 100 and 999")
}

fn set_header(answer: &mut Answer, name: &'static str, value: &str) {
    let value = http::HeaderValue::from_str(value).expect("all values here are ASCII");
    answer.headers_mut().insert(name, value);
}

fn stamp(answer: &mut Answer, request_id: &str, now: Duration) {
    set_header(answer, "x-cls-requestid", request_id);
    set_header(answer, "date", &httpdate::fmt_http_date(UNIX_EPOCH + now));
}

fn count_answer(state: &State, answer: &Answer) {
    let status = answer.status().as_u16();
    let name = match answer.extensions().get::<&'static str>() {
        Some(code) => format!("{status} {code}"),
        None => status.to_string(),
    };
    *state.stats.lock().answers.entry(name).or_default() += 1;
}

/// Returns a random UUID, version 4.
fn new_request_id() -> String {
    let mut bytes = [0_u8; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .expect("16 bytes never fall short once the kernel has booted");
    let random = u128::from_be_bytes(bytes);
    let version = random & !(0xf << 76) | 4 << 76;
    let variant = version & !(0x3 << 62) | 2 << 62;
    let mut hex = format!("{variant:032x}");
    for at in [20, 16, 12, 8] {
        hex.insert(at, '-');
    }
    hex
}
