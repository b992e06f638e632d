//! Ingest: the relay service that drivers call.
//!
//! A call is one host. Its [`Session`] is driven by the response stream itself: polling it reads
//! the next request, formats its entries into their lanes, and hands out what the outbox holds. So
//! a session needs no task or queue of its own, and a dropped connection drops the session, which
//! takes its unsealed records out of the lanes.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream as FutureStream;
use futures_util::stream::unfold;
use proto::limits::REASON_BYTES_MAX;
use proto::relay::relay_server::Relay;
use proto::relay::{CheckRequest, CheckResponse, HostReport, ReportAck, ShipRequest, ShipResponse};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Code, Request, Response, Status, Streaming};
use tracing::warn;

use crate::buffers::Buffers;
use crate::clock::WallClock;
use crate::connection::Arrival;
use crate::credentials::Secret;
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::record::{Formatter, Origin};
use crate::route::{Router, Warned};
use crate::session::{Session, check_host_name};
use crate::tenant::{Host, Peer, Tenants};
use crate::upload::lanes::Lanes;
use crate::window::Budget;

/// Where the process stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Entries are taken.
    Serving,
    /// No more entries are taken; what is in memory is delivered and acknowledged.
    Draining,
    /// Calls end.
    Ended,
}

/// Faults in one answer; there are as many options at least.
const FAULTS_MAX: usize = 64;

/// What streams are opened by.
#[derive(Debug)]
pub struct Policy {
    /// Who may do what.
    pub tenants: Tenants,
    /// Where containers' options lead.
    pub router: Router,
}

/// What all sessions share.
#[derive(Debug)]
pub struct Ingest {
    /// What streams are opened by. When it is replaced, calls end and begin anew.
    pub policy: watch::Sender<Arc<Policy>>,
    /// Containers with keys of their own that were warned of: once, whatever the policy.
    pub warned: Warned,
    /// The lanes.
    pub lanes: Arc<Lanes>,
    /// Memory that windows may grant.
    pub budget: Arc<Budget>,
    /// Buffers of records.
    pub buffers: Arc<Buffers>,
    /// Counters of this process.
    pub metrics: Arc<Metrics>,
    /// Counters of the hosts.
    pub ledger: Arc<Ledger>,
    /// Wall clock, for records that no entry gives a time.
    pub clock: WallClock,
    /// Bytes at which a run of records is handed to its lane.
    pub run_bytes_max: usize,
    /// Logs at which a run of records is handed to its lane.
    pub run_logs_max: usize,
    /// Age at which a call over TCP makes way for another one, which may go elsewhere.
    pub connection_age_max: Option<Duration>,
    /// Where the process stands.
    pub phase: watch::Receiver<Phase>,
}

/// The relay service; cheap to clone.
#[derive(Debug, Clone)]
pub struct RelayService(pub Arc<Ingest>);

type ShipStream = Pin<Box<dyn FutureStream<Item = Result<ShipResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Relay for RelayService {
    type ShipStream = ShipStream;

    async fn ship(
        &self,
        request: Request<Streaming<ShipRequest>>,
    ) -> Result<Response<ShipStream>, Status> {
        // Before the peer is looked at, so that no replacement of it goes unseen.
        let policy = self.0.policy.subscribe();
        let host = self.0.admit(&request)?;
        // Only a peer on TCP has an address.
        let arrival = arrival(&request).cloned().unwrap_or_default();
        let age_max = arrival.address.and(self.0.connection_age_max);
        let inbound = request.into_inner();
        let ingest = Arc::clone(&self.0);
        let session = Session::new(ingest, host, inbound, policy, age_max);
        let responses = unfold(session, |mut session| async move {
            let response = session.next().await?;
            Some((response, session))
        });
        Ok(Response::new(Box::pin(responses)))
    }

    async fn check(
        &self,
        request: Request<CheckRequest>,
    ) -> Result<Response<CheckResponse>, Status> {
        let host = self.0.admit(&request)?;
        let open = request.into_inner();
        let container = open.container.unwrap_or_default();
        let origin = Origin {
            container: &container,
            host: &open.host,
            journal_id: "",
            resume_offset: 0,
        };
        let faults = match self.0.policy().router.route(&open.log_opts) {
            Err(faults) => faults,
            Ok((opts, key)) => {
                let mut faults = host.faults(&open.host, &key.target.topic_id, &key.credentials);
                faults.extend(
                    Formatter::new(&opts, &origin)
                        .err()
                        .into_iter()
                        .flat_map(|error| error.faults),
                );
                faults
            }
        };
        if !faults.is_empty() {
            self.0.note_refusal(&host, "check", &faults);
        }
        Ok(Response::new(CheckResponse {
            faults: faults
                .iter()
                .take(FAULTS_MAX)
                .map(|fault| cut(fault))
                .collect(),
            identity: host.tenant().to_owned(),
        }))
    }

    async fn report(
        &self,
        request: Request<Streaming<HostReport>>,
    ) -> Result<Response<ReportAck>, Status> {
        // Before the peer is looked at, so that no replacement of it goes unseen.
        let mut policy = self.0.policy.subscribe();
        let host = self.0.admit(&request)?;
        let mut reports = request.into_inner();
        loop {
            let report = tokio::select! {
                biased;
                // As streams do, reports begin anew by other rules: the host may be allowed less.
                Ok(()) = policy.changed() => break,
                report = reports.message() => {
                    report.inspect_err(|status| self.0.note_too_large(&host, status))?
                }
            };
            let Some(report) = report else { break };
            if let Err(fault) = self.0.take_report(&host, report) {
                self.0
                    .note_refusal(&host, "report", std::slice::from_ref(&fault));
                return Err(Status::permission_denied(cut(&fault)));
            }
        }
        Ok(Response::new(ReportAck {}))
    }
}

impl Ingest {
    /// Returns what streams are opened by now.
    pub fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy.borrow())
    }

    /// Returns who calls. A refusal is counted, and each kind of it logged ever more rarely: a
    /// stranger must not fill the log.
    fn admit<T>(&self, request: &Request<T>) -> Result<Host, Status> {
        let policy = self.policy();
        match policy.tenants.admit(&peer(request)) {
            Ok(host) => {
                if let Some(arrival) = arrival(request) {
                    arrival.admit();
                }
                Ok(host)
            }
            Err(error) => {
                self.metrics.refused_calls.inc();
                if let Some(count) = policy.tenants.count_stranger(error) {
                    let address = arrival(request).and_then(|arrival| arrival.address);
                    let peer = address.map(|address| address.to_string());
                    warn!(peer = peer.as_deref().unwrap_or("unix socket"), %error, count, "call refused");
                }
                Err(Status::unauthenticated(error.to_string()))
            }
        }
    }

    /// Puts a report into the ledger, if the host may bear its name. What of it finds no place there
    /// is counted and logged as a refusal is, and the call goes on.
    fn take_report(&self, host: &Host, report: HostReport) -> Result<(), String> {
        check_host_name(&report.host)?;
        let tenant = host.tenant();
        if !host.may_be(&report.host) {
            return Err(format!(
                "tenant {tenant} may not report for {}",
                report.host
            ));
        }
        let name = report.host.clone();
        let homeless_count = self.ledger.put(tenant, report);
        if homeless_count > 0 {
            let fault =
                format!("the ledger has no place for {homeless_count} streams of host {name}");
            self.note_refusal(host, "report", &[fault]);
        }
        Ok(())
    }

    /// Counts a message that was too large, on the wire or once it would have been decoded, as a refusal.
    /// Of what ends a call, nothing else has this code.
    pub(crate) fn note_too_large(&self, host: &Host, status: &Status) {
        if status.code() == Code::OutOfRange {
            self.note_refusal(host, "message", &[status.message().to_owned()]);
        }
    }

    /// Counts what a tenant was not allowed, and logs it now and then: a driver asks again.
    pub(crate) fn note_refusal(&self, host: &Host, asked: &'static str, faults: &[String]) {
        self.metrics.count_refusal(host.tenant(), asked);
        if let Some(suppressed_count) = host.may_log_refusal(Instant::now()) {
            let (tenant, reason) = (host.tenant(), cut(&faults.join("; ")));
            warn!(tenant, asked, reason, suppressed_count, "refused");
        }
    }
}

/// Cuts a reason or fault to what an answer may hold.
pub(crate) fn cut(reason: &str) -> String {
    let end = reason.floor_char_boundary(REASON_BYTES_MAX);
    reason.split_at(end).0.to_owned()
}

fn arrival<T>(request: &Request<T>) -> Option<&Arrival> {
    request.extensions().get()
}

fn peer<T>(request: &Request<T>) -> Peer {
    let arrival = arrival(request);
    let token = request
        .metadata()
        .get("authorization")
        .and_then(|value| value.to_str().ok());
    Peer {
        unix_uid: arrival.and_then(|arrival| arrival.unix_uid),
        certificate_names: arrival
            .map(|arrival| arrival.certificate_names.to_vec())
            .unwrap_or_default(),
        token: token
            .and_then(|value| value.strip_prefix("Bearer "))
            .map(|token| Secret::new(token.to_owned())),
    }
}
