//! Pairs `key=value`, as programs in Go write them. There is no standard, and readers disagree; this is what
//! is read here:
//!
//! | text                      | becomes                                                        |
//! |---------------------------|----------------------------------------------------------------|
//! | `a=1 b=2`                 | pairs; blanks and tabs, any number, stand between them         |
//! | `a=`, `a= b=2`, `a=""`    | an empty value: what follows a blank is the next pair          |
//! | `a=b=c`, `a=1,b=2`        | one pair: a value without quotes ends at a blank               |
//! | `a=un"quoted`             | the quote is part of the value                                 |
//! | `a="x \"y\" \n"`          | quotes and escapes go; an escape that Go has not stays         |
//! | `a="v"b=1`                | two pairs: a quoted value ends at its quote                    |
//! | `"a key"=1`               | a quoted key                                                   |
//! | `a=1 a=2`                 | the last one wins, as in JSON                                  |
//! | `word a=1 "some text"`    | what is no pair stays in `content`, in its order               |
//! | `=1`                      | no pair: it has no key                                         |
//! | `a="never ended`          | not logfmt, nor is a text without a pair                       |

use super::super::fields::{Fields, Texts};

/// Writes the pairs of a text. Returns what is between them, or `None` if the text is not of this form; what was
/// written then is to be taken back.
pub(super) fn put_pairs(
    text: &[u8],
    has_byte_escapes: bool,
    fields: &mut Fields<'_>,
    texts: &mut Texts,
) -> Option<Vec<u8>> {
    let mut rest = text.trim_ascii_start();
    let mut words: Vec<u8> = Vec::new();
    let mut has_pair = false;
    while !rest.is_empty() {
        let (key, behind) = token(rest, |byte| byte == b'=' || byte.is_ascii_whitespace())?;
        let value = behind.strip_prefix(b"=");
        let (Some(value), false) = (value, key.is_empty()) else {
            // Not a pair: all up to the next blank, so that `=x` stays together.
            let (_, behind) = match value {
                Some(value) => token(value, |byte| byte.is_ascii_whitespace())?,
                None => (key, behind),
            };
            if !words.is_empty() {
                words.push(b' ');
            }
            words.extend_from_slice(rest.get(..rest.len() - behind.len())?);
            rest = behind.trim_ascii_start();
            continue;
        };
        let (value, behind) = token(value, |byte| byte.is_ascii_whitespace())?;
        let key = key.text(has_byte_escapes, &mut texts.key);
        let value = value.text(has_byte_escapes, &mut texts.value);
        fields.put(key, value);
        has_pair = true;
        rest = behind.trim_ascii_start();
        if !fields.is_within_bounds() {
            return None;
        }
    }
    has_pair.then_some(words)
}

/// A key or value as it stands in the text.
#[derive(Clone, Copy)]
enum Token<'a> {
    Bare(&'a [u8]),
    /// What stands between quotes.
    Quoted(&'a [u8]),
}

impl Token<'_> {
    fn is_empty(&self) -> bool {
        matches!(self, Token::Bare(b""))
    }
}

impl<'a> Token<'a> {
    /// Returns the text without quotes and escapes, which may be put into `memory`.
    fn text<'m>(self, has_byte_escapes: bool, memory: &'m mut Vec<u8>) -> &'m [u8]
    where
        'a: 'm,
    {
        match self {
            Token::Bare(text) => text,
            Token::Quoted(inside) if !inside.contains(&b'\\') => inside,
            Token::Quoted(inside) => {
                memory.clear();
                put_unescaped(inside, has_byte_escapes, memory);
                memory
            }
        }
    }
}

/// Splits off a key or value: up to the quote that ends it, or up to a byte that does. Returns `None` if a
/// quote is not ended.
fn token(text: &[u8], ends: impl Fn(u8) -> bool) -> Option<(Token<'_>, &[u8])> {
    if let Some(inside) = text.strip_prefix(b"\"") {
        let end = quote_end(inside)?;
        return Some((Token::Quoted(inside.get(..end)?), inside.get(end + 1..)?));
    }
    let end = text.iter().position(|byte| ends(*byte));
    let (token, rest) = text.split_at(end.unwrap_or(text.len()));
    Some((Token::Bare(token), rest))
}

/// Returns where the quote stands that ends a text, of which the first one is taken off.
pub(super) fn quote_end(inside: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        at += memchr::memchr2(b'"', b'\\', inside.get(at..)?)?;
        if inside.get(at) == Some(&b'"') {
            return Some(at);
        }
        at += 2;
    }
}

/// Undoes the escapes of Go's `strconv.Quote`. What is none stays as it is, and so do bytes that are no text:
/// `\xff` would be one.
fn put_unescaped(inside: &[u8], has_byte_escapes: bool, out: &mut Vec<u8>) {
    let mut rest = inside;
    while let Some(at) = memchr::memchr(b'\\', rest) {
        let (before, escape) = rest.split_at(at);
        out.extend_from_slice(before);
        match unescaped(escape, has_byte_escapes) {
            Some((char, escape_bytes)) => {
                out.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
                rest = escape.get(escape_bytes..).unwrap_or_default();
            }
            None => {
                out.push(b'\\');
                rest = escape.get(1..).unwrap_or_default();
            }
        }
    }
    out.extend_from_slice(rest);
}

/// Reads an escape: its character, and its length.
fn unescaped(escape: &[u8], has_byte_escapes: bool) -> Option<(char, usize)> {
    let hex = |digits: usize| {
        let digits = std::str::from_utf8(escape.get(2..2 + digits)?).ok()?;
        let is_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        char::from_u32(u32::from_str_radix(digits, 16).ok().filter(|_| is_hex)?)
    };
    Some(match escape.get(1)? {
        b'"' => ('"', 2),
        b'\\' => ('\\', 2),
        b'n' => ('\n', 2),
        b'r' => ('\r', 2),
        b't' => ('\t', 2),
        b'a' => ('\x07', 2),
        b'b' => ('\x08', 2),
        b'f' => ('\x0c', 2),
        b'v' => ('\x0b', 2),
        b'x' if !has_byte_escapes => (hex(2).filter(char::is_ascii)?, 4),
        b'u' => (hex(4)?, 6),
        b'U' => (hex(8)?, 10),
        _ => return None,
    })
}
