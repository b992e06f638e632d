//! All cases in one test binary: real processes, no mocks but the cloud.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a panic fails a case, helpers are part of cases, and a failed case shows its output"
)]

mod bench;
mod conservation;
mod cores;
mod dead_letters;
mod deploy;
mod fleet;
mod hosts;
mod lanes;
mod official_sdk;
mod outage;
mod python;
mod relay;
mod reload;
mod restart;
mod rotation;
mod simulation;
mod standin;
mod strangers;
mod tidy;
mod transport;
mod world;
