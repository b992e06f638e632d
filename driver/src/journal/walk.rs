//! Walks the frames of a buffer: how many are whole, where damage ends, what a dropped range held.
//! Pure; this runs for every line.

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use proto::frame::{self, Decoded, EntryView};

/// The whole frames at the start of a buffer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Walk {
    pub(super) bytes: usize,
    /// Frames.
    pub(super) entries: u64,
    /// Frames that were never scanned before.
    pub(super) new_entries: u64,
    /// What follows them is no frame.
    pub(super) is_malformed: bool,
}

/// Walks the frames of a buffer that begins at a journal offset, at most `bytes_max` of them, but
/// always one. Looks at nothing but headers: this runs for every line.
pub(super) fn walk(buffer: &[u8], bytes_max: usize, offset: u64, scanned_to: u64) -> Walk {
    let known_bytes = usize::try_from(scanned_to.saturating_sub(offset)).unwrap_or(usize::MAX);
    let mut walk = Walk {
        bytes: 0,
        entries: 0,
        new_entries: 0,
        is_malformed: false,
    };
    loop {
        match frame::decode(buffer.get(walk.bytes..).unwrap_or_default()) {
            Decoded::Frame { frame_bytes, .. } => {
                let end = walk.bytes.saturating_add(frame_bytes);
                if walk.bytes > 0 && end > bytes_max {
                    return walk;
                }
                walk.entries = walk.entries.saturating_add(1);
                walk.new_entries = walk
                    .new_entries
                    .saturating_add(u64::from(walk.bytes >= known_bytes));
                walk.bytes = end;
            }
            Decoded::Incomplete => return walk,
            Decoded::Malformed(_) => {
                walk.is_malformed = true;
                return walk;
            }
        }
    }
}

/// Returns how many bytes at the start of a buffer, which does not begin with a whole frame, will
/// never be one; `None` if more bytes may tell. `is_final` says that no more will come.
pub(super) fn damage_bytes(buffer: &[u8], is_malformed: bool, is_final: bool) -> Option<usize> {
    let boundary = match is_malformed || is_final {
        true => frame::resync(buffer),
        false => None,
    };
    match boundary {
        // A frame cut short at the very end has no boundary behind it, only inside a line.
        Some(bytes) if is_malformed => Some(bytes),
        _ if is_final => Some(buffer.len()),
        _ if is_malformed => {
            let bytes = buffer.len().saturating_sub(frame::RESYNC_TAIL_BYTES);
            (bytes > 0).then_some(bytes)
        }
        _ => None,
    }
}

/// The entries of a range that is to be dropped.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) end: u64,
    pub(super) entries: u64,
    /// Entries among them that were scanned before.
    pub(super) scanned_entries: u64,
    pub(super) first_time_nano: i64,
    pub(super) last_time_nano: i64,
    /// It came to the limit inside of an entry.
    pub(super) is_unfinished: bool,
}

impl Scan {
    pub(super) fn new(from: u64) -> Self {
        Self {
            end: from,
            entries: 0,
            scanned_entries: 0,
            first_time_nano: 0,
            last_time_nano: 0,
            is_unfinished: false,
        }
    }

    /// Scans frames until one ends at or behind `goal`. Returns whether it got on.
    pub(super) fn advance(&mut self, buffer: &[u8], goal: u64, scanned_to: u64) -> bool {
        let mut at = 0_usize;
        while self.end < goal {
            let rest = buffer.get(at..).unwrap_or_default();
            let bytes = match frame::decode(rest) {
                Decoded::Frame { entry, frame_bytes } => {
                    self.count(entry, scanned_to);
                    frame_bytes
                }
                Decoded::Incomplete => break,
                Decoded::Malformed(_) => match damage_bytes(rest, true, false) {
                    Some(bytes) => bytes,
                    None => break,
                },
            };
            at = at.saturating_add(bytes);
            self.end = self.end.saturating_add(bytes as u64);
        }
        at > 0
    }

    fn count(&mut self, entry: &[u8], scanned_to: u64) {
        let time_nano = EntryView::parse(entry).map_or(0, |view| view.time_nano);
        if self.entries == 0 {
            self.first_time_nano = time_nano;
        }
        self.last_time_nano = time_nano;
        self.entries = self.entries.saturating_add(1);
        self.scanned_entries = self
            .scanned_entries
            .saturating_add(u64::from(self.end < scanned_to));
    }
}
