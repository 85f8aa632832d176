//! Rows of the tables.

use std::collections::BTreeMap;

use uuid::Uuid;

use ash_model::{Limits, Millis, RawJson, SessionStatus, TenantId, now_ms};

#[derive(Clone, Debug)]
pub struct ApiKey {
    pub id: Uuid,
    pub tenant: TenantId,
    pub label: String,
    /// SHA-256 of the whole token; the token itself is never stored.
    pub hash: [u8; 32],
    /// The first characters of the token (`ash_` and four more), to tell keys apart in a list.
    pub prefix: String,
    /// The admin role: keys for other tenants and for admins, limits and deletion of tenants,
    /// directories of the server.
    pub admin: bool,
    pub created_at: Millis,
}

#[derive(Clone, Debug, Default)]
pub struct NewAgent {
    pub name: String,
    /// Directory on the server that new sessions are copied from.
    pub path: String,
    /// A key with the admin role named it.
    pub path_by_admin: bool,
    pub env: BTreeMap<String, String>,
    pub slug: Option<String>,
    pub description: Option<String>,
    pub model: Option<String>,
    pub backend: Option<String>,
    pub system_prompt: Option<String>,
    pub config: Option<RawJson>,
}

#[derive(Clone, Debug)]
pub struct Agent {
    pub id: Uuid,
    pub tenant: TenantId,
    pub name: String,
    pub version: i64,
    pub path: String,
    /// A key with the admin role named `path`; false for an uploaded agent.
    pub path_by_admin: bool,
    pub env: BTreeMap<String, String>,
    pub slug: Option<String>,
    pub description: Option<String>,
    pub model: Option<String>,
    pub backend: Option<String>,
    pub system_prompt: Option<String>,
    pub status: Option<String>,
    pub config: Option<RawJson>,
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
    /// Settings that the client can see and patch (allowedTools, ...), as JSON.
    pub config: Option<RawJson>,
    /// How its claude is started (prompt, tools, servers, environment):
    /// `sessions::claude::LaunchOptions` as JSON. Contains secrets of the client (extraEnv): never
    /// shown, never logged.
    pub launch: RawJson,
    pub limits: Limits,
    pub parent: Option<Uuid>,
    /// Bytes of the stdout file whose messages are in the database.
    pub stdout_offset: u64,
    /// claude's id of the conversation: the session's, until claude begins another one (`/clear`).
    pub conversation: Uuid,
    /// The turn in which that id began; 0 at first.
    pub conversation_turn: i64,
    pub created_at: Millis,
    pub last_active_at: Millis,
}

impl Session {
    /// A new session: no options, the limits of [`Limits::default`], no history.
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
            launch: RawJson::of(&serde_json::Map::new()),
            limits: Limits::default(),
            parent: None,
            stdout_offset: 0,
            conversation: id,
            conversation_turn: 0,
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

/// One turn: a message, the answer's range of the stdout file, and the outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    pub session: Uuid,
    /// The uuid of its message, or a new one if claude began it.
    pub id: Uuid,
    /// From 1, without gaps.
    pub number: i64,
    /// Offset in the session's stdout file where the answer begins.
    pub start: u64,
    /// Offset after its last byte; `None` while it runs.
    pub end: Option<u64>,
    /// Why it failed, in words for the client.
    pub error: Option<String>,
    /// Whether init has the message: a restarted ashd asks init when this is false.
    pub delivered: bool,
    /// Begun by claude, without a message (a background task ended).
    pub unasked: bool,
    /// Whether the sender's stream has partial messages.
    pub partial: bool,
    pub started_at: Millis,
    pub ended_at: Option<Millis>,
}

impl Turn {
    /// The same turn, with a start of at least `offset`.
    #[must_use]
    pub fn beginning_at(self, offset: u64) -> Self {
        Self { start: self.start.max(offset), ..self }
    }
}

/// A text of a row, up to 50 MiB: shared with the statement that writes it, never copied.
pub type Text = std::sync::Arc<str>;

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
    /// Turns with a result.
    pub messages: u64,
}

/// One transaction of one session. Empty fields change nothing.
#[derive(Clone, Debug)]
pub struct Commit {
    pub session: Uuid,
    pub tenant: TenantId,
    /// New status and, for `error`, its reason.
    pub status: Option<(SessionStatus, Option<String>)>,
    pub messages: Vec<(Role, Text)>,
    /// (type, data as JSON): only types of the timeline.
    pub events: Vec<(&'static str, Text)>,
    pub stdout_offset: Option<u64>,
    /// Inserted, or replaced by number.
    pub turn: Option<Turn>,
    pub usage: Option<Usage>,
    pub model: Option<Option<String>>,
    pub config: Option<Option<RawJson>>,
    pub launch: Option<RawJson>,
    pub limits: Option<Limits>,
    /// claude's id of the conversation, and the turn in which that began.
    pub conversation: Option<(Uuid, i64)>,
    /// Number of the turn that messages, events and usage belong to.
    pub of_turn: Option<i64>,
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
            conversation: None,
            of_turn: None,
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
    /// anthropic or custom; an older ashd also took openai and bedrock.
    pub kind: String,
    pub label: String,
    /// The sealed key; never in clear here.
    pub sealed: Vec<u8>,
    pub active: bool,
    pub created_at: Millis,
    /// Time of the last request to the model with it.
    pub last_used_at: Option<Millis>,
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
    /// Path of its copy in the workspace, as text.
    pub path: Option<String>,
    pub created_at: Millis,
}
