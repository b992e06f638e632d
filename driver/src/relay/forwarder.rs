//! The forwarder: one `Ship` call to one shipper, for all streams of the host.
//!
//! ```text
//! connect ──▶ session ──call ends──▶ next place at once, the first one after the last
//!    ▲                                     │ all places failed since one was useful
//!    └──────────── backoff ◀───────────────┘
//! ```
//!
//! Nothing here decides about an entry: a session that ends, for whatever reason, loses nothing,
//! and the next one goes on at the acknowledged offsets.

use super::check::Connection;
use super::connect::{Client, connect};
use super::connect_log::ConnectLog;
use super::endpoints::EndpointCycle;
use super::explain::Explanation;
use super::gather::Gatherer;
use super::resolve::{Resolver, System};
use super::session::{Session, SessionEnd};
use crate::blocking::blocking;
use crate::config::Config;
use crate::registry::{Registry, Shared, Signals};
use proto::backoff::Backoff;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

/// Delay before endpoints are tried again: first, and at most. Together with `CONNECT_WAIT_MAX`
/// below the 5 s within which the end of an outage is noticed.
const RETRY_BASE: Duration = Duration::from_millis(100);

const RETRY_CAP: Duration = Duration::from_secs(3);

/// How long a call lasts that the shipper has ended in good order, although there was nothing to ship:
/// for its age. A shipper that ends calls at once is none.
const IDLE_CALL_MIN: Duration = Duration::from_millis(500);

/// The forwarder, before it runs.
#[derive(Debug)]
pub(crate) struct Forwarder {
    config: Config,
    registry: Arc<Registry>,
    signals: Arc<Signals>,
    connected: watch::Sender<Option<Connection>>,
    shutdown: watch::Receiver<bool>,
    seed: u64,
}

impl Forwarder {
    /// Returns a forwarder that begins when it is run, and ends when `shutdown` turns true.
    pub(crate) fn new(
        config: Config,
        shared: &Shared,
        connected: watch::Sender<Option<Connection>>,
        shutdown: watch::Receiver<bool>,
    ) -> Self {
        let mut seed = [0; 8];
        // Without randomness there is no jitter, and nothing worse.
        rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty()).ok();
        Self {
            config,
            registry: Arc::clone(&shared.registry),
            signals: Arc::clone(&shared.signals),
            connected,
            shutdown,
            seed: u64::from_ne_bytes(seed),
        }
    }

    /// Forwards until the driver stops.
    pub(crate) async fn run(mut self) {
        let gatherer = Gatherer::new(
            Arc::clone(&self.registry),
            Arc::clone(&self.signals),
            &self.config.host_name,
            self.seed,
        );
        let mut gatherer = Box::new(gatherer);
        let mut backoff = Backoff::new(RETRY_BASE, RETRY_CAP, self.seed);
        let mut endpoints =
            EndpointCycle::new(&self.config.shipper, self.seed, Resolver::new(System));
        let mut log = ConnectLog::default();
        while !*self.shutdown.borrow() {
            loop {
                let candidate = endpoints.next().await;
                let endpoint = &candidate.endpoint;
                match connect(&self.config, &candidate).await {
                    Err(error) => log.failed(&candidate, &Explanation::new(endpoint, &error)),
                    Ok(client) => {
                        log.connected(&candidate);
                        let has_other = endpoints.candidate_count() > 1;
                        let connection = Connection::new(client.clone());
                        self.connected.send_replace(Some(connection));
                        let (returned, end, was_useful) =
                            self.session(client, gatherer, has_other).await;
                        self.connected.send_replace(None);
                        gatherer = returned;
                        // A pass that panicked may have left anything behind: the process starts
                        // afresh.
                        if matches!(end, SessionEnd::Shutdown | SessionEnd::Pass) {
                            return;
                        }
                        if was_useful {
                            log.clear();
                        }
                        // One that breaks the contract would do so again, and entries in flight
                        // would be sent again, each time.
                        if was_useful && !matches!(end, SessionEnd::Fault(_)) {
                            backoff.reset();
                        }
                        if was_useful && matches!(end, SessionEnd::Ended) {
                            tracing::info!(endpoint = %candidate, %end, "changing to the next shipper");
                            continue;
                        }
                        if was_useful {
                            tracing::warn!(
                                endpoint = %candidate, %end,
                                "lost a shipper; entries stay in the journals"
                            );
                            log.failed(&candidate, &Explanation::plain(end.to_string()));
                        } else {
                            log.failed(&candidate, &end.explain(endpoint));
                            log.refused_call(&candidate);
                        }
                    }
                }
                if log.failed_count() >= endpoints.candidate_count() {
                    break;
                }
            }
            log.report_if_new();
            let delay = backoff.next_delay();
            let stopped = self.shutdown.wait_for(|&is_stopping| is_stopping);
            // Either way the loop decides.
            timeout(delay, stopped).await.ok();
        }
    }

    /// Runs one call until it ends. Returns whether it was of use, too: a stream was accepted in it, or
    /// it lasted without any.
    async fn session(
        &mut self,
        client: Client,
        gatherer: Box<Gatherer>,
        has_other: bool,
    ) -> (Box<Gatherer>, SessionEnd, bool) {
        let (mut session, requests) = Session::new(&client, gatherer, has_other);
        let began = Instant::now();
        let end = session
            .run(&self.signals, &mut self.shutdown, requests)
            .await;
        let has_lasted = matches!(end, SessionEnd::Ended) && began.elapsed() >= IDLE_CALL_MIN;
        let was_useful = session.was_useful || has_lasted;
        drop(client);
        let mut responses = std::mem::take(&mut session.responses);
        let returned = session.pass.into_gatherer().await;
        let new = || {
            Box::new(Gatherer::new(
                Arc::clone(&self.registry),
                Arc::clone(&self.signals),
                &self.config.host_name,
                self.seed,
            ))
        };
        let mut gatherer = returned.unwrap_or_else(new);
        // Nothing is in flight any more: all of it may be dropped if a journal fills.
        let reset = move || {
            // What came before the end counts: an acknowledgement that is not applied is a repeat.
            let now = Instant::now();
            gatherer.apply(&mut responses, now);
            gatherer.reset(now);
            gatherer.detach();
            gatherer
        };
        let gatherer = blocking(reset).await.unwrap_or_else(new);
        (gatherer, end, was_useful)
    }
}
