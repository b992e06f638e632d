//! Opening a journal: what the folder holds, and what follows from it.
//!
//! [`plan`] is pure and total: any set of segments and any state give a journal that keeps the
//! invariants, and every byte between the acknowledged offset and the tail is readable or in a
//! hole.
//!
//! | found | so |
//! |---|---|
//! | no state file, or no good slot in it (torn, flipped, zeros, another version) | the journal is read from its first segment on: what was acknowledged comes twice; the file is kept as `state.damaged` |
//! | one good slot | it counts, though it may be the older one |
//! | nothing behind the acknowledged offset | the journal goes on at that offset (power loss took bytes that CLS has) |
//! | a segment wholly acknowledged or in a hole | removed, but for the last |
//! | a segment longer than the distance to the next | read up to the next |
//! | a range that neither segment nor hole has | a hole: the disk has lost it (power loss), or only its acknowledgement; counted as lost rather than not at all |
//! | a note that what follows an offset may be lost, and no segment that follows | a hole of one byte: nobody knows how much it was |
//! | the last segment ends inside a frame | nothing: the FIFO, or its end, tells the rest |
//! | bytes that are no frame (zeros, a flipped header) | found by reading: a hole up to the next boundary, counted as one entry |
//! | bytes that differ inside a frame | shipped as they are: a line has no checksum |
//! | a read-only disk | what is there is shipped; what comes is held in memory |
//!
//! An error of the disk is no damage: a folder that can't be read is left as it is. So is damage to
//! the record of the container, of which the journal knows nothing (`damaged.rs`).

use super::append::Appender;
use super::append::Current;
use super::budget::{Bounds, Budget, Place};
use super::counters::DropReason;
use super::medium::{
    Folder, Loss, Medium, Memory, STATE_DAMAGED_FILE_NAME, STATE_FILE_NAME, noted_loss,
    segment_file_name, segment_start,
};
use super::reader::Reader;
use super::segment::Segment;
use super::shared::{Journal, SyncMarks};
use super::state::{self, Hole, Saved};
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};

/// A journal's folder could not be read; it is as before.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// The folder can't be listed.
    #[error("could not list journal folder {}", folder.display())]
    List {
        /// The folder.
        folder: PathBuf,
        /// What the disk said.
        #[source]
        source: std::io::Error,
    },
    /// A file in it can't be opened or read.
    #[error("could not read journal file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the disk said.
        #[source]
        source: Errno,
    },
}

/// A journal that goes on, and how it was found.
#[derive(Debug)]
pub(crate) struct Recovered {
    /// The journal.
    pub(crate) journal: Journal,
    /// Its only appender.
    pub(crate) appender: Appender,
    /// Ranges that the disk has lost.
    pub(crate) gap_count: usize,
}

/// Opens the journal of a folder, new or from before.
///
/// # Errors
/// [`OpenError`]; nothing was changed.
pub(crate) fn open(
    medium: Folder,
    bounds: Bounds,
    budget: &Arc<Budget>,
) -> Result<Recovered, OpenError> {
    let folder = medium.path().to_path_buf();
    let (mut ranges, losses) = list_segments(&medium)?;
    ranges.sort_unstable_by_key(|range| range.start);
    let found = read_state(&medium)?;
    if found.is_none() {
        set_state_aside(&medium);
    }
    let (sequence, saved) = found.unwrap_or_default();
    let plan = plan(&saved, &ranges, &losses);
    // The journal goes on in the last one, if it is whole. The others wait to be read.
    let goes_on = plan.kept.last().filter(|last| last.end == plan.tail);
    let goes_on = match goes_on {
        Some(last) => open_segment(&medium, last.start)?.map(|file| (last.start, file)),
        None => None,
    };
    let mut segments = VecDeque::new();
    for range in ranges {
        let kept = plan.kept.iter().find(|kept| kept.start == range.start);
        match kept {
            Some(kept) => {
                let file = goes_on.as_ref().filter(|(start, _)| *start == kept.start);
                segments.push_back(Arc::new(Segment {
                    start: kept.start,
                    end: AtomicU64::new(kept.end),
                    file: Mutex::new(file.map(|(_, file)| Arc::clone(file))),
                    is_fallback: false,
                }));
            }
            None => {
                if let Err(error) = medium.remove(range.start) {
                    tracing::warn!(
                        %error,
                        folder = %folder.display(),
                        "could not remove a superfluous journal segment"
                    );
                }
            }
        }
    }
    let gap_count = plan.gap_count;
    let reader = plan.into_reader(sequence, saved);
    Ok(assemble(
        Box::new(medium),
        bounds,
        budget,
        segments,
        reader,
        gap_count,
    ))
}

/// Keeps a state file that holds no good slot for whoever looks into it; the next save begins
/// another one.
fn set_state_aside(medium: &Folder) {
    let path = medium.path().join(STATE_FILE_NAME);
    if !std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() > 0) {
        return;
    }
    tracing::error!(
        path = %path.display(),
        "a journal's state is damaged: the journal is read from its first segment on, and entries \
         may be shipped twice"
    );
    let aside = medium.path().join(STATE_DAMAGED_FILE_NAME);
    if let Err(error) = medium.disk().rename(&path, &aside) {
        tracing::warn!(%error, "could not keep the damaged state aside");
    }
}

/// Returns an empty journal that lives in memory.
pub(crate) fn in_memory(bounds: Bounds, budget: &Arc<Budget>) -> Recovered {
    empty(Box::new(Memory), bounds, budget)
}

/// Returns a journal in memory whose predecessor went with its process, and what it held: it begins with a
/// hole.
pub(crate) fn in_memory_after_loss(bounds: Bounds, budget: &Arc<Budget>) -> Recovered {
    let loss = Loss {
        start: 0,
        reason: DropReason::MemoryLost,
    };
    let reader = plan(&Saved::default(), &[], &[loss]).into_reader(0, Saved::default());
    assemble(Box::new(Memory), bounds, budget, VecDeque::new(), reader, 0)
}

/// Returns an empty journal.
pub(super) fn empty(medium: Box<dyn Medium>, bounds: Bounds, budget: &Arc<Budget>) -> Recovered {
    let reader = plan(&Saved::default(), &[], &[]).into_reader(0, Saved::default());
    assemble(medium, bounds, budget, VecDeque::new(), reader, 0)
}

fn assemble(
    medium: Box<dyn Medium>,
    bounds: Bounds,
    budget: &Arc<Budget>,
    segments: VecDeque<Arc<Segment>>,
    found: (Reader, u64),
    gap_count: usize,
) -> Recovered {
    let (reader, tail) = found;
    let held_bytes = segments
        .iter()
        .map(|segment| segment.end().saturating_sub(segment.start))
        .fold(0_u64, u64::saturating_add);
    // A journal in memory begins with nothing.
    budget.add(Place::Disk, held_bytes);
    let last = segments.back().filter(|last| last.end() == tail);
    let appender = Appender {
        // A journal whose last bytes are lost goes on in a new segment.
        current: last.and_then(Current::of),
        opened_at: None,
        must_fall_back: false,
    };
    let journal = Journal {
        medium,
        bounds,
        budget: Arc::clone(budget),
        tail: AtomicU64::new(tail),
        acked: AtomicU64::new(reader.acked),
        has_ended: AtomicBool::new(false),
        held_bytes: AtomicU64::new(held_bytes),
        fallback_bytes: AtomicU64::new(0),
        overdraft_bytes: AtomicU64::new(0),
        is_disk_full: AtomicBool::new(false),
        is_drop_unsynced: AtomicBool::new(false),
        // An earlier process may have created segments without a sync of the folder, and bytes
        // without a sync at all: those are older than this process.
        is_folder_dirty: AtomicBool::new(true),
        segments: Mutex::new(segments),
        reader: Mutex::new(reader),
        sync_marks: Mutex::new(SyncMarks {
            synced: 0,
            tail_seen: tail,
        }),
    };
    Recovered {
        journal,
        appender,
        gap_count,
    }
}

/// Returns the ranges that the segment files of a folder hold, and the losses that are noted.
fn list_segments(medium: &Folder) -> Result<(Vec<Range<u64>>, Vec<Loss>), OpenError> {
    let folder = medium.path();
    let list_error = |source| OpenError::List {
        folder: folder.to_path_buf(),
        source,
    };
    let (mut ranges, mut losses) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(folder).map_err(list_error)? {
        let name = entry.map_err(list_error)?.file_name();
        losses.extend(name.to_str().and_then(noted_loss));
        let Some(start) = name.to_str().and_then(segment_start) else {
            continue;
        };
        let path = folder.join(segment_file_name(start));
        let stat = rustix::fs::stat(&path).map_err(|source| OpenError::Read { path, source })?;
        let bytes = u64::try_from(stat.st_size).unwrap_or(0);
        ranges.push(start..start.saturating_add(bytes));
    }
    Ok((ranges, losses))
}

/// Opens the segment in which a journal goes on; `None` on a read-only disk, where it goes on in
/// memory.
fn open_segment(medium: &Folder, start: u64) -> Result<Option<Arc<OwnedFd>>, OpenError> {
    let path = medium.path().join(segment_file_name(start));
    match medium.disk().open(&path, OFlags::RDWR) {
        Ok(file) => Ok(Some(Arc::new(file))),
        Err(Errno::ROFS) => Ok(None),
        Err(source) => Err(OpenError::Read { path, source }),
    }
}

/// Reads the state of a journal's folder, and the number of its save; `None` if no slot is good.
pub(crate) fn read_state(medium: &Folder) -> Result<Option<(u64, Saved)>, OpenError> {
    let path = medium.path().join(STATE_FILE_NAME);
    let read_error = |source| OpenError::Read {
        path: path.clone(),
        source,
    };
    let file = match medium.disk().open(&path, OFlags::RDONLY) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(read_error(error)),
    };
    let mut best: Option<(u64, Saved)> = None;
    for at in [0, state::SLOT_STRIDE_BYTES] {
        let mut slot = [0; state::SLOT_BYTES_MAX];
        let bytes = medium
            .disk()
            .read_at(file.as_fd(), &mut slot, at)
            .map_err(read_error)?;
        let decoded = state::decode(slot.get(..bytes).unwrap_or_default());
        if let Some((sequence, saved)) = decoded
            && best.as_ref().is_none_or(|(newest, _)| sequence > *newest)
        {
            best = Some((sequence, saved));
        }
    }
    Ok(best)
}

/// What becomes of a folder's content.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    acked: u64,
    tail: u64,
    /// Segments that stay, with the range that counts.
    kept: Vec<Range<u64>>,
    holes: Vec<Hole>,
    gap_count: usize,
}

impl Plan {
    /// Returns the reader that the plan begins with, and the tail.
    fn into_reader(self, sequence: u64, saved: Saved) -> (Reader, u64) {
        let reader = Reader {
            acked: self.acked,
            sent: self.acked,
            scanned_to: self.acked,
            unsettled_entries: 0,
            in_flight_entries: 0,
            precounted_to: 0,
            precounted_entries: 0,
            settled: saved.settled,
            boundaries: VecDeque::new(),
            holes: self.holes.into(),
            is_finish_sent: false,
            sequence,
            slot: Vec::new(),
        };
        (reader, self.tail)
    }
}

/// Decides over segments, sorted by start, the state, and the losses that are noted.
fn plan(saved: &Saved, segments: &[Range<u64>], losses: &[Loss]) -> Plan {
    let acked = saved.acked;
    let mut ranges: Vec<Range<u64>> = Vec::with_capacity(segments.len());
    for segment in segments {
        if let Some(before) = ranges.last_mut() {
            before.end = before.end.min(segment.start);
        }
        ranges.push(segment.clone());
    }
    let mut holes = saved_holes(saved);
    let segments_end = ranges.last().map_or(0, |last| last.end);
    let holes_end = holes.last().map_or(0, |last| last.span.end);
    let end = acked.max(segments_end).max(holes_end);
    let loss = losses.iter().find(|loss| loss.start >= end);
    let end = loss.map_or(end, |loss| loss.start);
    // How much it was, nobody knows: one byte stands for it.
    let loss = loss.map(|loss| lost(end..end.saturating_add(1), loss.reason));
    let tail = loss.as_ref().map_or(end, |hole| hole.span.end);
    let mut gaps = gaps(acked..end, &ranges, &holes);
    for gap in &mut gaps {
        let noted = losses.iter().find(|loss| loss.start == gap.span.start);
        gap.reason = noted.map_or(gap.reason, |loss| loss.reason);
    }
    holes.extend(loss);
    let gap_count = gaps.len();
    holes.extend(gaps);
    holes.sort_unstable_by_key(|hole| hole.span.start);
    let is_superfluous = |range: &Range<u64>| {
        range.end <= acked
            || holes
                .iter()
                .any(|hole| hole.span.start <= range.start && range.end <= hole.span.end)
    };
    let last_start = ranges.last().map(|last| last.start);
    // The last one stays as long as the journal goes on in it.
    ranges.retain(|range| {
        let goes_on = Some(range.start) == last_start && range.end == tail;
        goes_on || !is_superfluous(range)
    });
    Plan {
        acked,
        tail,
        kept: ranges,
        holes,
        gap_count,
    }
}

/// Returns a hole of which nothing is known.
fn lost(span: Range<u64>, reason: DropReason) -> Hole {
    Hole {
        span,
        entries: 0,
        first_time_nano: 0,
        last_time_nano: 0,
        reason,
    }
}

/// Returns the saved holes above the acknowledged offset, in order, without overlap.
fn saved_holes(saved: &Saved) -> Vec<Hole> {
    let mut holes = saved.holes.clone();
    holes.sort_unstable_by_key(|hole| hole.span.start);
    let mut end = saved.acked;
    holes.retain_mut(|hole| {
        hole.span.start = hole.span.start.max(end);
        end = end.max(hole.span.end);
        hole.span.start < hole.span.end
    });
    holes
}

/// Returns what neither a segment nor a hole has, as holes.
fn gaps(span: Range<u64>, segments: &[Range<u64>], holes: &[Hole]) -> Vec<Hole> {
    let mut known: Vec<Range<u64>> = segments.to_vec();
    known.extend(holes.iter().map(|hole| hole.span.clone()));
    known.push(span.end..span.end);
    known.sort_unstable_by_key(|range| range.start);
    let mut gaps = Vec::new();
    let mut at = span.start;
    for range in known {
        if range.start > at {
            gaps.push(lost(at..range.start, DropReason::DiskError));
        }
        at = at.max(range.end);
    }
    gaps
}

#[cfg(test)]
#[allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::single_range_in_vec_init,
    reason = "a panic fails a test; one range is a list too"
)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn noted(start: u64) -> Loss {
        let reason = DropReason::MemoryLost;
        Loss { start, reason }
    }

    fn full(span: Range<u64>) -> Hole {
        Hole {
            span,
            entries: 1,
            first_time_nano: 0,
            last_time_nano: 0,
            reason: DropReason::JournalFull,
        }
    }

    fn check(
        acked: u64,
        holes: Vec<Hole>,
        segments: &[Range<u64>],
    ) -> (u64, u64, Vec<Range<u64>>, Vec<Range<u64>>) {
        let saved = Saved {
            acked,
            holes,
            ..Saved::default()
        };
        let plan = plan(&saved, segments, &[]);
        let holes = plan.holes.into_iter().map(|hole| hole.span).collect();
        (plan.acked, plan.tail, plan.kept, holes)
    }

    #[test]
    fn the_table_holds() {
        // A new folder.
        assert_eq!(check(0, vec![], &[]), (0, 0, vec![], vec![]));
        // Everything was acknowledged and the last segment never created.
        assert_eq!(check(9, vec![], &[]), (9, 9, vec![], vec![]));
        // As left by SIGKILL: acknowledged segments not yet removed.
        assert_eq!(
            check(15, vec![], &[0..10, 10..20, 20..25]),
            (15, 25, vec![10..20, 20..25], vec![])
        );
        // All acknowledged: the last one stays.
        assert_eq!(
            check(20, vec![], &[0..10, 10..20]),
            (20, 20, vec![10..20], vec![])
        );
        // Power loss took acknowledged bytes.
        assert_eq!(
            check(30, vec![], &[0..10, 10..20]),
            (30, 30, vec![], vec![])
        );
        // A dropped segment.
        assert_eq!(
            check(5, vec![full(8..22)], &[0..10, 20..25]),
            (5, 25, vec![0..10, 20..25], vec![8..22])
        );
        // The drop was saved, the segment not yet removed.
        assert_eq!(
            check(5, vec![full(8..22)], &[0..10, 10..20, 20..25]),
            (5, 25, vec![0..10, 20..25], vec![8..22])
        );
        // A segment is missing, one is short.
        assert_eq!(
            check(0, vec![], &[0..10, 20..24, 30..31]),
            (0, 31, vec![0..10, 20..24, 30..31], vec![10..20, 24..30])
        );
        // The state is older than the first segment.
        assert_eq!(
            check(5, vec![], &[20..30]),
            (5, 30, vec![20..30], vec![5..20])
        );
        // A hole reaches beyond what is left.
        assert_eq!(
            check(5, vec![full(8..40)], &[0..10]),
            (5, 40, vec![0..10], vec![8..40])
        );
    }

    #[test]
    fn a_loss_is_a_hole_where_nothing_follows_it() {
        let check = |acked, segments: &[Range<u64>], losses: &[u64]| {
            let saved = Saved {
                acked,
                ..Saved::default()
            };
            let losses: Vec<_> = losses.iter().copied().map(noted).collect();
            let plan = plan(&saved, segments, &losses);
            let holes = plan.holes.into_iter().map(|hole| (hole.span, hole.reason));
            (plan.tail, holes.collect::<Vec<_>>())
        };
        let lost = |span| (span, DropReason::MemoryLost);
        // Nothing but the note is left.
        assert_eq!(check(0, &[], &[0]), (1, vec![lost(0..1)]));
        // The tail was in memory, or was acknowledged before it went.
        assert_eq!(check(3, &[0..10], &[10]), (11, vec![lost(10..11)]));
        assert_eq!(check(12, &[0..10], &[10]), (12, vec![]));
        // The disk took bytes again behind it: they say how much it was.
        assert_eq!(check(0, &[0..10, 15..20], &[10]), (20, vec![lost(10..15)]));
        // It was told of before.
        assert_eq!(check(11, &[11..20], &[10]), (20, vec![]));
    }

    proptest! {
        #[test]
        fn every_byte_is_readable_or_in_one_hole(
            acked in 0_u64..100,
            starts in prop::collection::btree_map(0_u64..100, 0_u64..40, 0..6),
            spans in prop::collection::vec((0_u64..100, 0_u64..30), 0..4),
            losses in prop::collection::vec(0_u64..150, 0..3),
        ) {
            let losses: Vec<_> = losses.into_iter().map(noted).collect();
            let segments: Vec<_> = starts.into_iter().map(|(start, bytes)| start..start + bytes).collect();
            let holes = spans.into_iter().map(|(start, bytes)| full(start..start + bytes)).collect();
            let saved = Saved { acked, holes, ..Saved::default() };
            let plan = plan(&saved, &segments, &losses);
            prop_assert!(plan.acked <= plan.tail);
            for offset in plan.acked..plan.tail {
                let holes = plan.holes.iter().filter(|hole| hole.span.contains(&offset)).count();
                let is_kept = plan.kept.iter().any(|kept| kept.contains(&offset));
                prop_assert!(holes == 1 || (holes == 0 && is_kept), "J4 at {offset}: {plan:?}");
            }
            let ends: Vec<_> = plan.kept.iter().map(|kept| kept.end).collect();
            prop_assert!(ends.iter().all(|&end| end <= plan.tail) && ends.is_sorted(), "J1: {plan:?}");
        }
    }
}
