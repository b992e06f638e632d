//! The life of the process.

use tokio::sync::watch;

/// Where the process stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Entries are taken.
    Serving,
    /// No more entries are taken; what is in memory is delivered and acknowledged.
    Draining,
    /// Calls end.
    Ended,
}

/// Completes once the process has reached a phase or gone past it.
pub async fn reached(mut phase: watch::Receiver<Phase>, wanted: Phase) {
    let is_reached = |now: &Phase| *now == wanted || *now == Phase::Ended;
    // An error means that the sender is gone, and with it the process.
    phase.wait_for(is_reached).await.ok();
}
