//! The end of a tenant: everything it has goes, while its requests may still be under way.
//!
//! ```text
//!   open --- requests and queued prompts [Visit] come and go
//!     |
//!   close: keys revoked, agents gone, new visits refused     (a second deletion meanwhile: refused)
//!     |
//!   end every session <-----+ a request under way may have made one more
//!     |   visits left? -----+ (at most 60 s, then 503: what is gone is gone, ask again)
//!   none left: nobody holds an [`Own`](crate::sessions::Own)
//!     |
//!   tasks leave, directories and rows go, then the agents' files; what was used stays in `usage`
//!     |
//!   open again: the name may be used anew
//! ```
//!
//! Each step is durable by itself, and the keys are the first: a deletion that was cut short leaves a tenant that nobody can
//! enter, and whoever asks again finishes it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde::Serialize;
use tokio::sync::Notify;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::sessions::driver::Request;
use crate::sessions::workspace::layout::agents_of;
use crate::sessions::workspace::remove_tree::remove_tree;
use crate::sessions::{Own, SessionError, Sessions};
use ash_model::{SessionStatus, TenantId};

/// Longest time for requests that are under way, some of which end with their session only.
const LEAVE_WITHIN: Duration = Duration::from_secs(60);
/// Between two looks for sessions that were made meanwhile.
const LOOK: Duration = Duration::from_millis(200);
/// Sessions that are ended at the same time.
const AT_ONCE: usize = 16;

/// Who is at work for which tenant. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Tenants(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    present: Mutex<HashMap<TenantId, Presence>>,
    left: Notify,
}

#[derive(Debug, Default)]
struct Presence {
    visits: usize,
    closed: bool,
}

impl Inner {
    fn present(&self) -> MutexGuard<'_, HashMap<TenantId, Presence>> {
        // Whole between any two statements, so a panic elsewhere cannot have spoilt it.
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, tenant: &TenantId, change: impl FnOnce(&mut Presence)) {
        let mut present = self.present();
        if let Some(presence) = present.get_mut(tenant) {
            change(presence);
            if presence.visits == 0 && !presence.closed {
                present.remove(tenant);
            }
        }
        drop(present);
        self.left.notify_waiters();
    }
}

/// Somebody is at work for this tenant, until the drop.
#[derive(Debug)]
pub struct Visit(Tenants, TenantId);

impl Drop for Visit {
    fn drop(&mut self) {
        self.0.0.change(&self.1, |presence| presence.visits -= 1);
    }
}

/// Nobody new comes in, until the drop.
#[derive(Debug)]
struct Closed(Tenants, TenantId);

impl Drop for Closed {
    fn drop(&mut self) {
        self.0.0.change(&self.1, |presence| presence.closed = false);
    }
}

impl Tenants {
    /// `None` while the tenant is being deleted.
    pub fn enter(&self, tenant: &TenantId) -> Option<Visit> {
        let mut present = self.0.present();
        let presence = present.entry(tenant.clone()).or_default();
        if presence.closed {
            return None;
        }
        presence.visits += 1;
        Some(Visit(self.clone(), tenant.clone()))
    }

    fn close(&self, tenant: &TenantId) -> Option<Closed> {
        let mut present = self.0.present();
        let presence = present.entry(tenant.clone()).or_default();
        (!std::mem::replace(&mut presence.closed, true)).then(|| Closed(self.clone(), tenant.clone()))
    }
}

impl Closed {
    fn is_empty(&self) -> bool {
        self.0.0.present().get(&self.1).is_none_or(|presence| presence.visits == 0)
    }

    /// Waits a moment for the last one to leave.
    async fn emptied(&self) -> bool {
        let left = self.0.0.left.notified();
        if !self.is_empty() {
            let _ = tokio::time::timeout(LOOK, left).await;
        }
        self.is_empty()
    }
}

/// What a deletion removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct TenantRemoved {
    pub keys: u64,
    pub agents: u64,
    /// With their files, messages and timelines.
    pub sessions: u64,
}

impl Sessions {
    /// Somebody is at work for this tenant.
    ///
    /// # Errors
    /// `Unavailable` while the tenant is being deleted.
    pub fn enter(&self, tenant: &TenantId) -> Result<Visit, SessionError> {
        let going = || SessionError::Unavailable(format!("tenant {tenant} is being deleted"));
        self.shared.tenants.enter(tenant).ok_or_else(going)
    }

    /// Ends and removes everything a tenant has, but the record of what it used. `None`: there is no such tenant.
    ///
    /// # Errors
    /// `Invalid` for the default tenant, which is the host's own. `Unavailable` when it is being deleted already, or when requests are
    /// still under way after a minute: its keys are gone then, and asking again goes on.
    pub async fn delete_tenant(&self, tenant: &TenantId) -> Result<Option<TenantRemoved>, SessionError> {
        if *tenant == TenantId::default_tenant() {
            let why =
                "the default tenant is the host's own and stays; end its sessions and delete its agents one by one";
            return Err(SessionError::Invalid(why.to_owned()));
        }
        let going = || SessionError::Unavailable(format!("tenant {tenant} is being deleted already"));
        let closed = self.shared.tenants.close(tenant).ok_or_else(going)?;
        let store = &self.shared.store;
        let mut forgotten = store.tenant_forget(tenant).await?;
        self.agents_changed();
        self.end_all(tenant, &closed).await?;

        let mut sessions = 0;
        for id in store.session_ids(tenant).await? {
            sessions += u64::from(self.remove_session(tenant, id).await?);
        }
        // Once more: those who were under way may have left something.
        let rest = store.tenant_forget(tenant).await?;
        forgotten.keys += rest.keys;
        forgotten.agents += rest.agents;
        forgotten.others += rest.others;
        self.agents_changed();
        self.shared.unpark_all_of(tenant).await;
        let agents = agents_of(&self.shared.config.now().data_dir, tenant);
        let gone = tokio::task::spawn_blocking({
            let agents = agents.clone();
            move || agents.try_exists().and_then(|there| remove_tree(&agents).map(|()| there))
        });
        let files = gone.await.unwrap_or_else(|e| Err(std::io::Error::other(e)));
        let files =
            files.map_err(|e| SessionError::Failed(format!("the agents of the tenant cannot be removed: {e}")))?;
        self.shared.storage.forget(tenant);
        drop(closed);
        let removed = TenantRemoved { keys: forgotten.keys, agents: forgotten.agents, sessions };
        if removed == TenantRemoved::default() && forgotten.others == 0 && !files {
            return Ok(None);
        }
        tracing::info!(ASH_TENANT = %tenant, ASH_EVENT = "tenant-deleted", keys = removed.keys, agents = removed.agents, sessions,
            "a tenant was deleted");
        Ok(Some(removed))
    }

    /// Until every session has ended and nobody is left who could make another one.
    async fn end_all(&self, tenant: &TenantId, closed: &Closed) -> Result<(), SessionError> {
        let since = Instant::now();
        loop {
            // Before the look: whoever has left by now has made what he was going to make.
            let empty = closed.emptied().await;
            let mut ended = futures_util::stream::iter(self.shared.store.session_ids(tenant).await?)
                .map(|id| self.end_if_open(tenant, id))
                .buffer_unordered(AT_ONCE);
            while let Some(result) = ended.next().await {
                result?;
            }
            if empty {
                return Ok(());
            }
            if since.elapsed() > LEAVE_WITHIN {
                return Err(SessionError::Unavailable(format!(
                    "requests of tenant {tenant} are still under way after {} s; its keys are revoked and its sessions \
                     ended, ask again to remove the rest",
                    LEAVE_WITHIN.as_secs()
                )));
            }
        }
    }

    async fn end_if_open(&self, tenant: &TenantId, id: Uuid) -> Result<(), SessionError> {
        match self.get(tenant, id).await {
            Ok(session) if session.status == SessionStatus::Ended => Ok(()),
            Ok(session) => self.end(&Own::from(session)).await.map(drop),
            Err(SessionError::NotFound) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Removes a session that has ended, with all it had. `false`: there is none.
    pub(in crate::sessions) async fn remove_session(&self, tenant: &TenantId, id: Uuid) -> Result<bool, SessionError> {
        self.retire(tenant, id).await?;
        self.shared.remove_directory(id).await;
        let removed = self.shared.store.session_remove(tenant, id).await?;
        if removed {
            self.shared.census.add(SessionStatus::Ended, -1);
        }
        Ok(removed)
    }

    /// Has the session's task leave, if there is one.
    async fn retire(&self, tenant: &TenantId, id: Uuid) -> Result<(), SessionError> {
        while self.shared.registry.get(id).is_some() {
            let own = self.own(tenant, id).await?;
            self.ask(&own, |reply| Request::Retire { reply }).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_closed_tenant_lets_nobody_in_and_waits_for_those_inside() {
        let tenants = Tenants::default();
        let [acme, other] = ["acme", "other"].map(|name| name.parse::<TenantId>().unwrap());
        let visit = tenants.enter(&acme).unwrap();
        let closed = tenants.close(&acme).unwrap();
        assert!(tenants.close(&acme).is_none(), "one deletion at a time");
        assert!(tenants.enter(&acme).is_none());
        assert!(tenants.enter(&other).is_some());
        assert!(!closed.emptied().await);
        drop(visit);
        assert!(closed.emptied().await);
        drop(closed);
        assert!(tenants.0.present().is_empty(), "nobody is remembered");
        assert!(tenants.enter(&acme).is_some());
    }
}
