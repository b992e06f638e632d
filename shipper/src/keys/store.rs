//! Key pairs: where they come from, and how they stay out of sight.
//!
//! A [`Credentials`] value is immutable. An upload attempt takes one snapshot and signs with it, so
//! id, key and token always belong together; a rotation shows at the next attempt. Nothing here is
//! serialised, and `Debug` prints no part of a secret.
//!
//! Temporary keys are fetched when an attempt needs them, by one caller at a time, and again before
//! they expire, see `temporary`. Who holds because of a key waits for another one with
//! [`CredentialStore::replaced`]: sources are looked at while somebody waits, and only then.
//!
//! The sources can be replaced while lanes use them; a lane whose source is gone holds.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use tokio::sync::watch;

use crate::base::clock::WallClock;
use crate::cls::credentials::Credentials;
use crate::cls::endpoint::Endpoint;
use crate::config::CredentialSource;
use crate::config::allowed_hosts::AllowedHosts;
use crate::keys::fetch::{FetchError, Fetcher};
use crate::keys::file::KeyFile;
use crate::keys::temporary::Renewed;
use crate::send::client::Client;

/// How often a source is looked at while somebody waits for another key pair, however many do.
pub(super) const LOOK_PERIOD: Duration = Duration::from_millis(500);

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
    /// The configuration does not allow them at this endpoint, or does so no more.
    #[error("{0}")]
    Forbidden(String),
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
        /// Why; all who wanted a pair at that time share it.
        source: Arc<FetchError>,
    },
    /// The file holds no key pair. The parser's own words are left out: they can quote the file.
    #[error("credentials file {} {fault}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: String,
    },
    /// The file says that its key pair is not valid any more.
    #[error(
        "the key pair in credentials file {} has expired at {expiration}, and the file has not been \
         replaced",
        path.display()
    )]
    Expired {
        /// The file.
        path: PathBuf,
        /// When it has expired, as in RFC 3339.
        expiration: String,
    },
}

/// All sources of the configuration.
#[derive(Debug)]
pub struct CredentialStore {
    sources: RwLock<Sources>,
    /// Looks for a key pair in vain, since the last that was not.
    vain_count: AtomicU64,
    /// Wakes who waits for another key pair, after the sources were replaced.
    replacements: watch::Sender<()>,
    clock: WallClock,
    client: Client,
}

/// The sources, and where the keys of each may be used: both change in one step.
#[derive(Debug, Default)]
struct Sources {
    entries: BTreeMap<String, Arc<Entry>>,
    allowed: AllowedHosts,
}

/// A source as it is configured, and what is known of its keys.
#[derive(Debug)]
struct Entry {
    config: CredentialSource,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Fixed(Arc<Credentials>),
    File(KeyFile),
    Temporary(Arc<Renewed>),
}

impl CredentialStore {
    /// Takes the sources over, and what fetches temporary keys. Files are read and keys fetched at the first use.
    pub fn new(
        sources: &BTreeMap<String, CredentialSource>,
        endpoints: &BTreeMap<String, Vec<String>>,
        clock: &WallClock,
        client: &Client,
    ) -> Self {
        let store = Self {
            sources: RwLock::default(),
            vain_count: AtomicU64::new(0),
            replacements: watch::Sender::default(),
            clock: clock.clone(),
            client: client.clone(),
        };
        store.replace(sources, endpoints);
        store
    }

    /// Takes other sources over, and the hosts that their keys may be used at, for the attempts from
    /// now on. A source that has not changed keeps what is known of its keys.
    pub fn replace(
        &self,
        sources: &BTreeMap<String, CredentialSource>,
        endpoints: &BTreeMap<String, Vec<String>>,
    ) {
        {
            let mut known = self.sources.write().unwrap_or_else(PoisonError::into_inner);
            let entries = sources.iter().map(|(name, config)| {
                let same = known
                    .entries
                    .get(name)
                    .filter(|entry| entry.config == *config);
                let new = || Arc::new(Entry::new(name, config, &self.clock, &self.client));
                (name.clone(), same.map_or_else(new, Arc::clone))
            });
            *known = Sources {
                entries: entries.collect(),
                allowed: AllowedHosts::new(endpoints),
            };
        }
        self.replacements.send_replace(());
    }

    /// Returns whether a source of this name exists.
    pub fn contains(&self, name: &str) -> bool {
        self.all().entries.contains_key(name)
    }

    /// Returns the names of all sources, for messages.
    pub fn names(&self) -> String {
        let sources = &self.all().entries;
        if sources.is_empty() {
            return "none".into();
        }
        sources.keys().cloned().collect::<Vec<_>>().join(", ")
    }

    /// Returns why keys may not be used at an endpoint, if that is so.
    pub fn fault(&self, wanted: &CredentialRef, endpoint: &Endpoint) -> Option<String> {
        let sources = self.all();
        match wanted {
            CredentialRef::Named(name) => sources.allowed.fault(name, endpoint),
            CredentialRef::Own(_) => sources.allowed.fault_of_own(endpoint),
        }
    }

    fn all(&self) -> RwLockReadGuard<'_, Sources> {
        self.sources.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, name: &str) -> Option<Arc<Entry>> {
        self.all().entries.get(name).map(Arc::clone)
    }

    /// Returns the key pair to use at an endpoint as of now. A file is read again if it changed; a
    /// temporary key is fetched again ahead of its expiry. Every attempt asks here, so no retry goes
    /// where another configuration has forbidden it.
    ///
    /// # Errors
    /// The source is unknown or may not be used at the endpoint, its file can't be read or understood
    /// or its pair has expired, or nothing can be fetched.
    pub async fn snapshot(
        &self,
        wanted: &CredentialRef,
        endpoint: &Endpoint,
    ) -> Result<Arc<Credentials>, CredentialsError> {
        let snapshot = self.look(wanted, endpoint).await;
        match &snapshot {
            Ok(_) => self.vain_count.store(0, Ordering::Relaxed),
            Err(_) => _ = self.vain_count.fetch_add(1, Ordering::Relaxed),
        }
        snapshot
    }

    /// Returns whether the last look for a key pair in vain is to be logged: ever more rarely, however
    /// many batches look, so that a night without a key fills no disk.
    pub fn is_vain_look_told(&self) -> bool {
        self.vain_count.load(Ordering::Relaxed).is_power_of_two()
    }

    async fn look(
        &self,
        wanted: &CredentialRef,
        endpoint: &Endpoint,
    ) -> Result<Arc<Credentials>, CredentialsError> {
        let forbidden = || {
            self.fault(wanted, endpoint)
                .map(CredentialsError::Forbidden)
        };
        let name = match wanted {
            CredentialRef::Own(own) => return forbidden().map_or(Ok(Arc::clone(own)), Err),
            CredentialRef::Named(name) => name,
        };
        let entry = self.entry(name).ok_or_else(|| CredentialsError::Unknown {
            name: name.to_owned(),
            known: self.names(),
        })?;
        if let Some(error) = forbidden() {
            return Err(error);
        }
        entry.snapshot(name).await
    }

    /// Looks whether a source has a key pair now, wherever it may be used.
    ///
    /// # Errors
    /// As [`snapshot`](Self::snapshot).
    pub async fn probe(&self, name: &str) -> Result<(), CredentialsError> {
        let entry = self.entry(name).ok_or_else(|| CredentialsError::Unknown {
            name: name.to_owned(),
            known: self.names(),
        })?;
        entry.snapshot(name).await.map(|_| ())
    }

    /// Waits until the source offers another key pair than `refused`, or any if that is `None`; also
    /// one that takes its place. A pair that never changes is waited for without end.
    ///
    /// # Cancel safety
    /// Nothing is lost: the next call looks again.
    pub async fn replaced(&self, wanted: &CredentialRef, refused: Option<&Credentials>) {
        let CredentialRef::Named(name) = wanted else {
            return std::future::pending().await;
        };
        // Before the source is looked up, so that no replacement of it goes unseen.
        let mut replacements = self.replacements.subscribe();
        loop {
            let entry = self.entry(name);
            let other_pair = async {
                match &entry {
                    Some(entry) => entry.replaced(refused).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = other_pair => return,
                // The store has the sender: there is no error.
                _ = replacements.changed() => {}
            }
        }
    }

    /// Learns that CLS has refused a key pair: the next snapshot is read or fetched anew, as far as
    /// that can help. A newer pair stays.
    pub fn forget(&self, wanted: &CredentialRef, refused: &Arc<Credentials>) {
        let CredentialRef::Named(name) = wanted else {
            return;
        };
        let Some(entry) = self.entry(name) else {
            return;
        };
        match &entry.source {
            Source::Fixed(_) => {}
            Source::File(file) => file.forget(refused),
            Source::Temporary(renewed) => renewed.forget(refused),
        }
    }
}

impl Entry {
    fn new(name: &str, config: &CredentialSource, clock: &WallClock, client: &Client) -> Self {
        let source = match config {
            CredentialSource::Inline(fixed) => Source::Fixed(Arc::new(fixed.clone())),
            CredentialSource::File(path) => Source::File(KeyFile::new(path.clone(), clock.clone())),
            CredentialSource::Temporary(origin) => {
                let fetcher = Fetcher::new(origin.clone(), client);
                let renewed = Renewed::new(name.to_owned(), fetcher, clock.clone());
                Source::Temporary(Arc::new(renewed))
            }
        };
        Self {
            config: config.clone(),
            source,
        }
    }

    async fn snapshot(&self, name: &str) -> Result<Arc<Credentials>, CredentialsError> {
        match &self.source {
            Source::Fixed(credentials) => Ok(Arc::clone(credentials)),
            Source::File(file) => file.read(),
            Source::Temporary(renewed) => {
                let fetched = renewed.snapshot().await;
                fetched.map_err(|source| CredentialsError::Fetch {
                    name: name.to_owned(),
                    source,
                })
            }
        }
    }

    /// As [`CredentialStore::replaced`], as long as the source is the same.
    async fn replaced(&self, refused: Option<&Credentials>) {
        match &self.source {
            Source::Fixed(fixed) if Some(&**fixed) == refused => std::future::pending().await,
            Source::Fixed(_) => {}
            Source::File(file) => file.replaced(refused).await,
            Source::Temporary(renewed) => renewed.replaced(refused).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::base::secret::Secret;

    use super::*;

    fn endpoint() -> Endpoint {
        "h".parse().unwrap()
    }

    fn store(path: &Path) -> CredentialStore {
        let source = CredentialSource::File(path.to_owned());
        CredentialStore::new(
            &BTreeMap::from([("f".to_owned(), source)]),
            &BTreeMap::new(),
            &WallClock::system(),
            &Client::default(),
        )
    }

    async fn id(store: &CredentialStore) -> Result<String, String> {
        let named = CredentialRef::Named("f".into());
        store
            .snapshot(&named, &endpoint())
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

    /// Who waits for another pair gets it within two looks, however it came, and not for a file that
    /// is touched, missing or broken.
    #[tokio::test(start_paused = true)]
    async fn another_pair_ends_the_wait_and_nothing_else_does() {
        let folder = tempfile::tempdir().unwrap();
        let [path, next] = ["keys", "next"].map(|name| folder.path().join(name));
        let pair = |id: &str| format!(r#"{{"secret_id":"{id}","secret_key":"k"}}"#);
        std::fs::write(&path, pair("one")).unwrap();
        let store = Arc::new(store(&path));
        let named = CredentialRef::Named("f".into());
        let refused = store.snapshot(&named, &endpoint()).await.unwrap();
        store.forget(&named, &refused);
        let wait = async |refused: Option<&Credentials>, limit| {
            let replaced = store.replaced(&named, refused);
            tokio::time::timeout(limit, replaced).await.is_ok()
        };
        let (long, short) = (Duration::from_secs(3_600), 2 * LOOK_PERIOD);
        assert!(!wait(Some(&refused), long).await, "nothing has changed");
        std::fs::write(&path, pair("one") + "\n").unwrap();
        assert!(!wait(Some(&refused), long).await, "it is the same pair");
        std::fs::write(&path, "{").unwrap();
        assert!(!wait(Some(&refused), long).await, "it is no pair");
        std::fs::remove_file(&path).unwrap();
        assert!(!wait(Some(&refused), long).await, "it is gone");
        std::fs::write(&next, pair("two")).unwrap();
        std::os::unix::fs::symlink(&next, &path).unwrap();
        assert!(wait(Some(&refused), short).await, "a link to another pair");
        assert_eq!(id(&store).await.unwrap(), "two");
        assert!(wait(None, short).await, "any pair will do");
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
    async fn sources_that_are_replaced_keep_what_has_not_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        std::fs::write(&path, r#"{"secret_id":"one","secret_key":"k"}"#).unwrap();
        let store = store(&path);
        let named = CredentialRef::Named("f".into());
        let first = store.snapshot(&named, &endpoint()).await.unwrap();
        let file = CredentialSource::File(path);
        let inline = CredentialSource::Inline(Credentials {
            id: Secret::new("two".into()),
            key: Secret::new("k".into()),
            token: None,
        });
        let both = [("f", file), ("i", inline.clone())];
        let both = both.map(|(name, source)| (name.to_owned(), source));
        store.replace(&BTreeMap::from(both), &BTreeMap::new());
        assert!(Arc::ptr_eq(
            &first,
            &store.snapshot(&named, &endpoint()).await.unwrap()
        ));
        assert_eq!(store.names(), "f, i");
        store.replace(
            &BTreeMap::from([("f".to_owned(), inline)]),
            &BTreeMap::new(),
        );
        assert_eq!(id(&store).await.unwrap(), "two");
        store.replace(&BTreeMap::new(), &BTreeMap::new());
        let error = id(&store).await.unwrap_err();
        assert_eq!(error, "credentials `f` are not configured; known: none");
    }

    /// A lane that holds for its source goes on by the one that takes its place, at once.
    #[tokio::test(start_paused = true)]
    async fn who_waits_for_another_pair_is_woken_by_another_source() {
        let inline = |id: &str| {
            let (id, key) = (Secret::new(id.into()), Secret::new("k".into()));
            let token = None;
            CredentialSource::Inline(Credentials { id, key, token })
        };
        let one = |name: &str, id| BTreeMap::from([(name.to_owned(), inline(id))]);
        let store = CredentialStore::new(
            &one("f", "one"),
            &BTreeMap::new(),
            &WallClock::system(),
            &Client::default(),
        );
        let named = CredentialRef::Named("f".into());
        let refused = store.snapshot(&named, &endpoint()).await.unwrap();
        let ends_wait = async |refused: Option<&Credentials>, sources| {
            let wait = store.replaced(&named, refused);
            let wait = tokio::time::timeout(Duration::from_secs(3_600), wait);
            let replace = async {
                tokio::task::yield_now().await;
                store.replace(&sources, &BTreeMap::new());
            };
            tokio::join!(wait, replace).0.is_ok()
        };
        let refused = Some(&*refused);
        assert!(!ends_wait(refused, BTreeMap::new()).await, "it is gone");
        assert!(!ends_wait(None, one("other", "two")).await, "another name");
        assert!(ends_wait(None, one("f", "one")).await, "any pair will do");
        assert!(!ends_wait(refused, one("f", "one")).await, "the same pair");
        assert!(ends_wait(refused, one("f", "two")).await, "another pair");
    }

    /// A batch that is repeated meets the endpoints that are allowed now, not when it was made.
    #[tokio::test]
    async fn keys_go_nowhere_that_another_configuration_has_forbidden() {
        let pair = Credentials {
            id: Secret::new("i".into()),
            key: Secret::new("k".into()),
            token: None,
        };
        let sources = BTreeMap::from([("f".to_owned(), CredentialSource::Inline(pair))]);
        let allowed = |host: &str| BTreeMap::from([("f".to_owned(), vec![host.to_owned()])]);
        let store = CredentialStore::new(
            &sources,
            &allowed("h"),
            &WallClock::system(),
            &Client::default(),
        );
        let named = CredentialRef::Named("f".into());
        store.snapshot(&named, &endpoint()).await.unwrap();
        store.replace(&sources, &allowed("other"));
        let error = store.snapshot(&named, &endpoint()).await.unwrap_err();
        assert!(
            matches!(error, CredentialsError::Forbidden(_)) && store.is_vain_look_told(),
            "{error}"
        );
        let own = CredentialRef::Own(
            store
                .snapshot(&named, &"other".parse().unwrap())
                .await
                .unwrap(),
        );
        store.snapshot(&own, &endpoint()).await.unwrap();
    }

    #[tokio::test]
    async fn looks_in_vain_are_told_ever_more_rarely() {
        let store = store(Path::new("/nonexistent"));
        let named = CredentialRef::Named("f".into());
        let mut told = 0;
        for _ in 0..129 {
            store.snapshot(&named, &endpoint()).await.unwrap_err();
            told += u32::from(store.is_vain_look_told());
        }
        assert_eq!(told, 8);
    }

    #[tokio::test]
    async fn an_unknown_name_lists_the_known_ones() {
        let store = store(Path::new("/nonexistent"));
        let error = store
            .snapshot(&CredentialRef::Named("g".into()), &endpoint())
            .await
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "credentials `g` are not configured; known: f"
        );
    }
}
