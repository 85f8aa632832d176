//! Configuration: one typed struct per concern; file, drop-ins, environment (later wins).

use std::net::IpAddr;
use std::path::PathBuf;

use crate::model::Limits;

/// Everything an admin can set, with the default of each. Keys are those of `ashd.toml`.
#[derive(Clone, Debug)]
pub struct Config {
    pub server: ServerConfig,
    /// `ASH_DATA_DIR`, default `/var/lib/ashd`: database, agents, session directories, claude versions.
    pub data_dir: PathBuf,
    /// Sockets and what must not outlive a boot; default `/run/ashd`.
    pub run_dir: PathBuf,
    pub auth: AuthConfig,
    pub claude: ClaudeConfig,
    pub pool: PoolConfig,
    pub limits: Limits,
    pub agents: AgentsConfig,
    pub gateway: GatewayConfig,
    pub launcher: LauncherConfig,
}

#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// `ASH_HOST`, default 0.0.0.0 (contract; the packaged file says 127.0.0.1).
    pub host: IpAddr,
    /// `ASH_PORT`, default 4100; 0 picks a free one, logged and written to `<run dir>/port`.
    pub port: u16,
    /// Origins that browsers may call from; none by default.
    pub cors_origins: Vec<String>,
}

#[derive(Clone, Debug, Default)]
pub struct AuthConfig {
    /// `ASH_API_KEY`: single-tenant mode.
    pub api_key: Option<String>,
}

#[derive(Clone, Debug)]
pub struct ClaudeConfig {
    /// `ASH_CLAUDE_BIN`: a binary instead of the installed one.
    pub binary: Option<PathBuf>,
    /// The version to run; default the one this ashd was measured with.
    pub version: String,
}

#[derive(Clone, Debug)]
pub struct PoolConfig {
    /// `ASH_MAX_SANDBOXES`, default 1000.
    pub max_sandboxes: usize,
    /// `ASH_IDLE_TIMEOUT_MS`, default 1800000.
    pub idle_timeout_ms: u64,
}

#[derive(Clone, Debug, Default)]
pub struct AgentsConfig {
    /// Directories below which `path` of `POST /api/agents` must lie. Empty: any that ashd can read, for tenant `default` only.
    pub roots: Vec<PathBuf>,
}

#[derive(Clone)]
pub struct GatewayConfig {
    pub upstream: Upstream,
    /// `ANTHROPIC_API_KEY`. Only the gateway's process may read it.
    pub api_key: Option<String>,
    /// `ANTHROPIC_CUSTOM_HEADERS`, one `Name: value` a line.
    pub custom_headers: Vec<(String, String)>,
    /// User the gateway runs as when ashd starts it.
    pub user: String,
}

impl std::fmt::Debug for GatewayConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GatewayConfig").field("upstream", &self.upstream).finish_non_exhaustive()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// The scripted model inside the gateway. The default when there is no `ANTHROPIC_API_KEY`.
    Offline,
    /// A base URL (`ANTHROPIC_BASE_URL`), default `https://api.anthropic.com`.
    Url(String),
}

#[derive(Clone, Debug)]
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
