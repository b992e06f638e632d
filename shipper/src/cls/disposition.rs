//! What an answer of CLS asks us to do: one total function from outcome to [`Disposition`].
//!
//! No answer is a reason to drop a batch in silence. What an operator can repair (a key, a topic,
//! an account) holds the lane; what passes by itself is retried; what is wrong with the batch
//! itself is cut smaller. Codes: CLS document 614/12402.

#![warn(clippy::wildcard_enum_match_arm)]

use std::fmt;
use std::time::Duration;

/// How one request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Something answered: CLS, or what stands at its address.
    Answer(Answer),
    /// No answer in time. The batch may have been stored.
    Timeout,
    /// The connection failed; the text names the cause without secrets.
    Transport(String),
    /// Nothing was sent, and nothing will be until somebody acts; the text says what is wrong, without
    /// secrets.
    Unsendable(String),
}

/// An HTTP answer. No text in it holds a part of the keys that signed the request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// What the body's `errorcode` means to us. It is read before keys are taken out of the text.
    pub error: ErrorCode,
    /// The body's `errorcode`, to be shown; empty if there is none.
    pub code: String,
    /// `errormessage` of the body.
    pub message: String,
    /// Header `x-cls-requestid`, for support tickets. Every answer of CLS has one.
    pub request_id: String,
    /// Who answered, if it was not CLS.
    pub stranger: Option<Stranger>,
    /// Header `Retry-After` in seconds. CLS does not document one, a proxy may send it.
    pub retry_after: Option<Duration>,
    /// Header `Date`: the server's clock, UNIX seconds.
    pub date_s: Option<u64>,
}

/// What is known of a server that is not CLS: its answer has no request id, or says something that CLS
/// never says. All texts are short, and of one line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stranger {
    /// Header `Server`.
    pub server: String,
    /// Header `Location`: where it would send us.
    pub location: String,
    /// How its body begins.
    pub body: String,
}

impl fmt::Display for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("this is not CLS's upload address")?;
        for (name, text) in [
            ("Server", &self.server),
            ("Location", &self.location),
            ("its answer begins", &self.body),
        ] {
            if !text.is_empty() {
                write!(f, ", {name}: {text}")?;
            }
        }
        Ok(())
    }
}

/// The error codes that decide what is done, whatever the status beside them is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ErrorCode {
    /// The body has none.
    #[default]
    None,
    /// One that leaves the decision to the status.
    Other,
    /// CLS has a fault of its own (500 by its documents).
    InternalError,
    /// CLS took too long (500 by its documents).
    Timeout,
    /// More than the topic's partitions take (429 by its documents).
    SpeedQuotaExceed,
    /// The body is too large.
    LogSizeExceed,
    /// Something in the body is not to CLS's liking.
    InvalidContent,
    /// The signature's time is over, or not yet here.
    SignatureExpire,
}

impl ErrorCode {
    /// Reads an `errorcode`.
    pub fn of(code: &str) -> Self {
        match code {
            "" => Self::None,
            "InternalError" => Self::InternalError,
            "Timeout" => Self::Timeout,
            "SpeedQuotaExceed" => Self::SpeedQuotaExceed,
            "LogSizeExceed" => Self::LogSizeExceed,
            "InvalidContent" => Self::InvalidContent,
            "AuthFailure.SignatureExpire" => Self::SignatureExpire,
            _ => Self::Other,
        }
    }
}

impl Outcome {
    /// Returns whether CLS refuses the keys themselves, and not the time of a signature.
    pub fn is_refusal_of_keys(&self) -> bool {
        let is_late =
            matches!(self, Self::Answer(answer) if answer.error == ErrorCode::SignatureExpire);
        disposition(self) == Disposition::RetryWithNewCredentials && !is_late
    }
}

impl Answer {
    /// Returns whether CLS asks for fewer or smaller requests.
    pub fn is_over_quota(&self) -> bool {
        self.status == 429 || self.error == ErrorCode::SpeedQuotaExceed
    }
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
        Outcome::Unsendable(_) => Disposition::Hold,
        Outcome::Answer(answer) => answer_disposition(answer),
    }
}

fn answer_disposition(answer: &Answer) -> Disposition {
    let retry = Disposition::Retry {
        after: answer.retry_after,
    };
    match (answer.status, answer.error) {
        // These pass by themselves; gateways have been seen to send them with other statuses.
        (_, ErrorCode::InternalError | ErrorCode::Timeout | ErrorCode::SpeedQuotaExceed) => retry,
        // Only what CLS says to have stored is stored: a web server's 200, a sign-in page and an
        // error with the status of a success are none of that.
        (200, ErrorCode::None) if answer.stranger.is_none() => Disposition::Delivered,
        (200..=299, _) => Disposition::Hold,
        (413, _) | (_, ErrorCode::LogSizeExceed) => Disposition::Split,
        // What CLS refuses is put aside for good, so it must be CLS that refuses it.
        (400, ErrorCode::InvalidContent) if answer.stranger.is_none() => Disposition::Bisect,
        (401, _) if answer.stranger.is_none() => Disposition::RetryWithNewCredentials,
        // A body that lost its way through a proxy has no code of CLS's; it may pass again.
        (408 | 429 | 500..=599, _) => retry,
        // What is left asks for an operator: 400 of other kinds (TopicClosed, InvalidParam), 403
        // (account), 404 (topic), 405, a redirection, and whatever a proxy may invent.
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
            (200, "InvalidContent", Disposition::Hold),
            (200, "SomethingNew", Disposition::Hold),
            (201, "", Disposition::Hold),
            (204, "", Disposition::Hold),
            (200, "InternalError", retry),
            (400, "Timeout", retry),
            (403, "SpeedQuotaExceed", retry),
            (403, "InternalError", retry),
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
                error: ErrorCode::of(code),
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
    #[test]
    fn what_is_not_cls_delivers_and_refuses_nothing() {
        let stranger = |status, error| {
            Outcome::Answer(Answer {
                status,
                error,
                stranger: Some(Stranger::default()),
                ..Answer::default()
            })
        };
        let held = [
            stranger(200, ErrorCode::None),
            stranger(401, ErrorCode::None),
            stranger(400, ErrorCode::InvalidContent),
            Outcome::Unsendable("no".into()),
        ];
        for outcome in held {
            assert_eq!(disposition(&outcome), Disposition::Hold);
        }
    }
}
