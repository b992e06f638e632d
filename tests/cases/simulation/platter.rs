//! What a disk still has when the power comes back.
//!
//! The driver works on real files; this keeps account of what of them is on stable storage. A loss
//! of power puts the state folder back to something that the calls until then allow:
//!
//! - Of a file that grows by splicing, what was there at its last sync stays, and any part of what
//!   came since, from its start on.
//! - Of a file that is written in place, each page of 4 KiB is as at its last sync or as any of the
//!   writes since left it, independently of other pages.
//! - Of files that were created, renamed or removed, what the folder was like at its last sync stays.
//!   What came since has happened up to some moment, as a file system with a journal has it; or,
//!   which is worse than any, each of these changes has happened or not.
//! - A sync of a file says nothing of its name, one of a folder nothing of the files' content.
//!
//! What is excluded: bytes that change or vanish although they were synced; a sync that fails and
//! has lost what it was to write; a file that has its size but not its bytes (ext4 in its default
//! mode, XFS and btrfs write a size behind the bytes that it covers).

use fastrand::Rng;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File as RealFile;
use std::io::Write as _;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

/// Bytes that reach the disk together or not at all.
const PAGE_BYTES: usize = 4096;

/// The disk under a state folder.
#[derive(Debug)]
pub(super) struct Platter {
    root: PathBuf,
    /// Holds a second link to every file, so that none is gone before its removal is for good.
    attic: PathBuf,
    state: Mutex<State>,
    /// Read during every call of a process, written when power is lost.
    calls: RwLock<()>,
}

#[derive(Debug, Default)]
struct State {
    files: HashMap<u64, File>,
    /// What the folders are like on stable storage, by their last path: names and inodes.
    folders: BTreeMap<PathBuf, BTreeMap<String, u64>>,
    /// Folders that are in the state folder on stable storage.
    made: BTreeSet<PathBuf>,
    /// What was done to folders since, in order.
    changes: Vec<Change>,
    lines: Lines,
}

/// What of a file is on stable storage.
#[derive(Debug)]
enum File {
    /// Grows at its end.
    Grown { synced_bytes: u64 },
    /// Written in place: its content, and what was written since.
    Written {
        synced: Vec<u8>,
        since: Vec<(usize, Vec<u8>)>,
    },
}

/// A change to a folder that its sync makes last.
#[derive(Debug, Clone)]
struct Change {
    folder: PathBuf,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Link {
        name: String,
        inode: u64,
    },
    Unlink {
        name: String,
    },
    Rename {
        from: String,
        to: String,
        inode: u64,
    },
    MakeFolder {
        path: PathBuf,
    },
    RemoveFolder {
        path: PathBuf,
    },
}

/// How many lines of each container are in journals, and how many must be on stable storage: those
/// that were in the journal when a round of syncs began, once the next round is over.
#[derive(Debug, Default)]
struct Lines {
    received: BTreeMap<usize, u64>,
    seen: BTreeMap<usize, u64>,
    /// What the round under way syncs, if there is one.
    syncing: Option<BTreeMap<usize, u64>>,
    safe: BTreeMap<usize, u64>,
}

impl Platter {
    /// Returns the disk of a state folder, which is empty; `attic` is an empty folder beside it.
    pub(super) fn new(root: PathBuf, attic: PathBuf) -> Self {
        Self {
            root,
            attic,
            state: Mutex::default(),
            calls: RwLock::new(()),
        }
    }

    /// Keeps power on during a call.
    pub(super) fn call(&self) -> RwLockReadGuard<'_, ()> {
        self.calls.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a file was opened to be created or emptied, if need be.
    pub(super) fn opened(&self, path: &Path, file: BorrowedFd<'_>) {
        let Some((folder, name)) = place(path) else {
            return;
        };
        let stat = rustix::fs::fstat(file).unwrap();
        let inode = stat.st_ino;
        let mut state = self.lock();
        let is_new = !state.files.contains_key(&inode);
        if is_new && name != "lock" {
            std::fs::hard_link(path, self.link(inode)).unwrap();
            state.push(folder, Kind::Link { name, inode });
        }
        if is_new || stat.st_size == 0 {
            state.files.insert(inode, File::Grown { synced_bytes: 0 });
        }
    }

    /// Notes that a file was removed.
    pub(super) fn unlinked(&self, path: &Path) {
        if let Some((folder, name)) = place(path) {
            self.lock().push(folder, Kind::Unlink { name });
        }
    }

    /// Notes that a file or a folder got another name.
    pub(super) fn renamed(&self, from: &Path, to: &Path) {
        let (Some((folder, from)), Some((_, to_name))) = (place(from), place(to)) else {
            return;
        };
        // Folders are renamed when they are damaged, and no damage is done here.
        let inode = std::fs::metadata(to).unwrap().ino();
        let to = to_name;
        self.lock().push(folder, Kind::Rename { from, to, inode });
    }

    /// Notes that a folder was made.
    pub(super) fn folder_made(&self, path: &Path) {
        if let Some((folder, _)) = place(path) {
            let path = path.to_path_buf();
            self.lock().push(folder, Kind::MakeFolder { path });
        }
    }

    /// Notes that a folder was removed.
    pub(super) fn folder_removed(&self, path: &Path) {
        if let Some((folder, _)) = place(path) {
            let path = path.to_path_buf();
            self.lock().push(folder, Kind::RemoveFolder { path });
        }
    }

    /// Notes what is about to be written in place.
    pub(super) fn writes(&self, file: BorrowedFd<'_>, bytes: &[u8], at: u64) {
        let inode = inode(file);
        let content = || std::fs::read(self.link(inode)).unwrap();
        let mut state = self.lock();
        let Some(file) = state.files.get_mut(&inode) else {
            return;
        };
        if let File::Grown { synced_bytes } = *file {
            let mut synced = content();
            synced.truncate(usize::try_from(synced_bytes).unwrap());
            let since = Vec::new();
            *file = File::Written { synced, since };
        }
        if let File::Written { since, .. } = file {
            since.push((usize::try_from(at).unwrap(), bytes.to_vec()));
        }
    }

    /// Notes that a file is synced.
    pub(super) fn synced(&self, file: BorrowedFd<'_>) {
        let stat = rustix::fs::fstat(file).unwrap();
        match self.lock().files.get_mut(&stat.st_ino) {
            Some(File::Grown { synced_bytes }) => {
                *synced_bytes = u64::try_from(stat.st_size).unwrap();
            }
            Some(File::Written { synced, since }) => {
                for (at, bytes) in since.drain(..) {
                    put(synced, at, &bytes);
                }
            }
            None => {}
        }
    }

    /// Notes that a folder is synced.
    pub(super) fn folder_synced(&self, folder: &Path) {
        let mut state = self.lock();
        let (own, others) = std::mem::take(&mut state.changes)
            .into_iter()
            .partition(|change| change.folder == folder);
        state.changes = others;
        state.apply(own);
    }

    /// Notes that a process begins.
    pub(super) fn process_begins(&self) {
        let lines = &mut self.lock().lines;
        // Its first round may come before it has found the journals.
        lines.seen.clear();
        lines.syncing = None;
    }

    /// Notes that a round of syncs begins, and so that the last one is over.
    pub(super) fn round_begins(&self) {
        let lines = &mut self.lock().lines;
        if let Some(synced) = lines.syncing.take() {
            lines.safe = synced;
        }
        lines.syncing = Some(std::mem::replace(&mut lines.seen, lines.received.clone()));
    }

    /// Notes how many lines of a container are in its journal.
    pub(super) fn received(&self, container: usize, lines: u64) {
        self.lock().lines.received.insert(container, lines);
    }

    /// Returns how many lines of a container no loss of power may cost any more.
    pub(super) fn safe_lines(&self, container: usize) -> u64 {
        let state = self.lock();
        state.lines.safe.get(&container).copied().unwrap_or(0)
    }

    /// Loses what was not on stable storage, or some of it. The process must be dead.
    pub(super) fn lose_power(&self, random: &mut Rng) {
        let _calls = self.calls.write().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.lock();
        let mut changes = std::mem::take(&mut state.changes);
        match random.bool() {
            true => changes.truncate(random.usize(0..=changes.len())),
            false => changes.retain(|_| random.bool()),
        }
        state.apply(changes);
        self.rebuild(&mut state, random);
        // What is lost is not received any more.
        state.lines.received = state.lines.safe.clone();
    }

    /// Makes the state folder what it is on stable storage, in files of their own.
    fn rebuild(&self, state: &mut State, random: &mut Rng) {
        for entry in std::fs::read_dir(&self.root).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                std::fs::remove_dir_all(path).unwrap();
            }
        }
        let mut files = HashMap::new();
        let made = &state.made;
        state.folders.retain(|folder, _| made.contains(folder));
        for (folder, names) in &mut state.folders {
            std::fs::create_dir(folder).unwrap();
            for (name, inode) in names {
                let Some(file) = state.files.get(inode) else {
                    continue;
                };
                let content = self.content(*inode, file, random);
                let synced_bytes = content.len() as u64;
                let path = folder.join(name);
                let mut restored = RealFile::create_new(&path).unwrap();
                restored.write_all(&content).unwrap();
                *inode = restored.metadata().unwrap().ino();
                files.insert(*inode, File::Grown { synced_bytes });
            }
        }
        // New links only when all old ones have done their duty: inodes are used again.
        for entry in std::fs::read_dir(&self.attic).unwrap() {
            std::fs::remove_file(entry.unwrap().path()).unwrap();
        }
        for (folder, names) in &state.folders {
            for (name, inode) in names {
                std::fs::hard_link(folder.join(name), self.link(*inode)).unwrap();
            }
        }
        state.files = files;
    }

    /// Draws what a file has now.
    fn content(&self, inode: u64, file: &File, random: &mut Rng) -> Vec<u8> {
        match file {
            File::Grown { synced_bytes } => {
                let file = RealFile::open(self.link(inode)).unwrap();
                let bytes = file.metadata().unwrap().len();
                let bytes = random.u64(*synced_bytes..=bytes);
                let mut content = vec![0; usize::try_from(bytes).unwrap()];
                file.read_exact_at(&mut content, 0).unwrap();
                content
            }
            File::Written { synced, since } => {
                let mut content = synced.clone();
                let end = since.iter().map(|(at, bytes)| at + bytes.len()).max();
                for page in 0..end.unwrap_or(0).div_ceil(PAGE_BYTES) {
                    let page = page * PAGE_BYTES..(page + 1) * PAGE_BYTES;
                    for (at, bytes) in &since[..random.usize(0..=since.len())] {
                        let start = page.start.max(*at);
                        let end = page.end.min(at + bytes.len());
                        if start < end {
                            put(&mut content, start, &bytes[start - at..end - at]);
                        }
                    }
                }
                content
            }
        }
    }

    fn link(&self, inode: u64) -> PathBuf {
        self.attic.join(inode.to_string())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn push(&mut self, folder: PathBuf, kind: Kind) {
        self.changes.push(Change { folder, kind });
    }

    /// Makes changes last.
    fn apply(&mut self, changes: Vec<Change>) {
        for Change { folder, kind } in changes {
            let names = self.folders.entry(folder).or_default();
            match kind {
                Kind::Link { name, inode } => {
                    names.insert(name, inode);
                }
                Kind::Unlink { name } => {
                    names.remove(&name);
                }
                Kind::Rename { from, to, inode } => {
                    if names.get(&from) == Some(&inode) {
                        names.remove(&from);
                    }
                    names.insert(to, inode);
                }
                Kind::MakeFolder { path } => {
                    self.folders.entry(path.clone()).or_default();
                    self.made.insert(path);
                }
                Kind::RemoveFolder { path } => {
                    self.made.remove(&path);
                }
            }
        }
    }
}

fn inode(file: BorrowedFd<'_>) -> u64 {
    rustix::fs::fstat(file).unwrap().st_ino
}

fn place(path: &Path) -> Option<(PathBuf, String)> {
    let name = path.file_name()?.to_str()?.to_owned();
    Some((path.parent()?.to_path_buf(), name))
}

fn put(content: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    if content.len() < at + bytes.len() {
        content.resize(at + bytes.len(), 0);
    }
    content[at..at + bytes.len()].copy_from_slice(bytes);
}
