//! One run of a load: processes start, containers write, and what the processes used meanwhile
//! becomes figures.
//!
//! A paced load is measured from [`WARM_UP`] and [`WARM_UP_PER_STREAM`] after its first line until its
//! last one is written, so that neither start nor end counts; one that is written flat out, from its first line until the last
//! one has arrived.

use crate::bench::arrivals::Arrivals;
use crate::bench::builds::{Build, Settings, program_in};
use crate::bench::calls::{Calls, Counter, Counting};
use crate::bench::figures::{Figures, float};
use crate::bench::floor;
use crate::bench::lines::{Kind, Pool};
use crate::bench::load::{Load, Pace};
use crate::bench::meter::{Meter, Used};
use crate::bench::writing::Writing;
use crate::dockerd::{Info, Pipe};
use crate::processes::{Process, standin_config};
use crate::standin::{Clock, Config};
use crate::standin::{Standin, Stats};
use anyhow::ensure;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

/// Time before a paced load is measured.
pub const WARM_UP: Duration = Duration::from_millis(700);
/// Time more for each container: its first line makes a journal, which the disk must take.
pub const WARM_UP_PER_STREAM: Duration = Duration::from_millis(4);
/// Time between two looks at processes and at what has arrived.
const LOOK_PERIOD: Duration = Duration::from_millis(200);
/// The same while the end of a flat-out load is awaited: short beside the run.
const END_PERIOD: Duration = Duration::from_millis(10);
/// Time without a new line after which the rest counts as lost.
const PATIENCE: Duration = Duration::from_secs(20);
/// Uploads that may wait to be counted.
const UPLOADS_MAX: usize = 64;

/// What runs and how.
#[derive(Debug)]
pub struct Plan<'a> {
    /// The load.
    pub load: Load,
    /// Its lines.
    pub pool: Arc<Pool>,
    /// How long a paced load is measured.
    pub time: Duration,
    /// How the product is set up.
    pub settings: &'a Settings,
    /// Counts system calls, if they are to be counted in this run.
    pub counter: Option<Counter>,
}

/// Runs the floor, whose program is in `folder`.
///
/// # Errors
/// If a process fails, or has not counted every line.
pub async fn run_floor(plan: &Plan<'_>, folder: &Path) -> anyhow::Result<Figures> {
    let temporary = tempfile::tempdir()?;
    let fifos = temporary.path().join("fifos");
    fs::create_dir(&fifos)?;
    let pipes: Result<Vec<_>, _> = (0..plan.load.streams).map(|_| Pipe::make(&fifos)).collect();
    let mut command = Command::new(program_in(folder, "cls-bench-floor")?);
    command.arg(&fifos);
    let mut floor = Process::start("floor", command, temporary.path())?;
    let log = temporary.path().join("floor.log");
    let said = || fs::read_to_string(&log).unwrap_or_default();
    floor
        .wait_ready(async || said().contains(floor::READY))
        .await?;
    let mut watch = Watch::new(&[("floor", &floor)], None)?;
    let pipes = watch.run(plan, pipes?).await?;
    let figures = watch.figures()?;
    let lines = watch.written;
    // The end of all writers is the end of the program.
    drop(pipes);
    // A long line comes in several frames.
    let ended = async || said().contains(" frames");
    crate::processes::wait_until("the floor's count", PATIENCE, ended).await?;
    let is_short = plan.load.kind != Kind::Long;
    ensure!(
        !is_short || said().contains(&format!("\n{lines} frames")),
        "the floor has not counted {lines} lines:\n{}",
        said()
    );
    Ok(figures)
}

/// Runs a build of the product.
///
/// # Errors
/// If a process fails. Lines that are lost are figures.
pub async fn run_build(plan: &Plan<'_>, build: &Build) -> anyhow::Result<Figures> {
    let config = Config {
        discards: true,
        ..standin_config()
    };
    let (sender, uploads) = mpsc::channel(UPLOADS_MAX);
    let address = "127.0.0.1:0".parse()?;
    let standin = Standin::start(address, config, Clock::system(), Some(sender)).await?;
    let arrivals = Arrivals::default();
    let counting = arrivals.clone();
    std::thread::spawn(move || counting.count(uploads));
    let mut pair = build.start(&standin.endpoint(), plan.settings).await?;
    let mut pipes = Vec::new();
    for number in 0..plan.load.streams {
        let info = Info::new(&format!("container-{number}"), &[]);
        pipes.push(pair.dockerd.start_logging(&info).await?);
    }
    let processes = [("driver", &pair.driver), ("shipper", &pair.shipper)];
    let mut watch = Watch::new(&processes, Some(Cloud { standin, arrivals }))?;
    let _pipes = watch.run(plan, pipes).await?;
    watch.figures()
}

/// Where lines arrive.
#[derive(Debug)]
struct Cloud {
    standin: Standin,
    arrivals: Arrivals,
}

/// Watches processes while a load is written.
#[derive(Debug)]
struct Watch {
    meters: Vec<(&'static str, u32, Meter)>,
    cloud: Option<Cloud>,
    /// Lines of the whole run.
    written: u64,
    /// Lines of what is measured.
    lines: f64,
    look: [Look; 2],
    calls: Vec<Calls>,
    folder: TempDir,
}

/// What was used until a moment.
#[derive(Debug, Clone, Default)]
struct Look {
    at: Option<Instant>,
    used: Vec<Used>,
    stats: Stats,
}

impl Watch {
    fn new(processes: &[(&'static str, &Process)], cloud: Option<Cloud>) -> anyhow::Result<Self> {
        let meter = |&(name, process): &(&'static str, &Process)| {
            anyhow::Ok((name, process.id(), Meter::new(process.id())?))
        };
        Ok(Self {
            meters: processes.iter().map(meter).collect::<Result<_, _>>()?,
            cloud,
            written: 0,
            lines: 0.0,
            look: Default::default(),
            calls: Vec::new(),
            folder: tempfile::tempdir()?,
        })
    }

    /// Writes the load and measures. Returns the pipes, which keep the FIFOs open.
    async fn run(&mut self, plan: &Plan<'_>, pipes: Vec<Pipe>) -> anyhow::Result<Vec<Pipe>> {
        let Plan { load, time, .. } = plan;
        let is_flat = matches!(load.pace, Pace::Flat(_));
        let warm_up = if is_flat {
            Duration::ZERO
        } else {
            WARM_UP + WARM_UP_PER_STREAM * load.streams
        };
        self.written = load.lines_of_each(*time + warm_up) * u64::from(load.streams);
        // What the start of processes and containers has left to do is over by then.
        sleep(WARM_UP).await;
        let mut countings = Vec::new();
        if is_flat {
            countings = self.start_counting(plan.counter).await?;
        }
        let writing = Writing::start(load, &plan.pool, pipes, *time + warm_up);
        sleep(warm_up).await;
        if !is_flat {
            countings = self.start_counting(plan.counter).await?;
        }
        if let Some(cloud) = &self.cloud {
            let now = Clock::system().now().as_micros();
            cloud.arrivals.measure_since(u64::try_from(now)?);
        }
        self.look[0] = self.look()?;
        let until = Instant::now() + *time;
        while !writing.is_done() || (load.pace == Pace::Idle && Instant::now() < until) {
            let period = if is_flat { END_PERIOD } else { LOOK_PERIOD };
            sleep(
                period.min(
                    until
                        .saturating_duration_since(Instant::now())
                        .max(END_PERIOD),
                ),
            )
            .await;
            for (_, _, meter) in &mut self.meters {
                meter.look()?;
            }
        }
        if !is_flat {
            self.look[1] = self.look()?;
            self.finish_counting(&mut countings)?;
        }
        let pipes = writing.finish()?;
        self.wait_for_all(&pipes).await?;
        if is_flat {
            self.look[1] = self.look()?;
            self.finish_counting(&mut countings)?;
        }
        self.lines = match load.lines_per_s() {
            Some(rate) => self.seconds() * float(rate),
            None => float(self.written),
        };
        Ok(pipes)
    }

    async fn start_counting(&self, counter: Option<Counter>) -> anyhow::Result<Vec<Counting>> {
        /// Time that a counter needs to attach itself to all threads.
        const ATTACHING: Duration = Duration::from_millis(300);
        let Some(counter) = counter else {
            return Ok(Vec::new());
        };
        let folder: PathBuf = self.folder.path().into();
        let pids = self.meters.iter().map(|(_, pid, _)| *pid);
        let countings = pids.map(|pid| Counting::start(counter, pid, &folder));
        let countings = countings.collect::<Result<_, _>>()?;
        sleep(ATTACHING).await;
        Ok(countings)
    }

    fn finish_counting(&mut self, countings: &mut Vec<Counting>) -> anyhow::Result<()> {
        for counting in countings.drain(..) {
            self.calls.push(counting.finish()?);
        }
        Ok(())
    }

    fn look(&mut self) -> anyhow::Result<Look> {
        let used = self.meters.iter_mut().map(|(_, _, meter)| meter.used());
        Ok(Look {
            at: Some(Instant::now()),
            used: used.collect::<Result<_, _>>()?,
            stats: self
                .cloud
                .as_ref()
                .map(|cloud| cloud.standin.stats())
                .unwrap_or_default(),
        })
    }

    /// Waits until every line has arrived, or none comes any more.
    async fn wait_for_all(&self, pipes: &[Pipe]) -> anyhow::Result<()> {
        let mut last = (0, Instant::now());
        loop {
            let arrived = match &self.cloud {
                Some(cloud) => cloud.arrivals.distinct(),
                None => {
                    let unread = pipes.iter().map(Pipe::unread_bytes);
                    let unread = unread.sum::<Result<u64, _>>()?;
                    if unread == 0 { self.written } else { 0 }
                }
            };
            if arrived >= self.written {
                return Ok(());
            }
            if arrived > last.0 {
                last = (arrived, Instant::now());
            }
            if last.1.elapsed() > PATIENCE {
                return Ok(());
            }
            sleep(END_PERIOD).await;
        }
    }

    fn seconds(&self) -> f64 {
        match (self.look[0].at, self.look[1].at) {
            (Some(from), Some(to)) => (to - from).as_secs_f64(),
            _ => 0.0,
        }
    }

    fn figures(&self) -> anyhow::Result<Figures> {
        let [from, to] = &self.look;
        let seconds = self.seconds();
        let mut figures = Figures::default();
        let mut sums = Used::default();
        for (index, (name, _, meter)) in self.meters.iter().enumerate() {
            let used = to.used[index].since(&from.used[index]);
            let memory = meter.memory()?;
            sums.cpu += used.cpu;
            sums.switches += used.switches;
            set_used(&mut figures, name, used, (seconds, self.lines));
            figures.set(format!("{name}_rss_mib"), mib(memory.rss_bytes));
            figures.set(format!("{name}_memfd_mib"), mib(memory.memfd_bytes));
        }
        set_used(&mut figures, "all", sums, (seconds, self.lines));
        self.set_calls(&mut figures);
        figures.set("lines", self.lines);
        figures.set("seconds", seconds);
        figures.set("lines_per_s", self.lines / seconds);
        if let Some(cloud) = &self.cloud {
            self.set_uploads(&mut figures, seconds);
            figures.merge(cloud.arrivals.figures(self.written));
        }
        Ok(figures)
    }

    /// Notes system calls, if they were counted.
    fn set_calls(&self, figures: &mut Figures) {
        let mut all = 0.0;
        for ((name, _, _), calls) in self.meters.iter().zip(&self.calls) {
            let per_s = float(calls.count) / calls.seconds;
            figures.set(format!("{name}_calls_per_s"), per_s);
            all += per_s;
        }
        if !self.calls.is_empty() {
            figures.set("all_calls_per_s", all);
        }
    }

    /// Notes what CLS bills, from the stand-in's counts.
    fn set_uploads(&self, figures: &mut Figures, seconds: f64) {
        let [from, to] = &self.look;
        let requests = float(to.stats.requests - from.stats.requests);
        figures.set("requests_per_s", requests / seconds);
        let records = float(to.stats.records - from.stats.records);
        if records > 0.0 {
            let per_record = |to, from| float(to - from) / records;
            let (from, to) = (&from.stats, &to.stats);
            figures.set("requests_per_line", requests / records);
            figures.set(
                "sent_bytes_per_line",
                per_record(to.sent_bytes, from.sent_bytes),
            );
            figures.set(
                "plain_bytes_per_line",
                per_record(to.plain_bytes, from.plain_bytes),
            );
        }
    }
}

/// Notes what a process used in a time and for so many lines.
fn set_used(figures: &mut Figures, name: &str, used: Used, (seconds, lines): (f64, f64)) {
    let cpu_s = used.cpu.as_secs_f64();
    figures.set(format!("{name}_cpu_percent"), 100.0 * cpu_s / seconds);
    if lines > 0.0 {
        figures.set(format!("{name}_cpu_us_per_line"), cpu_s * 1e6 / lines);
    }
    let switches = float(used.switches);
    figures.set(format!("{name}_switches_per_s"), switches / seconds);
}

fn mib(bytes: u64) -> f64 {
    float(bytes) / f64::from(1 << 20)
}
