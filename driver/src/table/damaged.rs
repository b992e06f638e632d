//! Folders whose record is damaged, kept aside for inspection: nothing says whose entries they hold,
//! so nothing can be shipped of them.
//!
//! Such a folder is renamed (`<journal id>.damaged`). The newest one always stays; older ones go when
//! there are more than [`FOLDERS_MAX`] or all together are larger than [`BYTES_MAX`], oldest first.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::record::remove_folder;
use crate::disk::Disk;

/// Damaged folders that are kept.
const FOLDERS_MAX: usize = 64;

/// What all of them but the newest may hold.
const BYTES_MAX: u64 = 64 << 20;

/// Ends the name of a damaged folder.
pub(crate) const DAMAGED_SUFFIX: &str = ".damaged";

/// Renames a damaged folder, and removes the oldest ones beyond the bounds. A disk that does not take
/// it leaves the folder where it is: the next process tries again.
pub(crate) fn set_aside(disk: &dyn Disk, state_dir: &Path, folder: &Path) {
    let mut aside = folder.as_os_str().to_owned();
    aside.push(DAMAGED_SUFFIX);
    let aside = PathBuf::from(aside);
    if let Err(error) = disk.rename(folder, &aside) {
        tracing::warn!(%error, folder = %folder.display(), "could not set a damaged folder aside");
        return;
    }
    tracing::error!(folder = %aside.display(), "a damaged folder is kept aside for inspection");
    for folder in beyond(folders(state_dir), &aside) {
        tracing::warn!(folder = %folder.display(), "removing the oldest damaged folder");
        remove_folder(disk, &folder);
    }
}

/// A damaged folder as found.
struct Damaged {
    folder: PathBuf,
    modified: SystemTime,
    bytes: u64,
}

fn folders(state_dir: &Path) -> Vec<Damaged> {
    let entries = std::fs::read_dir(state_dir).into_iter().flatten().flatten();
    let is_damaged = |path: &PathBuf| path.to_string_lossy().ends_with(DAMAGED_SUFFIX);
    let folders = entries.map(|entry| entry.path()).filter(is_damaged);
    let damaged = |folder: PathBuf| {
        let modified = std::fs::metadata(&folder).and_then(|metadata| metadata.modified());
        let files = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        let bytes = files
            .filter_map(|file| Some(file.metadata().ok()?.len()))
            .sum();
        Damaged {
            modified: modified.unwrap_or(SystemTime::UNIX_EPOCH),
            folder,
            bytes,
        }
    };
    folders.map(damaged).collect()
}

/// Returns the folders beyond the bounds; never the newest.
fn beyond(mut all: Vec<Damaged>, newest: &Path) -> Vec<PathBuf> {
    all.retain(|damaged| damaged.folder != newest);
    all.sort_by_key(|damaged| std::cmp::Reverse(damaged.modified));
    let mut bytes = 0_u64;
    let fits = |(index, damaged): (usize, &Damaged)| {
        bytes = bytes.saturating_add(damaged.bytes);
        index + 1 < FOLDERS_MAX && bytes <= BYTES_MAX
    };
    let kept_count = all
        .iter()
        .enumerate()
        .map(fits)
        .take_while(|&fits| fits)
        .count();
    let beyond = all.into_iter().skip(kept_count);
    beyond.map(|damaged| damaged.folder).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn damaged(number: usize, bytes: u64) -> Damaged {
        Damaged {
            folder: PathBuf::from(format!("{number:03}{DAMAGED_SUFFIX}")),
            modified: SystemTime::UNIX_EPOCH + Duration::from_secs(number as u64),
            bytes,
        }
    }

    fn check(all: Vec<Damaged>, newest: usize, gone: &[usize]) {
        let name = |number: usize| damaged(number, 0).folder;
        let mut found = beyond(all, &name(newest));
        found.sort();
        assert_eq!(found, gone.iter().copied().map(name).collect::<Vec<_>>());
    }

    #[test]
    fn the_newest_stays_and_the_oldest_go_beyond_the_bounds() {
        check(vec![damaged(1, 2 * BYTES_MAX)], 1, &[]);
        check(vec![damaged(1, BYTES_MAX), damaged(2, 9)], 2, &[]);
        check(vec![damaged(1, BYTES_MAX + 1), damaged(2, 9)], 2, &[1]);
        check(
            vec![damaged(1, 1), damaged(2, BYTES_MAX), damaged(3, 9)],
            3,
            &[1],
        );
        let full = |count: usize| (0..count).map(|number| damaged(number, 1)).collect();
        check(full(FOLDERS_MAX), FOLDERS_MAX - 1, &[]);
        check(full(FOLDERS_MAX + 2), FOLDERS_MAX + 1, &[0, 1]);
    }
}
