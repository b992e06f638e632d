//! What the shipper has finished with: the acknowledgement is saved, then segments go.

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::lock::lock;
use super::reader::{Reader, SettledCounts};
use super::shared::Journal;
use super::walk::walk;
use proto::limits::FRAME_BYTES_MAX;
use rustix::io::Errno;
use std::sync::atomic::Ordering;

/// Why an acknowledgement was not taken, or not wholly.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AckError {
    /// The shipper acknowledges what it was never sent; nothing changed.
    #[error("acknowledged offset {offset} lies beyond the last sent offset {sent}")]
    BeyondSent {
        /// The acknowledged offset.
        offset: u64,
        /// The last sent one.
        sent: u64,
    },
    /// The shipper acknowledges a part of an entry; nothing changed. What goes on there would not be
    /// understood.
    #[error("acknowledged offset {offset} lies inside of an entry")]
    InsideEntry {
        /// The acknowledged offset.
        offset: u64,
    },
    /// More entries are said to be settled than were sent and are not settled yet. The offset counts,
    /// and of the entries as many as there were.
    #[error("{entries} entries more than were sent are acknowledged")]
    Unearned {
        /// The surplus.
        entries: u64,
    },
    /// The acknowledgement counts, but would be forgotten if the process died now.
    #[error("could not save the acknowledged offset")]
    Save(#[source] Errno),
}

impl Journal {
    /// Takes the shipper's word that everything below `offset` is finished with: saves it, then
    /// releases segments.
    ///
    /// # Errors
    /// See [`AckError`]. An offset that was acknowledged before only adds to the counters.
    pub(crate) fn ack(&self, offset: u64, fates: SettledCounts) -> Result<(), AckError> {
        let mut reader = lock(&self.reader);
        if offset > reader.sent {
            let sent = reader.sent;
            return Err(AckError::BeyondSent { offset, sent });
        }
        if offset > reader.acked && !self.is_boundary(&reader, offset) {
            return Err(AckError::InsideEntry { offset });
        }
        let surplus = reader.settle(offset, fates);
        let saved = self.save(&mut reader);
        self.acked.store(reader.acked, Ordering::Release);
        self.release(&reader);
        saved.map_err(AckError::Save)?;
        match surplus {
            0 => Ok(()),
            entries => Err(AckError::Unearned { entries }),
        }
    }

    /// Returns whether an entry ends at an offset that was sent. Nearly always that is where a chunk
    /// ends; otherwise the entries of that chunk are read. One that can't be read is believed.
    fn is_boundary(&self, reader: &Reader, offset: u64) -> bool {
        let mut at = reader.boundary_before(offset);
        if at == offset || reader.is_inside_hole(offset) {
            return at == offset;
        }
        let mut buffer = vec![0; FRAME_BYTES_MAX];
        while at < offset {
            let Ok(bytes) = self.read(at, &mut buffer) else {
                return true;
            };
            let read = buffer.get(..bytes).unwrap_or_default();
            let rest_bytes = usize::try_from(offset.saturating_sub(at)).unwrap_or(usize::MAX);
            let walk = walk(read, rest_bytes.max(1), at, u64::MAX);
            if walk.bytes == 0 {
                // What is damaged is a hole by now, and no entry to read.
                return reader
                    .hole_start_behind(at)
                    .is_some_and(|hole| hole < offset);
            }
            at = at.saturating_add(walk.bytes as u64);
        }
        at == offset
    }
}
