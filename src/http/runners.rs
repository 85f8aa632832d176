//! `/api/internal/runners`: requests that clients of the reference send to a coordinator. This ashd
//! runs every sandbox itself: it is the only runner in the list, and accepts no others.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use super::AppState;
use super::auth::Caller;
use super::error::{ApiError, ErrorBody};
use ash_model::{iso, now_ms};

/// Where sandboxes run.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Runner {
    #[schema(example = "local")]
    pub id: &'static str,
    #[schema(example = "ready")]
    pub status: &'static str,
    pub version: &'static str,
    /// Active sessions.
    pub sessions: usize,
    /// Maximum number of live sandboxes.
    pub capacity: usize,
    pub heartbeat_at: String,
}

/// The list of runners: one.
#[derive(Debug, Serialize, ToSchema)]
pub struct RunnersBody {
    pub runners: Vec<Runner>,
}

/// List the runners (admin)
#[utoipa::path(
    get, path = "/api/internal/runners", tag = "health",
    responses(
        (status = 200, body = RunnersBody),
        (status = 403, description = "The key has no admin role", body = ErrorBody),
    )
)]
pub async fn list(State(state): State<AppState>, caller: Caller) -> Result<Json<RunnersBody>, ApiError> {
    caller.check_admin("can list runners")?;
    let runner = Runner {
        id: "local",
        status: "ready",
        version: env!("CARGO_PKG_VERSION"),
        sessions: state.sessions.active(),
        capacity: state.sessions.pool_stats().max_capacity,
        heartbeat_at: iso(now_ms()),
    };
    Ok(Json(RunnersBody { runners: vec![runner] }))
}

fn refused() -> ApiError {
    ApiError::new(
        StatusCode::FORBIDDEN,
        "this ashd runs all sandboxes itself and takes no runners; use its API directly, without runner processes",
    )
}

/// Refused: there are no other runners
#[utoipa::path(
    post, path = "/api/internal/runners/register", tag = "health",
    responses((status = 403, description = "This ashd takes no runners", body = ErrorBody))
)]
pub async fn register() -> ApiError {
    refused()
}

/// Refused: there are no other runners
#[utoipa::path(
    post, path = "/api/internal/runners/heartbeat", tag = "health",
    responses((status = 403, description = "This ashd takes no runners", body = ErrorBody))
)]
pub async fn heartbeat() -> ApiError {
    refused()
}

/// Refused: there are no other runners
#[utoipa::path(
    post, path = "/api/internal/runners/deregister", tag = "health",
    responses((status = 403, description = "This ashd takes no runners", body = ErrorBody))
)]
pub async fn deregister() -> ApiError {
    refused()
}
