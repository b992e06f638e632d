//! The only HTTP: requests to CLS and to the services that give keys.

pub mod client;
pub mod road;
mod skew;
