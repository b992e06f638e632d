//! The admin HTTP server: `/healthz` (the process runs), `/readyz` (it takes entries), `/metrics`,
//! `/api/ledger` (what became of every entry, per stream, as JSON).

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::sync::watch;

use crate::base::phase::Phase;
use crate::lane::window::Budget;
use crate::show::ledger::Ledger;
use crate::show::metrics::Metrics;

/// What the pages show.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Counters of the hosts.
    pub ledger: Arc<Ledger>,
    /// The windows' budget.
    pub budget: Arc<Budget>,
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

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    admin.metrics.granted_bytes.set(admin.budget.granted());
    admin.metrics.show_ledger(&admin.ledger.lines());
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    (
        [(header::CONTENT_TYPE, content_type)],
        admin.metrics.render(),
    )
}

async fn ledger(State(admin): State<Admin>) -> impl IntoResponse {
    let lines =
        serde_json::to_string(&admin.ledger.lines()).expect("strings and numbers serialise");
    ([(header::CONTENT_TYPE, "application/json")], lines)
}
