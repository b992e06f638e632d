//! A body taken apart again: for the slow paths only, splitting and dead letters.
//!
//! The schema is CLS's (proto2; see [`super::encode`] for the fast way to write it).

use prost::Message;

/// The body of an upload.
#[derive(Clone, PartialEq, Message)]
pub struct LogGroupList {
    /// The groups.
    #[prost(message, repeated, tag = "1")]
    pub groups: Vec<LogGroup>,
}

/// Logs of one source.
#[derive(Clone, PartialEq, Message)]
pub struct LogGroup {
    /// The logs.
    #[prost(message, repeated, tag = "1")]
    pub logs: Vec<Log>,
    /// Context id and counter.
    #[prost(string, optional, tag = "2")]
    pub context_flow: Option<String>,
    /// File name.
    #[prost(string, optional, tag = "3")]
    pub filename: Option<String>,
    /// Source.
    #[prost(string, optional, tag = "4")]
    pub source: Option<String>,
    /// Tags.
    #[prost(message, repeated, tag = "5")]
    pub log_tags: Vec<Pair>,
    /// Host name.
    #[prost(string, optional, tag = "6")]
    pub hostname: Option<String>,
}

/// One record.
#[derive(Clone, PartialEq, Message)]
pub struct Log {
    /// UNIX milliseconds.
    #[prost(int64, required, tag = "1")]
    pub time: i64,
    /// The fields.
    #[prost(message, repeated, tag = "2")]
    pub contents: Vec<Pair>,
}

/// A field of a record, or a tag.
#[derive(Clone, PartialEq, Message)]
pub struct Pair {
    /// Its name.
    #[prost(string, required, tag = "1")]
    pub key: String,
    /// Its value.
    #[prost(string, required, tag = "2")]
    pub value: String,
}

impl LogGroupList {
    /// Cuts a list into two of half the size: between groups, else inside its only group, whose
    /// second half becomes the first group of the context `context_id`. Returns `None` for a list
    /// of one log, which can't be cut.
    pub fn halves(mut self, context_id: &str) -> Option<[Self; 2]> {
        if self.groups.len() > 1 {
            let behind = self.groups.split_off(self.groups.len() / 2);
            return Some([self, Self { groups: behind }]);
        }
        let group = self.groups.first_mut()?;
        if group.logs.len() < 2 {
            return None;
        }
        let logs = group.logs.split_off(group.logs.len() / 2);
        // Equal ids mean equal bytes, so the second half can't keep the number of the whole.
        let context_flow = group
            .context_flow
            .as_ref()
            .map(|_| format!("{context_id}-1"));
        let behind = LogGroup {
            logs,
            context_flow,
            ..LogGroup {
                logs: Vec::new(),
                ..group.clone()
            }
        };
        Some([
            self,
            Self {
                groups: vec![behind],
            },
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list(log_counts: &[usize]) -> LogGroupList {
        let mut time = 0;
        let mut log = || {
            time += 1;
            Log {
                time,
                contents: Vec::new(),
            }
        };
        let groups = log_counts.iter().map(|count| LogGroup {
            logs: (0..*count).map(|_| log()).collect(),
            context_flow: Some("A-1".into()),
            source: Some("host".into()),
            ..LogGroup::default()
        });
        LogGroupList {
            groups: groups.collect(),
        }
    }

    fn times(list: &LogGroupList) -> Vec<i64> {
        list.groups
            .iter()
            .flat_map(|group| &group.logs)
            .map(|log| log.time)
            .collect()
    }

    proptest! {
        #[test]
        fn halving_ends_at_single_logs_and_loses_none(
            log_counts in prop::collection::vec(1_usize..20, 1..10)
        ) {
            let whole = list(&log_counts);
            let (mut parts, mut single) = (vec![whole.clone()], Vec::new());
            while let Some(part) = parts.pop() {
                match part.clone().halves("B") {
                    Some([first, second]) => parts.extend([second, first]),
                    None => single.extend(times(&part)),
                }
            }
            prop_assert_eq!(single, times(&whole));
        }
    }

    #[test]
    fn the_second_half_of_a_group_gets_a_context_of_its_own() {
        let [first, second] = list(&[3]).halves("B").unwrap();
        assert_eq!(
            (times(&first), first.groups[0].context_flow.as_deref()),
            (vec![1], Some("A-1"))
        );
        assert_eq!(
            (times(&second), second.groups[0].context_flow.as_deref()),
            (vec![2, 3], Some("B-1"))
        );
        assert_eq!(second.groups[0].source.as_deref(), Some("host"));
    }
}
