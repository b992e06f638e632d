//! What a configuration makes of a container and its lines, said without running: `explain` and `try`.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::io::BufRead;
use std::sync::Arc;

use prost::Message as _;
use proto::frame::{EntryView, Source};
use proto::log_opts::{LogOpts, LogOptsError, MASK};
use proto::relay::Container;
use tokio::time::Instant;

use crate::base::clock::WallClock;
use crate::cls::body::LogGroup;
use crate::config::Config;
use crate::keys::store::CredentialStore;
use crate::record::{Formatter, Origin, Records};
use crate::rules::effective::{Effective, Rules, Subject};
use crate::rules::route::Router;
use crate::send::client::Client;

/// A container, and where it runs.
#[derive(Debug, Default, Clone)]
pub struct Asked {
    /// Name of the tenant.
    pub tenant: String,
    /// Name of the host.
    pub host: String,
    /// What the driver would tell of it.
    pub container: Container,
    /// Its own log options.
    pub log_opts: HashMap<String, String>,
}

/// Why lines can't be tried.
#[derive(Debug, thiserror::Error)]
pub enum TryError {
    /// The options are not good.
    #[error(transparent)]
    Options(#[from] LogOptsError),
    /// The lines can't be read.
    #[error("read the lines")]
    Read(#[from] std::io::Error),
}

/// Returns a table of the options that hold for a container, where each comes from, and what is wrong with
/// them. Secrets are masked.
pub fn explain(config: &Config, asked: &Asked) -> (String, Vec<String>) {
    let effective = effective(config, asked);
    let mut rows = vec![["OPTION", "VALUE", "FROM"].map(str::to_owned)];
    let log_opts: BTreeMap<_, _> = effective.log_opts.iter().collect();
    for (option, value) in log_opts {
        let from = match effective.rule_of(option) {
            Some(rule) => format!("rule {rule}"),
            None => "container".to_owned(),
        };
        rows.push([option.clone(), shown(option, value), from]);
    }
    for (option, rule) in effective.taken_out() {
        rows.push([
            option.to_owned(),
            "not used".to_owned(),
            format!("rule {rule}"),
        ]);
    }
    for (option, value) in defaults(config) {
        let is_set = |value: &String| !value.is_empty();
        if !effective.log_opts.get(option).is_some_and(is_set) {
            rows.push([option.to_owned(), value, "defaults".to_owned()]);
        }
    }
    (
        table(&rows),
        effective.named(faults(config, &effective, asked)),
    )
}

/// Returns the records that lines would become: a line of JSON each, with the fields in alphabetical order.
///
/// # Errors
/// The options that hold for the container are not good, or the lines can't be read.
pub fn records_of(
    config: &Config,
    asked: &Asked,
    lines: &mut impl BufRead,
) -> Result<Vec<String>, TryError> {
    let mut formatter = formatter(&effective(config, asked), asked)?;
    let (now, mut records) = (Instant::now(), Records::default());
    let (mut line, mut offset, mut shown) = (Vec::new(), 0, Vec::new());
    let time_nano = WallClock::system().unix_ms().saturating_mul(1_000_000);
    while lines.read_until(b'\n', &mut line)? > 0 {
        let entry = EntryView {
            source: Source::Stdout,
            time_nano,
            line: line.strip_suffix(b"\n").unwrap_or(&line),
            partial: None,
        };
        formatter.push(offset, offset + 1, &entry, now, &mut records);
        take(&mut records, &mut shown);
        offset += 1;
        line.clear();
    }
    formatter.finish(now, &mut records);
    take(&mut records, &mut shown);
    Ok(shown)
}

/// Returns what is wrong with the rules of a configuration as only the shipper can tell: encodings, templates,
/// patterns that are too large.
pub(super) fn faults_of_rules(config: &Config) -> Vec<String> {
    let mut faults = Vec::new();
    for rule in &config.rules {
        let log_opts: HashMap<String, String> = rule.set.clone().into_iter().collect();
        let asked = Asked::default();
        let formatter =
            LogOpts::parse(&log_opts).and_then(|opts| Formatter::new(&opts, &origin(&asked)));
        let found = formatter.err().into_iter().flat_map(|error| error.faults);
        faults.extend(found.map(|fault| format!("rule {}: {fault}", rule.name)));
    }
    faults
}

fn effective(config: &Config, asked: &Asked) -> Effective {
    let subject = Subject {
        tenant: &asked.tenant,
        host: &asked.host,
        container: &asked.container,
    };
    Rules::new(&config.rules).apply(subject, &asked.log_opts)
}

fn faults(config: &Config, effective: &Effective, asked: &Asked) -> Vec<String> {
    let client = Client::new(config.road.clone());
    let clock = WallClock::system();
    let store = CredentialStore::new(&config.credentials, &config.endpoints, &clock, &client);
    match Router::new(config, Arc::new(store)).route(&effective.log_opts) {
        Err(faults) => faults,
        Ok(_) => match formatter(effective, asked) {
            Err(error) => error.faults,
            Ok(_) => Vec::new(),
        },
    }
}

fn formatter(effective: &Effective, asked: &Asked) -> Result<Formatter, LogOptsError> {
    let opts = LogOpts::parse(&effective.log_opts).map_err(|error| LogOptsError {
        faults: effective.named(error.faults),
    })?;
    Formatter::new(&opts, &origin(asked))
}

fn origin(asked: &Asked) -> Origin<'_> {
    Origin {
        container: &asked.container,
        host: &asked.host,
        journal_id: "00000000000000000000000000000000",
        resume_offset: 0,
        left_out: "",
    }
}

/// Returns what holds without an option, as far as the configuration says so.
fn defaults(config: &Config) -> impl Iterator<Item = (&'static str, String)> {
    let defaults = &config.defaults;
    let endpoint = defaults.endpoint.as_ref().map(ToString::to_string);
    [
        ("credentials", Some(defaults.credentials.clone())),
        ("endpoint", endpoint),
        ("topic_id", defaults.topic_id.clone()),
    ]
    .into_iter()
    .filter_map(|(option, value)| Some((option, value?)))
}

fn shown(option: &str, value: &str) -> String {
    let is_secret =
        matches!(option, "secret_id" | "secret_key") || proto::log_opts::find(option).is_none();
    let shown = if is_secret { MASK } else { value };
    shown.escape_debug().to_string()
}

fn table(rows: &[[String; 3]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let [first, second] = [0, 1].map(|column| width(column).unwrap_or_default());
    let mut text = String::new();
    for [option, value, from] in rows {
        writeln!(text, "{option:first$}  {value:second$}  {from}").expect("a string takes all");
    }
    text
}

/// Takes records out, as lines of JSON.
fn take(records: &mut Records, shown: &mut Vec<String>) {
    let group = LogGroup::decode(records.bytes.as_slice()).expect("the formatter writes records");
    for log in group.logs {
        let fields = log.contents.into_iter();
        let fields: BTreeMap<_, _> = fields.map(|pair| (pair.key, pair.value)).collect();
        shown.push(serde_json::to_string(&fields).expect("strings are JSON"));
    }
    records.clear();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const CONFIG: &str = r#"
        [defaults]
        endpoint = "ap-guangzhou.cls.tencentcs.com"
        topic_id = "t"
        [credentials.default]
        source = "inline"
        secret_id = "AKIDEXAMPLE"
        secret_key = "SKEXAMPLE"
        [[rules]]
        name = "web"
        match = { container = "web-*" }
        set = { parse = "logfmt", topic_id = "web" }
        [[rules]]
        name = "place"
        match = { host = "far" }
        set = { endpoint = "ap-singapore.cls.tencentcs.com", encoding = "klingon" }
    "#;

    fn config() -> Config {
        Config::from_table(CONFIG.parse().unwrap(), std::iter::empty()).unwrap()
    }

    fn asked(host: &str, log_opts: &[(&str, &str)]) -> Asked {
        let log_opts = log_opts.iter();
        Asked {
            tenant: "local".to_owned(),
            host: host.to_owned(),
            container: Container {
                name: "web-1".to_owned(),
                ..Container::default()
            },
            log_opts: log_opts
                .map(|&(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
        }
    }

    #[test]
    fn each_option_says_where_it_comes_from() {
        let (table, faults) = explain(&config(), &asked("near", &[("json", "off")]));
        let expected = "\
OPTION       VALUE                                   FROM
json         off                                     container
parse        logfmt                                  rule web
topic_id     web                                     rule web
credentials  default                                 defaults
endpoint     https://ap-guangzhou.cls.tencentcs.com  defaults
";
        assert_eq!(table, expected);
        assert_eq!(faults, [] as [&str; 0]);
    }

    #[test]
    fn keys_that_are_not_used_and_faults_are_said() {
        let keys = [("secret_id", "AKIDOWN"), ("secret_key", "SKOWN")];
        let (table, faults) = explain(&config(), &asked("far", &keys));
        assert!(!table.contains("OWN"), "{table}");
        let not_used = |line: &&str| line.contains("not used") && line.ends_with("rule place");
        assert_eq!(table.lines().filter(not_used).count(), 2, "{table}");
        let [fault] = &faults[..] else {
            panic!("{faults:?}");
        };
        assert!(fault.contains("encoding=klingon"), "{fault}");
        assert!(fault.ends_with("(set by rule place)"), "{fault}");
        let faults = faults_of_rules(&config());
        assert_eq!(faults.len(), 1);
        let begin = "rule place: log-opt encoding=klingon: must be an encoding";
        assert!(faults[0].starts_with(begin), "{faults:?}");
    }

    #[test]
    fn lines_become_records() {
        let mut lines: &[u8] = b"a=1\nb=\"2 3\"\r\nno pair\nc=4";
        let shown = records_of(&config(), &asked("", &[]), &mut lines).unwrap();
        let expected = [
            r#"{"__stream__":"stdout","a":"1"}"#,
            r#"{"__stream__":"stdout","b":"2 3"}"#,
            r#"{"LogParseFailure":"logfmt","__stream__":"stdout","content":"no pair"}"#,
            r#"{"__stream__":"stdout","c":"4"}"#,
        ];
        assert_eq!(shown, expected);
        let multiline = asked("", &[("multiline-pattern", r"^\S"), ("parse", "off")]);
        let mut lines: &[u8] = b"a\n  b\nc\n";
        let shown = records_of(&config(), &multiline, &mut lines).unwrap();
        let content = |text| format!(r#"{{"__stream__":"stdout","content":"{text}"}}"#);
        assert_eq!(shown, [content(r"a\n  b"), content("c")]);
        let bad = asked("", &[("parse", "xml")]);
        let error = records_of(&config(), &bad, &mut &b""[..]).unwrap_err();
        assert!(
            error.to_string().starts_with("log-opt parse=xml"),
            "{error}"
        );
    }

    /// What real programs write, in `tests/cases/lines`: a folder for each kind, with the lines (`input`), the
    /// options that a user would set (`options`), and what must come out (`records`). Another kind is three
    /// files and no code; `cls-shipper try` writes the third.
    #[test]
    fn lines_of_real_programs() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/cases/lines");
        let folders: Vec<_> = std::fs::read_dir(root).unwrap().flatten().collect();
        assert!(folders.len() > 40, "{} kinds", folders.len());
        let faults = folders
            .iter()
            .filter_map(|folder| fault_of_kind(&folder.path()));
        let faults: Vec<String> = faults.collect();
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }

    fn fault_of_kind(folder: &Path) -> Option<String> {
        let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
        let options = String::from_utf8(read("options")).unwrap();
        let options: Vec<_> = options
            .lines()
            .map(|option| option.split_once('=').unwrap())
            .collect();
        let config = Config::from_table(toml::Table::new(), std::iter::empty()).unwrap();
        let found = records_of(&config, &asked("", &options), &mut read("input").as_slice());
        let found = found.unwrap().join("\n") + "\n";
        let expected = String::from_utf8(read("records")).unwrap();
        let name = folder.file_name().unwrap_or_default().display();
        (found != expected).then(|| format!("{name}\n{found}expected:\n{expected}"))
    }
}
