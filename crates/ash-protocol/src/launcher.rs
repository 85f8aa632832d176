//! What ashd and the launcher say to each other: JSON, one request and one reply a packet, over a
//! `SOCK_SEQPACKET` unix socket at `<run dir>/launcher.sock`. Requests are answered in order.
//!
//! The launcher distrusts the other end. A request names a sandbox by its id and nothing else: every path, uid and
//! ceiling comes from the launcher's own configuration.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use ash_model::CgroupPaths;
use ash_model::{Limits, Millis, TenantId};

/// Bytes of the largest packet either side sends. A longer one is refused with an error and the connection closed.
pub const MAX_PACKET: usize = 64 * 1024;

/// Raised when a message changes in a way the other side of an upgrade would misread.
pub const PROTOCOL: u32 = 1;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Who is there? Answered by [`Reply::Hello`].
    Hello,
    /// Set up a sandbox around `<data dir>/sessions/<id>/{workspace,home}`. Answered by [`Reply::Sandbox`] and descriptors.
    Create(Create),
    /// The descriptors of a running sandbox again, for an ashd that was restarted. Answered like `Create`.
    Attach { id: Uuid },
    /// Write new limits to the cgroup of a running sandbox.
    SetLimits { id: Uuid, limits: Limits },
    /// Push the memory of a frozen sandbox out to swap, in the background. Answered when it is queued; a sandbox that runs
    /// again when its turn comes, or in the middle, is left alone.
    Reclaim { id: Uuid },
    /// Who of the sandbox was killed for want of memory. Answered by [`Reply::Victims`].
    Victims { id: Uuid },
    /// What the sandbox's processes hold on the data directory's disk without a name. Answered by [`Reply::Held`].
    Held { id: Uuid },
    /// Kill everything in the sandbox and remove its cgroups and run directory. Answered when it is gone; no sandbox
    /// of that id is no error.
    Destroy { id: Uuid },
    /// The sandboxes there are, in the order of their ids: those behind `after`, as many as fit a packet.
    List {
        #[serde(default)]
        after: Option<Uuid>,
    },
    /// End every sandbox, then the launcher itself.
    Shutdown,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Create {
    /// The session's id; also the name of its directories and cgroups.
    pub id: Uuid,
    pub tenant: TenantId,
    pub limits: Limits,
    pub claude: ClaudeBinary,
}

/// Which Claude Code binary appears in the sandbox as `/opt/claude/claude`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClaudeBinary {
    /// `<claude dir>/<version>/claude`.
    Version(String),
    /// The one path in the launcher's own configuration (`claude.binary`, `ASH_CLAUDE_BIN`).
    Configured,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "one reply at a time, and a box would be in the way of every match")]
pub enum Reply {
    Hello {
        protocol: u32,
        version: String,
        pid: u32,
    },
    /// Descriptors that travel with it, in this order: [`SANDBOX_FDS`].
    Sandbox(SandboxInfo),
    Done,
    Victims {
        /// Oldest first: the first ones and the newest. Where a whole sandbox died as one, the process that was chosen.
        victims: Vec<Victim>,
        /// Whether the launcher can read the kernel's log at all.
        readable: bool,
    },
    Held {
        /// Bytes in allocated blocks.
        bytes: u64,
        files: u64,
        /// Something could not be looked at.
        hidden: bool,
    },
    List {
        /// Without the steps of their set-up.
        sandboxes: Vec<SandboxInfo>,
        /// More behind the last one.
        more: bool,
    },
    Error(Failure),
}

/// The descriptors beside a [`Reply::Sandbox`], in order: a pidfd of the sandbox's init; `cgroup.freeze` opened for
/// writing; `cgroup.events` opened for reading; `cgroup.kill` is the launcher's alone.
pub const SANDBOX_FDS: usize = 3;

/// What is known of a sandbox. Kept by the launcher as `<run dir>/sandboxes/<id>/sandbox.json`, since it has no state of its own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxInfo {
    pub id: Uuid,
    pub tenant: TenantId,
    /// Process id of the sandbox's init on the host; 0 once it has ended (its cgroup stays until `Destroy`).
    pub pid: i32,
    /// Start time of that process in clock ticks since boot (field 22 of /proc/pid/stat): tells it from a later process of the same id.
    pub start_time: u64,
    /// The payload's uid on the host.
    pub uid: u32,
    /// The init's uid on the host.
    pub init_uid: u32,
    pub created_at: Millis,
    pub limits: Limits,
    pub cgroup: CgroupPaths,
    /// Microseconds each step of the set-up took, in order.
    pub steps: Vec<(String, u64)>,
}

/// A process that the kernel killed for want of memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Victim {
    /// What it calls itself, at most 15 bytes; anything the payload likes.
    pub process: String,
    /// On the host.
    pub pid: i32,
    /// Bytes it had in memory, swap not counted.
    pub resident_bytes: u64,
    /// The host had no memory left; the sandbox's own limit was not reached.
    pub of_host: bool,
}

/// A refusal or a failed set-up: which step, why, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{step}: {message}")]
pub struct Failure {
    /// The step in the words of `docs/sandbox.md`, such as `mount workspace`.
    pub step: String,
    pub message: String,
    /// The way out, where one is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// What [`ClaudeBinary::Version`] may hold: it is a part of a path.
pub fn is_version(version: &str) -> bool {
    (1..=64).contains(&version.len())
        && !version.starts_with('.')
        && version.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_no_paths() {
        for (version, fits) in [
            ("2.1.330", true),
            ("a_b-1", true),
            ("", false),
            (".", false),
            ("..", false),
            (".x", false),
            ("a/b", false),
        ] {
            assert_eq!(is_version(version), fits, "{version}");
        }
    }
}
