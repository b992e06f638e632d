//! A panic about one container ends that container's stream, and nothing else.
//!
//! Whatever works on one stream does so in [`caught`], mostly by `Stream::isolate`. The lock of something
//! that belongs to one stream alone stays poisoned: who takes it next panics too, and is caught. What all
//! streams share is never half done while its lock is held, so [`lock`] goes on after a panic.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Something has panicked: a bug of the driver.
#[derive(Debug, thiserror::Error)]
#[error("a bug of the driver: {0}")]
pub(crate) struct Panicked(String);

/// Does something, and returns instead of panicking. What it worked on is not to be used again, unless it
/// is never half done.
///
/// # Errors
/// [`Panicked`] with what the panic says.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
        Panicked(text.unwrap_or("it does not say which").to_owned())
    })
}

/// Locks what is never half done while it is locked.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_caught_with_its_text_and_poisons_nothing_that_all_share() {
        let shared = Mutex::new(1);
        let failed: Result<(), _> = caught(|| {
            let _held = lock(&shared);
            panic!("at {}", 7);
        });
        assert_eq!(failed.unwrap_err().to_string(), "a bug of the driver: at 7");
        assert_eq!(*lock(&shared), 1);
        assert_eq!(caught(|| 2).unwrap(), 2);
    }
}
