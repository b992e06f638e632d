//! `[[rules]]`: options for containers, by what they are, that can change while they run.

use std::collections::{BTreeMap, HashMap};

use proto::log_opts::{Consumer, LogOpts, find};
use toml::Value;

use super::{Faults, Section};

/// Rules of a configuration.
pub const RULES_MAX: usize = 1_000;

/// The label that `compose_service` stands for.
const COMPOSE_SERVICE: &str = "com.docker.compose.service";

/// Options of Docker's attributes: the driver sends labels and variables only as far as the container's
/// own options ask for them.
const ATTRIBUTES: [&str; 4] = ["labels", "labels-regex", "env", "env-regex"];

/// What holds for the containers that fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleConfig {
    /// Its name, for messages.
    pub name: String,
    /// Which containers it is for.
    pub fits: Condition,
    /// Which of them it is not for.
    pub unless: Option<Condition>,
    /// Options and their values.
    pub set: BTreeMap<String, String>,
    /// Whether it goes before the container's own options.
    pub is_override: bool,
}

/// What has to be so of a container, all of it. Patterns: `*` is any text, `?` one character.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Condition {
    /// Pattern of the tenant's name.
    pub tenant: Option<String>,
    /// Pattern of the host's name.
    pub host: Option<String>,
    /// Pattern of the container's name, without Docker's slash.
    pub container: Option<String>,
    /// Pattern of the image's name, as the user gave it.
    pub image: Option<String>,
    /// Patterns of labels, by their name.
    pub labels: BTreeMap<String, String>,
}

/// Reads all rules.
pub(super) fn read(root: &mut Section, faults: &mut Faults) -> Vec<RuleConfig> {
    let tables = match root.table.remove("rules") {
        None => return Vec::new(),
        Some(Value::Array(tables)) => tables,
        Some(other) => {
            let found = other.type_str();
            faults
                .0
                .push(format!("rules is a {found}, it must be [[rules]]"));
            return Vec::new();
        }
    };
    if tables.len() > RULES_MAX {
        let count = tables.len();
        faults
            .0
            .push(format!("there are {count} [[rules]], at most {RULES_MAX}"));
    }
    let mut rules: Vec<RuleConfig> = Vec::new();
    for (index, value) in tables.into_iter().enumerate().take(RULES_MAX) {
        let path = format!("rules[{index}]");
        let Value::Table(table) = value else {
            let found = value.type_str();
            faults
                .0
                .push(format!("{path} is a {found}, it must be a table"));
            continue;
        };
        let rule = read_rule(Section::new(&path, table), faults);
        if let Some(rule) = &rule
            && rules.iter().any(|other| other.name == rule.name)
        {
            let name = &rule.name;
            faults.0.push(format!(
                "{path}.name = \"{name}\": another rule has this name"
            ));
        }
        rules.extend(rule);
    }
    rules
}

fn read_rule(mut section: Section, faults: &mut Faults) -> Option<RuleConfig> {
    let name = section.text("name", faults);
    if name.is_none() {
        faults.0.push(format!("{}.name is missing", section.path));
    }
    let fits = read_condition(&mut section, "match", faults);
    if fits.is_none() {
        faults.0.push(format!(
            "{}.match is missing: match = {{ container = \"*\" }} fits all containers",
            section.path
        ));
    }
    let has_unless = section.table.contains_key("unless");
    let unless = read_condition(&mut section, "unless", faults);
    if has_unless && unless.is_none() {
        faults.0.push(format!(
            "{}.unless is empty: it would fit all",
            section.path
        ));
    }
    let set = read_set(section.section("set", faults), faults);
    let is_override = section.flag("override", faults);
    section.end(&["name", "match", "unless", "set", "override"], faults);
    Some(RuleConfig {
        name: name?,
        fits: fits?,
        unless,
        set,
        is_override,
    })
}

/// Reads a condition; `None` if it asks for nothing.
fn read_condition(rule: &mut Section, key: &str, faults: &mut Faults) -> Option<Condition> {
    let mut section = rule.section(key, faults);
    let [tenant, host, container, image, service] =
        ["tenant", "host", "container", "image", "compose_service"]
            .map(|key| section.text(key, faults));
    let mut label = section.section("label", faults);
    let names: Vec<String> = label.table.keys().cloned().collect();
    let labels = names.into_iter();
    let mut labels: BTreeMap<String, String> = labels
        .filter_map(|name| Some((name.clone(), label.text(&name, faults)?)))
        .collect();
    labels.extend(service.map(|pattern| (COMPOSE_SERVICE.to_owned(), pattern)));
    let known = [
        "tenant",
        "host",
        "container",
        "image",
        "compose_service",
        "label",
    ];
    section.end(&known, faults);
    let condition = Condition {
        tenant,
        host,
        container,
        image,
        labels,
    };
    (condition != Condition::default()).then_some(condition)
}

/// Reads the options that a rule sets. Each must be good, and all must be together.
fn read_set(section: Section, faults: &mut Faults) -> BTreeMap<String, String> {
    let path = section.path;
    let mut set = BTreeMap::new();
    for (option, value) in section.table {
        if let Some(rule) = why_not_set(&option) {
            faults.0.push(format!("{path}.{option}: {rule}"));
            continue;
        }
        let value = match value {
            Value::String(text) => text,
            Value::Boolean(flag) => flag.to_string(),
            Value::Integer(number) => number.to_string(),
            other => {
                let found = other.type_str();
                faults
                    .0
                    .push(format!("{path}.{option} is a {found}, it must be a string"));
                continue;
            }
        };
        set.insert(option, value);
    }
    if set.is_empty() {
        faults.0.push(format!("{path} sets no option"));
    }
    let log_opts: HashMap<String, String> = set.clone().into_iter().collect();
    if let Err(error) = LogOpts::parse(&log_opts) {
        let named = error.faults.iter();
        faults
            .0
            .extend(named.map(|fault| format!("{path}: {fault}")));
    }
    set
}

/// Returns why a rule can't set an option, if that is so. An unknown one is not judged here.
fn why_not_set(option: &str) -> Option<&'static str> {
    let spec = find(option)?;
    if matches!(option, "secret_id" | "secret_key") {
        return Some("keys stand in [credentials.NAME], set credentials = \"NAME\"");
    }
    if ATTRIBUTES.contains(&option) {
        return Some(
            "a rule can't set it: labels and variables leave the host only if the container's own \
             options ask for them",
        );
    }
    match spec.consumer {
        Consumer::Shipper => None,
        Consumer::Driver | Consumer::Docker => {
            Some("a rule can't set it: it is about the host, not about records or their target")
        }
    }
}

/// Returns the table of a file that has rules only, for tests.
#[cfg(test)]
pub(crate) fn rules_of(text: &str) -> Result<Vec<RuleConfig>, String> {
    let table: toml::Table = text.parse().expect("TOML");
    let config = super::Config::from_table(table, std::iter::empty());
    config
        .map(|config| config.rules)
        .map_err(|faults| faults.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[[rules]]\nname = \"a\"\nmatch = { container = \"web-*\" }\n";

    fn bad(text: &str, fault: &str) {
        assert_eq!(rules_of(text).unwrap_err(), fault, "{text}");
    }

    #[test]
    fn a_rule_says_who_and_what() {
        let text = "[[rules]]\nname = \"nginx\"\n\
            match = { container = \"web-*\", image = \"nginx:*\", compose_service = \"w?b\", \
            host = \"h\", tenant = \"t\", label = { tier = \"front\" } }\n\
            unless = { container = \"web-test-*\" }\n\
            set = { topic_id = \"x\", parse = \"nginx\", retries = 3, record-id = true }\n\
            override = true\n";
        let some = |text: &str| Some(text.to_owned());
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let expected = RuleConfig {
            name: "nginx".to_owned(),
            fits: Condition {
                tenant: some("t"),
                host: some("h"),
                container: some("web-*"),
                image: some("nginx:*"),
                labels: [("tier", "front"), (COMPOSE_SERVICE, "w?b")]
                    .map(owned)
                    .into(),
            },
            unless: Some(Condition {
                container: some("web-test-*"),
                ..Condition::default()
            }),
            set: [
                ("topic_id", "x"),
                ("parse", "nginx"),
                ("retries", "3"),
                ("record-id", "true"),
            ]
            .map(owned)
            .into(),
            is_override: true,
        };
        assert_eq!(rules_of(text), Ok(vec![expected]));
        assert_eq!(rules_of(""), Ok(Vec::new()));
    }

    #[test]
    fn faults_name_rule_and_option() {
        let with = |set: &str| format!("{GOOD}set = {{ {set} }}\n");
        bad("rules = 1", "rules is a integer, it must be [[rules]]");
        bad(
            "[[rules]]\nset = { json = \"off\" }",
            "rules[0].name is missing; rules[0].match is missing: match = { container = \"*\" } fits all \
             containers",
        );
        bad(GOOD, "rules[0].set sets no option");
        bad(
            &with("topic = \"x\""),
            "rules[0].set: log-opt topic=***: unknown option, did you mean topic_id?",
        );
        bad(
            &with("parse = \"xml\"").replace("web-*", "*"),
            "rules[0].set: log-opt parse=xml: must be auto or json or logfmt or regex or delimiter or \
             nginx or off",
        );
        bad(
            &with("json = \"off\", secret_id = \"AKID\""),
            "rules[0].set.secret_id: keys stand in [credentials.NAME], set credentials = \"NAME\"",
        );
        bad(
            &with("json = \"off\", mode = \"blocking\""),
            "rules[0].set.mode: a rule can't set it: it is about the host, not about records or their \
             target",
        );
        bad(
            &with("json = \"off\", labels = \"a\""),
            "rules[0].set.labels: a rule can't set it: labels and variables leave the host only if the \
             container's own options ask for them",
        );
        let twice = with("json = \"off\"");
        bad(
            &format!("{twice}unless = {{}}\n{twice}"),
            "rules[0].unless is empty: it would fit all; rules[1].name = \"a\": another rule has this \
             name",
        );
        bad(
            &format!("{}colour = \"red\"\n", with("json = \"off\"")),
            "rules[0].colour is not a setting, known: name, match, unless, set, override",
        );
    }
}
