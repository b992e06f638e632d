//! The sentences that tell what is wrong with an option.

use super::secret::MASK;
use super::table::{Kind, find};

/// What is wrong with a container's options: one sentence per fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .faults.join("; "))]
pub struct LogOptsError {
    /// The faults; never empty.
    pub faults: Vec<String>,
}

/// Returns the sentence "log-opt name=value: rule"; a secret is masked, a long value is cut.
pub fn fault(name: &str, value: Option<&str>, rule: &str) -> String {
    let is_secret = find(name).is_none_or(|spec| spec.kind == Kind::Secret);
    let shown = match value {
        None => String::new(),
        Some(_) if is_secret => format!("={MASK}"),
        Some(value) => format!("={}", shorten(value)),
    };
    format!("log-opt {}{shown}: {rule}", shorten(name))
}

/// Returns the rule that a regular expression breaks.
pub fn go_regex_rule(reason: &impl std::fmt::Display) -> String {
    format!("must be a regular expression as Go's regexp has them: {reason}")
}

/// Returns the rule that an unknown tag of a template breaks.
pub fn unknown_tag_rule<'a>(tag: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    let hint = hint(tag, known.clone());
    let all: Vec<&str> = known.collect();
    let all = all.join(", ");
    format!(
        "unknown tag {{{}}}{hint} (known: {all}, and each attribute that labels, labels-regex, \
         env or env-regex asks for)",
        shorten(tag)
    )
}

/// Returns ", did you mean x?" if a known name is near.
pub(super) fn hint<'a>(name: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    let fold = |name: &str| name.to_ascii_lowercase().replace('_', "-");
    let folded: String = fold(name).chars().take(64).collect();
    // Whoever leaves out words of a name means the shortest that begins like theirs.
    let longer = known.clone().filter(|known| {
        let rest = fold(known);
        let rest = rest.strip_prefix(&folded);
        folded.len() >= 3 && rest.is_some_and(|rest| rest.starts_with('-'))
    });
    if let Some(known) = longer.min_by_key(|known| known.len()) {
        return format!(", did you mean {known}?");
    }
    let nearest = known
        .map(|known| (strsim::damerau_levenshtein(&folded, &fold(known)), known))
        .min();
    match nearest {
        Some((distance, known)) if distance <= 1 + folded.chars().count() / 3 => {
            format!(", did you mean {known}?")
        }
        _ => String::new(),
    }
}

/// Returns the text as a message shows it: escaped, and bounded.
pub(super) fn shorten(text: &str) -> String {
    const CHARS_MAX: usize = 64;
    let shown: String = text.chars().take(CHARS_MAX).collect();
    let ellipsis = if shown.len() < text.len() { "..." } else { "" };
    format!("{}{ellipsis}", shown.escape_debug())
}
