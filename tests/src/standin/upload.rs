//! `POST /structuredlog`: the checks of an upload, in order, and what becomes of it.
//!
//! The service does not document the order of its checks; here it is: authorization, content type,
//! topic, body, content, quota. Every refusal has the status and `errorcode` of CLS document
//! 614/12402; where it names none (bounds on counts, keys and times), `InvalidContent`.

use crate::standin::auth::{AuthError, Authorization, SignedParts};
use crate::standin::body::{self, BodyError, Compression};
use crate::standin::config::{Topic, TopicState};
use crate::standin::log_list::{self, ListError, Summary};
use crate::standin::state::State;
use crate::standin::store::{Accepted, Upload};
use bytes::Bytes;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// A request that was not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) code: &'static str,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn new(status: u16, code: &'static str, message: impl ToString) -> Self {
        Self {
            status,
            code,
            message: message.to_string(),
        }
    }

    /// Returns the documented refusal of a status, for faults.
    pub(super) fn of_status(status: u16) -> Self {
        let code = match status {
            401 => "AuthFailure.SecretIdNotFound",
            403 => "AccountArrears",
            404 => "TopicNotExist",
            413 => "LogSizeExceed",
            429 => "SpeedQuotaExceed",
            _ => "InternalError",
        };
        Self::new(status, code, "this fault was asked for")
    }
}

/// An upload as received.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) parts: SignedParts,
    /// The body; `None` if it is too long to be read.
    pub(super) body: Option<Bytes>,
    pub(super) peer: IpAddr,
    pub(super) request_id: String,
    /// The server's clock, which a fault may have put wrong.
    pub(super) now: Duration,
    /// Whether a fault wants half of the logs stored, and 429.
    pub(super) is_partial: bool,
}

/// Checks an upload and stores it.
pub(super) fn handle(state: &State, request: &Request) -> Result<Option<Arc<Upload>>, Refusal> {
    let topic_id = request.parts.param("topic_id");
    let topic_id = topic_id.map(|topic_id| String::from_utf8_lossy(topic_id).into_owned());
    let topic = state
        .config
        .topics
        .iter()
        .find(|topic| Some(&topic.topic_id) == topic_id.as_ref());
    let secret_id = authorize(state, request, topic)?;
    check_content_type(&request.parts)?;
    let topic = open_topic(topic, topic_id.as_deref())?;

    let body = request.body.as_ref().ok_or_else(too_long)?;
    let compression = compression_of(request, body)?;
    let mut scratch = state.scratches.lock().pop().unwrap_or_default();
    let stored = body::decompress(compression, body, &mut scratch)
        .map_err(refuse_body)
        .and_then(|plain| {
            let summary = log_list::check(plain, &state.config.rules).map_err(refuse_list)?;
            store(state, request, topic, secret_id, plain, &summary)
        });
    state.scratches.lock().push(scratch);
    stored
}

/// Returns the id of the key that signed, if one did.
fn authorize(
    state: &State,
    request: &Request,
    topic: Option<&Topic>,
) -> Result<Option<String>, Refusal> {
    let parts = &request.parts;
    let Some(header) = parts.header("authorization") else {
        return authorize_unsigned(parts, topic).map(|()| None);
    };
    let header = String::from_utf8_lossy(header);
    let authorization = Authorization::parse(&header).map_err(refuse_auth)?;
    let covers_nothing =
        authorization.header_names.is_empty() && authorization.param_names.is_empty();
    if covers_nothing && !state.config.allows_empty_signed_lists {
        let message = "the signature covers no header and no parameter";
        return Err(Refusal::new(400, "InvalidAuthorization", message));
    }
    let keys = state.keys.lock();
    let key = authorization
        .verify(parts, &keys, request.now.as_secs())
        .map_err(refuse_auth)?;
    match topic {
        Some(topic) if key.denied_topics.contains(&topic.topic_id) => {
            let message = format!("secret id {} may not write to the topic", key.secret_id);
            Err(Refusal::new(
                401,
                "AuthFailure.UnauthorizedOperation",
                message,
            ))
        }
        _ => Ok(Some(key.secret_id.clone())),
    }
}

/// Lets a request without `Authorization` in if its topic takes such: anonymously, or in weak mode
/// (`x-cls-auth-mode: weak` and the account's `X-CLS-Uin`).
fn authorize_unsigned(parts: &SignedParts, topic: Option<&Topic>) -> Result<(), Refusal> {
    if parts.header("x-cls-auth-mode") != Some(b"weak") {
        return match topic {
            Some(topic) if topic.is_anonymous => Ok(()),
            _ => Err(Refusal::new(
                400,
                "MissingAuthorization",
                "authorization is required",
            )),
        };
    }
    let uin = parts.header("x-cls-uin").unwrap_or_default();
    if uin.is_empty() || !uin.iter().all(u8::is_ascii_digit) {
        return Err(Refusal::new(400, "InvalidParam", "x-cls-uin is a number"));
    }
    let allowed = topic.and_then(|topic| topic.weak_uin.as_ref());
    if allowed.is_some_and(|allowed| allowed.as_bytes() == uin) {
        return Ok(());
    }
    let message = "the topic takes no uploads of this account in weak mode";
    Err(Refusal::new(
        401,
        "AuthFailure.UnauthorizedOperation",
        message,
    ))
}

fn check_content_type(parts: &SignedParts) -> Result<(), Refusal> {
    match parts.header("content-type") {
        Some(b"application/x-protobuf") => Ok(()),
        Some(_) => Err(Refusal::new(
            400,
            "InvalidContentType",
            "content-type is application/x-protobuf",
        )),
        None => Err(Refusal::new(
            400,
            "MissingContentType",
            "content-type is required",
        )),
    }
}

fn open_topic<'t>(topic: Option<&'t Topic>, topic_id: Option<&str>) -> Result<&'t Topic, Refusal> {
    let Some(topic_id) = topic_id else {
        return Err(Refusal::new(400, "InvalidParam", "topic_id is required"));
    };
    let Some(topic) = topic else {
        let message = format!("topic {topic_id} does not exist");
        return Err(Refusal::new(404, "TopicNotExist", message));
    };
    match topic.state {
        TopicState::Open => Ok(topic),
        TopicState::Closed => Err(Refusal::new(400, "TopicClosed", "the topic is closed")),
        TopicState::Arrears => Err(Refusal::new(
            403,
            "AccountArrears",
            "the account is in arrears",
        )),
    }
}

fn compression_of(request: &Request, body: &Bytes) -> Result<Compression, Refusal> {
    if body.is_empty() {
        return Err(Refusal::new(400, "MissingContent", "the body is empty"));
    }
    if request.parts.header("content-length").is_none() {
        // Every official client sends it and none sends chunks; whether chunks work is unknown.
        return Err(Refusal::new(
            400,
            "InvalidParam",
            "content-length is required",
        ));
    }
    let header = request.parts.header("x-cls-compress-type");
    Compression::from_header(header).ok_or_else(|| {
        let message = "x-cls-compress-type is lz4, zstd, deflate or absent";
        Refusal::new(400, "InvalidCompressType", message)
    })
}

fn store(
    state: &State,
    request: &Request,
    topic: &Topic,
    secret_id: Option<String>,
    plain: &[u8],
    summary: &Summary,
) -> Result<Option<Arc<Upload>>, Refusal> {
    let is_in_quota = take_quota(state, request, topic)?;
    let is_partial = request.is_partial || !is_in_quota && state.config.stores_part_over_quota;
    if !is_in_quota && !is_partial {
        return Err(over_quota());
    }
    let record_count = if is_partial {
        summary.log_count / 2
    } else {
        summary.log_count
    };
    let add_source = request.parts.header("x-cls-add-source") == Some(b"1");
    let upload = state.store.lock().add(&Accepted {
        request_id: &request.request_id,
        topic_id: &topic.topic_id,
        secret_id,
        peer_source: add_source.then(|| request.peer.to_string()),
        groups: &summary.groups,
        record_count,
        accepted_at: request.now,
        body: plain,
        discards: state.config.discards,
        is_watched: state.watcher.is_some(),
    });
    state.stats.lock().plain_bytes += plain.len() as u64;
    if is_partial {
        Err(over_quota())
    } else {
        Ok(upload)
    }
}

fn take_quota(state: &State, request: &Request, topic: &Topic) -> Result<bool, Refusal> {
    if !state.config.has_quota {
        return Ok(true);
    }
    let mut quota = state.quota.lock();
    let partition = quota.partition(request.parts.header("x-cls-hashkey"));
    let partition = partition.ok_or_else(|| {
        Refusal::new(
            400,
            "InvalidParam",
            "x-cls-hashkey is 32 hexadecimal digits",
        )
    })?;
    let bytes = request.body.as_ref().map_or(0, Bytes::len);
    Ok(quota.take(&topic.topic_id, partition, bytes, request.now))
}

fn too_long() -> Refusal {
    Refusal::new(403, "LogSizeExceed", BodyError::TooLong)
}

fn over_quota() -> Refusal {
    Refusal::new(429, "SpeedQuotaExceed", "the partition's quota is used up")
}

fn refuse_auth(error: AuthError) -> Refusal {
    let (status, code) = match &error {
        AuthError::Malformed { .. } => (400, "InvalidAuthorization"),
        AuthError::UnknownSecretId { .. } => (401, "AuthFailure.SecretIdNotFound"),
        AuthError::Expired { .. } => (401, "AuthFailure.SignatureExpire"),
        AuthError::Mismatch { .. } => (401, "AuthFailure.SignatureFailure"),
        AuthError::BadToken { .. } => (401, "AuthFailure.TokenFailure"),
    };
    Refusal::new(status, code, error)
}

fn refuse_body(error: BodyError) -> Refusal {
    match error {
        BodyError::TooLong => too_long(),
        BodyError::Invalid { .. } => Refusal::new(400, "InvalidContent", error),
    }
}

fn refuse_list(error: ListError) -> Refusal {
    match error {
        ListError::TooLong { .. } => Refusal::new(403, "LogSizeExceed", error),
        other => Refusal::new(400, "InvalidContent", other),
    }
}
