//! Every log option: one table ([`OPTIONS`]), parsed once into [`LogOpts`].
//!
//! Both processes parse the same options with the same code. The driver checks here all that can
//! be checked without the network; what is carried as text (regular expressions, the Go template
//! `tag`, names of topics and credentials) the shipper checks through `Relay.Check`.
//!
//! Rules that hold for all options:
//! - All faults of a container are reported together. Each names option, value and rule; of an
//!   unknown option it names the nearest known one.
//! - An empty value is as good as none. Docker merges the daemon's defaults into a container's
//!   options, so this is how a container gets rid of one.
//! - Booleans, durations and sizes are written as Go and Docker write them.
//! - `secret_id` and `secret_key` appear in no fault and in no `Debug` text, nor does the value of
//!   an unknown option: it may be a misspelt secret.
//! - A value has at most [`VALUE_BYTES_MAX`] bytes.

mod asked;
mod table;
mod template;
mod value;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

pub use table::{Consumer, Kind, OPTIONS, OptionSpec, find};
pub use template::{Piece, TAGS, Template};
use value::Units;

/// Bytes of one option's value. A longer one is a fault.
pub const VALUE_BYTES_MAX: usize = 64 << 10;

/// Smallest `journal-size`: a few segments have to fit.
pub const JOURNAL_BYTES_MIN: u64 = 1 << 20;

/// What a secret is replaced by wherever options are shown.
pub const MASK: &str = "***";

/// A container's log options, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogOpts {
    /// `endpoint`: host, with an optional scheme and port; `None`: the shipper's default.
    pub endpoint: Option<String>,
    /// `topic_id`; `None`: the shipper's default.
    pub topic_id: Option<String>,
    /// `credentials`, or `secret_id` and `secret_key`.
    pub credentials: Credentials,
    /// `retries`: further attempts to upload a batch, 0 is endless; `None`: the shipper's default.
    pub retries: Option<u32>,
    /// `timeout` of one upload request; `None`: the shipper's default.
    pub timeout: Option<Duration>,
    /// `template`; `{log}` if not given.
    pub template: Template,
    /// `json`: whether a JSON object's members become fields.
    pub json: bool,
    /// `filter-regex`, not compiled.
    pub filter_regex: Option<String>,
    /// `exclude-regex`, not compiled.
    pub exclude_regex: Option<String>,
    /// `multiline-pattern`, not compiled, and `multiline-timeout`.
    pub multiline: Option<Multiline>,
    /// `instance_info`, as given.
    pub instance_info: Option<String>,
    /// `append_container_details_keys`, each once, in the order given.
    pub container_details: Vec<ContainerDetail>,
    /// `record-id`: whether records carry their stable id.
    pub record_id: bool,
    /// `labels`, `labels-regex`, `env`, `env-regex`, `tag`.
    pub attributes: Attributes,
    /// `no-file`: the journal stays in memory.
    pub no_file: bool,
    /// `keep-file`: acknowledged segments are kept for inspection.
    pub keep_file: bool,
    /// `journal-size`: bound of the container's journal in bytes; `None`: the driver's setting.
    pub journal_bytes_max: Option<u64>,
    /// `mode`: what a full journal does.
    pub mode: Mode,
    /// All options as given, secrets masked: for the field `__container_details__.config`.
    pub config_masked: BTreeMap<String, String>,
}

/// Docker's `mode` option.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// The container waits.
    #[default]
    Blocking,
    /// The container never waits; entries are dropped.
    NonBlocking,
}

/// Who uploads a container's records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credentials {
    /// The default of the shipper's configuration.
    Default,
    /// A source in the shipper's configuration.
    Named(String),
    /// The container's own key.
    Inline {
        /// `secret_id`.
        secret_id: Secret,
        /// `secret_key`.
        secret_key: Secret,
    },
}

/// Text that `Debug` does not show.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(String);

/// How lines become records of several lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Multiline {
    /// Matches the first line of a record.
    pub pattern: String,
    /// Ends a record that gets no further line.
    pub timeout: Duration,
}

/// What Docker calls the attributes of a log message.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attributes {
    /// `labels`: names, not trimmed.
    pub labels: Vec<String>,
    /// `labels-regex`, not compiled.
    pub labels_regex: Option<String>,
    /// `env`: names, not trimmed.
    pub env: Vec<String>,
    /// `env-regex`, not compiled.
    pub env_regex: Option<String>,
    /// `tag`, a Go template, not compiled.
    pub tag: Option<String>,
}

/// A detail of the container that `append_container_details_keys` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names say it all")]
pub enum ContainerDetail {
    ContainerId,
    ContainerName,
    ContainerImageId,
    ContainerImageName,
    ContainerCreated,
    ContainerEnv,
    ContainerLabels,
    ContainerEntrypoint,
    ContainerArgs,
    LogPath,
    DaemonName,
    Config,
}

/// What is wrong with a container's options: one sentence per fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .faults.join("; "))]
pub struct LogOptsError {
    /// The faults; never empty.
    pub faults: Vec<String>,
}

impl LogOpts {
    /// Parses what Docker passes as `Info.Config`.
    ///
    /// # Errors
    /// All faults of all options together, in the order of [`OPTIONS`], unknown options last.
    pub fn parse(config: &HashMap<String, String>) -> Result<Self, LogOptsError> {
        let mut reader = Reader::new(config);
        let opts = Self::read(&mut reader);
        reader.check_dockers_cache();
        reader.check_names();
        reader.finish(opts)
    }

    fn read(reader: &mut Reader<'_>) -> Self {
        Self {
            endpoint: reader.checked("endpoint", is_endpoint, ENDPOINT_RULE),
            topic_id: reader.checked("topic_id", is_name, NAME_RULE),
            credentials: reader.credentials(),
            retries: reader.count("retries"),
            timeout: reader.duration(
                "timeout",
                Duration::from_millis(1)..=Duration::from_hours(1),
            ),
            template: reader.template(),
            json: reader.choice("json") != Some("off"),
            filter_regex: reader.text("filter-regex"),
            exclude_regex: reader.text("exclude-regex"),
            multiline: reader.multiline(),
            instance_info: reader.text("instance_info"),
            container_details: reader.details(),
            record_id: reader.flag("record-id").unwrap_or(false),
            attributes: reader.attributes(),
            no_file: reader.flag("no-file").unwrap_or(false),
            keep_file: reader.flag("keep-file").unwrap_or(true),
            journal_bytes_max: reader.journal_size(),
            mode: match reader.choice("mode") {
                Some("non-blocking") => Mode::NonBlocking,
                _ => Mode::Blocking,
            },
            config_masked: reader.masked(),
        }
    }
}

impl Default for LogOpts {
    /// Returns what holds for a container without options.
    fn default() -> Self {
        Self::parse(&HashMap::new()).expect("no option is a must")
    }
}

impl Secret {
    /// Returns the text. The caller keeps it out of logs, errors and metrics.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl ContainerDetail {
    /// All details, in the order of [`Self::NAMES`].
    pub const ALL: [Self; 12] = [
        Self::ContainerId,
        Self::ContainerName,
        Self::ContainerImageId,
        Self::ContainerImageName,
        Self::ContainerCreated,
        Self::ContainerEnv,
        Self::ContainerLabels,
        Self::ContainerEntrypoint,
        Self::ContainerArgs,
        Self::LogPath,
        Self::DaemonName,
        Self::Config,
    ];

    /// The names, as the option has them.
    pub const NAMES: &[&str] = &[
        "container_id",
        "container_name",
        "container_image_id",
        "container_image_name",
        "container_created",
        "container_env",
        "container_labels",
        "container_entrypoint",
        "container_args",
        "log_path",
        "daemon_name",
        "config",
    ];

    /// Returns the name, as the option and the field have it.
    pub fn name(self) -> &'static str {
        Self::ALL
            .iter()
            .zip(Self::NAMES)
            .find_map(|(detail, name)| (*detail == self).then_some(*name))
            .unwrap_or_default()
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|detail| detail.name() == name)
    }
}

const ENDPOINT_RULE: &str = "must be a host such as ap-guangzhou.cls.tencentcs.com, with http:// or https:// before it \
     and a port behind it if need be, and no path";
const NAME_RULE: &str = "must be 1 to 128 letters, digits, dots, dashes and underscores";

fn is_name(text: &str) -> bool {
    text.len() <= 128
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

fn is_secret(text: &str) -> bool {
    text.len() <= 512 && text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn is_endpoint(text: &str) -> bool {
    let rest = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"))
        .unwrap_or(text);
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (rest, None),
    };
    let is_port =
        |port: &str| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok();
    let is_v6 = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .is_some_and(|host| host.parse::<std::net::Ipv6Addr>().is_ok());
    let is_host = is_v6
        || host.len() <= 253
            && host.split('.').all(|label| {
                (1..=63).contains(&label.len())
                    && label
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
            });
    is_host && port.is_none_or(is_port)
}

/// Reads options by name and collects what is wrong with them.
struct Reader<'a> {
    config: &'a HashMap<String, String>,
    /// With the option's place in the table, so that they can be put in its order.
    faults: Vec<(usize, String)>,
}

impl<'a> Reader<'a> {
    fn new(config: &'a HashMap<String, String>) -> Self {
        Self {
            config,
            faults: Vec::new(),
        }
    }

    fn finish(mut self, opts: LogOpts) -> Result<LogOpts, LogOptsError> {
        if self.faults.is_empty() {
            return Ok(opts);
        }
        self.faults.sort();
        let faults = self.faults.into_iter().map(|(_, fault)| fault).collect();
        Err(LogOptsError { faults })
    }

    /// Returns the value of a known option, unless it is empty or far too long.
    fn value(&mut self, name: &str) -> Option<&'a str> {
        debug_assert!(find(name).is_some(), "{name} is in the table");
        let value = self.config.get(name).filter(|value| !value.is_empty())?;
        if value.len() > VALUE_BYTES_MAX {
            self.fault(
                name,
                &format!("has {} bytes, the limit is {VALUE_BYTES_MAX}", value.len()),
            );
            return None;
        }
        Some(value)
    }

    fn fault(&mut self, name: &str, rule: &str) {
        let place = OPTIONS.iter().position(|spec| spec.name == name);
        let value = self.config.get(name).map(String::as_str);
        self.faults
            .push((place.unwrap_or(OPTIONS.len()), fault(name, value, rule)));
    }

    fn text(&mut self, name: &str) -> Option<String> {
        self.value(name).map(str::to_owned)
    }

    fn checked(&mut self, name: &str, is_good: fn(&str) -> bool, rule: &str) -> Option<String> {
        let value = self.value(name)?;
        if !is_good(value) {
            self.fault(name, rule);
            return None;
        }
        Some(value.to_owned())
    }

    /// Parses a value; if that fails the rule is a fault.
    fn parsed<T>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&str) -> Option<T>,
        rule: &str,
    ) -> Option<T> {
        let value = self.value(name)?;
        let parsed = parse(value);
        if parsed.is_none() {
            self.fault(name, rule);
        }
        parsed
    }

    fn flag(&mut self, name: &str) -> Option<bool> {
        self.parsed(name, value::parse_bool, "must be true or false")
    }

    fn count(&mut self, name: &str) -> Option<u32> {
        let parse = |text: &str| {
            let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
            is_number.then(|| text.parse().ok()).flatten()
        };
        self.parsed(name, parse, "must be a whole number from 0 to 4294967295")
    }

    fn size(&mut self, name: &str, units: Units) -> Option<u64> {
        self.parsed(
            name,
            |text| value::parse_size(text, units),
            "must be a size such as 512k, 10m or 1g",
        )
    }

    fn duration(
        &mut self,
        name: &str,
        range: std::ops::RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let parse =
            |text: &str| value::parse_duration(text).filter(|duration| range.contains(duration));
        let rule = format!(
            "must be a duration such as 300ms, 10s or 1m30s, from {:?} to {:?}",
            range.start(),
            range.end()
        );
        self.parsed(name, parse, &rule)
    }

    fn choice(&mut self, name: &str) -> Option<&'static str> {
        let Some(Kind::Choice(words)) = find(name).map(|spec| spec.kind) else {
            return None;
        };
        let parse = |text: &str| words.iter().find(|word| **word == text).copied();
        self.parsed(name, parse, &format!("must be {}", words.join(" or ")))
    }

    fn names(&mut self, name: &str) -> Vec<String> {
        let value = self.value(name).unwrap_or_default();
        value
            .split(',')
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect()
    }

    fn attributes(&mut self) -> Attributes {
        Attributes {
            labels: self.names("labels"),
            labels_regex: self.text("labels-regex"),
            env: self.names("env"),
            env_regex: self.text("env-regex"),
            tag: self.text("tag"),
        }
    }

    fn multiline(&mut self) -> Option<Multiline> {
        let range = Duration::from_millis(1)..=Duration::from_mins(1);
        let timeout = self.duration("multiline-timeout", range);
        Some(Multiline {
            pattern: self.text("multiline-pattern")?,
            timeout: timeout.unwrap_or(Duration::from_secs(1)),
        })
    }

    fn journal_size(&mut self) -> Option<u64> {
        let bytes = self.size("journal-size", Units::Binary)?;
        if bytes < JOURNAL_BYTES_MIN {
            self.fault("journal-size", "must be at least 1m");
            return None;
        }
        Some(bytes)
    }

    fn details(&mut self) -> Vec<ContainerDetail> {
        const OPTION: &str = "append_container_details_keys";
        let mut details = Vec::new();
        for name in self.value(OPTION).unwrap_or_default().split(',') {
            let name = name.trim();
            match ContainerDetail::from_name(name) {
                Some(detail) if !details.contains(&detail) => details.push(detail),
                Some(_) => {}
                None if name.is_empty() => {}
                None => {
                    let hint = hint(name, ContainerDetail::NAMES.iter().copied());
                    let all = ContainerDetail::NAMES.join(", ");
                    let name = shorten(name);
                    self.fault(OPTION, &format!("unknown key {name}{hint} (known: {all})"));
                }
            }
        }
        details
    }

    /// Parses the template. A tag is known if it is one of [`TAGS`] or an attribute that an option
    /// names; with a `-regex` option only the shipper can tell.
    fn template(&mut self) -> Template {
        let text = self.value("template").unwrap_or("{log}");
        let template = Template::parse(text);
        if self.value("labels-regex").is_some() || self.value("env-regex").is_some() {
            return template;
        }
        let attributes: Vec<&str> = [self.value("labels"), self.value("env")]
            .into_iter()
            .flatten()
            .flat_map(|names| names.split(','))
            .collect();
        let known = || TAGS.iter().copied().chain(attributes.iter().copied());
        for tag in template.tags() {
            if !known().any(|name| name == tag) {
                self.fault("template", &unknown_tag_rule(tag, known()));
            }
        }
        template
    }

    fn credentials(&mut self) -> Credentials {
        const SECRET_RULE: &str = "must be up to 512 printable ASCII characters without spaces";
        let is_given = [self.value("secret_id"), self.value("secret_key")].map(|v| v.is_some());
        let name = self.checked("credentials", is_name, NAME_RULE);
        let secret_id = self.checked("secret_id", is_secret, SECRET_RULE);
        let secret_key = self.checked("secret_key", is_secret, SECRET_RULE);
        match is_given {
            [true, false] => self.fault("secret_id", "needs secret_key as well"),
            [false, true] => self.fault("secret_key", "needs secret_id as well"),
            [true, true] if name.is_some() => self.fault(
                "credentials",
                "can't be combined with secret_id and secret_key; credentials= unsets it",
            ),
            _ => {}
        }
        match (secret_id, secret_key) {
            (Some(secret_id), Some(secret_key)) => Credentials::Inline {
                secret_id: secret_id.into(),
                secret_key: secret_key.into(),
            },
            _ => name.map_or(Credentials::Default, Credentials::Named),
        }
    }

    /// Checks what Docker itself reads. Docker checks part of it too late: its cache fails the
    /// start of a container after the driver has been told to start.
    fn check_dockers_cache(&mut self) {
        self.size("max-buffer-size", Units::Binary);
        self.size("max-size", Units::Decimal);
        self.size("cache-max-size", Units::Decimal);
        self.count("cache-max-file");
        self.flag("cache-compress");
        let is_off = self.flag("cache-disabled").unwrap_or(false);
        let file_count = self.count("max-file");
        let compress = self.flag("compress");
        let is_bad = file_count.is_some_and(|count| count <= 1) && compress.unwrap_or(true);
        if is_bad && !is_off {
            self.fault(
                "max-file",
                "must be at least 2, unless compress=false: Docker can't compress its only file",
            );
        }
    }

    fn check_names(&mut self) {
        let mut unknown: Vec<&String> = self
            .config
            .keys()
            .filter(|name| find(name).is_none())
            .collect();
        unknown.sort();
        for name in unknown {
            let hint = hint(name, OPTIONS.iter().map(|spec| spec.name));
            self.fault(name, &format!("unknown option{hint}"));
        }
    }

    fn masked(&self) -> BTreeMap<String, String> {
        let mask = |(name, value): (&String, &String)| {
            let is_secret = find(name).is_none_or(|spec| spec.kind == Kind::Secret);
            let shown = if is_secret { MASK } else { value };
            (name.clone(), shown.to_owned())
        };
        self.config.iter().map(mask).collect()
    }
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
fn hint<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let fold = |name: &str| name.to_ascii_lowercase().replace('_', "-");
    let folded: String = fold(name).chars().take(64).collect();
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
fn shorten(text: &str) -> String {
    const CHARS_MAX: usize = 64;
    let shown: String = text.chars().take(CHARS_MAX).collect();
    let ellipsis = if shown.len() < text.len() { "..." } else { "" };
    format!("{}{ellipsis}", shown.escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn config(options: &[(&str, &str)]) -> HashMap<String, String> {
        options
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn parse(options: &[(&str, &str)]) -> Result<LogOpts, LogOptsError> {
        LogOpts::parse(&config(options))
    }

    /// Asserts that one option with one value is what `LogOpts` says, and nothing else changes.
    fn good(name: &str, value: &str, change: impl FnOnce(&mut LogOpts)) {
        let mut expected = LogOpts::default();
        change(&mut expected);
        let is_secret = find(name).unwrap().kind == Kind::Secret;
        let shown = if is_secret { MASK } else { value };
        expected.config_masked = [(name.to_owned(), shown.to_owned())].into();
        assert_eq!(parse(&[(name, value)]), Ok(expected), "{name}={value}");
    }

    fn bad(name: &str, value: &str, fault: &str) {
        let error = parse(&[(name, value)]).expect_err(value);
        assert_eq!(error.faults, [fault], "{name}={value}");
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn where_records_go() {
        for endpoint in [
            "ap-guangzhou.cls.tencentcs.com",
            "https://ap-guangzhou.cls.tencentcs.com",
            "http://127.0.0.1:18080",
            "http://standin:80/",
            "localhost:8080",
            "[::1]:8080",
            "https://[fd00::1]",
        ] {
            good("endpoint", endpoint, |opts| opts.endpoint = some(endpoint));
        }
        for endpoint in [
            "ftp://host",
            "https://",
            "host/path",
            "ho st",
            "host:",
            "host:99999",
            "host:+80",
            "a..b",
            "user@host",
            "https://https://host",
            "[::1",
            "::1",
        ] {
            bad(
                "endpoint",
                endpoint,
                &format!("log-opt endpoint={endpoint}: {ENDPOINT_RULE}"),
            );
        }
        good("topic_id", "0f1e2d3c-4b5a", |opts| {
            opts.topic_id = some("0f1e2d3c-4b5a")
        });
        bad(
            "topic_id",
            "a b",
            &format!("log-opt topic_id=a b: {NAME_RULE}"),
        );
        good("retries", "0", |opts| opts.retries = Some(0));
        good("retries", "12", |opts| opts.retries = Some(12));
        let rule = "must be a whole number from 0 to 4294967295";
        for retries in ["-1", "+1", "1.5", "ten", "4294967296", " 1"] {
            bad(
                "retries",
                retries,
                &format!("log-opt retries={retries}: {rule}"),
            );
        }
        good("timeout", "1m30s", |opts| {
            opts.timeout = Some(Duration::from_secs(90))
        });
        good("timeout", "1h", |opts| {
            opts.timeout = Some(Duration::from_hours(1))
        });
        let rule = "must be a duration such as 300ms, 10s or 1m30s, from 1ms to 3600s";
        for timeout in ["10", "0", "0s", "-1s", "999us", "1h1ns", "forever"] {
            bad(
                "timeout",
                timeout,
                &format!("log-opt timeout={timeout}: {rule}"),
            );
        }
    }

    #[test]
    fn credentials_are_a_name_or_a_key_pair() {
        good("credentials", "prod", |opts| {
            opts.credentials = Credentials::Named("prod".into());
        });
        bad(
            "credentials",
            "a/b",
            &format!("log-opt credentials=a/b: {NAME_RULE}"),
        );
        let pair = parse(&[("secret_id", "AKID1"), ("secret_key", "k3y")]).unwrap();
        assert_eq!(
            pair.credentials,
            Credentials::Inline {
                secret_id: Secret("AKID1".into()),
                secret_key: Secret("k3y".into())
            }
        );
        assert_eq!(pair.config_masked["secret_key"], MASK);
        bad(
            "secret_id",
            "AKID1",
            "log-opt secret_id=***: needs secret_key as well",
        );
        bad(
            "secret_key",
            "k3y",
            "log-opt secret_key=***: needs secret_id as well",
        );
        let both = [
            ("secret_id", "AKID1"),
            ("secret_key", "k3y"),
            ("credentials", "prod"),
        ];
        assert_eq!(
            parse(&both).unwrap_err().to_string(),
            "log-opt credentials=prod: can't be combined with secret_id and secret_key; \
             credentials= unsets it"
        );
        let unset = [both[0], both[1], ("credentials", "")];
        assert!(parse(&unset).is_ok());
    }

    #[test]
    fn secrets_are_never_shown() {
        let shown = format!(
            "{:?}",
            parse(&[("secret_id", "AKID1"), ("secret_key", "k3y")])
        );
        assert!(
            !shown.contains("AKID1") && !shown.contains("k3y"),
            "{shown}"
        );
        let error = parse(&[
            ("secret_id", "AKID1 with a space"),
            ("secret_key", "k3y\u{e9}"),
            ("secretkey", "k3y"),
        ])
        .unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(
            !shown.contains("AKID1") && !shown.contains("k3y"),
            "{shown}"
        );
        assert_eq!(error.faults.len(), 3);
    }

    #[test]
    fn what_a_record_is() {
        good("template", "{container_name}: {log}", |opts| {
            opts.template = Template::parse("{container_name}: {log}");
        });
        good("json", "auto", |_| {});
        good("json", "off", |opts| opts.json = false);
        bad("json", "on", "log-opt json=on: must be auto or off");
        good("filter-regex", "a+", |opts| opts.filter_regex = some("a+"));
        good("exclude-regex", "^b", |opts| {
            opts.exclude_regex = some("^b")
        });
        good("multiline-pattern", r"^\d", |opts| {
            opts.multiline = Some(Multiline {
                pattern: r"^\d".into(),
                timeout: Duration::from_secs(1),
            });
        });
        good("multiline-timeout", "3s", |_| {});
        bad(
            "multiline-timeout",
            "2m",
            "log-opt multiline-timeout=2m: must be a duration such as 300ms, 10s or 1m30s, \
             from 1ms to 60s",
        );
        let both = parse(&[("multiline-pattern", "x"), ("multiline-timeout", "3s")]).unwrap();
        assert_eq!(both.multiline.unwrap().timeout, Duration::from_secs(3));
        good("instance_info", "{\"a\":1", |opts| {
            opts.instance_info = some("{\"a\":1")
        });
        good("record-id", "T", |opts| opts.record_id = true);
        bad(
            "record-id",
            "yes",
            "log-opt record-id=yes: must be true or false",
        );
    }

    #[test]
    fn tags_of_a_template_are_known() {
        let fault = parse(&[("template", "{contaner_name} {x}"), ("labels", "app")])
            .unwrap_err()
            .faults;
        let known = "(known: log, timestamp, container_id, container_full_id, container_name, \
                     image_id, image_full_id, image_name, daemon_name, source, hostname, tag, app, \
                     and each attribute that labels, labels-regex, env or env-regex asks for)";
        let mut expected = [
            format!(
                "log-opt template={{contaner_name}} {{x}}: unknown tag {{contaner_name}}, \
                 did you mean container_name? {known}"
            ),
            format!("log-opt template={{contaner_name}} {{x}}: unknown tag {{x}} {known}"),
        ];
        expected.sort();
        assert_eq!(fault, expected);
        for (option, value) in [("labels", "x,app"), ("env", "app"), ("env-regex", "a")] {
            assert!(
                parse(&[("template", "{app}"), (option, value)]).is_ok(),
                "{option}"
            );
        }
    }

    #[test]
    fn details_are_named() {
        good(
            "append_container_details_keys",
            " container_id,config,,container_id ",
            |opts| {
                opts.container_details =
                    vec![ContainerDetail::ContainerId, ContainerDetail::Config];
            },
        );
        let all = ContainerDetail::NAMES.join(",");
        good("append_container_details_keys", &all, |opts| {
            opts.container_details = ContainerDetail::ALL.to_vec();
        });
        bad(
            "append_container_details_keys",
            "container_nam",
            &format!(
                "log-opt append_container_details_keys=container_nam: unknown key container_nam, \
                 did you mean container_name? (known: {})",
                ContainerDetail::NAMES.join(", ")
            ),
        );
    }

    #[test]
    fn attributes_are_not_trimmed() {
        good("labels", "A, a.b", |opts| {
            opts.attributes.labels = vec!["A".into(), " a.b".into()];
        });
        good("env", "A,,B", |opts| {
            opts.attributes.env = vec!["A".into(), "B".into()]
        });
        good("labels-regex", "^a", |opts| {
            opts.attributes.labels_regex = some("^a")
        });
        good("env-regex", "^a", |opts| {
            opts.attributes.env_regex = some("^a")
        });
        good("tag", "{{.Name}}", |opts| {
            opts.attributes.tag = some("{{.Name}}")
        });
    }

    #[test]
    fn the_journal() {
        good("no-file", "1", |opts| opts.no_file = true);
        good("keep-file", "False", |opts| opts.keep_file = false);
        bad(
            "no-file",
            "maybe",
            "log-opt no-file=maybe: must be true or false",
        );
        bad(
            "keep-file",
            "TrUe",
            "log-opt keep-file=TrUe: must be true or false",
        );
        good("mode", "blocking", |_| {});
        good("mode", "non-blocking", |opts| opts.mode = Mode::NonBlocking);
        bad(
            "mode",
            "nonblocking",
            "log-opt mode=nonblocking: must be blocking or non-blocking",
        );
        good("journal-size", "1m", |opts| {
            opts.journal_bytes_max = Some(1 << 20)
        });
        good("journal-size", "1.5g", |opts| {
            opts.journal_bytes_max = Some(3 << 29)
        });
        bad(
            "journal-size",
            "1023k",
            "log-opt journal-size=1023k: must be at least 1m",
        );
        bad(
            "journal-size",
            "banana",
            "log-opt journal-size=banana: must be a size such as 512k, 10m or 1g",
        );
    }

    #[test]
    fn dockers_own_options_are_accepted_and_checked() {
        let size = "must be a size such as 512k, 10m or 1g";
        for name in ["max-size", "max-buffer-size", "cache-max-size"] {
            good(name, "10m", |_| {});
            bad(name, "x", &format!("log-opt {name}=x: {size}"));
        }
        let count = "must be a whole number from 0 to 4294967295";
        for name in ["max-file", "cache-max-file"] {
            good(name, "3", |_| {});
            bad(name, "x", &format!("log-opt {name}=x: {count}"));
        }
        for name in ["compress", "cache-disabled", "cache-compress"] {
            good(name, "false", |_| {});
            bad(
                name,
                "x",
                &format!("log-opt {name}=x: must be true or false"),
            );
        }
        bad(
            "max-file",
            "1",
            "log-opt max-file=1: must be at least 2, unless compress=false: \
             Docker can't compress its only file",
        );
        assert!(parse(&[("max-file", "1"), ("compress", "false")]).is_ok());
        assert!(parse(&[("max-file", "1"), ("cache-disabled", "true")]).is_ok());
    }

    #[test]
    fn an_empty_value_is_as_good_as_none() {
        for spec in OPTIONS {
            good(spec.name, "", |opts| {
                opts.config_masked.clear();
            });
        }
    }

    #[test]
    fn a_value_has_a_bound() {
        let value = "x".repeat(VALUE_BYTES_MAX);
        good("instance_info", &value, |opts| {
            opts.instance_info = Some(value.clone())
        });
        let value = "x".repeat(VALUE_BYTES_MAX + 1);
        let shown = "x".repeat(64);
        bad(
            "instance_info",
            &value,
            &format!("log-opt instance_info={shown}...: has 65537 bytes, the limit is 65536"),
        );
    }

    #[test]
    fn an_unknown_option_names_the_nearest_one() {
        for (name, nearest) in [
            ("filter_regex", "filter-regex"),
            ("instance-info", "instance_info"),
            ("Topic_ID", "topic_id"),
            ("secretkey", "secret_key"),
            ("max-filee", "max-file"),
            ("label", "labels"),
            ("retrie", "retries"),
        ] {
            bad(
                name,
                "v",
                &format!("log-opt {name}=***: unknown option, did you mean {nearest}?"),
            );
        }
        bad(
            "gelf-address",
            "v",
            "log-opt gelf-address=***: unknown option",
        );
        let long = "n".repeat(10_000);
        let shown = "n".repeat(64);
        bad(
            &long,
            "v",
            &format!("log-opt {shown}...=***: unknown option"),
        );
        bad("a\nb", "v", "log-opt a\\nb=***: unknown option");
    }

    #[test]
    fn five_faults_are_reported_together() {
        let error = parse(&[
            ("endpoint", "ap-guangzhou.cls.tencentcs.com"),
            ("secret_key", "s3cr3t"),
            ("timeout", "10 parsecs"),
            ("keep-file", "maybe"),
            ("template", "{contaner_id}: {log}"),
            ("filter_regex", "ERROR"),
        ])
        .unwrap_err();
        insta::assert_snapshot!(error.faults.join("\n"), @r"
        log-opt secret_key=***: needs secret_id as well
        log-opt timeout=10 parsecs: must be a duration such as 300ms, 10s or 1m30s, from 1ms to 3600s
        log-opt template={contaner_id}: {log}: unknown tag {contaner_id}, did you mean container_id? (known: log, timestamp, container_id, container_full_id, container_name, image_id, image_full_id, image_name, daemon_name, source, hostname, tag, and each attribute that labels, labels-regex, env or env-regex asks for)
        log-opt keep-file=maybe: must be true or false
        log-opt filter_regex=***: unknown option, did you mean filter-regex?
        ");
        assert_eq!(error.to_string(), error.faults.join("; "));
    }

    #[test]
    fn the_table_is_complete_and_in_one_form() {
        for spec in OPTIONS {
            assert_eq!(
                OPTIONS
                    .iter()
                    .filter(|other| other.name == spec.name)
                    .count(),
                1
            );
            assert!(
                !spec.doc.is_empty() && !spec.doc.ends_with('.'),
                "{}",
                spec.name
            );
            // A default in the table is what holds without the option.
            let given = parse(&[(spec.name, spec.default)]);
            let given = given.unwrap_or_else(|error| panic!("{error}"));
            let ours = matches!(spec.name, "retries" | "timeout");
            if !ours {
                let given = LogOpts {
                    config_masked: BTreeMap::new(),
                    ..given
                };
                assert_eq!(given, LogOpts::default(), "{}", spec.name);
            }
        }
    }

    proptest! {
        #[test]
        fn no_options_panic_and_faults_are_bounded(
            options in prop::collection::hash_map(
                prop_oneof![
                    prop::sample::select(OPTIONS).prop_map(|spec| spec.name.to_owned()),
                    "\\PC{0,20}",
                ],
                "\\PC{0,40}|[0-9.]{1,5}[a-z]{0,3}|\\{[a-z_]{1,20}\\}",
                0..40,
            ),
        ) {
            let unknown = options.keys().filter(|name| find(name).is_none()).count();
            match LogOpts::parse(&options) {
                Ok(opts) => {
                    prop_assert_eq!(unknown, 0);
                    prop_assert_eq!(opts.config_masked.len(), options.len());
                }
                Err(error) => {
                    prop_assert!(error.faults.len() >= unknown.max(1));
                    let are_short = error.faults.iter().all(|fault| fault.len() < 2_000);
                    prop_assert!(are_short && !error.to_string().contains('\n'));
                }
            }
        }
    }
}
