//! The fields that a line becomes, whatever tells them apart in it: written as they come, straight into the
//! record.
//!
//! Of fields with the same key the last one wins. CLS reserves keys that begin with `_` (API document
//! 614/87660), and this product puts its own fields there. So a key loses its leading underscores, `field`
//! stands for an empty one, and a key that thereby collides with another gets underscores at its end until
//! it is free.
//!
//! Bounds: the caller's. Fields beyond them are taken back, and the line stays text.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use super::keys::{Fate, Keys};
use crate::cls::encode::{self, put_pair, put_pair_head};

/// Name of the field whose key is empty.
const NAMELESS: &[u8] = b"field";

/// Fewer fields are searched for equal keys one by one, more by hash.
const LINEAR_MAX: usize = 32;

/// Fields whose bookkeeping is kept allocated between lines.
const KEPT_MEMBERS_MAX: usize = 256;

/// Bytes of text that are kept allocated between lines.
const KEPT_TEXT_BYTES_MAX: usize = 16 << 10;

/// How fields are written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// Stands before every key. With one, keys are not renamed.
    pub(super) key_prefix: &'static [u8],
    /// A key without leading underscore that the product itself uses.
    pub(super) taken_key: Option<&'static [u8]>,
    /// Bytes of all fields, encoded.
    pub(super) fields_bytes_max: usize,
    /// Bytes of all their values.
    pub(super) values_bytes_max: usize,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Written {
    /// Bytes of all values.
    pub(super) value_bytes: usize,
    /// Keys that were renamed.
    pub(super) renamed_keys: u64,
    /// Fields that [`Keys`] drop.
    pub(super) dropped_fields: u64,
}

/// Memory that is used again for every line.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    members: Vec<Member>,
    /// Of the members; apart from them because they are compared most.
    fingerprints: Vec<u64>,
    index: Index,
    key: Vec<u8>,
    rewritten: Vec<u8>,
}

/// Memory for a key and a value that do not stand in the line as they are.
#[derive(Debug, Default)]
pub(super) struct Texts {
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
}

/// A field in the output.
#[derive(Debug, Clone, Copy)]
struct Member {
    /// Where the field stands in the output, and in it the key.
    start: usize,
    end: usize,
    key_start: usize,
    key_end: usize,
    value_bytes: usize,
    rename: Rename,
    is_dropped: bool,
}

/// What was done to a key. Keys are the same if their final text and this are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rename {
    No,
    /// So many leading underscores were taken off.
    Stripped(usize),
    /// It was empty, or so many underscores.
    Nameless(usize),
    /// The same, and one was put behind it, because the product uses the key.
    Taken(usize),
    /// The key is the product's own: it gives way to one of the line.
    Own,
}

/// Writes the fields of one line.
pub(super) struct Fields<'a> {
    rules: Rules,
    /// Absent if all fields are kept as they are.
    keys: Option<&'a Keys>,
    start: usize,
    scratch: &'a mut Scratch,
    out: &'a mut Vec<u8>,
    written: Written,
    needs_rewrite: bool,
}

impl<'a> Fields<'a> {
    /// Begins a line's fields behind what `out` holds.
    #[inline]
    pub(super) fn begin(rules: Rules, scratch: &'a mut Scratch, out: &'a mut Vec<u8>) -> Self {
        scratch.members.clear();
        scratch.fingerprints.clear();
        Self {
            rules,
            keys: None,
            start: out.len(),
            scratch,
            out,
            written: Written::default(),
            needs_rewrite: false,
        }
    }

    /// Says which fields are written, and under which keys.
    #[inline]
    pub(super) fn by(self, keys: Option<&'a Keys>) -> Self {
        Self { keys, ..self }
    }

    /// Writes a field. Key and value are UTF-8.
    #[inline]
    pub(super) fn put(&mut self, key: &[u8], value: &[u8]) {
        match self.keys.map_or(Fate::Kept, |keys| keys.fate(key)) {
            Fate::Kept => self.put_kept(key, value),
            Fate::Renamed(key) => self.write(key.as_bytes(), value, Rename::No),
            Fate::Dropped => self.written.dropped_fields += 1,
        }
    }

    #[inline]
    fn put_kept(&mut self, key: &[u8], value: &[u8]) {
        let is_plain = self.rules.key_prefix.is_empty()
            && !matches!(key.first(), None | Some(b'_'))
            && self.rules.taken_key.is_none_or(|taken| taken != key);
        if is_plain {
            self.write(key, value, Rename::No);
        } else {
            self.put_renamed(key, value);
        }
    }

    /// Writes a field of the product's own making, whose key a field of the line goes before.
    pub(super) fn put_own(&mut self, key: &[u8], value: &[u8]) {
        self.write(key, value, Rename::Own);
    }

    fn put_renamed(&mut self, key: &[u8], value: &[u8]) {
        let mut renamed = std::mem::take(&mut self.scratch.key);
        renamed.clear();
        renamed.extend_from_slice(self.rules.key_prefix);
        renamed.extend_from_slice(key);
        let rename = if self.rules.key_prefix.is_empty() {
            rename_key(&mut renamed, self.rules.taken_key)
        } else {
            Rename::No
        };
        self.write(&renamed, value, rename);
        self.scratch.key = renamed;
    }

    #[inline]
    fn write(&mut self, key: &[u8], value: &[u8], rename: Rename) {
        let start = self.out.len();
        put_pair_head(self.out, encode::CONTENTS, key, value.len());
        self.out.extend_from_slice(value);
        let end = self.out.len();
        // Behind the key stand the value's tag, length and bytes.
        let key_end = end - value.len() - encode::varint_bytes(value.len()) - 1;
        self.written.value_bytes += value.len();
        self.written.renamed_keys += u64::from(!matches!(rename, Rename::No | Rename::Own));
        let member = Member {
            start,
            end,
            key_start: key_end - key.len(),
            key_end,
            value_bytes: value.len(),
            rename,
            is_dropped: false,
        };
        let fingerprint = fingerprint(key);
        self.needs_rewrite |= self.scratch.add(member, fingerprint, self.out);
    }

    /// Whether what was written so far is within the bounds.
    #[inline]
    pub(super) fn is_within_bounds(&self) -> bool {
        self.out.len() - self.start <= self.rules.fields_bytes_max
            && self.written.value_bytes <= self.rules.values_bytes_max
    }

    /// Ends the line. Returns `None`, with nothing written, if its fields are beyond the bounds.
    #[inline]
    pub(super) fn finish(mut self) -> Option<Written> {
        if self.needs_rewrite {
            self.rewrite();
        }
        let is_within_bounds = self.is_within_bounds();
        if !is_within_bounds {
            self.out.truncate(self.start);
        }
        self.scratch.shrink();
        is_within_bounds.then_some(self.written)
    }

    /// Takes back what was written.
    pub(super) fn abandon(self) {
        self.out.truncate(self.start);
        self.scratch.shrink();
    }

    /// Writes the fields again, without those that a later one replaces, and with keys that are
    /// free where a renamed one is not.
    #[cold]
    fn rewrite(&mut self) {
        let Scratch {
            members, rewritten, ..
        } = &mut *self.scratch;
        let out = &mut *self.out;
        members.retain(|member| !member.is_dropped);
        let mut keys: HashSet<Vec<u8>> = members
            .iter()
            .filter(|member| member.rename == Rename::No)
            .map(|member| out[member.key_start..member.key_end].to_vec())
            .collect();
        rewritten.clear();
        self.written.value_bytes = 0;
        for member in members {
            self.written.value_bytes += member.value_bytes;
            if member.rename == Rename::No {
                rewritten.extend_from_slice(&out[member.start..member.end]);
                continue;
            }
            let mut key = out[member.key_start..member.key_end].to_vec();
            while !keys.insert(key.clone()) {
                key.push(b'_');
            }
            let field_value = &out[member.end - member.value_bytes..member.end];
            put_pair(rewritten, encode::CONTENTS, &key, field_value);
        }
        out.truncate(self.start);
        out.extend_from_slice(rewritten);
    }
}

fn rename_key(key: &mut Vec<u8>, taken_key: Option<&[u8]>) -> Rename {
    let underscores = key.iter().take_while(|byte| **byte == b'_').count();
    if underscores == key.len() {
        key.clear();
        key.extend_from_slice(NAMELESS);
        return Rename::Nameless(underscores);
    }
    key.drain(..underscores);
    match (underscores, taken_key) {
        (_, Some(taken)) if taken == key.as_slice() => {
            key.push(b'_');
            Rename::Taken(underscores)
        }
        (0, _) => Rename::No,
        (underscores, _) => Rename::Stripped(underscores),
    }
}

/// Sums up a key. Cheap, and easily made to collide: it only saves comparisons.
#[inline]
fn fingerprint(key: &[u8]) -> u64 {
    let (head, tail) = match (key.first_chunk::<8>(), key.last_chunk::<8>()) {
        (Some(head), Some(tail)) => (u64::from_le_bytes(*head), u64::from_le_bytes(*tail)),
        _ => {
            let word = key
                .iter()
                .fold(0, |word, byte| word << 8 | u64::from(*byte));
            (word, 0)
        }
    };
    head ^ tail.rotate_left(19) ^ (key.len() as u64).rotate_left(56)
}

impl Scratch {
    /// Remembers a member. Returns whether its key makes a rewrite necessary: an equal key is
    /// replaced, and a key that was renamed to an equal one needs another name.
    #[inline]
    fn add(&mut self, member: Member, fingerprint: u64, out: &[u8]) -> bool {
        let mut needs_rewrite = false;
        if self.members.len() < LINEAR_MAX {
            for (known, at) in self.fingerprints.iter().zip(0..) {
                if *known == fingerprint {
                    let known: &mut Member = &mut self.members[at];
                    needs_rewrite |= known.meet(&member, out);
                }
            }
            self.fingerprints.push(fingerprint);
            self.members.push(member);
            return needs_rewrite;
        }
        if self.members.len() == LINEAR_MAX {
            self.index.clear();
            for at in 0..LINEAR_MAX {
                let key = &out[self.members[at].key_start..self.members[at].key_end];
                self.index.insert(key, at, |_| {});
            }
        }
        let at = self.members.len();
        let key = &out[member.key_start..member.key_end];
        let members = &mut self.members;
        self.index.insert(key, at, |known| {
            if let Some(known) = members.get_mut(known) {
                needs_rewrite |= known.meet(&member, out);
            }
        });
        self.members.push(member);
        needs_rewrite
    }

    /// Gives memory back that only an unusual line needs.
    fn shrink(&mut self) {
        if self.members.capacity() > KEPT_MEMBERS_MAX {
            *self = Self::default();
        }
        shrink(&mut self.key);
        shrink(&mut self.rewritten);
    }

    #[cfg(test)]
    pub(super) fn is_small(&self) -> bool {
        self.members.capacity() <= KEPT_MEMBERS_MAX
            && self.rewritten.capacity() <= KEPT_TEXT_BYTES_MAX
            && self.index.places.capacity() == 0
    }
}

impl Texts {
    /// Gives memory back that only an unusual line needs.
    pub(super) fn shrink(&mut self) {
        shrink(&mut self.key);
        shrink(&mut self.value);
    }
}

fn shrink(text: &mut Vec<u8>) {
    if text.capacity() > KEPT_TEXT_BYTES_MAX {
        *text = Vec::new();
    }
}

impl Member {
    /// Meets a later member with perhaps the same key.
    fn meet(&mut self, later: &Member, out: &[u8]) -> bool {
        let is_same_text = out[self.key_start..self.key_end] == out[later.key_start..later.key_end];
        if is_same_text && self.rename == later.rename {
            self.is_dropped = true;
        }
        is_same_text
    }
}

/// Finds members by key in constant time, whatever the keys: a hostile object must not cost
/// quadratic time, so the hash is keyed. Open addressing; at most half of the places are used.
#[derive(Debug, Default)]
struct Index {
    hasher: RandomState,
    /// Hash and member number plus one, 0 is free. A power of two of places.
    places: Vec<(u64, usize)>,
    used: usize,
}

impl Index {
    fn clear(&mut self) {
        self.places.clear();
        self.places.resize(LINEAR_MAX * 4, (0, 0));
        self.used = 0;
    }

    /// Adds a member and calls `meet` with each earlier one of the same hash.
    fn insert(&mut self, key: &[u8], member: usize, mut meet: impl FnMut(usize)) {
        if self.used * 2 >= self.places.len() {
            self.grow();
        }
        let hash = self.hasher.hash_one(key);
        let place = self.find_free(hash, &mut meet);
        self.places[place] = (hash, member + 1);
        self.used += 1;
    }

    fn find_free(&self, hash: u64, mut meet: impl FnMut(usize)) -> usize {
        let mask = self.places.len() - 1;
        // The low bits choose the place; which part of the hash they are does not matter.
        let [a, b, c, d, ..] = hash.to_le_bytes();
        let mut place = u32::from_le_bytes([a, b, c, d]) as usize & mask;
        while let Some((known, number @ 1..)) = self.places.get(place) {
            if *known == hash {
                meet(number - 1);
            }
            place = (place + 1) & mask;
        }
        place
    }

    fn grow(&mut self) {
        let doubled = self.places.len() * 2;
        let old = std::mem::replace(&mut self.places, vec![(0, 0); doubled]);
        for (hash, number) in old.into_iter().filter(|(_, number)| *number > 0) {
            let place = self.find_free(hash, |_| {});
            self.places[place] = (hash, number);
        }
    }
}
