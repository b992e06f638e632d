//! Classes of characters: `[…]`, `\d` and its kin, `\p{…}`.

use super::escape::{character, push_literal};
use super::names;
use super::rest::{GoRegexError, Rest, refuse, until};

const UNCLOSED: &str = "a [ has no ]";

/// Translates a class whose `[` has been read.
pub(super) fn translate(rest: &mut Rest<'_>, out: &mut String) -> Result<(), GoRegexError> {
    out.push('[');
    if rest.next_if_eq(&'^').is_some() {
        out.push('^');
    }
    let mut is_first = true;
    loop {
        match rest.peek() {
            None => return refuse(UNCLOSED),
            // The first one is a character of the class.
            Some(']') if !is_first => {
                rest.next();
                out.push(']');
                return Ok(());
            }
            Some(_) => item(rest, out)?,
        }
        is_first = false;
    }
}

/// Translates one character, range or set of a class.
fn item(rest: &mut Rest<'_>, out: &mut String) -> Result<(), GoRegexError> {
    if let Some(name) = posix_name(rest) {
        let is_known = names::POSIX.contains(&name.trim_start_matches('^'));
        if !is_known || name.starts_with("^^") {
            return refuse(format!("[:{}:] is no class", name.escape_debug()));
        }
        out.push_str(&format!("[:{name}:]"));
        return Ok(());
    }
    if rest.next_if_eq(&'\\').is_some() {
        if matches!(
            rest.peek(),
            Some('p' | 'P' | 'd' | 'D' | 's' | 'S' | 'w' | 'W')
        ) {
            return translate_set(rest, out);
        }
        let first = character(rest)?;
        return range(first, rest, out);
    }
    match rest.next() {
        Some(first) => range(first, rest, out),
        None => refuse(UNCLOSED),
    }
}

/// Reads `[:name:]`; takes nothing if there is none.
fn posix_name(rest: &mut Rest<'_>) -> Option<String> {
    let mut ahead = rest.clone();
    if ahead.next() != Some('[') || ahead.next() != Some(':') {
        return None;
    }
    let mut name = String::new();
    loop {
        match ahead.next()? {
            ':' if ahead.peek() == Some(&']') => {
                ahead.next();
                *rest = ahead;
                return Some(name);
            }
            char => name.push(char),
        }
    }
}

/// Translates a character and, if it begins a range, the range.
fn range(first: char, rest: &mut Rest<'_>, out: &mut String) -> Result<(), GoRegexError> {
    push_literal(out, first);
    let mut ahead = rest.clone();
    let is_range = ahead.next() == Some('-') && ahead.peek().is_some_and(|char| *char != ']');
    if !is_range {
        return Ok(());
    }
    rest.next();
    let last = match rest.next() {
        Some('\\') => character(rest)?,
        Some(char) => char,
        None => return refuse(UNCLOSED),
    };
    if last < first {
        let (first, last) = (first.escape_debug(), last.escape_debug());
        return refuse(format!("the range {first}-{last} ends before it begins"));
    }
    out.push('-');
    push_literal(out, last);
    Ok(())
}

/// Translates the letter behind a `\` that stands for many characters, as part of a class.
pub(super) fn translate_set(rest: &mut Rest<'_>, out: &mut String) -> Result<(), GoRegexError> {
    let set = match rest.next() {
        Some('d') => "0-9",
        Some('D') => "[^0-9]",
        // No vertical tab, unlike in most other engines.
        Some('s') => r"\t\n\x0c\r\x20",
        Some('S') => r"[^\t\n\x0c\r\x20]",
        Some('w') => "0-9A-Za-z_",
        Some('W') => "[^0-9A-Za-z_]",
        Some(letter) => return unicode(letter == 'P', rest, out),
        None => return refuse(UNCLOSED),
    };
    out.push_str(set);
    Ok(())
}

/// Translates the name behind `\p` or `\P`.
fn unicode(is_upper: bool, rest: &mut Rest<'_>, out: &mut String) -> Result<(), GoRegexError> {
    let name: String = match rest.next() {
        Some('{') => until(rest, '}').unwrap_or_default(),
        Some(letter) => letter.into(),
        None => String::new(),
    };
    let (is_circumflex, name) = match name.strip_prefix('^') {
        Some(name) => (true, name),
        None => (false, name.as_str()),
    };
    let negation = if is_upper == is_circumflex { "" } else { "^" };
    let set = match name {
        "Any" => r"\p{Any}".to_owned(),
        // Go's class has no characters that are not assigned, `regex`'s has.
        "C" => r"\p{gc=Cc}\p{gc=Cf}\p{gc=Co}".to_owned(),
        // Surrogates: in no text that is valid.
        "Cs" => r"\P{Any}".to_owned(),
        _ if names::CATEGORIES.contains(&name) => format!(r"\p{{gc={name}}}"),
        _ if names::SCRIPTS.contains(&name) => format!(r"\p{{sc={name}}}"),
        _ => {
            let name = name.escape_debug();
            return refuse(format!(
                r"\p{{{name}}} is not known; there are categories such as \pL and \p{{Lu}}, and scripts such as \p{{Han}}"
            ));
        }
    };
    out.push_str(&format!("[{negation}{set}]"));
    Ok(())
}
