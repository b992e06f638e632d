//! When the shipper is told that nothing more has come.

use proto::relay::ShipRequest;
use std::time::Duration;
use tokio::time::Instant;

/// How often counters are reported.
pub(super) const REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// When the shipper is told that nothing more has come, after the last that has; and the next time
/// after twice that, until the reports do. The second time, 1.05 s after the last entry, is just behind
/// the default of `multiline-timeout`.
const QUIET_BASE: Duration = Duration::from_millis(350);

/// When the shipper is to be told that nothing more has come, and after what delay; `None` if a
/// report is soon enough.
#[derive(Debug, Default)]
pub(super) struct IdleNotice(Option<(Instant, Duration)>);

impl IdleNotice {
    pub(super) fn due(&self) -> Option<Instant> {
        self.0.map(|(at, _)| at)
    }

    /// Learns of a request.
    pub(super) fn follow(&mut self, request: &ShipRequest, now: Instant) {
        let delay = match self.0 {
            _ if !request.events.is_empty() => Some(QUIET_BASE),
            // It came with a report.
            Some((at, _)) if now < at => return,
            Some((_, delay)) => Some(delay * 2),
            None => None,
        };
        let delay = delay.filter(|delay| *delay < REPORT_INTERVAL / 2);
        self.0 = delay.map(|delay| (now + delay, delay));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::relay;

    #[test]
    fn that_nothing_has_come_is_told_ever_more_rarely_and_then_with_reports() {
        let began = Instant::now();
        let at = |ms| began + Duration::from_millis(ms);
        let quiet_request = ShipRequest::default();
        let busy_request = ShipRequest {
            events: vec![relay::Event::default()],
            ..ShipRequest::default()
        };
        let mut quiet = IdleNotice::default();
        quiet.follow(&quiet_request, at(0));
        assert_eq!(quiet.due(), None);
        quiet.follow(&busy_request, at(0));
        assert_eq!(quiet.due(), Some(at(350)));
        // With a report: the times stay as they are.
        quiet.follow(&quiet_request, at(200));
        assert_eq!(quiet.due(), Some(at(350)));
        for (now, next) in [(350, Some(1_050)), (1_050, Some(2_450)), (2_450, None)] {
            quiet.follow(&quiet_request, at(now));
            assert_eq!(quiet.due(), next.map(at));
        }
        quiet.follow(&busy_request, at(9_000));
        assert_eq!(quiet.due(), Some(at(9_350)));
    }
}
