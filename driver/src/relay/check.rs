//! Asks a connected shipper, at a start, whether the options of a container can work.

use super::connect::Client;
use super::explain;
use proto::relay::{self, CheckRequest};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

/// A connection to a shipper, as [`Checker`] uses it.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    client: Client,
    /// Until when a shipper that did not answer is not asked again. Another connection, which may
    /// lead to another shipper, begins without.
    silent_until: Arc<Mutex<Option<Instant>>>,
}

impl Connection {
    pub(super) fn new(client: Client) -> Self {
        let silent_until = Arc::default();
        Self {
            client,
            silent_until,
        }
    }

    fn silent_until(&self) -> MutexGuard<'_, Option<Instant>> {
        let silent_until = self.silent_until.lock();
        silent_until.expect("whoever holds this lock does not panic")
    }
}

/// Asks a connected shipper about options.
#[derive(Debug, Clone)]
pub(crate) struct Checker {
    connection: watch::Receiver<Option<Connection>>,
}

impl Checker {
    /// How long an answer is waited for.
    pub(crate) const ANSWER_WAIT_MAX: Duration = Duration::from_millis(500);

    /// How long a shipper that did not answer is left in peace: many starts in a row must not wait
    /// for it one by one. A dead one is found meanwhile.
    const SILENCE: Duration = Duration::from_secs(20);

    /// Returns what the shipper finds wrong with a container's options; nothing if it can't be
    /// asked right now, or does not answer in time.
    pub(crate) async fn faults(&self, open: &relay::Open) -> Vec<String> {
        let now = Instant::now();
        let Some(mut connection) = self.connection.borrow().clone() else {
            return Vec::new();
        };
        if connection.silent_until().is_some_and(|until| now < until) {
            return Vec::new();
        }
        let request = CheckRequest {
            container: open.container.clone(),
            log_opts: open.log_opts.clone(),
            host: open.host.clone(),
        };
        match timeout(Self::ANSWER_WAIT_MAX, connection.client.check(request)).await {
            Ok(Ok(response)) => shown_faults(response.into_inner().faults),
            Ok(Err(status)) => {
                tracing::debug!(%status, "the shipper could not check options");
                Vec::new()
            }
            Err(_) => {
                tracing::warn!("the shipper does not answer: options are not checked");
                *connection.silent_until() = Some(now + Self::SILENCE);
                Vec::new()
            }
        }
    }
}

/// Faults of a container's options that its user is shown.
const FAULTS_SHOWN_MAX: usize = 32;

/// Returns a shipper's faults as the user of `docker run` may read them.
fn shown_faults(faults: Vec<String>) -> Vec<String> {
    let shown = faults.into_iter().take(FAULTS_SHOWN_MAX);
    shown.map(|fault| explain::shown(&fault)).collect()
}

/// Returns both ends of what tells whether a shipper is connected.
pub(crate) fn connection() -> (watch::Sender<Option<Connection>>, Checker) {
    let (connected, connection) = watch::channel(None);
    (connected, Checker { connection })
}
