//! Docker's option `tag`: a Go template over what Docker calls `logger.Info`, evaluated once per
//! container.
//!
//! Supported, which is what tags are made of:
//!
//! ```text
//! {{.Field}}  {{.Field.key}}  {{"text"}}  {{`text`}}  {{12}}  {{true}}  {{(…)}}  {{a | b}}
//! {{if …}}…{{else if …}}…{{else}}…{{end}}  {{- trims -}}  {{/* comment */}}
//! .ID .FullID .Name .ImageID .ImageFullID .ImageName .Hostname .DaemonName .Command .LogPath
//! .ContainerID .ContainerName .ContainerImageID .ContainerImageName .ContainerCreated
//! .ContainerEntrypoint .ContainerArgs .ContainerEnv .ContainerLabels .Config
//! json split join title lower upper pad truncate index len printf print println
//! and or not eq ne
//! ```
//!
//! Not supported, each an error that says so: variables, `range`, `with`, templates in templates,
//! `.ExtraAttributes` (it takes a function), and the functions not listed.
//!
//! As in Docker: a missing key is empty for `index` and `<no value>` as a field; lists print as
//! `[a b]` and maps as `map[k:v]`; `truncate` counts bytes (but never cuts a character). Unlike
//! Docker, `.Hostname` is the host's name wherever the shipper runs, secrets in `.Config` are
//! masked, and `.ImageID` has no `sha256:` (Docker counted the prefix up to 29.4.0).
//!
//! Bounds: [`NESTING_MAX`] levels, [`WIDTH_MAX`] columns, [`TEXT_BYTES_MAX`] of what a function
//! takes and of the whole.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use proto::log_opts::LogOpts;
use proto::relay::Container;

use super::metadata::{short_id, short_name};

/// Levels of parentheses and conditions.
const NESTING_MAX: usize = 32;

/// Columns that `pad` and `printf` fill.
const WIDTH_MAX: usize = 1024;

/// Bytes of a function's arguments, and of the tag.
const TEXT_BYTES_MAX: usize = 64 << 10;

/// What a template may use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Info<'a> {
    pub(super) opts: &'a LogOpts,
    pub(super) container: &'a Container,
    pub(super) host: &'a str,
}

/// Evaluates a template.
///
/// # Errors
/// Why it can't be evaluated, for the user.
pub(super) fn evaluate(template: &str, info: Info<'_>) -> Result<String, String> {
    let nodes = parse(template)?;
    let mut out = String::new();
    run(&nodes, info, &mut out)?;
    Ok(out)
}

#[derive(Debug)]
enum Node {
    Text(String),
    Pipe(Pipe),
    If(Vec<Branch>),
}

/// A condition and what it guards; an `else` has no condition.
#[derive(Debug)]
struct Branch {
    condition: Option<Pipe>,
    nodes: Vec<Node>,
}

/// Commands, each of which gets the value of the one before as its last argument.
type Pipe = Vec<Command>;
type Command = Vec<Term>;

#[derive(Debug)]
enum Term {
    Function(String),
    /// `.` alone has no names.
    Field(Vec<String>),
    Text(String),
    Number(i64),
    Bool(bool),
    Pipe(Pipe),
}

#[derive(Debug, Clone, PartialEq)]
enum Value {
    Text(String),
    Number(i64),
    Bool(bool),
    List(Vec<String>),
    Map(BTreeMap<String, String>),
    /// What a missing key is.
    Nothing,
}

// ---- parsing ----

/// A piece of the template: text, or the inside of `{{…}}`.
enum Part<'a> {
    Text(&'a str),
    Action(&'a str),
}

fn parse(template: &str) -> Result<Vec<Node>, String> {
    let parts = split_actions(template)?;
    let mut parser = Parser {
        parts: parts.into_iter(),
        depth: 0,
    };
    let (nodes, end) = parser.nodes()?;
    match end {
        End::OfTemplate => Ok(nodes),
        End::Else(_) => Err("{{else}} without {{if}}".to_owned()),
        End::OfIf => Err("{{end}} without {{if}}".to_owned()),
    }
}

fn split_actions(template: &str) -> Result<Vec<Part<'_>>, String> {
    let mut parts = Vec::new();
    let mut rest = template;
    let mut trims = false;
    while let Some((text, after)) = rest.split_once("{{") {
        let end = action_bytes(after).ok_or("unclosed action")?;
        let (inside, tail) = after.split_at(end);
        let text = if trims { text.trim_start() } else { text };
        let (inside, text) = match inside.strip_prefix('-') {
            Some(stripped) if stripped.starts_with(char::is_whitespace) => {
                (stripped, text.trim_end())
            }
            _ => (inside, text),
        };
        let before_dash = inside.strip_suffix('-');
        let before_dash = before_dash.filter(|inside| inside.ends_with(char::is_whitespace));
        trims = before_dash.is_some();
        parts.push(Part::Text(text));
        parts.push(Part::Action(before_dash.unwrap_or(inside).trim()));
        rest = tail.strip_prefix("}}").unwrap_or_default();
    }
    parts.push(Part::Text(if trims { rest.trim_start() } else { rest }));
    Ok(parts)
}

/// Returns the length of an action's inside: up to a `}}` that is in no string and no comment.
fn action_bytes(text: &str) -> Option<usize> {
    let trimmed = text.trim_start_matches(|c: char| c == '-' || c.is_whitespace());
    if trimmed.starts_with("/*") {
        let comment = text.find("*/")?;
        let (_, behind) = text.split_at(comment);
        return Some(comment + behind.find("}}")?);
    }
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match quote {
            Some('"') if c == '\\' => drop(chars.next()),
            Some(open) if open == c => quote = None,
            Some(_) => {}
            None if c == '"' || c == '`' => quote = Some(c),
            None if c == '}' && chars.as_str().starts_with('}') => return Some(at),
            None => {}
        }
    }
    None
}

struct Parser<'a> {
    parts: std::vec::IntoIter<Part<'a>>,
    depth: usize,
}

/// What ends a list of nodes.
enum End<'a> {
    OfTemplate,
    OfIf,
    /// With what stands behind `else`.
    Else(&'a str),
}

impl<'a> Parser<'a> {
    fn nodes(&mut self) -> Result<(Vec<Node>, End<'a>), String> {
        let mut nodes = Vec::new();
        while let Some(part) = self.parts.next() {
            let action = match part {
                Part::Text(text) => {
                    nodes.push(Node::Text(text.to_owned()));
                    continue;
                }
                Part::Action(action) => action,
            };
            let word_bytes = action.find(|c: char| !c.is_ascii_alphanumeric());
            let (word, rest) = action.split_at(word_bytes.unwrap_or(action.len()));
            match word {
                "" if action.starts_with("/*") => {}
                "if" => nodes.push(self.branches(rest)?),
                "else" => return Ok((nodes, End::Else(rest.trim()))),
                "end" => return Ok((nodes, End::OfIf)),
                "range" | "with" | "define" | "template" | "block" | "break" | "continue" => {
                    return Err(format!("{{{{{word}}}}} is not supported in a tag"));
                }
                _ => nodes.push(Node::Pipe(parse_pipe(action)?)),
            }
        }
        Ok((nodes, End::OfTemplate))
    }

    fn branches(&mut self, condition: &str) -> Result<Node, String> {
        self.depth += 1;
        if self.depth > NESTING_MAX {
            return Err(format!("more than {NESTING_MAX} levels of {{{{if}}}}"));
        }
        let mut branches = Vec::new();
        let mut condition = Some(parse_pipe(condition)?);
        loop {
            let is_else = condition.is_none();
            let (nodes, end) = self.nodes()?;
            branches.push(Branch {
                condition: condition.take(),
                nodes,
            });
            match end {
                End::OfIf => break,
                End::OfTemplate => return Err("{{if}} without {{end}}".to_owned()),
                End::Else(_) if is_else => return Err("a second {{else}}".to_owned()),
                End::Else("") => {}
                End::Else(rest) => {
                    let next = rest.strip_prefix("if").ok_or("{{else}} takes only if")?;
                    condition = Some(parse_pipe(next)?);
                }
            }
        }
        self.depth -= 1;
        Ok(Node::If(branches))
    }
}

fn parse_pipe(text: &str) -> Result<Pipe, String> {
    let mut lexer = Lexer {
        rest: text,
        depth: 0,
    };
    let pipe = lexer.pipe()?;
    match lexer.rest.chars().next() {
        None => Ok(pipe),
        Some(c) => Err(format!("unexpected {c:?} in {{{{{text}}}}}")),
    }
}

struct Lexer<'a> {
    rest: &'a str,
    depth: usize,
}

impl<'a> Lexer<'a> {
    fn pipe(&mut self) -> Result<Pipe, String> {
        let mut pipe = vec![self.command()?];
        while let Some(rest) = self.rest.strip_prefix('|') {
            self.rest = rest;
            let command = self.command()?;
            if !matches!(command.first(), Some(Term::Function(_))) {
                return Err("what follows | must be a function".to_owned());
            }
            pipe.push(command);
        }
        Ok(pipe)
    }

    fn command(&mut self) -> Result<Command, String> {
        let mut command = Vec::new();
        loop {
            self.rest = self.rest.trim_start();
            match self.rest.chars().next() {
                None | Some('|' | ')') => break,
                Some(c) => command.push(self.term(c)?),
            }
        }
        match command.first() {
            None => Err("missing value for command".to_owned()),
            Some(Term::Function(_)) => Ok(command),
            Some(_) if command.len() > 1 => Err("only a function takes arguments".to_owned()),
            Some(_) => Ok(command),
        }
    }

    fn term(&mut self, first: char) -> Result<Term, String> {
        match first {
            '"' => self.quoted().map(Term::Text),
            '`' => {
                let (text, rest) = self.behind('`').split_once('`').ok_or("unclosed string")?;
                self.rest = rest;
                Ok(Term::Text(text.to_owned()))
            }
            '(' => self.parenthesised(),
            '.' => Ok(Term::Field(self.field_names())),
            '0'..='9' | '-' | '+' => {
                let word = self.word(|c| c.is_ascii_alphanumeric() || "+-._".contains(c));
                let number = word.parse();
                number
                    .map(Term::Number)
                    .map_err(|_| format!("bad number {word}"))
            }
            '$' => Err("variables are not supported in a tag".to_owned()),
            c if c.is_ascii_alphabetic() => {
                let word = self.word(|c| c.is_ascii_alphanumeric() || c == '_');
                Ok(match word {
                    "true" => Term::Bool(true),
                    "false" => Term::Bool(false),
                    word => Term::Function(word.to_owned()),
                })
            }
            c => Err(format!("unexpected {c:?}")),
        }
    }

    fn parenthesised(&mut self) -> Result<Term, String> {
        self.depth += 1;
        if self.depth > NESTING_MAX {
            return Err(format!("more than {NESTING_MAX} levels of parentheses"));
        }
        self.rest = self.behind('(');
        let pipe = self.pipe()?;
        self.rest = self.rest.strip_prefix(')').ok_or("unclosed parenthesis")?;
        self.depth -= 1;
        Ok(Term::Pipe(pipe))
    }

    fn behind(&self, c: char) -> &'a str {
        self.rest.strip_prefix(c).unwrap_or_default()
    }

    fn word(&mut self, is_part: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !is_part(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    fn field_names(&mut self) -> Vec<String> {
        let path = self.word(|c| c.is_alphanumeric() || c == '_' || c == '.');
        path.split('.')
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect()
    }

    fn quoted(&mut self) -> Result<String, String> {
        let mut text = String::new();
        let mut chars = self.behind('"').chars();
        loop {
            match chars.next().ok_or("unclosed string")? {
                '"' => break,
                '\\' => text.push(match chars.next() {
                    Some('n') => '\n',
                    Some('t') => '\t',
                    Some('r') => '\r',
                    Some(c @ ('"' | '\\')) => c,
                    _ => return Err("unknown escape in a string".to_owned()),
                }),
                c => text.push(c),
            }
        }
        self.rest = chars.as_str();
        Ok(text)
    }
}

// ---- evaluation ----

fn run(nodes: &[Node], info: Info<'_>, out: &mut String) -> Result<(), String> {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Pipe(pipe) => out.push_str(&eval_pipe(pipe, info)?.print()),
            Node::If(branches) => {
                for branch in branches {
                    let holds = match &branch.condition {
                        Some(condition) => eval_pipe(condition, info)?.is_true(),
                        None => true,
                    };
                    if holds {
                        run(&branch.nodes, info, out)?;
                        break;
                    }
                }
            }
        }
        check_bytes(out.len())?;
    }
    Ok(())
}

fn check_bytes(bytes: usize) -> Result<(), String> {
    if bytes > TEXT_BYTES_MAX {
        return Err(format!("its text has more than {TEXT_BYTES_MAX} bytes"));
    }
    Ok(())
}

fn eval_pipe(pipe: &Pipe, info: Info<'_>) -> Result<Value, String> {
    let mut last = None;
    for command in pipe {
        let mut arguments = Vec::new();
        let mut bytes = 0;
        let function = match command.first() {
            Some(Term::Function(function)) => Some(function),
            _ => None,
        };
        for term in command.iter().skip(usize::from(function.is_some())) {
            let argument = eval_term(term, info)?;
            bytes += argument.bytes();
            check_bytes(bytes)?;
            arguments.push(argument);
        }
        arguments.extend(last.take());
        last = match function {
            Some(function) => Some(call(function, &arguments)?),
            None => arguments.pop(),
        };
    }
    last.ok_or_else(|| "missing value for command".to_owned())
}

fn eval_term(term: &Term, info: Info<'_>) -> Result<Value, String> {
    match term {
        Term::Function(function) => call(function, &[]),
        Term::Field(names) => field(names, info),
        Term::Text(text) => Ok(Value::Text(text.clone())),
        Term::Number(number) => Ok(Value::Number(*number)),
        Term::Bool(value) => Ok(Value::Bool(*value)),
        Term::Pipe(pipe) => eval_pipe(pipe, info),
    }
}

const FIELDS: &str = ".ID, .FullID, .Name, .ImageID, .ImageFullID, .ImageName, .Hostname, \
    .DaemonName, .Command, .LogPath, .ContainerID, .ContainerName, .ContainerImageID, \
    .ContainerImageName, .ContainerCreated, .ContainerEntrypoint, .ContainerArgs, .ContainerEnv, \
    .ContainerLabels, .Config";

fn field(names: &[String], info: Info<'_>) -> Result<Value, String> {
    let Some((first, keys)) = names.split_first() else {
        return Err("`.` alone is not supported in a tag".to_owned());
    };
    let whole = info_field(first, info)
        .ok_or_else(|| format!("unknown field .{first} (known: {FIELDS})"))?;
    match (whole, keys) {
        (value, []) => Ok(value),
        (Value::Map(map), [key]) => Ok(map
            .get(key)
            .map_or(Value::Nothing, |value| Value::Text(value.clone()))),
        (_, [key, ..]) => Err(format!(".{first} has no field {key}")),
    }
}

fn info_field(name: &str, info: Info<'_>) -> Option<Value> {
    let container = info.container;
    let text = |text: &str| Value::Text(text.to_owned());
    Some(match name {
        "ID" => text(short_id(&container.id)),
        "FullID" | "ContainerID" => text(&container.id),
        "Name" => text(short_name(container)),
        "ContainerName" => text(&container.name),
        "ImageID" => text(short_id(&container.image_id)),
        "ImageFullID" | "ContainerImageID" => text(&container.image_id),
        "ImageName" | "ContainerImageName" => text(&container.image_name),
        "Hostname" => text(info.host),
        "DaemonName" => text(&container.daemon_name),
        "LogPath" => text(&container.log_path),
        "Command" => {
            let words = std::iter::once(&container.entrypoint).chain(&container.args);
            Value::Text(words.cloned().collect::<Vec<_>>().join(" "))
        }
        "ContainerEntrypoint" => text(&container.entrypoint),
        "ContainerArgs" => Value::List(container.args.clone()),
        "ContainerEnv" => Value::List(container.env.clone()),
        "ContainerLabels" => Value::Map(container.labels.clone().into_iter().collect()),
        "Config" => Value::Map(info.opts.config_masked.clone()),
        "ContainerCreated" => Value::Text(go_time(&container.created)),
        _ => return None,
    })
}

/// Returns an RFC 3339 time in UTC as Go prints a time.
fn go_time(time: &str) -> String {
    match (time.strip_suffix('Z'), time.split_once('T')) {
        (Some(_), Some((day, clock))) => {
            format!("{day} {} +0000 UTC", clock.trim_end_matches('Z'))
        }
        _ => time.to_owned(),
    }
}

fn call(function: &str, arguments: &[Value]) -> Result<Value, String> {
    use Value::{Bool, List, Map, Nothing, Number, Text};
    let value = match (function, arguments) {
        ("json", [value]) => Text(value.to_json()),
        ("split", [Text(text), Text(separator)]) => {
            List(text.split(separator.as_str()).map(str::to_owned).collect())
        }
        ("join", [List(list), Text(separator)]) => Text(list.join(separator)),
        ("title", [Text(text)]) => Text(title(text)),
        ("lower", [Text(text)]) => Text(text.to_lowercase()),
        ("upper", [Text(text)]) => Text(text.to_uppercase()),
        ("pad", [Text(text), Number(before), Number(after)]) => Text(pad(text, *before, *after)?),
        ("truncate", [Text(text), Number(length)]) => {
            let length = usize::try_from(*length).map_err(|_| "truncate to less than nothing")?;
            let (kept, _) = text.split_at(text.floor_char_boundary(length));
            Text(kept.to_owned())
        }
        ("index", [value]) => value.clone(),
        ("index", [Map(map), Text(key)]) => Text(map.get(key).cloned().unwrap_or_default()),
        ("index", [List(list), Number(at)]) => {
            let item = usize::try_from(*at).ok().and_then(|at| list.get(at));
            Text(
                item.ok_or_else(|| format!("index {at} is out of range"))?
                    .clone(),
            )
        }
        ("index", [Nothing, ..]) => return Err("index of no value".to_owned()),
        ("len", [value]) => Number(value.length().ok_or("len of a value without length")?),
        ("printf", [Text(format), values @ ..]) => Text(printf(format, values)?),
        ("print", values) => Text(values.iter().map(Value::print).collect()),
        ("println", values) => {
            let shown: Vec<_> = values.iter().map(Value::print).collect();
            Text(format!("{}\n", shown.join(" ")))
        }
        ("not", [value]) => Bool(!value.is_true()),
        ("and", [.., last]) => arguments
            .iter()
            .find(|v| !v.is_true())
            .unwrap_or(last)
            .clone(),
        ("or", [.., last]) => arguments
            .iter()
            .find(|v| v.is_true())
            .unwrap_or(last)
            .clone(),
        ("eq", [first, others @ ..]) if !others.is_empty() => Bool(others.contains(first)),
        ("ne", [a, b]) => Bool(a != b),
        (
            "json" | "split" | "join" | "title" | "lower" | "upper" | "pad" | "truncate" | "index"
            | "len" | "printf" | "not" | "and" | "or" | "eq" | "ne",
            _,
        ) => return Err(format!("wrong number or type of arguments for {function}")),
        _ => {
            return Err(format!(
                "unknown function {function} (known: json, split, join, title, lower, upper, pad, \
                 truncate, index, len, printf, print, println, and, or, not, eq, ne)"
            ));
        }
    };
    Ok(value)
}

impl Value {
    fn is_true(&self) -> bool {
        match self {
            Value::Text(text) => !text.is_empty(),
            Value::Number(number) => *number != 0,
            Value::Bool(value) => *value,
            Value::List(list) => !list.is_empty(),
            Value::Map(map) => !map.is_empty(),
            Value::Nothing => false,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Value::Text(text) => text.len(),
            Value::List(list) => list.iter().map(String::len).sum(),
            Value::Map(map) => map.iter().map(|(key, value)| key.len() + value.len()).sum(),
            Value::Number(_) | Value::Bool(_) | Value::Nothing => size_of::<i64>(),
        }
    }

    fn length(&self) -> Option<i64> {
        let length = match self {
            Value::Text(text) => text.len(),
            Value::List(list) => list.len(),
            Value::Map(map) => map.len(),
            Value::Number(_) | Value::Bool(_) | Value::Nothing => return None,
        };
        i64::try_from(length).ok()
    }

    /// Shows the value as Go's `%v` does.
    fn print(&self) -> String {
        match self {
            Value::Text(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            Value::Bool(value) => value.to_string(),
            Value::List(list) => format!("[{}]", list.join(" ")),
            Value::Map(map) => {
                let pairs: Vec<_> = map
                    .iter()
                    .map(|(key, value)| format!("{key}:{value}"))
                    .collect();
                format!("map[{}]", pairs.join(" "))
            }
            Value::Nothing => "<no value>".to_owned(),
        }
    }

    fn to_json(&self) -> String {
        let json = match self {
            Value::Text(text) => serde_json::to_string(text),
            Value::List(list) => serde_json::to_string(list),
            Value::Map(map) => serde_json::to_string(map),
            Value::Number(number) => serde_json::to_string(number),
            Value::Bool(value) => serde_json::to_string(value),
            Value::Nothing => serde_json::to_string(&()),
        };
        json.expect("strings, lists and maps of strings are JSON")
    }
}

/// Begins every word with a capital letter, as Go's `strings.Title`.
fn title(text: &str) -> String {
    let mut out = String::new();
    let mut is_inside = false;
    for c in text.chars() {
        if is_inside {
            out.push(c);
        } else {
            out.extend(c.to_uppercase());
        }
        is_inside = c.is_alphanumeric() || c == '_' || c == '\'';
    }
    out
}

fn pad(text: &str, before: i64, after: i64) -> Result<String, String> {
    let spaces = |count: i64| {
        usize::try_from(count)
            .ok()
            .filter(|count| *count <= WIDTH_MAX)
            .map(|count| " ".repeat(count))
            .ok_or_else(|| format!("pad takes 0 to {WIDTH_MAX} spaces"))
    };
    let (before, after) = (spaces(before)?, spaces(after)?);
    if text.is_empty() {
        return Ok(String::new());
    }
    Ok(format!("{before}{text}{after}"))
}

/// Formats as Go's `fmt.Sprintf` does, for `%s`, `%v`, `%d`, `%q` and `%%`, with `-`, a width and
/// a precision.
fn printf(format: &str, values: &[Value]) -> Result<String, String> {
    let mut out = String::new();
    let mut values = values.iter();
    let mut rest = format;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        let spec_bytes = after.find(|c: char| !(c.is_ascii_digit() || c == '-' || c == '.'));
        let (spec, tail) = after.split_at(spec_bytes.unwrap_or(after.len()));
        let mut chars = tail.chars();
        let verb = chars.next().ok_or("printf: no verb behind %")?;
        rest = chars.as_str();
        if verb == '%' {
            out.push('%');
            continue;
        }
        let value = values.next().ok_or("printf: too few arguments")?;
        let shown = match (verb, value) {
            ('s' | 'v', value) => value.print(),
            ('d', Value::Number(number)) => number.to_string(),
            ('q', Value::Text(text)) => format!("{text:?}"),
            _ => return Err(format!("printf: %{verb} does not fit its argument")),
        };
        put_aligned(&mut out, spec, &shown)?;
    }
    out.push_str(rest);
    match values.next() {
        None => Ok(out),
        Some(_) => Err("printf: too many arguments".to_owned()),
    }
}

fn put_aligned(out: &mut String, spec: &str, shown: &str) -> Result<(), String> {
    let is_left = spec.starts_with('-');
    let (width, precision) = spec.trim_start_matches('-').split_once('.').map_or(
        (spec.trim_start_matches('-'), None),
        |(width, precision)| (width, Some(precision)),
    );
    let number = |text: &str| match text {
        "" => Ok(0),
        text => text
            .parse()
            .ok()
            .filter(|number| *number <= WIDTH_MAX)
            .ok_or_else(|| format!("printf: a width is 0 to {WIDTH_MAX}")),
    };
    let width = number(width)?;
    let shown: String = match precision {
        Some(precision) => shown.chars().take(number(precision)?).collect(),
        None => shown.to_owned(),
    };
    let written = if is_left {
        write!(out, "{shown:<width$}")
    } else {
        write!(out, "{shown:>width$}")
    };
    written.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn container() -> Container {
        Container {
            id: "e788fc0d1234aaaabbbb".into(),
            name: "/web-1".into(),
            image_id: "sha256:345e3d77aaaabbbb".into(),
            image_name: "shop/web:7".into(),
            created: "2026-11-22T14:04:26.820587421Z".into(),
            env: vec!["A=1".into(), "B=2".into()],
            labels: [
                ("app".to_owned(), "shop".to_owned()),
                ("a.b".to_owned(), "2".to_owned()),
            ]
            .into(),
            entrypoint: "sh".into(),
            args: vec!["-c".into(), "x y".into()],
            daemon_name: "docker".into(),
            log_path: String::new(),
        }
    }

    fn eval(template: &str) -> Result<String, String> {
        let config = [
            ("secret_id", "AKID1"),
            ("secret_key", "k3y"),
            ("labels", "app"),
        ];
        let config = config.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let opts = LogOpts::parse(&config.into()).unwrap();
        let container = container();
        evaluate(
            template,
            Info {
                opts: &opts,
                container: &container,
                host: "node-1",
            },
        )
    }

    fn good(template: &str, expected: &str) {
        assert_eq!(eval(template).as_deref(), Ok(expected), "{template}");
    }

    #[test]
    fn the_fields_of_docker() {
        good("", "");
        good("plain", "plain");
        good("{{.Name}}/{{.ID}}", "web-1/e788fc0d1234");
        good(
            "{{ .FullID }} {{.ContainerID}}",
            "e788fc0d1234aaaabbbb e788fc0d1234aaaabbbb",
        );
        good("{{.ContainerName}}", "/web-1");
        good("{{.ImageID}} {{.ImageName}}", "345e3d77aaaa shop/web:7");
        good("{{.ImageFullID}}", "sha256:345e3d77aaaabbbb");
        good("{{.Hostname}} {{.DaemonName}}", "node-1 docker");
        good("{{.Command}}", "sh -c x y");
        good("{{.ContainerEnv}}{{.ContainerArgs}}", "[A=1 B=2][-c x y]");
        good("{{.ContainerLabels}}", "map[a.b:2 app:shop]");
        good(
            "{{.ContainerLabels.app}} {{.ContainerLabels.nope}}",
            "shop <no value>",
        );
        good(
            "{{.ContainerCreated}}",
            "2026-11-22 14:04:26.820587421 +0000 UTC",
        );
        good(
            "{{.Config}}",
            "map[labels:app secret_id:*** secret_key:***]",
        );
        good("[{{.LogPath}}]", "[]");
    }

    #[test]
    fn functions() {
        good(
            r#"{{json .Name}} {{json .ContainerArgs}}"#,
            r#""web-1" ["-c","x y"]"#,
        );
        good(
            r#"{{index .ContainerLabels "a.b"}}[{{index .ContainerLabels "no"}}]"#,
            "2[]",
        );
        good("{{index .ContainerArgs 1}}", "x y");
        good(r#"{{join .ContainerArgs ","}}"#, "-c,x y");
        good(r#"{{index (split .ImageName ":") 0}}"#, "shop/web");
        good("{{upper .Name}} {{.Name | upper | lower}}", "WEB-1 web-1");
        good(
            r#"{{title "hello wide-world o'neil"}}"#,
            "Hello Wide-World O'neil",
        );
        good(
            r#"{{truncate .FullID 6}} {{truncate "日志" 4}} {{truncate "ab" 9}}"#,
            "e788fc 日 ab",
        );
        good(r#"[{{pad "x" 1 2}}{{pad "" 1 2}}]"#, "[ x  ]");
        good(
            r#"{{printf "%s-%d-%q-%v-%%" .Name 7 "a\"b" true}}"#,
            r#"web-1-7-"a\"b"-true-%"#,
        );
        good(
            r#"[{{printf "%5s|%-5s|%.2s" "ab" "cd" "efgh"}}]"#,
            "[   ab|cd   |ef]",
        );
        good("{{len .ContainerEnv}}{{len .Name}}", "25");
        good(r#"{{print "a" 1}}{{println "b" "c"}}"#, "a1b c\n");
        good("{{`raw \"text\"`}}", "raw \"text\"");
        good(r#"{{"}}"}}"#, "}}");
        good("{{12}} {{-3}} {{true}}", "12 -3 true");
    }

    #[test]
    fn conditions_trims_and_comments() {
        good("{{if .LogPath}}a{{else}}b{{end}}", "b");
        good(r#"{{if eq .Name "x" "web-1"}}a{{end}}"#, "a");
        good(
            r#"{{if ne .Name "x"}}a{{else if true}}b{{else}}c{{end}}"#,
            "a",
        );
        good(
            r#"{{if not .Name}}a{{else if eq 1 1}}b{{else}}c{{end}}"#,
            "b",
        );
        good(
            r#"{{if and .Name .LogPath}}a{{end}}{{or .LogPath .Name}}"#,
            "web-1",
        );
        good("{{if .Name}}{{if .LogPath}}x{{else}}y{{end}}z{{end}}", "yz");
        good("a {{- .Name -}} b", "aweb-1b");
        good("a {{- /* note }} */ -}} b{{/* c */}}", "ab");
        good("{{ if true -}} a {{- end }} b", "a b");
    }

    #[test]
    fn faults_say_what_is_wrong() {
        for (template, fault) in [
            ("{{.ID", "unclosed action"),
            ("{{", "unclosed action"),
            ("{{\"a}}", "unclosed action"),
            ("{{}}", "missing value for command"),
            ("{{.ID |}}", "missing value for command"),
            ("{{.ID | .Name}}", "what follows | must be a function"),
            ("{{.ID .Name}}", "only a function takes arguments"),
            ("{{(.ID}}", "unclosed parenthesis"),
            ("{{.ID)}}", "unexpected ')' in {{.ID)}}"),
            ("{{.}}", "`.` alone is not supported in a tag"),
            ("{{.Name.x}}", ".Name has no field x"),
            ("{{$x := 1}}", "variables are not supported in a tag"),
            (
                "{{range .ContainerEnv}}{{end}}",
                "{{range}} is not supported in a tag",
            ),
            ("{{if .ID}}", "{{if}} without {{end}}"),
            ("{{end}}", "{{end}} without {{if}}"),
            ("{{else}}", "{{else}} without {{if}}"),
            ("{{if 1}}{{else}}{{else}}{{end}}", "a second {{else}}"),
            ("{{if 1}}{{else x}}{{end}}", "{{else}} takes only if"),
            ("{{upper 1}}", "wrong number or type of arguments for upper"),
            ("{{index .ContainerArgs 9}}", "index 9 is out of range"),
            ("{{pad \"x\" 99999999 0}}", "pad takes 0 to 1024 spaces"),
            (
                "{{printf \"%99999999s\" \"x\"}}",
                "printf: a width is 0 to 1024",
            ),
            ("{{printf \"%s\"}}", "printf: too few arguments"),
            ("{{printf \"\" 1}}", "printf: too many arguments"),
            ("{{1.5}}", "bad number 1.5"),
        ] {
            assert_eq!(eval(template), Err(fault.to_owned()), "{template}");
        }
        let unknown = eval("{{.Nope}}").unwrap_err();
        assert!(
            unknown.starts_with("unknown field .Nope (known: .ID, "),
            "{unknown}"
        );
        let unknown = eval("{{slice .ID 1}}").unwrap_err();
        assert!(
            unknown.starts_with("unknown function slice (known: json, "),
            "{unknown}"
        );
        let deep = format!("{{{{{}1{}}}}}", "(".repeat(5000), ")".repeat(5000));
        assert_eq!(
            eval(&deep),
            Err("more than 32 levels of parentheses".to_owned())
        );
        let long = "{{print .FullID .FullID .FullID .FullID}}".repeat(1000);
        let too_long = "its text has more than 65536 bytes";
        assert_eq!(eval(&long), Err(too_long.to_owned()));
        let long = format!("{{{{print{}}}}}", " .FullID".repeat(5000));
        assert_eq!(eval(&long), Err(too_long.to_owned()));
        let deep = "{{if 1}}".repeat(5000);
        assert_eq!(eval(&deep), Err("more than 32 levels of {{if}}".to_owned()));
    }

    proptest! {
        #[test]
        fn no_template_panics(template in prop_oneof![
            "\\PC{0,40}",
            prop::collection::vec(prop_oneof![
                Just("{{"), Just("}}"), Just("- "), Just(" -"), Just(".Name"), Just("\""), Just("`"),
                Just("if "), Just("end"), Just("else "), Just("|"), Just("("), Just(")"), Just(" "),
                Just("printf"), Just("\"%5s\""), Just("index"), Just(".ContainerArgs"), Just("1"),
                Just("truncate"), Just("日"), Just("/*"), Just("*/"), Just("\\"),
            ], 0..16).prop_map(|words| words.concat()),
        ]) {
            eval(&template).ok();
        }
    }
}
