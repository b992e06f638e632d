//! The way to a shipper: which one, one call for all streams of the host, and what it says.
//!
//! ```text
//! endpoints ─▶ connect ─▶ session ─▶ gather ─▶ request ─▶ shipper
//!                            ▲          ▲                    │
//!                            └──────────┴─────── acks ───────┘
//! ```

mod call_stream;
mod check;
mod connect;
mod connect_log;
mod draft;
mod endpoints;
mod explain;
mod forwarder;
mod gather;
mod idle_notice;
mod pass;
mod reports;
mod resolve;
mod session;

pub(crate) use check::{Checker, connection};
pub(crate) use forwarder::Forwarder;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) use gather::{GatherOutput, Gatherer};
pub(crate) use session::FINISH_WAIT_MAX;
