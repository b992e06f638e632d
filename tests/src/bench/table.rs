//! The tables that people read, in Markdown, so that they can be pasted into documents.

use crate::bench::bill::{Bill, PerLine, Prices};
use crate::bench::figures::{Figures, ratio};
use crate::bench::load::Load;
use serde::Serialize;
use std::fmt::Write as _;

/// Who was measured.
pub const FLOOR: &str = "floor";

/// Medians of all runs of a load.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// The load.
    pub load: String,
    /// Lines per second that the load asks for.
    pub asked_lines_per_s: Option<u64>,
    /// Medians by who was measured: [`FLOOR`], then the builds.
    pub subjects: Vec<(String, Figures)>,
}

impl Measured {
    /// Returns one without figures.
    pub fn new(load: &Load) -> Self {
        Self {
            load: load.name.to_owned(),
            asked_lines_per_s: load.lines_per_s(),
            subjects: Vec::new(),
        }
    }

    fn floor(&self) -> Option<f64> {
        let (_, figures) = self.subjects.iter().find(|(name, _)| name == FLOOR)?;
        figures.get("all_cpu_us_per_line")
    }

    fn builds(&self) -> impl Iterator<Item = (&str, &Figures)> {
        let builds = self.subjects.iter().filter(|(name, _)| name != FLOOR);
        builds.map(|(name, figures)| (name.as_str(), figures))
    }
}

/// Returns what lines cost the machine. Processor time is in µs per line, and in per cent of a core
/// for a load without lines.
pub fn of_cost(all: &[Measured]) -> String {
    let mut table = Table::new(&[
        "load",
        "build",
        "driver µs",
        "shipper µs",
        "both µs",
        "floor µs",
        "× floor",
        "% of a core",
        "switches/s driver",
        "shipper",
        "calls/s driver",
        "shipper",
        "lines/s",
    ]);
    for measured in all {
        for (name, figures) in measured.builds() {
            let get = |name: &str| figures.get(name);
            let both = get("all_cpu_us_per_line");
            table.row(&[
                measured.load.clone(),
                name.to_owned(),
                number(get("driver_cpu_us_per_line")),
                number(get("shipper_cpu_us_per_line")),
                number(both),
                number(measured.floor()),
                number(ratio(both, measured.floor())),
                number(get("all_cpu_percent")),
                number(get("driver_switches_per_s")),
                number(get("shipper_switches_per_s")),
                number(get("driver_calls_per_s")),
                number(get("shipper_calls_per_s")),
                number(get("lines_per_s")),
            ]);
        }
    }
    table.text
}

/// Returns what arrives, how late, and what memory it takes.
pub fn of_delivery(all: &[Measured]) -> String {
    let mut table = Table::new(&[
        "load",
        "build",
        "requests/s",
        "B sent/line",
        "compressed",
        "p50 ms",
        "p99 ms",
        "max ms",
        "driver MiB",
        "shipper MiB",
        "memfd MiB",
        "lost",
        "copies",
    ]);
    for measured in all {
        for (name, figures) in measured.builds() {
            let get = |name: &str| figures.get(name);
            let sent = get("sent_bytes_per_line");
            table.row(&[
                measured.load.clone(),
                name.to_owned(),
                number(get("requests_per_s")),
                number(sent),
                number(ratio(get("plain_bytes_per_line"), sent)),
                number(get("latency_p50_ms")),
                number(get("latency_p99_ms")),
                number(get("latency_max_ms")),
                number(get("driver_rss_mib")),
                number(get("shipper_rss_mib")),
                number(get("driver_memfd_mib")),
                number(get("lost_lines")),
                number(get("copied_lines")),
            ]);
        }
    }
    table.text
}

/// Returns what CLS asks for: dollars per million lines by item, and per day at the load's rate.
pub fn of_bill(all: &[Measured], prices: &Prices) -> String {
    let mut table = Table::new(&[
        "load",
        "build",
        "requests per million lines",
        "MB written",
        "MB indexed",
        "$ requests",
        "$ written",
        "$ indexed",
        "$ stored",
        "$ per million lines",
        "$ per day",
    ]);
    for measured in all {
        for (name, figures) in measured.builds() {
            let Some(lines) = per_line(figures) else {
                continue;
            };
            let bill = Bill::of_a_million(lines, prices);
            let rate = measured.asked_lines_per_s;
            #[allow(clippy::cast_precision_loss, reason = "rates are small")]
            let a_day = rate.map(|rate| bill.of_a_day(rate as f64, prices));
            table.row(&[
                measured.load.clone(),
                name.to_owned(),
                number(Some(lines.requests * 1e6)),
                // A million lines of so many bytes are as many MB.
                number(Some(lines.written)),
                number(Some(lines.indexed)),
                dollars(Some(bill.requests)),
                dollars(Some(bill.written)),
                dollars(Some(bill.indexed)),
                dollars(Some(bill.stored)),
                dollars(Some(bill.total())),
                dollars(a_day),
            ]);
        }
    }
    table.text
}

/// Returns how the first build compares with each other one: its figures by theirs.
pub fn of_ratios(all: &[Measured]) -> String {
    const COMPARED: [(&str, &str); 8] = [
        ("CPU driver", "driver_cpu_percent"),
        ("CPU shipper", "shipper_cpu_percent"),
        ("CPU both", "all_cpu_percent"),
        ("switches", "all_switches_per_s"),
        ("calls", "all_calls_per_s"),
        ("requests", "requests_per_s"),
        ("B sent/line", "sent_bytes_per_line"),
        ("p99", "latency_p99_ms"),
    ];
    let titles = COMPARED.map(|(title, _)| title);
    let mut table = Table::new(&[&["load", "compared with"], &titles[..]].concat());
    for measured in all {
        let mut builds = measured.builds();
        let Some((_, this)) = builds.next() else {
            continue;
        };
        for (name, other) in builds {
            let mut row = vec![measured.load.clone(), name.to_owned()];
            for (_, figure) in COMPARED {
                let figure = per_line_if_flat(measured, figure);
                row.push(number(ratio(this.get(&figure), other.get(&figure))));
            }
            table.row(&row);
        }
    }
    table.text
}

/// Returns the figure to compare: at a rate of its own, a build's share of a core says nothing.
fn per_line_if_flat(measured: &Measured, figure: &str) -> String {
    match figure.strip_suffix("_cpu_percent") {
        Some(name) if measured.asked_lines_per_s.is_none() && measured.floor().is_some() => {
            format!("{name}_cpu_us_per_line")
        }
        _ => figure.to_owned(),
    }
}

fn per_line(figures: &Figures) -> Option<PerLine> {
    Some(PerLine {
        requests: figures.get("requests_per_line")?,
        written: figures.get("sent_bytes_per_line")?,
        indexed: figures.get("plain_bytes_per_line")?,
    })
}

/// A table in the making.
#[derive(Debug)]
struct Table {
    text: String,
}

impl Table {
    fn new(titles: &[&str]) -> Self {
        let mut table = Self {
            text: String::new(),
        };
        table.row(titles);
        table.row(&vec!["---"; titles.len()]);
        table
    }

    fn row<Cell: AsRef<str>>(&mut self, cells: &[Cell]) {
        for cell in cells {
            // A String takes all there is to write.
            write!(self.text, "| {} ", cell.as_ref()).ok();
        }
        self.text.push_str("|\n");
    }
}

/// Returns a number with as many digits as it deserves: three, or all of a whole part.
fn number(value: Option<f64>) -> String {
    let Some(value) = value else {
        return "–".to_owned();
    };
    let size = value.abs();
    let text = if size >= 100.0 {
        format!("{value:.0}")
    } else if size >= 10.0 {
        format!("{value:.1}")
    } else if size >= 1.0 || size == 0.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.3}")
    };
    let is_whole = value.fract() == 0.0;
    match text.split_once('.') {
        Some((whole, _)) if is_whole => whole.to_owned(),
        _ => text,
    }
}

fn dollars(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.4}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::load::named;

    fn figures(pairs: &[(&str, f64)]) -> Figures {
        let mut figures = Figures::default();
        for (name, value) in pairs {
            figures.set(*name, *value);
        }
        figures
    }

    fn measured() -> Vec<Measured> {
        let mut measured = Measured::new(&named(&["1-flat".into()]).unwrap()[0]);
        let cost = |value: f64| figures(&[("all_cpu_us_per_line", value)]);
        measured.subjects = vec![
            (FLOOR.into(), cost(0.5)),
            ("this".into(), cost(0.75)),
            ("before".into(), cost(1.5)),
        ];
        vec![measured]
    }

    #[test]
    fn numbers_have_three_digits() {
        let cases = [
            (0.0, "0"),
            (0.12345, "0.123"),
            (1.0, "1"),
            (1.456, "1.46"),
            (75.25, "75.2"),
            (1_599.6, "1600"),
        ];
        for (value, expected) in cases {
            assert_eq!(number(Some(value)), expected);
        }
        assert_eq!(number(None), "–");
    }

    #[test]
    fn costs_stand_beside_the_floor_and_builds_beside_each_other() {
        let cost = of_cost(&measured());
        assert!(
            cost.contains("| 1-flat | this | – | – | 0.750 | 0.500 | 1.50 |"),
            "{cost}"
        );
        assert!(
            cost.contains("| before | – | – | 1.50 | 0.500 | 3 |"),
            "{cost}"
        );
        let ratios = of_ratios(&measured());
        assert!(
            ratios.contains("| 1-flat | before | – | – | 0.500 |"),
            "{ratios}"
        );
    }

    #[test]
    fn a_bill_needs_uploads() {
        let prices = Prices {
            price_requests: 1.0,
            price_written: 1_000.0,
            price_indexed: 1_000.0,
            price_stored: 0.0,
            price_partition: 0.0,
            days_kept: 1.0,
        };
        let mut all = measured();
        assert_eq!(of_bill(&all, &prices).lines().count(), 2);
        let uploads = [
            ("requests_per_line", 0.5),
            ("sent_bytes_per_line", 1.0),
            ("plain_bytes_per_line", 2.0),
        ];
        all[0].subjects[1].1 = figures(&uploads);
        let bill = of_bill(&all, &prices);
        assert!(
            bill.contains("| 500000 | 1 | 2 | 0.5000 | 1.0000 | 2.0000 | 0.0000 | 3.5000 | – |"),
            "{bill}"
        );
    }
}
