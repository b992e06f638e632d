//! What a configuration becomes: the parts of the process, put together.

use std::sync::Arc;

use tokio::sync::watch;

use crate::base::buffers::Buffers;
use crate::base::clock::WallClock;
use crate::base::phase::Phase;
use crate::base::tasks::Tasks;
use crate::call::shared::{Policy, Shared};
use crate::config::Config;
use crate::keys::store::CredentialStore;
use crate::lane::window::Budget;
use crate::rules::effective::Rules;
use crate::rules::route::{Router, Warned};
use crate::rules::tenant::Tenants;
use crate::send::client::Client;
use crate::show::ledger::Ledger;
use crate::show::metrics::Metrics;
use crate::upload::batch::Uploader;
use crate::upload::lanes::Lanes;
use crate::upload::letters::DeadLetters;
use crate::upload::wire::Wire;

/// Returns how many files the process may have open; nothing, if any number.
pub(crate) fn files_max() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

/// Makes what streams are opened by.
pub(crate) fn policy(
    config: &Config,
    tenants: Tenants,
    credentials: &Arc<CredentialStore>,
) -> Arc<Policy> {
    Arc::new(Policy {
        tenants,
        rules: Rules::new(&config.rules),
        router: Router::new(config, Arc::clone(credentials)),
    })
}

/// Builds what all calls share.
pub(crate) fn assemble(
    config: &Config,
    clock: WallClock,
    credentials: &Arc<CredentialStore>,
    client: &Client,
    tasks: Arc<Tasks>,
    phase: watch::Receiver<Phase>,
) -> Shared {
    let (buffers, ledger) = (Arc::new(Buffers::default()), Arc::new(Ledger::default()));
    let budget = Arc::new(Budget::new(config.upload.buffer_bytes_max));
    let of_budget = Arc::clone(&budget);
    let metrics = Metrics::default().showing(Arc::clone(&ledger), move || of_budget.granted());
    let metrics = Arc::new(metrics);
    let uploader = Arc::new(Uploader {
        cloud: Arc::new(client.clone()),
        credentials: Arc::clone(credentials),
        clock: clock.clone(),
        compression: config.upload.compression,
        concurrency_max: config.upload.concurrency_max,
        wire: Wire::new(files_max()),
        dead_letters: config.dead_letter.as_ref().map(|store| {
            let letters = DeadLetters::new(store.path.clone(), store.bytes_max);
            Arc::new(letters.shared(config.tenants.len() > 1))
        }),
        tasks,
        buffers: Arc::clone(&buffers),
        metrics: Arc::clone(&metrics),
    });
    let tenants = Tenants::new(&config.tenants);
    Shared {
        policy: watch::Sender::new(policy(config, tenants, credentials)),
        warned: Warned::default(),
        lanes: Arc::new(Lanes::new(config.upload, Arc::clone(&budget), uploader)),
        budget,
        buffers,
        metrics,
        ledger,
        clock,
        run_bytes_max: config.upload.batch_bytes_max,
        run_logs_max: config.upload.batch_logs_max,
        connection_age_max: config.listen.connection_age_max,
        phase,
    }
}
