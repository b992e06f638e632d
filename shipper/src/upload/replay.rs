//! Sends dead letters again, one record a request, so that one that CLS still refuses keeps no
//! other one back.

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tracing::warn;

use crate::base::chain::Chain;
use crate::base::clock::WallClock;
use crate::cls::compress::Compression;
use crate::cls::credentials::Credentials;
use crate::cls::disposition::{Disposition, disposition};
use crate::cls::request::{Body, Target, Upload};
use crate::config::Config;
use crate::keys::store::{CredentialRef, CredentialStore, CredentialsError};
use crate::send::client::Client;
use crate::upload::letters::{DeadLetters, Letter, StoreError};

/// Bound of one request.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Says what a tenant may not do of a topic with such keys, one sentence each.
pub type Rights<'a> = dyn Fn(&str, &str, &CredentialRef) -> Vec<String> + 'a;

/// What a replay did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replayed {
    /// Records that CLS took; they left the store.
    pub sent: usize,
    /// Records that stay in the store.
    pub unsent: usize,
}

/// Why a replay ended early. The letters stay in the store or beside it, for the next replay.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The store can't be read.
    #[error("read the dead-letter store")]
    Read(#[from] std::io::Error),
    /// The store can't be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There are no credentials to sign with.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
}

/// Sends all letters once, each as its tenant may have it sent today: with the credential source `chosen`,
/// if there is one; else with the source that its lane had. Without `chosen`, a letter of a container's
/// own keys stays in the store: whoever wrote it chose the topic by the rights of a key that nobody
/// has any more. So does one of an older version that does not say whose it is. A letter for a host at
/// which the source's keys may not be used stays in any case.
///
/// # Errors
/// The store can't be read, or `chosen` gives no credentials. A letter whose own source gives none
/// stays in the store.
pub async fn replay(
    config: &Config,
    store: &DeadLetters,
    clock: &WallClock,
    chosen: Option<&str>,
    rights: &Rights<'_>,
) -> Result<Replayed, ReplayError> {
    let client = Client::new(config.road.clone());
    let credentials = CredentialStore::new(&config.credentials, &config.endpoints, clock, &client);
    if let Some(name) = chosen {
        credentials.probe(name).await?;
    }
    let taken = store.take()?;
    let mut unsent = Vec::new();
    for letter in &taken.letters {
        let is_sent = match plan(letter, rights, chosen) {
            Ok((target, named)) => match credentials.snapshot(&named, &target.endpoint).await {
                Ok(credentials) => send(&client, target, &credentials, letter, clock).await,
                Err(error) => {
                    warn!(topic_id = target.topic_id, error = %Chain(&error),
                        "a dead letter is not sent");
                    false
                }
            },
            Err(reason) => {
                let topic_id = letter.reason.topic_id.as_str();
                warn!(topic_id, reason, "a dead letter is not sent");
                false
            }
        };
        if !is_sent {
            unsent.push(letter.clone());
        }
    }
    let sent = taken.letters.len() - unsent.len();
    taken.finish(&unsent)?;
    Ok(Replayed {
        sent,
        unsent: unsent.len(),
    })
}

/// Returns where a letter goes, and which keys sign it.
///
/// # Errors
/// Why it stays in the store.
fn plan(
    letter: &Letter,
    rights: &Rights<'_>,
    chosen: Option<&str>,
) -> Result<(Target, CredentialRef), String> {
    let reason = &letter.reason;
    let name = match chosen {
        Some(name) => name,
        None if reason.has_own_keys => {
            return Err("its container had keys of its own: say --credentials".to_owned());
        }
        None => match (&reason.credentials, &letter.tenant) {
            (Some(name), Some(_)) => name,
            _ => return Err("it does not say whose it is: say --credentials".to_owned()),
        },
    };
    let named = CredentialRef::Named(name.to_owned());
    if let Some(tenant) = &letter.tenant {
        let faults = rights(tenant, &reason.topic_id, &named);
        if !faults.is_empty() {
            return Err(faults.join("; "));
        }
    }
    Ok((target(letter)?, named))
}

/// Returns where a letter goes. Whether keys may be used there is looked at when they are taken: the
/// container that named the endpoint may have had keys of its own.
fn target(letter: &Letter) -> Result<Target, String> {
    let endpoint = &letter.reason.endpoint;
    let rule = || format!("{endpoint:?} is no valid endpoint");
    Ok(Target {
        endpoint: endpoint.parse().map_err(|_| rule())?,
        topic_id: letter.reason.topic_id.clone(),
    })
}

async fn send(
    client: &Client,
    target: Target,
    credentials: &Credentials,
    letter: &Letter,
    clock: &WallClock,
) -> bool {
    let body = letter.to_list().encode_to_vec();
    let compression = Compression::Lz4;
    let bytes = Bytes::from(compression.compress(&body, &mut Vec::new()));
    let body = Body { bytes, compression };
    let outcome = client
        .send(Upload {
            target: &target,
            credentials,
            body: &body,
            timeout: TIMEOUT,
            now_s: clock.unix_s(),
        })
        .await;
    let is_delivered = disposition(&outcome) == Disposition::Delivered;
    if !is_delivered {
        warn!(
            topic_id = target.topic_id,
            ?outcome,
            "a dead letter is still not accepted"
        );
    }
    is_delivered
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{IdentityConfig, TenantConfig};
    use crate::rules::tenant::Tenants;
    use crate::upload::letters::Reason;

    fn letter(tenant: Option<&str>, credentials: Option<&str>, has_own_keys: bool) -> Letter {
        Letter {
            stored_unix_ms: 9,
            reason: Reason {
                reason: "retries".into(),
                status: 0,
                code: String::new(),
                message: String::new(),
                request_id: String::new(),
                endpoint: "https://ap-x.cls.tencentcs.com".into(),
                topic_id: "topic-of-b".into(),
                credentials: credentials.map(str::to_owned),
                has_own_keys,
            },
            time_ms: 7,
            fields: Vec::new(),
            tags: Vec::new(),
            source: "host".into(),
            context_flow: String::new(),
            tenant: tenant.map(str::to_owned),
        }
    }

    fn tenants() -> Tenants {
        let tenant = |name: &str, topic: &str| TenantConfig {
            name: name.into(),
            identity: IdentityConfig::Anyone,
            hosts: Vec::new(),
            topics: vec![topic.into()],
            credentials: vec![name.into()],
            streams_max: 1,
            bytes_per_s: None,
        };
        Tenants::new(&[tenant("a", "topic-of-a"), tenant("b", "topic-of-b")])
    }

    #[track_caller]
    fn check(letter: &Letter, chosen: Option<&str>, expected: Result<&str, &str>) {
        let tenants = tenants();
        let rights = |tenant: &str, topic: &str, keys: &_| tenants.faults(tenant, topic, keys);
        match (plan(letter, &rights, chosen), expected) {
            (Ok((_, named)), Ok(name)) => assert_eq!(named, CredentialRef::Named(name.into())),
            (Err(reason), Err(part)) => assert!(reason.contains(part), "{reason}"),
            (planned, _) => panic!("{planned:?}, not {expected:?}"),
        }
    }

    #[test]
    fn a_letter_is_sent_as_its_tenant_may_have_it_sent_today() {
        check(&letter(Some("b"), Some("b"), false), None, Ok("b"));
        let no_more = "topic_id \"topic-of-b\" is not one that tenant a may use";
        check(&letter(Some("a"), Some("a"), false), None, Err(no_more));
        let gone = "tenant c is not configured any more";
        check(&letter(Some("c"), Some("c"), false), None, Err(gone));
        let other = "credentials \"a\" are not ones that tenant b may use";
        check(&letter(Some("b"), Some("b"), false), Some("a"), Err(other));
    }

    #[test]
    fn a_letter_of_own_keys_goes_nowhere_without_a_word() {
        let own = letter(Some("b"), None, true);
        check(&own, None, Err("keys of its own: say --credentials"));
        check(&own, Some("b"), Ok("b"));
        check(&own, Some("a"), Err("not ones that tenant b may use"));
        // Of a topic that its tenant may not use it can't be: the right was taken away.
        check(&letter(Some("a"), None, true), Some("a"), Err("topic-of-b"));
    }

    #[test]
    fn a_letter_of_an_older_version_is_sent_by_a_word_only() {
        let old = letter(None, Some("b"), false);
        check(
            &old,
            None,
            Err("does not say whose it is: say --credentials"),
        );
        check(&old, Some("a"), Ok("a"));
    }
}
