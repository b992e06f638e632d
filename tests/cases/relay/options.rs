//! Log options that are refused, with every fault, and disturb no other stream.

use super::call::{chunk, open};
use super::reports::{Reporting, reported};
use super::site::{Site, TOPIC};
use proto::relay::CheckRequest;
use proto::relay::relay_client::RelayClient;
use shipper::config::allowed_hosts::OWN_KEYS;
use std::collections::HashMap;
use std::time::Duration;

#[tokio::test]
async fn bad_options_are_refused_with_all_faults_and_disturb_no_other_stream() {
    let (site, mut call) = Site::with_call().await;
    let bad = [
        ("timeout", "soon"),
        ("colour", "red"),
        ("credentials", "prod"),
    ];
    let (entries, end) = chunk(2, 0, &["fine"]);
    call.send(vec![
        open(1, 0, &bad),
        chunk(1, 0, &["lost?"]).0,
        open(2, 0, &[]),
        entries,
    ])
    .await;
    let (mut refused, mut acked) = (None, 0);
    call.until(|response| {
        refused = refused.take().or_else(|| response.refused.first().cloned());
        acked = response
            .acks
            .iter()
            .map(|ack| ack.offset)
            .fold(acked, u64::max);
        (refused.is_some() && acked >= end).then_some(())
    })
    .await
    .unwrap();
    let reason = refused.unwrap().reason;
    for part in ["timeout", "soon", "colour"] {
        assert!(reason.contains(part), "{part}: {reason}");
    }
    assert_eq!(site.contents(), ["fine"]);
    let mut client = RelayClient::new(site.channel().await);
    let log_opts = bad
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
    let check = CheckRequest {
        log_opts,
        ..CheckRequest::default()
    };
    assert!(client.check(check).await.unwrap().into_inner().faults.len() >= 2);
    let good = client
        .check(CheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(good.faults, Vec::<String>::new());
}

/// Whoever can start a container must not have the operator's keys sent to a server of their own.
#[tokio::test]
async fn keys_of_the_shipper_go_nowhere_but_to_the_hosts_that_they_are_for() {
    let site = Site::start("").await;
    let own_server = tokio::net::TcpListener::bind("127.0.0.2:0").await.unwrap();
    let endpoint = format!("http://{}", own_server.local_addr().unwrap());
    let rule = format!(
        "log-opt endpoint={endpoint}: credentials \"default\" may not be used at host 127.0.0.2, \
         allowed: *.cls.tencentcs.com, *.cls.tencentyun.com, 127.0.0.1 \
         ([credentials.default] endpoints)"
    );
    let elsewhere = ("endpoint", endpoint.as_str());
    let mut client = RelayClient::new(site.channel().await);
    let request = CheckRequest {
        host: "host-1".into(),
        log_opts: HashMap::from([("endpoint".into(), endpoint.clone())]),
        ..CheckRequest::default()
    };
    let answer = client.check(request).await.unwrap().into_inner();
    assert_eq!(answer.faults, [rule.as_str()]);
    let mut call = site.call().await;
    call.send(vec![open(1, 0, &[elsewhere]), chunk(1, 0, &["secret"]).0])
        .await;
    assert_eq!(call.refused().await, rule);

    // A container's own keys go where the configuration says, too: it is the shipper that connects.
    let own_keys = [elsewhere, ("secret_id", "i"), ("secret_key", "k")];
    let rule = format!(
        "log-opt endpoint={endpoint}: a container's own keys may not be used at host 127.0.0.2, \
         allowed: *.cls.tencentcs.com, *.cls.tencentyun.com, 127.0.0.1 ([own_keys] endpoints)"
    );
    let request = CheckRequest {
        host: "host-1".into(),
        log_opts: own_keys
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
        ..CheckRequest::default()
    };
    let answer = client.check(request).await.unwrap().into_inner();
    assert_eq!(answer.faults, [rule.as_str()]);
    call.send(vec![open(2, 0, &own_keys), chunk(2, 0, &["own"]).0])
        .await;
    assert_eq!(call.refused().await, rule);
    let mut config = site.config.clone();
    config
        .endpoints
        .insert(OWN_KEYS.to_owned(), vec!["127.0.0.2".to_owned()]);
    site.reloads.send(config).await.unwrap();
    drop(call);
    let came = tokio::time::timeout(Duration::from_secs(20), async {
        let call = site.call().await;
        call.send(vec![open(2, 0, &own_keys), chunk(2, 0, &["own"]).0])
            .await;
        own_server.accept().await
    });
    came.await
        .expect("an upload to the container's server")
        .unwrap();
}

/// Nobody can change the options of a container that runs: a bad one holds none of its lines, and each
/// record says what was left out.
#[tokio::test]
async fn an_option_that_can_not_work_is_left_out_and_holds_no_line() {
    let (site, mut call) = Site::with_call().await;
    let bad = [
        ("filter-regex", "[ERROR"),
        ("tag", "{{.Nme}}"),
        ("colour", "red"),
        ("json", "off"),
    ];
    let (entries, end) = chunk(1, 0, &["{\"a\":1}", "two"]);
    call.send(vec![open(1, 0, &bad), entries]).await;
    let ack = call.acked_to(1, end).await.unwrap();
    assert_eq!(
        ack.delivered_entries,
        2,
        "{ack:?} {:?}",
        site.dead_letters()
    );
    assert_eq!(site.contents(), ["{\"a\":1}", "two"]);
    let mut record_count = 0;
    for upload in site.standin.uploads(TOPIC) {
        upload.visit(|record| {
            record_count += 1;
            let left_out = record.field("left_out_options").unwrap_or_default();
            for option in ["filter-regex=[ERROR", "tag={{.Nme}}", "colour"] {
                assert!(left_out.contains(option), "{option}: {left_out}");
            }
            assert!(!left_out.contains("json"), "{left_out}");
        });
    }
    assert_eq!(record_count, 2);
    // Of streams 0 and 1.
    let reporting = Reporting::begin(&site).await;
    reporting.send("host-1", 2, 2).await;
    reported(&site, "host-1", 2, 2).await;
    let page = world::client::call(site.admin, "GET", "/api/ledger").await;
    let lines: Vec<serde_json::Value> = serde_json::from_slice(&page.unwrap()).unwrap();
    let notes: Vec<&str> = lines
        .iter()
        .map(|line| line["note"].as_str().unwrap())
        .collect();
    assert_eq!(notes[0], "");
    assert!(
        notes[1].contains("log-opt filter-regex=[ERROR: must be"),
        "{notes:?}"
    );
}
