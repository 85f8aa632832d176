//! Which limits hold for a session, and which level decided each. Pure.
//!
//! ```text
//!   config [limits]   default where no level below sets a value
//!   tenant            \
//!   agent              > each narrows the levels above; the lowest set value holds
//!   session           /
//!   host ceiling      the maximum for all (launcher.ceiling, and the launcher's own)
//! ```
//!
//! An admin may set a tenant above the configuration's default, up to the ceiling; its agents and
//! sessions share that. No level exceeds one above it, whatever was stored when.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::store::StoredLimits;
use ash_model::{Limit, Limits, PartialLimits};

/// The level that decided a limit. On a tie the more general one wins: it must be raised first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Host,
    Config,
    Tenant,
    Agent,
    Session,
}

impl Level {
    /// Name of the level, and where to raise it.
    fn named(self) -> &'static str {
        match self {
            Self::Host => "the host's ceiling (launcher.ceiling in ashd.toml)",
            Self::Config => "the configuration's limit (limits in ashd.toml; an admin can set more)",
            Self::Tenant => "the tenant's limit (/api/tenant/limits)",
            Self::Agent => "the agent's limit (/api/agents/:name/limits)",
            Self::Session => "the session's limit",
        }
    }
}

/// The values of all levels.
#[derive(Clone, Debug)]
pub struct Levels {
    pub ceiling: Limits,
    pub config: Limits,
    pub said: StoredLimits,
}

/// The effective value, and the level that decided it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decided {
    pub value: u64,
    pub by: Level,
}

impl Levels {
    /// A level's value of a limit. The configuration's two levels have one for each limit.
    pub fn said(&self, level: Level, limit: Limit) -> Option<u64> {
        match level {
            Level::Host => Some(self.ceiling.get(limit)),
            Level::Config => Some(self.config.get(limit)),
            Level::Tenant => self.said.tenant.get(&limit).copied(),
            Level::Agent => self.said.agent.get(&limit).copied(),
            Level::Session => self.said.session.get(&limit).copied(),
        }
    }

    /// The effective value of one limit for `at` (the tenant itself, an agent, a session).
    pub fn decide(&self, limit: Limit, at: Level) -> Decided {
        let below = [Level::Tenant, Level::Agent, Level::Session].into_iter().filter(|level| *level <= at);
        let narrowed = below
            .filter_map(|by| Some(Decided { value: self.said(by, limit)?, by }))
            .min_by_key(|decided| (decided.value, decided.by))
            .unwrap_or(Decided { value: self.config.get(limit), by: Level::Config });
        let ceiling = self.ceiling.get(limit);
        if ceiling < narrowed.value { Decided { value: ceiling, by: Level::Host } } else { narrowed }
    }

    /// All effective limits of a session.
    pub fn effective(&self) -> Limits {
        let mut limits = self.config;
        for limit in Limit::ALL {
            limits.set(limit, self.decide(limit, Level::Session).value);
        }
        limits
    }

    /// The maximum that `at` may be set to. An admin may exceed the configuration's default, but no
    /// value set by a level above.
    pub fn most(&self, limit: Limit, at: Level, admin: bool) -> Decided {
        let above = match at {
            Level::Session => self.decide(limit, Level::Agent),
            Level::Agent => self.decide(limit, Level::Tenant),
            Level::Host | Level::Config | Level::Tenant => Decided { value: self.config.get(limit), by: Level::Config },
        };
        if admin && above.by == Level::Config {
            return Decided { value: self.ceiling.get(limit), by: Level::Host };
        }
        above
    }

    /// The values of `at` after a change.
    ///
    /// # Errors
    /// Names the limit, the value, and what would be allowed; nothing is changed then.
    pub fn changed(&self, at: Level, change: &Change, admin: bool) -> Result<PartialLimits, String> {
        let mut said = match at {
            Level::Session => self.said.session.clone(),
            Level::Agent => self.said.agent.clone(),
            Level::Host | Level::Config | Level::Tenant => self.said.tenant.clone(),
        };
        for (limit, value) in &change.0 {
            let Some(value) = *value else {
                said.remove(limit);
                continue;
            };
            if value < limit.least() {
                return Err(format!("{limit}: {value} is below the minimum of {}", limit.least()));
            }
            let most = self.most(*limit, at, admin);
            if value > most.value {
                return Err(format!("{limit}: {value} is above {}, which is {}", most.by.named(), most.value));
            }
            said.insert(*limit, value);
        }
        Ok(said)
    }
}

/// A new value, or `None` to unset the level's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change(BTreeMap<Limit, Option<u64>>);

impl Change {
    /// Reads the body of a `PATCH`. Unknown fields are ignored, but at least one limit must be
    /// named.
    ///
    /// # Errors
    /// Names the limit, and what its value must be.
    pub fn parse(body: &Map<String, Value>) -> Result<Self, String> {
        let mut change = BTreeMap::new();
        for limit in Limit::ALL {
            let value = match body.get(limit.as_str()) {
                None => continue,
                Some(Value::Null) => None,
                Some(given) => Some(given.as_u64().ok_or_else(|| {
                    format!("{limit} must be a whole number ({}), or null to unset it, not {given}", limit.unit())
                })?),
            };
            change.insert(limit, value);
        }
        if change.is_empty() {
            let names: Vec<&str> = Limit::ALL.iter().map(|limit| limit.as_str()).collect();
            return Err(format!("name at least one limit: {}", names.join(", ")));
        }
        Ok(Self(change))
    }
}

/// Current use of a sandbox; `None` when unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InUse {
    /// Bytes that cannot be reclaimed, without the page cache.
    pub memory_bytes: Option<u64>,
    pub pids: Option<u64>,
    pub disk_bytes: Option<u64>,
    pub disk_files: Option<u64>,
}

/// Refuses limits lowered below the current use: the kernel would kill at once.
///
/// # Errors
/// Names the limit, its value and the use.
pub fn fits(old: &Limits, new: &Limits, used: &InUse) -> Result<(), String> {
    let all = [
        (Limit::MemoryBytes, used.memory_bytes),
        (Limit::Pids, used.pids),
        (Limit::DiskBytes, used.disk_bytes),
        (Limit::DiskFiles, used.disk_files),
    ];
    for (limit, used) in all {
        let value = new.get(limit);
        if let Some(used) = used.filter(|used| value < old.get(limit) && value < *used) {
            return Err(format!("{limit}: {value} is below what the session uses now, which is {used}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const M: Limit = Limit::MemoryBytes;
    const MIB: u64 = 1 << 20;

    /// Memory in MiB of ceiling, config, tenant, agent, session; 0: not set.
    fn levels([ceiling, config, tenant, agent, session]: [u64; 5]) -> Levels {
        let said = |value: u64| match value {
            0 => PartialLimits::new(),
            value => PartialLimits::from([(M, value * MIB)]),
        };
        let whole = |value: u64| Limits { memory_bytes: value * MIB, ..Limits::default() };
        Levels {
            ceiling: whole(ceiling),
            config: whole(config),
            said: StoredLimits { tenant: said(tenant), agent: said(agent), session: said(session) },
        }
    }

    #[test]
    fn the_least_of_those_that_say_something() {
        use Level::{Agent, Config, Host, Session, Tenant};
        for (said, value, by) in [
            ([8000, 2000, 0, 0, 0], 2000, Config),
            ([8000, 2000, 4000, 0, 0], 4000, Tenant),
            ([8000, 2000, 4000, 3000, 0], 3000, Agent),
            ([8000, 2000, 4000, 3000, 1000], 1000, Session),
            ([8000, 2000, 1000, 3000, 4000], 1000, Tenant),
            ([8000, 2000, 4000, 1000, 3000], 1000, Agent),
            ([8000, 2000, 0, 0, 500], 500, Session),
            ([8000, 2000, 0, 0, 6000], 6000, Session),
            ([8000, 2000, 900, 900, 900], 900, Tenant),
            ([1000, 2000, 0, 0, 0], 1000, Host),
            ([1000, 2000, 4000, 3000, 3000], 1000, Host),
        ] {
            let levels = levels(said);
            assert_eq!(levels.decide(M, Session), Decided { value: value * MIB, by }, "{said:?}");
            assert_eq!(levels.effective().memory_bytes, value * MIB);
            assert_eq!(levels.effective().pids, Limits::default().pids);
        }
        // An agent's effective limit does not depend on its sessions.
        assert_eq!(levels([8000, 2000, 0, 3000, 1000]).decide(M, Agent).by, Agent);
    }

    #[test]
    fn who_may_set_what() {
        use Level::{Agent, Session, Tenant};
        for (said, at, admin, asked, fault) in [
            ([8000, 2000, 0, 0, 0], Session, false, 1000, None),
            ([8000, 2000, 0, 0, 0], Session, false, 2000, None),
            ([8000, 2000, 0, 0, 0], Session, false, 2001, Some("configuration's limit")),
            ([8000, 2000, 0, 0, 0], Session, true, 8000, None),
            ([8000, 2000, 0, 0, 0], Session, true, 8001, Some("host's ceiling")),
            ([8000, 2000, 4000, 0, 0], Session, false, 4000, None),
            ([8000, 2000, 4000, 0, 0], Session, true, 4001, Some("tenant's limit")),
            ([8000, 2000, 4000, 3000, 0], Session, true, 3001, Some("agent's limit")),
            ([8000, 2000, 4000, 0, 0], Agent, true, 4001, Some("tenant's limit")),
            ([8000, 2000, 0, 0, 0], Tenant, true, 8000, None),
            ([8000, 2000, 0, 0, 0], Tenant, false, 2001, Some("configuration's limit")),
            ([8000, 2000, 0, 0, 0], Session, true, 63, Some("below the minimum")),
        ] {
            let change = Change::parse(json!({"memoryBytes": asked * MIB}).as_object().unwrap()).unwrap();
            let got = levels(said).changed(at, &change, admin);
            match fault {
                None => assert_eq!(got.unwrap()[&M], asked * MIB),
                Some(fault) => assert!(got.as_ref().unwrap_err().contains(fault), "{said:?} {asked}: {got:?}"),
            }
        }
    }

    #[test]
    fn null_unsets() {
        let change = Change::parse(json!({"memoryBytes": null, "pids": 100}).as_object().unwrap()).unwrap();
        let said = levels([8000, 2000, 0, 0, 500]).changed(Level::Session, &change, false).unwrap();
        assert_eq!(said, PartialLimits::from([(Limit::Pids, 100)]));
    }

    #[test]
    fn what_is_no_number_is_refused_by_name() {
        for (body, fault) in [
            (json!({"memoryBytes": "2GiB"}), "memoryBytes must be a whole number (bytes)"),
            (json!({"pids": -1}), "pids must be"),
            (json!({"cpuMillis": 1.5}), "cpuMillis must be"),
            (json!({"turnMs": true}), "turnMs must be"),
            (json!({}), "name at least one limit"),
            (json!({"memory": 5}), "name at least one limit"),
        ] {
            let error = Change::parse(body.as_object().unwrap()).unwrap_err();
            assert!(error.contains(fault), "{body}: {error}");
        }
        let zero = Change::parse(json!({"pids": 0}).as_object().unwrap()).unwrap();
        assert!(levels([8, 2, 0, 0, 0]).changed(Level::Session, &zero, true).unwrap_err().contains("minimum"));
    }

    #[test]
    fn nothing_is_lowered_below_its_use() {
        let old = Limits::default();
        let used = InUse { memory_bytes: Some(300 * MIB), disk_files: Some(500), ..InUse::default() };
        let new = Limits { memory_bytes: 200 * MIB, ..old };
        assert!(fits(&old, &new, &used).unwrap_err().contains("memoryBytes"));
        assert!(fits(&old, &Limits { memory_bytes: 300 * MIB, pids: 16, ..old }, &used).is_ok());
        assert!(fits(&old, &Limits { disk_files: 499, ..old }, &used).unwrap_err().contains("diskFiles"));
        // A limit that is exceeded already may still be raised.
        let tight = Limits { disk_files: 100, ..old };
        assert!(fits(&tight, &Limits { disk_files: 200, ..old }, &used).is_ok());
    }
}
