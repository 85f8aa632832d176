//! `/api/sessions/{id}/events`: the timeline.

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::AppState;
use super::args::{Args, OwnSession};
use super::error::{ApiError, ErrorBody};
use super::rows;
use crate::store;
use ash_model::iso;

/// Types of the timeline. Published clients reject any other. ashd never emits `mcp_status`, so a
/// list of it is empty.
const TYPES: [&str; 8] =
    ["lifecycle", "text", "tool_start", "tool_result", "reasoning", "error", "turn_complete", "mcp_status"];

/// One event of the timeline.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Event)]
pub struct EventView {
    pub id: Uuid,
    pub session_id: Uuid,
    #[schema(example = "default")]
    pub tenant_id: String,
    #[serde(rename = "type")]
    #[schema(example = "lifecycle")]
    pub kind: String,
    /// A JSON text.
    #[schema(example = r#"{"action":"created"}"#)]
    pub data: String,
    /// Starts at 1, without gaps.
    pub sequence: i64,
    #[schema(example = "2026-01-15T10:00:00.000Z")]
    pub created_at: String,
}

impl From<store::Event> for EventView {
    fn from(event: store::Event) -> Self {
        Self {
            id: event.id,
            session_id: event.session,
            tenant_id: event.tenant.to_string(),
            kind: event.kind,
            data: event.data,
            sequence: event.sequence,
            created_at: iso(event.created_at),
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub struct EventsBody {
    pub events: Vec<EventView>,
    /// Present and true when the page ended at 8 MiB of data before its limit; continue with
    /// `after` (or `before`).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

/// List the timeline of a session
///
/// A page ends early at 8 MiB of data, with `truncated`; a larger event is a page of its own.
#[utoipa::path(
    get, path = "/api/sessions/{id}/events", tag = "messages",
    params(
        ("id" = Uuid, Path),
        ("limit" = Option<i64>, Query, description = "Maximum number of events, default 200", minimum = 1, maximum = 1000),
        ("after" = Option<i64>, Query, description = "Only those with a greater sequence", minimum = 0),
        ("before" = Option<i64>, Query, description = "Only those with a smaller sequence", minimum = 1),
        ("order" = Option<String>, Query, description = "`asc` (the default), or `desc` for newest first"),
        ("type" = Option<String>, Query, description = "Only events of this type"),
    ),
    responses(
        (status = 200, body = EventsBody),
        (status = 400, body = ErrorBody),
        (status = 404, description = "Session not found", body = ErrorBody),
    )
)]
pub async fn list(
    State(state): State<AppState>,
    OwnSession(session): OwnSession,
    args: Args,
) -> Result<Response, ApiError> {
    let window = args.window(200)?;
    let kind = args.one_of("type", &TYPES)?;
    let places = state.store.event_places(session.tenant(), session.id(), window, kind).await?;
    let (places, truncated) = rows::page(places);
    rows::list::<store::Event, EventView>(&state.store, session.tenant(), "events", places, rows::tail(truncated)).await
}
