//! `/api/agents/{name}/warm`: sandboxes with a started claude, ready for the next session.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::super::AppState;
use super::super::args::AgentName;
use super::super::auth::Caller;
use super::super::body::JsonBody;
use super::super::error::{ApiError, ErrorBody};
use crate::sessions::WarmCount;

/// The warm sandboxes of an agent.
#[derive(Debug, Serialize, ToSchema)]
pub struct WarmBody {
    pub warm: WarmCount,
}

/// Body of `PATCH /api/agents/{name}/warm`.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub struct SetWarm {
    /// 0 to 100; null restores the configuration's `[pool] warm`.
    #[serde(default, deserialize_with = "super::wire::given")]
    #[schema(value_type = Option<u32>)]
    pub count: Option<Option<u32>>,
}

/// Get how many sandboxes of an agent are kept warm
#[utoipa::path(
    get, path = "/api/agents/{name}/warm", tag = "agents", params(("name" = String, Path)),
    responses((status = 200, body = WarmBody), (status = 404, description = "Agent not found", body = ErrorBody))
)]
pub async fn get(
    State(state): State<AppState>,
    caller: Caller,
    AgentName(name): AgentName,
) -> Result<Json<WarmBody>, ApiError> {
    Ok(Json(WarmBody { warm: state.sessions.warm(&caller.tenant, &name).await? }))
}

/// Keep sandboxes of an agent warm
///
/// A session takes over a warm sandbox and is ready at once, unless it sets an option that claude
/// needs at its start (extraEnv, systemPrompt, mcpServers, tools). Warm sandboxes start in the
/// background, and are evicted first.
#[utoipa::path(
    patch, path = "/api/agents/{name}/warm", tag = "agents", params(("name" = String, Path)),
    request_body(content = SetWarm, example = json!({"count": 2})),
    responses(
        (status = 200, body = WarmBody),
        (status = 400, description = "count is missing or not 0 to 100", body = ErrorBody),
        (status = 404, description = "Agent not found", body = ErrorBody),
    )
)]
pub async fn set(
    State(state): State<AppState>,
    caller: Caller,
    AgentName(name): AgentName,
    body: JsonBody<SetWarm>,
) -> Result<Json<WarmBody>, ApiError> {
    let missing = || ApiError::bad_request("count is required: how many sandboxes to keep warm, 0 to 100, or null");
    let count = body.value.count.ok_or_else(missing)?;
    Ok(Json(WarmBody { warm: state.sessions.set_warm(&caller.tenant, &name, count).await? }))
}
