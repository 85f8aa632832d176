//! Who gets a place for one more sandbox, and which sandbox is given up for it. Pure.
//!
//! ```text
//!   the tenant has its maximum      -> one of its own idle sandboxes, else refused
//!   a place is free                 -> granted, unless it is promised to a tenant that holds less
//!   no place is free                -> 1. a sandbox without a session: parked, then warm
//!                                      2. of the tenant that holds most: its paused sessions, then its idle ones
//!                                         (idle for `evict_after`, or for `IDLE` when that tenant holds two more than the asker)
//!                                      3. the same of the tenant that holds less
//!                                      else refused; what comes free is promised to whoever holds least
//! ```
//!
//! A sandbox in a turn is never chosen. Commands and background processes are looked at by the session itself, when it is asked.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use uuid::Uuid;

use ash_model::{SandboxState, TenantId};

/// Time without a turn after which a session of the largest holder is idle for a tenant that holds less. As long as an idle
/// sandbox takes to be frozen by default, so that a client that sends one message after the other keeps its sandbox.
pub const IDLE: Duration = Duration::from_secs(2);

/// A sandbox that has no session yet, the cheapest to make anew first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Spare {
    /// Empty: no files, no claude.
    Parked,
    /// claude is ready in it.
    Warm,
}

/// One slot that is taken.
#[derive(Clone, Debug)]
pub struct Occupant {
    pub tenant: TenantId,
    pub state: SandboxState,
    /// Without a session, ready or being made; `None` for a session's.
    pub spare: Option<Spare>,
    /// Its session is paused, between turns, and resumes from its directory.
    pub parkable: bool,
    /// Already asked to go.
    pub leaving: bool,
    /// When it came into this state.
    pub since: Instant,
}

/// What bounds the pool.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub max: usize,
    /// Of one tenant; `None`: as many as there are places.
    pub per_tenant: Option<usize>,
    /// Time without a turn after which an active session's sandbox may be evicted for any tenant.
    pub evict_after: Duration,
}

/// What an asker is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Grant,
    /// This one may be given up for it.
    MakeRoom(Uuid),
    /// The tenant has its own maximum, and none of its sandboxes may go.
    TenantFull,
    /// `owed`: another tenant holds at least two more, so the next place is this tenant's.
    Full {
        owed: bool,
    },
}

/// Places that are kept for tenants that were refused, and until when.
pub type Promises = HashMap<TenantId, Instant>;

/// How many sessions each tenant has a sandbox for.
fn held(slots: &HashMap<Uuid, Occupant>) -> HashMap<&TenantId, usize> {
    let mut held = HashMap::new();
    for occupant in slots.values().filter(|occupant| occupant.spare.is_none()) {
        *held.entry(&occupant.tenant).or_default() += 1;
    }
    held
}

/// What a tenant that asks for one more sandbox is told.
pub fn decide(
    slots: &HashMap<Uuid, Occupant>,
    promises: &Promises,
    rules: Rules,
    tenant: &TenantId,
    now: Instant,
) -> Decision {
    let total = slots.values().filter(|occupant| occupant.tenant == *tenant).count();
    if rules.per_tenant.is_some_and(|most| total >= most) {
        let own = choose(slots, rules.evict_after, tenant, true, now);
        return own.map_or(Decision::TenantFull, Decision::MakeRoom);
    }
    let held = held(slots);
    let of = |tenant: &TenantId| held.get(tenant).copied().unwrap_or(0);
    let own = of(tenant);
    let before = promises.iter().filter(|(other, until)| *other != tenant && **until > now && of(other) < own).count();
    if rules.max.saturating_sub(slots.len()) > before {
        return Decision::Grant;
    }
    let victim = if before > 0 { None } else { choose(slots, rules.evict_after, tenant, false, now) };
    match victim {
        Some(id) => Decision::MakeRoom(id),
        None => Decision::Full { owed: held.iter().any(|(other, n)| *other != tenant && *n >= own + 2) },
    }
}

/// The sandbox that is given up for one more of this tenant, if any may be.
fn choose(
    slots: &HashMap<Uuid, Occupant>,
    evict_after: Duration,
    tenant: &TenantId,
    own_only: bool,
    now: Instant,
) -> Option<Uuid> {
    let held = held(slots);
    let of = |tenant: &TenantId| held.get(tenant).copied().unwrap_or(0);
    let idle_for = |occupant: &Occupant| {
        let unfair = occupant.tenant != *tenant && of(&occupant.tenant) >= of(tenant) + 2;
        if unfair { IDLE.min(evict_after) } else { evict_after }
    };
    slots
        .iter()
        .filter(|(_, o)| !o.leaving && (o.spare.is_some() || o.state == SandboxState::Waiting))
        .filter(|(_, o)| !own_only || o.tenant == *tenant)
        .filter(|(_, o)| o.spare.is_some() || o.parkable || now.saturating_duration_since(o.since) >= idle_for(o))
        .min_by_key(|(_, o)| (o.spare.is_none(), o.spare, Reverse(of(&o.tenant)), !o.parkable, o.since))
        .map(|(id, _)| *id)
}

#[cfg(test)]
#[path = "victim_tests.rs"]
mod tests;
