//! Uploads: what a lane seals is cut, sent, repeated and at last delivered, or put aside.
//!
//! `lanes` starts a lane's task, `batch` carries one batch to its end, `cut` makes its bodies, `pace`
//! and `concurrency` say how many requests a lane may have on the wire and `wire` how many all may, `report` says what went wrong,
//! `letters` keeps what CLS will never take, `replay` sends it later.

pub mod batch;
pub mod concurrency;
mod cut;
pub mod lanes;
pub mod letters;
pub mod pace;
pub mod replay;
mod report;
pub mod wire;

#[cfg(test)]
mod tests;
