//! `/api/agents/:name/warm`: sandboxes whose claude has started before a session asks for one.

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
    /// 0 to 100; null goes back to the configuration's `[pool] warm`.
    #[serde(default, deserialize_with = "super::wire::given")]
    #[schema(value_type = Option<u32>)]
    pub count: Option<Option<u32>>,
}

/// How many sandboxes of an agent are kept warm
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
/// A session whose options ask for nothing that must be said at claude's start (extraEnv, systemPrompt, mcpServers, tools)
/// takes one over and is ready at once. They are made in the background, and are the first to go when room is needed.
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
