//! The shipper behind its wire: a driver's side of the call played by hand, a stand-in for CLS
//! behind it. What a driver may rely on, and what happens when it breaks the contract.

mod bounds;
mod call;
mod connections;
mod contract;
mod entries;
mod options;
mod outages;
mod pieces;
mod reloads;
mod reports;
mod site;
mod stops;
mod tenants;
mod windows;

pub(crate) use call::{Call, chunk, open};
