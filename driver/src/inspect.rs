//! `cls-driver journal`: what the journals hold, for people. It only reads, so it can be used while
//! a driver works in the same folder; what that one removes meanwhile is passed over.
//!
//! ```text
//! ls             one line per journal
//! show JOURNAL   the entries that are still there, also those that CLS already has
//! verify         reads every frame of every journal; damage is named with its offset
//! ```

use std::fmt;
use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use proto::frame::{self, Decoded, EntryView};
use proto::limits::FRAME_BYTES_MAX;
use proto::text;
use serde::Deserialize;

use crate::chain::Chain;
use crate::disk::RealDisk;
use crate::journal::{
    Folder, OpenError, STATE_DAMAGED_FILE_NAME, STATE_FILE_NAME, Saved, read_state, segment_start,
};
use crate::table::{
    DAMAGED_SUFFIX, ENDED_FILE_NAME, META_FILE_NAME, Meta, is_journal_id, kept_start,
};

/// Digits of a journal's id that `ls` shows, as Docker does with those of containers.
const SHORT_ID_DIGITS: usize = 12;

/// Bytes read at once.
const READ_BYTES: usize = 64 << 10;

const _: () = assert!(FRAME_BYTES_MAX < 4 * READ_BYTES, "a frame takes few reads");

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, clap::Subcommand)]
pub enum Command {
    /// List the journals of this host
    Ls,
    /// Print a journal's entries: offset, time, source ("+" marks a piece of a long line), text
    Show {
        /// Id of a journal or a container, or how it begins
        id: String,
        /// Print texts byte for byte, not with a space for each character that a terminal obeys
        #[arg(long)]
        raw: bool,
    },
    /// Read every frame of every journal; the exit code is 1 if anything is damaged
    Verify,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The folder is not there, or not for this user.
    #[error("could not list {}: {source}", folder.display())]
    StateDir {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No journal or several have an id that begins so.
    #[error(
        "{count} journals have an id or a container id that begins with {id:?}; `ls` lists them"
    )]
    NotOne {
        /// What was asked for.
        id: String,
        /// How many there are.
        count: usize,
    },
    /// A journal's record is damaged.
    #[error("{META_FILE_NAME} is not understood")]
    Record(#[from] serde_json::Error),
    /// A journal's state can't be read.
    #[error("could not read a journal's state")]
    State(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A file can't be read, or the answer not be written.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<OpenError> for InspectError {
    fn from(error: OpenError) -> Self {
        Self::State(Box::new(error))
    }
}

/// Answers a command. Returns whether everything that was looked at is undamaged.
///
/// # Errors
/// See [`InspectError`]. What was written until then is true.
pub fn inspect(
    state_dir: &Path,
    command: &Command,
    out: &mut impl Write,
) -> Result<bool, InspectError> {
    let (journals, unreadable) = journals(state_dir)?;
    match command {
        Command::Ls => {
            list(&journals, out)?;
            for folder in &unreadable {
                writeln!(out, "{folder}")?;
            }
            Ok(true)
        }
        Command::Show { id, raw } => show(find(&journals, id)?, *raw, out).map(|()| true),
        Command::Verify => verify(&journals, &unreadable, out),
    }
}

/// A folder that says nothing of whose entries it holds.
struct Unreadable {
    name: String,
    why: String,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name.get(..SHORT_ID_DIGITS).unwrap_or(&self.name);
        write!(f, "{name:<12}  damaged: {}", self.why)
    }
}

/// A journal's folder as found.
struct Journal {
    id: String,
    container: Container,
    is_over: bool,
    saved: Saved,
    /// Its state file holds nothing to go by, or an earlier one did.
    is_state_damaged: bool,
    /// By offset.
    files: Vec<File>,
}

/// What `meta.json` says of the container.
#[derive(Deserialize)]
struct Container {
    #[serde(rename = "ContainerID", default)]
    id: String,
    #[serde(rename = "ContainerName", default)]
    name: String,
}

struct File {
    start: u64,
    end: u64,
    is_kept: bool,
    path: PathBuf,
}

/// Returns the journals, and the folders of which nothing is known: one hides no other.
fn journals(state_dir: &Path) -> Result<(Vec<Journal>, Vec<Unreadable>), InspectError> {
    let folders = std::fs::read_dir(state_dir).map_err(|source| InspectError::StateDir {
        folder: state_dir.to_path_buf(),
        source,
    })?;
    let mut journals = Vec::new();
    let mut unreadable = Vec::new();
    for entry in folders.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_journal_id(&name) {
            match journal(&entry.path()) {
                Ok(found) => journals.extend(found),
                Err(error) => {
                    let why = Chain(&error).to_string();
                    unreadable.push(Unreadable { name, why });
                }
            }
        } else if name.ends_with(DAMAGED_SUFFIX) {
            let why = "set aside, nothing says whose entries it holds".to_owned();
            unreadable.push(Unreadable { name, why });
        }
    }
    journals.sort_by(|a, b| (&a.container.name, &a.id).cmp(&(&b.container.name, &b.id)));
    unreadable.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((journals, unreadable))
}

/// Reads a folder; `None` if it is not a stream's, or nothing but counters is left of it.
fn journal(folder: &Path) -> Result<Option<Journal>, InspectError> {
    let live = std::fs::read(folder.join(META_FILE_NAME));
    let is_over = live.is_err();
    let Ok(meta) = live.or_else(|_| std::fs::read(folder.join(ENDED_FILE_NAME))) else {
        return Ok(None);
    };
    let meta: Meta = serde_json::from_slice(&meta)?;
    let container = serde_json::from_str(meta.info.get())?;
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)?.flatten() {
        let name = entry.file_name();
        let name = name.to_str().unwrap_or_default();
        let kept = kept_start(name);
        if let Some(start) = kept.or_else(|| segment_start(name)) {
            let bytes = entry.metadata().map_or(0, |metadata| metadata.len());
            files.push(File {
                start,
                end: start.saturating_add(bytes),
                is_kept: kept.is_some(),
                path: entry.path(),
            });
        }
    }
    if is_over && files.is_empty() {
        return Ok(None);
    }
    files.sort_by_key(|file| file.start);
    let saved =
        read_state(&Folder::new(Arc::new(RealDisk), folder.to_path_buf()))?.map(|(_, saved)| saved);
    let has_state = |name| std::fs::metadata(folder.join(name)).is_ok_and(|state| state.len() > 0);
    let is_state_damaged =
        has_state(STATE_DAMAGED_FILE_NAME) || saved.is_none() && has_state(STATE_FILE_NAME);
    Ok(Some(Journal {
        is_state_damaged,
        id: meta.journal_id,
        container,
        is_over,
        saved: saved.unwrap_or_default(),
        files,
    }))
}

fn find<'j>(journals: &'j [Journal], id: &str) -> Result<&'j Journal, InspectError> {
    let mut found = journals
        .iter()
        .filter(|journal| journal.id.starts_with(id) || journal.container.id.starts_with(id));
    match (found.next(), found.count()) {
        (Some(journal), 0) => Ok(journal),
        (first, more) => Err(InspectError::NotOne {
            id: id.to_owned(),
            count: usize::from(first.is_some()).saturating_add(more),
        }),
    }
}

fn list(journals: &[Journal], out: &mut impl Write) -> Result<(), InspectError> {
    let columns = |out: &mut dyn Write, cells: [&dyn fmt::Display; 8]| {
        let [
            journal,
            container,
            state,
            unacked,
            kept,
            delivered,
            dropped,
            other,
        ] = cells;
        writeln!(
            out,
            "{journal:<12}  {container:<24}  {state:<6}  {unacked:>12}  {kept:>10}  {delivered:>12}  \
             {dropped:>10}  {other:>13}"
        )
    };
    columns(
        out,
        [
            &"JOURNAL",
            &"CONTAINER",
            &"STATE",
            &"WAITING B",
            &"KEPT B",
            &"DELIVERED",
            &"DROPPED",
            &"FILTERED+DEAD",
        ],
    )?;
    for journal in journals {
        let settled = &journal.saved.settled;
        columns(
            out,
            [
                &journal.id.get(..SHORT_ID_DIGITS).unwrap_or(&journal.id),
                &text::clean(journal.container.name.trim_start_matches('/')),
                &if journal.is_over { "over" } else { "open" },
                &journal.waiting_bytes(),
                &journal.kept_bytes(),
                &settled.delivered,
                &settled.dropped.total(),
                &settled.filtered.saturating_add(settled.dead_lettered),
            ],
        )?;
    }
    Ok(())
}

fn show(journal: &Journal, is_raw: bool, out: &mut impl Write) -> Result<(), InspectError> {
    journal.walk(|found| match found {
        Found::Entry { offset, entry } => match EntryView::parse(entry) {
            Ok(view) => {
                let time = Duration::from_nanos(u64::try_from(view.time_nano).unwrap_or(0));
                let time = humantime::format_rfc3339_nanos(UNIX_EPOCH + time);
                let piece = if view.partial.is_some() { "+" } else { "" };
                write!(out, "{offset:>12} {time} {}{piece} ", view.source.as_str())?;
                if is_raw {
                    out.write_all(view.line)?;
                } else {
                    out.write_all(text::clean(&String::from_utf8_lossy(view.line)).as_bytes())?;
                }
                writeln!(out)
            }
            Err(error) => writeln!(out, "{offset:>12} -- {error}"),
        },
        Found::Trouble(trouble) => writeln!(out, "{trouble}"),
    })?;
    Ok(())
}

fn verify(
    journals: &[Journal],
    unreadable: &[Unreadable],
    out: &mut impl Write,
) -> Result<bool, InspectError> {
    let (mut entry_count, mut trouble_count) = (0_u64, 0_u64);
    for folder in unreadable {
        trouble_count += 1;
        writeln!(out, "{}: {}", folder.name, folder.why)?;
    }
    for journal in journals {
        if journal.is_state_damaged {
            trouble_count += 1;
            let rule = "holds nothing to go by: what is acknowledged is not known";
            writeln!(out, "{}: {STATE_FILE_NAME} {rule}", journal.id)?;
        }
        journal.walk(|found| {
            match found {
                Found::Entry { entry, .. } if EntryView::parse(entry).is_ok() => entry_count += 1,
                Found::Entry { offset, .. } => {
                    trouble_count += 1;
                    writeln!(out, "{}: no entry at offset {offset}", journal.id)?;
                }
                Found::Trouble(trouble) => {
                    trouble_count += 1;
                    writeln!(out, "{}: {trouble}", journal.id)?;
                }
            }
            Ok(())
        })?;
    }
    let journal_count = journals.len() + unreadable.len();
    writeln!(
        out,
        "{journal_count} journals, {entry_count} entries, {trouble_count} faults"
    )?;
    Ok(trouble_count == 0)
}

/// What stands in a journal.
enum Found<'a> {
    Entry { offset: u64, entry: &'a [u8] },
    Trouble(Trouble),
}

/// What should not be in a journal.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Trouble {
    Damage { offset: u64, bytes: u64 },
    Lost { offset: u64, bytes: u64 },
    CutShort { offset: u64, bytes: u64 },
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damage { offset, bytes } => {
                write!(f, "{bytes} bytes at offset {offset} are no entry")
            }
            Self::Lost { offset, bytes } => {
                write!(f, "{bytes} bytes at offset {offset} are missing")
            }
            Self::CutShort { offset, bytes } => {
                write!(
                    f,
                    "the last entry, at offset {offset}, is cut short after {bytes} bytes"
                )
            }
        }
    }
}

impl Journal {
    fn waiting_bytes(&self) -> u64 {
        let end = self.files.last().map_or(0, |file| file.end);
        end.saturating_sub(self.saved.acked)
    }

    fn kept_bytes(&self) -> u64 {
        let kept = self.files.iter().filter(|file| file.is_kept);
        kept.map(|file| file.end.saturating_sub(file.start)).sum()
    }

    /// Returns whether nobody misses the bytes from `start` to `end`: they are acknowledged, or in
    /// a hole that is known.
    fn is_settled(&self, start: u64, end: u64) -> bool {
        let mut at = start.max(self.saved.acked);
        for hole in &self.saved.holes {
            if hole.span.start <= at {
                at = at.max(hole.span.end);
            }
        }
        at >= end
    }

    /// Reads the frames of all files, which may cross from one into the next.
    fn walk(&self, mut found: impl FnMut(Found<'_>) -> io::Result<()>) -> io::Result<()> {
        let mut run = Run::default();
        let mut end = 0;
        for file in &self.files {
            if file.start > end {
                run.finish(self, false, &mut found)?;
                if !self.is_settled(end, file.start) {
                    let bytes = file.start - end.max(self.saved.acked);
                    let offset = end.max(self.saved.acked);
                    found(Found::Trouble(Trouble::Lost { offset, bytes }))?;
                }
            }
            if run.is_empty() {
                run.begin(file.start);
            }
            end = end.max(file.end);
            let mut reader = match std::fs::File::open(&file.path) {
                Ok(reader) => reader.take(file.end - file.start),
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            while run.fill(&mut reader)? {
                run.advance(&mut found)?;
            }
        }
        run.finish(self, true, &mut found)
    }
}

/// A run of bytes without a gap.
#[derive(Default)]
struct Run {
    /// Offset of the first byte of `bytes`.
    offset: u64,
    bytes: Vec<u8>,
    /// The run may begin inside an entry: that is no damage.
    is_at_boundary: bool,
}

impl Run {
    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn begin(&mut self, offset: u64) {
        // Where the next byte continues what was read, the boundary is known already.
        self.is_at_boundary = offset == 0 || (self.is_at_boundary && self.offset == offset);
        self.offset = offset;
    }

    /// Reads on. Returns whether there was anything.
    fn fill(&mut self, reader: &mut impl io::Read) -> io::Result<bool> {
        let limit = u64::try_from(READ_BYTES).unwrap_or(u64::MAX);
        Ok(reader.take(limit).read_to_end(&mut self.bytes)? > 0)
    }

    /// Takes all whole frames off.
    fn advance(&mut self, found: &mut impl FnMut(Found<'_>) -> io::Result<()>) -> io::Result<()> {
        if !self.is_at_boundary {
            let Some(bytes) = frame::find_boundary(&self.bytes, 0) else {
                return Ok(());
            };
            self.skip(bytes);
            self.is_at_boundary = true;
        }
        let mut at = 0;
        loop {
            let rest = self.bytes.get(at..).unwrap_or_default();
            let offset = self.offset.saturating_add(at as u64);
            match frame::decode(rest) {
                Decoded::Frame { entry, frame_bytes } => {
                    found(Found::Entry { offset, entry })?;
                    at = at.saturating_add(frame_bytes);
                }
                Decoded::Incomplete => break,
                Decoded::Malformed(_) => {
                    let Some(bytes) = frame::resync(rest) else {
                        break;
                    };
                    let trouble = Trouble::Damage {
                        offset,
                        bytes: bytes as u64,
                    };
                    found(Found::Trouble(trouble))?;
                    at = at.saturating_add(bytes);
                }
            }
        }
        self.skip(at);
        Ok(())
    }

    /// Judges what is left when the next byte is missing.
    fn finish(
        &mut self,
        journal: &Journal,
        is_tail: bool,
        found: &mut impl FnMut(Found<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let (offset, bytes) = (self.offset, self.bytes.len() as u64);
        self.skip(self.bytes.len());
        // The engine may be in the middle of writing an entry; what is gone before or behind a
        // kept segment is nobody's loss.
        let is_expected = !self.is_at_boundary || journal.is_settled(offset, offset + bytes);
        self.is_at_boundary = false;
        if bytes == 0 || is_expected || (is_tail && !journal.is_over) {
            return Ok(());
        }
        found(Found::Trouble(Trouble::CutShort { offset, bytes }))
    }

    fn skip(&mut self, bytes: usize) {
        self.bytes.drain(..bytes.min(self.bytes.len()));
        self.offset = self.offset.saturating_add(bytes as u64);
    }
}
