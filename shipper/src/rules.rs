//! What holds for a host and for a container: its tenant, and where its options lead.

pub mod effective;
pub mod fallback;
pub mod route;
pub mod tenant;
