//! A pass of the gatherer, on a blocking thread.

use super::gather::{GatherOutput, Gatherer};
use tokio::task::JoinHandle;

/// The gatherer, at rest or at work on a blocking thread.
pub(super) enum Pass {
    Idle(Option<Box<Gatherer>>),
    Running(JoinHandle<(Box<Gatherer>, GatherOutput)>),
}

impl Pass {
    pub(super) fn start(
        mut gatherer: Box<Gatherer>,
        work: impl FnOnce(&mut Gatherer) -> GatherOutput + Send + 'static,
    ) -> Self {
        Self::Running(tokio::task::spawn_blocking(move || {
            let output = work(&mut gatherer);
            (gatherer, output)
        }))
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(self, Self::Running(_))
    }

    /// Waits for the work to be done; for ever if there is none.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn done(&mut self) -> Option<GatherOutput> {
        let Self::Running(work) = self else {
            return std::future::pending().await;
        };
        match work.await {
            Ok((gatherer, output)) => {
                *self = Self::Idle(Some(gatherer));
                Some(output)
            }
            Err(error) => {
                tracing::error!(%error, "a pass over the journals has failed");
                *self = Self::Idle(None);
                None
            }
        }
    }

    pub(super) async fn into_gatherer(mut self) -> Option<Box<Gatherer>> {
        if self.is_running() {
            self.done().await;
        }
        match self {
            Self::Idle(gatherer) => gatherer,
            Self::Running(_) => None,
        }
    }
}
