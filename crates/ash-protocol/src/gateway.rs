//! Messages from ashd to the gateway: JSON packets over a `SOCK_SEQPACKET` unix socket at `<run
//! dir>/gateway.sock`. Each request gets one reply, in order. Registrations are kept in the
//! gateway's memory and outlive ashd. After a restart of either side, ashd registers every live
//! session again, which is no error.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Bytes of the largest packet of either side.
pub const MAX_PACKET: usize = 64 * 1024;

/// Most bytes of a memfd with usage: 10,000 sessions need about 2 MB, the entries of some ledgers
/// as much.
pub const MAX_USAGE: usize = 16 << 20;

pub const SOCKET: &str = "gateway.sock";

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    Hello,
    /// Serve this session's listener. One descriptor: the listening socket. A repeated registration
    /// replaces token and credential; open connections continue.
    Register(Register),
    /// Stop accepting for the session and close its open connections.
    Unregister {
        session: Uuid,
    },
    /// The usage of each session. An unregistered session is reported once more, with its final
    /// counts.
    Usage,
    /// The sessions whose windows opened or closed. Unregistered sessions are ignored, because
    /// their registration will contain the state.
    Windows {
        open: Vec<Uuid>,
        closed: Vec<Uuid>,
    },
    /// The usage after these marks. Everything up to the marks is stored and may be deleted.
    Collect {
        marks: Marks,
    },
    /// Finish open streams, then exit.
    Shutdown,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Register {
    pub session: Uuid,
    /// The key that the sandbox sends. Requests with any other key get 401 and are never forwarded.
    pub token: String,
    /// The key of a tenant's own credential, used instead of the gateway's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The payer, as named in the usage records.
    #[serde(default)]
    pub tenant: String,
    #[serde(default)]
    pub agent: String,
    /// Whether requests are admitted now. `None`: always, for an ashd that opens no windows.
    #[serde(default)]
    pub window: Option<bool>,
}

impl Register {
    /// A session whose requests are always admitted.
    pub fn new(session: Uuid, token: impl Into<String>) -> Self {
        Self { session, token: token.into(), key: None, tenant: String::new(), agent: String::new(), window: None }
    }
}

impl std::fmt::Debug for Register {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Register").field("session", &self.session).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// `upstream` is `offline` or the base URL, without secrets.
    Hello {
        version: String,
        pid: u32,
        upstream: String,
    },
    Done,
    Usage {
        sessions: Vec<SessionUsage>,
    },
    /// One descriptor: a sealed memfd with the JSON of [`Collected`].
    Collected {
        refused: Refused,
    },
    /// `Usage` that does not fit into a packet. One descriptor: a sealed memfd with the JSON array
    /// of [`SessionUsage`].
    UsageFile,
    Error {
        message: String,
    },
}

/// Requests that the gateway refused or delayed, since its process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// No turn and no command was running.
    pub outside: u64,
    /// Too fast: delayed, not refused.
    pub slowed: u64,
    /// The usage could not be recorded.
    pub unrecorded: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionUsage {
    pub session: Uuid,
    pub requests: u64,
    pub input_tokens: u64,
    pub output_tokens: u64,
    pub cache_creation_tokens: u64,
    pub cache_read_tokens: u64,
}

/// The newest entry of each ledger that ashd has stored.
pub type Marks = HashMap<Uuid, u64>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Payer {
    pub session: Uuid,
    pub tenant: String,
    pub agent: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// From 1, without gaps, unless the disk lost a line.
    pub n: u64,
    pub at: i64,
    #[serde(flatten)]
    pub payer: Payer,
    pub requests: u64,
    #[serde(flatten)]
    pub tokens: Tokens,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    /// All existing ledgers. ashd can drop its state for all others.
    pub ledgers: Vec<Uuid>,
    pub entries: Vec<(Uuid, Entry)>,
    /// Ask again at once.
    pub more: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    pub input: u64,
    pub output: u64,
    pub cache_creation: u64,
    pub cache_read: u64,
}

impl Tokens {
    pub fn plus(self, other: Self) -> Self {
        Self {
            input: self.input.saturating_add(other.input),
            output: self.output.saturating_add(other.output),
            cache_creation: self.cache_creation.saturating_add(other.cache_creation),
            cache_read: self.cache_read.saturating_add(other.cache_read),
        }
    }
}
