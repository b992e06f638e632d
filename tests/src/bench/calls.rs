//! How many system calls processes make, counted by `perf stat` in the kernel, which slows them
//! little, or by `strace -c -f`, which slows them much, where there is no perf.

use anyhow::{Context as _, bail};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tokio::time::Instant;

/// The program that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counter {
    /// `perf stat`, by the tracepoint of system calls.
    Perf,
    /// `strace -c -f`.
    Strace,
}

/// Counts the system calls of one process.
#[derive(Debug)]
pub struct Counting {
    counter: Counter,
    child: Child,
    output: PathBuf,
    began: Instant,
}

/// What was counted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Calls {
    /// System calls.
    pub count: u64,
    /// For how long they were counted.
    pub seconds: f64,
}

impl Counter {
    /// Returns the one that works here, if any.
    pub fn find() -> Option<Self> {
        let works = |program: &str, arguments: &[&str]| {
            let mut command = Command::new(program);
            command.args(arguments).stdout(Stdio::null());
            let status = command.stderr(Stdio::null()).status();
            status.is_ok_and(|status| status.success())
        };
        if works("perf", &["stat", "-e", CALLS_EVENT, "true"]) {
            Some(Self::Perf)
        } else if works("strace", &["-c", "-o", "/dev/null", "true"]) {
            Some(Self::Strace)
        } else {
            None
        }
    }
}

const CALLS_EVENT: &str = "raw_syscalls:sys_enter";

impl Counting {
    /// Starts to count the calls of a process, with the counter's output in `folder`.
    ///
    /// # Errors
    /// If the counter can't be started.
    pub fn start(counter: Counter, pid: u32, folder: &Path) -> anyhow::Result<Self> {
        let output = folder.join(format!("calls-{pid}"));
        let pid = pid.to_string();
        let mut command = match counter {
            Counter::Perf => {
                let mut command = Command::new("perf");
                command.args(["stat", "--no-big-num", "-e", CALLS_EVENT, "-p", &pid, "-o"]);
                command
            }
            Counter::Strace => {
                let mut command = Command::new("strace");
                command.args(["-c", "-f", "-p", &pid, "-o"]);
                command
            }
        };
        command.arg(&output).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().context("starting perf or strace")?;
        Ok(Self {
            counter,
            child,
            output,
            began: Instant::now(),
        })
    }

    /// Ends, and returns what was counted.
    ///
    /// # Errors
    /// If the counter says nothing that can be read.
    pub fn finish(mut self) -> anyhow::Result<Calls> {
        let raw = i32::try_from(self.child.id())?;
        let pid = rustix::process::Pid::from_raw(raw).context("a child has a positive id")?;
        rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
        self.child.wait()?;
        let text = std::fs::read_to_string(&self.output)?;
        let calls = match self.counter {
            Counter::Perf => parse_perf(&text),
            Counter::Strace => parse_strace(&text).map(|count| Calls {
                count,
                // It does not say how long it looked.
                seconds: self.began.elapsed().as_secs_f64(),
            }),
        };
        match calls {
            Some(calls) => Ok(calls),
            None => bail!("no number of system calls in {text:?}"),
        }
    }
}

/// Reads what `perf stat` writes: a line that begins with the count, and one with the time. A process
/// that never ran is "not counted".
fn parse_perf(text: &str) -> Option<Calls> {
    let line = |of: &str| text.lines().find(|line| line.contains(of)).map(str::trim);
    let (count, time) = (line(CALLS_EVENT)?, line(" seconds time elapsed")?);
    let first_word = |line: &'_ str| line.split_ascii_whitespace().next().map(str::to_owned);
    let is_counted = !count.starts_with("<not counted>");
    Some(Calls {
        count: match is_counted {
            true => first_word(count)?.parse().ok()?,
            false => 0,
        },
        seconds: first_word(time)?.parse().ok()?,
    })
}

/// Reads the last line of `strace -c`: per cent, seconds, microseconds per call, calls, `total`.
fn parse_strace(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.ends_with(" total"))?;
    line.split_ascii_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read() {
        let perf = "# started on Mon Nov 30\n\n Performance counter stats for process id '7':\n\n\
                    \u{20}            2274      raw_syscalls:sys_enter\n\n\
                    \u{20}      2.500100201 seconds time elapsed\n";
        let expected = Calls {
            count: 2_274,
            seconds: 2.500_100_201,
        };
        assert_eq!(parse_perf(perf), Some(expected));
        let none = parse_perf(&perf.replace("2274", "<not counted>")).unwrap();
        assert_eq!(none.count, 0);
        assert_eq!(parse_perf(&perf.replace("2274", "<not supported>")), None);
        let strace = "% time     seconds  usecs/call     calls    errors syscall\n\
                      ------ ----------- ----------- --------- --------- ----------------\n\
                      \u{20}60.00    0.000300          10        30         1 read\n\
                      ------ ----------- ----------- --------- --------- ----------------\n\
                      100.00    0.000500           7        71         3 total\n";
        assert_eq!(parse_strace(strace), Some(71));
        assert_eq!(parse_strace(""), None);
    }
}
