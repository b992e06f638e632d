//! A host's call: who makes it, its streams, and their way to the lanes.

mod age;
pub mod arrival;
mod hints;
mod host_clock;
mod opening;
mod runs;
pub mod service;
mod session;
pub mod shared;
mod stream;
