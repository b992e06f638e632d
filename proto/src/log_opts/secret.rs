//! Text of an option that is never shown.

use std::fmt;

/// What a secret is replaced by wherever options are shown.
pub const MASK: &str = "***";

/// Text that `Debug` does not show.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(String);

impl Secret {
    /// Returns the text. The caller keeps it out of logs, errors and metrics.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}
