//! Reports of hosts on their streams, and the ledger that keeps them.

use super::site::Site;
use proto::relay::relay_client::RelayClient;
use proto::relay::{HostReport, ReportAck, StreamReport};
use shipper::config::Config;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use world::processes::wait_until;

/// A call of the relay that reports.
pub(super) struct Reporting {
    pub(super) reports: mpsc::Sender<HostReport>,
    tasks: JoinSet<Result<ReportAck, Status>>,
}

impl Reporting {
    pub(super) async fn begin(site: &Site) -> Self {
        let (reports, receiver) = mpsc::channel(16);
        let mut client = RelayClient::new(site.channel().await);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let ended = client.report(ReceiverStream::new(receiver)).await;
            ended.map(tonic::Response::into_inner)
        });
        Self { reports, tasks }
    }

    pub(super) async fn send(&self, host: &str, stream_count: u32, received_entries: u64) {
        let stream = |number| StreamReport {
            journal_id: format!("{number:032x}"),
            received_entries,
            ..StreamReport::default()
        };
        let report = HostReport {
            host: host.into(),
            version: "0".into(),
            streams: (0..stream_count).map(stream).collect(),
        };
        self.reports.send(report).await.unwrap();
    }

    pub(super) async fn ended(&mut self) -> Result<ReportAck, Status> {
        let ended = tokio::time::timeout(Duration::from_secs(20), self.tasks.join_next()).await;
        ended.expect("an end within 20 s").unwrap().unwrap()
    }
}

/// Waits until the ledger has so many streams of a host, each with so many entries.
pub(super) async fn reported(site: &Site, host: &str, stream_count: usize, received: u64) {
    let is_reported = async || {
        let page = world::client::call(site.admin, "GET", "/api/ledger").await;
        let lines: Vec<serde_json::Value> = serde_json::from_slice(&page.unwrap()).unwrap();
        let of_host = lines.iter().filter(|line| line["host"] == host);
        of_host.filter(|line| line["received"] == received).count() == stream_count
    };
    wait_until("a report", Duration::from_secs(20), is_reported)
        .await
        .unwrap();
}

/// Reports end with the rules that they began by, as streams do.
#[tokio::test]
async fn a_host_that_is_no_longer_allowed_reports_no_more() {
    let tenant =
        |host: &str| format!("[[tenants]]\nname = \"a\"\nunix_uid = 0\nhosts = [\"{host}\"]");
    let site = Site::start(&tenant("host-1")).await;
    let mut reporting = Reporting::begin(&site).await;
    reporting.send("host-1", 1, 1).await;
    reported(&site, "host-1", 1, 1).await;
    let mut config = site.config.clone();
    let other = Config::from_table(tenant("host-2").parse().unwrap(), std::iter::empty());
    config.tenants = other.unwrap().tenants;
    site.reloads.send(config).await.unwrap();
    reporting.ended().await.unwrap();

    let mut again = Reporting::begin(&site).await;
    again.send("host-1", 1, 2).await;
    let status = again.ended().await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert_eq!(status.message(), "tenant a may not report for host-1");
    let mut long = Reporting::begin(&site).await;
    long.send(&"h".repeat(256), 1, 2).await;
    let status = long.ended().await.unwrap_err();
    let rule = "the host name is 256 bytes, the limit is 255";
    assert_eq!(status.message(), rule);
    let allowed = Reporting::begin(&site).await;
    allowed.send("host-2", 1, 3).await;
    reported(&site, "host-2", 1, 3).await;
    reported(&site, "host-1", 1, 1).await;
    let refusals = "cls_shipper_refusals_total{tenant=\"a\",asked=\"report\"}";
    assert_eq!(site.metric(refusals).await, 2);
}

/// What the ledger has no place for is counted, and the call goes on.
#[tokio::test]
async fn a_report_of_too_many_streams_is_kept_in_part_and_goes_on() {
    let site = Site::start("[[tenants]]\nname = \"a\"\nunix_uid = 0").await;
    let reporting = Reporting::begin(&site).await;
    reporting.send("host-1", 20_000, 1).await;
    reported(&site, "host-1", 16_384 + 1_024, 1).await;
    reporting.send("host-1", 1, 2).await;
    reported(&site, "host-1", 1, 2).await;
    let refusals = "cls_shipper_refusals_total{tenant=\"a\",asked=\"report\"}";
    assert_eq!(site.metric(refusals).await, 1);
}
