//! Lanes: where the records of many streams wait until a batch takes them, and where their delivery
//! comes back as acknowledgements.
//!
//! ```text
//! call ──push──▶ queue ──seal──▶ upload
//!   ◀── outbox ◀── receipts ◀── complete
//! ```

pub mod outbox;
pub mod queue;
pub mod receipts;
pub mod window;
