//! Key pairs: where they come from, and how they stay out of sight.
//!
//! A [`Credentials`] value is immutable. An upload attempt takes one snapshot and signs with it, so
//! id, key and token always belong together; a rotation shows at the next attempt. Nothing here is
//! serialised, and `Debug` prints no part of a secret.
//!
//! Temporary keys are fetched when an attempt needs them, by one caller at a time, and again before
//! they expire. A fetch that fails leaves a key in use that is still valid.

pub mod fetch;

use std::collections::BTreeMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::clock::WallClock;
use crate::config::CredentialSource;
use crate::watched::Watched;
use fetch::{FetchError, Fetcher, Temporary};

/// A string that is wiped from memory when it is dropped and that never shows itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Hash for Secret {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.expose().hash(state);
    }
}

impl Secret {
    /// Takes a secret over.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// Returns the secret itself: for signing and for headers, for nothing that is shown.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// One key pair, with the session token of a temporary one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Credentials {
    /// `SecretId`.
    pub id: Secret,
    /// `SecretKey`.
    pub key: Secret,
    /// Token of a temporary key pair (STS).
    pub token: Option<Secret>,
}

impl Credentials {
    /// Returns `text` without any part of the pair: an answer can quote what it refuses.
    pub fn redact(&self, text: &str) -> String {
        let secrets = [Some(&self.id), Some(&self.key), self.token.as_ref()];
        let mut redacted = text.to_owned();
        for secret in secrets.into_iter().flatten() {
            if !secret.expose().is_empty() {
                redacted = redacted.replace(secret.expose(), "[redacted]");
            }
        }
        redacted
    }
}

/// Which key pair a lane signs with.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CredentialRef {
    /// A source of the configuration, by name.
    Named(String),
    /// From the container's own log options.
    Own(Arc<Credentials>),
}

/// Why there is no key pair at this moment. The lane holds and asks again.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The configuration has no such source.
    #[error("credentials `{name}` are not configured; known: {known}")]
    Unknown {
        /// The name that was asked for.
        name: String,
        /// The names that exist.
        known: String,
    },
    /// The file can't be read.
    #[error("credentials file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Temporary credentials can't be fetched.
    #[error("credentials `{name}`")]
    Fetch {
        /// Name of the source.
        name: String,
        /// Why.
        source: FetchError,
    },
    /// The file is neither JSON nor TOML with the right keys. The parser's own words are left out:
    /// they can quote the file.
    #[error(
        "credentials file {} must be JSON or TOML with the strings secret_id, secret_key and \
         optionally token",
        path.display()
    )]
    Content {
        /// The file.
        path: PathBuf,
    },
}

/// All sources of the configuration.
#[derive(Debug)]
pub struct CredentialStore {
    sources: BTreeMap<String, Source>,
    clock: WallClock,
}

#[derive(Debug)]
enum Source {
    Fixed(Arc<Credentials>),
    File(Watched<Credentials>),
    /// The lock is held over a fetch, so that only one is under way.
    Temporary {
        fetcher: Fetcher,
        current: tokio::sync::Mutex<Option<Temporary>>,
    },
}

impl CredentialStore {
    /// Takes the sources over. Files are read and keys fetched at the first use.
    pub fn new(sources: &BTreeMap<String, CredentialSource>, clock: WallClock) -> Self {
        let sources = sources.iter().map(|(name, source)| {
            let source = match source {
                CredentialSource::Inline(fixed) => Source::Fixed(Arc::new(fixed.clone())),
                CredentialSource::File(path) => Source::File(Watched::new(vec![path.clone()])),
                CredentialSource::Temporary(origin) => Source::Temporary {
                    fetcher: Fetcher::new(origin.clone()),
                    current: Default::default(),
                },
            };
            (name.clone(), source)
        });
        Self {
            sources: sources.collect(),
            clock,
        }
    }

    /// Returns whether a source of this name exists.
    pub fn contains(&self, name: &str) -> bool {
        self.sources.contains_key(name)
    }

    /// Returns the names of all sources, for messages.
    pub fn names(&self) -> String {
        if self.sources.is_empty() {
            return "none".into();
        }
        self.sources.keys().cloned().collect::<Vec<_>>().join(", ")
    }

    /// Returns the key pair as of now. A file is read again if it changed; a temporary key is
    /// fetched again ahead of its expiry.
    ///
    /// # Errors
    /// The source is unknown, its file can't be read or understood, or nothing can be fetched.
    pub async fn snapshot(
        &self,
        wanted: &CredentialRef,
    ) -> Result<Arc<Credentials>, CredentialsError> {
        let name = match wanted {
            CredentialRef::Own(credentials) => return Ok(Arc::clone(credentials)),
            CredentialRef::Named(name) => name,
        };
        match self.sources.get(name) {
            Some(Source::Fixed(credentials)) => Ok(Arc::clone(credentials)),
            Some(Source::File(file)) => read_file(file),
            Some(Source::Temporary { fetcher, current }) => {
                let mut current = current.lock().await;
                self.renew(name, fetcher, &mut current).await
            }
            None => Err(CredentialsError::Unknown {
                name: name.clone(),
                known: self.names(),
            }),
        }
    }

    async fn renew(
        &self,
        name: &str,
        fetcher: &Fetcher,
        current: &mut Option<Temporary>,
    ) -> Result<Arc<Credentials>, CredentialsError> {
        let now_s = self.clock.unix_s();
        if let Some(known) = current.as_ref().filter(|known| now_s < known.renew_s) {
            return Ok(Arc::clone(&known.credentials));
        }
        match fetcher.fetch(&self.clock).await {
            Ok(fetched) => {
                info!(
                    name,
                    valid_s = fetched.expires_s.saturating_sub(now_s),
                    "temporary credentials fetched"
                );
                Ok(Arc::clone(&current.insert(fetched).credentials))
            }
            Err(source) => {
                let error = CredentialsError::Fetch {
                    name: name.to_owned(),
                    source,
                };
                match current.as_ref().filter(|known| now_s < known.expires_s) {
                    Some(known) => {
                        warn!(error = %crate::Chain(&error), "temporary credentials can't be renewed yet");
                        Ok(Arc::clone(&known.credentials))
                    }
                    None => Err(error),
                }
            }
        }
    }

    /// Forgets a key pair that CLS has refused, so that the next snapshot is read or fetched anew.
    /// A newer one stays.
    pub async fn forget(&self, wanted: &CredentialRef, refused: &Arc<Credentials>) {
        let CredentialRef::Named(name) = wanted else {
            return;
        };
        match self.sources.get(name) {
            None | Some(Source::Fixed(_)) => {}
            Some(Source::File(file)) => file.forget(refused),
            Some(Source::Temporary { current, .. }) => {
                let mut current = current.lock().await;
                current.take_if(|known| Arc::ptr_eq(&known.credentials, refused));
            }
        }
    }
}

fn read_file(file: &Watched<Credentials>) -> Result<Arc<Credentials>, CredentialsError> {
    let path = || file.path().to_owned();
    let parsed = file.get(|paths| {
        let text = paths
            .first()
            .map(std::fs::read_to_string)
            .transpose()?
            .unwrap_or_default();
        parse(&Zeroizing::new(text)).ok_or(FileFault::Content)
    });
    parsed.map_err(|fault| match fault {
        FileFault::Read(source) => CredentialsError::Read {
            path: path(),
            source,
        },
        FileFault::Content => CredentialsError::Content { path: path() },
    })
}

enum FileFault {
    Read(std::io::Error),
    Content,
}

impl From<std::io::Error> for FileFault {
    fn from(source: std::io::Error) -> Self {
        Self::Read(source)
    }
}

#[derive(Deserialize)]
struct CredentialsFile {
    secret_id: String,
    secret_key: String,
    token: Option<String>,
}

fn parse(text: &str) -> Option<Credentials> {
    let file: CredentialsFile = serde_json::from_str(text)
        .ok()
        .or_else(|| toml::from_str(text).ok())?;
    Some(Credentials {
        id: Secret::new(file.secret_id),
        key: Secret::new(file.secret_key),
        token: file
            .token
            .filter(|token| !token.is_empty())
            .map(Secret::new),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn store(path: &Path) -> CredentialStore {
        let source = CredentialSource::File(path.to_owned());
        CredentialStore::new(
            &BTreeMap::from([("f".to_owned(), source)]),
            WallClock::system(),
        )
    }

    async fn id(store: &CredentialStore) -> Result<String, String> {
        let named = CredentialRef::Named("f".into());
        store
            .snapshot(&named)
            .await
            .map(|c| c.id.expose().to_owned())
            .map_err(|e| e.to_string())
    }

    #[tokio::test]
    async fn a_file_is_json_or_toml_and_is_read_again_after_a_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        std::fs::write(&path, r#"{"secret_id":"one","secret_key":"k","token":""}"#).unwrap();
        let store = store(&path);
        assert_eq!(id(&store).await.unwrap(), "one");
        std::fs::write(&path, "secret_id = \"three\"\nsecret_key = \"k\"\n").unwrap();
        assert_eq!(id(&store).await.unwrap(), "three");
    }

    #[tokio::test]
    async fn errors_name_the_file_and_never_its_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        let store = store(&path);
        assert!(id(&store).await.unwrap_err().contains("keys"));
        std::fs::write(
            &path,
            r#"{"secret_id":"AKIDEXAMPLE","secret_kee":"SKEXAMPLE"}"#,
        )
        .unwrap();
        let error = id(&store).await.unwrap_err();
        assert!(
            error.contains("secret_key") && !error.contains("EXAMPLE"),
            "{error}"
        );
    }

    #[test]
    fn no_part_of_a_pair_is_left_in_a_text() {
        let credentials = Credentials {
            id: Secret::new("AKIDEXAMPLE".into()),
            key: Secret::new("SKEXAMPLE".into()),
            token: Some(Secret::new(String::new())),
        };
        assert_eq!(
            credentials.redact("secret id AKIDEXAMPLE does not go with SKEXAMPLE"),
            "secret id [redacted] does not go with [redacted]"
        );
    }

    #[tokio::test]
    async fn an_unknown_name_lists_the_known_ones() {
        let store = store(Path::new("/nonexistent"));
        let error = store
            .snapshot(&CredentialRef::Named("g".into()))
            .await
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "credentials `g` are not configured; known: f"
        );
    }
}
