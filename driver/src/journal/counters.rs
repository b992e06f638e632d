//! What became of a container's entries, counted so that nothing is lost in silence:
//!
//! ```text
//! received = delivered + filtered + dead_lettered + dropped{reason} + buffered
//! ```
//!
//! The journal's state file holds the counters below the acknowledged offset ("settled"); the rest
//! of the identity is found again by walking the frames behind it.

/// Why entries that were received can't be shipped. The number of a reason stands on disk: never
/// reuse one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DropReason {
    /// The journal reached one of its bounds; the oldest entries made room.
    JournalFull,
    /// The bytes are no frame; counted once per damaged range.
    Malformed,
    /// The engine died while writing the last frame.
    CutShort,
    /// The disk no longer has the bytes, or can't read them; counted once per range.
    DiskError,
    /// Work on the container's stream has panicked; counted once per range.
    InternalError,
    /// They were in memory, and went with their process; counted once per range.
    MemoryLost,
}

impl DropReason {
    /// All reasons, by their number.
    pub(crate) const ALL: [Self; 6] = [
        Self::JournalFull,
        Self::Malformed,
        Self::CutShort,
        Self::DiskError,
        Self::InternalError,
        Self::MemoryLost,
    ];

    /// Returns the name that counters and `Hole` carry.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::JournalFull => "journal_full",
            Self::Malformed => "malformed",
            Self::CutShort => "cut_short",
            Self::DiskError => "disk_error",
            Self::InternalError => "internal_error",
            Self::MemoryLost => "memory_lost",
        }
    }

    /// Returns the reason's number on disk.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::JournalFull => 0,
            Self::Malformed => 1,
            Self::CutShort => 2,
            Self::DiskError => 3,
            Self::InternalError => 4,
            Self::MemoryLost => 5,
        }
    }

    /// Returns the reason with a name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }

    /// Returns the reason with a number.
    pub(crate) fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

/// Dropped entries by reason. On disk there is room for [`Dropped::REASONS_MAX`] reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Dropped([u64; Self::REASONS_MAX]);

impl Dropped {
    /// Reasons that the state file has room for.
    pub(crate) const REASONS_MAX: usize = 8;

    /// Restores what [`Self::by_number`] returned.
    pub(crate) fn from_numbers(entries: [u64; Self::REASONS_MAX]) -> Self {
        Self(entries)
    }

    /// Returns the entries of each reason, by its number.
    pub(crate) fn by_number(&self) -> &[u64; Self::REASONS_MAX] {
        &self.0
    }

    /// Counts dropped entries.
    pub(crate) fn add(&mut self, reason: DropReason, entries: u64) {
        if let Some(count) = self.0.get_mut(usize::from(reason.number())) {
            *count = count.saturating_add(entries);
        }
    }

    /// Returns the entries dropped for all reasons together.
    pub(crate) fn total(&self) -> u64 {
        self.0
            .iter()
            .fold(0, |sum: u64, &count| sum.saturating_add(count))
    }

    /// Returns each reason that dropped something.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL
            .into_iter()
            .zip(self.0)
            .filter(|&(_, entries)| entries > 0)
    }
}

/// Counters of one journal. Entries, absolute since the journal began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counters {
    /// Acknowledged as delivered to CLS.
    pub(crate) delivered: u64,
    /// Acknowledged as filtered by an option.
    pub(crate) filtered: u64,
    /// Acknowledged as put into the dead-letter store.
    pub(crate) dead_lettered: u64,
    /// Dropped by the driver.
    pub(crate) dropped: Dropped,
}

impl Counters {
    /// Returns all entries that these counters account for.
    pub(crate) fn total(&self) -> u64 {
        self.delivered
            .saturating_add(self.filtered)
            .saturating_add(self.dead_lettered)
            .saturating_add(self.dropped.total())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_found_by_its_number() {
        for reason in DropReason::ALL {
            assert_eq!(DropReason::from_number(reason.number()), Some(reason));
            assert_eq!(DropReason::from_name(reason.as_str()), Some(reason));
        }
        assert_eq!(DropReason::from_number(6), None);
        assert_eq!(DropReason::from_name("none"), None);
    }

    #[test]
    fn the_total_counts_every_fate() {
        let mut counters = Counters {
            delivered: 1,
            filtered: 10,
            dead_lettered: 100,
            dropped: Dropped::default(),
        };
        counters.dropped.add(DropReason::JournalFull, 1_000);
        counters.dropped.add(DropReason::CutShort, 10_000);
        assert_eq!(counters.total(), 11_111);
        let listed: Vec<_> = counters.dropped.iter().collect();
        assert_eq!(
            listed,
            [
                (DropReason::JournalFull, 1_000),
                (DropReason::CutShort, 10_000)
            ]
        );
    }
}
