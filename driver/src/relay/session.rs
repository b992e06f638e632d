//! One `Ship` call, until it ends.
//!
//! When something has arrived, a pass over the streams ([`Gatherer`]) fills a request, at most one per
//! [`TICK`] unless the last one was full or credit came back. With nothing to send there are requests
//! without events, ever more rarely, and then one with each report: they tell the shipper that what it
//! misses is not on its way. Acknowledgements are saved as they come, because what is not saved is sent
//! again after a crash.

use super::connect::Client;
use super::explain::{self, Explanation};
use super::gather::{GatherOutput, Gatherer};
use super::idle_notice::{IdleNotice, REPORT_INTERVAL};
use super::pass::Pass;
use super::reports::Reports;
use crate::config::Endpoint;
use crate::registry::Signals;
use proto::relay::event::Kind;
use proto::relay::{Event, ShipRequest, ShipResponse};
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};

/// Time that small amounts are gathered for.
const TICK: Duration = Duration::from_millis(10);

/// How long acknowledgements wait for a pass that gathers, unless somebody waits for them.
const ACK_WAIT_MAX: Duration = Duration::from_millis(50);

/// Responses that are held while a pass is under way; beyond it the call is not read. Together they
/// are at most as many times `RESPONSE_BYTES_MAX` on the wire, and twice that in memory.
const RESPONSES_HELD_MAX: usize = 16;

/// How long a stopping driver waits for the acknowledgement of what is in flight.
pub(crate) const FINISH_WAIT_MAX: Duration = Duration::from_secs(2);

/// How long a shipper may say nothing at all although streams wait to be accepted, where there is another
/// one. Keepalive finds a peer that is dead; one that hangs still answers pings.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(20);

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionEnd {
    #[error("the driver stops")]
    Shutdown,
    #[error("the shipper ended the call")]
    Ended,
    #[error("the call failed: {}", explain::shown(.0.message()))]
    Failed(#[from] Status),
    #[error("the shipper broke the contract: {0}")]
    Fault(String),
    #[error("a pass over the journals failed")]
    Pass,
    #[error("it has taken streams, and said nothing of them within {} s", ANSWER_WAIT_MAX.as_secs())]
    Silent,
}

impl SessionEnd {
    /// Returns why, with its causes, and what to do about it.
    pub(super) fn explain(&self, endpoint: &Endpoint) -> Explanation {
        match self {
            Self::Failed(status) if status.code() != tonic::Code::Unauthenticated => {
                Explanation::new(endpoint, status)
            }
            Self::Failed(_)
            | Self::Shutdown
            | Self::Ended
            | Self::Fault(_)
            | Self::Pass
            | Self::Silent => Explanation::plain(self.to_string()),
        }
    }
}

/// The `Ship` call. A server may answer it only when the first request has come.
enum Call {
    Begun(Pin<Box<dyn Future<Output = Answer> + Send>>),
    Answered(Box<Streaming<ShipResponse>>),
}

type Answer = Result<Response<Streaming<ShipResponse>>, Status>;

impl Call {
    /// Returns the next response; `None` when the shipper has ended the call.
    ///
    /// # Cancel safety
    /// Cancel safe.
    async fn next(&mut self) -> Result<Option<ShipResponse>, Status> {
        loop {
            match self {
                Self::Begun(answer) => {
                    let answer = answer.await?;
                    *self = Self::Answered(Box::new(answer.into_inner()));
                }
                Self::Answered(responses) => return responses.message().await,
            }
        }
    }
}

/// Streams that wait to be accepted or refused, and since when the shipper has said nothing.
#[derive(Debug, Default)]
struct Unanswered {
    count: usize,
    silent_since: Option<Instant>,
    /// There is another shipper to go to.
    has_other: bool,
}

impl Unanswered {
    fn asked(&mut self, request: &ShipRequest, now: Instant) {
        let is_open = |event: &&Event| matches!(event.kind, Some(Kind::Open(_)));
        let opens = request.events.iter().filter(is_open).count();
        if self.count == 0 {
            self.silent_since = Some(now);
        }
        self.count += opens;
    }

    fn heard(&mut self, response: &ShipResponse, now: Instant) {
        let answers = response.opened.len() + response.refused.len();
        self.count = self.count.saturating_sub(answers);
        self.silent_since = Some(now);
    }

    /// Returns when another shipper is tried.
    fn due(&self) -> Option<Instant> {
        let waits = self.has_other && self.count > 0;
        let since = self.silent_since.filter(|_| waits)?;
        Some(since + ANSWER_WAIT_MAX)
    }
}

pub(super) struct Session {
    pub(super) pass: Pass,
    call: Call,
    reports: Reports,
    pub(super) responses: Vec<ShipResponse>,
    /// When the responses are applied at the latest.
    apply_at: Option<Instant>,
    /// A stream waits for credit, which an acknowledgement may give.
    wants_credit: bool,
    /// A request that the call has not taken yet.
    outbox: Option<ShipRequest>,
    /// When the next pass gathers; `None` with nothing to gather.
    gather_at: Option<Instant>,
    gathered_at: Option<Instant>,
    idle_notice: IdleNotice,
    /// When a stream is to be tried again although nothing arrives.
    wake_at: Option<Instant>,
    report_at: Instant,
    unanswered: Unanswered,
    /// Set when the driver stops: nothing more is sent, and acknowledgements are awaited.
    finish_by: Option<Instant>,
    pub(super) was_useful: bool,
}

impl Session {
    /// Begins a call.
    pub(super) fn new(
        client: &Client,
        gatherer: Box<Gatherer>,
        has_other: bool,
    ) -> (Self, mpsc::Sender<ShipRequest>) {
        let (requests, outbound) = mpsc::channel(1);
        let mut shipping = client.clone();
        let now = Instant::now();
        let session = Self {
            pass: Pass::start(gatherer, move |gatherer| {
                gatherer.reset(now);
                GatherOutput::default()
            }),
            call: Call::Begun(Box::pin(async move {
                shipping.ship(ReceiverStream::new(outbound)).await
            })),
            reports: Reports::new(client.clone()),
            responses: Vec::new(),
            apply_at: None,
            wants_credit: false,
            outbox: None,
            gather_at: Some(now),
            gathered_at: None,
            idle_notice: IdleNotice::default(),
            wake_at: None,
            report_at: now,
            unanswered: Unanswered {
                has_other,
                ..Unanswered::default()
            },
            finish_by: None,
            was_useful: false,
        };
        (session, requests)
    }

    pub(super) async fn run(
        &mut self,
        signals: &Signals,
        shutdown: &mut watch::Receiver<bool>,
        requests: mpsc::Sender<ShipRequest>,
    ) -> SessionEnd {
        loop {
            let now = Instant::now();
            if let Some(end) = self.step(now) {
                return end;
            }
            let timer = self.timer();
            let is_stopping = self.finish_by.is_some();
            tokio::select! {
                response = self.call.next(), if self.responses.len() < RESPONSES_HELD_MAX => {
                    match response {
                        Ok(Some(response)) => {
                            self.was_useful |= !response.opened.is_empty();
                            let heard_at = Instant::now();
                            self.unanswered.heard(&response, heard_at);
                            self.hold_response(response, heard_at);
                        }
                        Ok(None) => return SessionEnd::Ended,
                        Err(status) => return SessionEnd::Failed(status),
                    }
                }
                output = self.pass.done() => {
                    let Some(output) = output else {
                        return SessionEnd::Pass;
                    };
                    if let Some(fault) = self.take_output(output) {
                        return SessionEnd::Fault(fault);
                    }
                }
                permit = requests.reserve(), if self.outbox.is_some() => {
                    // An error says that the call has ended; the call itself says why.
                    if let (Ok(permit), Some(request)) = (permit, self.outbox.take()) {
                        self.unanswered.asked(&request, Instant::now());
                        permit.send(request);
                    }
                }
                () = signals.arrived.notified(), if self.gather_at.is_none() => {
                    let earliest = self.gathered_at.map_or(now, |at| at + TICK);
                    self.gather_at = Some(earliest);
                }
                () = sleep_until(timer.unwrap_or(now)), if timer.is_some() => {}
                status = self.reports.ended() => {
                    tracing::debug!(%status, "the shipper takes no reports for now");
                }
                _ = shutdown.wait_for(|&is_stopping| is_stopping), if !is_stopping => {
                    self.finish_by = Some(now + FINISH_WAIT_MAX);
                }
            }
        }
    }

    /// Keeps a response until it is applied: with the next pass that gathers, soon if it only
    /// acknowledges, at once if something may be sent because of it.
    fn hold_response(&mut self, response: ShipResponse, now: Instant) {
        let is_ack = response.opened.is_empty()
            && response.windows.is_empty()
            && response.refused.is_empty()
            && !response.acks.iter().any(|ack| ack.is_last);
        let may_wait = is_ack && !self.wants_credit && self.finish_by.is_none();
        let at = if may_wait { now + ACK_WAIT_MAX } else { now };
        self.apply_at = Some(self.apply_at.map_or(at, |earlier| earlier.min(at)));
        self.responses.push(response);
    }

    /// Starts what is due. Returns why the session ends, if it does.
    fn step(&mut self, now: Instant) -> Option<SessionEnd> {
        if self.finish_by.is_some_and(|by| by <= now) {
            return Some(SessionEnd::Shutdown);
        }
        if self.unanswered.due().is_some_and(|due| due <= now) {
            return Some(SessionEnd::Silent);
        }
        if self.wake_at.is_some_and(|at| at <= now) {
            self.wake_at = None;
            self.gather_at = Some(now);
        }
        let reports = self.report_at <= now;
        let is_quiet = self.idle_notice.due().is_some_and(|at| at <= now);
        let tells_time = self.may_gather() && (reports || is_quiet);
        let gathers = tells_time || self.may_gather() && self.gather_at.is_some_and(|at| at <= now);
        let is_full = self.responses.len() >= RESPONSES_HELD_MAX;
        let is_stopping = self.finish_by.is_some() && !self.responses.is_empty();
        let applies = is_full || is_stopping || self.apply_at.is_some_and(|at| at <= now);
        let Pass::Idle(idle) = &mut self.pass else {
            return None;
        };
        if !gathers && !reports && !applies {
            let is_settled = idle
                .as_ref()
                .is_none_or(|gatherer| !gatherer.has_in_flight());
            let is_done = self.finish_by.is_some() && is_settled;
            return is_done.then_some(SessionEnd::Shutdown);
        }
        let Some(gatherer) = idle.take() else {
            return Some(SessionEnd::Pass);
        };
        if gathers {
            self.gather_at = None;
            self.gathered_at = Some(now);
        }
        if reports {
            self.report_at = now + REPORT_INTERVAL;
        }
        self.apply_at = None;
        let mut responses = std::mem::take(&mut self.responses);
        self.pass = Pass::start(gatherer, move |gatherer| {
            let mut output = gatherer.apply(&mut responses, now);
            if gathers && output.fault.is_none() {
                gatherer.gather(now, tells_time, &mut output);
                // What came while the disk was read may be among it.
                gatherer.stamp(&mut output, Instant::now());
            }
            if reports {
                output.report = Some(gatherer.report());
            }
            output
        });
        None
    }

    /// Returns whether a request may be filled: the last one is on its way, and the driver does
    /// not stop.
    fn may_gather(&self) -> bool {
        self.outbox.is_none() && self.finish_by.is_none()
    }

    /// Returns when something is due that nothing else tells.
    fn timer(&self) -> Option<Instant> {
        if self.pass.is_running() {
            return self.finish_by;
        }
        let gather_at = self.gather_at.filter(|_| self.may_gather());
        let quiet_at = self.idle_notice.due().filter(|_| self.may_gather());
        let report_at = Some(self.report_at);
        let silent_at = self.unanswered.due();
        let all = [
            gather_at,
            quiet_at,
            report_at,
            silent_at,
            self.apply_at,
            self.wake_at,
            self.finish_by,
        ];
        all.into_iter().flatten().min()
    }

    /// Takes what a pass found. Returns how the shipper broke the contract, if it did.
    fn take_output(&mut self, output: GatherOutput) -> Option<String> {
        if let Some(request) = output.request {
            self.idle_notice.follow(&request, Instant::now());
            self.outbox = Some(request);
        }
        if output.has_more || output.has_credit {
            self.gather_at = Some(Instant::now());
        }
        self.wake_at = output.wake_at;
        self.wants_credit = output.wants_credit;
        if let Some(report) = output.report {
            self.reports.send(report);
        }
        output.fault
    }
}
