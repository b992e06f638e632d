//! The driver's own messages: one line each on stdout, which the engine puts into its log.
//!
//! The engine stops reading a plugin that writes a line of 64 KiB, and then every later write
//! blocks for ever. So lines are cut at [`LINE_BYTES_MAX`], and written by a thread of their own
//! behind a bounded queue: when stdout blocks, messages are dropped and counted, and nothing else
//! notices.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use proto::text;

/// Bytes of a line; the rest of it is cut off.
const LINE_BYTES_MAX: usize = 16 << 10;

/// How often one place speaks, at most.
const SPEAK_INTERVAL_SECONDS: u64 = 10;

/// Lines that wait for stdout.
const LINES_MAX: usize = 256;

/// Sends the process's messages to stdout, from a level on.
///
/// # Errors
/// If the kernel gives no thread, or messages already go elsewhere.
pub fn init(level: tracing::Level) -> io::Result<()> {
    let (lines, queue) = sync_channel(LINES_MAX);
    let dropped_count = Arc::new(AtomicU64::new(0));
    let writer = LineQueue {
        lines,
        dropped_count: Arc::clone(&dropped_count),
    };
    std::thread::Builder::new()
        .name("stdout".into())
        .stack_size(128 << 10)
        .spawn(move || write_lines(&queue, &dropped_count, io::stdout()))?;
    tracing_subscriber::fmt()
        .with_max_level(level)
        // The engine adds the time itself.
        .without_time()
        .with_target(false)
        .with_ansi(false)
        .compact()
        .with_writer(move || writer.clone())
        .try_init()
        .map_err(io::Error::other)
}

/// Bounds how often one place in the code speaks: for whatever a container, a peer or a disk can
/// cause again and again.
pub(crate) struct Throttle {
    next_at: AtomicU64,
    suppressed_count: AtomicU64,
}

impl Throttle {
    /// Returns one that has not spoken.
    pub(crate) const fn new() -> Self {
        Self {
            next_at: AtomicU64::new(0),
            suppressed_count: AtomicU64::new(0),
        }
    }

    /// Returns how often the place was silent since it last spoke, if it may speak again.
    pub(crate) fn pass(&self) -> Option<u64> {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse).tv_sec;
        self.pass_at(u64::try_from(now).unwrap_or(0))
    }

    fn pass_at(&self, now_seconds: u64) -> Option<u64> {
        let next = now_seconds.saturating_add(SPEAK_INTERVAL_SECONDS);
        let passed = self
            .next_at
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |at| {
                (at <= now_seconds).then_some(next)
            });
        match passed {
            Ok(_) => Some(self.suppressed_count.swap(0, Ordering::Relaxed)),
            Err(_) => {
                self.suppressed_count.fetch_add(1, Ordering::Relaxed);
                None
            }
        }
    }
}

/// Takes whole lines: the subscriber writes each message with one call.
#[derive(Clone)]
struct LineQueue {
    lines: SyncSender<Vec<u8>>,
    dropped_count: Arc<AtomicU64>,
}

impl Write for LineQueue {
    fn write(&mut self, message: &[u8]) -> io::Result<usize> {
        let line = text::line(message.get(..LINE_BYTES_MAX).unwrap_or(message));
        match self.lines.try_send(line) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.dropped_count.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(message.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_lines(queue: &Receiver<Vec<u8>>, dropped_count: &AtomicU64, mut out: impl Write) {
    while let Ok(mut line) = queue.recv() {
        if line.last() != Some(&b'\n') {
            line.push(b'\n');
        }
        let dropped_count = dropped_count.swap(0, Ordering::Relaxed);
        let note = match dropped_count {
            0 => Vec::new(),
            _ => {
                format!(" WARN messages dropped because stdout was blocked count={dropped_count}\n")
                    .into_bytes()
            }
        };
        // There is no one to tell.
        out.write_all(&note).ok();
        out.write_all(&line).and_then(|()| out.flush()).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_stdout_drops_lines_and_counts_them() {
        let (lines, queue) = sync_channel(LINES_MAX);
        let dropped_count = Arc::new(AtomicU64::new(0));
        let mut writer = LineQueue {
            lines,
            dropped_count: Arc::clone(&dropped_count),
        };
        for _ in 0..LINES_MAX + 3 {
            writer.write_all(b"line\n").unwrap();
        }
        writer.write_all(b"").unwrap();
        drop(writer);
        let mut out = Vec::new();
        write_lines(&queue, &dropped_count, &mut out);
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with(" WARN messages dropped because stdout was blocked count=3\n"));
        assert_eq!(text.lines().count(), LINES_MAX + 1);
    }

    #[test]
    fn a_throttled_place_speaks_once_an_interval_and_counts_its_silence() {
        let throttle = Throttle::new();
        assert_eq!(throttle.pass_at(100), Some(0));
        assert_eq!(throttle.pass_at(100), None);
        assert_eq!(throttle.pass_at(99 + SPEAK_INTERVAL_SECONDS), None);
        assert_eq!(throttle.pass_at(100 + SPEAK_INTERVAL_SECONDS), Some(2));
        assert_eq!(throttle.pass_at(101 + SPEAK_INTERVAL_SECONDS), None);
    }

    #[test]
    fn a_line_never_reaches_the_engine_s_bound() {
        let (lines, queue) = sync_channel(LINES_MAX);
        let dropped_count = Arc::new(AtomicU64::new(0));
        let mut writer = LineQueue {
            lines,
            dropped_count: Arc::clone(&dropped_count),
        };
        for bytes in [
            LINE_BYTES_MAX - 1,
            LINE_BYTES_MAX,
            LINE_BYTES_MAX + 1,
            100_000,
        ] {
            writer.write_all(&vec![b'x'; bytes]).unwrap();
        }
        drop(writer);
        let mut out = Vec::new();
        write_lines(&queue, &dropped_count, &mut out);
        let lengths: Vec<_> = out.split(|&byte| byte == b'\n').map(<[u8]>::len).collect();
        assert_eq!(
            lengths,
            [
                LINE_BYTES_MAX - 1,
                LINE_BYTES_MAX,
                LINE_BYTES_MAX,
                LINE_BYTES_MAX,
                0
            ]
        );
    }
}
