//! What the fuzz targets share: a container, its entries, and its records as CLS reads them.

use std::collections::HashMap;

use prost::encoding::encode_varint;
use proto::frame::{EntryView, Source};
use proto::log_opts::LogOpts;
use proto::relay::Container;
use shipper::record::{Formatter, Origin, Records};
use tokio::time::Instant;
use world::standin::config::UNDERSCORE_PREFIXES;
use world::standin::log_list::{Rules, check, groups};

/// A record's fields.
pub type Fields = Vec<(String, String)>;

/// What stands for a secret in the input of a target.
pub const SECRET: &str = "s3cr3t-that-is-never-shown";

/// Options as Docker hands them over.
pub fn options<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> HashMap<String, String> {
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    pairs.into_iter().map(owned).collect()
}

/// The container whose lines are formatted.
pub fn container() -> Container {
    Container {
        id: "e788fc0d1234aaaabbbbccccddddeeeeffff0000111122223333444455556666".into(),
        name: "/web-1".into(),
        image_id: "sha256:345e3d77aaaabbbbccccddddeeeeffff".into(),
        image_name: "shop/web:7".into(),
        created: "2026-11-22T14:04:26.820587421Z".into(),
        env: vec!["STAGE=test".into()],
        labels: [("app".into(), "shop".into())].into(),
        entrypoint: "/bin/web".into(),
        args: vec!["--port=80".into()],
        daemon_name: "docker".into(),
        log_path: String::new(),
    }
}

/// Returns a formatter for the container, or nothing if the options do not suit it.
pub fn formatter(opts: &LogOpts) -> Option<Formatter> {
    let origin = Origin {
        container: &container(),
        host: "node-1",
        journal_id: "0123456789abcdef0123456789abcdef",
        resume_offset: 0,
        left_out: "",
    };
    Formatter::new(opts, &origin).ok()
}

/// Formats one line and returns the fields of its records.
///
/// # Panics
/// If CLS would refuse them.
pub fn format(formatter: &mut Formatter, line: &[u8]) -> Vec<Fields> {
    let entry = EntryView {
        source: Source::Stdout,
        time_nano: 1_700_000_000_123_456_789,
        line,
        partial: None,
    };
    let (mut records, now) = (Records::default(), Instant::now());
    let end = formatter.settled_offset() + 1;
    formatter.push(end - 1, end, &entry, now, &mut records);
    formatter.finish(now, &mut records);
    assert_eq!(formatter.settled_offset(), end);
    read(&records)
}

fn read(records: &Records) -> Vec<Fields> {
    if records.counts.logs == 0 {
        assert!(records.bytes.is_empty());
        return Vec::new();
    }
    let mut body = vec![0x0a];
    encode_varint(records.bytes.len() as u64, &mut body);
    body.extend_from_slice(&records.bytes);
    let rules = Rules {
        is_strict: true,
        underscore_prefixes: UNDERSCORE_PREFIXES.map(str::to_owned).to_vec(),
    };
    let summary = check(&body, &rules).expect("CLS takes every record");
    assert_eq!(summary.log_count, records.counts.logs);
    let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    groups(&body)
        .flat_map(|group| group.logs().collect::<Vec<_>>())
        .map(|log| {
            log.unwrap()
                .contents()
                .map(|pair| owned(pair.unwrap()))
                .collect()
        })
        .collect()
}
