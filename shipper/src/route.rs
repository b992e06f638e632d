//! Where a container's options lead: from its log options and the configuration's defaults to a
//! lane.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use proto::log_opts::{Credentials as Wanted, LogOpts, fault};

use crate::cls::client::Target;
use crate::cls::endpoint::{Endpoint, EndpointError};
use crate::config::Defaults;
use crate::credentials::{CredentialRef, CredentialStore, Credentials, Secret};
use crate::lane::LaneKey;

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
    credentials: Arc<CredentialStore>,
}

impl Router {
    /// Makes a router over the configuration's defaults.
    pub fn new(defaults: Defaults, credentials: Arc<CredentialStore>) -> Self {
        Self {
            defaults,
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
        text.parse()
            .map_err(|error: EndpointError| {
                faults.push(fault("endpoint", Some(text), &error.to_string()));
            })
            .ok()
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
    use crate::clock::WallClock;
    use crate::config::CredentialSource;

    fn check(known: &[&str], options: &[(&str, &str)], expected: &[&str]) {
        let key = Credentials {
            id: Secret::new("id".into()),
            key: Secret::new("key".into()),
            token: None,
        };
        let source = CredentialSource::Inline(key);
        let sources = known.iter().map(|name| ((*name).into(), source.clone()));
        let defaults = Defaults {
            endpoint: None,
            topic_id: None,
            credentials: "default".into(),
        };
        let store = CredentialStore::new(&sources.collect(), &WallClock::new(|| Duration::ZERO));
        let router = Router::new(defaults, Arc::new(store));
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
        let own = [("secret_id", "i"), ("secret_key", "k")];
        check(&[], &[place, own].concat(), &[]);
        let other = [place[0], place[1], ("credentials", "c")];
        let fault = "log-opt credentials=c: the shipper has no [credentials.c], known: a";
        check(&["a"], &other, &[fault]);
    }
}
