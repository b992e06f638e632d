//! The dead-letter store: records that CLS will never take, with the reason, readable and
//! replayable.
//!
//! One file of JSON Lines; each line is one record with everything it needs to be sent again. The
//! store is bounded, and so is what each tenant has of it where there are several. At its bound nothing is written and the lane holds, because the entries can't
//! be acknowledged: an operator makes room, or fixes what made the letters.
//!
//! A stored letter is the only copy of its record: it is on stable storage before `store` returns. A
//! line that a full disk or a kill cut short is taken back or ended, so that the next one stands
//! alone; a line that is no letter is kept for a human eye, never removed.
//!
//! A running shipper appends while an operator replays: both lock the file, and a replay takes the
//! whole file away under the lock (by renaming it) before it sends the first record. What it could
//! not send it puts back. Two replays at once would send everything twice, so the second is refused.

use std::collections::HashMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

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
    /// Name of the lane's credential source; `None` for a container's own keys, which are not
    /// stored, and in letters of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<String>,
    /// Whether the lane's keys were a container's own.
    #[serde(default)]
    pub has_own_keys: bool,
}

/// Why letters were not stored. None of them counts as stored; what of them is on disk nevertheless
/// does no harm to those that follow.
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
    /// One owner has its share of it.
    #[error(
        "dead-letter store {} holds {bytes} B of {owner} and {more_bytes} B more exceed its share of {bytes_max} B",
        path.display()
    )]
    Share {
        /// The file.
        path: PathBuf,
        /// Whose letters they are.
        owner: String,
        /// What it holds of theirs.
        bytes: u64,
        /// What would be added.
        more_bytes: u64,
        /// Their share.
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
    is_shared: bool,
    /// What each owner has in the file, as far as this process knows.
    shares: Mutex<Shares>,
}

/// Whose a letter is: a tenant's, apart from those that its containers' own keys were for, as these are
/// made as easily as a container has a wrong key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
struct Owner {
    #[serde(default)]
    tenant: Option<String>,
    #[serde(default)]
    has_own_keys: bool,
}

/// Bytes of owners in a file.
#[derive(Debug, Default)]
struct Shares {
    inode: u64,
    /// Bytes of the file that are counted.
    bytes: u64,
    of_owners: HashMap<Owner, u64>,
}

impl Shares {
    /// Counts what of a file is not counted yet; all of it, if it is another one or was cut.
    fn catch_up(&mut self, file: &File, bytes: u64) -> std::io::Result<()> {
        let inode = file.metadata()?.ino();
        if self.inode != inode || self.bytes > bytes {
            *self = Self {
                inode,
                ..Self::default()
            };
        }
        if self.bytes < bytes {
            let mut reader = BufReader::new(file);
            reader.seek(SeekFrom::Start(self.bytes))?;
            for line in reader.split(b'\n') {
                let line = line?;
                if let Ok(owner) = serde_json::from_slice::<Owner>(&line) {
                    self.add(owner, line.len() as u64 + 1);
                }
            }
            self.bytes = bytes;
        }
        Ok(())
    }

    fn add(&mut self, owner: Owner, bytes: u64) {
        *self.of_owners.entry(owner).or_default() += bytes;
    }
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
    /// Its group's source: the host.
    pub source: String,
    /// Its group's context.
    pub context_flow: String,
    /// Name of the host's tenant; `None` in letters of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
}

impl DeadLetters {
    /// Makes a store in a file, which is created at the first letter.
    pub fn new(path: PathBuf, bytes_max: u64) -> Self {
        Self {
            path,
            bytes_max,
            is_shared: false,
            shares: Mutex::default(),
        }
    }

    /// Says whether several tenants share it: then each has half of it at most, and a tenth for letters
    /// of its containers' own keys.
    #[must_use]
    pub fn shared(self, is_shared: bool) -> Self {
        Self { is_shared, ..self }
    }

    /// Stores all records of a body durably; `tenants` has a name for each of its groups. Blocks on the
    /// disk, and on a replay that begins.
    ///
    /// # Errors
    /// The store is full, or has an owner's share, or can't be written; then the records count as not
    /// stored.
    pub fn store(
        &self,
        reason: &Reason,
        list: &LogGroupList,
        tenants: &[String],
        now_ms: i64,
    ) -> Result<(), StoreError> {
        let mut lines = Vec::new();
        let mut more = HashMap::<Owner, u64>::new();
        for (group, tenant) in list.groups.iter().zip(tenants) {
            let before = lines.len();
            for log in &group.logs {
                append_line(&mut lines, &Letter::new(reason, group, log, tenant, now_ms));
            }
            let owner = Owner {
                tenant: Some(tenant.clone()),
                has_own_keys: reason.has_own_keys,
            };
            *more.entry(owner).or_default() += (lines.len() - before) as u64;
        }
        self.append(&lines, self.bytes_max, more)
    }

    fn append(
        &self,
        lines: &[u8],
        bytes_max: u64,
        more: HashMap<Owner, u64>,
    ) -> Result<(), StoreError> {
        let write_error = |source| StoreError::Write {
            path: self.path.clone(),
            source,
        };
        let mut file = lock(&self.path).map_err(write_error)?;
        end_last_line(&mut file).map_err(write_error)?;
        let bytes = file.metadata().map_err(write_error)?.len();
        if bytes.saturating_add(lines.len() as u64) > bytes_max {
            return Err(StoreError::Full {
                path: self.path.clone(),
                bytes,
                more_bytes: lines.len() as u64,
                bytes_max,
            });
        }
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_shared {
            shares.catch_up(&file, bytes).map_err(write_error)?;
            self.check_shares(&shares, &more)?;
        }
        let written = file.write_all(lines).and_then(|()| file.sync_data());
        let written = written.and_then(|()| match bytes {
            0 => sync_folder(&self.path),
            _ => Ok(()),
        });
        written.map_err(|source| {
            // What does not go away here is ended before the next letter.
            file.set_len(bytes).ok();
            write_error(source)
        })?;
        if self.is_shared {
            for (owner, bytes) in more {
                shares.add(owner, bytes);
            }
            shares.bytes = bytes.saturating_add(lines.len() as u64);
        }
        Ok(())
    }

    /// Looks whether each owner has room for what it adds.
    fn check_shares(&self, shares: &Shares, more: &HashMap<Owner, u64>) -> Result<(), StoreError> {
        for (owner, more_bytes) in more {
            let part = if owner.has_own_keys { 10 } else { 2 };
            let bytes_max = self.bytes_max / part;
            let bytes = shares.of_owners.get(owner).copied().unwrap_or_default();
            if bytes.saturating_add(*more_bytes) > bytes_max {
                return Err(StoreError::Share {
                    path: self.path.clone(),
                    owner: owner.to_string(),
                    bytes,
                    more_bytes: *more_bytes,
                    bytes_max,
                });
            }
        }
        Ok(())
    }

    /// Returns all letters, oldest first, and how many lines are not letters.
    ///
    /// # Errors
    /// The file can't be read; that there is none means that there are no letters.
    pub fn letters(&self) -> std::io::Result<(Vec<Letter>, usize)> {
        let Content { letters, others } = read(&self.path)?;
        Ok((letters, others.len()))
    }

    /// Takes all letters out. They stay on disk, in a file beside the store, until
    /// [`Taken::finish`] says what became of them; letters that an interrupted replay left there are
    /// taken first.
    ///
    /// # Errors
    /// A file can't be locked, read or renamed, or another replay is under way.
    pub fn take(&self) -> std::io::Result<Taken<'_>> {
        let only = self.lock_replay()?;
        let aside = self.path.with_extension("replaying");
        if !aside.try_exists()? && self.path.try_exists()? {
            let _lock = lock(&self.path)?;
            std::fs::rename(&self.path, &aside)?;
            sync_folder(&self.path)?;
        }
        let Content { letters, others } = read(&aside)?;
        Ok(Taken {
            store: self,
            aside,
            letters,
            others,
            _only: only,
        })
    }

    /// Takes the lock that a replay holds from its beginning to its end; a process that dies leaves
    /// it. The store's own lock would keep the shipper from storing meanwhile.
    fn lock_replay(&self) -> std::io::Result<File> {
        let path = self.path.with_extension("lock");
        let file = open(&path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            let error = std::io::Error::from(error);
            if error.kind() == std::io::ErrorKind::WouldBlock {
                let rule = format!("another replay is under way, it holds {}", path.display());
                return std::io::Error::new(std::io::ErrorKind::WouldBlock, rule);
            }
            error
        })?;
        Ok(file)
    }
}

/// Letters that a replay holds.
#[derive(Debug)]
pub struct Taken<'a> {
    store: &'a DeadLetters,
    aside: PathBuf,
    /// The letters, oldest first.
    pub letters: Vec<Letter>,
    /// Lines that are no letters.
    others: Vec<Vec<u8>>,
    _only: File,
}

impl Taken<'_> {
    /// Puts back what could not be sent and what is no letter, whatever the bound says, and forgets
    /// the rest.
    ///
    /// # Errors
    /// The store can't be written; then all letters stay where a next replay finds them.
    pub fn finish(self, unsent: &[Letter]) -> Result<(), StoreError> {
        let mut lines = Vec::new();
        for line in &self.others {
            lines.extend_from_slice(line);
            lines.push(b'\n');
        }
        for letter in unsent {
            append_line(&mut lines, letter);
        }
        if !lines.is_empty() {
            self.store.append(&lines, u64::MAX, HashMap::new())?;
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
    fn new(reason: &Reason, group: &LogGroup, log: &Log, tenant: &str, now_ms: i64) -> Self {
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
            tenant: Some(tenant.to_owned()),
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

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenant = self.tenant.as_deref().unwrap_or("no");
        match self.has_own_keys {
            true => write!(f, "tenant {tenant} with containers' own keys"),
            false => write!(f, "tenant {tenant}"),
        }
    }
}

fn append_line(lines: &mut Vec<u8>, letter: &Letter) {
    serde_json::to_writer(&mut *lines, letter).expect("strings and numbers serialise");
    lines.push(b'\n');
}

/// What a file holds.
#[derive(Default)]
struct Content {
    letters: Vec<Letter>,
    /// Lines that are no letters.
    others: Vec<Vec<u8>>,
}

fn read(path: &Path) -> std::io::Result<Content> {
    let file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Content::default());
        }
        opened => opened?,
    };
    let mut content = Content::default();
    for line in BufReader::new(file).split(b'\n') {
        let line = line?;
        match serde_json::from_slice(&line) {
            Ok(letter) => content.letters.push(letter),
            Err(_) => content.others.push(line),
        }
    }
    Ok(content)
}

/// Ends a last line that was cut short, so that it spoils itself only.
fn end_last_line(file: &mut File) -> std::io::Result<()> {
    let bytes = file.metadata()?.len();
    let mut last = [b'\n'];
    if let Some(offset) = bytes.checked_sub(1) {
        file.read_exact_at(&mut last, offset)?;
    }
    if last == [b'\n'] {
        return Ok(());
    }
    file.write_all(b"\n")
}

/// Brings the names of a file's folder to stable storage: a new file is none without its name.
fn sync_folder(path: &Path) -> std::io::Result<()> {
    match path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
    {
        Some(folder) => File::open(folder)?.sync_all(),
        None => File::open(".")?.sync_all(),
    }
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
        .read(true)
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
            credentials: Some("c".into()),
            has_own_keys: false,
        }
    }

    fn tenants() -> Vec<String> {
        vec!["a".to_owned()]
    }

    fn values(letters: &[Letter]) -> Vec<&str> {
        letters
            .iter()
            .map(|letter| letter.fields[0].1.as_str())
            .collect()
    }

    #[test]
    fn letters_are_json_lines_with_all_that_a_replay_needs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/dead-letter.jsonl");
        DeadLetters::new(path.clone(), 1 << 20)
            .store(&reason(), &list("x\u{0}\"y"), &tenants(), 9)
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
                "credentials": "c", "has_own_keys": false, "tenant": "a", "time_ms": 7, "fields": [["content", "x\u{0}\"y"]], "tags": [["tag", "t"]],
                "source": "host", "context_flow": ""
            })
        );
    }

    #[test]
    fn a_full_store_refuses_and_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dead-letter.jsonl");
        let store = DeadLetters::new(path.clone(), 1000);
        store.store(&reason(), &list("x"), &tenants(), 9).unwrap();
        let bytes = std::fs::metadata(&path).unwrap().len();
        let error = store
            .store(&reason(), &list(&"x".repeat(500)), &tenants(), 9)
            .unwrap_err();
        assert!(
            error.to_string().contains("exceed its bound of 1000 B"),
            "{error}"
        );
        assert_eq!(std::fs::metadata(&path).unwrap().len(), bytes);
    }

    /// Also where another process has the store now, and after a replay.
    #[test]
    fn each_tenant_has_a_share_and_a_smaller_one_for_own_keys() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dead-letter.jsonl");
        let open = || DeadLetters::new(path.clone(), 20_000).shared(true);
        let fill = |store: &DeadLetters, tenant: &str, has_own_keys: bool| {
            let reason = Reason {
                has_own_keys,
                ..reason()
            };
            let tenant = [tenant.to_owned()];
            loop {
                if let Err(error) = store.store(&reason, &list("x"), &tenant, 9) {
                    return error.to_string();
                }
            }
        };
        let bytes = || std::fs::metadata(&path).unwrap().len();
        let store = open();
        let error = fill(&store, "a", true);
        let expected = "of tenant a with containers' own keys and";
        assert!(error.contains(expected) && bytes() < 2_000, "{error}");
        let error = fill(&open(), "a", false);
        assert!(error.contains("exceed its share of 10000 B"), "{error}");
        assert!((11_000..12_000).contains(&bytes()), "{}", bytes());
        store
            .store(&reason(), &list("x"), &["b".to_owned()], 9)
            .unwrap();
        // What a replay has sent makes room for its owner.
        store.take().unwrap().finish(&[]).unwrap();
        store
            .store(&reason(), &list("x"), &["a".to_owned()], 9)
            .unwrap();
    }

    #[test]
    fn a_replay_takes_all_letters_and_puts_back_what_it_could_not_send() {
        let folder = tempfile::tempdir().unwrap();
        let store = DeadLetters::new(folder.path().join("dead-letter.jsonl"), 1 << 20);
        store
            .store(&reason(), &list("first"), &tenants(), 9)
            .unwrap();
        let taken = store.take().unwrap();
        assert_eq!(taken.letters.len(), 2);
        assert_eq!(
            taken.letters[0].to_list().groups[0].logs,
            list("first").groups[0].logs[..1]
        );
        store
            .store(&reason(), &list("meanwhile"), &tenants(), 9)
            .unwrap();
        let unsent = taken.letters[..1].to_vec();
        taken.finish(&unsent).unwrap();
        let (letters, bad_count) = store.letters().unwrap();
        assert_eq!(values(&letters), ["meanwhile", "meanwhile", "first"]);
        assert_eq!(bad_count, 0);
    }

    #[test]
    fn a_line_that_was_cut_short_spoils_no_other_and_survives_a_replay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dead-letter.jsonl");
        let store = DeadLetters::new(path.clone(), 1 << 20);
        store
            .store(&reason(), &list("first"), &tenants(), 9)
            .unwrap();
        let whole = std::fs::read(&path).unwrap();
        let torn = whole.get(..whole.len() - 20).unwrap();
        std::fs::write(&path, torn).unwrap();
        store
            .store(&reason(), &list("second"), &tenants(), 9)
            .unwrap();
        let (letters, other_count) = store.letters().unwrap();
        assert_eq!(values(&letters), ["first", "second", "second"]);
        assert_eq!(other_count, 1);
        let taken = store.take().unwrap();
        assert_eq!(values(&taken.letters), ["first", "second", "second"]);
        taken.finish(&[]).unwrap();
        let (letters, other_count) = store.letters().unwrap();
        assert_eq!((letters.len(), other_count), (0, 1));
        let kept = std::fs::read(&path).unwrap();
        let fragment = torn.rsplit(|byte| *byte == b'\n').next().unwrap();
        assert_eq!(kept, [fragment, b"\n"].concat());
    }

    #[test]
    fn letters_of_an_older_version_name_no_credentials() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dead-letter.jsonl");
        let store = DeadLetters::new(path.clone(), 1 << 20);
        store.store(&reason(), &list("x"), &tenants(), 9).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace(r#""credentials":"c","#, "")).unwrap();
        let (letters, other_count) = store.letters().unwrap();
        assert_eq!((letters.len(), other_count), (2, 0));
        assert_eq!(letters[0].reason.credentials, None);
    }

    #[test]
    fn a_second_replay_is_refused_while_the_first_is_under_way() {
        let folder = tempfile::tempdir().unwrap();
        let store = DeadLetters::new(folder.path().join("dead-letter.jsonl"), 1 << 20);
        store.store(&reason(), &list("x"), &tenants(), 9).unwrap();
        let first = store.take().unwrap();
        let error = store.take().unwrap_err().to_string();
        assert!(error.contains("another replay is under way"), "{error}");
        first.finish(&[]).unwrap();
        assert_eq!(store.take().unwrap().letters.len(), 0);
    }

    #[test]
    fn an_interrupted_replay_is_taken_up_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = DeadLetters::new(folder.path().join("dead-letter.jsonl"), 1 << 20);
        store
            .store(&reason(), &list("first"), &tenants(), 9)
            .unwrap();
        drop(store.take().unwrap());
        store
            .store(&reason(), &list("second"), &tenants(), 9)
            .unwrap();
        let taken = store.take().unwrap();
        assert_eq!(taken.letters[0].fields[0].1, "first");
        taken.finish(&[]).unwrap();
        assert_eq!(store.take().unwrap().letters[0].fields[0].1, "second");
    }
}
