//! What is on disk of streams, but for their journals: records, the lock of the folder, segments that
//! are kept for inspection, folders that are damaged.
//!
//! The engine names a FIFO once, in StartLogging, and never again: not when the driver restarts, crashes
//! or is upgraded. So a stream lives from its record to its last acknowledgement.

mod damaged;
mod lock;
mod names;
mod record;
mod retention;

pub(crate) use damaged::{DAMAGED_SUFFIX, set_aside};
pub use lock::TableError;
pub(crate) use lock::lock_state_dir;
pub(crate) use names::{
    ENDED_FILE_NAME, META_FILE_NAME, files, is_journal_id, journal_folders, kept_start,
    new_journal_id,
};
pub(crate) use record::{
    META_VERSION, Meta, RecordError, forget_memory, has_lost_memory, note_memory, read_record,
    remove_folder, write_record,
};
pub(crate) use retention::{FoundFile, Owner, Retention, find};
