//! Sizes of log pipes. The kernel gives all processes of a user a soft limit of pipe pages; beyond it a
//! new pipe of any of them has 8 KiB instead of 64, also in containers. So only a FIFO that fills at the
//! shortest pace is enlarged, all enlarged ones together take at most an eighth of that limit, and they
//! are small again when they are quiet.

use std::os::fd::BorrowedFd;

/// What a pipe has that nobody asked more for.
pub(super) const PIPE_BYTES: usize = 64 << 10;

/// What a pipe has at most; also the most that an unprivileged process may ask for.
const PIPE_BYTES_MAX: usize = 1 << 20;

/// By how much a pipe grows at once.
const GROWTH: usize = 4;

/// Bytes of a page as the limit counts it.
const PAGE_BYTES: usize = 4 << 10;

/// The kernel's default of the limit, in pages.
const SOFT_LIMIT_PAGES: usize = 16_384;

const SOFT_LIMIT_FILE: &str = "/proc/sys/fs/pipe-user-pages-soft";

/// What enlarged pipes may take together.
#[derive(Debug)]
pub(super) struct Pipes {
    bytes_max: usize,
    /// Bytes of all enlarged pipes.
    taken_bytes: usize,
}

impl Pipes {
    /// Returns the share of this host's limit that the pump may take.
    pub(super) fn of_host() -> Self {
        let text = std::fs::read_to_string(SOFT_LIMIT_FILE).unwrap_or_default();
        let pages = text.trim().parse().unwrap_or(SOFT_LIMIT_PAGES);
        // 0 says that there is no limit.
        let pages = if pages == 0 { SOFT_LIMIT_PAGES } else { pages };
        Self::new(pages)
    }

    fn new(soft_limit_pages: usize) -> Self {
        Self {
            bytes_max: soft_limit_pages.saturating_mul(PAGE_BYTES) / 8,
            taken_bytes: 0,
        }
    }

    /// Enlarges a pipe if there is room for it; returns its size.
    pub(super) fn enlarge(&mut self, pipe: BorrowedFd<'_>, bytes: usize) -> usize {
        let wanted = bytes.saturating_mul(GROWTH).min(PIPE_BYTES_MAX);
        let others = self.taken_bytes.saturating_sub(charge(bytes));
        if wanted <= bytes || others.saturating_add(wanted) > self.bytes_max {
            return bytes;
        }
        self.set(pipe, bytes, wanted)
    }

    /// Learns of a pipe, which an earlier process may have enlarged; returns its size.
    pub(super) fn adopt(&mut self, pipe: BorrowedFd<'_>, bytes: usize) -> usize {
        self.taken_bytes = self.taken_bytes.saturating_add(charge(bytes));
        self.shrink(pipe, bytes)
    }

    /// Gives back what a pipe has more than others; returns its size.
    pub(super) fn shrink(&mut self, pipe: BorrowedFd<'_>, bytes: usize) -> usize {
        match bytes > PIPE_BYTES {
            true => self.set(pipe, bytes, PIPE_BYTES),
            false => bytes,
        }
    }

    /// Learns that a pipe is gone.
    pub(super) fn forget(&mut self, bytes: usize) {
        self.taken_bytes = self.taken_bytes.saturating_sub(charge(bytes));
    }

    /// Sets a size, which the kernel may refuse.
    fn set(&mut self, pipe: BorrowedFd<'_>, bytes: usize, wanted: usize) -> usize {
        let Ok(size) = rustix::pipe::fcntl_setpipe_size(pipe, wanted) else {
            return bytes;
        };
        self.forget(bytes);
        self.taken_bytes = self.taken_bytes.saturating_add(charge(size));
        size
    }
}

/// Returns what a pipe of this size counts: one of the usual size, nothing.
fn charge(bytes: usize) -> usize {
    if bytes > PIPE_BYTES { bytes } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsFd as _, OwnedFd};

    #[test]
    fn three_hundred_busy_pipes_take_an_eighth_of_the_limit_and_give_it_back() {
        let mut pipes = Pipes::new(SOFT_LIMIT_PAGES);
        let busy: Vec<(OwnedFd, OwnedFd)> =
            (0..300).map(|_| rustix::pipe::pipe().unwrap()).collect();
        let mut sizes = vec![PIPE_BYTES; busy.len()];
        for _ in 0..3 {
            for ((pipe, _), size) in busy.iter().zip(&mut sizes) {
                *size = pipes.enlarge(pipe.as_fd(), *size);
            }
        }
        let real = |(pipe, _): &(OwnedFd, OwnedFd)| rustix::pipe::fcntl_getpipe_size(pipe).unwrap();
        let all: usize = busy.iter().map(real).sum();
        let enlarged: usize = sizes.iter().filter(|size| **size > PIPE_BYTES).sum();
        assert!(
            enlarged > 0 && enlarged <= SOFT_LIMIT_PAGES * PAGE_BYTES / 8,
            "{enlarged}"
        );
        // What decides about the size of other processes' pipes.
        assert!(
            all / PAGE_BYTES < SOFT_LIMIT_PAGES / 2,
            "{} pages",
            all / PAGE_BYTES
        );
        for ((pipe, _), size) in busy.iter().zip(&mut sizes) {
            *size = pipes.shrink(pipe.as_fd(), *size);
        }
        assert_eq!(pipes.taken_bytes, 0);
        assert_eq!(busy.iter().map(real).sum::<usize>(), 300 * PIPE_BYTES);
    }

    #[test]
    fn one_busy_pipe_grows_to_the_most_that_is_allowed() {
        let mut pipes = Pipes::new(SOFT_LIMIT_PAGES);
        let (pipe, _writer) = rustix::pipe::pipe().unwrap();
        let mut size = PIPE_BYTES;
        for expected in [256 << 10, 1 << 20, 1 << 20] {
            size = pipes.enlarge(pipe.as_fd(), size);
            assert_eq!(size, expected);
        }
        pipes.forget(size);
        assert_eq!(pipes.taken_bytes, 0);
    }
}
