//! The plugin's socket: one driver at a time listens on it.
//!
//! A lock beside the socket (`<socket>.lock`) says who that is. A driver takes it before it puts its socket
//! in the place of one that an earlier process left, and holds it until its own is removed: so it never
//! takes the socket away from one that lives, nor removes that of its successor.

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::io::Errno;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::time::{sleep, timeout};

use crate::config::lock_file_of;

/// How long a starting driver waits for its predecessor to end. The engine disables a plugin that is
/// silent for 9.5 s.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(5);

/// Time between two tries to get the lock.
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// The plugin's socket could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("could not listen on plugin socket {}", path.display())]
pub struct BindError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The right to listen on the plugin's socket. Dropped, it leaves the socket where it is.
#[derive(Debug)]
pub(crate) struct SocketLock {
    socket: PathBuf,
    _lock: OwnedFd,
}

impl SocketLock {
    /// Removes the socket.
    pub(crate) fn remove_socket(self) {
        if let Err(error) = std::fs::remove_file(&self.socket) {
            tracing::debug!(%error, "could not remove the plugin socket");
        }
    }
}

/// Binds the plugin's socket, in place of one that an earlier process left. Waits for a predecessor that
/// is about to end.
///
/// # Errors
/// [`BindError`] if the path can't be used, or another driver listens there.
///
/// # Cancel safety
/// Cancel safe.
pub(crate) async fn bind(path: &Path) -> Result<(UnixListener, SocketLock), BindError> {
    let bind_error = |source| BindError {
        path: path.to_path_buf(),
        source,
    };
    let lock = lock(path).await.map_err(bind_error)?;
    let bound = match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => UnixListener::bind(path),
    };
    let socket = path.to_path_buf();
    let lock = SocketLock {
        socket,
        _lock: lock,
    };
    Ok((bound.map_err(bind_error)?, lock))
}

async fn lock(socket: &Path) -> io::Result<OwnedFd> {
    if let Some(folder) = socket.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
    let file = open(lock_file_of(socket), flags, Mode::RUSR | Mode::WUSR)?;
    let locked = timeout(LOCK_WAIT_MAX, async {
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK | Errno::INTR) => sleep(LOCK_RETRY).await,
                locked => return locked,
            }
        }
    });
    match locked.await {
        Ok(locked) => locked?,
        Err(_) => {
            let why = "another driver listens there";
            return Err(io::Error::new(io::ErrorKind::AddrInUse, why));
        }
    }
    Ok(file)
}
