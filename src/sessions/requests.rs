//! Requests of the HTTP layer to sessions, and their errors.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use ash_model::bounded::{list, map, raw_map, short};
use ash_model::raw::RawObject;
use ash_model::{RawJson, SessionStatus};

/// Body of `POST /api/sessions`. Unknown fields are ignored.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CreateSession {
    pub agent: String,
    pub model: Option<String>,
    pub system_prompt: Option<String>,
    pub credential_id: Option<String>,
    #[serde(deserialize_with = "map")]
    pub extra_env: BTreeMap<String, String>,
    #[serde(deserialize_with = "raw_map")]
    #[schema(value_type = HashMap<String, Object>)]
    pub mcp_servers: RawObject,
    /// bypassPermissions (the default), permissionsByAgent or default.
    pub permission_mode: Option<String>,
    #[serde(deserialize_with = "list")]
    pub allowed_tools: Option<Vec<String>>,
    #[serde(deserialize_with = "list")]
    pub disallowed_tools: Option<Vec<String>>,
    #[serde(deserialize_with = "list")]
    pub betas: Option<Vec<String>>,
    #[schema(value_type = Option<Object>)]
    pub subagents: Option<RawJson>,
    pub initial_agent: Option<String>,
}

/// Body of `PATCH /api/sessions/:id/config`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PatchConfig {
    pub model: Option<String>,
    #[serde(deserialize_with = "list")]
    pub allowed_tools: Option<Vec<String>>,
    #[serde(deserialize_with = "list")]
    pub disallowed_tools: Option<Vec<String>>,
    #[serde(deserialize_with = "list")]
    pub betas: Option<Vec<String>>,
    #[schema(value_type = Option<Object>)]
    pub subagents: Option<RawJson>,
    pub initial_agent: Option<String>,
}

/// Body of `POST /api/sessions/:id/messages`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SendMessage {
    /// A string, or an array of content blocks; passed on unchanged.
    #[schema(schema_with = content)]
    pub content: RawJson,
    #[serde(deserialize_with = "short")]
    pub include_partial_messages: bool,
    pub model: Option<String>,
    #[serde(deserialize_with = "short")]
    pub max_turns: Option<u32>,
    #[serde(deserialize_with = "short")]
    pub max_budget_usd: Option<f64>,
    /// low, medium, high or max.
    #[schema(value_type = Option<String>, example = "high")]
    pub effort: Option<RawJson>,
    #[schema(value_type = Option<Object>)]
    pub thinking: Option<RawJson>,
    #[schema(value_type = Option<Object>)]
    pub output_format: Option<RawJson>,
}

fn content() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
    use utoipa::openapi::schema::{ArrayBuilder, Object, OneOfBuilder, Type};
    let either = OneOfBuilder::new()
        .item(Object::with_type(Type::String))
        .item(ArrayBuilder::new().items(Object::with_type(Type::Object)))
        .description(Some("A string, or an array of content blocks (text, image, document); passed on unchanged."))
        .build();
    utoipa::openapi::Schema::OneOf(either).into()
}

/// Why a request to a session was refused. The HTTP layer maps each to its status code.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// 404
    #[error("Session not found")]
    NotFound,
    /// 404
    #[error("Agent \"{0}\" not found")]
    AgentNotFound(String),
    /// 422
    #[error("The directory of agent \"{agent}\" {what}. Deploy the agent again.")]
    AgentDirectoryGone { agent: String, what: &'static str },
    /// 422: the directory is no longer permitted.
    #[error("The directory of agent \"{agent}\" is refused: {why}. Deploy the agent again.")]
    AgentDirectoryRefused { agent: String, why: String },
    /// 422: the agent's script failed.
    #[error("install.sh of agent \"{agent}\" {why}")]
    Install { agent: String, why: String },
    /// 400: a message or exec to a session that is not active.
    #[error("Session is {0}")]
    NotActive(SessionStatus),
    /// 400
    #[error("Cannot {verb} session with status \"{status}\"")]
    Transition { verb: &'static str, status: SessionStatus },
    /// 410
    #[error("Session has ended; create a new session")]
    Ended,
    /// 409
    #[error("A turn is already running in this session; wait for it to end or POST to /interrupt")]
    TurnRunning,
    /// 503 with Retry-After.
    #[error("Sandbox capacity reached ({max} live sandboxes); end or pause a session, or raise ASH_MAX_SANDBOXES")]
    Capacity { max: usize, retry_after_s: u64 },
    /// 503 with Retry-After: other tenants hold more, and all their sandboxes are busy.
    #[error(
        "Sandbox capacity reached ({max} live sandboxes), and no sandbox of another tenant can be evicted; \
         the next free place is reserved for this tenant: try again in {retry_after_s} s"
    )]
    Owed { max: usize, retry_after_s: u64 },
    /// 503 with Retry-After.
    #[error(
        "This tenant has reached its limit of {max} sandboxes (pool.max_sandboxes_per_tenant), and none of them is idle; end or \
         pause a session"
    )]
    TenantCapacity { max: usize, retry_after_s: u64 },
    /// 400
    #[error("{0}")]
    Invalid(String),
    /// 413: more than the model takes.
    #[error("{0}")]
    TooLarge(String),
    /// 503 with Retry-After: the daemon is stopping, or the launcher or gateway is unreachable.
    #[error("{0}")]
    Unavailable(String),
    /// 507
    #[error("{0}")]
    Full(String),
    /// 500: the sandbox or claude could not be started, with the step and the reason.
    #[error("{0}")]
    Failed(String),
    #[error(transparent)]
    Store(#[from] crate::store::StoreError),
}

/// `pool` of `/health`. Maintained as counters, never computed from rows.
#[derive(Clone, Copy, Debug, Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolStats {
    pub total: usize,
    pub cold: usize,
    pub warming: usize,
    pub warm: usize,
    pub waiting: usize,
    pub running: usize,
    pub max_capacity: usize,
    pub resume_warm_hits: u64,
    pub resume_cold_hits: u64,
    pub pre_warm_hits: u64,
}

/// The warm sandboxes of one agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct WarmCount {
    /// Configured number.
    pub count: u32,
    /// `false`: the number is `[pool] warm` of the configuration.
    pub own: bool,
    /// Warm sandboxes ready to be claimed.
    pub ready: usize,
    /// Whether another one is being created.
    pub warming: bool,
}
