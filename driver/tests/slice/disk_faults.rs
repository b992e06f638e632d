//! Disks that can't be read, or have no room.

use super::*;
use crate::faulty::Faulty;

fn run_on(host: &Host, disk: &Arc<Faulty>) -> Driver {
    host.run_on(Arc::clone(disk) as Arc<dyn Disk>)
}

/// A read that fails for a moment is tried again, and costs nothing.
#[tokio::test]
async fn a_read_error_of_a_moment_costs_a_quiet_container_nothing() {
    let host = Host::new();
    let shipper = FakeShipper::start(&host.shipper(), Behaviour::default());
    let disk = Arc::new(Faulty::default());
    let driver = run_on(&host, &disk);
    let mut container = Container::new(host.path(), "c1");
    host.start(&container, "{}").await;
    container.write_lines(100).await;
    let has_some = |state: &fake::State| state.logs.values().any(|log| log.acked > 0);
    shipper.wait("the stream is open", has_some).await;
    disk.fail_reads(Some(Errno::IO));
    container.write_lines(10).await;
    eventually("a read fails", || disk.failed_reads() > 0).await;
    disk.fail_reads(None);
    container.close();
    host.no_stream_is_left().await;
    let log = shipper.log_of("c1");
    assert_eq!(
        (log.holes.clone(), log.lines()),
        (vec![], numbered_lines(110))
    );
    driver.stop().await;
}

/// A disk without room stops no container that writes little: its lines arrive as ever.
#[tokio::test]
async fn a_low_disk_costs_a_quiet_container_nothing() {
    let host = Host::new().with("JOURNAL_SYNC_MS", "10");
    let disk = Arc::new(Faulty::default());
    disk.set_low(true);
    let shipper = FakeShipper::start(&host.shipper(), Behaviour::default());
    let driver = run_on(&host, &disk);
    let mut container = Container::new(host.path(), "c1");
    host.start(&container, "{}").await;
    eventually("the disk is asked", || disk.free_checks() > 0).await;
    container.write_lines(1_000).await;
    container.close();
    host.no_stream_is_left().await;
    let log = shipper.log_of("c1");
    assert_eq!(
        (log.holes.clone(), log.lines()),
        (vec![], numbered_lines(1_000))
    );
    driver.stop().await;
}
