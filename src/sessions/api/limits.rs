//! Limits and use of sessions, agents and tenants, for the HTTP layer.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::StreamExt;
use serde::Serialize;
use tokio::sync::oneshot;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::sandbox::usage::{self, Usage};
use crate::sessions::api::owned_session::Own;
use crate::sessions::context::Shared;
use crate::sessions::driver::{Looked, Request};
use crate::sessions::monitor::disk_usage::DiskUse;
use crate::sessions::monitor::exit_cause::{Kills, Oom};
use crate::sessions::monitor::resource_monitor::bound;
use crate::sessions::policy::limit_levels::{Change, Level, Levels};
use crate::sessions::quota::stored::Stored;
use crate::sessions::{SessionError, Sessions};
use crate::store::{LimitScope, Session};
use ash_model::{Limit, Limits, TenantId, UNLIMITED};
use ash_observe::tasks;

/// Sessions that follow a change concurrently.
const AT_ONCE: usize = 16;

/// One limit, and the level that decided it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LimitState {
    /// `null`: unlimited (the default of the `io` limits only).
    pub value: Option<u64>,
    #[schema(example = "bytes")]
    pub unit: &'static str,
    /// Whether this host enforces it: `false` where the kernel has no controller for it.
    pub enforced: bool,
    pub decided_by: Level,
    /// The value set on this level; `null` when not set.
    pub set: Option<u64>,
    /// Maximum that the caller may set on this level; `null`: any number.
    pub most: Option<u64>,
    /// The tenant's use; only for limits of a tenant as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used: Option<u64>,
    /// The parts of `used` of `storageBytes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub split: Option<Stored>,
}

/// What may still be written into a session (bytes).
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// The session's disk limit.
    pub most: u64,
    /// What is left of it, and of the tenant's storage.
    pub left: u64,
}

/// Limits by name.
pub type LimitsReport = BTreeMap<String, LimitState>;

/// A session that could not follow a change of a level above: it keeps its limits.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NotFollowed {
    pub session_id: Uuid,
    pub reason: String,
}

/// Disk use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DiskStats {
    /// Bytes in allocated blocks of all files of the session. Counting ends a little above the
    /// limit.
    pub bytes: u64,
    pub files: u64,
    /// Time since the count.
    pub age_ms: u64,
}

/// The running turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TurnStats {
    pub number: i64,
    pub running_ms: u64,
}

/// What a session uses. Reading it wakes nothing.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SessionStats {
    /// Whether it has processes. `frozen`: whether they are frozen.
    pub live: bool,
    pub frozen: bool,
    /// `null` without processes.
    #[serde(flatten)]
    pub usage: Option<Usage>,
    pub disk: Option<DiskStats>,
    /// `null` between two turns.
    pub turn: Option<TurnStats>,
    #[schema(value_type = Object)]
    pub limits: Limits,
}

/// Occurrences of each cause since the daemon's start.
#[derive(Debug, Default)]
pub struct Tally([AtomicU64; Self::REASONS.len()]);

impl Tally {
    pub const REASONS: [&'static str; 8] =
        ["oom", "pids", "disk", "storage", "turn-time", "budget", "signal", "sandbox-died"];

    pub fn count(&self, reason: &str) {
        if let Some(at) = Self::REASONS.iter().position(|known| *known == reason) {
            self.0[at].fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn counts(&self) -> [(&'static str, u64); Self::REASONS.len()] {
        std::array::from_fn(|at| (Self::REASONS[at], self.0[at].load(Ordering::Relaxed)))
    }
}

impl Shared {
    pub(in crate::sessions) async fn levels_of(
        &self,
        tenant: &TenantId,
        agent: Option<&str>,
        session: Option<Uuid>,
    ) -> Result<Levels, SessionError> {
        let said = self.store.limits(tenant, agent, session).await?;
        let config = self.config.now();
        Ok(Levels { ceiling: config.launcher.ceiling, config: config.limits, said })
    }

    pub async fn levels(&self, session: &Session) -> Result<Levels, SessionError> {
        self.levels_of(&session.tenant, Some(&session.agent_name), Some(session.id)).await
    }

    /// The kernel's out-of-memory victims: the newest `kills` of this sandbox. Without names where
    /// the launcher does not know them.
    pub async fn oom(&self, id: Uuid, limits: &Limits, kills: Kills) -> Oom {
        let known = self.launcher.victims(id).await.ok().flatten().unwrap_or_default();
        Oom::new(limits.memory_bytes, kills, known)
    }
}

fn report(levels: &Levels, at: Level, admin: bool, enforced: impl Fn(Limit) -> bool) -> LimitsReport {
    let number = |value| (value != UNLIMITED).then_some(value);
    let state = |limit| {
        let decided = levels.decide(limit, at);
        LimitState {
            value: number(decided.value),
            unit: limit.unit(),
            enforced: enforced(limit),
            decided_by: decided.by,
            set: levels.said(at, limit),
            most: number(levels.most(limit, at, admin).value),
            used: None,
            split: None,
        }
    };
    Limit::ALL.into_iter().map(|limit| (limit.to_string(), state(limit))).collect()
}

impl Sessions {
    /// Passes findings of the warden to the tasks.
    pub(in crate::sessions) fn watch_limits(&self) {
        let shared = Arc::clone(&self.shared);
        tasks::spawn_restarting("resource-monitor", move || {
            let registry = Arc::clone(&shared);
            let tell = move |id, finding| {
                let handle = registry.registry.get(id);
                handle.is_some_and(|handle| handle.requests.try_send(Request::Found(finding)).is_ok())
            };
            shared.warden.clone().run(tell)
        });
    }

    pub async fn limits(&self, own: &Own, admin: bool) -> Result<LimitsReport, SessionError> {
        let levels = self.shared.levels(&self.row(own).await?).await?;
        let cgroup =
            self.look(own.id()).await.cgroup.unwrap_or_else(|| usage::host(&self.shared.config.now().data_dir));
        Ok(report(&levels, Level::Session, admin, |limit| usage::enforced(&cgroup, limit)))
    }

    pub async fn change_limits(&self, own: &Own, change: Change, admin: bool) -> Result<LimitsReport, SessionError> {
        self.ask(own, |reply| Request::Limits { change, admin, reply }).await?;
        self.limits(own, admin).await
    }

    /// Limits of an agent, or without one of the tenant itself.
    ///
    /// # Errors
    /// `AgentNotFound`.
    pub async fn limits_above(
        &self,
        tenant: &TenantId,
        agent: Option<&str>,
        admin: bool,
    ) -> Result<LimitsReport, SessionError> {
        if let Some(name) = agent
            && self.shared.store.agent(tenant, name).await?.is_none()
        {
            return Err(SessionError::AgentNotFound(name.to_owned()));
        }
        let levels = self.shared.levels_of(tenant, agent, None).await?;
        let host = usage::host(&self.shared.config.now().data_dir);
        let at = if agent.is_some() { Level::Agent } else { Level::Tenant };
        let mut all = report(&levels, at, admin, |limit| usage::enforced(&host, limit));
        if agent.is_none() {
            all.extend(self.tenant_report(tenant, admin).await);
        }
        Ok(all)
    }

    /// Stores the limits of an agent (or of the tenant itself), and applies them to running
    /// sessions.
    ///
    /// # Errors
    /// `Invalid` names the limit; nothing is changed then.
    pub async fn change_limits_above(
        &self,
        tenant: &TenantId,
        agent: Option<&str>,
        change: &Change,
        admin: bool,
    ) -> Result<(LimitsReport, Vec<NotFollowed>), SessionError> {
        self.limits_above(tenant, agent, admin).await?;
        let (at, scope) = match agent {
            Some(name) => (Level::Agent, LimitScope::Agent(name.to_owned())),
            None => (Level::Tenant, LimitScope::Tenant),
        };
        {
            let _one = self.shared.limiting.lock().await;
            let levels = self.shared.levels_of(tenant, agent, None).await?;
            let said = levels.changed(at, change, admin).map_err(SessionError::Invalid)?;
            self.shared.store.limits_put(tenant, scope, said).await?;
        }
        // Sessions without a task read it when they get one.
        let tasks = self.shared.registry.all().into_iter().filter(|(_, handle)| handle.tenant == *tenant);
        let not_followed = futures_util::stream::iter(tasks)
            .map(|(id, handle)| async move {
                let (reply, answer) = oneshot::channel();
                handle.requests.send(Request::LimitsMoved { reply }).await.ok()?;
                let error = answer.await.ok()?.err()?;
                Some(NotFollowed { session_id: id, reason: error.to_string() })
            })
            .buffer_unordered(AT_ONCE)
            .filter_map(|refused| async { refused })
            .collect()
            .await;
        Ok((self.limits_above(tenant, agent, admin).await?, not_followed))
    }

    pub async fn stats(&self, own: &Own) -> Result<SessionStats, SessionError> {
        let looked = self.look(own.id()).await;
        let limits = match looked.cgroup {
            Some(_) => looked.limits,
            None => self.shared.levels(&self.row(own).await?).await?.effective(),
        };
        let disk = match looked.disk {
            Some(seen) => {
                let age = u64::try_from(seen.at.elapsed().as_millis()).unwrap_or(u64::MAX);
                Some(DiskStats { bytes: seen.used.bytes, files: seen.used.files, age_ms: age })
            }
            // Nothing watches a session without processes: counts now.
            None => {
                let used = self.measured(own, &limits).await;
                used.map(|used| DiskStats { bytes: used.bytes, files: used.files, age_ms: 0 })
            }
        };
        Ok(SessionStats {
            live: looked.cgroup.is_some(),
            frozen: looked.frozen,
            usage: looked.cgroup.as_ref().map(Usage::read),
            disk,
            turn: looked.turn.map(|(number, since)| TurnStats {
                number,
                running_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
            }),
            limits,
        })
    }

    async fn measured(&self, own: &Own, limits: &Limits) -> Option<DiskUse> {
        let root: PathBuf = self.shared.dir(own.id()).root().to_owned();
        self.shared.warden.measure(own.tenant(), &root, bound(limits)).await.ok()
    }

    /// Asks the task, where there is one; a session without a task has no sandbox.
    async fn look(&self, id: Uuid) -> Looked {
        let Some(handle) = self.shared.registry.get(id) else { return Looked::default() };
        let (reply, answer) = oneshot::channel();
        if handle.requests.send(Request::Look { reply }).await.is_err() {
            return Looked::default();
        }
        answer.await.unwrap_or_default()
    }

    /// Whether new work may begin (see `disk.reserve_bytes`).
    ///
    /// # Errors
    /// `Full`, with what to do.
    pub fn check_reserve(&self) -> Result<(), SessionError> {
        self.shared.check_reserve()
    }

    /// Whether `bytes` more fit into the session's disk limit and the tenant's storage limit.
    ///
    /// # Errors
    /// `Full` names what is used and the limit.
    pub async fn check_room(&self, own: &Own, bytes: u64) -> Result<Room, SessionError> {
        self.shared.check_write(own.tenant(), bytes).await?;
        let limits = self.shared.levels(&self.row(own).await?).await?.effective();
        let storage = self.shared.storage.left(own.tenant());
        let room =
            |used: u64| Room { most: limits.disk_bytes, left: limits.disk_bytes.saturating_sub(used).min(storage) };
        let Some(used) = self.measured(own, &limits).await else { return Ok(room(0)) };
        if used.bytes.saturating_add(bytes) <= limits.disk_bytes && used.files < limits.disk_files && !used.hidden {
            return Ok(room(used.bytes));
        }
        Err(SessionError::Full(format!(
            "disk limit exceeded: the session has {} MiB in {} files, and {} MiB more would exceed {} MiB in {} files. Delete files, \
             or raise diskBytes or diskFiles (PATCH .../limits)",
            used.bytes >> 20,
            used.files,
            bytes.div_ceil(1 << 20),
            limits.disk_bytes >> 20,
            limits.disk_files
        )))
    }

    /// Files of the session were deleted through the API: a session paused by its disk limit may
    /// continue.
    pub async fn files_changed(&self, id: Uuid) {
        if let Some(handle) = self.shared.registry.get(id) {
            // If its task has ended, it is not paused.
            let _ = handle.requests.send(Request::FilesChanged).await;
        }
    }

    /// Free bytes on the sessions' disk.
    pub fn disk_free(&self) -> Option<u64> {
        self.shared.warden.free().map(|free| free.bytes)
    }

    /// Causes since the daemon's start.
    pub fn limited(&self) -> [(&'static str, u64); Tally::REASONS.len()] {
        self.shared.tally.counts()
    }

    /// Microseconds that sessions were throttled by their processor limits.
    pub fn throttled_us(&self) -> u64 {
        self.shared.warden.throttled_us()
    }

    /// Use of all sandboxes together; `None` before the first one.
    pub fn total_usage(&self) -> Option<Usage> {
        self.shared.warden.root().map(|root| Usage::read(&root))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_counted_by_name() {
        let tally = Tally::default();
        tally.count("disk");
        tally.count("disk");
        tally.count("exit");
        assert_eq!(tally.counts().iter().find(|(name, _)| *name == "disk"), Some(&("disk", 2)));
        assert_eq!(tally.counts().iter().map(|(_, n)| n).sum::<u64>(), 2);
    }
}
