//! Where a journal's bytes live: a folder on disk, or anonymous memory for `no-file=true`.

use super::counters::DropReason;
use super::lock::lock;
use crate::disk::{Disk, RealDisk};
use rustix::fs::{MemfdFlags, OFlags};
use rustix::io::Errno;
use std::fmt::{self, Debug};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Name of the state file in a journal's folder.
pub(crate) const STATE_FILE_NAME: &str = "state";

/// What a state file is called that holds nothing to go by.
pub(crate) const STATE_DAMAGED_FILE_NAME: &str = "state.damaged";

/// What a journal asks of the place that holds it.
pub(crate) trait Medium: Debug + Send + Sync {
    /// Creates the empty segment that starts at a journal offset, open for reading and writing.
    fn create(&self, start: u64) -> Result<OwnedFd, Errno>;

    /// Opens a segment for reading.
    fn open(&self, start: u64) -> Result<OwnedFd, Errno>;

    /// Removes a segment.
    fn remove(&self, start: u64) -> Result<(), Errno>;

    /// Takes a segment of so many bytes out of the journal because all of it is acknowledged.
    fn release(&self, start: u64, _bytes: u64) -> Result<(), Errno> {
        self.remove(start)
    }

    /// Overwrites bytes of the state file at `at`.
    fn save_state(&self, slot: &[u8], at: u64) -> Result<(), Errno>;

    /// Keeps no file open from now on but for the moment: nothing more is appended.
    fn rest(&self) {}

    /// Waits until the state file, and which segments exist, are on stable storage.
    fn sync_folder(&self) -> Result<(), Errno>;

    /// Tells whether segments are gone when the process ends.
    fn is_memory(&self) -> bool;

    /// Notes for the next process that what follows an offset is lost, unless a segment follows.
    fn note_loss(&self, _start: u64, _reason: DropReason) -> Result<(), Errno> {
        Ok(())
    }

    /// Takes such a note back.
    fn forget_loss(&self, _start: u64, _reason: DropReason) -> Result<(), Errno> {
        Ok(())
    }

    /// Waits until a segment's bytes are on stable storage.
    fn sync(&self, segment: BorrowedFd<'_>) -> Result<(), Errno>;

    /// Moves bytes from a FIFO to position `at` of a segment; see [`Disk::splice`].
    fn splice(
        &self,
        fifo: BorrowedFd<'_>,
        segment: BorrowedFd<'_>,
        at: u64,
        bytes_max: usize,
    ) -> Result<usize, Errno>;

    /// Reads bytes at position `at` of a segment; fewer than asked for only at its end.
    fn read_at(&self, segment: BorrowedFd<'_>, at: u64, into: &mut [u8]) -> Result<usize, Errno>;
}

/// Returns the file name of the segment that starts at an offset.
pub(crate) fn segment_file_name(start: u64) -> String {
    format!("{start:020}")
}

/// Returns the start offset that a file name gives, if it is a segment's.
pub(crate) fn segment_start(file_name: &str) -> Option<u64> {
    let is_segment = file_name.len() == 20 && file_name.bytes().all(|byte| byte.is_ascii_digit());
    is_segment.then(|| file_name.parse().ok()).flatten()
}

/// Returns the name of the empty file that notes a loss: where, and why.
pub(crate) fn loss_file_name(loss: Loss) -> String {
    format!("{}.{}", segment_file_name(loss.start), loss.reason.as_str())
}

/// Returns the loss that a file name notes, if it does.
pub(crate) fn noted_loss(file_name: &str) -> Option<Loss> {
    let (start, reason) = file_name.split_once('.')?;
    Some(Loss {
        start: segment_start(start)?,
        reason: DropReason::from_name(reason)?,
    })
}

/// What follows an offset is lost, if no segment follows: how much, nobody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Loss {
    /// The offset.
    pub(crate) start: u64,
    /// Why.
    pub(crate) reason: DropReason,
}

/// Takes a segment out of the journal in another way than by removing its file: it gets the segment's
/// start and size. On an error the file is removed.
pub(crate) type Retain = Box<dyn Fn(u64, u64) -> Result<(), Errno> + Send + Sync>;

/// The state file.
#[derive(Default)]
struct State {
    file: Option<Arc<OwnedFd>>,
    /// It is opened for each use.
    is_resting: bool,
}

/// Segments and state file in a folder.
pub(crate) struct Folder {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    state: Mutex<State>,
    /// What becomes of acknowledged segments, if they are not removed at once.
    retain: Option<Retain>,
}

impl Debug for Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = &self.path;
        f.debug_struct("Folder")
            .field("path", path)
            .finish_non_exhaustive()
    }
}

impl Folder {
    /// Returns the medium of a folder that exists.
    pub(crate) fn new(disk: Arc<dyn Disk>, path: PathBuf) -> Self {
        Self {
            disk,
            path,
            state: Mutex::default(),
            retain: None,
        }
    }

    /// Hands acknowledged segments over instead of removing them.
    pub(crate) fn retaining(self, retain: Retain) -> Self {
        Self {
            retain: Some(retain),
            ..self
        }
    }

    /// Returns the folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the disk that it is on.
    pub(crate) fn disk(&self) -> &dyn Disk {
        &*self.disk
    }

    /// Opens the state file at its first use: a container that writes nothing never has one.
    fn state(&self) -> Result<Arc<OwnedFd>, Errno> {
        let mut state = lock(&self.state);
        if let Some(file) = &state.file {
            return Ok(Arc::clone(file));
        }
        let path = self.path.join(STATE_FILE_NAME);
        let file = self.disk.open(&path, OFlags::RDWR | OFlags::CREATE)?;
        let file = Arc::new(file);
        if !state.is_resting {
            state.file = Some(Arc::clone(&file));
        }
        Ok(file)
    }
}

impl Medium for Folder {
    fn create(&self, start: u64) -> Result<OwnedFd, Errno> {
        // No O_APPEND: such a file can't be spliced to. O_TRUNC: what an earlier try left behind
        // was never counted as part of the journal.
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC;
        self.disk
            .open(&self.path.join(segment_file_name(start)), flags)
    }

    fn open(&self, start: u64) -> Result<OwnedFd, Errno> {
        self.disk
            .open(&self.path.join(segment_file_name(start)), OFlags::RDONLY)
    }

    fn remove(&self, start: u64) -> Result<(), Errno> {
        self.disk.unlink(&self.path.join(segment_file_name(start)))
    }

    fn release(&self, start: u64, bytes: u64) -> Result<(), Errno> {
        match &self.retain {
            Some(retain) if retain(start, bytes).is_ok() => Ok(()),
            _ => self.remove(start),
        }
    }

    fn save_state(&self, slot: &[u8], at: u64) -> Result<(), Errno> {
        match self.disk.write_at(self.state()?.as_fd(), slot, at)? {
            written if written == slot.len() => Ok(()),
            _ => Err(Errno::NOSPC),
        }
    }

    fn note_loss(&self, start: u64, reason: DropReason) -> Result<(), Errno> {
        let path = self.path.join(loss_file_name(Loss { start, reason }));
        let flags = OFlags::WRONLY | OFlags::CREATE;
        self.disk.open(&path, flags).map(drop)
    }

    fn forget_loss(&self, start: u64, reason: DropReason) -> Result<(), Errno> {
        let path = self.path.join(loss_file_name(Loss { start, reason }));
        self.disk.unlink(&path)
    }

    fn sync_folder(&self) -> Result<(), Errno> {
        let has_state = || self.path.join(STATE_FILE_NAME).exists();
        let is_open = lock(&self.state).file.is_some();
        if is_open || has_state() {
            self.disk.sync(self.state()?.as_fd())?;
        }
        self.disk.sync_folder(&self.path)
    }

    fn rest(&self) {
        let mut state = lock(&self.state);
        state.is_resting = true;
        state.file = None;
    }

    fn is_memory(&self) -> bool {
        false
    }

    fn sync(&self, segment: BorrowedFd<'_>) -> Result<(), Errno> {
        self.disk.sync(segment)
    }

    fn splice(
        &self,
        fifo: BorrowedFd<'_>,
        segment: BorrowedFd<'_>,
        at: u64,
        bytes_max: usize,
    ) -> Result<usize, Errno> {
        self.disk.splice(fifo, segment, at, bytes_max)
    }

    fn read_at(&self, segment: BorrowedFd<'_>, at: u64, into: &mut [u8]) -> Result<usize, Errno> {
        self.disk.read_at(segment, into, at)
    }
}

/// Segments in memory; the state is the process's own.
#[derive(Debug)]
pub(crate) struct Memory;

impl Medium for Memory {
    fn create(&self, _start: u64) -> Result<OwnedFd, Errno> {
        rustix::fs::memfd_create("journal", MemfdFlags::CLOEXEC)
    }

    fn open(&self, _start: u64) -> Result<OwnedFd, Errno> {
        // Its only descriptor is never closed.
        Err(Errno::BADF)
    }

    fn remove(&self, _start: u64) -> Result<(), Errno> {
        Ok(())
    }

    fn save_state(&self, _slot: &[u8], _at: u64) -> Result<(), Errno> {
        Ok(())
    }

    fn sync_folder(&self) -> Result<(), Errno> {
        Ok(())
    }

    fn is_memory(&self) -> bool {
        true
    }

    fn sync(&self, _segment: BorrowedFd<'_>) -> Result<(), Errno> {
        Ok(())
    }

    fn splice(
        &self,
        fifo: BorrowedFd<'_>,
        segment: BorrowedFd<'_>,
        at: u64,
        bytes_max: usize,
    ) -> Result<usize, Errno> {
        RealDisk.splice(fifo, segment, at, bytes_max)
    }

    fn read_at(&self, segment: BorrowedFd<'_>, at: u64, into: &mut [u8]) -> Result<usize, Errno> {
        RealDisk.read_at(segment, into, at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_found_by_its_name() {
        for reason in DropReason::ALL {
            let loss = Loss { start: 7, reason };
            assert_eq!(noted_loss(&loss_file_name(loss)), Some(loss));
        }
        for other in [
            "00000000000000000007",
            "00000000000000000007.acked",
            "state.damaged",
        ] {
            assert_eq!(noted_loss(other), None, "{other:?}");
        }
    }

    #[test]
    fn a_segment_is_found_by_its_name() {
        for start in [0, 1, u64::MAX] {
            assert_eq!(segment_start(&segment_file_name(start)), Some(start));
        }
        for other in ["", "state", "meta.json", "1", "99999999999999999999"] {
            assert_eq!(segment_start(other), None, "{other:?}");
        }
    }
}
