//! Compiled regular expressions: Go's syntax and meaning, each compiled once for all its users.
//!
//! A thousand containers with the same option share one [`Pattern`]. It is dropped with its last user.
//!
//! Bounds: a pattern takes at most [`PATTERN_BYTES_MAX`] compiled, all together
//! [`PATTERNS_BYTES_MAX`]; what would exceed either is refused with the reason. Besides, each thread that
//! matches keeps up to [`CACHE_BYTES_MAX`] per pattern for its speed.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};

use proto::go_regex::{self, GoRegex};
use proto::log_opts::{fault, go_regex_rule};
use regex_automata::util::primitives::NonMaxUsize;
use regex_automata::util::syntax;
use regex_automata::{Input, meta};

/// Bytes of one compiled pattern.
const PATTERN_BYTES_MAX: usize = 1 << 20;

/// Bytes of all compiled patterns.
const PATTERNS_BYTES_MAX: usize = 64 << 20;

/// Bytes that a thread keeps per pattern while it matches.
const CACHE_BYTES_MAX: usize = 256 << 10;

static PATTERNS: LazyLock<Patterns> = LazyLock::new(|| Patterns::new(PATTERNS_BYTES_MAX));

/// A compiled regular expression.
pub(super) struct Pattern {
    regex: meta::Regex,
    /// Number and name of each group that has a name.
    names: Arc<[(usize, Box<str>)]>,
    held_bytes: Arc<AtomicUsize>,
}

impl Pattern {
    /// Compiles a pattern, or finds it compiled.
    ///
    /// # Errors
    /// The rule that it breaks, for the message about the option.
    pub(super) fn compile(text: &str) -> Result<Arc<Self>, String> {
        PATTERNS.get(text)
    }

    /// Whether the pattern matches anywhere in a text, which is UTF-8.
    #[inline]
    pub(super) fn is_match(&self, text: &[u8]) -> bool {
        debug_assert!(
            std::str::from_utf8(text).is_ok(),
            "lines are decoded before"
        );
        self.regex.is_match(text)
    }

    /// Returns memory for the named groups of a match.
    pub(super) fn groups(&self) -> Groups {
        Groups {
            names: Arc::clone(&self.names),
            slots: vec![None; self.regex.group_info().slot_len()],
        }
    }

    /// Finds the first match in a text, which is UTF-8, and where its groups are. Returns where the match is.
    pub(super) fn find_groups(&self, text: &[u8], groups: &mut Groups) -> Option<Range<usize>> {
        self.find_groups_from(text, 0, groups)
    }

    /// Finds the first match that begins at a place or behind it.
    pub(super) fn find_groups_from(
        &self,
        text: &[u8],
        from: usize,
        groups: &mut Groups,
    ) -> Option<Range<usize>> {
        let input = Input::new(text).range(from.min(text.len())..);
        self.regex.search_slots(&input, &mut groups.slots)?;
        groups.span(0)
    }
}

/// Where the named groups of a match are.
#[derive(Debug)]
pub(super) struct Groups {
    names: Arc<[(usize, Box<str>)]>,
    slots: Vec<Option<NonMaxUsize>>,
}

impl Groups {
    /// Returns the name and place of each named group that took part in the match.
    pub(super) fn named(&self) -> impl Iterator<Item = (&str, Range<usize>)> {
        let names = self.names.iter();
        names.filter_map(|(number, name)| Some((name.as_ref(), self.span(*number)?)))
    }

    /// Returns the place of each group that took part in the match, or that of the match if there are no groups.
    pub(super) fn inner_or_whole(&self) -> impl Iterator<Item = Range<usize>> {
        let groups = self.slots.len() / 2;
        let numbers = if groups > 1 { 1..groups } else { 0..1 };
        numbers.filter_map(|number| self.span(number))
    }

    fn span(&self, number: usize) -> Option<Range<usize>> {
        let [start, end] = [0, 1].map(|side| self.slots.get(number * 2 + side).copied().flatten());
        Some(start?.get()..end?.get())
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pattern").finish_non_exhaustive()
    }
}

impl Drop for Pattern {
    fn drop(&mut self) {
        let bytes = self.regex.memory_usage();
        self.held_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Compiles the pattern of an option, if it has one.
pub(super) fn compile_option(
    option: &str,
    pattern: Option<&str>,
    faults: &mut Vec<String>,
) -> Option<Arc<Pattern>> {
    let pattern = pattern?;
    match Pattern::compile(pattern) {
        Ok(compiled) => Some(compiled),
        Err(rule) => {
            faults.push(fault(option, Some(pattern), &rule));
            None
        }
    }
}

/// The patterns that somebody uses, by their text.
struct Patterns {
    by_text: Mutex<HashMap<Box<str>, Weak<Pattern>>>,
    held_bytes: Arc<AtomicUsize>,
    bytes_max: usize,
}

impl Patterns {
    fn new(bytes_max: usize) -> Self {
        Self {
            by_text: Mutex::default(),
            held_bytes: Arc::default(),
            bytes_max,
        }
    }

    fn get(&self, text: &str) -> Result<Arc<Pattern>, String> {
        if let Some(pattern) = self.find(text) {
            return Ok(pattern);
        }
        // Compiled without the lock: it may take milliseconds. Of two that come together one stays.
        let (regex, names) = compile(text)?;
        let bytes = regex.memory_usage();
        let held_bytes = self.held_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let pattern = Arc::new(Pattern {
            regex,
            names,
            held_bytes: Arc::clone(&self.held_bytes),
        });
        if held_bytes > self.bytes_max {
            return Err(format!(
                "is one pattern too many: all patterns of this shipper take {held_bytes} bytes compiled, \
                 the limit is {}",
                self.bytes_max
            ));
        }
        let mut by_text = self.by_text.lock().unwrap_or_else(PoisonError::into_inner);
        // Looked through when it would grow, so that it stays in proportion to what is used.
        if by_text.len() == by_text.capacity() {
            by_text.retain(|_, pattern| pattern.strong_count() > 0);
        }
        by_text.insert(text.into(), Arc::downgrade(&pattern));
        Ok(pattern)
    }

    fn find(&self, text: &str) -> Option<Arc<Pattern>> {
        let by_text = self.by_text.lock().unwrap_or_else(PoisonError::into_inner);
        by_text.get(text).and_then(Weak::upgrade)
    }
}

type Compiled = (meta::Regex, Arc<[(usize, Box<str>)]>);

fn compile(text: &str) -> Result<Compiled, String> {
    let GoRegex { pattern, groups } =
        go_regex::translate(text).map_err(|error| go_regex_rule(&error))?;
    let names = groups.into_iter().enumerate();
    let names = names.filter_map(|(at, name)| Some((at + 1, name?.into_boxed_str())));
    let config = meta::Config::new()
        .nfa_size_limit(Some(PATTERN_BYTES_MAX))
        .onepass_size_limit(Some(PATTERN_BYTES_MAX))
        .hybrid_cache_capacity(CACHE_BYTES_MAX);
    // The translation is right over valid UTF-8, which is all that it is matched against.
    let syntax = syntax::Config::new().utf8(false);
    let built = meta::Regex::builder()
        .configure(config)
        .syntax(syntax)
        .build(&pattern);
    match built {
        Ok(regex) if regex.memory_usage() <= PATTERN_BYTES_MAX => Ok((regex, names.collect())),
        Ok(_) => Err(too_large()),
        Err(error) if error.size_limit().is_some() => Err(too_large()),
        Err(error) => Err(go_regex_rule(&error)),
    }
}

fn too_large() -> String {
    format!("takes more than {PATTERN_BYTES_MAX} bytes compiled, the limit of one pattern")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Vector {
        pattern: String,
        #[serde(default)]
        text: String,
        /// Start and end of the match and of each group, -1 for a group that took no part.
        found: Option<Vec<i64>>,
        #[serde(default)]
        refused: bool,
    }

    /// Patterns of which Go's reading is known and nobody depends on: a repetition behind flags repeats
    /// what stands before them.
    const DIFFERENT: &[&str] = &["a(?i)*"];

    fn found(regex: &meta::Regex, text: &str) -> Option<Vec<i64>> {
        let mut captures = regex.create_captures();
        regex.captures(text, &mut captures);
        let place = |at: Option<usize>| at.map_or(-1, |at| i64::try_from(at).unwrap());
        let groups = 0..captures.group_len();
        captures.is_match().then(|| {
            let spans = groups.map(|group| captures.get_group(group));
            spans
                .flat_map(|span| [place(span.map(|s| s.start)), place(span.map(|s| s.end))])
                .collect()
        })
    }

    /// `tests/vectors/go_regex.jsonl` is what Go's own `regexp` says.
    #[test]
    fn patterns_mean_what_they_mean_in_go() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/vectors/go_regex.jsonl"
        );
        let vectors = std::fs::read_to_string(path).unwrap();
        let mut faults = Vec::new();
        let mut last: Option<(String, Result<meta::Regex, String>)> = None;
        for line in vectors.lines() {
            let vector: Vector = serde_json::from_str(line).unwrap();
            if DIFFERENT.contains(&vector.pattern.as_str()) {
                continue;
            }
            let compiled = match last {
                Some((text, compiled)) if text == vector.pattern => compiled,
                _ => compile(&vector.pattern).map(|(regex, _)| regex),
            };
            let is_right = match &compiled {
                Ok(regex) => !vector.refused && found(regex, &vector.text) == vector.found,
                Err(_) => vector.refused,
            };
            if !is_right {
                let ours = compiled.as_ref().map(|regex| found(regex, &vector.text));
                faults.push(format!("{line}: {ours:?}"));
            }
            last = Some((vector.pattern, compiled));
        }
        assert!(vectors.lines().count() > 1_000);
        assert!(
            faults.is_empty(),
            "{} differ:\n{}",
            faults.len(),
            faults.join("\n")
        );
    }

    #[test]
    fn equal_patterns_are_one_and_go_with_their_last_user() {
        let patterns = Patterns::new(1 << 20);
        let first = patterns.get("a+").unwrap();
        let second = patterns.get("a+").unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        assert!(patterns.held_bytes.load(Ordering::Relaxed) > 0);
        drop((first, second));
        assert_eq!(patterns.held_bytes.load(Ordering::Relaxed), 0);
        for number in 0..1_000 {
            patterns.get(&format!("a{number}")).unwrap();
        }
        assert!(patterns.by_text.lock().unwrap().len() < 100);
    }

    #[test]
    fn one_pattern_and_all_together_have_a_bound() {
        let error = compile(r"(\pL{100}){10}").unwrap_err();
        assert_eq!(
            error,
            "takes more than 1048576 bytes compiled, the limit of one pattern"
        );
        let patterns = Patterns::new(20_000);
        let held: Vec<_> = (0..1_000)
            .map_while(|n| patterns.get(&format!("[a-z]+{n}$")).ok())
            .collect();
        assert!((2..1_000).contains(&held.len()), "{}", held.len());
        let error = patterns.get("one more[a-z]+").unwrap_err();
        assert!(error.contains("the limit is 20000"), "{error}");
        drop(held);
        assert!(patterns.get("one more[a-z]+").is_ok());
    }
}
