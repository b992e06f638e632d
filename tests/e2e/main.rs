//! End to end: real containers on a real engine, the plugin installed from this tree, a real
//! shipper; only the cloud is a stand-in. Needs root, dockerd, containerd and the product's static
//! binaries; `make test` provides them.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a panic fails a test, helpers are part of tests, and a failed test shows its output"
)]

mod certificates;
mod chaos;
mod crashes;
mod delivery;
mod docker_logs;
mod engine;
mod faults;
mod hardening;
mod hosts;
mod installing;
mod log_options;
mod machine;
mod migration;
mod net;
mod registry;
mod restarts;
mod scene;
mod secrets;
mod swarm;
mod told;
