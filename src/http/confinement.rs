//! `/api/sessions/{id}/confinement`: what the kernel was measured to enforce.

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

/// The measured confinement of a session
///
/// A probe runs inside the sandbox, by the same path as Claude Code. While the session is frozen or has no process, the report of its
/// last measurement is answered: asking wakes nothing. `measuredAt` tells when it was.
#[utoipa::path(
    get, path = "/api/sessions/{id}/confinement", tag = "sessions", params(("id" = uuid::Uuid, Path)),
    responses(
        (status = 200, body = ConfinementBody),
        (status = 400, description = "Never started", body = ErrorBody),
        (status = 404, description = "Session not found", body = ErrorBody),
    )
)]
pub async fn get(
    State(state): State<AppState>,
    OwnSession(session): OwnSession,
) -> Result<Json<ConfinementBody>, ApiError> {
    Ok(Json(ConfinementBody { confinement: state.sessions.confinement(&session).await? }))
}
