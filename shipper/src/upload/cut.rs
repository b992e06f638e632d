//! The bodies of a batch's requests: encoded, compressed, cut in two where CLS refuses one, and
//! without what nobody waits for any more.

use std::ops::Range;

use bytes::Bytes;
use prost::Message as _;

use crate::cls::body::LogGroupList;
use crate::cls::encode::{GroupHead, append_group};
use crate::cls::request::Body;
use crate::lane::queue::{Group, Receipt, new_context_id};
use crate::upload::batch::Uploader;

/// A batch, or what is left of it after cuts: one request.
pub(super) struct Part {
    pub(super) body: Body,
    /// Bytes before compression.
    pub(super) bytes: usize,
    pub(super) log_count: usize,
    /// Indices of its groups in the batch.
    pub(super) groups: Vec<usize>,
    /// Index of its first log in its group, if it is a part of a single one; else 0.
    pub(super) first_log: usize,
}

/// What remains of a group once it is encoded.
pub(super) struct Sent {
    pub(super) receipt: Receipt,
    pub(super) log_count: usize,
    /// Logs that are not made of exactly one entry: index in the group and entries.
    pub(super) joined: Vec<(usize, u64)>,
    pub(super) dead_entries: u64,
}

impl Sent {
    /// Returns how many entries some of the group's logs are made of.
    pub(super) fn entries(&self, logs: Range<usize>) -> u64 {
        let mut entries = logs.len() as u64;
        for (log, joined_entries) in &self.joined {
            if logs.contains(log) {
                entries = entries - 1 + joined_entries;
            }
        }
        entries
    }
}

impl Uploader {
    pub(super) fn encode(&self, groups: Vec<Group>) -> (Part, Vec<Sent>) {
        let mut body = self.buffers.take();
        for group in &groups {
            let head = GroupHead {
                context_flow: &group.context_flow,
                source: &group.receipt.stream().source,
                log_tags: &group.receipt.stream().log_tags,
                ..GroupHead::default()
            };
            append_group(
                &mut body,
                group.runs.iter().map(|run| run.logs.as_slice()),
                &head,
            );
        }
        let sent: Vec<Sent> = groups.into_iter().map(|group| self.strip(group)).collect();
        let part = Part {
            bytes: body.len(),
            log_count: sent.iter().map(|sent| sent.log_count).sum(),
            body: self.compress(&body),
            groups: (0..sent.len()).collect(),
            first_log: 0,
        };
        self.buffers.give(body);
        (part, sent)
    }

    /// Takes the groups of streams that have left out of a part.
    pub(super) fn leave_out_gone(&self, part: &mut Part, sent: &[Sent]) {
        let is_gone = |group: &usize| {
            sent.get(*group)
                .is_none_or(|sent| sent.receipt.stream().has_left())
        };
        let gone: Vec<bool> = part.groups.iter().map(is_gone).collect();
        if !gone.contains(&true) {
            return;
        }
        let mut list = self.open(part);
        let mut of_groups = gone.iter();
        list.groups.retain(|_| of_groups.next() == Some(&false));
        let mut of_groups = gone.iter();
        part.groups.retain(|_| of_groups.next() == Some(&false));
        let body = list.encode_to_vec();
        part.bytes = body.len();
        part.log_count = list.groups.iter().map(|group| group.logs.len()).sum();
        part.body = self.compress(&body);
    }

    /// Cuts a part in two; `None` for a single log.
    pub(super) fn cut(&self, part: &Part) -> Option<[Part; 2]> {
        let halves = self.open(part).halves(&new_context_id())?;
        let (mut groups, mut first_log) = (part.groups.as_slice(), part.first_log);
        Some(halves.map(|half| {
            let body = half.encode_to_vec();
            let half_groups = groups.get(..half.groups.len()).unwrap_or_default();
            let half = Part {
                bytes: body.len(),
                log_count: half.groups.iter().map(|group| group.logs.len()).sum(),
                body: self.compress(&body),
                groups: half_groups.to_vec(),
                first_log,
            };
            // The halves of a single group both belong to it.
            match part.groups.len() {
                1 => first_log += half.log_count,
                _ => groups = groups.get(half.groups.len()..).unwrap_or_default(),
            }
            half
        }))
    }

    /// Takes a part apart again.
    pub(super) fn open(&self, part: &Part) -> LogGroupList {
        let body = part
            .body
            .compression
            .decompress(&part.body.bytes, part.bytes);
        LogGroupList::decode(body.as_slice()).expect("this process has encoded the body itself")
    }

    /// Gives a group's buffers back and keeps what its acknowledgement needs.
    fn strip(&self, group: Group) -> Sent {
        let (mut log_count, mut joined) = (0, Vec::new());
        for run in group.runs {
            let in_group = |(log, entries): &(usize, u64)| (log_count + log, *entries);
            joined.extend(run.joined.iter().map(in_group));
            log_count += run.log_count;
            self.buffers.give(run.logs);
        }
        Sent {
            receipt: group.receipt,
            log_count,
            joined,
            dead_entries: 0,
        }
    }

    fn compress(&self, body: &[u8]) -> Body {
        let mut scratch = self.buffers.take();
        let compressed = self.compression.compress(body, &mut scratch);
        self.buffers.give(scratch);
        Body {
            bytes: Bytes::from(compressed),
            compression: self.compression,
        }
    }
}
