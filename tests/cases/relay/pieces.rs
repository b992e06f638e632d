//! Long lines in pieces and records of several lines: what waits for its rest, and for how long.

use super::call::{MULTILINE, Sent, chunk, finish, frames, open, piece};
use super::site::{OUTAGE, Site};
use proto::relay::Hole;
use proto::relay::event::Kind;
use std::time::Duration;

#[tokio::test]
async fn a_record_of_several_lines_is_not_torn_while_its_rest_has_no_window() {
    let site = Site::start("").await;
    site.stall(OUTAGE);
    let mut call = site.call().await;
    let (first, middle) = chunk(1, 0, &["first"]);
    call.send_at([0, 0], vec![open(1, 0, &MULTILINE), first])
        .await;
    // With these and the beginning of the record, the window of 64 KiB has no room for an entry of
    // full size.
    let filler = "x".repeat(1_000);
    let lines = [vec![filler.as_str(); 50], vec!["trace:"]].concat();
    let (mut fillers, end) = chunk(1, middle, &lines);
    if let Kind::Chunk(chunk) = &mut fillers {
        chunk.has_more = true;
    }
    let begin = end - frames(&["trace:"]).len() as u64;
    // The record of another stream will be late in between.
    let (other, _) = chunk(2, 0, &["other:"]);
    let other = vec![fillers, open(2, 0, &MULTILINE), other];
    call.send_at([1_000, 1_000], other).await;
    call.acked_to(1, begin).await.unwrap();
    call.send_at([2_000, 2_000], vec![]).await;
    let (rest, end) = chunk(1, end, &["  at main", "last"]);
    let finish = finish(1, end);
    call.send_at([3_000, 3_000], vec![rest, finish]).await;
    call.acked_to(1, end).await.unwrap();
    let contents = site.contents();
    let is_end = |text: &&String| **text != filler && **text != "other:";
    let ends: Vec<_> = contents.iter().filter(is_end).collect();
    assert_eq!(ends, ["first", "trace:\n  at main", "last"]);
}

/// A line waits 10 s for its rest: of the host's time, in which its driver has looked for it. What a
/// slow network or many other streams keep from the shipper is not late, however long it takes.
#[tokio::test]
async fn a_long_line_is_torn_by_its_age_and_not_by_a_slow_network() {
    let (site, mut call) = Site::with_call().await;
    let mut sent = Sent::default();
    let mut piece = |id, ordinal, last| sent.chunk(piece(id, ordinal, last), false);
    call.send_at([0, 0], vec![open(1, 0, &[])]).await;
    call.send_at([1_000, 1_000], piece("a", 1, false)).await;
    for gathered_ms in (5_000..60_000).step_by(5_000) {
        call.send_at([gathered_ms, 10_999], vec![]).await;
    }
    call.send_at([60_000, 60_000], piece("a", 2, true)).await;
    call.send_at([61_000, 61_000], piece("b", 1, false)).await;
    call.send_at([66_000, 66_000], vec![]).await;
    call.send_at([70_999, 70_999], piece("b", 2, true)).await;
    call.send_at([71_000, 71_000], piece("c", 1, false)).await;
    call.send_at([76_000, 76_000], vec![]).await;
    call.send_at([81_000, 81_000], vec![]).await;
    // The driver was stopped for an hour.
    call.send_at([82_000, 82_000], piece("d", 1, false)).await;
    call.send_at([3_682_000, 3_682_000], vec![]).await;
    call.send_at([3_683_000, 3_683_000], piece("d", 2, true))
        .await;
    call.acked_to(1, sent.offset).await.unwrap();
    assert_eq!(site.contents(), ["a1a2", "b1b2", "c1", "d1d2"]);
}

/// What the driver says that it has is waited for longer: it may wait for room in the window, of which
/// the driver learns by the same network.
#[tokio::test]
async fn a_long_line_waits_for_what_stands_in_the_journal_for_a_minute() {
    let (site, mut call) = Site::with_call().await;
    let mut sent = Sent::default();
    let mut now_ms = 0;
    let mut wait = async |seconds: u64| {
        for _ in 0..seconds.div_ceil(5) {
            now_ms += 5_000;
            call.send_at([now_ms, now_ms], vec![]).await;
        }
        now_ms
    };
    let now = wait(5).await;
    call.send_at([now, now], vec![open(1, 0, &[])]).await;
    call.send_at([now, now], sent.chunk(piece("a", 1, false), true))
        .await;
    let now = wait(35).await;
    call.send_at([now, now], sent.chunk(piece("a", 2, false), false))
        .await;
    // The rest came to the journal just now, and the window is full.
    let now = wait(5).await;
    call.send_at([now, now], sent.chunk(vec![], true)).await;
    let now = wait(55).await;
    call.send_at([now, now], sent.chunk(piece("a", 3, true), false))
        .await;
    call.send_at([now, now], sent.chunk(piece("b", 1, false), true))
        .await;
    let now = wait(60).await;
    call.send_at([now, now], sent.chunk(piece("b", 2, true), false))
        .await;
    call.acked_to(1, sent.offset).await.unwrap();
    assert_eq!(site.contents(), ["a1a2a3", "b1", "b2"]);
}

/// The same for a record of several lines, whose age is 50 ms.
#[tokio::test]
async fn a_record_of_several_lines_is_torn_by_its_age_and_not_by_a_slow_network() {
    let (site, mut call) = Site::with_call().await;
    let mut offset = 0;
    let mut lines = |lines: &[&str]| {
        let (chunk, end) = chunk(1, offset, lines);
        offset = end;
        vec![chunk]
    };
    call.send_at([0, 0], vec![open(1, 0, &MULTILINE)]).await;
    call.send_at([100, 100], lines(&["slow:"])).await;
    site.metric_is("cls_shipper_received_entries_total", 1)
        .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    call.send_at([5_000, 149], vec![]).await;
    call.send_at([5_001, 149], lines(&["  at main"])).await;
    call.send_at([6_001, 6_001], lines(&["late:"])).await;
    call.send_at([7_001, 7_001], vec![]).await;
    call.send_at([7_002, 7_002], lines(&["  at main"])).await;
    call.send_at([9_000, 9_000], vec![]).await;
    call.acked_to(1, offset).await.unwrap();
    let wanted = ["slow:\n  at main", "late:", "  at main"];
    assert_eq!(site.contents(), wanted);
}

/// Of a driver that does not say what the time is, the shipper's own time counts.
#[tokio::test]
async fn a_long_line_of_a_driver_that_tells_no_time_goes_out_as_well() {
    let (site, mut call) = Site::with_call().await;
    let mut sent = Sent::default();
    let piece = sent.chunk(piece("a", 1, false), false);
    call.send([vec![open(1, 0, &[])], piece].concat()).await;
    call.acked_to(1, sent.offset).await.unwrap();
    assert_eq!(site.contents(), ["a1"]);
}

/// A hole in the place of what was announced.
#[tokio::test]
async fn a_long_line_does_not_wait_for_what_is_gone() {
    let (site, mut call) = Site::with_call().await;
    let mut sent = Sent::default();
    call.send_at([0, 0], vec![open(1, 0, &[])]).await;
    call.send_at([1_000, 1_000], sent.chunk(piece("a", 1, false), true))
        .await;
    let first_offset = sent.offset;
    sent.offset += 1_000;
    let hole = Hole {
        stream: 1,
        first_offset,
        end_offset: sent.offset,
        entries: 1,
        reason: "journal_full".into(),
        ..Hole::default()
    };
    call.send_at([2_000, 2_000], vec![Kind::Hole(hole)]).await;
    call.send_at([7_000, 7_000], vec![]).await;
    call.send_at([11_000, 11_000], vec![]).await;
    call.acked_to(1, sent.offset).await.unwrap();
    assert_eq!(site.contents()[1], "a1");
}
