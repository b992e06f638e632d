//! The body of an upload, written straight as protobuf into a growing buffer.
//!
//! ```text
//! LogGroupList { repeated LogGroup logGroupList = 1; }
//! LogGroup     { repeated Log logs = 1; optional string contextFlow = 2; optional string filename = 3;
//!                optional string source = 4; repeated LogTag logTags = 5; optional string hostname = 6; }
//! Log          { required int64 time = 1; repeated Content contents = 2; }
//! Content      { required string key = 1; required string value = 2; }
//! LogTag       { required string key = 1; required string value = 2; }
//! ```
//!
//! The schema is proto2: a required field stands on the wire also when it is zero or empty. The
//! body is the list, not one group. Strings must be UTF-8; what is not is replaced as
//! [`String::from_utf8_lossy`] does.

/// Field 1 of `LogGroupList`.
const LOG_GROUP: u8 = 0x0a;
const CONTEXT_FLOW: u8 = 0x12;
const FILENAME: u8 = 0x1a;
const SOURCE: u8 = 0x22;
const HOSTNAME: u8 = 0x32;

/// Bytes of the longest length.
const VARINT_BYTES_MAX: usize = 10;

/// What a group holds besides its logs; an empty text is absent.
#[derive(Debug, Clone, Copy, Default)]
pub struct GroupHead<'a> {
    /// `contextFlow`: context id and counter.
    pub context_flow: &'a str,
    /// `filename`.
    pub filename: &'a str,
    /// `source`: here the host name.
    pub source: &'a str,
    /// `hostname`.
    pub hostname: &'a str,
    /// `logTags`, encoded: a run of field 5.
    pub log_tags: &'a [u8],
}

/// Appends one group to a list. `runs` are encoded logs, in order.
pub fn append_group<'a>(
    body: &mut Vec<u8>,
    runs: impl Iterator<Item = &'a [u8]> + Clone,
    head: &GroupHead<'_>,
) {
    let head_bytes: usize = head
        .texts()
        .map(|(_, text)| 1 + varint_bytes(text.len()) + text.len())
        .sum();
    let group_bytes =
        runs.clone().map(<[u8]>::len).sum::<usize>() + head_bytes + head.log_tags.len();
    body.reserve(group_bytes + 1 + VARINT_BYTES_MAX);
    body.push(LOG_GROUP);
    put_varint(body, group_bytes);
    for run in runs {
        body.extend_from_slice(run);
    }
    for (tag, text) in head.texts().filter(|(tag, _)| *tag < HOSTNAME) {
        put_text(body, tag, text);
    }
    body.extend_from_slice(head.log_tags);
    for (tag, text) in head.texts().filter(|(tag, _)| *tag == HOSTNAME) {
        put_text(body, tag, text);
    }
}

impl<'a> GroupHead<'a> {
    /// Returns the texts that are present, by field number.
    fn texts(&self) -> impl Iterator<Item = (u8, &'a str)> + use<'a> {
        [
            (CONTEXT_FLOW, self.context_flow),
            (FILENAME, self.filename),
            (SOURCE, self.source),
            (HOSTNAME, self.hostname),
        ]
        .into_iter()
        .filter(|(_, text)| !text.is_empty())
    }
}

fn put_text(out: &mut Vec<u8>, tag: u8, text: &str) {
    out.push(tag);
    put_varint(out, text.len());
    out.extend_from_slice(text.as_bytes());
}

/// Field 1 of `LogGroup`.
pub(crate) const LOG: u8 = 0x0a;
/// Field 1 of `Log`, a varint.
pub(crate) const TIME: u8 = 0x08;
/// Field 2 of `Log`.
pub(crate) const CONTENTS: u8 = 0x12;
/// Field 5 of `LogGroup`.
pub(crate) const LOG_TAGS: u8 = 0x2a;
const KEY: u8 = 0x0a;
const VALUE: u8 = 0x12;

/// The text that replaces what is not UTF-8, in UTF-8.
pub(crate) const REPLACEMENT: &[u8] = "\u{fffd}".as_bytes();

/// Returns how many bytes a varint takes.
#[inline]
pub(crate) fn varint_bytes(value: usize) -> usize {
    let bits = (usize::BITS - (value | 1).leading_zeros()) as usize;
    bits.div_ceil(7)
}

/// Appends a varint.
#[inline]
pub(crate) fn put_varint(out: &mut Vec<u8>, value: usize) {
    let mut rest = value;
    while rest >= 0x80 {
        out.push(low_seven_bits(rest) | 0x80);
        rest >>= 7;
    }
    out.push(low_seven_bits(rest));
}

#[inline]
fn low_seven_bits(value: usize) -> u8 {
    let [low, ..] = value.to_le_bytes();
    low & 0x7f
}

/// Returns how many bytes [`put_pair`] appends.
#[inline]
pub(crate) fn pair_bytes(key_bytes: usize, value_bytes: usize) -> usize {
    let inner_bytes = inner_bytes(key_bytes, value_bytes);
    1 + varint_bytes(inner_bytes) + inner_bytes
}

#[inline]
fn inner_bytes(key_bytes: usize, value_bytes: usize) -> usize {
    2 + varint_bytes(key_bytes) + key_bytes + varint_bytes(value_bytes) + value_bytes
}

/// Appends a `Content` or a `LogTag`: a message of a key and a value.
#[inline]
pub(crate) fn put_pair(out: &mut Vec<u8>, tag: u8, key: &[u8], value: &[u8]) {
    put_pair_head(out, tag, key, value.len());
    out.extend_from_slice(value);
}

/// Appends a pair up to its value, of which `value_bytes` bytes have to follow.
#[inline]
pub(crate) fn put_pair_head(out: &mut Vec<u8>, tag: u8, key: &[u8], value_bytes: usize) {
    let inner_bytes = inner_bytes(key.len(), value_bytes);
    if inner_bytes < 0x80 {
        // All three lengths are one byte: the case of nearly every field.
        out.extend_from_slice(&[
            tag,
            low_seven_bits(inner_bytes),
            KEY,
            low_seven_bits(key.len()),
        ]);
        out.extend_from_slice(key);
        out.extend_from_slice(&[VALUE, low_seven_bits(value_bytes)]);
        return;
    }
    out.push(tag);
    put_varint(out, inner_bytes);
    out.push(KEY);
    put_varint(out, key.len());
    out.extend_from_slice(key);
    out.push(VALUE);
    put_varint(out, value_bytes);
}

/// A length that is not known yet: the place for it is left free, and moved if it is too small.
#[derive(Debug)]
pub(crate) struct Slot {
    at: usize,
    width: usize,
}

impl Slot {
    /// Leaves a place for the length of what follows, which is expected to be near `guess`.
    #[inline]
    pub(crate) fn open(out: &mut Vec<u8>, guess: usize) -> Self {
        const ZEROS: [u8; 10] = [0; 10];
        let width = varint_bytes(guess);
        let at = out.len();
        out.extend_from_slice(&ZEROS[..width]);
        Self { at, width }
    }

    /// Returns the position behind the slot, where its content begins.
    #[inline]
    pub(crate) fn end(&self) -> usize {
        self.at + self.width
    }

    /// Fills in how many bytes follow the slot.
    #[inline]
    pub(crate) fn close(self, out: &mut Vec<u8>) {
        let length = out.len() - self.end();
        let width = varint_bytes(length);
        if width != self.width {
            self.resize(out, width);
        }
        let mut rest = length;
        for byte in &mut out[self.at..self.at + width - 1] {
            *byte = low_seven_bits(rest) | 0x80;
            rest >>= 7;
        }
        out[self.at + width - 1] = low_seven_bits(rest);
    }

    #[cold]
    fn resize(&self, out: &mut Vec<u8>, width: usize) {
        let zeros = std::iter::repeat_n(0, width);
        out.splice(self.at..self.end(), zeros).for_each(drop);
    }
}

/// Appends text with everything replaced that is not UTF-8, up to `bytes_max` bytes, cut on a
/// character's boundary. Returns whether something was left out.
pub(crate) fn put_lossy(out: &mut Vec<u8>, text: &[u8], bytes_max: usize) -> bool {
    let start = out.len();
    for chunk in text.utf8_chunks() {
        let room = bytes_max - (out.len() - start);
        let valid = chunk.valid();
        let fitting = valid.floor_char_boundary(room);
        out.extend_from_slice(&valid.as_bytes()[..fitting]);
        if fitting < valid.len() {
            return true;
        }
        if !chunk.invalid().is_empty() {
            if room - fitting < REPLACEMENT.len() {
                return true;
            }
            out.extend_from_slice(REPLACEMENT);
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cls::compress::Compression;
    use proptest::prelude::*;
    use serde_json::Value;

    #[test]
    fn a_slot_takes_any_length() {
        for guess in [0, 100, 127, 128, 16_383, 16_384, 1 << 21] {
            for length in [0, 1, 127, 128, 300, 16_383, 16_384, 1 << 21] {
                let mut out = b"before".to_vec();
                let slot = Slot::open(&mut out, guess);
                out.resize(out.len() + length, b'x');
                slot.close(&mut out);
                let mut expected = b"before".to_vec();
                put_varint(&mut expected, length);
                assert_eq!(varint_bytes(length), expected.len() - 6);
                expected.resize(expected.len() + length, b'x');
                assert!(out == expected, "guess {guess}, length {length}");
            }
        }
    }

    #[test]
    fn a_pair_is_as_long_as_said() {
        for key_bytes in [0, 1, 127, 128, 20_000] {
            for value_bytes in [0, 1, 100, 120, 127, 128, 16_384] {
                let mut out = Vec::new();
                put_pair(
                    &mut out,
                    CONTENTS,
                    &vec![b'k'; key_bytes],
                    &vec![b'v'; value_bytes],
                );
                assert_eq!(out.len(), pair_bytes(key_bytes, value_bytes));
            }
        }
    }

    proptest! {
        #[test]
        fn a_varint_is_the_one_of_prost(value in any::<u64>()) {
            let value = usize::try_from(value).unwrap();
            let mut ours = Vec::new();
            put_varint(&mut ours, value);
            let mut theirs = Vec::new();
            prost::encode_length_delimiter(value, &mut theirs).unwrap();
            prop_assert_eq!(varint_bytes(value), ours.len());
            prop_assert_eq!(ours, theirs);
        }

        #[test]
        fn lossy_text_is_that_of_the_standard_library_or_a_prefix(
            text in prop::collection::vec(prop_oneof![any::<u8>(), 0x60_u8..0x68, 0xe0_u8..0xf5], 0..60),
            bytes_max in 0_usize..80,
        ) {
            let whole = String::from_utf8_lossy(&text).into_owned();
            let mut out = Vec::new();
            let is_cut = put_lossy(&mut out, &text, bytes_max);
            let written = String::from_utf8(out).unwrap();
            prop_assert!(whole.starts_with(&written) && written.len() <= bytes_max);
            prop_assert_eq!(is_cut, written.len() < whole.len());
            prop_assert!(!is_cut || whole.len() > bytes_max);
        }
    }

    fn append_log(run: &mut Vec<u8>, time_ms: usize, contents: &[(&str, &str)]) {
        run.push(LOG);
        let slot = Slot::open(run, 100);
        run.push(TIME);
        put_varint(run, time_ms);
        for (key, value) in contents {
            put_pair(run, CONTENTS, key.as_bytes(), value.as_bytes());
        }
        slot.close(run);
    }

    const VECTORS: &str = include_str!("../../../tests/vectors/cls-vectors.json");

    fn unhex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text
            .chars()
            .map(|c| u8::try_from(c.to_digit(16).unwrap()).unwrap())
            .collect();
        digits
            .chunks(2)
            .map(|pair| pair[0] << 4 | pair[1])
            .collect()
    }

    fn contents(log: &Value) -> Vec<(&str, &str)> {
        let pairs = log[1].as_array().unwrap().iter();
        pairs
            .map(|pair| (pair[0].as_str().unwrap(), pair[1].as_str().unwrap()))
            .collect()
    }

    fn encode_group(body: &mut Vec<u8>, group: &Value) {
        let mut logs = Vec::new();
        for log in group["logs"].as_array().unwrap() {
            append_log(
                &mut logs,
                usize::try_from(log[0].as_u64().unwrap()).unwrap(),
                &contents(log),
            );
        }
        let mut log_tags = Vec::new();
        for tag in group["tags"].as_array().into_iter().flatten() {
            let [key, value] = [0, 1].map(|index| tag[index].as_str().unwrap().as_bytes());
            put_pair(&mut log_tags, LOG_TAGS, key, value);
        }
        let text = |key: &str| group[key].as_str().unwrap_or_default();
        let head = GroupHead {
            context_flow: text("contextFlow"),
            filename: text("filename"),
            source: text("source"),
            hostname: text("hostname"),
            log_tags: &log_tags,
        };
        append_group(body, std::iter::once(logs.as_slice()), &head);
    }

    #[test]
    fn bodies_of_the_official_sdks_are_reproduced() {
        let vectors: Value = serde_json::from_str(VECTORS).unwrap();
        for vector in vectors["body_vectors"].as_array().unwrap() {
            let mut body = Vec::new();
            for group in vector["log_group_list"].as_array().unwrap() {
                encode_group(&mut body, group);
            }
            let expected = unhex(vector["protobuf_hex"].as_str().unwrap());
            assert_eq!(body, expected, "{}", vector["name"]);
            let lz4 = Compression::Lz4.compress(&body, &mut Vec::new());
            assert_eq!(lz4_flex::block::decompress(&lz4, body.len()).unwrap(), body);
            let official = unhex(vector["lz4_block_hex_as_sent"].as_str().unwrap());
            assert_eq!(
                lz4_flex::block::decompress(&official, body.len()).unwrap(),
                body
            );
        }
    }

    #[test]
    fn a_go_body_with_a_hostname_is_reproduced() {
        let vectors: Value = serde_json::from_str(VECTORS).unwrap();
        let capture = &vectors["go_wire_captures"][0];
        let value = ["hello"; 12].join(" ");
        let mut logs = Vec::new();
        append_log(&mut logs, 1_700_000_000_123, &[("message", &value)]);
        let head = GroupHead {
            source: "192.0.2.2",
            hostname: "node-1",
            ..GroupHead::default()
        };
        let mut body = Vec::new();
        append_group(&mut body, std::iter::once(logs.as_slice()), &head);
        assert_eq!(
            body,
            unhex(capture["decoded_protobuf_hex"].as_str().unwrap())
        );
    }
}
