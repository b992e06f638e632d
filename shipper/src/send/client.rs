//! One upload request: build, sign, send, read the answer.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use proto::text;
use reqwest::header::{CONTENT_TYPE, DATE, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER, SERVER};
use serde::Deserialize;

use crate::base::chain::Chain;
use crate::cls::compress::Compression;
use crate::cls::credentials::Credentials;
use crate::cls::disposition::{Answer, ErrorCode, Outcome, Stranger};
use crate::cls::request::{UPLOAD_PATH, Upload};
use crate::cls::sign::{self, SignedParts, Window};
use crate::config::road::Road;
use crate::send::road::{OpenRoad, RoadError};
use crate::send::skew::Skews;

const CONTENT_TYPE_PROTOBUF: &str = "application/x-protobuf";

/// Bytes of an error body that are read; the rest can't matter and the peer is not trusted.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Bytes of each text of an answer that are kept.
const MESSAGE_BYTES_MAX: usize = 500;

/// Bytes of a code or an id of an answer that are kept: CLS's have less.
const NAME_BYTES_MAX: usize = 64;

/// A connection pool to all endpoints, on one road.
#[derive(Debug, Clone)]
pub struct Client {
    road: Arc<OpenRoad>,
    skews: Arc<Skews>,
}

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

impl Default for Client {
    fn default() -> Self {
        Self::new(Road::default())
    }
}

impl Client {
    /// Makes a client whose requests take a road: whom it trusts besides Mozilla's authorities, which
    /// are compiled in, and its proxy. Files are read at the first request.
    pub fn new(road: Road) -> Self {
        Self {
            road: Arc::new(OpenRoad::new(road)),
            skews: Arc::default(),
        }
    }

    /// Returns a client that trusts the same authorities and uses no proxy, for what is near.
    #[must_use]
    pub fn without_proxy(&self) -> Self {
        Self::new(Road {
            https_proxy: None,
            http_proxy: None,
            ..self.road.road().clone()
        })
    }

    /// Returns the HTTP client itself, for requests that are not uploads.
    ///
    /// # Errors
    /// A file of the road can't be used, and none was before.
    pub fn http(&self) -> Result<reqwest::Client, RoadError> {
        self.road.http()
    }

    /// Returns what went wrong with a request, in words that name a proxy's fault as one.
    pub fn cause(&self, error: reqwest::Error) -> String {
        self.road.cause(error)
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
        let signing_s = self.skews.signing_time(&target.endpoint, now_s);
        let authorization = sign::authorization(credentials, &parts, Window::around(signing_s));
        let Ok(headers) = headers(&authorization, credentials, body.compression) else {
            return Outcome::Unsendable(
                "the key pair holds characters that no HTTP header can carry".into(),
            );
        };
        let http = match self.http() {
            Ok(http) => http,
            Err(error) => return Outcome::Unsendable(Chain(&error).to_string()),
        };
        let request = http
            .post(target.url())
            .headers(headers)
            .timeout(timeout)
            .body(body.bytes.clone());
        match request.send().await {
            Ok(response) => {
                let answer = read_answer(response, credentials).await;
                self.skews.learn(&target.endpoint, &answer, now_s);
                Outcome::Answer(answer)
            }
            // Without a connection nothing was sent.
            Err(error) if error.is_timeout() && !error.is_connect() => Outcome::Timeout,
            Err(error) => Outcome::Transport(one_line(&self.cause(error))),
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
    let header = |name: &str| {
        let value = response.headers().get(name);
        let text = value.and_then(|value| value.to_str().ok());
        credentials.redact(text.unwrap_or_default())
    };
    let mut answer = Answer {
        status: response.status().as_u16(),
        request_id: cut(one_line(&header("x-cls-requestid")), NAME_BYTES_MAX),
        retry_after: header(RETRY_AFTER.as_str())
            .parse()
            .ok()
            .map(Duration::from_secs),
        date_s: unix_s(&header(DATE.as_str())),
        ..Answer::default()
    };
    let mut stranger = Stranger {
        server: one_line(&header(SERVER.as_str())),
        location: one_line(&header(LOCATION.as_str())),
        body: String::new(),
    };
    let body = match beginning(&mut response, ANSWER_BYTES_MAX).await {
        Ok(body) | Err((body, _)) => body,
    };
    let error = ErrorBody::parse(&body);
    // By the code as it is: in one without a part of a key, a short key may have been.
    answer.error = ErrorCode::of(&error.code);
    // Before texts are cut: a part of a key is no match.
    answer.code = cut(one_line(&credentials.redact(&error.code)), NAME_BYTES_MAX);
    answer.message = one_line(&credentials.redact(&error.message));
    if answer.request_id.is_empty() || error.is_of_api_3 {
        stranger.body = one_line(&credentials.redact(&String::from_utf8_lossy(&body)));
        answer.stranger = Some(stranger);
    }
    answer
}

/// Reads the beginning of an answer's body: so many bytes, and what came together with the last of them.
///
/// # Errors
/// The answer breaks off: what there is of it, and why.
pub async fn beginning(
    response: &mut reqwest::Response,
    bytes_max: usize,
) -> Result<Vec<u8>, (Vec<u8>, reqwest::Error)> {
    let mut body = Vec::new();
    while body.len() < bytes_max {
        match response.chunk().await {
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => break,
            Err(error) => return Err((body, error)),
        }
    }
    Ok(body)
}

/// What the body of an answer says of an error.
#[derive(Default)]
struct ErrorBody {
    code: String,
    message: String,
    /// Its shape is that of API 3.0, which takes no logs.
    is_of_api_3: bool,
}

impl ErrorBody {
    fn parse(body: &[u8]) -> Self {
        #[derive(Deserialize, Default)]
        #[serde(default)]
        struct Known {
            errorcode: String,
            errormessage: String,
            #[serde(rename = "Response")]
            response: Option<serde::de::IgnoredAny>,
        }
        let known: Known = serde_json::from_slice(body).unwrap_or_default();
        Self {
            code: known.errorcode,
            message: known.errormessage,
            is_of_api_3: known.response.is_some(),
        }
    }
}

/// Makes text of a server fit for a log: its beginning, in one line, without control characters.
fn one_line(said: &str) -> String {
    let words = said.split(|char: char| text::is_obeyed(char) || char.is_whitespace());
    let mut line = String::new();
    for word in words.filter(|word| !word.is_empty()) {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
        if line.len() > MESSAGE_BYTES_MAX {
            break;
        }
    }
    cut(line, MESSAGE_BYTES_MAX)
}

fn cut(mut text: String, bytes_max: usize) -> String {
    text.truncate(text.floor_char_boundary(bytes_max));
    text
}

/// Reads a time as HTTP writes it.
fn unix_s(date: &str) -> Option<u64> {
    let date = httpdate::parse_http_date(date).ok()?;
    let since = date.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(since.as_secs())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use crate::base::secret::Secret;
    use crate::cls::disposition::{Disposition, disposition};
    use crate::cls::request::{Body, Target};

    use super::*;

    /// Uploads once to a server that answers with `answer`, whatever it is sent.
    async fn upload_to(answer: String, key: [&str; 2]) -> Outcome {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream
        };
        let target = Target {
            endpoint: endpoint.parse().unwrap(),
            topic_id: "t".into(),
        };
        let [id, key] = key.map(|text| Secret::new(text.to_owned()));
        let credentials = Credentials {
            id,
            key,
            token: None,
        };
        let body = Body {
            bytes: Vec::new().into(),
            compression: Compression::None,
        };
        let client = Client::default();
        let upload = client.send(Upload {
            target: &target,
            credentials: &credentials,
            body: &body,
            timeout: Duration::from_secs(10),
            now_s: 1_700_000_000,
        });
        let serve = async {
            let _open = serve.await;
            std::future::pending::<Outcome>().await
        };
        // What is not sent ends before the server has anything to do.
        tokio::select! {
            outcome = serve => outcome,
            outcome = upload => outcome,
        }
    }

    /// Whoever answers may be anybody: what they say is a word or a line, and steers no terminal.
    #[tokio::test]
    async fn texts_of_an_answer_are_short_lines() {
        let hostile = "a\\n2026-11-30 INFO b\\u001b[2K\\u009b\\u007f\\u202ec";
        let long = "x".repeat(60_000);
        let body = format!(r#"{{"errorcode":"{hostile}{long}","errormessage":"{hostile}"}}"#);
        let head = format!("400 Bad\r\nX-Cls-RequestId: {}", "r".repeat(1_000));
        let outcome = upload_to(answer(&head, &body), ["id", "key"]).await;
        let Outcome::Answer(answer) = outcome else {
            panic!("{outcome:?}");
        };
        for (said, bytes_max) in [
            (&answer.code, NAME_BYTES_MAX),
            (&answer.request_id, NAME_BYTES_MAX),
            (&answer.message, MESSAGE_BYTES_MAX),
        ] {
            assert!(said.len() <= bytes_max, "{} bytes", said.len());
            assert!(!said.contains(text::is_obeyed), "{said:?}");
        }
        assert_eq!(answer.message, "a 2026-11-30 INFO b [2K c");
    }

    fn answer(head: &str, body: &str) -> String {
        format!(
            "HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    #[tokio::test]
    async fn only_what_can_be_an_answer_of_cls_counts_as_one() {
        let api_3 = r#"{"Response":{"Error":{"Code":"InvalidParameterValue","Message":"no"},"RequestId":"0"}}"#;
        let page = "<html>\r\n\t<title>Sign\u{1b}[31m in</title></html>";
        let refused = r#"{"errorcode":"InvalidContent","errormessage":"m"}"#;
        let not_cls = "this is not CLS's upload address";
        for (answer, expected, shown) in [
            (
                answer("200 OK\r\nx-cls-requestid: r", ""),
                Disposition::Delivered,
                None,
            ),
            (
                answer("200 OK", ""),
                Disposition::Hold,
                Some(not_cls.to_owned()),
            ),
            (
                answer("204 No Content\r\nServer: portal", ""),
                Disposition::Hold,
                Some(format!("{not_cls}, Server: portal")),
            ),
            (
                answer("200 OK\r\nServer: nginx", page),
                Disposition::Hold,
                Some(format!(
                    "{not_cls}, Server: nginx, its answer begins: <html> <title>Sign [31m in</title></html>"
                )),
            ),
            (
                answer("200 OK", api_3),
                Disposition::Hold,
                Some(format!("{not_cls}, its answer begins: {api_3}")),
            ),
            (
                answer("200 OK\r\nx-cls-requestid: r", api_3),
                Disposition::Hold,
                Some(format!("{not_cls}, its answer begins: {api_3}")),
            ),
            (
                answer("200 OK\r\nx-cls-requestid: r", refused),
                Disposition::Hold,
                None,
            ),
            (
                answer("302 Found\r\nLocation: https://sign.in/?a", ""),
                Disposition::Hold,
                Some(format!("{not_cls}, Location: https://sign.in/?a")),
            ),
            (
                answer("400 Bad\r\nx-cls-requestid: r", refused),
                Disposition::Bisect,
                None,
            ),
        ] {
            let head = answer.lines().next().unwrap().to_owned();
            let outcome = upload_to(answer, ["AKIDEXAMPLE", "SKEXAMPLE"]).await;
            assert_eq!(disposition(&outcome), expected, "{head}: {outcome:?}");
            let Outcome::Answer(answer) = outcome else {
                panic!("{head}: {outcome:?}")
            };
            assert_eq!(answer.stranger.map(|it| it.to_string()), shown, "{head}");
        }
    }

    /// What is decided does not depend on what is taken out of a text before it is shown.
    #[tokio::test]
    async fn a_short_key_hides_no_error_code() {
        let refused = r#"{"errorcode":"InvalidContent","errormessage":"of i"}"#;
        let refused = answer("400 Bad\r\nx-cls-requestid: r", refused);
        let outcome = upload_to(refused, ["i", "key"]).await;
        assert_eq!(disposition(&outcome), Disposition::Bisect, "{outcome:?}");
        let Outcome::Answer(answer) = outcome else {
            panic!("{outcome:?}")
        };
        assert_eq!(answer.message, "of [redacted]");
        assert!(!answer.code.contains("Invalid"), "{}", answer.code);
    }

    #[tokio::test]
    async fn a_key_that_no_header_can_carry_is_not_sent() {
        let outcome = upload_to(answer("200 OK", ""), ["i\nd", "key"]).await;
        assert_eq!(disposition(&outcome), Disposition::Hold, "{outcome:?}");
        assert!(matches!(outcome, Outcome::Unsendable(_)), "{outcome:?}");
    }
}
