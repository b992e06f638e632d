//! What CLS asks for an upload, by list prices. In US dollars; a GB has 10^9 bytes.
//!
//! | item | measured as |
//! |---|---|
//! | requests | uploads, good or bad |
//! | written | bytes as sent, that is compressed |
//! | indexed | bytes before compression: everything is taken to be indexed |
//! | stored | bytes as sent (the log) and before compression (its index), for each day that they are kept |
//! | partitions | each, per day: in the bill of a day only |

use clap::Args;
use serde::Serialize;

/// Prices, in US dollars. Defaults: those of an example in CLS's documents, 2026.
#[derive(Debug, Clone, Copy, PartialEq, Args)]
pub struct Prices {
    /// Price of a million requests.
    #[arg(long, default_value_t = 0.026, value_name = "USD", help_heading = PRICES)]
    pub price_requests: f64,
    /// Price of writing a GB, as sent.
    #[arg(long, default_value_t = 0.032, value_name = "USD", help_heading = PRICES)]
    pub price_written: f64,
    /// Price of indexing a GB, before compression.
    #[arg(long, default_value_t = 0.062, value_name = "USD", help_heading = PRICES)]
    pub price_indexed: f64,
    /// Price of storing a GB for a day.
    #[arg(long, default_value_t = 0.0024, value_name = "USD", help_heading = PRICES)]
    pub price_stored: f64,
    /// Price of a partition for a day.
    #[arg(long, default_value_t = 0.007, value_name = "USD", help_heading = PRICES)]
    pub price_partition: f64,
    /// Days for which a record is kept.
    #[arg(long, default_value_t = 7.0, value_name = "DAYS", help_heading = PRICES)]
    pub days_kept: f64,
}

const PRICES: &str = "Prices of the bill (US dollars)";
const GB: f64 = 1e9;
const MILLION: f64 = 1e6;
const DAY_S: f64 = 86_400.0;

/// What is billed, per line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PerLine {
    /// Requests.
    pub requests: f64,
    /// Bytes as sent.
    pub written: f64,
    /// Bytes before compression.
    pub indexed: f64,
}

/// Dollars for a million lines.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Bill {
    /// For requests.
    pub requests: f64,
    /// For writing.
    pub written: f64,
    /// For indexing.
    pub indexed: f64,
    /// For storing.
    pub stored: f64,
}

impl Bill {
    /// Returns the bill of a million lines.
    pub fn of_a_million(lines: PerLine, prices: &Prices) -> Self {
        let gb = |bytes_per_line: f64| bytes_per_line * MILLION / GB;
        let stored_gb = gb(lines.written) + gb(lines.indexed);
        Self {
            // A million lines of so many requests each, at a price per million of them.
            requests: lines.requests * prices.price_requests,
            written: gb(lines.written) * prices.price_written,
            indexed: gb(lines.indexed) * prices.price_indexed,
            stored: stored_gb * prices.price_stored * prices.days_kept,
        }
    }

    /// Returns the sum.
    pub fn total(&self) -> f64 {
        self.requests + self.written + self.indexed + self.stored
    }

    /// Returns what a day costs at `lines_per_s` in one partition, once as many days are stored as
    /// are kept.
    pub fn of_a_day(&self, lines_per_s: f64, prices: &Prices) -> f64 {
        self.total() * lines_per_s * DAY_S / MILLION + prices.price_partition
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRICES: Prices = Prices {
        price_requests: 0.026,
        price_written: 0.032,
        price_indexed: 0.062,
        price_stored: 0.0024,
        price_partition: 0.007,
        days_kept: 7.0,
    };

    fn is_near(value: f64, expected: f64) -> bool {
        (value - expected).abs() < 1e-9
    }

    #[test]
    fn a_bill_is_the_sum_of_its_items() {
        let lines = PerLine {
            requests: 0.089,
            written: 133.0,
            indexed: 260.0,
        };
        let bill = Bill::of_a_million(lines, &PRICES);
        assert!(is_near(bill.requests, 0.089 * 0.026));
        assert!(is_near(bill.written, 0.133 * 0.032));
        assert!(is_near(bill.indexed, 0.260 * 0.062));
        assert!(is_near(bill.stored, 0.393 * 0.0024 * 7.0));
        let total = bill.requests + bill.written + bill.indexed + bill.stored;
        assert!(is_near(bill.total(), total));
        // 86.4 million lines a day.
        assert!(is_near(
            bill.of_a_day(1_000.0, &PRICES),
            total * 86.4 + 0.007
        ));
    }

    #[test]
    fn the_items_of_a_day_are_those_of_the_documents_example() {
        // 1,000 lines/s in 89 requests/s of 133 B a line: 7.7 million requests (0.20), 11.5 GB (0.37).
        let lines = PerLine {
            requests: 0.089,
            written: 133.0,
            indexed: 0.0,
        };
        let bill = Bill::of_a_million(lines, &PRICES);
        assert!((bill.requests * 86.4 - 0.20).abs() < 0.005);
        assert!((bill.written * 86.4 - 0.37).abs() < 0.005);
    }
}
