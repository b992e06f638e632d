//! What the benchmark is made of: it measures what a line costs driver and shipper, beside a program
//! that only reads and counts.
//!
//! ```text
//! load ▸ lines ▸ writing ▸ FIFOs ▸ (driver ▸ shipper ▸ stand-in ▸ arrivals) or floor
//!                                   meter, calls ▸ run ▸ figures ▸ bill, table
//! ```
//!
//! Processor time is read from the clock that the kernel keeps for each process, so that other work
//! on the machine distorts it little; latency and lines per second depend on what else runs.

pub mod arrivals;
pub mod bill;
pub mod builds;
pub mod calls;
pub mod figures;
pub mod floor;
pub mod lines;
pub mod load;
pub mod meter;
pub mod run;
pub mod table;
pub mod writing;
