//! `POST /api/sessions/:id/exec`. [`crate::sessions::api::exec`] runs the command.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::AppState;
use super::args::OwnSession;
use super::body::{JsonBody, MIB};
use super::error::{ApiError, ErrorBody};
use crate::sessions::api::exec::{DEFAULT_TIMEOUT_MS, ExecResult, MAX_TIMEOUT_MS};

/// Body of `POST .../exec`.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct ExecCommand {
    /// A line for `/bin/bash -c`, run in /workspace.
    pub command: String,
    /// Milliseconds until the command and all its descendants are killed. Default: 30000.
    #[schema(minimum = 1, maximum = 300_000)]
    pub timeout: Option<i64>,
}

/// How the command ended.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = ExecResult)]
pub struct ExecBody {
    /// 128 + n for death by signal n; 124 at the timeout.
    #[schema(example = 0)]
    pub exit_code: i32,
    /// At most 1 MiB; truncated output ends with a note.
    #[schema(example = "CLAUDE.md\n")]
    pub stdout: String,
    #[schema(example = "")]
    pub stderr: String,
    /// Present when the timeout ended the command.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub timed_out: bool,
    /// Present when stdout or stderr was truncated.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

impl From<ExecResult> for ExecBody {
    fn from(result: ExecResult) -> Self {
        let ExecResult { exit_code, stdout, stderr, timed_out, truncated } = result;
        Self { exit_code, stdout, stderr, timed_out, truncated }
    }
}

/// Run a command in the sandbox, beside a running turn
///
/// Same confinement, limits and environment as Claude Code. Background processes of the command
/// continue.
#[utoipa::path(
    post, path = "/api/sessions/{id}/exec", tag = "sessions", params(("id" = Uuid, Path)),
    request_body(content = ExecCommand, example = json!({"command": "ls", "timeout": 30_000})),
    responses(
        (status = 200, body = ExecBody),
        (status = 400, description = "The session is not active, or the command is refused", body = ErrorBody),
        (status = 404, description = "Session not found", body = ErrorBody),
        (status = 429, description = "The tenant already runs 64 commands; see Retry-After", body = ErrorBody),
        (status = 503, description = "Too many commands are running; see Retry-After", body = ErrorBody),
    )
)]
pub async fn exec(
    State(state): State<AppState>,
    OwnSession(session): OwnSession,
    body: JsonBody<ExecCommand, MIB>,
) -> Result<Json<ExecBody>, ApiError> {
    let timeout = timeout(body.value.timeout)?;
    let result = state.sessions.exec(&session, &body.value.command, timeout).await?;
    Ok(Json(result.into()))
}

fn timeout(given: Option<i64>) -> Result<u64, ApiError> {
    let Some(given) = given else { return Ok(DEFAULT_TIMEOUT_MS) };
    u64::try_from(given).ok().filter(|ms| (1..=MAX_TIMEOUT_MS).contains(ms)).ok_or_else(|| {
        ApiError::bad_request(format!("timeout must be milliseconds from 1 to {MAX_TIMEOUT_MS}, not {given}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_keep_their_bounds() {
        assert_eq!(timeout(None).unwrap(), 30_000);
        for (ms, fits) in [(1, true), (300_000, true), (0, false), (-5, false), (300_001, false), (i64::MAX, false)] {
            assert_eq!(timeout(Some(ms)).is_ok(), fits, "{ms}");
        }
    }
}
