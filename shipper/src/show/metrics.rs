//! Counters of the process, in Prometheus' terms. No metric names a secret; topics and hosts are
//! labels, containers are not: their number has no bound. `/api/ledger` has them.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::cls::disposition::Disposition;
use crate::show::ledger::Line;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Topic {
    topic_id: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    topic_id: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refusal {
    tenant: String,
    asked: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LedgerEntry {
    host: String,
    fate: &'static str,
}

/// All metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    ledger_entries: Family<LedgerEntry, Gauge<u64, AtomicU64>>,
    requests: Family<Request, Counter>,
    delivered_logs: Family<Topic, Counter>,
    delivered_bytes: Family<Topic, Counter>,
    /// Records in the dead-letter store since the start.
    pub dead_letters: Counter,
    /// Entries received from drivers.
    pub received_entries: Counter,
    /// Entries that a filter took out.
    pub filtered_entries: Counter,
    /// Entries that are not protobuf, or frames that are none.
    pub malformed_entries: Counter,
    /// Entries that a driver reported as dropped.
    pub dropped_entries: Counter,
    refusals: Family<Refusal, Counter>,
    /// Calls of peers that no tenant is for.
    pub refused_calls: Counter,
    /// Connections beyond their listener's bound.
    pub refused_connections: Counter,
    /// Streams that started over because a task of theirs failed.
    pub restarted_streams: Counter,
    /// Connected drivers.
    pub hosts: Gauge,
    /// Open streams.
    pub streams: Gauge,
    /// Batches that are being sent or wait for their next attempt.
    pub batches: Gauge,
    /// Granted window bytes beyond each stream's minimum.
    pub granted_bytes: Gauge<u64, AtomicU64>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("cls_shipper");
        macro_rules! metric {
            ($name:literal, $help:literal) => {{
                let metric = Default::default();
                registry.register($name, $help, Clone::clone(&metric));
                metric
            }};
            ($name:literal, $help:literal, $unit:expr) => {{
                let metric = Default::default();
                registry.register_with_unit($name, $help, $unit, Clone::clone(&metric));
                metric
            }};
        }
        Self {
            requests: metric!(
                "upload_requests",
                "Upload requests by what their answer asked for"
            ),
            delivered_logs: metric!("delivered_logs", "Records that CLS has accepted"),
            delivered_bytes: metric!(
                "delivered",
                "Bytes of accepted batches before compression",
                Unit::Bytes
            ),
            dead_letters: metric!("dead_letters", "Records put into the dead-letter store"),
            received_entries: metric!("received_entries", "Entries received"),
            filtered_entries: metric!("filtered_entries", "Entries filtered"),
            malformed_entries: metric!("malformed_entries", "Entries that are malformed"),
            dropped_entries: metric!(
                "dropped_entries",
                "Entries that drivers reported as dropped"
            ),
            refused_calls: metric!("refused_calls", "Calls that no tenant is for"),
            refused_connections: metric!("refused_connections", "Connections too many"),
            refusals: metric!(
                "refusals",
                "Streams (open), options (check) and reports (report) refused"
            ),
            restarted_streams: metric!(
                "restarted_streams",
                "Streams that started over because a task of theirs failed"
            ),
            hosts: metric!("hosts", "Connected drivers"),
            streams: metric!("streams", "Open streams"),
            batches: metric!(
                "batches",
                "Batches that are being sent or wait for their next attempt"
            ),
            granted_bytes: metric!(
                "granted_window",
                "Window bytes granted beyond minima",
                Unit::Bytes
            ),
            ledger_entries: metric!(
                "ledger_entries",
                "Entries of the streams in the ledger, by what became of them, as their hosts count"
            ),
            registry,
        }
    }
}

impl Metrics {
    /// Counts a request by what its answer asked for.
    pub fn count_request(&self, topic_id: &str, asked: Disposition) {
        let outcome = match asked {
            Disposition::Delivered => "delivered",
            Disposition::Retry { .. } => "retry",
            Disposition::RetryWithNewCredentials => "credentials",
            Disposition::Split => "split",
            Disposition::Bisect => "bisect",
            Disposition::Hold => "hold",
        };
        self.requests
            .get_or_create(&Request {
                topic_id: topic_id.to_owned(),
                outcome,
            })
            .inc();
    }

    /// Counts what a tenant asked and was refused: `open`, `check`, `report`, or `message` for one that is
    /// too large.
    pub fn count_refusal(&self, tenant: &str, asked: &'static str) {
        let tenant = tenant.to_owned();
        let refusal = Refusal { tenant, asked };
        self.refusals.get_or_create(&refusal).inc();
    }

    /// Counts a delivered batch.
    pub fn count_delivery(&self, topic_id: &str, log_count: usize, bytes: usize) {
        let topic = Topic {
            topic_id: topic_id.to_owned(),
        };
        self.delivered_logs
            .get_or_create(&topic)
            .inc_by(log_count as u64);
        self.delivered_bytes
            .get_or_create(&topic)
            .inc_by(bytes as u64);
    }

    /// Shows what the hosts count, summed up per host.
    pub fn show_ledger(&self, lines: &[Line]) {
        self.ledger_entries.clear();
        for line in lines {
            for (fate, entries) in line.fates() {
                let labels = LedgerEntry {
                    host: line.host.clone(),
                    fate,
                };
                self.ledger_entries.get_or_create(&labels).inc_by(entries);
            }
        }
    }

    /// Returns all metrics in Prometheus' text format.
    ///
    /// # Panics
    /// Never: a `String` takes all that is written.
    pub fn render(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a String takes all that is written");
        text
    }
}
