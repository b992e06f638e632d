//! The journal: everything that one FIFO gave, until the shipper has finished with it.
//!
//! ```text
//!            released        in flight           buffered
//!         ├─────────────┼────────────────┼──────────────────┤
//! offset  0           acked            sent               tail      sent ≤ scanned_to ≤ tail
//! ```
//!
//! Bytes are numbered from 0 as they came out of the FIFO, for ever. A segment file holds a range
//! of them, raw, and is named by the offset of its first byte (20 digits); the tail is where the
//! last segment ends. There is no header, index or marker: what has been received is exactly what
//! the files' sizes say, so SIGKILL at any instruction loses and repeats nothing. That is also why
//! segment files are never reused: the size of a reused file tells nothing. (Measured on ext4,
//! Linux 6.18: 0.046 µs per 220-byte frame spliced into fresh segments and unlinked, 0.022 µs into
//! reused ones.) Segments are small, so that they are gone before the kernel writes them back.
//!
//! Three parties meet here. The pump appends (one [`Appender`], no lock but at a new segment). The
//! gatherer reads and acknowledges (one lock, [`reader::Reader`]). Upkeep drops and syncs. The pump
//! never waits for a reader.
//!
//! Invariants:
//! - **J1** Bytes `[first segment's start, tail)` stand in the segments in order, but for holes.
//! - **J2** `acked ≤ sent ≤ scanned_to ≤ tail`, each a frame boundary unless it is the tail; none ever
//!   goes back, but `sent` to `acked` when a call ends, and `scanned_to` to where the journal can no
//!   longer be read.
//! - **J3** The state is saved before a segment that it makes superfluous is removed. Where the disk refuses that
//!   save, the segment goes all the same, or a full disk could never be emptied: a next process takes it for a
//!   loss, and counts what CLS has as one entry more.
//! - **J4** A byte is released, in a hole, or readable: never two of them, never none.
//! - **J5** The segments hold at most `bytes_max` bytes; at that the appender says `Full`.
//! - **J6** What is dropped is unsent: whatever a shipper may still acknowledge is not counted
//!   twice.
//! - **J7** A frame is counted as received once, however often it is read. What is not sent yet is
//!   counted ahead now and then; until that has come to the tail, the newest entries are not among
//!   those received.
//!
//! A hole is a range whose entries can't be shipped; it stays in the journal's order, is sent like
//! a chunk, and is counted when it is acknowledged.

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod ack;
mod append;
mod budget;
mod bytes;
mod counters;
mod drop;
mod lock;
mod medium;
mod read;
mod reader;
mod recover;
mod release;
mod segment;
mod shared;
mod state;
mod sync;
mod walk;

pub(crate) use ack::AckError;
pub(crate) use append::{Appended, Appender};
pub(crate) use budget::{Bounds, Budget, Shortage};

pub(crate) use counters::DropReason;
pub(crate) use medium::{
    Folder, Loss, STATE_DAMAGED_FILE_NAME, STATE_FILE_NAME, loss_file_name, noted_loss,
    segment_file_name, segment_start,
};
pub(crate) use reader::{Next, SettledCounts};
pub(crate) use recover::{OpenError, Recovered, in_memory, in_memory_after_loss, open, read_state};
pub(crate) use shared::{Journal, Totals};
pub(crate) use state::{Hole, Saved};

#[cfg(test)]
mod tests;
