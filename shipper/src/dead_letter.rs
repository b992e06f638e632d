//! The dead-letter store: records that CLS will never take, with the reason, readable and
//! replayable.
//!
//! One file of JSON Lines; each line is one record with everything it needs to be sent again. The
//! store is bounded. At its bound nothing is written and the lane holds, because the entries can't
//! be acknowledged: an operator makes room, or fixes what made the letters.
//!
//! A running shipper appends while an operator replays: both lock the file, and a replay takes the
//! whole file away under the lock (by renaming it) before it sends the first record. What it could
//! not send it puts back.

use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::cls::body::{Log, LogGroup, LogGroupList, Pair};

/// Why records are given up.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reason {
    /// `content` (CLS refuses it), `size` (one record is too large) or `retries` (the container's
    /// own limit of attempts).
    pub reason: String,
    /// HTTP status of the last answer, 0 for none.
    pub status: u16,
    /// CLS's error code.
    pub code: String,
    /// CLS's error message, or what happened instead of an answer.
    pub message: String,
    /// CLS's request id.
    pub request_id: String,
    /// Endpoint of the lane.
    pub endpoint: String,
    /// Topic of the lane.
    pub topic_id: String,
}

/// Why letters were not stored. None of them is on disk, or the last line is cut short.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store is full.
    #[error(
        "dead-letter store {} holds {bytes} B and {more_bytes} B more exceed its bound of {bytes_max} B",
        path.display()
    )]
    Full {
        /// The file.
        path: PathBuf,
        /// What it holds.
        bytes: u64,
        /// What would be added.
        more_bytes: u64,
        /// Its bound.
        bytes_max: u64,
    },
    /// The file can't be written.
    #[error("dead-letter store {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// The store.
#[derive(Debug)]
pub struct DeadLetters {
    path: PathBuf,
    bytes_max: u64,
}

/// One record that was given up.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Letter {
    /// When it was stored, UNIX milliseconds.
    pub stored_unix_ms: i64,
    /// Why it was given up, and where it should have gone.
    #[serde(flatten)]
    pub reason: Reason,
    /// The record's time, UNIX milliseconds.
    pub time_ms: i64,
    /// The record's fields.
    pub fields: Vec<(String, String)>,
    /// Its group's tags.
    pub tags: Vec<(String, String)>,
    /// Its group's source.
    pub source: String,
    /// Its group's context.
    pub context_flow: String,
}

impl DeadLetters {
    /// Makes a store in a file, which is created at the first letter.
    pub fn new(path: PathBuf, bytes_max: u64) -> Self {
        Self { path, bytes_max }
    }

    /// Stores all records of a body durably. Blocks on the disk, and on a replay that begins.
    ///
    /// # Errors
    /// The store is full or can't be written; then the records count as not stored.
    pub fn store(
        &self,
        reason: &Reason,
        list: &LogGroupList,
        now_ms: i64,
    ) -> Result<(), StoreError> {
        let mut lines = Vec::new();
        for group in &list.groups {
            for log in &group.logs {
                append_line(&mut lines, &Letter::new(reason, group, log, now_ms));
            }
        }
        self.append(&lines, self.bytes_max)
    }

    fn append(&self, lines: &[u8], bytes_max: u64) -> Result<(), StoreError> {
        let write_error = |source| StoreError::Write {
            path: self.path.clone(),
            source,
        };
        let mut file = lock(&self.path).map_err(write_error)?;
        let bytes = file.metadata().map_err(write_error)?.len();
        if bytes.saturating_add(lines.len() as u64) > bytes_max {
            return Err(StoreError::Full {
                path: self.path.clone(),
                bytes,
                more_bytes: lines.len() as u64,
                bytes_max,
            });
        }
        file.write_all(lines)
            .and_then(|()| file.sync_data())
            .map_err(write_error)
    }

    /// Returns all letters, oldest first, and how many lines are not letters.
    ///
    /// # Errors
    /// The file can't be read; that there is none means that there are no letters.
    pub fn letters(&self) -> std::io::Result<(Vec<Letter>, usize)> {
        read(&self.path)
    }

    /// Takes all letters out. They stay on disk, in a file beside the store, until
    /// [`Taken::finish`] says what became of them; letters that an interrupted replay left there are
    /// taken first.
    ///
    /// # Errors
    /// A file can't be locked, read or renamed.
    pub fn take(&self) -> std::io::Result<Taken<'_>> {
        let aside = self.path.with_extension("replaying");
        if !aside.try_exists()? && self.path.try_exists()? {
            let _lock = lock(&self.path)?;
            std::fs::rename(&self.path, &aside)?;
        }
        let (letters, _) = read(&aside)?;
        Ok(Taken {
            store: self,
            aside,
            letters,
        })
    }
}

/// Letters that a replay holds.
#[derive(Debug)]
pub struct Taken<'a> {
    store: &'a DeadLetters,
    aside: PathBuf,
    /// The letters, oldest first.
    pub letters: Vec<Letter>,
}

impl Taken<'_> {
    /// Puts back what could not be sent, whatever the bound says, and forgets the rest.
    ///
    /// # Errors
    /// The store can't be written; then all letters stay where a next replay finds them.
    pub fn finish(self, unsent: &[Letter]) -> Result<(), StoreError> {
        let mut lines = Vec::new();
        for letter in unsent {
            append_line(&mut lines, letter);
        }
        if !lines.is_empty() {
            self.store.append(&lines, u64::MAX)?;
        }
        match std::fs::remove_file(&self.aside) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(StoreError::Write {
                    path: self.aside,
                    source,
                })
            }
            _ => Ok(()),
        }
    }
}

impl Letter {
    fn new(reason: &Reason, group: &LogGroup, log: &Log, now_ms: i64) -> Self {
        let pairs = |pairs: &[Pair]| {
            pairs
                .iter()
                .map(|pair| (pair.key.clone(), pair.value.clone()))
                .collect()
        };
        Self {
            stored_unix_ms: now_ms,
            reason: reason.clone(),
            time_ms: log.time,
            fields: pairs(&log.contents),
            tags: pairs(&group.log_tags),
            source: group.source.clone().unwrap_or_default(),
            context_flow: group.context_flow.clone().unwrap_or_default(),
        }
    }

    /// Returns a body that holds this record alone.
    pub fn to_list(&self) -> LogGroupList {
        let pairs = |pairs: &[(String, String)]| {
            let pair = |(key, value): &(String, String)| Pair {
                key: key.clone(),
                value: value.clone(),
            };
            pairs.iter().map(pair).collect()
        };
        let group = LogGroup {
            logs: vec![Log {
                time: self.time_ms,
                contents: pairs(&self.fields),
            }],
            log_tags: pairs(&self.tags),
            source: Some(self.source.clone()).filter(|source| !source.is_empty()),
            ..LogGroup::default()
        };
        LogGroupList {
            groups: vec![group],
        }
    }
}

fn append_line(lines: &mut Vec<u8>, letter: &Letter) {
    serde_json::to_writer(&mut *lines, letter).expect("strings and numbers serialise");
    lines.push(b'\n');
}

fn read(path: &Path) -> std::io::Result<(Vec<Letter>, usize)> {
    let file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((Vec::new(), 0)),
        opened => opened?,
    };
    let (mut letters, mut bad_count) = (Vec::new(), 0);
    for line in BufReader::new(file).split(b'\n') {
        match serde_json::from_slice(&line?) {
            Ok(letter) => letters.push(letter),
            Err(_) => bad_count += 1,
        }
    }
    Ok((letters, bad_count))
}

/// Opens the store and locks it; again, if a replay has taken the file away in between.
fn lock(path: &Path) -> std::io::Result<File> {
    loop {
        let file = open(path)?;
        flock(&file, FlockOperation::LockExclusive)?;
        let is_same = std::fs::metadata(path)
            .is_ok_and(|there| file.metadata().is_ok_and(|here| here.ino() == there.ino()));
        if is_same {
            return Ok(file);
        }
    }
}

/// Opens for appending; readable by the owner only, because records hold what containers print.
fn open(path: &Path) -> std::io::Result<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cls::body::Log;

    fn list(value: &str) -> LogGroupList {
        let pair = |key: &str, value: &str| Pair {
            key: key.into(),
            value: value.into(),
        };
        let log = Log {
            time: 7,
            contents: vec![pair("content", value)],
        };
        let group = LogGroup {
            logs: vec![log.clone(), log],
            log_tags: vec![pair("tag", "t")],
            source: Some("host".into()),
            ..LogGroup::default()
        };
        LogGroupList {
            groups: vec![group],
        }
    }

    fn reason() -> Reason {
        Reason {
            reason: "content".into(),
            status: 400,
            code: "InvalidContent".into(),
            message: "bad".into(),
            request_id: "r".into(),
            endpoint: "https://h".into(),
            topic_id: "t".into(),
        }
    }

    #[test]
    fn letters_are_json_lines_with_all_that_a_replay_needs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/dead-letter.jsonl");
        DeadLetters::new(path.clone(), 1 << 20)
            .store(&reason(), &list("x\u{0}\"y"), 9)
            .unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(
            lines[0],
            serde_json::json!({
                "stored_unix_ms": 9, "reason": "content", "status": 400, "code": "InvalidContent",
                "message": "bad", "request_id": "r", "endpoint": "https://h", "topic_id": "t",
                "time_ms": 7, "fields": [["content", "x\u{0}\"y"]], "tags": [["tag", "t"]],
                "source": "host", "context_flow": ""
            })
        );
    }

    #[test]
    fn a_full_store_refuses_and_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dead-letter.jsonl");
        let store = DeadLetters::new(path.clone(), 1000);
        store.store(&reason(), &list("x"), 9).unwrap();
        let bytes = std::fs::metadata(&path).unwrap().len();
        let error = store
            .store(&reason(), &list(&"x".repeat(500)), 9)
            .unwrap_err();
        assert!(
            error.to_string().contains("exceed its bound of 1000 B"),
            "{error}"
        );
        assert_eq!(std::fs::metadata(&path).unwrap().len(), bytes);
    }

    #[test]
    fn a_replay_takes_all_letters_and_puts_back_what_it_could_not_send() {
        let folder = tempfile::tempdir().unwrap();
        let store = DeadLetters::new(folder.path().join("dead-letter.jsonl"), 1 << 20);
        store.store(&reason(), &list("first"), 9).unwrap();
        let taken = store.take().unwrap();
        assert_eq!(taken.letters.len(), 2);
        assert_eq!(
            taken.letters[0].to_list().groups[0].logs,
            list("first").groups[0].logs[..1]
        );
        store.store(&reason(), &list("meanwhile"), 9).unwrap();
        let unsent = taken.letters[..1].to_vec();
        taken.finish(&unsent).unwrap();
        let values = |letters: &[Letter]| {
            letters
                .iter()
                .map(|letter| letter.fields[0].1.clone())
                .collect::<Vec<_>>()
        };
        let (letters, bad_count) = store.letters().unwrap();
        assert_eq!(values(&letters), ["meanwhile", "meanwhile", "first"]);
        assert_eq!(bad_count, 0);
    }

    #[test]
    fn an_interrupted_replay_is_taken_up_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = DeadLetters::new(folder.path().join("dead-letter.jsonl"), 1 << 20);
        store.store(&reason(), &list("first"), 9).unwrap();
        drop(store.take().unwrap());
        store.store(&reason(), &list("second"), 9).unwrap();
        let taken = store.take().unwrap();
        assert_eq!(taken.letters[0].fields[0].1, "first");
        taken.finish(&[]).unwrap();
        assert_eq!(store.take().unwrap().letters[0].fields[0].1, "second");
    }
}
