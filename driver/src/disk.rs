//! The disk: every system call by which the driver keeps something.
//!
//! [`run`](crate::run) is given one, so that tests can put a disk in its place that fails, tears a
//! write, or stops having any effect at the n-th call, as it does for a process that is killed
//! there. What each method does is the kernel's own doing, and provided; a call moves a chunk or a
//! file, never a line, so the indirection costs nothing.
//!
//! The engine's FIFOs are no disk, but their bytes end in a file by one call, [`Disk::splice`].

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::SpliceFlags;
use std::fmt::Debug;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

/// The system calls of the driver on its state folder.
///
/// # Errors
/// The kernel's, of every method.
#[allow(clippy::missing_errors_doc, reason = "said once, for all methods")]
pub trait Disk: Debug + Send + Sync {
    /// Opens a file; one that is created is its owner's alone.
    fn open(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)
    }

    /// Removes a file.
    fn unlink(&self, path: &Path) -> Result<(), Errno> {
        rustix::fs::unlink(path)
    }

    /// Makes a folder that is its owner's alone.
    fn mkdir(&self, path: &Path) -> Result<(), Errno> {
        rustix::fs::mkdir(path, Mode::RWXU)
    }

    /// Removes an empty folder.
    fn rmdir(&self, path: &Path) -> Result<(), Errno> {
        rustix::fs::rmdir(path)
    }

    /// Puts a file in another one's place.
    fn rename(&self, from: &Path, to: &Path) -> Result<(), Errno> {
        rustix::fs::rename(from, to)
    }

    /// Writes bytes at a position of a file with one call. Returns how many were written.
    fn write_at(&self, file: BorrowedFd<'_>, bytes: &[u8], at: u64) -> Result<usize, Errno> {
        rustix::io::retry_on_intr(|| rustix::io::pwrite(file, bytes, at))
    }

    /// Reads bytes at a position of a file; fewer than asked for only at its end.
    fn read_at(&self, file: BorrowedFd<'_>, into: &mut [u8], at: u64) -> Result<usize, Errno> {
        rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut *into, at))
    }

    /// Waits until a file's bytes are on stable storage.
    fn sync(&self, file: BorrowedFd<'_>) -> Result<(), Errno> {
        rustix::fs::fdatasync(file)
    }

    /// Waits until it is on stable storage which files a folder has.
    fn sync_folder(&self, folder: &Path) -> Result<(), Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::fsync(rustix::fs::open(folder, flags, Mode::empty())?)
    }

    /// Returns the bytes that are free, for an unprivileged user, on the disk that holds a folder.
    fn free_bytes(&self, folder: &Path) -> Result<u64, Errno> {
        let disk = rustix::fs::statvfs(folder)?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    /// Moves at most `bytes_max` bytes from a FIFO to a position of a file. A byte leaves the FIFO
    /// only when it is in the file. Returns 0 when the FIFO is empty and has no writer,
    /// [`Errno::AGAIN`] when it is empty and has one. A signal is neither: splice looks for one before it
    /// moves the first byte (Linux `fs/splice.c`, `splice_from_pipe_next`).
    fn splice(
        &self,
        fifo: BorrowedFd<'_>,
        file: BorrowedFd<'_>,
        at: u64,
        bytes_max: usize,
    ) -> Result<usize, Errno> {
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        rustix::io::retry_on_intr(|| {
            rustix::pipe::splice(fifo, None, file, Some(&mut { at }), bytes_max, flags)
        })
    }
}

/// The disk of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

impl Disk for RealDisk {}
