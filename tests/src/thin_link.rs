//! A link of a given width and length between two sockets: what an uplink of a branch office does to
//! uploads.
//!
//! All connections share the width of each direction: a token bucket with hardly any burst. The delay
//! is that of a round trip, half of it each way, and bytes travel while others are being sent. The
//! socket that the sender writes to has a small buffer, so that bytes wait at the sender, as they do
//! before a real link.

use rustix::net::sockopt::set_socket_recv_buffer_size;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// Bytes that take the link at once: some packets.
const PIECE_BYTES: usize = 4 << 10;
/// How far the link may catch up after a timer that was late.
const BURST: Duration = Duration::from_millis(20);
/// Bytes in the buffer of the socket that the sender writes to.
const RECV_BUFFER_BYTES: usize = 16 << 10;
/// Pieces under way in one direction of a connection.
const PIECES_MAX: usize = 4 << 10;

/// A running link. It stops when it is dropped.
#[derive(Debug)]
pub struct ThinLink {
    address: SocketAddr,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    bytes_per_s: AtomicU64,
    one_way: Duration,
    /// When each direction is free again.
    free_at: [Mutex<Option<Instant>>; 2],
    carried_bytes: [AtomicU64; 2],
}

#[derive(Debug, Clone, Copy)]
enum Way {
    Up,
    Down,
}

impl ThinLink {
    /// Starts a link from a free port of loopback to `far`. `round_trip` is what it adds to one.
    ///
    /// # Errors
    /// If there is no free port.
    pub async fn start(
        far: SocketAddr,
        bytes_per_s: u64,
        round_trip: Duration,
    ) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        // Sockets that it accepts have the same.
        set_socket_recv_buffer_size(&socket, RECV_BUFFER_BYTES)?;
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let listener = socket.listen(1_024)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            bytes_per_s: AtomicU64::new(bytes_per_s.max(1)),
            one_way: round_trip / 2,
            free_at: Default::default(),
            carried_bytes: Default::default(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, far, Arc::clone(&shared)));
        Ok(Self {
            address,
            shared,
            _tasks: tasks,
        })
    }

    /// Returns the address of its near end.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes its width, for what is not under way yet.
    pub fn set_bytes_per_s(&self, bytes_per_s: u64) {
        let bytes_per_s = bytes_per_s.max(1);
        self.shared
            .bytes_per_s
            .store(bytes_per_s, Ordering::Relaxed);
    }

    /// Returns how many bytes it has carried to the far end.
    pub fn carried_bytes(&self) -> u64 {
        self.shared.carried_bytes[Way::Up as usize].load(Ordering::Relaxed)
    }
}

impl Shared {
    /// Takes the link for some bytes; returns when the last of them is on its way.
    fn take(&self, way: Way, bytes: u64, now: Instant) -> Instant {
        let bytes_per_s = self.bytes_per_s.load(Ordering::Relaxed);
        let time = Duration::from_micros(bytes * 1_000_000 / bytes_per_s);
        let mut free_at = self.free_at[way as usize]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let sent_at = free_at.unwrap_or(now).max(earliest) + time;
        *free_at = Some(sent_at);
        sent_at
    }

    /// Carries bytes one way until their sender has no more.
    async fn carry(
        &self,
        way: Way,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
    ) -> io::Result<()> {
        let (sender, mut under_way) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES_MAX);
        // It owns the sender: the receiver ends with it.
        let send = async move {
            loop {
                let mut piece = vec![0; PIECE_BYTES];
                let count = from.read(&mut piece).await?;
                if count == 0 {
                    return Ok(());
                }
                piece.truncate(count);
                let sent_at = self.take(way, count as u64, Instant::now());
                sleep_until(sent_at).await;
                let piece = (sent_at + self.one_way, piece);
                if sender.send(piece).await.is_err() {
                    return Ok(());
                }
            }
        };
        let receive = async {
            while let Some((due, piece)) = under_way.recv().await {
                sleep_until(due).await;
                to.write_all(&piece).await?;
                let carried = &self.carried_bytes[way as usize];
                carried.fetch_add(piece.len() as u64, Ordering::Relaxed);
            }
            to.shutdown().await
        };
        let (sent, received): (io::Result<()>, io::Result<()>) = tokio::join!(send, receive);
        sent.and(received)
    }
}

async fn serve(listener: TcpListener, far: SocketAddr, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((near, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            // A connection that breaks is the client's business.
            connect(near, far, &shared).await.ok();
        });
    }
}

async fn connect(near: TcpStream, far: SocketAddr, shared: &Shared) -> io::Result<()> {
    let far = TcpStream::connect(far).await?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    tokio::try_join!(
        shared.carry(Way::Up, near_read, far_write),
        shared.carry(Way::Down, far_read, near_write),
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends `bytes` over each of `count` connections; returns how long all of them took together.
    async fn time_to_send(
        link: &ThinLink,
        far: TcpListener,
        count: usize,
        bytes: usize,
    ) -> Duration {
        let began = Instant::now();
        let mut tasks = JoinSet::new();
        for _ in 0..count {
            let near = link.address();
            tasks.spawn(async move {
                let mut near = TcpStream::connect(near).await.unwrap();
                near.write_all(&vec![0; bytes]).await.unwrap();
            });
        }
        for _ in 0..count {
            let (mut stream, _) = far.accept().await.unwrap();
            tasks.spawn(async move {
                let mut all = Vec::new();
                stream.read_to_end(&mut all).await.unwrap();
                assert_eq!(all.len(), bytes);
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended.unwrap();
        }
        began.elapsed()
    }

    #[tokio::test]
    async fn connections_share_its_width_and_suffer_its_delay() {
        for (count, bytes_per_s, round_trip_ms, expected_ms) in [
            (1, 200_000, 0, 500),
            (4, 400_000, 0, 1_000),
            (1, 1_000_000, 600, 400),
        ] {
            let far = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let round_trip = Duration::from_millis(round_trip_ms);
            let far_address = far.local_addr().unwrap();
            let link = ThinLink::start(far_address, bytes_per_s, round_trip);
            let link = link.await.unwrap();
            let took = time_to_send(&link, far, count, 100_000).await.as_millis();
            assert!(
                (expected_ms * 9 / 10..expected_ms * 3 / 2).contains(&took),
                "{count} connections, {bytes_per_s} B/s, {round_trip_ms} ms: {took} ms"
            );
            assert_eq!(link.carried_bytes(), count as u64 * 100_000);
        }
    }
}
