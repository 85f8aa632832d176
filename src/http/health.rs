//! `GET /health`: counters that are kept, never rows that are counted, so its time does not depend on the sessions.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::AppState;
use crate::sessions::PoolStats;

/// How the daemon is.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HealthBody {
    #[schema(example = "ok")]
    pub status: &'static str,
    /// Sessions in state `active`.
    pub active_sessions: usize,
    /// Sandboxes that have processes.
    pub active_sandboxes: usize,
    /// Whole seconds since the daemon started.
    pub uptime: u64,
    pub pool: PoolStats,
    #[schema(example = "0.1.0")]
    pub version: &'static str,
}

/// Is the daemon up, and how full is it? Public.
#[utoipa::path(get, path = "/health", tag = "health", security(()), responses((status = 200, body = HealthBody)))]
pub async fn health(State(state): State<AppState>) -> Json<HealthBody> {
    let pool = state.sessions.pool_stats();
    Json(HealthBody {
        status: "ok",
        active_sessions: state.sessions.active(),
        active_sandboxes: pool.warming + pool.warm + pool.waiting + pool.running,
        uptime: state.started.elapsed().as_secs(),
        pool,
        version: env!("CARGO_PKG_VERSION"),
    })
}
