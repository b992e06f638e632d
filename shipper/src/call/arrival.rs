//! What a call knows of the connection that it came on.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// What is known of a connection's peer.
#[derive(Debug, Clone, Default)]
pub struct Arrival {
    /// Its user, if it came over the unix socket.
    pub unix_uid: Option<u32>,
    /// Its address, if it came over TCP.
    pub address: Option<SocketAddr>,
    /// The DNS names of its certificate, which the TLS library has verified.
    pub certificate_names: Arc<[String]>,
    /// What was taken in of messages that are not whole yet.
    pub unread: Unread,
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

/// Bytes of a connection's unfinished messages; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Unread(Arc<AtomicUsize>);

/// Bytes of one of them, for as long as it is kept.
#[derive(Debug)]
pub struct UnreadBytes {
    of: Unread,
    bytes: usize,
}

impl Unread {
    /// Adds a message, if all together have no more than `bytes_max` then.
    pub fn take(&self, bytes: usize, bytes_max: usize) -> Option<UnreadBytes> {
        let add = |all: usize| all.checked_add(bytes).filter(|all| *all <= bytes_max);
        let taken = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        let of = self.clone();
        taken.ok().map(|_| UnreadBytes { of, bytes })
    }
}

impl Drop for UnreadBytes {
    fn drop(&mut self) {
        self.of.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
