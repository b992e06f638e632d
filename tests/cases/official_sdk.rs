//! The official SDK for Python talks to the stand-in: what it uploads is there, and what is wrong
//! gets the documented errors. So the stand-in is no friend of our client alone.

use crate::python::python;
use serde_json::Value;
use std::path::Path;
use world::client;
use world::processes::{TOPIC_ID, start_standin};

fn sdk_dir() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/sdk"))
}

/// What each attempt of `upload.py` must come to, in its order.
const EXPECTED: [(&str, &str); 13] = [
    ("good", "ok"),
    ("over quota once", "ok"),
    ("wrong id", "401 AuthFailure.SecretIdNotFound"),
    ("wrong key", "401 AuthFailure.SignatureFailure"),
    ("wrong topic", "404 TopicNotExist"),
    ("group instead of list", "400 InvalidContent"),
    ("long value", "403 LogSizeExceed"),
    ("long body", "403 LogSizeExceed"),
    ("reserved key", "400 InvalidContent"),
    ("unknown compression", "400 InvalidCompressType"),
    ("lz4 frame", "400 InvalidContent"),
    ("lz4 with its size", "400 InvalidContent"),
    ("not lz4", "400 InvalidContent"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sdk_uploads_and_gets_the_documented_errors() {
    let dir = tempfile::tempdir().unwrap();
    let (_standin, address) = start_standin(dir.path(), &[]).await.unwrap();
    // The first upload gets its answer byte by byte; the second is refused once, and the SDK
    // repeats it by itself after a second.
    for fault in ["/fault?kind=drip&ms=1&count=1", "/fault?kind=429&count=1"] {
        client::call(address, "POST", fault).await.unwrap();
    }
    let mut command = tokio::process::Command::new(python().unwrap());
    command.arg(sdk_dir().join("upload.py"));
    command.args([
        &format!("http://{address}"),
        TOPIC_ID,
        "AKIDEXAMPLE",
        "SKEXAMPLE",
    ]);
    let output = command.output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");

    let lines: Vec<Value> = json_lines(&output.stdout);
    let got: Vec<_> = lines
        .iter()
        .map(|line| (text(line, "case"), verdict(line)))
        .collect();
    let expected = EXPECTED.map(|(case, verdict)| (case.to_owned(), verdict.to_owned()));
    assert_eq!(got, expected);

    let path = format!("/records?topic_id={TOPIC_ID}");
    let records = json_lines(&client::call(address, "GET", &path).await.unwrap());
    assert_eq!(records.len(), 4);
    let fields = |message| serde_json::json!([["message", message]]);
    for (number, message) in ["plain", "启动完成 ok", ""].into_iter().enumerate() {
        let record = &records[number];
        assert_eq!(record["fields"], fields(message));
        assert_eq!(
            record["time"],
            1_700_000_000_123 + u64::try_from(number).unwrap()
        );
        assert_eq!(record["request_id"], lines[0]["request_id"]);
        assert_eq!(record["source"], "10.0.0.7");
        assert_eq!(record["filename"], "/var/log/app.log");
        assert_eq!(record["contextFlow"], "102700A66102516A-59F59");
        let tags = serde_json::json!([["container_name", "web-1"], ["env", "prod"]]);
        assert_eq!(record["tags"], tags);
    }
    assert_eq!(records[3]["fields"], fields("again"));
    let stats = client::call(address, "GET", "/stats").await.unwrap();
    let stats: Value = serde_json::from_slice(&stats).unwrap();
    assert_eq!(stats["answers"]["429 SpeedQuotaExceed"], 1);
}

fn json_lines(bytes: &[u8]) -> Vec<Value> {
    let lines = bytes
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty());
    lines
        .map(|line| serde_json::from_slice(line).unwrap())
        .collect()
}

fn text(line: &Value, name: &str) -> String {
    line[name].as_str().unwrap_or_default().to_owned()
}

fn verdict(line: &Value) -> String {
    match line["status"].as_u64() {
        Some(status) => format!("{status} {}", text(line, "code")),
        None => text(line, "code"),
    }
}
