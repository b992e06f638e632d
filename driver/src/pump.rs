//! Moves every container's bytes from its FIFO into its journal, on one thread.

mod beat;
mod commands;
mod discard;
mod fifo;
mod full_journal;
mod pipes;
mod thread;
mod worker;

pub(crate) use commands::PumpHandle;
pub(crate) use fifo::{Fifo, FifoError, open as open_fifo};
pub(crate) use thread::Pump;
pub use thread::PumpError;
