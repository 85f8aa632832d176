//! Configuration: one typed struct per concern.
//!
//! ```text
//!   defaults < /etc/ashd/ashd.toml < /etc/ashd/ashd.toml.d/*.toml (by name) < environment
//!   later values replace earlier ones, key by key
//! ```
//!
//! `keys` is the table of all keys: name in the file, variable, expected value. `load` reads the
//! files and merges them (the merge is pure); `units` parses `"2GiB"` and `"30m"`; `check` refuses
//! what cannot work together; `reload` decides what a running ashd applies. An error names file,
//! line and key; all errors are reported at once.

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

/// The Claude Code version this ashd is tested with.
pub const CLAUDE_VERSION: &str = "2.1.330";

/// Everything an admin can set, with its default. The keys are those of `ashd.toml`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Config {
    /// The file it was read from, which need not exist; not a key and not handed over. Agents must
    /// not use its directory.
    #[serde(skip)]
    pub file: Option<PathBuf>,
    pub server: ServerConfig,
    /// `ASH_DATA_DIR`, default `/var/lib/ashd`: database, agents, session directories.
    pub data_dir: PathBuf,
    /// `ASH_RUN_DIR`, default `/run/ashd`: sockets and what must not outlive a boot.
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
    /// `ASH_HOST`, default 0.0.0.0 (the packaged file sets 127.0.0.1).
    pub host: IpAddr,
    /// `ASH_PORT`, default 4100; 0 picks a free one, logged and written to `<run dir>/port`.
    pub port: u16,
    /// Origins that browsers may call from; none by default.
    pub cors_origins: Vec<String>,
    /// Requests per tenant and minute, default 0: unlimited.
    pub requests_per_minute: u32,
    /// TCP connections, default 8192; fewer if the process may not open that many files.
    pub max_connections: usize,
    /// TCP connections from one address other than loopback, default 4096.
    pub max_connections_per_address: usize,
    /// Open event streams (`POST .../messages`, `GET .../stream`) per tenant, default 2000.
    pub streams_per_tenant: u32,
    /// Other concurrent requests per tenant, default 1000.
    pub concurrent_requests_per_tenant: u32,
    /// Bytes of memory for requests and answers of all tenants, default 1 GiB.
    pub request_memory: u64,
    /// The same per tenant, default 384 MiB. A request of n bytes counts as 2 n.
    pub request_memory_per_tenant: u64,
    /// Milliseconds from a connection to the end of its first request's headers, default 10000.
    pub head_timeout_ms: u64,
    /// Milliseconds from an answer to the end of the next request's headers on the connection,
    /// default 75000.
    pub idle_timeout_ms: u64,
    /// Milliseconds without progress in writing an answer until the connection is closed, default
    /// 30000.
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
    /// `ASH_CREDENTIAL_KEY`: seals the credentials of tenants. Without it (and without systemd's
    /// `LoadCredential=credential_key`), ashd keeps a random one in `<data dir>/credential-key`.
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
    /// `ASH_CLAUDE_DIR`, default `/var/lib/ash-claude`: installed versions,
    /// `<dir>/<version>/claude`. Only root can change it.
    pub dir: PathBuf,
    /// The version to run; default [`CLAUDE_VERSION`].
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
    /// Maximum live sandboxes per tenant. Default none: unlimited, as long as no tenant with fewer
    /// needs a slot.
    #[serde(default)]
    pub max_sandboxes_per_tenant: Option<usize>,
    /// `ASH_IDLE_TIMEOUT_MS`, default 1800000.
    pub idle_timeout_ms: u64,
    /// Warm sandboxes per agent without its own value (`PATCH /api/agents/:name/warm`), default 0,
    /// at most 100.
    pub warm: u32,
    /// Parked sandboxes (confined and empty, for any next session), default 1, at most 100.
    pub parked: u32,
    /// Milliseconds without a turn after which an active session's sandbox may be evicted for
    /// another session, default 60000.
    pub evict_after_ms: u64,
    /// Bytes of memory that must be available on the host for a new sandbox, default 128 MiB.
    pub min_available_bytes: u64,
    /// Percent of time stalled on memory (PSI, full avg10) from which no new sandbox starts,
    /// default 50.
    pub max_stalled_percent: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PauseConfig {
    /// Milliseconds without a turn after which an idle session is frozen, default 2000; 0: never.
    pub freeze_after_ms: u64,
    /// Milliseconds a turn may stay frozen before it is interrupted, default 150000. 180 s is safe;
    /// at 330 s claude repeats its request to the model, and the owner pays twice (measured).
    pub max_in_turn_ms: u64,
    /// Milliseconds after a pause until its memory is reclaimed to swap, default 2000, so that an
    /// immediate resume finds it in place.
    pub reclaim_after_ms: u64,
    /// The same after the last turn of a frozen session that is not paused, default 60000; 0:
    /// never.
    pub reclaim_idle_after_ms: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SessionsConfig {
    /// Milliseconds that the files of an ended session are kept, default 7 days.
    #[serde(rename = "keep_ended")]
    pub keep_ended_ms: u64,
}

/// No session starts below this floor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ConfinementConfig {
    /// Layers that must be measured in force; default all of them.
    pub floor: Vec<Layer>,
    /// Minimum version of landlock's ABI, default 2 (Linux 5.19; Debian 12 has it). The launcher
    /// has its own floor.
    pub landlock_abi: u32,
}

/// Storage limits of tenants, over files and database.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TenantsConfig {
    /// Bytes per tenant without an admin's value (`storageBytes`), default 10 GiB: ten sessions
    /// with full disks. At the limit, new sessions, messages and uploads are refused (507).
    pub storage_bytes: u64,
    /// Maximum that an admin can set for a tenant, default 1 TiB.
    pub storage_ceiling_bytes: u64,
}

impl Default for TenantsConfig {
    fn default() -> Self {
        Self { storage_bytes: 10 << 30, storage_ceiling_bytes: 1 << 40 }
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DiskConfig {
    /// Free bytes of the data directory's file system below which new work is refused (507).
    /// Default: 1 GiB, or 5 % of the file system if that is less.
    pub reserve_bytes: Option<u64>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct AgentsConfig {
    /// Directories that must contain the `path` of `POST /api/agents`, at the deployment and at
    /// each use. Empty: any that ashd can read, but only for keys with the admin role.
    pub roots: Vec<PathBuf>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AttachmentsConfig {
    /// `ASH_MAX_ATTACHMENT_SIZE`: bytes of one attachment, default 10 MiB. A larger one is answered
    /// 413.
    pub max_bytes: u64,
}

/// Runs of eval cases.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EvalsConfig {
    /// Concurrent cases of one tenant, each in its own session, default 2; 1 to 64.
    pub cases_at_once: u32,
    /// Milliseconds until a case without an answer fails, default 10 minutes.
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
    /// `ANTHROPIC_API_KEY`. Only the gateway may read it: it is not handed over to the unprivileged
    /// ashd.
    #[serde(skip)]
    pub api_key: Option<String>,
    /// `ANTHROPIC_CUSTOM_HEADERS`, one `Name: value` per line. Often a secret, so not handed over
    /// either.
    #[serde(skip)]
    pub custom_headers: Vec<(String, String)>,
    /// User of a gateway that ashd starts.
    pub user: String,
    /// `ASH_GATEWAY_STATE_DIR`: directory of the ledgers of a gateway that ashd starts. Default:
    /// `/var/lib/ash-gateway` beside `/var/lib/ashd`, else the data directory's name with
    /// `-gateway`.
    pub state_dir: Option<PathBuf>,
    /// `ASH_ALLOW_INSECURE_UPSTREAM`: allow an `http://` upstream on another host, which sends the
    /// key in clear.
    pub allow_insecure_upstream: bool,
}

impl Config {
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
    /// The scripted model in the gateway. The default without `ANTHROPIC_API_KEY`.
    Offline,
    /// A base URL (`ANTHROPIC_BASE_URL`), default `https://api.anthropic.com`.
    Url(String),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LauncherConfig {
    /// User of an ashd that was started as root.
    pub user: String,
    /// First host uid of the sandboxes' range, and its size (two uids per sandbox).
    pub uid_base: u32,
    pub uid_count: u32,
    /// Name of the cgroup of all sandboxes, if systemd does not provide one.
    pub cgroup: String,
    /// Maximum for every sandbox.
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
                // systemd documents 1879048192 to 2147483647 as unused (docs/UIDS-GIDS.md of
                // systemd).
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
