//! What the HTTP layer asks of sessions, and how each request can fail.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::model::SessionStatus;

/// Body of `POST /api/sessions`. Unknown fields are ignored (contract §1).
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct CreateSession {
    pub agent: String,
    pub model: Option<String>,
    pub system_prompt: Option<String>,
    pub credential_id: Option<String>,
    pub extra_env: BTreeMap<String, String>,
    #[schema(value_type = Object)]
    pub mcp_servers: BTreeMap<String, Value>,
    /// bypassPermissions (the default), permissionsByAgent or default.
    pub permission_mode: Option<String>,
    pub allowed_tools: Option<Vec<String>>,
    pub disallowed_tools: Option<Vec<String>>,
    pub betas: Option<Vec<String>>,
    #[schema(value_type = Object)]
    pub subagents: Option<Value>,
    pub initial_agent: Option<String>,
}

/// Body of `PATCH /api/sessions/:id/config`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PatchConfig {
    pub model: Option<String>,
    pub allowed_tools: Option<Vec<String>>,
    pub disallowed_tools: Option<Vec<String>>,
    pub betas: Option<Vec<String>>,
    #[schema(value_type = Object)]
    pub subagents: Option<Value>,
    pub initial_agent: Option<String>,
}

/// Body of `POST /api/sessions/:id/messages`.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SendMessage {
    /// A string, or an array of content blocks; passed on as it came.
    #[schema(value_type = Object)]
    pub content: Value,
    pub include_partial_messages: bool,
    pub model: Option<String>,
    pub max_turns: Option<u32>,
    pub max_budget_usd: Option<f64>,
    #[schema(value_type = Object)]
    pub effort: Option<Value>,
    #[schema(value_type = Object)]
    pub thinking: Option<Value>,
    #[schema(value_type = Object)]
    pub output_format: Option<Value>,
}

/// Why a request to a session was refused. The HTTP layer turns each into its code and text (contract §5).
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// 404
    #[error("Session not found")]
    NotFound,
    /// 404
    #[error("Agent \"{0}\" not found")]
    AgentNotFound(String),
    /// 422
    #[error("Agent directory not found at \"{path}\". Deploy the agent \"{agent}\" again.")]
    AgentDirectoryGone { agent: String, path: String },
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
    /// 400
    #[error("{0}")]
    Invalid(String),
    /// 429 with Retry-After.
    #[error("{0}")]
    TooMany(String),
    /// 503 with Retry-After: the daemon is stopping, or the launcher or gateway is away.
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

/// `/health`'s `pool` and the counters beside it: kept as counters, never computed from rows.
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
    /// How many are kept.
    pub count: u32,
    /// `false`: the number is the configuration's `[pool] warm`.
    pub own: bool,
    /// How many could be claimed at this moment.
    pub ready: usize,
    /// Whether another one is being made.
    pub warming: bool,
}

/// A stream of ready SSE frames: the HTTP layer sends the bytes as they are.
pub type FrameStream =
    std::pin::Pin<Box<dyn futures_util::Stream<Item = Result<bytes::Bytes, std::convert::Infallible>> + Send>>;

/// Place in a session's stream, the `id:` of each frame: `<turn>:<offset of the line>:<frame of the line>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventId {
    pub turn: i64,
    pub offset: u64,
    pub frame: u32,
}
