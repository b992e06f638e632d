//! The members of a JSON object, written as record fields in one pass over the bytes. No tree.
//!
//! The grammar is RFC 8259's, strictly: what is no object by it is text. White space around the
//! object is tolerated (a TTY ends every line in `\r`).
//!
//! | member's value    | field's value                                                |
//! |-------------------|--------------------------------------------------------------|
//! | string            | decoded; a lone surrogate becomes U+FFFD                     |
//! | number, boolean   | its source text, byte for byte: `1e400`, `19.99999999`       |
//! | null              | empty                                                        |
//! | object, array     | its source text without the white space between its tokens   |
//!
//! In a line with bytes that are no text these stand as `\xNN` (see `decode`), and do so in the fields.
//!
//! Bounds: [`DEPTH_MAX`] levels; the fields of an object stay under the caller's bound. An object
//! beyond them is text too, so that nothing is lost.

use super::fields::{Fields, Texts, Written};
use crate::cls::encode;

/// Levels of an object, itself included. More make the line text.
pub(super) const DEPTH_MAX: u32 = 128;

/// Writes the members of the object that `text` is. Returns `None`, with nothing written, if `text` is no
/// object, or one beyond the bounds. With `has_byte_escapes`, `\xNN` in a string stands for a byte that is
/// no text, and stays as it is.
pub(super) fn put_members(
    text: &[u8],
    has_byte_escapes: bool,
    fields: Fields<'_>,
    texts: &mut Texts,
) -> Option<Written> {
    let mut reader = Reader {
        scanner: Scanner::new(text, has_byte_escapes),
        is_utf8: simdutf8::basic::from_utf8(text).is_ok(),
        fields,
        texts,
    };
    let is_object = reader.object().is_some();
    let Reader { fields, texts, .. } = reader;
    texts.shrink();
    if is_object {
        fields.finish()
    } else {
        fields.abandon();
        None
    }
}

/// Appends text as the inside of a JSON string.
pub(super) fn put_escaped(out: &mut Vec<u8>, text: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut from = 0;
    while let Some(at) = find_special(text, from) {
        out.extend_from_slice(&text[from..at]);
        match text[at] {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            control => {
                out.extend_from_slice(b"\\u00");
                out.push(HEX[usize::from(control >> 4)]);
                out.push(HEX[usize::from(control & 15)]);
            }
        }
        from = at + 1;
    }
    out.extend_from_slice(&text[from..]);
}

struct Reader<'a, 't> {
    scanner: Scanner<'a>,
    is_utf8: bool,
    fields: Fields<'t>,
    texts: &'t mut Texts,
}

impl<'a> Reader<'a, '_> {
    fn object(&mut self) -> Option<()> {
        self.scanner.space();
        self.scanner.expect(b'{')?;
        self.scanner.space();
        if self.scanner.peek() == Some(b'}') {
            self.scanner.at += 1;
        } else {
            self.members()?;
        }
        self.scanner.space();
        self.scanner.peek().is_none().then_some(())
    }

    fn members(&mut self) -> Option<()> {
        loop {
            let key = self.scanner.string()?;
            self.scanner.space();
            self.scanner.expect(b':')?;
            self.scanner.space();
            let value = self.value()?;
            self.put(key, value);
            self.scanner.space();
            match self.scanner.next()? {
                b',' => self.scanner.space(),
                b'}' => return Some(()),
                _ => return None,
            }
            if !self.fields.is_within_bounds() {
                return None;
            }
        }
    }

    /// Reads a value; the text of one that is not its own source text goes into `texts`.
    #[inline]
    fn value(&mut self) -> Option<Text<'a>> {
        match self.scanner.peek()? {
            b'"' => {
                let string = self.scanner.string()?;
                if !string.has_escape && self.is_utf8 {
                    return Some(Text::Source(string.inside));
                }
                self.texts.value.clear();
                decode(string.inside, &mut self.texts.value);
                Some(Text::Decoded)
            }
            b'{' | b'[' => {
                let start = self.scanner.at;
                let has_space = self.scanner.nested()?;
                let source = &self.scanner.text[start..self.scanner.at];
                if !has_space && self.is_utf8 {
                    return Some(Text::Source(source));
                }
                self.texts.value.clear();
                compact(source, self.is_utf8, &mut self.texts.value);
                Some(Text::Decoded)
            }
            b'n' => self.scanner.word(b"null").map(|_| Text::Source(&[])),
            _ => self.scanner.scalar().map(Text::Source),
        }
    }

    #[inline]
    fn put(&mut self, key: StringToken<'a>, value: Text<'a>) {
        let Texts {
            key: decoded,
            value: other,
        } = &mut *self.texts;
        let key = if !key.has_escape && self.is_utf8 {
            key.inside
        } else {
            decoded.clear();
            decode(key.inside, decoded);
            decoded.as_slice()
        };
        let value = match value {
            Text::Source(source) => source,
            Text::Decoded => other.as_slice(),
        };
        self.fields.put(key, value);
    }
}

/// Where a value's text stands.
#[derive(Clone, Copy)]
enum Text<'a> {
    Source(&'a [u8]),
    Decoded,
}

/// Reads tokens.
struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
    has_byte_escapes: bool,
}

/// A string as it stands in the text, its escapes checked but not decoded.
#[derive(Clone, Copy)]
struct StringToken<'a> {
    inside: &'a [u8],
    has_escape: bool,
}

impl<'a> Scanner<'a> {
    fn new(text: &'a [u8], has_byte_escapes: bool) -> Self {
        Self {
            text,
            at: 0,
            has_byte_escapes,
        }
    }

    #[inline]
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    #[inline]
    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    #[inline]
    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.next()? == byte).then_some(())
    }

    #[inline]
    fn space(&mut self) {
        while let Some(b' ' | b'\t' | b'\r' | b'\n') = self.peek() {
            self.at += 1;
        }
    }

    fn word(&mut self, word: &'static [u8]) -> Option<&'a [u8]> {
        let rest = self.text.get(self.at..)?;
        if !rest.starts_with(word) {
            return None;
        }
        self.at += word.len();
        rest.get(..word.len())
    }

    /// Reads a string.
    #[inline]
    fn string(&mut self) -> Option<StringToken<'a>> {
        self.expect(b'"')?;
        let start = self.at;
        let mut has_escape = false;
        loop {
            self.at = find_special(self.text, self.at)?;
            match self.next()? {
                b'"' => {
                    let inside = self.text.get(start..self.at - 1)?;
                    return Some(StringToken { inside, has_escape });
                }
                b'\\' => {
                    has_escape = true;
                    self.escape()?;
                }
                _ => return None, // a control character
            }
        }
    }

    fn escape(&mut self) -> Option<()> {
        match self.next()? {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => Some(()),
            b'x' if self.has_byte_escapes => {
                let digits = self.text.get(self.at..self.at + 2)?;
                self.at += 2;
                digits.iter().all(u8::is_ascii_hexdigit).then_some(())
            }
            b'u' => {
                let digits = self.text.get(self.at..self.at + 4)?;
                self.at += 4;
                digits.iter().all(u8::is_ascii_hexdigit).then_some(())
            }
            _ => None,
        }
    }

    /// Reads a string, number, boolean or null and returns its source text.
    #[inline]
    fn scalar(&mut self) -> Option<&'a [u8]> {
        match self.peek()? {
            b'"' => self.string().map(|string| string.inside),
            b't' => self.word(b"true"),
            b'f' => self.word(b"false"),
            b'n' => self.word(b"null"),
            _ => self.number(),
        }
    }

    /// Reads `-? (0 | [1-9][0-9]*) (. [0-9]+)? ([eE] [+-]? [0-9]+)?`.
    #[inline]
    fn number(&mut self) -> Option<&'a [u8]> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.next()? {
            b'0' => {}
            b'1'..=b'9' => self.skip_digits(),
            _ => return None,
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        self.text.get(start..self.at)
    }

    fn digits(&mut self) -> Option<()> {
        self.next()?.is_ascii_digit().then_some(())?;
        self.skip_digits();
        Some(())
    }

    #[inline]
    fn skip_digits(&mut self) {
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
    }

    /// Reads an object or array inside an object. Returns whether there is white space between
    /// its tokens.
    fn nested(&mut self) -> Option<bool> {
        let mut levels = Levels::default();
        let mut space_bytes = 0;
        loop {
            // At a value.
            if let byte @ (b'{' | b'[') = self.peek()? {
                self.at += 1;
                levels.push(byte == b'{')?;
                space_bytes += self.counted_space();
                if self.peek()? != levels.closer() {
                    space_bytes += self.member_key(&levels)?;
                    continue;
                }
            } else {
                self.scalar()?;
                space_bytes += self.counted_space();
            }
            // Behind a value, or in an empty one.
            while self.peek()? == levels.closer() {
                self.at += 1;
                if levels.pop() == 0 {
                    return Some(space_bytes > 0);
                }
                space_bytes += self.counted_space();
            }
            self.expect(b',')?;
            space_bytes += self.counted_space() + self.member_key(&levels)?;
        }
    }

    /// Reads a key and its colon, if the level is an object, and returns the white space behind
    /// each.
    fn member_key(&mut self, levels: &Levels) -> Option<usize> {
        if !levels.is_object() {
            return Some(0);
        }
        self.string()?;
        let before_colon = self.counted_space();
        self.expect(b':')?;
        Some(before_colon + self.counted_space())
    }

    fn counted_space(&mut self) -> usize {
        let start = self.at;
        self.space();
        self.at - start
    }
}

/// Which of the open levels are objects: one bit each, the outermost object not counted.
#[derive(Default)]
struct Levels {
    are_objects: u128,
    depth: u32,
}

impl Levels {
    fn push(&mut self, is_object: bool) -> Option<()> {
        if self.depth + 1 >= DEPTH_MAX {
            return None;
        }
        self.are_objects = self.are_objects << 1 | u128::from(is_object);
        self.depth += 1;
        Some(())
    }

    fn pop(&mut self) -> u32 {
        self.are_objects >>= 1;
        self.depth -= 1;
        self.depth
    }

    fn is_object(&self) -> bool {
        self.are_objects & 1 == 1
    }

    fn closer(&self) -> u8 {
        if self.is_object() { b'}' } else { b']' }
    }
}

/// Finds the next quote, backslash or control character, eight bytes at a time.
#[inline]
fn find_special(text: &[u8], from: usize) -> Option<usize> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    // The lowest byte found is exact; a borrow can only mark bytes above one that is marked.
    let zero_bytes = |word: u64| word.wrapping_sub(ONES) & !word & HIGH;
    let mut at = from;
    while let Some(chunk) = text.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let word = u64::from_le_bytes(*chunk);
        let controls = word.wrapping_sub(ONES * 0x20) & !word & HIGH;
        let quotes = zero_bytes(word ^ (ONES * u64::from(b'"')));
        let backslashes = zero_bytes(word ^ (ONES * u64::from(b'\\')));
        let found = controls | quotes | backslashes;
        if found != 0 {
            return Some(at + found.trailing_zeros() as usize / 8);
        }
        at += 8;
    }
    let rest = text.get(at..)?;
    let found = rest
        .iter()
        .position(|byte| matches!(byte, b'"' | b'\\' | 0..0x20))?;
    Some(at + found)
}

/// Appends a string's text: escapes decoded, everything replaced that is not UTF-8.
fn decode(inside: &[u8], out: &mut Vec<u8>) {
    let mut rest = inside;
    while let Some(at) = memchr::memchr(b'\\', rest) {
        encode::put_lossy(out, &rest[..at], usize::MAX);
        rest = decode_escape(&rest[at + 1..], out);
    }
    encode::put_lossy(out, rest, usize::MAX);
}

/// Decodes what stands behind a backslash, which the scanner has checked. Returns the rest.
fn decode_escape<'a>(text: &'a [u8], out: &mut Vec<u8>) -> &'a [u8] {
    let Some((letter, rest)) = text.split_first() else {
        return text;
    };
    let byte = match letter {
        b'b' => 0x08,
        b'f' => 0x0c,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'u' => {
            let (c, rest) = decode_unicode(rest);
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            return rest;
        }
        b'x' => {
            out.extend_from_slice(br"\x");
            return rest;
        }
        other => *other,
    };
    out.push(byte);
    rest
}

/// Decodes the four digits of `\u`, and a second escape if the two are a surrogate pair.
fn decode_unicode(text: &[u8]) -> (char, &[u8]) {
    let (unit, rest) = hex4(text);
    if let Some(c) = char::from_u32(unit) {
        return (c, rest);
    }
    if (0xd800..0xdc00).contains(&unit)
        && let Some(second) = rest.strip_prefix(b"\\u")
        && let (low @ 0xdc00..0xe000, rest) = hex4(second)
        && let Some(c) = char::from_u32(0x1_0000 + ((unit - 0xd800) << 10) + (low - 0xdc00))
    {
        return (c, rest);
    }
    (char::REPLACEMENT_CHARACTER, rest)
}

fn hex4(text: &[u8]) -> (u32, &[u8]) {
    let (digits, rest) = text.split_at_checked(4).unwrap_or((text, &[]));
    let value = digits.iter().fold(0, |value, digit| {
        value << 4 | char::from(*digit).to_digit(16).unwrap_or(0)
    });
    (value, rest)
}

/// Appends the source text of a nested value without the white space between its tokens.
fn compact(source: &[u8], is_utf8: bool, out: &mut Vec<u8>) {
    let mut rest = source;
    while let Some((first, tail)) = rest.split_first() {
        let token_bytes = match first {
            b' ' | b'\t' | b'\r' | b'\n' => {
                rest = tail;
                continue;
            }
            b'"' => string_bytes(rest),
            _ => {
                let is_end = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | b'"');
                rest.iter().position(is_end).unwrap_or(rest.len())
            }
        };
        let (token, tail) = rest.split_at(token_bytes);
        if is_utf8 {
            out.extend_from_slice(token);
        } else {
            encode::put_lossy(out, token, usize::MAX);
        }
        rest = tail;
    }
}

/// Returns the length of the string at the start of a checked text, quotes included.
fn string_bytes(text: &[u8]) -> usize {
    let mut at = 1;
    while let Some(found) = text
        .get(at..)
        .and_then(|rest| memchr::memchr2(b'"', b'\\', rest))
    {
        at += found;
        if text[at] == b'"' {
            return at + 1;
        }
        at += 2;
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::super::fields::{Rules, Scratch};
    use super::*;
    use proptest::prelude::*;
    use prost::Message;
    use serde_json::Value as Json;

    #[derive(Clone, PartialEq, Message)]
    struct Contents {
        #[prost(message, repeated, tag = "2")]
        pairs: Vec<Pair>,
    }

    #[derive(Clone, PartialEq, Message)]
    struct Pair {
        #[prost(string, required, tag = "1")]
        key: String,
        #[prost(string, required, tag = "2")]
        value: String,
    }

    const RULES: Rules = Rules {
        key_prefix: b"",
        taken_key: None,
        fields_bytes_max: 1 << 20,
        values_bytes_max: 1 << 20,
    };

    fn members_by(rules: Rules, text: &[u8]) -> Option<(Vec<(String, String)>, u64)> {
        let mut out = b"before".to_vec();
        let (mut scratch, mut texts) = (Scratch::default(), Texts::default());
        let fields = Fields::begin(rules, &mut scratch, &mut out);
        let written = put_members(text, false, fields, &mut texts);
        let Some(written) = written else {
            assert_eq!(out, b"before", "nothing is left behind");
            return None;
        };
        let pairs = Contents::decode(&out[6..]).unwrap().pairs;
        let value_bytes: usize = pairs.iter().map(|pair| pair.value.len()).sum();
        assert_eq!(value_bytes, written.value_bytes);
        let pairs = pairs.into_iter().map(|pair| (pair.key, pair.value));
        Some((pairs.collect(), written.renamed_keys))
    }

    fn members(text: &[u8]) -> Option<Vec<(String, String)>> {
        members_by(RULES, text).map(|(pairs, _)| pairs)
    }

    fn check(text: &[u8], expected: &[(&str, &str)]) {
        let expected = expected
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let shown = String::from_utf8_lossy(text);
        assert_eq!(members(text), Some(expected.collect()), "{shown}");
    }

    #[test]
    fn what_is_an_object() {
        check(b"{}", &[]);
        check(b" \t\r\n{ \t\r\n} \t\r\n", &[]);
        check(br#"{"a":"b"}"#, &[("a", "b")]);
        check(br#"{ "a" : "b" , "c" : "d" }"#, &[("a", "b"), ("c", "d")]);
        check(br#"{"":""}"#, &[("field", "")]);
        check(
            br#"{"a":null,"b":true,"c":false}"#,
            &[("a", ""), ("b", "true"), ("c", "false")],
        );
        check(
            "{\"日\":\"志\u{2028}\u{7f}\"}".as_bytes(),
            &[("日", "志\u{2028}\u{7f}")],
        );
    }

    #[test]
    fn numbers_stay_as_they_are_written() {
        for number in [
            "0",
            "-0",
            "1",
            "-1",
            "1234567",
            "123456789012345678901234567890",
            "0.1",
            "-0.0",
            "19.99999999",
            "1e5",
            "1E5",
            "1e+5",
            "1e-5",
            "1.5e300",
            "1e400",
            "-1e-400",
            "20e1",
            "0e0",
            "0.00000000000000000000000000000000000000000001",
        ] {
            check(format!("{{\"n\":{number}}}").as_bytes(), &[("n", number)]);
        }
        for number in [
            "",
            "-",
            "+1",
            "01",
            "-01",
            "1.",
            ".1",
            "-.1",
            "1.e1",
            "1e",
            "1e+",
            "1e1.5",
            "0x1",
            "1_000",
            "NaN",
            "Infinity",
            "-Infinity",
            "inf",
            "1 2",
            "１",
            "1a",
            "--1",
            "2.e3",
        ] {
            assert_eq!(
                members(format!("{{\"n\":{number}}}").as_bytes()),
                None,
                "{number}"
            );
        }
    }

    #[test]
    fn escapes_are_decoded() {
        for (source, value) in [
            (r#"\"\\\/"#, "\"\\/"),
            (r"\b\f\n\r\t", "\u{8}\u{c}\n\r\t"),
            (r"\u0041\u00e9\u65e5\uFFFF", "A\u{e9}日\u{ffff}"),
            (r"\u0000", "\0"),
            (r"\ud83d\ude00\uD83D\uDE00", "😀😀"),
            (r"a\ud83db", "a\u{fffd}b"),
            (r"\ude00", "\u{fffd}"),
            (r"\ude00\ud83d", "\u{fffd}\u{fffd}"),
            (r"\ud83d\ud83d\ude00", "\u{fffd}😀"),
            (r"\ud83d\n", "\u{fffd}\n"),
            (r"\ud83d\u0041", "\u{fffd}A"),
            (r"\\u0041", "\\u0041"),
            (r"\udbff\udfff", "\u{10ffff}"),
        ] {
            let text = format!(r#"{{"s":"{source}"}}"#);
            check(text.as_bytes(), &[("s", value)]);
            let text = format!(r#"{{"k{source}":"v"}}"#);
            check(text.as_bytes(), &[(&format!("k{value}"), "v")]);
        }
        for source in [
            r"\", r"\a", r"\x41", r"\u", r"\u12", r"\u123", r"\u12G4", r"\u{41}", r"\U0041", r"\'",
            r"\u+123", "\\\u{0}", "\\é",
        ] {
            let text = format!(r#"{{"s":"{source}"}}"#);
            assert_eq!(members(text.as_bytes()), None, "{source}");
        }
    }

    #[test]
    fn control_characters_in_strings_are_no_json() {
        for control in 0..0x20_u8 {
            // At every place of the eight bytes that are looked at together.
            for place in 0..17 {
                let mut text = br#"{"s":"0123456789abcdef"}"#.to_vec();
                text[6 + place.min(15)] = control;
                assert_eq!(members(&text), None, "{control} at {place}");
            }
        }
        check(b"{\"s\":\"\x7f\"}", &[("s", "\x7f")]);
    }

    #[test]
    fn bytes_that_are_not_utf8_are_replaced() {
        check(b"{\"s\":\"a\xffb\"}", &[("s", "a\u{fffd}b")]);
        check(b"{\"\xff\":1}", &[("\u{fffd}", "1")]);
        check(
            b"{\"s\":\"\xf0\x9f\\n\x98\"}",
            &[("s", "\u{fffd}\n\u{fffd}")],
        );
        check(b"{\"s\":[ \"\xff\" ]}", &[("s", "[\"\u{fffd}\"]")]);
        check(
            b"{\"s\":\"\xff\",\"t\":\"ok\"}",
            &[("s", "\u{fffd}"), ("t", "ok")],
        );
        assert_eq!(members(b"{\"s\":\xff}"), None);
        assert_eq!(members(b"\xff{}"), None);
        assert_eq!(members(b"\xef\xbb\xbf{}"), None, "a byte order mark");
    }

    #[test]
    fn nested_values_are_compact_source_text() {
        check(
            br#"{"a": {"b" : [1.0, 2 , "x  y\" z", {} , [ ]], "c":null} ,"d": [ ] }"#,
            &[
                ("a", r#"{"b":[1.0,2,"x  y\" z",{},[]],"c":null}"#),
                ("d", "[]"),
            ],
        );
        check(
            br#"{"a":[[[[]]],{"b":{"c":[]}}]}"#,
            &[("a", r#"[[[[]]],{"b":{"c":[]}}]"#)],
        );
        check(
            br#"{"a":["\u0041\\ "," \\"]}"#,
            &[("a", r#"["\u0041\\ "," \\"]"#)],
        );
        for inside in [
            "[",
            "]",
            "[}",
            "{]",
            "[1",
            "[1,",
            "[1,]",
            "[,1]",
            "[,]",
            "[1 2]",
            "[1,,2]",
            "{\"b\"}",
            "{\"b\":}",
            "{\"b\":1,}",
            "{\"b\" 1}",
            "{1:1}",
            "{b:1}",
            "[nul]",
            "[truE]",
            "[\"]",
            "[1]]",
            "{\"b\":1}}",
            "['x']",
            "[\"a\" \"b\"]",
            "[1}",
            "{\"b\":1]",
            "[\"\t\"]",
            "{,}",
        ] {
            let text = format!("{{\"a\":{inside}}}");
            assert_eq!(members(text.as_bytes()), None, "{inside}");
        }
    }

    #[test]
    fn what_is_no_object_is_text() {
        for text in [
            "",
            " ",
            "[]",
            "[1]",
            "1",
            "\"a\"",
            "null",
            "true",
            "{",
            "}",
            "{}}",
            "{}{}",
            "{},",
            "{} x",
            "x {}",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1",
            "{\"a\":1,",
            "{\"a\":1,}",
            "{,}",
            "{\"a\":1 \"b\":2}",
            "{\"a\" \"b\"}",
            "{\"a\":1;}",
            "{'a':1}",
            "{a:1}",
            "{1:1}",
            "{\"a\":1,,\"b\":2}",
            "{\"a:1}",
            "{\"a\":\"b}",
            "{\"a\":tru}",
            "{\"a\":truee}",
            "{\"a\":nul}",
            "{\"a\":undefined}",
            "{\"a\":1}//",
            "/**/{}",
            "{\"a\":/**/1}",
            "{\"a\":1}\0",
            "{\"a\":1}\u{a0}",
            "{\u{c}}",
            "{null:1}",
            "{[]:1}",
            "{\"a\"::1}",
        ] {
            assert_eq!(members(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |levels: usize| {
            let inside = levels - 1;
            format!("{{\"a\":{}{}}}", "[".repeat(inside), "]".repeat(inside))
        };
        let max = DEPTH_MAX as usize;
        assert!(members(nested(max - 1).as_bytes()).is_some());
        assert!(members(nested(max).as_bytes()).is_some());
        assert_eq!(members(nested(max + 1).as_bytes()), None);
        assert_eq!(members(nested(400_000).as_bytes()), None);
        let objects = format!("{}1{}", "{\"a\":".repeat(max), "}".repeat(max));
        assert!(members(objects.as_bytes()).is_some());
        let objects = format!("{}1{}", "{\"a\":".repeat(max + 1), "}".repeat(max + 1));
        assert_eq!(members(objects.as_bytes()), None);
    }

    #[test]
    fn an_object_beyond_the_bound_of_bytes_is_text() {
        let text = br#"{"a":"0123456789","b":"0123456789"}"#;
        let field_bytes = encode::pair_bytes(1, 10);
        let by = |fields_bytes_max| {
            let rules = Rules {
                fields_bytes_max,
                ..RULES
            };
            members_by(rules, text).is_some()
        };
        let by_values = |values_bytes_max| {
            let rules = Rules {
                values_bytes_max,
                ..RULES
            };
            members_by(rules, text).is_some()
        };
        assert!(by_values(20));
        assert!(!by_values(19));
        assert!(by(2 * field_bytes));
        assert!(!by(2 * field_bytes - 1));
        assert!(!by(field_bytes));
        assert!(!by(0));
    }

    #[test]
    fn of_equal_keys_the_last_one_wins() {
        check(br#"{"a":1,"b":2,"a":3}"#, &[("b", "2"), ("a", "3")]);
        check(br#"{"a":1,"\u0061":"x","a":{}}"#, &[("a", "{}")]);
        check(br#"{"_a":1,"_a":2}"#, &[("a", "2")]);
        check(br#"{"":1,"":2}"#, &[("field", "2")]);
    }

    #[test]
    fn keys_lose_leading_underscores() {
        for (key, renamed) in [
            ("_id", "id"),
            ("__TIMESTAMP__", "TIMESTAMP__"),
            ("__FILENAME__", "FILENAME__"),
            ("__hostname__", "hostname__"),
            ("_", "field"),
            ("___", "field"),
            ("", "field"),
            (r"\u005fid", "id"),
        ] {
            let text = format!(r#"{{"{key}":"v","x_y":1}}"#);
            let expected = vec![(renamed.into(), "v".into()), ("x_y".into(), "1".into())];
            assert_eq!(
                members_by(RULES, text.as_bytes()),
                Some((expected, 1)),
                "{key}"
            );
        }
    }

    #[test]
    fn renamed_keys_do_not_replace_others() {
        check(br#"{"_a":1,"a":2}"#, &[("a_", "1"), ("a", "2")]);
        check(br#"{"a":2,"_a":1}"#, &[("a", "2"), ("a_", "1")]);
        check(br#"{"_a":1,"__a":2}"#, &[("a", "1"), ("a_", "2")]);
        check(
            br#"{"_a":1,"a":2,"a_":3,"__a":4,"_a":5}"#,
            &[("a", "2"), ("a_", "3"), ("a__", "4"), ("a___", "5")],
        );
        check(
            br#"{"":1,"_":2,"field":3,"_field":4}"#,
            &[
                ("field_", "1"),
                ("field__", "2"),
                ("field", "3"),
                ("field___", "4"),
            ],
        );
        let rules = Rules {
            taken_key: Some(b"instance"),
            ..RULES
        };
        let (pairs, renamed) = members_by(rules, br#"{"instance":1,"_instance":2}"#).unwrap();
        let expected = [("instance_", "1"), ("instance__", "2")];
        assert_eq!(pairs, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
        assert_eq!(renamed, 2);
    }

    #[test]
    fn a_prefix_keeps_keys_as_they_are() {
        let rules = Rules {
            key_prefix: b"__p__.",
            ..RULES
        };
        let (pairs, renamed) = members_by(rules, br#"{"_a":1,"a":2,"":3,"a":4}"#).unwrap();
        let expected = [("__p__._a", "1"), ("__p__.", "3"), ("__p__.a", "4")];
        assert_eq!(pairs, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
        assert_eq!(renamed, 0);
    }

    #[test]
    fn a_hundred_thousand_keys() {
        let mut text = b"{".to_vec();
        for number in 0..100_000 {
            text.extend_from_slice(format!("\"{number:x}\":1,").as_bytes());
        }
        text.extend_from_slice(br#""7":"again","_8":2,"last":3}"#);
        let mut scratch = Scratch::default();
        let mut out = Vec::new();
        let rules = Rules {
            fields_bytes_max: 2 << 20,
            ..RULES
        };
        let fields = Fields::begin(rules, &mut scratch, &mut out);
        let written = put_members(&text, false, fields, &mut Texts::default()).unwrap();
        assert_eq!(written.renamed_keys, 1);
        let pairs = Contents::decode(out.as_slice()).unwrap().pairs;
        assert_eq!(pairs.len(), 100_002);
        let find = |key: &str| {
            let mut found = pairs.iter().filter(|pair| pair.key == key);
            let value = found.next().map(|pair| pair.value.as_str());
            assert_eq!(found.next(), None, "{key} once");
            value
        };
        assert_eq!(find("7"), Some("again"));
        assert_eq!(find("8"), Some("1"));
        assert_eq!(find("8_"), Some("2"));
        assert_eq!(find("1869f"), Some("1"));
        assert_eq!(find("last"), Some("3"));
        assert!(scratch.is_small(), "memory is given back");
    }

    #[test]
    fn escaped_text_is_the_inside_of_a_string() {
        let every: String = (0..0x100_u32).filter_map(char::from_u32).collect();
        let mut text = b"{\"s\":\"".to_vec();
        put_escaped(&mut text, every.as_bytes());
        text.extend_from_slice(b"\"}");
        check(&text, &[("s", &every)]);
    }

    /// What a tree says the fields are. Keys in the strategies begin with no underscore.
    fn expected(object: &serde_json::Map<String, Json>) -> Vec<(String, String)> {
        let mut fields: Vec<_> = object
            .iter()
            .map(|(key, value)| {
                let value = match value {
                    Json::Null => String::new(),
                    Json::String(text) => text.clone(),
                    Json::Bool(_) | Json::Number(_) | Json::Array(_) | Json::Object(_) => {
                        value.to_string()
                    }
                };
                (key.clone(), value)
            })
            .collect();
        fields.sort();
        fields
    }

    fn json_values() -> impl Strategy<Value = Json> {
        let leaf = prop_oneof![
            Just(Json::Null),
            any::<bool>().prop_map(Json::from),
            any::<i64>().prop_map(Json::from),
            any::<f64>().prop_map(Json::from),
            "\\PC{0,12}|[\"\\\\\n\t\u{0}-\u{1f}a😀]{0,12}".prop_map(Json::from),
        ];
        leaf.prop_recursive(4, 24, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Json::from),
                prop::collection::hash_map("\\PC{0,5}", inner, 0..5)
                    .prop_map(|map| Json::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn an_object_is_what_a_tree_says(
            object in prop::collection::hash_map("[a-z\"\\\\😀\n]\\PC{0,9}", json_values(), 0..60),
            is_pretty in any::<bool>(),
        ) {
            let json = Json::Object(object.into_iter().collect());
            let text = if is_pretty { format!("{json:#}") } else { json.to_string() };
            let mut fields = members(text.as_bytes()).expect("an object");
            fields.sort();
            prop_assert_eq!(fields, expected(json.as_object().unwrap()));
        }

        #[test]
        fn a_text_is_an_object_if_a_tree_says_so(
            text in prop::collection::vec(
                prop::sample::select(&[
                    "{", "}", "[", "]", ":", ",", "\"", "\"a\"", "\"b\"", "\"\\u0041\"", "\\", " ",
                    "\n", "1", "-", ".", "0", "e", "+", "true", "null", "é", "\u{1}", "\"k\":",
                ]),
                0..14,
            ),
            is_wrapped in any::<bool>(),
        ) {
            let text = text.concat();
            let text = if is_wrapped { format!("{{\"k\":{text}}}") } else { text };
            // serde_json refuses numbers that no float can hold; there are none here.
            let theirs = serde_json::from_str::<serde_json::Map<String, Json>>(&text);
            prop_assert_eq!(members(text.as_bytes()).is_some(), theirs.is_ok(), "{}", text);
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(
            prop_oneof![any::<u8>(), prop::sample::select(b"{}[]:,\"\\u d8\n0-1e.")], 0..60,
        )) {
            if let Some(fields) = members(&bytes) {
                prop_assert!(fields.iter().all(|(key, _)| !key.starts_with('_')));
            }
            let mut wrapped = b"{\"k\":\"".to_vec();
            wrapped.extend_from_slice(&bytes);
            wrapped.extend_from_slice(b"\"}");
            members(&wrapped);
        }
    }
}
