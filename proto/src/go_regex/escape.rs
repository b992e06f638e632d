//! Single characters: how Go writes them with `\`, and how the translation writes them.

use super::rest::{GoRegexError, Rest, refuse, until};

/// Reads what follows a `\` and stands for one character.
pub(super) fn character(rest: &mut Rest<'_>) -> Result<char, GoRegexError> {
    let Some(char) = rest.next() else {
        return refuse(r"the last \ has nothing behind it; write \\");
    };
    match char {
        // A single digit would refer to a group, except for 0.
        '1'..='7' if !rest.peek().is_some_and(is_octal) => {
            refuse(format!("\\{char}: there are no references to groups"))
        }
        '0'..='7' => Ok(octal(char, rest)),
        'x' => hexadecimal(rest),
        'a' => Ok('\x07'),
        'f' => Ok('\x0c'),
        'n' => Ok('\n'),
        'r' => Ok('\r'),
        't' => Ok('\t'),
        'v' => Ok('\x0b'),
        _ if char.is_ascii() && !char.is_ascii_alphanumeric() => Ok(char),
        _ => refuse(format!("\\{}{}", char.escape_debug(), hint(char))),
    }
}

/// Says of an escape that Go has not how to write it.
fn hint(char: char) -> &'static str {
    match char {
        'Z' => r" is not known; \z is the end of the text",
        'e' => r" is not known; write \x1b",
        'h' => r" is not known; write [ \t]",
        'u' => r" is not known; write \x{4e2d} for the character of that number",
        'E' => r" has no \Q before it",
        'C' => " (a single byte) is not supported",
        '8' | '9' | 'k' | 'g' => ": there are no references to groups",
        _ => " is not known; a letter needs no backslash",
    }
}

fn is_octal(char: &char) -> bool {
    matches!(char, '0'..='7')
}

/// Reads up to two more digits: at most 777, so always a character.
fn octal(first: char, rest: &mut Rest<'_>) -> char {
    let mut value = first.to_digit(8).unwrap_or_default();
    for _ in 0..2 {
        let digit = rest.next_if(is_octal).and_then(|char| char.to_digit(8));
        let Some(digit) = digit else { break };
        value = value * 8 + digit;
    }
    char::from_u32(value).unwrap_or_default()
}

/// Reads `HH` or `{H…}`.
fn hexadecimal(rest: &mut Rest<'_>) -> Result<char, GoRegexError> {
    let digits: String = if rest.next_if_eq(&'{').is_some() {
        until(rest, '}').unwrap_or_default()
    } else {
        let pair: String = rest.by_ref().take(2).collect();
        if pair.len() < 2 { String::new() } else { pair }
    };
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let value = is_number.then(|| u32::from_str_radix(&digits, 16).ok());
    match value.flatten().and_then(char::from_u32) {
        Some(char) => Ok(char),
        None => refuse(
            r"\x stands before two hexadecimal digits, or a character's number as in \x{4e2d}",
        ),
    }
}

/// Writes a character that stands for itself, in a class or outside.
pub(super) fn push_literal(out: &mut String, char: char) {
    // `\<` and `\>` would be the borders of a word, so only what needs one gets a backslash.
    if r"\.+*?()|[]{}^$#&-~".contains(char) {
        out.push('\\');
    }
    out.push(char);
}
