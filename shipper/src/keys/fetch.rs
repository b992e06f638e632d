//! Temporary credentials: from a CVM's role (metadata service) or a TKE workload's identity (STS).
//!
//! Protocols as in Tencent Cloud's own Go SDK (tencentcloud-sdk-go, `common`: CVM role provider,
//! TKE OIDC provider). Base URLs can be set, so that a stand-in can play either service.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::base::clock::WallClock;
use crate::base::secret::Secret;
use crate::cls::credentials::Credentials;
use crate::config::Origin;
use crate::send::client::{Client, beginning};
use crate::send::road::RoadError;

const CVM_CREDENTIALS_PATH: &str = "/latest/meta-data/cam/security-credentials/";

/// Lifetime that is asked of STS; its own default.
const STS_DURATION_S: u64 = 7_200;

/// A key is renewed this long before it expires, as the official SDKs do, or after two thirds of
/// its life, if that is shorter.
const RENEW_AHEAD_S: u64 = 300;

/// Bound of one request. An attempt to upload waits for it.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);

/// A temporary key pair.
#[derive(Debug, Clone)]
pub struct Temporary {
    /// The pair, with its token.
    pub credentials: Arc<Credentials>,
    /// When it expires, UNIX seconds.
    pub expires_s: u64,
    /// When it should be renewed, UNIX seconds.
    pub renew_s: u64,
}

/// Why nothing was fetched. No variant holds a part of a secret.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The road to the service can't be taken.
    #[error(transparent)]
    Road(#[from] RoadError),
    /// The service can't be reached or does not answer in time.
    #[error("{service} can't be reached: {cause}")]
    Unreachable {
        /// Which service.
        service: &'static str,
        /// Why.
        cause: String,
    },
    /// The service refuses.
    #[error("{service} answers {status}{}{detail}", if .detail.is_empty() { "" } else { ": " })]
    Refused {
        /// Which service.
        service: &'static str,
        /// HTTP status.
        status: u16,
        /// Its error code, or a hint.
        detail: String,
    },
    /// The answer is not understood; it is not quoted, because it can hold a key.
    #[error("{service} answers something that is not credentials")]
    Content {
        /// Which service.
        service: &'static str,
    },
    /// The token file can't be read.
    #[error("web identity token file {}", path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Fetches from one origin.
#[derive(Debug)]
pub struct Fetcher {
    origin: Origin,
    client: Client,
}

/// Bytes of an answer that are read. One that has more is none of these services'.
const ANSWER_BYTES_MAX: usize = 64 << 10;

const METADATA: &str = "the CVM metadata service";
const STS: &str = "STS";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CvmAnswer {
    tmp_secret_id: String,
    tmp_secret_key: String,
    token: String,
    expired_time: u64,
    code: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct StsRequest<'a> {
    provider_id: &'a str,
    web_identity_token: &'a str,
    role_arn: &'a str,
    role_session_name: &'a str,
    duration_seconds: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct StsAnswer {
    response: StsResponse,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct StsResponse {
    credentials: Option<StsCredentials>,
    expired_time: Option<u64>,
    error: Option<StsError>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct StsCredentials {
    token: String,
    tmp_secret_id: String,
    tmp_secret_key: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct StsError {
    code: String,
}

impl Fetcher {
    /// Makes a fetcher that takes the client's road to STS. The metadata service is in the same
    /// machine, so to say, and never behind a proxy.
    pub fn new(origin: Origin, client: &Client) -> Self {
        let client = match origin {
            Origin::CvmRole { .. } => client.without_proxy(),
            Origin::TkeOidc { .. } => client.clone(),
        };
        Self { origin, client }
    }

    /// Returns how long a service that fails is left alone. A CVM has its metadata service to
    /// itself; all of an account share STS.
    pub fn pause(&self) -> Duration {
        match self.origin {
            Origin::CvmRole { .. } => Duration::from_secs(1),
            Origin::TkeOidc { .. } => Duration::from_secs(5),
        }
    }

    /// Returns how long the service is not asked again for a pair that CLS refuses, as long as nothing
    /// says that it would give a better one. What an operator repairs at the role helps the pair that
    /// there is, too.
    pub fn refusal_pause(&self) -> Duration {
        match self.origin {
            Origin::CvmRole { .. } => self.pause(),
            Origin::TkeOidc { .. } => Duration::from_secs(600),
        }
    }

    /// Returns the file on which what is fetched depends, if that is all that can change it: STS
    /// makes a new key pair of the same token at each request.
    pub fn token_file(&self) -> Option<&Path> {
        match &self.origin {
            Origin::CvmRole { .. } => None,
            Origin::TkeOidc { token_file, .. } => Some(token_file),
        }
    }

    /// Fetches a key pair.
    ///
    /// # Errors
    /// The service can't be reached, refuses, or answers something else.
    pub async fn fetch(&self, clock: &WallClock) -> Result<Temporary, FetchError> {
        let client = &self.client;
        let now_s = clock.unix_s();
        let (credentials, expires_s) = match &self.origin {
            Origin::CvmRole { url, role } => {
                let base = format!("{url}{CVM_CREDENTIALS_PATH}");
                let role = match role {
                    Some(role) => role.clone(),
                    None => get(client, &base).await?.trim().to_owned(),
                };
                let answer = Zeroizing::new(get(client, &format!("{base}{role}")).await?);
                parse_cvm(&answer).ok_or(FetchError::Content { service: METADATA })?
            }
            Origin::TkeOidc {
                url,
                region,
                provider_id,
                role_arn,
                token_file,
            } => {
                let read = std::fs::read_to_string(token_file).map_err(|source| {
                    FetchError::TokenFile {
                        path: token_file.clone(),
                        source,
                    }
                })?;
                let token = Zeroizing::new(read);
                let request = StsRequest {
                    provider_id,
                    web_identity_token: token.trim(),
                    role_arn,
                    role_session_name: "cls-shipper",
                    duration_seconds: STS_DURATION_S,
                };
                assume_role(client, url, region, &request, now_s).await?
            }
        };
        let renew_s = renew_at(now_s, expires_s, clock.seed());
        Ok(Temporary {
            credentials: Arc::new(credentials),
            expires_s,
            renew_s,
        })
    }
}

/// Returns when to renew: ahead of the expiry, and a tenth of that earlier at random, so that many
/// shippers that started together do not ask together.
fn renew_at(now_s: u64, expires_s: u64, seed: u64) -> u64 {
    let life_s = expires_s.saturating_sub(now_s);
    let ahead_s = RENEW_AHEAD_S.min(life_s / 3);
    let jitter_s = seed % (ahead_s / 10 + 1);
    expires_s.saturating_sub(ahead_s + jitter_s)
}

async fn get(client: &Client, url: &str) -> Result<String, FetchError> {
    let unreachable = |source: reqwest::Error| FetchError::Unreachable {
        service: METADATA,
        cause: client.cause(source),
    };
    let mut response = client
        .http()?
        .get(url)
        .timeout(FETCH_TIMEOUT)
        .send()
        .await
        .map_err(unreachable)?;
    let status = response.status().as_u16();
    if status != 200 {
        let detail = if status == 404 {
            "no role is bound to this CVM".into()
        } else {
            String::new()
        };
        return Err(FetchError::Refused {
            service: METADATA,
            status,
            detail,
        });
    }
    let text = beginning(&mut response, ANSWER_BYTES_MAX).await;
    let text = text.map_err(|(_, error)| unreachable(error))?;
    String::from_utf8(text).map_err(|_| FetchError::Content { service: METADATA })
}

fn parse_cvm(text: &str) -> Option<(Credentials, u64)> {
    let answer: CvmAnswer = serde_json::from_str(text).ok()?;
    if answer.code != "Success" {
        return None;
    }
    let credentials = Credentials {
        id: Secret::new(answer.tmp_secret_id),
        key: Secret::new(answer.tmp_secret_key),
        token: Some(Secret::new(answer.token)),
    };
    Some((credentials, answer.expired_time))
}

async fn assume_role(
    client: &Client,
    url: &str,
    region: &str,
    request: &StsRequest<'_>,
    now_s: u64,
) -> Result<(Credentials, u64), FetchError> {
    let unreachable = |source: reqwest::Error| FetchError::Unreachable {
        service: STS,
        cause: client.cause(source),
    };
    let body = serde_json::to_vec(request).expect("strings and numbers serialise");
    let mut response = client
        .http()?
        .post(url)
        .timeout(FETCH_TIMEOUT)
        .header("Authorization", "SKIP")
        .header("Content-Type", "application/json")
        .header("X-TC-Action", "AssumeRoleWithWebIdentity")
        .header("X-TC-Version", "2018-08-13")
        .header("X-TC-Region", region)
        .header("X-TC-Timestamp", now_s)
        .body(body)
        .send()
        .await
        .map_err(unreachable)?;
    let status = response.status().as_u16();
    let text = beginning(&mut response, ANSWER_BYTES_MAX).await;
    let text = Zeroizing::new(text.map_err(|(_, error)| unreachable(error))?);
    let answer: StsAnswer =
        serde_json::from_slice(&text).map_err(|_| FetchError::Content { service: STS })?;
    if let Some(error) = answer.response.error {
        return Err(FetchError::Refused {
            service: STS,
            status,
            detail: error.code,
        });
    }
    match (answer.response.credentials, answer.response.expired_time) {
        (Some(answer), Some(expires_s)) => Ok((
            Credentials {
                id: Secret::new(answer.tmp_secret_id),
                key: Secret::new(answer.tmp_secret_key),
                token: Some(Secret::new(answer.token)),
            },
            expires_s,
        )),
        _ => Err(FetchError::Content { service: STS }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering};

    use axum::Router;
    use axum::extract::Path;
    use axum::http::{HeaderMap, StatusCode};
    use axum::routing::{get, post};
    use tokio::task::JoinSet;

    use super::*;
    use crate::cls::endpoint::Endpoint;
    use crate::config::CredentialSource;
    use crate::keys::store::{CredentialRef, CredentialStore};

    fn endpoint() -> Endpoint {
        "h".parse().unwrap()
    }

    const START_S: u64 = 1_700_000_000;

    /// A service that a test plays; it ends with the set.
    async fn serve(router: Router) -> (String, JoinSet<()>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, router).await.unwrap() });
        (url, tasks)
    }

    fn clock_of(now_s: &Arc<AtomicU64>) -> WallClock {
        let now_s = Arc::clone(now_s);
        WallClock::new(move || Duration::from_secs(now_s.load(Ordering::Relaxed)))
    }

    fn store(origin: Origin, now_s: &Arc<AtomicU64>) -> CredentialStore {
        let source = CredentialSource::Temporary(origin);
        let sources = BTreeMap::from([("r".into(), source)]);
        CredentialStore::new(
            &sources,
            &BTreeMap::new(),
            &clock_of(now_s),
            &Client::default(),
        )
    }

    async fn id(store: &CredentialStore) -> Result<String, String> {
        let snapshot = store
            .snapshot(&CredentialRef::Named("r".into()), &endpoint())
            .await;
        snapshot
            .map(|c| c.id.expose().to_owned())
            .map_err(|e| crate::base::chain::Chain(&e).to_string())
    }

    /// A metadata service that numbers its keys and can be told to fail. Keys live 900 s.
    fn metadata(
        count: &Arc<AtomicU64>,
        is_down: &Arc<Mutex<bool>>,
        now_s: &Arc<AtomicU64>,
    ) -> Router {
        let (count, is_down, now_s) = (Arc::clone(count), Arc::clone(is_down), Arc::clone(now_s));
        let key = move |Path(role): Path<String>| async move {
            assert_eq!(role, "my-role");
            if *is_down.lock().unwrap() {
                return (StatusCode::INTERNAL_SERVER_ERROR, String::new());
            }
            let number = count.fetch_add(1, Ordering::Relaxed) + 1;
            let expires_s = now_s.load(Ordering::Relaxed) + 900;
            let answer = format!(
                r#"{{"TmpSecretId":"id-{number}","TmpSecretKey":"k","ExpiredTime":{expires_s},
                    "Expiration":"x","Token":"t","Code":"Success"}}"#
            );
            (StatusCode::OK, answer)
        };
        Router::new()
            .route(CVM_CREDENTIALS_PATH, get(|| async { "my-role\n" }))
            .route(&format!("{CVM_CREDENTIALS_PATH}{{role}}"), get(key))
    }

    #[tokio::test]
    async fn a_role_key_is_renewed_ahead_of_its_expiry_and_outlives_a_failure() {
        let (count, is_down) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(false)));
        let now_s = Arc::new(AtomicU64::new(START_S));
        let (url, _tasks) = serve(metadata(&count, &is_down, &now_s)).await;
        let store = store(Origin::CvmRole { url, role: None }, &now_s);
        assert_eq!(id(&store).await.unwrap(), "id-1");
        now_s.fetch_add(500, Ordering::Relaxed);
        assert_eq!(id(&store).await.unwrap(), "id-1", "400 s are left");
        now_s.fetch_add(110, Ordering::Relaxed);
        *is_down.lock().unwrap() = true;
        assert_eq!(
            id(&store).await.unwrap(),
            "id-1",
            "it is due, but can't be renewed"
        );
        *is_down.lock().unwrap() = false;
        // The service that has failed is left alone for a moment, meanwhile the pair is in use.
        while id(&store).await.unwrap() == "id-1" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(id(&store).await.unwrap(), "id-2");
        *is_down.lock().unwrap() = true;
        now_s.fetch_add(901, Ordering::Relaxed);
        let error = id(&store).await.unwrap_err();
        assert_eq!(
            error,
            "credentials `r`: the CVM metadata service answers 500"
        );
    }

    /// A service that hangs holds nobody up while the pair is valid, and is asked once.
    #[tokio::test]
    async fn a_pair_stays_in_use_while_its_successor_is_fetched() {
        let (asked, now_s) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicU64::new(START_S)),
        );
        let counted = Arc::clone(&asked);
        let key = move || async move {
            if counted.fetch_add(1, Ordering::Relaxed) > 0 {
                std::future::pending::<()>().await;
            }
            let expires_s = START_S + 900;
            format!(
                r#"{{"TmpSecretId":"id","TmpSecretKey":"k","ExpiredTime":{expires_s},
                    "Expiration":"x","Token":"t","Code":"Success"}}"#
            )
        };
        let path = format!("{CVM_CREDENTIALS_PATH}{{role}}");
        let (url, _tasks) = serve(Router::new().route(&path, get(key))).await;
        let role = Some("my-role".into());
        let store = store(Origin::CvmRole { url, role }, &now_s);
        assert_eq!(id(&store).await.unwrap(), "id");
        now_s.fetch_add(700, Ordering::Relaxed);
        let began = tokio::time::Instant::now();
        while asked.load(Ordering::Relaxed) < 2 {
            assert_eq!(id(&store).await.unwrap(), "id");
            tokio::task::yield_now().await;
        }
        for _ in 0..100 {
            assert_eq!(id(&store).await.unwrap(), "id");
        }
        assert!(began.elapsed() < FETCH_TIMEOUT);
        assert_eq!(asked.load(Ordering::Relaxed), 2);
    }

    /// Without a valid pair all callers wait for one answer, also if that is a refusal.
    #[tokio::test]
    async fn callers_without_a_pair_share_one_fetch() {
        for is_refused in [false, true] {
            let (count, is_down) = (
                Arc::new(AtomicU64::new(0)),
                Arc::new(Mutex::new(is_refused)),
            );
            let now_s = Arc::new(AtomicU64::new(START_S));
            let asked = Arc::new(AtomicU64::new(0));
            let counted = Arc::clone(&asked);
            let router = metadata(&count, &is_down, &now_s).layer(axum::middleware::from_fn(
                move |request: axum::extract::Request, next: axum::middleware::Next| {
                    counted.fetch_add(1, Ordering::Relaxed);
                    next.run(request)
                },
            ));
            let (url, _tasks) = serve(router).await;
            let role = Some("my-role".into());
            let store = Arc::new(store(Origin::CvmRole { url, role }, &now_s));
            let mut callers = JoinSet::new();
            for _ in 0..20 {
                let store = Arc::clone(&store);
                callers.spawn(async move { id(&store).await });
            }
            for answer in callers.join_all().await {
                assert_eq!(answer.is_err(), is_refused);
            }
            assert_eq!(asked.load(Ordering::Relaxed), 1);
        }
    }

    /// Who holds gets the next pair of a metadata service by asking, and that of STS when the
    /// workload has another token.
    #[tokio::test]
    async fn who_waits_for_another_pair_asks_no_more_than_helps() {
        let (count, is_down) = (Arc::new(AtomicU64::new(0)), Arc::default());
        let now_s = Arc::new(AtomicU64::new(START_S));
        let (url, _tasks) = serve(metadata(&count, &is_down, &now_s)).await;
        let role = Some("my-role".into());
        let cvm = store(Origin::CvmRole { url, role }, &now_s);
        let wanted = CredentialRef::Named("r".into());
        let refused = cvm.snapshot(&wanted, &endpoint()).await.unwrap();
        cvm.replaced(&wanted, Some(&refused)).await;
        assert_eq!(id(&cvm).await.unwrap(), "id-2");

        let folder = tempfile::tempdir().unwrap();
        let token_file = folder.path().join("token");
        std::fs::write(&token_file, "1").unwrap();
        let asked = Arc::new(AtomicU64::new(0));
        let sts = numbered_sts(&asked);
        let (url, _tasks) = serve(Router::new().route("/", post(sts))).await;
        let sts = store(oidc(url, &token_file), &now_s);
        let refused = sts.snapshot(&wanted, &endpoint()).await.unwrap();
        let wait = sts.replaced(&wanted, Some(&refused));
        assert!(
            tokio::time::timeout(Duration::from_secs(2), wait)
                .await
                .is_err()
        );
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        std::fs::write(&token_file, "22").unwrap();
        sts.replaced(&wanted, Some(&refused)).await;
        assert_eq!(id(&sts).await.unwrap(), "id-1");
    }

    fn oidc(url: String, token_file: &std::path::Path) -> Origin {
        Origin::TkeOidc {
            url,
            region: "ap-guangzhou".into(),
            provider_id: "p".into(),
            role_arn: "arn".into(),
            token_file: token_file.to_owned(),
        }
    }

    #[tokio::test]
    async fn a_refused_key_is_fetched_again_once_however_many_callers_saw_the_refusal() {
        let (count, is_down) = (Arc::new(AtomicU64::new(0)), Arc::default());
        let now_s = Arc::new(AtomicU64::new(START_S));
        let (url, _tasks) = serve(metadata(&count, &is_down, &now_s)).await;
        let store = store(
            Origin::CvmRole {
                url,
                role: Some("my-role".into()),
            },
            &now_s,
        );
        let wanted = CredentialRef::Named("r".into());
        let refused = store.snapshot(&wanted, &endpoint()).await.unwrap();
        for _ in 0..10 {
            store.forget(&wanted, &refused);
            assert_eq!(id(&store).await.unwrap(), "id-2");
        }
        assert_eq!(count.load(Ordering::Relaxed), 2);
    }

    /// A pair that is refused all the time is no reason to ask STS all the time.
    #[tokio::test]
    async fn sts_is_asked_once_for_a_refusal_and_again_for_another_token() {
        let folder = tempfile::tempdir().unwrap();
        let token_file = folder.path().join("token");
        std::fs::write(&token_file, "1").unwrap();
        let now_s = Arc::new(AtomicU64::new(START_S));
        let asked = Arc::new(AtomicU64::new(0));
        let (url, _tasks) = serve(Router::new().route("/", post(numbered_sts(&asked)))).await;
        let store = store(oidc(url, &token_file), &now_s);
        let wanted = CredentialRef::Named("r".into());
        let attempt = async || {
            let pair = store.snapshot(&wanted, &endpoint()).await.unwrap();
            store.forget(&wanted, &pair);
            pair.id.expose().to_owned()
        };
        assert_eq!(attempt().await, "id-0");
        for _ in 0..20 {
            assert_eq!(attempt().await, "id-1", "the pair stays in use");
        }
        assert_eq!(asked.load(Ordering::Relaxed), 2);
        std::fs::write(&token_file, "22").unwrap();
        for _ in 0..20 {
            assert_eq!(attempt().await, "id-2");
        }
        assert_eq!(asked.load(Ordering::Relaxed), 3);
    }

    /// A STS that numbers its keys.
    fn numbered_sts(
        asked: &Arc<AtomicU64>,
    ) -> impl Fn() -> std::future::Ready<String> + Clone + Send + Sync + 'static {
        let asked = Arc::clone(asked);
        move || {
            let number = asked.fetch_add(1, Ordering::Relaxed);
            let expires_s = START_S + 7200;
            std::future::ready(format!(
                r#"{{"Response":{{"Credentials":{{"Token":"t","TmpSecretId":"id-{number}",
                "TmpSecretKey":"k"}},"ExpiredTime":{expires_s},"Expiration":"x","RequestId":"r"}}}}"#
            ))
        }
    }

    #[tokio::test]
    async fn a_workload_identity_is_exchanged_for_a_key() {
        let folder = tempfile::tempdir().unwrap();
        let token_file = folder.path().join("token");
        std::fs::write(&token_file, "jwt-1\n").unwrap();
        let now_s = Arc::new(AtomicU64::new(START_S));
        let sts = |headers: HeaderMap, body: String| async move {
            let header = |name: &str| headers.get(name).unwrap().to_str().unwrap().to_owned();
            assert_eq!(header("authorization"), "SKIP");
            assert_eq!(header("x-tc-action"), "AssumeRoleWithWebIdentity");
            assert_eq!(header("x-tc-region"), "ap-guangzhou");
            let body: serde_json::Value = serde_json::from_str(&body).unwrap();
            assert_eq!(body["ProviderId"], "p");
            if body["WebIdentityToken"] != "jwt-1" {
                return r#"{"Response":{"Error":{"Code":"InvalidParameter.WebIdentityTokenError",
                    "Message":"jwt-2 is bad"},"RequestId":"r"}}"#
                    .to_owned();
            }
            let expires_s = START_S + 7200;
            format!(
                r#"{{"Response":{{"Credentials":{{"Token":"t","TmpSecretId":"id-oidc",
                "TmpSecretKey":"k"}},"ExpiredTime":{expires_s},"Expiration":"x","RequestId":"r"}}}}"#
            )
        };
        let (url, _tasks) = serve(Router::new().route("/", post(sts))).await;
        let store = store(oidc(url, &token_file), &now_s);
        assert_eq!(id(&store).await.unwrap(), "id-oidc");
        std::fs::write(&token_file, "jwt-2").unwrap();
        now_s.fetch_add(7300, Ordering::Relaxed);
        let error = id(&store).await.unwrap_err();
        assert!(
            error.ends_with("STS answers 200: InvalidParameter.WebIdentityTokenError"),
            "{error}"
        );
    }

    #[test]
    fn keys_are_renewed_before_they_expire_however_short_they_live() {
        for life_s in [1, 10, 100, 900, 7200] {
            for seed in 0..100 {
                let renew_s = renew_at(START_S, START_S + life_s, seed);
                assert!(
                    renew_s >= START_S + life_s / 2 && renew_s <= START_S + life_s,
                    "{life_s}"
                );
            }
        }
    }
}
