//! Deletion of a tenant, while its requests may still be running.
//!
//! ```text
//!   open --- requests and queued prompts [Visit] come and go
//!     |
//!   close: keys revoked, agents gone, new visits refused    (a second deletion meanwhile: refused)
//!     |
//!   end every session <-----+ a running request may have created one more
//!     |   visits left? -----+ (at most 60 s, then 503: what is removed stays removed, retry)
//!   none left: no [`Own`](crate::sessions::Own) exists
//!     |
//!   tasks leave, directories and rows are removed, then the agents' files; `usage` stays
//!     |
//!   open again: the name can be reused
//! ```
//!
//! Each step is durable, and the keys are the first: after an interrupted deletion no client can
//! use the tenant, and a second deletion completes it.

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

/// Longest wait for running requests, some of which end with their session only.
const LEAVE_WITHIN: Duration = Duration::from_secs(60);
/// Interval of checks for sessions created meanwhile.
const LOOK: Duration = Duration::from_millis(200);
/// Sessions ended concurrently.
const AT_ONCE: usize = 16;

/// Active visits by tenant. Cheap to clone.
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
        // Consistent between any two statements, so a panic elsewhere cannot break it.
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

/// Work for this tenant, until the drop.
#[derive(Debug)]
pub struct Visit(Tenants, TenantId);

impl Drop for Visit {
    fn drop(&mut self) {
        self.0.0.change(&self.1, |presence| presence.visits -= 1);
    }
}

/// No new visit, until the drop.
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

    /// Waits a moment for the last visit to end.
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
    /// Begins work for this tenant.
    ///
    /// # Errors
    /// `Unavailable` while the tenant is being deleted.
    pub fn enter(&self, tenant: &TenantId) -> Result<Visit, SessionError> {
        let going = || SessionError::Unavailable(format!("tenant {tenant} is being deleted"));
        self.shared.tenants.enter(tenant).ok_or_else(going)
    }

    /// Ends and removes everything of a tenant but its usage. `None`: there is no such tenant.
    ///
    /// # Errors
    /// `Invalid` for the default tenant. `Unavailable` when it is being deleted already, or when
    /// requests still run after a minute: its keys are gone then, and another call continues.
    pub async fn delete_tenant(&self, tenant: &TenantId) -> Result<Option<TenantRemoved>, SessionError> {
        if *tenant == TenantId::default_tenant() {
            let why = "the default tenant cannot be deleted; end its sessions and delete its agents one by one";
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
        // Again: running requests may have added rows.
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
        let files = files.map_err(|e| SessionError::Failed(format!("cannot remove the agents of the tenant: {e}")))?;
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

    /// Until every session has ended and no request is left that could create another one.
    async fn end_all(&self, tenant: &TenantId, closed: &Closed) -> Result<(), SessionError> {
        let since = Instant::now();
        loop {
            // Before the search: requests that have ended by now create no more.
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
                    "requests of tenant {tenant} still run after {} s; its keys are revoked and its sessions \
                     ended, repeat the deletion to remove the rest",
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

    /// Removes an ended session and everything it had. `false`: there is none.
    pub(in crate::sessions) async fn remove_session(&self, tenant: &TenantId, id: Uuid) -> Result<bool, SessionError> {
        self.retire(tenant, id).await?;
        self.shared.remove_directory(id).await;
        let removed = self.shared.store.session_remove(tenant, id).await?;
        if removed {
            self.shared.census.add(SessionStatus::Ended, -1);
        }
        Ok(removed)
    }

    /// Ends the session's task, if there is one.
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
        assert!(tenants.0.present().is_empty(), "no visit is left");
        assert!(tenants.enter(&acme).is_some());
    }
}
