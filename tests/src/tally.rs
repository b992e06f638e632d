//! What a container has written, told by itself and not by its log: files in a folder that the
//! workload `chatter` shares with a test.
//!
//! ```text
//! FOLDER/NAME-STAMP           one start of the container; empty until it ends, then how many lines
//!                             it wrote to stdout and to stderr
//! FOLDER/NAME-STAMP.resting   it rests between two lines: from SIGUSR1 to SIGUSR2
//! ```
//!
//! The stamp is random, so lines of two starts are never alike. A start that was killed leaves its
//! file empty: then its lines are known to be the first ones, but not how many they are.

use crate::script::Script;
use proto::frame::Source;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Ends the name of the file of a start that rests.
const RESTING_SUFFIX: &str = ".resting";

/// One start of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tally {
    /// The container's name.
    pub container: String,
    /// Name and stamp.
    pub name: String,
    /// How many lines it wrote; `None` while it writes, and for ever if it was killed.
    pub counts: Option<Counts>,
}

/// Lines of one start, by output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// To stdout.
    pub stdout: u64,
    /// To stderr.
    pub stderr: u64,
}

impl Tally {
    /// Returns the scripts of what this start wrote to stdout and to stderr.
    pub fn scripts(&self, line_bytes: usize) -> [Script; 2] {
        let counts = self.counts.unwrap_or_default();
        scripts(&self.name, counts, line_bytes)
    }
}

fn scripts(name: &str, counts: Counts, line_bytes: usize) -> [Script; 2] {
    let Counts { stdout, stderr } = counts;
    [
        Script::of_engine(&format!("{name}o"), stdout, line_bytes, Source::Stdout),
        Script::of_engine(&format!("{name}e"), stderr, line_bytes, Source::Stderr),
    ]
}

/// Returns all starts that a folder tells of.
///
/// # Errors
/// If it can't be read.
pub fn read(folder: &Path) -> io::Result<Vec<Tally>> {
    let mut tallies = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some((container, stamp)) = name.rsplit_once('-') else {
            continue;
        };
        if stamp.contains('.') {
            continue;
        }
        let text = fs::read_to_string(entry.path())?;
        tallies.push(Tally {
            container: container.to_owned(),
            name: name.clone(),
            counts: parse(&text),
        });
    }
    tallies.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tallies)
}

/// Returns how many starts rest.
///
/// # Errors
/// If the folder can't be read.
pub fn resting_count(folder: &Path) -> io::Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        count += usize::from(name.to_string_lossy().ends_with(RESTING_SUFFIX));
    }
    Ok(count)
}

fn parse(text: &str) -> Option<Counts> {
    let (stdout, stderr) = text.trim().split_once(' ')?;
    Some(Counts {
        stdout: stdout.parse().ok()?,
        stderr: stderr.parse().ok()?,
    })
}

/// The writing side: a start that tells of itself.
#[derive(Debug)]
pub struct Teller {
    path: PathBuf,
    /// What was written until now.
    pub counts: Counts,
    scripts: [Script; 2],
}

impl Teller {
    /// Begins to tell of a start of the container `name`.
    ///
    /// # Errors
    /// If the folder can't be written to.
    pub fn begin(folder: &Path, name: &str, line_bytes: usize) -> io::Result<Self> {
        let name = format!("{name}-{:016x}", fastrand::u64(..));
        let path = folder.join(&name);
        File::create_new(&path)?;
        Ok(Self {
            path,
            counts: Counts::default(),
            scripts: scripts(&name, Counts::default(), line_bytes),
        })
    }

    /// Puts the next line of an output into `line`, with its line end, and counts it as written.
    pub fn next(&mut self, source: Source, line: &mut Vec<u8>) {
        let [stdout, stderr] = &self.scripts;
        let (script, count) = match source {
            Source::Stdout => (stdout, &mut self.counts.stdout),
            Source::Stderr => (stderr, &mut self.counts.stderr),
        };
        script.line(*count, line);
        line.push(b'\n');
        *count += 1;
    }

    /// Says that the start rests, or goes on.
    ///
    /// # Errors
    /// If the folder can't be written to.
    pub fn rest(&self, is_resting: bool) -> io::Result<()> {
        let path = self.path.with_added_extension("resting");
        match is_resting {
            true => File::create(path).map(drop),
            false => fs::remove_file(path),
        }
    }

    /// Says that the start has ended, and what it wrote.
    ///
    /// # Errors
    /// If the folder can't be written to.
    pub fn end(self) -> io::Result<()> {
        let Counts { stdout, stderr } = self.counts;
        let new = self.path.with_added_extension("new");
        fs::write(&new, format!("{stdout} {stderr}\n"))?;
        fs::rename(new, self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_tells_what_it_wrote() {
        let folder = tempfile::tempdir().unwrap();
        let mut teller = Teller::begin(folder.path(), "web-1", 80).unwrap();
        let mut line = Vec::new();
        for source in [Source::Stdout, Source::Stdout, Source::Stderr] {
            teller.next(source, &mut line);
        }
        let unfinished = read(folder.path()).unwrap();
        assert_eq!(unfinished.len(), 1);
        assert_eq!(unfinished[0].counts, None);
        teller.rest(true).unwrap();
        assert_eq!(resting_count(folder.path()).unwrap(), 1);
        assert_eq!(read(folder.path()).unwrap(), unfinished);
        teller.rest(false).unwrap();
        assert_eq!(resting_count(folder.path()).unwrap(), 0);
        teller.end().unwrap();
        let tallies = read(folder.path()).unwrap();
        let counts = Counts {
            stdout: 2,
            stderr: 1,
        };
        assert_eq!(tallies[0].counts, Some(counts));
        assert_eq!(tallies[0].container, "web-1");
        let mut expected = Vec::new();
        let [_, stderr] = tallies[0].scripts(80);
        stderr.line(0, &mut expected);
        expected.push(b'\n');
        assert_eq!(line, expected);
    }
}
