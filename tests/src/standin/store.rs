//! What a stand-in has accepted: decompressed bodies as they came, decoded when someone looks, and
//! a check of every `contextFlow`.
//!
//! `contextFlow` is `{contextID}-{LogGroupID}` (CLS document 614/59470): within one contextID the
//! ids are consecutive, and an id names one group, so the same id with other bytes is a violation,
//! while the same id with the same bytes is a retry. Groups may arrive in any order, so gaps show
//! only in what [`Store::violations`] finds at the time it is asked.

use crate::standin::log_list::{self, GroupSummary, GroupView, LogView};
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// One accepted request.
#[derive(Debug, Clone)]
pub struct Upload {
    /// The `x-cls-requestid` that was answered.
    pub request_id: String,
    /// The topic.
    pub topic_id: String,
    /// Arrival number of its first record, from 0.
    pub first_record: u64,
    /// How many of its logs are kept; fewer than it has if it was stored in part.
    pub record_count: usize,
    /// The key that signed; `None` if the topic takes unsigned requests.
    pub secret_id: Option<String>,
    /// The peer's address, if the client asked for it to be the source.
    pub peer_source: Option<String>,
    /// When its last byte had come: time since 1970.
    pub accepted_at: Duration,
    /// The body, decompressed and checked.
    pub body: Bytes,
}

/// One record of an [`Upload`].
#[derive(Debug)]
pub struct Record<'a> {
    /// Arrival number, from 0 without gaps.
    pub number: u64,
    /// The group it came in.
    pub group: &'a GroupView<'a>,
    /// The record itself.
    pub log: LogView<'a>,
}

impl Record<'_> {
    /// Walks keys and values, in order.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        self.log.contents().map_while(Result::ok)
    }

    /// Returns the value of the first field of that name.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value)
    }
}

impl Upload {
    /// Decodes the records, in order.
    pub fn visit(&self, mut visitor: impl FnMut(&Record<'_>)) {
        let mut numbers = self.first_record..;
        let mut left = self.record_count;
        for group in log_list::groups(&self.body) {
            let logs = group.logs().map_while(Result::ok);
            for (log, number) in logs.take(left).zip(&mut numbers) {
                visitor(&Record {
                    number,
                    group: &group,
                    log,
                });
                left -= 1;
            }
        }
    }
}

/// A request that has passed every check.
#[derive(Debug)]
pub(super) struct Accepted<'a> {
    pub(super) request_id: &'a str,
    pub(super) topic_id: &'a str,
    pub(super) secret_id: Option<String>,
    pub(super) peer_source: Option<String>,
    pub(super) groups: &'a [GroupSummary],
    pub(super) record_count: usize,
    pub(super) accepted_at: Duration,
    pub(super) body: &'a [u8],
    /// Whether the records themselves are dropped.
    pub(super) discards: bool,
    /// Whether somebody looks at them before that.
    pub(super) is_watched: bool,
}

/// All that was accepted.
#[derive(Debug, Default)]
pub(super) struct Store {
    uploads: Vec<Arc<Upload>>,
    record_count: u64,
    contexts: HashMap<(String, String), Context>,
    conflicts: Vec<String>,
    repeated_groups: u64,
}

/// The groups of one contextID.
#[derive(Debug, Default)]
struct Context {
    groups: BTreeMap<u64, Digest>,
}

/// What tells groups apart: equal ones are retries.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
struct Digest {
    crc32: u32,
    bytes: usize,
}

impl Store {
    /// Keeps an accepted request, and returns it, unless it is discarded and nobody watches.
    pub(super) fn add(&mut self, accepted: &Accepted<'_>) -> Option<Arc<Upload>> {
        for group in accepted.groups {
            self.note_context(accepted, group);
        }
        let first_record = self.record_count;
        self.record_count += accepted.record_count as u64;
        if accepted.discards && !accepted.is_watched {
            return None;
        }
        let upload = Arc::new(Upload {
            request_id: accepted.request_id.to_owned(),
            topic_id: accepted.topic_id.to_owned(),
            secret_id: accepted.secret_id.clone(),
            first_record,
            record_count: accepted.record_count,
            peer_source: accepted.peer_source.clone(),
            accepted_at: accepted.accepted_at,
            body: Bytes::copy_from_slice(accepted.body),
        });
        if !accepted.discards {
            self.uploads.push(upload.clone());
        }
        Some(upload)
    }

    /// Returns the accepted requests of a topic, or of all, that hold a record from `since` on.
    pub(super) fn uploads(&self, topic_id: Option<&str>, since: u64) -> Vec<Arc<Upload>> {
        let is_wanted = |upload: &&Arc<Upload>| {
            upload.first_record + upload.record_count as u64 > since
                && topic_id.is_none_or(|topic_id| upload.topic_id == topic_id)
        };
        self.uploads.iter().filter(is_wanted).cloned().collect()
    }

    /// Returns what was wrong with `contextFlow`, and the gaps there are now.
    pub(super) fn violations(&self) -> Vec<String> {
        [self.conflicts(), self.gaps()].concat()
    }

    /// Returns which ids came again with other bytes.
    pub(super) fn conflicts(&self) -> Vec<String> {
        self.conflicts.clone()
    }

    /// Returns which ids are missing now.
    fn gaps(&self) -> Vec<String> {
        let mut gaps = Vec::new();
        for ((topic_id, context_id), context) in &self.contexts {
            let ids = context.groups.keys();
            for (before, after) in ids.clone().zip(ids.skip(1)) {
                if before + 1 != *after {
                    gaps.push(format!(
                        "topic {topic_id} context {context_id}: ids {before:X} and {after:X} \
                         follow each other"
                    ));
                }
            }
        }
        gaps
    }

    /// Forgets everything but the numbers: arrival numbers go on.
    pub(super) fn clear(&mut self) {
        *self = Self {
            record_count: self.record_count,
            repeated_groups: self.repeated_groups,
            ..Self::default()
        };
    }

    /// Returns how many records were accepted.
    pub(super) fn record_count(&self) -> u64 {
        self.record_count
    }

    /// Returns how many groups came again with an id and bytes that had come before.
    pub(super) fn repeated_groups(&self) -> u64 {
        self.repeated_groups
    }

    fn note_context(&mut self, accepted: &Accepted<'_>, group: &GroupSummary) {
        let Some(flow) = &group.context_flow else {
            return;
        };
        let Some((context_id, id)) = parse_flow(flow) else {
            self.conflicts
                .push(format!("contextFlow {flow} is not HEX-HEX"));
            return;
        };
        let bytes = accepted.body.get(group.range.clone()).unwrap_or_default();
        let digest = Digest {
            crc32: crc32fast::hash(bytes),
            bytes: bytes.len(),
        };
        let key = (accepted.topic_id.to_owned(), context_id.to_owned());
        let context = self.contexts.entry(key).or_default();
        match context.groups.insert(id, digest) {
            None => {}
            Some(earlier) if earlier == digest => self.repeated_groups += 1,
            Some(_) => self.conflicts.push(format!(
                "topic {} context {context_id}: id {id:X} came again with other bytes",
                accepted.topic_id
            )),
        }
    }
}

/// Splits a `contextFlow` into contextID and LogGroupID.
pub fn parse_flow(flow: &str) -> Option<(&str, u64)> {
    let (context_id, id) = flow.split_once('-')?;
    let is_hex = |digits: &str| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
    if !is_hex(context_id) || !is_hex(id) {
        return None;
    }
    Some((context_id, u64::from_str_radix(id, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(store: &mut Store, flow: &str, body: &[u8]) {
        store.add(&Accepted {
            request_id: "r",
            topic_id: "t",
            secret_id: None,
            peer_source: None,
            groups: &[GroupSummary {
                range: 0..body.len(),
                context_flow: Some(flow.into()),
                log_count: 1,
            }],
            record_count: 1,
            accepted_at: Duration::ZERO,
            body,
            discards: true,
            is_watched: false,
        });
    }

    #[test]
    fn consecutive_ids_in_any_order_are_good() {
        let mut store = Store::default();
        for (flow, body) in [("A-1", "x"), ("A-3", "y"), ("B-9", "z"), ("A-2", "w")] {
            add(&mut store, flow, body.as_bytes());
        }
        assert_eq!(store.violations(), Vec::<String>::new());
    }

    #[test]
    fn a_gap_is_a_violation_until_it_is_filled() {
        let mut store = Store::default();
        add(&mut store, "A-9", b"x");
        add(&mut store, "A-B", b"y");
        assert_eq!(
            store.violations(),
            ["topic t context A: ids 9 and B follow each other"]
        );
        add(&mut store, "A-A", b"z");
        assert_eq!(store.violations(), Vec::<String>::new());
    }

    #[test]
    fn a_retry_is_counted_and_other_bytes_are_a_violation() {
        let mut store = Store::default();
        add(&mut store, "A-1", b"x");
        add(&mut store, "A-1", b"x");
        assert_eq!((store.repeated_groups(), store.violations().len()), (1, 0));
        add(&mut store, "A-1", b"y");
        assert_eq!(
            store.violations(),
            ["topic t context A: id 1 came again with other bytes"]
        );
    }

    #[test]
    fn flows_of_official_clients_parse() {
        assert_eq!(
            parse_flow("102700A66102516A-59F59"),
            Some(("102700A66102516A", 0x59f59))
        );
        let go = "6EE0DC8FA77002AA6B02F8D5-0000000000000001";
        assert_eq!(parse_flow(go), Some(("6EE0DC8FA77002AA6B02F8D5", 1)));
        for bad in ["", "A", "A-", "-1", "A-1-2", "A-x", "G-1"] {
            assert_eq!(parse_flow(bad), None, "{bad}");
        }
    }
}
