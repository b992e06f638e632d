//! How many requests the process has on the wire, all lanes together.
//!
//! A request takes a file at least, and one that nobody answers keeps it until its time is over. So there
//! are no more than a quarter of the files, and those of containers' own keys, which may go to servers
//! that never answer, have half of that: neither hosts nor other lanes are kept out by them.

use tokio::sync::{Semaphore, SemaphorePermit};

/// Requests at a time where files do not bound them.
const REQUESTS_MAX: usize = 4_096;

/// Places for requests.
#[derive(Debug)]
pub struct Wire {
    all: Semaphore,
    own: Semaphore,
}

/// The place of a request, for as long as it is kept.
#[derive(Debug)]
pub struct WirePlace<'a> {
    _own: Option<SemaphorePermit<'a>>,
    _all: Option<SemaphorePermit<'a>>,
}

impl Wire {
    /// Makes the wire of a process of `files_max` files.
    pub fn new(files_max: Option<u64>) -> Self {
        let quarter = files_max.map_or(u64::MAX, |files| files / 4);
        let quarter = usize::try_from(quarter).unwrap_or(usize::MAX);
        let requests_max = quarter.clamp(2, REQUESTS_MAX);
        Self {
            all: Semaphore::new(requests_max),
            own: Semaphore::new(requests_max / 2),
        }
    }

    /// Waits for a place; `is_own` says that a container's own keys sign the request.
    pub async fn place(&self, is_own: bool) -> WirePlace<'_> {
        // Neither is ever closed.
        let own = match is_own {
            true => self.own.acquire().await.ok(),
            false => None,
        };
        let all = self.all.acquire().await.ok();
        WirePlace {
            _own: own,
            _all: all,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[test]
    fn requests_of_own_keys_leave_half_of_the_places_to_others() {
        let wire = Wire::new(Some(32));
        let take = |is_own: bool| wire.place(is_own).now_or_never();
        let own: Vec<_> = std::iter::from_fn(|| take(true)).collect();
        let others: Vec<_> = std::iter::from_fn(|| take(false)).collect();
        assert_eq!((own.len(), others.len()), (4, 4));
        drop(others);
        assert!(take(true).is_none() && take(false).is_some());
        drop(own);
        let others: Vec<_> = std::iter::from_fn(|| take(false)).collect();
        assert_eq!(others.len(), 8);
    }
}
