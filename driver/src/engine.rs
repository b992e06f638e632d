//! What the Docker engine says, and what it is answered: the plugin API, start, stop, and recovery
//! after this process has ended without the engine's knowledge.

mod containers;
mod error;
mod http;
mod orphans;
mod recover;
mod request;
mod socket;
mod start;
mod stop;

pub(crate) use containers::{Containers, STARTS_MAX, Settings};
pub(crate) use http::serve;
pub use socket::BindError;
pub(crate) use socket::{SocketLock, bind};
