//! What ashd and a sandbox's init (PID 1) say to each other: JSON packets over a `SOCK_SEQPACKET` unix socket at
//! `<run dir>/sandboxes/<id>/init.sock`, which only ashd's user can open.
//!
//! init outlives ashd: a new ashd connects again, asks [`InitRequest::Stat`] and learns what happened meanwhile.

use serde::{Deserialize, Serialize};

/// Port, on the sandbox's own loopback, where the model gateway listens.
pub const MODEL_PORT: u16 = 4180;
/// uid and gid of the payload inside the sandbox.
pub const PAYLOAD_UID: u32 = 1000;
/// uid and gid of init inside the sandbox; another one, so that the payload cannot signal it.
pub const INIT_UID: u32 = 999;

/// A request with the number its reply will carry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Numbered {
    pub n: u32,
    #[serde(flatten)]
    pub request: InitRequest,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum InitRequest {
    /// Start a process as the payload. Descriptors, in order: a memfd with the [`SpawnSpec`] as JSON, stdout, stderr.
    /// `child` is the caller's number for it, never used twice in one sandbox.
    Spawn { child: u32 },
    /// Signal the process, or with `group` its whole process group (each child leads its own).
    Signal { child: u32, signal: i32, group: bool },
    /// Copy a whole file to the child's stdin. One descriptor: the file, opened for reading. Answered at once with
    /// [`InitReply::Done`] when queued; [`InitEvent::Delivered`] when the last byte is in the pipe. A message number
    /// that was already accepted is answered `Done` and not sent again: a restarted ashd may ask twice.
    Deliver { child: u32, message: u64 },
    /// Close the child's stdin once what is queued for it is delivered.
    CloseStdin { child: u32 },
    /// Read these pipes until they have no writer, and throw away what comes. Descriptors: their reading ends, 1 to 8.
    Discard,
    /// What runs and what has been delivered.
    Stat,
    /// The listening socket on the sandbox's loopback, for the gateway. One descriptor comes back.
    Listener { which: Listener },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Listener {
    /// 127.0.0.1:[`MODEL_PORT`].
    Model,
}

/// A process to start. It is started with no capability, no_new_privs, landlock and seccomp in force, as [`PAYLOAD_UID`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SpawnSpec {
    /// Absolute path inside the sandbox, then the arguments.
    pub argv: Vec<String>,
    /// The whole environment: nothing is inherited.
    pub env: Vec<(String, String)>,
    /// Working directory inside the sandbox.
    pub cwd: String,
    /// With it, stdin is a pipe whose only writer is init (see `Deliver`); without, `/dev/null`.
    pub stdin: bool,
    /// With it, the process and everything it starts, daemons too, is killed after so many milliseconds, and
    /// [`Exit::Signal`] of SIGALRM (14) says so; a death by signal n is told as code 128 + n. Without, it may run for ever.
    #[serde(default)]
    pub within_ms: Option<u64>,
    /// A command or a tool, which leaves claude its share of the sandbox's processes ([`ash_model::processes`]).
    #[serde(default)]
    pub leaves_share: bool,
}

/// Everything init sends.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum FromInit {
    Reply { n: u32, reply: InitReply },
    Event { event: InitEvent },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum InitReply {
    /// `pid` is the process id inside the sandbox.
    Spawned {
        pid: i32,
    },
    Done,
    Stat {
        children: Vec<ChildStat>,
    },
    Listener,
    Error {
        step: String,
        message: String,
    },
}

/// Sent to every connection when it happens, not stored: after a reconnect, `Stat` tells the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum InitEvent {
    Exited { child: u32, status: Exit },
    Delivered { child: u32, message: u64 },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChildStat {
    pub child: u32,
    pub pid: i32,
    /// `None` while it runs. Kept for the 64 children that ended last.
    pub exited: Option<Exit>,
    /// The number of the newest message accepted by `Deliver`, if any, and whether its last byte is in the pipe.
    pub accepted: Option<u64>,
    pub delivered: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// Exit status 0 to 255.
    Code(i32),
    /// The number of the signal that ended it.
    Signal(i32),
}
