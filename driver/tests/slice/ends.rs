//! How a stream ends: with nothing written, without a shipper; and what is told of it.

use super::*;
use proto::relay::StreamReport;

#[tokio::test]
async fn starts_that_write_nothing_leave_nothing_without_a_shipper() {
    let host = Host::new();
    let driver = host.run();
    for number in 0..20 {
        let mut container = Container::new(host.path(), &format!("c{number}"));
        host.start(&container, "{}").await;
        host.stop(&container).await;
        container.close();
    }
    host.no_stream_is_left().await;
    let left = std::fs::read_dir(host.path().join("state")).unwrap();
    let folders = left.filter(|entry| entry.as_ref().unwrap().path().is_dir());
    assert_eq!(folders.count(), 0);
    driver.stop().await;
}

/// Returns how many files of the state folder this process has open.
fn open_files(host: &Host) -> usize {
    let state = host.path().join("state");
    let files = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let links = files.filter_map(|file| std::fs::read_link(file.path()).ok());
    let own = links.filter(|link| link.starts_with(&state) && !link.ends_with("lock"));
    own.count()
}

#[tokio::test]
async fn a_stream_that_is_over_has_no_descriptor_and_is_shipped_later() {
    let host = Host::new();
    let driver = host.run();
    for number in 0..10 {
        let mut container = Container::new(host.path(), &format!("c{number}"));
        host.start(&container, "{}").await;
        container.write_lines(10).await;
        host.stop(&container).await;
        container.close();
    }
    eventually("no file is open", || open_files(&host) == 0).await;
    assert_eq!(host.streams().len(), 10);
    let shipper = FakeShipper::start(&host.shipper(), Behaviour::default());
    host.no_stream_is_left().await;
    for number in 0..10 {
        let log = shipper.log_of(&format!("c{number}"));
        assert_eq!(log.lines(), numbered_lines(10));
        let totals = log.totals.expect("the end brings the counters");
        let counts = (totals.received_entries, totals.delivered_entries);
        assert_eq!(counts, (10, 0), "what the call settles is not among them");
    }
    driver.stop().await;
}

/// What was settled in an earlier call is among the counters that the end brings.
#[tokio::test]
async fn the_last_counters_travel_with_the_end_whoever_was_told_before() {
    let host = Host::new();
    let shipper = FakeShipper::start(&host.shipper(), Behaviour::default());
    let driver = host.run();
    let mut container = Container::new(host.path(), "c1");
    host.start(&container, "{}").await;
    container.write_lines(100).await;
    let is_acked = |state: &fake::State| {
        let mut logs = state.logs.values();
        logs.any(|log| {
            log.acked > 0 && log.acked == log.bytes.len() as u64 && log.lines().len() == 100
        })
    };
    shipper.wait("all is acknowledged", is_acked).await;
    drop(shipper);
    container.close();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(host.streams().len(), 1, "nobody knows its last counters");
    driver.drop_abruptly().await;
    let driver = host.run();
    let shipper = FakeShipper::start(&host.shipper(), Behaviour::default());
    host.no_stream_is_left().await;
    let totals: StreamReport = shipper.log_of("c1").totals.unwrap();
    let counts = (totals.received_entries, totals.delivered_entries);
    assert_eq!((counts, totals.buffered_bytes), ((100, 100), 0));
    driver.stop().await;
}
