//! The fields of a line that is a JSON object: those that a parser with a tree finds, or the whole
//! line as text. CLS takes the record whatever the line is.
#![no_main]

use std::collections::BTreeMap;

use fuzz::{Fields, format, formatter};
use libfuzzer_sys::fuzz_target;
use proto::log_opts::LogOpts;
use serde_json::value::RawValue;

/// Levels below which both parsers go.
const DEPTH_MAX: usize = 64;

fuzz_target!(|line: &[u8]| {
    let mut formatter = formatter(&LogOpts::default()).expect("the defaults suit every container");
    let records = format(&mut formatter, line);
    let [fields] = &records[..] else {
        panic!("{} records of one line", records.len());
    };
    let mut fields: Fields = fields.clone();
    fields.retain(|(key, _)| !key.starts_with("__"));
    let Ok(text) = std::str::from_utf8(line) else {
        return;
    };
    // Carriage returns before the line end are no part of a line.
    let text = text.trim_end_matches('\r');
    let object = text.strip_prefix('\u{feff}').unwrap_or(text);
    match members(object) {
        // An object without members would be a record without a text.
        Some(members) if members.is_empty() => {
            assert_eq!(fields, [("content".to_owned(), text.to_owned())]);
        }
        Some(members) => {
            assert_eq!(fields.len(), members.len(), "{text}");
            let is_renamed = |key: &str| key.is_empty() || key.starts_with('_');
            if !members.iter().any(|(key, _)| is_renamed(key)) {
                fields.sort();
                assert_eq!(fields, members);
            }
        }
        None if depth(text) < DEPTH_MAX && is_decodable(text) => {
            assert_eq!(fields, [("content".to_owned(), text.to_owned())]);
        }
        None => {}
    }
});

/// Reads an object with serde_json, sorted by key. Nothing if it is none, or one in which the two
/// parsers may differ.
fn members(text: &str) -> Option<Fields> {
    let object: BTreeMap<String, Box<RawValue>> = serde_json::from_str(text).ok()?;
    if depth(text) >= DEPTH_MAX {
        return None;
    }
    let value = |raw: &RawValue| match raw.get().as_bytes()[0] {
        b'"' => serde_json::from_str(raw.get()).ok(),
        b'{' | b'[' => Some(compact(raw.get())),
        b'n' => Some(String::new()),
        _ => Some(raw.get().to_owned()),
    };
    let pairs = object
        .into_iter()
        .map(|(key, raw)| Some((key, value(&raw)?)));
    pairs.collect()
}

/// Returns whether the text has no escaped surrogate: serde_json refuses a lone one, which is
/// replaced here.
fn is_decodable(text: &str) -> bool {
    !text.contains("\\u")
}

/// Removes white space outside of strings.
fn compact(text: &str) -> String {
    let (mut is_inside, mut is_escaped) = (false, false);
    let mut kept = String::new();
    for c in text.chars() {
        let is_space = matches!(c, ' ' | '\t' | '\n' | '\r');
        if is_inside || !is_space {
            kept.push(c);
        }
        is_inside ^= c == '"' && !is_escaped;
        is_escaped = is_inside && c == '\\' && !is_escaped;
    }
    kept
}

/// Returns a bound of how deep a text is nested.
fn depth(text: &str) -> usize {
    text.bytes()
        .filter(|byte| matches!(byte, b'{' | b'['))
        .count()
}
