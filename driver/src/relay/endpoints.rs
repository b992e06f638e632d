//! Where shippers may be found: a cycle of candidates, one for a unix socket and one for each address of
//! a name. A host that leaves a candidate goes on with the next one.
//!
//! Endpoints come in the order in which they were set. The addresses of one name come in an order of
//! chance: hosts that know several shippers by one name spread over them, where the order of a hosts
//! file or a resolver (RFC 6724 sorts) would lead all of them to the same one. A name is looked up
//! whenever its turn comes, since shippers come and go; the address that was used last then comes
//! last. While a lookup fails, what the last one found goes on to be used.
//!
//! Bound: [`ADDRESSES_MAX`] candidates per name, drawn by lot if there are more.

use super::resolve::{LookupError, Resolver};
use crate::config::Endpoint;
use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// Candidates that a name stands for at most: a turn through them all must end in a useful time.
const ADDRESSES_MAX: usize = 64;

/// An address at which a shipper may be found.
#[derive(Debug)]
pub(crate) struct Candidate {
    /// The endpoint that it belongs to.
    pub(crate) endpoint: Endpoint,
    /// Where to connect.
    pub(crate) target: Target,
}

/// Where to connect.
#[derive(Debug)]
pub(crate) enum Target {
    /// To a unix socket.
    Socket(PathBuf),
    /// To an address.
    Address(SocketAddr),
    /// Nowhere: it is not known where.
    Unresolved(Arc<LookupError>),
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.endpoint.to_string();
        match &self.target {
            // An endpoint without a name says the address itself.
            Target::Address(address) if !name.contains(&address.to_string()) => {
                write!(f, "{name} at {address}")
            }
            Target::Address(_) | Target::Socket(_) | Target::Unresolved(_) => f.write_str(&name),
        }
    }
}

/// Endpoints and their addresses, in turns.
#[derive(Debug)]
pub(crate) struct EndpointCycle {
    endpoints: Vec<Known>,
    /// Index of the endpoint whose turn it is.
    current: usize,
    /// Its addresses whose turn is still to come.
    waiting: VecDeque<SocketAddr>,
    random: fastrand::Rng,
    resolver: Resolver,
}

#[derive(Debug)]
struct Known {
    endpoint: Endpoint,
    /// What was found when it was looked up last, in the order in which it was used.
    addresses: Vec<SocketAddr>,
}

impl EndpointCycle {
    /// Returns a cycle that begins with the first of `endpoints`, of which there is one at least.
    pub(crate) fn new(endpoints: &[Endpoint], seed: u64, resolver: Resolver) -> Self {
        let known = |endpoint: &Endpoint| Known {
            endpoint: endpoint.clone(),
            addresses: Vec::new(),
        };
        Self {
            endpoints: endpoints.iter().map(known).collect(),
            current: endpoints.len().saturating_sub(1),
            waiting: VecDeque::new(),
            random: fastrand::Rng::with_seed(seed),
            resolver,
        }
    }

    /// Returns how many candidates a turn through the cycle has, as far as they are known.
    pub(crate) fn candidate_count(&self) -> usize {
        let counts = self.endpoints.iter().map(|known| known.addresses.len());
        counts.map(|count| count.max(1)).sum()
    }

    /// Returns the next candidate.
    pub(crate) async fn next(&mut self) -> Candidate {
        if let Some(address) = self.waiting.pop_front() {
            return self.candidate(Target::Address(address));
        }
        self.current = (self.current + 1) % self.endpoints.len();
        let uri = match &self.endpoints[self.current].endpoint {
            Endpoint::Unix(path) => {
                let target = Target::Socket(path.clone());
                return self.candidate(target);
            }
            Endpoint::Http(uri) | Endpoint::Https(uri) => uri.clone(),
        };
        let target = self.turn_to(look_up(&self.resolver, &uri).await);
        self.candidate(target)
    }

    /// Begins the turn of a name, for which `found` stands, and returns where to connect first.
    fn turn_to(&mut self, found: Result<Vec<SocketAddr>, LookupError>) -> Target {
        let known = &mut self.endpoints[self.current];
        match found {
            Ok(found) => known.addresses = arrange(found, &known.addresses, &mut self.random),
            Err(error) if known.addresses.is_empty() => return Target::Unresolved(Arc::new(error)),
            Err(error) => {
                tracing::debug!(error = %error, "going on with the addresses of the last lookup");
            }
        }
        self.waiting = known.addresses.iter().copied().collect();
        let first = self.waiting.pop_front();
        Target::Address(first.expect("a lookup that succeeds finds an address"))
    }

    fn candidate(&self, target: Target) -> Candidate {
        Candidate {
            endpoint: self.endpoints[self.current].endpoint.clone(),
            target,
        }
    }
}

/// Brings what was found into an order of chance, with the address that was used last at the end.
fn arrange(
    mut found: Vec<SocketAddr>,
    used: &[SocketAddr],
    random: &mut fastrand::Rng,
) -> Vec<SocketAddr> {
    found.sort_unstable();
    found.dedup();
    random.shuffle(&mut found);
    let last = used.last();
    // Stable: all others keep their candidates.
    found.sort_by_key(|address| Some(address) == last);
    // The last one may be the only one that works.
    if found.len() > ADDRESSES_MAX {
        found.drain(..found.len() - ADDRESSES_MAX);
    }
    found
}

/// Returns the addresses of an endpoint's host, one at least.
async fn look_up(resolver: &Resolver, uri: &str) -> Result<Vec<SocketAddr>, LookupError> {
    let uri: http::Uri = uri.parse().unwrap_or_default();
    let host = uri.host().unwrap_or_default();
    // A literal address of version 6 stands in brackets.
    let host = host.trim_start_matches('[').trim_end_matches(']');
    resolver
        .lookup(host, uri.port_u16().unwrap_or_default())
        .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::resolve::System;

    fn addresses(count: u8) -> Vec<SocketAddr> {
        let address = |number| SocketAddr::from(([10, 0, 0, number], 9463));
        (1..=count).map(address).collect()
    }

    fn cycle(seed: u64) -> EndpointCycle {
        EndpointCycle::new(
            &[Endpoint::Https("https://shipper:9463".into())],
            seed,
            Resolver::new(System),
        )
    }

    /// Takes a turn of a name through the cycle.
    fn turn(
        cycle: &mut EndpointCycle,
        found: Result<Vec<SocketAddr>, LookupError>,
    ) -> Vec<SocketAddr> {
        let Target::Address(first) = cycle.turn_to(found) else {
            return Vec::new();
        };
        let rest = std::mem::take(&mut cycle.waiting);
        [first].into_iter().chain(rest).collect()
    }

    fn failed() -> LookupError {
        LookupError::Silent { host: "h".into() }
    }

    #[test]
    fn hosts_that_know_one_name_begin_at_different_addresses() {
        let mut firsts = Vec::new();
        for seed in 0..300 {
            let turn = turn(&mut cycle(seed), Ok(addresses(3)));
            let mut sorted = turn.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, addresses(3));
            firsts.push(turn[0]);
        }
        for address in addresses(3) {
            let count = firsts.iter().filter(|first| **first == address).count();
            assert!((60..=140).contains(&count), "{count} of 300");
        }
    }

    #[test]
    fn the_place_that_was_left_last_comes_last() {
        for seed in 0..50 {
            let mut cycle = cycle(seed);
            let before = turn(&mut cycle, Ok(addresses(3)));
            let after = turn(&mut cycle, Ok(addresses(4)));
            assert_eq!(after.last(), before.last());
            assert_eq!(after.len(), 4);
        }
    }

    #[test]
    fn what_was_known_is_used_while_a_lookup_fails() {
        let mut cycle = cycle(1);
        assert_eq!(turn(&mut cycle, Err(failed())), []);
        assert_eq!(cycle.candidate_count(), 1);
        let known = turn(&mut cycle, Ok(addresses(2)));
        assert_eq!(turn(&mut cycle, Err(failed())), known);
        assert_eq!(cycle.candidate_count(), 2);
    }

    #[test]
    fn a_name_of_very_many_addresses_is_cut() {
        for count in [63, 64, 65, 200] {
            let mut cycle = cycle(1);
            let turn = turn(&mut cycle, Ok(addresses(count)));
            assert_eq!(turn.len(), usize::from(count).min(ADDRESSES_MAX));
        }
    }

    #[tokio::test]
    async fn endpoints_keep_their_order_and_literal_addresses_need_no_lookup() {
        let endpoints = [
            Endpoint::Unix("/a.sock".into()),
            Endpoint::Http("http://127.0.0.1:1".into()),
            Endpoint::Https("https://[::1]:2".into()),
        ];
        let mut cycle = EndpointCycle::new(&endpoints, 1, Resolver::new(System));
        let mut seen = Vec::new();
        for _ in 0..4 {
            seen.push(cycle.next().await.to_string());
        }
        let expected = ["unix:///a.sock", "http://127.0.0.1:1", "https://[::1]:2"];
        assert_eq!(seen, [&expected[..], &expected[..1]].concat());
        assert_eq!(cycle.candidate_count(), 3);
    }
}
