//! The shipper: turns container log entries into CLS records and uploads them.
//!
//! ```text
//! ingest → session → record → lane → upload → cls
//!            ▲                          │
//!            └──── outbox ◀── ack ◀─────┘
//! ```
//!
//! It holds no state on disk that a log depends on: what is not acknowledged still stands in the
//! journals of the hosts, so this process can be killed, replaced or moved at any time.

pub mod admin;
pub mod buffers;
pub mod clock;
pub mod cls;
pub mod config;
pub mod connection;
pub mod credentials;
mod host_clock;
pub mod ingest;
pub mod lane;
pub mod ledger;
pub mod metrics;
pub mod record;
#[cfg(any(test, feature = "fuzz"))]
pub mod rehearsal;
pub mod reload;
pub mod route;
mod session;
pub mod tasks;
pub mod tenant;
pub mod tls;
pub mod upload;
pub mod watched;
pub mod window;

use std::error::Error;
use std::fmt;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use proto::limits::MESSAGE_BYTES_MAX;
use proto::relay::relay_server::RelayServer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tracing::{info, warn};

use crate::buffers::Buffers;
use crate::clock::WallClock;
use crate::cls::client::{Client, ClientError};
use crate::config::{Config, Listen};
use crate::connection::{AdminListener, Gate, Guarded};
use crate::credentials::CredentialStore;
use crate::ingest::{Ingest, Phase, Policy, RelayService};
use crate::metrics::Metrics;
use crate::route::{Router, Warned};
use crate::tasks::Tasks;
use crate::tenant::Tenants;
use crate::tls::{ServerTls, TlsError};
use crate::upload::batch::Uploader;
use crate::upload::lanes::Lanes;
use crate::upload::letters::DeadLetters;
use crate::window::Budget;

/// Bytes of one call that may be under way unread. Entries are paced by windows, not by this.
const CALL_WINDOW_BYTES: u32 = 2 << 20;

/// Bytes of an HTTP/2 frame: large ones cost less per byte.
const HTTP2_FRAME_BYTES: u32 = 256 << 10;

/// Calls of one connection at a time; a further one waits. A driver has two, and one for every
/// container that starts just now.
const CALLS_PER_CONNECTION_MAX: u32 = 256;

/// Bytes of a call's headers, as HTTP/2 counts them; a call with more is refused. A token is the only
/// long one.
const HEADERS_BYTES_MAX: u32 = 16 << 10;

/// Calls of a connection that its peer has reset and nobody has looked at yet; a further one ends
/// the connection. Resets in a row cost a server more than a client.
const RESETS_PENDING_MAX: usize = 20;

/// A dead peer is found within twice this.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Time for calls to end once all their entries are acknowledged.
const CALLS_END_GRACE: Duration = Duration::from_secs(1);

/// Why the process could not start or had to end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The unix socket can't be bound.
    #[error("listen on unix socket {}", path.display())]
    ListenUnix {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A TCP address can't be bound.
    #[error("listen on {address}")]
    ListenTcp {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The TCP listener's certificates can't be used.
    #[error("certificates of [listen.tls]")]
    Tls(#[from] TlsError),
    /// The HTTP client can't be built.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The relay server failed.
    #[error("relay server")]
    Relay(#[from] tonic::transport::Error),
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

/// Runs the shipper as [`run`] does, and takes over each configuration that comes out of `reloads`,
/// as far as that is possible without a new process: credentials for the attempts from now on,
/// defaults and tenants for calls, which end and begin anew for that. Of what else has changed it
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
    let credentials = Arc::new(CredentialStore::new(&config.credentials, &clock));
    let (phase_rx, process_tasks) = (phase.clone(), Arc::clone(&tasks));
    let ingest = assemble(&config, clock, &credentials, process_tasks, phase_rx)?;
    let ingest = Arc::new(ingest);
    // Before the unix socket, which is taken from who has it: a second process that can't start is
    // not to cut the drivers off from the first.
    let admin = bind_tcp(config.admin_listen).await?;
    let listeners = Listeners::bind(&config.listen).await?;
    let admin_routes = admin::router(admin::Admin {
        metrics: Arc::clone(&ingest.metrics),
        ledger: Arc::clone(&ingest.ledger),
        budget: Arc::clone(&ingest.budget),
        phase: phase.clone(),
    });
    let admin_phase = phase.clone();
    let admin = AdminListener::new(admin, Arc::clone(&ingest.metrics));
    servers.spawn(async move {
        let server = axum::serve(admin, admin_routes)
            .with_graceful_shutdown(reached(admin_phase, Phase::Ended));
        if let Err(error) = server.await {
            warn!(%error, "admin server ended");
        }
    });
    listeners.serve(&RelayService(Arc::clone(&ingest)), &phase, &servers);
    info!(unix = ?config.listen.unix, tcp = ?config.listen.tcp, admin = %config.admin_listen,
        version = env!("CARGO_PKG_VERSION"), "shipper is ready");

    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(new) = reloads.recv() => reload(&mut config, new, &credentials, &ingest),
        }
    }
    info!("shipper is stopping");
    phase_tx.send_replace(Phase::Draining);
    ingest.lanes.close();
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

/// Takes over what can be taken over of a new configuration; `config` becomes what is in use.
fn reload(config: &mut Config, new: Config, credentials: &Arc<CredentialStore>, ingest: &Ingest) {
    let fixed = config.fixed_differences(&new);
    if !fixed.is_empty() {
        warn!(
            settings = fixed.join(", "),
            "these settings have changed and need a restart of the shipper"
        );
    }
    credentials.replace(&new.credentials);
    let has_other_rules = config.defaults != new.defaults
        || config.tenants != new.tenants
        || config.endpoints != new.endpoints;
    config.credentials = new.credentials;
    config.endpoints = new.endpoints;
    config.defaults = new.defaults;
    config.tenants = new.tenants;
    if has_other_rules {
        let tenants = ingest.policy().tenants.succeeded_by(&config.tenants);
        let policy = policy(config, tenants, credentials);
        ingest.policy.send_replace(policy);
    }
    info!(calls_begin_anew = has_other_rules, "configuration reloaded");
}

fn policy(config: &Config, tenants: Tenants, credentials: &Arc<CredentialStore>) -> Arc<Policy> {
    Arc::new(Policy {
        tenants,
        router: Router::new(config, Arc::clone(credentials)),
    })
}

fn assemble(
    config: &Config,
    clock: WallClock,
    credentials: &Arc<CredentialStore>,
    tasks: Arc<Tasks>,
    phase: watch::Receiver<Phase>,
) -> Result<Ingest, ClientError> {
    let (buffers, metrics) = (Arc::new(Buffers::default()), Arc::new(Metrics::default()));
    let budget = Arc::new(Budget::new(config.upload.buffer_bytes_max));
    let uploader = Arc::new(Uploader {
        cloud: Arc::new(Client::new()?),
        credentials: Arc::clone(credentials),
        clock: clock.clone(),
        compression: config.upload.compression,
        concurrency_max: config.upload.concurrency_max,
        dead_letters: config
            .dead_letter
            .as_ref()
            .map(|store| Arc::new(DeadLetters::new(store.path.clone(), store.bytes_max))),
        tasks,
        buffers: Arc::clone(&buffers),
        metrics: Arc::clone(&metrics),
    });
    let tenants = Tenants::new(&config.tenants);
    Ok(Ingest {
        policy: watch::Sender::new(policy(config, tenants, credentials)),
        warned: Warned::default(),
        lanes: Arc::new(Lanes::new(config.upload, Arc::clone(&budget), uploader)),
        budget,
        buffers,
        metrics,
        ledger: Arc::default(),
        clock,
        run_bytes_max: config.upload.batch_bytes_max,
        run_logs_max: config.upload.batch_logs_max,
        connection_age_max: config.listen.connection_age_max,
        phase,
    })
}

/// The sockets that drivers connect to.
struct Listeners {
    unix: Option<UnixListener>,
    tcp: Option<TcpListener>,
    tls: Option<ServerTls>,
    per_address_max: Option<usize>,
}

impl Listeners {
    async fn bind(listen: &Listen) -> Result<Self, RunError> {
        let unix = listen.unix.as_deref().map(bind_unix).transpose()?;
        let tcp = match listen.tcp {
            Some(address) => Some(bind_tcp(address).await?),
            None => None,
        };
        let tls = listen.tls.clone().map(ServerTls::new).transpose()?;
        Ok(Self {
            unix,
            tcp,
            tls,
            per_address_max: listen.connections_per_address_max,
        })
    }

    fn serve(self, service: &RelayService, phase: &watch::Receiver<Phase>, servers: &Tasks) {
        let files_max = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let connections_max = connection::connections_max(files_max);
        let metrics = &service.0.metrics;
        let gate = |listener| {
            let gate = Gate::new(listener, connections_max, Arc::clone(metrics));
            gate.per_address(self.per_address_max)
        };
        if let Some(unix) = self.unix {
            let (accepted, incoming) = mpsc::channel(1);
            servers.spawn(connection::accept_unix(unix, gate("unix"), accepted));
            servers.spawn(serve_relay(service.clone(), incoming, phase.clone()));
        }
        match (self.tcp, self.tls) {
            (None, _) => {}
            (Some(tcp), None) => {
                let (accepted, incoming) = mpsc::channel(1);
                servers.spawn(connection::accept_tcp(tcp, gate("tcp"), accepted));
                servers.spawn(serve_relay(service.clone(), incoming, phase.clone()));
            }
            (Some(tcp), Some(tls)) => {
                let (accepted, incoming) = mpsc::channel(1);
                servers.spawn(tls::accept(tcp, tls, gate("tcp"), accepted));
                servers.spawn(serve_relay(service.clone(), incoming, phase.clone()));
            }
        }
    }
}

/// Serves the relay on the connections that come in, until the process stops.
async fn serve_relay<IO>(
    service: RelayService,
    incoming: mpsc::Receiver<std::io::Result<Guarded<IO>>>,
    phase: watch::Receiver<Phase>,
) where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let server = Server::builder()
        .initial_stream_window_size(CALL_WINDOW_BYTES)
        .initial_connection_window_size(CALL_WINDOW_BYTES)
        .max_frame_size(HTTP2_FRAME_BYTES)
        .max_concurrent_streams(CALLS_PER_CONNECTION_MAX)
        .http2_max_header_list_size(HEADERS_BYTES_MAX)
        .http2_max_pending_accept_reset_streams(Some(RESETS_PENDING_MAX))
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_service(RelayServer::new(service).max_decoding_message_size(MESSAGE_BYTES_MAX));
    let stop = reached(phase, Phase::Draining);
    let incoming = ReceiverStream::new(incoming);
    log_end(server.serve_with_incoming_shutdown(incoming, stop).await);
}

fn log_end(ended: Result<(), tonic::transport::Error>) {
    if let Err(error) = ended {
        warn!(error = %Chain(&error), "relay server ended");
    }
}

/// Binds the socket in place of a stale one. An older process that still serves connections keeps
/// them: a replacement can start before it ends. Only the owner may connect.
fn bind_unix(path: &Path) -> Result<UnixListener, RunError> {
    let bind = || {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    };
    bind().map_err(|source| RunError::ListenUnix {
        path: path.to_owned(),
        source,
    })
}

async fn bind_tcp(address: SocketAddr) -> Result<TcpListener, RunError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| RunError::ListenTcp { address, source })
}

/// Completes once the process has reached a phase or gone past it.
async fn reached(mut phase: watch::Receiver<Phase>, wanted: Phase) {
    let is_reached = |now: &Phase| *now == wanted || *now == Phase::Ended;
    // An error means that the sender is gone, and with it the process.
    phase.wait_for(is_reached).await.ok();
}

/// Prints an error with its causes, once, in one line.
#[derive(Debug)]
pub struct Chain<'a>(pub &'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}
