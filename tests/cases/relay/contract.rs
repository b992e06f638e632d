//! What a driver must keep to. Who breaks the contract loses its call and is told the rule.

use super::call::{chunk, frames, open};
use super::site::Site;
use proto::relay::event::Kind;
use proto::relay::{Chunk, Finish, Hole, Open};
use tonic::Code;

#[tokio::test]
async fn a_gap_ends_the_call_with_the_offsets() {
    let (_site, mut call) = Site::with_call().await;
    call.send(vec![open(1, 0, &[]), chunk(1, 7, &["x"]).0])
        .await;
    let status = call.ended().await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(
        status.message(),
        "stream 1 continues at offset 7, expected 0"
    );
}

#[tokio::test]
async fn a_torn_chunk_ends_the_call() {
    let (_site, mut call) = Site::with_call().await;
    let mut torn = frames(&["whole", "torn"]);
    torn.pop();
    let torn = Chunk {
        stream: 1,
        first_offset: 0,
        frames: torn.into(),
        has_more: false,
    };
    call.send(vec![open(1, 0, &[]), Kind::Chunk(torn)]).await;
    let status = call.ended().await;
    assert_eq!(
        status.message(),
        "stream 1 sent a chunk that does not end with a frame"
    );
}

#[tokio::test]
async fn offsets_without_an_end_and_holes_without_number_end_their_call() {
    let site = Site::start("").await;
    let hole = |first_offset, end_offset, reason: &str| {
        Kind::Hole(Hole {
            stream: 1,
            first_offset,
            end_offset,
            reason: reason.to_owned(),
            ..Hole::default()
        })
    };
    let largest = hole(0, u64::MAX, "x");
    let many = std::iter::repeat_with(|| hole(0, 0, "x")).take(2_049);
    for (events, rule) in [
        (
            vec![largest, chunk(1, 0, &["x"]).0],
            "continues at offset 0",
        ),
        (
            vec![hole(0, u64::MAX - 1, "x"), at_the_end()],
            "the largest offset",
        ),
        (many.collect(), "too many holes at once"),
        (vec![hole(0, 1, &"x".repeat(257))], "too long a reason"),
        (
            vec![hole(0, 1, "x"), hole(1, 0, "x")],
            "ends before it begins",
        ),
    ] {
        let mut call = site.call().await;
        call.send([vec![open(1, 0, &[])], events].concat()).await;
        let status = call.ended().await;
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(rule), "{rule}: {status}");
    }
    let mut call = site.call().await;
    let finish = std::iter::repeat_with(|| Kind::Finish(Finish::default()));
    call.send(finish.take(4_097).collect()).await;
    let status = call.ended().await;
    assert_eq!(status.message(), "a request has 4097 events, at most 4096");
}

/// Returns a chunk that would go beyond the largest offset.
fn at_the_end() -> Kind {
    Kind::Chunk(Chunk {
        stream: 1,
        first_offset: u64::MAX - 1,
        frames: frames(&["x"]).into(),
        has_more: false,
    })
}

#[tokio::test]
async fn an_open_is_what_it_must_be_and_one_of_an_older_driver_may_lack_the_rest() {
    let (site, mut call) = Site::with_call().await;
    let with = |stream, change: fn(&mut Open)| {
        let Kind::Open(mut open) = open(stream, 0, &[]) else {
            unreachable!("it is an open")
        };
        change(&mut open);
        Kind::Open(open)
    };
    call.send(vec![
        with(1, |open| open.journal_id = "no\nid".into()),
        with(2, |open| open.host = "h".repeat(256)),
        with(3, |open| {
            open.log_opts = [("env".into(), "x".repeat(1 << 20))].into()
        }),
        with(4, |open| open.container = None),
    ])
    .await;
    let (mut reasons, mut opened) = (Vec::new(), Vec::new());
    call.until(|response| {
        reasons.extend(
            response
                .refused
                .iter()
                .map(|refused| refused.reason.clone()),
        );
        opened.extend(response.opened.iter().map(|opened| opened.stream));
        (reasons.len() + opened.len() == 4).then_some(())
    })
    .await
    .unwrap();
    assert_eq!(opened, [4]);
    for (reason, rule) in
        reasons
            .iter()
            .zip(["32 lower-case hex", "host name is 256", "log options and"])
    {
        assert!(reason.contains(rule), "{reason}");
    }
    let end = call.go_on(4, 0, &["of an older one"]).await;
    call.acked_to(4, end).await.unwrap();
    assert_eq!(site.contents(), ["of an older one"]);
}
