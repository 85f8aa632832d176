//! Bytes that each tenant stores, in files and database, and whether more fits. Nothing here waits
//! for a disk.
//!
//! ```text
//!   used = database (counters as last read)
//!        + files    (directories of sessions and agents as last measured)
//!        + added    (admitted or written since; dropped when both were read again)
//! ```
//!
//! So a number always includes what was just accepted, and may be too large by it for about a
//! second. What does not fit is measured again before it is refused
//! ([`crate::sessions::api::storage_limit`]).

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tokio::sync::Notify;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::config::{Config, Live};
use crate::sessions::policy::limit_levels::Level;
use crate::sessions::quota::admission::{Admission, Admissions};
use ash_model::TenantId;

/// Bytes of a tenant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Stored {
    /// Directories of sessions (workspace, home, output, attachments) and of uploaded agents.
    pub files: u64,
    /// Rows: history, versions, queue, stored answers, keys, credentials, usage.
    pub database: u64,
}

impl Stored {
    pub fn total(self) -> u64 {
        self.files.saturating_add(self.database)
    }
}

/// One tenant.
#[derive(Debug, Default)]
pub struct Account {
    database: u64,
    sessions: HashMap<Uuid, u64>,
    /// Sum of `sessions`.
    in_sessions: u64,
    agents: u64,
    /// Files as the previous daemon measured them, until all are measured again.
    before: Option<u64>,
    added: u64,
    /// The part of `added` that the running measurement covers.
    settling: u64,
    dirty: HashSet<Uuid>,
    dirty_agents: bool,
    /// Set by an admin; `None`: the configuration's.
    limit: Option<u64>,
}

impl Account {
    pub fn stored(&self) -> Stored {
        let files = self.in_sessions.saturating_add(self.agents);
        let added = self.added.saturating_add(self.settling);
        Stored { files: files.max(self.before.unwrap_or(0)), database: self.database.saturating_add(added) }
    }

    fn measured(&mut self, session: Uuid, bytes: u64) {
        let old = self.sessions.insert(session, bytes).unwrap_or(0);
        self.in_sessions = self.in_sessions.saturating_sub(old).saturating_add(bytes);
    }

    fn removed(&mut self, session: Uuid) {
        self.dirty.remove(&session);
        self.in_sessions = self.in_sessions.saturating_sub(self.sessions.remove(&session).unwrap_or(0));
    }

    fn is_unsettled(&self) -> bool {
        self.added > 0 || self.dirty_agents || !self.dirty.is_empty()
    }
}

/// What to measure of a tenant.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Look {
    pub sessions: Vec<Uuid>,
    pub agents: bool,
}

/// `storageBytes` of a tenant, and the level that decided it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StorageLimit {
    pub value: u64,
    pub by: Level,
    /// Set by an admin for this tenant.
    pub set: Option<u64>,
    /// Maximum that an admin may set.
    pub ceiling: u64,
    pub config: u64,
}

/// The lower of the ceiling and the tenant's value, or else the configuration's.
fn decide(ceiling: u64, config: u64, set: Option<u64>) -> StorageLimit {
    let (value, by) = set.map_or((config, Level::Config), |set| (set, Level::Tenant));
    let (value, by) = if ceiling < value { (ceiling, Level::Host) } else { (value, by) };
    StorageLimit { value, by, set, ceiling, config }
}

/// The accounts of all tenants. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Storage(Arc<Inner>);

impl Default for Storage {
    fn default() -> Self {
        Self::new(Arc::new(Config::default()).into())
    }
}

#[derive(Debug)]
struct Inner {
    config: Live,
    accounts: Mutex<HashMap<TenantId, Account>>,
    changed: Notify,
    /// One measurement at a time per tenant, so that a large tenant delays no other.
    settling: Admissions<TenantId>,
}

impl Storage {
    pub fn new(config: Live) -> Self {
        Self(Arc::new(Inner {
            config,
            accounts: Mutex::default(),
            changed: Notify::new(),
            settling: Admissions::new(1),
        }))
    }

    fn accounts(&self) -> MutexGuard<'_, HashMap<TenantId, Account>> {
        // Consistent between any two statements, so a panic elsewhere cannot break it.
        self.0.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, tenant: &TenantId, act: impl FnOnce(&mut Account) -> T) -> T {
        let mut accounts = self.accounts();
        match accounts.get_mut(tenant) {
            Some(account) => act(account),
            None => act(accounts.entry(tenant.clone()).or_default()),
        }
    }

    pub fn stored(&self, tenant: &TenantId) -> Stored {
        self.accounts().get(tenant).map(Account::stored).unwrap_or_default()
    }

    /// The tenant's limit.
    pub fn limit(&self, tenant: &TenantId) -> StorageLimit {
        let set = self.accounts().get(tenant).and_then(|account| account.limit);
        let tenants = &self.0.config.now().tenants;
        decide(tenants.storage_ceiling_bytes, tenants.storage_bytes, set)
    }

    /// Bytes left below the limit.
    pub fn left(&self, tenant: &TenantId) -> u64 {
        self.limit(tenant).value.saturating_sub(self.stored(tenant).total())
    }

    pub fn set_limit(&self, tenant: &TenantId, limit: Option<u64>) {
        self.with(tenant, |account| account.limit = limit);
    }

    /// Adds bytes if they fit.
    pub fn admit(&self, tenant: &TenantId, bytes: u64) -> bool {
        let limit = self.limit(tenant).value;
        let admitted = self.with(tenant, |account| {
            let fits = account.stored().total().saturating_add(bytes) < limit;
            if fits {
                account.added = account.added.saturating_add(bytes);
            }
            fits
        });
        if admitted && bytes > 0 {
            self.0.changed.notify_one();
        }
        admitted
    }

    /// Adds bytes that were written, whether they fit or not.
    pub fn add(&self, tenant: &TenantId, bytes: u64) {
        self.with(tenant, |account| account.added = account.added.saturating_add(bytes));
        self.0.changed.notify_one();
    }

    /// A session's directory was measured.
    pub fn measured(&self, tenant: &TenantId, session: Uuid, bytes: u64) {
        self.with(tenant, |account| account.measured(session, bytes));
    }

    /// A session's directory is gone. Callers may not know its tenant.
    pub fn removed(&self, session: Uuid) {
        let mut accounts = self.accounts();
        if let Some(account) = accounts.values_mut().find(|account| account.sessions.contains_key(&session)) {
            account.removed(session);
        }
    }

    pub fn agents_measured(&self, tenant: &TenantId, bytes: u64) {
        self.with(tenant, |account| account.agents = bytes);
    }

    /// Something of the tenant changed and must be measured.
    pub fn touched(&self, tenant: &TenantId, session: Option<Uuid>, agents: bool) {
        self.with(tenant, |account| {
            account.dirty.extend(session);
            account.dirty_agents |= agents;
            // At least one row.
            account.added = account.added.saturating_add(1);
        });
        self.0.changed.notify_one();
    }

    /// File bytes known before this daemon started.
    pub fn known_before(&self, tenant: &TenantId, files: Option<u64>) {
        self.with(tenant, |account| account.before = files);
    }

    /// This daemon has measured everything of the tenant.
    pub fn all_measured(&self, tenant: &TenantId) {
        self.with(tenant, |account| account.before = None);
    }

    /// The tenant is gone.
    pub fn forget(&self, tenant: &TenantId) {
        self.accounts().remove(tenant);
    }

    /// Whether directories of it are still to be measured.
    pub fn is_dirty(&self, tenant: &TenantId) -> bool {
        self.accounts().get(tenant).is_some_and(|account| account.dirty_agents || !account.dirty.is_empty())
    }

    pub fn unsettled(&self) -> Vec<TenantId> {
        let accounts = self.accounts();
        accounts.iter().filter(|(_, account)| account.is_unsettled()).map(|(tenant, _)| tenant.clone()).collect()
    }

    pub fn tenants(&self) -> Vec<TenantId> {
        self.accounts().keys().cloned().collect()
    }

    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// One measurement at a time for this tenant.
    pub async fn settling(&self, tenant: &TenantId) -> Admission<TenantId> {
        self.0.settling.wait(tenant).await
    }

    /// Begins a measurement of at most `most` sessions. It does not cover what is added from now
    /// on.
    pub fn begin(&self, tenant: &TenantId, most: usize) -> Look {
        self.with(tenant, |account| {
            account.settling = account.settling.saturating_add(std::mem::take(&mut account.added));
            let sessions: Vec<Uuid> = account.dirty.iter().copied().take(most).collect();
            for id in &sessions {
                account.dirty.remove(id);
            }
            Look { sessions, agents: std::mem::take(&mut account.dirty_agents) }
        })
    }

    /// Ends the measurement. `None`: the database could not be read; added bytes stay added.
    pub fn settled(&self, tenant: &TenantId, database: Option<u64>) {
        self.with(tenant, |account| match database {
            Some(database) => (account.database, account.settling) = (database, 0),
            None => account.added = account.added.saturating_add(std::mem::take(&mut account.settling)),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant() -> TenantId {
        TenantId::default_tenant()
    }

    #[test]
    fn files_and_database_count_together_and_what_is_accepted_counts_at_once() {
        let (storage, a) = (Storage::default(), tenant());
        storage.set_limit(&a, Some(100));
        assert!(storage.admit(&a, 60));
        assert!(!storage.admit(&a, 60), "two concurrent admissions do not both fit");
        let id = Uuid::new_v4();
        storage.touched(&a, Some(id), false);
        assert_eq!(storage.begin(&a, 9), Look { sessions: vec![id], agents: false });
        storage.measured(&a, id, 30);
        // Bytes added during the measurement are kept.
        storage.add(&a, 5);
        storage.settled(&a, Some(20));
        assert_eq!(storage.stored(&a), Stored { files: 30, database: 25 });
        storage.measured(&a, id, 10);
        storage.agents_measured(&a, 7);
        assert_eq!(storage.stored(&a).files, 17);
        storage.removed(id);
        assert_eq!(storage.stored(&a).files, 7);
        storage.set_limit(&a, Some(33));
        assert!(storage.admit(&a, 0) && !storage.admit(&a, 1));
        storage.set_limit(&a, Some(32));
        assert!(!storage.admit(&a, 0));
    }

    #[tokio::test]
    async fn a_look_at_one_tenant_keeps_no_other_waiting() {
        use futures_util::FutureExt;
        let (storage, other) = (Storage::default(), "acme".parse().unwrap());
        let look = storage.settling(&tenant()).await;
        assert!(storage.settling(&tenant()).now_or_never().is_none());
        assert!(storage.settling(&other).now_or_never().is_some());
        drop(look);
        assert!(storage.settling(&tenant()).now_or_never().is_some());
    }

    #[test]
    fn the_tenants_level_decides_below_the_ceiling() {
        let of = |ceiling, config, set| {
            let limit = decide(ceiling, config, set);
            (limit.value, limit.by)
        };
        assert_eq!(of(100, 10, None), (10, Level::Config));
        assert_eq!(of(100, 10, Some(50)), (50, Level::Tenant));
        assert_eq!(of(100, 10, Some(5)), (5, Level::Tenant));
        assert_eq!(of(40, 10, Some(50)), (40, Level::Host), "the ceiling was lowered later");
        assert_eq!(of(5, 10, None), (5, Level::Host));
    }

    #[test]
    fn a_look_that_failed_forgets_nothing() {
        let (storage, a) = (Storage::default(), tenant());
        storage.add(&a, 50);
        storage.begin(&a, 9);
        assert_eq!(storage.stored(&a).database, 50, "during the measurement");
        storage.settled(&a, None);
        assert_eq!((storage.stored(&a).database, storage.unsettled()), (50, vec![a.clone()]));
        storage.begin(&a, 9);
        storage.settled(&a, Some(44));
        assert_eq!((storage.stored(&a).database, storage.unsettled()), (44, vec![]));
    }

    #[test]
    fn what_was_known_before_a_start_holds_until_all_is_measured() {
        let (storage, a) = (Storage::default(), tenant());
        storage.known_before(&a, Some(1000));
        storage.measured(&a, Uuid::new_v4(), 10);
        assert_eq!(storage.stored(&a).files, 1000);
        storage.all_measured(&a);
        assert_eq!(storage.stored(&a).files, 10);
    }
}
