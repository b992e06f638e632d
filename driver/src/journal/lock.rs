//! The lock of a journal's parts. Who panics with it leaves a journal that nobody is to use: who takes it next
//! panics, too, and is caught (`isolate`).

use std::sync::{Mutex, MutexGuard};

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no work on this journal has panicked")
}
