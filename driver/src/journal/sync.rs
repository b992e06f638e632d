//! How far a journal is on stable storage.

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::lock::lock;
use super::shared::Journal;
use rustix::io::Errno;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

impl Journal {
    /// Brings to stable storage what was already unacknowledged at the last call and still is.
    /// Returns whether anything is unacknowledged.
    ///
    /// # Errors
    /// The disk's; the bytes are tried again at the next call.
    pub(crate) fn sync_aged(&self) -> Result<bool, Errno> {
        let mut marks = lock(&self.sync_marks);
        let tail = self.tail.load(Ordering::Acquire);
        let stable = marks.synced.max(self.acked());
        if marks.tail_seen > stable {
            self.sync_from(stable)?;
            marks.synced = tail;
        }
        self.sync_drop()?;
        marks.tail_seen = tail;
        Ok(self.acked() < tail)
    }

    /// Brings everything unacknowledged to stable storage.
    ///
    /// # Errors
    /// The disk's.
    pub(crate) fn sync(&self) -> Result<(), Errno> {
        let mut marks = lock(&self.sync_marks);
        let tail = self.tail.load(Ordering::Acquire);
        let stable = marks.synced.max(self.acked());
        if tail > stable {
            self.sync_from(stable)?;
            marks.synced = tail;
        }
        self.sync_drop()
    }

    /// Brings to stable storage how many entries were dropped.
    fn sync_drop(&self) -> Result<(), Errno> {
        if !self.is_drop_unsynced.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        let synced = self.medium.sync_folder();
        if synced.is_err() {
            self.is_drop_unsynced.store(true, Ordering::Relaxed);
        }
        synced
    }

    fn sync_from(&self, stable: u64) -> Result<(), Errno> {
        let segments: Vec<_> = lock(&self.segments)
            .iter()
            .filter(|segment| segment.end() > stable && !segment.is_fallback)
            .cloned()
            .collect();
        for segment in segments {
            match self.file(&segment) {
                Ok(file) => self.medium.sync(file.as_fd())?,
                // Released meanwhile.
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
        }
        // Clean only behind a sync that was none too early: a segment may be created meanwhile.
        if self.is_folder_dirty.swap(false, Ordering::Relaxed) {
            let synced = self.medium.sync_folder();
            if synced.is_err() {
                self.is_folder_dirty.store(true, Ordering::Relaxed);
            }
            synced?;
        }
        Ok(())
    }
}
