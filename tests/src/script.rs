//! Streams of lines that are functions of their number, so that a million of them need no memory:
//! payload, output and time of line n can be asked for at any moment, by who writes it and by who
//! checks it.
//!
//! ```text
//! line = name " " number (10 digits) " " noise (32 hex digits) " " filler; cut at its length
//! ```
//!
//! An empty line names nothing: it is known by its time, so scripts that have such must not share
//! a millisecond, neither among their lines nor with each other.

use crate::dockerd::{PIECE_BYTES, Pipe};
use proto::frame::Source;
use std::io::Write as _;
use std::ops::Range;
use std::time::Duration;
use tokio::time::Instant;

/// A stream of lines to write and to expect.
#[derive(Debug, Clone)]
pub struct Script {
    /// Its name: the first word of every line.
    pub name: String,
    /// Number of lines.
    pub line_count: u64,
    /// Bytes of each line, as far as name and number leave it.
    pub lengths: Lengths,
    /// Docker's time of line 0.
    pub first_time_nano: i64,
    /// Time between lines.
    pub step_nano: i64,
    /// What the lines are.
    pub payload: Payload,
    /// The only output that it has; without one, lines go to both by their number.
    pub only_source: Option<Source>,
    /// Whether Docker's times are the ones above. A real engine's can't be told in advance.
    pub has_given_times: bool,
}

/// How long lines are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lengths {
    /// All alike.
    Fixed(usize),
    /// Drawn from a seed and the line's number: most are short, some empty, few near `bytes_max`.
    Drawn {
        /// The seed.
        seed: u64,
        /// Bytes of the longest line.
        bytes_max: usize,
    },
}

/// What a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload {
    /// Text that names its script and number.
    Plain,
    /// A JSON object of ten members, of whatever length they have. For measuring: the oracle knows
    /// plain lines only.
    Json,
}

/// One line in this many goes to stderr.
const STDERR_EVERY: u64 = 10;

/// Bytes of hexadecimal noise in a line: as in logs, an identifier that does not compress.
const NOISE_BYTES: usize = 32;

/// What the rest of a line is filled with.
const FILLER: &str = "level=info ts=2026-11-22T14:04:26.820Z caller=handler.go:214 method=GET \
    path=/api/v1/orders/8731 status=200 duration=12.84ms bytes=5120 user=jmorgan trace=9f86d081884c \
    msg=\"request served\" upstream=10.2.17.44:8080 retries=0 cache=miss region=eu-west queue=7 \
    level=warn ts=2026-11-22T14:04:27.113Z caller=pool.go:88 msg=\"connection slow\" wait=317ms ";

impl Script {
    /// Returns a script of lines of `line_bytes`, 1 µs apart.
    pub fn new(name: &str, line_count: u64, line_bytes: usize) -> Self {
        Self {
            name: name.to_owned(),
            line_count,
            lengths: Lengths::Fixed(line_bytes),
            // Not a whole millisecond, so that rounding shows.
            first_time_nano: 1_795_356_825_000_999_999,
            step_nano: 1_000,
            payload: Payload::Plain,
            only_source: None,
            has_given_times: true,
        }
    }

    /// Returns a script of what a container writes to one output on a real engine.
    pub fn of_engine(name: &str, line_count: u64, line_bytes: usize, source: Source) -> Self {
        Self {
            only_source: Some(source),
            has_given_times: false,
            ..Self::new(name, line_count, line_bytes)
        }
    }

    /// Puts line `number` into `line`, whose content is lost.
    pub fn line(&self, number: u64, line: &mut Vec<u8>) {
        line.clear();
        match self.payload {
            Payload::Plain => self.plain_line(number, line),
            Payload::Json => self.json_line(number, line),
        }
    }

    fn json_line(&self, number: u64, line: &mut Vec<u8>) {
        let name = &self.name;
        // A Vec takes all there is to write.
        write!(
            line,
            r#"{{"name":"{name}","number":{number},"level":"info","caller":"handler.go:214","method":"GET","path":"/api/v1/orders/{number}","status":200,"duration":12.84,"cached":false,"msg":"request served"}}"#
        )
        .ok();
    }

    /// Returns the bytes of plain line `number`.
    pub fn line_bytes(&self, number: u64) -> usize {
        let least = self.name.len() + NUMBER_DIGITS + 2;
        match self.lengths {
            Lengths::Fixed(bytes) => bytes.max(least),
            Lengths::Drawn { seed, bytes_max } => {
                let mut random = fastrand::Rng::with_seed(seed ^ number.wrapping_mul(LENGTH_STEP));
                match random.u32(..100) {
                    0..4 => 0,
                    4..80 => random.usize(least..=bytes_max.clamp(least, 300)),
                    80..97 => random.usize(least..=bytes_max.clamp(least, 3_000)),
                    _ => random.usize(least..=bytes_max.max(least)),
                }
            }
        }
    }

    /// Returns how many entries Docker makes of plain line `number`.
    pub fn entry_count(&self, number: u64) -> u64 {
        1 + (self.line_bytes(number) / PIECE_BYTES) as u64
    }

    fn plain_line(&self, number: u64, line: &mut Vec<u8>) {
        let line_bytes = self.line_bytes(number);
        if line_bytes == 0 {
            return;
        }
        line.extend_from_slice(self.name.as_bytes());
        line.push(b' ');
        let digits = line.len()..line.len() + NUMBER_DIGITS;
        line.resize(digits.end, b'0');
        let mut rest = number;
        for digit in line[digits].iter_mut().rev() {
            *digit = DIGITS[usize::try_from(rest % 10).unwrap_or(0)];
            rest /= 10;
        }
        line.push(b' ');
        push_noise(number, line);
        let mut at = usize::try_from(number.wrapping_mul(37) % FILLER.len() as u64).unwrap_or(0);
        while line.len() < line_bytes {
            let rest = &FILLER.as_bytes()[at..];
            line.extend_from_slice(&rest[..rest.len().min(line_bytes - line.len())]);
            at = 0;
        }
        line.truncate(line_bytes);
    }

    /// Returns the script's name and the line's number, if `line` has such.
    pub fn parse(line: &str) -> Option<(&str, u64)> {
        let (name, rest) = line.split_once(' ')?;
        Some((name, rest.get(..NUMBER_DIGITS)?.parse().ok()?))
    }

    /// Returns Docker's time of line `number`.
    pub fn time_nano(&self, number: u64) -> i64 {
        self.first_time_nano + i64::try_from(number).unwrap_or(i64::MAX) * self.step_nano
    }

    /// Returns the line whose time lies in a millisecond, if there is one.
    pub fn number_at(&self, time_ms: i64) -> Option<u64> {
        let since_nano = time_ms
            .checked_mul(1_000_000)?
            .checked_sub(self.first_time_nano / 1_000_000 * 1_000_000)?;
        let number = u64::try_from(since_nano / self.step_nano.max(1)).ok()?;
        let is_there = number < self.line_count && self.time_nano(number) / 1_000_000 == time_ms;
        is_there.then_some(number)
    }

    /// Returns which output line `number` is of.
    pub fn source(&self, number: u64) -> Source {
        self.only_source.unwrap_or(match number % STDERR_EVERY {
            0 => Source::Stderr,
            _ => Source::Stdout,
        })
    }

    /// Writes all lines, at `lines_per_s` or as fast as they are taken. Blocks: it is for a thread
    /// of its own.
    ///
    /// # Errors
    /// Those of the pipe.
    pub fn write(&self, pipe: &mut Pipe, lines_per_s: Option<u32>) -> std::io::Result<()> {
        let Some(lines_per_s) = lines_per_s else {
            return self.write_range(pipe, 0..self.line_count);
        };
        let began = Instant::now();
        let mut line = Vec::new();
        for number in 0..self.line_count {
            let micros = number.saturating_mul(1_000_000) / u64::from(lines_per_s.max(1));
            sleep_until(began + Duration::from_micros(micros));
            self.write_one(pipe, number, &mut line)?;
        }
        Ok(())
    }

    /// Writes some lines, as fast as they are taken. Blocks.
    ///
    /// # Errors
    /// Those of the pipe.
    pub fn write_range(&self, pipe: &mut Pipe, numbers: Range<u64>) -> std::io::Result<()> {
        let mut line = Vec::new();
        for number in numbers {
            self.write_one(pipe, number, &mut line)?;
        }
        Ok(())
    }

    fn write_one(&self, pipe: &mut Pipe, number: u64, line: &mut Vec<u8>) -> std::io::Result<()> {
        self.line(number, line);
        pipe.write_line(self.source(number), self.time_nano(number), line)
    }
}

/// Appends [`NOISE_BYTES`] hexadecimal digits and a space, the same for the same number.
fn push_noise(number: u64, line: &mut Vec<u8>) {
    let mut random = fastrand::Rng::with_seed(number);
    for _ in 0..NOISE_BYTES / 16 {
        let bits = random.u64(..);
        let digits = (0..16)
            .map(|place| HEX_DIGITS[usize::try_from(bits >> (4 * place) & 0xf).unwrap_or(0)]);
        line.extend(digits);
    }
    line.push(b' ');
}

/// Sleeps if the moment is far enough off for the kernel to be on time.
#[allow(
    clippy::disallowed_methods,
    reason = "no runtime: a script is written by a thread"
)]
fn sleep_until(moment: Instant) {
    let left = moment.saturating_duration_since(Instant::now());
    if left > Duration::from_millis(1) {
        std::thread::sleep(left);
    }
}

/// Odd, so that the numbers of a script spread over all seeds.
const LENGTH_STEP: u64 = 0x9e37_79b9_7f4a_7c15;
const NUMBER_DIGITS: usize = 10;
const DIGITS: &[u8; 10] = b"0123456789";
const HEX_DIGITS: &[u8; 16] = b"0123456789abcdef";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_their_length_and_their_number() {
        let mut line = Vec::new();
        Script::new("s1", 5, 200).line(7, &mut line);
        assert_eq!(line.len(), 200);
        assert!(line.starts_with(b"s1 0000000007 "));
        assert_eq!(
            Script::parse(std::str::from_utf8(&line).unwrap()),
            Some(("s1", 7))
        );
        let mut json = Script::new("s1", 5, 0);
        json.payload = Payload::Json;
        json.line(7, &mut line);
        let members: serde_json::Map<_, _> = serde_json::from_slice(&line).unwrap();
        assert_eq!((members.len(), &members["number"]), (10, &7.into()));
        Script::new("s1", 5, 0).line(1_234_567_890, &mut line);
        assert_eq!(line, b"s1 1234567890 ");
    }

    #[test]
    fn drawn_lines_have_the_length_and_the_entries_they_say() {
        let lengths = Lengths::Drawn {
            seed: 5,
            bytes_max: 300_000,
        };
        let script = Script {
            lengths,
            step_nano: 1_000_000,
            ..Script::new("s1", 3_000, 0)
        };
        let (mut empty_count, mut long_count) = (0, 0);
        let mut line = Vec::new();
        for number in 0..script.line_count {
            script.line(number, &mut line);
            assert_eq!(line.len(), script.line_bytes(number));
            assert_eq!(script.entry_count(number), 1 + line.len() as u64 / 16_384);
            empty_count += u32::from(line.is_empty());
            long_count += u32::from(line.len() > 16_384);
            let time_ms = script.time_nano(number) / 1_000_000;
            assert_eq!(script.number_at(time_ms), Some(number));
        }
        assert!(empty_count > 50 && long_count > 20);
        let end_ms = script.time_nano(script.line_count) / 1_000_000;
        assert_eq!(script.number_at(end_ms), None);
        assert_eq!(script.number_at(0), None);
    }
}
