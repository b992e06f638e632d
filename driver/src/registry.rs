//! All streams of this process. The pump, the relay and upkeep know each other only through it.
//!
//! A stream enters when its FIFO is opened, and leaves when a shipper has acknowledged its end, with which
//! its last counters went; at once if nothing was ever received.

mod shared;
mod signals;
mod streams;

pub(crate) use shared::Shared;
pub(crate) use signals::Signals;
pub(crate) use streams::{LeftoverFolder, Registry, owner};
