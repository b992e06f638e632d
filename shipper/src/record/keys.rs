//! Which fields of a line are shipped, and under which keys: `keep-keys`, `drop-keys`, `rename-keys`.
//!
//! They act on the fields that a line itself has, by the keys that it gives them. Text that is no field, in
//! `content`, always stays, and so do the product's own fields, which have options of their own. A field that
//! is kept and not dropped is renamed.

use std::collections::HashMap;

use proto::log_opts::LogOpts;
use wildmatch::WildMatch;

/// What becomes of fields, by their keys.
#[derive(Debug)]
pub(super) struct Keys {
    /// Absent if all are kept.
    keep: Option<Patterns>,
    drop: Patterns,
    rename: HashMap<Box<str>, Box<str>>,
}

/// What becomes of one field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate<'k> {
    Kept,
    Dropped,
    Renamed(&'k str),
}

impl Keys {
    /// Returns what a container's options say; `None` if they say nothing.
    pub(super) fn new(opts: &LogOpts) -> Option<Self> {
        let lists = [&opts.keep_keys, &opts.drop_keys];
        if lists.iter().all(|list| list.is_empty()) && opts.rename_keys.is_empty() {
            return None;
        }
        let rename = opts.rename_keys.iter();
        let rename = rename.map(|(old, new)| (old.as_str().into(), new.as_str().into()));
        Some(Self {
            keep: (!opts.keep_keys.is_empty()).then(|| Patterns::new(&opts.keep_keys)),
            drop: Patterns::new(&opts.drop_keys),
            rename: rename.collect(),
        })
    }

    /// Returns what becomes of the field of a key, which is UTF-8.
    pub(super) fn fate(&self, key: &[u8]) -> Fate<'_> {
        let key = std::str::from_utf8(key).unwrap_or_default();
        let is_kept = self.keep.as_ref().is_none_or(|keep| keep.has(key));
        if !is_kept || self.drop.has(key) {
            return Fate::Dropped;
        }
        let new = self.rename.get(key);
        new.map_or(Fate::Kept, |new| Fate::Renamed(new))
    }
}

/// Patterns of keys: `*` is any text, `?` one character.
#[derive(Debug)]
struct Patterns(Vec<WildMatch>);

impl Patterns {
    fn new(texts: &[String]) -> Self {
        Self(texts.iter().map(|text| WildMatch::new(text)).collect())
    }

    fn has(&self, key: &str) -> bool {
        self.0.iter().any(|pattern| pattern.matches(key))
    }
}

#[cfg(test)]
mod tests {
    use crate::record::tests::check;

    #[test]
    fn fields_are_kept_dropped_and_renamed_by_the_keys_of_the_line() {
        let line = br#"{"a":1,"b_x":2,"b_y":3,"_p":4,"":5}"#;
        check(&[("drop-keys", "b_*, a")], line, &["p=4", "field=5"]);
        check(&[("keep-keys", "b_?,_p")], line, &["b_x=2", "b_y=3", "p=4"]);
        let both = [("keep-keys", "b_*"), ("drop-keys", "*_x")];
        check(&both, line, &["b_y=3"]);
        let renamed = [("rename-keys", "a=A, _p = q"), ("drop-keys", "b*")];
        check(&renamed, line, &["A=1", "q=4", "field=5"]);
        // Under the key of another field the last one wins, as in any object.
        check(&[("rename-keys", "a=b")], br#"{"b":1,"a":2}"#, &["b=2"]);
    }

    #[test]
    fn what_is_dropped_comes_back_in_no_other_way() {
        check(&[("drop-keys", "*")], br#"{"secret":1}"#, &[]);
        check(&[("keep-keys", "x")], br#"{"secret":1}"#, &[]);
        let logfmt = [("parse", "logfmt"), ("drop-keys", "secret")];
        check(&logfmt, b"word secret=1", &["content=word"]);
        check(&logfmt, b"secret=1", &[]);
    }

    #[test]
    fn text_stays_whatever_is_kept() {
        check(&[("keep-keys", "a")], b"text", &["content=text"]);
        check(&[("drop-keys", "content")], b"text", &["content=text"]);
        check(&[("drop-keys", "a")], b"{}", &["content={}"]);
    }

    #[test]
    fn text_has_the_key_that_was_asked_for() {
        let key = [("content-key", "__CONTENT__")];
        check(&key, b"text", &["__CONTENT__=text"]);
        check(&key, br#"{"content":1}"#, &["content=1"]);
        let logfmt = [("content-key", "msg"), ("parse", "logfmt")];
        check(&logfmt, b"word a=1", &["a=1", "msg=word"]);
        check(&logfmt, b"word msg=1", &["msg=1", "msg_=word"]);
        check(&logfmt, b"word", &["msg=word", "LogParseFailure=logfmt"]);
        let regex = [
            ("content-key", "line"),
            ("parse", "regex"),
            ("parse-regex", "(?P<a>.)"),
        ];
        check(&regex, b"xy", &["a=x", "line=xy"]);
    }
}
