//! Regular expressions as Go's `regexp` reads them, written in the syntax of the crate `regex`.
//!
//! Docker's own drivers take Go's regular expressions, and so did the Go plugin: an option has to
//! mean here what it meant there. Both syntaxes look alike and differ in silence. To Go, `\b`, `\w`,
//! `\d` and `\s` are ASCII, `\033` is an octal number, `{` may be literal, `\<` is the character `<`,
//! and `&&` in a class is two characters.
//!
//! [`translate`] reads a pattern once, from left to right, and writes the translation as it goes.
//! What Go refuses, it refuses; what can't be said in the other syntax, it refuses with a hint. It
//! needs no regex engine, so the driver checks patterns with it where no shipper can be reached.
//!
//! The translation is meant for an engine with Unicode on that finds no empty match inside a character,
//! over text in which each byte that is no UTF-8 stands as U+FFFD: that is how Go sees such a byte.
//!
//! Bounds: [`NESTING_MAX`] groups in each other, [`REPEAT_MAX`] repetitions in all (Go's own bound).
//! The length of the translation is linear in that of the pattern.

mod class;
mod escape;
mod names;
mod rest;

pub use rest::GoRegexError;
use rest::{Rest, refuse, until};

/// Groups that may be nested.
pub const NESTING_MAX: usize = 100;

/// Times that something may be repeated by `{n,m}`, all counts around it multiplied.
pub const REPEAT_MAX: u32 = 1000;

/// A pattern in the syntax of the crate `regex`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GoRegex {
    /// The translation. Its groups have no names, since Go allows names that `regex` does not.
    pub pattern: String,
    /// The name of each capture group, if it has one; the first one is group 1.
    pub groups: Vec<Option<String>>,
}

/// Translates a pattern.
///
/// # Errors
/// Go refuses the pattern, or it has no translation.
pub fn translate(pattern: &str) -> Result<GoRegex, GoRegexError> {
    Translator::new(pattern).run()
}

/// What stands before the current place, as far as a repetition has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    /// Nothing that could be repeated.
    Nothing,
    /// Something that is repeated this often inside itself.
    Atom { repeats: u32 },
    /// A repetition of such.
    Repetition,
}

struct Translator<'p> {
    rest: Rest<'p>,
    out: String,
    groups: Vec<Option<String>>,
    before: Before,
    /// The largest number of repetitions in each group that is open; the first one is the pattern.
    open: Vec<u32>,
}

impl<'p> Translator<'p> {
    fn new(pattern: &'p str) -> Self {
        Self {
            rest: pattern.chars().peekable(),
            out: String::with_capacity(pattern.len()),
            groups: Vec::new(),
            before: Before::Nothing,
            open: vec![1],
        }
    }

    fn run(mut self) -> Result<GoRegex, GoRegexError> {
        while let Some(char) = self.rest.next() {
            match char {
                '\\' => self.escape()?,
                '(' => self.open_group()?,
                ')' => self.close_group()?,
                '[' => {
                    class::translate(&mut self.rest, &mut self.out)?;
                    self.atom(1);
                }
                '|' => {
                    self.out.push('|');
                    self.before = Before::Nothing;
                }
                '*' | '+' | '?' => self.repeat(&char.to_string(), 1)?,
                '{' => self.counts_or_literal()?,
                '.' | '^' | '$' => {
                    self.out.push(char);
                    self.atom(1);
                }
                _ => self.literal(char),
            }
        }
        if self.open.len() > 1 {
            return refuse("a ( has no )");
        }
        Ok(GoRegex {
            pattern: self.out,
            groups: self.groups,
        })
    }

    fn atom(&mut self, repeats: u32) {
        self.before = Before::Atom { repeats };
        if let Some(largest) = self.open.last_mut() {
            *largest = repeats.max(*largest);
        }
    }

    fn literal(&mut self, char: char) {
        escape::push_literal(&mut self.out, char);
        self.atom(1);
    }

    /// Translates what follows a `\` outside of a class.
    fn escape(&mut self) -> Result<(), GoRegexError> {
        match self.rest.peek() {
            Some('Q') => {
                self.rest.next();
                self.quoted();
                return Ok(());
            }
            // The start and the end of the text.
            Some(&name @ ('A' | 'z')) => {
                self.rest.next();
                self.out.extend(['\\', name]);
            }
            Some(&name @ ('b' | 'B')) => {
                self.rest.next();
                self.out.push_str(&format!(r"(?-u:\{name})"));
            }
            Some('p' | 'P' | 'd' | 'D' | 's' | 'S' | 'w' | 'W') => {
                self.out.push('[');
                class::translate_set(&mut self.rest, &mut self.out)?;
                self.out.push(']');
            }
            _ => {
                let char = escape::character(&mut self.rest)?;
                escape::push_literal(&mut self.out, char);
            }
        }
        self.atom(1);
        Ok(())
    }

    /// Translates the text between `\Q` and `\E`, or the end.
    fn quoted(&mut self) {
        while let Some(char) = self.rest.next() {
            if char == '\\' && self.rest.peek() == Some(&'E') {
                self.rest.next();
                return;
            }
            self.literal(char);
        }
    }

    fn open_group(&mut self) -> Result<(), GoRegexError> {
        if self.rest.peek() != Some(&'?') {
            self.out.push('(');
            self.groups.push(None);
            return self.enter();
        }
        self.rest.next();
        match self.rest.peek() {
            Some('P') => {
                self.rest.next();
                if self.rest.next() != Some('<') {
                    return refuse("a named group is written (?P<name>…)");
                }
                self.named_group()
            }
            Some('<') => {
                self.rest.next();
                match self.rest.peek() {
                    Some('=' | '!') => refuse("there is no look-behind, (?<= or (?<!"),
                    _ => self.named_group(),
                }
            }
            Some('=' | '!') => refuse("there is no look-ahead, (?= or (?!"),
            Some('>') => refuse("there are no atomic groups, (?>"),
            Some('#') => refuse("there are no comments, (?#"),
            _ => self.flags(),
        }
    }

    fn named_group(&mut self) -> Result<(), GoRegexError> {
        let name = until(&mut self.rest, '>').unwrap_or_default();
        let is_word = |char: char| char.is_ascii_alphanumeric() || char == '_';
        if name.is_empty() || !name.chars().all(is_word) {
            return refuse("a group's name is made of letters, digits and underscores");
        }
        self.out.push('(');
        self.groups.push(Some(name));
        self.enter()
    }

    fn enter(&mut self) -> Result<(), GoRegexError> {
        if self.open.len() > NESTING_MAX {
            return refuse(format!("more than {NESTING_MAX} groups are nested"));
        }
        self.open.push(1);
        self.before = Before::Nothing;
        Ok(())
    }

    fn close_group(&mut self) -> Result<(), GoRegexError> {
        let repeats = self.open.pop().unwrap_or(1);
        if self.open.is_empty() {
            return refuse("a ) has no (");
        }
        self.out.push(')');
        self.atom(repeats);
        Ok(())
    }

    /// Translates the flags behind `(?`, and the `:` or `)` behind them.
    fn flags(&mut self) -> Result<(), GoRegexError> {
        let mut on = String::new();
        let mut off = String::new();
        let mut is_negated = false;
        loop {
            match self.rest.next() {
                Some(flag @ ('i' | 'm' | 's' | 'U')) => {
                    let flags = if is_negated { &mut off } else { &mut on };
                    if !flags.contains(flag) {
                        flags.push(flag);
                    }
                }
                Some('-') if !is_negated => is_negated = true,
                Some(end @ (':' | ')')) if !is_negated || !off.is_empty() => {
                    return self.apply_flags(on, &off, end);
                }
                _ => return refuse("behind (? stand the flags i, m, s, U, then : or )"),
            }
        }
    }

    fn apply_flags(&mut self, mut on: String, off: &str, end: char) -> Result<(), GoRegexError> {
        on.retain(|flag| !off.contains(flag));
        let minus = if off.is_empty() { "" } else { "-" };
        if end == ':' {
            self.out.push_str(&format!("(?{on}{minus}{off}:"));
            return self.enter();
        }
        // Go would repeat what stands before the flags; nobody means that.
        self.before = Before::Nothing;
        if !on.is_empty() || !off.is_empty() {
            self.out.push_str(&format!("(?{on}{minus}{off})"));
        }
        Ok(())
    }

    /// Translates `{n}`, `{n,}` and `{n,m}`; whatever else begins with `{` is text.
    fn counts_or_literal(&mut self) -> Result<(), GoRegexError> {
        let mut ahead = self.rest.clone();
        let Some((least, most)) = counts(&mut ahead) else {
            self.literal('{');
            return Ok(());
        };
        self.rest = ahead;
        let is_within = |count: u32| count <= REPEAT_MAX;
        if !is_within(least) || most.is_some_and(|most| !is_within(most) || most < least) {
            return refuse(format!(
                "a repetition has the form {{n,m}}, with n up to m and m up to {REPEAT_MAX}"
            ));
        }
        let (written, count) = match most {
            Some(most) => (format!("{{{least},{most}}}"), most),
            None => (format!("{{{least},}}"), least),
        };
        self.repeat(&written, count)
    }

    fn repeat(&mut self, operator: &str, count: u32) -> Result<(), GoRegexError> {
        let repeats = match self.before {
            Before::Nothing => return refuse(format!("{operator} has nothing to repeat")),
            Before::Repetition => {
                return refuse(format!(
                    "{operator} repeats a repetition; put ( ) around it"
                ));
            }
            Before::Atom { repeats } => repeats.saturating_mul(count.max(1)),
        };
        if count > 1 && repeats > REPEAT_MAX {
            return refuse(format!("more than {REPEAT_MAX} repetitions"));
        }
        self.atom(repeats);
        self.before = Before::Repetition;
        self.out.push_str(operator);
        if self.rest.peek() == Some(&'?') {
            self.rest.next();
            self.out.push('?');
        }
        Ok(())
    }
}

/// Reads `n}`, `n,}` or `n,m}`. `None`: Go takes the `{` before it as text.
fn counts(rest: &mut Rest<'_>) -> Option<(u32, Option<u32>)> {
    let least = count(rest)?;
    match rest.next()? {
        '}' => Some((least, Some(least))),
        ',' if rest.peek() == Some(&'}') => {
            rest.next();
            Some((least, None))
        }
        ',' => {
            let most = count(rest)?;
            (rest.next()? == '}').then_some((least, Some(most)))
        }
        _ => None,
    }
}

/// Reads a number without leading zeros. One that is too large for any bound is the largest there is.
fn count(rest: &mut Rest<'_>) -> Option<u32> {
    let mut digits = String::new();
    while let Some(digit) = rest.next_if(char::is_ascii_digit) {
        digits.push(digit);
    }
    let is_number = !digits.is_empty() && (digits.len() == 1 || !digits.starts_with('0'));
    is_number.then(|| digits.parse().unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(pattern: &str) -> Result<String, String> {
        translate(pattern)
            .map(|regex| regex.pattern)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn what_differs_is_rewritten() {
        for (go, rust) in [
            ("", ""),
            (r"^ab*?[c-e]$", r"^ab*?[c-e]$"),
            (r"\berror\B", r"(?-u:\b)error(?-u:\B)"),
            (r"\d+\W", "[0-9]+[[^0-9A-Za-z_]]"),
            (r"[\d\-z&&]", r"[0-9\-z\&\&]"),
            (r"\033\[31m", "\u{1b}\\[31m"),
            (r"\Qa.b\E+", r"a\.b+"),
            (r"{a{,3}", r"\{a\{,3\}"),
            (r"\<a\>", "<a>"),
            ("[[a]]", r"[\[a]\]"),
            ("(?P<a>x)(?<b>y)(z)", "(x)(y)(z)"),
            ("(?is-m:a)(?)b", "(?is-m:a)b"),
            (
                r"\pC\P{^Han}",
                r"[[\p{gc=Cc}\p{gc=Cf}\p{gc=Co}]][[\p{sc=Han}]]",
            ),
        ] {
            assert_eq!(written(go).as_deref(), Ok(rust), "{go}");
        }
    }

    #[test]
    fn groups_keep_their_names() {
        let groups = translate(r"(a)(?P<1st>b)(?:c)(?<d>d)").unwrap().groups;
        assert_eq!(groups, [None, Some("1st".to_owned()), Some("d".to_owned())]);
    }

    #[test]
    fn what_is_refused_says_why() {
        for (pattern, why) in [
            ("a)", "a ) has no ("),
            ("[a", "a [ has no ]"),
            (r"(a)\1", r"\1: there are no references to groups"),
            (r"\Z", r"\Z is not known; \z is the end of the text"),
            (r"a\", r"the last \ has nothing behind it; write \\"),
            ("*", "* has nothing to repeat"),
            ("(?x)a", "behind (? stand the flags i, m, s, U, then : or )"),
            ("(a{100}){11}", "more than 1000 repetitions"),
            ("[[:foo:]]", "[:foo:] is no class"),
            (
                "(?P<a-b>c)",
                "a group's name is made of letters, digits and underscores",
            ),
        ] {
            assert_eq!(written(pattern).unwrap_err(), why, "{pattern}");
        }
        let deep = |depth| "(".repeat(depth) + &")".repeat(depth);
        let refusal = written(&deep(NESTING_MAX + 1)).unwrap_err();
        assert_eq!(refusal, "more than 100 groups are nested");
        assert!(written(&deep(NESTING_MAX)).is_ok());
    }

    proptest! {
        #[test]
        fn no_pattern_panics_and_the_translation_is_in_proportion(
            pattern in r"([\\\[\](){}^$.|?*+,:<>=!P&~\-a-eimsUxpdwbQE0-9]|\PC){0,40}",
        ) {
            match translate(&pattern) {
                Ok(regex) => prop_assert!(regex.pattern.len() <= 40 * (pattern.len() + 1)),
                Err(error) => prop_assert!(error.to_string().len() < 200 + 10 * pattern.len()),
            }
        }
    }
}
