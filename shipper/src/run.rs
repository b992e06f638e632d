//! From a configuration file to a running process.

pub(crate) mod assemble;
pub mod config_file;
#[cfg(any(test, feature = "fuzz"))]
pub mod rehearsal;
