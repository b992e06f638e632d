//! Golden messages of the wire: what this version writes, a later one must read, and the other way
//! round. The files are made once and never changed; a test that fails here has found a break.

use std::collections::HashMap;
use std::fmt::Debug;
use std::path::PathBuf;

use prost::Message;

use crate::frame;
use crate::relay::event::Kind;
use crate::relay::{
    Ack, CheckRequest, CheckResponse, Chunk, Container, Event, Finish, Hole, HostReport, LogEntry,
    Open, Opened, Refused, ShipRequest, ShipResponse, StreamReport, Window,
};

/// A field of a later version: number 1000, length-delimited, "later".
const UNKNOWN_FIELD: &[u8] = b"\xc2\x3e\x05later";

fn check<M: Message + Default + PartialEq + Debug>(name: &str, message: &M) {
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
    let from_later = [golden.as_slice(), UNKNOWN_FIELD].concat();
    assert_eq!(
        &M::decode(from_later.as_slice()).unwrap(),
        message,
        "{name} with an unknown field"
    );
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
        }),
    ];
    let events = kinds.map(|kind| Event { kind: Some(kind) }).into();
    check("relay_ship_request_v1.bin", &ShipRequest { events });
    let check_request = CheckRequest {
        container: Some(container()),
        log_opts: log_opts(),
        host: "host-1".into(),
    };
    check("relay_check_request_v1.bin", &check_request);
    let stream = StreamReport {
        journal_id: "0123456789abcdef0123456789abcdef".into(),
        container_id: "c".repeat(64),
        container_name: "/web-1".into(),
        received_entries: 10,
        delivered_entries: 5,
        filtered_entries: 1,
        dead_lettered_entries: 1,
        dropped_entries: HashMap::from([("journal_full".into(), 2)]),
        buffered_bytes: 300,
    };
    let report = HostReport {
        host: "host-1".into(),
        version: "0.1.0".into(),
        streams: vec![stream],
    };
    check("relay_host_report_v1.bin", &report);
}

#[test]
fn responses() {
    let response = ShipResponse {
        opened: vec![Opened {
            stream: 7,
            window_bytes: 65_536,
        }],
        acks: vec![Ack {
            stream: 7,
            offset: 300,
            delivered_entries: 5,
            filtered_entries: 1,
            dead_lettered_entries: 1,
        }],
        windows: vec![Window {
            stream: 7,
            bytes: 1 << 20,
        }],
        refused: vec![Refused {
            stream: 8,
            reason: "log option retries".into(),
        }],
    };
    check("relay_ship_response_v1.bin", &response);
    let response = CheckResponse {
        faults: vec!["a fault".into()],
        identity: "host-1".into(),
    };
    check("relay_check_response_v1.bin", &response);
}

#[test]
fn an_event_of_a_later_kind_is_no_error() {
    let later = [b"\x0a".as_slice(), &[8], UNKNOWN_FIELD].concat();
    let request = ShipRequest::decode(later.as_slice()).unwrap();
    assert_eq!(request.events, [Event { kind: None }]);
}
