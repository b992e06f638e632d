//! Lookups of names, on a thread of their own.
//!
//! The system's resolver blocks for 10 to 20 s while DNS is silent, and can't be stopped. On the
//! runtime's blocking threads a few attempts would take all of them, and with them starts, drops and
//! syncs. So one thread of its own looks names up, one at a time; attempts for the same name share a
//! lookup, and give up waiting for it when they like. The thread is started for the first name, and
//! ends with the [`Resolver`].
//!
//! Bounds: as many names as the settings have, of which [`QUEUE_MAX`] wait.

use std::collections::HashMap;
use std::fmt::Debug;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::timeout;

/// How long a lookup is waited for.
const LOOKUP_WAIT_MAX: Duration = Duration::from_secs(1);

/// Names that wait for the thread.
const QUEUE_MAX: usize = 64;

/// What knows the addresses of a name.
pub(crate) trait Lookup: Debug + Send + Sync {
    /// Returns them. Blocks.
    ///
    /// # Errors
    /// Why there are none.
    fn addresses(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>>;
}

/// The system's: the hosts file, and DNS. Linked statically, glibc needs no other file for either than
/// `/etc/hosts` and `/etc/resolv.conf`, which the engine gives a plugin with `network: host` (tried
/// with glibc 2.36 in an empty root; a silent server takes it 10 s).
#[derive(Debug)]
pub(crate) struct System;

impl Lookup for System {
    fn addresses(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok((host, port).to_socket_addrs()?.collect())
    }
}

/// A name stands for no address that is known.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum LookupError {
    /// There are no addresses.
    #[error("could not look up {host}: {cause}")]
    Failed {
        /// The name.
        host: String,
        /// What the system said.
        cause: String,
    },
    /// The lookup takes longer than an attempt.
    #[error("could not look up {host}: no answer within {} s", LOOKUP_WAIT_MAX.as_secs())]
    Silent {
        /// The name.
        host: String,
    },
}

/// A host's name and a port.
type Name = (String, u16);

type Found = Result<Vec<SocketAddr>, LookupError>;

/// Looks names up.
#[derive(Debug)]
pub(crate) struct Resolver {
    shared: Arc<Shared>,
    /// To the thread, once there is one.
    queue: Mutex<Option<SyncSender<Name>>>,
}

#[derive(Debug)]
struct Shared {
    lookup: Box<dyn Lookup>,
    /// Names of which a lookup is under way or queued, and who waits for it.
    waiting: Mutex<HashMap<Name, Vec<oneshot::Sender<Found>>>>,
}

impl Resolver {
    /// Returns a resolver that has looked nothing up yet.
    pub(crate) fn new(lookup: impl Lookup + 'static) -> Self {
        Self {
            shared: Arc::new(Shared {
                lookup: Box::new(lookup),
                waiting: Mutex::default(),
            }),
            queue: Mutex::default(),
        }
    }

    /// Returns the addresses of a name, one at least; of an address, itself.
    ///
    /// # Errors
    /// See [`LookupError`].
    ///
    /// # Cancel safety
    /// Cancel safe: the lookup goes on, and the next call has its result.
    pub(crate) async fn lookup(&self, host: &str, port: u16) -> Found {
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, port)]);
        }
        let found = self.ask((host.to_owned(), port))?;
        match timeout(LOOKUP_WAIT_MAX, found).await {
            Ok(Ok(found)) => found,
            Ok(Err(_)) => Err(failed(host, &"the resolver's thread has ended")),
            Err(_) => Err(LookupError::Silent { host: host.into() }),
        }
    }

    /// Joins the lookup of a name, or begins one.
    fn ask(&self, name: Name) -> Result<oneshot::Receiver<Found>, LookupError> {
        let (reply, found) = oneshot::channel();
        // The thread answers under this lock.
        let mut waiting = lock(&self.shared.waiting);
        if let Some(replies) = waiting.get_mut(&name) {
            replies.retain(|reply| !reply.is_closed());
            replies.push(reply);
            return Ok(found);
        }
        let mut queue = lock(&self.queue);
        let sent = self
            .thread(&mut queue)
            .and_then(|queue| match queue.try_send(name.clone()) {
                Ok(()) => Ok(()),
                Err(TrySendError::Full(_)) => Err(io::ErrorKind::QuotaExceeded.into()),
                Err(TrySendError::Disconnected(_)) => Err(io::ErrorKind::BrokenPipe.into()),
            });
        if let Err(error) = sent {
            return Err(failed(&name.0, &error));
        }
        waiting.insert(name, vec![reply]);
        Ok(found)
    }

    /// Returns the way to the thread, started if need be.
    fn thread<'q>(
        &self,
        queue: &'q mut Option<SyncSender<Name>>,
    ) -> io::Result<&'q SyncSender<Name>> {
        if queue.is_none() {
            let (sender, names) = sync_channel(QUEUE_MAX);
            let shared = Arc::clone(&self.shared);
            std::thread::Builder::new()
                .name("resolver".into())
                .stack_size(512 << 10)
                .spawn(move || shared.serve(&names))?;
            *queue = Some(sender);
        }
        queue.as_ref().ok_or(io::ErrorKind::BrokenPipe.into())
    }
}

impl Shared {
    /// Looks names up until nobody can ask any more.
    fn serve(&self, queue: &Receiver<Name>) {
        while let Ok(name) = queue.recv() {
            let found = self.lookup.addresses(&name.0, name.1);
            let found = match found {
                Ok(addresses) if addresses.is_empty() => Err(failed(&name.0, &"it has no address")),
                Ok(addresses) => Ok(addresses),
                Err(error) => Err(failed(&name.0, &error)),
            };
            let replies = lock(&self.waiting).remove(&name);
            for reply in replies.unwrap_or_default() {
                // Who asked may have given up.
                reply.send(found.clone()).ok();
            }
        }
    }
}

fn failed(host: &str, cause: &dyn std::fmt::Display) -> LookupError {
    LookupError::Failed {
        host: host.to_owned(),
        cause: cause.to_string(),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .expect("whoever holds the resolver's locks does not panic")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use std::sync::Condvar;

    /// DNS that answers as it is told, or not at all.
    #[derive(Debug, Clone, Default)]
    struct Dns(Arc<(Mutex<DnsState>, Condvar)>);

    #[derive(Debug, Default)]
    struct DnsState {
        is_silent: bool,
        lookup_count: u32,
        addresses: Vec<SocketAddr>,
    }

    impl Dns {
        fn set(&self, change: impl FnOnce(&mut DnsState)) {
            change(&mut lock(&self.0.0));
            self.0.1.notify_all();
        }

        fn lookup_count(&self) -> u32 {
            lock(&self.0.0).lookup_count
        }
    }

    impl Lookup for Dns {
        fn addresses(&self, host: &str, _port: u16) -> io::Result<Vec<SocketAddr>> {
            let mut state = lock(&self.0.0);
            state.lookup_count += 1;
            let state = self.0.1.wait_while(state, |state| state.is_silent).unwrap();
            match host {
                "unknown" => Err(io::ErrorKind::NotFound.into()),
                _ => Ok(state.addresses.clone()),
            }
        }
    }

    #[tokio::test]
    async fn attempts_share_one_lookup_and_give_up_on_a_silent_server() {
        let dns = Dns::default();
        let resolver = Resolver::new(dns.clone());
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        dns.set(|dns| {
            dns.addresses = vec![address];
            dns.is_silent = true;
        });
        let lookup = || resolver.lookup("shipper", 1);
        let found = tokio::join!(lookup(), lookup(), lookup());
        for found in [found.0, found.1, found.2] {
            let silent = found.unwrap_err();
            assert!(matches!(silent, LookupError::Silent { .. }), "{silent}");
        }
        assert_eq!(dns.lookup_count(), 1);
        // Who comes while it is silent has the answer of the lookup that was begun then.
        let late = async {
            tokio::task::yield_now().await;
            dns.set(|dns| dns.is_silent = false);
        };
        let (found, ()) = tokio::join!(lookup(), late);
        assert_eq!(found.unwrap(), [address]);
        assert_eq!(dns.lookup_count(), 1);
        assert_eq!(lookup().await.unwrap(), [address]);
        assert_eq!(dns.lookup_count(), 2);
    }

    #[tokio::test]
    async fn an_address_needs_no_lookup_and_an_unknown_name_is_said() {
        let dns = Dns::default();
        dns.set(|dns| dns.is_silent = true);
        let resolver = Resolver::new(dns.clone());
        let found = resolver.lookup("::1", 7).await.unwrap();
        assert_eq!(found, ["[::1]:7".parse::<SocketAddr>().unwrap()]);
        assert_eq!(dns.lookup_count(), 0);
        dns.set(|dns| dns.is_silent = false);
        for unknown in ["unknown", "without-addresses"] {
            let error = resolver.lookup(unknown, 7).await.unwrap_err();
            assert!(matches!(error, LookupError::Failed { .. }), "{error}");
        }
    }
}
