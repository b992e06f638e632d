//! The shipper process.
fn main() {}
