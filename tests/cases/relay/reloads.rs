//! A configuration that changes while calls last.

use super::call::{Call, open};
use super::site::{OTHER_TOPIC, Site};
use shipper::config::Config;
use tonic::Code;
use world::standin::fault::{Fault, FaultKind};

/// Where keys may be used is a rule that a reload changes: calls begin anew by it.
#[tokio::test]
async fn an_endpoint_that_is_no_longer_allowed_is_refused_to_calls_that_begin_anew() {
    let (site, mut call) = Site::with_call().await;
    let end = call.begin_stream(1, 0, &["before"]).await;
    call.acked_to(1, end).await.unwrap();
    let mut config = site.config.clone();
    let other = vec!["other.example".to_owned()];
    config.endpoints.insert("default".into(), other);
    site.reloads.send(config).await.unwrap();
    let status = call.ended().await;
    assert_eq!(status.message(), "the call has ended");
    let mut call = site.call().await;
    call.send(vec![open(1, end, &[])]).await;
    let reason = call.refused();
    assert_eq!(
        reason.await,
        "log-opt endpoint: is missing, and by default credentials \"default\" may not be used at \
         host 127.0.0.1, allowed: other.example ([credentials.default] endpoints)"
    );
}

#[tokio::test]
async fn other_defaults_are_for_calls_that_begin_anew() {
    let (site, mut call) = Site::with_call().await;
    let middle = call.begin_stream(1, 0, &["by the first"]).await;
    call.acked_to(1, middle).await.unwrap();
    // Nothing but keys, and then nothing at all, has changed: the call goes on.
    for _ in 0..2 {
        let mut config = site.config.clone();
        let inline = config.credentials["default"].clone();
        config.credentials.insert("spare".into(), inline);
        site.reloads.send(config).await.unwrap();
    }
    let mut config = site.config.clone();
    config.defaults.topic_id = Some(OTHER_TOPIC.into());
    site.reloads.send(config).await.unwrap();
    let status = call.ended().await;
    assert_eq!(status.message(), "the call has ended");
    let mut call = site.call().await;
    let end = call.begin_stream(1, middle, &["by the second"]).await;
    call.acked_to(1, end).await.unwrap();
    assert_eq!(site.contents(), ["by the first"]);
    assert_eq!(site.contents_of(OTHER_TOPIC), ["by the second"]);
}

/// A lane that holds has what it can't acknowledge; the rules change for its host nevertheless.
#[tokio::test]
async fn a_tenant_that_is_no_more_is_put_out_although_its_lane_holds() {
    let site = Site::start("").await;
    site.standin.add_fault(Fault::new(FaultKind::Status(404)));
    let mut call = site.call().await;
    let _ = call.begin_stream(1, 0, &["held"]).await;
    site.metric_is("cls_shipper_batches", 1).await;
    let mut config = site.config.clone();
    let table = "[[tenants]]\nname = \"other\"\nunix_uid = 12345".parse();
    let other = Config::from_table(table.unwrap(), std::iter::empty()).unwrap();
    config.tenants = other.tenants;
    site.reloads.send(config).await.unwrap();
    let status = call.ended().await;
    assert_eq!(status.message(), "the call has ended");
    let status = Call::begin(site.channel().await).await.err().unwrap();
    assert_eq!(status.code(), Code::Unauthenticated);
    site.metric_is("cls_shipper_batches", 0).await;
    assert_eq!(site.contents(), Vec::<String>::new());
}
