//! All streams of this process. The pump, the relay and upkeep know each other only through it.
//!
//! A stream enters when its FIFO is opened, and leaves when everything is acknowledged; its last
//! counters stay until a shipper has confirmed them.

mod finished;
mod shared;
mod signals;
mod streams;

pub(crate) use finished::LeftoverFolder;
pub(crate) use shared::Shared;
pub(crate) use signals::Signals;
pub(crate) use streams::{Registry, owner};
