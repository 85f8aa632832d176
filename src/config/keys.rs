//! The table of all configuration keys, for the file and the environment.

use std::path::PathBuf;

use toml::de::DeValue;

use super::{Config, Upstream, evals_keys, server_keys, units};
use ash_model::Limits;

/// A configuration while the layers are applied.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub config: Config,
    /// `gateway.upstream` if set; otherwise it follows from the key and the base URL.
    pub upstream: Option<Upstream>,
    pub base_url: Option<String>,
}

pub(super) struct Key {
    /// Dotted path in the file.
    pub name: &'static str,
    /// Environment variable.
    pub env: Option<&'static str>,
    /// The rest of "expected ...".
    pub expects: &'static str,
    /// Never shown, not even in errors.
    pub secret: bool,
    /// Returns `None` for an invalid value.
    set: fn(&mut Draft, &Given<'_>) -> Option<()>,
}

impl Key {
    pub fn apply(&self, draft: &mut Draft, given: &Given<'_>) -> Option<()> {
        (self.set)(draft, given)
    }
}

/// A value as written.
pub(super) enum Given<'a> {
    Toml(&'a DeValue<'a>),
    Variable(&'a str),
}

impl Given<'_> {
    pub(super) fn text(&self) -> Option<String> {
        match self {
            Self::Toml(value) => value.as_str().map(str::to_owned),
            Self::Variable(text) => Some((*text).to_owned()),
        }
    }

    /// A number, or a text that `read` converts.
    pub(super) fn number(&self, read: fn(&str) -> Option<u64>) -> Option<u64> {
        match self {
            Self::Toml(DeValue::Integer(n)) => u64::from_str_radix(n.as_str(), n.radix()).ok(),
            Self::Toml(value) => read(value.as_str()?),
            Self::Variable(text) => read(text),
        }
    }

    pub(super) fn integer<T: TryFrom<u64>>(&self) -> Option<T> {
        match self {
            Self::Toml(DeValue::Integer(_)) => T::try_from(self.number(|_| None)?).ok(),
            Self::Toml(_) => None,
            Self::Variable(text) => T::try_from(text.trim().parse().ok()?).ok(),
        }
    }

    pub(super) fn list(&self) -> Option<Vec<String>> {
        match self {
            Self::Toml(value) => value.as_array()?.iter().map(|v| v.get_ref().as_str().map(str::to_owned)).collect(),
            Self::Variable(text) => {
                Some(text.split(',').map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect())
            }
        }
    }

    fn path(&self) -> Option<PathBuf> {
        self.text().map(PathBuf::from).filter(|path| path.is_absolute())
    }

    /// The value for the error text.
    pub fn shown(&self, secret: bool) -> String {
        match self {
            Self::Variable(_) if secret => "something else".to_owned(),
            Self::Variable(text) => format!("\"{text}\""),
            Self::Toml(value) => match value.as_str() {
                Some(text) if !secret => format!("\"{text}\""),
                _ => match value {
                    DeValue::Integer(n) if !secret => n.as_str().to_owned(),
                    other => format!("a value of type {}", other.type_str()),
                },
            },
        }
    }
}

pub(super) const fn key(
    name: &'static str,
    env: Option<&'static str>,
    expects: &'static str,
    set: fn(&mut Draft, &Given<'_>) -> Option<()>,
) -> Key {
    Key { name, env, expects, secret: false, set }
}

const fn secret(
    name: &'static str,
    env: Option<&'static str>,
    expects: &'static str,
    set: fn(&mut Draft, &Given<'_>) -> Option<()>,
) -> Key {
    Key { name, env, expects, secret: true, set }
}

pub(super) const SIZE: &str = "a size: bytes, or a text like \"512MiB\" or \"2GiB\"";
pub(super) const TIME: &str = "a time: milliseconds, or a text like \"500ms\", \"30s\", \"10m\" or \"1h\"";
const PATH: &str = "an absolute path";
const NUMBER: &str = "a whole number, 0 or more";
const POSITIVE: &str = "a whole number, 1 or more";
const CORES: &str = "thousandths of a core as a whole number (1000 is one core)";
const FLOOR: &str = "a list of layers, such as [\"all\", \"-landlock\"]: user_namespace mount_namespace pid_namespace \
    ipc_namespace uts_namespace cgroup_namespace network_namespace landlock seccomp capabilities no_new_privs \
    memory_limit cpu_limit pids_limit";
const LEVEL: &str = "a level (error warn info debug trace) or module=level, comma-separated";
const WEIGHT: &str = "a whole number from 1 to 10000 (100 is the usual weight)";

macro_rules! limits {
    ($section:literal, $at:expr) => {
        [
            key(concat!($section, ".memory_bytes"), None, SIZE, |d, g| {
                $at(d).memory_bytes = g.number(units::bytes)?;
                Some(())
            }),
            key(concat!($section, ".swap_bytes"), None, SIZE, |d, g| {
                $at(d).swap_bytes = g.number(units::bytes)?;
                Some(())
            }),
            key(concat!($section, ".cpu_millis"), None, CORES, |d, g| {
                $at(d).cpu_millis = g.integer()?;
                Some(())
            }),
            key(concat!($section, ".cpu_weight"), None, WEIGHT, |d, g| {
                $at(d).cpu_weight = g.integer().filter(|n| (1..=10_000).contains(n))?;
                Some(())
            }),
            key(concat!($section, ".pids"), None, NUMBER, |d, g| {
                $at(d).pids = g.integer()?;
                Some(())
            }),
            key(concat!($section, ".disk_bytes"), None, SIZE, |d, g| {
                $at(d).disk_bytes = g.number(units::bytes)?;
                Some(())
            }),
            key(concat!($section, ".disk_files"), None, NUMBER, |d, g| {
                $at(d).disk_files = g.integer()?;
                Some(())
            }),
            key(concat!($section, ".turn_ms"), None, TIME, |d, g| {
                $at(d).turn_ms = g.number(units::millis)?;
                Some(())
            }),
            key(concat!($section, ".io_read_bps"), None, SIZE, |d, g| {
                $at(d).io_read_bps = g.number(units::bytes).filter(|n| *n > 0)?;
                Some(())
            }),
            key(concat!($section, ".io_write_bps"), None, SIZE, |d, g| {
                $at(d).io_write_bps = g.number(units::bytes).filter(|n| *n > 0)?;
                Some(())
            }),
            key(concat!($section, ".io_read_iops"), None, POSITIVE, |d, g| {
                $at(d).io_read_iops = g.integer().filter(|n| *n > 0)?;
                Some(())
            }),
            key(concat!($section, ".io_write_iops"), None, POSITIVE, |d, g| {
                $at(d).io_write_iops = g.integer().filter(|n| *n > 0)?;
                Some(())
            }),
        ]
    };
}

fn session_limits(draft: &mut Draft) -> &mut Limits {
    &mut draft.config.limits
}

fn ceiling(draft: &mut Draft) -> &mut Limits {
    &mut draft.config.launcher.ceiling
}

static LIMITS: [Key; 12] = limits!("limits", session_limits);
static CEILING: [Key; 12] = limits!("launcher.ceiling", ceiling);

static OTHERS: &[Key] = &[
    key("data_dir", Some("ASH_DATA_DIR"), PATH, |d, g| {
        d.config.data_dir = g.path()?;
        Some(())
    }),
    key("run_dir", Some("ASH_RUN_DIR"), PATH, |d, g| {
        d.config.run_dir = g.path()?;
        Some(())
    }),
    secret("auth.api_key", Some("ASH_API_KEY"), "a text", |d, g| {
        d.config.auth.api_key = Some(g.text().filter(|key| !key.trim().is_empty())?);
        Some(())
    }),
    secret("auth.credential_key", Some("ASH_CREDENTIAL_KEY"), "a text of at least 32 characters", |d, g| {
        d.config.auth.credential_key = Some(g.text().filter(|key| key.len() >= 32)?);
        Some(())
    }),
    key("claude.binary", Some("ASH_CLAUDE_BIN"), PATH, |d, g| {
        d.config.claude.binary = Some(g.path()?);
        Some(())
    }),
    key("claude.dir", Some("ASH_CLAUDE_DIR"), PATH, |d, g| {
        d.config.claude.dir = g.path()?;
        Some(())
    }),
    key("claude.version", None, "a version, such as \"2.1.330\"", |d, g| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        d.config.claude.version =
            g.text().filter(|v| !v.is_empty() && !v.starts_with('.') && v.chars().all(allowed))?;
        Some(())
    }),
    key("pool.max_sandboxes", Some("ASH_MAX_SANDBOXES"), "a whole number, 1 or more", |d, g| {
        d.config.pool.max_sandboxes = g.integer().filter(|n| *n > 0)?;
        Some(())
    }),
    key("pool.max_sandboxes_per_tenant", None, "a whole number (0: any number)", |d, g| {
        d.config.pool.max_sandboxes_per_tenant = Some(g.integer()?).filter(|n| *n > 0);
        Some(())
    }),
    key("pool.idle_timeout_ms", Some("ASH_IDLE_TIMEOUT_MS"), TIME, |d, g| {
        d.config.pool.idle_timeout_ms = g.number(units::millis)?;
        Some(())
    }),
    key("pool.warm", None, "a whole number from 0 to 100", |d, g| {
        d.config.pool.warm = g.integer().filter(|n| *n <= 100)?;
        Some(())
    }),
    key("pool.parked", None, "a whole number from 0 to 100", |d, g| {
        d.config.pool.parked = g.integer().filter(|n| *n <= 100)?;
        Some(())
    }),
    key("pool.evict_after_ms", None, TIME, |d, g| {
        d.config.pool.evict_after_ms = g.number(units::millis)?;
        Some(())
    }),
    key("pool.min_available_bytes", None, SIZE, |d, g| {
        d.config.pool.min_available_bytes = g.number(units::bytes)?;
        Some(())
    }),
    key("pool.max_stalled_percent", None, "a whole number from 1 to 100", |d, g| {
        d.config.pool.max_stalled_percent = g.integer().filter(|n| (1..=100).contains(n))?;
        Some(())
    }),
    key("pause.freeze_after_ms", None, TIME, |d, g| {
        d.config.pause.freeze_after_ms = g.number(units::millis)?;
        Some(())
    }),
    key("pause.max_in_turn_ms", None, TIME, |d, g| {
        d.config.pause.max_in_turn_ms = g.number(units::millis)?;
        Some(())
    }),
    key("pause.reclaim_after_ms", None, TIME, |d, g| {
        d.config.pause.reclaim_after_ms = g.number(units::millis)?;
        Some(())
    }),
    key("pause.reclaim_idle_after_ms", None, TIME, |d, g| {
        d.config.pause.reclaim_idle_after_ms = g.number(units::millis)?;
        Some(())
    }),
    key("sessions.keep_ended", None, TIME, |d, g| {
        d.config.sessions.keep_ended_ms = g.number(units::millis)?;
        Some(())
    }),
    key("confinement.floor", None, FLOOR, |d, g| {
        d.config.confinement.floor = ash_model::floor(&g.list()?).ok()?;
        Some(())
    }),
    key("confinement.landlock_abi", None, "a version of landlock's ABI, 0 for none", |d, g| {
        d.config.confinement.landlock_abi = g.integer()?;
        Some(())
    }),
    key("tenants.storage_bytes", None, SIZE, |d, g| {
        d.config.tenants.storage_bytes = g.number(units::bytes)?;
        Some(())
    }),
    key("tenants.storage_ceiling_bytes", None, SIZE, |d, g| {
        d.config.tenants.storage_ceiling_bytes = g.number(units::bytes)?;
        Some(())
    }),
    key("disk.reserve_bytes", None, SIZE, |d, g| {
        d.config.disk.reserve_bytes = Some(g.number(units::bytes)?);
        Some(())
    }),
    key("agents.roots", None, "a list of absolute paths", |d, g| {
        let roots: Vec<PathBuf> = g.list()?.into_iter().map(PathBuf::from).collect();
        d.config.agents.roots = Some(roots).filter(|roots| roots.iter().all(|path| path.is_absolute()))?;
        Some(())
    }),
    key("attachments.max_bytes", Some("ASH_MAX_ATTACHMENT_SIZE"), SIZE, |d, g| {
        d.config.attachments.max_bytes = g.number(units::bytes)?;
        Some(())
    }),
    key("gateway.upstream", Some("ASH_UPSTREAM"), "\"offline\" or a URL like \"https://api.anthropic.com\"", |d, g| {
        d.upstream = Some(match g.text()?.as_str() {
            "offline" => Upstream::Offline,
            other => Upstream::Url(url(other)?),
        });
        Some(())
    }),
    secret("gateway.api_key", Some("ANTHROPIC_API_KEY"), "a text", |d, g| {
        d.config.gateway.api_key = Some(g.text().filter(|key| !key.trim().is_empty())?);
        Some(())
    }),
    secret(
        "gateway.custom_headers",
        Some("ANTHROPIC_CUSTOM_HEADERS"),
        "headers, one \"Name: value\" a line",
        |d, g| {
            let text = g.text()?;
            let lines = text.lines().filter(|line| !line.trim().is_empty());
            d.config.gateway.custom_headers = lines
                .map(|line| line.split_once(':').map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned())))
                .collect::<Option<_>>()?;
            Some(())
        },
    ),
    key("gateway.user", None, "the name of a user", |d, g| {
        d.config.gateway.user = g.text().filter(|user| !user.is_empty())?;
        Some(())
    }),
    key("gateway.state_dir", Some("ASH_GATEWAY_STATE_DIR"), "an absolute path", |d, g| {
        d.config.gateway.state_dir = Some(PathBuf::from(g.text()?)).filter(|path| path.is_absolute());
        d.config.gateway.state_dir.is_some().then_some(())
    }),
    key("gateway.allow_insecure_upstream", Some("ASH_ALLOW_INSECURE_UPSTREAM"), "true or false", |d, g| {
        d.config.gateway.allow_insecure_upstream = match g {
            Given::Toml(value) => value.as_bool()?,
            Given::Variable(text) => match *text {
                "1" | "true" => true,
                "0" | "false" => false,
                _ => return None,
            },
        };
        Some(())
    }),
    key("launcher.user", None, "the name of a user", |d, g| {
        d.config.launcher.user = g.text().filter(|user| !user.is_empty())?;
        Some(())
    }),
    key("launcher.uid_base", None, "a user id", |d, g| {
        d.config.launcher.uid_base = g.integer()?;
        Some(())
    }),
    key("launcher.uid_count", None, "a number of user ids, two for each sandbox", |d, g| {
        d.config.launcher.uid_count = g.integer()?;
        Some(())
    }),
    key("launcher.cgroup", None, "a name of A-Z a-z 0-9 _ -", |d, g| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        d.config.launcher.cgroup = g.text().filter(|name| !name.is_empty() && name.chars().all(allowed))?;
        Some(())
    }),
    key("log.level", Some("ASH_LOG"), LEVEL, |d, g| {
        let level = g.text().filter(|level| !level.trim().is_empty())?;
        tracing_subscriber::EnvFilter::try_new(&level).ok()?;
        d.config.log.level = Some(level);
        Some(())
    }),
    key("gateway.base_url", Some("ANTHROPIC_BASE_URL"), "a URL like \"https://api.anthropic.com\"", |d, g| {
        d.base_url = Some(url(&g.text()?)?);
        Some(())
    }),
];

pub(super) fn all() -> impl Iterator<Item = &'static Key> {
    server_keys::SERVER.iter().chain(OTHERS).chain(&evals_keys::EVALS).chain(&LIMITS).chain(&CEILING)
}

fn url(text: &str) -> Option<String> {
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"))?;
    (!rest.is_empty() && !rest.starts_with('/')).then(|| text.trim_end_matches('/').to_owned())
}

/// All keys with variable and expected value: the table of `docs/configuration.md` and `ashd
/// --help`.
pub fn reference() -> impl Iterator<Item = (&'static str, Option<&'static str>, &'static str)> {
    all().map(|key| (key.name, key.env, key.expects))
}
