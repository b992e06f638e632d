//! The tasks of the process: spawned in one place, so that a panic is seen and a stop can wait.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};
use tracing::error;

/// A set of tasks that anyone who holds it can add to.
#[derive(Debug, Default)]
pub struct Tasks {
    set: Mutex<JoinSet<()>>,
}

impl Tasks {
    /// Spawns a task. Finished ones are reaped on the way, so the set holds what runs.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut set = self.set.lock().unwrap_or_else(PoisonError::into_inner);
        set.spawn(task);
        while let Some(ended) = set.try_join_next() {
            report(ended);
        }
    }

    /// Waits until all tasks have ended, also those that they spawn, or aborts them after `grace`.
    /// Returns whether they ended by themselves.
    pub async fn finish(&self, grace: Duration) -> bool {
        let all = async {
            loop {
                let mut set = self.take();
                if set.is_empty() {
                    return;
                }
                while let Some(ended) = set.join_next().await {
                    report(ended);
                }
            }
        };
        let is_done = tokio::time::timeout(grace, all).await.is_ok();
        self.take().abort_all();
        is_done
    }

    fn take(&self) -> JoinSet<()> {
        std::mem::take(&mut *self.set.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn report(ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        error!(%error, "a task panicked; its work is repeated from the drivers' journals");
    }
}
