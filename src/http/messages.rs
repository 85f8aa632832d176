//! `/api/sessions/{id}/messages`: send one and stream the answer, or read the history.

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::AppState;
use super::args::{Args, OwnSession};
use super::body::{JsonBody, MIB};
use super::error::{ApiError, ErrorBody};
use super::idempotency::{self, Once};
use crate::model::iso;
use crate::sessions::{EventId, FrameStream, SendMessage};
use crate::store;

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
    /// A JSON text: `{"type":"user","content":...}` as it was sent, or Claude Code's own message.
    #[schema(example = r#"{"type":"user","content":"What files are in the workspace?"}"#)]
    pub content: String,
    /// From 1, without gaps.
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

/// Messages in their order.
#[derive(Debug, Serialize, ToSchema)]
pub struct MessagesBody {
    pub messages: Vec<MessageView>,
}

/// Send a message and stream the answer (SSE)
///
/// Frames are `event: K`, `data: <one JSON object>`. `message` carries Claude Code's own messages as they came; `error`
/// says what failed in mid-stream; `done` is always last.
#[utoipa::path(
    post, path = "/api/sessions/{id}/messages", tag = "messages", params(("id" = Uuid, Path)),
    request_body(content = SendMessage, example = json!({"content": "What files are in the workspace?"})),
    responses(
        (status = 200, description = "The turn, until `done`", body = String, content_type = "text/event-stream",
            example = "event: message\ndata: {\"type\":\"assistant\"}\n\nevent: done\ndata: {\"sessionId\":\"a1b2c3d4\"}\n\n"),
        (status = 400, description = "Bad content, or the session is not active", body = ErrorBody),
        (status = 404, description = "Session not found", body = ErrorBody),
        (status = 409, description = "A turn is already running", body = ErrorBody),
        (status = 413, description = "Larger than 50 MiB", body = ErrorBody),
    )
)]
pub async fn send(
    State(state): State<AppState>,
    OwnSession(session): OwnSession,
    once: Option<Extension<Once>>,
    body: JsonBody<SendMessage, { 50 * MIB }>,
) -> Result<Response, ApiError> {
    check(&body.value)?;
    let Some(Extension(once)) = once else {
        return Ok(event_stream(state.sessions.send(&session, body.value).await?));
    };
    // Of this session: the same key with another path is refused before.
    if let Some((_, turn)) = once.turn {
        let partial = body.value.include_partial_messages;
        if let Some(frames) = state.sessions.turn(&session, turn, partial).await? {
            let mut response = event_stream(frames);
            idempotency::mark(&mut response);
            return Ok(response);
        }
        // The daemon was killed before it was sent.
    }
    let begun = |turn| state.store.idempotency_turn(session.tenant(), &once.key, session.id(), turn);
    Ok(event_stream(state.sessions.send_noting(&session, body.value, begun).await?))
}

/// Follow a session (SSE)
///
/// With `Last-Event-ID` (or `after`) everything after that frame again, then live; without, from now on. It goes over
/// all turns and has no end of its own. Any number of clients may follow.
#[utoipa::path(
    get, path = "/api/sessions/{id}/stream", tag = "messages",
    params(
        ("id" = Uuid, Path),
        ("Last-Event-ID" = Option<String>, Header, description = "The `id:` of the last frame that arrived"),
        ("after" = Option<String>, Query, description = "The same, for clients that cannot set headers", example = "3:512:2"),
        ("includePartialMessages" = Option<bool>, Query, description = "Also stream_event and the deltas"),
    ),
    responses(
        (status = 200, description = "Frames", body = String, content_type = "text/event-stream"),
        (status = 400, description = "No event id of this session", body = ErrorBody),
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
        // Browsers send it on every reconnect, empty when no frame had an id.
        Some(value) => (!value.is_empty()).then(|| ("Last-Event-ID", value.to_str().unwrap_or("?"))),
        None => args.text("after").map(|text| ("after", text)),
    };
    let from = from
        .map(|(name, text)| text.parse::<EventId>().map_err(|why| ApiError::bad_request(format!("{name}: {why}"))))
        .transpose()?;
    let partial = args.flag("includePartialMessages", false)?;
    Ok(event_stream(state.sessions.stream(&session, from, partial).await?))
}

/// Frames that are ready, on their way as they are.
pub fn event_stream(frames: FrameStream) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        // nginx would collect the frames otherwise.
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (headers, Body::from_stream(frames)).into_response()
}

/// Kinds of content blocks that a client may send (contract §6).
const BLOCKS: [&str; 3] = ["text", "image", "document"];

fn check(body: &SendMessage) -> Result<(), ApiError> {
    let wrong = |text: String| Err(ApiError::bad_request(text));
    match &body.content {
        Value::Null => return wrong("content is required: a string or an array of content blocks".into()),
        Value::String(text) if text.is_empty() => return wrong("content must not be empty".into()),
        Value::String(_) => {}
        Value::Array(blocks) if blocks.is_empty() => return wrong("content must not be empty".into()),
        Value::Array(blocks) => {
            for (index, block) in blocks.iter().enumerate() {
                match block.get("type").and_then(Value::as_str) {
                    Some(kind) if BLOCKS.contains(&kind) => {}
                    Some(kind) => {
                        return wrong(format!("content[{index}].type must be text, image or document, not \"{kind}\""));
                    }
                    None => return wrong(format!("content[{index}] must be an object with a type")),
                }
            }
        }
        other => {
            let what = match other {
                Value::Object(_) => "an object",
                Value::Number(_) => "a number",
                _ => "a boolean",
            };
            return wrong(format!("content must be a string or an array of content blocks, not {what}"));
        }
    }
    if body.max_turns == Some(0) {
        return wrong("maxTurns must be 1 or more".into());
    }
    if body.max_budget_usd.is_some_and(|budget| budget <= 0.0) {
        return wrong("maxBudgetUsd must be more than 0".into());
    }
    Ok(())
}

/// The history of a session
#[utoipa::path(
    get, path = "/api/sessions/{id}/messages", tag = "messages",
    params(
        ("id" = Uuid, Path),
        ("limit" = Option<i64>, Query, description = "At most this many, default 100", minimum = 1, maximum = 1000),
        ("after" = Option<i64>, Query, description = "Only those with a greater sequence", minimum = 0),
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
) -> Result<Json<MessagesBody>, ApiError> {
    let (limit, after) = args.page(100)?;
    let messages = state.store.messages(session.tenant(), session.id(), limit, after).await?;
    Ok(Json(MessagesBody { messages: messages.into_iter().map(Into::into).collect() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_a_string_or_blocks() {
        for (json, text) in [
            ("{}", "content is required: a string or an array of content blocks"),
            (r#"{"content":""}"#, "content must not be empty"),
            (r#"{"content":[]}"#, "content must not be empty"),
            (r#"{"content":5}"#, "content must be a string or an array of content blocks, not a number"),
            (r#"{"content":{}}"#, "content must be a string or an array of content blocks, not an object"),
            (r#"{"content":true}"#, "content must be a string or an array of content blocks, not a boolean"),
            (r#"{"content":["x"]}"#, "content[0] must be an object with a type"),
            (
                r#"{"content":[{"type":"text","text":"a"},{"type":"tool_use"}]}"#,
                "content[1].type must be text, image or document, not \"tool_use\"",
            ),
            (r#"{"content":"x","maxTurns":0}"#, "maxTurns must be 1 or more"),
            (r#"{"content":"x","maxBudgetUsd":-1}"#, "maxBudgetUsd must be more than 0"),
        ] {
            let body: SendMessage = serde_json::from_str(json).unwrap();
            assert_eq!(check(&body).unwrap_err().text(), text, "{json}");
        }
        for json in [r#"{"content":"5"}"#, r#"{"content":[{"type":"image","source":{}}],"maxTurns":1}"#] {
            assert!(check(&serde_json::from_str(json).unwrap()).is_ok(), "{json}");
        }
    }
}
