//! What a tenant may do, and how much of it.

use super::call::{chunk, flood, open};
use super::site::{Site, TOPIC};
use proto::relay::CheckRequest;
use proto::relay::relay_client::RelayClient;
use std::time::Duration;
use tonic::Code;

#[tokio::test]
async fn a_host_beyond_its_allowance_is_slowed_down_and_loses_nothing() {
    let tenant = "[[tenants]]\nname = \"slow\"\nunix_uid = 0\nbytes_per_s = 14000";
    let site = Site::start(tenant).await;
    let mut call = site.call().await;
    let line = "x".repeat(7_000);
    let (mut offset, mut events) = (0, vec![open(1, 0, &[])]);
    for _ in 0..4 {
        let (entries, end) = chunk(1, offset, &[&line]);
        events.push(entries);
        call.send(std::mem::take(&mut events)).await;
        offset = end;
    }
    // 28 kB at 14 kB/s: a second's worth comes at once, the rest takes its time.
    let began = tokio::time::Instant::now();
    call.acked_to(1, offset).await.unwrap();
    assert!(
        began.elapsed() >= Duration::from_millis(400),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(site.contents().len(), 4);
}

#[tokio::test]
async fn a_host_without_a_tenant_is_refused_with_what_to_do() {
    let site = Site::start("[[tenants]]\nname = \"other\"\nunix_uid = 12345").await;
    let mut client = RelayClient::new(site.channel().await);
    let status = client.check(CheckRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(
        status
            .message()
            .contains("no tenant of the shipper is for uid 0"),
        "{status}"
    );
}

#[tokio::test]
async fn a_tenant_writes_to_its_own_topics_only() {
    let tenant =
        "[[tenants]]\nname = \"a\"\nunix_uid = 0\ntopics = [\"a-*\"]\nhosts = [\"host-1\"]";
    let site = Site::start(tenant).await;
    let mut call = site.call().await;
    call.send(vec![open(1, 0, &[])]).await;
    let refused = call
        .until(|response| response.refused.first().cloned())
        .await
        .unwrap();
    let rule = format!("topic_id \"{TOPIC}\" is not one that tenant a may use");
    assert_eq!(refused.reason, rule);
    let mut client = RelayClient::new(site.channel().await);
    let request = CheckRequest {
        host: "host-2".into(),
        ..CheckRequest::default()
    };
    let answer = client.check(request).await.unwrap().into_inner();
    let other = "host name \"host-2\" is not one that tenant a may use";
    assert_eq!(answer.faults, [other, &rule]);
    assert_eq!(answer.identity, "a");
    for (asked, expected) in [("open", 1), ("check", 1)] {
        let name = format!("cls_shipper_refusals_total{{tenant=\"a\",asked=\"{asked}\"}}");
        assert_eq!(site.metric(&name).await, expected, "{asked}");
    }
}

#[tokio::test]
async fn a_tenant_that_opens_streams_for_ever_is_refused_the_rest() {
    let tenant = "[[tenants]]\nname = \"a\"\nunix_uid = 0\nstreams_max = 100";
    let site = Site::start(tenant).await;
    let mut call = site.call().await;
    flood(&call.requests, 1_000).await;
    let mut refused = 0;
    let reason = call.until(|response| {
        refused += response.refused.len();
        (refused >= 900).then(|| response.refused[0].reason.clone())
    });
    assert_eq!(
        reason.await.unwrap(),
        "tenant a has 100 open streams, its bound (streams_max)"
    );
    let end = call.go_on(1, 0, &["one of the hundred"]).await;
    call.acked_to(1, end).await.unwrap();
}
