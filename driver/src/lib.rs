//! The driver: a Docker logging plugin that moves bytes and understands none of them.
//!
//! ```text
//! engine ──StartLogging──▶ engine ──▶ table (on disk) ──▶ registry (streams)
//! FIFO ──splice──▶ pump (one thread) ──▶ journal ──▶ relay ──gRPC──▶ shipper
//!                                           ▲          │
//!                                           └───ack────┘
//! ```
//!
//! It holds no credential of the cloud and speaks to no one but the engine and the shipper. Three
//! promises shape it: SIGKILL loses and repeats no byte of a FIFO; a FIFO is always read, whatever
//! is down; nothing on the path of a container's start or stop waits for the network.

mod blocking;
#[cfg(any(test, feature = "fuzz"))]
#[path = "../tests/call_model/model.rs"]
pub mod call_model;
mod chain;
mod config;
pub mod descriptors;
mod disk;
mod engine;
pub mod inspect;
mod isolate;
mod journal;
pub mod logging;
mod pump;
mod registry;
mod relay;
pub mod sandbox;
mod stream;
mod table;
mod upkeep;

pub use config::{Config, ConfigError, Endpoint, RawConfig, SETTINGS, Setting};
pub use disk::{Disk, RealDisk};
pub use engine::BindError;
pub use pump::PumpError;
pub use table::TableError;

use blocking::blocking;
use engine::{Containers, SocketLock};
use pump::Pump;
use registry::Shared;
use relay::Forwarder;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use upkeep::Upkeep;

/// Blocking threads that the driver uses at once: for starts, and one each for a recovery, room in
/// full journals, the watch over free disk, a sync, streams that are over, a pass of the forwarder, its
/// files, and the last sync. A runtime with fewer lets one wait for another, and all of them for the
/// slowest disk.
pub const DISK_THREADS_MAX: usize = engine::STARTS_MAX + 8;

/// Time of a stop by which what is in flight is acknowledged, or sent again by the next process.
const FINISHED_BY: Duration = Duration::from_millis(2250);
/// Time of a stop by which the FIFOs are read empty, or are left to the next process.
const DRAINED_BY: Duration = Duration::from_millis(3250);
/// Time of a stop by which the journals are synced, or are not. The engine kills a plugin after 10 s,
/// and containers wait meanwhile.
const SYNCED_BY: Duration = Duration::from_millis(4500);

const _: () = assert!(relay::FINISH_WAIT_MAX.as_millis() < FINISHED_BY.as_millis());

/// Why the driver could not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The engine can't reach it.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// There is no place for its state.
    #[error(transparent)]
    Table(#[from] TableError),
    /// FIFOs can't be read.
    #[error(transparent)]
    Pump(#[from] PumpError),
    /// One of its parts has ended. The engine starts it again, and it goes on from its table.
    #[error("{0} has ended; see the message before")]
    PartEnded(&'static str),
}

/// Runs the driver, with its state on `disk`, until `shutdown` resolves, then reads every FIFO empty,
/// waits a moment for acknowledgements, syncs the journals, and returns: 4.5 s later at most. What a
/// disk holds up then goes on in threads that nobody waits for.
///
/// # Errors
/// See [`RunError`]. What was received is in the journals.
///
/// # Cancel safety
/// Dropping it is like SIGKILL, but for the pump, which reads the FIFOs once more and ends.
pub async fn run(
    config: Config,
    disk: Arc<dyn Disk>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), RunError> {
    // First of all: the engine disables a plugin that does not listen.
    let mut shutdown = std::pin::pin!(shutdown);
    let binding = engine::bind(&config.plugin_socket);
    let Some(bound) = before(shutdown.as_mut(), binding).await else {
        return Ok(());
    };
    let (listener, socket): (_, SocketLock) = bound?;
    let shared = Shared::new(&config, disk);
    let mut pump = Pump::start(Arc::clone(&shared.signals), &config)?;
    let (connected, checker) = relay::connection();
    let settings = engine::Settings::from_config(&config);
    let opening = Containers::open(settings, shared.clone(), pump.handle(), checker);
    let Some(containers) = before(shutdown.as_mut(), opening).await else {
        socket.remove_socket();
        return Ok(());
    };
    let containers = Arc::new(containers?);
    let upkeep = Upkeep::new(&config, shared.clone());
    let (stop, stopping) = watch::channel(false);
    let mut parts = JoinSet::new();
    let recovering = Arc::clone(&containers);
    parts.spawn_blocking(move || {
        recovering.recover();
        RECOVERY
    });
    let orphans = Arc::clone(&containers);
    parts.spawn(async move {
        orphans.read_orphans().await;
        RECOVERY
    });
    let served = Arc::clone(&containers);
    parts.spawn(async move {
        engine::serve(listener, served).await;
        "the plugin API"
    });
    parts.spawn(named("upkeep", upkeep.clone().run()));
    let forwarder = Forwarder::new(config, &shared, connected, stopping);
    parts.spawn(named(FORWARDER, forwarder.run()));
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "driver started");

    let ended = supervise(&mut parts, &mut pump, shutdown).await;
    let began = Instant::now();
    stop.send_replace(true);
    stop_parts(&mut parts, began + FINISHED_BY).await;
    if timeout_at(began + DRAINED_BY, pump.stop()).await.is_err() {
        tracing::warn!("a FIFO could not be read empty in time");
    }
    let synced = blocking(move || upkeep.sync_all());
    if timeout_at(began + SYNCED_BY, synced).await.is_err() {
        tracing::warn!("the journals could not be synced in time");
    }
    socket.remove_socket();
    tracing::info!("driver stopped");
    ended
}

/// Returns what comes of `opening`, which a disk may hold up for ever; `None` if the signal to stop
/// comes first.
async fn before<T>(
    shutdown: Pin<&mut impl Future<Output = ()>>,
    opening: impl Future<Output = T>,
) -> Option<T> {
    tokio::select! {
        opened = opening => Some(opened),
        () = shutdown => None,
    }
}

const FORWARDER: &str = "the forwarder";
/// Ends once all that an earlier process has left is taken on.
const RECOVERY: &str = "recovery";

async fn named(name: &'static str, part: impl Future<Output = ()>) -> &'static str {
    part.await;
    name
}

/// Waits for the signal to stop, or for the end of a part that has none.
async fn supervise(
    parts: &mut JoinSet<&'static str>,
    pump: &mut Pump,
    mut shutdown: Pin<&mut impl Future<Output = ()>>,
) -> Result<(), RunError> {
    loop {
        tokio::select! {
            () = &mut shutdown => return Ok(()),
            () = pump.ended() => return Err(RunError::PartEnded("the pump")),
            Some(ended) = parts.join_next() => match ended {
                Ok(RECOVERY) => {}
                Ok(name) => return Err(RunError::PartEnded(name)),
                Err(error) => {
                    tracing::error!(%error, "a part of the driver has panicked");
                    return Err(RunError::PartEnded("a part"));
                }
            },
        }
    }
}

/// Lets the forwarder finish; what else runs, runs until then.
async fn stop_parts(parts: &mut JoinSet<&'static str>, deadline: Instant) {
    let finished = async {
        while let Some(ended) = parts.join_next().await {
            if matches!(ended, Ok(FORWARDER)) {
                return;
            }
        }
    };
    if timeout_at(deadline, finished).await.is_err() {
        tracing::warn!("the forwarder did not finish in time");
    }
    parts.abort_all();
}
