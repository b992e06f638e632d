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
use proto::relay::relay_server::Relay;
use proto::relay::{CheckRequest, CheckResponse, HostReport, ReportAck, ShipRequest, ShipResponse};
use tokio::sync::watch;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Status, Streaming};
use tracing::warn;

use crate::buffers::Buffers;
use crate::clock::WallClock;
use crate::credentials::Secret;
use crate::lanes::Lanes;
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::record::{Formatter, Origin};
use crate::route::Router;
use crate::session::Session;
use crate::tenant::{Host, Peer, Tenants};
use crate::tls::dns_names;
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

/// What all sessions share.
#[derive(Debug)]
pub struct Ingest {
    /// Who may do what.
    pub tenants: Tenants,
    /// Where containers' options lead.
    pub router: Router,
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
    /// Bytes at which a piece of records is handed to its lane.
    pub piece_bytes_max: usize,
    /// Logs at which a piece of records is handed to its lane.
    pub piece_logs_max: usize,
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
        let host = self.0.admit(&request)?;
        // Only a peer on TCP has an address.
        let age_max = request.remote_addr().and(self.0.connection_age_max);
        let session = Session::new(Arc::clone(&self.0), host, request.into_inner(), age_max);
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
        let faults = match self.0.router.route(&open.log_opts) {
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
        Ok(Response::new(CheckResponse {
            faults,
            identity: host.tenant().to_owned(),
        }))
    }

    async fn report(
        &self,
        request: Request<Streaming<HostReport>>,
    ) -> Result<Response<ReportAck>, Status> {
        let host = self.0.admit(&request)?;
        let mut reports = request.into_inner();
        while let Some(report) = reports.message().await? {
            if host.may_be(&report.host) {
                self.0.ledger.put(report);
            } else {
                let rule = format!(
                    "tenant {} may not report for {}",
                    host.tenant(),
                    report.host
                );
                return Err(Status::permission_denied(rule));
            }
        }
        Ok(Response::new(ReportAck {}))
    }
}

impl Ingest {
    /// Returns who calls. A refusal is counted, and logged ever more rarely: a stranger must not
    /// fill the log.
    fn admit<T>(&self, request: &Request<T>) -> Result<Host, Status> {
        self.tenants.admit(&peer(request)).map_err(|error| {
            let count = self.metrics.refused_calls.inc() + 1;
            if count.is_power_of_two() {
                let peer = request.remote_addr().map(|address| address.to_string());
                warn!(peer = peer.as_deref().unwrap_or("unix socket"), %error, count, "call refused");
            }
            Status::unauthenticated(error.to_string())
        })
    }
}

fn peer<T>(request: &Request<T>) -> Peer {
    let unix = request.extensions().get::<UdsConnectInfo>();
    let certificates = request.peer_certs();
    let token = request
        .metadata()
        .get("authorization")
        .and_then(|value| value.to_str().ok());
    Peer {
        unix_uid: unix
            .and_then(|info| info.peer_cred)
            .map(|credentials| credentials.uid()),
        certificate_names: certificates
            .and_then(|chain| chain.first().map(dns_names))
            .unwrap_or_default(),
        token: token
            .and_then(|value| value.strip_prefix("Bearer "))
            .map(|token| Secret::new(token.to_owned())),
    }
}
