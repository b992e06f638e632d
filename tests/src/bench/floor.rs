//! The floor: what it costs to only read FIFOs and count frames, with blocking reads, a thread for
//! each FIFO, and no look at a frame beyond its length.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// What the program prints once it reads.
pub const READY: &str = "reading";

/// Bytes that are read at once: what a pipe holds.
const READ_BYTES: usize = 64 << 10;
/// A reader needs little more than its buffer, which is on the heap.
const STACK_BYTES: usize = 128 << 10;

/// Reads all FIFOs of a folder until nobody has them open for writing, and returns how many frames
/// they held. Calls `on_ready` once all are open.
///
/// # Errors
/// Those of the file system, or a FIFO that ends in the midst of a frame.
pub fn count_frames(folder: &Path, on_ready: impl FnOnce() -> io::Result<()>) -> io::Result<u64> {
    let mut readers = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let fifo = File::open(entry?.path())?;
        let reader = std::thread::Builder::new().stack_size(STACK_BYTES);
        readers.push(reader.spawn(move || count(fifo))?);
    }
    on_ready()?;
    let mut frames = 0;
    for reader in readers {
        let counted = reader.join();
        frames += counted.map_err(|_| io::Error::other("a reader panicked"))??;
    }
    Ok(frames)
}

fn count(mut fifo: impl Read) -> io::Result<u64> {
    let mut buffer = vec![0; READ_BYTES];
    let mut frames = Frames::default();
    loop {
        match fifo.read(&mut buffer) {
            Ok(0) => return frames.end(),
            Ok(bytes) => frames.take(&buffer[..bytes]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Counts frames of a stream that comes in pieces: four bytes of length, big-endian, then as many.
#[derive(Debug, Default)]
struct Frames {
    count: u64,
    /// Bytes of the current frame that are still to come.
    left: usize,
    header: [u8; 4],
    header_bytes: usize,
}

impl Frames {
    fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let skipped = self.left.min(bytes.len());
            self.left -= skipped;
            bytes = &bytes[skipped..];
            while self.left == 0
                && let Some((first, rest)) = bytes.split_first()
            {
                self.header[self.header_bytes] = *first;
                self.header_bytes += 1;
                bytes = rest;
                if self.header_bytes == self.header.len() {
                    self.header_bytes = 0;
                    self.left = usize::try_from(u32::from_be_bytes(self.header)).unwrap_or(0);
                    self.count += 1;
                }
            }
        }
    }

    fn end(self) -> io::Result<u64> {
        if self.left > 0 || self.header_bytes > 0 {
            return Err(io::Error::other("the last frame is cut short"));
        }
        Ok(self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(lengths: &[usize]) -> Vec<u8> {
        let frame = |length: &usize| {
            let header = u32::try_from(*length).unwrap().to_be_bytes();
            [&header[..], &vec![b'x'; *length]].concat()
        };
        lengths.iter().flat_map(frame).collect()
    }

    #[test]
    fn frames_are_counted_however_they_are_cut() {
        let bytes = frames(&[5, 0, 300, 1, 70_000]);
        for piece in [1, 3, 4, 7, 64, bytes.len()] {
            let mut counted = Frames::default();
            bytes.chunks(piece).for_each(|piece| counted.take(piece));
            assert_eq!(counted.end().unwrap(), 5, "pieces of {piece}");
        }
        assert_eq!(count(bytes.as_slice()).unwrap(), 5);
        assert!(count(&bytes[..bytes.len() - 1]).is_err());
        assert!(count(&bytes[..2]).is_err());
    }
}
