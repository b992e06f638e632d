//! The `Report` call: the counters of the host's streams, every few seconds.

use super::connect::Client;
use proto::relay::{HostReport, ReportAck};
use std::future::Future;
use std::pin::Pin;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};

/// The `Report` call. It stays open between reports, so that there is always a call which a connection
/// that breaks ends: a `Ship` call that has not begun goes to the next connection, perhaps to another
/// shipper, and lives on.
pub(super) struct Reports {
    client: Client,
    open: Option<(Answer, mpsc::Sender<HostReport>)>,
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<ReportAck>, Status>> + Send>>;

impl Reports {
    pub(super) fn new(client: Client) -> Self {
        Self { client, open: None }
    }

    /// Sends a report, unless the last one has not left yet.
    pub(super) fn send(&mut self, report: HostReport) {
        let (_, sender) = self.open.get_or_insert_with(|| {
            let (sender, reports) = mpsc::channel(1);
            let mut client = self.client.clone();
            let answer: Answer =
                Box::pin(async move { client.report(ReceiverStream::new(reports)).await });
            (answer, sender)
        });
        // The next one says all that this one would have.
        sender.try_send(report).ok();
    }

    /// Waits until the call ends, for ever if there is none. The next report begins another one.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn ended(&mut self) -> Status {
        let ended = match &mut self.open {
            Some((answer, _)) => answer.await,
            None => std::future::pending().await,
        };
        self.open = None;
        let in_good_order = || Status::cancelled("the shipper ended the call");
        ended.err().unwrap_or_else(in_good_order)
    }
}
