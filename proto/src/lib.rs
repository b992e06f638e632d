//! The contract between driver and shipper, and nothing else: the wire, Docker's framing, the log
//! options, and every bound that both sides rely on. Nothing here does IO.

pub mod backoff;
pub mod codec;
pub mod frame;
pub mod go_regex;
pub mod limits;
pub mod log_opts;

/// The messages and service of `relay.proto`.
pub mod relay {
    #![allow(
        clippy::allow_attributes_without_reason,
        clippy::missing_errors_doc,
        clippy::too_many_lines,
        unreachable_pub,
        reason = "generated"
    )]
    tonic::include_proto!("relay.v1");
}

mod redacted;

#[cfg(test)]
mod golden;
