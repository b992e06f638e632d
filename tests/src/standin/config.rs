//! What a stand-in is told at start: keys, topics, rules, and the clock it goes by.

use crate::authority::Identity;
use crate::standin::log_list::Rules;
use crate::standin::quota;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// How a stand-in behaves.
#[derive(Debug, Clone)]
pub struct Config {
    /// The keys that may sign.
    pub keys: Vec<Key>,
    /// The topics that exist.
    pub topics: Vec<Topic>,
    /// What is checked beyond the documents' plain words.
    pub rules: Rules,
    /// Whether a signature may cover nothing (empty lists), as the published Rust crate's does.
    pub allows_empty_signed_lists: bool,
    /// Partitions of each topic: each has a quota of its own.
    pub partitions: usize,
    /// Requests per second that a partition takes.
    pub requests_per_s: f64,
    /// Whether quotas apply.
    pub has_quota: bool,
    /// Whether a request over quota is stored in part all the same (CLS document 614/33779).
    pub stores_part_over_quota: bool,
    /// Whether bodies are checked and counted only: `records` then has nothing to show.
    pub discards: bool,
    /// What it shows to those who speak TLS. With it, uploads over plain HTTP are refused; all the
    /// rest is answered either way.
    pub identity: Option<Identity>,
}

impl Config {
    /// Returns a strict stand-in with one key and one topic.
    pub fn new(key: Key, topic_id: &str) -> Self {
        Self {
            keys: vec![key],
            topics: vec![Topic::open(topic_id)],
            rules: Rules {
                is_strict: true,
                underscore_prefixes: UNDERSCORE_PREFIXES.map(str::to_owned).to_vec(),
            },
            allows_empty_signed_lists: true,
            partitions: PARTITIONS_DEFAULT,
            requests_per_s: quota::REQUESTS_PER_S,
            has_quota: true,
            stores_part_over_quota: false,
            discards: false,
            identity: None,
        }
    }
}

/// Keys that the product sends although they begin with `_`: users of its predecessor have queries
/// and dashboards on them, and the service takes them (official samples send such keys as well,
/// `__CONTENT__` among them, which is sent if `content-key` asks for it).
pub const UNDERSCORE_PREFIXES: [&str; 8] = [
    "__CONTENT__",
    "__hostname__",
    "__stream__",
    "__instance__.",
    "__container_details__.",
    "__record_id__",
    "__cut__",
    "__dropped_",
];

/// Partitions of a topic: what CLS gives by default (CLS document 614/87660).
pub const PARTITIONS_DEFAULT: usize = 50;

/// A key pair, with a token if it is temporary.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    /// `SecretId`.
    pub secret_id: String,
    /// `SecretKey`.
    pub secret_key: String,
    /// The token that a temporary key needs.
    pub token: Option<String>,
    /// Topics that the key may not write to.
    pub denied_topics: Vec<String>,
}

impl Key {
    /// Returns a key that is valid for ever, for every topic.
    pub fn permanent(secret_id: &str, secret_key: &str) -> Self {
        Self {
            secret_id: secret_id.into(),
            secret_key: secret_key.into(),
            token: None,
            denied_topics: Vec::new(),
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key")
            .field("secret_id", &self.secret_id)
            .field("secret_key", &"[redacted]")
            .field("token", &self.token.as_ref().map(|_| "[redacted]"))
            .field("denied_topics", &self.denied_topics)
            .finish()
    }
}

/// A topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topic {
    /// Its id.
    pub topic_id: String,
    /// What it answers to a good request.
    pub state: TopicState,
    /// Whether it takes uploads without `Authorization`.
    pub is_anonymous: bool,
    /// The account that may upload in weak mode.
    pub weak_uin: Option<String>,
}

impl Topic {
    /// Returns a topic that takes signed uploads.
    pub fn open(topic_id: &str) -> Self {
        Self {
            topic_id: topic_id.into(),
            state: TopicState::Open,
            is_anonymous: false,
            weak_uin: None,
        }
    }
}

/// What a topic does with uploads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TopicState {
    /// Takes them.
    Open,
    /// Refuses them: closed.
    Closed,
    /// Refuses them: the account has not paid.
    Arrears,
}

/// The wall clock a stand-in goes by: time since 1970.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Duration + Send + Sync>);

impl Clock {
    /// Returns a clock that reads the machine's.
    #[allow(
        clippy::disallowed_methods,
        reason = "the one place at which wall time enters"
    )]
    pub fn system() -> Self {
        Self(Arc::new(|| {
            std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap_or_default()
        }))
    }

    /// Returns a clock of its own.
    pub fn new(now: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// Returns a clock that stands still.
    pub fn frozen(unix_s: u64) -> Self {
        Self(Arc::new(move || Duration::from_secs(unix_s)))
    }

    /// Returns the time since 1970.
    pub fn now(&self) -> Duration {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({:?})", self.now())
    }
}
