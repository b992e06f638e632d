//! What the Docker engine says, and what it is answered: the plugin API, start, stop, and recovery
//! after this process has ended without the engine's knowledge.

mod containers;
mod error;
mod http;
mod recover;
mod request;
mod start;
mod stop;

pub(crate) use containers::{Containers, STARTS_MAX, Settings};
pub use http::BindError;
pub(crate) use http::{bind, serve};
