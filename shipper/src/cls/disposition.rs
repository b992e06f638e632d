//! What an answer of CLS asks us to do: one total function from outcome to [`Disposition`].
//!
//! No answer is a reason to drop a batch in silence. What an operator can repair (a key, a topic,
//! an account) holds the lane; what passes by itself is retried; what is wrong with the batch
//! itself is cut smaller. Codes: CLS document 614/12402.

#![warn(clippy::wildcard_enum_match_arm)]

use std::time::Duration;

/// How one request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// CLS answered.
    Answer(Answer),
    /// No answer in time. The batch may have been stored.
    Timeout,
    /// The connection failed; the text names the cause without secrets.
    Transport(String),
}

/// An HTTP answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// `errorcode` of the body; empty if there is none.
    pub code: String,
    /// `errormessage` of the body.
    pub message: String,
    /// Header `x-cls-requestid`, for support tickets.
    pub request_id: String,
    /// Header `Retry-After` in seconds. CLS does not document one, a proxy may send it.
    pub retry_after: Option<Duration>,
    /// Header `Date`: the server's clock, UNIX seconds.
    pub date_s: Option<u64>,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// The batch is stored.
    Delivered,
    /// Try again with backoff; the trouble passes by itself.
    Retry {
        /// The server's wish, if it has one.
        after: Option<Duration>,
    },
    /// Take a fresh snapshot of the credentials and try again; hold if that does not help.
    RetryWithNewCredentials,
    /// The batch is too large: send it in halves.
    Split,
    /// The batch holds a record that CLS will never take: find it by halving.
    Bisect,
    /// Somebody must act (topic, account, permission): try again slowly, and say so loudly.
    Hold,
}

/// Returns what an outcome asks for.
pub fn disposition(outcome: &Outcome) -> Disposition {
    match outcome {
        Outcome::Timeout | Outcome::Transport(_) => Disposition::Retry { after: None },
        Outcome::Answer(answer) => answer_disposition(answer),
    }
}

fn answer_disposition(answer: &Answer) -> Disposition {
    match (answer.status, answer.code.as_str()) {
        (200..=299, _) => Disposition::Delivered,
        (413, _) | (_, "LogSizeExceed") => Disposition::Split,
        (400, "InvalidContent") => Disposition::Bisect,
        (401, _) => Disposition::RetryWithNewCredentials,
        // A body that lost its way through a proxy has no code of CLS's; it may pass again.
        (408 | 429 | 500..=599, _) => Disposition::Retry {
            after: answer.retry_after,
        },
        // What is left asks for an operator: 400 of other kinds (TopicClosed, InvalidParam), 403
        // (account), 404 (topic), 405, and whatever a proxy may invent.
        _ => Disposition::Hold,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_documented_error_has_its_disposition() {
        let retry = Disposition::Retry { after: None };
        let cases = [
            (200, "", Disposition::Delivered),
            (204, "", Disposition::Delivered),
            (400, "InvalidAuthorization", Disposition::Hold),
            (400, "MissingAuthorization", Disposition::Hold),
            (400, "InvalidCompressType", Disposition::Hold),
            (400, "InvalidContent", Disposition::Bisect),
            (400, "MissingContent", Disposition::Hold),
            (400, "InvalidContentType", Disposition::Hold),
            (400, "InvalidParam", Disposition::Hold),
            (400, "TopicClosed", Disposition::Hold),
            (
                401,
                "AuthFailure.SecretIdNotFound",
                Disposition::RetryWithNewCredentials,
            ),
            (
                401,
                "AuthFailure.SignatureExpire",
                Disposition::RetryWithNewCredentials,
            ),
            (401, "", Disposition::RetryWithNewCredentials),
            (403, "LogSizeExceed", Disposition::Split),
            (403, "AccountArrears", Disposition::Hold),
            (403, "NotAllowed", Disposition::Hold),
            (404, "TopicNotExist", Disposition::Hold),
            (405, "NotSupported", Disposition::Hold),
            (413, "", Disposition::Split),
            (429, "SpeedQuotaExceed", retry),
            (500, "InternalError", retry),
            (502, "", retry),
            (302, "", Disposition::Hold),
            (418, "", Disposition::Hold),
        ];
        for (status, code, expected) in cases {
            let answer = Answer {
                status,
                code: code.into(),
                ..Answer::default()
            };
            assert_eq!(
                disposition(&Outcome::Answer(answer)),
                expected,
                "{status} {code}"
            );
        }
        assert_eq!(disposition(&Outcome::Timeout), retry);
        assert_eq!(disposition(&Outcome::Transport("reset".into())), retry);
    }
}
