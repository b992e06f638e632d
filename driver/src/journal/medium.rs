//! Where a journal's bytes live: a folder on disk, or anonymous memory for `no-file=true`.
//!
//! Every system call of a journal goes through [`Medium`], so that tests put a faulty disk in its
//! place. A call moves a chunk or a segment, never a line: the indirection costs nothing.

use crate::kept::{Kept, Owner};
use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::SpliceFlags;
use std::fmt::Debug;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// Name of the state file in a journal's folder.
pub(crate) const STATE_FILE_NAME: &str = "state";

/// The system calls of a journal.
pub(crate) trait Medium: Debug + Send + Sync {
    /// Creates the empty segment that starts at a journal offset, open for reading and writing.
    fn create(&self, start: u64) -> Result<OwnedFd, Errno>;

    /// Removes a segment.
    fn remove(&self, start: u64) -> Result<(), Errno>;

    /// Takes a segment of so many bytes out of the journal because all of it is acknowledged.
    fn release(&self, start: u64, _bytes: u64) -> Result<(), Errno> {
        self.remove(start)
    }

    /// Overwrites bytes of the state file at `at`.
    fn save_state(&self, slot: &[u8], at: u64) -> Result<(), Errno>;

    /// Waits until the state file, and which segments exist, are on stable storage.
    fn sync_folder(&self) -> Result<(), Errno>;

    /// Tells whether segments are gone when the process ends.
    fn is_memory(&self) -> bool;

    /// Waits until a segment's bytes are on stable storage.
    fn sync(&self, segment: BorrowedFd<'_>) -> Result<(), Errno> {
        rustix::fs::fdatasync(segment)
    }

    /// Moves at most `bytes_max` bytes from a FIFO to position `at` of a segment. A byte leaves
    /// the FIFO only when it is in the segment. Returns 0 when the FIFO is empty and has no
    /// writer, [`Errno::AGAIN`] when it is empty and has one.
    fn splice(
        &self,
        fifo: BorrowedFd<'_>,
        segment: BorrowedFd<'_>,
        at: u64,
        bytes_max: usize,
    ) -> Result<usize, Errno> {
        let mut position = at;
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        rustix::pipe::splice(fifo, None, segment, Some(&mut position), bytes_max, flags)
    }

    /// Reads bytes at position `at` of a segment; fewer than asked for only at its end.
    fn read_at(&self, segment: BorrowedFd<'_>, at: u64, into: &mut [u8]) -> Result<usize, Errno> {
        rustix::io::retry_on_intr(|| rustix::io::pread(segment, &mut *into, at))
    }
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

/// Segments and state file in a folder.
#[derive(Debug)]
pub(crate) struct Disk {
    folder: PathBuf,
    state: OnceLock<OwnedFd>,
    /// Where acknowledged segments go, and whose they are; nowhere with `keep-file=false`.
    kept: Option<(Arc<Kept>, Owner)>,
}

impl Disk {
    /// Returns the medium of a folder that exists.
    pub(crate) fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            state: OnceLock::new(),
            kept: None,
        }
    }

    /// Keeps acknowledged segments for a while.
    pub(crate) fn keeping(self, kept: Arc<Kept>, owner: Owner) -> Self {
        Self {
            kept: Some((kept, owner)),
            ..self
        }
    }

    /// Returns the folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Opens the state file at its first use: a container that writes nothing never has one.
    fn state(&self) -> Result<&OwnedFd, Errno> {
        if self.state.get().is_none() {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
            let path = self.folder.join(STATE_FILE_NAME);
            let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)?;
            return Ok(self.state.get_or_init(|| file));
        }
        self.state.get().ok_or(Errno::BADF)
    }
}

impl Medium for Disk {
    fn create(&self, start: u64) -> Result<OwnedFd, Errno> {
        // No O_APPEND: such a file can't be spliced to. O_TRUNC: what an earlier try left behind
        // was never counted as part of the journal.
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let path = self.folder.join(segment_file_name(start));
        rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)
    }

    fn remove(&self, start: u64) -> Result<(), Errno> {
        rustix::fs::unlink(self.folder.join(segment_file_name(start)))
    }

    fn release(&self, start: u64, bytes: u64) -> Result<(), Errno> {
        match &self.kept {
            Some((kept, owner)) if kept.keep(owner, start, bytes).is_ok() => Ok(()),
            _ => self.remove(start),
        }
    }

    fn save_state(&self, slot: &[u8], at: u64) -> Result<(), Errno> {
        let state = self.state()?;
        match rustix::io::retry_on_intr(|| rustix::io::pwrite(state, slot, at))? {
            written if written == slot.len() => Ok(()),
            _ => Err(Errno::NOSPC),
        }
    }

    fn sync_folder(&self) -> Result<(), Errno> {
        if let Some(state) = self.state.get() {
            rustix::fs::fdatasync(state)?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::fsync(rustix::fs::open(&self.folder, flags, Mode::empty())?)
    }

    fn is_memory(&self) -> bool {
        false
    }
}

/// Segments in memory; the state is the process's own.
#[derive(Debug)]
pub(crate) struct Memory;

impl Medium for Memory {
    fn create(&self, _start: u64) -> Result<OwnedFd, Errno> {
        rustix::fs::memfd_create("journal", MemfdFlags::CLOEXEC)
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
}

#[cfg(test)]
mod tests {
    use super::*;

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
