//! What the cases with any number of drivers and shippers share, which is in the library.

pub(crate) use world::fleet::*;
