//! The configuration file, followed while the process runs.
//!
//! It is read again on SIGHUP, and when it has changed: that is looked at every [`LOOK_PERIOD`] by
//! what `stat` says, which also sees a symlink swap (as Kubernetes does with mounted files). A file
//! with faults changes nothing: its faults are logged, once per change, and what was in use stays in
//! use.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::sync::mpsc;
use tracing::{error, info};

use crate::base::chain::Chain;
use crate::base::watched::Stamp;
use crate::config::{Config, ConfigError};

/// How often the file is looked at: one `stat`.
const LOOK_PERIOD: Duration = Duration::from_secs(2);

/// A configuration file and the variables that override it.
pub struct ConfigFile {
    path: PathBuf,
    environment: Vec<(String, String)>,
    /// What the file was when it was last read.
    stamp: Option<Stamp>,
}

/// Shows the path only: variables hold keys.
impl fmt::Debug for ConfigFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigFile")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl ConfigFile {
    /// Names a file; nothing is read yet.
    pub fn new(path: PathBuf, environment: impl Iterator<Item = (String, String)>) -> Self {
        Self {
            path,
            environment: environment.collect(),
            stamp: None,
        }
    }

    /// Reads and checks the file.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load(&mut self) -> Result<Config, ConfigError> {
        // Before the file is read: what changes meanwhile is seen at the next look.
        self.stamp = Stamp::of(&self.path).ok();
        Config::load(&self.path, self.environment.iter().cloned())
    }

    /// Sends the configuration whenever it was read again and is good, until nobody receives it.
    pub async fn follow(mut self, mut hangup: Signal, reloads: mpsc::Sender<Config>) {
        let mut look = tokio::time::interval(LOOK_PERIOD);
        loop {
            tokio::select! {
                Some(()) = hangup.recv() => {}
                _ = look.tick() => {
                    if self.stamp == Stamp::of(&self.path).ok() {
                        continue;
                    }
                }
            }
            match self.load() {
                Ok(config) => {
                    info!(path = %self.path.display(), "configuration read again");
                    if reloads.send(config).await.is_err() {
                        return;
                    }
                }
                Err(error) => error!(error = %Chain(&error),
                    "the configuration can't be used, the one before stays in use"),
            }
        }
    }
}
