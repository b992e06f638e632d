//! A workload that logs: a static binary for containers without anything else in them. Every line
//! is known in advance (`world::chatter`). SIGTERM ends it at once, also as process 1.

use anyhow::bail;
use clap::Parser;
use std::time::Duration;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, sleep_until};
use world::chatter::{self, INTERLEAVED_BYTES, Shape, Step};

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
    /// Writes each line to stdout in pieces of 64 KiB, and after each piece a line to stderr.
    #[arg(long, conflicts_with_all = ["json", "stderr", "rate", "no_last_newline"])]
    interleave: bool,
    /// Does these steps instead: `out:TEXT`, `err:TEXT`, `pause:MS`.
    #[arg(long, num_args = 1.., value_name = "STEP")]
    say: Vec<Step>,
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
    } else if !args.say.is_empty() {
        say(&args.say).await?;
    } else if args.interleave {
        write_interleaved(args).await?;
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
    for (is_stderr, line) in chatter::demo() {
        if is_stderr {
            write_now(tokio::io::stderr(), &[&line, "\n"]).await?;
        } else {
            write_now(tokio::io::stdout(), &[&line, "\n"]).await?;
        }
        sleep(Duration::from_millis(300)).await;
    }
    Ok(())
}

async fn say(steps: &[Step]) -> anyhow::Result<()> {
    for step in steps {
        match step {
            Step::Out(text) => write_now(tokio::io::stdout(), &[text, "\n"]).await?,
            Step::Err(text) => write_now(tokio::io::stderr(), &[text, "\n"]).await?,
            Step::Pause(pause) => sleep(*pause).await,
        }
    }
    Ok(())
}

/// Writes lines to stdout, and in the midst of them lines of [`chatter::PLAIN_BYTES_MIN`] to
/// stderr, numbered as if they were alone.
async fn write_interleaved(args: &Args) -> anyhow::Result<()> {
    let mut stderr_lines = 0_u64..;
    for number in args.first..args.first.saturating_add(args.lines) {
        let line = Shape::Plain { bytes: args.bytes }.line(number);
        let mut rest = line.as_str();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.len().min(INTERLEAVED_BYTES));
            rest = after;
            let end = if rest.is_empty() { "\n" } else { "" };
            write_now(tokio::io::stdout(), &[piece, end]).await?;
            let number = stderr_lines.next().unwrap_or_default();
            let short = Shape::Plain { bytes: 0 }.line(number);
            write_now(tokio::io::stderr(), &[&short, "\n"]).await?;
        }
    }
    Ok(())
}

/// Writes texts, and returns when they are out.
async fn write_now(mut output: impl AsyncWrite + Unpin, texts: &[&str]) -> anyhow::Result<()> {
    output.write_all(texts.concat().as_bytes()).await?;
    output.flush().await?;
    Ok(())
}
