//! What is ready, what is being made, and how it is handed out or given up.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::model::{Limits, Millis, TenantId};
use crate::sandbox::SandboxEvent;
use crate::sessions::claude::LaunchOptions;
use crate::sessions::live::Live;
use crate::sessions::shared::Shared;
use crate::store::{Agent, Session};

use super::fit::fits;

/// One state of one agent of one tenant. A redeployment raises the version, a PATCH the time.
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

/// A sandbox whose claude is ready, and which is nobody's.
#[derive(Debug)]
pub struct Warm {
    pub key: Key,
    /// The row it will become.
    pub session: Session,
    pub options: LaunchOptions,
    /// Of the agent's directory when it was copied; 0 for an uploaded one, which never changes.
    pub print: u64,
    pub live: Live,
}

impl Warm {
    /// Whether its claude still runs. Heard from init, and counted: a frozen init cannot tell of a claude that was killed
    /// (by the host's own want of memory, say), but the dead one is no longer in the group.
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

/// The one that is being started.
#[derive(Debug)]
struct Making {
    id: Uuid,
    key: Key,
    cancel: CancellationToken,
    /// Cancelled when it is over in any way: its slot is free or it is in the stock.
    over: CancellationToken,
}

#[derive(Debug, Default)]
struct Inner {
    ready: Vec<Warm>,
    making: Option<Making>,
}

#[derive(Debug, Default)]
pub struct Stock {
    inner: Mutex<Inner>,
    /// Something may have to be made or given up.
    changed: Notify,
    /// One was taken since the keeper looked.
    taken: AtomicBool,
}

impl Stock {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Whole between any two statements, so a panic elsewhere cannot have spoilt it.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Agents were changed, or one was taken: the keeper looks again.
    pub fn look_again(&self) {
        self.changed.notify_one();
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

    /// Ready ones of this agent as it is now, and whether another one is being made.
    pub fn count(&self, key: &Key) -> (usize, bool) {
        let inner = self.inner();
        let ready = inner.ready.iter().filter(|warm| warm.key == *key).count();
        (ready, inner.making.as_ref().is_some_and(|making| making.key == *key))
    }

    /// Takes one out for a session: the oldest that fits and lives. Dead ones on the way are left to the caller.
    pub fn take(&self, key: &Key, wanted: &LaunchOptions, limits: &Limits, print: u64) -> (Option<Warm>, Vec<Warm>) {
        let mut inner = self.inner();
        let mut dead = Vec::new();
        let serves = |warm: &Warm| {
            warm.key == *key && warm.print == print && warm.session.limits == *limits && fits(&warm.options, wanted)
        };
        while let Some(at) = inner.ready.iter().position(serves) {
            let mut warm = inner.ready.remove(at);
            if warm.lives() {
                return (Some(warm), dead);
            }
            dead.push(warm);
        }
        (None, dead)
    }

    /// Takes out every one that is not wanted any more: `wanted` says how many of its kind are.
    pub(super) fn sweep(&self, wanted: impl Fn(&Warm) -> usize) -> Vec<Warm> {
        let mut inner = self.inner();
        let mut kept: Vec<Warm> = Vec::with_capacity(inner.ready.len());
        let mut gone = Vec::new();
        for mut warm in std::mem::take(&mut inner.ready) {
            let same = kept.iter().filter(|other| other.key == warm.key).count();
            if same < wanted(&warm) && warm.lives() { kept.push(warm) } else { gone.push(warm) }
        }
        inner.ready = kept;
        gone
    }

    /// All of them, to be put back one by one.
    pub(super) fn take_all(&self) -> Vec<Warm> {
        std::mem::take(&mut self.inner().ready)
    }

    pub(super) fn put(&self, warm: Warm) {
        self.inner().ready.push(warm);
    }

    /// Announces a start. The first token stops it, the second is cancelled by [`Stock::made`].
    pub(super) fn making(&self, id: Uuid, key: Key) -> CancellationToken {
        let cancel = CancellationToken::new();
        self.inner().making = Some(Making { id, key, cancel: cancel.clone(), over: CancellationToken::new() });
        cancel
    }

    /// The start that was announced is over.
    pub(super) fn made(&self, warm: Option<Warm>) {
        let mut inner = self.inner();
        inner.ready.extend(warm);
        if let Some(making) = inner.making.take() {
            making.over.cancel();
        }
    }

    /// Gives up this one for somebody who needs its place, and waits until it is gone. `false`: there is none of that id.
    pub async fn evict(&self, shared: &Shared, id: Uuid) -> bool {
        if let Some(over) = self.stop_making(id) {
            over.cancelled().await;
        }
        let found = {
            let mut inner = self.inner();
            inner.ready.iter().position(|warm| warm.session.id == id).map(|at| inner.ready.remove(at))
        };
        let Some(warm) = found else { return false };
        tracing::info!(ASH_SESSION = %id, ASH_EVENT = "warm-evicted", "a warm sandbox makes room");
        shared.discard(warm).await;
        true
    }

    fn stop_making(&self, id: Uuid) -> Option<CancellationToken> {
        let inner = self.inner();
        let making = inner.making.as_ref().filter(|making| making.id == id)?;
        making.cancel.cancel();
        Some(making.over.clone())
    }
}
