//! A stand-in for a CVM's metadata service: it issues temporary keys that expire within seconds,
//! and has a stand-in for CLS accept those that are valid now, and no other.

use crate::standin::Standin;
use crate::standin::config::{Clock, Key};
use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

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
    /// All keys, with the time at which each expires, UNIX seconds.
    issued: Mutex<Vec<(Key, u64)>>,
}

impl Metadata {
    /// Starts a service whose keys are valid for `life_s` seconds at `standin`.
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
            issued: Mutex::default(),
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

    /// Returns all keys that it has issued.
    pub fn issued(&self) -> Vec<Key> {
        let issued = self.issuer.lock();
        issued.iter().map(|(key, _)| key.clone()).collect()
    }
}

impl Issuer {
    fn answer(&self, path: &str) -> Response<Full<Bytes>> {
        let (status, body) = match path.strip_prefix(PATH) {
            Some("") => (StatusCode::OK, ROLE.to_owned()),
            Some(ROLE) => (StatusCode::OK, self.issue()),
            _ => (StatusCode::NOT_FOUND, String::new()),
        };
        let mut response = Response::new(Full::from(body));
        *response.status_mut() = status;
        response
    }

    fn issue(&self) -> String {
        let mut issued = self.lock();
        let number = issued.len();
        let expires_s = self.clock.now().as_secs() + self.life_s;
        let (id, secret) = (format!("AKIDTEMP{number}X"), format!("SKTEMP{number}X"));
        let token = format!("TOKENTEMP{number}X");
        let key = Key {
            token: Some(token.clone()),
            ..Key::permanent(&id, &secret)
        };
        issued.push((key, expires_s));
        self.tell(&issued);
        json!({
            "TmpSecretId": id,
            "TmpSecretKey": secret,
            "Token": token,
            "ExpiredTime": expires_s,
            "Code": "Success",
        })
        .to_string()
    }

    /// Has the stand-in accept what is valid now.
    fn tell(&self, issued: &[(Key, u64)]) {
        let now_s = self.clock.now().as_secs();
        let valid = issued.iter().filter(|(_, expires_s)| now_s < *expires_s);
        self.standin
            .replace_keys(valid.map(|(key, _)| key.clone()).collect());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(Key, u64)>> {
        self.issued.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn serve(listener: TcpListener, issuer: Arc<Issuer>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(serve_connection(stream, Arc::clone(&issuer)));
    }
}

async fn serve_connection(stream: TcpStream, issuer: Arc<Issuer>) {
    let service = service_fn(|request: http::Request<hyper::body::Incoming>| {
        let response = issuer.answer(request.uri().path());
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = hyper::server::conn::http1::Builder::new();
    // The client sees what it sees.
    connection
        .serve_connection(TokioIo::new(stream), service)
        .await
        .ok();
}
