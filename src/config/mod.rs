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
mod evals_keys;
pub mod foreign;
mod keys;
mod load;
mod reload;
mod server_keys;
mod units;

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use ash_model::{Layer, Limits};

pub use keys::reference;
pub use load::{ConfigErrors, DEFAULT_FILE};
pub use reload::{Live, Reload, Source, compare};

/// The Claude Code version this ashd was measured with.
pub const CLAUDE_VERSION: &str = "2.1.330";

/// Everything an admin can set, with the default of each. Keys are those of `ashd.toml`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Config {
    /// The file it was read from, which need not exist; no key, and not handed on as a value. Its directory is none for agents.
    #[serde(skip)]
    pub file: Option<PathBuf>,
    pub server: ServerConfig,
    /// `ASH_DATA_DIR`, default `/var/lib/ashd`: database, agents, session directories.
    pub data_dir: PathBuf,
    /// `ASH_RUN_DIR`: sockets and what must not outlive a boot; default `/run/ashd`.
    pub run_dir: PathBuf,
    pub auth: AuthConfig,
    pub claude: ClaudeConfig,
    pub pool: PoolConfig,
    pub pause: PauseConfig,
    pub sessions: SessionsConfig,
    pub limits: Limits,
    #[serde(default)]
    pub tenants: TenantsConfig,
    pub disk: DiskConfig,
    pub confinement: ConfinementConfig,
    pub agents: AgentsConfig,
    pub attachments: AttachmentsConfig,
    #[serde(default)]
    pub evals: EvalsConfig,
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
    /// Connections over TCP, default 8192; fewer where the process may not open that many files.
    pub max_connections: usize,
    /// The same from one address other than loopback, default 4096.
    pub max_connections_per_address: usize,
    /// Streams of events (`POST .../messages`, `GET .../stream`) that one tenant may have open, default 2000.
    pub streams_per_tenant: u32,
    /// Other requests of one tenant that are being answered at once, default 1000.
    pub concurrent_requests_per_tenant: u32,
    /// Bytes of memory that requests and answers of all tenants may use, default 1 GiB.
    pub request_memory: u64,
    /// The same of one tenant, default 384 MiB. A request of n bytes counts as 2 n.
    pub request_memory_per_tenant: u64,
    /// Milliseconds from a connection to the end of its first request's headers, default 10000.
    pub head_timeout_ms: u64,
    /// Milliseconds from an answer to the end of the next request's headers on the same connection, default 75000.
    pub idle_timeout_ms: u64,
    /// Milliseconds in which nothing of an answer could be written until its client is given up, default 30000.
    pub stall_timeout_ms: u64,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            host: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            port: 4100,
            cors_origins: Vec::new(),
            requests_per_minute: 0,
            max_connections: 8192,
            max_connections_per_address: 4096,
            streams_per_tenant: 2000,
            concurrent_requests_per_tenant: 1000,
            request_memory: 1 << 30,
            request_memory_per_tenant: 384 << 20,
            head_timeout_ms: 10_000,
            idle_timeout_ms: 75_000,
            stall_timeout_ms: 30_000,
        }
    }
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
    /// `ASH_CLAUDE_DIR`, default `/var/lib/ash-claude`: installed versions, `<dir>/<version>/claude`. Root's alone.
    pub dir: PathBuf,
    /// The version to run; default the one this ashd was measured with.
    pub version: String,
}

impl ClaudeConfig {
    /// The binary that sessions run.
    pub fn program(&self) -> PathBuf {
        self.binary.clone().unwrap_or_else(|| self.dir.join(&self.version).join("claude"))
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PoolConfig {
    /// `ASH_MAX_SANDBOXES`, default 1000.
    pub max_sandboxes: usize,
    /// Most live sandboxes of one tenant, default none: any number of them, as long as no tenant that holds less needs a place.
    #[serde(default)]
    pub max_sandboxes_per_tenant: Option<usize>,
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

/// What a tenant may store, over files and database.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TenantsConfig {
    /// Bytes of each tenant for which an admin says nothing else (`storageBytes`), default 10 GiB: ten sessions with their
    /// disks full. At the limit new sessions, messages and uploads are refused (507).
    pub storage_bytes: u64,
    /// The most that an admin may give a tenant, default 1 TiB.
    pub storage_ceiling_bytes: u64,
}

impl Default for TenantsConfig {
    fn default() -> Self {
        Self { storage_bytes: 10 << 30, storage_ceiling_bytes: 1 << 40 }
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DiskConfig {
    /// Bytes of the data directory's file system below which nothing new is begun (507). Without it: 1 GiB, or 5 % of the
    /// file system if that is less.
    pub reserve_bytes: Option<u64>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct AgentsConfig {
    /// Directories below which `path` of `POST /api/agents` must lie, at the deployment and at each use. Empty: any that ashd can
    /// read, named by a key with the admin role only.
    pub roots: Vec<PathBuf>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AttachmentsConfig {
    /// `ASH_MAX_ATTACHMENT_SIZE`: bytes of one attachment, default 10 MiB. A larger one is answered 413.
    pub max_bytes: u64,
}

/// Runs of eval cases.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EvalsConfig {
    /// Cases of one tenant that are worked on at the same time, each in a session of its own, default 2; 1 to 64.
    pub cases_at_once: u32,
    /// Milliseconds from the question of a case until it fails without an answer, default 10 minutes.
    pub case_ms: u64,
}

impl Default for EvalsConfig {
    fn default() -> Self {
        Self { cases_at_once: 2, case_ms: 600_000 }
    }
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
    /// `ASH_GATEWAY_STATE_DIR`: where the gateway keeps the record of usage that ashd has not taken yet, when ashd starts it.
    /// Default: `/var/lib/ash-gateway` beside `/var/lib/ashd`, else the data directory's name with `-gateway`.
    pub state_dir: Option<PathBuf>,
    /// `ASH_ALLOW_INSECURE_UPSTREAM`: allow an `http://` upstream on another host, which sends the key in clear.
    pub allow_insecure_upstream: bool,
}

impl Config {
    /// The gateway's state directory.
    pub fn gateway_state_dir(&self) -> PathBuf {
        if let Some(directory) = &self.gateway.state_dir {
            return directory.clone();
        }
        if self.data_dir == Path::new("/var/lib/ashd") {
            return "/var/lib/ash-gateway".into();
        }
        let mut beside = self.data_dir.components().as_path().as_os_str().to_owned();
        beside.push("-gateway");
        beside.into()
    }
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
            file: None,
            server: ServerConfig::default(),
            data_dir: "/var/lib/ashd".into(),
            run_dir: "/run/ashd".into(),
            auth: AuthConfig::default(),
            claude: ClaudeConfig {
                binary: None,
                dir: ash_model::CLAUDE_DIR.into(),
                version: CLAUDE_VERSION.to_owned(),
            },
            pool: PoolConfig {
                max_sandboxes: 1000,
                max_sandboxes_per_tenant: None,
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
            tenants: TenantsConfig::default(),
            disk: DiskConfig::default(),
            confinement: ConfinementConfig { floor: Layer::ALL.to_vec(), landlock_abi: 2 },
            agents: AgentsConfig::default(),
            attachments: AttachmentsConfig { max_bytes: 10 << 20 },
            evals: EvalsConfig::default(),
            gateway: GatewayConfig {
                upstream: Upstream::Offline,
                api_key: None,
                custom_headers: Vec::new(),
                user: "ash-gateway".to_owned(),
                state_dir: None,
                allow_insecure_upstream: false,
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
