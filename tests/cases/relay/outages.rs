//! CLS refuses, fails or is silent for a while: nothing is lost, and nothing stays behind.

use super::call::{chunk, open};
use super::site::{OUTAGE, Site};
use proto::relay::ShipResponse;
use std::sync::Arc;
use std::time::Duration;
use world::standin::fault::{Fault, FaultKind};

#[tokio::test]
async fn a_batch_that_is_too_large_is_cut_and_only_its_worst_record_is_given_up() {
    let site = Site::start("").await;
    // 413 for the batch of four, for its first half, and for that half's first record.
    site.standin
        .add_fault(Fault::new(FaultKind::Status(413)).times(3));
    let mut call = site.call().await;
    let end = call.begin_stream(1, 0, &["a", "b", "c", "d"]).await;
    let ack = call.acked_to(1, end).await.unwrap();
    assert_eq!((ack.delivered_entries, ack.dead_lettered_entries), (3, 1));
    assert_eq!(site.contents(), ["b", "c", "d"]);
    let letters = site.dead_letters();
    assert_eq!(letters.len(), 1);
    assert!(letters[0].contains(r#"["content","a"]"#), "{}", letters[0]);
}

#[tokio::test]
async fn trouble_that_passes_is_retried_and_loses_nothing() {
    let site = Site::start("").await;
    for kind in [
        FaultKind::Status(429),
        FaultKind::HtmlError,
        FaultKind::Reset,
        FaultKind::Status(404),
        FaultKind::Status(403),
    ] {
        site.standin.add_fault(Fault::new(kind).times(1));
    }
    let mut call = site.call().await;
    let end = call.begin_stream(1, 0, &["x"]).await;
    call.acked_to(1, end).await.unwrap();
    assert_eq!(site.contents(), ["x"]);
    assert_eq!(site.standin.stats().faults.values().sum::<u64>(), 5);
}

#[tokio::test]
async fn a_lost_answer_repeats_the_same_group_under_the_same_id() {
    let site = Site::start("").await;
    site.standin
        .add_fault(Fault::new(FaultKind::DropAfterStore).times(1));
    let mut call = site.call().await;
    let end = call.begin_stream(1, 0, &["x"]).await;
    call.acked_to(1, end).await.unwrap();
    assert_eq!(site.contents(), ["x", "x"]);
    assert_eq!(site.standin.stats().repeated_groups, 1);
    assert_eq!(site.standin.violations(), Vec::<String>::new());
}

#[tokio::test]
async fn a_dropped_call_takes_its_unsealed_records_along() {
    let site = Arc::new(Site::start("linger_ms = 60000\nconcurrency_max = 1").await);
    site.stall(Duration::from_millis(300));
    let mut call = site.call().await;
    let middle = call.begin_stream(1, 0, &["in flight"]).await;
    call.opened().await;
    let end = call.go_on(1, middle, &["unsealed"]).await;
    site.stalled().await;
    drop(call);
    let mut call = site.call().await;
    let _ = call.begin_stream(1, 0, &["in flight", "unsealed"]).await;
    call.acked_to(1, end).await.unwrap();
    site.metric_is("cls_shipper_batches", 0).await;
    assert_eq!(site.contents(), ["in flight", "unsealed"]);
}

#[tokio::test]
async fn calls_that_are_dropped_in_an_outage_leave_neither_batches_nor_copies() {
    let site = Site::start("").await;
    site.standin.add_fault(Fault::new(FaultKind::Status(503)));
    for _ in 0..5 {
        let call = site.call().await;
        let _ = call.begin_stream(1, 0, &["one", "two"]).await;
        site.metric_is("cls_shipper_batches", 1).await;
        drop(call);
        // What the call had in memory is gone, as its streams are.
        site.metric_is("cls_shipper_batches", 0).await;
    }
    site.standin.clear_faults();
    let mut call = site.call().await;
    let end = call.begin_stream(1, 0, &["one", "two"]).await;
    call.acked_to(1, end).await.unwrap();
    site.metric_is("cls_shipper_batches", 0).await;
    assert_eq!(site.contents(), ["one", "two"]);
}

#[tokio::test]
async fn a_repeat_leaves_out_the_groups_of_streams_that_are_gone() {
    let site = Site::start("concurrency_max = 1").await;
    site.stall(OUTAGE);
    site.standin.add_fault(Fault::new(FaultKind::Status(503)));
    let (mut stays, mut leaves) = (site.call().await, site.call().await);
    let middle = stays.begin_stream(1, 0, &["first"]).await;
    site.stalled().await;
    // Both wait for the only slot, and share the next batch.
    let is_open = |response: &ShipResponse| response.opened.iter().find(|o| o.stream == 9).copied();
    let (entries, _) = chunk(2, 0, &["of the call that leaves"]);
    leaves
        .send(vec![open(2, 0, &[]), entries, open(9, 0, &[])])
        .await;
    leaves.until(is_open).await.unwrap();
    let end = stays.go_on(1, middle, &["second"]).await;
    tokio::time::timeout(Duration::from_secs(5), async {
        while !site.standin.stats().faults.contains_key("Status(503)") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the batch of both to fail");
    drop(leaves);
    site.metric_is("cls_shipper_streams", 1).await;
    site.standin.clear_faults();
    stays.acked_to(1, end).await.unwrap();
    site.metric_is("cls_shipper_batches", 0).await;
    assert_eq!(site.contents(), ["first", "second"]);
    assert_eq!(site.standin.violations(), Vec::<String>::new());
}
