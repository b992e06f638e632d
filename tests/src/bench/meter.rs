//! What a process uses, as the kernel counts it: processor time, context switches, memory.
//!
//! - Processor time is the process's own clock (`clock_getcpuclockid(3)`), in nanoseconds, threads
//!   that have ended included.
//! - Context switches are counted per thread and are gone with it, so they are looked at often and
//!   what was seen last of each thread is kept.
//! - Memory is the most that was ever resident (`VmHWM`), and the pages of memory files (`memfd`),
//!   which are resident but belong to no process until it maps them.

use anyhow::Context as _;
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

/// Looks at one process.
#[derive(Debug)]
pub struct Meter {
    proc: PathBuf,
    clock: nix::time::ClockId,
    switches: HashMap<String, u64>,
    memfd_bytes_max: u64,
}

/// What a process has used since it began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    /// Processor time of all its threads.
    pub cpu: Duration,
    /// Context switches of all its threads, voluntary or not.
    pub switches: u64,
}

/// The most memory that a process had.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Resident bytes.
    pub rss_bytes: u64,
    /// Bytes of memory files.
    pub memfd_bytes: u64,
}

impl Meter {
    /// Returns a meter of a process.
    ///
    /// # Errors
    /// If there is none.
    pub fn new(pid: u32) -> anyhow::Result<Self> {
        let raw = i32::try_from(pid).context("ids of processes are small")?;
        let clock = nix::time::clock_getcpuclockid(nix::unistd::Pid::from_raw(raw))
            .with_context(|| format!("the clock of process {pid}"))?;
        Ok(Self {
            proc: format!("/proc/{pid}").into(),
            clock,
            switches: HashMap::new(),
            memfd_bytes_max: 0,
        })
    }

    /// Returns what the process has used until now.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn used(&mut self) -> anyhow::Result<Used> {
        let cpu = nix::time::clock_gettime(self.clock)?;
        self.look_at_threads()?;
        Ok(Used {
            cpu: cpu.into(),
            switches: self.switches.values().sum(),
        })
    }

    /// Notes what is gone later: switches of threads, and memory files.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn look(&mut self) -> anyhow::Result<()> {
        self.look_at_threads()?;
        let mut bytes = 0;
        for entry in fs::read_dir(self.proc.join("fd"))? {
            let path = entry?.path();
            // Descriptors come and go.
            let target = fs::read_link(&path).unwrap_or_default();
            if target.to_string_lossy().starts_with("/memfd:") {
                let blocks = fs::metadata(&path).map_or(0, |metadata| metadata.blocks());
                bytes += blocks * BLOCK_BYTES;
            }
        }
        self.memfd_bytes_max = self.memfd_bytes_max.max(bytes);
        Ok(())
    }

    /// Returns the most memory that the process had, of memory files as far as it was looked at.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn memory(&self) -> anyhow::Result<Memory> {
        let status = fs::read_to_string(self.proc.join("status"))?;
        let rss_kib = parse_status(&status, "VmHWM:").context("VmHWM is in /proc/PID/status")?;
        Ok(Memory {
            rss_bytes: rss_kib << 10,
            memfd_bytes: self.memfd_bytes_max,
        })
    }

    fn look_at_threads(&mut self) -> anyhow::Result<()> {
        for entry in fs::read_dir(self.proc.join("task"))? {
            let entry = entry?;
            // A thread may end between the two looks.
            let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
            if let Some(switches) = parse_switches(&status) {
                let thread = entry.file_name().to_string_lossy().into_owned();
                self.switches.insert(thread, switches);
            }
        }
        Ok(())
    }
}

impl Used {
    /// Returns what was used since an earlier look.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(earlier.cpu),
            switches: self.switches.saturating_sub(earlier.switches),
        }
    }
}

/// What `st_blocks` counts.
const BLOCK_BYTES: u64 = 512;

fn parse_switches(status: &str) -> Option<u64> {
    let voluntary = parse_status(status, "voluntary_ctxt_switches:")?;
    Some(voluntary + parse_status(status, "nonvoluntary_ctxt_switches:")?)
}

/// Returns the number behind a key of `/proc/PID/status`.
fn parse_status(status: &str, key: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(key))?;
    value.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::MemfdFlags;
    use std::io::Write as _;

    #[test]
    fn status_is_parsed() {
        let status = "Name:\tx\nVmHWM:\t    2048 kB\nvoluntary_ctxt_switches:\t5\n\
                      nonvoluntary_ctxt_switches:\t7\n";
        assert_eq!(parse_status(status, "VmHWM:"), Some(2_048));
        assert_eq!(parse_status(status, "VmRSS:"), None);
        assert_eq!(parse_switches(status), Some(12));
        assert_eq!(parse_switches(""), None);
    }

    #[test]
    fn a_process_is_measured() {
        let mut meter = Meter::new(std::process::id()).unwrap();
        let before = meter.used().unwrap();
        let memfd = rustix::fs::memfd_create("meter", MemfdFlags::CLOEXEC).unwrap();
        let mut memfd = fs::File::from(memfd);
        memfd.write_all(&vec![1; 3 << 20]).unwrap();
        meter.look().unwrap();
        // Threads that are over keep what they used.
        std::thread::spawn(|| (0..2_000_000_u64).map(std::hint::black_box).sum::<u64>())
            .join()
            .unwrap();
        let used = meter.used().unwrap().since(&before);
        assert!(used.cpu > Duration::from_micros(100), "{used:?}");
        let memory = meter.memory().unwrap();
        assert!(memory.memfd_bytes >= 3 << 20, "{memory:?}");
        assert!(memory.rss_bytes > 1 << 20, "{memory:?}");
    }

    #[test]
    fn a_process_that_is_not_there_has_no_meter() {
        // Beyond the largest id that the kernel gives.
        assert!(Meter::new((1 << 22) + 1).is_err());
    }
}
