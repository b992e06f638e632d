//! A stand-in for what issues temporary keys: a CVM's metadata service and STS, on one port. Its keys
//! expire within seconds, and it has a stand-in for CLS accept those that are valid now.
//!
//! | request | answer |
//! |---|---|
//! | `GET /latest/meta-data/cam/security-credentials/` | the name of the role |
//! | `GET /latest/meta-data/cam/security-credentials/<role>` | a key whose id begins with [`CVM_KEY`] |
//! | `POST /`, action `AssumeRoleWithWebIdentity` | a key whose id begins with [`OIDC_KEY`], for the [`WEB_IDENTITY`] |

use crate::standin::{Clock, Key, Standin};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// How ids of keys begin that the metadata service has issued.
pub const CVM_KEY: &str = "AKIDCVM";
/// How ids of keys begin that STS has issued.
pub const OIDC_KEY: &str = "AKIDOIDC";
/// The workload's token that STS knows.
pub const WEB_IDENTITY: &str = "WEBIDENTITYEXAMPLE";

const PATH: &str = "/latest/meta-data/cam/security-credentials/";
const ROLE: &str = "shipper";
/// Time between two looks for keys that have expired.
const EXPIRY_CHECK: Duration = Duration::from_millis(50);

/// A running service. It stops when it is dropped.
#[derive(Debug)]
pub struct Metadata {
    address: SocketAddr,
    issuer: Arc<Issuer>,
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Issuer {
    standin: Arc<Standin>,
    life_s: u64,
    clock: Clock,
    keys: Mutex<Keys>,
}

#[derive(Debug, Default)]
struct Keys {
    /// All temporary keys, with the time at which each expires, UNIX seconds.
    issued: Vec<(Key, u64)>,
    permanent: Vec<Key>,
}

impl Metadata {
    /// Starts a service whose keys are valid for `life_s` seconds at `standin`. From then on it
    /// decides alone which keys that one accepts.
    ///
    /// # Errors
    /// If no port is free.
    pub async fn start(standin: Arc<Standin>, life_s: u64) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let issuer = Arc::new(Issuer {
            standin,
            life_s,
            clock: Clock::system(),
            keys: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, Arc::clone(&issuer)));
        let expiring = Arc::clone(&issuer);
        tasks.spawn(async move {
            loop {
                tokio::time::sleep(EXPIRY_CHECK).await;
                expiring.tell(&expiring.lock());
            }
        });
        Ok(Self {
            address,
            issuer,
            _tasks: tasks,
        })
    }

    /// Returns its base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Has the stand-in accept these keys as well, and no other permanent ones, from now on.
    pub fn accept_permanent(&self, keys: Vec<Key>) {
        let mut all = self.issuer.lock();
        all.permanent = keys;
        self.issuer.tell(&all);
    }

    /// Returns all keys that it has issued.
    pub fn issued(&self) -> Vec<Key> {
        let all = self.issuer.lock();
        all.issued.iter().map(|(key, _)| key.clone()).collect()
    }
}

impl Issuer {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let (status, body) = match (request.method(), request.uri().path()) {
            (&Method::GET, path) => match path.strip_prefix(PATH) {
                Some("") => (StatusCode::OK, ROLE.to_owned()),
                Some(ROLE) => (StatusCode::OK, self.cvm_role()),
                _ => (StatusCode::NOT_FOUND, String::new()),
            },
            (&Method::POST, "/") => (StatusCode::OK, self.assume_role(request).await.to_string()),
            _ => (StatusCode::NOT_FOUND, String::new()),
        };
        let mut response = Response::new(Full::from(body));
        *response.status_mut() = status;
        response
    }

    fn cvm_role(&self) -> String {
        let (key, expires_s) = self.issue(CVM_KEY);
        json!({
            "TmpSecretId": key.secret_id,
            "TmpSecretKey": key.secret_key,
            "Token": key.token,
            "ExpiredTime": expires_s,
            "Code": "Success",
        })
        .to_string()
    }

    async fn assume_role(&self, request: Request<Incoming>) -> Value {
        let refusal = |code: &str| json!({"Response": {"Error": {"Code": code, "Message": ""}}});
        let header = |name: &str| {
            let value = request.headers().get(name);
            value.and_then(|value| value.to_str().ok().map(str::to_owned))
        };
        let expected = [
            ("authorization", "SKIP"),
            ("x-tc-action", "AssumeRoleWithWebIdentity"),
            ("x-tc-version", "2018-08-13"),
            ("x-tc-region", "ap-guangzhou"),
        ];
        for (name, value) in expected {
            if header(name).as_deref() != Some(value) {
                return refusal(&format!("InvalidParameter.{name}"));
            }
        }
        let body = request.into_body().collect().await;
        let body = body.map(http_body_util::Collected::to_bytes);
        let body: Value = serde_json::from_slice(&body.unwrap_or_default()).unwrap_or_default();
        if body["WebIdentityToken"] != WEB_IDENTITY {
            return refusal("InvalidParameter.WebIdentityTokenError");
        }
        let (key, expires_s) = self.issue(OIDC_KEY);
        json!({"Response": {
            "Credentials": {
                "TmpSecretId": key.secret_id,
                "TmpSecretKey": key.secret_key,
                "Token": key.token,
            },
            "ExpiredTime": expires_s,
            "RequestId": "r",
        }})
    }

    fn issue(&self, prefix: &str) -> (Key, u64) {
        let mut all = self.lock();
        let number = all.issued.len();
        let expires_s = self.clock.now().as_secs() + self.life_s;
        let key = Key {
            token: Some(format!("TOKENTEMP{number}X")),
            ..Key::permanent(&format!("{prefix}{number}X"), &format!("SKTEMP{number}X"))
        };
        all.issued.push((key.clone(), expires_s));
        self.tell(&all);
        (key, expires_s)
    }

    /// Has the stand-in accept what is valid now.
    fn tell(&self, all: &Keys) {
        let now_s = self.clock.now().as_secs();
        let valid = all.issued.iter().filter(|(_, until_s)| now_s < *until_s);
        let valid = valid.map(|(key, _)| key).chain(&all.permanent);
        self.standin.replace_keys(valid.cloned().collect());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn serve(listener: TcpListener, issuer: Arc<Issuer>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(serve_connection(stream, Arc::clone(&issuer)));
    }
}

async fn serve_connection(stream: TcpStream, issuer: Arc<Issuer>) {
    let service = service_fn(|request| {
        let issuer = Arc::clone(&issuer);
        async move { Ok::<_, Infallible>(issuer.answer(request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new();
    // The client sees what it sees.
    connection
        .serve_connection(TokioIo::new(stream), service)
        .await
        .ok();
}
