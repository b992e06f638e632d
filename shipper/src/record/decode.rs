//! From the bytes of a whole line to text, before anything else is done with it.
//!
//! Text is UTF-8, or what the option `encoding` names. Bytes that are no text by it are written as
//! `\xNN`, so that they stay readable and nothing is lost for good: a `\` before an `x` becomes `\x5c`
//! in such a line, and replacing each `\xNN` by its byte gives back what the container wrote. Nothing is
//! guessed: detectors take a login failure in GBK for Japanese.

use std::borrow::Cow;

use encoding_rs::{DecoderResult, Encoding};
use proto::log_opts::{LogOpts, fault};

use crate::cls::encode::REPLACEMENT;

/// Names that people use for an encoding, and the WHATWG's label of it, which the decoder knows.
const ALIASES: &[(&str, &str)] = &[
    ("936", "gbk"),
    ("cp936", "gbk"),
    ("ms936", "gbk"),
    ("euc-cn", "gbk"),
    ("gb18030-2022", "gb18030"),
    ("950", "big5"),
    ("cp950", "big5"),
    ("cp932", "shift_jis"),
    ("cp949", "euc-kr"),
    ("uhc", "euc-kr"),
    ("latin-1", "latin1"),
    ("utf8mb4", "utf-8"),
];

/// Makes text of lines.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    /// `None`: UTF-8.
    encoding: Option<&'static Encoding>,
    text: String,
}

/// A line as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Decoded<'a> {
    pub(super) text: &'a str,
    /// Bytes of the line that are no text, and stand as `\xNN`.
    pub(super) escaped_bytes: u32,
}

/// Bytes of `\xNN`.
const ESCAPE_BYTES: usize = 4;

/// Bytes of a decoded line whose memory is kept for the next one.
const KEPT_TEXT_BYTES_MAX: usize = 64 << 10;

impl Decoder {
    /// Finds the decoder of a container's option. A fault leaves UTF-8.
    pub(super) fn new(opts: &LogOpts, faults: &mut Vec<String>) -> Self {
        let name = opts.encoding.as_deref();
        let encoding = name.and_then(|name| match find(name) {
            Ok(encoding) => Some(encoding),
            Err(rule) => {
                faults.push(fault("encoding", Some(name), &rule));
                None
            }
        });
        Self {
            encoding: encoding.filter(|encoding| *encoding != encoding_rs::UTF_8),
            text: String::new(),
        }
    }

    /// Decodes a line.
    #[inline]
    pub(super) fn decode<'a>(&'a mut self, line: &'a [u8]) -> Decoded<'a> {
        match (self.encoding, simdutf8::basic::from_utf8(line)) {
            (None, Ok(text)) => Decoded {
                text,
                escaped_bytes: 0,
            },
            (encoding, _) => self.decode_otherwise(line, encoding),
        }
    }

    #[cold]
    fn decode_otherwise(
        &mut self,
        line: &[u8],
        encoding: Option<&'static Encoding>,
    ) -> Decoded<'_> {
        if self.text.capacity() > KEPT_TEXT_BYTES_MAX {
            self.text = String::new();
        }
        self.text.clear();
        let is_text = match encoding {
            Some(encoding) => put_decoded(line, encoding, &mut self.text),
            None => false,
        };
        let mut escaped_bytes = 0;
        if !is_text {
            self.text.clear();
            let encoding = encoding.unwrap_or(encoding_rs::UTF_8);
            escaped_bytes = put_escaped(line, encoding, &mut self.text);
        }
        Decoded {
            text: &self.text,
            escaped_bytes,
        }
    }
}

/// Returns what patterns see of a decoded line: as in Go, a byte that is no text is one character, U+FFFD.
#[inline]
pub(super) fn seen_by_patterns(text: &[u8], escaped_bytes: u32) -> Cow<'_, [u8]> {
    match escaped_bytes {
        0 => Cow::Borrowed(text),
        _ => Cow::Owned(without_escapes(text)),
    }
}

/// Puts U+FFFD in the place of each `\xNN`, and back the `\` that stands as one itself.
#[cold]
fn without_escapes(text: &[u8]) -> Vec<u8> {
    let mut seen = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = memchr::memmem::find(rest, br"\x") {
        let (before, escape) = rest.split_at(at);
        let (escape, behind) = escape
            .split_at_checked(ESCAPE_BYTES)
            .unwrap_or((escape, &[]));
        seen.extend_from_slice(before);
        match escape {
            br"\x5c" => seen.push(b'\\'),
            _ => seen.extend_from_slice(REPLACEMENT),
        }
        rest = behind;
    }
    seen.extend_from_slice(rest);
    seen
}

/// Returns the encoding of a name.
///
/// # Errors
/// The rule that the name breaks.
fn find(name: &str) -> Result<&'static Encoding, String> {
    let label = name.trim().to_ascii_lowercase();
    let alias = ALIASES.iter().find(|(alias, _)| *alias == label);
    let label = alias.map_or(label.as_str(), |(_, label)| label);
    if label.starts_with("utf-16") || label.starts_with("utf16") || label.starts_with("unicode") {
        return Err(
            "can't be UTF-16: the engine ends a line at each byte 0A, which is half a \
                    character there"
                .to_owned(),
        );
    }
    Encoding::for_label_no_replacement(label.as_bytes()).ok_or_else(|| {
        "must be an encoding such as gbk, gb18030, big5, shift_jis, euc-jp, euc-kr, windows-1252 or \
         utf-8"
            .to_owned()
    })
}

/// Decodes a line. Returns false, with a part of the text, if some of it is no text.
fn put_decoded(line: &[u8], encoding: &'static Encoding, out: &mut String) -> bool {
    let mut decoder = encoding.new_decoder_without_bom_handling();
    let room = decoder.max_utf8_buffer_length_without_replacement(line.len());
    out.reserve(room.unwrap_or_default());
    let (result, _) = decoder.decode_to_string_without_replacement(line, out, true);
    result == DecoderResult::InputEmpty
}

/// Decodes a line of which some bytes are no text, and escapes these. Returns their number.
fn put_escaped(line: &[u8], encoding: &'static Encoding, out: &mut String) -> u32 {
    let mut rest = line;
    let mut escaped_bytes = 0_u32;
    let mut text = String::new();
    loop {
        let mut decoder = encoding.new_decoder_without_bom_handling();
        let room = decoder.max_utf8_buffer_length_without_replacement(rest.len());
        text.clear();
        text.reserve(room.unwrap_or_default());
        let (result, read) = decoder.decode_to_string_without_replacement(rest, &mut text, true);
        // With the `x` of what was escaped before, a `\` at the end would be one more escape.
        out.push_str(&text.replace(r"\x", r"\x5cx"));
        let DecoderResult::Malformed(bytes, behind) = result else {
            return escaped_bytes;
        };
        if out.ends_with('\\') {
            out.push_str("x5c");
        }
        let end = read - usize::from(behind);
        let (done, after) = rest.split_at(end);
        let bad = done.get(end.saturating_sub(bytes.into())..);
        for byte in bad.unwrap_or_default() {
            out.push_str(&format!(r"\x{byte:02x}"));
            escaped_bytes = escaped_bytes.saturating_add(1);
        }
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::pattern::Pattern;
    use proptest::prelude::*;

    fn decoder(encoding: &str) -> Decoder {
        let opts = LogOpts {
            encoding: Some(encoding.to_owned()),
            ..LogOpts::default()
        };
        let mut faults = Vec::new();
        let decoder = Decoder::new(&opts, &mut faults);
        assert!(faults.is_empty(), "{faults:?}");
        decoder
    }

    fn decoded(encoding: &str, line: &[u8]) -> (String, u32) {
        let mut decoder = decoder(encoding);
        let decoded = decoder.decode(line);
        (decoded.text.to_owned(), decoded.escaped_bytes)
    }

    /// Returns the bytes that an escaped text stands for.
    fn unescaped(text: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut rest = text.as_bytes();
        while let [first, after @ ..] = rest {
            let hex = rest.get(2..4).filter(|_| rest.starts_with(br"\x"));
            let byte = hex.and_then(|hex| std::str::from_utf8(hex).ok());
            match byte.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                Some(byte) => {
                    bytes.push(byte);
                    rest = &rest[4..];
                }
                None => {
                    bytes.push(*first);
                    rest = after;
                }
            }
        }
        bytes
    }

    #[test]
    fn what_is_no_text_stays_readable() {
        for (line, text, escaped_bytes) in [
            (&b"plain"[..], "plain", 0),
            ("中文".as_bytes(), "中文", 0),
            (b"", "", 0),
            // "login failed" in GBK. Two of its pairs are UTF-8 by accident: what they were can be had
            // back all the same.
            (
                b"\xb5\xc7\xc2\xbc\xca\xa7\xb0\xdc",
                r"\xb5\xc7¼ʧ\xb0\xdc",
                4,
            ),
            (b"a\xff", r"a\xff", 1),
            (b"\xe4\xb8", r"\xe4\xb8", 2),
            // Only a line with escapes has its own ones changed.
            (br"\x41", r"\x41", 0),
            (b"\\x41\xff\\", r"\x5cx41\xff\", 1),
            (b"\\\xff", r"\x5c\xff", 1),
        ] {
            assert_eq!(
                decoded("utf-8", line),
                (text.to_owned(), escaped_bytes),
                "{line:?}"
            );
            if escaped_bytes > 0 {
                assert_eq!(unescaped(text), line, "{text}");
            }
        }
    }

    #[test]
    fn a_byte_that_is_no_utf_8_is_one_character_to_patterns() {
        let is_match = |pattern: &str, line: &[u8]| {
            let (text, escaped_bytes) = decoded("utf-8", line);
            let seen = seen_by_patterns(text.as_bytes(), escaped_bytes);
            Pattern::compile(pattern).unwrap().is_match(&seen)
        };
        assert!(is_match("INFO .$", b"INFO \xff"));
        assert!(is_match("^..$", b"\xe4\xb8"));
        assert!(is_match("^[^a]$", b"\xff"));
        assert!(is_match("\u{fffd}", b"\xff"));
        assert!(!is_match(r"\w", b"\xff"));
        assert!(is_match(r"^\\x41..\\$", b"\\x41\xff\xfe\\"));
    }

    #[test]
    fn an_encoding_is_read_by_any_of_its_names() {
        let login_failed = b"\xb5\xc7\xc2\xbc\xca\xa7\xb0\xdc";
        for name in [
            "gbk", "GBK ", "cp936", "936", "ms936", "gb2312", "gb18030", "euc-cn",
        ] {
            assert_eq!(
                decoded(name, login_failed),
                ("登录失败".to_owned(), 0),
                "{name}"
            );
        }
        for (name, line, text) in [
            ("gbk", &b"\x80"[..], "€"),
            ("gb2312", b"\xa1\xaa\xa1\xa4", "—·"),
            ("big5", b"\xa4\xa4\xa4\xe5", "中文"),
            ("cp950", b"\xa3\xe1", "€"),
            ("big5", b"\x88\x62", "\u{ca}\u{304}"),
            ("shift_jis", b"\x93\xfa\x96\x7b", "日本"),
            ("cp932", b"\x93\xfa\x96\x7b", "日本"),
            ("euc-kr", b"\xc7\xd1", "한"),
            ("latin-1", b"caf\xe9", "café"),
            ("utf8mb4", "中".as_bytes(), "中"),
            ("iso-2022-jp", b"\x1b$B$\"\x1b(B", "あ"),
            ("gbk", b"plain", "plain"),
        ] {
            assert_eq!(decoded(name, line), (text.to_owned(), 0), "{name} {line:?}");
        }
    }

    #[test]
    fn what_an_encoding_lacks_stays_readable() {
        assert_eq!(decoded("gbk", b"\xb5\xc7\xff!"), (r"登\xff!".to_owned(), 1));
        assert_eq!(decoded("big5", b"\xa4"), (r"\xa4".to_owned(), 1));
    }

    #[test]
    fn what_is_no_encoding_is_refused() {
        for (name, why) in [
            ("utf-16", "can't be UTF-16"),
            ("UTF16LE", "can't be UTF-16"),
            ("hz-gb-2312", "must be an encoding such as gbk"),
            ("iso-2022-cn", "must be an encoding such as gbk"),
            ("gbkk", "must be an encoding such as gbk"),
        ] {
            let error = find(name).unwrap_err();
            assert!(error.starts_with(why), "{name}: {error}");
        }
    }

    proptest! {
        #[test]
        fn every_byte_can_be_had_back(
            line in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..40),
                "[\\\\x0-9a-f中é]{0,20}".prop_map(String::into_bytes),
                ("[\\\\x5c中]{0,9}", any::<u8>(), "[\\\\x5c]{0,9}").prop_map(|(a, b, c)| {
                    [a.into_bytes(), vec![b], c.into_bytes()].concat()
                }),
            ],
        ) {
            let (text, escaped_bytes) = decoded("utf-8", &line);
            let seen = seen_by_patterns(text.as_bytes(), escaped_bytes);
            let as_go = line.utf8_chunks().fold(String::new(), |go, chunk| {
                let bad = "\u{fffd}".repeat(chunk.invalid().len());
                go + chunk.valid() + &bad
            });
            prop_assert_eq!(seen.as_ref(), as_go.as_bytes());
            if escaped_bytes > 0 {
                prop_assert_eq!(unescaped(&text), line);
            } else {
                prop_assert_eq!(text.as_bytes(), line);
            }
        }

        #[test]
        fn no_encoding_panics(
            line in prop::collection::vec(any::<u8>(), 0..60),
            name in prop::sample::select(vec![
                "gbk", "gb18030", "big5", "shift_jis", "euc-jp", "euc-kr", "iso-2022-jp", "latin1",
            ]),
        ) {
            let (text, escaped_bytes) = decoded(name, &line);
            prop_assert!(text.len() <= line.len() * 7);
            prop_assert!(escaped_bytes as usize <= line.len());
        }
    }
}
