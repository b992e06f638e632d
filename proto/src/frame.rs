//! Docker's FIFO framing, pure: bytes in, frames out, no allocation.
//!
//! ```text
//! frame = u32 big-endian length | LogEntry (protobuf, `length` bytes)
//! LogEntry = 0a 06 "stdout"|"stderr" | 10 time_nano | 1a line | [20 01 partial | 2a metadata]
//! ```
//!
//! (moby `daemon/logger/internal/logdriver/io.go`, `entry.proto`; proto3, so absent fields are
//! zero.) Docker's own decoder allocates whatever the length says; this one believes a length only
//! up to [`ENTRY_BYTES_MAX`].
//!
//! Three outcomes: a whole frame, not yet ([`Decoded::Incomplete`] is no error), or bytes that no
//! engine writes. After the last one, [`resync`] finds the next boundary.

#![warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use crate::limits::{ENTRY_BYTES_MAX, FRAME_HEADER_BYTES};

/// What stands at the start of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decoded<'a> {
    /// A whole frame.
    Frame {
        /// The encoded entry, without the header.
        entry: &'a [u8],
        /// Bytes of header and entry.
        frame_bytes: usize,
    },
    /// The beginning of a frame, or nothing: more bytes are needed.
    Incomplete,
    /// No engine writes this.
    Malformed(Malformed),
}

/// Why bytes are not a frame or an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The length is zero: an entry always has a source.
    #[error("frame length is 0")]
    EmptyEntry,
    /// The length exceeds what is believed.
    #[error("frame length is {entry_bytes} B, the limit is {ENTRY_BYTES_MAX} B")]
    EntryTooLong {
        /// The length that the header gives.
        entry_bytes: u32,
    },
    /// The entry does not begin with a source.
    #[error("entry does not begin with a source field")]
    NoSource,
    /// The entry is not protobuf.
    #[error("entry is not a protobuf message at byte {at}")]
    NotProtobuf {
        /// Position inside the entry.
        at: usize,
    },
}

/// Decodes the frame at the start of `buffer`. Looks at the header and the entry's first byte
/// only; [`EntryView::parse`] looks inside.
#[inline]
pub fn decode(buffer: &[u8]) -> Decoded<'_> {
    let Some((header, rest)) = buffer.split_first_chunk::<FRAME_HEADER_BYTES>() else {
        return Decoded::Incomplete;
    };
    let entry_bytes = u32::from_be_bytes(*header);
    let length = entry_bytes as usize;
    if length == 0 {
        return Decoded::Malformed(Malformed::EmptyEntry);
    }
    if length > ENTRY_BYTES_MAX {
        return Decoded::Malformed(Malformed::EntryTooLong { entry_bytes });
    }
    match rest.first() {
        None => return Decoded::Incomplete,
        Some(&SOURCE_TAG) => {}
        Some(_) => return Decoded::Malformed(Malformed::NoSource),
    }
    match rest.get(..length) {
        Some(entry) => Decoded::Frame {
            entry,
            frame_bytes: length.saturating_add(FRAME_HEADER_BYTES),
        },
        None => Decoded::Incomplete,
    }
}

/// Finds the next place at which a frame begins: a plausible header before `"stdout"` or
/// `"stderr"`, behind position 0. Returns how many bytes to skip, or `None` if `buffer` holds no
/// boundary; then all but the last [`RESYNC_TAIL_BYTES`] may be skipped.
///
/// A line can hold bytes that look like a frame, so the found frame must also parse, and what
/// follows it must again begin like a frame.
pub fn resync(buffer: &[u8]) -> Option<usize> {
    find_boundary(buffer, 1)
}

/// Finds the first place at or behind `from` at which a frame begins, as [`resync`] does.
pub fn find_boundary(buffer: &[u8], from: usize) -> Option<usize> {
    (from..buffer.len()).find(|&at| buffer.get(at..).is_some_and(is_boundary))
}

/// Bytes at the end of a buffer in which a boundary can begin without showing yet.
pub const RESYNC_TAIL_BYTES: usize = FRAME_HEADER_BYTES + SOURCE_STDOUT.len();

fn is_boundary(buffer: &[u8]) -> bool {
    let Some(after_header) = buffer.get(FRAME_HEADER_BYTES..) else {
        return false;
    };
    if !after_header.starts_with(SOURCE_STDOUT) && !after_header.starts_with(SOURCE_STDERR) {
        return false;
    }
    match decode(buffer) {
        Decoded::Frame { entry, frame_bytes } => {
            EntryView::parse(entry).is_ok()
                && !matches!(
                    decode(buffer.get(frame_bytes..).unwrap_or_default()),
                    Decoded::Malformed(_)
                )
        }
        Decoded::Incomplete => true,
        Decoded::Malformed(_) => false,
    }
}

const SOURCE_TAG: u8 = 0x0a;
const SOURCE_STDOUT: &[u8] = b"\x0a\x06stdout";
const SOURCE_STDERR: &[u8] = b"\x0a\x06stderr";

/// Which output of the container wrote a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    /// Standard output; also everything that a container with a TTY writes.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Source {
    /// Returns the name that Docker uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// One entry, borrowed from the frame it stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryView<'a> {
    /// Which output wrote the line. An unknown name counts as stdout: the line matters more.
    pub source: Source,
    /// Docker's time, UNIX nanoseconds.
    pub time_nano: i64,
    /// The line without its `\n`: any bytes, possibly none.
    pub line: &'a [u8],
    /// Present if the line is a piece of a longer one.
    pub partial: Option<Partial<'a>>,
}

/// Which piece of a long line an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Partial<'a> {
    /// Shared by all pieces of the line; empty before Docker 19.03.
    pub id: &'a [u8],
    /// Number of the piece, from 1; 0 before Docker 19.03.
    pub ordinal: i32,
    /// Whether it is the last piece. The unterminated tail of an output never says so.
    pub last: bool,
}

impl<'a> EntryView<'a> {
    /// Parses an encoded `LogEntry`. Fields may come in any order and unknown ones are skipped;
    /// of a repeated field the last one counts, as protobuf has it.
    ///
    /// # Errors
    /// [`Malformed::NotProtobuf`] if the bytes are not a protobuf message of these field types.
    #[inline]
    pub fn parse(entry: &'a [u8]) -> Result<Self, Malformed> {
        let mut view = Self {
            source: Source::Stdout,
            time_nano: 0,
            line: &[],
            partial: None,
        };
        let mut is_partial = false;
        let mut metadata = Partial::default();
        let mut fields = Fields::new(entry);
        while let Some(field) = fields.next()? {
            match field {
                (1, Value::Bytes(source)) if source == b"stderr" => view.source = Source::Stderr,
                (1, Value::Bytes(_)) => view.source = Source::Stdout,
                (2, Value::Varint(nanos)) => view.time_nano = nanos.cast_signed(),
                (3, Value::Bytes(line)) => view.line = line,
                (4, Value::Varint(flag)) => is_partial = flag != 0,
                (5, Value::Bytes(bytes)) => metadata = parse_metadata(bytes)?,
                _ => {}
            }
        }
        if is_partial {
            view.partial = Some(metadata);
        }
        Ok(view)
    }
}

fn parse_metadata(bytes: &[u8]) -> Result<Partial<'_>, Malformed> {
    let mut partial = Partial::default();
    let mut fields = Fields::new(bytes);
    while let Some(field) = fields.next()? {
        match field {
            (1, Value::Varint(last)) => partial.last = last != 0,
            (2, Value::Bytes(id)) => partial.id = id,
            (3, Value::Varint(ordinal)) => {
                // protobuf: an int32 is the low 32 bits of its varint.
                let low = u32::try_from(ordinal & u64::from(u32::MAX)).unwrap_or(0);
                partial.ordinal = low.cast_signed();
            }
            _ => {}
        }
    }
    Ok(partial)
}

/// A field's value, as far as its wire type tells.
enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    Skipped,
}

/// Walks the fields of a protobuf message.
struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    #[inline]
    fn next(&mut self) -> Result<Option<(u64, Value<'a>)>, Malformed> {
        if self.at >= self.bytes.len() {
            return Ok(None);
        }
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => self.take(8).map(|_| Value::Skipped)?,
            2 => {
                let length = self.varint()?;
                let length = usize::try_from(length).map_err(|_| self.malformed())?;
                Value::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Value::Skipped)?,
            _ => return Err(self.malformed()),
        };
        Ok(Some((key >> 3, value)))
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.bytes.get(self.at).ok_or_else(|| self.malformed())?;
            self.at = self.at.saturating_add(1);
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.malformed())
    }

    #[inline]
    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let end = self
            .at
            .checked_add(length)
            .ok_or_else(|| self.malformed())?;
        let bytes = self
            .bytes
            .get(self.at..end)
            .ok_or_else(|| self.malformed())?;
        self.at = end;
        Ok(bytes)
    }

    fn malformed(&self) -> Malformed {
        Malformed::NotProtobuf { at: self.at }
    }
}

/// Appends the frame of `entry` as the engine writes it. For tests and tools: the product only
/// reads frames.
///
/// # Panics
/// Never: a `Vec` grows as needed.
pub fn encode(entry: &crate::relay::LogEntry, frames: &mut Vec<u8>) {
    use prost::Message as _;
    let length = u32::try_from(entry.encoded_len()).unwrap_or(u32::MAX);
    frames.extend_from_slice(&length.to_be_bytes());
    entry.encode(frames).expect("a Vec grows as needed");
}

#[cfg(test)]
#[allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a panic fails a test"
)]
mod tests {
    use super::*;
    use crate::relay::{LogEntry, PartialLogEntryMetadata};
    use proptest::prelude::*;

    fn entry(line: &[u8]) -> LogEntry {
        LogEntry {
            source: "stdout".into(),
            time_nano: 1_700_000_000_123_456_789,
            line: line.to_vec(),
            partial: false,
            partial_log_metadata: None,
        }
    }

    fn frame_of(entry: &LogEntry) -> Vec<u8> {
        let mut frames = Vec::new();
        encode(entry, &mut frames);
        frames
    }

    fn frame_with_entry_bytes(length: usize) -> Vec<u8> {
        let mut frame = u32::try_from(length).unwrap().to_be_bytes().to_vec();
        frame.resize(FRAME_HEADER_BYTES + length, 0x0a);
        frame
    }

    #[test]
    fn a_frame_of_the_engine_decodes() {
        // Captured from dockerd 20.10.24: `echo hello` without a TTY.
        let mut frame = vec![0, 0, 0, 0x19, 0x0a, 0x06];
        frame.extend_from_slice(b"stdout");
        frame.extend_from_slice(&[0x10, 0x95, 0x9a, 0xef, 0x8a, 0xf8, 0xbe, 0xf5, 0xcb, 0x17]);
        frame.extend_from_slice(b"\x1a\x05hello");
        let Decoded::Frame { entry, frame_bytes } = decode(&frame) else {
            panic!("{frame:?}")
        };
        assert_eq!(frame_bytes, frame.len());
        let view = EntryView::parse(entry).unwrap();
        assert_eq!(
            (view.source, view.line, view.partial),
            (Source::Stdout, b"hello".as_slice(), None)
        );
    }

    #[test]
    fn every_shorter_prefix_is_incomplete() {
        let frame = frame_of(&entry(b"hello"));
        for length in 0..frame.len() {
            assert_eq!(
                decode(&frame[..length]),
                Decoded::Incomplete,
                "{length} bytes"
            );
        }
    }

    #[test]
    fn lengths_are_believed_up_to_the_limit() {
        for length in [1, ENTRY_BYTES_MAX - 1, ENTRY_BYTES_MAX] {
            assert!(matches!(
                decode(&frame_with_entry_bytes(length)),
                Decoded::Frame { frame_bytes, .. } if frame_bytes == length + FRAME_HEADER_BYTES
            ));
        }
        assert_eq!(decode(&[0; 5]), Decoded::Malformed(Malformed::EmptyEntry));
        let too_long = u32::try_from(ENTRY_BYTES_MAX + 1).unwrap();
        assert_eq!(
            decode(&too_long.to_be_bytes()),
            Decoded::Malformed(Malformed::EntryTooLong {
                entry_bytes: too_long
            })
        );
        assert_eq!(
            decode(b"\0\0\0\x05hello"),
            Decoded::Malformed(Malformed::NoSource)
        );
    }

    #[test]
    fn resync_finds_the_next_frame_behind_damage() {
        let mut buffer = b"\x06stdout\x10 torn frame ".to_vec();
        let damage_bytes = buffer.len();
        buffer.extend(frame_of(&entry(b"next")));
        buffer.extend(frame_of(&entry(b"after it")));
        assert_eq!(resync(&buffer), Some(damage_bytes));
        assert_eq!(resync(b"no boundary at all in this text"), None);
    }

    #[test]
    fn resync_is_not_fooled_by_a_line_that_quotes_a_frame() {
        let mut buffer = b"x\0\0\0\x0f\x0a\x06stdoutJUNK!!!!....".to_vec();
        let damage_bytes = buffer.len();
        buffer.extend(frame_of(&entry(b"next")));
        assert_eq!(resync(&buffer), Some(damage_bytes));
    }

    fn entries() -> impl Strategy<Value = LogEntry> {
        let metadata = (any::<bool>(), "[0-9a-f]{64}", any::<i32>())
            .prop_map(|(last, id, ordinal)| PartialLogEntryMetadata { last, id, ordinal });
        (
            prop_oneof![Just("stdout"), Just("stderr")],
            any::<i64>(),
            prop::collection::vec(any::<u8>(), 0..300),
            any::<bool>(),
            prop::option::of(metadata),
        )
            .prop_map(|(source, time_nano, line, partial, partial_log_metadata)| {
                LogEntry {
                    source: source.into(),
                    time_nano,
                    line,
                    partial,
                    partial_log_metadata,
                }
            })
    }

    proptest! {
        #[test]
        fn the_view_equals_what_prost_decodes(entry in entries()) {
            let frame = frame_of(&entry);
            let Decoded::Frame { entry: bytes, .. } = decode(&frame) else { panic!("{frame:?}") };
            let view = EntryView::parse(bytes).unwrap();
            prop_assert_eq!(view.source.as_str(), entry.source);
            prop_assert_eq!(view.time_nano, entry.time_nano);
            prop_assert_eq!(view.line, entry.line);
            let metadata = entry.partial_log_metadata.unwrap_or_default();
            let expected = entry.partial.then_some((metadata.last, metadata.id, metadata.ordinal));
            let got = view.partial.map(|p| (p.last, String::from_utf8(p.id.to_vec()).unwrap(), p.ordinal));
            prop_assert_eq!(got, expected);
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
            EntryView::parse(&bytes).ok();
            let _ = resync(&bytes);
        }
    }
}
