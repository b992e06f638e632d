//! What a FIFO gives whose stream has failed: it is read, so that its container neither stands still nor can't
//! be stopped, counted, and dropped.

use crate::journal::Appended;
use proto::frame::{Decoded, RESYNC_TAIL_BYTES, decode, resync};
use proto::limits::FRAME_BYTES_MAX;
use rustix::io::Errno;
use std::os::fd::BorrowedFd;

/// The end of what was read: an entry that is not whole yet.
#[derive(Debug)]
pub(super) struct Discard {
    buffer: Vec<u8>,
    filled: usize,
}

impl Discard {
    pub(super) fn new() -> Self {
        Self {
            buffer: vec![0; FRAME_BYTES_MAX],
            filled: 0,
        }
    }

    /// Reads from a FIFO once. Returns what came, and how many entries ended in it.
    pub(super) fn read(&mut self, fifo: BorrowedFd<'_>) -> Result<(Appended, u64), Errno> {
        let room = self.buffer.get_mut(self.filled..).unwrap_or_default();
        let read = rustix::io::retry_on_intr(|| rustix::io::read(fifo, &mut *room));
        match read {
            Ok(0) => Ok((Appended::End, 0)),
            Ok(bytes) => {
                self.filled += bytes;
                Ok((Appended::MovedAndMore(bytes), self.take_entries()))
            }
            Err(Errno::AGAIN) => Ok((Appended::Empty, 0)),
            Err(error) => Err(error),
        }
    }

    /// Drops the whole entries of the buffer, and what is none: there is room for more afterwards, since an
    /// entry fits the buffer.
    fn take_entries(&mut self) -> u64 {
        let (mut at, mut entries) = (0, 0);
        loop {
            let rest = self.buffer.get(at..self.filled).unwrap_or_default();
            match decode(rest) {
                Decoded::Frame { frame_bytes, .. } => {
                    at += frame_bytes;
                    entries += 1;
                }
                Decoded::Incomplete => break,
                Decoded::Malformed(_) => match resync(rest) {
                    Some(bytes) => at += bytes,
                    None => {
                        at += rest.len().saturating_sub(RESYNC_TAIL_BYTES);
                        break;
                    }
                },
            }
        }
        self.buffer.copy_within(at..self.filled, 0);
        self.filled -= at;
        entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::relay::LogEntry;
    use rustix::pipe::{PipeFlags, pipe_with};
    use std::os::fd::AsFd as _;

    fn frame(line: &[u8]) -> Vec<u8> {
        let entry = LogEntry {
            source: "stdout".into(),
            time_nano: 1,
            line: line.to_vec(),
            ..LogEntry::default()
        };
        let mut frame = Vec::new();
        proto::frame::encode(&entry, &mut frame);
        frame
    }

    /// Whatever the pieces are, each entry that was written whole counts once; what stands before the first
    /// boundary is the rest of one that the journal has begun.
    #[test]
    fn entries_are_counted_whatever_the_pieces() {
        let (reader, writer) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        let mut discard = Discard::new();
        let begun = frame(b"begun before the stream failed");
        let mut bytes = begun[begun.len() / 2..].to_vec();
        for line_bytes in [1, 100, 16 << 10, 60_000, 3] {
            bytes.extend(frame(&vec![b'x'; line_bytes]));
        }
        let mut entries = 0;
        for piece in bytes.chunks(4_099) {
            assert_eq!(rustix::io::write(&writer, piece), Ok(piece.len()));
            let (appended, ended) = discard.read(reader.as_fd()).unwrap();
            assert_eq!(appended, Appended::MovedAndMore(piece.len()));
            entries += ended;
        }
        assert_eq!(entries, 5);
        let nothing = discard.read(reader.as_fd()).unwrap();
        assert_eq!(nothing, (Appended::Empty, 0));
        drop(writer);
        assert_eq!(discard.read(reader.as_fd()).unwrap(), (Appended::End, 0));
    }

    #[test]
    fn there_is_always_room_whatever_is_read() {
        let (reader, writer) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        let mut discard = Discard::new();
        for _ in 0..100 {
            assert_eq!(rustix::io::write(&writer, &[0xff; 50_000]), Ok(50_000));
            let mut read_bytes = 0;
            while let (Appended::MovedAndMore(bytes), 0) = discard.read(reader.as_fd()).unwrap() {
                read_bytes += bytes;
            }
            assert_eq!(read_bytes, 50_000);
        }
    }
}
