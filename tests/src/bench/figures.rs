//! Figures: named numbers of one run, and what many runs say together.

use serde::Serialize;
use std::collections::BTreeMap;

/// What was measured in a run: numbers by name, the unit at the end of the name.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Figures(BTreeMap<String, f64>);

impl Figures {
    /// Notes a number.
    pub fn set(&mut self, name: impl Into<String>, value: f64) {
        self.0.insert(name.into(), value);
    }

    /// Returns a number, if it was measured.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied()
    }

    /// Adds the numbers of `others`.
    pub fn merge(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// Returns the numbers whose names end so.
    pub fn only(&self, suffix: &str) -> Self {
        let numbers = self.0.iter();
        let wanted = numbers.filter(|(name, _)| name.ends_with(suffix));
        Self(wanted.map(|(name, value)| (name.clone(), *value)).collect())
    }

    /// Returns the median of each number over the runs that measured it.
    pub fn medians(runs: &[Self]) -> Self {
        let mut columns: BTreeMap<&String, Vec<f64>> = BTreeMap::new();
        for (name, value) in runs.iter().flat_map(|run| &run.0) {
            columns.entry(name).or_default().push(*value);
        }
        let median = |(name, mut values): (&String, Vec<f64>)| (name.clone(), median(&mut values));
        Self(columns.into_iter().map(median).collect())
    }
}

/// Returns the middle of some numbers, or the mean of the two in the middle; 0 if there are none.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match (values.get(middle), middle.checked_sub(1)) {
        (Some(upper), Some(below)) if values.len().is_multiple_of(2) => {
            f64::midpoint(*upper, values[below])
        }
        (Some(value), _) => *value,
        (None, _) => 0.0,
    }
}

/// Returns the smallest number that at least `percent` of them do not exceed; 0 if there are none.
pub fn percentile(values: &mut [f64], percent: usize) -> f64 {
    let rank = (values.len() * percent).div_ceil(100).max(1);
    if rank > values.len() {
        return 0.0;
    }
    let (_, value, _) = values.select_nth_unstable_by(rank - 1, f64::total_cmp);
    *value
}

/// Returns how many times `base` goes into `value`, unless there is no base.
pub fn ratio(value: Option<f64>, base: Option<f64>) -> Option<f64> {
    let base = base.filter(|base| *base > 0.0)?;
    Some(value? / base)
}

/// Returns a count as a number to divide by; counts here are far below 2^52.
#[allow(
    clippy::cast_precision_loss,
    reason = "no count here comes near 2^52, up to which a double is exact"
)]
pub fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!(median(&mut []), 0.0);
        assert_eq!(median(&mut [5.0]), 5.0);
        assert_eq!(median(&mut [5.0, 1.0]), 3.0);
        assert_eq!(median(&mut [9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&mut [9.0, 1.0, 2.0, 4.0]), 3.0);
    }

    #[test]
    fn a_percentile_is_a_value_that_was_measured() {
        let mut values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(percentile(&mut values, 50), 100.0);
        assert_eq!(percentile(&mut values, 99), 198.0);
        assert_eq!(percentile(&mut values, 100), 200.0);
        assert_eq!(percentile(&mut [7.0], 99), 7.0);
        assert_eq!(percentile(&mut [], 99), 0.0);
    }

    #[test]
    fn medians_are_taken_of_each_number_by_itself() {
        let run = |pairs: &[(&str, f64)]| {
            let mut figures = Figures::default();
            for (name, value) in pairs {
                figures.set(*name, *value);
            }
            figures
        };
        let runs = [
            run(&[("a", 1.0), ("b", 10.0)]),
            run(&[("a", 3.0)]),
            run(&[("a", 2.0), ("b", 30.0)]),
        ];
        assert_eq!(Figures::medians(&runs), run(&[("a", 2.0), ("b", 20.0)]));
    }

    #[test]
    fn there_is_no_ratio_to_nothing() {
        assert_eq!(ratio(Some(3.0), Some(2.0)), Some(1.5));
        assert_eq!(ratio(Some(3.0), Some(0.0)), None);
        assert_eq!(ratio(Some(3.0), None), None);
        assert_eq!(ratio(None, Some(2.0)), None);
    }
}
