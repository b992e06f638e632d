//! Which options hold for a container, and where each comes from: its own, and those of the configuration's
//! rules. One pure function says so to all who ask: a check, a stream that opens, and `explain`.
//!
//! - An option of the container's goes before one of a rule, unless the rule has `override`. An empty one
//!   counts as none.
//! - Of several rules that set an option, the first one counts.
//! - `credentials`, `secret_id` and `secret_key` are one thing: who uploads.
//! - A container's keys never go with a rule's endpoint: they were given for another place. Nor are they used
//!   where a rule says who uploads.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use proto::relay::Container;
use wildmatch::WildMatch;

use crate::config::rule::{Condition, RuleConfig};

/// Options that say who uploads.
const WHO: [&str; 3] = ["credentials", "secret_id", "secret_key"];

/// The rules of a configuration, in its order.
#[derive(Debug, Default)]
pub struct Rules(Vec<Rule>);

#[derive(Debug)]
struct Rule {
    name: Arc<str>,
    fits: Matcher,
    unless: Option<Matcher>,
    set: BTreeMap<String, String>,
    is_override: bool,
}

#[derive(Debug)]
struct Matcher {
    tenant: Option<WildMatch>,
    host: Option<WildMatch>,
    container: Option<WildMatch>,
    image: Option<WildMatch>,
    labels: Vec<(String, WildMatch)>,
}

/// What rules look at.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Name of the tenant.
    pub tenant: &'a str,
    /// Name of the host.
    pub host: &'a str,
    /// The container, as far as its driver tells.
    pub container: &'a Container,
}

/// The options that hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// Options and values.
    pub log_opts: HashMap<String, String>,
    /// Which rule an option comes from, or was taken out for.
    by_rule: BTreeMap<String, Arc<str>>,
}

impl Rules {
    /// Compiles the patterns of a configuration.
    pub fn new(configs: &[RuleConfig]) -> Self {
        Self(configs.iter().map(Rule::new).collect())
    }

    /// Returns which options hold for a container that has these of its own.
    pub fn apply(&self, subject: Subject<'_>, own: &HashMap<String, String>) -> Effective {
        let mut effective = Effective {
            log_opts: own.clone(),
            by_rule: BTreeMap::new(),
        };
        for rule in self.0.iter().filter(|rule| rule.is_for(subject)) {
            for (option, value) in &rule.set {
                if rule.is_override || !is_own(own, option) {
                    effective.set(option, value, &rule.name);
                }
            }
        }
        effective.part_keys();
        effective
    }
}

impl Effective {
    /// Returns the name of the rule that an option comes from, or was taken out for.
    pub fn rule_of(&self, option: &str) -> Option<&str> {
        self.by_rule.get(option).map(AsRef::as_ref)
    }

    /// Returns the options that rules have taken out, with the rule's name.
    pub fn taken_out(&self) -> impl Iterator<Item = (&str, &str)> {
        let taken_out = |option: &&String| !self.log_opts.contains_key(*option);
        let options = self.by_rule.keys().filter(taken_out);
        options.filter_map(|option| Some((option.as_str(), self.rule_of(option)?)))
    }

    /// Adds to sentences about options which rule has set them.
    pub fn named(&self, faults: Vec<String>) -> Vec<String> {
        let named = |fault: String| {
            let option = fault.strip_prefix("log-opt ");
            let option = option.and_then(|rest| rest.split(['=', ':']).next());
            match option.and_then(|option| self.rule_of(option)) {
                Some(rule) => format!("{fault} (set by rule {rule})"),
                None => fault,
            }
        };
        faults.into_iter().map(named).collect()
    }

    fn set(&mut self, option: &str, value: &str, rule: &Arc<str>) {
        if self.by_rule.contains_key(option) {
            return;
        }
        self.log_opts.insert(option.to_owned(), value.to_owned());
        self.by_rule.insert(option.to_owned(), Arc::clone(rule));
    }

    /// Takes the container's keys out where a rule says who uploads, or to where.
    fn part_keys(&mut self) {
        let rule = ["credentials", "endpoint"]
            .into_iter()
            .find_map(|option| self.by_rule.get(option));
        let Some(rule) = rule.cloned() else {
            return;
        };
        for option in ["secret_id", "secret_key"] {
            if self.log_opts.remove(option).is_some() {
                self.by_rule.insert(option.to_owned(), Arc::clone(&rule));
            }
        }
    }
}

/// Whether a container says itself what an option says.
fn is_own(own: &HashMap<String, String>, option: &str) -> bool {
    let has = |option: &str| own.get(option).is_some_and(|value| !value.is_empty());
    if WHO.contains(&option) {
        WHO.into_iter().any(has)
    } else {
        has(option)
    }
}

impl Rule {
    fn new(config: &RuleConfig) -> Self {
        Self {
            name: config.name.as_str().into(),
            fits: Matcher::new(&config.fits),
            unless: config.unless.as_ref().map(Matcher::new),
            set: config.set.clone(),
            is_override: config.is_override,
        }
    }

    fn is_for(&self, subject: Subject<'_>) -> bool {
        let is_excepted = self.unless.as_ref().is_some_and(|but| but.fits(subject));
        self.fits.fits(subject) && !is_excepted
    }
}

impl Matcher {
    fn new(condition: &Condition) -> Self {
        let pattern = |text: &Option<String>| text.as_deref().map(WildMatch::new);
        let labels = condition.labels.iter();
        Self {
            tenant: pattern(&condition.tenant),
            host: pattern(&condition.host),
            container: pattern(&condition.container),
            image: pattern(&condition.image),
            labels: labels
                .map(|(name, text)| (name.clone(), WildMatch::new(text)))
                .collect(),
        }
    }

    fn fits(&self, subject: Subject<'_>) -> bool {
        let Subject {
            tenant,
            host,
            container,
        } = subject;
        let is = |pattern: &Option<WildMatch>, text: &str| {
            pattern.as_ref().is_none_or(|pattern| pattern.matches(text))
        };
        let has_label = |(name, pattern): &(String, WildMatch)| {
            let value = container.labels.get(name);
            value.is_some_and(|value| pattern.matches(value))
        };
        is(&self.tenant, tenant)
            && is(&self.host, host)
            && is(&self.container, container.name.trim_start_matches('/'))
            && is(&self.image, &container.image_name)
            && self.labels.iter().all(has_label)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::rule::rules_of;

    fn map(options: &[(&str, &str)]) -> HashMap<String, String> {
        let options = options.iter();
        options
            .map(|&(name, value)| (name.into(), value.into()))
            .collect()
    }

    fn container() -> Container {
        Container {
            name: "/web-1".into(),
            image_name: "nginx:1.29".into(),
            labels: map(&[("tier", "front"), ("com.docker.compose.service", "web")]),
            ..Container::default()
        }
    }

    fn apply(rules: &str, own: &[(&str, &str)]) -> Effective {
        let rules = Rules::new(&rules_of(rules).unwrap());
        let subject = Subject {
            tenant: "team-a",
            host: "host-1",
            container: &container(),
        };
        rules.apply(subject, &map(own))
    }

    /// A rule that fits, with this in it.
    fn rule(name: &str, set: &str) -> String {
        format!(
            "[[rules]]\nname = \"{name}\"\nmatch = {{ container = \"*\" }}\nset = {{ {set} }}\n"
        )
    }

    fn check(rules: &str, own: &[(&str, &str)], expected: &[(&str, &str)], by: &[(&str, &str)]) {
        let effective = apply(rules, own);
        assert_eq!(effective.log_opts, map(expected), "{rules}");
        let found = effective.by_rule.iter();
        let found: Vec<_> = found
            .map(|(option, rule)| (option.as_str(), rule.as_ref()))
            .collect();
        assert_eq!(found, by, "{rules}");
    }

    #[test]
    fn a_rule_is_for_what_fits_in_all() {
        let fits = |condition: &str, more: &str| {
            let text = format!(
                "[[rules]]\nname = \"r\"\nmatch = {{ {condition} }}\n{more}\nset = {{ json = \"off\" }}"
            );
            !apply(&text, &[]).by_rule.is_empty()
        };
        for condition in [
            "container = \"*\"",
            "container = \"web-?\"",
            "image = \"nginx:*\"",
            "host = \"host-*\"",
            "tenant = \"team-a\"",
            "compose_service = \"web\"",
            "label = { tier = \"f*\" }",
            "container = \"web-*\", image = \"nginx:*\", label = { tier = \"*\" }",
        ] {
            assert!(fits(condition, ""), "{condition}");
            let never = format!("unless = {{ {condition} }}");
            assert!(!fits("container = \"*\"", &never), "{condition}");
        }
        for condition in [
            "container = \"web\"",
            "container = \"/web-1\"",
            "image = \"nginx\"",
            "host = \"HOST-1\"",
            "tenant = \"team-b\"",
            "compose_service = \"we\"",
            "label = { absent = \"*\" }",
            "container = \"web-*\", image = \"redis:*\"",
        ] {
            assert!(!fits(condition, ""), "{condition}");
        }
        let but = "unless = { container = \"web-*\", host = \"other\" }";
        assert!(fits("container = \"*\"", but), "all of it has to be so");
    }

    #[test]
    fn who_goes_before_whom() {
        let first = rule("first", "topic_id = \"a\", parse = \"nginx\"");
        let second = rule("second", "topic_id = \"b\", json = \"off\"");
        let last = format!("{}override = true\n", rule("last", "topic_id = \"c\""));
        check("", &[("json", "off")], &[("json", "off")], &[]);
        let both = format!("{first}{second}");
        check(
            &both,
            &[("parse", "json")],
            &[("topic_id", "a"), ("parse", "json"), ("json", "off")],
            &[("json", "second"), ("topic_id", "first")],
        );
        // What is empty is as good as absent.
        let own = [("topic_id", ""), ("parse", "off")];
        let expected = [("topic_id", "a"), ("parse", "off")];
        check(&first, &own, &expected, &[("topic_id", "first")]);
        let own = [("topic_id", "own"), ("parse", "off")];
        let expected = [("topic_id", "c"), ("parse", "off")];
        check(
            &format!("{first}{last}"),
            &own,
            &expected,
            &[("topic_id", "last")],
        );
        let own = [("parse", "off")];
        let expected = [("topic_id", "a"), ("parse", "off")];
        check(
            &format!("{first}{last}"),
            &own,
            &expected,
            &[("topic_id", "first")],
        );
    }

    #[test]
    fn a_containers_keys_never_go_with_a_rules_endpoint() {
        let keys = [("secret_id", "i"), ("secret_key", "k")];
        let to = rule("to", "endpoint = \"x.example\"");
        let gone = [
            ("endpoint", "to"),
            ("secret_id", "to"),
            ("secret_key", "to"),
        ];
        check(&to, &keys, &[("endpoint", "x.example")], &gone);
        // With an endpoint of its own they stay together.
        let own = [keys[0], keys[1], ("endpoint", "own.example")];
        check(&to, &own, &own, &[]);
        let forced = format!("{to}override = true\n");
        check(&forced, &own, &[("endpoint", "x.example")], &gone);
        // Who uploads is one thing, in whatever option it stands.
        let who = rule("who", "credentials = \"prod\"");
        check(&who, &keys, &keys, &[]);
        let forced = format!("{who}override = true\n");
        let gone = [
            ("credentials", "who"),
            ("secret_id", "who"),
            ("secret_key", "who"),
        ];
        check(&forced, &keys, &[("credentials", "prod")], &gone);
        let taken_out: Vec<_> = apply(&forced, &keys)
            .taken_out()
            .map(|(option, rule)| format!("{option} {rule}"))
            .collect();
        assert_eq!(taken_out, ["secret_id who", "secret_key who"]);
    }

    #[test]
    fn a_fault_names_the_rule() {
        let effective = apply(&rule("r", "topic_id = \"a\""), &[("json", "off")]);
        let faults = ["log-opt topic_id=a: no", "log-opt json=off: no", "other"];
        let named = effective.named(faults.map(str::to_owned).to_vec());
        let expected = [
            "log-opt topic_id=a: no (set by rule r)",
            faults[1],
            faults[2],
        ];
        assert_eq!(named, expected);
    }
}
