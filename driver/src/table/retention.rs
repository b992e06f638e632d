//! Retention segments: the last bytes of each container that CLS already has, for inspection
//! (`keep-file`). Nothing depends on them: any of them may go at any time.
//!
//! A segment that is acknowledged is renamed (`<start>.acked`) instead of removed, and stands in
//! a list until newer ones push it out: of the same container beyond `KEEP_FILE_SIZE`,
//! of any container beyond `KEEP_FILE_TOTAL_SIZE`, oldest first. When disk runs low all of them go.
//! A container that has stopped keeps its folder for as long as there is something in it.

use super::names::{files, kept_path, kept_start};
use super::record::{end_record, remove_folder};
use crate::config::Config;
use crate::disk::Disk;
use crate::isolate::lock;
use crate::journal::{segment_file_name, segment_start};
use rustix::io::Errno;
use std::collections::{HashMap, HashSet, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

/// What a file counts at least: many short-lived containers must not use up the disk's inodes.
const CHARGE_BYTES_MIN: u64 = 64 << 10;

/// All kept segments of the host.
#[derive(Debug)]
pub(crate) struct Retention {
    disk: Arc<dyn Disk>,
    container_bytes_max: u64,
    total_bytes_max: u64,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Oldest first.
    files: VecDeque<KeptFile>,
    charged_bytes: u64,
    /// Folders of finished streams: they go with their last file.
    finished: HashSet<Arc<Path>>,
}

/// A kept segment.
#[derive(Debug)]
struct KeptFile {
    owner: Owner,
    start: u64,
    charged_bytes: u64,
}

/// Whose segments are kept, and where.
#[derive(Debug, Clone)]
pub(crate) struct Owner {
    /// The stream's folder.
    pub(crate) folder: Arc<Path>,
    /// The container: all its starts share one bound.
    pub(crate) container_id: Arc<str>,
}

/// A kept segment that an earlier process left.
#[derive(Debug)]
pub(crate) struct FoundFile {
    owner: Owner,
    start: u64,
    bytes: u64,
    modified: SystemTime,
}

impl Retention {
    /// Returns an empty list with the bounds that the settings give.
    pub(crate) fn from_config(config: &Config, disk: &Arc<dyn Disk>) -> Self {
        Self::new(
            Arc::clone(disk),
            config.keep_bytes_max,
            config.keep_total_bytes_max,
        )
    }

    /// Returns an empty list with its bounds.
    pub(crate) fn new(disk: Arc<dyn Disk>, container_bytes_max: u64, total_bytes_max: u64) -> Self {
        Self {
            disk,
            container_bytes_max,
            total_bytes_max,
            inner: Mutex::default(),
        }
    }

    /// Returns whether anything is ever kept.
    pub(crate) fn is_enabled(&self) -> bool {
        self.container_bytes_max > 0 && self.total_bytes_max > 0
    }

    /// Keeps a segment that is acknowledged. Its file is renamed, or left as it is on an error.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn keep(&self, owner: &Owner, start: u64, bytes: u64) -> Result<(), Errno> {
        let from = owner.folder.join(segment_file_name(start));
        self.disk.rename(&from, &kept_path(&owner.folder, start))?;
        self.push(owner.clone(), start, bytes);
        Ok(())
    }

    /// Keeps the segments that a stream leaves behind when it finishes.
    pub(crate) fn retain_leftovers(&self, owner: &Owner) {
        for (start, bytes) in files(&owner.folder, segment_start) {
            if bytes == 0 {
                continue;
            }
            if let Err(error) = self.keep(owner, start, bytes) {
                tracing::warn!(%error, folder = %owner.folder.display(), "could not keep a segment");
            }
        }
    }

    /// Lets the folder of a finished stream go with its last kept segment, at once if it has none.
    pub(crate) fn release(&self, folder: &Arc<Path>) {
        let is_kept = {
            let mut inner = lock(&self.inner);
            let is_kept = inner.holds(folder);
            if is_kept {
                inner.finished.insert(Arc::clone(folder));
            }
            is_kept
        };
        if !is_kept {
            remove_folder(&*self.disk, folder);
        } else if let Err(error) = end_record(&*self.disk, folder) {
            // It says so already, or its last segment was pushed out meanwhile.
            tracing::debug!(%error, folder = %folder.display(), "could not mark a stream as finished");
        }
    }

    /// Takes on what earlier processes kept, by age: all of it is older than what this one keeps.
    pub(crate) fn recover(&self, mut found: Vec<FoundFile>) {
        found.sort_by_key(|file| file.modified);
        let gone = {
            let mut inner = lock(&self.inner);
            for file in found.into_iter().rev() {
                let charged_bytes = file.bytes.max(CHARGE_BYTES_MIN);
                inner.charged_bytes += charged_bytes;
                inner.files.push_front(KeptFile {
                    owner: file.owner,
                    start: file.start,
                    charged_bytes,
                });
            }
            let files = inner.beyond_any(self.container_bytes_max, self.total_bytes_max);
            inner.gone(files)
        };
        gone.remove(&*self.disk);
    }

    /// Removes all kept segments: the disk is needed for journals.
    pub(crate) fn clear(&self) {
        let gone = {
            let mut inner = lock(&self.inner);
            let files: Vec<_> = inner.files.drain(..).collect();
            inner.charged_bytes = 0;
            inner.gone(files)
        };
        gone.remove(&*self.disk);
    }

    fn push(&self, owner: Owner, start: u64, bytes: u64) {
        let gone = {
            let mut inner = lock(&self.inner);
            let charged_bytes = bytes.max(CHARGE_BYTES_MIN);
            let container_id = Arc::clone(&owner.container_id);
            inner.charged_bytes += charged_bytes;
            inner.files.push_back(KeptFile {
                owner,
                start,
                charged_bytes,
            });
            let files = inner.beyond(
                &container_id,
                self.container_bytes_max,
                self.total_bytes_max,
            );
            inner.gone(files)
        };
        gone.remove(&*self.disk);
    }
}

impl Inner {
    fn holds(&self, folder: &Path) -> bool {
        self.files.iter().any(|file| &*file.owner.folder == folder)
    }

    /// Takes out what exceeds the bounds of a container and of the host.
    fn beyond(&mut self, container_id: &str, own_max: u64, total_max: u64) -> Vec<KeptFile> {
        let is_own = |file: &&KeptFile| &*file.owner.container_id == container_id;
        let own = self.files.iter().filter(is_own);
        let mut own_bytes: u64 = own.map(|file| file.charged_bytes).sum();
        let mut total_bytes = self.charged_bytes;
        let mut beyond = Vec::new();
        let mut kept = VecDeque::with_capacity(self.files.len());
        for file in self.files.drain(..) {
            let is_own = &*file.owner.container_id == container_id;
            if total_bytes > total_max || (is_own && own_bytes > own_max) {
                total_bytes -= file.charged_bytes;
                if is_own {
                    own_bytes -= file.charged_bytes;
                }
                beyond.push(file);
            } else {
                kept.push_back(file);
            }
        }
        self.files = kept;
        self.charged_bytes = total_bytes;
        beyond
    }

    /// Takes out what exceeds the bounds of any container and of the host: whatever is older than
    /// what fits.
    fn beyond_any(&mut self, own_max: u64, total_max: u64) -> Vec<KeptFile> {
        let mut own_bytes: HashMap<Arc<str>, u64> = HashMap::new();
        let mut total_bytes = 0_u64;
        let mut kept = VecDeque::with_capacity(self.files.len());
        let mut beyond = Vec::new();
        for file in self.files.drain(..).rev() {
            let container_id = Arc::clone(&file.owner.container_id);
            let own_bytes = own_bytes.entry(container_id).or_default();
            *own_bytes = own_bytes.saturating_add(file.charged_bytes);
            if *own_bytes <= own_max {
                total_bytes = total_bytes.saturating_add(file.charged_bytes);
            }
            if *own_bytes > own_max || total_bytes > total_max {
                beyond.push(file);
            } else {
                kept.push_front(file);
            }
        }
        self.charged_bytes = kept.iter().map(|file| file.charged_bytes).sum();
        self.files = kept;
        beyond
    }

    /// Returns what is to be removed of the disk once these files are out of the list.
    fn gone(&mut self, files: Vec<KeptFile>) -> Gone {
        let mut folders = Vec::new();
        for file in &files {
            let folder = &file.owner.folder;
            if self.finished.contains(folder) && !self.holds(folder) {
                self.finished.remove(folder);
                folders.push(Arc::clone(folder));
            }
        }
        Gone { files, folders }
    }
}

/// What is to be removed, without a lock.
struct Gone {
    files: Vec<KeptFile>,
    folders: Vec<Arc<Path>>,
}

impl Gone {
    fn remove(self, disk: &dyn Disk) {
        for file in self.files {
            let path = kept_path(&file.owner.folder, file.start);
            if let Err(error) = disk.unlink(&path) {
                tracing::warn!(%error, path = %path.display(), "could not remove a kept segment");
            }
        }
        for folder in self.folders {
            remove_folder(disk, &folder);
        }
    }
}

/// Returns the kept segments of a folder.
pub(crate) fn find(owner: &Owner) -> Vec<FoundFile> {
    let found = |(start, bytes)| {
        let path = kept_path(&owner.folder, start);
        let modified = std::fs::metadata(path).and_then(|metadata| metadata.modified());
        FoundFile {
            owner: owner.clone(),
            start,
            bytes,
            modified: modified.unwrap_or(SystemTime::UNIX_EPOCH),
        }
    };
    let files = files(&owner.folder, kept_start);
    files.into_iter().map(found).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;

    const KIB: u64 = 1 << 10;

    struct World {
        state_dir: tempfile::TempDir,
        kept: Retention,
    }

    impl World {
        fn new(container_kib: u64, total_kib: u64) -> Self {
            Self {
                state_dir: tempfile::tempdir().unwrap(),
                kept: Retention::new(Arc::new(RealDisk), container_kib * KIB, total_kib * KIB),
            }
        }

        fn owner(&self, container_id: &str, folder: &str) -> Owner {
            let folder = self.state_dir.path().join(folder);
            std::fs::create_dir_all(&folder).unwrap();
            Owner {
                folder: folder.into(),
                container_id: container_id.into(),
            }
        }

        fn segment(&self, owner: &Owner, start: u64, kib: u64) {
            let path = owner.folder.join(segment_file_name(start));
            std::fs::write(path, vec![0; usize::try_from(kib * KIB).unwrap()]).unwrap();
        }

        fn keep(&self, owner: &Owner, start: u64, kib: u64) {
            self.segment(owner, start, kib);
            self.kept.keep(owner, start, kib * KIB).unwrap();
        }

        /// Returns the kept segments as `folder/start`.
        fn found(&self) -> Vec<String> {
            let mut found = Vec::new();
            for folder in std::fs::read_dir(self.state_dir.path()).unwrap() {
                let folder = folder.unwrap().path();
                let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
                let starts = files(&folder, kept_start);
                found.extend(starts.iter().map(|(start, _)| format!("{name}/{start}")));
                if starts.is_empty() {
                    found.push(name);
                }
            }
            found.sort();
            found
        }
    }

    #[test]
    fn a_container_keeps_its_newest_segments_over_all_its_starts() {
        let world = World::new(200, 10_000);
        let (first, second) = (world.owner("c", "a"), world.owner("c", "b"));
        let other = world.owner("d", "x");
        world.keep(&first, 0, 100);
        world.keep(&other, 0, 200);
        world.keep(&first, 7, 100);
        world.keep(&second, 0, 100);
        assert_eq!(world.found(), ["a/7", "b/0", "x/0"]);
    }

    #[test]
    fn the_host_keeps_the_newest_of_all_and_small_ones_count_too() {
        let world = World::new(1_000, 256);
        let owners = ["a", "b", "c", "d", "e"].map(|name| world.owner(name, name));
        for owner in &owners {
            world.keep(owner, 0, 1);
        }
        // Each counts as 64 KiB. A live stream keeps its folder.
        assert_eq!(world.found(), ["a", "b/0", "c/0", "d/0", "e/0"]);
    }

    #[test]
    fn the_folder_of_a_stream_that_is_over_goes_with_its_last_segment() {
        let world = World::new(128, 128);
        let (over, live) = (world.owner("a", "a"), world.owner("b", "b"));
        world.segment(&over, 5, 64);
        world.segment(&over, 70, 0);
        world.kept.retain_leftovers(&over);
        world.kept.release(&over.folder);
        assert_eq!(world.found(), ["a/5", "b"]);
        world.keep(&live, 0, 128);
        assert_eq!(world.found(), ["b/0"]);
        let nothing = world.owner("c", "c");
        world.kept.retain_leftovers(&nothing);
        world.kept.release(&nothing.folder);
        assert_eq!(world.found(), ["b/0"]);
        world.kept.clear();
        assert_eq!(world.found(), ["b"]);
    }

    #[test]
    fn a_folder_that_is_not_released_stands_although_its_segments_are_pushed_out() {
        let world = World::new(128, 128);
        let over = world.owner("a", "a");
        world.segment(&over, 5, 64);
        world.kept.retain_leftovers(&over);
        world.keep(&world.owner("b", "b"), 0, 128);
        assert_eq!(world.found(), ["a", "b/0"]);
        world.kept.release(&over.folder);
        assert_eq!(world.found(), ["b/0"]);
    }

    #[test]
    fn what_an_earlier_process_kept_is_taken_on_by_age() {
        let mut world = World::new(1_000, 128);
        let (old, new) = (world.owner("a", "b-old"), world.owner("b", "a-new"));
        world.keep(&old, 0, 64);
        world.keep(&new, 0, 64);
        let past = std::fs::FileTimes::new().set_modified(SystemTime::UNIX_EPOCH);
        let file = std::fs::File::options()
            .write(true)
            .open(kept_path(&old.folder, 0))
            .unwrap();
        file.set_times(past).unwrap();
        world.kept = Retention::new(Arc::new(RealDisk), 1_000 * KIB, 128 * KIB);
        // The order of the folder's listing does not matter.
        let found = [find(&new), find(&old)].into_iter().flatten();
        world.kept.recover(found.collect());
        world.kept.release(&old.folder);
        assert_eq!(world.found(), ["a-new/0", "b-old/0"]);
        world.keep(&world.owner("c", "c"), 0, 64);
        assert_eq!(world.found(), ["a-new/0", "c/0"]);
    }
}
