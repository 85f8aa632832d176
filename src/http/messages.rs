//! `/api/sessions/{id}/messages`: send a message and stream the answer, or read the history.

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::AppState;
use super::args::{Args, OwnSession};
use super::body::{JsonBody, MIB};
use super::error::{ApiError, ErrorBody};
use super::idempotency::{self, Once};
use super::rows;
use crate::sessions::api::new_message::NewMessage;
use crate::sessions::{EventId, FrameStream, SendMessage};
use crate::store;
use ash_model::iso;

/// One message of the history.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Message)]
pub struct MessageView {
    pub id: Uuid,
    pub session_id: Uuid,
    #[schema(example = "default")]
    pub tenant_id: String,
    /// `user` or `assistant`.
    #[schema(example = "user")]
    pub role: String,
    /// A JSON text: `{"type":"user","content":...}` as sent, or Claude Code's own message.
    #[schema(example = r#"{"type":"user","content":"What files are in the workspace?"}"#)]
    pub content: String,
    /// Starts at 1, without gaps.
    pub sequence: i64,
    #[schema(example = "2026-01-15T10:00:00.000Z")]
    pub created_at: String,
}

impl From<store::Message> for MessageView {
    fn from(message: store::Message) -> Self {
        Self {
            id: message.id,
            session_id: message.session,
            tenant_id: message.tenant.to_string(),
            role: message.role,
            content: message.content,
            sequence: message.sequence,
            created_at: iso(message.created_at),
        }
    }
}

#[derive(Debug, Serialize, ToSchema)]
pub struct MessagesBody {
    pub messages: Vec<MessageView>,
    /// Present and true when the page ended at 8 MiB of content before its limit; continue with
    /// `after` (or `before`).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

/// Send a message and stream the answer (SSE)
///
/// Frames are `event: K`, `data: <one JSON object>`. `message` carries Claude Code's messages
/// unchanged; `error` reports a failure during the stream; `done` is always last.
#[utoipa::path(
    post, path = "/api/sessions/{id}/messages", tag = "messages", params(("id" = Uuid, Path)),
    request_body(content = SendMessage, example = json!({"content": "What files are in the workspace?"})),
    responses(
        (status = 200, description = "The turn, up to `done`", body = String, content_type = "text/event-stream",
            example = "event: message\ndata: {\"type\":\"assistant\"}\n\nevent: done\ndata: {\"sessionId\":\"a1b2c3d4\"}\n\n"),
        (status = 400, description = "Bad content, or the session is not active", body = ErrorBody),
        (status = 404, description = "Session not found", body = ErrorBody),
        (status = 409, description = "A turn is already running", body = ErrorBody),
        (status = 413, description = "Larger than 50 MiB, or more than 31 MiB of text, the limit of the model", body = ErrorBody),
    )
)]
pub async fn send(
    State(state): State<AppState>,
    OwnSession(session): OwnSession,
    once: Option<Extension<Once>>,
    body: JsonBody<SendMessage, { 50 * MIB }>,
) -> Result<Response, ApiError> {
    let message = NewMessage::read(body.value)?;
    let Some(Extension(once)) = once else {
        return Ok(event_stream(state.sessions.send(&session, message).await?));
    };
    // Of this session: the same key with another path is refused earlier.
    // None of that turn: the daemon was killed before it was sent.
    if let Some((_, turn)) = once.turn
        && let Some(frames) = state.sessions.turn(&session, turn, message.partial).await?
    {
        let mut response = event_stream(frames);
        idempotency::mark(&mut response);
        return Ok(response);
    }
    let begun = |turn| state.store.idempotency_turn(session.tenant(), &once.key, session.id(), turn);
    Ok(event_stream(state.sessions.send_noting(&session, message, begun).await?))
}

/// Follow a session (SSE)
///
/// With `Last-Event-ID` (or `after`), repeats all frames after that one, then continues live.
/// Otherwise starts now. It spans turns and does not end by itself. Any number of clients can
/// follow.
#[utoipa::path(
    get, path = "/api/sessions/{id}/stream", tag = "messages",
    params(
        ("id" = Uuid, Path),
        ("Last-Event-ID" = Option<String>, Header, description = "The `id:` of the last frame received"),
        ("after" = Option<String>, Query, description = "The same, for clients that cannot set headers", example = "3:512:2"),
        ("includePartialMessages" = Option<bool>, Query, description = "Include stream_event and the deltas. When absent, the turn of \
            the named frame has them if it was sent with them"),
    ),
    responses(
        (status = 200, description = "Frames", body = String, content_type = "text/event-stream"),
        (status = 400, description = "Not an event id of this session", body = ErrorBody),
        (status = 404, description = "Session not found", body = ErrorBody),
    )
)]
pub async fn stream(
    State(state): State<AppState>,
    OwnSession(session): OwnSession,
    args: Args,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let from = match headers.get("last-event-id") {
        // Browsers send it on every reconnect; it is empty when no frame had an id.
        Some(value) => (!value.is_empty()).then(|| ("Last-Event-ID", value.to_str().unwrap_or("?"))),
        None => args.text("after").map(|text| ("after", text)),
    };
    let from = from
        .map(|(name, text)| text.parse::<EventId>().map_err(|why| ApiError::bad_request(format!("{name}: {why}"))))
        .transpose()?;
    let partial =
        args.text("includePartialMessages").map(|_| args.flag("includePartialMessages", false)).transpose()?;
    Ok(event_stream(state.sessions.stream(&session, from, partial).await?))
}

/// Sends frames that are complete.
pub fn event_stream(frames: FrameStream) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        // Prevents nginx from buffering the frames.
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (headers, Body::from_stream(frames)).into_response()
}

/// List the messages of a session
///
/// A page ends early at 8 MiB of content, with `truncated`; a larger message is a page of its own.
#[utoipa::path(
    get, path = "/api/sessions/{id}/messages", tag = "messages",
    params(
        ("id" = Uuid, Path),
        ("limit" = Option<i64>, Query, description = "Maximum number of messages, default 100", minimum = 1, maximum = 1000),
        ("after" = Option<i64>, Query, description = "Only those with a greater sequence", minimum = 0),
        ("before" = Option<i64>, Query, description = "Only those with a smaller sequence", minimum = 1),
        ("order" = Option<String>, Query, description = "`asc` (the default), or `desc` for newest first"),
    ),
    responses(
        (status = 200, body = MessagesBody),
        (status = 400, body = ErrorBody),
        (status = 404, description = "Session not found", body = ErrorBody),
    )
)]
pub async fn list(
    State(state): State<AppState>,
    OwnSession(session): OwnSession,
    args: Args,
) -> Result<Response, ApiError> {
    let window = args.window(100)?;
    let places = state.store.message_places(session.tenant(), session.id(), window).await?;
    let (places, truncated) = rows::page(places);
    rows::list::<store::Message, MessageView>(&state.store, session.tenant(), "messages", places, rows::tail(truncated))
        .await
}
