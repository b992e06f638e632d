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

/// Sends all letters once: with the credential source `chosen`, if there is one; else each with the
/// source that its lane had, or the configuration's default where the container had its own keys. A
/// letter for a host at which that source's keys may not be used stays in the store.
///
/// # Errors
/// The store can't be read, or `chosen` gives no credentials. A letter whose own source gives none
/// stays in the store.
pub async fn replay(
    config: &Config,
    store: &DeadLetters,
    clock: &WallClock,
    chosen: Option<&str>,
) -> Result<Replayed, ReplayError> {
    let client = Client::new(config.road.clone());
    let credentials = CredentialStore::new(&config.credentials, &config.endpoints, clock, &client);
    if let Some(name) = chosen {
        credentials.probe(name).await?;
    }
    let taken = store.take()?;
    let mut unsent = Vec::new();
    for letter in &taken.letters {
        let of_letter = letter.reason.credentials.as_deref();
        let name = chosen.or(of_letter).unwrap_or(&config.defaults.credentials);
        let is_sent = match target(letter) {
            Some(target) => {
                let named = CredentialRef::Named(name.to_owned());
                match credentials.snapshot(&named, &target.endpoint).await {
                    Ok(credentials) => send(&client, target, &credentials, letter, clock).await,
                    Err(error) => {
                        warn!(topic_id = target.topic_id, error = %Chain(&error),
                            "a dead letter is not sent");
                        false
                    }
                }
            }
            None => false,
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

/// Returns where a letter goes. Whether keys may be used there is looked at when they are taken: the
/// container that named the endpoint may have had keys of its own.
fn target(letter: &Letter) -> Option<Target> {
    let Ok(endpoint) = letter.reason.endpoint.parse() else {
        warn!(
            endpoint = letter.reason.endpoint,
            "a dead letter names no valid endpoint"
        );
        return None;
    };
    Some(Target {
        endpoint,
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
