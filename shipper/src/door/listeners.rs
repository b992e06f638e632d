//! The sockets that drivers connect to, and the gRPC server on them.

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
use tracing::warn;

use crate::base::chain::Chain;
use crate::base::phase::{Phase, reached};
use crate::base::tasks::Tasks;
use crate::call::service::RelayService;
use crate::config::Listen;
use crate::door::admission::Admission;
use crate::door::gate::{self, Gate, Guarded};
use crate::door::intake::Room;
use crate::door::tls::{ServerTls, TlsError};

/// Why there is no listener.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The unix socket can't be bound.
    #[error("listen on unix socket {}", path.display())]
    Unix {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A TCP address can't be bound.
    #[error("listen on {address}")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The TCP listener's certificates can't be used.
    #[error("certificates of [listen.tls]")]
    Tls(#[from] TlsError),
}

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

/// The sockets that drivers connect to.
#[derive(Debug)]
pub struct Listeners {
    unix: Option<UnixListener>,
    tcp: Option<TcpListener>,
    tls: Option<ServerTls>,
    per_address_max: Option<usize>,
}

impl Listeners {
    /// Binds them; the unix socket last, as it is taken from who has it.
    ///
    /// # Errors
    /// A socket can't be bound, or the certificates can't be used.
    pub async fn bind(listen: &Listen) -> Result<Self, ListenError> {
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

    /// Accepts connections and calls until the process stops.
    pub fn serve(
        self,
        service: &RelayService,
        files_max: Option<u64>,
        phase: &watch::Receiver<Phase>,
        servers: &Tasks,
    ) {
        let connections_max = gate::connections_max(files_max);
        let metrics = &service.0.metrics;
        let room = Room::default();
        let gate = |listener| {
            let gate = Gate::new(listener, connections_max, Arc::clone(metrics));
            gate.per_address(self.per_address_max)
        };
        if let Some(unix) = self.unix {
            let (accepted, incoming) = mpsc::channel(1);
            servers.spawn(gate::accept_unix(unix, gate("unix"), accepted));
            servers.spawn(serve_relay(
                service.clone(),
                room.clone(),
                incoming,
                phase.clone(),
            ));
        }
        match (self.tcp, self.tls) {
            (None, _) => {}
            (Some(tcp), None) => {
                let (accepted, incoming) = mpsc::channel(1);
                servers.spawn(gate::accept_tcp(tcp, gate("tcp"), accepted));
                servers.spawn(serve_relay(
                    service.clone(),
                    room.clone(),
                    incoming,
                    phase.clone(),
                ));
            }
            (Some(tcp), Some(tls)) => {
                let (accepted, incoming) = mpsc::channel(1);
                servers.spawn(super::tls::accept(tcp, tls, gate("tcp"), accepted));
                servers.spawn(serve_relay(
                    service.clone(),
                    room.clone(),
                    incoming,
                    phase.clone(),
                ));
            }
        }
    }
}

/// Serves the relay on the connections that come in, until the process stops.
async fn serve_relay<IO>(
    service: RelayService,
    room: Room,
    incoming: mpsc::Receiver<std::io::Result<Guarded<IO>>>,
    phase: watch::Receiver<Phase>,
) where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let shared = Arc::clone(&service.0);
    let relay = RelayServer::new(service).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let admission = Admission::new(relay, shared, room);
    let server = Server::builder()
        .initial_stream_window_size(CALL_WINDOW_BYTES)
        .initial_connection_window_size(CALL_WINDOW_BYTES)
        .max_frame_size(HTTP2_FRAME_BYTES)
        .max_concurrent_streams(CALLS_PER_CONNECTION_MAX)
        .http2_max_header_list_size(HEADERS_BYTES_MAX)
        .http2_max_pending_accept_reset_streams(Some(RESETS_PENDING_MAX))
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_service(admission);
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
fn bind_unix(path: &Path) -> Result<UnixListener, ListenError> {
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
    bind().map_err(|source| ListenError::Unix {
        path: path.to_owned(),
        source,
    })
}

/// Binds a TCP address.
///
/// # Errors
/// It can't be bound.
pub async fn bind_tcp(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| ListenError::Tcp { address, source })
}
