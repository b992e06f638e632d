//! What it costs to look a message through before it is decoded, beside the decoding itself; and how
//! much memory decoding takes at most, for messages that make the most of what they may.
//!
//! `cargo bench -p proto --bench decode`. "max alloc" in the output is the peak of a decoding.

use bytes::Bytes;
use divan::counter::BytesCount;
use divan::{AllocProfiler, Bencher, black_box};
use prost::Message;
use proto::codec::{Bounded, check};
use proto::relay::event::Kind;
use proto::relay::{Chunk, Container, Event, HostReport, Open, ShipRequest, StreamReport};

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

fn request(kinds: impl Iterator<Item = Kind>) -> Bytes {
    let events = kinds.map(|kind| Event { kind: Some(kind) }).collect();
    ShipRequest {
        events,
        ..ShipRequest::default()
    }
    .encode_to_vec()
    .into()
}

/// Returns a request with 1 MiB of frames in so many chunks.
fn chunks(count: usize) -> Bytes {
    let chunk = Chunk {
        stream: 7,
        first_offset: 1 << 40,
        frames: vec![b'x'; (1 << 20) / count].into(),
        has_more: false,
    };
    request(std::iter::repeat_n(Kind::Chunk(chunk), count))
}

/// Returns 512 opens with what a container has by default and five labels.
fn opens() -> Bytes {
    let label = |number| (format!("com.example.label-{number}"), "value".to_owned());
    let open = Open {
        journal_id: "j".repeat(32),
        container: Some(Container {
            id: "c".repeat(64),
            name: "/web-1".into(),
            image_id: "i".repeat(71),
            image_name: "shop/web:7".into(),
            labels: (0..5).map(label).collect(),
            ..Container::default()
        }),
        log_opts: [("topic_id".to_owned(), "t".repeat(36))].into(),
        ..Open::default()
    };
    request(std::iter::repeat_n(Kind::Open(Box::new(open)), 512))
}

/// Returns a report of 10,000 streams.
fn report() -> Bytes {
    let stream = StreamReport {
        journal_id: "j".repeat(32),
        container_id: "c".repeat(64),
        container_name: "/web-1".into(),
        received_entries: 1 << 30,
        dropped_entries: [("journal_full".to_owned(), 1)].into(),
        ..StreamReport::default()
    };
    let streams = vec![stream; 10_000];
    HostReport {
        streams,
        ..HostReport::default()
    }
    .encode_to_vec()
    .into()
}

fn looks<M: Bounded>(bencher: Bencher<'_, '_>, message: &Bytes) {
    bencher
        .counter(BytesCount::new(message.len()))
        .bench_local(|| check::<M>(black_box(message)));
}

fn decodes<M: Bounded>(bencher: Bencher<'_, '_>, message: &Bytes) {
    bencher
        .counter(BytesCount::new(message.len()))
        .bench_local(|| M::decode(black_box(message.clone())));
}

#[divan::bench(args = [4, 64, 1024])]
fn look_at_chunks(bencher: Bencher<'_, '_>, count: usize) {
    looks::<ShipRequest>(bencher, &chunks(count));
}

#[divan::bench(args = [4, 64, 1024])]
fn decode_chunks(bencher: Bencher<'_, '_>, count: usize) {
    decodes::<ShipRequest>(bencher, &chunks(count));
}

#[divan::bench]
fn look_at_opens(bencher: Bencher<'_, '_>) {
    looks::<ShipRequest>(bencher, &opens());
}

#[divan::bench]
fn decode_opens(bencher: Bencher<'_, '_>) {
    decodes::<ShipRequest>(bencher, &opens());
}

#[divan::bench]
fn look_at_a_report(bencher: Bencher<'_, '_>) {
    looks::<HostReport>(bencher, &report());
}

#[divan::bench]
fn decode_a_report(bencher: Bencher<'_, '_>) {
    decodes::<HostReport>(bencher, &report());
}

/// Returns as many of these bytes as a message that is decoded may have.
fn worst<M: Bounded>(element: &[u8]) -> Bytes {
    let mut count = (4 << 20) / element.len();
    while check::<M>(&element.repeat(count)).is_err() {
        count -= count / 100 + 1;
    }
    element.repeat(count).into()
}

/// Elements of messages as they come from somebody who wants them to grow.
const GROWING: [&[u8]; 4] = [
    // An event, and one with an open that holds a label and an argument.
    &[10, 0],
    &[10, 8, 10, 6, 26, 4, 58, 0, 74, 0],
    // An event with an open that holds an option.
    &[10, 4, 10, 2, 34, 0],
    // An event with a hole that has a reason.
    &[10, 5, 26, 3, 58, 1, b'x'],
];

#[divan::bench(args = [0, 1, 2, 3], sample_count = 10)]
fn decode_the_worst_that_passes(bencher: Bencher<'_, '_>, kind: usize) {
    decodes::<ShipRequest>(bencher, &worst::<ShipRequest>(GROWING[kind]));
}

#[divan::bench(args = [0, 1, 2, 3], sample_count = 10)]
fn decode_what_would_grow(bencher: Bencher<'_, '_>, kind: usize) {
    let element = GROWING[kind];
    let message = element.repeat((4 << 20) / element.len()).into();
    decodes::<ShipRequest>(bencher, &message);
}

#[divan::bench(args = [0, 1], sample_count = 10)]
fn decode_the_worst_report_that_passes(bencher: Bencher<'_, '_>, dropped: u8) {
    let element: &[u8] = if dropped == 0 {
        &[26, 0]
    } else {
        &[26, 2, 66, 0]
    };
    decodes::<HostReport>(bencher, &worst::<HostReport>(element));
}

#[divan::bench]
fn look_at_what_would_grow(bencher: Bencher<'_, '_>) {
    looks::<ShipRequest>(bencher, &[10, 0].repeat(2 << 20).into());
}
