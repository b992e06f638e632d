//! Where a container's options lead: from its log options and the configuration's defaults to a
//! lane.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use proto::log_opts::{Credentials as Wanted, LogOpts, fault};

use crate::base::secret::Secret;
use crate::cls::credentials::Credentials;
use crate::cls::endpoint::Endpoint;
use crate::cls::request::Target;
use crate::config::{Config, Defaults};
use crate::keys::store::{CredentialRef, CredentialStore};
use crate::lane::queue::LaneKey;

/// Bound of one request, where a container sets none.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// Containers with keys of their own that are remembered. Of more, the oldest are warned of again.
const WARNED_MAX: usize = 10_000;

/// Which containers with keys of their own have been warned of.
#[derive(Debug, Default)]
pub struct Warned {
    /// Hashes of host and container, so that no host can make them large.
    known: Mutex<VecDeque<u64>>,
    hasher: RandomState,
}

impl Warned {
    /// Returns whether a container was not seen here before.
    pub fn is_new(&self, host: &str, container_id: &str) -> bool {
        let hash = self.hasher.hash_one((host, container_id));
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains(&hash) {
            return false;
        }
        if known.len() == WARNED_MAX {
            known.pop_front();
        }
        known.push_back(hash);
        true
    }
}

/// Resolves options.
#[derive(Debug)]
pub struct Router {
    defaults: Defaults,
    is_insecure: bool,
    credentials: Arc<CredentialStore>,
}

impl Router {
    /// Makes a router over the configuration's defaults.
    pub fn new(config: &Config, credentials: Arc<CredentialStore>) -> Self {
        Self {
            defaults: config.defaults.clone(),
            is_insecure: config.road.insecure,
            credentials,
        }
    }

    /// Returns the checked options and their lane.
    ///
    /// # Errors
    /// One sentence for each fault: the option, its value, the rule.
    pub fn route(
        &self,
        log_opts: &HashMap<String, String>,
    ) -> Result<(LogOpts, LaneKey), Vec<String>> {
        let opts = LogOpts::parse(log_opts).map_err(|error| error.faults)?;
        let mut faults = Vec::new();
        let endpoint = self.endpoint(&opts, &mut faults);
        let topic_id = opts
            .topic_id
            .clone()
            .or_else(|| self.defaults.topic_id.clone());
        if topic_id.is_none() {
            faults.push(missing("topic_id"));
        }
        let credentials = self.credentials(&opts, &mut faults);
        if let (Some(endpoint), Some(wanted)) = (&endpoint, &credentials)
            && let Some(rule) = self.credentials.fault(wanted, endpoint)
        {
            faults.push(match &opts.endpoint {
                Some(text) => fault("endpoint", Some(text), &rule),
                None => fault(
                    "endpoint",
                    None,
                    &format!("is missing, and by default {rule}"),
                ),
            });
        }
        match (endpoint, topic_id, credentials) {
            (Some(endpoint), Some(topic_id), Some(credentials)) if faults.is_empty() => {
                let key = LaneKey {
                    target: Target { endpoint, topic_id },
                    credentials,
                    timeout: opts.timeout.unwrap_or(TIMEOUT_DEFAULT),
                    // The first attempt is no retry; endless stays endless.
                    attempts_max: opts
                        .retries
                        .filter(|count| *count > 0)
                        .map_or(0, |count| count.saturating_add(1)),
                };
                Ok((opts, key))
            }
            _ => Err(faults),
        }
    }

    fn endpoint(&self, opts: &LogOpts, faults: &mut Vec<String>) -> Option<Endpoint> {
        let Some(text) = &opts.endpoint else {
            if self.defaults.endpoint.is_none() {
                faults.push(missing("endpoint"));
            }
            return self.defaults.endpoint.clone();
        };
        let parsed = text.parse::<Endpoint>();
        let parsed = parsed.map_err(|error| error.to_string());
        let rule = match parsed {
            Ok(endpoint) => match endpoint.insecurity(self.is_insecure) {
                None => return Some(endpoint),
                Some(rule) => rule,
            },
            Err(rule) => rule,
        };
        faults.push(fault("endpoint", Some(text), &rule));
        None
    }

    fn credentials(&self, opts: &LogOpts, faults: &mut Vec<String>) -> Option<CredentialRef> {
        let name = match &opts.credentials {
            Wanted::Inline {
                secret_id,
                secret_key,
            } => {
                return Some(CredentialRef::Own(Arc::new(Credentials {
                    id: Secret::new(secret_id.expose().to_owned()),
                    key: Secret::new(secret_key.expose().to_owned()),
                    token: None,
                })));
            }
            Wanted::Named(name) => name,
            Wanted::Default => &self.defaults.credentials,
        };
        if !self.credentials.contains(name) {
            let known = self.credentials.names();
            let rule = format!("the shipper has no [credentials.{name}], known: {known}");
            faults.push(match opts.credentials {
                Wanted::Named(_) => fault("credentials", Some(name), &rule),
                _ => fault("credentials", None, &format!("is missing, and {rule}")),
            });
            return None;
        }
        Some(CredentialRef::Named(name.clone()))
    }
}

fn missing(option: &str) -> String {
    fault(
        option,
        None,
        "is missing, and the shipper's [defaults] does not set it",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::WallClock;
    use crate::send::client::Client;

    const KEY: &str = "source = \"inline\"\nsecret_id = \"id\"\nsecret_key = \"key\"";

    fn check(known: &[&str], options: &[(&str, &str)], expected: &[&str]) {
        let known = known.iter();
        let known = known.map(|name| format!("[credentials.{name}]\n{KEY}\nendpoints = [\"h\"]\n"));
        check_by(&known.collect::<String>(), options, expected);
    }

    fn check_by(config: &str, options: &[(&str, &str)], expected: &[&str]) {
        let config = Config::from_table(config.parse().unwrap(), std::iter::empty()).unwrap();
        let clock = WallClock::new(|| Duration::ZERO);
        let store = CredentialStore::new(
            &config.credentials,
            &config.endpoints,
            &clock,
            &Client::default(),
        );
        let router = Router::new(&config, Arc::new(store));
        let options = options.iter();
        let options = options.map(|&(name, value)| (name.into(), value.into()));
        let faults = router.route(&options.collect()).err().unwrap_or_default();
        assert_eq!(faults, expected);
    }

    #[test]
    fn a_container_is_new_once_until_too_many_came() {
        let warned = Warned::default();
        assert!(warned.is_new("h", "c") && warned.is_new("h", "d") && warned.is_new("i", "c"));
        assert!(!warned.is_new("h", "c"));
        for number in 0..WARNED_MAX - 3 {
            assert!(warned.is_new("j", &number.to_string()));
        }
        assert!(!warned.is_new("h", "c"));
        assert!(warned.is_new("k", "c"));
        assert!(warned.is_new("h", "c"), "it was the oldest");
        assert_eq!(warned.known.lock().unwrap().len(), WARNED_MAX);
    }

    #[test]
    fn what_nobody_sets_is_named() {
        let place = [("endpoint", "h"), ("topic_id", "t")];
        check(&["default"], &place, &[]);
        check(
            &["default"],
            &[],
            &[
                "log-opt endpoint: is missing, and the shipper's [defaults] does not set it",
                "log-opt topic_id: is missing, and the shipper's [defaults] does not set it",
            ],
        );
        // Nobody has written `default`, so it is not what is wrong.
        let rule = "is missing, and the shipper has no [credentials.default]";
        for (known, named) in [(&["a", "b"][..], "a, b"), (&[], "none")] {
            let fault = format!("log-opt credentials: {rule}, known: {named}");
            check(known, &place, &[&fault]);
        }
        let of_cls = [("endpoint", "x.cls.tencentcs.com"), place[1]];
        let own = [("secret_id", "i"), ("secret_key", "k")];
        check(&[], &[of_cls, own].concat(), &[]);
        let other = [place[0], place[1], ("credentials", "c")];
        let fault = "log-opt credentials=c: the shipper has no [credentials.c], known: a";
        check(&["a"], &other, &[fault]);
    }

    /// Keys go to hosts that the configuration allows for them, a container's own ones as well.
    #[test]
    fn keys_of_the_configuration_go_nowhere_but_where_they_may() {
        let usual = "*.cls.tencentcs.com, *.cls.tencentyun.com";
        let refused = |option: &str, name: &str, host: &str, allowed: &str| {
            format!(
                "log-opt endpoint{option} credentials \"{name}\" may not be used at host {host}, \
                 allowed: {allowed} ([credentials.{name}] endpoints)"
            )
        };
        let defaults = "[upload]\ninsecure = true\n[defaults]\ntopic_id = \"t\"\n";
        let usual_config = format!("{defaults}[credentials.default]\n{KEY}\n");
        check_by(&usual_config, &[("endpoint", "x.cls.tencentcs.com")], &[]);
        check_by(
            &usual_config,
            &[("endpoint", "http://x.cls.tencentyun.com")],
            &[],
        );
        let fault = refused("=http://evil:80:", "default", "evil", usual);
        let evil = ("endpoint", "http://evil:80");
        check_by(&usual_config, &[evil], &[&fault]);
        check_by(
            &usual_config,
            &[evil, ("credentials", "default")],
            &[&fault],
        );
        let own = [evil, ("secret_id", "i"), ("secret_key", "k")];
        let fault = "log-opt endpoint=http://evil:80: a container's own keys may not be used at host \
                     evil, allowed: *.cls.tencentcs.com, *.cls.tencentyun.com ([own_keys] endpoints)";
        check_by(&usual_config, &own, &[fault]);
        let listed = format!("{usual_config}[own_keys]\nendpoints = [\"e*\"]\n");
        check_by(&listed, &own, &[]);
        let usual = ("endpoint", "x.cls.tencentcs.com");
        check_by(&usual_config, &[usual, own[1], own[2]], &[]);

        // The host of the default endpoint is as good as CLS's, on any port, for who lists none.
        let config = format!(
            "[defaults]\nendpoint = \"http://127.0.0.1:9080\"\ntopic_id = \"t\"\n\
             [credentials.default]\n{KEY}\n[credentials.a]\n{KEY}\nendpoints = [\"H*.example\"]\n"
        );
        check_by(&config, &[], &[]);
        check_by(&config, &[("endpoint", "http://127.0.0.1:9081")], &[]);
        let fault = refused(
            ": is missing, and by default",
            "a",
            "127.0.0.1",
            "h*.example",
        );
        check_by(&config, &[("credentials", "a")], &[&fault]);
        let named = [("credentials", "a"), ("endpoint", "h1.example")];
        check_by(&config, &named, &[]);
        let fault = refused(
            "=x.cls.tencentcs.com:",
            "a",
            "x.cls.tencentcs.com",
            "h*.example",
        );
        let named = [("credentials", "a"), ("endpoint", "x.cls.tencentcs.com")];
        check_by(&config, &named, &[&fault]);
    }
}
