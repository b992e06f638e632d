//! Lines that can be told in advance: what the workload `chatter` writes, and what a test that runs
//! it expects.
//!
//! A line is a function of its shape and its number, so a test compares what arrived with what was
//! written without a copy of either. No line contains `\n`.
//!
//! What can't be told that way, a stack trace say, a test writes down itself: see [`Step`].

use std::str::FromStr;
use std::time::Duration;

/// What the lines look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Number, blank, filler: exactly this many bytes, but at least [`PLAIN_BYTES_MIN`].
    Plain {
        /// Bytes of a line.
        bytes: usize,
    },
    /// A JSON object of fixed members; see [`json_members`].
    Json,
}

/// Bytes of the shortest plain line: its number.
pub const PLAIN_BYTES_MIN: usize = 8;

const FILLER: &str = "abcdefghijklmnopqrstuvwxyz0123456789";

impl Shape {
    /// Appends the line of this number, without its line end.
    pub fn append(self, number: u64, line: &mut String) {
        match self {
            Self::Plain { bytes } => append_plain(number, bytes, line),
            Self::Json => {
                line.push('{');
                for (index, (name, value)) in json_members(number).into_iter().enumerate() {
                    let comma = if index == 0 { "" } else { "," };
                    line.push_str(&format!("{comma}\"{name}\":{value}"));
                }
                line.push('}');
            }
        }
    }

    /// Returns the line of this number, without its line end.
    #[must_use]
    pub fn line(self, number: u64) -> String {
        let mut line = String::new();
        self.append(number, &mut line);
        line
    }
}

fn append_plain(number: u64, bytes: usize, line: &mut String) {
    let end = line.len() + bytes.max(PLAIN_BYTES_MIN);
    line.push_str(&format!("{number:08}"));
    if line.len() < end {
        line.push(' ');
    }
    let start = usize::try_from(number % 36).unwrap_or_default();
    let filler = FILLER.chars().cycle().skip(start);
    line.extend(filler.take(end.saturating_sub(line.len())));
}

/// Returns the members of a JSON line: names, and values as JSON text. The numbers are such that a
/// reader that goes through a double changes them.
#[must_use]
pub fn json_members(number: u64) -> Vec<(&'static str, String)> {
    vec![
        ("number", number.to_string()),
        ("count", "1234567".to_owned()),
        ("price", "19.99999999".to_owned()),
        ("huge", "1e400".to_owned()),
        ("id", "9007199254740993".to_owned()),
        ("ok", "true".to_owned()),
        ("none", "null".to_owned()),
        ("text", format!("\"line {number}: \\\"日本語\\\" \\u00e9\"")),
        ("nested", format!("{{\"list\":[1,2,{number}]}}")),
    ]
}

/// Returns the fields that CLS has of a JSON line: strings unescaped, numbers and booleans byte for
/// byte, null empty, nested values as compact JSON.
#[must_use]
pub fn json_fields(number: u64) -> Vec<(&'static str, String)> {
    let field = |(name, value): (&'static str, String)| {
        let value = match name {
            "none" => String::new(),
            "text" => format!("line {number}: \"日本語\" é"),
            _ => value,
        };
        (name, value)
    };
    json_members(number).into_iter().map(field).collect()
}

/// Bytes of a line that are written at once when lines of both outputs are to interleave: four of
/// the engine's pieces.
pub const INTERLEAVED_BYTES: usize = 64 << 10;

/// A step that the workload is told to do: `out:TEXT` and `err:TEXT` write a text and a line end,
/// `pause:MS` waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Writes to stdout; a text of several lines is several lines.
    Out(String),
    /// Writes to stderr.
    Err(String),
    /// Waits.
    Pause(Duration),
}

impl FromStr for Step {
    type Err = String;

    fn from_str(step: &str) -> Result<Self, String> {
        let parsed = match step.split_once(':') {
            Some(("out", text)) => Some(Self::Out(text.to_owned())),
            Some(("err", text)) => Some(Self::Err(text.to_owned())),
            Some(("pause", ms)) => ms.parse().ok().map(Duration::from_millis).map(Self::Pause),
            _ => None,
        };
        parsed.ok_or_else(|| format!("{step:?} is none of out:TEXT, err:TEXT, pause:MS"))
    }
}

/// Bytes of the long line of [`demo`]: more than six of the engine's pieces.
pub const DEMO_LONG_BYTES: usize = 100 << 10;

/// Returns the lines of a demonstration, each with whether it goes to stderr.
#[must_use]
pub fn demo() -> Vec<(bool, String)> {
    let plain = |text: &str| (false, text.to_owned());
    vec![
        plain("a plain line becomes the field content"),
        plain("so does the next one, in order, with Docker's own time"),
        plain(
            r#"{"level":"info","user":1234567,"price":19.99999999,"huge":1e400,"tags":["a","b"]}"#,
        ),
        (
            true,
            "a line on stderr is a record with __stream__=stderr".to_owned(),
        ),
        plain("UTF-8 stays whole: 日志 Größe журнал 🚚"),
        (false, format!("long {}", "x".repeat(DEMO_LONG_BYTES - 5))),
        plain("the line above has 100 KiB: the engine cut it into pieces, the shipper joined them"),
        plain("the last line"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_line_has_its_bytes_and_its_number() {
        for bytes in [0, 8, 9, 10, 45, 46, 20_000] {
            let line = Shape::Plain { bytes }.line(42);
            assert_eq!(line.len(), bytes.max(PLAIN_BYTES_MIN));
            assert!(line.starts_with("00000042"));
        }
        let lines: Vec<_> = (35..38)
            .map(|n| Shape::Plain { bytes: 12 }.line(n))
            .collect();
        assert_eq!(lines, ["00000035 9ab", "00000036 abc", "00000037 bcd"]);
    }

    #[test]
    fn a_json_line_is_an_object_of_its_members() {
        let line = Shape::Json.line(7);
        let object: std::collections::BTreeMap<&str, &serde_json::value::RawValue> =
            serde_json::from_str(&line).unwrap();
        assert_eq!(object.len(), json_members(7).len());
        for (name, value) in json_members(7) {
            assert_eq!(object[name].get(), value);
        }
        let text: String = serde_json::from_str(object["text"].get()).unwrap();
        assert!(json_fields(7).contains(&("text", text)));
    }

    #[test]
    fn steps_are_read() {
        let good = [
            ("out:a: b", Step::Out("a: b".into())),
            ("err:", Step::Err(String::new())),
            ("pause:20", Step::Pause(Duration::from_millis(20))),
        ];
        for (text, step) in good {
            assert_eq!(text.parse(), Ok(step));
        }
        for bad in ["", "out", "stdout:a", "pause:", "pause:-1", "pause:1s"] {
            assert!(bad.parse::<Step>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_demonstration_shows_what_it_says() {
        let lines = demo();
        assert!(lines.iter().any(|(is_stderr, _)| *is_stderr));
        assert!(lines.iter().any(|(_, line)| line.len() == DEMO_LONG_BYTES));
        assert!(lines.iter().all(|(_, line)| !line.contains('\n')));
    }
}
