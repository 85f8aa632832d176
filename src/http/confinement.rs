//! `/api/sessions/{id}/confinement`: what the kernel enforces, as measured.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::AppState;
use super::args::OwnSession;
use super::error::{ApiError, ErrorBody};
use crate::sessions::Confinement;

/// The measured confinement of one session.
#[derive(Debug, Serialize, ToSchema)]
pub struct ConfinementBody {
    pub confinement: Confinement,
}

/// Get the measured confinement of a session
///
/// A probe runs inside the sandbox, by the same path as Claude Code. For a session that is frozen
/// or has no process, the answer is the last report: the request wakes nothing. `measuredAt` is the
/// time of the measurement.
#[utoipa::path(
    get, path = "/api/sessions/{id}/confinement", tag = "sessions", params(("id" = uuid::Uuid, Path)),
    responses(
        (status = 200, body = ConfinementBody),
        (status = 400, description = "The session never started", body = ErrorBody),
        (status = 404, description = "Session not found", body = ErrorBody),
    )
)]
pub async fn get(
    State(state): State<AppState>,
    OwnSession(session): OwnSession,
) -> Result<Json<ConfinementBody>, ApiError> {
    Ok(Json(ConfinementBody { confinement: state.sessions.confinement(&session).await? }))
}
