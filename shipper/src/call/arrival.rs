//! What a call knows of the connection that it came on.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What is known of a connection's peer.
#[derive(Debug, Clone, Default)]
pub struct Arrival {
    /// Its user, if it came over the unix socket.
    pub unix_uid: Option<u32>,
    /// Its address, if it came over TCP.
    pub address: Option<SocketAddr>,
    /// The DNS names of its certificate, which the TLS library has verified.
    pub certificate_names: Arc<[String]>,
    is_admitted: Arc<AtomicBool>,
}

impl Arrival {
    /// Returns what is known of a peer on the unix socket.
    pub fn over_unix(unix_uid: Option<u32>) -> Self {
        Self {
            unix_uid,
            ..Self::default()
        }
    }

    /// Returns what is known of a peer on TCP, with the names of its certificate, if it has one.
    pub fn over_tcp(address: SocketAddr, certificate_names: Vec<String>) -> Self {
        Self {
            address: Some(address),
            certificate_names: certificate_names.into(),
            ..Self::default()
        }
    }

    /// Says that a call on the connection was admitted: it may stay.
    pub fn admit(&self) {
        self.is_admitted.store(true, Ordering::Relaxed);
    }

    /// Returns whether a call on it was admitted.
    pub fn is_admitted(&self) -> bool {
        self.is_admitted.load(Ordering::Relaxed)
    }
}
