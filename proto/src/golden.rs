//! Golden messages of the wire: what this version writes, a later one must read, and the other way
//! round. The files are made once and never changed; a test that fails here has found a break.

use std::collections::HashMap;
use std::fmt::Debug;
use std::path::PathBuf;

use prost::Message;
use prost::encoding::{decode_varint, encode_varint};

use crate::frame;
use crate::relay::event::Kind;
use crate::relay::{
    Ack, CheckRequest, CheckResponse, Chunk, Container, Event, Finish, Hole, HostReport, LogEntry,
    Open, Opened, Refused, ShipRequest, ShipResponse, StreamReport, Window,
};

/// A field of a later version: number 1000, length-delimited, "later".
const UNKNOWN_FIELD: &[u8] = b"\xc2\x3e\x05later";

/// Fields of a later version, 1000 to 1003, one of each kind that the wire knows: length-delimited,
/// variable, 64 and 32 bits.
const UNKNOWN_FIELDS: &[u8] = b"\xc2\x3e\x05later\xc8\x3e\xff\x01\xd1\x3e12345678\xdd\x3e1234";

/// Which fields of a message are messages themselves, maps among them. There are no enumerations.
struct Shape(&'static [(u64, &'static Shape)]);

static LEAF: Shape = Shape(&[]);
static CONTAINER: Shape = Shape(&[(7, &LEAF)]);
static OPEN: Shape = Shape(&[(3, &CONTAINER), (4, &LEAF)]);
static FINISH: Shape = Shape(&[(3, &STREAM_REPORT)]);
static EVENT: Shape = Shape(&[(1, &OPEN), (2, &LEAF), (3, &LEAF), (4, &FINISH)]);
static SHIP_REQUEST: Shape = Shape(&[(1, &EVENT)]);
static SHIP_RESPONSE: Shape = Shape(&[(1, &LEAF), (2, &LEAF), (3, &LEAF), (4, &LEAF)]);
static CHECK_REQUEST: Shape = Shape(&[(1, &CONTAINER), (2, &LEAF)]);
static STREAM_REPORT: Shape = Shape(&[(8, &LEAF)]);
static HOST_REPORT: Shape = Shape(&[(3, &STREAM_REPORT)]);

/// Returns a message as a later version may write it: with fields that this one does not know, in
/// front and at the end of each message in it.
fn as_a_later_version(shape: &Shape, mut message: &[u8]) -> Vec<u8> {
    let mut later = UNKNOWN_FIELDS.to_vec();
    while !message.is_empty() {
        let whole = message;
        let key = decode_varint(&mut message).unwrap();
        let nested = shape.0.iter().find(|(number, _)| *number == key >> 3);
        match key & 7 {
            2 => {
                let bytes = usize::try_from(decode_varint(&mut message).unwrap()).unwrap();
                let (field, rest) = message.split_at(bytes);
                message = rest;
                let field = match nested {
                    Some((_, shape)) => as_a_later_version(shape, field),
                    None => field.to_vec(),
                };
                encode_varint(key, &mut later);
                encode_varint(field.len() as u64, &mut later);
                later.extend(field);
            }
            0 => {
                decode_varint(&mut message).unwrap();
                later.extend(&whole[..whole.len() - message.len()]);
            }
            kind => panic!("the contract has no field of kind {kind:?}"),
        }
    }
    later.extend(UNKNOWN_FIELDS);
    later
}

fn check<M: Message + Default + PartialEq + Debug>(name: &str, shape: &Shape, message: &M) {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "..", "tests", "vectors", name]
        .iter()
        .collect();
    let golden = std::fs::read(&path).unwrap();
    assert_eq!(
        message.encode_to_vec(),
        golden,
        "{name}: what is written has changed"
    );
    assert_eq!(&M::decode(golden.as_slice()).unwrap(), message, "{name}");
    let from_later = as_a_later_version(shape, &golden);
    assert!(from_later.len() > golden.len() + 2 * UNKNOWN_FIELDS.len() || shape.0.is_empty());
    assert_eq!(
        &M::decode(from_later.as_slice()).unwrap(),
        message,
        "{name} with unknown fields in every message"
    );
    // An older version may know none of the fields.
    assert_eq!(M::decode(&b""[..]).unwrap(), M::default(), "{name}");
}

fn container() -> Container {
    Container {
        id: "c".repeat(64),
        name: "/web-1".into(),
        image_id: "sha256:345e3d".into(),
        image_name: "web:1.2".into(),
        created: "2026-11-22T14:04:26.820587421Z".into(),
        env: vec!["FOO=bar".into(), "EMPTY=".into()],
        labels: HashMap::from([("a.b".into(), "1".into())]),
        entrypoint: "sh".into(),
        args: vec!["-c".into(), "echo hello".into()],
        daemon_name: "docker".into(),
        log_path: String::new(),
    }
}

fn log_opts() -> HashMap<String, String> {
    HashMap::from([("topic_id".into(), "t".into())])
}

fn chunk() -> Chunk {
    let mut frames = Vec::new();
    let metadata = crate::relay::PartialLogEntryMetadata {
        last: true,
        id: "p".into(),
        ordinal: 2,
    };
    let entry = LogEntry {
        source: "stderr".into(),
        time_nano: 1_700_000_000_123_456_789,
        line: b"h\xffllo".to_vec(),
        partial: true,
        partial_log_metadata: Some(metadata),
    };
    frame::encode(&entry, &mut frames);
    Chunk {
        stream: 7,
        first_offset: 1 << 40,
        frames: frames.into(),
        has_more: false,
    }
}

fn stream_report() -> StreamReport {
    StreamReport {
        journal_id: "0123456789abcdef0123456789abcdef".into(),
        container_id: "c".repeat(64),
        container_name: "/web-1".into(),
        received_entries: 10,
        delivered_entries: 5,
        filtered_entries: 1,
        dead_lettered_entries: 1,
        dropped_entries: HashMap::from([("journal_full".into(), 2)]),
        buffered_bytes: 300,
    }
}

#[test]
fn requests() {
    let open = Open {
        stream: 7,
        journal_id: "0123456789abcdef0123456789abcdef".into(),
        container: Some(container()),
        log_opts: log_opts(),
        host: "host-1".into(),
        resume_offset: 1 << 40,
    };
    let hole = Hole {
        stream: 7,
        first_offset: 100,
        end_offset: 200,
        entries: 3,
        first_time_nano: 1,
        last_time_nano: -2,
        reason: "journal_full".into(),
    };
    let kinds = [
        Kind::Open(Box::new(open)),
        Kind::Chunk(chunk()),
        Kind::Hole(hole),
        Kind::Finish(Finish {
            stream: 7,
            end_offset: 300,
            totals: None,
        }),
    ];
    // Before drivers said what the time is, and whether there is more.
    let mut request = ShipRequest {
        events: kinds.map(|kind| Event { kind: Some(kind) }).into(),
        ..ShipRequest::default()
    };
    check("relay_ship_request_v1.bin", &SHIP_REQUEST, &request);
    request.gathered_ms = Some(60_000);
    request.served_ms = 59_990;
    for event in &mut request.events {
        if let Some(Kind::Chunk(chunk)) = &mut event.kind {
            chunk.has_more = true;
        }
    }
    check("relay_ship_request_v2.bin", &SHIP_REQUEST, &request);
    // Before a stream's end told its last counters.
    for event in &mut request.events {
        if let Some(Kind::Finish(finish)) = &mut event.kind {
            finish.totals = Some(Box::new(stream_report()));
        }
    }
    check("relay_ship_request_v3.bin", &SHIP_REQUEST, &request);
    let check_request = CheckRequest {
        container: Some(container()),
        log_opts: log_opts(),
        host: "host-1".into(),
    };
    check("relay_check_request_v1.bin", &CHECK_REQUEST, &check_request);
    let report = HostReport {
        host: "host-1".into(),
        version: "0.1.0".into(),
        streams: vec![stream_report()],
    };
    check("relay_host_report_v1.bin", &HOST_REPORT, &report);
}

#[test]
fn responses() {
    let mut response = ShipResponse {
        opened: vec![Opened {
            stream: 7,
            window_bytes: 65_536,
            hold_ms: None,
        }],
        acks: vec![Ack {
            stream: 7,
            offset: 300,
            delivered_entries: 5,
            filtered_entries: 1,
            dead_lettered_entries: 1,
            is_last: false,
        }],
        windows: vec![Window {
            stream: 7,
            bytes: 1 << 20,
            hold_ms: None,
        }],
        refused: vec![Refused {
            stream: 8,
            reason: "log option retries".into(),
        }],
    };
    check("relay_ship_response_v1.bin", &SHIP_RESPONSE, &response);
    // Before shippers said how long lines may gather, and that a stream is over.
    response.opened[0].hold_ms = Some(100);
    response.windows[0].hold_ms = Some(0);
    response.acks[0].is_last = true;
    check("relay_ship_response_v2.bin", &SHIP_RESPONSE, &response);
    let response = CheckResponse {
        faults: vec!["a fault".into()],
        identity: "host-1".into(),
    };
    check("relay_check_response_v1.bin", &LEAF, &response);
}

#[test]
fn an_event_of_a_later_kind_is_no_error() {
    let later = [b"\x0a".as_slice(), &[8], UNKNOWN_FIELD].concat();
    let finish = |stream| Event {
        kind: Some(Kind::Finish(Finish {
            stream,
            end_offset: 1,
            totals: None,
        })),
    };
    let events = vec![finish(1)];
    let request = ShipRequest {
        events,
        ..ShipRequest::default()
    };
    let known = request.encode_to_vec();
    let mixed = [known.as_slice(), &later, &known].concat();
    let request = ShipRequest::decode(mixed.as_slice()).unwrap();
    assert_eq!(request.events, [finish(1), Event { kind: None }, finish(1)]);
}
