//! Names in the state folder.
//!
//! ```text
//! STATE_DIR/                      0700
//!   lock                          held by the one driver that works here
//!   <journal id, 32 hex digits>/  one per stream: one FIFO, one start of a container
//!     meta.json                   FIFO and container as the engine gave them, 0600; ended.json once
//!                                 the stream has finished
//!     state                       acknowledged offset and counters (`journal/state.rs`)
//!     <start offset, 20 digits>   segments (`journal.rs`)
//!     <start offset>.acked        segments that are kept for inspection (`retention.rs`)
//!   <journal id>.damaged/         folders whose record can't be read (`damaged.rs`)
//! ```

use crate::journal::{segment_file_name, segment_start};
use std::path::{Path, PathBuf};

/// The record of a stream.
pub(crate) const META_FILE_NAME: &str = "meta.json";

pub(super) const META_NEW_FILE_NAME: &str = "meta.json.new";

/// What the record is called once the stream is over, and only kept segments are left of it.
pub(crate) const ENDED_FILE_NAME: &str = "ended.json";

/// Ends the name of a kept segment.
const KEPT_SUFFIX: &str = ".acked";

pub(crate) fn new_journal_id() -> String {
    use std::fmt::Write as _;
    let mut bytes = [0_u8; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .expect("Linux gives 16 random bytes at once, without interruption");
    let mut id = String::with_capacity(32);
    for byte in bytes {
        write!(id, "{byte:02x}").expect("a String takes any text");
    }
    id
}

pub(crate) fn is_journal_id(name: &str) -> bool {
    name.len() == 32
        && name
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Returns the folders of a state folder that may be a stream's.
pub(crate) fn journal_folders(state_dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(state_dir).inspect_err(|error| {
        tracing::error!(%error, "could not list the state folder");
    });
    let is_journal = |entry: &std::fs::DirEntry| {
        let name = entry.file_name();
        name.to_str().is_some_and(is_journal_id)
    };
    let entries = entries.into_iter().flatten().flatten();
    entries
        .filter(is_journal)
        .map(|entry| entry.path())
        .collect()
}

/// Returns the offset at which a kept segment starts, if a file name is that of one.
pub(crate) fn kept_start(file_name: &str) -> Option<u64> {
    file_name.strip_suffix(KEPT_SUFFIX).and_then(segment_start)
}

pub(super) fn kept_path(folder: &Path, start: u64) -> PathBuf {
    folder.join(segment_file_name(start) + KEPT_SUFFIX)
}

/// Returns offset and size of the files of a folder whose names `start_of` knows. What can't be
/// read counts as empty: nothing depends on it.
pub(crate) fn files(folder: &Path, start_of: impl Fn(&str) -> Option<u64>) -> Vec<(u64, u64)> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if let Some(start) = entry.file_name().to_str().and_then(&start_of) {
            let bytes = entry.metadata().map_or(0, |metadata| metadata.len());
            files.push((start, bytes));
        }
    }
    files.sort_unstable();
    files
}
