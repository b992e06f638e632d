//! What the log and the dead-letter store say of a request that CLS did not take.

use std::time::Duration;

use tracing::{error, warn};

use crate::cls::disposition::{Answer, Disposition, ErrorCode, Outcome};
use crate::keys::store::CredentialRef;
use crate::lane::queue::Lane;
use crate::upload::letters::Reason;

pub(super) fn reason(lane: &Lane, outcome: Outcome, asked: Disposition) -> Reason {
    let reason = match asked {
        Disposition::Split => "size",
        Disposition::Bisect => "content",
        Disposition::Delivered
        | Disposition::Retry { .. }
        | Disposition::RetryWithNewCredentials
        | Disposition::Hold => "retries",
    };
    let answer = match outcome {
        Outcome::Answer(answer) => answer,
        Outcome::Timeout => Answer {
            message: "no answer in time".into(),
            ..Answer::default()
        },
        Outcome::Transport(message) | Outcome::Unsendable(message) => Answer {
            message,
            ..Answer::default()
        },
    };
    let target = &lane.key().target;
    Reason {
        reason: reason.to_owned(),
        status: answer.status,
        code: answer.code,
        message: answer.message,
        request_id: answer.request_id,
        endpoint: target.endpoint.to_string(),
        topic_id: target.topic_id.clone(),
        credentials: match &lane.key().credentials {
            CredentialRef::Named(name) => Some(name.clone()),
            CredentialRef::Own(_) => None,
        },
        has_own_keys: matches!(lane.key().credentials, CredentialRef::Own(_)),
    }
}

/// Says what went wrong: the first failures, then ever more rarely, so that an outage of hours
/// fills no disk.
pub(super) fn report(
    lane: &Lane,
    outcome: &Outcome,
    asked: Disposition,
    attempts: u32,
    delay: Duration,
    now_s: u64,
) {
    if !attempts.is_power_of_two() {
        return;
    }
    let target = &lane.key().target;
    let cause = describe(outcome, now_s);
    let retry_ms = delay.as_millis();
    match asked {
        Disposition::Delivered | Disposition::Split | Disposition::Bisect => {}
        Disposition::Retry { .. } => {
            warn!(endpoint = %target.endpoint, topic_id = %target.topic_id,
            attempts, retry_ms, %cause, "upload failed, retrying")
        }
        Disposition::RetryWithNewCredentials | Disposition::Hold => error!(
            endpoint = %target.endpoint, topic_id = %target.topic_id, attempts, retry_ms, %cause,
            "upload refused, the lane holds until this is repaired; nothing is dropped"),
    }
}

fn describe(outcome: &Outcome, now_s: u64) -> String {
    match outcome {
        Outcome::Timeout => "no answer in time".to_owned(),
        Outcome::Transport(cause) | Outcome::Unsendable(cause) => cause.clone(),
        Outcome::Answer(answer) => {
            let (status, skew) = (answer.status, skew(answer, now_s));
            let said = format!("{} {}", answer.code, answer.message);
            match &answer.stranger {
                Some(stranger) => {
                    let said = format!("status {status} {said}");
                    format!("{}: {stranger}", said.trim_end())
                }
                None => format!(
                    "status {status} {said} (request id {}){skew}",
                    answer.request_id
                ),
            }
        }
    }
}

/// Names the difference between the clocks where it is what CLS refuses: a signature has a time.
fn skew(answer: &Answer, now_s: u64) -> String {
    let Some(date_s) = answer
        .date_s
        .filter(|_| answer.error == ErrorCode::SignatureExpire)
    else {
        return String::new();
    };
    let way = if now_s >= date_s {
        "ahead of"
    } else {
        "behind"
    };
    format!(
        "; this machine's clock is {} s {way} that of CLS",
        now_s.abs_diff(date_s)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expired_signature_names_the_difference_between_the_clocks() {
        let answer = |code: &str| {
            Outcome::Answer(Answer {
                status: 401,
                code: code.to_owned(),
                message: "m".into(),
                error: ErrorCode::of(code),
                request_id: "r".into(),
                date_s: Some(1_000),
                ..Answer::default()
            })
        };
        let check = |code, now_s, expected: &str| {
            assert_eq!(
                describe(&answer(code), now_s),
                format!("status 401 {code} m (request id r){expected}")
            );
        };
        let expired = "AuthFailure.SignatureExpire";
        check(
            expired,
            1_900,
            "; this machine's clock is 900 s ahead of that of CLS",
        );
        check(
            expired,
            400,
            "; this machine's clock is 600 s behind that of CLS",
        );
        check("AuthFailure.SecretIdNotFound", 1_900, "");
    }
}
