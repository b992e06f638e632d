//! The contract between driver and shipper, and nothing else: the wire, Docker's framing, the log
//! options, and every bound that both sides rely on. Nothing here does IO.

pub mod backoff;
pub mod codec;
pub mod frame;
pub mod go_regex;
pub mod limits;
pub mod log_opts;
mod redacted;
pub mod relay;
pub mod text;

#[cfg(test)]
mod golden;
