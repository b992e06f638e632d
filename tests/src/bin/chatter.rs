//! A workload that logs: a static binary for containers without anything else in them. Every line
//! is known in advance (`world::chatter`). SIGTERM ends it at once, also as process 1.

use anyhow::bail;
use clap::Parser;
use proto::frame::Source;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use world::chatter::{self, INTERLEAVED_BYTES, Shape, Step};
use world::tally::Teller;

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
    /// Writes lines of its own per start instead, one in ten to stderr with `--both`, and tells in
    /// this folder how many they were. SIGTERM ends it, and SIGUSR1 lets it rest until SIGUSR2,
    /// each between two lines.
    #[arg(long, value_name = "FOLDER", requires = "name")]
    tally: Option<PathBuf>,
    /// What `--tally` calls the container.
    #[arg(long)]
    name: Option<String>,
    /// Lets `--tally` write to both outputs.
    #[arg(long, requires = "tally")]
    both: bool,
    /// Exit status after the last line.
    #[arg(long, default_value_t = 0)]
    status: u8,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<std::process::ExitCode> {
    let args = Args::parse();
    if let Some((folder, name)) = args.tally.as_ref().zip(args.name.as_ref()) {
        write_tallied(&args, folder, name).await?;
        return Ok(args.status.into());
    }
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

/// Of so many lines, one goes to stderr with `--both`.
const STDERR_EVERY: u64 = 10;

/// Writes whole lines until it is told to end, or has written all and does not hold.
async fn write_tallied(args: &Args, folder: &Path, name: &str) -> anyhow::Result<()> {
    let mut orders = Orders::new()?;
    let mut teller = Teller::begin(folder, name, args.bytes)?;
    let start = Instant::now();
    let mut next = 0;
    let (mut out, mut err, mut line) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        let due = args.lines.min(due_lines(args.rate, start.elapsed()));
        while next < due && out.len() + err.len() < BLOCK_BYTES {
            next += 1;
            let is_stderr = args.both && next % STDERR_EVERY == 0;
            let (source, block) = match is_stderr {
                true => (Source::Stderr, &mut err),
                false => (Source::Stdout, &mut out),
            };
            teller.next(source, &mut line);
            block.extend_from_slice(&line);
        }
        write_block(tokio::io::stdout(), &mut out).await?;
        write_block(tokio::io::stderr(), &mut err).await?;
        let pause = match next {
            _ if next < due => Duration::ZERO,
            _ if next < args.lines => TICK,
            _ if args.hold => Duration::MAX,
            _ => break,
        };
        match timeout(pause, orders.next()).await {
            Ok(Order::End) => break,
            Ok(Order::Rest) => {
                teller.rest(true)?;
                let order = orders.next_but_rest().await;
                teller.rest(false)?;
                if order == Order::End {
                    break;
                }
            }
            Ok(Order::GoOn) | Err(_) => {}
        }
    }
    Ok(teller.end()?)
}

/// Writes a block of lines and empties it.
async fn write_block(
    mut output: impl AsyncWrite + Unpin,
    block: &mut Vec<u8>,
) -> anyhow::Result<()> {
    if !block.is_empty() {
        output.write_all(block).await?;
        output.flush().await?;
        block.clear();
    }
    Ok(())
}

/// What a signal says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    End,
    Rest,
    GoOn,
}

/// The signals that are orders.
struct Orders {
    terminate: Signal,
    rest: Signal,
    go_on: Signal,
}

impl Orders {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            rest: signal(SignalKind::user_defined1())?,
            go_on: signal(SignalKind::user_defined2())?,
        })
    }

    async fn next(&mut self) -> Order {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => Order::End,
            _ = self.rest.recv() => Order::Rest,
            _ = self.go_on.recv() => Order::GoOn,
        }
    }

    async fn next_but_rest(&mut self) -> Order {
        loop {
            match self.next().await {
                Order::Rest => {}
                order => return order,
            }
        }
    }
}

/// Writes texts, and returns when they are out.
async fn write_now(mut output: impl AsyncWrite + Unpin, texts: &[&str]) -> anyhow::Result<()> {
    output.write_all(texts.concat().as_bytes()).await?;
    output.flush().await?;
    Ok(())
}
