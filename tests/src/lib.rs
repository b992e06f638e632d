//! The world in which the product is tested: a stand-in for the cloud, a fake engine, the
//! product's own processes, and an oracle that says whether what left one end is what reached the
//! other.

pub mod authority;
pub mod bench;
pub mod chatter;
pub mod client;
pub mod dockerd;
pub mod fleet;
pub mod metadata;
pub mod nodes;
pub mod oracle;
pub mod processes;
pub mod proxy;
pub mod script;
pub mod standin;
pub mod tally;
pub mod thin_link;
pub mod turn;
