//! The world, simulated: driver and shipper in one process, with a disk, links, a cloud and clocks
//! that fail as a seed says, and an oracle over what became of every line.
//!
//! What is real: both libraries as they are, FIFOs and the plugin's socket, gRPC and HTTP over
//! loopback, files. What is simulated: time (see [`time`]), the calls of the disk that fail or
//! never happen ([`disk`]), the links ([`link`]), CLS. A process is killed by making every later
//! call of its disk and every later byte on its connections have no effect, and then dropping its
//! runtime: for the world that is SIGKILL, at whichever call of the disk, stored upload or moment
//! the schedule says.
//!
//! What is injected: see [`schedule`], and [`platter`] for what a loss of power leaves. What is not: a
//! read that fails for good; a disk that refuses together with an end of the driver, which loses what
//! was kept in memory; a loss of power under the shipper's dead-letter store.
//!
//! A seed decides everything that is scheduled, but not how threads and the kernel interleave: the
//! same seed runs alike, not bit for bit the same.

mod disk;
mod link;
mod platter;
mod run;
mod schedule;
mod site;
mod time;
mod verdict;

use crate::world::turn_without_runtime;
use run::Outcome;
use schedule::Schedule;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Runs of a test, unless `WORLD_SEEDS` says otherwise.
const SEEDS: u64 = 500;
/// Runs from which on every kind of fault must have occurred.
const SEEDS_FOR_ALL_FAULTS: u64 = 300;
/// The longest outage of a test, in seconds, unless `WORLD_OUTAGE_S` says otherwise.
const OUTAGE_S_MAX: u64 = 600;
/// Failed runs after which no further one begins.
const FAILURES_MAX: usize = 5;

/// What must have occurred, or the simulation proves nothing.
const OCCURRENCES: &[&str] = &[
    "Driver killed",
    "Driver stopped",
    "Shipper killed",
    "Shipper stopped",
    "relay connections cut",
    "relay silent",
    "relay slow",
    "upstream connections cut",
    "upstream silent",
    "upstream slow",
    "cls Status(429)",
    "cls Status(500)",
    "cls Status(503)",
    "cls HtmlError",
    "cls Reset",
    "cls Drip",
    "cls Stall",
    "cls DropAfterStore",
    "cls PartialStore",
    "keys replaced",
    "clock jumped",
    "short splice",
    "disk Create EIO",
    "disk Create ENOSPC",
    "disk Splice EIO",
    "disk Splice ENOSPC",
    "disk Save EIO",
    "disk Remove EIO",
    "disk Sync EIO",
    "disk Read EIO",
    "power lost",
    "lines safe from a loss of power",
    "lines lost with the power",
    "entries dropped after a loss of power",
    "container stopped amid trouble",
    "ended containers in the ledger",
    "duplicates",
    "entries dropped",
    "entries filtered",
    "entries dead-lettered",
];

/// Every line that was promised arrives or is in the ledger, whatever goes wrong meanwhile.
#[test]
fn every_seed_keeps_the_promises() {
    let _turn = turn_without_runtime();
    let seeds = match world::processes::seed_given() {
        Some(seed) => {
            say_everything();
            seed..seed + 1
        }
        None => match world::processes::seeds_given() {
            // A long run goes where none has been.
            Some(count) => {
                let first = u64::from(fastrand::u32(..));
                first..first + count
            }
            None => 1..1 + SEEDS,
        },
    };
    let count = seeds.end - seeds.start;
    let all = Tally::default();
    let next = AtomicU64::new(seeds.start);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for worker in 0..workers {
            let (all, next, end) = (&all, &next, seeds.end);
            scope.spawn(move || {
                while all.failure_count() < FAILURES_MAX {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    all.add(seed, run_seed(seed, worker));
                }
            });
        }
    });
    let (counts, failures, slowest) = all.into_parts();
    eprintln!("{count} seeds, settled within {slowest:?} of the repair; {counts:#?}");
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
    if count >= SEEDS_FOR_ALL_FAULTS {
        let missing: Vec<_> = OCCURRENCES
            .iter()
            .filter(|what| counts.get(**what).is_none_or(|count| *count == 0))
            .collect();
        assert!(missing.is_empty(), "never happened: {missing:?}");
    }
}

/// CLS is down, for up to an hour with `WORLD_OUTAGE_S=3600`, while a container writes 1,000
/// lines/s; its journal may hold 1 GiB. Every line arrives once, in order.
#[test]
fn an_outage_of_cls_costs_no_line() {
    let _turn = turn_without_runtime();
    let longest_s = world::processes::outage_given().unwrap_or(OUTAGE_S_MAX);
    for seconds in [1, 60, 600, 3_600] {
        if seconds > longest_s {
            return;
        }
        let duration = Duration::from_secs(seconds);
        let began = tokio::time::Instant::now();
        let outcome = simulate(&Schedule::outage(duration), host(seconds, 0));
        let took = began.elapsed();
        let outcome = outcome.unwrap();
        eprintln!(
            "CLS down for {seconds} s: {} lines, {} twice, problems {:?}; the run took {took:.1?}",
            outcome.counts["lines"], outcome.counts["duplicates"], outcome.problems
        );
        assert!(outcome.problems.is_empty());
    }
}

/// Runs a schedule in a world of its own; `None` if that panicked.
fn simulate(schedule: &Schedule, host: Ipv4Addr) -> Option<Outcome> {
    let simulated = AssertUnwindSafe(|| {
        let dir = tempfile::tempdir().unwrap();
        let time = time::Time::start();
        let runtime = time.runtime();
        runtime.block_on(run::run(schedule.clone(), time.clone(), dir.path(), host))
    });
    catch_unwind(simulated).ok()
}

fn run_seed(seed: u64, worker: usize) -> Result<Outcome, String> {
    let schedule = Schedule::draw(seed);
    let describe = |problems: &str| format!("WORLD_SEED={seed}\n{problems}\n{schedule:#?}");
    match simulate(&schedule, host(seed, worker)) {
        Some(outcome) if outcome.problems.is_empty() => Ok(outcome),
        Some(outcome) => Err(describe(&format!(
            "{}\n{:#?}",
            outcome.problems.join("\n"),
            outcome.counts
        ))),
        None => Err(describe("the run has panicked; see above")),
    }
}

/// Shows the product's own messages: a seed that is repeated is one to look into.
fn say_everything() {
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .without_time()
        .try_init()
        .ok();
}

/// Returns a loopback address that no other run uses now.
fn host(seed: u64, worker: usize) -> Ipv4Addr {
    let byte = |number: u64| u8::try_from(number % 200).unwrap_or(0);
    let process = u64::from(std::process::id());
    Ipv4Addr::new(127, 16 + byte(process), byte(seed), 1 + byte(worker as u64))
}

/// What all runs found.
#[derive(Default)]
struct Tally(Mutex<(BTreeMap<String, u64>, Vec<String>, Duration)>);

impl Tally {
    fn add(&self, seed: u64, outcome: Result<Outcome, String>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok(outcome) => {
                for (what, count) in outcome.counts {
                    *all.0.entry(what).or_default() += count;
                }
                all.2 = all.2.max(outcome.settled_in);
            }
            Err(failure) => {
                eprintln!("seed {seed} has failed");
                all.1.push(failure);
            }
        }
    }

    fn failure_count(&self) -> usize {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.1.len()
    }

    fn into_parts(self) -> (BTreeMap<String, u64>, Vec<String>, Duration) {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}
