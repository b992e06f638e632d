//! The right to use the machine: tests of one binary that measure time, or load the machine fully,
//! take turns.

use tokio::sync::{Mutex, MutexGuard};

static TURN: Mutex<()> = Mutex::const_new(());

/// Waits for the right to use the machine.
pub async fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().await
}

/// Takes the right to use the machine, for a test without a runtime.
///
/// # Panics
/// Within a runtime.
pub fn turn_without_runtime() -> MutexGuard<'static, ()> {
    TURN.blocking_lock()
}
