//! The admin HTTP server: `/healthz` (the process runs), `/readyz` (it takes entries), `/metrics`,
//! `/api/ledger` (what became of every entry, per stream, as JSON).

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::base::phase::Phase;
use crate::show::ledger::Ledger;
use crate::show::metrics::Metrics;

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

/// Returns the routes.
pub fn router(admin: Admin) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/api/ledger", get(ledger))
        .with_state(admin)
}

async fn ready(State(admin): State<Admin>) -> impl IntoResponse {
    match *admin.phase.borrow() {
        Phase::Serving => (StatusCode::OK, "ready\n"),
        Phase::Draining | Phase::Ended => (StatusCode::SERVICE_UNAVAILABLE, "stopping\n"),
    }
}

async fn metrics(State(admin): State<Admin>) -> Result<impl IntoResponse, StatusCode> {
    let metrics = Arc::clone(&admin.metrics);
    let text = blocking(move || metrics.render(Instant::now())).await?;
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, content_type)], text))
}

async fn ledger(State(admin): State<Admin>) -> Result<impl IntoResponse, StatusCode> {
    let ledger = Arc::clone(&admin.ledger);
    let lines = blocking(move || serde_json::to_string(&ledger.lines())).await?;
    let lines = lines.expect("strings and numbers serialise");
    Ok(([(header::CONTENT_TYPE, "application/json")], lines))
}

/// Writes a page where it keeps no call waiting: there may be 100,000 streams.
async fn blocking<T: Send + 'static>(
    page: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StatusCode> {
    let page = tokio::task::spawn_blocking(page).await;
    page.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}
