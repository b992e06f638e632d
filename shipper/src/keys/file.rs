//! A key pair that stands in a file, which may be replaced at any time.
//!
//! JSON or TOML: `secret_id`, `secret_key`, and, if it is a temporary pair, `token` and `expiration`.
//! The names in the answers of Tencent Cloud's services are known too (`TmpSecretId`, `TmpSecretKey`,
//! `Token`, `Expiration`, `ExpiredTime`), so that such an answer can be kept as it is.
//!
//! A pair that has expired is none: nothing is signed with it, and who needs it holds until the file
//! has another one. That it is about to expire is warned of once, when it is used.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use tokio::time::Instant;
use toml::value::{Datetime, Offset};
use tracing::warn;
use zeroize::Zeroizing;

use crate::base::clock::WallClock;
use crate::base::watched::Watched;
use crate::cls::credentials::{Credentials, trimmed};
use crate::keys::store::{CredentialsError, LOOK_PERIOD};

/// How long before a pair expires that is warned of. The official SDKs renew 300 s ahead, so whoever
/// writes the file as they do is not warned of each rotation.
const WARN_AHEAD_S: u64 = 240;

/// A larger number of UNIX seconds is one of milliseconds by mistake: this is in the year 5138.
const UNIX_S_MAX: u64 = 99_999_999_999;

/// A file, and when somebody who waits for another pair has last looked at it.
#[derive(Debug)]
pub(super) struct KeyFile {
    content: Watched<Pair>,
    looked_at: Mutex<Option<Instant>>,
    clock: WallClock,
}

/// What stands in the file.
#[derive(Debug)]
struct Pair {
    credentials: Arc<Credentials>,
    expiration_s: Option<u64>,
    was_warned_of: AtomicBool,
}

impl KeyFile {
    pub(super) fn new(path: PathBuf, clock: WallClock) -> Self {
        Self {
            content: Watched::new(vec![path]),
            looked_at: Mutex::default(),
            clock,
        }
    }

    /// Returns the pair as of now.
    pub(super) fn read(&self) -> Result<Arc<Credentials>, CredentialsError> {
        let path = || self.content.path().to_owned();
        let parsed = self.content.get(|paths| {
            let text = paths
                .first()
                .map(std::fs::read_to_string)
                .transpose()?
                .unwrap_or_default();
            parse(&Zeroizing::new(text)).map_err(FileFault::Content)
        });
        let pair = parsed.map_err(|fault| match fault {
            FileFault::Read(source) => CredentialsError::Read {
                path: path(),
                source,
            },
            FileFault::Content(fault) => CredentialsError::Content {
                path: path(),
                fault,
            },
        })?;
        let now_s = self.clock.unix_s();
        if let Some(expiration_s) = pair.expiration_s {
            if now_s >= expiration_s {
                let expiration = rfc3339(expiration_s);
                let path = path();
                return Err(CredentialsError::Expired { path, expiration });
            }
            if pair.is_warning_due(now_s) {
                warn!(path = %self.content.path().display(), expiration = rfc3339(expiration_s),
                    "the key pair in a credentials file expires soon, uploads hold from then on \
                     unless the file is replaced");
            }
        }
        Ok(Arc::clone(&pair.credentials))
    }

    /// Forgets a refused pair; a newer one stays.
    pub(super) fn forget(&self, refused: &Arc<Credentials>) {
        let known = self.content.last();
        if let Some(known) = known.filter(|known| Arc::ptr_eq(&known.credentials, refused)) {
            self.content.forget(&known);
        }
    }

    /// Waits until the file has another pair than `refused`, and one that is valid.
    pub(super) async fn replaced(&self, refused: Option<&Credentials>) {
        loop {
            tokio::time::sleep(LOOK_PERIOD).await;
            // A file that can't be read is no other pair.
            let known = if self.is_look_due(Instant::now()) {
                self.read().ok()
            } else {
                self.last()
            };
            if known.is_some_and(|known| Some(&*known) != refused) {
                return;
            }
        }
    }

    /// Returns what was last read, if it is still valid.
    fn last(&self) -> Option<Arc<Credentials>> {
        let known = self.content.last()?;
        let is_valid = known
            .expiration_s
            .is_none_or(|expiration_s| self.clock.unix_s() < expiration_s);
        is_valid.then(|| Arc::clone(&known.credentials))
    }

    /// Returns whether nobody has looked within the period, and counts a look if so.
    fn is_look_due(&self, now: Instant) -> bool {
        let mut looked_at = self
            .looked_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let is_due = looked_at.is_none_or(|at| now >= at + LOOK_PERIOD);
        if is_due {
            *looked_at = Some(now);
        }
        is_due
    }
}

impl Pair {
    /// Returns whether it is to be warned of, and takes it that it is if so.
    fn is_warning_due(&self, now_s: u64) -> bool {
        let is_near = |expiration_s| now_s.saturating_add(WARN_AHEAD_S) >= expiration_s;
        self.expiration_s.is_some_and(is_near) && !self.was_warned_of.swap(true, Ordering::Relaxed)
    }
}

enum FileFault {
    Read(std::io::Error),
    Content(String),
}

impl From<std::io::Error> for FileFault {
    fn from(source: std::io::Error) -> Self {
        Self::Read(source)
    }
}

#[derive(Deserialize)]
struct CredentialsFile {
    #[serde(alias = "TmpSecretId")]
    secret_id: String,
    #[serde(alias = "TmpSecretKey")]
    secret_key: String,
    #[serde(alias = "Token")]
    token: Option<String>,
    #[serde(alias = "Expiration")]
    expiration: Option<Time>,
    /// Stands beside `Expiration` in the services' answers.
    #[serde(rename = "ExpiredTime")]
    expired_time: Option<Time>,
}

/// A time, as far as the formats know such.
#[derive(Deserialize)]
#[serde(untagged)]
enum Time {
    UnixS(u64),
    Text(String),
    Toml(Datetime),
}

/// Reads a pair.
///
/// # Errors
/// What is wrong, without a word of the text: it may hold a key. The parsers quote it.
fn parse(text: &str) -> Result<Pair, String> {
    let text = text.trim_start_matches('\u{feff}');
    if text.trim().is_empty() {
        return Err("is empty".to_owned());
    }
    let file = serde_json::from_str::<CredentialsFile>(text).ok();
    let file = file.or_else(|| toml::from_str(text).ok());
    let pair = file.and_then(pair).ok_or_else(|| match other_name(text) {
        Some(name) => format!("has {name} instead of secret_id and secret_key; {FORMAT}"),
        None => FORMAT.to_owned(),
    })?;
    pair.credentials.fault().map_or(Ok(pair), Err)
}

const FORMAT: &str = "must be JSON or TOML with the strings secret_id, secret_key and optionally token \
                      and expiration, which is a time as in RFC 3339 or UNIX seconds";

/// Names that other programs have for the parts of a key pair.
const OTHER_NAMES: [&str; 8] = [
    "SecretId",
    "secretId",
    "SECRET_ID",
    "TENCENTCLOUD_SECRET_ID",
    "TENCENTCLOUD_SECRETID",
    "secretid",
    "access_key_id",
    "AccessKeyId",
];

fn other_name(text: &str) -> Option<&'static str> {
    OTHER_NAMES.into_iter().find(|name| {
        let mut places = text.match_indices(name);
        places.any(|(at, _)| {
            let before = text.get(..at).and_then(|before| before.chars().next_back());
            !before.is_some_and(|char| char.is_alphanumeric() || char == '_')
        })
    })
}

fn pair(file: CredentialsFile) -> Option<Pair> {
    let times = [file.expiration, file.expired_time].into_iter().flatten();
    // An empty one counts as absent, as an empty token does.
    let times = times.filter(|time| !matches!(time, Time::Text(text) if text.is_empty()));
    let times = times
        .map(|time| time.unix_s())
        .collect::<Option<Vec<u64>>>()?;
    let credentials = Credentials {
        id: trimmed(&file.secret_id),
        key: trimmed(&file.secret_key),
        token: file
            .token
            .map(|token| trimmed(&token))
            .filter(|token| !token.expose().is_empty()),
    };
    Some(Pair {
        credentials: Arc::new(credentials),
        expiration_s: times.into_iter().min(),
        was_warned_of: AtomicBool::new(false),
    })
}

impl Time {
    fn unix_s(&self) -> Option<u64> {
        let unix_s = match self {
            Self::UnixS(unix_s) => *unix_s,
            Self::Text(text) => match text.parse() {
                Ok(unix_s) => unix_s,
                Err(_) => of_datetime(&text.parse().ok()?)?,
            },
            Self::Toml(datetime) => of_datetime(datetime)?,
        };
        (unix_s <= UNIX_S_MAX).then_some(unix_s)
    }
}

/// Returns UNIX seconds; nothing if a part is missing: without an offset it is no point in time.
fn of_datetime(datetime: &Datetime) -> Option<u64> {
    let (date, time) = (datetime.date?, datetime.time?);
    let ahead_min = match datetime.offset? {
        Offset::Z => 0,
        Offset::Custom { minutes } => i64::from(minutes),
    };
    let as_utc = humantime::parse_rfc3339(&format!("{date}T{time}Z")).ok()?;
    let as_utc = as_utc.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    as_utc.as_secs().checked_add_signed(-ahead_min * 60)
}

fn rfc3339(unix_s: u64) -> String {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(unix_s);
    humantime::format_rfc3339_seconds(time).to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::base::secret::Secret;

    const START_S: u64 = 1_700_000_000;

    fn check(text: &str, expected: Option<Option<u64>>) {
        let parsed = parse(text).ok().map(|pair| {
            let Credentials { id, key, token } = &*pair.credentials;
            assert_eq!((id.expose(), key.expose()), ("i", "k"), "{text}");
            assert_eq!(token.as_ref().map(Secret::expose), Some("t"), "{text}");
            pair.expiration_s
        });
        assert_eq!(parsed, expected, "{text}");
    }

    #[test]
    fn an_expiration_is_a_point_in_time_however_it_is_written() {
        for (expiration, expected) in [
            ("1700000000", Some(Some(START_S))),
            ("\"1700000000\"", Some(Some(START_S))),
            ("\"2023-11-14T22:13:20Z\"", Some(Some(START_S))),
            ("\"2023-11-14T22:13:20.999Z\"", Some(Some(START_S))),
            ("\"2023-11-15T06:13:20+08:00\"", Some(Some(START_S))),
            ("\"2023-11-14T20:43:20-01:30\"", Some(Some(START_S))),
            ("\"\"", Some(None)),
            ("\"2023-11-14T22:13:20\"", None),
            ("\"2023-11-14\"", None),
            ("\"soon\"", None),
            ("true", None),
            ("-1", None),
            ("1700000000000", None),
        ] {
            let json = format!(
                r#"{{"secret_id":"i","secret_key":"k","token":"t","expiration":{expiration}}}"#
            );
            check(&json, expected);
            check(
                &format!(
                    "secret_id = \"i\"\nsecret_key = \"k\"\ntoken = \"t\"\n\
                     expiration = {expiration}\n"
                ),
                expected,
            );
        }
        let toml = "secret_id = \"i\"\nsecret_key = \"k\"\ntoken = \"t\"\nexpiration = ";
        let local = format!("{toml}2023-11-14T22:13:20");
        check(&local, None);
        check(&format!("{local}Z"), Some(Some(START_S)));
        check(
            &format!("{toml}2023-11-15T06:13:20+08:00"),
            Some(Some(START_S)),
        );
    }

    /// The metadata service's answer can be the file, and its two times need not agree.
    #[test]
    fn answers_of_the_services_are_understood_as_they_are() {
        let answer = |s: u64| {
            format!(
                r#"{{"TmpSecretId":"i","TmpSecretKey":"k","ExpiredTime":{s},
                "Expiration":"2023-11-14T22:13:20Z","Token":"t","Code":"Success"}}"#
            )
        };
        check(&answer(START_S), Some(Some(START_S)));
        check(&answer(START_S + 60), Some(Some(START_S)));
        check(&answer(START_S - 60), Some(Some(START_S - 60)));
    }

    fn write(path: &std::path::Path, id: &str, expiration_s: u64) {
        let text =
            format!(r#"{{"secret_id":"{id}","secret_key":"k","expiration":{expiration_s}}}"#);
        std::fs::write(path, text).unwrap();
    }

    /// An expired pair is none, for who signs and for who waits; the next one ends both.
    #[tokio::test(start_paused = true)]
    async fn an_expired_pair_is_none_until_the_file_has_another_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let now_s = Arc::new(AtomicU64::new(START_S));
        let clock_s = Arc::clone(&now_s);
        let clock = WallClock::new(move || Duration::from_secs(clock_s.load(Ordering::Relaxed)));
        let file = KeyFile::new(path.clone(), clock);
        let id = || file.read().map(|pair| pair.id.expose().to_owned());
        let is_replaced = async |refused: Option<&Credentials>| {
            let replaced = file.replaced(refused);
            tokio::time::timeout(Duration::from_secs(60), replaced)
                .await
                .is_ok()
        };
        write(&path, "one", START_S + 10);
        assert_eq!(id().unwrap(), "one");
        now_s.store(START_S + 9, Ordering::Relaxed);
        assert_eq!(id().unwrap(), "one");
        now_s.store(START_S + 10, Ordering::Relaxed);
        let error = id().unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "the key pair in credentials file {} has expired at 2023-11-14T22:13:30Z, and the \
                 file has not been replaced",
                path.display()
            )
        );
        assert!(!is_replaced(None).await, "what has expired is no pair");
        assert!(file.last().is_none(), "nor for who does not look itself");
        write(&path, "stale", START_S);
        assert!(!is_replaced(None).await, "nor is another one that has");
        write(&path, "two", START_S + 20);
        assert!(is_replaced(None).await);
        assert_eq!(id().unwrap(), "two");
    }

    #[test]
    fn a_pair_is_warned_of_once_shortly_before_it_expires() {
        let pair = |expiration_s: Option<u64>| Pair {
            credentials: parse("secret_id = \"i\"\nsecret_key = \"k\"")
                .unwrap()
                .credentials,
            expiration_s,
            was_warned_of: AtomicBool::new(false),
        };
        let temporary = pair(Some(START_S + WARN_AHEAD_S));
        let warned = [START_S - 1, START_S, START_S + 1].map(|at| temporary.is_warning_due(at));
        assert_eq!(warned, [false, true, false]);
        assert!(!pair(None).is_warning_due(START_S));
    }

    #[tokio::test(start_paused = true)]
    async fn however_many_wait_a_file_is_looked_at_once_a_period() {
        let file = KeyFile::new("/nonexistent".into(), WallClock::system());
        let start = Instant::now();
        let looks = (0..100).filter(|n| file.is_look_due(start + LOOK_PERIOD / 10 * *n));
        assert_eq!(looks.count(), 10);
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_without_its_content() {
        for (text, expected) in [
            ("", "is empty"),
            ("\u{feff}  \n", "is empty"),
            (
                r#"{"SecretId":"AKIDEXAMPLE","SecretKey":"k"}"#,
                "has SecretId instead of",
            ),
            (
                "TENCENTCLOUD_SECRET_ID=AKIDEXAMPLE",
                "has TENCENTCLOUD_SECRET_ID instead of",
            ),
            ("AKIDEXAMPLE", "must be JSON or TOML"),
            (
                r#"{"secret_id":"'AKIDEXAMPLE'","secret_key":"k"}"#,
                "secret_id has quotes in it",
            ),
            (
                r#"{"secret_id":"AKID EXAMPLE","secret_key":"k"}"#,
                "secret_id has a character",
            ),
            (
                r#"{"secret_id":"AKIDEXAMPLE","secret_key":" "}"#,
                "secret_key is empty",
            ),
        ] {
            let fault = parse(text).err().unwrap_or_default();
            assert!(fault.starts_with(expected), "{text}: {fault}");
            assert!(!fault.contains("EXAMPLE"), "{fault}");
        }
        let text =
            "\u{feff}{\"secret_id\":\" i\\n\",\"secret_key\":\"\u{feff}k \",\"token\":\"t\\r\\n\"}";
        check(text, Some(None));
    }
}
