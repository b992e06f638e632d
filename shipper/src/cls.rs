//! Tencent Cloud CLS's upload protocol: body, compression, signature, request, and what an answer
//! asks us to do. Nothing here retries or waits.
//!
//! Source of the protocol: CLS API document 614/16873 (upload), 614/12445 (signature), 614/12402
//! (errors), 614/87660 (limits).

pub mod body;
pub mod compress;
pub mod credentials;
pub mod disposition;
pub mod encode;
pub mod endpoint;
pub mod request;
pub mod sign;
