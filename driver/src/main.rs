//! The driver process.
fn main() {}
