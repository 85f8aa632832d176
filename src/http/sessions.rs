//! `/api/sessions`. [`crate::sessions`] defines the states and their transitions.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::AppState;
use super::args::{Args, OwnSession};
use super::auth::Caller;
use super::body::{JsonBody, MIB};
use super::error::{ApiError, ErrorBody};
use super::rows;
use crate::sessions::claude::PermissionMode;
use crate::sessions::{CreateSession, PatchConfig};
use crate::store;
use ash_model::skipped::{SkippedEntry, is_zero};
use ash_model::{RawJson, SessionStatus, Skipped, iso};

/// Maximum and default of `limit`.
const MAX_LISTED: i64 = 10_000;

/// A session as clients see it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Session)]
pub struct SessionView {
    pub id: Uuid,
    #[schema(example = "default")]
    pub tenant_id: String,
    #[schema(example = "my-agent")]
    pub agent_name: String,
    pub sandbox_id: Uuid,
    pub status: SessionStatus,
    pub model: Option<String>,
    /// Set by `PATCH .../config`.
    #[schema(value_type = Option<Object>)]
    pub config: Option<RawJson>,
    /// Always null: one host runs everything.
    pub runner_id: Option<String>,
    pub parent_session_id: Option<Uuid>,
    #[schema(example = "2026-01-15T10:00:00.000Z")]
    pub created_at: String,
    #[schema(example = "2026-01-15T10:00:00.000Z")]
    pub last_active_at: String,
    /// Why the session is in state `error`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl From<store::Session> for SessionView {
    fn from(session: store::Session) -> Self {
        Self {
            id: session.id,
            tenant_id: session.tenant.to_string(),
            agent_name: session.agent_name,
            // A session has one sandbox at a time, with the same id.
            sandbox_id: session.id,
            status: session.status,
            model: session.model,
            config: session.config,
            runner_id: None,
            parent_session_id: session.parent,
            created_at: iso(session.created_at),
            last_active_at: iso(session.last_active_at),
            error: session.error,
        }
    }
}

/// One session.
#[derive(Debug, Serialize, ToSchema)]
pub struct SessionBody {
    pub session: SessionView,
}

impl SessionBody {
    fn json(session: store::Session) -> Json<Self> {
        Json(Self { session: session.into() })
    }
}

/// The copy of a session.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ForkBody {
    pub session: SessionView,
    /// Files that the copy lacks or has changed: sockets, named pipes, devices, setuid bits. Absent
    /// when there are none. Paths are relative to the workspace, or start with `/home/agent/`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<SkippedEntry>,
    /// How many more there are: at most 100 are listed.
    #[serde(skip_serializing_if = "is_zero")]
    pub skipped_more: u64,
}

/// Sessions, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct SessionsBody {
    pub sessions: Vec<SessionView>,
    /// Number of all matching sessions, with `includeTotal=true`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
}

/// Open a session
///
/// Answers when the sandbox and Claude Code are ready.
#[utoipa::path(
    post, path = "/api/sessions", tag = "sessions",
    request_body(content = CreateSession, example = json!({"agent": "my-agent"})),
    responses(
        (status = 201, body = SessionBody),
        (status = 404, description = "No such agent", body = ErrorBody),
        (status = 422, description = "The agent's directory is gone, or its install.sh failed", body = ErrorBody),
        (status = 503, description = "Sandbox capacity reached; see Retry-After", body = ErrorBody),
    )
)]
pub async fn create(
    State(state): State<AppState>,
    caller: Caller,
    body: JsonBody<CreateSession, { 4 * MIB }>,
) -> Result<(StatusCode, Json<SessionBody>), ApiError> {
    check_new(&body.value)?;
    let session = state.sessions.create(&caller.tenant, body.value).await?;
    Ok((StatusCode::CREATED, SessionBody::json(session)))
}

/// Checks that need no other component.
fn check_new(body: &CreateSession) -> Result<(), ApiError> {
    if body.agent.is_empty() {
        return Err(ApiError::bad_request("agent is required: the name of a deployed agent"));
    }
    let mode = body.permission_mode.as_deref().map(str::parse::<PermissionMode>).transpose();
    mode.map_err(ApiError::bad_request)?;
    Ok(())
}

/// List sessions, newest first
#[utoipa::path(
    get, path = "/api/sessions", tag = "sessions",
    params(
        ("agent" = Option<String>, Query, description = "Only sessions of this agent"),
        ("status" = Option<SessionStatus>, Query, description = "Only sessions in this state"),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 10_000),
        ("offset" = Option<i64>, Query, minimum = 0),
        ("includeTotal" = Option<bool>, Query, description = "Count all matching sessions"),
    ),
    responses((status = 200, body = SessionsBody), (status = 400, body = ErrorBody))
)]
pub async fn list(State(state): State<AppState>, caller: Caller, args: Args) -> Result<Response, ApiError> {
    let limit = args.int("limit", 1..=MAX_LISTED)?.unwrap_or(MAX_LISTED);
    let offset = args.int("offset", 0..=i64::from(u32::MAX))?.unwrap_or(0);
    let filter = store::SessionFilter {
        agent: args.text("agent").map(str::to_owned),
        status: args.word("status")?,
        limit: u32::try_from(limit).ok(),
        offset: u32::try_from(offset).unwrap_or(u32::MAX),
    };
    let total = if args.flag("includeTotal", false)? {
        format!(",\"total\":{}", state.store.session_count(&caller.tenant, &filter).await?)
    } else {
        String::new()
    };
    let places = state.store.session_places(&caller.tenant, &filter).await?;
    rows::list::<store::Session, SessionView>(&state.store, &caller.tenant, "sessions", places, &total).await
}

/// Get a session
#[utoipa::path(
    get, path = "/api/sessions/{id}", tag = "sessions", params(("id" = Uuid, Path)),
    responses((status = 200, body = SessionBody), (status = 404, description = "Session not found", body = ErrorBody))
)]
pub async fn get(
    State(state): State<AppState>,
    OwnSession(session): OwnSession,
) -> Result<Json<SessionBody>, ApiError> {
    Ok(SessionBody::json(state.sessions.row(&session).await?))
}

/// Pause a session
///
/// Freezes its processes; nothing is lost.
#[utoipa::path(
    post, path = "/api/sessions/{id}/pause", tag = "sessions", params(("id" = Uuid, Path)),
    responses(
        (status = 200, body = SessionBody),
        (status = 400, description = "Cannot pause session with this status", body = ErrorBody),
        (status = 404, description = "Session not found", body = ErrorBody),
    )
)]
pub async fn pause(
    State(state): State<AppState>,
    OwnSession(session): OwnSession,
) -> Result<Json<SessionBody>, ApiError> {
    Ok(SessionBody::json(state.sessions.pause(&session).await?))
}

/// Resume a paused, stopped or failed session
#[utoipa::path(
    post, path = "/api/sessions/{id}/resume", tag = "sessions", params(("id" = Uuid, Path)),
    responses(
        (status = 200, body = SessionBody),
        (status = 404, description = "Session not found", body = ErrorBody),
        (status = 410, description = "The session has ended", body = ErrorBody),
        (status = 503, description = "Sandbox capacity reached; see Retry-After", body = ErrorBody),
    )
)]
pub async fn resume(
    State(state): State<AppState>,
    OwnSession(session): OwnSession,
) -> Result<Json<SessionBody>, ApiError> {
    Ok(SessionBody::json(state.sessions.resume(&session).await?))
}

/// Stop a session
///
/// Ends its processes and keeps its files and conversation.
#[utoipa::path(
    post, path = "/api/sessions/{id}/stop", tag = "sessions", params(("id" = Uuid, Path)),
    responses(
        (status = 200, body = SessionBody),
        (status = 400, description = "Cannot stop session with this status", body = ErrorBody),
        (status = 404, description = "Session not found", body = ErrorBody),
    )
)]
pub async fn stop(
    State(state): State<AppState>,
    OwnSession(session): OwnSession,
) -> Result<Json<SessionBody>, ApiError> {
    Ok(SessionBody::json(state.sessions.stop(&session).await?))
}

/// Fork a session
///
/// The copy has its messages, files and conversation, and is paused.
#[utoipa::path(
    post, path = "/api/sessions/{id}/fork", tag = "sessions", params(("id" = Uuid, Path)),
    responses(
        (status = 201, body = ForkBody),
        (status = 400, description = "Its files are no longer kept, or exceed its limits", body = ErrorBody),
        (status = 404, description = "Session not found", body = ErrorBody),
    )
)]
pub async fn fork(
    State(state): State<AppState>,
    OwnSession(session): OwnSession,
) -> Result<(StatusCode, Json<ForkBody>), ApiError> {
    let (session, Skipped { entries: skipped, more: skipped_more }) = state.sessions.fork(&session).await?;
    Ok((StatusCode::CREATED, Json(ForkBody { session: session.into(), skipped, skipped_more })))
}

/// Interrupt the running turn; the session stays active
#[utoipa::path(
    post, path = "/api/sessions/{id}/interrupt", tag = "sessions", params(("id" = Uuid, Path)),
    responses((status = 200, body = SessionBody), (status = 404, description = "Session not found", body = ErrorBody))
)]
pub async fn interrupt(
    State(state): State<AppState>,
    OwnSession(session): OwnSession,
) -> Result<Json<SessionBody>, ApiError> {
    Ok(SessionBody::json(state.sessions.interrupt(&session).await?))
}

/// Change model or tools from the next turn on
#[utoipa::path(
    patch, path = "/api/sessions/{id}/config", tag = "sessions", params(("id" = Uuid, Path)),
    request_body(content = PatchConfig, example = json!({"allowedTools": ["Read", "Bash"]})),
    responses(
        (status = 200, body = SessionBody),
        (status = 400, body = ErrorBody),
        (status = 404, description = "Session not found", body = ErrorBody),
    )
)]
pub async fn patch_config(
    State(state): State<AppState>,
    OwnSession(session): OwnSession,
    body: JsonBody<PatchConfig>,
) -> Result<Json<SessionBody>, ApiError> {
    if body.value.subagents.as_ref().is_some_and(|value| !value.is_object()) {
        return Err(ApiError::bad_request("subagents must be an object of agent definitions"));
    }
    Ok(SessionBody::json(state.sessions.patch_config(&session, body.value).await?))
}

/// End a session
///
/// Its files stay readable for a while, its messages for ever, unless `purge` is true: then only
/// the record of its usage stays. Ending an ended session gives the same answer again.
#[utoipa::path(
    delete, path = "/api/sessions/{id}", tag = "sessions",
    params(
        ("id" = Uuid, Path),
        ("purge" = Option<bool>, Query, description = "Also remove its files, messages, timeline and attachments at once; this cannot be undone"),
    ),
    responses((status = 200, body = SessionBody), (status = 404, description = "Session not found", body = ErrorBody))
)]
pub async fn end(
    State(state): State<AppState>,
    OwnSession(session): OwnSession,
    args: Args,
) -> Result<Json<SessionBody>, ApiError> {
    if args.flag("purge", false)? {
        return Ok(SessionBody::json(state.sessions.purge(&session).await?));
    }
    Ok(SessionBody::json(state.sessions.end(&session).await?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Session, SessionFilter, Store};
    use ash_model::TenantId;

    /// SQLite writes the rows of a list; the type writes a single session. Both must be equal.
    #[tokio::test]
    async fn a_session_in_a_list_is_what_it_is_alone() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        let tenant = TenantId::default_tenant();
        let odd = "quote \" back\\slash \u{0}\u{1}\u{8}\u{c}\n\r\t\u{1f}\u{7f} é\u{2028}🎉 </script> '";
        let mut expected = Vec::new();
        for (n, status) in SessionStatus::ALL.into_iter().enumerate() {
            for full in [false, true] {
                let mut session = Session::new(Uuid::new_v4(), tenant.clone(), "agent-1", status);
                session.created_at = 1_000 + i64::try_from(expected.len()).unwrap();
                session.last_active_at =
                    [0, 59_999, 1_764_453_600_001, 4_102_444_799_999, 951_782_399_999, 86_399_500][n];
                if full {
                    (session.error, session.model) = (Some(odd.to_owned()), Some(odd.to_owned()));
                    session.agent_name = odd.replace('\0', "");
                    let config = r#"{"z":1e999,"a":["\ud99c", {"b":  2}],"z":[[]]}"#;
                    session.config = Some(RawJson::parse(config).unwrap());
                    session.parent = Some(Uuid::new_v4());
                }
                store.session_insert(&session).await.unwrap();
                expected.push(serde_json::to_string(&SessionView::from(session)).unwrap());
            }
        }
        store
            .session_insert(&Session::new(Uuid::new_v4(), "acme".parse().unwrap(), "a", SessionStatus::Active))
            .await
            .unwrap();
        expected.reverse();
        let places = store.session_places(&tenant, &SessionFilter::default()).await.unwrap();
        let answer = rows::list::<Session, SessionView>(&store, &tenant, "sessions", places.clone(), "").await.unwrap();
        let body = axum::body::to_bytes(answer.into_body(), usize::MAX).await.unwrap();
        let list = format!("{{\"sessions\":[{}]}}", expected.join(","));
        assert_eq!(String::from_utf8(body.to_vec()).unwrap(), list);
        // In the requested order, and only of this tenant.
        let two = store.lines_at::<Session>(&tenant, &[places[3], places[1]]).await.unwrap();
        assert_eq!(two, format!("{},{}", expected[3], expected[1]));
        assert_eq!(store.lines_at::<Session>(&"acme".parse().unwrap(), &places).await.unwrap(), "");
    }

    #[test]
    fn a_new_session_is_checked_by_field() {
        for (json, text) in [
            ("{}", "agent is required: the name of a deployed agent"),
            (
                r#"{"agent":"a","permissionMode":"x"}"#,
                "permissionMode must be one of bypassPermissions, permissionsByAgent, default, not \"x\"",
            ),
        ] {
            let body: CreateSession = serde_json::from_str(json).unwrap();
            assert_eq!(check_new(&body).unwrap_err().text(), text, "{json}");
        }
        let body = serde_json::from_str(r#"{"agent":"a","mcpServers":{"m":{"url":"http://x"}}}"#).unwrap();
        assert!(check_new(&body).is_ok());
    }
}
