//! The messages and service of `relay.proto`.
#![allow(
    clippy::allow_attributes_without_reason,
    clippy::missing_errors_doc,
    clippy::too_many_lines,
    unreachable_pub,
    reason = "generated"
)]

tonic::include_proto!("relay.v1");
