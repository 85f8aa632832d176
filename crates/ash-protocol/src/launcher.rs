//! Messages between ashd and the launcher: JSON packets over a `SOCK_SEQPACKET` unix socket at
//! `<run dir>/launcher.sock`. Each request gets one reply, in order.
//!
//! The launcher does not trust ashd. A request names a sandbox by its id only. Every path, uid and
//! ceiling comes from the launcher's own configuration.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use ash_model::CgroupPaths;
use ash_model::{Limits, Millis, TenantId};

/// Bytes of the largest packet of either side. A longer packet gets an error, and the connection is
/// closed.
pub const MAX_PACKET: usize = 64 * 1024;

/// Increased when the other side of an upgrade would misread a changed message.
pub const PROTOCOL: u32 = 1;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Asks for the launcher's version. Reply: [`Reply::Hello`].
    Hello,
    /// Set up a sandbox around `<data dir>/sessions/<id>/{workspace,home}`. Reply:
    /// [`Reply::Sandbox`] and descriptors.
    Create(Create),
    /// Get the descriptors of a running sandbox again, for a restarted ashd. Reply: the same as for
    /// `Create`.
    Attach { id: Uuid },
    /// Write new limits to the cgroup of a running sandbox.
    SetLimits { id: Uuid, limits: Limits },
    /// Move the memory of a frozen sandbox to swap, in the background. The reply comes when the
    /// work is queued. A sandbox that is running, or starts to run meanwhile, is skipped.
    Reclaim { id: Uuid },
    /// The processes of the sandbox that the OOM killer killed. Reply: [`Reply::Victims`].
    Victims { id: Uuid },
    /// The space of deleted files that the sandbox's processes still hold on the data directory's
    /// disk. Reply: [`Reply::Held`].
    Held { id: Uuid },
    /// Kill everything in the sandbox and remove its cgroups and run directory. The reply comes
    /// when it is gone. An unknown id is no error.
    Destroy { id: Uuid },
    /// The sandboxes ordered by id: those after `after`, as many as fit into a packet.
    List {
        #[serde(default)]
        after: Option<Uuid>,
    },
    /// End every sandbox, then the launcher.
    Shutdown,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Create {
    /// The session's id, also the name of its directories and cgroups.
    pub id: Uuid,
    pub tenant: TenantId,
    pub limits: Limits,
    pub claude: ClaudeBinary,
}

/// The Claude Code binary that the sandbox gets as `/opt/claude/claude`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClaudeBinary {
    /// `<claude dir>/<version>/claude`.
    Version(String),
    /// The path in the launcher's own configuration (`claude.binary`, `ASH_CLAUDE_BIN`).
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
    /// Descriptors in this order: [`SANDBOX_FDS`].
    Sandbox(SandboxInfo),
    Done,
    Victims {
        /// Oldest first: the first ones and the newest. If the whole sandbox was killed as one
        /// group, the process that the OOM killer chose.
        victims: Vec<Victim>,
        /// Whether the launcher can read the kernel log.
        readable: bool,
    },
    Held {
        /// Bytes in allocated blocks.
        bytes: u64,
        files: u64,
        /// Some files or processes could not be examined.
        hidden: bool,
    },
    List {
        /// Without the steps of the setup.
        sandboxes: Vec<SandboxInfo>,
        /// There are more sandboxes after the last one.
        more: bool,
    },
    Error(Failure),
}

/// The descriptors of a [`Reply::Sandbox`], in order: a pidfd of the sandbox's init;
/// `cgroup.freeze`, opened for writing; `cgroup.events`, opened for reading. `cgroup.kill` stays
/// with the launcher.
pub const SANDBOX_FDS: usize = 3;

/// The known facts about a sandbox. The launcher has no other state and keeps them in `<run
/// dir>/sandboxes/<id>/sandbox.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxInfo {
    pub id: Uuid,
    pub tenant: TenantId,
    /// Process id of the sandbox's init on the host; 0 after it has ended. Its cgroup stays until
    /// `Destroy`.
    pub pid: i32,
    /// Start time of init in clock ticks since boot (field 22 of /proc/pid/stat). It distinguishes
    /// init from a later process with the same pid.
    pub start_time: u64,
    pub uid: u32,
    pub init_uid: u32,
    pub created_at: Millis,
    pub limits: Limits,
    pub cgroup: CgroupPaths,
    /// Microseconds of each setup step, in order.
    pub steps: Vec<(String, u64)>,
}

/// A process killed by the OOM killer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Victim {
    /// Its own name, at most 15 bytes. The payload can choose it.
    pub process: String,
    /// On the host.
    pub pid: i32,
    /// Bytes in memory, without swap.
    pub resident_bytes: u64,
    /// The host had no memory left. The sandbox's own limit was not reached.
    pub of_host: bool,
}

/// A refusal or a failed setup: the step, the reason and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{step}: {message}")]
pub struct Failure {
    /// The step, as named in `docs/sandbox.md`, such as `mount workspace`.
    pub step: String,
    pub message: String,
    /// The remedy, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// Whether `version` is allowed in [`ClaudeBinary::Version`]: it becomes a part of a path.
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
