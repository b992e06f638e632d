//! The verdict over a run: what was written, what arrived, and what the ledger says of the rest.
//!
//! Per container, in entries, exactly:
//!
//! ```text
//! written = received
//! received = delivered + filtered + dropped + dead-lettered
//! arrived or in the dead-letter store = delivered + dead-lettered
//! announced in holes = dropped
//! ```
//!
//! Of a container that lost its power the second line holds, and what was on stable storage arrived. The
//! second line alone holds, too, where a full journal dropped what could not be read: a range of unknown
//! content counts as one entry.
//!
//! The last two hold as inequalities where something is sent twice: an entry that arrived without
//! being acknowledged may be dropped before it is sent again, and a hole may be announced again.

use super::schedule::{Container, Schedule};
use shipper::show::ledger::Line;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use world::oracle::{Report, examine};
use world::script::Script;
use world::standin::store::Upload;

/// What there is to judge by.
pub(super) struct Evidence<'a> {
    pub(super) schedule: &'a Schedule,
    pub(super) uploads: Vec<Arc<Upload>>,
    pub(super) violations: Vec<String>,
    pub(super) conflicts: Vec<String>,
    pub(super) letters: Vec<(String, i64)>,
    pub(super) ledger: Vec<Line>,
    /// Containers that were not stopped.
    pub(super) live: Vec<usize>,
    /// Containers that ended by a loss of power, and how many of their lines it may not cost.
    pub(super) safe_lines: BTreeMap<usize, u64>,
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) problems: Vec<String>,
    pub(super) counts: BTreeMap<String, u64>,
}

impl Found {
    fn check(&mut self, is_good: bool, problem: impl FnOnce() -> String) {
        if !is_good {
            self.problems.push(problem());
        }
    }

    fn count(&mut self, what: &str, count: u64) {
        *self.counts.entry(what.to_owned()).or_default() += count;
    }
}

/// Returns whether the ledger accounts for every entry that a container wrote.
pub(super) fn is_settled(container: &Container, ledger: &[Line]) -> bool {
    let written = entries(&container.script, |_| true);
    line_of(container, ledger).is_some_and(|line| {
        let is_counted = line.received == written || is_uncounted(container, line);
        is_counted && line.buffered == 0 && line.buffered_bytes == 0
    })
}

/// Returns whether a full journal dropped what could not be read: nobody knows how many entries that were.
fn is_uncounted(container: &Container, line: &Line) -> bool {
    container.may_drop && line.dropped.contains_key("disk_error")
}

/// Returns whether the ledger tells of a container that has ended, if at all, as of one that lives. A
/// shipper that was told of it, and the driver that remembered it, may both be gone.
pub(super) fn is_settled_or_unknown(container: &Container, ledger: &[Line]) -> bool {
    line_of(container, ledger).is_none() || is_settled(container, ledger)
}

/// Returns whether the ledger adds up for a container that lost its power, and has nothing left.
pub(super) fn is_balanced(container: &Container, ledger: &[Line]) -> bool {
    // A state that was never synced is lost, and with it what a journal has counted.
    let line = line_of(container, ledger);
    line.is_none_or(|line| line.buffered == 0 && line.buffered_bytes == 0)
}

/// Judges a run.
pub(super) fn judge(evidence: &Evidence<'_>) -> Found {
    let schedule = evidence.schedule;
    let scripts: Vec<Script> = schedule
        .containers
        .iter()
        .map(|container| container.script.clone())
        .collect();
    let report = examine(&scripts, &evidence.uploads);
    let mut found = Found::default();
    judge_records(&report, schedule, &mut found);
    judge_contexts(evidence, &mut found);
    for (index, container) in schedule.containers.iter().enumerate() {
        if let Some(&safe_lines) = evidence.safe_lines.get(&index) {
            judge_loss(container, safe_lines, &report, evidence, &mut found);
            continue;
        }
        let is_told = line_of(container, &evidence.ledger).is_some();
        if !evidence.live.contains(&index) {
            found.count("ended containers in the ledger", u64::from(is_told));
        }
        let is_in_ledger = is_told || evidence.live.contains(&index);
        judge_container(container, is_in_ledger, &report, evidence, &mut found);
    }
    if !found.problems.is_empty() {
        found.problems.push(report.to_string());
    }
    found.count("lines", report.expected);
    found.count("duplicates", report.duplicated);
    found
}

fn judge_records(report: &Report, schedule: &Schedule, found: &mut Found) {
    for (what, count) in [
        ("spurious", report.spurious),
        ("out of order", report.out_of_order),
        ("with a wrong time", report.wrong_time),
        ("with a wrong payload", report.wrong_payload),
        ("without a context", report.without_context),
    ] {
        found.check(count == 0, || format!("{count} records {what}"));
    }
    found.check(schedule.may_repeat || report.duplicated == 0, || {
        let count = report.duplicated;
        format!("{count} records came twice although no process died and no answer was lost")
    });
}

fn judge_contexts(evidence: &Evidence<'_>, found: &mut Found) {
    let may_give_up = evidence.schedule.containers.iter().any(|c| c.may_die);
    let may_skip = evidence.schedule.may_repeat || may_give_up;
    let faults = match may_skip {
        true => &evidence.conflicts,
        false => &evidence.violations,
    };
    found.problems.extend_from_slice(faults);
}

/// Returns what tells whether a line of a script has arrived, by its number.
fn arrivals<'r>(report: &'r Report, script: &str) -> impl Fn(u64) -> bool + use<'r> {
    let counts = report.counts.get(script).map_or(&[][..], Vec::as_slice);
    move |number| {
        let index = usize::try_from(number).unwrap_or(usize::MAX);
        counts.get(index).is_some_and(|count| *count > 0)
    }
}

/// Judges over a container that lost its power: what was on stable storage has arrived, and the
/// ledger adds up, over fewer entries than were written.
fn judge_loss(
    container: &Container,
    safe_lines: u64,
    report: &Report,
    evidence: &Evidence<'_>,
    found: &mut Found,
) {
    let script = &container.script;
    let name = &script.name;
    let has_come = arrivals(report, name);
    let dead = dead_lines(script, &evidence.letters);
    let is_somewhere = |number| has_come(number) || dead.contains(&number);
    let is_lost = |number: &u64| !container.filters(*number) && !is_somewhere(*number);
    let lost_count = (0..safe_lines).filter(is_lost).count();
    found.check(lost_count == 0, || {
        let first = (0..safe_lines).find(is_lost);
        format!("{name}: {lost_count} of {safe_lines} safe lines are lost, the first is {first:?}")
    });
    let beyond = safe_lines..script.line_count;
    found.count("lines safe from a loss of power", safe_lines);
    found.count(
        "lines lost with the power",
        beyond.filter(is_lost).count() as u64,
    );
    found.check(dead.is_empty() || container.may_die, || {
        format!("{name}: {} lines in the dead-letter store", dead.len())
    });
    let Some(line) = line_of(container, &evidence.ledger) else {
        return;
    };
    let dropped: u64 = line.dropped.values().sum();
    let settled = line.delivered + line.filtered + dropped + line.dead_lettered;
    found.check(line.received == settled && line.buffered == 0, || {
        format!("{name}: the ledger does not add up: {line:?}")
    });
    // A range of unknown content counts as an entry, also where only its acknowledgement was lost.
    let written = entries(script, |_| true);
    let somewhere = entries(script, is_somewhere);
    let is_true = line.received <= written + dropped
        && line.delivered + line.dead_lettered <= somewhere
        && line.filtered <= entries(script, |number| container.filters(number));
    found.check(is_true, || {
        format!("{name}: {written} entries written, {somewhere} arrived, the ledger: {line:?}")
    });
    let is_loss = |reason: &str| ["cut_short", "disk_error", "malformed"].contains(&reason);
    found.check(line.dropped.keys().all(|reason| is_loss(reason)), || {
        format!("{name}: dropped for another reason, the ledger: {line:?}")
    });
    found.count("entries dropped after a loss of power", dropped);
}

fn judge_container(
    container: &Container,
    is_in_ledger: bool,
    report: &Report,
    evidence: &Evidence<'_>,
    found: &mut Found,
) {
    let script = &container.script;
    let name = &script.name;
    let has_come = arrivals(report, name);
    let dead = dead_lines(script, &evidence.letters);
    let filtered_came = entries(script, |number| {
        container.filters(number) && has_come(number)
    });
    found.check(filtered_came == 0, || {
        format!("{name}: {filtered_came} filtered entries arrived")
    });
    let is_somewhere = |number| has_come(number) || dead.contains(&number);
    let lost = entries(script, |number| {
        !container.filters(number) && !is_somewhere(number)
    });
    found.check(lost == 0 || container.may_drop, || {
        format!("{name}: {lost} entries are lost, first line {:?}", {
            (0..script.line_count)
                .find(|&number| !container.filters(number) && !is_somewhere(number))
        })
    });
    found.check(dead.is_empty() || container.may_die, || {
        format!("{name}: {} lines in the dead-letter store", dead.len())
    });
    found.count("lines in the dead-letter store", dead.len() as u64);
    if is_in_ledger {
        let somewhere = entries(script, is_somewhere);
        judge_ledger(container, somewhere, report, evidence, found);
    }
}

fn judge_ledger(
    container: &Container,
    somewhere: u64,
    report: &Report,
    evidence: &Evidence<'_>,
    found: &mut Found,
) {
    let script = &container.script;
    let name = &script.name;
    let Some(line) = line_of(container, &evidence.ledger) else {
        found.problems.push(format!("{name} is not in the ledger"));
        return;
    };
    let written = entries(script, |_| true);
    let filterable = entries(script, |number| container.filters(number));
    let dropped: u64 = line.dropped.values().sum();
    let settled = line.delivered + line.filtered + dropped + line.dead_lettered;
    let is_uncounted = is_uncounted(container, line) && evidence.schedule.has_read_errors();
    let is_right = match is_uncounted {
        true => line.received <= written + dropped,
        false => line.received == written,
    };
    found.check(is_right, || {
        format!("{name}: {written} entries written, the ledger: {line:?}")
    });
    found.check(line.received == settled && line.buffered == 0, || {
        format!("{name}: the ledger does not add up: {line:?}")
    });
    // What arrived, without an acknowledgement before a call or a process ended, can be dropped.
    let arrived_and_dropped = somewhere.saturating_sub(line.delivered + line.dead_lettered);
    let may_be_both = if evidence.schedule.may_repeat {
        dropped
    } else {
        0
    };
    let is_accounted_for = line.delivered + line.dead_lettered <= somewhere;
    found.check(
        is_accounted_for && arrived_and_dropped <= may_be_both,
        || format!("{name}: {somewhere} entries arrived or are dead, the ledger: {line:?}"),
    );
    found.check(dropped == 0 || container.may_drop, || {
        format!("{name}: dropped without need, the ledger: {line:?}")
    });
    // Behind a range of unknown content an entry may be cut.
    let is_expected = |reason: &str| {
        reason == "journal_full"
            || is_uncounted && ["disk_error", "malformed", "cut_short"].contains(&reason)
    };
    found.check(
        line.dropped.keys().all(|reason| is_expected(reason)),
        || format!("{name}: dropped for another reason, the ledger: {line:?}"),
    );
    found.check(
        line.filtered <= filterable && (dropped > 0 || line.filtered == filterable),
        || format!("{name}: {filterable} entries to filter, the ledger: {line:?}"),
    );
    let holes = report.holes.get(name).map_or(&[][..], Vec::as_slice);
    let announced: u64 = holes.iter().map(|hole| hole.entries).sum();
    let is_announced = match evidence.schedule.may_repeat || container.may_die {
        true => container.may_die || announced >= dropped,
        false => announced == dropped,
    };
    found.check(is_announced, || {
        format!("{name}: holes of {announced} entries announced, the ledger: {line:?}")
    });
    found.count("entries dropped", dropped);
    found.count("entries filtered", line.filtered);
    found.count("entries dead-lettered", line.dead_lettered);
}

/// Returns the numbers of the lines that are in the dead-letter store.
fn dead_lines(script: &Script, letters: &[(String, i64)]) -> BTreeSet<u64> {
    let number = |(content, time_ms): &(String, i64)| {
        if content.is_empty() {
            let number = script.number_at(*time_ms)?;
            return (script.line_bytes(number) == 0).then_some(number);
        }
        let (name, number) = Script::parse(content)?;
        (name == script.name).then_some(number)
    };
    letters.iter().filter_map(number).collect()
}

/// Counts the entries of the lines that `is_wanted` names.
fn entries(script: &Script, is_wanted: impl Fn(u64) -> bool) -> u64 {
    (0..script.line_count)
        .filter(|&number| is_wanted(number))
        .map(|number| script.entry_count(number))
        .sum()
}

/// Returns the ledger's line of a container. A start that failed, and was tried again, may have
/// left one that received nothing.
fn line_of<'a>(container: &Container, ledger: &'a [Line]) -> Option<&'a Line> {
    ledger.iter().find(|line| {
        line.received > 0 && line.container_name.trim_start_matches('/') == container.script.name
    })
}
