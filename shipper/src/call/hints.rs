//! What the records of a container show of its options, told once: text in another encoding, a pattern
//! that fits no line, a form that lines do not have.

use proto::relay::Container;
use tracing::warn;

use crate::call::shared::Shared;
use crate::record::{Counts, Formatter};

/// The hints of one stream.
pub(super) struct Hints {
    container_id: String,
    container_name: String,
    /// Looked at before anything else, since runs are many.
    is_told: [bool; 3],
}

impl Hints {
    pub(super) fn new(container: &Container) -> Self {
        Self {
            container_id: container.id.clone(),
            container_name: container.name.clone(),
            is_told: [false; 3],
        }
    }

    /// Tells what a run shows, unless a run before it did.
    pub(super) fn look(
        &mut self,
        host: &str,
        counts: &Counts,
        formatter: &Formatter,
        shared: &Shared,
    ) {
        if counts.escaped_logs > 0 && self.is_new(0, host, shared) {
            warn!(
                host,
                container = self.container_name,
                "lines have bytes that are no UTF-8, and show them as \\xNN: if they are text in another \
                 encoding, name it by the log option encoding, for example encoding=gbk"
            );
        }
        self.look_at_form(host, counts, shared);
        if formatter.lacks_first_line() && self.is_new(1, host, shared) {
            warn!(
                host,
                container = self.container_name,
                "multiline-pattern has matched none of the container's first lines: records end by their \
                 age, and are marked as parts"
            );
        }
    }

    /// Tells of lines that are not what `parse` says.
    fn look_at_form(&mut self, host: &str, counts: &Counts, shared: &Shared) {
        if counts.unparsed_logs > 0 && self.is_new(2, host, shared) {
            warn!(
                host,
                container = self.container_name,
                "lines are not of the form that the log option parse names: they stay whole in content, and \
                 their records have the field LogParseFailure"
            );
        }
    }

    /// Whether the hint was not told of this container before, by this call or an earlier one.
    fn is_new(&mut self, hint: usize, host: &str, shared: &Shared) -> bool {
        let is_told = self
            .is_told
            .get_mut(hint)
            .is_none_or(|told| std::mem::replace(told, true));
        !is_told
            && shared
                .warned
                .is_new(host, &format!("{} {hint}", self.container_id))
    }
}
