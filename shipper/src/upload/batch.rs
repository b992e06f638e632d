//! Uploads: from a lane's sealed batches to CLS's 200, and from there to the acknowledgement.
//!
//! Each batch has a task of its own that tries until CLS takes it: jittered backoff, credentials
//! taken anew for each attempt. What an operator must repair holds the lane, whose streams then get
//! no more credit, and their bytes wait in the journals of their hosts; another key ends the wait at
//! once. What CLS refuses for its size or content is halved until the record at fault is alone, and
//! that one goes to the dead-letter store. What fails for no reason that CLS names while other batches pass
//! (see [`trouble`](crate::upload::trouble)) is halved as well, and the record at fault waits aside: it is
//! tried again from time to time, and nobody but its own container waits for it. So does a dead letter
//! where there is no store, or a full one.
//!
//! How many requests a lane has in flight adapts to what CLS answers, and how fast (see
//! [`concurrency`](crate::upload::concurrency)); after an outage the first batch that gets through wakes the
//! others.
//!
//! A batch lives as long as one of its streams: when all have left, because their driver is gone or
//! has dialled anew, nobody waits for it, and the driver sends its records again. So reconnections
//! in an outage pile up neither memory nor copies. A repeat leaves out the groups of streams that
//! have left.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use proto::backoff::Backoff;
use tracing::{debug, error, info, warn};

use crate::base::buffers::Buffers;
use crate::base::chain::Chain;
use crate::base::clock::WallClock;
use crate::base::tasks::Tasks;
use crate::cls::compress::Compression;
use crate::cls::credentials::Credentials;
use crate::cls::disposition::{Disposition, Outcome, disposition};
use crate::cls::request::{Body, Upload};
use crate::keys::store::{CredentialRef, CredentialStore};
use crate::lane::queue::{Group, Lane, Stream, Troubled};
use crate::send::client::Cloud;
use crate::show::metrics::Metrics;
use crate::upload::concurrency::Ended;
use crate::upload::cut::{Part, Sent};
use crate::upload::letters::{DeadLetters, Reason};
use crate::upload::pace::{Hold, Pace, Probe};
use crate::upload::report::{reason, report};
use crate::upload::trouble::{Blame, Next, Trouble};
use crate::upload::wire::Wire;

/// The first delay after a failure, before jitter.
const BACKOFF_BASE: Duration = Duration::from_millis(200);

/// The longest delay: an outage that ends is noticed within it.
const BACKOFF_CAP: Duration = Duration::from_secs(30);

/// How uploads get at what they need.
#[derive(Debug)]
pub struct Uploader {
    /// CLS.
    pub cloud: Arc<dyn Cloud>,
    /// Key pairs.
    pub credentials: Arc<CredentialStore>,
    /// Wall clock, for signatures.
    pub clock: WallClock,
    /// Compression of bodies.
    pub compression: Compression,
    /// Upper bound of requests in flight per lane.
    pub concurrency_max: usize,
    /// Places for the requests of all lanes.
    pub wire: Wire,
    /// Where records go that CLS will never take, if there is such a place.
    pub dead_letters: Option<Arc<DeadLetters>>,
    /// Where batches in flight run.
    pub tasks: Arc<Tasks>,
    /// Buffers of records and bodies.
    pub buffers: Arc<Buffers>,
    /// Counters.
    pub metrics: Arc<Metrics>,
}

/// A part of a batch, and the attempts to send it so far.
struct Sending<'a> {
    part: Part,
    retry: Retry,
    is_aside: bool,
    /// Its place on the wire, if it has kept one.
    hold: Option<Hold<'a>>,
}

/// A batch on its way.
struct Batch<'a> {
    /// Its groups; those that are acknowledged are no longer there.
    sent: Vec<Option<Sent>>,
    /// What is sent next, one after the other.
    ahead: VecDeque<Sending<'a>>,
    /// Records at fault, and what no dead-letter store takes.
    aside: VecDeque<Sending<'a>>,
    trouble: Trouble,
    /// Once it has failed.
    troubled: Option<Troubled<'a>>,
    probe: Option<Probe<'a>>,
}

/// What becomes of a part after an attempt.
enum Then<'a> {
    /// It is delivered, buried, or nobody's.
    Done,
    /// It is sent again, or two halves in its place.
    Again(Vec<Sending<'a>>, Option<Wait>),
    /// The others of its batch come first.
    Behind(Sending<'a>, Wait),
    /// It waits aside.
    Aside(Sending<'a>),
}

/// How one attempt ended, and with which credentials; those are `None` if there are none.
struct Attempt {
    outcome: Option<Outcome>,
    credentials: Option<Arc<Credentials>>,
    /// Whose trouble it is that it failed, if it tells.
    blame: Option<Blame>,
}

/// An attempt that is to be repeated.
struct Failed {
    outcome: Outcome,
    asked: Disposition,
    /// Keys that were refused.
    refused: Option<Arc<Credentials>>,
    blame: Option<Blame>,
}

/// What ends the time between two attempts, besides the news that CLS is well again.
struct Wait {
    delay: Duration,
    /// Whether other credentials end it, and other than which: than none if there were none.
    other_than: Option<Option<Arc<Credentials>>>,
    holds: Holds,
}

/// What a batch keeps others from while it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holds {
    /// Nothing: whether others pass is to be seen.
    Nothing,
    /// A slot: what is wrong is wrong for all of the lane.
    Slot,
    /// A slot and its place on the wire: CLS takes no more.
    Place,
}

/// The attempts of one part so far.
struct Retry {
    backoff: Backoff,
    /// Attempts that were made with credentials.
    attempt_count: u32,
    /// Refusals of credentials in a row.
    refusal_count: u32,
    /// Whether the last wait ended early because CLS was well again. The next one does not: a batch
    /// of its own trouble would else follow the pace of the others.
    was_woken: bool,
}

impl Retry {
    fn new(seed: u64) -> Self {
        Self {
            backoff: Backoff::new(BACKOFF_BASE, BACKOFF_CAP, seed),
            attempt_count: 0,
            refusal_count: 0,
            was_woken: false,
        }
    }

    /// Returns the state for a half, which has had no attempt.
    fn again(&self) -> Self {
        Self {
            backoff: self.backoff.clone(),
            ..Self::new(0)
        }
    }

    /// Counts a failure. Returns how long to wait before the next attempt at most.
    fn failed(&mut self, asked: Disposition) -> Duration {
        self.attempt_count = self.attempt_count.saturating_add(1);
        self.refusal_count = match asked {
            Disposition::RetryWithNewCredentials => self.refusal_count.saturating_add(1),
            _ => 0,
        };
        let delay = self.backoff.next_delay();
        match asked {
            Disposition::Retry { after } => delay.max(after.unwrap_or_default().min(BACKOFF_CAP)),
            // The next attempt takes a new snapshot of the credentials; a first refusal may only
            // mean that they have just been rotated.
            Disposition::RetryWithNewCredentials if self.refusal_count == 1 => Duration::ZERO,
            _ => delay,
        }
    }
}

impl<'a> Batch<'a> {
    /// Returns how many parts of it are not delivered, one being on its way.
    fn part_count(&self) -> usize {
        self.ahead.len() + self.aside.len() + 1
    }

    fn streams<'s>(&'s self, part: &'s Part) -> impl Iterator<Item = &'s Arc<Stream>> {
        let sent = part.groups.iter().filter_map(|group| self.sent.get(*group));
        sent.flatten().map(|sent| sent.receipt.stream())
    }

    /// Counts the batch as one that has failed, if it is not yet.
    fn note_trouble(&mut self, lane: &'a Lane) {
        let streams = || self.sent.iter().flatten().map(|sent| sent.receipt.stream());
        self.troubled
            .get_or_insert_with(|| lane.note_trouble(streams().map(Arc::clone).collect()));
    }

    /// Acknowledges the groups of which nothing is left.
    fn acknowledge(&mut self) {
        let parts = || self.ahead.iter().chain(&self.aside);
        let is_left = |group: usize| parts().any(|sending| sending.part.groups.contains(&group));
        let done: Vec<usize> = (0..self.sent.len())
            .filter(|group| !is_left(*group))
            .collect();
        for group in done {
            if let Some(sent) = self.sent.get_mut(group).and_then(Option::take) {
                if let Some(troubled) = &mut self.troubled {
                    troubled.let_go(sent.receipt.stream());
                }
                sent.receipt.complete(sent.dead_entries);
            }
        }
    }

    /// Counts a failure of a part. Returns whose it is.
    fn fail(&mut self, part: &Part, pace: &'a Pace) -> Blame {
        let blame = self.trouble.fail(pace.delivered_count());
        // Who has nothing to cut leaves it to the others.
        let may_probe = blame == Blame::Lane && part.log_count > 1 && self.trouble.may_probe();
        self.probe = match may_probe {
            true => self.probe.take().or_else(|| pace.probe()),
            false => None,
        };
        blame
    }
}

impl Uploader {
    pub(super) async fn deliver<'a>(&self, lane: &'a Lane, groups: Vec<Group>, pace: &'a Pace) {
        let (whole, sent) = self.encode(groups);
        let mut batch = Batch {
            sent,
            ahead: VecDeque::from([self.begin(whole)]),
            aside: VecDeque::new(),
            trouble: Trouble::default(),
            troubled: None,
            probe: None,
        };
        while let Some(sending) = batch.ahead.pop_front() {
            match self.send(lane, sending, &mut batch, pace).await {
                Then::Done => {}
                Then::Again(mut parts, wait) => {
                    if let (Some(wait), Some(first)) = (wait, parts.first_mut()) {
                        first.hold = self.wait(lane, pace, wait, &mut first.retry).await;
                    }
                    parts
                        .into_iter()
                        .rev()
                        .for_each(|part| batch.ahead.push_front(part));
                }
                Then::Behind(mut sending, wait) => {
                    sending.hold = self.wait(lane, pace, wait, &mut sending.retry).await;
                    batch.ahead.push_back(sending);
                }
                Then::Aside(sending) => batch.aside.push_back(sending),
            }
            batch.acknowledge();
        }
        batch.probe = None;
        if !batch.aside.is_empty() {
            self.deliver_aside(lane, &mut batch, pace).await;
        }
    }

    /// Tries what is aside from time to time, without a slot of the lane.
    async fn deliver_aside<'a>(&self, lane: &'a Lane, batch: &mut Batch<'a>, pace: &'a Pace) {
        let _pause = lane.pause();
        let mut backoff = Backoff::new(BACKOFF_BASE, BACKOFF_CAP, self.clock.seed());
        let mut delay = backoff.next_delay();
        while let Some(sending) = batch.aside.pop_front() {
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = pace.recovered() => {}
            }
            let _turn = pace.turn_aside().await;
            match self.send(lane, sending, batch, pace).await {
                // What was wrong may be repaired for all of them.
                Then::Done => {
                    backoff.reset();
                    delay = Duration::ZERO;
                    batch.acknowledge();
                    continue;
                }
                Then::Again(parts, _) => batch.aside.extend(parts),
                Then::Behind(sending, _) | Then::Aside(sending) => batch.aside.push_back(sending),
            }
            delay = backoff.next_delay();
            batch.acknowledge();
        }
    }

    fn begin<'a>(&self, part: Part) -> Sending<'a> {
        Sending {
            part,
            retry: Retry::new(self.clock.seed()),
            is_aside: false,
            hold: None,
        }
    }

    /// Sends a part once, if anybody still waits for it.
    async fn send<'a>(
        &self,
        lane: &'a Lane,
        mut sending: Sending<'a>,
        batch: &mut Batch<'a>,
        pace: &'a Pace,
    ) -> Then<'a> {
        self.take_out(&mut sending.part, &batch.sent, Stream::has_left);
        if sending.part.groups.is_empty() {
            return Then::Done;
        }
        let Attempt {
            outcome,
            credentials,
            blame,
        } = self.attempt(lane, &mut sending, batch, pace).await;
        let Some(outcome) = outcome else {
            let wait = Wait {
                delay: sending.retry.backoff.next_delay(),
                other_than: Some(None),
                holds: Holds::Slot,
            };
            return Then::Again(vec![sending], Some(wait));
        };
        let asked = disposition(&outcome);
        let topic_id = lane.key().target.topic_id.as_str();
        self.metrics.count_request(topic_id, asked);
        match asked {
            Disposition::Delivered => {
                self.count_delivery(lane, &sending.part, sending.retry.attempt_count);
                Then::Done
            }
            Disposition::Split | Disposition::Bisect => {
                if let Some(halves) = self.cut(&sending.part) {
                    return Then::Again(halves.map(|half| self.begin(half)).into(), None);
                }
                batch.note_trouble(lane);
                let reason = reason(lane, outcome, asked);
                match self.bury(reason, &sending.part, &mut batch.sent).await {
                    true => Then::Done,
                    false => Then::Aside(sending),
                }
            }
            Disposition::Retry { .. }
            | Disposition::RetryWithNewCredentials
            | Disposition::Hold => {
                let refused = credentials.filter(|_| !matches!(asked, Disposition::Retry { .. }));
                let failed = Failed {
                    outcome,
                    asked,
                    refused,
                    blame,
                };
                self.fail(lane, failed, sending, batch).await
            }
        }
    }

    async fn fail<'a>(
        &self,
        lane: &'a Lane,
        failed: Failed,
        mut sending: Sending<'a>,
        batch: &mut Batch<'a>,
    ) -> Then<'a> {
        sending.part.may_be_stored |= may_be_stored(&failed.outcome);
        if failed.blame == Some(Blame::Batch) && batch.trouble.is_first_of_its_own() {
            sending.retry.backoff.reset();
        }
        let Failed { outcome, asked, .. } = &failed;
        let delay = sending.retry.failed(*asked);
        let attempts = sending.retry.attempt_count;
        report(lane, outcome, *asked, attempts, delay, self.clock.unix_s());
        let blame = failed.blame;
        let wait = Wait {
            delay,
            other_than: failed.refused.clone().map(Some),
            holds: match (blame, asked) {
                (Some(_), _) => Holds::Nothing,
                (None, Disposition::Retry { .. }) => Holds::Place,
                (None, _) => Holds::Slot,
            },
        };
        if blame.is_some() {
            batch.note_trouble(lane);
        }
        self.give_up(lane, failed, &mut sending, batch).await;
        match blame {
            _ if sending.part.groups.is_empty() => Then::Done,
            Some(_) => self.after_failure(lane, sending, wait, batch),
            None => Then::Again(vec![sending], Some(wait)),
        }
    }

    /// Buries what has had as many attempts as its containers allow.
    async fn give_up(
        &self,
        lane: &Lane,
        failed: Failed,
        sending: &mut Sending<'_>,
        batch: &mut Batch<'_>,
    ) {
        let attempts = sending.retry.attempt_count;
        let is_over = |stream: &Stream| (1..=attempts).contains(&stream.attempts.count_max);
        let Some(part) = self.take_out(&mut sending.part, &batch.sent, is_over) else {
            return;
        };
        let reason = reason(lane, failed.outcome, failed.asked);
        if !self.bury(reason, &part, &mut batch.sent).await {
            let retry = Retry {
                attempt_count: attempts,
                ..Retry::new(self.clock.seed())
            };
            batch.aside.push_back(Sending {
                part,
                retry,
                is_aside: true,
                hold: None,
            });
        }
    }

    fn after_failure<'a>(
        &self,
        lane: &Lane,
        sending: Sending<'a>,
        wait: Wait,
        batch: &Batch<'_>,
    ) -> Then<'a> {
        let part = &sending.part;
        let (group_count, part_count) = (part.groups.len(), batch.part_count());
        let next = batch
            .trouble
            .next(group_count, part_count, batch.probe.is_some());
        match next {
            Next::Repeat => Then::Again(vec![sending], Some(wait)),
            Next::Behind => Then::Behind(sending, wait),
            Next::Cut => match self.cut(part) {
                Some(halves) => {
                    // As long as nothing gets through, the halves are not sent any faster.
                    let is_blind = batch.trouble.is_blind();
                    let halves = halves.map(|part| Sending {
                        retry: match is_blind {
                            true => sending.retry.again(),
                            false => Retry::new(self.clock.seed()),
                        },
                        part,
                        is_aside: false,
                        hold: None,
                    });
                    Then::Again(halves.into(), Some(wait).filter(|_| is_blind))
                }
                // Only what passes tells a record at fault from a CLS that is down.
                None if batch.trouble.is_blind() => Then::Behind(sending, wait),
                None if sending.is_aside => Then::Aside(sending),
                None => {
                    let host = batch.streams(part).next().map(|stream| &stream.source);
                    error!(
                        topic_id = lane.key().target.topic_id,
                        host,
                        "a record fails again and again while others pass: it is set aside, and tried \
                         from time to time; its container is acknowledged no further"
                    );
                    Then::Aside(Sending {
                        is_aside: true,
                        ..sending
                    })
                }
            },
        }
    }

    /// Waits before the next attempt. Returns the place that was held for it.
    async fn wait<'a>(
        &self,
        lane: &Lane,
        pace: &'a Pace,
        wait: Wait,
        retry: &mut Retry,
    ) -> Option<Hold<'a>> {
        let other_credentials = async {
            match &wait.other_than {
                Some(refused) => {
                    let wanted = &lane.key().credentials;
                    self.credentials.replaced(wanted, refused.as_deref()).await;
                }
                None => std::future::pending().await,
            }
        };
        let _pause = (wait.holds == Holds::Nothing).then(|| lane.pause());
        let hold = (wait.holds == Holds::Place).then(|| pace.hold());
        let may_be_woken = !std::mem::take(&mut retry.was_woken);
        tokio::select! {
            () = tokio::time::sleep(wait.delay) => {}
            // CLS may need a moment to know new ones: it is not kept waiting for long.
            () = other_credentials => retry.backoff.reset(),
            () = pace.recovered(), if may_be_woken => {
                retry.was_woken = true;
                retry.backoff.reset();
            }
        }
        hold
    }

    fn count_delivery(&self, lane: &Lane, part: &Part, failures: u32) {
        let topic_id = lane.key().target.topic_id.as_str();
        if failures > 0 {
            info!(
                topic_id,
                attempts = failures + 1,
                "upload succeeded after failures"
            );
        }
        debug!(
            topic_id,
            logs = part.log_count,
            bytes = part.bytes,
            compressed_bytes = part.body.bytes.len(),
            "batch delivered"
        );
        self.metrics
            .count_delivery(topic_id, part.log_count, part.bytes);
    }

    /// Puts a part into the dead-letter store; returns whether it is there.
    async fn bury(&self, reason: Reason, part: &Part, sent: &mut [Option<Sent>]) -> bool {
        let Some(store) = self.dead_letters.clone() else {
            error!(
                topic_id = reason.topic_id,
                reason = reason.reason,
                code = reason.code,
                "records can't be delivered and no [dead_letter] store is configured, the lane holds"
            );
            return false;
        };
        let list = self.open(part);
        let log_counts: Vec<usize> = list.groups.iter().map(|group| group.logs.len()).collect();
        let now_ms = self.clock.unix_ms();
        let why = reason.clone();
        let tenant = |group: &usize| {
            let sent = sent.get(*group).and_then(Option::as_ref);
            sent.map(|sent| sent.receipt.stream().tenant.clone())
        };
        let tenants: Vec<String> = part.groups.iter().filter_map(tenant).collect();
        let stored = move || store.store(&reason, &list, &tenants, now_ms);
        let stored = tokio::task::spawn_blocking(stored).await;
        match stored {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                error!(error = %Chain(&error), "dead letters can't be stored, the lane holds");
                return false;
            }
            Err(error) => {
                error!(%error, "dead letters can't be stored, the lane holds");
                return false;
            }
        }
        warn!(
            topic_id = why.topic_id,
            reason = why.reason,
            code = why.code,
            message = why.message,
            request_id = why.request_id,
            logs = part.log_count,
            "records are in the dead-letter store"
        );
        self.metrics.dead_letters.inc_by(part.log_count as u64);
        for (group, log_count) in part.groups.iter().zip(log_counts) {
            if let Some(sent) = sent.get_mut(*group).and_then(Option::as_mut) {
                sent.dead_entries += sent.entries(part.first_log..part.first_log + log_count);
            }
        }
        true
    }

    /// Sends a part once, if there are credentials to sign with, when the lane has room for it.
    async fn attempt<'a>(
        &self,
        lane: &Lane,
        sending: &mut Sending<'a>,
        batch: &mut Batch<'a>,
        pace: &'a Pace,
    ) -> Attempt {
        let part = &sending.part;
        let key = lane.key();
        // Before there is a place on the wire: who fetches keys keeps none from using it.
        let endpoint = &key.target.endpoint;
        let snapshot = self.credentials.snapshot(&key.credentials, endpoint).await;
        let credentials = match snapshot {
            Ok(credentials) => credentials,
            Err(error) => {
                if self.credentials.is_vain_look_told() {
                    error!(topic_id = %key.target.topic_id, error = %Chain(&error),
                        "no credentials, the lane holds");
                }
                return Attempt {
                    outcome: None,
                    credentials: None,
                    blame: None,
                };
            }
        };
        let place = pace.place(sending.hold.take()).await;
        let is_own = matches!(key.credentials, CredentialRef::Own(_));
        let _on_wire = self.wire.place(is_own).await;
        let timeouts = batch.streams(part).map(|stream| stream.attempts.timeout);
        let upload = Upload {
            target: &key.target,
            credentials: &credentials,
            body: &part.body,
            timeout: timeouts.min().unwrap_or_default(),
            now_s: self.clock.unix_s(),
        };
        let outcome = self.cloud.upload(upload).await;
        let blame = may_be_own(&outcome).then(|| batch.fail(part, pace));
        place.end(match blame {
            Some(Blame::Batch) => Ended::Otherwise,
            _ => ended(&outcome, &part.body),
        });
        if outcome.is_refusal_of_keys() {
            self.credentials.forget(&key.credentials, &credentials);
        }
        Attempt {
            outcome: Some(outcome),
            credentials: Some(credentials),
            blame,
        }
    }
}

/// Returns whether a failure can be that of one batch alone. Keys and quotas are those of the lane.
fn may_be_own(outcome: &Outcome) -> bool {
    match (disposition(outcome), outcome) {
        (Disposition::Retry { .. }, Outcome::Answer(answer)) => !answer.is_over_quota(),
        (Disposition::Hold, outcome) => matches!(outcome, Outcome::Answer(_)),
        (asked, _) => matches!(asked, Disposition::Retry { .. }),
    }
}

/// Returns whether CLS may have stored a batch, or some of it, that it has not taken.
fn may_be_stored(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Timeout | Outcome::Transport(_) => true,
        // Shards of a topic are filled one after the other.
        Outcome::Answer(answer) => answer.is_over_quota(),
        Outcome::Unsendable(_) => false,
    }
}

/// Returns what the end of a request says about the load that CLS takes.
fn ended(outcome: &Outcome, body: &Body) -> Ended {
    match (disposition(outcome), outcome) {
        (Disposition::Delivered, _) => Ended::Delivered {
            bytes: body.bytes.len(),
        },
        (Disposition::Retry { .. }, Outcome::Answer(answer)) if answer.is_over_quota() => {
            Ended::Overloaded
        }
        (Disposition::Retry { .. }, _) => Ended::Unavailable,
        (Disposition::RetryWithNewCredentials | Disposition::Hold, _) => Ended::Refused,
        (Disposition::Split | Disposition::Bisect, _) => Ended::Otherwise,
    }
}
