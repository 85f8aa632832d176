//! What ashd tells the gateway: JSON packets over a `SOCK_SEQPACKET` unix socket at `<run dir>/gateway.sock`.
//! One request, one reply, in order. Registrations live in the gateway's memory and outlive ashd; after a restart of
//! either side ashd registers every live session again, which is no error.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Bytes of the largest packet either side sends.
pub const MAX_PACKET: usize = 64 * 1024;

/// Bytes of a memfd with usage: 10,000 sessions have about 2 MB, the entries of some ledgers as much.
pub const MAX_USAGE: usize = 16 << 20;

/// The control socket's name in the run directory.
pub const SOCKET: &str = "gateway.sock";

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    Hello,
    /// Serve this session's listener. One descriptor: the listening socket. Registering a session again replaces its
    /// token and credential; open connections go on.
    Register(Register),
    /// Stop accepting for the session; its open connections are closed.
    Unregister {
        session: Uuid,
    },
    /// What each session used so far. A session that was unregistered is in it once more, with its final counts.
    Usage,
    /// The sessions whose windows opened and closed. Ones that are not registered are passed over: their registration says
    /// how it stands.
    Windows {
        open: Vec<Uuid>,
        closed: Vec<Uuid>,
    },
    /// What was used, behind these marks; everything up to them is stored for good and may go.
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
    /// What the sandbox sends as its key; anything else is answered 401 and never forwarded.
    pub token: String,
    /// Key of a tenant's own credential, in place of the gateway's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Who pays, as the records of usage name them.
    #[serde(default)]
    pub tenant: String,
    #[serde(default)]
    pub agent: String,
    /// Whether requests are admitted now. `None`: always, as for an ashd that opens no windows.
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
    /// `upstream` is `offline` or the base URL, without any secret.
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
    /// The same as `Usage` when it does not fit a packet: one descriptor, a sealed memfd with the JSON array of [`SessionUsage`].
    UsageFile,
    Error {
        message: String,
    },
}

/// How often the gateway did not let a request through, since its process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Neither a turn nor a command ran.
    pub outside: u64,
    /// Too fast: not refused, but made to wait.
    pub slowed: u64,
    /// What it would have used could not be recorded.
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

/// The newest entry of each ledger that ashd has stored for good.
pub type Marks = HashMap<Uuid, u64>;

/// Who pays.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Payer {
    pub session: Uuid,
    pub tenant: String,
    pub agent: String,
}

/// One line of a ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// From 1, without gaps, unless the disk lost one.
    pub n: u64,
    /// Milliseconds since the epoch.
    pub at: i64,
    #[serde(flatten)]
    pub payer: Payer,
    pub requests: u64,
    #[serde(flatten)]
    pub tokens: Tokens,
}

/// An answer to ashd.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    /// All ledgers that exist. What ashd remembers of any other one can be forgotten.
    pub ledgers: Vec<Uuid>,
    pub entries: Vec<(Uuid, Entry)>,
    /// Ask again at once.
    pub more: bool,
}

/// Tokens by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    pub input: u64,
    pub output: u64,
    pub cache_creation: u64,
    pub cache_read: u64,
}

impl Tokens {
    /// Both together.
    pub fn plus(self, other: Self) -> Self {
        Self {
            input: self.input.saturating_add(other.input),
            output: self.output.saturating_add(other.output),
            cache_creation: self.cache_creation.saturating_add(other.cache_creation),
            cache_read: self.cache_read.saturating_add(other.cache_read),
        }
    }
}
