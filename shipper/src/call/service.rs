//! The relay service that drivers call.
//!
//! A call is one host. Its [`Session`] is driven by the response stream itself: polling it reads
//! the next request, formats its entries into their lanes, and hands out what the outbox holds. So
//! a session needs no task or queue of its own, and a dropped connection drops the session, which
//! takes its unsealed records out of the lanes.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream as FutureStream;
use futures_util::stream::unfold;
use proto::relay::relay_server::Relay;
use proto::relay::{CheckRequest, CheckResponse, HostReport, ReportAck, ShipRequest, ShipResponse};
use tonic::{Request, Response, Status, Streaming};

use crate::call::session::Session;
use crate::call::shared::{Caller, Shared, cut};
use crate::record::{Formatter, Origin};
use crate::rules::effective::Subject;

/// Faults in one answer; there are as many options at least.
const FAULTS_MAX: usize = 64;

/// The relay service; cheap to clone.
#[derive(Debug, Clone)]
pub struct RelayService(pub Arc<Shared>);

type ShipStream = Pin<Box<dyn FutureStream<Item = Result<ShipResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Relay for RelayService {
    type ShipStream = ShipStream;

    async fn ship(
        &self,
        request: Request<Streaming<ShipRequest>>,
    ) -> Result<Response<ShipStream>, Status> {
        let Caller {
            host,
            policy,
            arrival,
        } = caller(&request)?;
        // Only a peer on TCP has an address.
        let age_max = arrival.address.and(self.0.connection_age_max);
        let inbound = request.into_inner();
        let shared = Arc::clone(&self.0);
        let session = Session::new(shared, host, inbound, policy, age_max);
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
        let Caller { host, .. } = caller(&request)?;
        let open = request.into_inner();
        let container = open.container.unwrap_or_default();
        let origin = Origin {
            container: &container,
            host: &open.host,
            journal_id: "",
            resume_offset: 0,
            left_out: "",
        };
        let policy = self.0.policy();
        let subject = Subject {
            tenant: host.tenant(),
            host: &open.host,
            container: &container,
        };
        let effective = policy.rules.apply(subject, &open.log_opts);
        let faults = match policy.router.route(&effective.log_opts) {
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
        let faults = effective.named(faults);
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
        let Caller {
            host, mut policy, ..
        } = caller(&request)?;
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

/// Returns who calls.
///
/// # Errors
/// Nobody has asked: the service is reached without admission, which is our own fault.
fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    let caller = request.extensions().get().cloned();
    caller.ok_or_else(|| Status::internal("the call was not admitted"))
}
