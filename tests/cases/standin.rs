//! The stand-in against `server_cases` of the vectors, and each of its faults as a client sees it.
//!
//! Most requests carry V1's `Authorization`, which covers content type, host and topic id, so the
//! server's clock is frozen inside V1's window and everything else may vary.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use serde_json::Value;
use std::time::Duration;
use world::client;
use world::standin::Standin;
use world::standin::config::{Clock, Config, Key, Topic, TopicState};
use world::standin::fault::{Fault, FaultKind};

const NOW_S: u64 = 1_700_000_000;
const TOPIC: &str = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";
const OTHER_TOPIC: &str = "11111111-2222-3333-4444-555555555555";

fn vectors() -> Value {
    serde_json::from_str(include_str!("../vectors/cls-vectors.json")).unwrap()
}

/// Returns the stand-in that V1 is for.
fn config() -> Config {
    let vector = &vectors()["signature_vectors"][0];
    let text = |name: &str| vector[name].as_str().unwrap().to_owned();
    Config::new(
        Key::permanent(&text("secret_id"), &text("secret_key")),
        TOPIC,
    )
}

async fn start_at(now_s: u64, config: Config) -> Standin {
    let address = "127.0.0.1:0".parse().unwrap();
    Standin::start(address, config, Clock::frozen(now_s), None)
        .await
        .unwrap()
}

async fn start() -> Standin {
    start_at(NOW_S, config()).await
}

/// An upload, V1 unless changed.
#[derive(Clone)]
struct Upload {
    method: &'static str,
    path: String,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Upload {
    fn v1() -> Self {
        let vectors = vectors();
        let result = &vectors["signature_vectors"][0]["results"][0];
        let body = vectors["body_vectors"][0]["protobuf_hex"].as_str().unwrap();
        Self {
            method: "POST",
            path: format!("/structuredlog?topic_id={TOPIC}"),
            headers: vec![
                ("host", "ap-guangzhou.cls.tencentcs.com".into()),
                ("content-type", "application/x-protobuf".into()),
                (
                    "authorization",
                    result["authorization"].as_str().unwrap().into(),
                ),
            ],
            body: hex::decode(body).unwrap(),
        }
    }

    fn at(mut self, path: &str) -> Self {
        self.path = path.into();
        self
    }

    /// Sets a header; an empty value removes it.
    fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.retain(|(known, _)| *known != name);
        if !value.is_empty() {
            self.headers.push((name, value.into()));
        }
        self
    }

    /// Replaces a part of the Authorization.
    fn signed(self, from: &str, to: &str) -> Self {
        let (_, value) = self
            .headers
            .iter()
            .find(|(name, _)| *name == "authorization")
            .unwrap();
        let changed = value.replace(from, to);
        assert_ne!(*value, changed, "{from} must be part of V1");
        self.header("authorization", &changed)
    }

    fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    async fn try_send(&self, standin: &Standin) -> anyhow::Result<Response<Bytes>> {
        let mut request = Request::builder().method(self.method).uri(&self.path);
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let body = Full::new(self.body.clone().into());
        client::send(standin.address(), request.body(body)?).await
    }

    /// Sends the upload and returns status and error code; checks what every answer must have.
    async fn send(&self, standin: &Standin) -> String {
        let answer = self.try_send(standin).await.unwrap();
        let request_id = answer.headers()["x-cls-requestid"].to_str().unwrap();
        assert_eq!(request_id.len(), 36, "{request_id} is a UUID");
        let status = answer.status().as_u16();
        if status == 200 {
            assert_eq!(answer.body().len(), 0);
            return "200".into();
        }
        let body: Value = serde_json::from_slice(answer.body()).unwrap();
        assert!(!body["errormessage"].as_str().unwrap().is_empty());
        format!("{status} {}", body["errorcode"].as_str().unwrap())
    }
}

const SIGNATURE: &str = "q-signature=b4c923c6ccb50cdd9886d54d0878b203be15804c";

/// A server's clock, a request, and its answer.
type Exchange = (u64, Upload, &'static str);

fn lz4(body: &[u8]) -> Upload {
    Upload::v1().header("x-cls-compress-type", "lz4").body(body)
}

fn now(upload: Upload, answer: &'static str) -> Vec<Exchange> {
    vec![(NOW_S, upload, answer)]
}

/// The requests of a server case that is about the signature, with the one answer we take of those
/// that the case allows.
fn signature_case(case: &str) -> Option<Vec<Exchange>> {
    let v1 = Upload::v1;
    Some(match case {
        "valid V1 at now in [1699999940,1700000300]" => [1_699_999_940, NOW_S, 1_700_000_300]
            .map(|now_s| (now_s, v1(), "200"))
            .to_vec(),
        "V1, server clock 1700000301" => {
            vec![(1_700_000_301, v1(), "401 AuthFailure.SignatureExpire")]
        }
        "V1, server clock 1699999939 (before start; 1 s early)" => {
            vec![(1_699_999_939, v1(), "401 AuthFailure.SignatureExpire")]
        }
        "V1 with q-ak unknown" => now(
            v1().signed("AKIDEXAMPLE0", "AKIDEXAMPLE1"),
            "401 AuthFailure.SecretIdNotFound",
        ),
        "V1 with last signature digit flipped" => {
            let flipped = SIGNATURE.replace("804c", "804d");
            now(
                v1().signed(SIGNATURE, &flipped),
                "401 AuthFailure.SignatureFailure",
            )
        }
        "V1 sent to /structuredLog" => now(
            v1().at(&format!("/structuredLog?topic_id={TOPIC}")),
            "404 NotSupported",
        ),
        "V1 with another topic_id in the query" => now(
            v1().at(&format!("/structuredlog?topic_id={OTHER_TOPIC}")),
            "401 AuthFailure.SignatureFailure",
        ),
        "V1 with Content-Type changed to application/json" => now(
            v1().header("content-type", "application/json"),
            "401 AuthFailure.SignatureFailure",
        ),
        "V1 with a changed x-cls-compress-type or X-Cls-Token or body" => [
            lz4(&lz4_flex::block::compress(&v1().body)),
            v1().header("x-cls-token", "any"),
            v1().body(hex::decode(OTHER_BODY_HEX).unwrap()),
        ]
        .map(|upload| (NOW_S, upload, "200"))
        .to_vec(),
        "no Authorization" => now(v1().header("authorization", ""), "400 MissingAuthorization"),
        "Authorization lacking q-signature / unknown q-sign-algorithm / q-key-time != q-sign-time" => {
            [
                ("&q-signature=", "&x="),
                ("=sha1", "=md5"),
                ("q-key-time=1", "q-key-time=2"),
            ]
            .map(|(from, to)| (NOW_S, v1().signed(from, to), "400 InvalidAuthorization"))
            .to_vec()
        }
        "anonymous not enabled, weak mode or no Authorization" => {
            let weak = v1()
                .header("authorization", "")
                .header("x-cls-auth-mode", "weak");
            now(
                weak.header("x-cls-uin", "100"),
                "401 AuthFailure.UnauthorizedOperation",
            )
        }
        // It needs another configuration: see `a_temporary_key_needs_its_token`.
        "temporary key with bad/expired token" => Vec::new(),
        _ => return None,
    })
}

/// As [`signature_case`], for cases that are about what is uploaded.
fn content_case(case: &str) -> Option<Vec<Exchange>> {
    let v1 = Upload::v1;
    Some(match case {
        "empty body" => now(v1().body([]), "400 MissingContent"),
        // Signed with an empty header list, or the absent header would fail the signature first.
        "no Content-Type" => now(v5().header("content-type", ""), "400 MissingContentType"),
        "x-cls-compress-type: gzip" => now(
            v1().header("x-cls-compress-type", "gzip"),
            "400 InvalidCompressType",
        ),
        "x-cls-compress-type: lz4 with an LZ4 frame (04224d18) or a 4-byte size prefix" => {
            let block = lz4_flex::block::compress(&v1().body);
            let prefixed = [&39_u32.to_le_bytes(), &block[..]].concat();
            let framed = [b"\x04\x22\x4d\x18\x60\x40\x82", &block[..]].concat();
            [prefixed, framed]
                .map(|body| (NOW_S, lz4(&body), "400 InvalidContent"))
                .to_vec()
        }
        "x-cls-compress-type: deflate with a zlib header (78 9c)" => {
            let zlib = v1()
                .header("x-cls-compress-type", "deflate")
                .body(b"\x78\x9c\x03\x00".as_slice());
            now(zlib, "400 InvalidContent")
        }
        "no topic_id" => now(v5().at("/structuredlog"), "400 InvalidParam"),
        "unknown topic" => now(
            v5().at(&format!("/structuredlog?topic_id={OTHER_TOPIC}")),
            "404 TopicNotExist",
        ),
        "body over limit" => {
            let over = vec![0; (6 << 20) + 1];
            let packed = lz4_flex::block::compress(&over);
            let endless = vec![0; 12 << 20];
            [v1().body(over), lz4(&packed), v1().body(endless)]
                .map(|upload| (NOW_S, upload, "403 LogSizeExceed"))
                .to_vec()
        }
        // It needs many requests: see `over_500_requests_per_second_and_partition_is_429`.
        "over 500 requests/s or 5 MB/s per partition" => Vec::new(),
        _ => return None,
    })
}

/// B1 with another message.
const OTHER_BODY_HEX: &str =
    "0a250a1908fbd095ffbc3112100a076d65737361676512056a656c6c6f220831302e302e302e37";

/// V5: signed with empty lists, so that nothing is covered.
fn v5() -> Upload {
    let vectors = vectors();
    let authorization = &vectors["signature_vectors"][4]["results"][0]["authorization"];
    Upload::v1().header("authorization", authorization.as_str().unwrap())
}

#[tokio::test]
async fn every_server_case_is_answered_as_documented() {
    for case in vectors()["server_cases"].as_array().unwrap() {
        let name = case["case"].as_str().unwrap();
        let exchanges = signature_case(name).or_else(|| content_case(name));
        for (now_s, upload, expected) in
            exchanges.unwrap_or_else(|| panic!("{name} is not covered"))
        {
            let standin = start_at(now_s, config()).await;
            let got = upload.send(&standin).await;
            assert_eq!(got, expected, "{name}");
            let records = standin.stats().records;
            assert_eq!(
                records,
                u64::from(expected == "200"),
                "{name}: records stored"
            );
        }
    }
}

#[tokio::test]
async fn over_500_requests_per_second_and_partition_is_429() {
    let standin = start_at(
        NOW_S,
        Config {
            partitions: 1,
            ..config()
        },
    )
    .await;
    for _ in 0..500 {
        assert_eq!(Upload::v1().send(&standin).await, "200");
    }
    assert_eq!(Upload::v1().send(&standin).await, "429 SpeedQuotaExceed");
    assert_eq!(standin.stats().records, 500);
    let unlimited = start_at(
        NOW_S,
        Config {
            partitions: 1,
            has_quota: false,
            ..config()
        },
    )
    .await;
    for _ in 0..501 {
        assert_eq!(Upload::v1().send(&unlimited).await, "200");
    }
}

#[tokio::test]
async fn a_temporary_key_needs_its_token() {
    let mut config = config();
    config.keys[0].token = Some("right".into());
    let standin = start_at(NOW_S, config).await;
    let refused = "401 AuthFailure.TokenFailure";
    assert_eq!(Upload::v1().send(&standin).await, refused);
    assert_eq!(
        Upload::v1()
            .header("x-cls-token", "wrong")
            .send(&standin)
            .await,
        refused
    );
    assert_eq!(
        Upload::v1()
            .header("x-cls-token", "right")
            .send(&standin)
            .await,
        "200"
    );
}

#[tokio::test]
async fn topics_and_keys_have_states() {
    let with = |change: fn(&mut Config)| {
        let mut config = config();
        change(&mut config);
        config
    };
    let unsigned = || Upload::v1().header("authorization", "");
    let weak = |uin| {
        unsigned()
            .header("x-cls-auth-mode", "weak")
            .header("x-cls-uin", uin)
    };
    for (config, upload, expected) in [
        (
            with(|c| c.keys[0].denied_topics.push(TOPIC.into())),
            Upload::v1(),
            "401 AuthFailure.UnauthorizedOperation",
        ),
        (
            with(|c| c.topics[0].state = TopicState::Closed),
            Upload::v1(),
            "400 TopicClosed",
        ),
        (
            with(|c| c.topics[0].state = TopicState::Arrears),
            Upload::v1(),
            "403 AccountArrears",
        ),
        (with(|c| c.topics[0].is_anonymous = true), unsigned(), "200"),
        (
            with(|c| c.topics[0].weak_uin = Some("100".into())),
            weak("100"),
            "200",
        ),
        (
            with(|c| c.topics[0].weak_uin = Some("100".into())),
            weak("x"),
            "400 InvalidParam",
        ),
        (
            with(|c| c.allows_empty_signed_lists = false),
            v5(),
            "400 InvalidAuthorization",
        ),
        (
            with(|c| c.topics.push(Topic::open(OTHER_TOPIC))),
            v5(),
            "200",
        ),
    ] {
        let standin = start_at(NOW_S, config).await;
        assert_eq!(upload.send(&standin).await, expected);
    }
}

#[tokio::test]
async fn go_wire_captures_are_accepted_as_captured() {
    for capture in vectors()["go_wire_captures"].as_array().unwrap() {
        let text = |name: &str| capture[name].as_str().unwrap().to_owned();
        let key = Key::permanent(&text("secret_id"), &text("secret_key"));
        let standin = start_at(1_795_356_900, Config::new(key, TOPIC)).await;
        let line = text("request_line");
        let mut request = Request::builder()
            .method("POST")
            .uri(line.split(' ').nth(1).unwrap());
        for header in capture["headers"].as_array().unwrap() {
            request = request.header(header[0].as_str().unwrap(), header[1].as_str().unwrap());
        }
        let body = hex::decode(text("body_hex")).unwrap();
        let request = request.body(Full::new(body.into())).unwrap();
        let answer = client::send(standin.address(), request).await.unwrap();
        assert_eq!(
            answer.status(),
            200,
            "{}: {:?}",
            capture["name"],
            answer.body()
        );
    }
}

#[tokio::test]
async fn records_are_shown_as_they_were_sent() {
    let standin = start().await;
    let body = vectors()["body_vectors"][1]["protobuf_hex"]
        .as_str()
        .unwrap()
        .to_owned();
    Upload::v1().send(&standin).await;
    Upload::v1()
        .body(hex::decode(body).unwrap())
        .send(&standin)
        .await;
    let path = format!("/records?topic_id={TOPIC}&since=1");
    let lines = client::call(standin.address(), "GET", &path).await.unwrap();
    let records: Vec<Value> = lines
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect();
    assert_eq!(records.len(), 3);
    let last = &records[2];
    assert_eq!(last["seq"], 3);
    assert_eq!(last["time"], 1_700_000_000_124_u64);
    assert_eq!(
        last["fields"],
        serde_json::json!([["log", ""], ["stream", "stdout"]])
    );
    assert_eq!(
        last["tags"],
        serde_json::json!([["container_name", "web-1"], ["env", "prod"]])
    );
    assert_eq!(last["contextFlow"], "102700A66102516A-59F59");
    assert_eq!(last["source"], "10.0.0.7");
    assert_eq!(last["filename"], "/var/log/app.log");
    assert_eq!(last["request_id"].as_str().unwrap().len(), 36);
    assert_eq!(
        last["secret_id"],
        vectors()["signature_vectors"][0]["secret_id"]
    );

    client::call(standin.address(), "DELETE", "/records")
        .await
        .unwrap();
    let lines = client::call(standin.address(), "GET", "/records")
        .await
        .unwrap();
    assert_eq!(lines.len(), 0);
}

#[tokio::test]
async fn a_discarding_stand_in_counts_and_keeps_nothing() {
    let standin = start_at(
        NOW_S,
        Config {
            discards: true,
            ..config()
        },
    )
    .await;
    assert_eq!(Upload::v1().send(&standin).await, "200");
    assert_eq!(
        (standin.stats().records, standin.uploads(TOPIC).len()),
        (1, 0)
    );
}

#[tokio::test]
async fn faults_answer_with_the_documented_codes() {
    let standin = start().await;
    for (kind, expected) in [
        ("403", "403 AccountArrears"),
        ("404", "404 TopicNotExist"),
        ("413", "413 LogSizeExceed"),
        ("429", "429 SpeedQuotaExceed"),
        ("500", "500 InternalError"),
        ("502", "502 InternalError"),
        ("503", "503 InternalError"),
    ] {
        let path = format!("/fault?kind={kind}&count=1&topic_id={TOPIC}");
        client::call(standin.address(), "POST", &path)
            .await
            .unwrap();
        assert_eq!(Upload::v1().send(&standin).await, expected);
        assert_eq!(Upload::v1().send(&standin).await, "200");
    }
    client::call(standin.address(), "POST", "/fault?kind=500-html&count=1")
        .await
        .unwrap();
    let answer = Upload::v1().try_send(&standin).await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["content-type"]),
        (500, &"text/html".parse().unwrap())
    );
    assert!(answer.body().starts_with(b"<html>"));
    let error = client::call(standin.address(), "POST", "/fault?kind=418")
        .await
        .unwrap_err();
    assert!(error.to_string().contains("kind 418 is unknown"), "{error}");
}

#[tokio::test]
async fn a_401_fault_lasts_until_the_keys_are_replaced() {
    let standin = start().await;
    client::call(standin.address(), "POST", "/fault?kind=401")
        .await
        .unwrap();
    for _ in 0..3 {
        assert_eq!(
            Upload::v1().send(&standin).await,
            "401 AuthFailure.SecretIdNotFound"
        );
    }
    let keys = "/keys?secret_id=AKIDEXAMPLE00000000000000000000000000\
                &secret_key=SecretKeyEXAMPLE0000000000000000";
    client::call(standin.address(), "POST", keys).await.unwrap();
    assert_eq!(Upload::v1().send(&standin).await, "200");
    client::call(
        standin.address(),
        "POST",
        "/keys?secret_id=other&secret_key=x",
    )
    .await
    .unwrap();
    assert_eq!(
        Upload::v1().send(&standin).await,
        "401 AuthFailure.SecretIdNotFound"
    );
}

#[tokio::test]
async fn drop_stores_and_closes_without_an_answer() {
    let standin = start().await;
    standin.add_fault(Fault::new(FaultKind::DropAfterStore).times(1));
    Upload::v1().try_send(&standin).await.unwrap_err();
    assert_eq!(standin.stats().records, 1);
}

#[tokio::test]
async fn reset_breaks_the_connection_and_stores_nothing() {
    let standin = start().await;
    standin.add_fault(Fault::new(FaultKind::Reset).times(1));
    let error = Upload::v1()
        .body(vec![0; 4 << 20])
        .try_send(&standin)
        .await
        .unwrap_err();
    let text = format!("{error:?}");
    assert!(
        text.contains("reset") || text.contains("Broken pipe"),
        "{text}"
    );
    assert_eq!(standin.stats().records, 0);
}

#[tokio::test]
async fn stall_holds_the_answer() {
    let standin = start().await;
    standin.add_fault(
        Fault::new(FaultKind::Stall)
            .times(1)
            .delayed(Duration::from_millis(300)),
    );
    let before = tokio::time::Instant::now();
    assert_eq!(Upload::v1().send(&standin).await, "200");
    assert!(before.elapsed() >= Duration::from_millis(300));
    standin.add_fault(Fault::new(FaultKind::Stall).times(1));
    let upload = Upload::v1();
    let stalled = tokio::time::timeout(Duration::from_millis(300), upload.try_send(&standin));
    stalled
        .await
        .expect_err("a stall without a time has no end");
    assert_eq!(standin.stats().records, 1);
}

#[tokio::test]
async fn drip_answers_byte_by_byte() {
    let standin = start().await;
    standin.add_fault(
        Fault::new(FaultKind::Drip)
            .times(1)
            .delayed(Duration::from_millis(2)),
    );
    let before = tokio::time::Instant::now();
    assert_eq!(Upload::v1().send(&standin).await, "200");
    // An answer has some 130 bytes.
    assert!(
        before.elapsed() >= Duration::from_millis(200),
        "{:?}",
        before.elapsed()
    );
    assert_eq!(standin.stats().records, 1);
}

#[tokio::test]
async fn partial_stores_half_and_answers_429() {
    let standin = start().await;
    let b2 = vectors()["body_vectors"][1]["protobuf_hex"]
        .as_str()
        .unwrap()
        .to_owned();
    standin.add_fault(Fault::new(FaultKind::PartialStore).times(1));
    let upload = Upload::v1().body(hex::decode(b2).unwrap());
    assert_eq!(upload.send(&standin).await, "429 SpeedQuotaExceed");
    let mut seen = 0;
    standin
        .uploads(TOPIC)
        .iter()
        .for_each(|upload| upload.visit(|_| seen += 1));
    assert_eq!(seen, 1, "half of three logs");
    assert_eq!(upload.send(&standin).await, "200");
    assert_eq!(standin.stats().records, 4);
    assert_eq!(
        standin.violations(),
        Vec::<String>::new(),
        "the retry has equal bytes"
    );
}

#[tokio::test]
async fn skew_makes_signatures_expire_and_shows_in_the_date() {
    let standin = start().await;
    let path = "/fault?kind=skew&skew_s=3600&count=1";
    client::call(standin.address(), "POST", path).await.unwrap();
    let answer = Upload::v1().try_send(&standin).await.unwrap();
    assert_eq!(answer.status(), 401);
    // 1,700,000,000 s is 22:13:20.
    assert_eq!(answer.headers()["date"], "Tue, 14 Nov 2023 23:13:20 GMT");
    assert_eq!(Upload::v1().send(&standin).await, "200");
}

/// A reused connection is closed some time after the answer, without a word.
#[tokio::test]
async fn idle_close_ends_a_connection_that_was_kept_alive() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let standin = start().await;
    standin.add_fault(Fault::new(FaultKind::IdleClose).times(1));
    let mut stream = tokio::net::TcpStream::connect(standin.address())
        .await
        .unwrap();
    let path = format!("/structuredlog?topic_id={TOPIC}");
    let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    tokio::time::timeout(Duration::from_secs(5), read)
        .await
        .expect("it closes")
        .unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(!answer.contains("connection: close"), "{answer}");
}
