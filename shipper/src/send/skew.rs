//! How far this machine's clock is from that of each endpoint, where a signature was refused for it.
//!
//! Every answer of CLS has its time. As long as signatures are taken, it is not looked at; once one is
//! refused as expired, the difference is added to the time of those that follow, and it is dropped as
//! soon as the clocks agree again. An endpoint has its own: the one that a container names may say any
//! time, and that must not reach what others sign.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing::{info, warn};

use crate::cls::disposition::{Answer, ErrorCode};
use crate::cls::endpoint::Endpoint;

/// Clocks that differ by less agree: a signature is good for some minutes.
const AGREES_S: u64 = 30;

/// Endpoints whose difference is kept. Uploads to further ones hold, as if nothing were known.
const ENDPOINTS_MAX: usize = 256;

/// The differences that are known, in seconds: the endpoint's clock less this machine's.
#[derive(Debug, Default)]
pub(super) struct Skews(Mutex<HashMap<Endpoint, i64>>);

impl Skews {
    /// Returns the time at which a request to an endpoint is to be signed.
    pub(super) fn signing_time(&self, endpoint: &Endpoint, now_s: u64) -> u64 {
        let ahead_s = self.lock().get(endpoint).copied().unwrap_or_default();
        now_s.saturating_add_signed(ahead_s)
    }

    /// Learns from an answer.
    pub(super) fn learn(&self, endpoint: &Endpoint, answer: &Answer, now_s: u64) {
        let Some(date_s) = answer.date_s.filter(|_| answer.stranger.is_none()) else {
            return;
        };
        let difference_s = date_s.abs_diff(now_s);
        let mut known = self.lock();
        if difference_s < AGREES_S {
            if known.remove(endpoint).is_some() {
                info!(%endpoint, "this machine's clock agrees with that of CLS again");
            }
            return;
        }
        let has_room = known.len() < ENDPOINTS_MAX || known.contains_key(endpoint);
        if answer.error != ErrorCode::SignatureExpire || !has_room {
            return;
        }
        let ahead_s = i64::try_from(difference_s).unwrap_or(i64::MAX);
        let is_behind = date_s > now_s;
        let ahead_s = if is_behind { ahead_s } else { -ahead_s };
        if known.insert(endpoint.clone(), ahead_s).is_none() {
            warn!(%endpoint, difference_s, is_behind,
                "this machine's clock is wrong: requests are signed with the time of CLS, set the clock");
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Endpoint, i64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cls::disposition::Stranger;

    fn answer(date_s: u64, error: ErrorCode) -> Answer {
        Answer {
            date_s: Some(date_s),
            error,
            ..Answer::default()
        }
    }

    #[test]
    fn signatures_follow_the_clock_of_cls_once_one_is_refused_for_its_time() {
        let (skews, expired) = (Skews::default(), ErrorCode::SignatureExpire);
        let [a, b] = ["a", "b"].map(|host| host.parse::<Endpoint>().unwrap());
        let now_s = 10_000;
        skews.learn(&a, &answer(5_000, ErrorCode::None), now_s);
        assert_eq!(skews.signing_time(&a, now_s), now_s, "nothing was refused");
        let stranger = Answer {
            stranger: Some(Stranger::default()),
            ..answer(5_000, expired)
        };
        skews.learn(&a, &stranger, now_s);
        assert_eq!(skews.signing_time(&a, now_s), now_s, "this is not CLS");
        skews.learn(&a, &answer(5_000, expired), now_s);
        assert_eq!(skews.signing_time(&a, now_s + 7), 5_007);
        skews.learn(&b, &answer(20_000, expired), now_s);
        assert_eq!(skews.signing_time(&b, now_s), 20_000);
        skews.learn(&a, &answer(5_008, ErrorCode::None), now_s + 7);
        assert_eq!(skews.signing_time(&a, now_s + 7), 5_007, "it still differs");
        skews.learn(&a, &answer(10_008, ErrorCode::None), now_s + 8);
        assert_eq!(
            skews.signing_time(&a, now_s + 9),
            10_009,
            "the clock was set"
        );
    }
}
