//! The pool: how many sandboxes may live, and which one is evicted for another.
//!
//! ```text
//!         admit_spare [ warming ] --> [ warm ] --- claimed ---+   (a parked one: to [ warming ],
//!                                                             v    claude must start)
//!            admit                    ready                       turn begins
//!   (cold) ---------> [ warming ] ----------------------> [ waiting ] <------> [ running ]
//!      ^                  |                                |      ^    turn ends     |
//!      |                  |                          pause |      | resume           |
//!      +------------------+---- drop ----------------- [ parkable ] <----------------+
//!                                                      (paused in mid-turn: not parkable)
//! ```
//!
//! [`victim`] decides who gets a slot and which sandbox is evicted for it: the tenant with the most
//! sandboxes gives way first.
//!
//! A [`Slot`] is the right to one live sandbox, and exists before the sandbox: the limit
//! (`ASH_MAX_SANDBOXES`) holds at every moment, also during concurrent starts. Drop the slot after
//! the sandbox is destroyed. This module does no I/O: the caller destroys what
//! [`Admission::MakeRoom`] names.

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

/// How long a free slot is reserved for a tenant that was refused: its client retries after
/// `Retry-After` (5 s), possibly late.
const PROMISE: Duration = Duration::from_secs(15);

/// Cheap to clone; all clones share the counts.
#[derive(Clone, Debug)]
pub struct Pool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    rules: Mutex<Rules>,
    /// Copy of [`Rules::max`] for `/health`.
    max: AtomicUsize,
    taken: Mutex<Taken>,
    /// A sandbox was destroyed or changed its state.
    changed: Notify,
    /// One gauge per state, so that `/health` and `/metrics` only read numbers.
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

/// The outcome of a request for a slot.
#[derive(Debug)]
pub enum Admission {
    Granted(Slot),
    /// Full, but this sandbox, of no session or an idle one, can be evicted: evict it and retry.
    MakeRoom(Uuid),
    /// Full, and no sandbox can be evicted.
    Full(Full),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// All slots are taken or promised. `owed`: another tenant holds at least two more, and the
    /// next free slot is reserved for this tenant.
    Host { owed: bool },
    /// The tenant has reached its maximum.
    Tenant { most: usize },
}

/// Counters of the pool.
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
    /// Sessions created from a warm sandbox.
    pub pre_warmed: u64,
    /// Sessions created from a parked sandbox, and from nothing.
    pub created_parked: u64,
    pub created_cold: u64,
}

impl Pool {
    /// At most `max` live sandboxes (`ASH_MAX_SANDBOXES`), and `per_tenant` of one tenant. At the
    /// limit, paused sessions are evicted first, then active ones without a turn for `evict_after`.
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

    /// Changes the limits. Sandboxes above a lower maximum are counted, not killed.
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

    /// A slot for the sandbox of this tenant's session, if one is free.
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
                // Named once: two concurrent requests must not wait for the same slot.
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

    /// A slot for a sandbox without a session: only if no session waits for it, and evicted first.
    pub fn admit_spare(&self, tenant: &TenantId, id: Uuid, kind: Spare) -> Option<Slot> {
        let (rules, now) = (self.rules(), Instant::now());
        let mut taken = self.shared.taken();
        let waited_for = taken.promises.values().filter(|until| **until > now).count();
        let own = taken.slots.values().filter(|occupant| occupant.tenant == *tenant).count();
        let fits = taken.slots.len() + waited_for < rules.max && rules.per_tenant.is_none_or(|most| own < most);
        fits.then(|| self.occupy(&mut taken.slots, tenant, id, SandboxState::Warming, Some(kind)))
    }

    /// A slot for a sandbox that already lives (found at the start of the daemon). Granted even
    /// above a maximum that was lowered meanwhile: live sandboxes are counted, not killed.
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

    /// Sandboxes of this tenant, including those without a session, and its maximum.
    pub fn of_tenant(&self, tenant: &TenantId) -> (usize, Option<usize>) {
        let own = self.shared.taken().slots.values().filter(|occupant| occupant.tenant == *tenant).count();
        (own, self.rules().per_tenant)
    }

    /// Waits until a sandbox was destroyed or changed its state, at most for `most`.
    pub async fn changed(&self, most: Duration) {
        // A missed change is harmless: the caller asks again.
        let _ = tokio::time::timeout(most, self.shared.changed.notified()).await;
    }

    /// Changes the number of sessions without a process (rows, which the pool does not count).
    pub fn cold_changed(&self, by: i64) {
        self.shared.cold.fetch_add(by, Ordering::Relaxed);
    }

    /// Counts a session resumed from a frozen sandbox (`warm`) or by a new process.
    pub fn resumed(&self, warm: bool) {
        let counter = if warm { &self.shared.resumed_warm } else { &self.shared.resumed_cold };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a session created from a warm sandbox.
    pub fn pre_warmed(&self) {
        self.shared.pre_warmed.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a session created from a parked sandbox, or from nothing.
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
        // The map is consistent between any two statements, so a panic elsewhere cannot have
        // damaged it.
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

/// The right to one live sandbox. Drop it when the sandbox is destroyed.
#[derive(Debug)]
pub struct Slot {
    shared: Arc<Shared>,
    session: Uuid,
}

impl Slot {
    /// `parkable`: the sandbox may be evicted for another session (a paused session between turns).
    /// In any state but `Warm` it belongs to a session.
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
