//! Connections: how many there are, and how long one stays that is of no use.
//!
//! A listener has at most so many connections ([`Gate`]), so that the process never runs out of files.
//! One address has at most half of the places, or as many as the configuration says: the hosts of a
//! site may share an address, but none is to keep all others out.
//!
//! So that strangers can't hold the places, a further connection takes that of the oldest one on which no
//! tenant's call was admitted: a host calls at once, and whoever keeps a place without a call loses it
//! first, however often it dials. Where all were admitted, the further one is closed, counted and
//! logged, and those that are connected notice nothing. Besides, a connection is closed when no tenant's
//! call was admitted on it within [`ADMISSION_WAIT_MAX`]: whether its peer sends nothing, one byte a
//! second, or answers pings for ever. On the admin port, where nobody is admitted, the same holds for one that was given
//! no answer for [`ANSWER_WAIT_MAX`].

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use rustix::event::EventfdFlags;
use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::transport::server::Connected;
use tracing::warn;

use crate::call::arrival::Arrival;
use crate::config::CONNECTIONS_MAX;
use crate::show::metrics::Metrics;

/// Connections of the admin server.
pub const ADMIN_CONNECTIONS_MAX: usize = 64;

/// Connections of one address to the admin server.
const ADMIN_CONNECTIONS_PER_ADDRESS_MAX: usize = 8;

/// Time in which a connection must bear a call of a tenant. A driver calls at once.
pub const ADMISSION_WAIT_MAX: Duration = Duration::from_secs(20);

/// Time in which a connection to the admin server must be given an answer, and the next one.
pub const ANSWER_WAIT_MAX: Duration = Duration::from_secs(20);

/// First byte of a connection that begins with TLS (RFC 8446, section 5.1: a handshake record). No
/// HTTP does.
const TLS_HANDSHAKE: u8 = 22;

/// Time before accepting again when that failed, for example for want of file descriptors.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Returns how many connections a listener may have in a process of `files_max` files: a quarter,
/// as there are two listeners, and uploads need some, too.
pub fn connections_max(files_max: Option<u64>) -> usize {
    let quarter = files_max.map_or(u64::MAX, |files| files / 4);
    usize::try_from(quarter).map_or(CONNECTIONS_MAX, |quarter| quarter.clamp(1, CONNECTIONS_MAX))
}

/// The bound of one listener; cheap to clone.
#[derive(Debug, Clone)]
pub struct Gate {
    listener: &'static str,
    connections_max: usize,
    per_address_max: usize,
    places: Arc<Mutex<Places>>,
    metrics: Arc<Metrics>,
    /// Connections that began with TLS where none is spoken.
    misled_count: Arc<AtomicU64>,
    /// Connections that could not be accepted.
    failed_count: Arc<AtomicU64>,
}

/// Who is connected.
#[derive(Debug, Default)]
struct Places {
    count: usize,
    /// Connections of each address that has any.
    of_addresses: HashMap<IpAddr, usize>,
    /// Connections, oldest first; among them those that were not admitted yet.
    oldest_first: VecDeque<Arc<Holder>>,
}

/// Whose a place is.
#[derive(Debug, Default)]
struct Holder {
    address: Option<IpAddr>,
    /// What is known of the peer, once its connection is one of HTTP.
    arrival: OnceLock<Arrival>,
    /// Whether the place is another one's, or nobody's.
    is_out: AtomicBool,
    /// Who is to notice that.
    waker: AtomicWaker,
}

impl Holder {
    fn is_admitted(&self) -> bool {
        self.arrival.get().is_some_and(Arrival::is_admitted)
    }

    fn is_out(&self) -> bool {
        self.is_out.load(Ordering::Acquire)
    }
}

/// A place of a [`Gate`], for as long as it is kept.
#[derive(Debug)]
pub struct Slot {
    gate: Gate,
    holder: Arc<Holder>,
}

impl Slot {
    /// Waits until the place is another one's: the connection is to be closed.
    pub async fn lost(&self) {
        std::future::poll_fn(|context| self.poll_lost(context)).await;
    }

    fn poll_lost(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.holder.is_out() {
            return Poll::Ready(());
        }
        self.holder.waker.register(context.waker());
        if self.holder.is_out() {
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.gate.places().leave(&self.holder);
    }
}

impl Places {
    /// Takes a place for a connection from `address`.
    fn take(&mut self, address: Option<IpAddr>) -> Arc<Holder> {
        let holder = Arc::new(Holder {
            address,
            ..Holder::default()
        });
        self.count += 1;
        if let Some(address) = address {
            *self.of_addresses.entry(address).or_default() += 1;
        }
        // Those that need no look any more are forgotten together, now and then.
        if self.oldest_first.len() > 2 * self.count {
            let is_of_use = |holder: &Arc<Holder>| !holder.is_out() && !holder.is_admitted();
            self.oldest_first.retain(is_of_use);
        }
        self.oldest_first.push_back(Arc::clone(&holder));
        holder
    }

    /// Gives a place back, once.
    fn leave(&mut self, holder: &Holder) {
        if holder.is_out.swap(true, Ordering::AcqRel) {
            return;
        }
        self.count -= 1;
        let Some(address) = holder.address else {
            return;
        };
        if let Some(count) = self.of_addresses.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.of_addresses.remove(&address);
            }
        }
    }

    /// Closes the oldest connection that was not admitted, of an address if one is given. Returns whether
    /// there was one.
    fn evict(&mut self, of: Option<IpAddr>) -> bool {
        let is_evicted = |holder: &Arc<Holder>| {
            !holder.is_out() && !holder.is_admitted() && (of.is_none() || holder.address == of)
        };
        let Some(at) = self.oldest_first.iter().position(is_evicted) else {
            return false;
        };
        let Some(evicted) = self.oldest_first.remove(at) else {
            return false;
        };
        self.leave(&evicted);
        evicted.waker.wake();
        true
    }
}

impl Gate {
    /// Makes the gate of a listener, which is named in messages. One address has half of its places.
    pub fn new(listener: &'static str, connections_max: usize, metrics: Arc<Metrics>) -> Self {
        Self {
            listener,
            connections_max,
            per_address_max: connections_max.div_ceil(2),
            places: Arc::default(),
            metrics,
            misled_count: Arc::default(),
            failed_count: Arc::default(),
        }
    }

    /// Gives one address so many places instead of half of them, if a number is set.
    #[must_use]
    pub fn per_address(self, connections_max: Option<usize>) -> Self {
        let per_address_max = connections_max.unwrap_or(self.per_address_max);
        Self {
            per_address_max,
            ..self
        }
    }

    /// Returns what was accepted; says ever more rarely why there is nothing, and lets time pass: most
    /// likely there is no file left for it.
    pub async fn usable<T>(&self, connection: io::Result<T>) -> Option<T> {
        match connection {
            Ok(connection) => Some(connection),
            Err(error) => {
                let count = self.failed_count.fetch_add(1, Ordering::Relaxed) + 1;
                if count.is_power_of_two() {
                    let listener = self.listener;
                    warn!(listener, %error, count, "can't accept a connection");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                None
            }
        }
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that a peer speaks TLS where none is spoken: HTTP/2 would only find nonsense.
    fn note_misled(&self) {
        let count = self.misled_count.fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_power_of_two() {
            warn!(
                listener = self.listener,
                count,
                "a peer speaks TLS and this port does not: set [listen.tls], or begin its SHIPPER with http://"
            );
        }
    }

    /// Returns a place for a connection from `address`: a free one, or that of a connection that was not
    /// admitted. Returns nothing if all of them, or of that address, are of tenants: it is to be closed.
    /// A connection that is closed is counted, and logged ever more rarely.
    pub fn enter(&self, address: Option<IpAddr>) -> Option<Slot> {
        let address = address.map(site);
        let mut places = self.places();
        let of_address = address.and_then(|address| places.of_addresses.get(&address));
        let is_address_full = of_address.is_some_and(|count| *count >= self.per_address_max);
        let is_full = places.count >= self.connections_max;
        let has_place = match (is_address_full, is_full) {
            (true, _) => places.evict(address),
            (false, true) => places.evict(None),
            (false, false) => true,
        };
        let holder = has_place.then(|| places.take(address));
        drop(places);
        if is_address_full || is_full {
            self.note_full(address.filter(|_| is_address_full), has_place);
        }
        let gate = self.clone();
        holder.map(|holder| Slot { gate, holder })
    }

    /// Counts and logs a connection that is closed for want of places: the further one, or the oldest.
    fn note_full(&self, address: Option<IpAddr>, is_evicted: bool) {
        let Some(count) = self.refuse() else { return };
        let closed = if is_evicted {
            "the oldest one that no host has called on"
        } else {
            "the newest one"
        };
        let listener = self.listener;
        match address {
            Some(address) => {
                let per_address_max = self.per_address_max;
                warn!(listener, %address, per_address_max, count, closed,
                    "a connection is closed: its address has too many \
                     (listen.connections_per_address_max)");
            }
            None => {
                let connections_max = self.connections_max;
                warn!(
                    listener,
                    connections_max, count, closed, "a connection is closed: there are too many"
                );
            }
        }
    }

    /// Counts a connection that is closed. Returns how many there were, if that is to be logged.
    fn refuse(&self) -> Option<u64> {
        let count = self.metrics.refused_connections.inc() + 1;
        count.is_power_of_two().then_some(count)
    }
}

/// Returns what stands for all addresses that one peer can have: it has an IPv4 address, but 64 bits of
/// IPv6 addresses.
fn site(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let prefix = address.to_bits() >> 64 << 64;
            IpAddr::V6(Ipv6Addr::from_bits(prefix))
        }
        address @ IpAddr::V4(_) => address,
    }
}

/// What keeps a connection open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Merit {
    /// A call that was admitted, for ever.
    Admission,
    /// An answer, for [`ANSWER_WAIT_MAX`].
    Answer,
}

/// A connection that ends if it is of no use.
#[derive(Debug)]
pub struct Guarded<IO> {
    io: IO,
    arrival: Arrival,
    merit: Merit,
    /// When it ends; `None` if it may stay.
    due: Option<Pin<Box<Sleep>>>,
    has_begun: bool,
    slot: Slot,
}

impl<IO> Guarded<IO> {
    /// Guards a connection to the relay.
    pub fn relay(io: IO, arrival: Arrival, slot: Slot) -> Self {
        slot.holder.arrival.set(arrival.clone()).ok();
        Self::new(io, arrival, Merit::Admission, ADMISSION_WAIT_MAX, slot)
    }

    fn new(io: IO, arrival: Arrival, merit: Merit, wait_max: Duration, slot: Slot) -> Self {
        Self {
            io,
            arrival,
            merit,
            due: Some(Box::pin(sleep_until(Instant::now() + wait_max))),
            has_begun: false,
            slot,
        }
    }

    fn is_over(&mut self, context: &mut Context<'_>) -> bool {
        if self.merit == Merit::Admission && self.arrival.is_admitted() {
            self.due = None;
            return false;
        }
        if self.slot.poll_lost(context).is_ready() {
            return true;
        }
        let due = self.due.as_mut();
        due.is_some_and(|due| due.as_mut().poll(context).is_ready())
    }
}

impl<IO> Connected for Guarded<IO> {
    type ConnectInfo = Arrival;

    fn connect_info(&self) -> Arrival {
        self.arrival.clone()
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Guarded<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_over(context) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let filled = buffer.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(context, buffer);
        if let Some(first) = buffer.filled().get(filled)
            && !std::mem::replace(&mut self.has_begun, true)
            && *first == TLS_HANDSHAKE
        {
            self.slot.gate.note_misled();
        }
        polled
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Guarded<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.merit == Merit::Answer
            && let Some(due) = &mut self.due
        {
            due.as_mut().reset(Instant::now() + ANSWER_WAIT_MAX);
        }
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.merit == Merit::Answer
            && let Some(due) = &mut self.due
        {
            due.as_mut().reset(Instant::now() + ANSWER_WAIT_MAX);
        }
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

/// Where accepted connections go.
pub type Accepted<IO> = mpsc::Sender<io::Result<Guarded<IO>>>;

/// Accepts connections on a unix socket until nobody takes them any more.
pub async fn accept_unix(
    listener: UnixListener,
    gate: Gate,
    accepted: Accepted<tokio::net::UnixStream>,
) {
    loop {
        let connection = tokio::select! {
            connection = listener.accept() => connection,
            () = accepted.closed() => return,
        };
        let Some((stream, _)) = gate.usable(connection).await else {
            continue;
        };
        let Some(slot) = gate.enter(None) else {
            continue;
        };
        let arrival = Arrival::over_unix(stream.peer_cred().ok().map(|peer| peer.uid()));
        // The server is stopping if it does not take the connection.
        let connection = Guarded::relay(stream, arrival, slot);
        accepted.send(Ok(connection)).await.ok();
    }
}

/// Accepts connections over TCP, in the clear, until nobody takes them any more.
pub async fn accept_tcp(listener: TcpListener, gate: Gate, accepted: Accepted<TcpStream>) {
    loop {
        let connection = tokio::select! {
            connection = listener.accept() => connection,
            () = accepted.closed() => return,
        };
        let Some((stream, address)) = gate.usable(connection).await else {
            continue;
        };
        let Some(slot) = gate.enter(Some(address.ip())) else {
            continue;
        };
        let connection = Guarded::relay(stream, Arrival::over_tcp(address, Vec::new()), slot);
        accepted.send(Ok(connection)).await.ok();
    }
}

/// The listener of the admin server. It keeps a file for when there is none left: whoever asks for the
/// health of a process that is short of files is to have an answer.
#[derive(Debug)]
pub struct AdminListener {
    listener: TcpListener,
    gate: Gate,
    spare: Option<OwnedFd>,
}

impl AdminListener {
    /// Bounds a listener of a process of `files_max` files.
    pub fn new(listener: TcpListener, files_max: Option<u64>, metrics: Arc<Metrics>) -> Self {
        let connections_max = (connections_max(files_max) / 4).clamp(4, ADMIN_CONNECTIONS_MAX);
        let gate = Gate::new("admin", connections_max, metrics);
        let per_address_max = ADMIN_CONNECTIONS_PER_ADDRESS_MAX.min(connections_max);
        let gate = gate.per_address(Some(per_address_max));
        Self {
            listener,
            gate,
            spare: spare(),
        }
    }

    async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        if self.spare.is_none() {
            self.spare = spare();
        }
        let accepted = self.listener.accept().await;
        let Err(error) = accepted else {
            return accepted;
        };
        let out_of_files = [Errno::MFILE, Errno::NFILE].map(|errno| errno.raw_os_error());
        let is_out_of_files = error
            .raw_os_error()
            .is_some_and(|errno| out_of_files.contains(&errno));
        if !is_out_of_files || self.spare.take().is_none() {
            return Err(error);
        }
        self.listener.accept().await
    }
}

/// Returns a file that is good for nothing but to be closed; nothing, if there is none left.
fn spare() -> Option<OwnedFd> {
    rustix::event::eventfd(0, EventfdFlags::CLOEXEC).ok()
}

impl axum::serve::Listener for AdminListener {
    type Io = Guarded<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            let accepted = AdminListener::accept(self).await;
            let Some((stream, address)) = self.gate.usable(accepted).await else {
                continue;
            };
            let Some(slot) = self.gate.enter(Some(address.ip())) else {
                continue;
            };
            let arrival = Arrival::over_tcp(address, Vec::new());
            let guarded = Guarded::new(stream, arrival, Merit::Answer, ANSWER_WAIT_MAX, slot);
            return (guarded, address);
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

    fn gate(connections_max: usize) -> Gate {
        Gate::new("test", connections_max, Arc::default())
    }

    fn guarded(merit: Merit) -> (Guarded<DuplexStream>, DuplexStream, Arrival) {
        let (near, far) = tokio::io::duplex(64);
        let (arrival, slot) = (Arrival::default(), gate(1).enter(None).unwrap());
        let guarded = Guarded::new(near, arrival.clone(), merit, ADMISSION_WAIT_MAX, slot);
        (guarded, far, arrival)
    }

    /// Reads for as long as the peer sends a byte a second, and returns after how long that ended.
    async fn trickle(mut near: Guarded<DuplexStream>, mut far: DuplexStream) -> Duration {
        let began = Instant::now();
        let mut byte = [0];
        for _ in 0..1_000 {
            far.write_all(b"x").await.unwrap();
            if let Err(error) = near.read_exact(&mut byte).await {
                assert_eq!(error.kind(), io::ErrorKind::TimedOut);
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_stranger_that_sends_a_byte_a_second_is_sent_away_and_a_tenant_stays() {
        let (near, far, _) = guarded(Merit::Admission);
        assert_eq!(trickle(near, far).await, ADMISSION_WAIT_MAX);
        let (near, far, arrival) = guarded(Merit::Admission);
        arrival.admit();
        assert_eq!(trickle(near, far).await, Duration::from_secs(1_000));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stranger_that_is_silent_is_sent_away() {
        let (mut near, _far, _) = guarded(Merit::Admission);
        let (began, mut byte) = (Instant::now(), [0]);
        near.read_exact(&mut byte).await.unwrap_err();
        assert_eq!(began.elapsed(), ADMISSION_WAIT_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_keeps_a_connection_for_a_while() {
        let (mut near, _far, _) = guarded(Merit::Answer);
        let began = Instant::now();
        tokio::time::sleep(Duration::from_secs(15)).await;
        near.write_all(b"answer").await.unwrap();
        near.read_exact(&mut [0]).await.unwrap_err();
        assert_eq!(began.elapsed(), Duration::from_secs(15) + ANSWER_WAIT_MAX);
    }

    /// Returns a place whose connection was admitted.
    fn admitted(gate: &Gate, address: Option<&str>) -> Option<Slot> {
        let slot = gate.enter(address.map(|text| text.parse().unwrap()))?;
        let arrival = Arrival::default();
        arrival.admit();
        slot.holder.arrival.set(arrival).unwrap();
        Some(slot)
    }

    #[test]
    fn a_gate_has_so_many_places_and_counts_who_finds_none() {
        let gate = gate(2);
        let slots = [admitted(&gate, None), admitted(&gate, None)];
        assert!(slots.iter().all(Option::is_some) && gate.enter(None).is_none());
        assert_eq!(gate.metrics.refused_connections.get(), 1);
        drop(slots);
        assert!(gate.enter(None).is_some());
    }

    #[test]
    fn a_full_gate_closes_the_oldest_that_was_not_admitted() {
        let gate = gate(3);
        let [good, old, new] = [
            admitted(&gate, None).unwrap(),
            gate.enter(None).unwrap(),
            gate.enter(None).unwrap(),
        ];
        let newest = gate.enter(None).unwrap();
        let out = [&good, &old, &new, &newest].map(|slot| slot.holder.is_out());
        assert_eq!(out, [false, true, false, false]);
        // Its end gives no place back: it had none any more.
        drop(old);
        let _later = gate.enter(None).unwrap();
        assert!(new.holder.is_out() && gate.places().count == 3);
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_lost_its_place_is_closed_at_once() {
        let gate = gate(1);
        let (near, _far) = tokio::io::duplex(64);
        let slot = gate.enter(None).unwrap();
        let mut near = Guarded::relay(near, Arrival::default(), slot);
        let (began, mut byte) = (Instant::now(), [0]);
        let (ended, newcomer) = tokio::join!(near.read_exact(&mut byte), async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            gate.enter(None)
        });
        assert!(ended.is_err() && newcomer.is_some());
        assert_eq!(began.elapsed(), Duration::from_secs(1));
    }

    /// Strangers of two addresses dial as often as they can, and have all places.
    #[test]
    fn strangers_that_dial_for_ever_leave_a_way_in() {
        let gate = gate(8);
        let enter = |text: &str| gate.enter(Some(text.parse().unwrap()));
        let mut strangers = VecDeque::new();
        let mut dial = |gate_of: &str| {
            strangers.extend(enter(gate_of));
            if strangers.len() > 40 {
                strangers.pop_front();
            }
        };
        for _ in 0..40 {
            dial("192.0.2.1");
            dial("192.0.2.2");
        }
        let good = enter("192.0.2.3").unwrap();
        dial("192.0.2.1");
        dial("192.0.2.2");
        assert!(!good.holder.is_out(), "it has the time that others have");
        assert_eq!(gate.places().count, 8);
        assert!(gate.places().oldest_first.len() <= 17);
    }

    #[test]
    fn an_address_has_half_of_the_places_or_as_many_as_are_set() {
        for (set, expected) in [(None, 4), (Some(1), 1), (Some(7), 7)] {
            let gate = gate(7).per_address(set);
            let enter = |text: &str| admitted(&gate, Some(text));
            let mut slots: Vec<_> = (0..7).map_while(|_| enter("192.0.2.1")).collect();
            assert_eq!(slots.len(), expected, "{set:?}");
            assert!(enter("192.0.2.1").is_none());
            assert!(enter("::ffff:192.0.2.1").is_none(), "it is the same");
            assert_eq!(enter("192.0.2.2").is_some(), expected < 7);
            slots.pop();
            slots.extend(enter("192.0.2.1"));
            assert_eq!(slots.len(), expected, "a place is free again");
            drop(slots);
            let left = &gate.places().of_addresses;
            assert!(left.is_empty(), "{left:?} are kept for nothing");
        }
    }

    /// Silent peers of an address that has no place left lose theirs to its hosts, and to nobody else.
    #[test]
    fn an_address_that_is_full_makes_room_in_its_own_places() {
        let gate = gate(4);
        let enter = |text: &str| gate.enter(Some(text.parse().unwrap())).unwrap();
        let [other, first, second] = ["192.0.2.2", "192.0.2.1", "192.0.2.1"].map(enter);
        let _third = enter("192.0.2.1");
        let out = [&other, &first, &second].map(|slot| slot.holder.is_out());
        assert_eq!(out, [false, true, false]);
    }

    #[test]
    fn a_peer_has_64_bits_of_addresses() {
        let gate = gate(4);
        let enter = |text: &str| admitted(&gate, Some(text));
        let slots = [enter("2001:db8::1"), enter("2001:db8::ffff:0:0:2")];
        assert!(slots.iter().all(Option::is_some));
        assert!(enter("2001:db8::3").is_none());
        assert!(enter("2001:db8:0:1::1").is_some());
    }

    #[test]
    fn few_files_leave_few_places() {
        for (files_max, expected) in [
            (None, CONNECTIONS_MAX),
            (Some(u64::MAX), CONNECTIONS_MAX),
            (Some(1_024), 256),
            (Some(0), 1),
        ] {
            assert_eq!(connections_max(files_max), expected, "{files_max:?}");
        }
    }
}
