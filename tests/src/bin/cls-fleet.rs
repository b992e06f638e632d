//! Measures what many hosts cost one shipper: a real driver process per host, all of them on TCP to one
//! real shipper, and a stand-in that checks and discards.
//!
//! ```text
//! cargo run --release -p world --bin cls-fleet -- --hosts 200 --streams 20
//! ```
//!
//! With `--hold` CLS answers nothing until all is written: the shipper then holds all that its windows
//! let it, which is the most memory that it ever needs. The drivers' CPU includes their start.

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use serde_json::Value;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use world::client;
use world::dockerd::{Info, Pipe};
use world::nodes::{Driver, Shipper, ShipperSettings};
use world::processes::{SECRET_ID, SECRET_KEY, free_address, start_standin};
use world::script::Script;

/// Measures processor time and memory of one shipper that serves many hosts.
#[derive(Debug, Clone, Copy, Parser)]
struct Args {
    /// Hosts, each a driver.
    #[arg(long, default_value_t = 200)]
    hosts: u32,
    /// Containers of each host.
    #[arg(long, default_value_t = 20)]
    streams: u32,
    /// Lines of each container.
    #[arg(long, default_value_t = 60)]
    lines: u64,
    /// Bytes of a line.
    #[arg(long, default_value_t = 200)]
    line_bytes: usize,
    /// Lines per second of each container.
    #[arg(long, default_value_t = 1)]
    rate: u32,
    /// CLS answers nothing until all lines are written.
    #[arg(long)]
    hold: bool,
    /// Fails if the shipper's memory exceeds this many MiB at any time.
    #[arg(long)]
    rss_mib_max: Option<u64>,
}

/// A host, and the containers that write on it.
struct Host {
    driver: Driver,
    containers: Vec<(Script, Pipe)>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let dir = tempfile::tempdir()?;
    let (_standin, cls) = start_standin(dir.path(), &["--discard", "--no-quota"]).await?;
    let relay = free_address()?;
    let shipper = Shipper::start(settings(cls, relay)).await?;
    let mut hosts = Vec::new();
    for number in 0..args.hosts {
        hosts.push(start_host(number, relay, &args).await?);
    }
    let process = shipper.process.as_ref().context("the shipper runs")?;
    let idle = process.usage()?;
    if args.hold {
        client::call(cls, "POST", "/fault?kind=stall").await?;
    }
    let began = Instant::now();
    let mut drivers = Vec::new();
    let mut writers = Vec::new();
    for host in hosts {
        drivers.push(host.driver);
        let containers = host.containers;
        writers.push(std::thread::spawn(move || write(containers, args.rate)));
    }
    let _pipes = finish(writers).await?;
    if args.hold {
        // The windows fill within moments of the last line.
        sleep(Duration::from_secs(5)).await;
        client::call(cls, "DELETE", "/fault").await?;
    }
    let lines = u64::from(args.hosts) * u64::from(args.streams) * args.lines;
    wait_for_records(cls, lines).await?;
    let took = began.elapsed();
    let used = process.usage()?;
    let (driver_rss_bytes_max, driver_cpu) = usage_of(&drivers)?;
    let mut stdout = io::stdout().lock();
    writeln!(
        stdout,
        "{} hosts × {} streams, {lines} lines in {:.1} s, {} hosts connected\n\
         shipper: {} MiB idle, {} MiB max, {:.2} s of CPU ({:.1} µs per line)\n\
         a driver: {:.1} MiB max, {:.2} s of CPU",
        args.hosts,
        args.streams,
        took.as_secs_f64(),
        shipper.metric("cls_shipper_hosts").await?,
        idle.rss_bytes_max >> 20,
        used.rss_bytes_max >> 20,
        (used.cpu - idle.cpu).as_secs_f64(),
        micros_per_line(used.cpu - idle.cpu, lines),
        mib(driver_rss_bytes_max),
        driver_cpu.as_secs_f64() / f64::from(args.hosts),
    )?;
    let bound = args.rss_mib_max.unwrap_or(u64::MAX);
    ensure!(
        used.rss_bytes_max >> 20 <= bound,
        "the shipper's memory exceeds {bound} MiB"
    );
    Ok(())
}

/// Returns the most memory that one of the drivers had, and the processor time of all.
fn usage_of(drivers: &[Driver]) -> anyhow::Result<(u64, Duration)> {
    let mut rss_bytes_max = 0;
    let mut cpu = Duration::ZERO;
    for driver in drivers {
        let usage = driver.process.usage()?;
        rss_bytes_max = usage.rss_bytes_max.max(rss_bytes_max);
        cpu += usage.cpu;
    }
    Ok((rss_bytes_max, cpu))
}

fn settings(cls: SocketAddr, relay: SocketAddr) -> ShipperSettings {
    ShipperSettings {
        endpoint: format!("http://{cls}"),
        listen: format!("tcp = \"{relay}\""),
        credentials: format!(
            "source = \"inline\"\nsecret_id = \"{SECRET_ID}\"\nsecret_key = \"{SECRET_KEY}\""
        ),
        sections: "[[tenants]]\nname = \"any\"\nanyone = true".to_owned(),
        log_level: "warn",
        netns: None,
        files_max: None,
    }
}

async fn start_host(number: u32, relay: SocketAddr, args: &Args) -> anyhow::Result<Host> {
    let (name, shipper) = (format!("host-{number}"), format!("http://{relay}"));
    let settings = [
        ("HOST_NAME", name.as_str()),
        ("SHIPPER", shipper.as_str()),
        ("LOG_LEVEL", "warn"),
    ];
    let mut driver = Driver::start(&settings).await?;
    let mut containers = Vec::new();
    for stream in 0..args.streams {
        let script = Script::new(&format!("{name}-{stream}"), args.lines, args.line_bytes);
        let info = Info::new(&script.name, &[]);
        let pipe = driver.dockerd.start_logging(&info).await?;
        containers.push((script, pipe));
    }
    Ok(Host { driver, containers })
}

/// Writes a line to each container of a host in turn. Returns the pipes, which keep the FIFOs open.
fn write(mut containers: Vec<(Script, Pipe)>, rate: u32) -> io::Result<Vec<Pipe>> {
    let began = Instant::now();
    let lines = containers
        .first()
        .map_or(0, |(script, _)| script.line_count);
    for number in 0..lines {
        let micros = number.saturating_mul(1_000_000) / u64::from(rate.max(1));
        let due = began + Duration::from_micros(micros);
        pause(due.saturating_duration_since(Instant::now()));
        for (script, pipe) in &mut containers {
            script.write_range(pipe, number..number + 1)?;
        }
    }
    Ok(containers.into_iter().map(|(_, pipe)| pipe).collect())
}

#[allow(
    clippy::disallowed_methods,
    reason = "a thread of its own, which has nothing else to do"
)]
fn pause(time: Duration) {
    std::thread::sleep(time);
}

async fn finish(writers: Vec<JoinHandle<io::Result<Vec<Pipe>>>>) -> anyhow::Result<Vec<Pipe>> {
    let join = move || {
        let mut pipes = Vec::new();
        for writer in writers {
            pipes.extend(writer.join().ok().context("a writer panicked")??);
        }
        Ok(pipes)
    };
    tokio::task::spawn_blocking(join).await?
}

/// Waits until the stand-in has accepted `lines` records; gives up when no more come.
async fn wait_for_records(cls: SocketAddr, lines: u64) -> anyhow::Result<()> {
    const PATIENCE: Duration = Duration::from_secs(60);
    let mut last_growth = Instant::now();
    let mut seen = 0;
    loop {
        let stats: Value = serde_json::from_slice(&client::call(cls, "GET", "/stats").await?)?;
        let records = stats["records"].as_u64().context("records are counted")?;
        if records >= lines {
            ensure!(records == lines, "{records} records of {lines} lines");
            return Ok(());
        }
        if records > seen {
            (seen, last_growth) = (records, Instant::now());
        }
        if last_growth.elapsed() > PATIENCE {
            bail!("{records} of {lines} records after {PATIENCE:?} without a new one");
        }
        sleep(Duration::from_millis(50)).await;
    }
}

fn micros_per_line(cpu: Duration, lines: u64) -> f64 {
    let nanos = u64::try_from(cpu.as_nanos()).unwrap_or(u64::MAX) / lines.max(1);
    f64::from(u32::try_from(nanos).unwrap_or(u32::MAX)) / 1e3
}

fn mib(bytes: u64) -> f64 {
    f64::from(u32::try_from(bytes >> 10).unwrap_or(u32::MAX)) / 1024.0
}
