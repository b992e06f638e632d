//! A stand-in for CLS: it checks what the real service checks, records what it accepted, and fails
//! on demand. It also runs as a program (`cls-standin`), so no account is needed to see the whole
//! path of a log line work.
//!
//! | request | answer |
//! |---|---|
//! | `POST /structuredlog?topic_id=` | as CLS: see [`upload`], or a fault |
//! | `GET /records?topic_id=&since=` | accepted records from arrival number `since` on, JSON lines |
//! | `GET /stats` | counts: requests, records, bytes, answers, faults |
//! | `GET /violations` | what was wrong with `contextFlow`, a JSON array |
//! | `POST /fault?kind=&count=&seconds=&topic_id=&ms=&skew_s=` | adds a fault |
//! | `GET /fault`, `DELETE /fault` | lists, ends all faults |
//! | `POST /keys?secret_id=&secret_key=&token=` | replaces all keys; ends a `401` fault |
//! | `DELETE /records` | forgets records, contexts and violations |
//!
//! Every answer carries `x-cls-requestid`; an error's body is `{"errorcode", "errormessage"}`.
//! Accepted bodies are kept decompressed and are decoded when someone looks, so that accepting
//! costs one decompression and one walk over the bytes.

pub mod auth;
pub mod body;
pub mod config;
pub mod fault;
mod http_api;
mod link;
pub mod log_list;
pub mod quota;
mod state;
pub mod store;
mod upload;

pub use config::{Clock, Config, Key};
pub use state::Stats;
pub use store::{Record, Upload, parse_flow};

use fault::Fault;
use hyper_util::rt::TokioIo;
use link::{DripStream, Fate, Link, Stream};
use state::{Shared, State};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// A running stand-in. It stops when it is dropped.
#[derive(Debug)]
pub struct Standin {
    address: SocketAddr,
    state: Arc<State>,
    tasks: JoinSet<()>,
}

impl Standin {
    /// Starts a stand-in on `address` (port 0 for any). Each accepted upload is also sent to
    /// `watcher`; a watcher that is slow slows the answers.
    ///
    /// # Errors
    /// If the address can't be bound.
    pub async fn start(
        address: SocketAddr,
        config: Config,
        clock: Clock,
        watcher: Option<mpsc::Sender<Arc<Upload>>>,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            quota: Shared::new(quota::Quota::new(config.partitions, config.requests_per_s)),
            keys: Shared::new(config.keys.clone()),
            store: Shared::default(),
            stats: Shared::default(),
            faults: Shared::default(),
            scratches: Shared::default(),
            config,
            clock,
            watcher,
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, state.clone()));
        Ok(Self {
            address,
            state,
            tasks,
        })
    }

    /// Is gone, as a service whose process was killed: connections end in the midst of whatever
    /// they are at, and new ones are refused. What was accepted stays.
    pub async fn go_away(&mut self) {
        self.tasks.shutdown().await;
    }

    /// Is there again, at the same address, after [`Self::go_away`].
    ///
    /// # Errors
    /// If the address can't be bound again.
    pub async fn come_back(&mut self) -> io::Result<()> {
        let listener = TcpListener::bind(self.address).await?;
        self.tasks.spawn(serve(listener, self.state.clone()));
        Ok(())
    }

    /// Returns the address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns its endpoint, as a shipper's configuration has it.
    pub fn endpoint(&self) -> String {
        let scheme = match self.state.config.identity {
            Some(_) => "https",
            None => "http",
        };
        format!("{scheme}://{}", self.address)
    }

    /// Returns the accepted uploads of a topic, in the order in which they came.
    pub fn uploads(&self, topic_id: &str) -> Vec<Arc<Upload>> {
        self.state.store.lock().uploads(Some(topic_id), 0)
    }

    /// Returns what was wrong with `contextFlow`: conflicts, and gaps.
    pub fn violations(&self) -> Vec<String> {
        self.state.store.lock().violations()
    }

    /// Returns which ids of a context came again with other bytes. A gap between ids is no fault of a
    /// shipper that was killed: groups were under way side by side, and a later one had arrived.
    pub fn conflicts(&self) -> Vec<String> {
        self.state.store.lock().conflicts()
    }

    /// Returns the counts.
    pub fn stats(&self) -> Stats {
        self.state.stats()
    }

    /// Adds a fault behind those there are.
    pub fn add_fault(&self, fault: Fault) {
        self.state.faults.lock().add(fault);
    }

    /// Ends all faults. Requests that stall go on stalling.
    pub fn clear_faults(&self) {
        self.state.faults.lock().end(|_| true);
    }

    /// Replaces all keys, and ends faults that wait for that.
    pub fn replace_keys(&self, keys: Vec<Key>) {
        self.state.replace_keys(keys);
    }

    /// Serves until the stand-in is broken, which is never.
    pub async fn join(mut self) {
        self.tasks.join_next().await;
    }
}

/// A time that does not come.
const NEVER: Duration = Duration::from_secs(86_400 * 365);

/// Time before accepting again when the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

async fn serve(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    connections.spawn(serve_connection(stream, peer, state.clone()));
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "connection task failed");
                }
            }
        }
    }
}

/// Serves one connection until the client, a fault or an error ends it.
async fn serve_connection(stream: TcpStream, peer: SocketAddr, state: Arc<State>) {
    // Without it, answers wait for the peer's delayed acknowledgements; an error costs time only.
    stream.set_nodelay(true).ok();
    let Ok((link, stream)) = open(stream, &state).await else {
        return;
    };
    let mut fate = link.fate.subscribe();
    let io = TokioIo::new(stream);
    let service = hyper::service::service_fn(|request| {
        let (state, link) = (state.clone(), link.clone());
        async move { http_api::answer(&state, &link, peer.ip(), request).await }
    });
    let mut connection = hyper::server::conn::http1::Builder::new().serve_connection(io, service);
    let mut timer = pin!(tokio::time::sleep(NEVER));
    loop {
        tokio::select! {
            // The client sees what it sees; an error here is its business or a fault's.
            _ = &mut connection => return,
            Ok(()) = fate.changed() => match *fate.borrow_and_update() {
                Fate::Serve => {}
                Fate::Reset => break,
                Fate::CloseAfter(idle) => timer.as_mut().reset(tokio::time::Instant::now() + idle),
            },
            () = &mut timer => {
                // An answer that is under way, however slowly, is no idle time: it goes out first.
                Pin::new(&mut connection).graceful_shutdown();
                timer.as_mut().reset(tokio::time::Instant::now() + NEVER);
            }
        }
    }
    connection.into_parts().io.into_inner().reset();
}

/// The first byte of a TLS connection: a handshake record.
const TLS_HANDSHAKE: u8 = 0x16;

/// Makes a connection ready for HTTP. A client that begins with a handshake gets TLS, if the stand-in
/// has an identity to show.
async fn open(stream: TcpStream, state: &State) -> io::Result<(Arc<Link>, Stream)> {
    let mut first = [0];
    stream.peek(&mut first).await?;
    let identity = state.config.identity.as_ref();
    match identity.filter(|_| first == [TLS_HANDSHAKE]) {
        Some(identity) => {
            let link = Arc::new(Link::new(true));
            let acceptor = TlsAcceptor::from(Arc::clone(&identity.tls));
            let stream = acceptor
                .accept(DripStream::new(stream, link.clone()))
                .await?;
            Ok((link, Stream::Secure(Box::new(stream))))
        }
        None => {
            let link = Arc::new(Link::new(false));
            let stream = DripStream::new(stream, link.clone());
            Ok((link, Stream::Plain(stream)))
        }
    }
}
