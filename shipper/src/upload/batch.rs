//! Uploads: from a lane's sealed batches to CLS's 200, and from there to the acknowledgement.
//!
//! Each batch has a task of its own that tries until CLS takes it: jittered backoff, credentials
//! taken anew for each attempt. What an operator must repair holds the lane, whose streams then get
//! no more credit, and their bytes wait in the journals of their hosts; another key ends the wait at
//! once. What CLS refuses for its size or content is halved until the record at fault is alone, and
//! that one goes to the dead-letter store; where there is no store, or it is full, the lane holds.
//! How many requests a lane has in flight adapts to what CLS answers, and how fast (see
//! [`concurrency`](crate::upload::concurrency)); after an outage the first batch that gets through wakes the
//! others.
//!
//! A batch lives as long as one of its streams: when all have left, because their driver is gone or
//! has dialled anew, nobody waits for it, and the driver sends its records again. So reconnections
//! in an outage pile up neither memory nor copies. A repeat leaves out the groups of streams that
//! have left.

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
use crate::lane::queue::{Group, Lane};
use crate::send::client::Cloud;
use crate::show::metrics::Metrics;
use crate::upload::concurrency::Ended;
use crate::upload::cut::{Part, Sent};
use crate::upload::letters::{DeadLetters, Reason};
use crate::upload::pace::Pace;
use crate::upload::report::{reason, report};
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

/// How the attempts to send a part ended.
enum End {
    Delivered,
    /// All its streams have left.
    Gone,
    /// CLS will not take it as it is, but maybe a half of it.
    Refused(Reason),
    /// The container's own limit of attempts is reached.
    GivenUp(Reason),
}

/// How one attempt ended, and with which credentials; those are `None` if there are none.
struct Attempt {
    outcome: Option<Outcome>,
    credentials: Option<Arc<Credentials>>,
}

/// What ends the time between two attempts, besides the news that CLS is well again.
struct Wait<'a> {
    delay: Duration,
    /// Whether other credentials end it, and other than which: than none if there were none.
    other_than: Option<Option<&'a Credentials>>,
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

impl Uploader {
    pub(super) async fn deliver(&self, lane: &Lane, groups: Vec<Group>, pace: &Pace) {
        let (whole, mut sent) = self.encode(groups);
        let mut parts = vec![whole];
        while let Some(mut part) = parts.pop() {
            let ended = self.deliver_part(lane, &mut part, &sent, pace);
            let reason = match ended.await {
                End::Delivered | End::Gone => continue,
                End::Refused(reason) => {
                    if let Some([first, second]) = self.cut(&part) {
                        parts.extend([second, first]);
                        continue;
                    }
                    reason
                }
                End::GivenUp(reason) => reason,
            };
            if !self.bury(reason, &part, &mut sent).await {
                tokio::time::sleep(BACKOFF_CAP).await;
                parts.push(part);
            }
        }
        for sent in sent {
            sent.receipt.complete(sent.dead_entries);
        }
    }

    /// Sends a part until CLS takes it or refuses it for good.
    async fn deliver_part(&self, lane: &Lane, part: &mut Part, sent: &[Sent], pace: &Pace) -> End {
        let mut retry = Retry::new(self.clock.seed());
        loop {
            self.leave_out_gone(part, sent);
            if part.groups.is_empty() {
                return End::Gone;
            }
            let Attempt {
                outcome,
                credentials,
            } = self.attempt(lane, part, pace).await;
            let Some(outcome) = outcome else {
                let wait = Wait {
                    delay: retry.backoff.next_delay(),
                    other_than: Some(None),
                };
                self.wait(lane, pace, wait, &mut retry).await;
                continue;
            };
            let asked = disposition(&outcome);
            let topic_id = lane.key().target.topic_id.as_str();
            self.metrics.count_request(topic_id, asked);
            if matches!(asked, Disposition::Split | Disposition::Bisect) {
                return End::Refused(reason(lane, outcome, asked));
            }
            if asked == Disposition::Delivered {
                self.count_delivery(lane, part, retry.attempt_count);
                return End::Delivered;
            }
            let delay = retry.failed(asked);
            let attempts = retry.attempt_count;
            report(lane, &outcome, asked, attempts, delay, self.clock.unix_s());
            let attempts_max = lane.key().attempts_max;
            if attempts_max > 0 && attempts >= attempts_max {
                return End::GivenUp(reason(lane, outcome, asked));
            }
            let refused = credentials.filter(|_| !matches!(asked, Disposition::Retry { .. }));
            let wait = Wait {
                delay,
                other_than: refused.as_deref().map(Some),
            };
            self.wait(lane, pace, wait, &mut retry).await;
        }
    }

    /// Waits before the next attempt.
    async fn wait(&self, lane: &Lane, pace: &Pace, wait: Wait<'_>, retry: &mut Retry) {
        let other_credentials = async {
            match wait.other_than {
                Some(refused) => {
                    let wanted = &lane.key().credentials;
                    self.credentials.replaced(wanted, refused).await;
                }
                None => std::future::pending().await,
            }
        };
        let may_be_woken = !std::mem::take(&mut retry.was_woken);
        tokio::select! {
            () = tokio::time::sleep(wait.delay) => {}
            // CLS may need a moment to know new ones: it is not kept waiting for long.
            () = other_credentials => retry.backoff.reset(),
            () = pace.recovered(), if may_be_woken => retry.was_woken = true,
        }
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
    async fn bury(&self, reason: Reason, part: &Part, sent: &mut [Sent]) -> bool {
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
            sent.get(*group)
                .map(|sent| sent.receipt.stream().tenant.clone())
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
            if let Some(sent) = sent.get_mut(*group) {
                sent.dead_entries += sent.entries(part.first_log..part.first_log + log_count);
            }
        }
        true
    }

    /// Sends a part once, if there are credentials to sign with, when the lane has room for it.
    async fn attempt(&self, lane: &Lane, part: &Part, pace: &Pace) -> Attempt {
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
                };
            }
        };
        let place = pace.place().await;
        let is_own = matches!(key.credentials, CredentialRef::Own(_));
        let _on_wire = self.wire.place(is_own).await;
        let upload = Upload {
            target: &key.target,
            credentials: &credentials,
            body: &part.body,
            timeout: key.timeout,
            now_s: self.clock.unix_s(),
        };
        let outcome = self.cloud.upload(upload).await;
        place.end(ended(&outcome, &part.body));
        if outcome.is_refusal_of_keys() {
            self.credentials.forget(&key.credentials, &credentials);
        }
        Attempt {
            outcome: Some(outcome),
            credentials: Some(credentials),
        }
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
