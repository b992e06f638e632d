//! One TCP connection, with the ways in which it can fail the client: reset, silent close, drip.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Sleep;
use tokio_rustls::server::TlsStream;

/// What is to become of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It serves.
    Serve,
    /// It is reset at once.
    Reset,
    /// It is closed after this time, as soon as it is idle then.
    CloseAfter(Duration),
}

/// What the requests of a connection can do to it.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) fate: watch::Sender<Fate>,
    /// Milliseconds per byte of an answer; 0 for full speed.
    pub(super) drip_ms: AtomicU64,
    /// Whether it speaks TLS.
    pub(super) is_secure: bool,
}

impl Link {
    pub(super) fn new(is_secure: bool) -> Self {
        Self {
            fate: watch::Sender::new(Fate::Serve),
            drip_ms: AtomicU64::new(0),
            is_secure,
        }
    }
}

/// A TCP stream that writes one byte at a time when its link says so.
#[derive(Debug)]
pub(super) struct DripStream {
    stream: TcpStream,
    link: std::sync::Arc<Link>,
    pause: Option<Pin<Box<Sleep>>>,
}

impl DripStream {
    pub(super) fn new(stream: TcpStream, link: std::sync::Arc<Link>) -> Self {
        Self {
            stream,
            link,
            pause: None,
        }
    }

    /// Makes the peer see a reset as soon as the stream is dropped.
    pub(super) fn reset(self) {
        // An error leaves an ordinary close, which is a fault as well.
        self.stream.set_zero_linger().ok();
    }
}

impl AsyncRead for DripStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for DripStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let drip_ms = self.link.drip_ms.load(Ordering::Relaxed);
        if drip_ms == 0 {
            return Pin::new(&mut self.stream).poll_write(cx, buffer);
        }
        let pause = Duration::from_millis(drip_ms);
        let sleep = self
            .pause
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(pause)));
        ready!(sleep.as_mut().poll(cx));
        self.pause = None;
        let first = buffer.get(..1).unwrap_or_default();
        Pin::new(&mut self.stream).poll_write(cx, first)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A connection as the service reads and writes it.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(DripStream),
    Secure(Box<TlsStream<DripStream>>),
}

impl Stream {
    /// Makes the peer see a reset as soon as the stream is dropped.
    pub(super) fn reset(self) {
        match self {
            Self::Plain(stream) => stream.reset(),
            Self::Secure(stream) => stream.into_inner().0.reset(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Secure(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buffer),
            Self::Secure(stream) => Pin::new(stream).poll_write(cx, buffer),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Secure(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Secure(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
