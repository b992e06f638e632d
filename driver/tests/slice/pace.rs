//! When FIFOs are read: lines gather in the pipe as long as the shipper allows, and no longer.

use super::*;

/// Writes a line each `every`, and returns how many requests brought them.
async fn requests_for(hold_ms: Option<u32>, line_count: usize, every: Duration) -> usize {
    let host = Host::new();
    let behaviour = Behaviour {
        hold_ms,
        ..Behaviour::default()
    };
    let shipper = FakeShipper::start(&host.shipper(), behaviour);
    let driver = host.run();
    let mut container = Container::new(host.path(), "c1");
    host.start(&container, "{}").await;
    for _ in 0..line_count {
        container.write_lines(1).await;
        tokio::time::sleep(every).await;
    }
    shipper
        .wait("all lines arrive", |state| {
            state
                .logs
                .values()
                .any(|log| log.lines().len() == line_count)
        })
        .await;
    let count = shipper.state().chunk_count;
    container.close();
    host.no_stream_is_left().await;
    driver.stop().await;
    count
}

#[tokio::test]
async fn lines_of_a_steady_trickle_gather_in_the_pipe() {
    let every = Duration::from_millis(10);
    let gathered = requests_for(Some(250), 200, every).await;
    // 2 s: a read each 250 ms, and some while the pace is found.
    assert!(gathered <= 30, "{gathered} chunks");
    let at_once = requests_for(None, 200, every).await;
    assert!(
        at_once >= 2 * gathered,
        "{at_once} chunks, {gathered} with a hold"
    );
}

/// A container whose lines may gather in the pipe for a minute.
async fn with_a_long_hold() -> (Host, FakeShipper, Driver, Container) {
    let host = Host::new().with("JOURNAL_SYNC_MS", "600000");
    let behaviour = Behaviour {
        hold_ms: Some(60_000),
        ..Behaviour::default()
    };
    let shipper = FakeShipper::start(&host.shipper(), behaviour);
    let driver = host.run();
    let container = Container::new(host.path(), "c1");
    host.start(&container, "{}").await;
    (host, shipper, driver, container)
}

#[tokio::test]
async fn a_line_after_a_quiet_second_goes_at_once() {
    let (host, shipper, driver, mut container) = with_a_long_hold().await;
    for line_count in 1..=4 {
        container.write_lines(1).await;
        let began = Instant::now();
        shipper
            .wait("the line arrives", |state| {
                state
                    .logs
                    .values()
                    .any(|log| log.lines().len() == line_count)
            })
            .await;
        // Half of what a read by its beat would take, and much more than the way takes.
        assert!(
            began.elapsed() < Duration::from_millis(250),
            "{:?}",
            began.elapsed()
        );
        tokio::time::sleep(Duration::from_millis(1_000)).await;
    }
    container.close();
    host.no_stream_is_left().await;
    driver.stop().await;
}

#[tokio::test]
async fn a_stop_reads_at_once_what_gathers_in_the_pipe() {
    let (host, shipper, driver, mut container) = with_a_long_hold().await;
    for _ in 0..50 {
        container.write_lines(1).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(host.stop(&container).await < Duration::from_millis(200));
    shipper
        .wait("all lines arrive", |state| {
            state.logs.values().any(|log| log.lines().len() == 50)
        })
        .await;
    container.close();
    host.no_stream_is_left().await;
    driver.stop().await;
}
