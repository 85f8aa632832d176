//! The session's limits in its task: applied, checked against the use, and what happens when one is
//! reached.
//!
//! ```text
//!   disk limit exceeded:          freeze -> inform the turn's readers -> paused, with an error
//!      raised, or files deleted:  measure -> thaw, interrupt the aborted turn -> active
//!      POST .../resume:           measure -> 507 while it is still exceeded
//! ```

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Driver, lifecycle};
use crate::sandbox::LauncherError;
use crate::sandbox::usage::Usage;
use crate::sessions::SessionError;
use crate::sessions::claude::classify::TurnResult;
use crate::sessions::launch::launcher_error;
use crate::sessions::launch::running::Live;
use crate::sessions::monitor::disk_usage::{DiskUse, Seen};
use crate::sessions::monitor::exit_cause::{Kills, OomCount};
use crate::sessions::monitor::resource_monitor::{Finding, bound};
use crate::sessions::policy::limit_levels::{Change, InUse, Level, fits};
use crate::store::{LimitScope, Session};
use ash_model::{Limit, Limits, SessionStatus, UNLIMITED};
use ash_observe::events::{self, event};
use ash_protocol::launcher::CgroupPaths;

/// Longest wait for init, while the task has other things to do.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// A session's condition, for reads.
#[derive(Clone, Debug, Default)]
pub struct Looked {
    /// Of its sandbox, when it has one.
    pub cgroup: Option<CgroupPaths>,
    pub frozen: bool,
    /// The newest walk.
    pub disk: Option<Seen>,
    /// Limits in force.
    pub limits: Limits,
    /// Number and duration of the running turn.
    pub turn: Option<(i64, std::time::Duration)>,
}

impl Driver {
    pub(super) fn look(&self) -> Looked {
        let live = self.live.as_ref();
        Looked {
            cgroup: live.map(|live| live.sandbox.info.cgroup.clone()),
            frozen: live.is_some_and(|live| live.frozen),
            turn: self.turn.as_ref().map(|running| (running.turn.number, running.since.elapsed())),
            disk: live.and_then(|live| live.watch.as_ref()?.seen()),
            limits: self.session.limits,
        }
    }

    pub(super) fn watch(&self, live: &mut Live) {
        let cgroup = &live.sandbox.info.cgroup;
        let whose = (&self.session.tenant, self.session.id);
        let watch = self.shared.warden.watch(whose, self.dir.root(), cgroup, &self.session.limits, live.frozen);
        live.watch = Some(watch);
    }

    /// `PATCH .../limits`: changes everything or nothing.
    pub(super) async fn change_limits(&mut self, change: &Change, admin: bool) -> Result<Session, SessionError> {
        let mut levels = self.shared.levels(&self.session).await?;
        let said = levels.changed(Level::Session, change, admin).map_err(SessionError::Invalid)?;
        levels.said.session = said.clone();
        let old = self.session.limits;
        self.put_in_force(levels.effective()).await?;
        let scope = LimitScope::Session(self.session.id);
        if let Err(e) = self.shared.store.limits_put(&self.session.tenant, scope, said).await {
            self.put_in_force_again(old).await;
            return Err(e.into());
        }
        self.release().await;
        Ok(self.session.clone())
    }

    /// A level above was changed.
    pub(super) async fn follow_limits(&mut self) -> Result<Session, SessionError> {
        let levels = self.shared.levels(&self.session).await?;
        self.put_in_force(levels.effective()).await?;
        self.release().await;
        Ok(self.session.clone())
    }

    /// Checks, applies and records; on an error the old limits stay in force.
    async fn put_in_force(&mut self, new: Limits) -> Result<(), SessionError> {
        let old = self.session.limits;
        if new == old {
            return Ok(());
        }
        fits(&old, &new, &self.in_use(&old, &new).await?).map_err(SessionError::Invalid)?;
        if self.live.is_some() {
            self.shared.launcher.set_limits(self.session.id, new).await.map_err(|e| match e {
                // The launcher's own ceiling, or a kernel limit below the current use.
                LauncherError::Failed(failure) => SessionError::Invalid(failure.to_string()),
                other => launcher_error(&other),
            })?;
        }
        let changed: serde_json::Map<String, Value> = Limit::ALL
            .into_iter()
            .filter(|limit| old.get(*limit) != new.get(*limit))
            .map(|limit| (limit.to_string(), json!({ "from": number(&old, limit), "to": number(&new, limit) })))
            .collect();
        let changed = Value::Object(changed);
        tracing::info!(ASH_SESSION = %self.session.id, ASH_TENANT = %self.session.tenant, ASH_EVENT = "limits", %changed,
            "new limits");
        let mut commit = self.ledger.blank();
        commit.limits = Some(new);
        commit.events.push(("lifecycle", lifecycle("limits", json!({ "changed": changed })).into()));
        self.ledger.note(commit);
        self.session.limits = new;
        if let Some(watch) = self.live.as_ref().and_then(|live| live.watch.as_ref()) {
            watch.set_limits(&new);
        }
        Ok(())
    }

    /// An adopted sandbox has the limits of its start (`found`); applies the session's.
    pub(super) async fn put_in_force_again(&mut self, found: Limits) {
        let wanted = self.session.limits;
        if found == wanted {
            return;
        }
        self.session.limits = found;
        if let Err(e) = self.put_in_force(wanted).await {
            tracing::error!(ASH_SESSION = %self.session.id, "cannot apply the session's limits, the previous ones stay in force: {e}");
        }
    }

    /// Current use of the limits that are lowered.
    async fn in_use(&mut self, old: &Limits, new: &Limits) -> Result<InUse, SessionError> {
        let mut used = InUse::default();
        if let Some(live) = &self.live {
            let usage = Usage::read(&live.sandbox.info.cgroup);
            used.memory_bytes = usage.memory.unreclaimable_bytes;
            used.pids = usage.pids.current;
        }
        if new.disk_bytes < old.disk_bytes || new.disk_files < old.disk_files {
            let disk = self.measure(*old, true).await?;
            (used.disk_bytes, used.disk_files) = (Some(disk.bytes), Some(disk.files));
        }
        Ok(used)
    }

    async fn measure(&mut self, limits: Limits, held: bool) -> Result<DiskUse, SessionError> {
        let holder = self.live.as_ref().filter(|_| held).map(|_| self.session.id);
        let measured =
            self.shared.warden.measure_all(&self.session.tenant, holder, self.dir.root(), bound(&limits)).await;
        measured.map_err(|e| SessionError::Failed(format!("cannot measure the session's directory: {e}")))
    }

    /// Whether it is paused because of a storage limit: the only pause with an error.
    pub(super) fn is_held(&self) -> bool {
        self.session.status == SessionStatus::Paused && self.session.error.is_some()
    }

    /// Before a session that was paused by a storage limit continues.
    ///
    /// # Errors
    /// `Full` while its disk use or its tenant's storage exceeds the limit.
    pub(super) async fn check_held(&mut self) -> Result<(), SessionError> {
        self.check_disk().await?;
        if self.is_held() { self.shared.check_write(&self.session.tenant, 0).await } else { Ok(()) }
    }

    /// # Errors
    /// `Full` while its disk use exceeds the limit.
    pub(super) async fn check_disk(&mut self) -> Result<(), SessionError> {
        // A session that never started has no directory.
        if !self.dir.root().exists() {
            return Ok(());
        }
        // Without deleted files: they vanish with their processes, and an aborted turn is
        // interrupted when the session continues.
        let used = self.measure(self.session.limits, false).await?;
        if used.is_over(bound(&self.session.limits)) {
            return Err(SessionError::Full(over(&used, &self.session.limits)));
        }
        Ok(())
    }

    /// Continues a held session, if its storage permits.
    pub(super) async fn release(&mut self) {
        if !self.is_held() || self.live.is_none() || self.check_held().await.is_err() {
            return;
        }
        if let Err(e) = self.resume_warm().await {
            tracing::error!(ASH_SESSION = %self.session.id, "storage is available again, but the session cannot continue: {e}");
        }
    }

    pub(super) async fn found(&mut self, finding: Finding) {
        match finding {
            Finding::Disk(used) => self.too_much_on_disk(used).await,
            Finding::Storage => self.tenant_is_full().await,
            Finding::OomKilled(processes) => self.oom_killed(processes).await,
            Finding::ForksRefused(refused) => {
                let pids = self.session.limits.pids;
                let why =
                    format!("the limit of {pids} processes and threads was reached: {refused} forks were refused");
                self.shared.tally.count("pids");
                self.cause("limited", "pids", json!({ "limit": Limit::Pids, "value": pids, "refused": refused }), &why);
            }
            Finding::CommandsFull(share) => {
                let pids = self.session.limits.pids;
                let why = format!(
                    "process limit of commands and tools reached: {share} of {pids} processes and threads, the rest is reserved \
                     for claude. End processes, or raise `pids`"
                );
                self.shared.tally.count("pids");
                self.cause("limited", "pids", json!({ "limit": Limit::Pids, "value": pids, "commands": share }), &why);
            }
        }
    }

    /// The kernel killed a process, and claude still runs (or its end is reported next).
    async fn oom_killed(&mut self, processes: u64) {
        let Some(live) = &mut self.live else { return };
        let claude = live.record.child;
        // A sandbox short of memory may answer slowly; then it runs.
        let lives = match tokio::time::timeout(ANSWER_WITHIN, live.sandbox.stat()).await {
            Ok(Ok(children)) => children.iter().any(|child| child.child == claude && child.exited.is_none()),
            Ok(Err(_)) => false,
            Err(_) => true,
        };
        if !lives {
            // claude or the sandbox was the victim: its end is reported next, with the cause.
            return;
        }
        let cgroup = &live.sandbox.info.cgroup;
        let now = OomCount::read(cgroup);
        let kills = Kills { number: processes, ..now.since(live.oom) };
        live.oom = now;
        let peak = Usage::read(cgroup).memory.peak_bytes;
        let oom = self.shared.oom(self.session.id, &self.session.limits, kills).await;
        let why = oom.words();
        self.shared.tally.count("oom");
        let mut data = oom.data(peak);
        data["processes"] = json!(processes);
        self.cause("killed", "oom", data, &why);
        if let Some(live) = &mut self.live {
            live.told_oom = Some((Instant::now(), oom));
        }
    }

    pub(super) fn turn_too_long(&mut self, why: &str) {
        let value = self.session.limits.turn_ms;
        self.shared.tally.count("turn-time");
        self.cause("limited", "turn-time", json!({ "limit": Limit::TurnMs, "value": value }), why);
    }

    /// claude ended its turn because it reached a budget of its message, as the client requested.
    pub(super) fn spent(&mut self, limit: &'static str, result: &TurnResult) {
        let flags = self.live.as_ref().map(|live| live.record.flags.clone()).unwrap_or_default();
        let (value, used) = match limit {
            "maxTurns" => (json!(flags.max_turns), json!(result.num_turns)),
            _ => (json!(flags.max_budget_usd), json!(result.total_cost_usd)),
        };
        let why = format!("the turn was ended because it reached its {limit} of {value}");
        self.shared.tally.count("budget");
        self.cause("limited", "budget", json!({ "limit": limit, "value": value, "used": used }), &why);
    }

    /// Records a cause in the timeline and the journal.
    pub(super) fn cause(&mut self, action: &'static str, reason: &'static str, data: Value, why: &str) {
        event!(events::of_reason(reason), ASH_SESSION = %self.session.id, ASH_TENANT = %self.session.tenant,
            ASH_AGENT = %self.session.agent_name, ASH_TURN = self.turn.as_ref().map(|running| running.turn.number),
            reason, data = %data, "{why}");
        let mut change = self.ledger.blank();
        let mut more = json!({ "reason": reason, "error": why });
        if let (Value::Object(more), Value::Object(data)) = (&mut more, data) {
            more.extend(data);
        }
        let data = lifecycle(action, more);
        self.ledger.tell(&data);
        change.events.push(("lifecycle", data.into()));
        self.ledger.note(change);
    }

    async fn too_much_on_disk(&mut self, used: DiskUse) {
        let limits = self.session.limits;
        let Some(live) = &mut self.live else { return };
        if live.frozen || !used.is_over(bound(&limits)) {
            return;
        }
        let nameless =
            !DiskUse { bytes: used.bytes - used.held_bytes, held_hidden: false, ..used }.is_over(bound(&limits));
        let again = std::mem::replace(&mut live.nameless, nameless) && nameless;
        let why = over(&used, &limits);
        if let Err(e) = live.freeze().await {
            // Without a freeze nothing else bounds it, so the sandbox is ended.
            return self.fell(format!("{why} The sandbox could not be frozen and was ended: {e}"), "disk").await;
        }
        self.catch_up().await;
        self.shared.tally.count("disk");
        let (limit, number) = if used.bytes > limits.disk_bytes {
            (Limit::DiskBytes, used.bytes)
        } else {
            (Limit::DiskFiles, used.files)
        };
        let data = json!({ "limit": limit, "value": limits.get(limit), "used": number });
        self.cause("limited", "disk", data, &why);
        if again {
            // It was resumed once, and the interrupted turn did not release the files: only the end
            // of the processes does.
            return self.fell(format!("{why} Exceeded again, so its processes were ended."), "disk").await;
        }
        self.hold("disk", why).await;
    }

    /// The tenant's storage is full, and this session continues to write.
    async fn tenant_is_full(&mut self) {
        // Files may have been deleted meanwhile.
        let Some(SessionError::Full(why)) = self.shared.is_storage_full(&self.session.tenant) else { return };
        let Some(live) = self.live.as_mut().filter(|live| !live.frozen) else { return };
        let why = format!("Session paused: {why}");
        if let Err(e) = live.freeze().await {
            return self.fell(format!("{why} The sandbox could not be frozen and was ended: {e}"), "storage").await;
        }
        self.catch_up().await;
        let storage = &self.shared.storage;
        let (limit, used) = (storage.limit(&self.session.tenant).value, storage.stored(&self.session.tenant).total());
        self.shared.tally.count("storage");
        self.cause("limited", "storage", json!({ "limit": "storageBytes", "value": limit, "used": used }), &why);
        self.hold("storage", why).await;
    }

    /// Pauses a session that is frozen already, with the reason as its error.
    async fn hold(&mut self, reason: &'static str, why: String) {
        let data = json!({ "reason": reason, "error": why });
        let mut change = self.change(SessionStatus::Paused, Some(why.clone()), "paused", data);
        let broken = self.turn.as_ref().map(|running| running.turn.number);
        let interrupted = self.break_turn(&mut change, &why);
        if broken.is_some() {
            change.events.push(("error", json!({ "error": why }).to_string().into()));
        }
        if let Some(live) = &mut self.live {
            live.unfinished = broken;
            live.idle_since = Instant::now();
        }
        self.enter_or_note(change).await;
        self.answer_interrupted(interrupted, Err(why));
    }
}

/// A limit for the timeline; `None` when unlimited.
fn number(limits: &Limits, limit: Limit) -> Option<u64> {
    Some(limits.get(limit)).filter(|value| *value != UNLIMITED)
}

/// Text for a session above a disk limit.
fn over(used: &DiskUse, limits: &Limits) -> String {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let what = if used.held_hidden {
        "disk use cannot be measured: its processes hold deleted files by descriptors in socket queues".to_owned()
    } else if used.hidden {
        "disk use cannot be measured: it has directories that cannot be read, or more than 128 nested directories"
            .to_owned()
    } else if used.bytes > limits.disk_bytes {
        let held = match used.held_bytes {
            0 => String::new(),
            held => format!(", {} MiB of them in deleted files that are still open", mib(held)),
        };
        format!("disk limit exceeded ({} of {} MiB{held})", mib(used.bytes), mib(limits.disk_bytes))
    } else {
        format!("file limit exceeded ({} of {} files)", used.files, limits.disk_files)
    };
    format!(
        "Session paused: {what}. Delete files (DELETE .../files/*) or raise the limit (`diskBytes`, `diskFiles`; PATCH .../limits) to \
         continue{}",
        if used.held_bytes > 0 || used.held_hidden {
            ". Deleted files are released with the processes that hold them: when the session continues, its turn is interrupted."
        } else {
            "."
        }
    )
}
