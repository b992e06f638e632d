//! A disk that fails as it is told, and whose process can be killed at any of its calls.

use super::platter::Platter;
use driver::{Disk, RealDisk};
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A kind of call that can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Call {
    Create,
    Splice,
    Save,
    Remove,
    Sync,
    Read,
}

/// What goes wrong with the disk now. It outlives the processes that use it.
#[derive(Debug, Default)]
pub(super) struct Faults(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failing: BTreeMap<Call, Errno>,
    /// Reads that are still to fail; set once.
    failing_reads: Option<u64>,
    splice_bytes_max: Option<usize>,
    injected: BTreeMap<String, u64>,
}

/// Reads that fail: the driver gives up at the third failure in a row.
const FAILING_READS: u64 = 2;

impl Faults {
    /// Makes a kind of call fail from now on. Of reads only the next few fail, and only once.
    pub(super) fn fail(&self, call: Call, error: Errno) {
        let mut state = self.lock();
        if call == Call::Read {
            state.failing_reads.get_or_insert(FAILING_READS);
        }
        state.failing.insert(call, error);
    }

    /// Bounds the bytes that a splice moves.
    pub(super) fn shorten_splices(&self, bytes_max: usize) {
        self.lock().splice_bytes_max = Some(bytes_max);
    }

    /// Ends all faults.
    pub(super) fn clear(&self) {
        let mut state = self.lock();
        state.failing.clear();
        state.splice_bytes_max = None;
    }

    /// Returns how often each fault hit.
    pub(super) fn injected(&self) -> BTreeMap<String, u64> {
        self.lock().injected.clone()
    }

    fn hit(&self, call: Call) -> Result<(), Errno> {
        let mut state = self.lock();
        let Some(error) = state.failing.get(&call).copied() else {
            return Ok(());
        };
        if call == Call::Read {
            match state.failing_reads.and_then(|left| left.checked_sub(1)) {
                Some(left) => state.failing_reads = Some(left),
                None => return Ok(()),
            }
        }
        *state
            .injected
            .entry(format!("disk {call:?} {}", name(error)))
            .or_default() += 1;
        Err(error)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn name(error: Errno) -> &'static str {
    match error {
        Errno::NOSPC => "ENOSPC",
        _ => "EIO",
    }
}

/// The life of a process. Once it is over, no call of the process has an effect: what another
/// thread or task of it still does is as if it had never run, like behind SIGKILL.
pub(super) struct Life {
    is_over: AtomicBool,
    calls: AtomicU64,
    last_call: AtomicU64,
    on_death: Box<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Life")
            .field("is_over", &self.is_over)
            .field("calls", &self.calls)
            .finish_non_exhaustive()
    }
}

impl Life {
    /// Begins a life; `on_death` cuts what else connects the process with the world.
    pub(super) fn new(on_death: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            is_over: AtomicBool::new(false),
            calls: AtomicU64::new(0),
            last_call: AtomicU64::new(u64::MAX),
            on_death: Box::new(on_death),
        }
    }

    /// Ends it now.
    pub(super) fn end(&self) {
        if !self.is_over.swap(true, Ordering::AcqRel) {
            (self.on_death)();
        }
    }

    /// Ends it at the n-th call from now, before that call has an effect.
    pub(super) fn end_at_call(&self, n: u64) {
        let at = self.calls.load(Ordering::Acquire) + n;
        self.last_call.store(at, Ordering::Release);
    }

    /// Returns whether it is over.
    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    fn call(&self) -> Result<(), Errno> {
        let number = self.calls.fetch_add(1, Ordering::AcqRel) + 1;
        if number >= self.last_call.load(Ordering::Acquire) {
            self.end();
        }
        match self.is_over() {
            true => Err(Errno::IO),
            false => Ok(()),
        }
    }
}

/// The disk as one process sees it.
#[derive(Debug)]
pub(super) struct SimDisk {
    pub(super) faults: Arc<Faults>,
    pub(super) life: Arc<Life>,
    pub(super) activity: Arc<AtomicU64>,
    /// Only where power is lost: it costs time.
    pub(super) platter: Option<Arc<Platter>>,
}

impl SimDisk {
    /// Does a call, if the process lives and the disk does not refuse it, and notes that it was done.
    fn call<T>(
        &self,
        call: Option<Call>,
        real: impl FnOnce() -> Result<T, Errno>,
        note: impl FnOnce(&Platter, &T),
    ) -> Result<T, Errno> {
        let platter = self.platter.as_deref();
        let _power = platter.map(Platter::call);
        self.life.call()?;
        self.activity.fetch_add(1, Ordering::Relaxed);
        call.map_or(Ok(()), |call| self.faults.hit(call))?;
        let done = real()?;
        if let Some(platter) = platter {
            note(platter, &done);
        }
        Ok(done)
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let is_segment = flags.contains(OFlags::TRUNC) && flags.contains(OFlags::RDWR);
        self.call(
            is_segment.then_some(Call::Create),
            || RealDisk.open(path, flags),
            |platter, file| {
                if flags.contains(OFlags::CREATE) {
                    platter.opened(path, file.as_fd());
                }
            },
        )
    }

    fn unlink(&self, path: &Path) -> Result<(), Errno> {
        let note = |platter: &Platter, (): &()| platter.unlinked(path);
        self.call(Some(Call::Remove), || RealDisk.unlink(path), note)
    }

    fn mkdir(&self, path: &Path) -> Result<(), Errno> {
        let note = |platter: &Platter, (): &()| platter.folder_made(path);
        self.call(None, || RealDisk.mkdir(path), note)
    }

    fn rmdir(&self, path: &Path) -> Result<(), Errno> {
        let note = |platter: &Platter, (): &()| platter.folder_removed(path);
        self.call(Some(Call::Remove), || RealDisk.rmdir(path), note)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), Errno> {
        let note = |platter: &Platter, (): &()| platter.renamed(from, to);
        self.call(None, || RealDisk.rename(from, to), note)
    }

    fn write_at(&self, file: BorrowedFd<'_>, bytes: &[u8], at: u64) -> Result<usize, Errno> {
        self.call(
            Some(Call::Save),
            || {
                if let Some(platter) = &self.platter {
                    platter.writes(file, bytes, at);
                }
                RealDisk.write_at(file, bytes, at)
            },
            |_, _| {},
        )
    }

    fn read_at(&self, file: BorrowedFd<'_>, into: &mut [u8], at: u64) -> Result<usize, Errno> {
        let real = || RealDisk.read_at(file, into, at);
        self.call(Some(Call::Read), real, |_, _| {})
    }

    // What the kernel would write back is kept account of, and nothing is waited for.
    fn sync(&self, file: BorrowedFd<'_>) -> Result<(), Errno> {
        let note = |platter: &Platter, (): &()| platter.synced(file);
        self.call(Some(Call::Sync), || Ok(()), note)
    }

    fn sync_folder(&self, folder: &Path) -> Result<(), Errno> {
        let note = |platter: &Platter, (): &()| platter.folder_synced(folder);
        self.call(Some(Call::Sync), || Ok(()), note)
    }

    fn free_bytes(&self, folder: &Path) -> Result<u64, Errno> {
        let note = |platter: &Platter, _: &u64| platter.round_begins();
        self.call(None, || RealDisk.free_bytes(folder), note)
    }

    fn splice(
        &self,
        fifo: BorrowedFd<'_>,
        file: BorrowedFd<'_>,
        at: u64,
        bytes_max: usize,
    ) -> Result<usize, Errno> {
        // Memory is no disk.
        let is_memory = rustix::fs::fcntl_get_seals(file).is_ok();
        let bound = self.faults.lock().splice_bytes_max;
        let bytes_max = bytes_max.min(bound.unwrap_or(usize::MAX));
        let real = || RealDisk.splice(fifo, file, at, bytes_max);
        let moved = self.call((!is_memory).then_some(Call::Splice), real, |_, _| {})?;
        if bound.is_some_and(|bound| moved == bound) {
            *self
                .faults
                .lock()
                .injected
                .entry("short splice".into())
                .or_default() += 1;
        }
        Ok(moved)
    }
}
