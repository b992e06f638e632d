//! The syntax of the option `template`, pure: text in, pieces out.
//!
//! ```text
//! template = (literal | tag)*
//! tag      = '{' identifier '}'
//! identifier = [A-Za-z_] [A-Za-z0-9_./-]*
//! ```
//!
//! A `{` that opens no tag is literal, so a template may be JSON: `{"line":"{log}"}`. A label is
//! addressed by its name, hence the dots, dashes and slashes.

/// The tags that every container has.
pub const TAGS: &[&str] = &[
    "log",
    "timestamp",
    "container_id",
    "container_full_id",
    "container_name",
    "image_id",
    "image_full_id",
    "image_name",
    "daemon_name",
    "source",
    "hostname",
    "tag",
];

/// A parsed template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// Literals and tags in their order; no literal is empty and no two literals are neighbours.
    pub pieces: Vec<Piece>,
}

/// A part of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Text that stands for itself.
    Literal(String),
    /// The name of a tag.
    Tag(String),
}

impl Template {
    /// Parses any text: all text is a template.
    pub fn parse(text: &str) -> Self {
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some((before, from_brace)) = split_before(rest, '{') {
            literal.push_str(before);
            if let Some((name, after)) = split_tag(from_brace) {
                if !literal.is_empty() {
                    pieces.push(Piece::Literal(std::mem::take(&mut literal)));
                }
                pieces.push(Piece::Tag(name.to_owned()));
                rest = after;
            } else {
                literal.push('{');
                rest = from_brace.strip_prefix('{').unwrap_or_default();
            }
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            pieces.push(Piece::Literal(literal));
        }
        Self { pieces }
    }

    /// Whether the template is `{log}`: the record's text is the line as it is.
    pub fn is_identity(&self) -> bool {
        matches!(self.pieces.as_slice(), [Piece::Tag(name)] if name == "log")
    }

    /// Returns the names of the tags, in their order, repetitions included.
    pub fn tags(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Tag(name) => Some(name.as_str()),
            Piece::Literal(_) => None,
        })
    }
}

fn split_before(text: &str, c: char) -> Option<(&str, &str)> {
    text.find(c).map(|at| text.split_at(at))
}

/// Splits `{name}rest` into name and rest.
fn split_tag(text: &str) -> Option<(&str, &str)> {
    let inside = text.strip_prefix('{')?;
    let (name, rest) = inside.split_once('}')?;
    let mut chars = name.chars();
    let first = chars.next()?;
    let is_identifier = (first.is_ascii_alphabetic() || first == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || "_./-".contains(c));
    is_identifier.then_some((name, rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str, expected: &[&str]) {
        let shown: Vec<String> = Template::parse(text)
            .pieces
            .iter()
            .map(|piece| match piece {
                Piece::Literal(literal) => format!("={literal}"),
                Piece::Tag(name) => format!("<{name}>"),
            })
            .collect();
        assert_eq!(shown, expected, "{text}");
    }

    #[test]
    fn a_template_is_literals_and_tags() {
        check("", &[]);
        check("{log}", &["<log>"]);
        check("{log}{log}", &["<log>", "<log>"]);
        check(
            "{container_name}: {log}",
            &["<container_name>", "=: ", "<log>"],
        );
        check("{com.acme/team-1}", &["<com.acme/team-1>"]);
        check("日志{log}。", &["=日志", "<log>", "=。"]);
    }

    #[test]
    fn a_brace_that_opens_no_identifier_is_literal() {
        check(r#"{"line":"{log}"}"#, &[r#"={"line":""#, "<log>", r#"="}"#]);
        check("{", &["={"]);
        check("{log", &["={log"]);
        check("}{log}}", &["=}", "<log>", "=}"]);
        check("{}", &["={}"]);
        check("{ log }", &["={ log }"]);
        check("{0}", &["={0}"]);
        check("{{log}}", &["={", "<log>", "=}"]);
        check("{a b}{log}", &["={a b}", "<log>"]);
        check("{a{log}", &["={a", "<log>"]);
        check("{日志}", &["={日志}"]);
    }

    proptest! {
        #[test]
        fn a_parsed_template_written_down_is_the_text(text in "[{}a-z0-9_.\" 日]{0,40}") {
            let template = Template::parse(&text);
            let written: String = template.pieces.iter().map(|piece| match piece {
                Piece::Literal(literal) => literal.clone(),
                Piece::Tag(name) => format!("{{{name}}}"),
            }).collect();
            prop_assert_eq!(&written, &text);
            prop_assert!(!template.pieces.contains(&Piece::Literal(String::new())));
        }
    }
}
