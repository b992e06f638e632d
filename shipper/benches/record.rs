//! What the formatting of one line costs, and how often it allocates.
//!
//! `cargo bench -p shipper --bench record`. An item is a line; a sample formats [`LINES`] of them
//! into a buffer that is used again, as the shipper does. "alloc" in the output counts
//! allocations per sample.

use std::collections::HashMap;

use divan::counter::{BytesCount, ItemsCount};
use divan::{AllocProfiler, Bencher};
use proto::frame::{EntryView, Partial, Source};
use proto::log_opts::LogOpts;
use proto::relay::Container;
use shipper::record::{Formatter, Origin, Records};
use tokio::time::Instant;

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

/// Lines per sample.
const LINES: u64 = 1000;

const NANO: i64 = 1_700_000_000_123_456_789;

const JSON_TEN_FIELDS: &str = r#"{"time":"2026-11-22T14:04:26.820Z","level":"info","logger":"shop.cart","msg":"item added to the cart","user_id":1234567,"price":19.99,"currency":"CNY","is_guest":false,"trace_id":"4bf92f3577b34da6a3ce929d0e0e4736","tags":["a","b"]}"#;

fn main() {
    divan::main();
}

fn plain_line() -> Vec<u8> {
    let text = "2026-11-22T14:04:26.820Z INFO shop.cart request finished in 12 ms ";
    text.bytes().cycle().take(200).collect()
}

fn formatter(options: &[(&str, &str)]) -> Formatter {
    let config: HashMap<String, String> = options
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    let container = Container {
        id: "e788fc0d1234aaaabbbbccccddddeeeeffff0000111122223333444455556666".into(),
        name: "/web-1".into(),
        image_id: "sha256:345e3d77aaaabbbbccccddddeeeeffff0000111122223333".into(),
        image_name: "shop/web:7".into(),
        labels: [("app".to_owned(), "shop".to_owned())].into(),
        ..Container::default()
    };
    let origin = Origin {
        container: &container,
        host: "node-1",
        journal_id: "0123456789abcdef0123456789abcdef",
        resume_offset: 0,
        left_out: "",
    };
    let opts = LogOpts::parse(&config).expect("good options");
    Formatter::new(&opts, &origin).expect("good options")
}

/// Formats one line again and again.
fn lines(bencher: Bencher<'_, '_>, options: &[(&str, &str)], line: &[u8]) {
    let mut formatter = formatter(options);
    let mut records = Records::default();
    let now = Instant::now();
    let mut offset = 0;
    let line_bytes = u64::try_from(line.len()).expect("a short line");
    bencher
        .counter(ItemsCount::new(LINES))
        .counter(BytesCount::new(LINES * line_bytes))
        .bench_local(|| {
            records.clear();
            for _ in 0..LINES {
                let entry = EntryView {
                    source: Source::Stdout,
                    time_nano: NANO,
                    line: divan::black_box(line),
                    partial: None,
                };
                formatter.push(offset, offset + line_bytes, &entry, now, &mut records);
                offset += line_bytes;
            }
            records.bytes.len()
        });
}

#[divan::bench]
fn plain_200_bytes(bencher: Bencher<'_, '_>) {
    lines(bencher, &[], &plain_line());
}

#[divan::bench]
fn plain_200_bytes_not_ascii(bencher: Bencher<'_, '_>) {
    lines(
        bencher,
        &[],
        "请求已完成，用时十二毫秒。".repeat(5).as_bytes(),
    );
}

#[divan::bench]
fn with_metadata(bencher: Bencher<'_, '_>) {
    let options = [
        ("instance_info", r#"{"id":"i-1","zone":"ap-guangzhou-3"}"#),
        (
            "append_container_details_keys",
            "container_id,container_name,container_image_name",
        ),
        ("labels", "app"),
        ("record-id", "true"),
    ];
    lines(bencher, &options, &plain_line());
}

#[divan::bench]
fn template(bencher: Bencher<'_, '_>) {
    let options = [("template", "{timestamp} {container_name} {source}: {log}")];
    lines(bencher, &options, &plain_line());
}

#[divan::bench]
fn json_template(bencher: Bencher<'_, '_>) {
    let options = [("template", r#"{"line":"{log}","name":"{container_name}"}"#)];
    lines(bencher, &options, &plain_line());
}

#[divan::bench]
fn filter(bencher: Bencher<'_, '_>) {
    lines(
        bencher,
        &[("filter-regex", "finished|failed")],
        &plain_line(),
    );
}

#[divan::bench]
fn json_ten_fields(bencher: Bencher<'_, '_>) {
    lines(bencher, &[], JSON_TEN_FIELDS.as_bytes());
}

#[divan::bench]
fn json_ten_fields_with_escapes(bencher: Bencher<'_, '_>) {
    let line = JSON_TEN_FIELDS.replace("item added", r#"\"item\"\nadded"#);
    lines(bencher, &[], line.as_bytes());
}

#[divan::bench]
fn json_fifty_fields(bencher: Bencher<'_, '_>) {
    let members: Vec<String> = (0..50).map(|n| format!("\"field_{n}\":\"v{n}\"")).collect();
    lines(
        bencher,
        &[],
        format!("{{{}}}", members.join(",")).as_bytes(),
    );
}

/// A line of 1 MiB in 64 pieces; an item is the whole line.
#[divan::bench]
fn a_mebibyte_in_pieces(bencher: Bencher<'_, '_>) {
    let mut formatter = formatter(&[]);
    let mut records = Records::default();
    let now = Instant::now();
    let piece = vec![b'x'; 16_384];
    bencher
        .counter(ItemsCount::new(1_u8))
        .counter(BytesCount::new(1_u64 << 20))
        .bench_local(|| {
            records.clear();
            for ordinal in 1..=64 {
                let partial = Some(Partial {
                    id: b"4bf92f3577b34da6a3ce929d0e0e4736",
                    ordinal,
                    last: ordinal == 64,
                });
                let entry = EntryView {
                    source: Source::Stdout,
                    time_nano: NANO,
                    line: divan::black_box(&piece),
                    partial,
                };
                formatter.push(0, 16_500, &entry, now, &mut records);
            }
            records.bytes.len()
        });
}
