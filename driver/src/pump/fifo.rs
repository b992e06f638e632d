//! A FIFO that the engine has made: how it is opened to be read.

use crate::journal::Appender;
use crate::stream::Stream;
use rustix::fs::{FileType, Mode as FileMode, OFlags};
use rustix::io::Errno;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A FIFO can't be read; nothing was changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FifoError {
    /// It can't be opened.
    #[error("could not open FIFO {}", path.display())]
    Open {
        /// The path that the engine gave.
        path: PathBuf,
        /// Why.
        #[source]
        source: Errno,
    },
    /// It is something else.
    #[error("{} is not a FIFO", path.display())]
    NotFifo {
        /// The path that the engine gave.
        path: PathBuf,
    },
}

impl FifoError {
    /// Returns whether there is no FIFO any more, rather than no way to open it now.
    pub(crate) fn is_gone(&self) -> bool {
        match self {
            Self::Open { source, .. } => *source == Errno::NOENT,
            Self::NotFifo { .. } => true,
        }
    }
}

/// Opens a FIFO for reading. Never waits for a writer.
///
/// # Errors
/// See [`FifoError`].
pub(crate) fn open(path: &Path) -> Result<OwnedFd, FifoError> {
    let open_error = |source| FifoError::Open {
        path: path.to_path_buf(),
        source,
    };
    let flags = OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fifo =
        rustix::fs::open(path, flags | OFlags::RDONLY, FileMode::empty()).map_err(open_error)?;
    let stat = rustix::fs::fstat(&fifo).map_err(open_error)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Fifo {
        return Err(FifoError::NotFifo {
            path: path.to_path_buf(),
        });
    }
    // epoll reports the end of a FIFO only after a writer has come and gone. If none is left from
    // before this process, this one is it.
    drop(rustix::fs::open(path, flags | OFlags::WRONLY, FileMode::empty()).map_err(open_error)?);
    Ok(fifo)
}

/// A FIFO that the pump is to read.
#[derive(Debug)]
pub(crate) struct Fifo {
    /// Where its bytes go.
    pub(crate) stream: Arc<Stream>,
    /// The read end.
    pub(crate) file: OwnedFd,
    /// The journal's writing side.
    pub(crate) appender: Appender,
}
