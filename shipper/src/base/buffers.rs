//! Byte buffers that are used again: a warm buffer costs a third of a fresh one, whose pages the
//! kernel has to map and clear.

use std::sync::{Mutex, PoisonError};

/// Buffers that wait for their next use. Beyond it they are freed: what a burst needed is given
/// back to the machine.
const IDLE_COUNT_MAX: usize = 8;

/// A larger buffer is freed at once: it belonged to one unusual record or batch.
const IDLE_BYTES_MAX: usize = 2 << 20;

/// A stock of empty buffers.
#[derive(Debug, Default)]
pub struct Buffers {
    idle: Mutex<Vec<Vec<u8>>>,
}

impl Buffers {
    /// Returns an empty buffer, with the capacity of its last use if there is one.
    pub fn take(&self) -> Vec<u8> {
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop()
            .unwrap_or_default()
    }

    /// Gives a buffer back.
    pub fn give(&self, mut buffer: Vec<u8>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_COUNT_MAX && buffer.capacity() <= IDLE_BYTES_MAX {
            buffer.clear();
            idle.push(buffer);
        }
    }
}
