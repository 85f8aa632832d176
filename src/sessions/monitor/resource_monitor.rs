//! Watches what the kernel does not bound or does not report: disk use, refused forks,
//! out-of-memory kills. One task for all sessions. It skips frozen sessions, and sleeps when there
//! are no others.
//!
//! ```text
//!   Live --watch()--> [ watched sessions ] --tick: free space, counters--> walk (2 at a time) --+
//!    drop: no longer watched                                                                    |
//!                      the session's task, which freezes, reports, records <-- Finding <--------+
//! ```

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, Semaphore};
use uuid::Uuid;

use crate::sandbox::Launcher;
use crate::sandbox::usage::CpuUsage;
use crate::sessions::monitor::counters::Counters;
use crate::sessions::monitor::disk_usage::{self, Bound, Counted, DiskUse, Free, Seen};
use crate::sessions::monitor::walks::Walks;
use crate::sessions::quota::stored::Storage;
use ash_kernel::held::Held;
use ash_model::{Limits, TenantId};
use ash_protocol::launcher::CgroupPaths;

/// Interval of checks. A walk begins at most this long after a writer exceeds its bound.
const TICK: Duration = Duration::from_millis(250);
/// Ticks between two readings of the cgroup counters.
const COUNTERS: u32 = 4;
/// Processor time after which a session may have written: about 100 MiB to the page cache.
const BUSY_US: u64 = 20_000;
/// Time for a running session to release deleted files.
const LET_GO: Duration = Duration::from_secs(1);
/// Bytes that a session may write after its tenant's storage is full, to finish its turn.
const SLACK: u64 = 1 << 20;
/// Below this remainder of a tenant's storage, its sessions are walked when the disk lost half of
/// it.
const NEAR: u64 = 16 << 20;

/// What a session's task must learn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Disk use above the limit.
    Disk(DiskUse),
    /// The session writes while its tenant's storage is exceeded.
    Storage,
    /// Processes killed by the kernel since the last report.
    OomKilled(u64),
    /// Forks refused by the process limit since the last report.
    ForksRefused(u64),
    /// Number of processes and threads, above the part that commands and tools may use.
    CommandsFull(u64),
}

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Warden {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    data_dir: PathBuf,
    /// Counts deleted, open files.
    launcher: Launcher,
    /// Measured bytes also count for the tenant.
    storage: Storage,
    watched: Mutex<HashMap<Uuid, Arc<Watched>>>,
    wake: Notify,
    /// The cgroups above all sandboxes, known from the first one.
    root: OnceLock<CgroupPaths>,
    watching: Walks,
    asked: Walks,
    /// Microseconds that sessions were throttled by their own processor limits. The groups above
    /// them do not count those.
    throttled_us: AtomicU64,
}

#[derive(Debug)]
struct Watched {
    id: Uuid,
    tenant: TenantId,
    root: PathBuf,
    cgroup: CgroupPaths,
    frozen: AtomicBool,
    walking: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    bound: Bound,
    seen: Option<Seen>,
    counted: Option<Counted>,
    /// Microseconds of processor time at the newest walk, and at the newest count of deleted, open
    /// files.
    cpu: [u64; 2],
    /// Reported, and unchanged since.
    over: bool,
    /// Bytes at the last walk before its tenant's storage was exceeded.
    since_full: Option<u64>,
    counters: Counters,
    throttled_us: u64,
}

impl Watched {
    fn state(&self) -> MutexGuard<'_, State> {
        // Consistent between any two statements, so a panic elsewhere cannot break it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Microseconds throttled by its processor limit since the last call.
    fn throttled(&self) -> u64 {
        let throttled_us = CpuUsage::read(&self.cgroup).throttled_us.unwrap_or(0);
        throttled_us.saturating_sub(std::mem::replace(&mut self.state().throttled_us, throttled_us))
    }

    /// New findings of the cgroup counters.
    fn counters(&self, now: Instant) -> Vec<Finding> {
        self.state().counters.look(&self.cgroup, now)
    }
}

/// Watches a session until it is dropped.
#[derive(Debug)]
pub struct Watch {
    warden: Warden,
    watched: Arc<Watched>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut all = self.warden.all();
        if all.get(&self.watched.id).is_some_and(|other| Arc::ptr_eq(other, &self.watched)) {
            all.remove(&self.watched.id);
        }
        drop(all);
        // Accounts for what it wrote after its last walk.
        self.warden.inner.storage.touched(&self.watched.tenant, Some(self.watched.id), false);
    }
}

impl Watch {
    /// A frozen session cannot write, so it is not checked.
    pub fn set_frozen(&self, frozen: bool) {
        self.watched.frozen.store(frozen, Ordering::Relaxed);
        if !frozen {
            let mut state = self.watched.state();
            (state.over, state.since_full) = (false, None);
            if let Some(counted) = &mut state.counted {
                // The turn is interrupted now, which releases held files.
                (counted.held, counted.at) = (Held::default(), Instant::now() + LET_GO);
            }
            drop(state);
            self.warden.inner.wake.notify_one();
        }
    }

    /// New bounds, or freed space: a finding that still holds is reported again.
    pub fn set_limits(&self, limits: &Limits) {
        let mut state = self.watched.state();
        state.bound = bound(limits);
        state.over = false;
    }

    /// The last walk.
    pub fn seen(&self) -> Option<Seen> {
        self.watched.state().seen
    }
}

/// The disk part of the limits.
pub fn bound(limits: &Limits) -> Bound {
    Bound { bytes: limits.disk_bytes, files: limits.disk_files }
}

impl Warden {
    pub fn new(data_dir: &Path, launcher: Launcher, storage: Storage) -> Self {
        let inner = Inner {
            data_dir: data_dir.to_owned(),
            launcher,
            storage,
            watched: Mutex::default(),
            wake: Notify::new(),
            root: OnceLock::new(),
            watching: Walks::default(),
            asked: Walks::default(),
            throttled_us: AtomicU64::new(0),
        };
        Self { inner: Arc::new(inner) }
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Uuid, Arc<Watched>>> {
        self.inner.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to watch. Earlier counts are not reported.
    pub fn watch(
        &self,
        (tenant, id): (&TenantId, Uuid),
        root: &Path,
        cgroup: &CgroupPaths,
        limits: &Limits,
        frozen: bool,
    ) -> Watch {
        let watched = Arc::new(Watched {
            id,
            tenant: tenant.clone(),
            root: root.to_owned(),
            cgroup: cgroup.clone(),
            frozen: AtomicBool::new(frozen),
            walking: Arc::new(Semaphore::new(1)),
            state: Mutex::new(State {
                bound: bound(limits),
                seen: None,
                counted: None,
                cpu: [0; 2],
                over: false,
                since_full: None,
                counters: Counters::of(cgroup),
                throttled_us: CpuUsage::read(cgroup).throttled_us.unwrap_or(0),
            }),
        });
        // `<root>/tenants` of a sandbox at `<root>/tenants/<tenant>/<id>`.
        self.inner.root.get_or_init(|| cgroup.above(2));
        self.all().insert(id, Arc::clone(&watched));
        self.inner.wake.notify_one();
        Watch { warden: self.clone(), watched }
    }

    /// Microseconds that all sessions were throttled by their own processor limits since this
    /// daemon started, to within the last second of each.
    pub fn throttled_us(&self) -> u64 {
        self.inner.throttled_us.load(Ordering::Relaxed)
    }

    /// The cgroups that count all sandboxes; `None` before the first one.
    pub fn root(&self) -> Option<CgroupPaths> {
        self.inner.root.get().cloned()
    }

    /// Free space of the sessions' file system.
    pub fn free(&self) -> Option<Free> {
        disk_usage::free(&self.inner.data_dir).inspect_err(|e| tracing::warn!("cannot read free space: {e}")).ok()
    }

    /// Measures a directory of a tenant now, queued behind the tenant's other walks.
    ///
    /// # Errors
    /// The directory cannot be opened.
    pub async fn measure(&self, tenant: &TenantId, root: &Path, bound: Bound) -> std::io::Result<DiskUse> {
        self.inner.asked.measure(tenant, root, bound).await
    }

    /// Watches forever. `tell` returns whether the session's task accepted the finding; others are
    /// reported again.
    pub async fn run(self, tell: impl Fn(Uuid, Finding) -> bool + Clone + Send + Sync + 'static) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut count = 0_u32;
        loop {
            let running: Vec<Arc<Watched>> =
                self.all().values().filter(|w| !w.frozen.load(Ordering::Relaxed)).cloned().collect();
            if running.is_empty() {
                self.inner.wake.notified().await;
                continue;
            }
            ticks.tick().await;
            count = count.wrapping_add(1);
            let now = Instant::now();
            let free = self.free().unwrap_or_default();
            for watched in running {
                if count.is_multiple_of(COUNTERS) {
                    self.inner.throttled_us.fetch_add(watched.throttled(), Ordering::Relaxed);
                    for finding in watched.counters(now) {
                        tell(watched.id, finding);
                    }
                }
                self.look(watched, free, now, tell.clone());
            }
        }
    }

    /// Adds what the session's processes hold in deleted files, counted again when due.
    async fn with_held(&self, watched: &Watched, walked: DiskUse, bound: Bound, free: Free, cpu: u64) -> DiskUse {
        let now = Instant::now();
        let (last, busy) = {
            let mut state = watched.state();
            let busy = cpu.saturating_sub(state.cpu[1]) >= BUSY_US;
            // The first walk is the baseline: a new sandbox holds nothing.
            let start = Counted { held: Held::default(), at: now, took: Duration::ZERO, free, walked: walked.bytes };
            (*state.counted.get_or_insert(start), busy)
        };
        if walked.is_over(bound) || !disk_usage::held_is_due(&last, walked.bytes, bound, free, busy, now) {
            return walked.and(last.held);
        }
        // Without an answer (the launcher is away) the last count stays, and is repeated at the
        // next check.
        let Ok(held) = self.inner.launcher.held(watched.id).await else { return walked.and(last.held) };
        let counted = Counted { held, at: Instant::now(), took: now.elapsed(), free, walked: walked.bytes };
        {
            let mut state = watched.state();
            (state.counted, state.cpu[1]) = (Some(counted), cpu);
        }
        // Ordinary programs also have descriptors in a socket's queue briefly: unseen twice in a
        // row counts.
        let held_hidden = held.hidden && last.held.hidden;
        DiskUse { held_hidden, ..walked.and(held) }
    }

    /// Current disk use of a session, including deleted files that its processes hold.
    ///
    /// # Errors
    /// The directory cannot be opened.
    pub async fn measure_all(
        &self,
        tenant: &TenantId,
        id: Option<Uuid>,
        root: &Path,
        bound: Bound,
    ) -> std::io::Result<DiskUse> {
        let walked = self.measure(tenant, root, bound).await?;
        let Some(id) = id else { return Ok(walked) };
        Ok(self.inner.launcher.held(id).await.map_or(walked, |held| walked.and(held)))
    }

    /// Accounts a walk to the session's tenant, and returns what is exceeded.
    fn judge(&self, watched: &Watched, used: DiskUse, seen: Seen) -> Option<Finding> {
        let storage = &self.inner.storage;
        storage.measured(&watched.tenant, watched.id, used.bytes);
        let full = storage.left(&watched.tenant) == 0;
        let mut state = watched.state();
        let before = state.seen.replace(seen).map_or(used.bytes, |before| before.used.bytes);
        if used.is_over(state.bound) {
            return Some(Finding::Disk(used));
        }
        if !full {
            state.since_full = None;
            return None;
        }
        let at_first = *state.since_full.get_or_insert(before);
        (used.bytes > at_first.saturating_add(SLACK)).then_some(Finding::Storage)
    }

    /// Starts a walk of one session when due.
    fn look(
        &self,
        watched: Arc<Watched>,
        free: Free,
        now: Instant,
        tell: impl Fn(Uuid, Finding) -> bool + Send + 'static,
    ) {
        let cpu = CpuUsage::read(&watched.cgroup).usage_us.unwrap_or(0);
        let left = self.inner.storage.left(&watched.tenant).max(NEAR);
        let bound = {
            let mut state = watched.state();
            let busy = cpu.saturating_sub(state.cpu[0]) >= BUSY_US;
            // The tenant may have less left than the session.
            let has = state.seen.map_or(0, |seen| seen.used.bytes);
            let near = Bound { bytes: state.bound.bytes.min(has.saturating_add(left)), ..state.bound };
            if state.over || !disk_usage::is_due(state.seen.as_ref(), near, free, busy, now) {
                return;
            }
            state.cpu[0] = cpu;
            state.bound
        };
        // Released when the task ends, in any way.
        let Ok(walking) = Arc::clone(&watched.walking).try_acquire_owned() else { return };
        let warden = self.clone();
        tokio::spawn(async move {
            let start = Instant::now();
            let used = warden.inner.watching.measure(&watched.tenant, &watched.root, bound).await;
            let used = match used {
                Ok(walked) => Ok(warden.with_held(&watched, walked, bound, free, cpu).await),
                failed => failed,
            };
            drop(walking);
            let Ok(used) = used else { return };
            let finding = warden.judge(&watched, used, Seen { used, at: Instant::now(), took: start.elapsed(), free });
            if let Some(finding) = finding {
                let heard = tell(watched.id, finding);
                // While its tenant's storage is full, a writing session is reported until it is
                // frozen.
                watched.state().over = heard && finding != Finding::Storage;
            }
        });
    }
}

#[cfg(test)]
#[path = "resource_monitor_tests.rs"]
mod tests;
