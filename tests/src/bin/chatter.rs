//! A workload that logs: a static binary for containers without anything else in them. Every line
//! is known in advance (`world::chatter`). SIGTERM ends it at once, also as process 1.

use anyhow::bail;
use clap::Parser;
use std::time::Duration;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, sleep_until};
use world::chatter::{self, Shape};

/// Writes lines that are known in advance.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Lines to write.
    #[arg(long, default_value_t = 10)]
    lines: u64,
    /// Number of the first line.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Bytes of a line without its line end.
    #[arg(long, default_value_t = 64)]
    bytes: usize,
    /// Lines per second; 0 is as fast as possible.
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// Writes JSON objects.
    #[arg(long)]
    json: bool,
    /// Writes to stderr.
    #[arg(long)]
    stderr: bool,
    /// Writes no line end after the last line.
    #[arg(long)]
    no_last_newline: bool,
    /// Stays after the last line until it is told to end.
    #[arg(long)]
    hold: bool,
    /// Writes a few lines of every kind instead, with a pause after each.
    #[arg(long)]
    demo: bool,
    /// Exit status after the last line.
    #[arg(long, default_value_t = 0)]
    status: u8,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<std::process::ExitCode> {
    let args = Args::parse();
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        written = write(&args) => written?,
        _ = terminate.recv() => {}
    }
    Ok(args.status.into())
}

async fn write(args: &Args) -> anyhow::Result<()> {
    if args.demo {
        write_demo().await?;
    } else if args.stderr {
        write_lines(args, tokio::io::stderr()).await?;
    } else {
        write_lines(args, tokio::io::stdout()).await?;
    }
    if args.hold {
        std::future::pending::<()>().await;
    }
    Ok(())
}

/// Bytes of lines that are written at once when no rate is asked for.
const BLOCK_BYTES: usize = 64 << 10;
/// Time between writes when a rate is asked for.
const TICK: Duration = Duration::from_millis(10);

async fn write_lines(args: &Args, mut output: impl AsyncWrite + Unpin) -> anyhow::Result<()> {
    let shape = match args.json {
        true => Shape::Json,
        false => Shape::Plain { bytes: args.bytes },
    };
    let Some(end) = args.first.checked_add(args.lines) else {
        bail!(
            "--first {} and --lines {}: the sum is too large",
            args.first,
            args.lines
        );
    };
    let start = Instant::now();
    let mut block = String::with_capacity(BLOCK_BYTES * 2);
    let mut next = args.first;
    while next < end {
        let due = end.min(
            args.first
                .saturating_add(due_lines(args.rate, start.elapsed())),
        );
        while next < due && block.len() < BLOCK_BYTES {
            shape.append(next, &mut block);
            next += 1;
            if next < end || !args.no_last_newline {
                block.push('\n');
            }
        }
        output.write_all(block.as_bytes()).await?;
        output.flush().await?;
        block.clear();
        if next == due && next < end {
            sleep_until(Instant::now() + TICK).await;
        }
    }
    Ok(())
}

/// Returns the lines that should have been written after this time; the first is due at once.
fn due_lines(rate: u64, elapsed: Duration) -> u64 {
    if rate == 0 {
        return u64::MAX;
    }
    let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
    rate.saturating_mul(millis) / 1000 + 1
}

async fn write_demo() -> anyhow::Result<()> {
    for (is_stderr, mut line) in chatter::demo() {
        line.push('\n');
        if is_stderr {
            tokio::io::stderr().write_all(line.as_bytes()).await?;
        } else {
            let mut stdout = tokio::io::stdout();
            stdout.write_all(line.as_bytes()).await?;
            stdout.flush().await?;
        }
        sleep(Duration::from_millis(300)).await;
    }
    Ok(())
}
