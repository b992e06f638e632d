//! How many bytes a stream may have under way, and who gets room when it is scarce.

use super::call::{Call, Sent, chunk, open, piece_of};
use super::site::{OTHER_TOPIC, Site, TOPIC};
use proto::relay::ShipResponse;
use shipper::lane::window::WINDOW_BYTES_MIN;
use tonic::Code;
use world::standin::fault::{Fault, FaultKind};

#[tokio::test]
async fn a_driver_that_keeps_no_window_is_told_so_and_others_go_on() {
    let site = Site::start("").await;
    let (mut good, mut bad) = (site.call().await, site.call().await);
    let line = "x".repeat(16_000);
    let (entries, middle) = chunk(1, 0, &[&line, &line]);
    let (beyond, _) = chunk(1, middle, &[&line]);
    bad.send(vec![open(1, 0, &[]), entries, beyond]).await;
    let status = bad.ended().await;
    assert_eq!(status.code(), Code::InvalidArgument);
    let rule = "beyond its window of 32768";
    assert!(status.message().ends_with(rule), "{status}");
    let end = good.begin_stream(1, 0, &["fine"]).await;
    good.acked_to(1, end).await.unwrap();
    assert_eq!(site.contents(), ["fine"]);
}

/// A stream whose host's journal always has more, and that says so as far as its window allows.
struct Busy {
    stream: u32,
    offset: u64,
    acked: u64,
    window: u64,
}

impl Busy {
    async fn open(call: &Call, stream: u32, log_opts: &[(&str, &str)]) -> Self {
        call.send(vec![open(stream, 0, log_opts)]).await;
        Self {
            stream,
            offset: 0,
            acked: 0,
            window: WINDOW_BYTES_MIN,
        }
    }

    /// Sends as much as the window has room for.
    async fn fill(&mut self, call: &Call) {
        let line = "x".repeat(8_000);
        loop {
            let (entries, end) = chunk(self.stream, self.offset, &[&line]);
            if end - self.acked > self.window {
                return;
            }
            call.send(vec![entries]).await;
            self.offset = end;
        }
    }

    /// Waits until all is acknowledged, and follows the window.
    async fn settle(&mut self, call: &mut Call) {
        let read = call.until(|response| {
            for window in &response.windows {
                if window.stream == self.stream {
                    self.window = window.bytes;
                }
            }
            for ack in &response.acks {
                if ack.stream == self.stream {
                    self.acked = ack.offset;
                }
            }
            (self.acked >= self.offset).then_some(())
        });
        read.await.unwrap();
    }
}

/// A lane whose windows have grown keeps their bytes in memory when it begins to hold. The budget
/// here is 1 MiB.
#[tokio::test]
async fn a_lane_that_holds_leaves_room_for_the_windows_of_another() {
    let site = Site::start("buffer_bytes_max = 1048576").await;
    let mut call = site.call().await;
    let mut held = Vec::new();
    for stream in 1..=4 {
        held.push(Busy::open(&call, stream, &[]).await);
    }
    for busy in &mut held {
        for _ in 0..6 {
            busy.fill(&call).await;
            busy.settle(&mut call).await;
        }
    }
    let mut failure = Fault::new(FaultKind::Status(404));
    failure.topic_id = Some(TOPIC.to_owned());
    site.standin.add_fault(failure);
    for busy in &mut held {
        busy.fill(&call).await;
    }
    let mut other = Busy::open(&call, 5, &[("topic_id", OTHER_TOPIC)]).await;
    for _ in 0..6 {
        other.fill(&call).await;
        other.settle(&mut call).await;
    }
    assert!(
        other.window >= 4 * WINDOW_BYTES_MIN,
        "{} bytes under way",
        other.window
    );
    let in_memory: u64 = held.iter().map(|busy| busy.offset - busy.acked).sum();
    assert!(
        in_memory > 4 * WINDOW_BYTES_MIN,
        "only {in_memory} bytes are held"
    );
}

/// A long line needs room beyond its window when none is to be had. Others give back what they have not
/// used for seconds, and the line gets it before it is late.
#[tokio::test]
async fn a_long_line_is_given_room_as_soon_as_there_is_some() {
    let site = Site::start("buffer_bytes_max = 1048576").await;
    let mut call = site.call().await;
    for stream in 2..=5 {
        let mut busy = Busy::open(&call, stream, &[]).await;
        for _ in 0..6 {
            busy.fill(&call).await;
            busy.settle(&mut call).await;
        }
    }
    let mut sent = Sent::default();
    let text = "x".repeat(16 << 10);
    let first = sent.chunk(piece_of("a", 1, false, &text), true);
    call.send([vec![open(1, 0, &[])], first].concat()).await;
    let of_stream = |response: &ShipResponse| {
        let mut windows = response.windows.iter();
        windows.find(|window| window.stream == 1).copied()
    };
    let window = call.until(of_stream).await.unwrap();
    assert_eq!(window.bytes, 2 * WINDOW_BYTES_MIN);
    call.send(sent.chunk(piece_of("a", 2, true, &text), false))
        .await;
    call.acked_to(1, sent.offset).await.unwrap();
    assert!(site.contents().contains(&text.repeat(2)));
}
