//! The only HTTP: requests to CLS and to the services that give keys.

pub mod client;
mod skew;
