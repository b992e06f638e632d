//! Floods and messages that are too large end their own call only.

use super::call::flood;
use super::reports::Reporting;
use super::site::Site;
use proto::limits::{CHECK_DECODED_BYTES_MAX, MESSAGE_DECODED_BYTES_MAX};
use proto::relay::event::Kind;
use proto::relay::relay_client::RelayClient;
use proto::relay::{CheckRequest, Container, Event, HostReport, Open, ShipRequest, StreamReport};
use tonic::{Code, Status};

#[tokio::test]
async fn a_call_that_floods_is_ended_and_others_go_on() {
    let site = Site::start("").await;
    let (mut good, mut bad) = (site.call().await, site.call().await);
    let middle = good.begin_stream(1, 0, &["before"]).await;
    good.acked_to(1, middle).await.unwrap();
    let requests = bad.requests.clone();
    let (status, ()) = tokio::join!(bad.until(|_| None::<()>), flood(&requests, 20_000));
    let status = status.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(
        status.message().contains("at most 16384 streams"),
        "{status}"
    );
    let end = good.go_on(1, middle, &["after"]).await;
    good.acked_to(1, end).await.unwrap();
    assert_eq!(site.contents(), ["before", "after"]);
}

#[tokio::test]
async fn a_message_beyond_the_bound_ends_its_own_call_only() {
    let site = Site::start("").await;
    let (mut good, mut bad) = (site.call().await, site.call().await);
    let line = "x".repeat(5 << 20);
    let _ = bad.begin_stream(1, 0, &[&line]).await;
    let status = bad.ended().await;
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    let end = good.begin_stream(1, 0, &["fine"]).await;
    good.acked_to(1, end).await.unwrap();
    assert_eq!(site.contents(), ["fine"]);
}

/// Two bytes on the wire are an event, an argument or a stream's report, each of which takes many times
/// that when it is decoded. The reason tells that it was not: a session speaks of events and options, and
/// the ledger keeps what it can.
#[tokio::test]
async fn a_message_that_grows_when_decoded_ends_its_own_call_only() {
    let site = Site::start("[[tenants]]\nname = \"a\"\nunix_uid = 0").await;
    let mut good = site.call().await;
    let middle = good.begin_stream(1, 0, &["before"]).await;
    good.acked_to(1, middle).await.unwrap();
    let refusal = |status: Status, limit_bytes: usize| {
        assert_eq!(status.code(), Code::OutOfRange, "{status}");
        let rule = format!("takes more than {limit_bytes} bytes once it is decoded, the limit");
        assert!(status.message().contains(&rule), "{status}");
    };

    let mut events = site.call().await;
    let empty = vec![Event::default(); 700_000];
    events
        .requests
        .send(ShipRequest {
            events: empty,
            ..ShipRequest::default()
        })
        .await
        .unwrap();
    let status = events.ended().await;
    refusal(status, MESSAGE_DECODED_BYTES_MAX);

    let container = Container {
        args: vec![String::new(); 1_300_000],
        ..Container::default()
    };
    let mut arguments = site.call().await;
    let open_large = Kind::Open(Box::new(Open {
        container: Some(container.clone()),
        ..Open::default()
    }));
    arguments.send(vec![open_large]).await;
    let status = arguments.ended().await;
    refusal(status, MESSAGE_DECODED_BYTES_MAX);

    let mut reporting = Reporting::begin(&site).await;
    let report = HostReport {
        host: "host-1".into(),
        streams: vec![StreamReport::default(); 300_000],
        ..HostReport::default()
    };
    reporting.reports.send(report).await.unwrap();
    refusal(
        reporting.ended().await.unwrap_err(),
        MESSAGE_DECODED_BYTES_MAX,
    );

    let container = Container {
        args: vec![String::new(); 500_000],
        ..container
    };
    let check = CheckRequest {
        container: Some(container),
        ..CheckRequest::default()
    };
    let checked = RelayClient::new(site.channel().await).check(check).await;
    refusal(checked.unwrap_err(), CHECK_DECODED_BYTES_MAX);

    let refusals = "cls_shipper_refusals_total{tenant=\"a\",asked=\"message\"}";
    assert_eq!(site.metric(refusals).await, 3);
    let end = good.go_on(1, middle, &["after"]).await;
    good.acked_to(1, end).await.unwrap();
    assert_eq!(site.contents(), ["before", "after"]);
}
