//! The `Report` calls: the counters of the host, every few seconds.

use super::connect::Client;
use proto::relay::{HostReport, ReportAck};
use std::future::Future;
use std::pin::Pin;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};

/// The `Report` calls: one per report, since the answer to a call says that what it told is noted.
/// The last one stays open until the next report, so that there is always one which a connection
/// that breaks ends: a `Ship` call that has not begun goes to the next connection, perhaps to
/// another shipper, and lives on.
pub(super) struct Reports {
    client: Client,
    /// With what keeps it open.
    open: Option<(Reporting, mpsc::Sender<HostReport>)>,
    /// The one before, until it is answered.
    closed: Option<Reporting>,
}

/// One `Report` call.
struct Reporting {
    answer: Pin<Box<dyn Future<Output = Result<Response<ReportAck>, Status>> + Send>>,
    /// Number behind the last finished stream of which it tells.
    first_new: u64,
}

impl Reports {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            open: None,
            closed: None,
        }
    }

    /// Sends a report, unless the last but one still waits for its answer; returns whether it did.
    pub(super) fn send(&mut self, report: HostReport, first_new: u64) -> bool {
        if self.closed.is_some() {
            return false;
        }
        let (sender, reports) = mpsc::channel(1);
        // The channel is empty: there is room.
        sender.try_send(report).ok();
        let mut client = self.client.clone();
        let answer = Box::pin(async move { client.report(ReceiverStream::new(reports)).await });
        let reporting = Reporting { answer, first_new };
        let last = self.open.replace((reporting, sender));
        self.closed = last.map(|(reporting, _)| reporting);
        true
    }

    /// Waits until a call ends, for ever if there is none. Returns up to which number the shipper
    /// has noted the finished streams.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn ended(&mut self) -> Result<u64, Status> {
        let Self { open, closed, .. } = self;
        let open_ends = async {
            match open {
                Some((reporting, _)) => (&mut reporting.answer).await,
                None => std::future::pending().await,
            }
        };
        let closed_ends = async {
            match closed {
                Some(reporting) => (&mut reporting.answer).await.map(|_| reporting.first_new),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            confirmed = closed_ends => {
                self.closed = None;
                confirmed
            }
            ended = open_ends => {
                self.open = None;
                Err(ended.err().unwrap_or_else(|| Status::cancelled("the shipper ended the call")))
            }
        }
    }
}
