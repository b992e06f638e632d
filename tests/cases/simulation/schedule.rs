//! What a seed says: who writes what and when, and what goes wrong meanwhile.
//!
//! A seed draws a few families of faults, and each family a few events in the first
//! [`TROUBLE_MS`]; then everything is repaired. Two families never meet, because the product
//! promises nothing for them together: a disk that refuses (what it refuses waits in memory), and
//! an end of the driver, by loss of power too (what is in memory is gone).

use super::disk::Call;
use super::link::Weather;
use fastrand::Rng;
use rustix::io::Errno;
use std::ops::Range;
use std::time::Duration;
use world::script::{Lengths, Script};
use world::standin::fault::FaultKind;

/// Simulated time in which things go wrong.
pub(super) const TROUBLE_MS: u64 = 12_000;

/// Simulated time after the repair within which every line must be where it belongs. Nothing in the
/// product waits longer than 30 s before it tries again; then a report follows.
const SETTLE_MAX: Duration = Duration::from_secs(90);

/// When power may be lost: not before something is on stable storage, and early enough for life to
/// go on afterwards.
const DARK_MS: Range<u64> = 2_500..9_000;

/// Docker's time of the first line of all; containers are a day apart.
const FIRST_TIME_NANO: i64 = 1_795_356_825_000_000_000;
const DAY_NANO: i64 = 86_400_000_000_000;

/// A container of a run.
#[derive(Debug, Clone)]
pub(super) struct Container {
    pub(super) script: Script,
    pub(super) log_opts: Vec<(String, String)>,
    /// When it writes how many lines; the rest follows when everything is repaired.
    pub(super) bursts: Vec<(u64, u64)>,
    /// Ends before everything is repaired.
    pub(super) stops_early: bool,
    /// Its journal is so small, or its disk so full, that lines may be dropped.
    pub(super) may_drop: bool,
    /// The shipper gives up on its batches after a few attempts.
    pub(super) may_die: bool,
    pub(super) has_filter: bool,
    /// When it starts.
    pub(super) starts_ms: u64,
    /// Ends when its machine loses power, in the middle of what it does.
    pub(super) ends_in_the_dark: bool,
}

/// Last digit of the numbers of lines that a filter takes out.
const FILTERED_DIGIT: u64 = 7;

impl Container {
    /// Returns whether the container's filter takes a line out.
    pub(super) fn filters(&self, number: u64) -> bool {
        self.has_filter && number % 10 == FILTERED_DIGIT && self.script.line_bytes(number) > 0
    }
}

/// Something that goes wrong, or is repaired.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Event {
    KillDriverAtCall(u64),
    StopDriver,
    KillShipper,
    KillShipperAtUpload(u64),
    StopShipper,
    CutRelay,
    Relay(Weather),
    CutUpstream,
    Upstream(Weather),
    Cls {
        kind: FaultKind,
        count: u64,
        delay: Duration,
    },
    ClsDown {
        kind: FaultKind,
        duration: Duration,
    },
    ReplaceKeys,
    TellNewKeys,
    Clock {
        seconds: i64,
    },
    Disk(Call, Errno),
    ShortSplices(usize),
    RepairDisk,
    /// The driver's machine loses its power, and the shipper with it if it runs there.
    LosePower {
        is_shipper_there: bool,
    },
}

/// A run.
#[derive(Debug, Clone)]
pub(super) struct Schedule {
    pub(super) containers: Vec<Container>,
    /// By time, in milliseconds.
    pub(super) events: Vec<(u64, Event)>,
    /// Lines may come twice: a process dies, or an answer is lost.
    pub(super) may_repeat: bool,
    pub(super) batch_bytes_max: u64,
    pub(super) batch_logs_max: u64,
    pub(super) concurrency_max: u64,
    pub(super) linger_ms: u64,
    pub(super) buffer_bytes_max: u64,
    pub(super) block_ms_max: u64,
    pub(super) restart_ms: u64,
    /// When everything is repaired.
    pub(super) repair_ms: u64,
    /// Time after that within which every line must be where it belongs, and shown so.
    pub(super) settle_max: Duration,
    pub(super) sync_ms: u64,
    /// Decides what a loss of power leaves of what was not synced.
    pub(super) power_seed: u64,
}

/// What can go wrong in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    KillDriver,
    StopDriver,
    KillShipper,
    StopShipper,
    Relay,
    Upstream,
    Cls,
    ClsDown,
    LostAnswer,
    Keys,
    Clock,
    Disk,
    ShortSplices,
    Power,
}

const FAMILIES: [Family; 14] = [
    Family::KillDriver,
    Family::StopDriver,
    Family::KillShipper,
    Family::StopShipper,
    Family::Relay,
    Family::Upstream,
    Family::Cls,
    Family::ClsDown,
    Family::LostAnswer,
    Family::Keys,
    Family::Clock,
    Family::Disk,
    Family::ShortSplices,
    Family::Power,
];

impl Family {
    fn repeats(self) -> bool {
        match self {
            Self::KillDriver
            | Self::StopDriver
            | Self::KillShipper
            | Self::Relay
            | Self::Upstream
            | Self::LostAnswer
            | Self::Power => true,
            Self::StopShipper
            | Self::Cls
            | Self::ClsDown
            | Self::Keys
            | Self::Clock
            | Self::Disk
            | Self::ShortSplices => false,
        }
    }

    fn ends_driver(self) -> bool {
        matches!(self, Self::KillDriver | Self::StopDriver | Self::Power)
    }
}

impl Schedule {
    /// Returns whether reads of a disk are to fail.
    pub(super) fn has_read_errors(&self) -> bool {
        let is_one = |event: &Event| matches!(event, Event::Disk(Call::Read, _));
        self.events.iter().any(|(_, event)| is_one(event))
    }

    /// Draws a run from its seed.
    pub(super) fn draw(seed: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        let families = draw_families(&mut random);
        let mut events = Vec::new();
        for family in &families {
            let count = match family {
                // What a loss of power may cost is asked of the containers that ran then.
                Family::Power => 1,
                _ => random.u32(1..=3),
            };
            for _ in 0..count {
                draw_events(*family, &mut random, &mut events);
            }
        }
        events.sort_by_key(|(at, _)| *at);
        let is_disk_full = events
            .iter()
            .any(|(_, event)| matches!(event, Event::Disk(_, Errno::NOSPC)));
        let traits = Traits {
            is_disk_full,
            ends_driver: families.iter().any(|family| family.ends_driver()),
            has_short_splices: families.contains(&Family::ShortSplices),
            dark_ms: events
                .iter()
                .find_map(|(at, event)| matches!(event, Event::LosePower { .. }).then_some(*at)),
        };
        let count = random.usize(1..=6);
        let containers = (0..count)
            .map(|index| draw_container(index, count, traits, &mut random))
            .collect();
        Self {
            containers,
            events,
            // A stop gives up on what CLS does not take within its grace.
            may_repeat: families.iter().any(|family| family.repeats())
                || (families.contains(&Family::StopShipper) && families.len() > 1),
            batch_bytes_max: 1 << random.u32(16..=20),
            batch_logs_max: random.u64(20..2_000),
            concurrency_max: random.u64(1..=8),
            linger_ms: random.u64(1..400),
            // Every container may be in the middle of its longest line: where memory does not suffice
            // for that, long lines are cut.
            buffer_bytes_max: random.u64(4..=16) << 20,
            block_ms_max: random.u64(0..3_000),
            restart_ms: random.u64(50..3_000),
            repair_ms: TROUBLE_MS,
            settle_max: SETTLE_MAX,
            sync_ms: match traits.dark_ms {
                Some(_) => 1_000,
                None => 200,
            },
            power_seed: random.u64(..),
        }
    }

    /// Returns whether the driver's machine loses its power.
    pub(super) fn loses_power(&self) -> bool {
        let is_loss = |event: &Event| matches!(event, Event::LosePower { .. });
        self.events.iter().any(|(_, event)| is_loss(event))
    }

    /// Returns a run in which CLS is down for some time, while a container writes 1,000 lines/s.
    pub(super) fn outage(duration: Duration) -> Self {
        const LINES_PER_S: u64 = 1_000;
        const LEAD_S: u64 = 2;
        let seconds = duration.as_secs() + 2 * LEAD_S;
        let container = Container {
            // One line more than the bursts: the last one comes when CLS is up again.
            script: Script::new("c0", seconds * LINES_PER_S + 1, 80),
            log_opts: vec![("journal-size".into(), "1g".into())],
            bursts: (0..seconds)
                .map(|second| (second * 1_000, LINES_PER_S))
                .collect(),
            stops_early: false,
            may_drop: false,
            may_die: false,
            has_filter: false,
            starts_ms: 0,
            ends_in_the_dark: false,
        };
        let down = Event::ClsDown {
            kind: FaultKind::Status(503),
            duration,
        };
        Self {
            containers: vec![container],
            events: vec![(LEAD_S * 1_000, down)],
            may_repeat: false,
            batch_bytes_max: 1 << 20,
            batch_logs_max: 10_000,
            concurrency_max: 8,
            linger_ms: 200,
            buffer_bytes_max: 16 << 20,
            block_ms_max: 5_000,
            restart_ms: 300,
            repair_ms: seconds * 1_000,
            // The backlog is worked off at this machine's speed, in a time that runs faster.
            settle_max: Duration::from_secs(86_400),
            sync_ms: 1_000,
            power_seed: 0,
        }
    }
}

fn draw_families(random: &mut Rng) -> Vec<Family> {
    let mut families: Vec<Family> = Vec::new();
    for _ in 0..random.u32(1..=4) {
        let Some(&family) = random.choice(FAMILIES.iter()) else {
            continue;
        };
        let has_disk = families.contains(&Family::Disk);
        let ends_driver = families.iter().any(|family| family.ends_driver());
        let excluded =
            (has_disk && family.ends_driver()) || (ends_driver && family == Family::Disk);
        if !excluded && !families.contains(&family) {
            families.push(family);
        }
    }
    families
}

#[derive(Debug, Clone, Copy)]
struct Traits {
    is_disk_full: bool,
    ends_driver: bool,
    has_short_splices: bool,
    /// When power is lost.
    dark_ms: Option<u64>,
}

fn draw_container(index: usize, count: usize, traits: Traits, random: &mut Rng) -> Container {
    let mut log_opts: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: &str| log_opts.push((name.into(), value.into()));
    // The first container runs when power is lost, others may; the rest comes afterwards.
    let ends_in_the_dark = traits.dark_ms.is_some() && (index == 0 || random.bool());
    let is_small = random.u32(..100) < 20 && !ends_in_the_dark;
    let may_drop = is_small || traits.is_disk_full;
    // The engine gets its answer to a stop after half a second at the latest. What the FIFO still
    // holds then is read later, by whoever lives.
    let is_slow_to_stop = traits.ends_driver && traits.has_short_splices;
    let has_filter = random.u32(..100) < 20;
    let may_die = random.u32(..100) < 12;
    if is_small {
        set("journal-size", "1m");
    }
    if random.bool() {
        set("mode", "non-blocking");
    }
    if has_filter {
        set("exclude-regex", r"^\S+ \d{9}7 ");
    }
    if may_die {
        set("retries", "2");
    }
    if !traits.ends_driver && random.u32(..100) < 15 {
        set("no-file", "true");
    }
    // A piece of a line can be dropped without the others; what is left of it is no line.
    // So can the end of a line that a loss of power cuts.
    let bytes_max = match may_drop || ends_in_the_dark {
        true => 12_000,
        false => *random
            .choice([&400, &4_000, &40_000, &300_000])
            .unwrap_or(&400),
    };
    let script = draw_script(index, is_small, bytes_max, count, random);
    let (starts_ms, ends_ms) = match traits.dark_ms {
        Some(dark_ms) if ends_in_the_dark => (0, dark_ms),
        Some(dark_ms) => (dark_ms + 1, TROUBLE_MS),
        None => (0, TROUBLE_MS),
    };
    let bursts = draw_bursts(script.line_count, starts_ms..ends_ms, random);
    Container {
        script,
        log_opts,
        bursts,
        stops_early: !may_drop
            && !may_die
            && !is_slow_to_stop
            && !ends_in_the_dark
            && random.u32(..100) < 20,
        may_drop,
        may_die,
        has_filter,
        starts_ms,
        ends_in_the_dark,
    }
}

fn draw_script(
    index: usize,
    is_small: bool,
    bytes_max: usize,
    count: usize,
    random: &mut Rng,
) -> Script {
    // A small journal must see more than it holds.
    let line_count = match is_small {
        true => random.u64(2_000..6_000),
        false => random.u64(1..1_200) / count as u64 + 1,
    };
    let day = i64::try_from(index).unwrap_or(0) * DAY_NANO;
    Script {
        lengths: Lengths::Drawn {
            seed: random.u64(..),
            bytes_max,
        },
        first_time_nano: FIRST_TIME_NANO + day + 999_999,
        step_nano: 1_000_000,
        ..Script::new(&format!("c{index}"), line_count, 0)
    }
}

/// Spreads all lines but one over some time.
fn draw_bursts(line_count: u64, time_ms: Range<u64>, random: &mut Rng) -> Vec<(u64, u64)> {
    let mut left = line_count - 1;
    let mut bursts = Vec::new();
    let burst_count = random.u64(1..=12);
    for index in 0..burst_count {
        let lines = match index + 1 == burst_count {
            true => left,
            false => left / (burst_count - index),
        };
        left -= lines;
        bursts.push((random.u64(time_ms.clone()), lines));
    }
    bursts.sort_unstable_by_key(|(at, _)| *at);
    bursts
}

/// Draws something that goes wrong, and its repair if it needs one of its own.
fn draw_events(family: Family, random: &mut Rng, events: &mut Vec<(u64, Event)>) {
    let at = random.u64(100..TROUBLE_MS);
    let later = random.u64(at..TROUBLE_MS + 1);
    let mut add = |at, event| events.push((at, event));
    match family {
        Family::KillDriver => add(at, Event::KillDriverAtCall(random.u64(1..150))),
        Family::StopDriver => add(at, Event::StopDriver),
        Family::KillShipper if random.bool() => add(at, Event::KillShipper),
        Family::KillShipper => add(at, Event::KillShipperAtUpload(random.u64(1..8))),
        Family::StopShipper => add(at, Event::StopShipper),
        Family::Relay if random.bool() => add(at, Event::CutRelay),
        Family::Relay => {
            add(at, Event::Relay(draw_weather(random)));
            add(later, Event::Relay(Weather::Fair));
        }
        Family::Upstream if random.bool() => add(at, Event::CutUpstream),
        Family::Upstream => {
            add(at, Event::Upstream(draw_weather(random)));
            add(later, Event::Upstream(Weather::Fair));
        }
        Family::Cls => add(at, draw_refusal(random)),
        Family::ClsDown => add(at, draw_outage(random)),
        Family::LostAnswer => add(at, draw_lost_answer(random)),
        Family::Keys => {
            add(at, Event::ReplaceKeys);
            add(later, Event::TellNewKeys);
        }
        Family::Clock => {
            let seconds = random.i64(60..3_600);
            let seconds = if random.bool() { seconds } else { -seconds };
            add(at, Event::Clock { seconds });
            add(later, Event::Clock { seconds: 0 });
        }
        Family::Disk => {
            let (call, error) = draw_disk_fault(random);
            add(at, Event::Disk(call, error));
            add(later, Event::RepairDisk);
        }
        Family::ShortSplices => add(at, Event::ShortSplices(random.usize(1..5_000))),
        Family::Power => {
            let is_shipper_there = random.bool();
            let at = random.u64(DARK_MS);
            add(at, Event::LosePower { is_shipper_there });
        }
    }
}

fn draw_weather(random: &mut Rng) -> Weather {
    match random.bool() {
        true => Weather::Silent,
        false => Weather::Slow {
            piece_bytes: random.usize(200..20_000),
            delay: Duration::from_millis(random.u64(5..200)),
        },
    }
}

fn draw_refusal(random: &mut Rng) -> Event {
    let kinds = [
        FaultKind::Status(429),
        FaultKind::Status(500),
        FaultKind::Status(503),
        FaultKind::Status(404),
        FaultKind::HtmlError,
        FaultKind::Reset,
        FaultKind::Drip,
        FaultKind::IdleClose,
    ];
    Event::Cls {
        kind: *random.choice(kinds.iter()).unwrap_or(&kinds[0]),
        count: random.u64(1..12),
        // An answer of 200 bytes drips within a second, well inside the timeout.
        delay: Duration::from_millis(random.u64(1..5)),
    }
}

fn draw_outage(random: &mut Rng) -> Event {
    let kinds = [
        FaultKind::Status(429),
        FaultKind::Status(500),
        FaultKind::Status(403),
        FaultKind::HtmlError,
    ];
    Event::ClsDown {
        kind: *random.choice(kinds.iter()).unwrap_or(&kinds[0]),
        duration: Duration::from_millis(random.u64(500..TROUBLE_MS)),
    }
}

fn draw_lost_answer(random: &mut Rng) -> Event {
    let kinds = [
        FaultKind::DropAfterStore,
        FaultKind::PartialStore,
        FaultKind::Stall,
    ];
    Event::Cls {
        kind: *random.choice(kinds.iter()).unwrap_or(&kinds[0]),
        count: random.u64(1..6),
        delay: Duration::from_millis(random.u64(100..20_000)),
    }
}

fn draw_disk_fault(random: &mut Rng) -> (Call, Errno) {
    let faults = [
        (Call::Create, Errno::IO),
        (Call::Create, Errno::NOSPC),
        (Call::Splice, Errno::IO),
        (Call::Splice, Errno::NOSPC),
        (Call::Save, Errno::IO),
        (Call::Save, Errno::NOSPC),
        (Call::Remove, Errno::IO),
        (Call::Sync, Errno::IO),
        (Call::Read, Errno::IO),
    ];
    *random.choice(faults.iter()).unwrap_or(&faults[0])
}
