//! One run: what a schedule says happens, everything is repaired, and the verdict is asked for.

use super::link::Weather;
use super::schedule::{Container, Event, Schedule};
use super::site::{Site, TOPIC_ID, Who};
use super::time::Time;
use super::verdict::{self, Evidence};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use world::dockerd::{Dockerd, Info, Pipe};
use world::script::Script;
use world::standin::fault::Fault;

/// Simulated time within which a container gets rid of its lines once everything is repaired.
const WRITE_MAX: Duration = Duration::from_secs(120);
/// Simulated time within which a stopped container leaves nothing behind.
const RETIRE_MAX: Duration = Duration::from_secs(60);
/// Time between two looks at a FIFO.
const TAKEN_LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// Bytes that are written to a FIFO of 64 KiB at once, and what a line takes beyond its own.
const SLICE_BYTES: usize = 40_000;
const FRAME_BYTES_AROUND: usize = 64;
/// Time between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// What a run found.
#[derive(Debug)]
pub(super) struct Outcome {
    /// What happened, and how often.
    pub(super) counts: BTreeMap<String, u64>,
    /// What should not have; empty for a good run.
    pub(super) problems: Vec<String>,
    /// Simulated time from the repair until everything had arrived.
    pub(super) settled_in: Duration,
}

/// A container that has written all its lines.
struct Written {
    index: usize,
    /// `None` if it has ended.
    open: Option<(Dockerd, Pipe)>,
}

/// Runs a schedule.
pub(super) async fn run(schedule: Schedule, time: Time, dir: &Path, host: Ipv4Addr) -> Outcome {
    let mut tasks = JoinSet::new();
    let site = Site::start(schedule, time, dir, host, &mut tasks).await;
    let began = Instant::now();
    let (repaired, repair) = watch::channel(false);
    let mut containers = JoinSet::new();
    for index in 0..site.schedule.containers.len() {
        let site = Arc::clone(&site);
        match site.schedule.containers[index].ends_in_the_dark {
            true => containers.spawn(live_until_dark(site, index, began)),
            false => containers.spawn(live(site, index, began, repair.clone())),
        };
    }
    happen(&site, began).await;
    sleep_until(began + Duration::from_millis(site.schedule.repair_ms)).await;
    fix(&site);
    repaired.send_replace(true);
    let mut open = Vec::new();
    let mut ended = Vec::new();
    let written = timeout(WRITE_MAX, containers.join_all()).await;
    match written {
        Ok(all) => {
            for written in all {
                match written.open {
                    Some(pipe) => open.push((written.index, pipe)),
                    None => ended.push(written.index),
                }
            }
        }
        Err(_) => site.complain("a container could not write its lines".into()),
    }
    let live: Vec<usize> = open.iter().map(|(index, _)| *index).collect();
    let repaired_at = Instant::now();
    let ledger = settle(&site, &live).await;
    let settled_in = repaired_at.elapsed();
    let evidence = Evidence {
        schedule: &site.schedule,
        uploads: site.standin.uploads(TOPIC_ID),
        violations: site.standin.violations(),
        conflicts: site.standin.conflicts(),
        letters: site.dead_letters(),
        ledger,
        live,
        safe_lines: safe_lines(&site),
    };
    let found = verdict::judge(&evidence);
    stop_all(&site, open).await;
    site.end();
    let (mut counts, mut problems) = site.seen_so_far();
    problems.extend(found.problems);
    for (what, count) in found.counts {
        *counts.entry(what).or_default() += count;
    }
    Outcome {
        counts,
        problems,
        settled_in,
    }
}

/// Makes happen what the schedule says, when it says so.
async fn happen(site: &Site, began: Instant) {
    let mut key = 0;
    for (at, event) in &site.schedule.events {
        sleep_until(began + Duration::from_millis(*at)).await;
        match event {
            Event::KillDriverAtCall(n) => site.kill_driver_at_call(*n),
            Event::StopDriver => site.stop(Who::Driver),
            Event::KillShipper => site.kill(Who::Shipper),
            Event::KillShipperAtUpload(n) => site.kill_shipper_at_upload(*n),
            Event::StopShipper => site.stop(Who::Shipper),
            Event::CutRelay => site.relay.cut(),
            Event::Relay(weather) => {
                site.relay.set(*weather);
                count_weather(site, "relay", *weather);
            }
            Event::CutUpstream => site.upstream.cut(),
            Event::Upstream(weather) => {
                site.upstream.set(*weather);
                count_weather(site, "upstream", *weather);
            }
            Event::Cls { kind, count, delay } => {
                let fault = Fault::new(*kind).times(*count).delayed(*delay);
                site.standin.add_fault(fault);
            }
            Event::ClsDown { kind, duration } => {
                let mut fault = Fault::new(*kind);
                fault.until = Some(Instant::now() + *duration);
                site.standin.add_fault(fault);
            }
            Event::ReplaceKeys => {
                key += 1;
                site.replace_keys(key);
                site.count("keys replaced");
            }
            Event::TellNewKeys => site.tell_new_keys(key),
            Event::Clock { seconds } => {
                site.clock_error.store(*seconds, Ordering::Relaxed);
                site.count("clock jumped");
            }
            Event::Disk(call, error) => site.disk.fail(*call, *error),
            Event::ShortSplices(bytes_max) => site.disk.shorten_splices(*bytes_max),
            Event::RepairDisk => site.disk.clear(),
            Event::LosePower { is_shipper_there } => {
                site.lose_power();
                if *is_shipper_there {
                    site.kill(Who::Shipper);
                }
            }
        }
    }
    site.tell_new_keys(key);
}

fn count_weather(site: &Site, link: &str, weather: Weather) {
    match weather {
        Weather::Fair => {}
        Weather::Silent => site.count(&format!("{link} silent")),
        Weather::Slow { .. } => site.count(&format!("{link} slow")),
    }
}

/// Repairs everything that can still be broken.
fn fix(site: &Site) {
    site.standin.clear_faults();
    for link in [&site.relay, &site.upstream] {
        link.set(Weather::Fair);
    }
    site.disk.clear();
    site.clock_error.store(0, Ordering::Relaxed);
    site.kill_shipper_at_upload(0);
    site.spare_driver();
}

/// The life of a container: it starts, writes its bursts, and its last line when all is repaired.
async fn live(
    site: Arc<Site>,
    index: usize,
    began: Instant,
    mut repair: watch::Receiver<bool>,
) -> Written {
    let plan = site.schedule.containers[index].clone();
    let mut dockerd = site.dockerd();
    sleep_until(began + Duration::from_millis(plan.starts_ms)).await;
    let mut pipe = start(&site, &plan, &mut dockerd).await;
    let mut next = 0;
    for &(at, count) in &plan.bursts {
        sleep_until(began + Duration::from_millis(at)).await;
        pipe = write(&site, &plan, pipe, next..next + count).await;
        next += count;
    }
    if !plan.stops_early {
        // An error says that the run has been given up.
        repair.wait_for(|is_repaired| *is_repaired).await.ok();
    }
    pipe = write(&site, &plan, pipe, next..next + 1).await;
    if !plan.stops_early {
        let open = Some((dockerd, pipe));
        return Written { index, open };
    }
    if let Err(error) = dockerd.stop_logging(pipe).await {
        site.complain(format!("{}: {error:#}", plan.script.name));
    }
    site.count("container stopped amid trouble");
    Written { index, open: None }
}

/// The life of a container that ends when its machine loses power. It is seen to that its FIFO never
/// fills, so that it is never in the middle of a write.
async fn live_until_dark(site: Arc<Site>, index: usize, began: Instant) -> Written {
    let mut dark = site.dark.subscribe();
    tokio::select! {
        biased;
        // The site outlives its containers.
        _ = dark.wait_for(|is_dark| *is_dark) => {}
        () = write_in_slices(&site, index, began) => {}
    }
    Written { index, open: None }
}

async fn write_in_slices(site: &Site, index: usize, began: Instant) {
    let plan = &site.schedule.containers[index];
    let mut dockerd = site.dockerd();
    let mut pipe = start(site, plan, &mut dockerd).await;
    // The pump is done with a slice when it has taken the next one: before that, the journal may not
    // know yet what it holds.
    let (mut next, mut taken) = (0, 0);
    for &(at, count) in &plan.bursts {
        sleep_until(began + Duration::from_millis(at)).await;
        let end = next + count;
        while next < end {
            let slice = slice(&plan.script, next..end);
            plan.script.write_range(&mut pipe, next..slice).unwrap();
            while pipe.unread_bytes().unwrap() > 0 {
                sleep(TAKEN_LOOK_INTERVAL).await;
            }
            note_received(site, index, taken);
            (next, taken) = (slice, slice);
        }
    }
    // It lives until the power goes.
    std::future::pending().await
}

fn note_received(site: &Site, index: usize, lines: u64) {
    if let Some(platter) = &site.platter {
        platter.received(index, lines);
    }
}

/// Returns where the lines end, of those that are to be written, that an empty FIFO takes at once.
fn slice(script: &Script, numbers: std::ops::Range<u64>) -> u64 {
    let mut bytes = 0;
    let mut end = numbers.start;
    for number in numbers {
        bytes += script.line_bytes(number) + FRAME_BYTES_AROUND;
        if bytes > SLICE_BYTES {
            break;
        }
        end = number + 1;
    }
    end
}

/// Returns, per container that was there when the power went, how many of its lines it may not cost.
fn safe_lines(site: &Site) -> BTreeMap<usize, u64> {
    let Some(platter) = &site.platter else {
        return BTreeMap::new();
    };
    in_the_dark(site)
        .map(|(index, _)| (index, platter.safe_lines(index)))
        .collect()
}

/// Returns the containers that end when their machine loses power.
fn in_the_dark(site: &Site) -> impl Iterator<Item = (usize, &Container)> {
    let containers = site.schedule.containers.iter().enumerate();
    containers.filter(|(_, container)| container.ends_in_the_dark)
}

/// Returns the containers that end amid trouble.
fn ended(site: &Site) -> impl Iterator<Item = &Container> {
    let containers = site.schedule.containers.iter();
    containers.filter(|container| container.stops_early && !container.ends_in_the_dark)
}

/// Starts a container's logging; when that fails, its user tries again.
async fn start(site: &Site, plan: &Container, dockerd: &mut Dockerd) -> Pipe {
    let log_opts: Vec<(&str, &str)> = plan
        .log_opts
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    loop {
        let info = Info::new(&plan.script.name, &log_opts);
        match dockerd.start_logging(&info).await {
            Ok(pipe) => return pipe,
            Err(_) => {
                site.count("container did not start at once");
                sleep(Duration::from_millis(700)).await;
            }
        }
    }
}

async fn write(
    site: &Site,
    plan: &Container,
    mut pipe: Pipe,
    numbers: std::ops::Range<u64>,
) -> Pipe {
    let script = plan.script.clone();
    let hold = site.time.hold();
    let written = tokio::task::spawn_blocking(move || {
        let _hold = hold;
        script.write_range(&mut pipe, numbers).unwrap();
        pipe
    });
    written.await.unwrap()
}

/// Waits until the ledger accounts for every entry of the containers that live, and for what is left
/// of those that lost their power, and returns it.
async fn settle(site: &Site, live: &[usize]) -> Vec<shipper::show::ledger::Line> {
    let began = Instant::now();
    let mut ledger = Vec::new();
    let mut answer_count = 0;
    let settle_max = site.schedule.settle_max;
    while began.elapsed() < settle_max {
        if let Some(lines) = site.ledger().await {
            ledger = lines;
            answer_count += 1;
            let mut containers = live.iter().map(|&index| &site.schedule.containers[index]);
            let is_settled = containers.all(|container| verdict::is_settled(container, &ledger))
                && ended(site).all(|container| verdict::is_settled_or_unknown(container, &ledger))
                && in_the_dark(site).all(|(_, container)| verdict::is_balanced(container, &ledger));
            // A stream that has ended goes when its last entry is acknowledged.
            if is_settled && site.streams().len() <= live.len() {
                return ledger;
            }
        }
        sleep(LOOK_INTERVAL).await;
    }
    site.complain(format!(
        "not settled {settle_max:?} after the repair; the shipper has shown its ledger \
         {answer_count} times; streams: {:?}",
        site.streams()
    ));
    ledger
}

/// Stops the containers that live, and waits until nothing is left of any.
async fn stop_all(site: &Site, open: Vec<(usize, (Dockerd, Pipe))>) {
    for (index, (mut dockerd, pipe)) in open {
        if let Err(error) = dockerd.stop_logging(pipe).await {
            let name = &site.schedule.containers[index].script.name;
            site.complain(format!("{name}: {error:#}"));
        }
    }
    let gone = async {
        while !site.streams().is_empty() {
            sleep(LOOK_INTERVAL).await;
        }
    };
    if timeout(RETIRE_MAX, gone).await.is_err() {
        site.complain(format!("left behind: {:?}", site.streams()));
    }
}
