//! The containers of a load: threads that write lines into FIFOs, evenly paced or as fast as they are
//! taken.

use crate::bench::lines::{Head, Pool};
use crate::bench::load::{Load, Pace};
use crate::dockerd::Pipe;
use crate::standin::Clock;
use anyhow::Context as _;
use proto::frame::Source;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::time::Instant;

/// Threads that write a load.
#[derive(Debug)]
pub struct Writing {
    threads: Vec<JoinHandle<anyhow::Result<Vec<Stream>>>>,
}

/// One container.
#[derive(Debug)]
struct Stream {
    number: u32,
    pipe: Pipe,
    line: Vec<u8>,
}

impl Writing {
    /// Starts to write, to each pipe what a container of `load` writes in `time`.
    pub fn start(load: &Load, pool: &Arc<Pool>, pipes: Vec<Pipe>, time: Duration) -> Self {
        let streams = (0..).zip(pipes).map(|(number, pipe)| Stream {
            number,
            pipe,
            line: Vec::new(),
        });
        let lines = load.lines_of_each(time);
        let pool = pool.clone();
        let threads = match load.pace {
            Pace::Idle | Pace::LinesPerS(_) => {
                let streams: Vec<_> = streams.collect();
                let rate = load.lines_per_s().unwrap_or(1);
                vec![std::thread::spawn(move || {
                    write_paced(streams, &pool, lines, rate)
                })]
            }
            // A thread for each, as the engine has it: a full pipe holds up its own writer alone.
            Pace::Flat(_) => streams
                .map(|stream| {
                    let pool = pool.clone();
                    std::thread::spawn(move || write_flat(stream, &pool, lines))
                })
                .collect(),
        };
        Self { threads }
    }

    /// Returns whether all is written.
    pub fn is_done(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }

    /// Waits until all is written, and returns the pipes, which keep the FIFOs open.
    ///
    /// # Errors
    /// Those of the pipes.
    pub fn finish(self) -> anyhow::Result<Vec<Pipe>> {
        let mut pipes = Vec::new();
        for thread in self.threads {
            let streams = thread.join().ok().context("a writer panicked")??;
            pipes.extend(streams.into_iter().map(|stream| stream.pipe));
        }
        Ok(pipes)
    }
}

impl Stream {
    fn write(&mut self, pool: &Pool, number: u64, clock: &Clock) -> anyhow::Result<()> {
        let now = clock.now();
        let head = Head {
            micros: u64::try_from(now.as_micros())?,
            stream: self.number,
            number: u32::try_from(number)?,
        };
        pool.line(head, &mut self.line);
        let time_nano = i64::try_from(now.as_nanos())?;
        self.pipe
            .write_line(Source::Stdout, time_nano, &self.line)?;
        Ok(())
    }
}

fn write_flat(mut stream: Stream, pool: &Pool, lines: u64) -> anyhow::Result<Vec<Stream>> {
    let clock = Clock::system();
    for number in 0..lines {
        stream.write(pool, number, &clock)?;
    }
    Ok(vec![stream])
}

/// Writes a line of each stream in turn, at `rate` lines per second of all streams together. A writer
/// that is late catches up.
fn write_paced(
    mut streams: Vec<Stream>,
    pool: &Pool,
    lines: u64,
    rate: u64,
) -> anyhow::Result<Vec<Stream>> {
    let clock = Clock::system();
    let began = Instant::now();
    let mut written = 0;
    for number in 0..lines {
        for stream in &mut streams {
            sleep_until(began + Duration::from_micros(written * 1_000_000 / rate));
            stream.write(pool, number, &clock)?;
            written += 1;
        }
    }
    Ok(streams)
}

#[allow(
    clippy::disallowed_methods,
    reason = "no runtime: a thread of its own, which has nothing else to do"
)]
fn sleep_until(moment: Instant) {
    std::thread::sleep(moment.saturating_duration_since(Instant::now()));
}
