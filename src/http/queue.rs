//! `/api/queue`: prompts that need no open connection. [`crate::sessions::api::prompt_queue`]
//! executes them.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::AppState;
use super::args::{Args, Id};
use super::auth::Caller;
use super::body::{JsonBody, MIB};
use super::error::{ApiError, ErrorBody};
use super::rows;
use crate::sessions::api::prompt_queue::NewJob;
use crate::store::{QueueItem, QueueStatus};
use ash_model::iso;

const MAX_LISTED: i64 = 1000;
const LISTED: i64 = 50;
/// Longest prompt, in bytes.
const MAX_PROMPT: usize = MIB;
const MAX_RETRIES: i64 = 100;
const RETRIES: i64 = 3;

/// Body of the POST.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NewQueueItem {
    #[schema(example = "my-agent")]
    pub agent_name: String,
    #[schema(example = "Summarise the repository")]
    pub prompt: String,
    /// The session that gets the prompt. Default: a new session for each item.
    pub session_id: Option<Uuid>,
    /// Higher values run first. Default: 0.
    pub priority: Option<i64>,
    /// Retries after a failed attempt, 0 to 100. Default: 3.
    pub max_retries: Option<i64>,
}

/// A prompt in the queue.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = QueueItem)]
pub struct QueueItemView {
    pub id: Uuid,
    pub tenant_id: String,
    pub agent_name: String,
    /// The session of the item.
    pub session_id: Option<Uuid>,
    pub prompt: String,
    /// pending, processing, completed, failed or cancelled.
    #[schema(example = "pending")]
    pub status: &'static str,
    pub priority: i64,
    pub retry_count: u64,
    pub max_retries: u64,
    /// claude's answer, when completed.
    pub result: Option<String>,
    /// Why the last attempt failed.
    pub error: Option<String>,
    pub created_at: String,
    pub started_at: Option<String>,
    pub completed_at: Option<String>,
}

impl From<QueueItem> for QueueItemView {
    fn from(item: QueueItem) -> Self {
        Self {
            id: item.id,
            tenant_id: item.tenant.to_string(),
            agent_name: item.agent_name,
            session_id: item.session.or(item.wanted),
            prompt: item.prompt,
            status: item.status.as_str(),
            priority: item.priority,
            retry_count: item.retry_count,
            max_retries: item.max_retries,
            result: item.result,
            error: item.error,
            created_at: iso(item.created_at),
            started_at: item.started_at.map(iso),
            completed_at: item.completed_at.map(iso),
        }
    }
}

/// One item.
#[derive(Debug, Serialize, ToSchema)]
pub struct QueueItemBody {
    pub item: QueueItemView,
}

impl QueueItemBody {
    fn json(item: QueueItem) -> Json<Self> {
        Json(Self { item: item.into() })
    }
}

/// Items, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct QueueBody {
    pub items: Vec<QueueItemView>,
}

/// Number of the tenant's items by status.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct QueueStats {
    pub pending: u64,
    pub processing: u64,
    pub completed: u64,
    pub failed: u64,
    pub cancelled: u64,
}

/// The tenant's counts.
#[derive(Debug, Serialize, ToSchema)]
pub struct QueueStatsBody {
    pub stats: QueueStats,
}

fn check(body: NewQueueItem) -> Result<NewJob, ApiError> {
    if body.agent_name.is_empty() {
        return Err(ApiError::bad_request("agentName is required: the name of a deployed agent"));
    }
    if body.prompt.trim().is_empty() || body.prompt.len() > MAX_PROMPT {
        return Err(ApiError::bad_request(format!("prompt is required: 1 to {MAX_PROMPT} bytes")));
    }
    let retries = body.max_retries.unwrap_or(RETRIES);
    let max_retries = u64::try_from(retries).ok().filter(|_| retries <= MAX_RETRIES).ok_or_else(|| {
        ApiError::bad_request(format!("maxRetries must be an integer, from 0 to {MAX_RETRIES}, not {retries}"))
    })?;
    Ok(NewJob {
        agent_name: body.agent_name,
        prompt: body.prompt,
        session: body.session_id,
        priority: body.priority.unwrap_or(0),
        max_retries,
    })
}

/// Add a prompt to the queue
///
/// Several prompts run in parallel, in order of priority. The queue survives a restart of ashd. A
/// failed attempt is repeated with a growing delay, up to maxRetries times.
#[utoipa::path(
    post, path = "/api/queue", tag = "queue",
    request_body(content = NewQueueItem, example = json!({"agentName": "my-agent", "prompt": "Summarise the repository"})),
    responses(
        (status = 201, body = QueueItemBody),
        (status = 400, body = ErrorBody),
        (status = 404, description = "No such agent or session", body = ErrorBody),
        (status = 429, description = "Too many items are waiting", body = ErrorBody),
    )
)]
pub async fn create(
    State(state): State<AppState>,
    caller: Caller,
    body: JsonBody<NewQueueItem, { 2 * MIB }>,
) -> Result<(StatusCode, Json<QueueItemBody>), ApiError> {
    let item = state.sessions.enqueue(&caller.tenant, check(body.value)?).await?;
    Ok((StatusCode::CREATED, QueueItemBody::json(item)))
}

/// List the queue, newest first
#[utoipa::path(
    get, path = "/api/queue", tag = "queue",
    params(
        ("status" = Option<String>, Query, description = "pending, processing, completed, failed or cancelled"),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 1000),
    ),
    responses((status = 200, body = QueueBody), (status = 400, body = ErrorBody))
)]
pub async fn list(State(state): State<AppState>, caller: Caller, args: Args) -> Result<Response, ApiError> {
    let limit = args.int("limit", 1..=MAX_LISTED)?.unwrap_or(LISTED);
    let limit = u32::try_from(limit).unwrap_or(u32::MAX);
    let places = state.store.queue_places(&caller.tenant, args.word("status")?, limit).await?;
    rows::list::<QueueItem, QueueItemView>(&state.store, &caller.tenant, "items", places, "").await
}

/// Count the queue by status
#[utoipa::path(get, path = "/api/queue/stats", tag = "queue", responses((status = 200, body = QueueStatsBody)))]
pub async fn stats(State(state): State<AppState>, caller: Caller) -> Result<Json<QueueStatsBody>, ApiError> {
    let mut stats = QueueStats::default();
    for (status, count) in state.store.queue_counts(&caller.tenant).await? {
        *match status {
            QueueStatus::Pending => &mut stats.pending,
            QueueStatus::Processing => &mut stats.processing,
            QueueStatus::Completed => &mut stats.completed,
            QueueStatus::Failed => &mut stats.failed,
            QueueStatus::Cancelled => &mut stats.cancelled,
        } = count;
    }
    Ok(Json(QueueStatsBody { stats }))
}

/// Get an item, with its result when it is completed
#[utoipa::path(
    get, path = "/api/queue/{id}", tag = "queue", params(("id" = Uuid, Path)),
    responses((status = 200, body = QueueItemBody), (status = 404, description = "Queue item not found", body = ErrorBody))
)]
pub async fn get(State(state): State<AppState>, caller: Caller, Id(id): Id) -> Result<Json<QueueItemBody>, ApiError> {
    Ok(QueueItemBody::json(find(&state, &caller, id).await?))
}

/// Cancel a pending item
#[utoipa::path(
    delete, path = "/api/queue/{id}", tag = "queue", params(("id" = Uuid, Path)),
    responses(
        (status = 200, body = QueueItemBody),
        (status = 400, description = "The item is no longer pending", body = ErrorBody),
        (status = 404, description = "Queue item not found", body = ErrorBody),
    )
)]
pub async fn cancel(
    State(state): State<AppState>,
    caller: Caller,
    Id(id): Id,
) -> Result<Json<QueueItemBody>, ApiError> {
    let item = find(&state, &caller, id).await?;
    let cancelled = state.store.queue_cancel(&caller.tenant, item.id).await?;
    let item = find(&state, &caller, id).await?;
    if cancelled {
        return Ok(QueueItemBody::json(item));
    }
    Err(ApiError::bad_request(format!(
        "Cannot cancel queue item with status \"{}\"; only pending items can be cancelled",
        item.status.as_str()
    )))
}

async fn find(state: &AppState, caller: &Caller, id: Option<Uuid>) -> Result<QueueItem, ApiError> {
    let found = match id {
        Some(id) => state.store.queue_item(&caller.tenant, id).await?,
        None => None,
    };
    found.ok_or_else(|| ApiError::not_found("Queue item not found"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_item_is_checked_by_field() {
        for (json, text) in [
            ("{}", "agentName is required: the name of a deployed agent"),
            (r#"{"agentName":"a"}"#, "prompt is required: 1 to 1048576 bytes"),
            (r#"{"agentName":"a","prompt":" "}"#, "prompt is required: 1 to 1048576 bytes"),
            (
                r#"{"agentName":"a","prompt":"x","maxRetries":-1}"#,
                "maxRetries must be an integer, from 0 to 100, not -1",
            ),
            (
                r#"{"agentName":"a","prompt":"x","maxRetries":101}"#,
                "maxRetries must be an integer, from 0 to 100, not 101",
            ),
        ] {
            assert_eq!(check(serde_json::from_str(json).unwrap()).unwrap_err().text(), text, "{json}");
        }
        let job = check(serde_json::from_str(r#"{"agentName":"a","prompt":"x"}"#).unwrap()).unwrap();
        assert_eq!((job.priority, job.max_retries, job.session), (0, 3, None));
    }
}
