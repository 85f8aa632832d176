//! Decides which changes of the configuration a running ashd applies, and which need a restart.
//!
//! ```text
//!   Source (file, drop-ins, environment at start) --read--> Config --compare--> Reload
//!                                                                                 |
//!   Live::take_over <--- config (fixed keys keep their value), names of both kinds+
//! ```
//!
//! An error changes nothing: an unreadable or invalid file leaves the whole old configuration in
//! force.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::load::{self, ConfigErrors, DEFAULT_FILE};
use super::{ClaudeConfig, Config, ServerConfig, check, keys};

/// Keys (or, with a final dot, sections) that are used only at the start: sockets, directories,
/// keys for derivation, and settings of the other processes.
const FIXED: [&str; 17] = [
    "data_dir",
    "run_dir",
    "server.host",
    "server.port",
    "server.cors_origins",
    "server.max_connections",
    "server.max_connections_per_address",
    "server.request_memory",
    "server.request_memory_per_tenant",
    "server.head_timeout_ms",
    "server.idle_timeout_ms",
    "server.stall_timeout_ms",
    "auth.",
    "claude.binary",
    "claude.dir",
    "gateway.",
    "launcher.",
];

/// Replaces values that only the gateway may have in the environment of a [`Source`]: their
/// presence still decides the default upstream.
const WITHHELD: &str = "withheld";

/// Where a configuration comes from, to read it again, also in the stage of ashd without its own
/// environment.
#[derive(Clone, Serialize, Deserialize)]
pub struct Source {
    file: PathBuf,
    /// A named file must exist; the default one need not.
    required: bool,
    environment: BTreeMap<String, String>,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&String> = self.environment.keys().collect();
        f.debug_struct("Source").field("file", &self.file).field("variables", &names).finish_non_exhaustive()
    }
}

impl Source {
    /// The source of this process: `path`, or `/etc/ashd/ashd.toml`.
    ///
    /// # Errors
    /// A variable that is not UTF-8, or a relative path below a removed directory.
    pub fn here(path: Option<&Path>) -> Result<Self, ConfigErrors> {
        let (file, required) = path.map_or((PathBuf::from(DEFAULT_FILE), false), |path| (path.to_owned(), true));
        // The daemon changes its working directory.
        let file = std::path::absolute(&file).map_err(|e| ConfigErrors(vec![format!("{}: {e}", file.display())]))?;
        Ok(Self { file, required, environment: load::environment()? })
    }

    /// Reads file, drop-ins and environment.
    ///
    /// # Errors
    /// All errors, see [`Config::load`].
    pub fn read(&self) -> Result<Config, ConfigErrors> {
        let layers = load::read(&self.file, self.required).map_err(|line| ConfigErrors(vec![line]))?;
        Ok(Config { file: Some(self.file.clone()), ..load::merge(&layers, &self.environment)? })
    }

    /// The file, which need not exist.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Without the values that only the gateway may have.
    pub fn without_model_key(mut self) -> Self {
        for name in ["ANTHROPIC_API_KEY", "ANTHROPIC_CUSTOM_HEADERS"] {
            if let Some(value) = self.environment.get_mut(name).filter(|value| !value.trim().is_empty()) {
                *value = if name.ends_with("HEADERS") { format!("{WITHHELD}: 1") } else { WITHHELD.to_owned() };
            }
        }
        self
    }
}

/// A new configuration, compared with the current one.
#[derive(Clone, Debug)]
pub struct Reload {
    /// The configuration to apply.
    pub config: Config,
    /// Keys with a new value in it.
    pub changed: Vec<&'static str>,
    /// Changed keys that keep their old value until ashd is restarted.
    pub needs_restart: Vec<&'static str>,
}

/// # Errors
/// New and fixed values cannot work together (a limit above the ceiling of the start); nothing
/// changes then.
pub fn compare(now: &Config, read: Config) -> Result<Reload, ConfigErrors> {
    let (old, new) = (values(now), values(&read));
    let differ = keys::all().map(|key| key.name).filter(|name| at(&old, name) != at(&new, name));
    let (needs_restart, changed): (Vec<_>, Vec<_>) = differ.partition(|name| is_fixed(name));
    let config = Config {
        data_dir: now.data_dir.clone(),
        run_dir: now.run_dir.clone(),
        server: ServerConfig {
            requests_per_minute: read.server.requests_per_minute,
            streams_per_tenant: read.server.streams_per_tenant,
            concurrent_requests_per_tenant: read.server.concurrent_requests_per_tenant,
            ..now.server.clone()
        },
        auth: now.auth.clone(),
        claude: ClaudeConfig { version: read.claude.version, ..now.claude.clone() },
        gateway: now.gateway.clone(),
        launcher: now.launcher.clone(),
        ..read
    };
    let wrong = check::check(&config);
    if wrong.is_empty() { Ok(Reload { config, changed, needs_restart }) } else { Err(ConfigErrors(wrong)) }
}

fn is_fixed(key: &str) -> bool {
    FIXED.iter().any(|fixed| if fixed.ends_with('.') { key.starts_with(fixed) } else { key == *fixed })
}

fn values(config: &Config) -> Value {
    serde_json::to_value(config).expect("plain data has a JSON form")
}

/// The value of a key in the serialised `Config`, where limits are spelled as in the API.
fn at<'a>(config: &'a Value, key: &str) -> Option<&'a Value> {
    key.split('.').try_fold(config, |value, word| value.get(word).or_else(|| value.get(camel(word))))
}

fn camel(word: &str) -> String {
    let mut parts = word.split('_');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |all, part| {
        let (head, rest) = part.split_at(part.len().min(1));
        all + &head.to_ascii_uppercase() + rest
    })
}

/// The current configuration. Cheap to clone; all clones see a reload.
#[derive(Clone, Debug)]
pub struct Live(Arc<RwLock<Arc<Config>>>);

impl Live {
    /// The current values. Do not keep the result, so that a reload takes effect.
    pub fn now(&self) -> Arc<Config> {
        // Only replaced as a whole, so a panic elsewhere cannot have damaged it.
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn take_over(&self, config: Config) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
    }
}

impl From<Arc<Config>> for Live {
    fn from(config: Arc<Config>) -> Self {
        Self(Arc::new(RwLock::new(config)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_found_in_the_configuration() {
        let mut config = Config::default();
        // Unlimited values are left out.
        for limits in [&mut config.limits, &mut config.launcher.ceiling] {
            (limits.io_read_bps, limits.io_write_bps, limits.io_read_iops, limits.io_write_iops) = (1, 1, 1, 1);
        }
        let config = values(&config);
        for key in keys::all() {
            // Secrets of the gateway and values that only choose the upstream are not handed over.
            let kept = !["gateway.api_key", "gateway.custom_headers", "gateway.base_url"].contains(&key.name);
            assert_eq!(at(&config, key.name).is_some(), kept, "{}", key.name);
        }
        assert_eq!(
            (camel("memory_bytes"), camel("pids"), camel("a_")),
            ("memoryBytes".into(), "pids".into(), "a".into())
        );
    }

    #[test]
    fn what_is_fixed_keeps_its_value_and_is_named() {
        let now = Config::default();
        let mut read = Config { data_dir: "/elsewhere".into(), ..Config::default() };
        read.server.port = 1;
        read.claude.binary = Some("/c".into());
        read.claude.version = "9.9.9".into();
        read.pool.max_sandboxes = 3;
        read.limits.pids = 99;
        read.auth.api_key = Some("planted".into());
        let reload = compare(&now, read).unwrap();
        let mut fixed = reload.needs_restart;
        fixed.sort_unstable();
        assert_eq!(fixed, ["auth.api_key", "claude.binary", "data_dir", "server.port"]);
        assert_eq!(reload.changed, ["claude.version", "pool.max_sandboxes", "limits.pids"]);
        let config = reload.config;
        assert_eq!((config.data_dir, config.server.port, config.claude.binary), (now.data_dir, 4100, None));
        assert_eq!((config.pool.max_sandboxes, config.limits.pids), (3, 99));
        assert!(config.auth.api_key.is_none());
    }

    #[test]
    fn nothing_above_the_ceiling_of_the_start() {
        let mut now = Config::default();
        now.launcher.ceiling.pids = 600;
        let mut read = Config::default();
        read.limits.pids = 700;
        let errors = compare(&now, read).unwrap_err().to_string();
        assert!(errors.contains("launcher.ceiling.pids, which is 600"), "{errors}");
    }

    #[test]
    fn a_source_reads_the_same_again_and_keeps_no_model_key() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ashd.toml");
        std::fs::write(&file, "[pool]\nwarm = 2\n").unwrap();
        let environment =
            [("ANTHROPIC_API_KEY", "planted"), ("ANTHROPIC_CUSTOM_HEADERS", "a: planted"), ("ASH_PORT", "7")];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let source = Source { file: file.clone(), required: true, environment };
        let first = source.read().unwrap();
        let handed = source.without_model_key();
        assert!(
            !serde_json::to_string(&handed).unwrap().contains("planted") && !format!("{handed:?}").contains("withheld")
        );
        let again = compare(&first, handed.read().unwrap()).unwrap();
        assert!(again.changed.is_empty() && again.needs_restart.is_empty(), "{again:?}");
        std::fs::write(&file, "[pool]\nwarn = 2\n").unwrap();
        let errors = handed.read().unwrap_err().to_string();
        assert!(errors.contains("ashd.toml:2") && errors.contains("\"pool.warm\""), "{errors}");
    }
}
