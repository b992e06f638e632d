//! Faults that a stand-in is told to have: what, how often or how long, and for which topic.
//!
//! Each request suffers one fault at most: the oldest one that is for its topic and not used up.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;
use tokio::time::Instant;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    /// Answers with this status and its documented error code; nothing is stored.
    Status(u16),
    /// Answers 500 with a page of HTML, as a proxy in front of the service does.
    HtmlError,
    /// Answers 401 until the keys are replaced, whatever the signature.
    UntilNewKey,
    /// Holds the request before looking at it: for a time, or until the client gives up.
    Stall,
    /// Resets the connection in the middle of the request's body.
    Reset,
    /// Stores, then closes the connection without an answer.
    DropAfterStore,
    /// Stores, then answers one byte at a time.
    Drip,
    /// Stores the first half of the logs and answers 429.
    PartialStore,
    /// Goes by a clock that is wrong.
    Skew,
    /// Answers, and closes the idle connection some time later without a word.
    IdleClose,
}

/// All names that `POST /fault?kind=` knows.
pub const KIND_NAMES: &str = "403, 404, 413, 429, 500, 502, 503, 500-html, 401 (until new keys), \
                              stall, reset, drop, drip, partial, skew, idle-close";

impl FromStr for FaultKind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Ok(match name {
            "403" | "404" | "413" | "429" | "500" | "502" | "503" => {
                Self::Status(name.parse().expect("the names are numbers"))
            }
            "500-html" => Self::HtmlError,
            "401" => Self::UntilNewKey,
            "stall" => Self::Stall,
            "reset" => Self::Reset,
            "drop" => Self::DropAfterStore,
            "drip" => Self::Drip,
            "partial" => Self::PartialStore,
            "skew" => Self::Skew,
            "idle-close" => Self::IdleClose,
            _ => return Err(format!("kind {name} is unknown; known are {KIND_NAMES}")),
        })
    }
}

/// A fault to come.
#[derive(Debug, Clone)]
pub struct Fault {
    /// What goes wrong.
    pub kind: FaultKind,
    /// The only topic it is for; `None` for all.
    pub topic_id: Option<String>,
    /// How many requests it is for; `None` for any number.
    pub count: Option<u64>,
    /// When it ends; `None` for never.
    pub until: Option<Instant>,
    /// How long to stall, how long to wait per dripped byte, or how long to leave idle.
    pub delay: Option<Duration>,
    /// How wrong the clock is, in seconds; positive is fast.
    pub skew_s: i64,
}

impl Fault {
    /// Returns a fault that lasts until it is cleared, for all topics.
    pub fn new(kind: FaultKind) -> Self {
        Self {
            kind,
            topic_id: None,
            count: None,
            until: None,
            delay: None,
            skew_s: 0,
        }
    }

    /// Returns the fault for the next `count` requests.
    pub fn times(mut self, count: u64) -> Self {
        self.count = Some(count);
        self
    }

    /// Returns the fault with a delay.
    pub fn delayed(mut self, delay: Duration) -> Self {
        self.delay = Some(delay);
        self
    }
}

/// The faults to come, and a count of those that came.
#[derive(Debug, Default)]
pub struct Faults {
    active: Vec<Fault>,
    /// How many requests suffered each kind.
    pub applied: BTreeMap<String, u64>,
}

impl Faults {
    /// Adds a fault behind those there are.
    pub fn add(&mut self, fault: Fault) {
        self.active.push(fault);
    }

    /// Ends all faults of which `is_over` says so.
    pub fn end(&mut self, is_over: impl Fn(&Fault) -> bool) {
        self.active.retain(|fault| !is_over(fault));
    }

    /// Returns the faults to come.
    pub fn active(&self) -> &[Fault] {
        &self.active
    }

    /// Takes the fault that a request for `topic_id` suffers.
    pub fn take(&mut self, topic_id: Option<&str>, now: Instant) -> Option<Fault> {
        self.end(|fault| fault.count == Some(0) || fault.until.is_some_and(|until| now >= until));
        let is_for =
            |fault: &&mut Fault| fault.topic_id.is_none() || fault.topic_id.as_deref() == topic_id;
        let fault = self.active.iter_mut().find(is_for)?;
        fault.count = fault.count.map(|count| count - 1);
        *self.applied.entry(format!("{:?}", fault.kind)).or_default() += 1;
        Some(fault.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_fault_ends_by_count_or_time_and_is_for_its_topic() {
        let mut faults = Faults::default();
        let mut for_topic = Fault::new(FaultKind::Status(429)).times(2);
        for_topic.topic_id = Some("a".into());
        faults.add(for_topic);
        let mut for_time = Fault::new(FaultKind::Reset);
        for_time.until = Some(Instant::now() + Duration::from_secs(1));
        faults.add(for_time);
        let mut kinds = |topic| faults.take(topic, Instant::now()).map(|fault| fault.kind);
        assert_eq!(kinds(Some("b")), Some(FaultKind::Reset));
        assert_eq!(kinds(Some("a")), Some(FaultKind::Status(429)));
        assert_eq!(kinds(Some("a")), Some(FaultKind::Status(429)));
        assert_eq!(kinds(Some("a")), Some(FaultKind::Reset));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(kinds(Some("a")), None);
        assert_eq!(faults.applied["Status(429)"], 2);
    }

    #[test]
    fn every_named_kind_parses() {
        for name in KIND_NAMES.split(", ") {
            let name = name.split(' ').next().unwrap();
            name.parse::<FaultKind>().unwrap();
        }
        assert!("418".parse::<FaultKind>().is_err());
    }
}
