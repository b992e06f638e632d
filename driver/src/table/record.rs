//! The record of a stream on disk: which FIFO, which container. It stands before the engine gets its
//! answer, and goes last of all files of the stream.

use super::names::{ENDED_FILE_NAME, META_FILE_NAME, META_NEW_FILE_NAME, kept_start};
use crate::disk::Disk;
use crate::journal::{
    DropReason, Loss, STATE_DAMAGED_FILE_NAME, STATE_FILE_NAME, loss_file_name, noted_loss,
    segment_start,
};
use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::fmt;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

/// Version of `meta.json`.
pub(crate) const META_VERSION: u32 = 1;

/// `meta.json`. What the engine gave stays as it was: another version may read more of it.
#[derive(Serialize, Deserialize)]
pub(crate) struct Meta {
    pub(crate) version: u32,
    pub(crate) journal_id: String,
    pub(crate) file: String,
    pub(crate) info: Box<RawValue>,
}

/// Shows nothing of `info`: log options hold keys, environment and arguments often do.
impl fmt::Debug for Meta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meta")
            .field("version", &self.version)
            .field("journal_id", &self.journal_id)
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

/// A record could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    /// It is damaged.
    #[error("the record is not understood: {0}")]
    Json(#[from] serde_json::Error),
    /// The disk can't read it.
    #[error("could not read record {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Reads a record; `None` if there is none of this name.
pub(crate) fn read_record(path: &Path) -> Result<Option<Meta>, RecordError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(RecordError::Read {
            path: path.to_path_buf(),
            source,
        }),
    }
}

/// Says on disk that a stream is over: the next process has nothing to do for it. Of the container its
/// record keeps what tells whose the kept segments are, and neither environment, arguments nor keys.
pub(crate) fn end_record(disk: &dyn Disk, folder: &Path) -> Result<(), Errno> {
    match read_record(&folder.join(META_FILE_NAME)) {
        Ok(Some(meta)) => {
            if let Err(error) = replace_record(disk, folder, &reduced(meta)) {
                tracing::warn!(
                    %error,
                    folder = %folder.display(),
                    "the record of a container that is gone could not be reduced"
                );
            }
        }
        Ok(None) => return Err(Errno::NOENT),
        // Nothing of it can be told apart.
        Err(_) => {}
    }
    disk.rename(&folder.join(META_FILE_NAME), &folder.join(ENDED_FILE_NAME))
}

/// What a record keeps of a container that is gone.
#[derive(Serialize, Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Reduced {
    #[serde(rename = "ContainerID")]
    container_id: String,
    container_name: String,
    config: Option<HashMap<String, String>>,
}

fn reduced(meta: Meta) -> Meta {
    let mut info: Reduced = serde_json::from_str(meta.info.get()).unwrap_or_default();
    if let Some(config) = &mut info.config {
        config.retain(|name, _| name == "keep-file");
    }
    let info = serde_json::value::to_raw_value(&info);
    Meta {
        info: info.unwrap_or_default(),
        ..meta
    }
}

/// Puts a record in the place of another one. No power loss needs to be survived: the other one is as
/// good.
fn replace_record(disk: &dyn Disk, folder: &Path, meta: &Meta) -> std::io::Result<()> {
    let new_path = write_new(disk, folder, meta)?.0;
    Ok(disk.rename(&new_path, &folder.join(META_FILE_NAME))?)
}

/// Puts a stream on record: when this returns, no crash and no loss of power forgets it.
pub(crate) fn write_record(disk: &dyn Disk, folder: &Path, meta: &Meta) -> std::io::Result<()> {
    let made = make_record(disk, folder, meta);
    if made.is_err() {
        remove_folder(disk, folder);
    }
    made
}

fn make_record(disk: &dyn Disk, folder: &Path, meta: &Meta) -> std::io::Result<()> {
    disk.mkdir(folder)?;
    let (new_path, file) = write_new(disk, folder, meta)?;
    disk.sync(file.as_fd())?;
    disk.rename(&new_path, &folder.join(META_FILE_NAME))?;
    disk.sync_folder(folder)?;
    let parent = folder.parent().map(|parent| disk.sync_folder(parent));
    Ok(parent.transpose().map(|_| ())?)
}

/// Writes a record beside the one that it is to replace.
fn write_new(disk: &dyn Disk, folder: &Path, meta: &Meta) -> std::io::Result<(PathBuf, OwnedFd)> {
    let new_path = folder.join(META_NEW_FILE_NAME);
    let file = disk.open(&new_path, OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC)?;
    let bytes = serde_json::to_vec(meta)?;
    let mut written_bytes = 0;
    while let Some(rest) = bytes.get(written_bytes..).filter(|rest| !rest.is_empty()) {
        match disk.write_at(file.as_fd(), rest, written_bytes as u64)? {
            0 => return Err(std::io::ErrorKind::WriteZero.into()),
            written => written_bytes += written,
        }
    }
    Ok((new_path, file))
}

/// What a folder notes as long as its container's entries are in memory.
const IN_MEMORY: Loss = Loss {
    start: 0,
    reason: DropReason::MemoryLost,
};

/// Notes that a container's entries are in memory: the next process tells that some may be lost.
pub(crate) fn note_memory(disk: &dyn Disk, folder: &Path) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE;
    let path = folder.join(loss_file_name(IN_MEMORY));
    disk.open(&path, flags).map(drop)
}

/// Takes such a note back: nothing is in memory that is not acknowledged.
pub(crate) fn forget_memory(disk: &dyn Disk, folder: &Path) -> Result<(), Errno> {
    disk.unlink(&folder.join(loss_file_name(IN_MEMORY)))
}

/// Returns whether a process has ended with entries of a container in memory, or may have.
pub(crate) fn has_lost_memory(folder: &Path) -> bool {
    folder.join(loss_file_name(IN_MEMORY)).exists()
}

/// Removes a stream's folder. The record goes last: a folder that is half removed is still a
/// stream that has ended, of which nothing is left. What the disk does not let go is over, and goes
/// when the next process starts.
pub(crate) fn remove_folder(disk: &dyn Disk, folder: &Path) {
    let removed = (|| {
        unlink_segments(disk, folder)?;
        for name in [
            STATE_FILE_NAME,
            STATE_DAMAGED_FILE_NAME,
            META_NEW_FILE_NAME,
            ENDED_FILE_NAME,
            META_FILE_NAME,
        ] {
            match disk.unlink(&folder.join(name)) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok::<_, std::io::Error>(disk.rmdir(folder)?)
    })();
    if let Err(error) = removed
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%error, folder = %folder.display(), "could not remove a stream's folder");
        if let Err(error) = end_record(disk, folder) {
            tracing::debug!(%error, folder = %folder.display(), "could not mark a stream as over");
        }
    }
}

fn unlink_segments(disk: &dyn Disk, folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let name = entry?.file_name();
        let is_segment = |name: &str| segment_start(name).or(kept_start(name)).is_some();
        let is_ours = |name: &str| is_segment(name) || noted_loss(name).is_some();
        if name.to_str().is_some_and(is_ours) {
            disk.unlink(&folder.join(name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;
    use crate::table::names::{is_journal_id, new_journal_id};
    use std::sync::{Mutex, MutexGuard};

    fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap()
    }

    fn meta(info: &str) -> Meta {
        Meta {
            version: META_VERSION,
            journal_id: new_journal_id(),
            file: "/fifo".into(),
            info: RawValue::from_string(info.into()).unwrap(),
        }
    }

    /// A disk that lets nothing go.
    #[derive(Debug)]
    struct Clinging;

    impl Disk for Clinging {
        fn unlink(&self, _: &Path) -> Result<(), Errno> {
            Err(Errno::IO)
        }
    }

    /// A disk that notes what makes a record stable, in order.
    #[derive(Debug, Default)]
    struct Noting(Mutex<Vec<String>>);

    impl Noting {
        fn note(&self, call: &str, path: &Path) {
            let name = path.file_name().unwrap().to_string_lossy();
            lock(&self.0).push(format!("{call} {name}"));
        }
    }

    impl Disk for Noting {
        fn sync(&self, file: std::os::fd::BorrowedFd<'_>) -> Result<(), Errno> {
            let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
            self.note("sync", &std::fs::read_link(link).unwrap());
            RealDisk.sync(file)
        }

        fn rename(&self, from: &Path, to: &Path) -> Result<(), Errno> {
            self.note("rename to", to);
            RealDisk.rename(from, to)
        }

        fn sync_folder(&self, folder: &Path) -> Result<(), Errno> {
            self.note("sync", folder);
            RealDisk.sync_folder(folder)
        }
    }

    #[test]
    fn a_record_is_stable_before_its_start_is_answered() {
        let state_dir = tempfile::tempdir().unwrap();
        let disk = Noting::default();
        write_record(&disk, &state_dir.path().join("journal"), &meta("{}")).unwrap();
        let state_dir = state_dir.path().file_name().unwrap().to_string_lossy();
        let calls = [
            format!("sync {META_NEW_FILE_NAME}"),
            format!("rename to {META_FILE_NAME}"),
            "sync journal".to_owned(),
            format!("sync {state_dir}"),
        ];
        assert_eq!(*lock(&disk.0), calls);
    }

    #[test]
    fn what_the_disk_does_not_let_go_is_over() {
        let state_dir = tempfile::tempdir().unwrap();
        let folder = state_dir.path().join(new_journal_id());
        write_record(&RealDisk, &folder, &meta("{}")).unwrap();
        remove_folder(&Clinging, &folder);
        assert!(!folder.join(META_FILE_NAME).exists());
        assert!(folder.join(ENDED_FILE_NAME).exists());
        remove_folder(&RealDisk, &folder);
        assert_eq!(std::fs::read_dir(state_dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_record_is_found_again_and_removed_whole() {
        let state_dir = tempfile::tempdir().unwrap();
        let folder = state_dir.path().join(new_journal_id());
        assert!(is_journal_id(folder.file_name().unwrap().to_str().unwrap()));
        let info = r#"{"ContainerID":"c","Unknown":[1]}"#;
        let meta = meta(info);
        write_record(&RealDisk, &folder, &meta).unwrap();
        let bytes = std::fs::read(folder.join(META_FILE_NAME)).unwrap();
        let found: Meta = serde_json::from_slice(&bytes).unwrap();
        assert_eq!((found.file, found.info.get()), (meta.file, info));
        let mode = rustix::fs::stat(folder.join(META_FILE_NAME))
            .unwrap()
            .st_mode;
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(folder.join("00000000000000000000"), "x").unwrap();
        remove_folder(&RealDisk, &folder);
        assert_eq!(std::fs::read_dir(state_dir.path()).unwrap().count(), 0);
    }
}
