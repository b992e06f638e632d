//! What is constant per container: attributes, the values of template tags, and the fields that
//! every record of the container carries, encoded once.
//!
//! The product's own fields are `__hostname__`, `__stream__`, `__instance__.<key>`,
//! `__container_details__.<key>`, `__record_id__`, `__cut__`, `__dropped_entries__`,
//! `__dropped_bytes__`, `__dropped_reason__`, `__dropped_from__`, `__dropped_to__` and, without
//! underscores, `content`, `instance`, `left_out_options`, `escaped_bytes` and `LogParseFailure`. CLS advises against keys that begin with `_` but takes
//! them, its own samples send them; these names are those of the Go driver for CLS that users migrate from, so their
//! queries and indexes go on working. Fields that a container makes itself never begin with `_`.

use std::collections::BTreeMap;
use std::sync::Arc;

use proto::frame::Source;
use proto::log_opts::{ContainerDetail, LogOpts, fault};
use proto::relay::Container;

use super::fields::{self, Fields, Texts};
use super::pattern::{self, Pattern};
use super::{Origin, json, tag};
use crate::cls::encode::{self, put_pair};

/// Bytes of the constant fields of a record, encoded. More is a fault at start.
pub(super) const CONSTANT_FIELDS_BYTES_MAX: usize = 124 << 10;

/// Bytes of a container's attributes, encoded. More is a fault at start.
pub(super) const LOG_TAGS_BYTES_MAX: usize = 64 << 10;

/// The field for an `instance_info` that is no JSON object.
pub(super) const INSTANCE: &str = "instance";

/// Returns a container's name without Docker's leading slash.
pub(super) fn short_name(container: &Container) -> &str {
    container.name.strip_prefix('/').unwrap_or(&container.name)
}

/// Returns the first 12 digits of an id, without the prefix `sha256:`. Docker up to 29.4.0 counts
/// the prefix as part of an image's id; this is what it has shown since.
pub(super) fn short_id(id: &str) -> &str {
    let digits = id.strip_prefix("sha256:").unwrap_or(id);
    digits.get(..12).unwrap_or(digits)
}

/// Returns the attributes that the options ask for, as Docker's `ExtraAttributes` does: `labels`,
/// then `labels-regex`, `env`, `env-regex`, and at last `tag`, a later one replacing an equal
/// name. Regular expressions match anywhere in the name.
///
/// # Errors
/// One fault per regular expression and tag that does not compile.
pub(super) fn attributes(
    opts: &LogOpts,
    origin: &Origin<'_>,
) -> Result<BTreeMap<String, String>, Vec<String>> {
    let Origin { container, .. } = origin;
    let asked = &opts.attributes;
    let mut faults = Vec::new();
    let mut compile = |option: &str, pattern: &Option<String>| {
        pattern::compile_option(option, pattern.as_deref(), &mut faults)
    };
    let labels_regex = compile("labels-regex", &asked.labels_regex);
    let env_regex = compile("env-regex", &asked.env_regex);
    let info = tag::Info {
        opts,
        container,
        host: origin.host,
    };
    let tag = asked.tag.as_deref().and_then(|template| {
        let evaluated = tag::evaluate(template, info);
        let rule = |reason| format!("must be a Go template: {reason}");
        evaluated
            .map_err(|reason| faults.push(fault("tag", Some(template), &rule(reason))))
            .ok()
    });
    if !faults.is_empty() {
        return Err(faults);
    }
    let mut found = BTreeMap::new();
    let is_asked = |names: &[String], regex: &Option<Arc<Pattern>>, name: &str| {
        names.iter().any(|asked| asked == name)
            || regex
                .as_ref()
                .is_some_and(|regex| regex.is_match(name.as_bytes()))
    };
    for (name, value) in &container.labels {
        if is_asked(&asked.labels, &labels_regex, name) {
            found.insert(name.clone(), value.clone());
        }
    }
    for variable in &container.env {
        if let Some((name, value)) = variable.split_once('=')
            && is_asked(&asked.env, &env_regex, name)
        {
            found.insert(name.to_owned(), value.to_owned());
        }
    }
    found.extend(tag.map(|tag| ("tag".to_owned(), tag)));
    Ok(found)
}

/// Returns what the constant tags of a template stand for. An attribute that an option names and
/// the container lacks is empty; a built-in tag goes before an attribute of the same name.
pub(super) fn tag_values(
    opts: &LogOpts,
    container: &Container,
    host: &str,
    attributes: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut values = attributes.clone();
    for name in opts.attributes.labels.iter().chain(&opts.attributes.env) {
        values.entry(name.clone()).or_default();
    }
    let short_container_id = short_id(&container.id);
    let tag = attributes
        .get("tag")
        .map_or(short_container_id, String::as_str);
    let built_in = [
        ("container_id", short_container_id),
        ("container_full_id", &container.id),
        ("container_name", short_name(container)),
        ("image_id", short_id(&container.image_id)),
        ("image_full_id", &container.image_id),
        ("image_name", &container.image_name),
        ("daemon_name", &container.daemon_name),
        ("hostname", host),
        ("tag", tag),
    ];
    for (name, value) in built_in {
        values.insert(name.to_owned(), value.to_owned());
    }
    values
}

/// Fields that all records of one source carry, encoded as `Log.contents`.
#[derive(Debug, Default, Clone)]
pub(super) struct ConstantFields {
    pub(super) bytes: Vec<u8>,
    pub(super) value_bytes: usize,
    /// Whether [`INSTANCE`] is among them.
    pub(super) has_instance: bool,
    /// Where the fields begin that both sources share.
    shared_at: usize,
    shared_value_bytes: usize,
}

impl ConstantFields {
    /// Encodes the fields of one source.
    pub(super) fn new(opts: &LogOpts, container: &Container, host: &str, source: Source) -> Self {
        let mut fields = Self::default();
        fields.put("__stream__", source.as_str());
        fields.shared_at = fields.bytes.len();
        if !host.is_empty() {
            fields.put("__hostname__", host);
        }
        if let Some(info) = &opts.instance_info {
            fields.put_instance(info);
        }
        for detail in &opts.container_details {
            let key = format!("__container_details__.{}", detail.name());
            fields.put(&key, &detail_value(*detail, opts, container));
        }
        fields.shared_value_bytes = fields.value_bytes - source.as_str().len();
        fields
    }

    /// Adds which options are left out, and why.
    pub(super) fn with_left_out(mut self, left_out: &str) -> Self {
        if !left_out.is_empty() {
            self.put("left_out_options", left_out);
            self.shared_value_bytes += left_out.len();
        }
        self
    }

    /// Returns the fields that both sources share, and the bytes of their values.
    pub(super) fn shared(&self) -> (&[u8], usize) {
        (&self.bytes[self.shared_at..], self.shared_value_bytes)
    }

    fn put(&mut self, key: &str, value: &str) {
        put_pair(
            &mut self.bytes,
            encode::CONTENTS,
            key.as_bytes(),
            value.as_bytes(),
        );
        self.value_bytes += value.len();
    }

    fn put_instance(&mut self, info: &str) {
        let rules = fields::Rules {
            key_prefix: b"__instance__.",
            taken_key: None,
            fields_bytes_max: usize::MAX,
            values_bytes_max: usize::MAX,
        };
        let mut scratch = fields::Scratch::default();
        let fields = Fields::begin(rules, &mut scratch, &mut self.bytes);
        match json::put_members(info.as_bytes(), false, fields, &mut Texts::default()) {
            Some(written) => self.value_bytes += written.value_bytes,
            None => {
                self.put(INSTANCE, info);
                self.has_instance = true;
            }
        }
    }
}

/// Returns a detail as the Go driver renders it: lists and maps as JSON, the time without a
/// fraction, the name with its slash.
fn detail_value(detail: ContainerDetail, opts: &LogOpts, container: &Container) -> String {
    match detail {
        ContainerDetail::ContainerId => container.id.clone(),
        ContainerDetail::ContainerName => container.name.clone(),
        ContainerDetail::ContainerImageId => container.image_id.clone(),
        ContainerDetail::ContainerImageName => container.image_name.clone(),
        ContainerDetail::ContainerCreated => without_fraction(&container.created),
        ContainerDetail::ContainerEnv => to_json(&container.env),
        ContainerDetail::ContainerLabels => {
            to_json(&container.labels.iter().collect::<BTreeMap<_, _>>())
        }
        ContainerDetail::ContainerEntrypoint => container.entrypoint.clone(),
        ContainerDetail::ContainerArgs => to_json(&container.args),
        ContainerDetail::LogPath => container.log_path.clone(),
        ContainerDetail::DaemonName => container.daemon_name.clone(),
        ContainerDetail::Config => to_json(&opts.config_masked),
    }
}

fn to_json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("strings, lists and maps of strings are JSON")
}

/// Returns an RFC 3339 time in whole seconds.
pub(super) fn without_fraction(time: &str) -> String {
    match time.split_once('.') {
        Some((seconds, rest)) => {
            let zone = rest.trim_start_matches(|c: char| c.is_ascii_digit());
            format!("{seconds}{zone}")
        }
        None => time.to_owned(),
    }
}

/// Encodes attributes as `LogGroup.logTags`, sorted by name.
pub(super) fn encode_log_tags(attributes: &BTreeMap<String, String>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in attributes {
        put_pair(
            &mut bytes,
            encode::LOG_TAGS,
            name.as_bytes(),
            value.as_bytes(),
        );
    }
    bytes
}
