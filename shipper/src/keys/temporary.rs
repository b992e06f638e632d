//! A temporary key pair that is kept current.
//!
//! A pair that is due for renewal stays in use while a task fetches its successor, so a service that
//! is slow or gone holds nothing up as long as the pair is valid. Without a valid pair callers wait
//! for one fetch, which they share, and so they do its failure: however many ask, a service in
//! trouble is asked once in [`Fetcher::pause`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;
use tracing::{info, warn};

use crate::base::clock::WallClock;
use crate::base::tasks::Tasks;
use crate::base::watched::Stamp;
use crate::cls::credentials::Credentials;
use crate::keys::fetch::{FetchError, Fetcher, Temporary};
use crate::keys::store::LOOK_PERIOD;

/// One source of temporary key pairs.
#[derive(Debug)]
pub(super) struct Renewed {
    name: String,
    fetcher: Fetcher,
    clock: WallClock,
    known: Mutex<Known>,
    /// Held over a fetch, so that only one is under way.
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Renewals; they end with the source.
    renewals: Tasks,
}

#[derive(Debug, Default)]
struct Known {
    current: Option<Temporary>,
    /// When the last fetch ended, and why it failed if it did.
    fetched_at: Option<Instant>,
    failure: Option<Arc<FetchError>>,
    /// The token file as it was at the last fetch.
    token_stamp: Option<Stamp>,
    /// Whether CLS has refused the current pair.
    is_refused: bool,
    /// When the service was last asked because of a refusal.
    refetched_at: Option<Instant>,
}

impl Known {
    /// Returns the failure of a fetch, while the service is to be left alone.
    fn fresh_failure(&self, fetcher: &Fetcher) -> Option<Arc<FetchError>> {
        let is_fresh = self
            .fetched_at
            .is_some_and(|at| Instant::now() < at + fetcher.pause());
        self.failure.clone().filter(|_| is_fresh)
    }
}

impl Renewed {
    pub(super) fn new(name: String, fetcher: Fetcher, clock: WallClock) -> Self {
        Self {
            name,
            fetcher,
            clock,
            known: Mutex::default(),
            turn: Arc::default(),
            renewals: Tasks::default(),
        }
    }

    /// Returns a pair that is valid now.
    pub(super) async fn snapshot(self: &Arc<Self>) -> Result<Arc<Credentials>, Arc<FetchError>> {
        if let Some(credentials) = self.usable() {
            self.renew_if_due();
            return Ok(credentials);
        }
        let _turn = self.turn.lock().await;
        // Somebody may have tried meanwhile.
        if let Some(credentials) = self.usable() {
            return Ok(credentials);
        }
        if let Some(refused) = self.valid() {
            self.known().refetched_at = Some(Instant::now());
            // The refused pair is better than none: what is wrong may be repaired at its role.
            return Ok(self.fetch().await.unwrap_or(refused));
        }
        if let Some(failure) = self.known().fresh_failure(&self.fetcher) {
            return Err(failure);
        }
        self.fetch().await
    }

    /// Learns that CLS has refused a pair.
    pub(super) fn forget(&self, refused: &Arc<Credentials>) {
        let mut known = self.known();
        let current = known.current.as_ref();
        if current.is_some_and(|current| Arc::ptr_eq(&current.credentials, refused)) {
            known.is_refused = true;
        }
    }

    /// Returns the valid pair, unless it is refused and another one is to be had.
    fn usable(&self) -> Option<Arc<Credentials>> {
        let valid = self.valid()?;
        let may_refetch = {
            let known = self.known();
            let pause = self.fetcher.refusal_pause();
            let has_paused = known
                .refetched_at
                .is_none_or(|at| Instant::now() >= at + pause);
            known.is_refused && (has_paused || self.has_other_token(&known))
        };
        (!may_refetch).then_some(valid)
    }

    fn has_other_token(&self, known: &Known) -> bool {
        let path = self.fetcher.token_file();
        let stamp = path.and_then(|path| Stamp::of(path).ok());
        stamp.is_some() && stamp != known.token_stamp
    }

    /// Waits until there is another pair than `refused`. The service is asked while somebody waits.
    pub(super) async fn replaced(&self, refused: Option<&Credentials>) {
        loop {
            tokio::time::sleep(LOOK_PERIOD).await;
            let _turn = self.turn.lock().await;
            if self.is_fetch_worthwhile() {
                // Who needs the pair is told of the failure.
                self.fetch().await.ok();
            }
            if self.valid().is_some_and(|valid| Some(&*valid) != refused) {
                return;
            }
        }
    }

    fn is_fetch_worthwhile(&self) -> bool {
        let known = self.known();
        let Some(fetched_at) = known.fetched_at else {
            return true;
        };
        let has_paused = Instant::now() >= fetched_at + self.fetcher.pause();
        match self.fetcher.token_file() {
            Some(_) if known.failure.is_some() && has_paused => true,
            Some(_) => self.has_other_token(&known),
            None => has_paused,
        }
    }

    fn valid(&self) -> Option<Arc<Credentials>> {
        let now_s = self.clock.unix_s();
        let known = self.known();
        let valid = known.current.as_ref().filter(|it| now_s < it.expires_s);
        valid.map(|valid| Arc::clone(&valid.credentials))
    }

    fn renew_if_due(self: &Arc<Self>) {
        let now_s = self.clock.unix_s();
        let is_due = {
            let known = self.known();
            let is_due = known.current.as_ref().is_some_and(|it| now_s >= it.renew_s);
            is_due && known.fresh_failure(&self.fetcher).is_none()
        };
        if !is_due {
            return;
        }
        if let Ok(turn) = Arc::clone(&self.turn).try_lock_owned() {
            // Weak: a source that nobody has any more is not kept by its own task.
            let source = Arc::downgrade(self);
            self.renewals.spawn(async move {
                if let Some(source) = source.upgrade()
                    && let Err(error) = source.fetch().await
                {
                    warn!(name = source.name, error = %crate::base::chain::Chain(&error),
                        "temporary credentials can't be renewed yet");
                }
                drop(turn);
            });
        }
    }

    /// Fetches a pair; the caller has the turn.
    async fn fetch(&self) -> Result<Arc<Credentials>, Arc<FetchError>> {
        let token_stamp = self
            .fetcher
            .token_file()
            .and_then(|path| Stamp::of(path).ok());
        let fetched = self.fetcher.fetch(&self.clock).await.map_err(Arc::new);
        let mut known = self.known();
        known.fetched_at = Some(Instant::now());
        known.token_stamp = token_stamp;
        known.failure = fetched.as_ref().err().cloned();
        let fetched = fetched?;
        known.is_refused = false;
        let valid_s = fetched.expires_s.saturating_sub(self.clock.unix_s());
        info!(name = self.name, valid_s, "temporary credentials fetched");
        Ok(Arc::clone(&known.current.insert(fetched).credentials))
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
