//! Configuration: one typed struct per concern.
//!
//! ```text
//!   defaults < /etc/ashd/ashd.toml < /etc/ashd/ashd.toml.d/*.toml (by name) < environment      later wins, key by key
//! ```
//!
//! `keys` is the one table of everything that can be set: its name in the file, its variable, what it expects. `load` applies
//! it (a pure merge over texts, and a thin shell that reads the files); `units` reads `"2GiB"` and `"30m"`; `check` refuses
//! what cannot work together; `reload` says what a running ashd takes over. An error names file, line and key, and all
//! errors are told at once.

mod check;
mod keys;
mod load;
mod reload;
mod units;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::model::{Layer, Limits};

pub use keys::reference;
pub use load::{ConfigErrors, DEFAULT_FILE};
pub use reload::{Live, Reload, Source, compare};

/// The Claude Code version this ashd was measured with.
pub const CLAUDE_VERSION: &str = "2.1.330";

/// Everything an admin can set, with the default of each. Keys are those of `ashd.toml`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Config {
    pub server: ServerConfig,
    /// `ASH_DATA_DIR`, default `/var/lib/ashd`: database, agents, session directories, claude versions.
    pub data_dir: PathBuf,
    /// `ASH_RUN_DIR`: sockets and what must not outlive a boot; default `/run/ashd`.
    pub run_dir: PathBuf,
    pub auth: AuthConfig,
    pub claude: ClaudeConfig,
    pub pool: PoolConfig,
    pub pause: PauseConfig,
    pub sessions: SessionsConfig,
    pub limits: Limits,
    pub disk: DiskConfig,
    pub confinement: ConfinementConfig,
    pub agents: AgentsConfig,
    pub attachments: AttachmentsConfig,
    pub gateway: GatewayConfig,
    pub launcher: LauncherConfig,
    pub log: LogConfig,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LogConfig {
    /// `ASH_LOG`: a level, or `module=level`, comma-separated; default `info`.
    pub level: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServerConfig {
    /// `ASH_HOST`, default 0.0.0.0 (contract; the packaged file says 127.0.0.1).
    pub host: IpAddr,
    /// `ASH_PORT`, default 4100; 0 picks a free one, logged and written to `<run dir>/port`.
    pub port: u16,
    /// Origins that browsers may call from; none by default.
    pub cors_origins: Vec<String>,
    /// Requests that one tenant may make in a minute; 0, the default: any number.
    pub requests_per_minute: u32,
}

#[derive(Clone, Default, Serialize, Deserialize)]
pub struct AuthConfig {
    /// `ASH_API_KEY`: single-tenant mode.
    pub api_key: Option<String>,
    /// `ASH_CREDENTIAL_KEY`: what the credentials of tenants are sealed with. Without it (and without systemd's
    /// `LoadCredential=credential_key`) a random one is kept in `<data dir>/credential-key`.
    pub credential_key: Option<String>,
}

impl std::fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthConfig").field("single_tenant", &self.api_key.is_some()).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ClaudeConfig {
    /// `ASH_CLAUDE_BIN`: a binary instead of the installed one.
    pub binary: Option<PathBuf>,
    /// The version to run; default the one this ashd was measured with.
    pub version: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PoolConfig {
    /// `ASH_MAX_SANDBOXES`, default 1000.
    pub max_sandboxes: usize,
    /// `ASH_IDLE_TIMEOUT_MS`, default 1800000.
    pub idle_timeout_ms: u64,
    /// Warm sandboxes of each agent that says nothing else (`PATCH /api/agents/:name/warm`), default 0, at most 100.
    pub warm: u32,
    /// Sandboxes kept ready for whatever session comes next, confined and empty, default 1, at most 100; 0: none.
    pub parked: u32,
    /// Milliseconds without a turn after which an active session's sandbox may be given up for another session when
    /// there is no room, default 60000.
    pub evict_after_ms: u64,
    /// Bytes of memory that must be available on the host for a new sandbox, default 128 MiB.
    pub min_available_bytes: u64,
    /// Percent of time stalled for want of memory (PSI, full avg10) from which no new sandbox is started, default 50.
    pub max_stalled_percent: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PauseConfig {
    /// Milliseconds without a turn after which an idle session is frozen by itself, default 2000; 0: never.
    pub freeze_after_ms: u64,
    /// Milliseconds a turn may stay frozen before it is ended by an interrupt, default 150000. 180 s is safe, at 330 s
    /// claude asks the model again and the owner pays twice (measured).
    pub max_in_turn_ms: u64,
    /// Milliseconds after a pause until its memory is pushed out to swap, default 2000: a client that resumes at once
    /// finds it in place.
    pub reclaim_after_ms: u64,
    /// The same for a session that is not paused, from its last turn on (it is frozen by then), default 60000; 0: never.
    pub reclaim_idle_after_ms: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SessionsConfig {
    /// Milliseconds that the files of an ended session are kept, default 7 days.
    #[serde(rename = "keep_ended")]
    pub keep_ended_ms: u64,
}

/// Below this floor no session starts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConfinementConfig {
    /// Layers that must be measured in force; default all of them.
    pub floor: Vec<Layer>,
    /// Least version of landlock's ABI, default 2 (Linux 5.19; Debian 12 has it). The launcher has a floor of its own.
    pub landlock_abi: u32,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DiskConfig {
    /// Bytes of the data directory's file system below which nothing new is begun (507). Without it: 1 GiB, or 5 % of the
    /// file system if that is less.
    pub reserve_bytes: Option<u64>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct AgentsConfig {
    /// Directories below which `path` of `POST /api/agents` must lie. Empty: any that ashd can read, for tenant `default` only.
    pub roots: Vec<PathBuf>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AttachmentsConfig {
    /// `ASH_MAX_ATTACHMENT_SIZE`: bytes of one attachment, default 10 MiB. A larger one is answered 413.
    pub max_bytes: u64,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct GatewayConfig {
    pub upstream: Upstream,
    /// `ANTHROPIC_API_KEY`. Only the gateway's process may read it: it is not handed on to the unprivileged ashd.
    #[serde(skip)]
    pub api_key: Option<String>,
    /// `ANTHROPIC_CUSTOM_HEADERS`, one `Name: value` a line. Often a secret, so not handed on either.
    #[serde(skip)]
    pub custom_headers: Vec<(String, String)>,
    /// User the gateway runs as when ashd starts it.
    pub user: String,
}

impl std::fmt::Debug for GatewayConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GatewayConfig").field("upstream", &self.upstream).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Upstream {
    /// The scripted model inside the gateway. The default when there is no `ANTHROPIC_API_KEY`.
    Offline,
    /// A base URL (`ANTHROPIC_BASE_URL`), default `https://api.anthropic.com`.
    Url(String),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LauncherConfig {
    /// User ashd becomes when it was started as root.
    pub user: String,
    /// First host uid of the range the sandboxes use, and its size (two uids per sandbox).
    pub uid_base: u32,
    pub uid_count: u32,
    /// Name of the cgroup below which all sandboxes are, where systemd does not give one.
    pub cgroup: String,
    /// No sandbox gets more than this.
    pub ceiling: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            server: ServerConfig {
                host: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                port: 4100,
                cors_origins: Vec::new(),
                requests_per_minute: 0,
            },
            data_dir: "/var/lib/ashd".into(),
            run_dir: "/run/ashd".into(),
            auth: AuthConfig::default(),
            claude: ClaudeConfig { binary: None, version: CLAUDE_VERSION.to_owned() },
            pool: PoolConfig {
                max_sandboxes: 1000,
                idle_timeout_ms: 1_800_000,
                warm: 0,
                parked: 1,
                evict_after_ms: 60_000,
                min_available_bytes: 128 << 20,
                max_stalled_percent: 50,
            },
            pause: PauseConfig {
                freeze_after_ms: 2000,
                max_in_turn_ms: 150_000,
                reclaim_after_ms: 2000,
                reclaim_idle_after_ms: 60_000,
            },
            sessions: SessionsConfig { keep_ended_ms: 7 * 86_400_000 },
            limits: Limits::default(),
            disk: DiskConfig::default(),
            confinement: ConfinementConfig { floor: Layer::ALL.to_vec(), landlock_abi: 2 },
            agents: AgentsConfig::default(),
            attachments: AttachmentsConfig { max_bytes: 10 << 20 },
            gateway: GatewayConfig {
                upstream: Upstream::Offline,
                api_key: None,
                custom_headers: Vec::new(),
                user: "ash-gateway".to_owned(),
            },
            log: LogConfig::default(),
            launcher: LauncherConfig {
                user: "ashd".to_owned(),
                // systemd documents 1879048192 to 2147483647 as unused by anybody (docs/UIDS-GIDS.md).
                uid_base: 1_900_000_000,
                uid_count: 131_072,
                cgroup: "ashd".to_owned(),
                ceiling: Limits {
                    memory_bytes: 256 << 30,
                    swap_bytes: 256 << 30,
                    cpu_millis: 128_000,
                    cpu_weight: 10_000,
                    pids: 32_768,
                    disk_bytes: 1 << 40,
                    disk_files: 100_000_000,
                    turn_ms: 7 * 24 * 3_600_000,
                    ..Limits::default()
                },
            },
        }
    }
}
