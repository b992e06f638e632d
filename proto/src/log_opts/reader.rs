//! Reads options by name, checks each, and collects what is wrong with them.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::fault::{LogOptsError, fault, go_regex_rule, hint};
use super::secret::MASK;
use super::table::{Kind, OPTIONS, find};
use super::value::{self, Units};
use crate::go_regex;

/// Bytes of one option's value. A longer one is a fault.
pub const VALUE_BYTES_MAX: usize = 64 << 10;

/// Reads options by name and collects what is wrong with them.
pub(super) struct Reader<'a> {
    config: &'a HashMap<String, String>,
    /// With the option's place in the table, so that they can be put in its order.
    faults: Vec<(usize, String)>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(config: &'a HashMap<String, String>) -> Self {
        Self {
            config,
            faults: Vec::new(),
        }
    }

    pub(super) fn finish<T>(mut self, opts: T) -> Result<T, LogOptsError> {
        if self.faults.is_empty() {
            return Ok(opts);
        }
        self.faults.sort();
        let faults = self.faults.into_iter().map(|(_, fault)| fault).collect();
        Err(LogOptsError { faults })
    }

    /// Returns the value of a known option, unless it is empty or far too long.
    pub(super) fn value(&mut self, name: &str) -> Option<&'a str> {
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

    pub(super) fn fault(&mut self, name: &str, rule: &str) {
        let place = OPTIONS.iter().position(|spec| spec.name == name);
        let value = self.config.get(name).map(String::as_str);
        self.faults
            .push((place.unwrap_or(OPTIONS.len()), fault(name, value, rule)));
    }

    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        self.value(name).map(str::to_owned)
    }

    /// Returns a regular expression that Go understands, as it was given.
    pub(super) fn pattern(&mut self, name: &str) -> Option<String> {
        let value = self.value(name)?;
        if let Err(error) = go_regex::translate(value) {
            self.fault(name, &go_regex_rule(&error));
            return None;
        }
        Some(value.to_owned())
    }

    pub(super) fn checked(
        &mut self,
        name: &str,
        is_good: fn(&str) -> bool,
        rule: &str,
    ) -> Option<String> {
        let value = self.value(name)?;
        if !is_good(value) {
            self.fault(name, rule);
            return None;
        }
        Some(value.to_owned())
    }

    /// Parses a value; if that fails the rule is a fault.
    pub(super) fn parsed<T>(
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

    pub(super) fn flag(&mut self, name: &str) -> Option<bool> {
        self.parsed(name, value::parse_bool, "must be true or false")
    }

    pub(super) fn count(&mut self, name: &str) -> Option<u32> {
        let parse = |text: &str| {
            let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
            is_number.then(|| text.parse().ok()).flatten()
        };
        self.parsed(name, parse, "must be a whole number from 0 to 4294967295")
    }

    pub(super) fn size(&mut self, name: &str, units: Units) -> Option<u64> {
        self.parsed(
            name,
            |text| value::parse_size(text, units),
            "must be a size such as 512k, 10m or 1g",
        )
    }

    pub(super) fn duration(
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

    pub(super) fn choice(&mut self, name: &str) -> Option<&'static str> {
        let Some(Kind::Choice(words)) = find(name).map(|spec| spec.kind) else {
            return None;
        };
        let parse = |text: &str| words.iter().find(|word| **word == text).copied();
        self.parsed(name, parse, &format!("must be {}", words.join(" or ")))
    }

    pub(super) fn names(&mut self, name: &str) -> Vec<String> {
        let value = self.value(name).unwrap_or_default();
        value
            .split(',')
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect()
    }

    pub(super) fn check_names(&mut self) {
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

    pub(super) fn masked(&self) -> BTreeMap<String, String> {
        let mask = |(name, value): (&String, &String)| {
            let is_secret = find(name).is_none_or(|spec| spec.kind == Kind::Secret);
            let shown = if is_secret { MASK } else { value };
            (name.clone(), shown.to_owned())
        };
        self.config.iter().map(mask).collect()
    }
}
