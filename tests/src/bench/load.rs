//! The loads that are measured: how many containers write what, and how fast.

use crate::bench::lines::Kind;
use std::time::Duration;

/// A load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Its name: containers, then the lines per second of each, or what is special.
    pub name: &'static str,
    /// Containers.
    pub streams: u32,
    /// How fast they write.
    pub pace: Pace,
    /// What they write.
    pub kind: Kind,
}

/// How fast the containers of a load write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Not at all.
    Idle,
    /// So many lines per second each, evenly spread over time and containers.
    LinesPerS(u32),
    /// So many lines of all containers together, as fast as they are taken.
    Flat(u64),
}

const fn load(name: &'static str, streams: u32, pace: Pace, kind: Kind) -> Load {
    Load {
        name,
        streams,
        pace,
        kind,
    }
}

/// All loads, the slow ones first.
pub const LOADS: [Load; 12] = [
    load("1x10", 1, Pace::LinesPerS(10), Kind::Text),
    load("1x1000", 1, Pace::LinesPerS(1_000), Kind::Text),
    load("1x5000", 1, Pace::LinesPerS(5_000), Kind::Text),
    load("10x100", 10, Pace::LinesPerS(100), Kind::Text),
    load("50x100", 50, Pace::LinesPerS(100), Kind::Text),
    load("1000x10", 1_000, Pace::LinesPerS(10), Kind::Text),
    load("1000x1", 1_000, Pace::LinesPerS(1), Kind::Text),
    load("1-flat", 1, Pace::Flat(600_000), Kind::Text),
    load("50-flat", 50, Pace::Flat(600_000), Kind::Text),
    load("json-flat", 1, Pace::Flat(400_000), Kind::Json),
    load("long-flat", 1, Pace::Flat(2_000), Kind::Long),
    load("1000-idle", 1_000, Pace::Idle, Kind::Text),
];

/// Returns the loads of some names, in the order of [`LOADS`]; all of them if none is named.
///
/// # Errors
/// If there is no load of a name.
pub fn named(names: &[String]) -> anyhow::Result<Vec<Load>> {
    for name in names {
        anyhow::ensure!(
            LOADS.iter().any(|load| load.name == name),
            "--load {name}: there are {}",
            LOADS.map(|load| load.name).join(", ")
        );
    }
    let is_asked = |load: &Load| names.is_empty() || names.iter().any(|name| name == load.name);
    Ok(LOADS.into_iter().filter(is_asked).collect())
}

impl Load {
    /// Returns how many lines each container writes in `time`.
    pub fn lines_of_each(&self, time: Duration) -> u64 {
        match self.pace {
            Pace::Idle => 0,
            Pace::LinesPerS(rate) => {
                let lines = u128::from(rate) * time.as_millis() / 1_000;
                u64::try_from(lines).unwrap_or(u64::MAX)
            }
            Pace::Flat(lines) => lines / u64::from(self.streams),
        }
    }

    /// Returns the lines per second of all containers together, if the load says so.
    pub fn lines_per_s(&self) -> Option<u64> {
        match self.pace {
            Pace::LinesPerS(rate) => Some(u64::from(rate) * u64::from(self.streams)),
            Pace::Idle | Pace::Flat(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_are_picked_by_name_and_a_wrong_name_shows_the_right_ones() {
        let picked = named(&["1-flat".into(), "1x10".into()]).unwrap();
        assert_eq!(
            picked.iter().map(|load| load.name).collect::<Vec<_>>(),
            ["1x10", "1-flat"]
        );
        assert_eq!(named(&[]).unwrap().len(), LOADS.len());
        let error = named(&["2x10".into()]).unwrap_err().to_string();
        assert!(
            error.starts_with("--load 2x10: there are 1x10, 1x1000"),
            "{error}"
        );
    }

    #[test]
    fn lines_follow_from_rate_and_time() {
        let of_each = |name: &str, ms| {
            let load = named(&[name.into()]).unwrap()[0];
            load.lines_of_each(Duration::from_millis(ms))
        };
        assert_eq!(of_each("1x1000", 2_500), 2_500);
        assert_eq!(of_each("1000x1", 2_500), 2);
        assert_eq!(of_each("50-flat", 2_500), 12_000);
        assert_eq!(of_each("1000-idle", 2_500), 0);
        let load = named(&["50x100".into()]).unwrap()[0];
        assert_eq!(load.lines_per_s(), Some(5_000));
    }
}
