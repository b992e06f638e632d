//! Counters of the process, in Prometheus' terms. No metric names a secret; topics and hosts are
//! labels, containers are not: their number has no bound. `/api/ledger` has them.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Registry, Unit};
use tokio::time::Instant;

use crate::cls::disposition::Disposition;
use crate::show::ledger::Ledger;

/// How long a topic's numbers stay after its last lane: several scrapes.
const TOPIC_GONE_WAIT: Duration = Duration::from_secs(600);

/// What an answer asked for, as it is labelled.
const OUTCOMES: [&str; 6] = [
    "delivered",
    "retry",
    "credentials",
    "split",
    "bisect",
    "hold",
];

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
struct Mask {
    mask: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refusal {
    tenant: String,
    asked: &'static str,
}

/// Reads, when it is scraped, what others count: two scrapes at once see the same.
struct Readings {
    ledger: Arc<Ledger>,
    granted_bytes: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl fmt::Debug for Readings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Readings").finish_non_exhaustive()
    }
}

impl Collector for Readings {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let sums = self.ledger.sums();
        let help = "Entries of a host's streams, by what became of them, as the host counts";
        let entries = ConstCounter::new(0_u64);
        let mut family =
            encoder.encode_descriptor("ledger_entries", help, None, entries.metric_type())?;
        for (host, sums) in &sums {
            for (fate, entries) in [
                ("delivered", sums.delivered),
                ("filtered", sums.filtered),
                ("dropped", sums.dropped),
                ("dead_lettered", sums.dead_lettered),
            ] {
                let labels = [("host", host.as_str()), ("fate", fate)];
                ConstCounter::new(entries).encode(family.encode_family(&labels)?)?;
            }
        }
        let help = "Entries of a host's streams that wait, in its journals or here";
        let waiting = ConstGauge::new(0_u64);
        let mut family = encoder.encode_descriptor(
            "ledger_buffered_entries",
            help,
            None,
            waiting.metric_type(),
        )?;
        for (host, sums) in &sums {
            let labels = [("host", host.as_str())];
            ConstGauge::new(sums.buffered).encode(family.encode_family(&labels)?)?;
        }
        let granted = ConstGauge::new((self.granted_bytes)());
        let help = "Window bytes granted beyond minima";
        let gauge = encoder.encode_descriptor(
            "granted_window",
            help,
            Some(&Unit::Bytes),
            granted.metric_type(),
        )?;
        granted.encode(gauge)
    }
}

/// Topics with lanes, and those whose label sets wait to be removed.
#[derive(Debug, Default)]
struct Topics {
    lane_counts: HashMap<String, usize>,
    /// When each was left by its last lane, oldest first.
    gone: VecDeque<(Instant, String)>,
}

/// All metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    topics: Mutex<Topics>,
    requests: Family<Request, Counter>,
    delivered_logs: Family<Topic, Counter>,
    delivered_bytes: Family<Topic, Counter>,
    /// Records in the dead-letter store since the start.
    pub dead_letters: Counter,
    /// Entries received from drivers.
    pub received_entries: Counter,
    /// Entries that a filter took out.
    pub filtered_entries: Counter,
    /// Records whose text is not of the form that `parse` asks for.
    pub unparsed_records: Counter,
    /// Entries that are not protobuf, or frames that are none.
    pub malformed_entries: Counter,
    /// Entries that a driver reported as dropped.
    pub dropped_entries: Counter,
    refusals: Family<Refusal, Counter>,
    masked: Family<Mask, Counter>,
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
            unparsed_records: metric!(
                "unparsed_records",
                "Records that are not of the form that parse names"
            ),
            malformed_entries: metric!("malformed_entries", "Entries that are malformed"),
            dropped_entries: metric!(
                "dropped_entries",
                "Entries that drivers reported as dropped"
            ),
            refused_calls: metric!("refused_calls", "Calls that no tenant is for"),
            refused_connections: metric!("refused_connections", "Connections too many"),
            masked: metric!("masked", "What masks took out of lines"),
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
            topics: Mutex::default(),
            registry,
        }
    }
}

impl Metrics {
    /// Counts a request by what its answer asked for.
    pub fn count_request(&self, topic_id: &str, asked: Disposition) {
        let [delivered, retry, credentials, split, bisect, hold] = OUTCOMES;
        let outcome = match asked {
            Disposition::Delivered => delivered,
            Disposition::Retry { .. } => retry,
            Disposition::RetryWithNewCredentials => credentials,
            Disposition::Split => split,
            Disposition::Bisect => bisect,
            Disposition::Hold => hold,
        };
        self.requests
            .get_or_create(&Request {
                topic_id: topic_id.to_owned(),
                outcome,
            })
            .inc();
    }

    /// Counts what a tenant asked and was refused: `open`, `check`, `report`, or `message` for one that is
    /// Counts what masks took out, by their names.
    pub fn count_masked(&self, counts: impl Iterator<Item = (&'static str, u64)>) {
        for (mask, count) in counts.filter(|(_, count)| *count > 0) {
            self.masked.get_or_create(&Mask { mask }).inc_by(count);
        }
    }

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

    /// Shows, besides, what the hosts count and how many bytes are granted to windows.
    #[must_use]
    pub fn showing(
        mut self,
        ledger: Arc<Ledger>,
        granted_bytes: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Self {
        let granted_bytes = Box::new(granted_bytes);
        let readings = Readings {
            ledger,
            granted_bytes,
        };
        self.registry.register_collector(Box::new(readings));
        self
    }

    /// Counts a lane of a topic.
    pub fn open_topic(&self, topic_id: &str) {
        let mut topics = self.topics();
        *topics.lane_counts.entry(topic_id.to_owned()).or_insert(0) += 1;
    }

    /// Counts a lane of a topic that has ended. After the last one, and some time in which its numbers
    /// are scraped, the topic's label sets go: topics come from containers, and have no bound.
    pub fn close_topic(&self, topic_id: &str, now: Instant) {
        {
            let mut topics = self.topics();
            if let Some(count) = topics.lane_counts.get_mut(topic_id) {
                *count -= 1;
                if *count == 0 {
                    topics.lane_counts.remove(topic_id);
                    topics.gone.push_back((now, topic_id.to_owned()));
                }
            }
        }
        self.forget_topics(now);
    }

    fn forget_topics(&self, now: Instant) {
        let mut topics = self.topics();
        while let Some((since, _)) = topics.gone.front()
            && *since + TOPIC_GONE_WAIT <= now
            && let Some((_, topic_id)) = topics.gone.pop_front()
        {
            let is_back = topics.lane_counts.contains_key(&topic_id)
                || topics.gone.iter().any(|(_, gone)| *gone == topic_id);
            if !is_back {
                self.remove_label_sets(topic_id);
            }
        }
    }

    fn remove_label_sets(&self, topic_id: String) {
        for outcome in OUTCOMES {
            let topic_id = topic_id.clone();
            self.requests.remove(&Request { topic_id, outcome });
        }
        let topic = Topic { topic_id };
        self.delivered_logs.remove(&topic);
        self.delivered_bytes.remove(&topic);
    }

    fn topics(&self) -> MutexGuard<'_, Topics> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns all metrics in Prometheus' text format.
    ///
    /// # Panics
    /// Never: a `String` takes all that is written.
    pub fn render(&self, now: Instant) -> String {
        self.forget_topics(now);
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a String takes all that is written");
        text
    }
}

#[cfg(test)]
mod tests {
    use proto::relay::{HostReport, StreamReport};

    use super::*;

    fn report(host: &str, streams: std::ops::Range<u64>) -> HostReport {
        let stream = |number: u64| StreamReport {
            journal_id: format!("{host}-{number}"),
            received_entries: 12,
            delivered_entries: 10,
            ..StreamReport::default()
        };
        HostReport {
            host: host.to_owned(),
            streams: streams.map(stream).collect(),
            ..HostReport::default()
        }
    }

    fn value(text: &str, series: &str) -> Option<u64> {
        let line = text.lines().find(|line| line.starts_with(series))?;
        line.strip_prefix(series)?.trim().parse().ok()
    }

    /// Two Prometheus of one site ask at the same time, every time.
    #[test]
    fn scrapes_at_once_see_the_same_sums() {
        let ledger = Arc::new(Ledger::default());
        ledger.put("t", report("a\"b", 0..400));
        let metrics = Metrics::default().showing(Arc::clone(&ledger), || 7);
        let scrape = || {
            for _ in 0..100 {
                let text = metrics.render(Instant::now());
                let entries =
                    "cls_shipper_ledger_entries_total{host=\"a\\\"b\",fate=\"delivered\"}";
                assert_eq!(value(&text, entries), Some(4_000), "{text}");
                let waiting = "cls_shipper_ledger_buffered_entries{host=\"a\\\"b\"}";
                assert_eq!(value(&text, waiting), Some(800));
                assert_eq!(value(&text, "cls_shipper_granted_window_bytes"), Some(7));
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(scrape);
            }
        });
    }

    /// A counter that goes back counts twice for who asks for its rate.
    #[test]
    fn sums_stay_when_newer_streams_push_older_ones_out() {
        let ledger = Ledger::default();
        let mut told = 0;
        for start in [0, 9_000, 18_000, 27_000] {
            ledger.put("t", report("h", start..start + 9_000));
            let delivered = ledger.sums()["h"].delivered;
            assert_eq!(delivered, told + 90_000);
            told = delivered;
        }
        assert!(ledger.lines().len() < 36_000);
    }

    #[test]
    fn a_topic_that_is_gone_is_shown_for_some_time() {
        let metrics = Metrics::default();
        let now = Instant::now();
        for topic_id in ["a", "b"] {
            metrics.open_topic(topic_id);
            metrics.count_delivery(topic_id, 1, 1);
            metrics.count_request(topic_id, Disposition::Hold);
        }
        metrics.close_topic("a", now);
        metrics.close_topic("b", now);
        metrics.open_topic("b");
        let shown = |after: Duration| {
            metrics
                .render(now + after)
                .matches("topic_id=\"a\"")
                .count()
        };
        assert_eq!(shown(TOPIC_GONE_WAIT - Duration::from_secs(1)), 3);
        assert_eq!(shown(TOPIC_GONE_WAIT), 0);
        assert!(
            metrics
                .render(now + TOPIC_GONE_WAIT)
                .contains("topic_id=\"b\"")
        );
    }
}
