//! What all sessions of the daemon share: other parts, counters, admission.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;
use uuid::Uuid;

use crate::config::{Live, PoolConfig};
use crate::gateway::client::Gateway;
use crate::pool::{Admission, Full, Pool, Slot};
use crate::sandbox::Launcher;
use crate::sessions::SessionError;
use crate::sessions::api::evals::Evals;
use crate::sessions::api::exec::Execs;
use crate::sessions::api::limits::Tally;
use crate::sessions::api::metering::Metering;
use crate::sessions::api::prompt_queue::Jobs;
use crate::sessions::api::status::Census;
use crate::sessions::api::tenants::Tenants;
use crate::sessions::driver::registry::{self, Handle, Registry};
use crate::sessions::driver::{Driver, Request, lifecycle};
use crate::sessions::monitor::resource_monitor::Warden;
use crate::sessions::prewarm::Stock;
use crate::sessions::quota::admission::Admissions;
use crate::sessions::quota::stored::Storage;
use crate::sessions::stream::inotify::Hub;
use crate::sessions::stream::published::Published;
use crate::sessions::workspace::layout::SessionDir;
use crate::store::{Commit, LimitScope, Session, Store};
use crate::vault::Vault;
use ash_kernel::pressure::{self, Memory};
use ash_kernel::reclaim;
use ash_model::{SessionStatus, TenantId, now_ms};
use ash_observe::events::{self, OncePerMinute, event};

/// `Retry-After` in seconds when no sandbox is available.
const RETRY_AFTER_S: u64 = 5;
/// Evictions that one admission requests before it fails.
const MAX_EVICTIONS: usize = 8;

/// How long a create waits for a slot that its tenant is entitled to, and how often it checks.
const WAIT_FOR_ROOM: Duration = Duration::from_secs(4);
const LOOK_FOR_ROOM: Duration = Duration::from_millis(250);

/// Longest wait for the end of one sandbox, which usually takes 0.1 s.
const PARKS_WITHIN: Duration = Duration::from_secs(2);

/// At most one log entry per minute, for all callers.
static NO_ROOM: OncePerMinute = OncePerMinute::new();

/// What every session's task needs.
#[derive(Debug)]
pub struct Shared {
    pub config: Live,
    pub store: Store,
    pub launcher: Launcher,
    pub gateway: Gateway,
    pub pool: Pool,
    pub hub: Hub,
    pub registry: Registry,
    pub execs: Execs,
    /// Sandboxes being created: a few of each tenant, because the launcher creates one after the
    /// other.
    pub starts: Admissions<TenantId>,
    pub jobs: Jobs,
    pub evals: Evals,
    pub warm: Stock,
    pub vault: Vault,
    pub warden: Warden,
    pub storage: Storage,
    pub tally: Tally,
    /// Held while the limits of a tenant or an agent are read, changed and stored.
    pub(super) limiting: tokio::sync::Mutex<()>,
    /// The lack of swap for reclaimed memory was reported.
    pub(super) no_swap: AtomicBool,
    pub(super) census: Census,
    pub(super) tenants: Tenants,
    pub(super) metering: Metering,
    /// No new session or turn begins, and streams end.
    pub(super) stopping: CancellationToken,
}

impl Shared {
    pub fn dir(&self, id: Uuid) -> SessionDir {
        SessionDir::new(&self.config.now().data_dir, id)
    }

    /// The session's task, started if it has none.
    pub fn handle(self: &Arc<Self>, tenant: TenantId, id: Uuid) -> Handle {
        self.registry.get_or_insert(id, || {
            let (handle, ends) = registry::channel(tenant, Published { loading: true, ..Published::default() });
            // Fields of all log lines of the task. No parent, so that the first request's fields
            // are not included.
            let span = tracing::error_span!(parent: None, "session", ASH_SESSION = %id, ASH_TENANT = %handle.tenant,
                ASH_AGENT = tracing::field::Empty);
            tokio::spawn(Driver::run(Arc::clone(self), id, ends).instrument(span));
            handle
        })
    }

    /// Sends a request to the session's task, or to its successor if it is just ending.
    pub async fn pass_on(self: &Arc<Self>, tenant: TenantId, id: Uuid, request: Request) {
        const TRIES: usize = 8;
        let mut request = request;
        for _ in 0..TRIES {
            match self.handle(tenant.clone(), id).requests.send(request).await {
                Ok(()) => return,
                Err(returned) => request = returned.0,
            }
        }
    }

    pub(super) fn check_accepting(&self) -> Result<(), SessionError> {
        if self.stopping.is_cancelled() {
            return Err(SessionError::Unavailable("ashd is restarting; try again in a moment".to_owned()));
        }
        Ok(())
    }

    /// Counts a session's change of state; `None` for one that was not counted before.
    pub fn moved(&self, from: Option<SessionStatus>, to: SessionStatus, live: bool) {
        self.census.moved(from, to);
        // With a process, the pool's slot counts it.
        let cold = |status| i64::from(!live && is_cold(status));
        self.pool.cold_changed(cold(to) - from.map_or(0, cold));
    }

    /// Counts the rows in the database at the start, as if none had a process.
    pub fn found(&self, counts: &[(SessionStatus, u64)]) {
        for (status, n) in counts {
            let n = i64::try_from(*n).unwrap_or(i64::MAX);
            self.census.add(*status, n);
            self.pool.cold_changed(if is_cold(*status) { n } else { 0 });
        }
    }

    /// The process of a session in this state is gone.
    pub fn went_cold(&self, status: SessionStatus) {
        self.pool.cold_changed(i64::from(is_cold(status)));
    }

    /// A session in this state is about to have a process.
    pub fn went_live(&self, status: SessionStatus) {
        self.pool.cold_changed(-i64::from(is_cold(status)));
    }

    /// Moves a frozen session's memory to swap, if there is some. Not awaited: the launcher handles
    /// one sandbox after the other, and a resume ends the work.
    pub async fn reclaim(&self, id: Uuid) {
        if reclaim::swap_free() == 0 {
            if !self.no_swap.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    ASH_EVENT = "no-swap",
                    "this host has no free swap, so a paused session keeps its memory \
                    (100 to 200 MiB of claude) until it is parked; add swap or zram to reclaim it"
                );
            }
            return;
        }
        self.no_swap.store(false, Ordering::Relaxed);
        if let Err(e) = self.launcher.reclaim(id).await {
            tracing::warn!(ASH_SESSION = %id, "cannot reclaim the session's memory: {e}");
        }
    }

    /// # Errors
    /// `Unavailable` when the host is short of memory: another claude would make the others swap or
    /// die.
    pub fn check_memory(&self) -> Result<(), SessionError> {
        let Some(why) = self.short_of_memory() else { return Ok(()) };
        let why = format!("the host is short of memory: {why}; no new sandbox starts now");
        if NO_ROOM.now() {
            event!(&events::NO_ROOM, "{why}");
        }
        Err(SessionError::Unavailable(why))
    }

    /// Why the host is short of memory.
    pub fn short_of_memory(&self) -> Option<String> {
        shortage(pressure::memory(), &self.config.now().pool)
    }

    pub fn full(&self, why: Full) -> SessionError {
        let (max, retry_after_s) = (self.pool.max(), RETRY_AFTER_S);
        match why {
            Full::Tenant { most } => SessionError::TenantCapacity { max: most, retry_after_s },
            Full::Host { owed } => {
                if NO_ROOM.now() {
                    event!(&events::NO_ROOM, max, "sandbox capacity reached and no sandbox can be evicted");
                }
                if owed {
                    SessionError::Owed { max, retry_after_s }
                } else {
                    SessionError::Capacity { max, retry_after_s }
                }
            }
        }
    }

    /// A slot; sandboxes without a session and idle sessions are evicted for it. A tenant that
    /// holds less than another one waits a moment for a turn to end.
    pub(super) async fn admit(self: &Arc<Self>, tenant: &TenantId, id: Uuid) -> Result<Slot, SessionError> {
        let (until, mut evictions) = (Instant::now() + WAIT_FOR_ROOM, 0);
        loop {
            match self.pool.admit(tenant, id) {
                Admission::Granted(slot) => return Ok(slot),
                Admission::MakeRoom(victim) if evictions < MAX_EVICTIONS && Instant::now() < until => {
                    evictions += 1;
                    self.make_room(victim).await;
                }
                Admission::MakeRoom(_) => return Err(self.full(Full::Host { owed: false })),
                Admission::Full(why @ Full::Host { owed: true }) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(self.full(why));
                    }
                    // Sandboxes also become evictable by idle time alone, without a notification.
                    self.pool.changed(left.min(LOOK_FOR_ROOM)).await;
                }
                Admission::Full(why) => return Err(self.full(why)),
            }
        }
    }

    /// Destroys a sandbox without a session, or asks a paused session to give up its sandbox, and
    /// waits until it did or declined. A busy session does it later, and another one is asked.
    pub async fn make_room(&self, victim: Uuid) {
        if self.warm.evict(self, victim).await {
            return;
        }
        let Some(handle) = self.registry.get(victim) else { return };
        let (reply, done) = oneshot::channel();
        let asked = async {
            if handle.requests.send(Request::Park { reply }).await.is_ok() {
                let _ = done.await;
            }
        };
        let _ = tokio::time::timeout(PARKS_WITHIN, asked).await;
    }

    pub(super) async fn insert_fork(&self, parent: &Session, id: Uuid) -> Result<Session, SessionError> {
        let now = now_ms();
        let fork = Session {
            id,
            status: SessionStatus::Paused,
            error: None,
            parent: Some(parent.id),
            stdout_offset: 0,
            conversation: id,
            conversation_turn: 0,
            created_at: now,
            last_active_at: now,
            ..parent.clone()
        };
        self.store.session_insert(&fork).await?;
        // The copy gets the limits set for the parent.
        let said = self.store.limits(&parent.tenant, None, Some(parent.id)).await?.session;
        self.store.limits_put(&parent.tenant, LimitScope::Session(id), said).await?;
        self.store.messages_copy(&parent.tenant, parent.id, id).await?;
        let mut change = Commit::of(&fork);
        change.events.push(("lifecycle", lifecycle("forked", json!({ "from": parent.id })).into()));
        self.store.commit(change).await?;
        self.moved(None, SessionStatus::Paused, false);
        Ok(fork)
    }
}

fn is_cold(status: SessionStatus) -> bool {
    matches!(status, SessionStatus::Paused | SessionStatus::Stopped | SessionStatus::Error)
}

/// Why the host is short of memory; `None` when another sandbox may start.
fn shortage(memory: Memory, pool: &PoolConfig) -> Option<String> {
    if memory.available < pool.min_available_bytes {
        let (has, least) = (memory.available >> 20, pool.min_available_bytes >> 20);
        return Some(format!("{has} MiB of memory available, minimum {least} MiB (pool.min_available_bytes)"));
    }
    let most = pool.max_stalled_percent;
    (memory.stalled >= most as f64).then(|| {
        let stalled = memory.stalled;
        format!("processes stall on memory {stalled} % of the time, maximum {most} % (pool.max_stalled_percent)")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_short_of_memory_when_too_little_is_left_or_everybody_waits_for_it() {
        let pool = PoolConfig {
            min_available_bytes: 128 << 20,
            max_stalled_percent: 50,
            ..crate::config::Config::default().pool
        };
        let at = |mib: u64, stalled| shortage(Memory { available: mib << 20, stalled }, &pool);
        assert_eq!(at(128, 49.9), None);
        assert!(at(127, 0.0).is_some_and(|why| why.contains("127 MiB") && why.contains("min_available_bytes")));
        assert!(at(9999, 50.0).is_some_and(|why| why.contains("50 %") && why.contains("max_stalled_percent")));
    }
}
