//! The admin HTTP server: `/healthz` (the process runs), `/readyz` (it takes entries), `/metrics`,
//! `/api/ledger` (what became of every entry, per stream, as JSON).
//!
//! It asks nobody who they are, so it does little for anybody: a page is written once at a time, and at
//! most [`PAGES_MAX`] times it is there for slow readers, who share it. A web page whose name leads to
//! this machine can have a browser ask, but not under a name that is ours: other names get 421.

use std::net::IpAddr;
use std::sync::{Arc, Weak};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;
use wildmatch::WildMatch;

use crate::base::phase::Phase;
use crate::show::ledger::Ledger;
use crate::show::metrics::Metrics;

/// Copies of a page that are held, of different times, while they are read.
const PAGES_MAX: usize = 2;

/// What the pages show.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Counters of the hosts.
    pub ledger: Arc<Ledger>,
    /// Whether entries are taken.
    pub phase: watch::Receiver<Phase>,
}

/// Returns the routes, for requests to an address, to `localhost`, or to a name that one of `hosts`
/// matches.
pub fn router(admin: Admin, hosts: &[String]) -> Router {
    let hosts: Arc<[WildMatch]> = hosts.iter().map(|host| WildMatch::new(host)).collect();
    let state = (admin, Arc::<Pages>::default());
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/api/ledger", get(ledger))
        .with_state(state)
        .layer(from_fn_with_state(hosts, check_host))
}

/// Refuses a request that was made to another name.
async fn check_host(
    State(hosts): State<Arc<[WildMatch]>>,
    request: Request,
    next: Next,
) -> Response {
    if is_ours(request.headers(), &hosts) {
        return next.run(request).await;
    }
    let rule = "this name is not one of the shipper's: ask its address, or list the name in \
                [admin] hosts\n";
    (StatusCode::MISDIRECTED_REQUEST, rule).into_response()
}

/// Returns whether a request is for an address or a name that is ours. A browser always says for which
/// it is.
fn is_ours(headers: &HeaderMap, hosts: &[WildMatch]) -> bool {
    let Some(host) = headers.get(header::HOST) else {
        return true;
    };
    let authority = host.to_str().ok().and_then(|host| host.parse().ok());
    authority.is_some_and(|authority: axum::http::uri::Authority| {
        let name = authority.host().to_ascii_lowercase();
        let address = name.trim_start_matches('[').trim_end_matches(']');
        name == "localhost"
            || address.parse::<IpAddr>().is_ok()
            || hosts.iter().any(|pattern| pattern.matches(&name))
    })
}

/// The pages that take long to write and to read.
#[derive(Debug, Default)]
struct Pages {
    metrics: Page,
    ledger: Page,
}

/// A page as it was written lately, for as long as somebody reads it.
#[derive(Debug, Default)]
struct Page(Mutex<Vec<Weak<Vec<u8>>>>);

/// A copy of a page, which many answers may share.
struct Copy(Arc<Vec<u8>>);

impl AsRef<[u8]> for Copy {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Page {
    /// Returns the page as it is now; as it was a while ago, if older copies are still being read.
    async fn get(
        &self,
        write: impl FnOnce() -> Vec<u8> + Send + 'static,
    ) -> Result<Body, StatusCode> {
        let mut copies = self.0.lock().await;
        copies.retain(|copy| copy.strong_count() > 0);
        let newest = copies.last().and_then(Weak::upgrade);
        let copy = match newest {
            Some(newest) if copies.len() >= PAGES_MAX => newest,
            _ => {
                // Where it keeps no call waiting: there may be 100,000 streams.
                let written = tokio::task::spawn_blocking(write).await;
                let written = written.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
                let copy = Arc::new(written);
                copies.push(Arc::downgrade(&copy));
                copy
            }
        };
        Ok(Body::from(Bytes::from_owner(Copy(copy))))
    }
}

async fn ready(State((admin, _)): State<(Admin, Arc<Pages>)>) -> impl IntoResponse {
    match *admin.phase.borrow() {
        Phase::Serving => (StatusCode::OK, "ready\n"),
        Phase::Draining | Phase::Ended => (StatusCode::SERVICE_UNAVAILABLE, "stopping\n"),
    }
}

async fn metrics(
    State((admin, pages)): State<(Admin, Arc<Pages>)>,
) -> Result<impl IntoResponse, StatusCode> {
    let write = move || admin.metrics.render(Instant::now()).into_bytes();
    let page = pages.metrics.get(write).await?;
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, content_type)], page))
}

async fn ledger(
    State((admin, pages)): State<(Admin, Arc<Pages>)>,
) -> Result<impl IntoResponse, StatusCode> {
    let write =
        move || serde_json::to_vec(&admin.ledger.lines()).expect("strings and numbers serialise");
    let page = pages.ledger.get(write).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], page))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn a_request_is_for_an_address_or_a_name_that_is_listed() {
        let hosts = [WildMatch::new("*.monitoring.example")];
        let is_for = |host: &str| {
            let headers = [(header::HOST, host.parse().unwrap())];
            is_ours(&headers.into_iter().collect(), &hosts)
        };
        for (host, expected) in [
            ("127.0.0.1:9464", true),
            ("[::1]:9464", true),
            ("10.0.0.7", true),
            ("localhost:9464", true),
            ("LOCALHOST", true),
            ("shipper.monitoring.example:9464", true),
            ("evil.example", false),
            ("evil.example:9464", false),
            ("127.0.0.1.evil.example", false),
            ("monitoring.example", false),
            ("", false),
        ] {
            assert_eq!(is_for(host), expected, "{host}");
        }
        assert!(is_ours(&HeaderMap::new(), &hosts), "no browser is so terse");
    }

    /// Readers that read nothing share two copies, and who comes next has the page as it is then.
    #[tokio::test]
    async fn slow_readers_share_a_page() {
        let (page, written) = (Page::default(), Arc::new(AtomicU64::new(0)));
        let get = async || {
            let written = Arc::clone(&written);
            let write =
                move || vec![u8::try_from(written.fetch_add(1, Ordering::Relaxed)).unwrap()];
            page.get(write).await.unwrap()
        };
        let mut slow = Vec::new();
        for _ in 0..64 {
            slow.push(get().await);
        }
        assert_eq!(written.load(Ordering::Relaxed), PAGES_MAX as u64);
        drop(slow);
        let fresh = axum::body::to_bytes(get().await, 10).await.unwrap();
        assert_eq!(usize::from(fresh[0]), PAGES_MAX);
    }
}
