//! Key pairs: where they come from, and which one signs at each attempt.

pub mod fetch;
mod file;
pub mod store;
mod temporary;
