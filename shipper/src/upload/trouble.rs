//! Whose fault a failure is: the lane's, or that of one batch. Pure.
//!
//! A batch that fails alone says nothing of CLS. So each batch remembers how much of its lane had got
//! through when it last failed: if more has since, others pass, and the failure is its own. Such a one
//! makes the lane no slower, and after a few the batch is *at fault*: it is cut until the records at fault
//! are alone, and those wait aside.
//!
//! While nothing gets through, CLS is taken to be down, and no batch is cut for that: it would cost a
//! request per record, and the order of their contexts. But every batch may hold a record that is always
//! refused, or all may be too large for a gateway. So after some failures one batch of the lane *probes*: it
//! is cut as well, into [`PARTS_BLIND_MAX`] parts at most, between its groups first. What gets through of it
//! is the news that the others need.

/// Failures of its own after which a batch is at fault.
const OWN_FAILURES: u32 = 2;

/// Failures while nothing gets through after which a batch may probe.
const FAILURES_BEFORE_PROBE: u32 = 5;

/// The same, before a probe cuts inside a group, whose context ends there: with the delays between them
/// most of a minute.
const FAILURES_BEFORE_INNER_PROBE: u32 = 9;

/// Parts of a batch beyond which it is cut only if others pass.
const PARTS_BLIND_MAX: usize = 16;

/// What the failures of one batch say.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    failures: u32,
    own_failures: u32,
    /// Deliveries of the lane at the last failure.
    delivered: Option<u64>,
    others_pass: bool,
}

/// Whose a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blame {
    /// That of all that go to CLS.
    Lane,
    /// That of this batch, while others pass.
    Batch,
}

/// What is to become of a part that has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// It is sent again as it is.
    Repeat,
    /// The other parts of its batch come first.
    Behind,
    /// It is cut, or waits aside if it can't be.
    Cut,
}

impl Trouble {
    /// Counts a failure, at which the lane has had `delivered` deliveries. Returns whose it is.
    pub(super) fn fail(&mut self, delivered: u64) -> Blame {
        self.failures = self.failures.saturating_add(1);
        self.others_pass = self.delivered.is_some_and(|before| before < delivered);
        self.delivered = Some(delivered);
        if self.others_pass {
            self.own_failures = self.own_failures.saturating_add(1);
        }
        match self.others_pass || self.is_at_fault() {
            true => Blame::Batch,
            false => Blame::Lane,
        }
    }

    /// Returns whether others got through before each of the last failures that count.
    pub(super) fn is_at_fault(&self) -> bool {
        self.own_failures >= OWN_FAILURES
    }

    /// Returns whether the last failure was the first one that is the batch's own.
    pub(super) fn is_first_of_its_own(&self) -> bool {
        self.others_pass && self.own_failures == 1
    }

    /// Returns whether nothing had got through before the last failure since the one before it.
    pub(super) fn is_blind(&self) -> bool {
        !self.others_pass
    }

    /// Returns whether it would help to probe with this batch, if no other one does.
    pub(super) fn may_probe(&self) -> bool {
        !self.is_at_fault() && self.failures >= FAILURES_BEFORE_PROBE
    }

    /// Returns what is to become of a part of `group_count` groups that has failed just now, in a batch
    /// that has been cut into `part_count`.
    pub(super) fn next(&self, group_count: usize, part_count: usize, is_probe: bool) -> Next {
        let may_cut = if self.is_at_fault() {
            self.others_pass || part_count < PARTS_BLIND_MAX
        } else {
            let is_between = group_count > 1;
            let may_cut_inside = self.failures >= FAILURES_BEFORE_INNER_PROBE;
            is_probe && part_count < PARTS_BLIND_MAX && (is_between || may_cut_inside)
        };
        match (may_cut, part_count) {
            (true, _) => Next::Cut,
            (false, 1) => Next::Repeat,
            (false, _) => Next::Behind,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_batch_is_at_fault_if_it_fails_while_others_pass() {
        let mut trouble = Trouble::default();
        // Deliveries of the lane, whose failure it is then, and what becomes of one part of so many.
        for (delivered, part_count, blame, next) in [
            // The first failure may be anybody's, and nothing has passed before the second.
            (7, 1, Blame::Lane, Next::Repeat),
            (7, 1, Blame::Lane, Next::Repeat),
            (8, 1, Blame::Batch, Next::Repeat),
            (9, 1, Blame::Batch, Next::Cut),
            // Nothing has passed again, which is no news.
            (9, PARTS_BLIND_MAX - 1, Blame::Batch, Next::Cut),
            (9, PARTS_BLIND_MAX, Blame::Batch, Next::Behind),
            (10, PARTS_BLIND_MAX, Blame::Batch, Next::Cut),
        ] {
            assert_eq!(trouble.fail(delivered), blame, "{delivered}");
            assert_eq!(trouble.next(3, part_count, false), next, "{delivered}");
        }
    }

    proptest! {
        /// However long an outage is: what is cut is the batch that probes, into so many parts, and its
        /// groups stay whole for most of a minute.
        #[test]
        fn an_outage_cuts_one_batch_into_few_parts(
            failures in 1_u32..200, groups in 1_usize..11, parts in 1_usize..40, is_probe: bool
        ) {
            let mut trouble = Trouble::default();
            for _ in 0..failures {
                prop_assert_eq!(trouble.fail(5), Blame::Lane);
            }
            prop_assert!(!trouble.is_at_fault());
            let is_cut = trouble.next(groups, parts, is_probe) == Next::Cut;
            prop_assert!(!is_cut || is_probe && parts < PARTS_BLIND_MAX);
            prop_assert!(!is_cut || groups > 1 || failures >= FAILURES_BEFORE_INNER_PROBE);
            prop_assert!(!trouble.may_probe() || failures >= FAILURES_BEFORE_PROBE);
        }
    }
}
