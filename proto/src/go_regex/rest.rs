//! The rest of a pattern, and the sentence that ends its reading.

use std::iter::Peekable;
use std::str::Chars;

/// What of a pattern is still to be read.
pub(super) type Rest<'p> = Peekable<Chars<'p>>;

/// Why a pattern can't be used: a sentence without the full stop, with a hint where there is one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct GoRegexError(String);

pub(super) fn refuse<T>(why: impl Into<String>) -> Result<T, GoRegexError> {
    Err(GoRegexError(why.into()))
}

/// Reads the text before a character, and the character. `None` if it does not come.
pub(super) fn until(rest: &mut Rest<'_>, end: char) -> Option<String> {
    let mut text = String::new();
    loop {
        match rest.next()? {
            char if char == end => return Some(text),
            char => text.push(char),
        }
    }
}
