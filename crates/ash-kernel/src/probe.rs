//! Measures the confinement of a sandbox from inside: facts from the kernel, and attempts that must
//! fail or must work.
//!
//! ```text
//!   ashd --Spawn /opt/ashd/ash-probe--> init --fork, confine, execve--> measure() --JSON--> ashd
//!                                       (the same path as claude)
//! ```
//!
//! The intentions of the setup are not trusted. A refusal with another errno than the layer's own
//! counts as not refused: the call passed the layer and failed for another reason.

mod attempts;
mod calls;
mod facts;

use std::collections::BTreeMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use ash_model::Layer;
pub use facts::{Capabilities, Mount};

/// The result of [`measure`]. Plain data, used on both ends of the pipe and in a session's report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", schema(as = ConfinementMeasured))]
pub struct Measured {
    /// Landlock ABI as seen inside. 0: no landlock.
    pub landlock_abi: u32,
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Lines of /proc/self/uid_map: inside, outside, count.
    pub uid_map: Vec<[u32; 3]>,
    pub gid_map: Vec<[u32; 3]>,
    pub capabilities: Capabilities,
    pub no_new_privs: bool,
    /// 0 none, 1 strict, 2 filter (proc(5)).
    pub seccomp_mode: u32,
    pub seccomp_filters: u32,
    /// Inode number of each namespace in /proc/self/ns.
    pub namespaces: BTreeMap<String, u64>,
    /// Lines of /proc/self/cgroup as seen inside.
    pub cgroups: Vec<String>,
    pub mounts: Vec<Mount>,
    pub interfaces: Vec<String>,
    /// Listening TCP addresses.
    pub listeners: Vec<String>,
    pub probes: Vec<Probe>,
    /// Duration of the measurement in microseconds, without the start of the process.
    pub micros: u64,
}

/// One attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", schema(as = ConfinementProbe))]
pub struct Probe {
    #[cfg_attr(feature = "schema", schema(example = "mount a tmpfs"))]
    pub name: String,
    /// The tested layer. Absent if the attempt must work.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub layer: Option<Layer>,
    /// `works`, or the errnos that count as a refusal.
    #[cfg_attr(feature = "schema", schema(example = "EPERM"))]
    pub expected: String,
    /// `works`, or the errno.
    #[cfg_attr(feature = "schema", schema(example = "EPERM"))]
    pub observed: String,
    pub ok: bool,
}

/// Measures this process and runs all attempts.
pub fn measure() -> Measured {
    let began = Instant::now();
    let mut measured = facts::collect();
    measured.probes = attempts::all().iter().map(attempts::Attempt::run).collect();
    measured.micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    measured
}
