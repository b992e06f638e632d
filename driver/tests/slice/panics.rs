//! A panic about one container ends its stream, and harms no other.

use super::*;
use crate::faulty::{Call, Faulty};

/// Lines that were written when the panic came.
const LINES_BEFORE: u64 = 100;

/// Writes much to a container whose journal panics at a call, and to another one. With a shipper or without.
async fn panics_at(call: Call, has_shipper: bool) {
    let host = Host::new().with("JOURNAL_SYNC_MS", "10");
    let start_shipper = || FakeShipper::start(&host.shipper(), Behaviour::default());
    let shipper = has_shipper.then(start_shipper);
    let disk = Arc::new(Faulty::default());
    let driver = host.run_on(Arc::clone(&disk) as Arc<dyn Disk>);
    let options = r#"{"journal-size":"1m","mode":"non-blocking"}"#;
    let mut bad = Container::new(host.path(), "bad");
    host.start(&bad, options).await;
    let folder = host.streams().remove(0);
    let mut good = Container::new(host.path(), "good");
    host.start(&good, "{}").await;
    bad.write_lines(LINES_BEFORE).await;
    // All of them are in the journal.
    assert!(host.stop(&bad).await < Duration::from_secs(1));
    disk.panic_in(call, &folder);
    for container in [&mut bad, &mut good] {
        let written = tokio::time::timeout(PATIENCE, container.write_lines(20_000)).await;
        assert!(written.is_ok(), "{}: the FIFO is not read", container.id);
    }
    assert_eq!(disk.panic_count(), 1, "it is not touched again");
    assert!(host.stop(&bad).await < Duration::from_secs(1));
    let shipper = shipper.unwrap_or_else(start_shipper);
    let is_told = |state: &fake::State| {
        let mut streams = state.reports.iter().flat_map(|report| &report.streams);
        streams.any(|stream| stream.dropped_entries.contains_key("internal_error"))
    };
    shipper.wait("the loss is told", is_told).await;
    host.stop(&good).await;
    good.close();
    let is_over = |state: &fake::State| state.logs.values().any(|log| log.finished.is_some());
    shipper.wait("the other container is over", is_over).await;
    let log = shipper.log_of("good");
    assert_eq!(
        (log.holes.clone(), log.lines()),
        (vec![], numbered_lines(20_000))
    );
    driver.stop().await;

    // A new process goes on with what is in the journal, and with what is written then.
    let driver = host.run();
    connect(&host.plugin()).await;
    bad.write_lines(10).await;
    assert!(host.stop(&bad).await < Duration::from_secs(1));
    bad.close();
    host.no_stream_is_left().await;
    let log = shipper.log_of("bad");
    let (lines, all) = (log.lines(), numbered_lines(LINES_BEFORE + 20_010));
    assert!(
        lines.ends_with(&all[all.len() - 10..]),
        "{:?}",
        lines.last()
    );
    let has_hole = log.holes.iter().any(|hole| hole.reason == "internal_error");
    assert!(has_hole, "the loss stands in its place: {:?}", log.holes);
    if call == Call::Splice {
        assert!(lines.starts_with(&all[..100]), "{:?}", lines.first());
    }
    driver.stop().await;
}

#[tokio::test]
async fn a_panic_in_a_read_for_a_shipper() {
    panics_at(Call::Read, true).await;
}

#[tokio::test]
async fn a_panic_in_a_read_to_drop() {
    panics_at(Call::Read, false).await;
}

#[tokio::test]
async fn a_panic_in_a_read_of_a_fifo() {
    panics_at(Call::Splice, true).await;
}

#[tokio::test]
async fn a_panic_in_saving_an_acknowledgement() {
    panics_at(Call::Write, true).await;
}

#[tokio::test]
async fn a_panic_in_a_sync() {
    panics_at(Call::Sync, false).await;
}
