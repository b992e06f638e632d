//! Every line arrives once, in order, unchanged, at Docker's own time.

use crate::world::{World, Writers};
use std::collections::BTreeMap;
use world::processes::{HOST_NAME, UploadSettings};
use world::script::Script;
use world::standin::store::parse_flow;

const LINES: u64 = 1_000_000;
const LINE_BYTES: usize = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_million_lines_of_one_stream_arrive_once_in_order() {
    million_lines(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_million_lines_of_fifty_streams_arrive_once_in_order() {
    million_lines(50).await;
}

async fn million_lines(streams: u64) {
    let mut world = World::start(UploadSettings::default()).await;
    let mut writers = Writers::new();
    let mut scripts = Vec::new();
    for stream in 0..streams {
        let script = Script::new(&format!("s{stream}"), LINES / streams, LINE_BYTES);
        let pipe = world.container(&script.name, &[]).await;
        writers.start(script.clone(), pipe, None);
        scripts.push(script);
    }
    for pipe in world.finish(writers).await {
        world.stop(pipe).await;
    }
    let report = world.settle(&scripts).await;
    assert!(report.is_exact(), "{report}{}", world.host.output());
    assert_eq!(world.standin.violations(), Vec::<String>::new());
}

/// A record as a person compares it.
#[derive(Debug, PartialEq)]
struct Seen {
    time_ms: i64,
    fields: BTreeMap<String, String>,
}

/// Returns the record of a line whose fields are these and the product's own.
fn seen(time_ms: i64, stream: &str, fields: &[(&str, &str)]) -> Seen {
    let own = [("__hostname__", HOST_NAME), ("__stream__", stream)];
    let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    Seen {
        time_ms,
        fields: own
            .into_iter()
            .chain(fields.iter().copied())
            .map(owned)
            .collect(),
    }
}

/// Returns the records of the one container there is, in their order of context: uploads of a lane
/// are under way side by side, and may arrive in any order.
fn records_of(world: &World) -> Vec<Seen> {
    let mut placed = Vec::new();
    for upload in world.uploads() {
        upload.visit(|record| {
            let mut fields = BTreeMap::new();
            for (key, value) in record.fields() {
                let earlier = fields.insert(key.to_owned(), value.to_owned());
                assert_eq!(earlier, None, "field {key} stands twice");
            }
            let flow = record.group.context_flow.expect("a record has a context");
            let (_, place) = parse_flow(flow).expect("a context is readable");
            let time_ms = record.log.time;
            placed.push((place, Seen { time_ms, fields }));
        });
    }
    // Stable: the records of a group are in order.
    placed.sort_by_key(|(place, _)| *place);
    placed.into_iter().map(|(_, record)| record).collect()
}

/// An output, a line, and the fields that its record must have.
type OddLine<'a> = (proto::frame::Source, &'a [u8], Vec<(&'a str, &'a str)>);

/// Lines of every kind, each with what its record must be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_lines_arrive_as_they_are() {
    use proto::frame::Source::{Stderr, Stdout};
    let long = "0123456789abcdef".repeat(100 << 10 >> 4);
    let json = r#"{"int":1234567,"float":19.99999999,"huge":1e400,"zero":-0.0,"text":"a\"b","yes":true,"none":null,"deep":{"list": [1, 2.50]}}"#;
    let members = [
        ("int", "1234567"),
        ("float", "19.99999999"),
        ("huge", "1e400"),
        ("zero", "-0.0"),
        ("text", "a\"b"),
        ("yes", "true"),
        ("none", ""),
        ("deep", r#"{"list":[1,2.50]}"#),
    ];
    let lines: Vec<OddLine<'_>> = vec![
        (Stdout, b"plain", vec![("content", "plain")]),
        (Stderr, b"to stderr", vec![("content", "to stderr")]),
        (Stdout, b"", vec![("content", "")]),
        (
            Stdout,
            "启动完成 ok 🚀 é".as_bytes(),
            vec![("content", "启动完成 ok 🚀 é")],
        ),
        (
            Stdout,
            b"not utf-8: \xff.",
            vec![("content", r"not utf-8: \xff."), ("escaped_bytes", "1")],
        ),
        (Stdout, long.as_bytes(), vec![("content", &long)]),
        (Stdout, json.as_bytes(), members.to_vec()),
        (Stdout, b"{\"cut\":1", vec![("content", "{\"cut\":1")]),
        (Stdout, b"[1,2]", vec![("content", "[1,2]")]),
        (
            Stdout,
            b"  spaces kept  ",
            vec![("content", "  spaces kept  ")],
        ),
    ];

    let mut world = World::start(UploadSettings::default()).await;
    let mut pipe = world.container("odd", &[]).await;
    let mut expected = Vec::new();
    // The last nanosecond of a millisecond: a time that is rounded is a millisecond off.
    let time_of = |index: usize| 1_795_356_825_000_i64 + i64::try_from(index).unwrap() * 7;
    for (index, (source, line, fields)) in lines.iter().enumerate() {
        pipe.write_line(*source, time_of(index) * 1_000_000 + 999_999, line)
            .unwrap();
        expected.push(seen(time_of(index), source.as_str(), fields));
    }
    let time_ms = time_of(lines.len());
    pipe.write_tail(Stdout, time_ms * 1_000_000, b"no newline")
        .unwrap();
    expected.push(seen(time_ms, "stdout", &[("content", "no newline")]));
    world.stop(pipe).await;

    world.wait_for(expected.len() as u64, |_| true).await;
    world.host.stop_shipper().await.unwrap();
    let got = records_of(&world);
    for (index, (expected, got)) in expected.iter().zip(&got).enumerate() {
        assert_eq!(got, expected, "line {index}");
    }
    assert_eq!(got.len(), expected.len(), "{}", world.host.output());
}

/// A line in 64 pieces, from a stream whose window is small at first and which gets no
/// acknowledgement before the last piece is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_of_a_mebibyte_arrives_whole() {
    use proto::frame::Source::Stdout;
    let long = "0123456789abcde\u{7f}".repeat(proto::limits::RECORD_LINE_BYTES_MAX / 16);
    let mut world = World::start(UploadSettings::default()).await;
    let mut pipe = world.container("long", &[]).await;
    let time_ms = 1_795_356_825_000;
    let lines = [long.clone(), "next".to_owned(), long.clone()];
    // The pipe is smaller than a line: the driver has to read while the engine writes.
    let pipe = tokio::task::spawn_blocking(move || {
        for line in lines {
            pipe.write_line(Stdout, time_ms * 1_000_000, line.as_bytes())
                .unwrap();
        }
        pipe
    });
    world.stop(pipe.await.unwrap()).await;
    world.wait_for(3, |_| true).await;
    world.host.stop_shipper().await.unwrap();
    let got: Vec<_> = records_of(&world);
    assert_eq!(got.len(), 3);
    for (record, line) in got.iter().zip([&long, "next", &long]) {
        assert!(
            *record == seen(time_ms, "stdout", &[("content", line)]),
            "{} bytes",
            line.len()
        );
    }
}
