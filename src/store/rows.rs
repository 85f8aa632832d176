//! Rows as the rest of the daemon sees them.

use std::collections::BTreeMap;

use serde_json::Value;
use uuid::Uuid;

use crate::model::{Limits, Millis, SessionStatus, TenantId, now_ms};

#[derive(Clone, Debug)]
pub struct ApiKey {
    pub id: Uuid,
    pub tenant: TenantId,
    pub label: String,
    /// SHA-256 of the whole token; the token itself is never stored.
    pub hash: [u8; 32],
    /// The first characters of the token (`ash_` and four more), to tell keys apart in a list.
    pub prefix: String,
    /// May make keys for other tenants.
    pub admin: bool,
    pub created_at: Millis,
}

#[derive(Clone, Debug, Default)]
pub struct NewAgent {
    pub name: String,
    /// Directory on the server that new sessions are copied from.
    pub path: String,
    pub env: BTreeMap<String, String>,
    pub slug: Option<String>,
    pub description: Option<String>,
    pub model: Option<String>,
    pub backend: Option<String>,
    pub system_prompt: Option<String>,
    pub config: Option<Value>,
}

#[derive(Clone, Debug)]
pub struct Agent {
    pub id: Uuid,
    pub tenant: TenantId,
    pub name: String,
    pub version: i64,
    pub path: String,
    pub env: BTreeMap<String, String>,
    pub slug: Option<String>,
    pub description: Option<String>,
    pub model: Option<String>,
    pub backend: Option<String>,
    pub system_prompt: Option<String>,
    pub status: Option<String>,
    pub config: Option<Value>,
    pub created_at: Millis,
    pub updated_at: Millis,
}

#[derive(Clone, Debug)]
pub struct Session {
    pub id: Uuid,
    pub tenant: TenantId,
    pub agent_name: String,
    pub status: SessionStatus,
    /// Why it is in `error`, in words for the client.
    pub error: Option<String>,
    pub model: Option<String>,
    /// What the client may see and patch (allowedTools, ... ), as JSON.
    pub config: Option<Value>,
    /// How its claude is started (prompt, tools, servers, environment): `sessions::claude::LaunchOptions` as JSON.
    /// Holds secrets of the client (extraEnv): never shown, never logged.
    pub launch: Value,
    pub limits: Limits,
    pub parent: Option<Uuid>,
    /// Bytes of the stdout file whose messages are in the database.
    pub stdout_offset: u64,
    pub created_at: Millis,
    pub last_active_at: Millis,
}

impl Session {
    /// One that begins now: no options, the limits of [`Limits::default`], no past.
    pub fn new(id: Uuid, tenant: TenantId, agent_name: &str, status: SessionStatus) -> Self {
        let now = now_ms();
        Self {
            id,
            tenant,
            agent_name: agent_name.to_owned(),
            status,
            error: None,
            model: None,
            config: None,
            launch: Value::Object(serde_json::Map::new()),
            limits: Limits::default(),
            parent: None,
            stdout_offset: 0,
            created_at: now,
            last_active_at: now,
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct SessionFilter {
    pub agent: Option<String>,
    pub status: Option<SessionStatus>,
    pub limit: Option<u32>,
    pub offset: u32,
}

/// One exchange: a message in, the answer's range of the stdout file, and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    pub session: Uuid,
    /// From 1, without gaps.
    pub number: i64,
    /// Offset in the session's stdout file where the answer begins.
    pub start: u64,
    /// Where it ends (one past its last byte); `None` while it runs.
    pub end: Option<u64>,
    /// Why it failed, in words for the client.
    pub error: Option<String>,
    /// Whether init has the message: a restarted ashd asks init when this is false.
    pub delivered: bool,
    /// Begun by claude itself, without a message (a background task that ended).
    pub unasked: bool,
    pub started_at: Millis,
    pub ended_at: Option<Millis>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    User,
    Assistant,
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

#[derive(Clone, Debug)]
pub struct Message {
    pub id: Uuid,
    pub session: Uuid,
    pub tenant: TenantId,
    pub role: String,
    /// A JSON text, exactly as stored.
    pub content: String,
    pub sequence: i64,
    pub created_at: Millis,
}

#[derive(Clone, Debug)]
pub struct Event {
    pub id: Uuid,
    pub session: Uuid,
    pub tenant: TenantId,
    pub kind: String,
    /// A JSON text.
    pub data: String,
    pub sequence: i64,
    pub created_at: Millis,
}

/// Token counts and costs of one `result` message.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    pub input_tokens: u64,
    pub output_tokens: u64,
    pub cache_creation_tokens: u64,
    pub cache_read_tokens: u64,
    pub tool_calls: u64,
    pub compute_ms: u64,
}

/// One transaction of one session. Empty fields change nothing.
#[derive(Clone, Debug)]
pub struct Commit {
    pub session: Uuid,
    pub tenant: TenantId,
    /// New status and, for `error`, why.
    pub status: Option<(SessionStatus, Option<String>)>,
    pub messages: Vec<(Role, String)>,
    /// (type, data as JSON): contract §5's timeline types only.
    pub events: Vec<(&'static str, String)>,
    pub stdout_offset: Option<u64>,
    /// Inserted, or replaced by its number.
    pub turn: Option<Turn>,
    pub usage: Option<Usage>,
    pub model: Option<Option<String>>,
    pub config: Option<Option<Value>>,
    pub launch: Option<Value>,
    pub limits: Option<Limits>,
    /// Sets lastActiveAt to now.
    pub touch: bool,
}

impl Commit {
    pub fn of(session: &Session) -> Self {
        Self {
            session: session.id,
            tenant: session.tenant.clone(),
            status: None,
            messages: Vec::new(),
            events: Vec::new(),
            stdout_offset: None,
            turn: None,
            usage: None,
            model: None,
            config: None,
            launch: None,
            limits: None,
            touch: false,
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Committed {
    /// The newest sequence numbers after this transaction.
    pub message_sequence: i64,
    pub event_sequence: i64,
}

/// A tenant's own key of a model provider.
#[derive(Clone)]
pub struct Credential {
    pub id: Uuid,
    pub tenant: TenantId,
    /// anthropic, openai, bedrock or custom.
    pub kind: String,
    pub label: String,
    /// The key as sealed by whoever stores it; never in the open here.
    pub sealed: Vec<u8>,
    pub active: bool,
    pub created_at: Millis,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credential").field("id", &self.id).field("kind", &self.kind).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Attachment {
    pub id: Uuid,
    pub session: Uuid,
    pub tenant: TenantId,
    pub filename: String,
    pub mime_type: String,
    /// Bytes.
    pub size: u64,
    pub message_id: Option<String>,
    pub created_at: Millis,
}
