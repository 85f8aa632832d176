//! The pool: how many sandboxes may live, and whose turn it is to make room.
//!
//! ```text
//!         admit_spare [ warming ] --> [ warm ] --- claimed ---+      (a parked one: to [ warming ], its claude is to start)
//!                                                             v
//!            admit                    ready                       turn begins
//!   (cold) ---------> [ warming ] ----------------------> [ waiting ] <------> [ running ]
//!      ^                  |                                |      ^    turn ends     |
//!      |                  |                          pause |      | resume           |
//!      +------------------+---- drop ----------------- [ parkable ] <----------------+  (paused in mid-turn: not parkable)
//! ```
//!
//! Who gets a place, and whose sandbox is given up for it, is decided in [`victim`]: the tenant that holds most gives way first.
//!
//! A [`Slot`] is the right to one live sandbox, and exists before the sandbox does: the bound (`ASH_MAX_SANDBOXES`) holds
//! at every moment, also while many sessions start at once. Its undo is its drop, after the sandbox is destroyed.
//! Nothing here does I/O: the layer above destroys what [`Admission::MakeRoom`] names.

mod victim;

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use tokio::sync::Notify;

use ash_model::{SandboxState, TenantId};

use victim::{Decision, Promises, Rules};
pub use victim::{Occupant, Spare};

/// How long a place that comes free is kept for a tenant that was refused one: its client comes again after `Retry-After`
/// (5 s), and may be late.
const PROMISE: Duration = Duration::from_secs(15);

/// Cheap to clone; all clones count together.
#[derive(Clone, Debug)]
pub struct Pool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    rules: Mutex<Rules>,
    /// [`Rules::max`] once more, for `/health`.
    max: AtomicUsize,
    taken: Mutex<Taken>,
    /// A sandbox was given up, or came into another state.
    changed: Notify,
    /// One gauge per state, so that `/health` and `/metrics` read numbers and compute nothing.
    warming: AtomicI64,
    warm: AtomicI64,
    waiting: AtomicI64,
    running: AtomicI64,
    cold: AtomicI64,
    resumed_warm: AtomicU64,
    resumed_cold: AtomicU64,
    pre_warmed: AtomicU64,
    created_parked: AtomicU64,
    created_cold: AtomicU64,
}

#[derive(Debug, Default)]
struct Taken {
    slots: HashMap<Uuid, Occupant>,
    promises: Promises,
}

/// What a request for a slot comes to.
#[derive(Debug)]
pub enum Admission {
    Granted(Slot),
    /// Full, but this sandbox without a session, or of an idle session, may be given up: do that and ask again.
    MakeRoom(Uuid),
    /// Full, and nothing may go.
    Full(Full),
}

/// Why there is no slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// All places are taken or promised. `owed`: another tenant holds at least two more, and the next place that comes free is
    /// kept for this tenant.
    Host { owed: bool },
    /// The tenant has as many as one tenant may have.
    Tenant { most: usize },
}

/// The pool in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    pub cold: usize,
    pub warming: usize,
    pub warm: usize,
    pub waiting: usize,
    pub running: usize,
    pub max: usize,
    pub resumed_warm: u64,
    pub resumed_cold: u64,
    /// Sessions that were created from a warm sandbox.
    pub pre_warmed: u64,
    /// ... from a parked one, and from nothing.
    pub created_parked: u64,
    pub created_cold: u64,
}

impl Pool {
    /// `max` live sandboxes at most (`ASH_MAX_SANDBOXES`), `per_tenant` of one tenant. When they are there, active sessions that
    /// had no turn for `evict_after` make room behind the paused ones.
    pub fn new(max: usize, per_tenant: Option<usize>, evict_after: Duration) -> Self {
        Self {
            shared: Arc::new(Shared {
                rules: Mutex::new(Rules { max, per_tenant, evict_after }),
                max: AtomicUsize::new(max),
                taken: Mutex::default(),
                changed: Notify::new(),
                warming: AtomicI64::new(0),
                warm: AtomicI64::new(0),
                waiting: AtomicI64::new(0),
                running: AtomicI64::new(0),
                cold: AtomicI64::new(0),
                resumed_warm: AtomicU64::new(0),
                resumed_cold: AtomicU64::new(0),
                pre_warmed: AtomicU64::new(0),
                created_parked: AtomicU64::new(0),
                created_cold: AtomicU64::new(0),
            }),
        }
    }

    /// Other bounds from now on. What lives above a lower maximum is counted, not killed.
    pub fn resize(&self, max: usize, per_tenant: Option<usize>, evict_after: Duration) {
        self.shared.max.store(max, Ordering::Relaxed);
        *self.shared.rules.lock().unwrap_or_else(PoisonError::into_inner) = Rules { max, per_tenant, evict_after };
    }

    pub fn max(&self) -> usize {
        self.shared.max.load(Ordering::Relaxed)
    }

    fn rules(&self) -> Rules {
        *self.shared.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A slot for the sandbox of this tenant's session, if there is room.
    pub fn admit(&self, tenant: &TenantId, session: Uuid) -> Admission {
        let (rules, now) = (self.rules(), Instant::now());
        let mut taken = self.shared.taken();
        taken.promises.retain(|_, until| *until > now);
        match victim::decide(&taken.slots, &taken.promises, rules, tenant, now) {
            Decision::Grant => {
                taken.promises.remove(tenant);
                Admission::Granted(self.occupy(&mut taken.slots, tenant, session, SandboxState::Warming, None))
            }
            Decision::MakeRoom(id) => {
                // Named once: two requests at the same moment must not wait for the same room.
                if let Some(occupant) = taken.slots.get_mut(&id) {
                    occupant.leaving = true;
                }
                Admission::MakeRoom(id)
            }
            Decision::TenantFull => Admission::Full(Full::Tenant { most: rules.per_tenant.unwrap_or(rules.max) }),
            Decision::Full { owed } => {
                if owed {
                    taken.promises.insert(tenant.clone(), now + PROMISE);
                }
                Admission::Full(Full::Host { owed })
            }
        }
    }

    /// A slot for a sandbox without a session: only where there is room that no session waits for, and the first to be given up
    /// again.
    pub fn admit_spare(&self, tenant: &TenantId, id: Uuid, kind: Spare) -> Option<Slot> {
        let (rules, now) = (self.rules(), Instant::now());
        let mut taken = self.shared.taken();
        let waited_for = taken.promises.values().filter(|until| **until > now).count();
        let own = taken.slots.values().filter(|occupant| occupant.tenant == *tenant).count();
        let fits = taken.slots.len() + waited_for < rules.max && rules.per_tenant.is_none_or(|most| own < most);
        fits.then(|| self.occupy(&mut taken.slots, tenant, id, SandboxState::Warming, Some(kind)))
    }

    /// A slot for a sandbox that lives already (found at the start of the daemon). Given even above the maximum, which
    /// may have been lowered meanwhile: what lives is counted, not killed.
    pub fn adopt(&self, tenant: &TenantId, session: Uuid) -> Slot {
        let mut taken = self.shared.taken();
        self.occupy(&mut taken.slots, tenant, session, SandboxState::Waiting, None)
    }

    fn occupy(
        &self,
        slots: &mut HashMap<Uuid, Occupant>,
        tenant: &TenantId,
        session: Uuid,
        state: SandboxState,
        spare: Option<Spare>,
    ) -> Slot {
        let (tenant, since) = (tenant.clone(), Instant::now());
        slots.insert(session, Occupant { tenant, state, spare, parkable: false, leaving: false, since });
        self.shared.gauge(state, 1);
        Slot { shared: Arc::clone(&self.shared), session }
    }

    /// Sandboxes that this tenant has, those without a session included, and the most it may have.
    pub fn of_tenant(&self, tenant: &TenantId) -> (usize, Option<usize>) {
        let own = self.shared.taken().slots.values().filter(|occupant| occupant.tenant == *tenant).count();
        (own, self.rules().per_tenant)
    }

    /// Waits until a sandbox was given up or came into another state, and no longer than `most`.
    pub async fn changed(&self, most: Duration) {
        // Too late for a change is no harm: it is asked again then.
        let _ = tokio::time::timeout(most, self.shared.changed.notified()).await;
    }

    /// Sessions without a process changed by this many (they are rows, which the pool does not count).
    pub fn cold_changed(&self, by: i64) {
        self.shared.cold.fetch_add(by, Ordering::Relaxed);
    }

    /// A session was resumed from a frozen sandbox (`warm`) or by a new process.
    pub fn resumed(&self, warm: bool) {
        let counter = if warm { &self.shared.resumed_warm } else { &self.shared.resumed_cold };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// A session was created from a warm sandbox.
    pub fn pre_warmed(&self) {
        self.shared.pre_warmed.fetch_add(1, Ordering::Relaxed);
    }

    /// A session was created from a parked sandbox, or from nothing.
    pub fn created(&self, parked: bool) {
        let counter = if parked { &self.shared.created_parked } else { &self.shared.created_cold };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Constant time.
    pub fn census(&self) -> Census {
        let gauge = |g: &AtomicI64| usize::try_from(g.load(Ordering::Relaxed)).unwrap_or(0);
        let s = &self.shared;
        Census {
            cold: gauge(&s.cold),
            warming: gauge(&s.warming),
            warm: gauge(&s.warm),
            waiting: gauge(&s.waiting),
            running: gauge(&s.running),
            max: self.max(),
            resumed_warm: s.resumed_warm.load(Ordering::Relaxed),
            resumed_cold: s.resumed_cold.load(Ordering::Relaxed),
            pre_warmed: s.pre_warmed.load(Ordering::Relaxed),
            created_parked: s.created_parked.load(Ordering::Relaxed),
            created_cold: s.created_cold.load(Ordering::Relaxed),
        }
    }
}

impl Shared {
    fn taken(&self) -> MutexGuard<'_, Taken> {
        // The map is whole between any two statements, so a panic elsewhere cannot have spoilt it.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gauge(&self, state: SandboxState, by: i64) {
        let gauge = match state {
            SandboxState::Warming => &self.warming,
            SandboxState::Running => &self.running,
            SandboxState::Warm => &self.warm,
            SandboxState::Waiting => &self.waiting,
            SandboxState::Cold => &self.cold,
        };
        gauge.fetch_add(by, Ordering::Relaxed);
    }
}

/// The right to one live sandbox. Dropped when the sandbox is gone.
#[derive(Debug)]
pub struct Slot {
    shared: Arc<Shared>,
    session: Uuid,
}

impl Slot {
    /// `parkable`: the sandbox may be destroyed to make room for another session's (a paused session between turns). In any
    /// state but `Warm` it is a session's.
    pub fn set(&self, state: SandboxState, parkable: bool) {
        let mut taken = self.shared.taken();
        if let Some(occupant) = taken.slots.get_mut(&self.session) {
            self.shared.gauge(occupant.state, -1);
            self.shared.gauge(state, 1);
            let spare = occupant.spare.filter(|_| state == SandboxState::Warm);
            let tenant = occupant.tenant.clone();
            *occupant = Occupant { tenant, state, spare, parkable, leaving: false, since: Instant::now() };
        }
        drop(taken);
        self.shared.changed.notify_waiters();
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(occupant) = self.shared.taken().slots.remove(&self.session) {
            self.shared.gauge(occupant.state, -1);
        }
        self.shared.changed.notify_waiters();
    }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
