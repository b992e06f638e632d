//! What entries become: records in their place, and acknowledgements that count them.

use super::call::{MULTILINE, Sent, chunk, finish, frames, open};
use super::reports::reported;
use super::site::{Site, TOPIC};
use proto::relay::event::Kind;
use proto::relay::{Ack, Chunk, Finish, Hole, LogEntry, PartialLogEntryMetadata, StreamReport};
use std::collections::HashMap;
use std::time::Duration;
use world::standin::fault::{Fault, FaultKind};

#[tokio::test]
async fn entries_become_records_and_are_acknowledged_to_the_end() {
    let (site, mut call) = Site::with_call().await;
    let (entries, end) = chunk(1, 500, &["one", "two", ""]);
    // As they were when the stream was opened, but for those received and dropped.
    let totals = StreamReport {
        journal_id: "of another".into(),
        container_name: "/web".into(),
        received_entries: 10,
        delivered_entries: 4,
        filtered_entries: 1,
        dropped_entries: HashMap::from([("journal_full".into(), 2)]),
        buffered_bytes: end - 500,
        ..StreamReport::default()
    };
    let finish = Kind::Finish(Finish {
        stream: 1,
        end_offset: end,
        totals: Some(Box::new(totals)),
    });
    call.send(vec![open(1, 500, &[]), entries, finish]).await;
    let window = call
        .until(|response| response.opened.first().map(|o| o.window_bytes))
        .await;
    assert!(window.unwrap() >= 32 << 10);
    let ack = call.acked_to(1, end).await.unwrap();
    assert_eq!((ack.offset, ack.delivered_entries), (end, 3));
    assert!(ack.is_last);
    assert_eq!(site.contents(), ["one", "two", ""]);
    // What the driver was told completes its counters, without a report.
    reported(&site, "host-1", 1, 10).await;
    let page = world::client::call(site.admin, "GET", "/api/ledger").await;
    let lines: Vec<serde_json::Value> = serde_json::from_slice(&page.unwrap()).unwrap();
    let counts = ["delivered", "filtered", "buffered", "buffered_bytes"];
    let counts = counts.map(|name| lines[0][name].as_u64().unwrap());
    assert_eq!(counts, [7, 1, 0, 0], "{lines:?}");
    assert_eq!(lines[0]["journal_id"], format!("{:032x}", 1));
    // The stream is closed: its number can be used again.
    call.send(vec![open(1, end, &[])]).await;
    call.opened().await;
    assert_eq!(site.standin.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn a_hole_becomes_a_record_at_its_place() {
    let (site, mut call) = Site::with_call().await;
    let (before, hole_start) = chunk(1, 0, &["before"]);
    let hole_end = hole_start + 1000;
    let hole = Hole {
        stream: 1,
        first_offset: hole_start,
        end_offset: hole_end,
        entries: 12,
        reason: "journal_full".into(),
        first_time_nano: 1_700_000_000_000_000_001,
        last_time_nano: 1_700_000_002_500_000_000,
    };
    let (after, end) = chunk(1, hole_end, &["after"]);
    call.send(vec![open(1, 0, &[]), before, Kind::Hole(hole), after])
        .await;
    call.acked_to(1, end).await.unwrap();
    assert_eq!(
        site.contents(),
        [
            "before",
            "12 log entries (1000 bytes) were dropped: journal_full",
            "after"
        ]
    );
    let mut fields = Vec::new();
    for upload in site.standin.uploads(TOPIC) {
        upload.visit(|record| {
            let of_hole = ["from", "to", "entries", "bytes", "reason"];
            let of_hole = of_hole.map(|name| record.field(&format!("__dropped_{name}__")));
            fields.extend(
                of_hole
                    .map(|value| Some(value?.to_owned()))
                    .into_iter()
                    .flatten(),
            );
        });
    }
    assert_eq!(
        fields,
        [
            "2023-11-14T22:13:20.000000001Z",
            "2023-11-14T22:13:22.500000000Z",
            "12",
            "1000",
            "journal_full"
        ]
    );
}

#[tokio::test]
async fn an_acknowledgement_counts_just_the_entries_that_it_covers() {
    let (site, mut call) = Site::with_call().await;
    let piece = |ordinal, last| LogEntry {
        source: "stderr".into(),
        time_nano: 1_700_000_000_123_456_789,
        line: b"long".to_vec(),
        partial: true,
        partial_log_metadata: Some(PartialLogEntryMetadata {
            last,
            id: "a".repeat(64),
            ordinal,
        }),
    };
    let mut begun = Vec::new();
    proto::frame::encode(&piece(1, false), &mut begun);
    begun.extend(frames(&["one", "two"]));
    let middle = begun.len() as u64;
    let chunk = |first_offset, frames: Vec<u8>| {
        Kind::Chunk(Chunk {
            stream: 1,
            first_offset,
            frames: frames.into(),
            has_more: false,
        })
    };
    call.send(vec![
        open(1, 0, &[("exclude-regex", "two")]),
        chunk(0, begun),
    ])
    .await;
    tokio::time::timeout(Duration::from_secs(5), async {
        while site.contents().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the line that overtakes to arrive");
    let mut ended = Vec::new();
    proto::frame::encode(&piece(2, true), &mut ended);
    let end = middle + ended.len() as u64;
    call.send(vec![chunk(middle, ended)]).await;
    let mut total = Ack::default();
    call.until(|response| {
        for ack in &response.acks {
            let counted = ack.delivered_entries + ack.filtered_entries;
            assert!(ack.offset > 0 || counted == 0, "{ack:?} covers nothing");
            total.delivered_entries += ack.delivered_entries;
            total.filtered_entries += ack.filtered_entries;
            total.offset = ack.offset;
        }
        (total.offset >= end).then_some(())
    })
    .await
    .unwrap();
    assert_eq!((total.delivered_entries, total.filtered_entries), (3, 1));
}

#[tokio::test]
async fn the_entries_of_a_joined_record_that_dies_are_all_counted_as_dead() {
    let site = Site::start("").await;
    // 413 for the batch of two records, and for the first alone.
    let refuse = Fault::new(FaultKind::Status(413)).times(2);
    site.standin.add_fault(refuse);
    let mut call = site.call().await;
    let (entries, end) = chunk(1, 0, &["a", " b", " c", "d"]);
    let finish = finish(1, end);
    call.send(vec![open(1, 0, &MULTILINE), entries, finish])
        .await;
    let ack = call.acked_to(1, end).await.unwrap();
    assert_eq!((ack.delivered_entries, ack.dead_lettered_entries), (1, 3));
    assert_eq!(site.contents(), ["d"]);
}

#[tokio::test]
async fn a_chunk_without_frames_brings_no_acknowledgement() {
    let (site, mut call) = Site::with_call().await;
    let mut sent = Sent::default();
    call.send(vec![open(1, 0, &[])]).await;
    call.send(sent.chunk(vec![], true)).await;
    site.metric_is("cls_shipper_streams", 1).await;
    call.send(sent.chunk(frames(&["first"]), false)).await;
    let first = call.until(|response| response.acks.first().copied());
    assert_eq!(first.await.unwrap().offset, sent.offset);
}
