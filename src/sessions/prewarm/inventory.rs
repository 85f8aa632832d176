//! All ready sandboxes: warm and parked ones.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use uuid::Uuid;

use crate::sandbox::SandboxEvent;
use crate::sessions::claude::LaunchOptions;
use crate::sessions::context::Shared;
use crate::sessions::launch::running::Live;
use crate::sessions::launch::{Basis, Parked, Program};
use crate::store::{Agent, Session};
use ash_model::{Millis, TenantId};

use super::slots::{Keepable, Shelf};

/// One state of one agent of one tenant. A deployment raises the version, a PATCH changes the time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    tenant: TenantId,
    agent: Uuid,
    version: i64,
    updated_at: Millis,
}

impl Key {
    pub fn of(agent: &Agent) -> Self {
        Self { tenant: agent.tenant.clone(), agent: agent.id, version: agent.version, updated_at: agent.updated_at }
    }
}

/// A sandbox whose claude is ready, without a session.
#[derive(Debug)]
pub struct Warm {
    pub key: Key,
    /// The row of the session it will become.
    pub session: Session,
    pub options: LaunchOptions,
    /// Fingerprint of the agent's directory when it was copied; 0 for an uploaded one, which never
    /// changes.
    pub print: u64,
    /// The claude that runs in it.
    pub program: Program,
    pub live: Live,
}

impl Keepable for Warm {
    type Key = Key;

    fn id(&self) -> Uuid {
        self.session.id
    }

    fn key(&self) -> &Key {
        &self.key
    }

    /// Whether its claude still runs. Known from init and from the number of processes: a frozen
    /// init cannot report a killed claude (by the OOM killer, for example), but the cgroup no
    /// longer has it.
    fn lives(&mut self) -> bool {
        use tokio::sync::mpsc::error::TryRecvError;
        loop {
            match self.live.events.try_recv() {
                Ok(SandboxEvent::Exited { child, .. }) if child == self.live.record.child => return false,
                Ok(SandboxEvent::Died) | Err(TryRecvError::Disconnected) => return false,
                Ok(_) => {}
                Err(TryRecvError::Empty) => return self.live.processes() >= 2,
            }
        }
    }
}

impl Keepable for Parked {
    type Key = Basis;

    fn id(&self) -> Uuid {
        self.id
    }

    fn key(&self) -> &Basis {
        &self.basis
    }

    fn lives(&mut self) -> bool {
        self.lives()
    }
}

#[derive(Debug, Default)]
pub struct Stock {
    pub warm: Shelf<Warm>,
    pub parked: Shelf<Parked>,
    /// Held while a sandbox is parked, or destroyed because it is no longer needed.
    pub(super) tending: tokio::sync::Mutex<()>,
    /// The tenant whose session started cold last: the next one is likely its own.
    newest: Mutex<Option<TenantId>>,
    /// Something may have to be created or destroyed.
    changed: Notify,
    /// The same for parked sandboxes.
    parking: Notify,
    /// One was taken since the keeper's last check.
    taken: AtomicBool,
}

impl Stock {
    /// Agents were changed, or one was taken: the keeper checks again.
    pub fn look_again(&self) {
        self.changed.notify_one();
        self.park_again();
    }

    pub(super) fn park_again(&self) {
        self.parking.notify_one();
    }

    pub(super) async fn parking(&self) {
        self.parking.notified().await;
    }

    pub(super) fn taken(&self) {
        self.taken.store(true, Ordering::Relaxed);
    }

    pub(super) fn was_taken(&self) -> bool {
        self.taken.swap(false, Ordering::Relaxed)
    }

    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    fn newest(&self) -> MutexGuard<'_, Option<TenantId>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tenant for which sandboxes are parked.
    pub(super) fn parked_for(&self) -> TenantId {
        self.newest().clone().unwrap_or_else(TenantId::default_tenant)
    }

    /// This tenant is gone.
    pub(super) fn starts_no_more(&self, tenant: &TenantId) {
        self.newest().take_if(|newest| newest == tenant);
    }

    /// No warm sandbox serves a session of this tenant.
    pub(super) fn starts_cold(&self, tenant: &TenantId) {
        let mut newest = self.newest();
        if newest.as_ref() != Some(tenant) {
            *newest = Some(tenant.clone());
        }
    }

    /// The database's value at the daemon's start; a session started meanwhile takes precedence.
    pub(super) fn started_cold_before(&self, tenant: Option<TenantId>) {
        let mut newest = self.newest();
        if newest.is_none() {
            *newest = tenant;
        }
    }

    /// Destroys this one for a session that needs its slot, and waits until it is gone. `false`:
    /// there is none of that id.
    pub async fn evict(&self, shared: &Shared, id: Uuid) -> bool {
        if let Some(parked) = self.parked.remove(id).await {
            tracing::debug!(ASH_SESSION = %id, ASH_EVENT = "parked-evicted", "evicting a parked sandbox");
            shared.unpark(parked).await;
            return true;
        }
        let Some(warm) = self.warm.remove(id).await else { return false };
        tracing::info!(ASH_SESSION = %id, ASH_EVENT = "warm-evicted", "evicting a warm sandbox");
        shared.discard(warm).await;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_parked_for_the_tenant_that_started_cold_last() {
        let tenant = |name: &str| TenantId::try_from(name.to_owned()).unwrap();
        let stock = Stock::default();
        assert_eq!(stock.parked_for(), TenantId::default_tenant());
        stock.started_cold_before(Some(tenant("before")));
        assert_eq!(stock.parked_for(), tenant("before"));
        stock.starts_cold(&tenant("now"));
        stock.started_cold_before(Some(tenant("before")));
        assert_eq!(stock.parked_for(), tenant("now"));
    }
}
