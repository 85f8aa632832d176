//! Decides who gets a slot for one more sandbox, and which sandbox is evicted for it. Pure.
//!
//! ```text
//!   the tenant has its maximum -> one of its own idle sandboxes, else refused
//!   a slot is free             -> granted, unless it is promised to a tenant with fewer sandboxes
//!   no slot is free            -> 1. a sandbox without a session: parked, then warm
//!                                 2. of the tenant with the most sandboxes: its paused sessions,
//!                                    then its idle ones (idle for `evict_after`, or for `IDLE` if
//!                                    that tenant holds two more than the asking one)
//!                                 3. the same of the tenant with fewer
//!                                 else refused; the next free slot is promised to the tenant with
//!                                 the fewest
//! ```
//!
//! A sandbox in a turn is never chosen. The session itself checks for commands and background
//! processes when it is asked.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use uuid::Uuid;

use ash_model::{SandboxState, TenantId};

/// Time without a turn after which a session of the largest holder counts as idle for a tenant with
/// fewer. Equals the default time until an idle sandbox is frozen, so that a client that sends one
/// message after the other keeps its sandbox.
pub const IDLE: Duration = Duration::from_secs(2);

/// A sandbox without a session; ordered by the cost of creating it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Spare {
    /// Empty: no files, no claude.
    Parked,
    /// claude is ready in it.
    Warm,
}

/// A taken slot.
#[derive(Clone, Debug)]
pub struct Occupant {
    pub tenant: TenantId,
    pub state: SandboxState,
    /// Kind of a sandbox without a session, ready or in creation; `None` for a session's.
    pub spare: Option<Spare>,
    /// Its session is paused, between turns, and can resume from its directory.
    pub parkable: bool,
    /// Already asked to leave.
    pub leaving: bool,
    /// When it entered this state.
    pub since: Instant,
}

/// Limits of the pool.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub max: usize,
    /// Per tenant; `None`: unlimited.
    pub per_tenant: Option<usize>,
    /// Time without a turn after which an active session's sandbox may be evicted for any tenant.
    pub evict_after: Duration,
}

/// The decision for an asking tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Grant,
    /// This sandbox may be evicted for it.
    MakeRoom(Uuid),
    /// The tenant has its maximum, and none of its sandboxes can be evicted.
    TenantFull,
    /// `owed`: another tenant holds at least two more, so the next slot is this tenant's.
    Full {
        owed: bool,
    },
}

/// Slots reserved for tenants that were refused, with the end of the reservation.
pub type Promises = HashMap<TenantId, Instant>;

/// The number of sandboxes per tenant.
fn held(slots: &HashMap<Uuid, Occupant>) -> HashMap<&TenantId, usize> {
    let mut held = HashMap::new();
    for occupant in slots.values().filter(|occupant| occupant.spare.is_none()) {
        *held.entry(&occupant.tenant).or_default() += 1;
    }
    held
}

/// Decides on one more sandbox for a tenant.
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

/// The sandbox to evict for this tenant, if any.
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
