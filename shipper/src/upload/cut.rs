//! The bodies of a batch's requests: encoded, compressed, cut in two where CLS refuses one, and
//! without what nobody waits for any more.

use std::ops::Range;

use bytes::Bytes;
use prost::Message as _;

use crate::cls::body::LogGroupList;
use crate::cls::encode::{GroupHead, append_group};
use crate::cls::request::Body;
use crate::lane::queue::{Group, Receipt, Stream, new_context_id};
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
    /// Whether CLS may have it, or some of it, although it has not said so.
    pub(super) may_be_stored: bool,
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
    pub(super) fn encode(&self, groups: Vec<Group>) -> (Part, Vec<Option<Sent>>) {
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
            may_be_stored: false,
        };
        self.buffers.give(body);
        (part, sent.into_iter().map(Some).collect())
    }

    /// Takes the groups of some streams out of a part, as another one; `None` if there are none.
    pub(super) fn take_out(
        &self,
        part: &mut Part,
        sent: &[Option<Sent>],
        is_wanted: impl Fn(&Stream) -> bool,
    ) -> Option<Part> {
        let is_out = |group: &usize| {
            let sent = sent.get(*group).and_then(Option::as_ref);
            sent.is_none_or(|sent| is_wanted(sent.receipt.stream()))
        };
        if !part.groups.iter().any(is_out) {
            return None;
        }
        let groups = part.groups.iter().copied().zip(self.open(part).groups);
        let (out, rest): (Vec<_>, Vec<_>) = groups.partition(|(group, _)| is_out(group));
        let [out, rest] = [out, rest].map(|groups| {
            let (groups, list): (Vec<_>, Vec<_>) = groups.into_iter().unzip();
            // One that begins inside a group has no other one.
            self.part(groups, &LogGroupList { groups: list }, part)
        });
        *part = rest;
        Some(out)
    }

    /// Makes a part of some of the groups of another one, with as much of them.
    fn part(&self, groups: Vec<usize>, list: &LogGroupList, whole: &Part) -> Part {
        let body = list.encode_to_vec();
        Part {
            bytes: body.len(),
            log_count: list.groups.iter().map(|group| group.logs.len()).sum(),
            body: self.compress(&body),
            groups,
            ..*whole
        }
    }

    /// Cuts a part in two; `None` for a single log.
    pub(super) fn cut(&self, part: &Part) -> Option<[Part; 2]> {
        let is_inside = part.groups.len() == 1;
        let list = self.open(part);
        let halves = list.halves(&new_context_id(), part.may_be_stored)?;
        let (mut groups, mut first_log) = (part.groups.as_slice(), part.first_log);
        Some(halves.map(|list| {
            let of_half = groups.get(..list.groups.len()).unwrap_or_default();
            let half = Part {
                first_log,
                // Those of a single group have new ids, if they need them.
                may_be_stored: part.may_be_stored && !is_inside,
                ..self.part(of_half.to_vec(), &list, part)
            };
            // The halves of a single group both belong to it.
            match is_inside {
                true => first_log += half.log_count,
                false => groups = groups.get(list.groups.len()..).unwrap_or_default(),
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
