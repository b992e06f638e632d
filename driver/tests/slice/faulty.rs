//! A disk that fails when a test says so.

use driver::{Disk, RealDisk};
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Free disk of a disk that is not low.
const PLENTY_BYTES: u64 = 1 << 40;

/// What a disk is asked to do with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Read,
    Splice,
    Write,
    Sync,
}

/// A disk whose reads fail, and whose free space is what a test says.
#[derive(Debug)]
pub struct Faulty {
    read_error: Mutex<Option<Errno>>,
    failed_reads: AtomicU32,
    free_bytes: AtomicU64,
    free_checks: AtomicU64,
    panics_in: Mutex<Option<(Call, PathBuf)>>,
    panic_count: AtomicU32,
}

impl Default for Faulty {
    fn default() -> Self {
        Self {
            read_error: Mutex::new(None),
            failed_reads: AtomicU32::new(0),
            free_bytes: AtomicU64::new(PLENTY_BYTES),
            free_checks: AtomicU64::new(0),
            panics_in: Mutex::new(None),
            panic_count: AtomicU32::new(0),
        }
    }
}

impl Faulty {
    /// Lets every read of a journal fail from now on, or none.
    pub fn fail_reads(&self, error: Option<Errno>) {
        *self.read_error.lock().unwrap() = error;
    }

    /// Returns how many reads have failed.
    pub fn failed_reads(&self) -> u32 {
        self.failed_reads.load(Ordering::SeqCst)
    }

    /// Says that the disk has no free byte, or plenty of them.
    pub fn set_low(&self, is_low: bool) {
        let free_bytes = if is_low { 0 } else { PLENTY_BYTES };
        self.free_bytes.store(free_bytes, Ordering::SeqCst);
    }

    /// Returns how often the driver has asked for free disk.
    pub fn free_checks(&self) -> u64 {
        self.free_checks.load(Ordering::SeqCst)
    }

    /// Lets a call on the files of a folder panic, as a bug of the driver would.
    pub fn panic_in(&self, call: Call, folder: &Path) {
        *self.panics_in.lock().unwrap() = Some((call, folder.to_owned()));
    }

    /// Returns how often a call has panicked.
    pub fn panic_count(&self) -> u32 {
        self.panic_count.load(Ordering::SeqCst)
    }

    fn may_panic(&self, call: Call, file: BorrowedFd<'_>) {
        let panics_in = self.panics_in.lock().unwrap().clone();
        let Some((_, folder)) = panics_in.filter(|(panicking, _)| *panicking == call) else {
            return;
        };
        let link = format!("/proc/self/fd/{}", file.as_raw_fd());
        if std::fs::read_link(link).unwrap().starts_with(folder) {
            self.panic_count.fetch_add(1, Ordering::SeqCst);
            panic!("a test wants {call:?} to panic");
        }
    }

    fn read_error(&self) -> Result<(), Errno> {
        match *self.read_error.lock().unwrap() {
            None => Ok(()),
            Some(error) => {
                self.failed_reads.fetch_add(1, Ordering::SeqCst);
                Err(error)
            }
        }
    }
}

impl Disk for Faulty {
    fn open(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        // An older segment is opened to be read: its name is a number.
        let is_segment = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit));
        if is_segment && !flags.contains(OFlags::CREATE) {
            self.read_error()?;
        }
        RealDisk.open(path, flags)
    }

    fn read_at(&self, file: BorrowedFd<'_>, into: &mut [u8], at: u64) -> Result<usize, Errno> {
        self.may_panic(Call::Read, file);
        if !into.is_empty() {
            self.read_error()?;
        }
        RealDisk.read_at(file, into, at)
    }

    fn splice(
        &self,
        fifo: BorrowedFd<'_>,
        file: BorrowedFd<'_>,
        at: u64,
        bytes_max: usize,
    ) -> Result<usize, Errno> {
        self.may_panic(Call::Splice, file);
        RealDisk.splice(fifo, file, at, bytes_max)
    }

    fn write_at(&self, file: BorrowedFd<'_>, bytes: &[u8], at: u64) -> Result<usize, Errno> {
        self.may_panic(Call::Write, file);
        RealDisk.write_at(file, bytes, at)
    }

    fn sync(&self, file: BorrowedFd<'_>) -> Result<(), Errno> {
        self.may_panic(Call::Sync, file);
        RealDisk.sync(file)
    }

    fn free_bytes(&self, _: &Path) -> Result<u64, Errno> {
        self.free_checks.fetch_add(1, Ordering::SeqCst);
        Ok(self.free_bytes.load(Ordering::SeqCst))
    }
}
