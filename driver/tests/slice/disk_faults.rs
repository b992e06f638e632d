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
    nothing_is_missing(&host, &mut container, &shipper, 110).await;
    driver.stop().await;
}

/// Ends a container, and asserts that each of its lines has arrived.
async fn nothing_is_missing(
    host: &Host,
    container: &mut Container,
    shipper: &FakeShipper,
    line_count: u64,
) {
    container.close();
    host.no_stream_is_left().await;
    let log = shipper.log_of("c1");
    assert_eq!(
        (log.holes.clone(), log.lines()),
        (vec![], numbered_lines(line_count))
    );
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
    nothing_is_missing(&host, &mut container, &shipper, 1_000).await;
    driver.stop().await;
}

/// A full journal is read on although its oldest segment can't be, and no shipper takes anything.
async fn write_behind_what_cannot_be_read(options: &str, error: Option<Errno>) {
    let host = Host::new().with("JOURNAL_BLOCK_MS_MAX", "200");
    let disk = Arc::new(Faulty::default());
    let driver = run_on(&host, &disk);
    let mut container = Container::new(host.path(), "c1");
    host.start(&container, options).await;
    container.write_lines(4_000).await; // 0.8 MB
    assert!(host.stop(&container).await < Duration::from_secs(1));
    match error {
        Some(_) => disk.fail_reads(error),
        None => {
            let folder = host.streams().remove(0);
            std::fs::remove_file(folder.join("0".repeat(20))).unwrap();
        }
    }
    let written = tokio::time::timeout(PATIENCE, container.write_lines(30_000)).await;
    assert!(written.is_ok(), "{error:?}: the FIFO is not read");
    assert!(host.stop(&container).await < Duration::from_secs(1));
    disk.fail_reads(None);
    let shipper = FakeShipper::start(&host.shipper(), Behaviour::default());
    container.close();
    host.no_stream_is_left().await;
    let log = shipper.log_of("c1");
    let newest = log.lines();
    assert_eq!(
        newest,
        numbered_lines(34_000).split_off(34_000 - newest.len()),
        "the newest are kept"
    );
    let has_lost = log.holes.iter().any(|hole| hole.reason == "disk_error");
    assert!(has_lost, "{:?}", log.holes);
    driver.stop().await;
}

#[tokio::test]
async fn a_full_journal_that_cannot_be_read_stops_no_container() {
    let options = r#"{"journal-size":"1m","mode":"non-blocking"}"#;
    for error in [Some(Errno::IO), Some(Errno::MFILE), None] {
        write_behind_what_cannot_be_read(options, error).await;
    }
}

#[tokio::test]
async fn a_full_journal_that_cannot_be_read_stops_no_blocking_container() {
    write_behind_what_cannot_be_read(r#"{"journal-size":"1m"}"#, Some(Errno::IO)).await;
}

/// A segment is missing when the next process starts, and an entry begins right before it.
#[tokio::test]
async fn a_full_journal_with_a_gap_stops_no_container() {
    let host = Host::new().with("JOURNAL_BLOCK_MS_MAX", "200");
    let driver = host.run();
    let mut container = Container::new(host.path(), "c1");
    let options = r#"{"journal-size":"1m","mode":"non-blocking"}"#;
    host.start(&container, options).await;
    container.write_lines(4_000).await; // 0.8 MB
    driver.stop().await;
    let folder = host.streams().remove(0);
    let names = std::fs::read_dir(&folder).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.len() == 20).collect();
    names.sort();
    std::fs::remove_file(folder.join(&names[2])).unwrap();
    let driver = host.run();
    let written = tokio::time::timeout(PATIENCE, container.write_lines(30_000)).await;
    assert!(written.is_ok(), "the FIFO is not read");
    assert!(host.stop(&container).await < Duration::from_secs(1));
    driver.stop().await;
}

/// A read is tried three times, a second apart, however often something arrives meanwhile.
#[tokio::test]
async fn a_read_error_of_a_moment_costs_a_busy_container_nothing() {
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
    for _ in 0..40 {
        container.write_lines(1).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(disk.failed_reads() > 0);
    disk.fail_reads(None);
    nothing_is_missing(&host, &mut container, &shipper, 140).await;
    driver.stop().await;
}

/// Entries that one shipper was sent, and that can't be read for the next one, are counted as dropped.
#[tokio::test]
async fn the_ledger_is_exact_when_what_was_sent_cannot_be_read_again() {
    let host = Host::new();
    let shipper = FakeShipper::start(&host.shipper(), Behaviour::without_acks());
    let disk = Arc::new(Faulty::default());
    let driver = run_on(&host, &disk);
    let mut container = Container::new(host.path(), "c1");
    host.start(&container, "{}").await;
    container.write_lines(100).await;
    let has_all = |state: &fake::State| state.logs.values().any(|log| log.lines().len() == 100);
    shipper.wait("all is sent", has_all).await;
    disk.fail_reads(Some(Errno::IO));
    drop(shipper);
    let shipper = FakeShipper::start(&host.shipper(), Behaviour::default());
    let has_hole = |state: &fake::State| state.logs.values().any(|log| !log.holes.is_empty());
    shipper.wait("they are given up", has_hole).await;
    disk.fail_reads(None);
    let is_exact = |state: &fake::State| {
        let mut streams = state.reports.iter().flat_map(|report| &report.streams);
        streams.any(|stream| {
            let dropped = stream.dropped_entries.get("disk_error").copied();
            (stream.received_entries, dropped) == (100, Some(100)) && stream.buffered_bytes == 0
        })
    };
    shipper.wait("they are counted", is_exact).await;
    assert_eq!(shipper.log_of("c1").holes[0].entries, 100);
    driver.stop().await;
}

/// The disk is asked again before anything is dropped for its sake, however long a sync takes.
#[tokio::test]
async fn a_disk_that_is_low_for_a_moment_costs_nobody_a_line() {
    let host = Host::new()
        .with("JOURNAL_SIZE", "64m")
        .with("JOURNAL_SYNC_MS", "10000");
    let disk = Arc::new(Faulty::default());
    let driver = run_on(&host, &disk);
    let mut still = Container::new(host.path(), "still");
    host.start(&still, "{}").await;
    still.write_lines(60_000).await; // 12 MB
    let mut busy = Container::new(host.path(), "busy");
    host.start(&busy, r#"{"mode":"non-blocking"}"#).await;
    busy.write_lines(20_000).await; // 4 MB
    disk.set_low(true);
    let before = disk.free_checks();
    eventually("the disk is asked", || disk.free_checks() > before).await;
    disk.set_low(false);
    busy.write_lines(20_000).await;
    let shipper = FakeShipper::start(&host.shipper(), Behaviour::default());
    for container in [&mut still, &mut busy] {
        host.stop(container).await;
        container.close();
    }
    host.no_stream_is_left().await;
    for (id, count) in [("still", 60_000), ("busy", 40_000)] {
        let log = shipper.log_of(id);
        assert_eq!(log.holes, [], "{id}");
        assert_eq!(log.lines(), numbered_lines(count), "{id}");
    }
    driver.stop().await;
}

/// What is in memory frees no disk, and needs none.
#[tokio::test]
async fn a_low_disk_drops_nothing_that_is_in_memory() {
    let host = Host::new();
    let disk = Arc::new(Faulty::default());
    disk.set_low(true);
    let driver = run_on(&host, &disk);
    let mut memory = Container::new(host.path(), "memory");
    host.start(&memory, r#"{"no-file":"true","mode":"non-blocking"}"#)
        .await;
    memory.write_lines(40_000).await; // 8 MB of 16
    let mut busy = Container::new(host.path(), "busy");
    host.start(&busy, r#"{"mode":"non-blocking"}"#).await;
    busy.write_lines(40_000).await;
    let shipper = FakeShipper::start(&host.shipper(), Behaviour::default());
    for container in [&mut memory, &mut busy] {
        host.stop(container).await;
        container.close();
    }
    host.no_stream_is_left().await;
    let log = shipper.log_of("memory");
    assert_eq!(
        (log.holes.clone(), log.lines()),
        (vec![], numbered_lines(40_000))
    );
    driver.stop().await;
}

/// Returns the bytes of all files of a folder.
fn bytes_of(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let bytes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_of(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    bytes.sum()
}

/// Free disk keeps its floor, however many containers there are: each journal has two segments of 64 KiB.
#[tokio::test]
async fn a_low_disk_grows_by_little_for_each_of_many_containers() {
    const CONTAINERS: u64 = 40;
    let host = Host::new();
    let disk = Arc::new(Faulty::default());
    disk.set_low(true);
    let driver = run_on(&host, &disk);
    let mut containers = Vec::new();
    for number in 0..CONTAINERS {
        let container = Container::new(host.path(), &format!("c{number}"));
        host.start(&container, r#"{"mode":"non-blocking"}"#).await;
        containers.push(container);
    }
    eventually("the disk is asked", || disk.free_checks() > 0).await;
    let before = bytes_of(&host.path().join("state"));
    for container in &mut containers {
        let written = tokio::time::timeout(PATIENCE, container.write_lines(3_000)).await; // 0.6 MB
        assert!(written.is_ok(), "{}: the FIFO is not read", container.id);
    }
    let grown = bytes_of(&host.path().join("state")) - before;
    assert!(grown <= CONTAINERS * (144 << 10), "{grown} bytes");
    driver.stop().await;
}

/// A low disk stops no FIFO, though all that its journal holds is in flight and can't be dropped.
#[tokio::test]
async fn a_low_disk_stops_no_container_whose_journal_is_in_flight() {
    let host = Host::new();
    let shipper = FakeShipper::start(&host.shipper(), Behaviour::without_acks());
    let disk = Arc::new(Faulty::default());
    let driver = run_on(&host, &disk);
    let mut container = Container::new(host.path(), "c1");
    host.start(&container, r#"{"mode":"non-blocking"}"#).await;
    container.write_lines(2_000).await; // 0.4 MB
    let has_some = |state: &fake::State| state.logs.values().any(|log| log.bytes.len() > 200_000);
    shipper.wait("much is in flight", has_some).await;
    disk.set_low(true);
    eventually("the disk is low", || disk.free_checks() > 2).await;
    let before = bytes_of(&host.path().join("state"));
    let written = tokio::time::timeout(PATIENCE, container.write_lines(30_000)).await; // 6 MB
    assert!(written.is_ok(), "the FIFO is not read");
    let grown = bytes_of(&host.path().join("state")).saturating_sub(before);
    assert!(grown <= 144 << 10, "{grown} bytes");
    driver.stop().await;
}

/// Journals in memory have a bound of their own, which a disk with plenty of room does not lift.
#[tokio::test]
async fn journals_in_memory_have_a_bound_for_the_host() {
    const CONTAINERS: u64 = 8;
    let host = Host::new().with("JOURNAL_MEMORY_SIZE", "4m");
    let mut driver = host.spawn();
    connect(&host.plugin()).await;
    let mut containers = Vec::new();
    for number in 0..CONTAINERS {
        let mut container = Container::new(host.path(), &format!("c{number}"));
        let options = r#"{"no-file":"true","mode":"non-blocking"}"#;
        host.start(&container, options).await;
        let written = tokio::time::timeout(PATIENCE, container.write_lines(10_000)).await; // 2 MB
        assert!(written.is_ok(), "{}: the FIFO is not read", container.id);
        containers.push(container);
    }
    let folder = format!("/proc/{}/fd", driver.id().unwrap());
    let files = std::fs::read_dir(folder).unwrap().flatten();
    let is_memory = |path: &PathBuf| {
        let link = std::fs::read_link(path).unwrap_or_default();
        link.to_string_lossy().contains("memfd:journal")
    };
    let files = files.map(|file| file.path()).filter(is_memory);
    let held: u64 = files
        .map(|path| std::fs::metadata(path).map_or(0, |file| file.len()))
        .sum();
    assert!(held > 2 << 20, "{held}");
    assert!(held <= (4 << 20) + CONTAINERS * (192 << 10), "{held} bytes");
    driver.kill().await.unwrap();
}
