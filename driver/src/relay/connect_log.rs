//! What is reported of endpoints that are of no use: once per outage, however long it lasts.

use super::endpoints::Candidate;
use super::explain::Explanation;

/// What is wrong with the candidates, since one of them was useful.
#[derive(Debug, Default)]
pub(super) struct ConnectLog {
    /// One sentence each.
    found: Vec<String>,
    /// By endpoint: addresses come and go, and their order is one of chance.
    kinds: Vec<String>,
    /// The kinds that were reported last: an outage of hours is reported once.
    reported: Vec<String>,
    /// Candidates that took a connection and no call.
    refusing: Vec<String>,
}

impl ConnectLog {
    pub(super) fn failed(&mut self, candidate: &Candidate, why: &Explanation) {
        tracing::debug!(endpoint = %candidate, %why, "an endpoint is of no use");
        self.found.push(format!("{candidate}: {why}"));
        self.kinds
            .push(format!("{}: {}", candidate.endpoint, why.kind()));
    }

    /// Says what was found, if it is news, and begins anew.
    pub(super) fn report_if_new(&mut self) {
        let causes = std::mem::take(&mut self.found).join("; ");
        let mut kinds = std::mem::take(&mut self.kinds);
        kinds.sort_unstable();
        kinds.dedup();
        if self.reported != kinds {
            tracing::warn!(
                causes,
                "no shipper can be reached; entries stay in the journals"
            );
        }
        self.reported = kinds;
    }

    /// Says that there is a connection, unless this candidate refuses calls: it may do so for hours.
    pub(super) fn connected(&mut self, candidate: &Candidate) {
        let name = candidate.to_string();
        let count = self.refusing.len();
        self.refusing.retain(|refusing| *refusing != name);
        if self.refusing.len() == count {
            tracing::info!(endpoint = %candidate, "connected to a shipper");
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Notes that a candidate took a connection and no call.
    pub(super) fn refused_call(&mut self, candidate: &Candidate) {
        self.refusing.push(candidate.to_string());
    }

    /// Returns how many candidates failed since the last report.
    pub(super) fn failed_count(&self) -> usize {
        self.found.len()
    }
}
