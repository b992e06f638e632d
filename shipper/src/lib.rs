//! The shipper: turns container log entries into CLS records and uploads them.
//!
//! ```text
//! door → call → rules → record → upload ⇄ lane, upload → keys → send → cls
//!          ▲                               │
//!          └─────── outbox ◀── receipts ◀──┘
//! ```
//!
//! It holds no state on disk that a log depends on: what is not acknowledged still stands in the
//! journals of the hosts, so this process can be killed, replaced or moved at any time.

pub mod base;
pub mod call;
pub mod cls;
pub mod config;
pub mod door;
pub mod keys;
pub mod lane;
pub mod record;
pub mod rules;
pub mod run;
pub mod send;
pub mod show;
pub mod upload;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

pub use crate::base::chain::Chain;
use crate::base::clock::WallClock;
use crate::base::phase::{Phase, reached};
use crate::base::tasks::Tasks;
use crate::call::service::RelayService;
use crate::call::shared::Shared;
use crate::config::Config;
use crate::door::admin;
use crate::door::gate::AdminListener;
use crate::door::listeners::{ListenError, Listeners, bind_tcp};
use crate::keys::store::CredentialStore;
use crate::rules::tenant::overlaps;
use crate::run::assemble::{assemble, files_max, policy};
use crate::send::client::Client;
use crate::send::road::RoadError;

/// Time for calls to end once all their entries are acknowledged.
const CALLS_END_GRACE: Duration = Duration::from_secs(1);

/// Why the process could not start or had to end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A socket can't be bound.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The road to CLS can't be taken.
    #[error(transparent)]
    Road(#[from] RoadError),
}

/// Runs the shipper until `shutdown` completes; then delivers what is in memory, for at most
/// `shutdown_grace`.
///
/// # Errors
/// A socket can't be bound, or the HTTP client can't be built.
pub async fn run(
    config: Config,
    clock: WallClock,
    shutdown: impl Future<Output = ()>,
) -> Result<(), RunError> {
    let (_never, reloads) = mpsc::channel(1);
    run_reloading(config, clock, reloads, shutdown).await
}

/// Runs the shipper as [`run()`] does, and takes over each configuration that comes out of `reloads`,
/// as far as that is possible without a new process: credentials for the attempts from now on,
/// defaults, tenants and rules for calls, which end and begin anew for that. Of what else has changed it
/// says that it needs a restart.
///
/// # Errors
/// A socket can't be bound, or the HTTP client can't be built.
pub async fn run_reloading(
    mut config: Config,
    clock: WallClock,
    mut reloads: mpsc::Receiver<Config>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), RunError> {
    let (phase_tx, phase) = watch::channel(Phase::Serving);
    let tasks = Arc::new(Tasks::default());
    let servers = Tasks::default();
    let client = Client::new(config.road.clone());
    // A bad file is better seen now than at the first upload.
    client.http()?;
    let credentials = Arc::new(CredentialStore::new(
        &config.credentials,
        &config.endpoints,
        &clock,
        &client,
    ));
    let (phase_rx, process_tasks) = (phase.clone(), Arc::clone(&tasks));
    let shared = assemble(
        &config,
        clock,
        &credentials,
        &client,
        process_tasks,
        phase_rx,
    );
    let shared = Arc::new(shared);
    // Before the unix socket, which is taken from who has it: a second process that can't start is
    // not to cut the drivers off from the first.
    let admin = bind_tcp(config.admin_listen).await?;
    let listeners = Listeners::bind(&config.listen).await?;
    let pages = admin::Admin {
        metrics: Arc::clone(&shared.metrics),
        ledger: Arc::clone(&shared.ledger),
        phase: phase.clone(),
    };
    let admin_routes = admin::router(pages, &config.admin_hosts);
    let admin_phase = phase.clone();
    let files_max = files_max();
    let admin = AdminListener::new(admin, files_max, Arc::clone(&shared.metrics));
    servers.spawn(async move {
        let server = axum::serve(admin, admin_routes)
            .with_graceful_shutdown(reached(admin_phase, Phase::Ended));
        if let Err(error) = server.await {
            warn!(%error, "admin server ended");
        }
    });
    let relay = RelayService(Arc::clone(&shared));
    listeners.serve(&relay, files_max, &phase, &servers);
    warn_of_overlaps(&config);
    info!(unix = ?config.listen.unix, tcp = ?config.listen.tcp, admin = %config.admin_listen,
        version = env!("CARGO_PKG_VERSION"), "shipper is ready");

    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(new) = reloads.recv() => reload(&mut config, new, &credentials, &shared),
        }
    }
    info!("shipper is stopping");
    phase_tx.send_replace(Phase::Draining);
    shared.lanes.close();
    if !tasks.finish(config.shutdown_grace).await {
        warn!(
            grace_ms = config.shutdown_grace.as_millis(),
            "not all batches were delivered in time, the drivers keep them"
        );
    }
    phase_tx.send_replace(Phase::Ended);
    servers.finish(CALLS_END_GRACE).await;
    info!("shipper has stopped");
    Ok(())
}

fn warn_of_overlaps(config: &Config) {
    for overlap in overlaps(&config.tenants) {
        warn!(overlap, "tenants are not apart");
    }
}

/// Takes over what can be taken over of a new configuration; `config` becomes what is in use.
fn reload(config: &mut Config, new: Config, credentials: &Arc<CredentialStore>, shared: &Shared) {
    let fixed = config.fixed_differences(&new);
    if !fixed.is_empty() {
        warn!(
            settings = fixed.join(", "),
            "these settings have changed and need a restart of the shipper"
        );
    }
    credentials.replace(&new.credentials, &new.endpoints);
    let has_other_rules = config.defaults != new.defaults
        || config.tenants != new.tenants
        || config.rules != new.rules
        || config.endpoints != new.endpoints;
    config.credentials = new.credentials;
    config.endpoints = new.endpoints;
    config.defaults = new.defaults;
    config.tenants = new.tenants;
    config.rules = new.rules;
    if has_other_rules {
        warn_of_overlaps(config);
        let tenants = shared.policy().tenants.succeeded_by(&config.tenants);
        let policy = policy(config, tenants, credentials);
        shared.policy.send_replace(policy);
    }
    info!(calls_begin_anew = has_other_rules, "configuration reloaded");
}
