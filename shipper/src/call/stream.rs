//! One stream of a call: its offsets and window, and its records on their way to its lane.

use std::sync::Arc;
use std::time::Duration;

use proto::frame::{self, Decoded, EntryView, Source};
use proto::relay::{Chunk, StreamReport};
use tokio::time::Instant;
use tonic::Status;
use tracing::warn;

use crate::call::hints::Hints;
use crate::call::host_clock::HostClock;
use crate::call::runs::RunBuilder;
use crate::call::session::broken;
use crate::lane::queue::{Lane, Run, SlotId};
use crate::lane::receipts::Progress;
use crate::lane::window::Window;
use crate::record::{Counts, Fate, Formatter, Records, mask_names};
use crate::rules::tenant::{Allowance, StreamPermit};

/// Time of the host in which its driver sends what stands in the journal, once there is room for it,
/// before what waits for it counts as late. Should it not come in its turn, the stream is not to stand
/// still for ever.
const REST_WAIT_MAX: Duration = Duration::from_secs(60);

/// The same for what there is no room for, as long as the budget is used up.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(10);

/// One stream of a call.
pub(super) struct OpenStream {
    pub(super) formatter: Formatter,
    pub(super) lane: Arc<Lane>,
    pub(super) slot: SlotId,
    pub(super) window: Window,
    pub(super) next_offset: u64,
    /// What the runs so far cover.
    pub(super) settled_offset: u64,
    /// What the driver has been told is delivered.
    pub(super) acked_offset: u64,
    /// Fates of entries behind it, whose counts go with the run that covers them.
    pub(super) ahead: Vec<Fate>,
    /// The journal has more of the stream.
    pub(super) has_more: bool,
    /// Nothing is flushed for its age before this time of the host.
    pub(super) flush_from: Option<Instant>,
    pub(super) end_offset: Option<u64>,
    pub(super) journal_id: String,
    pub(super) host: String,
    pub(super) hints: Hints,
    /// What the driver has been told is settled, in this call.
    pub(super) acked: Progress,
    /// The driver's last counters, but for that.
    pub(super) totals: Option<Box<StreamReport>>,
    /// That of its host, if it has a limit.
    pub(super) allowance: Option<Allowance>,
    pub(super) _permit: StreamPermit,
}

impl OpenStream {
    pub(super) fn expect(&self, number: u32, offset: u64) -> Result<(), Status> {
        if self.end_offset.is_some() {
            return Err(broken(number, "sent an event after its finish"));
        }
        if offset != self.next_offset {
            let expected = self.next_offset;
            let what = format!("continues at offset {offset}, expected {expected}");
            return Err(broken(number, &what));
        }
        Ok(())
    }

    /// Checks that a chunk stays within the window and the offsets that there are.
    pub(super) fn expect_room(&self, chunk: &Chunk) -> Result<(), Status> {
        let frames: &[u8] = &chunk.frames;
        let bytes = frames.len() as u64;
        if chunk.first_offset.checked_add(bytes).is_none() {
            return Err(broken(chunk.stream, "goes beyond the largest offset"));
        }
        let is_one_frame = match frame::decode(frames) {
            Decoded::Frame { frame_bytes, .. } => frame_bytes == frames.len(),
            Decoded::Incomplete | Decoded::Malformed(_) => false,
        };
        if self.window.may_take(bytes, is_one_frame) {
            return Ok(());
        }
        let window_bytes = self.window.announced();
        let what = format!("sends {bytes} bytes beyond its window of {window_bytes}");
        Err(broken(chunk.stream, &what))
    }

    /// Returns when something that waits for the rest of itself is late, by the host's clock.
    pub(super) fn flush_due(&self) -> Option<Instant> {
        let due = self.formatter.next_due()?;
        Some(self.flush_from.map_or(due, |from| from.max(due)))
    }

    /// Puts off what is late if its rest stands in the host's journal, from where it comes once there is
    /// room in the window.
    pub(super) fn wait_for_rest(&mut self, clock: &HostClock) {
        let wait_max = if self.is_stuck() {
            ROOM_WAIT_MAX
        } else {
            REST_WAIT_MAX
        };
        self.flush_from = self.has_more.then(|| clock.now() + wait_max);
    }

    /// Returns whether the host's journal holds what there is no room for, until something is
    /// acknowledged that is under way.
    pub(super) fn is_kept_back(&self) -> bool {
        self.has_more && self.window.is_full() && self.settled_offset > self.acked_offset
    }

    /// Returns whether the window is full of nothing but what waits here for its rest: an
    /// acknowledgement will not open it.
    pub(super) fn is_stuck(&self) -> bool {
        self.has_more && self.window.is_full() && self.settled_offset == self.acked_offset
    }

    /// Takes out the stream's last counters, with what was acknowledged in this call. They are of the
    /// journal that was opened, whatever they say.
    pub(super) fn last_counters(&mut self) -> Option<StreamReport> {
        let totals = self.totals.take()?;
        let acked = &self.acked;
        // A host may report anything.
        let add = u64::saturating_add;
        Some(StreamReport {
            journal_id: std::mem::take(&mut self.journal_id),
            delivered_entries: add(totals.delivered_entries, acked.delivered_entries),
            filtered_entries: add(totals.filtered_entries, acked.filtered_entries),
            dead_lettered_entries: add(totals.dead_lettered_entries, acked.dead_lettered_entries),
            buffered_bytes: 0,
            ..*totals
        })
    }

    pub(super) fn push(&mut self, entry: &[u8], frame_bytes: usize, out: &mut RunBuilder<'_>) {
        let offset = self.next_offset;
        self.next_offset += frame_bytes as u64;
        let view = EntryView::parse(entry).unwrap_or_else(|error| {
            // The bytes are all there is, so they are what arrives; dropping them helps nobody.
            let count = out.shared.metrics.malformed_entries.inc() + 1;
            // Ever more rarely: a host must not fill the log.
            if count.is_power_of_two() {
                warn!(%error, count, "entry is malformed, it is delivered as it is");
            }
            let time_nano = out.shared.clock.unix_ms().saturating_mul(1_000_000);
            EntryView {
                source: Source::Stdout,
                time_nano,
                line: entry,
                partial: None,
            }
        });
        out.prepare();
        let mark = out.records.mark();
        let formatter = &mut self.formatter;
        let settled_before = formatter.settled_offset();
        formatter.push(
            offset,
            self.next_offset,
            &view,
            out.host_now,
            &mut out.records,
        );
        if out.is_beyond() {
            // The newest records go into a run of their own, and what settled with them as well.
            let newest = out.records.split_off(mark);
            self.hand_over(out, settled_before);
            out.records = newest;
        }
        if out.is_full() {
            self.send(out);
        }
    }

    /// Hands to the lane what there is, with all that has settled, and begins a new run.
    pub(super) fn send(&mut self, out: &mut RunBuilder<'_>) {
        self.hand_over(out, self.formatter.settled_offset());
    }

    fn hand_over(&mut self, out: &mut RunBuilder<'_>, settled_offset: u64) {
        self.settled_offset = settled_offset;
        self.hints
            .look(&self.host, &out.records.counts, &self.formatter, out.shared);
        let Records {
            bytes,
            counts,
            fates,
        } = std::mem::take(&mut out.records);
        out.shared
            .metrics
            .filtered_entries
            .inc_by(counts.filtered_entries);
        out.shared
            .metrics
            .unparsed_records
            .inc_by(counts.unparsed_logs);
        let masked = mask_names().zip(counts.masked);
        out.shared.metrics.count_masked(masked);
        self.window.receive(self.next_offset, bytes.len() as u64);
        let joined = fates.iter().filter(|fate| fate.entries != 1);
        let joined = joined.filter_map(|fate| Some((fate.log?, fate.entries)));
        let joined: Vec<_> = joined.collect();
        let progress = self.progress(&counts, fates);
        if counts.logs == 0 {
            self.lane.settle(self.slot, progress);
            out.shared.buffers.give(bytes);
        } else {
            let run = Run {
                logs: bytes,
                log_count: counts.logs,
                joined,
                progress,
            };
            self.lane.push(self.slot, run, out.now);
        }
    }

    /// Returns what is covered now. Entries that are out but lie behind the settled offset are not
    /// counted before it has passed them: a driver that starts over there sends them again.
    fn progress(&mut self, counts: &Counts, fates: Vec<Fate>) -> Progress {
        let mut progress = Progress {
            offset: self.settled_offset,
            delivered_entries: counts.delivered_entries,
            filtered_entries: counts.filtered_entries,
            dead_lettered_entries: 0,
        };
        for fate in &fates {
            *count_of(&mut progress, fate) -= fate.entries;
        }
        self.ahead.extend(fates);
        self.ahead.retain(|fate| {
            let is_covered = fate.end <= self.settled_offset;
            if is_covered {
                *count_of(&mut progress, fate) += fate.entries;
            }
            !is_covered
        });
        progress
    }
}

fn count_of<'p>(progress: &'p mut Progress, fate: &Fate) -> &'p mut u64 {
    match fate.log {
        Some(_) => &mut progress.delivered_entries,
        None => &mut progress.filtered_entries,
    }
}
