//! The state folder has one driver: it holds the lock.

use crate::blocking::blocking;
use crate::disk::Disk;
use rustix::fs::{FlockOperation, Mode as FileMode, OFlags};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long a starting driver waits for its predecessor to end.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(5);

/// The table could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The state folder can't be used.
    #[error("could not use state folder {}: {source}", folder.display())]
    StateDir {
        /// The folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another driver works in it.
    #[error("another driver works in state folder {}", folder.display())]
    Locked {
        /// The folder.
        folder: PathBuf,
    },
}

/// Makes the state folder and locks it. A disk that takes nothing (read-only, full, failing) is no
/// reason not to start: then there is no lock, and nobody whom it would keep out could write either.
pub(crate) async fn lock_state_dir(
    disk: &Arc<dyn Disk>,
    folder: &Path,
) -> Result<Option<OwnedFd>, TableError> {
    let state_dir_error = |source: std::io::Error| TableError::StateDir {
        folder: folder.to_path_buf(),
        source,
    };
    let opened = {
        let (disk, folder) = (Arc::clone(disk), folder.to_path_buf());
        blocking(move || open_lock(&*disk, &folder)).await
    };
    let opened = opened.unwrap_or_else(|| Err(std::io::Error::other("a thread has failed")));
    let lock_file = match opened {
        Ok(lock_file) => lock_file,
        Err(error) if is_disk_fault(&error) => {
            tracing::error!(
                %error,
                folder = %folder.display(),
                "the disk takes nothing: until it does, what containers write stays in memory and \
                 does not survive this process"
            );
            return Ok(None);
        }
        Err(error) => return Err(state_dir_error(error)),
    };
    let locked = tokio::time::timeout(LOCK_WAIT_MAX, async {
        loop {
            match rustix::fs::flock(&lock_file, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK | Errno::INTR) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                locked => return locked,
            }
        }
    });
    match locked.await {
        Ok(locked) => locked.map_err(|error| state_dir_error(error.into()))?,
        Err(_) => {
            return Err(TableError::Locked {
                folder: folder.to_path_buf(),
            });
        }
    }
    Ok(Some(lock_file))
}

fn open_lock(disk: &dyn Disk, folder: &Path) -> std::io::Result<OwnedFd> {
    std::fs::create_dir_all(folder)?;
    let path = folder.join("lock");
    let opened = rustix::fs::chmod(folder, FileMode::RWXU)
        .and_then(|()| disk.open(&path, OFlags::RDWR | OFlags::CREATE));
    match opened {
        // A lock needs no writing.
        Err(error) if is_disk_fault(&error.into()) => {
            Ok(disk.open(&path, OFlags::RDONLY).map_err(|_| error)?)
        }
        opened => Ok(opened?),
    }
}

/// Returns whether an error is the disk's own, and not that of a path that can't be used.
fn is_disk_fault(error: &std::io::Error) -> bool {
    let faults = [Errno::ROFS, Errno::NOSPC, Errno::DQUOT, Errno::IO];
    Errno::from_io_error(error).is_some_and(|error| faults.contains(&error))
}
