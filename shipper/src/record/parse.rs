//! How a record's text becomes fields: the option `parse`.
//!
//! ```text
//! text ─▶ form ─▶ fields                          its own
//!              ├▶ content                         none of its form, or `parse=off`
//!              └▶ content, LogParseFailure=form   not of the form that was asked for
//! ```
//!
//! - No form loses text. What a form can't read stays whole in `content`; what of a line it has no field
//!   for, stays in `content` or `rest`.
//! - Values stay as they are written, numbers byte for byte. Only a string that is quoted by the rules of its
//!   form loses its quotes and escapes.
//! - An empty text is of every form.

mod logfmt;
mod nginx;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use memchr::memmem::Finder;
use proto::log_opts::{LogOpts, Parse};

use super::BYTE_ORDER_MARK;
use super::fields::{Fields, Rules, Scratch, Texts, Written};
use super::json;
use super::keys::Keys;
use super::pattern::{self, Groups, Pattern};

/// What became of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parsed {
    /// Nothing was written: it is text.
    Text,
    /// Its fields were written.
    Fields(Written),
    /// Nothing was written: it is not of this form, which was asked for.
    Failure(&'static str),
}

/// Makes fields of texts.
#[derive(Debug)]
pub(super) struct Parser {
    form: Form,
    rules: Rules,
    keys: Option<Keys>,
    /// Key of text that is no field.
    content_key: Box<str>,
    scratch: Scratch,
    texts: Texts,
}

#[derive(Debug)]
enum Form {
    Off,
    Auto,
    Json,
    Logfmt,
    Regex {
        pattern: Arc<Pattern>,
        groups: Groups,
    },
    Delimiter {
        delimiter: Box<Finder<'static>>,
        /// All keys but the last one.
        keys: Vec<String>,
        last_key: String,
    },
    Nginx,
}

impl Parser {
    /// Makes the parser of a container's options. A fault leaves all text as it is.
    pub(super) fn new(opts: &LogOpts, rules: Rules, faults: &mut Vec<String>) -> Self {
        let form = match &opts.parse {
            Parse::Off => Form::Off,
            Parse::Auto => Form::Auto,
            Parse::Json => Form::Json,
            Parse::Logfmt => Form::Logfmt,
            Parse::Nginx => Form::Nginx,
            Parse::Regex(text) => {
                match pattern::compile_option("parse-regex", Some(text), faults) {
                    Some(pattern) => Form::Regex {
                        groups: pattern.groups(),
                        pattern,
                    },
                    None => Form::Off,
                }
            }
            Parse::Delimiter { delimiter, keys } => match keys.split_last() {
                Some((last_key, keys)) => Form::Delimiter {
                    delimiter: Box::new(Finder::new(delimiter).into_owned()),
                    keys: keys.to_vec(),
                    last_key: last_key.clone(),
                },
                None => Form::Off,
            },
        };
        Self {
            form,
            rules,
            keys: Keys::new(opts),
            content_key: opts.content_key.as_str().into(),
            scratch: Scratch::default(),
            texts: Texts::default(),
        }
    }

    /// Names a key without leading underscore that the product itself uses in every record.
    pub(super) fn take_key(&mut self, key: &'static [u8]) {
        self.rules.taken_key = Some(key);
    }

    /// Writes the fields of a text, which is UTF-8. With `has_byte_escapes`, `\xNN` in it stands for a byte
    /// that is no text, and stays as it is.
    #[inline]
    pub(super) fn put(&mut self, text: &[u8], has_byte_escapes: bool, out: &mut Vec<u8>) -> Parsed {
        match self.form {
            Form::Off => return Parsed::Text,
            Form::Auto if !begins_object(text) => return Parsed::Text,
            _ if text.is_empty() => return Parsed::Text,
            _ => {}
        }
        let before = out.len();
        match self.put_fields(text, has_byte_escapes, out) {
            // Without a field and without its text a record would be empty. What was dropped stays so.
            Some(written) if out.len() == before && written.dropped_fields == 0 => Parsed::Text,
            Some(written) => Parsed::Fields(written),
            None => self.form.name().map_or(Parsed::Text, Parsed::Failure),
        }
    }

    /// Writes fields. Returns `None`, with nothing written, if the text is not of the form.
    fn put_fields(
        &mut self,
        text: &[u8],
        has_byte_escapes: bool,
        out: &mut Vec<u8>,
    ) -> Option<Written> {
        let texts = &mut self.texts;
        let mut fields = Fields::begin(self.rules, &mut self.scratch, out).by(self.keys.as_ref());
        let content_key = self.content_key.as_bytes();
        let is_read = match &mut self.form {
            Form::Off => None,
            Form::Auto | Form::Json => {
                let object = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
                return json::put_members(object, has_byte_escapes, fields, texts);
            }
            Form::Logfmt => {
                let rest = logfmt::put_pairs(text, has_byte_escapes, &mut fields, texts);
                rest.map(|words| {
                    if !words.is_empty() {
                        fields.put_own(content_key, &words);
                    }
                })
            }
            Form::Regex { pattern, groups } => {
                let is_whole = put_groups(text, pattern, groups, &mut fields);
                is_whole.map(|is_whole| {
                    if !is_whole {
                        fields.put_own(content_key, text);
                    }
                })
            }
            Form::Delimiter {
                delimiter,
                keys,
                last_key,
            } => put_values(text, delimiter, keys, last_key, &mut fields),
            Form::Nginx => nginx::put_line(text, &mut fields),
        };
        texts.shrink();
        if is_read.is_none() {
            fields.abandon();
            return None;
        }
        fields.finish()
    }
}

impl Form {
    /// Returns the name of a form that was asked for.
    fn name(&self) -> Option<&'static str> {
        match self {
            Form::Off | Form::Auto => None,
            Form::Json => Some("json"),
            Form::Logfmt => Some("logfmt"),
            Form::Regex { .. } => Some("regex"),
            Form::Delimiter { .. } => Some("delimiter"),
            Form::Nginx => Some("nginx"),
        }
    }
}

/// Whether a text may be a JSON object.
#[inline]
fn begins_object(text: &[u8]) -> bool {
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    let first = text
        .iter()
        .find(|byte| !matches!(byte, b' ' | b'\t' | b'\r' | b'\n'));
    first == Some(&b'{')
}

/// Writes the named groups of a match. A group that takes no part in it has no field. Returns whether the match
/// is the whole of the text, but for blanks around it.
fn put_groups(
    text: &[u8],
    pattern: &Pattern,
    groups: &mut Groups,
    fields: &mut Fields<'_>,
) -> Option<bool> {
    let matched = pattern.find_groups(text, groups)?;
    for (name, span) in groups.named() {
        if let Some(value) = text.get(span) {
            fields.put(name.as_bytes(), value);
        }
    }
    let (before, behind) = (text.get(..matched.start)?, text.get(matched.end..)?);
    Some(before.trim_ascii().is_empty() && behind.trim_ascii().is_empty())
}

/// Writes the values between delimiters. There must be one for each key; the last one is the rest.
fn put_values(
    text: &[u8],
    delimiter: &Finder<'_>,
    keys: &[String],
    last_key: &str,
    fields: &mut Fields<'_>,
) -> Option<()> {
    let mut rest = text;
    for key in keys {
        let at = delimiter.find(rest)?;
        let (value, behind) = rest.split_at(at);
        fields.put(key.as_bytes(), value);
        rest = behind.get(delimiter.needle().len()..)?;
    }
    fields.put(last_key.as_bytes(), rest);
    Some(())
}
