//! Why a container is not taken on.

use crate::isolate::Panicked;
use crate::journal;
use crate::pump::FifoError;
use crate::table::RecordError;
use proto::limits::OPEN_BYTES_MAX;
use proto::log_opts::LogOptsError;
use std::path::PathBuf;

/// A container was not taken on. Nothing is left of the attempt; the text is what the user of
/// `docker run` reads.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The engine repeated a request without its body (moby `pkg/plugins/client.go`).
    #[error("the request has no body")]
    EmptyBody,
    /// The body can't be read.
    #[error("the request is not understood: {0}")]
    Json(#[from] serde_json::Error),
    /// The request lacks what a stream needs.
    #[error("the request's {field} is {value:?}, it must be {rule}")]
    Field {
        /// Which.
        field: &'static str,
        /// Its value.
        value: String,
        /// What it should be.
        rule: &'static str,
    },
    /// The log options are bad.
    #[error(transparent)]
    Options(#[from] LogOptsError),
    /// The container says more of itself than a message carries.
    #[error(
        "log options and details of the container are {bytes} bytes, the limit is {OPEN_BYTES_MAX}"
    )]
    TooLarge {
        /// Bytes.
        bytes: usize,
    },
    /// The shipper says that the options can't work.
    #[error("{}", .faults.join("; "))]
    Refused {
        /// The faults, one sentence each.
        faults: Vec<String>,
    },
    /// The FIFO can't be read.
    #[error("{}", crate::chain::Chain(.0))]
    Fifo(#[from] FifoError),
    /// The container could not be recorded.
    #[error("could not record the container in {}: {source}", folder.display())]
    Record {
        /// The stream's folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There are entries, and nothing says whose.
    #[error("the folder holds a journal and no record of its container")]
    NoRecord,
    /// The journal could not be opened.
    #[error("{}", crate::chain::Chain(.0))]
    Journal(#[from] journal::OpenError),
    /// Work on it has panicked.
    #[error(transparent)]
    Panicked(#[from] Panicked),
    /// There are no file descriptors for it: a container whose FIFO is not read can't be stopped.
    #[error(
        "no file descriptors are left for a further container: {taken} are taken by others, \
         {needed} are needed, {max} are for containers; raise the engine's LimitNOFILE"
    )]
    Descriptors {
        /// What other containers take.
        taken: u64,
        /// What this one would take.
        needed: u64,
        /// What there are for all containers.
        max: u64,
    },
}

impl StartError {
    /// Returns whether a record on disk is damaged, rather than the disk not to be read now.
    pub(super) fn is_damage(&self) -> bool {
        match self {
            Self::Json(_) | Self::Field { .. } | Self::TooLarge { .. } | Self::NoRecord => true,
            Self::EmptyBody
            | Self::Options(_)
            | Self::Refused { .. }
            | Self::Fifo(_)
            | Self::Record { .. }
            | Self::Journal(_)
            | Self::Panicked(_)
            | Self::Descriptors { .. } => false,
        }
    }
}

impl From<RecordError> for StartError {
    fn from(error: RecordError) -> Self {
        match error {
            RecordError::Json(error) => Self::Json(error),
            RecordError::Read { path, source } => Self::Record {
                folder: path,
                source,
            },
        }
    }
}
