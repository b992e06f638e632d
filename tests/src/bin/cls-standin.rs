//! The stand-in for CLS.
fn main() {}
