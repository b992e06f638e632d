//! One upload request, before it is signed.

use std::time::Duration;

use bytes::Bytes;

use super::compress::Compression;
use super::credentials::Credentials;
use super::endpoint::Endpoint;
use super::sign;

/// Path of uploads (document 614/16873).
pub const UPLOAD_PATH: &str = "/structuredlog";

/// Where a lane's batches go.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// The endpoint.
    pub endpoint: Endpoint,
    /// The topic.
    pub topic_id: String,
}

impl Target {
    /// Returns the URL of its uploads.
    pub fn url(&self) -> String {
        let mut url = format!("{}{UPLOAD_PATH}?topic_id=", self.endpoint);
        sign::percent_encode(&self.topic_id, &mut url);
        url
    }
}

/// One compressed batch, as it is sent at each attempt.
#[derive(Debug, Clone)]
pub struct Body {
    /// The compressed `LogGroupList`.
    pub bytes: Bytes,
    /// How it is compressed.
    pub compression: Compression,
}

/// One upload request.
#[derive(Debug, Clone, Copy)]
pub struct Upload<'a> {
    /// Where it goes.
    pub target: &'a Target,
    /// Who signs it.
    pub credentials: &'a Credentials,
    /// What it is.
    pub body: &'a Body,
    /// Bound of the whole request.
    pub timeout: Duration,
    /// The wall clock in UNIX seconds, for the signature.
    pub now_s: u64,
}
