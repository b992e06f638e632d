//! A container's template, compiled: constant tags are folded into literals, so that rendering
//! copies bytes and nothing else.
//!
//! A template may be JSON, `{"line":"{log}"}`. Inside its strings a tag's text is escaped, so that
//! the rendered text is JSON whatever the line is. A tag outside of strings, `{"event":{log}}`,
//! stands for JSON of its own.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use proto::frame::Source;
use proto::limits::RECORD_LINE_BYTES_MAX;
use proto::log_opts::{Piece, TAGS, Template, unknown_tag_rule};

use super::fields::{self, Fields, Texts};
use super::json;

/// Bytes of the constant tags of a template. More is a fault at start: there would be no room for
/// lines.
const CONSTANT_BYTES_MAX: usize = 64 << 10;

/// A template for one container.
#[derive(Debug)]
pub(super) struct Compiled {
    pieces: Vec<CompiledPiece>,
}

/// A tag whose text differs between lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Varying {
    Log,
    Timestamp,
    Source,
}

#[derive(Debug)]
enum CompiledPiece {
    Constant(Vec<u8>),
    Varying { tag: Varying, is_escaped: bool },
}

/// What the varying tags of one record stand for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line<'a> {
    pub(super) text: &'a [u8],
    pub(super) time_nano: i64,
    pub(super) source: Source,
}

impl Compiled {
    /// Compiles a template.
    ///
    /// # Errors
    /// The rules that it breaks: tags that are unknown, constant text that would fill a record.
    pub(super) fn new(
        template: &Template,
        constants: &BTreeMap<String, String>,
    ) -> Result<Self, Vec<String>> {
        let is_json = is_json(template);
        let mut pieces: Vec<CompiledPiece> = Vec::new();
        let mut broken = Vec::new();
        let mut constant_bytes = 0;
        let mut strings = StringTracker::default();
        for piece in &template.pieces {
            let tag = match piece {
                Piece::Literal(literal) => {
                    strings.pass(literal);
                    push_constant(&mut pieces, literal.as_bytes());
                    continue;
                }
                Piece::Tag(tag) => tag,
            };
            let is_escaped = is_json && strings.is_inside;
            match (varying(tag), constants.get(tag)) {
                (Some(tag), _) => pieces.push(CompiledPiece::Varying { tag, is_escaped }),
                (None, Some(constant)) => {
                    constant_bytes += constant.len();
                    if constant_bytes > CONSTANT_BYTES_MAX {
                        broken.push(format!(
                            "its constant tags have more than {CONSTANT_BYTES_MAX} bytes"
                        ));
                        break;
                    }
                    let mut value = Vec::new();
                    if is_escaped {
                        json::put_escaped(&mut value, constant.as_bytes());
                    } else {
                        value.extend_from_slice(constant.as_bytes());
                    }
                    push_constant(&mut pieces, &value);
                }
                (None, None) => broken.push(unknown_tag_rule(tag, TAGS.iter().copied())),
            }
        }
        if broken.is_empty() {
            Ok(Self { pieces })
        } else {
            Err(broken)
        }
    }

    /// Replaces `text` by the rendered text. Returns whether it was cut at
    /// [`RECORD_LINE_BYTES_MAX`].
    pub(super) fn render(&self, line: Line<'_>, clock: &mut Clock, text: &mut Vec<u8>) -> bool {
        text.clear();
        for piece in &self.pieces {
            match piece {
                CompiledPiece::Constant(constant) => text.extend_from_slice(constant),
                CompiledPiece::Varying { tag, is_escaped } => {
                    let value = match tag {
                        Varying::Log => line.text,
                        Varying::Timestamp => clock.show(line.time_nano),
                        Varying::Source => line.source.as_str().as_bytes(),
                    };
                    if *is_escaped {
                        json::put_escaped(text, value);
                    } else {
                        text.extend_from_slice(value);
                    }
                }
            }
            if text.len() > RECORD_LINE_BYTES_MAX {
                truncate(text, RECORD_LINE_BYTES_MAX);
                return true;
            }
        }
        false
    }
}

/// Cuts a text that is UTF-8, on the border of a character.
fn truncate(text: &mut Vec<u8>, bytes_max: usize) {
    let is_border = |at: &usize| text.get(*at).is_none_or(|byte| byte & 0xc0 != 0x80);
    let end = (0..=bytes_max).rev().find(is_border);
    text.truncate(end.unwrap_or_default());
}

fn varying(tag: &str) -> Option<Varying> {
    match tag {
        "log" => Some(Varying::Log),
        "timestamp" => Some(Varying::Timestamp),
        "source" => Some(Varying::Source),
        _ => None,
    }
}

fn push_constant(pieces: &mut Vec<CompiledPiece>, bytes: &[u8]) {
    if let Some(CompiledPiece::Constant(last)) = pieces.last_mut() {
        last.extend_from_slice(bytes);
    } else {
        pieces.push(CompiledPiece::Constant(bytes.to_vec()));
    }
}

/// Whether a template is a JSON object when its tags are nothing inside strings, and numbers
/// outside.
fn is_json(template: &Template) -> bool {
    let mut strings = StringTracker::default();
    let mut skeleton = String::new();
    for piece in &template.pieces {
        match piece {
            Piece::Literal(literal) => {
                strings.pass(literal);
                skeleton.push_str(literal);
            }
            Piece::Tag(_) if strings.is_inside => {}
            Piece::Tag(_) => skeleton.push('0'),
        }
    }
    let rules = fields::Rules {
        key_prefix: b"",
        taken_key: None,
        fields_bytes_max: usize::MAX,
        values_bytes_max: usize::MAX,
    };
    let (mut scratch, mut out) = (fields::Scratch::default(), Vec::new());
    let fields = Fields::begin(rules, &mut scratch, &mut out);
    json::put_members(skeleton.as_bytes(), false, fields, &mut Texts::default()).is_some()
}

/// Knows whether a text that has been read so far ends inside a JSON string.
#[derive(Debug, Default)]
struct StringTracker {
    is_inside: bool,
    is_escape: bool,
}

impl StringTracker {
    fn pass(&mut self, text: &str) {
        for byte in text.bytes() {
            match byte {
                _ if self.is_escape => self.is_escape = false,
                b'\\' if self.is_inside => self.is_escape = true,
                b'"' => self.is_inside = !self.is_inside,
                _ => {}
            }
        }
    }
}

/// Shows times as RFC 3339 in UTC with nanoseconds. Keeps the text of the last second, because
/// neighbouring lines share it.
#[derive(Debug, Default)]
pub(super) struct Clock {
    /// `2026-11-22T14:04:26.820587421Z`, or empty.
    text: Vec<u8>,
    second: i64,
}

impl Clock {
    const SECOND_BYTES: usize = "2026-11-22T14:04:26.".len();

    /// Returns the text of a UNIX time. A time before 1970 shows as 1970.
    pub(super) fn show(&mut self, time_nano: i64) -> &[u8] {
        const NANOS: i64 = 1_000_000_000;
        let time_nano = time_nano.max(0);
        let (second, mut nanos) = (time_nano / NANOS, time_nano % NANOS);
        if self.text.is_empty() || second != self.second {
            let since = Duration::from_secs(second.unsigned_abs());
            let time = SystemTime::UNIX_EPOCH + since;
            self.text = humantime::format_rfc3339_nanos(time).to_string().into();
            self.second = second;
        }
        for digit in self.text[Self::SECOND_BYTES..Self::SECOND_BYTES + 9]
            .iter_mut()
            .rev()
        {
            let [low, ..] = (nanos % 10).to_le_bytes();
            *digit = b'0' + low;
            nanos /= 10;
        }
        &self.text
    }
}
