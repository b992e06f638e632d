//! Measures what a line costs: real driver and shipper processes, a fake engine that writes as fast
//! as it may, and a stand-in that checks and discards.
//!
//! ```text
//! cargo run --release -p world --bin cls-bench -- --streams 50
//! ```
//!
//! Processor time is what the kernel has charged the two processes, in steps of 10 ms, between the
//! first line written and the last record accepted; memory is the most that was ever resident.

use anyhow::{Context as _, bail};
use clap::{Parser, ValueEnum};
use serde::{Deserialize, Serialize};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::time::Instant;
use world::client;
use world::dockerd::{Info, Pipe};
use world::processes::{Host, UploadSettings, Usage, start_standin};
use world::script::{Payload, Script};

/// Measures lines per second, processor time per line and memory of driver and shipper.
#[derive(Debug, Parser)]
struct Args {
    /// Containers that write at once.
    #[arg(long, default_value_t = 1)]
    streams: u32,
    /// Lines of all containers together.
    #[arg(long, default_value_t = 1_000_000)]
    lines: u64,
    /// Bytes of a plain line.
    #[arg(long, default_value_t = 200)]
    line_bytes: usize,
    /// What the lines are; JSON lines have ten members and some 190 bytes.
    #[arg(long, value_enum, default_value_t = PayloadArg::Plain)]
    payload: PayloadArg,
    /// Lines per second of each container; as fast as they are taken if absent.
    #[arg(long)]
    rate: Option<u32>,
    /// Prints one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PayloadArg {
    Plain,
    Json,
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Figures {
    streams: u32,
    lines: u64,
    seconds: f64,
    lines_per_s: f64,
    sent_bytes_per_line: f64,
    driver: ProcessFigures,
    shipper: ProcessFigures,
}

#[derive(Debug, Serialize)]
struct ProcessFigures {
    cpu_us_per_line: f64,
    rss_mib_max: f64,
}

/// What the stand-in counts, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Stats {
    records: u64,
    sent_bytes: u64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let figures = measure(&args).await?;
    if args.json {
        writeln!(io::stdout(), "{}", serde_json::to_string(&figures)?)?;
    } else {
        print_table(&figures)?;
    }
    Ok(())
}

async fn measure(args: &Args) -> anyhow::Result<Figures> {
    let dir = tempfile::tempdir()?;
    let (_standin, address) = start_standin(dir.path(), &["--discard", "--no-quota"]).await?;
    let endpoint = format!("http://{address}");
    let mut host = Host::start(&endpoint, UploadSettings::default()).await?;
    let mut containers = Vec::new();
    for script in scripts(args) {
        let pipe = host
            .dockerd
            .start_logging(&Info::new(&script.name, &[]))
            .await?;
        containers.push((script, pipe));
    }
    let lines = containers.iter().map(|(script, _)| script.line_count).sum();

    let before = usages(&host)?;
    let began = Instant::now();
    let rate = args.rate;
    let writers: Vec<_> = containers
        .into_iter()
        .map(|(script, pipe)| std::thread::spawn(move || write(&script, pipe, rate)))
        .collect();
    let stats = wait_for_records(address, lines).await?;
    let took = began.elapsed();
    let after = usages(&host)?;
    for writer in writers {
        let pipe = writer.join().ok().context("a writer panicked")??;
        host.dockerd.stop_logging(pipe).await?;
    }
    if stats.records > lines {
        bail!("{} records of {lines} lines", stats.records);
    }
    let count = float(lines);
    Ok(Figures {
        streams: args.streams,
        lines,
        seconds: took.as_secs_f64(),
        lines_per_s: count / took.as_secs_f64(),
        sent_bytes_per_line: float(stats.sent_bytes) / count,
        driver: ProcessFigures::new(before.0, after.0, count),
        shipper: ProcessFigures::new(before.1, after.1, count),
    })
}

fn scripts(args: &Args) -> Vec<Script> {
    let streams = args.streams.max(1);
    let script = |stream| Script {
        payload: match args.payload {
            PayloadArg::Plain => Payload::Plain,
            PayloadArg::Json => Payload::Json,
        },
        ..Script::new(
            &format!("s{stream}"),
            args.lines / u64::from(streams),
            args.line_bytes,
        )
    };
    (0..streams).map(script).collect()
}

fn write(script: &Script, mut pipe: Pipe, rate: Option<u32>) -> io::Result<Pipe> {
    script.write(&mut pipe, rate)?;
    Ok(pipe)
}

fn usages(host: &Host) -> anyhow::Result<(Usage, Usage)> {
    let driver = host.driver.as_ref().context("the driver runs")?;
    let shipper = host.shipper.as_ref().context("the shipper runs")?;
    Ok((driver.usage()?, shipper.usage()?))
}

/// Waits until the stand-in has accepted `lines` records; gives up when no more come.
async fn wait_for_records(address: SocketAddr, lines: u64) -> anyhow::Result<Stats> {
    const PATIENCE: Duration = Duration::from_secs(30);
    /// Short beside the time of a run, and long beside what asking costs.
    const POLL_INTERVAL: Duration = Duration::from_millis(5);
    let mut last_growth = Instant::now();
    let mut seen = 0;
    loop {
        let stats = client::call(address, "GET", "/stats").await?;
        let stats: Stats = serde_json::from_slice(&stats)?;
        if stats.records >= lines {
            return Ok(stats);
        }
        if stats.records > seen {
            (seen, last_growth) = (stats.records, Instant::now());
        }
        if last_growth.elapsed() > PATIENCE {
            bail!(
                "{} of {lines} records after {PATIENCE:?} without a new one",
                stats.records
            );
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

impl ProcessFigures {
    fn new(before: Usage, after: Usage, lines: f64) -> Self {
        let cpu = after.cpu.saturating_sub(before.cpu);
        Self {
            cpu_us_per_line: cpu.as_secs_f64() * 1e6 / lines,
            rss_mib_max: float(after.rss_bytes_max >> 10) / 1024.0,
        }
    }
}

/// Returns a count as a number to divide by; counts here are far below 2^52.
fn float(count: u64) -> f64 {
    let high = u32::try_from(count >> 32).unwrap_or(u32::MAX);
    let low = u32::try_from(count & u64::from(u32::MAX)).unwrap_or(u32::MAX);
    f64::from(high) * 4_294_967_296.0 + f64::from(low)
}

fn print_table(figures: &Figures) -> io::Result<()> {
    let Figures {
        streams,
        lines,
        seconds,
        lines_per_s,
        sent_bytes_per_line,
        driver,
        shipper,
    } = figures;
    let mut stdout = io::stdout().lock();
    writeln!(
        stdout,
        "{lines} lines of {streams} streams in {seconds:.2} s: {lines_per_s:.0} lines/s"
    )?;
    writeln!(stdout, "{sent_bytes_per_line:.1} B sent per line")?;
    writeln!(
        stdout,
        "{:8} {:>16} {:>12}",
        "", "CPU µs per line", "RSS MiB max"
    )?;
    for (name, figures) in [("driver", driver), ("shipper", shipper)] {
        let ProcessFigures {
            cpu_us_per_line,
            rss_mib_max,
        } = figures;
        writeln!(
            stdout,
            "{name:8} {cpu_us_per_line:>16.2} {rss_mib_max:>12.1}"
        )?;
    }
    let both = driver.cpu_us_per_line + shipper.cpu_us_per_line;
    writeln!(stdout, "{:8} {both:>16.2}", "both")
}
