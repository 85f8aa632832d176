//! Which limits hold for a session, and which level decided each. Pure.
//!
//! ```text
//!   config [limits]   what holds where nobody below says anything
//!   tenant            \
//!   agent              > each narrows what is above it; the least of those that say something holds
//!   session           /
//!   host ceiling      the most anybody gets (launcher.ceiling, and the launcher's own)
//! ```
//!
//! So a tenant may be given more than the configuration's default (by an admin, up to the ceiling), and its agents and
//! sessions then share in that; but nobody below can have more than a level above allows, whatever was stored when.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::store::StoredLimits;
use ash_model::{Limit, Limits, PartialLimits};

/// Who decided a limit. The more general level wins a tie: it is the one to raise first.
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
    /// The level in a sentence, with where to raise it.
    fn named(self) -> &'static str {
        match self {
            Self::Host => "the host's ceiling (launcher.ceiling in ashd.toml)",
            Self::Config => "the configuration's limit (limits in ashd.toml; an admin can give more)",
            Self::Tenant => "the tenant's limit (/api/tenant/limits)",
            Self::Agent => "the agent's limit (/api/agents/:name/limits)",
            Self::Session => "the session's limit",
        }
    }
}

/// Everything that is said.
#[derive(Clone, Debug)]
pub struct Levels {
    pub ceiling: Limits,
    pub config: Limits,
    pub said: StoredLimits,
}

/// What holds, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decided {
    pub value: u64,
    pub by: Level,
}

impl Levels {
    /// What a level says of a limit; the two that come from the configuration say something of each.
    pub fn said(&self, level: Level, limit: Limit) -> Option<u64> {
        match level {
            Level::Host => Some(self.ceiling.get(limit)),
            Level::Config => Some(self.config.get(limit)),
            Level::Tenant => self.said.tenant.get(&limit).copied(),
            Level::Agent => self.said.agent.get(&limit).copied(),
            Level::Session => self.said.session.get(&limit).copied(),
        }
    }

    /// What holds of one limit for whoever is on `at` (the tenant itself, an agent, a session).
    pub fn decide(&self, limit: Limit, at: Level) -> Decided {
        let below = [Level::Tenant, Level::Agent, Level::Session].into_iter().filter(|level| *level <= at);
        let narrowed = below
            .filter_map(|by| Some(Decided { value: self.said(by, limit)?, by }))
            .min_by_key(|decided| (decided.value, decided.by))
            .unwrap_or(Decided { value: self.config.get(limit), by: Level::Config });
        let ceiling = self.ceiling.get(limit);
        if ceiling < narrowed.value { Decided { value: ceiling, by: Level::Host } } else { narrowed }
    }

    /// All of them for a session.
    pub fn effective(&self) -> Limits {
        let mut limits = self.config;
        for limit in Limit::ALL {
            limits.set(limit, self.decide(limit, Level::Session).value);
        }
        limits
    }

    /// The most that `at` may be set to. An admin may give more than the configuration's default; nobody more than a level
    /// above that says something.
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

    /// What `at` says after a change.
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
                return Err(format!("{limit}: {value} is too little; the least that works is {}", limit.least()));
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

/// What is asked for: a new value, or that the level says nothing any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change(BTreeMap<Limit, Option<u64>>);

impl Change {
    /// Reads the body of a `PATCH`. Unknown fields are ignored (contract §1), but one limit at least must be named.
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

/// What a sandbox uses now of what can be limited below it; `None` where nobody can tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InUse {
    /// Bytes that cannot be reclaimed: the page cache is not counted.
    pub memory_bytes: Option<u64>,
    pub pids: Option<u64>,
    pub disk_bytes: Option<u64>,
    pub disk_files: Option<u64>,
}

/// Refuses limits that were lowered below what is in use: the kernel would kill for them at once.
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

    /// Memory in MiB of ceiling, config, tenant, agent, session; 0 says nothing.
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
        // What holds for the agent itself does not depend on one of its sessions.
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
            ([8000, 2000, 0, 0, 0], Session, true, 63, Some("too little")),
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
        assert!(levels([8, 2, 0, 0, 0]).changed(Level::Session, &zero, true).unwrap_err().contains("too little"));
    }

    #[test]
    fn nothing_is_lowered_below_its_use() {
        let old = Limits::default();
        let used = InUse { memory_bytes: Some(300 * MIB), disk_files: Some(500), ..InUse::default() };
        let new = Limits { memory_bytes: 200 * MIB, ..old };
        assert!(fits(&old, &new, &used).unwrap_err().contains("memoryBytes"));
        assert!(fits(&old, &Limits { memory_bytes: 300 * MIB, pids: 16, ..old }, &used).is_ok());
        assert!(fits(&old, &Limits { disk_files: 499, ..old }, &used).unwrap_err().contains("diskFiles"));
        // What is above its limit already may still be raised.
        let tight = Limits { disk_files: 100, ..old };
        assert!(fits(&tight, &Limits { disk_files: 200, ..old }, &used).is_ok());
    }
}
