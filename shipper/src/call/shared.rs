//! What all calls share, and who may make one.

use std::sync::Arc;
use std::time::Duration;

use proto::limits::REASON_BYTES_MAX;
use proto::relay::HostReport;
use proto::text;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Code, Status};
use tracing::warn;

use crate::base::buffers::Buffers;
use crate::base::clock::WallClock;
use crate::base::phase::Phase;
use crate::base::secret::Secret;
use crate::call::arrival::Arrival;
use crate::call::session::check_host_name;
use crate::lane::window::Budget;
use crate::rules::effective::Rules;
use crate::rules::route::{Router, Warned};
use crate::rules::tenant::{Host, Peer, Tenants};
use crate::show::ledger::Ledger;
use crate::show::metrics::Metrics;
use crate::upload::lanes::Lanes;

/// What streams are opened by.
#[derive(Debug)]
pub struct Policy {
    /// Who may do what.
    pub tenants: Tenants,
    /// Options for containers by what they are.
    pub rules: Rules,
    /// Where containers' options lead.
    pub router: Router,
}

/// What all sessions share.
#[derive(Debug)]
pub struct Shared {
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

/// Who makes a call. It comes with the call's request, whose body nobody looks at without it.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The host.
    pub host: Host,
    /// The rules by which it was admitted, and those that take their place.
    pub policy: watch::Receiver<Arc<Policy>>,
    /// Its connection.
    pub arrival: Arrival,
}

impl Shared {
    /// Returns what streams are opened by now.
    pub fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.policy.borrow())
    }

    /// Returns who calls, by the headers of the call and what is known of its connection. A refusal is
    /// counted, and each kind of it logged ever more rarely: a stranger must not fill the log.
    ///
    /// # Errors
    /// It is a stranger; the status says what it could show.
    pub fn admit(
        &self,
        headers: &http::HeaderMap,
        extensions: &http::Extensions,
    ) -> Result<Caller, Status> {
        // Before the peer is looked at, so that no replacement of it goes unseen.
        let rules = self.policy.subscribe();
        let policy = self.policy();
        let arrival: Arrival = extensions.get().cloned().unwrap_or_default();
        match policy.tenants.admit(&peer(headers, &arrival)) {
            Ok(host) => {
                arrival.admit();
                Ok(Caller {
                    host,
                    policy: rules,
                    arrival,
                })
            }
            Err(error) => {
                self.metrics.refused_calls.inc();
                if let Some(count) = policy.tenants.count_stranger(error) {
                    let peer = arrival.address.map(|address| address.to_string());
                    warn!(peer = peer.as_deref().unwrap_or("unix socket"), %error, count, "call refused");
                }
                Err(Status::unauthenticated(error.to_string()))
            }
        }
    }

    /// Puts a report into the ledger, if the host may bear its name. What of it finds no place there
    /// is counted and logged as a refusal is, and the call goes on.
    pub(super) fn take_report(&self, host: &Host, report: HostReport) -> Result<(), String> {
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

/// Cuts a reason or fault to what an answer may hold. It may quote a container's options: what a terminal
/// would obey is not among it.
pub(crate) fn cut(reason: &str) -> String {
    let end = reason.floor_char_boundary(REASON_BYTES_MAX);
    text::clean(reason.split_at(end).0).into_owned()
}

fn peer(headers: &http::HeaderMap, arrival: &Arrival) -> Peer {
    let token = headers
        .get(http::header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    Peer {
        unix_uid: arrival.unix_uid,
        certificate_names: arrival.certificate_names.to_vec(),
        token: token
            .and_then(|value| value.strip_prefix("Bearer "))
            .map(|token| Secret::new(token.to_owned())),
    }
}
