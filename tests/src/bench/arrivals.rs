//! What has arrived at the stand-in: how late, how often, and what is missing.

use crate::bench::figures::{Figures, float, percentile};
use crate::bench::lines::Head;
use crate::standin::{Record, Upload};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;

/// Latencies that are kept; further lines are counted only.
const LATENCIES_MAX: usize = 4_000_000;

/// Counts what arrives. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Arrivals(Arc<Mutex<Counted>>);

#[derive(Debug, Default)]
struct Counted {
    /// Per stream, a bit for each line.
    seen: Vec<Vec<u64>>,
    distinct: u64,
    copies: u64,
    foreign: u64,
    /// Lines that were written before have no latency.
    since_micros: u64,
    latencies_ms: Vec<f64>,
}

impl Arrivals {
    /// Counts uploads until there are no more. Blocks: it is for a thread of its own.
    pub fn count(&self, mut uploads: mpsc::Receiver<Arc<Upload>>) {
        while let Some(upload) = uploads.blocking_recv() {
            self.lock().take(&upload);
        }
    }

    /// Measures latency of lines that are written from a time on, in microseconds since 1970.
    pub fn measure_since(&self, micros: u64) {
        let mut counted = self.lock();
        counted.since_micros = micros;
        counted.latencies_ms.clear();
    }

    /// Returns how many different lines have arrived.
    pub fn distinct(&self) -> u64 {
        self.lock().distinct
    }

    /// Returns latency, copies and loss, given how many lines were written.
    pub fn figures(&self, written: u64) -> Figures {
        let mut counted = self.lock();
        let mut figures = Figures::default();
        figures.set(
            "lost_lines",
            float(written.saturating_sub(counted.distinct)),
        );
        figures.set("copied_lines", float(counted.copies));
        figures.set("foreign_lines", float(counted.foreign));
        if !counted.latencies_ms.is_empty() {
            for (name, percent) in [("p50", 50), ("p99", 99), ("max", 100)] {
                let value = percentile(&mut counted.latencies_ms, percent);
                figures.set(format!("latency_{name}_ms"), value);
            }
        }
        figures
    }

    fn lock(&self) -> MutexGuard<'_, Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counted {
    fn take(&mut self, upload: &Upload) {
        let arrived = u64::try_from(upload.accepted_at.as_micros()).unwrap_or(u64::MAX);
        upload.visit(|record| match head(record) {
            Some(head) => self.note(head, arrived),
            None => self.foreign += 1,
        });
    }

    fn note(&mut self, head: Head, arrived_micros: u64) {
        let stream = usize::try_from(head.stream).unwrap_or(0);
        let (word, bit) = (head.number / 64, 1_u64 << (head.number % 64));
        let word = usize::try_from(word).unwrap_or(0);
        if self.seen.len() <= stream {
            self.seen.resize(stream + 1, Vec::new());
        }
        let seen = &mut self.seen[stream];
        if seen.len() <= word {
            seen.resize(word + 1, 0);
        }
        if seen[word] & bit != 0 {
            self.copies += 1;
            return;
        }
        seen[word] |= bit;
        self.distinct += 1;
        if head.micros >= self.since_micros && self.latencies_ms.len() < LATENCIES_MAX {
            let micros = arrived_micros.saturating_sub(head.micros);
            self.latencies_ms.push(float(micros) / 1e3);
        }
    }
}

/// Returns what a record says of itself, whether its line was text or JSON.
fn head(record: &Record<'_>) -> Option<Head> {
    let (mut micros, mut id) = (None, None);
    for (key, value) in record.fields() {
        match key {
            "content" => return Head::of_text(value),
            "ts" => micros = Some(value),
            "id" => id = Some(value),
            _ => {}
        }
        if let (Some(micros), Some(id)) = (micros, id) {
            return Head::parse(micros, id);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_apart_and_copies_counted() {
        let arrivals = Arrivals::default();
        let note = |stream, number, micros| {
            let head = Head {
                micros,
                stream,
                number,
            };
            arrivals.lock().note(head, 1_000_000);
        };
        note(0, 0, 999_000);
        note(0, 64, 990_000);
        note(7, 0, 999_500);
        note(0, 64, 990_000);
        assert_eq!(arrivals.distinct(), 3);
        let figures = arrivals.figures(5);
        let get = |name| figures.get(name).unwrap();
        assert_eq!((get("lost_lines"), get("copied_lines")), (2.0, 1.0));
        assert_eq!((get("latency_p50_ms"), get("latency_max_ms")), (1.0, 10.0));
        arrivals.measure_since(999_999);
        note(1, 0, 999_998);
        note(1, 1, 999_999);
        let figures = arrivals.figures(5);
        assert_eq!(figures.get("latency_max_ms"), Some(0.001));
    }
}
