//! A container's options as the rest of the product sees them, and how each is read.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::detail::ContainerDetail;
use super::fault::{LogOptsError, hint, shorten, unknown_tag_rule};
use super::masks::MASKS;
use super::reader::Reader;
use super::secret::Secret;
use super::syntax::{
    CONTENT_KEY_RULE, ENDPOINT_RULE, KEYS_RULE, NAME_RULE, RENAMES_RULE, is_content_key,
    is_endpoint, is_key, is_name, is_secret,
};
use super::template::{TAGS, Template};
use super::value::Units;
use crate::go_regex;

/// Smallest `journal-size`: a few segments have to fit.
pub const JOURNAL_BYTES_MIN: u64 = 1 << 20;

/// Bytes of `mask-with`.
const MASK_WITH_BYTES_MAX: usize = 32;

/// Bytes of `parse-delimiter`.
const DELIMITER_BYTES_MAX: usize = 16;

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
    /// `parse` and what belongs to it, and `json`: how the text becomes fields.
    pub parse: Parse,
    /// `encoding`: name of the encoding of the container's text; `None`: UTF-8.
    pub encoding: Option<String>,
    /// `filter-regex`, in Go's syntax.
    pub filter_regex: Option<String>,
    /// `exclude-regex`, in Go's syntax.
    pub exclude_regex: Option<String>,
    /// `multiline-pattern`, in Go's syntax, and `multiline-timeout`.
    pub multiline: Option<Multiline>,
    /// `keep-keys`: patterns of the keys that are kept; empty: all.
    pub keep_keys: Vec<String>,
    /// `drop-keys`: patterns of keys.
    pub drop_keys: Vec<String>,
    /// `rename-keys`: old and new key.
    pub rename_keys: Vec<(String, String)>,
    /// `content-key`: key of text that is no field.
    pub content_key: String,
    /// `mask`: names of [`MASKS`], in their order.
    pub masks: Vec<&'static str>,
    /// `mask-regex`, in Go's syntax.
    pub mask_regex: Option<String>,
    /// `mask-with`: what stands in the place of what masks take out.
    pub mask_with: String,
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

/// How a record's text becomes fields.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Parse {
    /// It never does.
    Off,
    /// If it is a JSON object.
    #[default]
    Auto,
    /// As a JSON object.
    Json,
    /// As pairs `key=value`.
    Logfmt,
    /// By the named groups of this pattern, in Go's syntax: `parse-regex`.
    Regex(String),
    /// By what stands between its values.
    Delimiter {
        /// `parse-delimiter`; never empty.
        delimiter: String,
        /// `parse-keys`; never empty. The last one takes the rest of the text.
        keys: Vec<String>,
    },
    /// As a line of an access log of nginx or Apache.
    Nginx,
}

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
    /// `labels-regex`, in Go's syntax.
    pub labels_regex: Option<String>,
    /// `env`: names, not trimmed.
    pub env: Vec<String>,
    /// `env-regex`, in Go's syntax.
    pub env_regex: Option<String>,
    /// `tag`, a Go template, not compiled.
    pub tag: Option<String>,
}

impl LogOpts {
    /// Parses what Docker passes as `Info.Config`.
    ///
    /// # Errors
    /// All faults of all options together, in the order of [`OPTIONS`](super::OPTIONS), unknown options last.
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
            parse: reader.parse(),
            encoding: reader.text("encoding"),
            filter_regex: reader.pattern("filter-regex"),
            exclude_regex: reader.pattern("exclude-regex"),
            multiline: reader.multiline(),
            keep_keys: reader.patterns("keep-keys"),
            drop_keys: reader.patterns("drop-keys"),
            rename_keys: reader.renames("rename-keys"),
            content_key: {
                let key = reader.checked("content-key", is_content_key, CONTENT_KEY_RULE);
                key.unwrap_or_else(|| "content".to_owned())
            },
            masks: reader.masks(),
            mask_regex: reader.pattern("mask-regex"),
            mask_with: reader.mask_with(),
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

/// Options that are made of several, or have rules of their own.
impl Reader<'_> {
    fn attributes(&mut self) -> Attributes {
        Attributes {
            labels: self.names("labels"),
            labels_regex: self.pattern("labels-regex"),
            env: self.names("env"),
            env_regex: self.pattern("env-regex"),
            tag: self.text("tag"),
        }
    }

    fn multiline(&mut self) -> Option<Multiline> {
        let range = Duration::from_millis(1)..=Duration::from_mins(1);
        let timeout = self.duration("multiline-timeout", range);
        Some(Multiline {
            pattern: self.pattern("multiline-pattern")?,
            timeout: timeout.unwrap_or(Duration::from_secs(1)),
        })
    }

    /// Reads `parse` and the options that belong to it. What belongs to another value than the one that is
    /// set does nothing: it may come from the daemon's defaults.
    fn parse(&mut self) -> Parse {
        let is_json_off = self.choice("json") == Some("off");
        let pattern = self.groups("parse-regex");
        let delimiter = self.delimiter("parse-delimiter");
        let keys = self.keys("parse-keys");
        let form = self.choice("parse");
        if form.is_none() {
            for (option, form) in [
                ("parse-regex", "regex"),
                ("parse-delimiter", "delimiter"),
                ("parse-keys", "delimiter"),
            ] {
                if self.value(option).is_some() {
                    self.fault(option, &format!("needs parse={form} as well"));
                }
            }
        }
        let form = form.unwrap_or(if is_json_off { "off" } else { "auto" });
        if is_json_off && matches!(form, "json" | "auto") {
            self.fault("parse", "can't be combined with json=off; json= unsets it");
        }
        match form {
            "json" => Parse::Json,
            "logfmt" => Parse::Logfmt,
            "nginx" => Parse::Nginx,
            "regex" => {
                self.need("parse", &["parse-regex"]);
                pattern.map_or(Parse::Off, Parse::Regex)
            }
            "delimiter" => {
                self.need("parse", &["parse-delimiter", "parse-keys"]);
                match (delimiter, keys) {
                    (Some(delimiter), Some(keys)) => Parse::Delimiter { delimiter, keys },
                    _ => Parse::Off,
                }
            }
            "auto" => Parse::Auto,
            _ => Parse::Off,
        }
    }

    /// Returns a list of patterns of keys.
    fn patterns(&mut self, option: &str) -> Vec<String> {
        let patterns = self.value(option).unwrap_or_default().split(',');
        let patterns = patterns.map(str::trim).filter(|text| !text.is_empty());
        patterns.map(str::to_owned).collect()
    }

    /// Returns a list of `old=new`.
    fn renames(&mut self, option: &str) -> Vec<(String, String)> {
        let mut renames: Vec<(String, String)> = Vec::new();
        for text in self.patterns(option) {
            let pair = text
                .split_once('=')
                .map(|(old, new)| (old.trim(), new.trim()));
            match pair {
                Some((old, new)) if is_key(new) && renames.iter().all(|(key, _)| key != old) => {
                    renames.push((old.to_owned(), new.to_owned()));
                }
                _ => {
                    self.fault(option, RENAMES_RULE);
                    return Vec::new();
                }
            }
        }
        renames
    }

    fn masks(&mut self) -> Vec<&'static str> {
        const OPTION: &str = "mask";
        let given = self.value(OPTION).unwrap_or_default().split(',');
        let given: Vec<&str> = given
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .collect();
        for name in given.iter().filter(|name| !MASKS.contains(name)) {
            let hint = hint(name, MASKS.iter().copied());
            let (name, all) = (shorten(name), MASKS.join(", "));
            self.fault(OPTION, &format!("unknown mask {name}{hint} (known: {all})"));
        }
        let known = MASKS.iter().copied();
        known.filter(|name| given.contains(name)).collect()
    }

    fn mask_with(&mut self) -> String {
        let text = self.value("mask-with").unwrap_or("***");
        if text.len() > MASK_WITH_BYTES_MAX || text.chars().any(char::is_control) {
            self.fault(
                "mask-with",
                "must be a text of at most 32 bytes without control characters",
            );
        }
        text.to_owned()
    }

    /// Asks for options that another one needs.
    fn need(&mut self, option: &str, needed: &[&str]) {
        for needed in needed {
            if self.value(needed).is_none() {
                self.fault(option, &format!("needs {needed} as well"));
            }
        }
    }

    /// Returns a pattern with at least one named group.
    fn groups(&mut self, option: &str) -> Option<String> {
        let pattern = self.pattern(option)?;
        let translated = go_regex::translate(&pattern).ok()?;
        if translated.groups.iter().any(Option::is_some) {
            return Some(pattern);
        }
        self.fault(
            option,
            "must have a named group, such as (?P<level>[A-Z]+), for each field",
        );
        None
    }

    /// Returns what stands between values: a text in which `\t` is a tab.
    fn delimiter(&mut self, option: &str) -> Option<String> {
        let text = self.value(option)?;
        if text.len() > DELIMITER_BYTES_MAX {
            self.fault(option, "must be a text of at most 16 bytes");
            return None;
        }
        Some(text.replace("\\t", "\t"))
    }

    /// Returns a list of keys of fields, each once.
    fn keys(&mut self, option: &str) -> Option<Vec<String>> {
        let value = self.value(option)?;
        let keys: Vec<String> = value.split(',').map(|key| key.trim().to_owned()).collect();
        let distinct: BTreeSet<&String> = keys.iter().collect();
        if distinct.len() < keys.len() || !keys.iter().all(|key| is_key(key)) {
            self.fault(option, KEYS_RULE);
            return None;
        }
        Some(keys)
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
}
