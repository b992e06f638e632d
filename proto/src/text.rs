//! Text of others, made fit for whoever reads it at a terminal: one line, and nothing that a terminal
//! or an editor obeys.
//!
//! It comes from containers, hosts, shippers and whoever answers for CLS, and goes to logs, tables and
//! answers. It is cleaned where it enters; logs are cleaned once more where they are written, so that no
//! message can break out of its line, whatever is in it.

use std::borrow::Cow;

/// Returns whether a character steers what shows it instead of being shown: control characters (C0, DEL,
/// C1), ends of lines and paragraphs, and what changes the direction of text, which makes a line read
/// otherwise than it is.
pub fn is_obeyed(char: char) -> bool {
    char.is_control()
        || matches!(
            char,
            '\u{61c}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}'
        )
}

/// Returns a text with a space in place of each character that would be obeyed.
pub fn clean(text: &str) -> Cow<'_, str> {
    if !text.contains(is_obeyed) {
        return Cow::Borrowed(text);
    }
    let chars = text.chars();
    let shown = chars.map(|char| if is_obeyed(char) { ' ' } else { char });
    Cow::Owned(shown.collect())
}

/// Returns the beginning of a text, clean: at most so many bytes, and a sign that there is more.
pub fn shown(text: &str, bytes_max: usize) -> String {
    let end = text.floor_char_boundary(bytes_max);
    let (kept, rest) = text.split_at(end);
    let mut shown = clean(kept).into_owned();
    if !rest.is_empty() {
        shown.push('…');
    }
    shown
}

/// Returns a message of a log as it is written: clean, and one line whatever is in it.
pub fn line(message: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(message);
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let mut line = clean(text).into_owned().into_bytes();
    line.push(b'\n');
    line
}

/// Returns JSON that shows what it holds: what would be obeyed stands as an escape, but for line feeds
/// and spaces between its parts.
pub fn json(json: &str) -> String {
    let mut shown = String::with_capacity(json.len());
    for char in json.chars() {
        if is_obeyed(char) && char != '\n' {
            // All of them are in the first plane of Unicode, and in strings: JSON has none elsewhere.
            shown.push_str(&format!("\\u{:04x}", u32::from(char)));
        } else {
            shown.push(char);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str =
        "a\n2026 INFO b\r\u{1b}[2K\u{7}\u{7f}\u{9b}\u{85}\u{202e}\u{2066}\u{2028}c";

    #[test]
    fn what_would_be_obeyed_is_a_space_and_all_else_stays() {
        assert_eq!(clean(HOSTILE), "a 2026 INFO b  [2K       c");
        let harmless = "größe 日志 €\u{a0}— \\ \"";
        assert!(matches!(clean(harmless), Cow::Borrowed(text) if text == harmless));
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(shown("äöü", 3), "ä…");
        assert_eq!(shown("äöü", 6), "äöü");
        assert_eq!(shown("\u{1b}x", 9), " x");
    }

    #[test]
    fn a_message_is_one_line() {
        assert_eq!(line(b"a\nb\n"), b"a b\n");
        assert_eq!(line(b"a"), b"a\n");
        assert_eq!(
            line(HOSTILE.as_bytes())
                .iter()
                .filter(|byte| **byte == b'\n')
                .count(),
            1
        );
    }

    /// A string of JSON means the same with escapes in it.
    #[test]
    fn json_shows_what_would_be_obeyed_as_escapes() {
        let text = "{\n  \"name\": \"a\u{7f}b\u{9b}2K\u{202e}ä\"\n}";
        let expected = "{\n  \"name\": \"a\\u007fb\\u009b2K\\u202eä\"\n}";
        assert_eq!(json(text), expected);
    }
}
