//! Where keys may be used.
//!
//! A container names its endpoint and whose keys sign for it. Without a bound, whoever may start a
//! container could have the operator's keys used at a server of their own, which then has the lines,
//! signatures, and the token of a temporary key. So a source's keys are used at the hosts that the
//! configuration allows, and nowhere else.
//!
//! A container's own keys are its own to give away, but it is the shipper that connects, from where it
//! stands: to services of its host, of its network and of the cloud that the container can't reach, with a
//! body that the container writes. So they too are used at hosts that the configuration allows.
//!
//! Patterns are those of `[[tenants]]`, over the host's name in lower case, without port.

use std::collections::BTreeMap;

use wildmatch::WildMatch;

use crate::cls::endpoint::Endpoint;

/// Under which the hosts for containers' own keys stand among those of sources: no source has this name.
pub const OWN_KEYS: &str = "";

/// The hosts that the keys of each source may be used at.
#[derive(Debug, Default)]
pub struct AllowedHosts(BTreeMap<String, Vec<WildMatch>>);

impl AllowedHosts {
    /// Takes the patterns of each source over.
    pub fn new(allowed: &BTreeMap<String, Vec<String>>) -> Self {
        let patterns =
            |hosts: &Vec<String>| hosts.iter().map(|host| WildMatch::new(host)).collect();
        let allowed = allowed.iter();
        Self(
            allowed
                .map(|(name, hosts)| (name.clone(), patterns(hosts)))
                .collect(),
        )
    }

    /// Returns why the keys of a source may not be used at an endpoint, if that is so. A source that
    /// is not configured is not this one's to judge: it has no keys.
    pub fn fault(&self, source: &str, endpoint: &Endpoint) -> Option<String> {
        let whose = format!("credentials \"{source}\"");
        self.fault_of(source, endpoint, &whose, &format!("credentials.{source}"))
    }

    /// Returns why a container's own keys may not be used at an endpoint, if that is so.
    pub fn fault_of_own(&self, endpoint: &Endpoint) -> Option<String> {
        self.fault_of(OWN_KEYS, endpoint, "a container's own keys", "own_keys")
    }

    fn fault_of(
        &self,
        key: &str,
        endpoint: &Endpoint,
        whose: &str,
        section: &str,
    ) -> Option<String> {
        let allowed = self.0.get(key)?;
        let host = endpoint.name();
        if allowed.iter().any(|pattern| pattern.matches(host)) {
            return None;
        }
        let allowed: Vec<String> = allowed.iter().map(ToString::to_string).collect();
        let allowed = allowed.join(", ");
        Some(format!(
            "{whose} may not be used at host {host}, allowed: {allowed} ([{section}] endpoints)"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_used_at_hosts_that_are_allowed_and_nowhere_else() {
        let hosts = ["*.cls.tencentcs.com", "127.0.0.1", "[::1]"].map(str::to_owned);
        let reach = AllowedHosts::new(&BTreeMap::from([("a".to_owned(), hosts.to_vec())]));
        for (endpoint, is_allowed) in [
            ("ap-guangzhou.cls.tencentcs.com", true),
            ("http://AP-GUANGZHOU.cls.tencentcs.com:8080", true),
            ("http://127.0.0.1:9080", true),
            ("[::1]:1", true),
            ("cls.tencentcs.com", false),
            ("ap-guangzhou.cls.tencentcs.com.example", false),
            ("evilcls.tencentcs.com", false),
            ("127.0.0.11", false),
            ("127.1", false),
            ("[::2]", false),
        ] {
            let fault = reach.fault("a", &endpoint.parse().unwrap());
            assert_eq!(fault.is_none(), is_allowed, "{endpoint}: {fault:?}");
        }
        assert_eq!(
            reach.fault("a", &"http://Evil.example:80".parse().unwrap()),
            Some(
                "credentials \"a\" may not be used at host evil.example, allowed: \
                 *.cls.tencentcs.com, 127.0.0.1, [::1] ([credentials.a] endpoints)"
                    .into()
            )
        );
    }
}
