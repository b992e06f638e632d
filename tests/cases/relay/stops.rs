//! A shipper that is asked to end, and one that can't begin.

use super::call::{MULTILINE, chunk, open};
use super::site::{OUTAGE, Site};
use shipper::base::clock::WallClock;
use shipper::config::Config;
use std::time::Duration;

#[tokio::test]
async fn a_stop_delivers_and_acknowledges_what_was_taken() {
    // Long linger and one slot that is busy: at the stop, most records are still unsealed.
    let mut site = Site::start("linger_ms = 60000\nconcurrency_max = 1").await;
    site.stall(Duration::from_millis(300));
    let mut call = site.call().await;
    let middle = call.begin_stream(1, 0, &["one"]).await;
    let end = call.go_on(1, middle, &["two"]).await;
    call.opened().await;
    site.stalled().await;
    site.stop.take().unwrap().send(()).unwrap();
    assert_eq!(call.acked_to(1, end).await.unwrap().delivered_entries, 2);
    site.tasks.join_next().await.unwrap().unwrap();
    assert_eq!(site.contents(), ["one", "two"]);
}

#[tokio::test]
async fn a_record_of_several_lines_is_not_torn_by_a_stop() {
    let mut site = Site::start("concurrency_max = 1").await;
    site.stall(OUTAGE);
    let mut call = site.call().await;
    let (first, middle) = chunk(1, 0, &["first"]);
    call.send(vec![open(1, 0, &MULTILINE), first]).await;
    site.stalled().await;
    // The lane has something to do when the record is overdue.
    let (more, _) = chunk(1, middle, &["second", "trace:"]);
    call.send(vec![more, open(2, 0, &[])]).await;
    call.until(|response| response.opened.iter().find(|o| o.stream == 2).copied())
        .await
        .unwrap();
    site.stop.take().unwrap().send(()).unwrap();
    site.tasks.join_next().await.unwrap().unwrap();
    // The next shipper gets the rest, and with it the record's beginning.
    assert_eq!(site.contents(), ["first", "second"]);
}

/// Two shippers of one configuration: the second one can't have the first one's admin address.
#[tokio::test]
async fn a_second_shipper_that_can_not_start_leaves_the_first_its_socket() {
    let site = Site::start("").await;
    drop(site.channel().await);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let text = format!(
        "[listen]\nunix = \"{}\"\n[admin]\nlisten = \"{}\"\n",
        site.socket.display(),
        taken.local_addr().unwrap(),
    );
    let config = Config::from_table(text.parse().unwrap(), std::iter::empty()).unwrap();
    let never = std::future::pending();
    let error = shipper::run(config, WallClock::system(), never).await;
    let error = error.unwrap_err().to_string();
    assert!(error.starts_with("listen on 127.0.0.1:"), "{error}");
    site.channel().await;
}
