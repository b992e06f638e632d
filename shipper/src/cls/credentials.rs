//! What a request is signed with.

use crate::base::secret::Secret;

/// Takes white space and a byte order mark from around what stands for a part of a key: an editor or a
/// shell put it there, and no key has it.
pub fn trimmed(text: &str) -> Secret {
    let is_around = |char: char| char.is_whitespace() || char == '\u{feff}';
    Secret::new(text.trim_matches(is_around).to_owned())
}

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
    /// Returns why no request can be signed with the pair, without a word of it.
    pub fn fault(&self) -> Option<String> {
        let parts = [
            ("secret_id", Some(&self.id)),
            ("secret_key", Some(&self.key)),
            ("token", self.token.as_ref()),
        ];
        parts.into_iter().find_map(|(name, part)| {
            let text = part?.expose();
            let quotes = ['"', '\'', '`'];
            let fault = if text.is_empty() {
                "is empty"
            } else if text.starts_with(quotes) || text.ends_with(quotes) {
                "has quotes in it, which are no part of a key"
            } else if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
                "has a character that no HTTP header can carry"
            } else {
                return None;
            };
            Some(format!("{name} {fault}"))
        })
    }

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
