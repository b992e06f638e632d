//! What a request is signed with.

use crate::base::secret::Secret;

/// One key pair, with the session token of a temporary one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Credentials {
    /// `SecretId`.
    pub id: Secret,
    /// `SecretKey`.
    pub key: Secret,
    /// Token of a temporary key pair (STS).
    pub token: Option<Secret>,
}

impl Credentials {
    /// Returns `text` without any part of the pair: an answer can quote what it refuses.
    pub fn redact(&self, text: &str) -> String {
        let secrets = [Some(&self.id), Some(&self.key), self.token.as_ref()];
        let mut redacted = text.to_owned();
        for secret in secrets.into_iter().flatten() {
            if !secret.expose().is_empty() {
                redacted = redacted.replace(secret.expose(), "[redacted]");
            }
        }
        redacted
    }
}
