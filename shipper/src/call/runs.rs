//! Where a stream's records gather until they are a run, which its lane takes.

use tokio::time::Instant;

use crate::call::host_clock::HostClock;
use crate::call::shared::Shared;
use crate::record::Records;

/// How far a run may exceed its bound by its last record, before that one is moved on.
const RUN_EXCESS_BYTES_MAX: usize = 64 << 10;

/// A chunk at least this large formats into a used buffer. A smaller one gets a buffer of its own
/// size: thousands of quiet streams must not sit on buffers that a busy one has grown.
const USED_BUFFER_BYTES_MIN: usize = 64 << 10;

/// Where a stream's records gather until they are a run.
pub(super) struct RunBuilder<'a> {
    pub(super) shared: &'a Shared,
    pub(super) records: Records,
    pub(super) now: Instant,
    /// When the request with the entries was gathered.
    pub(super) host_now: Instant,
    is_large: bool,
}

impl<'a> RunBuilder<'a> {
    /// Makes room for the records of `frames_bytes` of entries.
    pub(super) fn new(
        shared: &'a Shared,
        now: Instant,
        clock: &HostClock,
        frames_bytes: usize,
    ) -> Self {
        let is_large = frames_bytes >= USED_BUFFER_BYTES_MIN;
        let buffer = if is_large {
            Vec::new()
        } else {
            Vec::with_capacity(frames_bytes * 3 / 2)
        };
        Self {
            shared,
            records: Records {
                bytes: buffer,
                ..Records::default()
            },
            now,
            host_now: clock.now(),
            is_large,
        }
    }

    /// Takes a used buffer only when there is something to put into it.
    pub(super) fn prepare(&mut self) {
        if self.is_large && self.records.bytes.capacity() == 0 {
            self.records.bytes = self.shared.buffers.take();
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.records.bytes.len() >= self.shared.run_bytes_max
            || self.records.counts.logs >= self.shared.run_logs_max
    }

    /// Returns whether the last call added more than a batch has room for, so that it must go into
    /// a run of its own.
    pub(super) fn is_beyond(&self) -> bool {
        self.records.bytes.len() > self.shared.run_bytes_max + RUN_EXCESS_BYTES_MAX
            || self.records.counts.logs > self.shared.run_logs_max
    }
}
