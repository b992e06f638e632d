//! A connection point that can be cut, go silent, or be slow: a proxy between two sockets.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Bytes that are carried at once.
const PIECE_BYTES: usize = 32 << 10;

/// A place that can be listened on or dialled.
#[derive(Debug, Clone)]
pub(super) enum Place {
    Unix(PathBuf),
    Tcp(std::net::SocketAddr),
}

/// What becomes of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Weather {
    /// They pass.
    Fair,
    /// They wait, and so does whoever connects.
    Silent,
    /// Each piece of at most so many bytes takes so long.
    Slow { piece_bytes: usize, delay: Duration },
}

/// The two processes that a link connects.
#[derive(Debug, Clone, Copy)]
pub(super) enum End {
    Near,
    Far,
}

/// A link, to be told what to do to those who use it.
#[derive(Debug)]
pub(super) struct Link {
    weather: watch::Sender<Weather>,
    /// Connections of an earlier epoch are dead.
    epoch: watch::Sender<u64>,
    is_dead: [AtomicBool; 2],
    activity: Arc<AtomicU64>,
    cut_count: AtomicU64,
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Link {
    /// Makes a link whose traffic counts as activity.
    pub(super) fn new(activity: Arc<AtomicU64>) -> Arc<Self> {
        Arc::new(Self {
            weather: watch::Sender::new(Weather::Fair),
            epoch: watch::Sender::new(0),
            is_dead: [AtomicBool::new(false), AtomicBool::new(false)],
            activity,
            cut_count: AtomicU64::new(0),
        })
    }

    /// Changes the weather.
    pub(super) fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// Ends all connections. Bytes that are under way are lost.
    pub(super) fn cut(&self) {
        self.epoch.send_modify(|epoch| *epoch += 1);
    }

    /// Says that the process at one end is dead: what it still sends is not carried. Any thread.
    pub(super) fn kill(&self, end: End) {
        self.is_dead[end as usize].store(true, Ordering::Release);
        self.cut();
    }

    /// Says that the next process lives at an end.
    pub(super) fn revive(&self, end: End) {
        self.is_dead[end as usize].store(false, Ordering::Release);
    }

    /// Returns how many connections were cut while they lived.
    pub(super) fn cut_count(&self) -> u64 {
        self.cut_count.load(Ordering::Relaxed)
    }

    /// Carries connections from `near` to `far`, for ever.
    pub(super) async fn run(self: Arc<Self>, near: Place, far: Place) {
        let listener = Listener::bind(&near).await;
        let mut connections = JoinSet::new();
        loop {
            let accepted = listener.accept().await;
            while connections.try_join_next().is_some() {}
            connections.spawn(Arc::clone(&self).serve(accepted, far.clone()));
        }
    }

    async fn serve(self: Arc<Self>, near: Box<dyn Stream>, far: Place) {
        let mut epoch = self.epoch.subscribe();
        let began = *epoch.borrow_and_update();
        if self.has_dead_end() {
            return;
        }
        let Ok(far) = dial(&far).await else { return };
        let (near_read, near_write) = tokio::io::split(near);
        let (far_read, far_write) = tokio::io::split(far);
        let both = async {
            tokio::join!(
                self.carry(near_read, far_write, began),
                self.carry(far_read, near_write, began)
            )
        };
        tokio::select! {
            biased;
            _ = epoch.wait_for(|&now| now != began) => {
                self.cut_count.fetch_add(1, Ordering::Relaxed);
            }
            _ = both => {}
        }
    }

    async fn carry(
        &self,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
        epoch: u64,
    ) -> std::io::Result<()> {
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            let weather = *self.weather.borrow();
            let room = match weather {
                Weather::Slow { piece_bytes, .. } => piece_bytes.clamp(1, PIECE_BYTES),
                Weather::Fair | Weather::Silent => PIECE_BYTES,
            };
            let count = from.read(&mut buffer[..room]).await?;
            if count == 0 {
                return to.shutdown().await;
            }
            self.pass().await;
            // What a process sends behind its death was never sent.
            if self.has_dead_end() || *self.epoch.borrow() != epoch {
                return Err(std::io::ErrorKind::ConnectionAborted.into());
            }
            self.activity.fetch_add(1, Ordering::Relaxed);
            to.write_all(&buffer[..count]).await?;
        }
    }

    async fn pass(&self) {
        let mut weather = self.weather.subscribe();
        let now = *weather.borrow_and_update();
        match now {
            Weather::Fair => {}
            Weather::Slow { delay, .. } => tokio::time::sleep(delay).await,
            Weather::Silent => {
                // The sender lives as long as the link.
                weather
                    .wait_for(|weather| *weather != Weather::Silent)
                    .await
                    .ok();
            }
        }
    }

    fn has_dead_end(&self) -> bool {
        self.is_dead
            .iter()
            .any(|is_dead| is_dead.load(Ordering::Acquire))
    }
}

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    async fn bind(place: &Place) -> Self {
        match place {
            Place::Unix(path) => Self::Unix(UnixListener::bind(path).unwrap()),
            Place::Tcp(address) => Self::Tcp(TcpListener::bind(address).await.unwrap()),
        }
    }

    async fn accept(&self) -> Box<dyn Stream> {
        loop {
            let accepted: std::io::Result<Box<dyn Stream>> = match self {
                Self::Unix(listener) => listener
                    .accept()
                    .await
                    .map(|(stream, _)| Box::new(stream) as _),
                Self::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                    stream.set_nodelay(true).ok();
                    Box::new(stream) as _
                }),
            };
            match accepted {
                Ok(stream) => return stream,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

async fn dial(place: &Place) -> std::io::Result<Box<dyn Stream>> {
    match place {
        Place::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
        Place::Tcp(address) => {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream))
        }
    }
}
