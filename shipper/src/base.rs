//! What every room may use, and that knows no other one.

pub mod buffers;
pub mod chain;
pub mod clock;
pub mod pem;
pub mod phase;
pub mod secret;
pub mod tasks;
pub mod watched;
