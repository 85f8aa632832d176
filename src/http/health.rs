//! `GET /health` and `GET /metrics`. They read counters and count no rows, so their time does not
//! depend on the number of sessions, and they wake no session.

use axum::Json;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use serde::Serialize;
use utoipa::ToSchema;

use super::AppState;
use crate::sessions::PoolStats;
use ash_observe::metrics;

/// State of the daemon.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HealthBody {
    #[schema(example = "ok")]
    pub status: &'static str,
    /// Sessions in state `active`.
    pub active_sessions: usize,
    /// Sandboxes that have processes.
    pub active_sandboxes: usize,
    /// Seconds since the daemon started.
    pub uptime: u64,
    pub pool: PoolStats,
    #[schema(example = "0.1.0")]
    pub version: &'static str,
}

/// Get the state of the daemon. Public.
#[utoipa::path(get, path = "/health", tag = "health", security(()), responses((status = 200, body = HealthBody)))]
pub async fn health(State(state): State<AppState>) -> Json<HealthBody> {
    let pool = state.sessions.pool_stats();
    Json(HealthBody {
        status: "ok",
        active_sessions: state.sessions.active(),
        active_sandboxes: live(&pool),
        uptime: state.started.elapsed().as_secs(),
        pool,
        version: env!("CARGO_PKG_VERSION"),
    })
}

/// Sandboxes with processes.
fn live(pool: &PoolStats) -> usize {
    pool.warming + pool.warm + pool.waiting + pool.running
}

/// Get the state as Prometheus metrics
///
/// Public. Text format 0.0.4.
#[utoipa::path(
    get, path = "/metrics", tag = "health", security(()),
    responses((status = 200, description = "Metrics", body = String, content_type = "text/plain; version=0.0.4; charset=utf-8",
        example = "# TYPE ash_up gauge\nash_up 1\n"))
)]
pub async fn metrics(State(state): State<AppState>) -> impl IntoResponse {
    let pool = state.sessions.pool_stats();
    let used = state.sessions.total_usage();
    let pressure = used.map(|used| used.pressure).unwrap_or_default();
    let stalled = [("cpu", pressure.cpu), ("memory", pressure.memory), ("io", pressure.io)];
    let now = metrics::Snapshot {
        uptime_seconds: state.started.elapsed().as_secs_f64(),
        active_sessions: state.sessions.active(),
        active_sandboxes: live(&pool),
        cold: pool.cold,
        warming: pool.warming,
        warm: pool.warm,
        waiting: pool.waiting,
        running: pool.running,
        max_capacity: pool.max_capacity,
        resume_warm: pool.resume_warm_hits,
        resume_cold: pool.resume_cold_hits,
        resume_prewarm: pool.pre_warm_hits,
        created: state.sessions.created().to_vec(),
        limited: state.sessions.limited().to_vec(),
        gateway_refused: state.sessions.gateway_refused().to_vec(),
        memory_bytes: used.and_then(|used| used.memory.current_bytes),
        memory_peak_bytes: used.and_then(|used| used.memory.peak_bytes),
        cpu_us: used.and_then(|used| used.cpu.usage_us),
        throttled_us: state.sessions.throttled_us(),
        pids: used.and_then(|used| used.pids.current),
        stalled_us: stalled.into_iter().filter_map(|(of, now)| Some((of, now?.some_total_us))).collect(),
        disk_free_bytes: state.sessions.disk_free(),
    };
    ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics::render(&now))
}
