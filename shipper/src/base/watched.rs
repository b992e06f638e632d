//! Files that may be replaced while the process runs: credentials, tokens, certificates.
//!
//! Whoever needs the content asks, and it is read again if the file has changed since, also by a
//! symlink swap (as Kubernetes does with secrets). That costs one `stat` per question and needs no
//! watcher that can miss an event.

use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Files whose content, read together, is a `T`.
pub struct Watched<T> {
    paths: Vec<PathBuf>,
    cached: Mutex<Option<Cached<T>>>,
}

struct Cached<T> {
    stamps: Vec<Stamp>,
    content: Arc<T>,
}

/// What changes when a file is edited or replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    modified_nano: i128,
    bytes: u64,
}

impl<T> Watched<T> {
    /// Watches files; nothing is read yet.
    pub fn new(paths: Vec<PathBuf>) -> Self {
        Self {
            paths,
            cached: Mutex::new(None),
        }
    }

    /// Returns the files.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Returns the first file, for messages.
    pub fn path(&self) -> &Path {
        self.paths.first().map_or(Path::new(""), PathBuf::as_path)
    }

    /// Returns the content, read by `read` if it is not known or a file has changed.
    ///
    /// # Errors
    /// A file can't be looked at, or what `read` says. What was known before stays available
    /// through [`last`](Self::last).
    pub fn get<E: From<io::Error>>(
        &self,
        read: impl FnOnce(&[PathBuf]) -> Result<T, E>,
    ) -> Result<Arc<T>, E> {
        let stamps = self
            .paths
            .iter()
            .map(|path| Stamp::of(path))
            .collect::<io::Result<Vec<_>>>()?;
        let mut cached = self.lock();
        if let Some(known) = cached.as_ref().filter(|known| known.stamps == stamps) {
            return Ok(Arc::clone(&known.content));
        }
        let content = Arc::new(read(&self.paths)?);
        *cached = Some(Cached {
            stamps,
            content: Arc::clone(&content),
        });
        Ok(content)
    }

    /// Returns what was last read without trouble.
    pub fn last(&self) -> Option<Arc<T>> {
        self.lock().as_ref().map(|known| Arc::clone(&known.content))
    }

    /// Forgets `content`, if it is what is known, so that the next question reads again.
    pub fn forget(&self, content: &Arc<T>) {
        self.lock()
            .take_if(|known| Arc::ptr_eq(&known.content, content));
    }

    fn lock(&self) -> MutexGuard<'_, Option<Cached<T>>> {
        self.cached.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Shows the paths only: the content is often a secret.
impl<T> fmt::Debug for Watched<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched")
            .field("paths", &self.paths)
            .finish_non_exhaustive()
    }
}

impl Stamp {
    /// Looks at a file, through links.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::metadata(path)?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            modified_nano: i128::from(metadata.mtime()) * 1_000_000_000
                + i128::from(metadata.mtime_nsec()),
            bytes: metadata.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(watched: &Watched<String>) -> io::Result<Arc<String>> {
        watched.get(|paths| std::fs::read_to_string(&paths[0]))
    }

    #[test]
    fn content_is_read_again_after_an_edit_and_after_a_symlink_swap_only() {
        let folder = tempfile::tempdir().unwrap();
        let [a, b, link] = ["a", "b", "link"].map(|name| folder.path().join(name));
        std::fs::write(&a, "one").unwrap();
        std::fs::write(&b, "three").unwrap();
        std::os::unix::fs::symlink(&a, &link).unwrap();
        let watched = Watched::new(vec![link.clone()]);
        let first = text(&watched).unwrap();
        assert!(Arc::ptr_eq(&first, &text(&watched).unwrap()));
        std::fs::write(&a, "two!").unwrap();
        assert_eq!(*text(&watched).unwrap(), "two!");
        std::fs::remove_file(&link).unwrap();
        assert!(text(&watched).is_err());
        assert_eq!(*watched.last().unwrap(), "two!");
        std::os::unix::fs::symlink(&b, &link).unwrap();
        assert_eq!(*text(&watched).unwrap(), "three");
    }

    #[test]
    fn only_what_is_known_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, "one").unwrap();
        let watched = Watched::new(vec![path]);
        let first = text(&watched).unwrap();
        watched.forget(&first);
        let second = text(&watched).unwrap();
        assert!(!Arc::ptr_eq(&first, &second));
        watched.forget(&first);
        assert!(Arc::ptr_eq(&second, &watched.last().unwrap()));
    }
}
