//! Measures what a line costs: real driver and shipper processes, a fake engine, and a stand-in for
//! CLS that checks and discards; and, in turns with them, a program that only reads and counts.
//!
//! ```text
//! make bench
//! make bench BENCH="--load 1x1000 --load 1-flat --against ../before"
//! ```
//!
//! It measures the programs beside it, or those in `CLS_BIN_DIR`; it builds nothing. What each figure
//! is, `world::bench` says.

use anyhow::Context as _;
use clap::Parser;
use serde::Serialize;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use world::bench::bill::Prices;
use world::bench::builds::{Build, Settings, default_folder, program_in};
use world::bench::calls::Counter;
use world::bench::figures::Figures;
use world::bench::lines::Pool;
use world::bench::load::{self, Load};
use world::bench::run::{self, Plan};
use world::bench::table::{self, FLOOR, Measured};

/// Measures processor time, context switches, system calls, requests, latency and memory of driver
/// and shipper, for a row of loads. All loads take about ten minutes.
#[derive(Debug, Parser)]
struct Args {
    /// A load to measure, several times for several; all if absent. A wrong name lists them.
    #[arg(long, value_name = "NAME")]
    load: Vec<String>,
    /// Runs of each load, of which the median is shown.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds for which a paced load is measured in each run.
    #[arg(long, default_value_t = 2.5)]
    seconds: f64,
    /// Folder with cls-driver and cls-shipper of another build, which is run in turns with this one.
    #[arg(long, value_name = "DIR")]
    against: Vec<PathBuf>,
    /// Prints one JSON object instead of tables.
    #[arg(long)]
    json: bool,
    /// Counts no system calls, which takes a run of its own.
    #[arg(long)]
    no_calls: bool,
    /// Measures no floor.
    #[arg(long)]
    no_floor: bool,
    /// A key of the shipper's `[upload]` for all builds, as TOML: 'linger_ms = 10'.
    #[arg(long, value_name = "KEY = VALUE")]
    upload: Vec<String>,
    /// A variable of the driver for all builds.
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    driver: Vec<(String, String)>,
    #[command(flatten)]
    prices: Prices,
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("the form is NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// What is printed as JSON.
#[derive(Debug, Serialize)]
struct Report<'a> {
    rounds: usize,
    seconds: f64,
    cores: usize,
    loads: &'a [Measured],
}

/// Who is measured in turns.
#[derive(Debug)]
struct Subjects {
    folder: PathBuf,
    has_floor: bool,
    builds: Vec<Build>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let loads = load::named(&args.load)?;
    let subjects = Subjects::find(&args)?;
    let settings = Settings {
        upload: args.upload.clone(),
        driver: args.driver.clone(),
    };
    let counter = Counter::find().filter(|_| !args.no_calls);
    if counter.is_none() && !args.no_calls {
        writeln!(
            io::stderr(),
            "no perf and no strace: system calls are not counted"
        )?;
    }
    let mut all = Vec::new();
    for load in loads {
        all.push(measure(load, &args, &subjects, &settings, counter).await?);
    }
    if args.json {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let report = Report {
            rounds: args.rounds,
            seconds: args.seconds,
            cores,
            loads: &all,
        };
        writeln!(io::stdout(), "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        print_tables(&all, &args)?;
    }
    Ok(())
}

impl Subjects {
    fn find(args: &Args) -> anyhow::Result<Self> {
        let folder = default_folder()?;
        let mut builds = vec![Build::in_folder("this", &folder)?];
        for other in &args.against {
            let name = other.file_name().context("--against names a folder")?;
            builds.push(Build::in_folder(&name.to_string_lossy(), other)?);
        }
        if !args.no_floor {
            program_in(&folder, "cls-bench-floor")?;
        }
        Ok(Self {
            folder,
            has_floor: !args.no_floor,
            builds,
        })
    }

    /// Runs all in turns, and returns their figures in the order of [`Self::names`].
    async fn run(&self, plan: &Plan<'_>) -> anyhow::Result<Vec<Figures>> {
        let mut figures = Vec::new();
        if self.has_floor {
            figures.push(run::run_floor(plan, &self.folder).await?);
        }
        for build in &self.builds {
            let of_build = run::run_build(plan, build).await;
            figures.push(of_build.with_context(|| format!("{}: {}", plan.load.name, build.name))?);
        }
        Ok(figures)
    }

    fn names(&self) -> Vec<String> {
        let floor = self.has_floor.then(|| FLOOR.to_owned());
        let builds = self.builds.iter().map(|build| build.name.clone());
        floor.into_iter().chain(builds).collect()
    }
}

async fn measure(
    load: Load,
    args: &Args,
    subjects: &Subjects,
    settings: &Settings,
    counter: Option<Counter>,
) -> anyhow::Result<Measured> {
    let mut plan = Plan {
        load,
        pool: Arc::new(Pool::new(load.kind)),
        time: Duration::try_from_secs_f64(args.seconds)?,
        settings,
        counter: None,
    };
    let names = subjects.names();
    let mut runs = vec![Vec::new(); names.len()];
    for round in 1..=args.rounds {
        writeln!(
            io::stderr(),
            "{}: round {round} of {}",
            load.name,
            args.rounds
        )?;
        for (runs, figures) in runs.iter_mut().zip(subjects.run(&plan).await?) {
            runs.push(figures);
        }
    }
    let mut measured = Measured::new(&load);
    let medians = runs.iter().map(|runs| Figures::medians(runs));
    measured.subjects = names.into_iter().zip(medians).collect();
    if counter.is_some() {
        plan.counter = counter;
        let counted = subjects.run(&plan).await?;
        for ((_, medians), counted) in measured.subjects.iter_mut().zip(counted) {
            medians.merge(counted.only("_calls_per_s"));
        }
    }
    Ok(measured)
}

fn print_tables(all: &[Measured], args: &Args) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{}", table::of_cost(all))?;
    writeln!(stdout, "{}", table::of_delivery(all))?;
    writeln!(stdout, "{}", table::of_bill(all, &args.prices))?;
    if !args.against.is_empty() {
        writeln!(
            stdout,
            "This build's figures, divided by those of the other:\n"
        )?;
        writeln!(stdout, "{}", table::of_ratios(all))?;
    }
    Ok(())
}
