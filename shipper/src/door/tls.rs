//! TLS for the TCP listener: version 1.3, the server's certificate, and clients' certificates
//! where a CA for them is set.
//!
//! Files are read again when they change, for the next connection; those that are open keep what
//! they began with. A file that is replaced by a bad one leaves the last good state in use, and
//! says so. Handshakes run beside each other, bounded in number and time, so that a peer that
//! sends nothing keeps nobody else out.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{error, warn};

use crate::base::chain::Chain;
use crate::base::pem::{PemError, add_roots, certificates};
use crate::base::watched::Watched;
use crate::call::arrival::Arrival;
use crate::config::TlsFiles;
use crate::door::gate::{Accepted, Gate, Guarded};

/// Handshakes under way; a further one takes the place of the oldest.
const HANDSHAKES_MAX: usize = 256;

/// Bound of one handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// What is said of one that took longer.
const HANDSHAKE_LATE: &str = "the peer did not finish it in time";

/// Why there is no TLS configuration.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read.
    #[error("read a TLS file")]
    Read(#[from] io::Error),
    /// A file gives no certificates.
    #[error(transparent)]
    Certificates(#[from] PemError),
    /// The key file holds no key.
    #[error("TLS file {}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// Certificate and key do not belong together, or are of an unknown kind.
    #[error("server certificate and key")]
    Server(#[source] rustls::Error),
    /// The client CA can't be used.
    #[error("client CA file {}: {reason}", path.display())]
    ClientCa {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// The server's side of TLS.
#[derive(Debug)]
pub struct ServerTls {
    files: TlsFiles,
    config: Watched<ServerConfig>,
}

impl ServerTls {
    /// Makes it and reads the files for the first time.
    ///
    /// # Errors
    /// A file can't be read or used.
    pub fn new(files: TlsFiles) -> Result<Self, TlsError> {
        let paths = [&files.cert_file, &files.key_file]
            .into_iter()
            .chain(&files.client_ca_file);
        let config = Watched::new(paths.cloned().collect());
        let tls = Self { files, config };
        tls.config.get(|_| tls.read())?;
        Ok(tls)
    }

    /// Returns the configuration of the next connection.
    fn current(&self) -> Option<Arc<ServerConfig>> {
        match self.config.get(|_| self.read()) {
            Ok(config) => Some(config),
            Err(error) => {
                error!(error = %Chain(&error), "TLS files have changed and can't be used, the last good ones stay in use");
                self.config.last()
            }
        }
    }

    fn read(&self) -> Result<ServerConfig, TlsError> {
        let chain = certificates(&self.files.cert_file)?;
        let key =
            PrivateKeyDer::from_pem_file(&self.files.key_file).map_err(|source| TlsError::Pem {
                path: self.files.key_file.clone(),
                source,
            })?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TlsError::Server)?;
        let builder = match &self.files.client_ca_file {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let refused = |reason: String| TlsError::ClientCa {
                    path: path.clone(),
                    reason,
                };
                let mut roots = RootCertStore::empty();
                add_roots(path, &mut roots)?;
                // A client may show a token instead; who shows nothing is refused at the call,
                // where the reason reaches it.
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                        .allow_unauthenticated()
                        .build()
                        .map_err(|error| refused(error.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(TlsError::Server)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        if self.files.client_ca_file.is_some() {
            // A session that is resumed shows no certificate anew: it would outlive the certificate. Hosts
            // dial once in minutes, and a whole handshake costs them nothing.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        Ok(config)
    }
}

/// Returns the DNS names of a verified certificate.
pub fn dns_names(certificate: &CertificateDer<'_>) -> Vec<String> {
    webpki::EndEntityCert::try_from(certificate)
        .map(|parsed| parsed.valid_dns_names().map(str::to_owned).collect())
        .unwrap_or_default()
}

/// Accepts connections until nobody takes them any more.
pub async fn accept(
    listener: TcpListener,
    tls: ServerTls,
    gate: Gate,
    accepted: Accepted<TlsStream<TcpStream>>,
) {
    let failures = Arc::new(Failures::default());
    let mut handshakes = JoinSet::new();
    let mut oldest_first = VecDeque::new();
    loop {
        let connection = tokio::select! {
            connection = listener.accept() => connection,
            () = accepted.closed() => return,
        };
        while handshakes.try_join_next().is_some() {}
        let Some((stream, peer)) = gate.usable(connection).await else {
            continue;
        };
        make_room(&mut oldest_first);
        let (Some(config), Some(slot)) = (tls.current(), gate.enter(Some(peer.ip()))) else {
            continue;
        };
        let (accepted, failures) = (accepted.clone(), Arc::clone(&failures));
        let handshake = handshakes.spawn(async move {
            let handshake = TlsAcceptor::from(config).accept(stream);
            let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake);
            let ended = tokio::select! {
                ended = handshake => ended,
                () = slot.lost() => return,
            };
            let (reason, hint) = match ended {
                Ok(Ok(stream)) => {
                    let chain = stream.get_ref().1.peer_certificates();
                    let names = chain.and_then(<[_]>::first).map(dns_names);
                    let arrival = Arrival::over_tcp(peer, names.unwrap_or_default());
                    let stream = Guarded::relay(stream, arrival, slot);
                    // The server is stopping if it does not take the connection.
                    accepted.send(Ok(stream)).await.ok();
                    return;
                }
                Ok(Err(error)) => (error.to_string(), hint(&error)),
                Err(_) => (HANDSHAKE_LATE.to_owned(), ""),
            };
            if let Some(count) = failures.count(hint) {
                warn!(%peer, "TLS handshake failed: {reason}{hint} ({count} so far)");
            }
        });
        oldest_first.push_back(handshake);
    }
}

/// Ends the oldest handshake if there are too many. One that goes on takes milliseconds, so that
/// the oldest are those of peers that are silent or slow.
fn make_room(oldest_first: &mut VecDeque<AbortHandle>) {
    if oldest_first.len() >= HANDSHAKES_MAX {
        oldest_first.retain(|handshake| !handshake.is_finished());
    }
    if oldest_first.len() >= HANDSHAKES_MAX
        && let Some(oldest) = oldest_first.pop_front()
    {
        oldest.abort();
    }
}

/// How many handshakes failed, by what to do about it.
#[derive(Debug, Default)]
struct Failures(Mutex<HashMap<&'static str, u64>>);

impl Failures {
    /// Counts one. Returns how many of its kind there were, if it is to be logged: each kind is, and
    /// then ever more rarely.
    fn count(&self, hint: &'static str) -> Option<u64> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(hint).or_default();
        *count += 1;
        count.is_power_of_two().then_some(*count)
    }
}

/// Says what to do about a handshake's failure.
fn hint(error: &io::Error) -> &'static str {
    match error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>())
    {
        Some(rustls::Error::InvalidMessage(_)) => {
            "; the peer speaks no TLS: its SHIPPER must begin with https://"
        }
        Some(rustls::Error::PeerIncompatible(_)) => "; the peer must speak TLS 1.3",
        Some(rustls::Error::InvalidCertificate(_)) => {
            "; the peer's certificate must be valid now and signed by client_ca_file"
        }
        Some(rustls::Error::AlertReceived(_)) => {
            "; the peer does not trust this server: its SHIPPER_CA_FILE must hold the CA of \
             cert_file, and cert_file must name the host that SHIPPER names"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::ClientConfig;
    use rustls::pki_types::ServerName;
    use tokio_rustls::TlsConnector;

    /// Returns one of the certificates of tests that the driver has.
    fn file(name: &str) -> PathBuf {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../driver/tests/slice/tls");
        PathBuf::from(folder).join(name)
    }

    fn server(client_ca_file: Option<PathBuf>) -> Arc<ServerConfig> {
        let files = TlsFiles {
            cert_file: file("server.pem"),
            key_file: file("server.key"),
            client_ca_file,
        };
        ServerTls::new(files).unwrap().current().unwrap()
    }

    /// Returns a client that speaks one version, trusts the server, and shows nothing.
    fn client(version: &'static rustls::SupportedProtocolVersion) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&file("ca.pem")).unwrap() {
            roots.add(certificate).unwrap();
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Arc::new(client)
    }

    /// Shakes hands with a client that speaks one version. Returns how the server saw it.
    async fn handshake(version: &'static rustls::SupportedProtocolVersion) -> io::Result<()> {
        let server = server(None);
        let client = client(version);
        let (near, far) = tokio::io::duplex(16 << 10);
        let name = ServerName::try_from("localhost").unwrap();
        let connecting = TlsConnector::from(client).connect(name, far);
        let (accepted, _) = tokio::join!(TlsAcceptor::from(server).accept(near), connecting);
        accepted.map(|_| ())
    }

    #[tokio::test]
    async fn tls_1_3_is_spoken_and_tls_1_2_is_not() {
        handshake(&rustls::version::TLS13).await.unwrap();
        let error = handshake(&rustls::version::TLS12).await.unwrap_err();
        assert_eq!(hint(&error), "; the peer must speak TLS 1.3", "{error}");
    }

    /// Connects twice with what a client keeps, and returns how the second handshake went.
    async fn second_handshake(client_ca_file: Option<PathBuf>) -> rustls::HandshakeKind {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let server = server(client_ca_file);
        let client = client(&rustls::version::TLS13);
        let mut kind = None;
        for _ in 0..2 {
            let (near, far) = tokio::io::duplex(64 << 10);
            let name = ServerName::try_from("localhost").unwrap();
            let connecting = TlsConnector::from(Arc::clone(&client)).connect(name, far);
            let accepting = TlsAcceptor::from(Arc::clone(&server)).accept(near);
            let (accepted, connected) = tokio::join!(accepting, connecting);
            let (mut accepted, mut connected) = (accepted.unwrap(), connected.unwrap());
            // The client learns of tickets when it reads.
            accepted.write_all(b"x").await.unwrap();
            accepted.flush().await.unwrap();
            connected.read_exact(&mut [0]).await.unwrap();
            kind = connected.get_ref().1.handshake_kind();
        }
        kind.unwrap()
    }

    /// A certificate that ends is to end what its host may do, at the next connection at the latest.
    #[tokio::test]
    async fn sessions_are_not_resumed_where_certificates_count() {
        let with_authority = second_handshake(Some(file("ca.pem"))).await;
        assert_eq!(with_authority, rustls::HandshakeKind::Full);
        let without = second_handshake(None).await;
        assert_eq!(without, rustls::HandshakeKind::Resumed);
    }

    #[test]
    fn each_kind_of_failure_is_logged_once_and_then_ever_more_rarely() {
        let failures = Failures::default();
        let logged: Vec<_> = (0..9).filter_map(|_| failures.count("a")).collect();
        assert_eq!(logged, [1, 2, 4, 8]);
        assert_eq!(failures.count("b"), Some(1));
    }
}
