//! File descriptors: how many this process may have, and what they are for.
//!
//! Whoever runs out of them reads no FIFO and answers no engine, so their use is bounded from the
//! start: a container that is running takes [`STREAM`] (its FIFO, the state file, and the newest two
//! segments; older ones are opened to be read), one that is over takes [`ENDED_STREAM`], and a start
//! for which none are left is refused. The engine's connections have a share of their own.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What a running container takes.
pub(crate) const STREAM: u64 = 4;

/// What a running container whose journal is in memory takes: nothing of that can be closed.
pub(crate) const MEMORY_STREAM: u64 = 20;

/// What a container takes that is over, and not shipped yet: its files are opened when they are needed.
pub(crate) const ENDED_STREAM: u64 = 0;

/// What the process itself takes: the runtime, the pump, the shipper's connection, and files that
/// are open for a moment. Measured: 15 at rest.
const PROCESS: u64 = 24;

/// Connections of the engine served at once; it has one for each call that is under way.
const CONNECTIONS_MAX: u64 = 256;

/// Raises the limit of this process to what it may raise it to: a plugin inherits the engine's,
/// and a soft limit of 1024 is common, for the sake of programs that use `select`.
///
/// # Errors
/// The kernel's; the limit is as before.
pub fn raise_limit() -> std::io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    Ok(setrlimit(Resource::Nofile, raised)?)
}

/// Returns how many this process may have.
pub(crate) fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Returns how many connections of the engine are served at once.
pub(crate) fn connections_max(limit: u64) -> u64 {
    (limit / 8).clamp(1, CONNECTIONS_MAX)
}

/// Returns how many all streams may take together.
pub(crate) fn streams_max(limit: u64) -> u64 {
    limit.saturating_sub(connections_max(limit) + PROCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_usual_limit_is_shared_out_in_full() {
        for (limit, connections, containers) in [
            (32, 4, 1),
            (64, 8, 8),
            (1024, 128, 218),
            (1 << 20, 256, 262_074),
            (u64::MAX, 256, (u64::MAX - 280) / 4),
            (0, 1, 0),
        ] {
            assert_eq!(connections_max(limit), connections, "{limit}");
            assert_eq!(streams_max(limit) / STREAM, containers, "{limit}");
        }
    }
}
