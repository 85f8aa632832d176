//! Types shared by all layers: states, identifiers, limits. Pure data, no I/O.

pub mod bounded;
mod cgroup_paths;
mod clear;
mod layer;
mod limits;
pub mod names;
pub mod processes;
pub mod raw;
pub mod skipped;
pub mod variables;

use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

pub use cgroup_paths::CgroupPaths;
pub use clear::sends_in_clear;
pub use layer::{Layer, floor};
pub use limits::{Limit, Limits, PartialLimits, UNLIMITED};
pub use raw::RawJson;
pub use skipped::Skipped;
pub use variables::{VariableError, Variables};

/// Where versions of Claude Code are installed, as `<dir>/<version>/claude`, unless configured
/// otherwise. Only root may write there, because root and the launcher use these files.
pub const CLAUDE_DIR: &str = "/var/lib/ash-claude";

/// State of a session. The API, SQLite, metrics and logs use the same words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum SessionStatus {
    Starting,
    Active,
    Paused,
    Stopped,
    Ended,
    Error,
}

impl SessionStatus {
    pub const ALL: [Self; 6] = [Self::Starting, Self::Active, Self::Paused, Self::Stopped, Self::Ended, Self::Error];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Active => "active",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Ended => "ended",
            Self::Error => "error",
        }
    }
}

impl fmt::Display for SessionStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for SessionStatus {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|s| s.as_str() == word).ok_or_else(|| {
            format!("\"{word}\" is not a session status (starting, active, paused, stopped, ended, error)")
        })
    }
}

/// State of a sandbox in the pool, as in `/health`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum SandboxState {
    /// No process. The directory is kept.
    Cold,
    /// Being set up.
    Warming,
    /// Ready and not assigned to a session.
    Warm,
    /// Assigned to a session, between turns (frozen or not).
    Waiting,
    /// Assigned to a session, in a turn.
    Running,
}

/// A tenant's name: `[A-Za-z0-9_-]{1,64}`. It becomes a cgroup name, so it is checked on input.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(try_from = "String", into = "String")]
#[cfg_attr(feature = "schema", schema(value_type = String))]
pub struct TenantId(String);

impl TenantId {
    /// The tenant of single-tenant mode.
    pub fn default_tenant() -> Self {
        Self("default".to_owned())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for TenantId {
    type Error = String;
    fn try_from(name: String) -> Result<Self, String> {
        let fits =
            (1..=64).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        if fits {
            Ok(Self(name))
        } else {
            Err(format!("tenant id \"{name}\" must be 1 to 64 characters of A-Z a-z 0-9 _ -"))
        }
    }
}

impl FromStr for TenantId {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, String> {
        Self::try_from(name.to_owned())
    }
}

impl From<TenantId> for String {
    fn from(id: TenantId) -> Self {
        id.0
    }
}

/// Milliseconds since the epoch. Times are stored in this form.
pub type Millis = i64;

pub fn now_ms() -> Millis {
    jiff::Timestamp::now().as_millisecond()
}

/// The current time for removing old data: the wall clock, but never ahead of the time that passed
/// since the first call. If the clock jumps forward, not everything becomes old at once. If it
/// jumps back, data is kept longer.
pub fn past_ms() -> Millis {
    static BEGAN: LazyLock<(Millis, Instant)> = LazyLock::new(|| (now_ms(), Instant::now()));
    let (began, at) = *BEGAN;
    not_ahead(now_ms(), began, at.elapsed())
}

fn not_ahead(now: Millis, began: Millis, passed: Duration) -> Millis {
    now.min(began.saturating_add(Millis::try_from(passed.as_millis()).unwrap_or(Millis::MAX)))
}

/// ISO 8601 with milliseconds and `Z`, as used for every time on the wire.
pub fn iso(ms: Millis) -> String {
    let at = jiff::Timestamp::from_millisecond(ms).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    format!("{at:.3}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_jumps_makes_nothing_older_than_it_is() {
        let passed = Duration::from_millis(500);
        assert_eq!(not_ahead(10_500, 10_000, passed), 10_500);
        assert_eq!(not_ahead(99_999_999, 10_000, passed), 10_500, "jumped ahead");
        assert_eq!(not_ahead(3_000, 10_000, passed), 3_000, "jumped back");
        assert!(past_ms() <= now_ms());
    }

    #[test]
    fn times_have_three_decimals_and_z() {
        assert_eq!(iso(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(iso(1_768_471_200_007), "2026-01-15T10:00:00.007Z");
    }

    #[test]
    fn every_status_word_round_trips() {
        for status in SessionStatus::ALL {
            assert_eq!(status.as_str().parse::<SessionStatus>(), Ok(status));
            assert_eq!(serde_json::to_string(&status).ok(), Some(format!("\"{status}\"")));
        }
        assert!("running".parse::<SessionStatus>().is_err());
    }

    #[test]
    fn tenant_names_cannot_leave_a_directory() {
        for good in ["default", "a", "A-b_9"] {
            assert!(good.parse::<TenantId>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a.b", "ü", "a b", &"x".repeat(65)] {
            assert!(bad.parse::<TenantId>().is_err(), "{bad}");
        }
    }
}
