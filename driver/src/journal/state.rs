//! The state file of a journal: the acknowledged offset, the counters below it, and the holes
//! above it.
//!
//! Two slots, at 0 and at [`SLOT_STRIDE_BYTES`], so that they never share a disk block. A save
//! writes the older slot with one `pwrite`; SIGKILL leaves it whole or untouched, and a write that
//! power loss tears fails its checksum, so the other slot stands. Little-endian:
//!
//! ```text
//!   0  magic "CLSJ"        24  delivered, filtered, dead_lettered: u64 each
//!   4  version: u16 = 1    48  dropped: u64 for each of 8 reasons
//!   6  hole count: u16    112  holes: first, end, entries: u64; first_time, last_time: i64;
//!   8  sequence: u64           reason: u8, 7 zero bytes    (48 bytes each)
//!  16  acked: u64           …  CRC-32 (IEEE) of everything before it: u32
//! ```
//!
//! The slot with the higher sequence counts. With no good slot the journal starts over from its
//! first segment: entries may be shipped twice, none is lost.

use super::counters::{Counters, DropReason, Dropped};
use std::ops::Range;

/// Holes that one journal may have between its acknowledged offset and its tail.
pub(crate) const HOLES_MAX: usize = 16;

/// Distance of the two slots.
pub(super) const SLOT_STRIDE_BYTES: u64 = 4096;

/// Bytes of the longest slot.
pub(super) const SLOT_BYTES_MAX: usize = HEADER_BYTES + HOLES_MAX * HOLE_BYTES + CRC_BYTES;

const MAGIC: &[u8; 4] = b"CLSJ";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 112;
const HOLE_BYTES: usize = 48;
const CRC_BYTES: usize = 4;

const _: () = assert!(
    (SLOT_BYTES_MAX as u64) <= SLOT_STRIDE_BYTES,
    "slots must not overlap"
);

/// A range of the journal whose entries are gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hole {
    /// The bytes that are missing.
    pub(crate) span: Range<u64>,
    /// Entries, 0 if unknown.
    pub(crate) entries: u64,
    /// Docker's time of the first missing entry, UNIX nanoseconds, 0 if unknown.
    pub(crate) first_time_nano: i64,
    /// Docker's time of the last missing entry, UNIX nanoseconds, 0 if unknown.
    pub(crate) last_time_nano: i64,
    /// Why they are gone.
    pub(crate) reason: DropReason,
}

impl Hole {
    /// Returns what the hole adds to the counters: a range of unknown content counts as one.
    pub(crate) fn counted_entries(&self) -> u64 {
        self.entries.max(1)
    }
}

/// What a slot holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Saved {
    /// Everything below it is finished with.
    pub(crate) acked: u64,
    /// Counters of everything below `acked`.
    pub(crate) settled: Counters,
    /// Holes above `acked` that can't be found again by reading the segments.
    pub(crate) holes: Vec<Hole>,
}

/// Encodes a slot. Holes beyond [`HOLES_MAX`] do not fit, and are left out: the journal hands in its newest.
pub(super) fn encode(sequence: u64, saved: &Saved, slot: &mut Vec<u8>) {
    slot.clear();
    slot.extend_from_slice(MAGIC);
    slot.extend_from_slice(&VERSION.to_le_bytes());
    let hole_count = u16::try_from(saved.holes.len().min(HOLES_MAX)).unwrap_or(0);
    slot.extend_from_slice(&hole_count.to_le_bytes());
    let settled = &saved.settled;
    for number in [
        sequence,
        saved.acked,
        settled.delivered,
        settled.filtered,
        settled.dead_lettered,
    ] {
        slot.extend_from_slice(&number.to_le_bytes());
    }
    for count in settled.dropped.by_number() {
        slot.extend_from_slice(&count.to_le_bytes());
    }
    for hole in saved.holes.iter().take(HOLES_MAX) {
        slot.extend_from_slice(&hole.span.start.to_le_bytes());
        slot.extend_from_slice(&hole.span.end.to_le_bytes());
        slot.extend_from_slice(&hole.entries.to_le_bytes());
        slot.extend_from_slice(&hole.first_time_nano.to_le_bytes());
        slot.extend_from_slice(&hole.last_time_nano.to_le_bytes());
        slot.extend_from_slice(&[hole.reason.number(), 0, 0, 0, 0, 0, 0, 0]);
    }
    slot.extend_from_slice(&crc32fast::hash(slot).to_le_bytes());
}

/// Decodes a slot and its sequence; `None` if it is torn, empty, or of another version.
pub(super) fn decode(slot: &[u8]) -> Option<(u64, Saved)> {
    let mut fields = Fields { rest: slot };
    if &fields.take::<4>()? != MAGIC || u16::from_le_bytes(fields.take()?) != VERSION {
        return None;
    }
    let hole_count = usize::from(u16::from_le_bytes(fields.take()?));
    if hole_count > HOLES_MAX {
        return None;
    }
    let sequence = fields.u64()?;
    let acked = fields.u64()?;
    let (delivered, filtered, dead_lettered) = (fields.u64()?, fields.u64()?, fields.u64()?);
    let mut dropped = [0; Dropped::REASONS_MAX];
    for count in &mut dropped {
        *count = fields.u64()?;
    }
    let mut holes = Vec::with_capacity(hole_count);
    for _ in 0..hole_count {
        holes.push(fields.hole()?);
    }
    let checked_bytes = slot.len().checked_sub(fields.rest.len())?;
    let crc = u32::from_le_bytes(fields.take()?);
    if crc != crc32fast::hash(slot.get(..checked_bytes)?) {
        return None;
    }
    let settled = Counters {
        delivered,
        filtered,
        dead_lettered,
        dropped: Dropped::from_numbers(dropped),
    };
    let saved = Saved {
        acked,
        settled,
        holes,
    };
    Some((sequence, saved))
}

/// Reads a slot from front to back.
struct Fields<'a> {
    rest: &'a [u8],
}

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*field)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn hole(&mut self) -> Option<Hole> {
        let span = self.u64()?..self.u64()?;
        let entries = self.u64()?;
        let first_time_nano = i64::from_le_bytes(self.take()?);
        let last_time_nano = i64::from_le_bytes(self.take()?);
        let [reason, ..] = self.take::<8>()?;
        Some(Hole {
            span,
            entries,
            first_time_nano,
            last_time_nano,
            reason: DropReason::from_number(reason)?,
        })
    }
}

#[cfg(test)]
#[allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a panic fails a test"
)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hole() -> impl Strategy<Value = Hole> {
        (
            any::<[u64; 3]>(),
            any::<[i64; 2]>(),
            prop::sample::select(DropReason::ALL.as_slice()),
        )
            .prop_map(
                |([first, end, entries], [first_time_nano, last_time_nano], reason)| Hole {
                    span: first..end,
                    entries,
                    first_time_nano,
                    last_time_nano,
                    reason,
                },
            )
    }

    fn saved() -> impl Strategy<Value = Saved> {
        let counters = (any::<[u64; 3]>(), any::<[u64; Dropped::REASONS_MAX]>()).prop_map(
            |([delivered, filtered, dead_lettered], dropped)| Counters {
                delivered,
                filtered,
                dead_lettered,
                dropped: Dropped::from_numbers(dropped),
            },
        );
        let holes = prop::collection::vec(hole(), 0..=HOLES_MAX);
        (any::<u64>(), counters, holes).prop_map(|(acked, settled, holes)| Saved {
            acked,
            settled,
            holes,
        })
    }

    proptest! {
        #[test]
        fn a_slot_reads_back_as_it_was_saved(sequence: u64, saved in saved()) {
            let mut slot = Vec::new();
            encode(sequence, &saved, &mut slot);
            prop_assert!(slot.len() <= SLOT_BYTES_MAX);
            slot.resize(SLOT_BYTES_MAX, 0xff); // what an older, longer slot left behind
            prop_assert_eq!(decode(&slot), Some((sequence, saved)));
        }

        #[test]
        fn a_damaged_slot_is_not_believed(saved in saved(), at: prop::sample::Index, flip in 1_u8..) {
            let mut slot = Vec::new();
            encode(7, &saved, &mut slot);
            let at = at.index(slot.len());
            slot[at] ^= flip;
            prop_assert_eq!(decode(&slot), None);
        }

        #[test]
        fn a_torn_slot_is_not_believed(old in saved(), new in saved(), cut: prop::sample::Index) {
            prop_assume!(old != new);
            let (mut slot, mut torn) = (Vec::new(), Vec::new());
            encode(7, &new, &mut slot);
            encode(5, &old, &mut torn);
            torn.resize(SLOT_BYTES_MAX, 0);
            let cut = cut.index(slot.len());
            let differs_behind = slot[cut..] != torn[cut..slot.len()];
            torn[..cut].copy_from_slice(&slot[..cut]);
            // A write torn behind its last changed byte is a whole one; one torn before its first
            // changed byte leaves the old slot.
            match decode(&torn) {
                None => {}
                Some((7, saved)) => prop_assert!(!differs_behind && saved == new),
                Some((sequence, saved)) => prop_assert_eq!((sequence, saved), (5, old)),
            }
        }
    }

    #[test]
    fn the_bytes_on_disk_never_change() {
        let saved = Saved {
            acked: 0x0102,
            settled: Counters {
                delivered: 3,
                filtered: 4,
                dead_lettered: 5,
                dropped: Dropped::from_numbers([6, 0, 0, 0, 0, 0, 0, 0]),
            },
            holes: vec![Hole {
                span: 7..8,
                entries: 9,
                first_time_nano: -1,
                last_time_nano: 10,
                reason: DropReason::CutShort,
            }],
        };
        let mut slot = Vec::new();
        encode(11, &saved, &mut slot);
        let mut golden = b"CLSJ\x01\0\x01\0".to_vec();
        for number in [11_u64, 0x0102, 3, 4, 5, 6, 0, 0, 0, 0, 0, 0, 0, 7, 8, 9] {
            golden.extend_from_slice(&number.to_le_bytes());
        }
        golden.extend_from_slice(&[0xff; 8]);
        golden.extend_from_slice(&[10, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(slot[..slot.len() - CRC_BYTES], golden);
        assert_eq!(slot[slot.len() - CRC_BYTES..], GOLDEN_CRC);
    }

    /// As another implementation computes it (Python's `zlib.crc32`).
    const GOLDEN_CRC: [u8; 4] = [242, 12, 87, 255];
}
