//! What the process shows of itself.

pub mod ledger;
pub mod metrics;
