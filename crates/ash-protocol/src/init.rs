//! Messages between ashd and a sandbox's init (PID 1): JSON packets over a `SOCK_SEQPACKET` unix
//! socket at `<run dir>/sandboxes/<id>/init.sock`, which only ashd's user can open.
//!
//! init outlives ashd: a new ashd reconnects and gets the current state with [`InitRequest::Stat`].

use serde::{Deserialize, Serialize};

/// Port of the model gateway on the sandbox's own loopback.
pub const MODEL_PORT: u16 = 4180;
/// uid and gid of the payload inside the sandbox.
pub const PAYLOAD_UID: u32 = 1000;
/// uid and gid of init inside the sandbox. They differ from the payload's, so that the payload
/// cannot signal init.
pub const INIT_UID: u32 = 999;

/// A request with the number that its reply carries.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Numbered {
    pub n: u32,
    #[serde(flatten)]
    pub request: InitRequest,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum InitRequest {
    /// Start a process as the payload. Descriptors, in order: a memfd with the [`SpawnSpec`] as
    /// JSON, stdout, stderr. `child` is the caller's number for the process, never reused in a
    /// sandbox.
    Spawn { child: u32 },
    /// Signal the process, or with `group` its process group (each child leads its own).
    Signal { child: u32, signal: i32, group: bool },
    /// Copy a whole file to the child's stdin. One descriptor: the file, opened for reading. The
    /// reply [`InitReply::Done`] comes when the file is queued, [`InitEvent::Delivered`] when its
    /// last byte is in the pipe. A repeated message number gets `Done` and is not sent again,
    /// because a restarted ashd may ask twice.
    Deliver { child: u32, message: u64 },
    /// Close the child's stdin after everything queued is delivered.
    CloseStdin { child: u32 },
    /// Read these pipes until they have no writer, and discard the data. Descriptors: 1 to 8
    /// reading ends.
    Discard,
    /// The running processes and the delivered messages.
    Stat,
    /// Return the listening socket on the sandbox's loopback, for the gateway, as one descriptor.
    Listener { which: Listener },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Listener {
    /// 127.0.0.1:[`MODEL_PORT`].
    Model,
}

/// A process to start. It runs as [`PAYLOAD_UID`] without capabilities, with `no_new_privs`,
/// landlock and seccomp in force.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SpawnSpec {
    /// Absolute path inside the sandbox, then the arguments.
    pub argv: Vec<String>,
    /// The whole environment: nothing is inherited.
    pub env: Vec<(String, String)>,
    pub cwd: String,
    /// If set, stdin is a pipe that only init writes (see `Deliver`). Otherwise `/dev/null`.
    pub stdin: bool,
    /// If set, the process and everything it starts, including daemons, is killed after so many
    /// milliseconds. The result is then [`Exit::Signal`] with SIGALRM (14), and a death by signal n
    /// is reported as code 128 + n.
    #[serde(default)]
    pub within_ms: Option<u64>,
    /// A command or a tool, which leaves claude its reserve of processes
    /// ([`ash_model::processes`]).
    #[serde(default)]
    pub leaves_share: bool,
}

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

/// Sent once to every connection and not stored. After a reconnect, `Stat` returns the same facts.
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
    /// The number of the newest message accepted by `Deliver`, if any, and whether its last byte is
    /// in the pipe.
    pub accepted: Option<u64>,
    pub delivered: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// Exit status 0 to 255.
    Code(i32),
    /// The number of the signal that ended the process.
    Signal(i32),
}
