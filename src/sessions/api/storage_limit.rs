//! Enforces the limit of what a tenant stores.
//!
//! ```text
//!   each write of a client --check_write--> disk reserve --> fits? -- yes --> accounted
//!                                                              | no
//!                                                              v
//!                   settle: measure what changed, read the counters --> fits? -- no --> 507
//!
//!   once a second: settle tenants that changed
//!   once an hour:  everything
//!   at the start:  everything, and the counters are checked
//! ```

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use uuid::Uuid;

use crate::sessions::api::limits::LimitState;
use crate::sessions::context::Shared;
use crate::sessions::driver::Request;
use crate::sessions::monitor::disk_usage::Bound;
use crate::sessions::policy::limit_levels::Level;
use crate::sessions::quota::stored::{StorageLimit, Stored};
use crate::sessions::workspace::layout::agents_of;
use crate::sessions::{Own, SessionError, Sessions};
use ash_model::TenantId;
use ash_observe::tasks;

/// Name of the limit.
pub const STORAGE: &str = "storageBytes";
/// Interval of measurements of tenants that changed.
const SETTLE: Duration = Duration::from_secs(1);
/// Interval of measurements of everything.
const SWEEP: Duration = Duration::from_secs(3600);
/// Sessions measured before a refusal. The task measures the others a second later.
const AT_REFUSAL: usize = 16;
/// Shortest interval of storing the measured bytes, and the least change.
const WRITE_DOWN: Duration = Duration::from_secs(10);
const WORTH: u64 = 1 << 20;
/// No bound.
const ALL: Bound = Bound { bytes: u64::MAX, files: u64::MAX };

impl Shared {
    /// `Some` when the tenant's storage is full, as far as known: measures nothing.
    pub fn is_storage_full(&self, tenant: &TenantId) -> Option<SessionError> {
        let (stored, limit) = (self.storage.stored(tenant), self.storage.limit(tenant).value);
        (stored.total() >= limit).then(|| exceeded(stored.total(), limit))
    }

    /// Every write of a client calls this before it changes anything: `bytes` more for this tenant.
    ///
    /// # Errors
    /// `Full`: free disk space is below the reserve, or the tenant's storage is full.
    pub async fn check_write(&self, tenant: &TenantId, bytes: u64) -> Result<(), SessionError> {
        self.check_reserve()?;
        if self.storage.admit(tenant, bytes) {
            return Ok(());
        }
        self.settle(tenant, AT_REFUSAL).await;
        if self.storage.admit(tenant, bytes) {
            return Ok(());
        }
        let limit = self.storage.limit(tenant).value;
        Err(exceeded(self.storage.stored(tenant).total().saturating_add(bytes), limit))
    }

    /// Measures what changed of a tenant.
    pub async fn settle(&self, tenant: &TenantId, most: usize) {
        let _one = self.storage.settling(tenant).await;
        let look = self.storage.begin(tenant, most);
        for id in look.sessions {
            self.measure_session(tenant, id).await;
        }
        if look.agents {
            self.measure_agents(tenant).await;
        }
        match self.store.tenant_use(tenant).await {
            Ok(used) => self.storage.settled(tenant, Some(used.database)),
            Err(e) => {
                tracing::warn!(ASH_TENANT = %tenant, "cannot read what the tenant stores: {e}");
                self.storage.settled(tenant, None);
            }
        }
    }

    /// In parts, so that a refused request need not wait for all of it.
    async fn settle_all(&self, tenant: &TenantId) {
        const PARTS: usize = 64;
        for _ in 0..PARTS {
            self.settle(tenant, AT_REFUSAL).await;
            if !self.storage.is_dirty(tenant) {
                return;
            }
        }
    }

    /// The same, and informs sessions paused for storage when there is space again.
    async fn settle_in_time(self: Arc<Self>, tenant: TenantId) {
        let was_full = self.is_storage_full(&tenant).is_some();
        self.settle_all(&tenant).await;
        if was_full && self.is_storage_full(&tenant).is_none() {
            self.room_again(&tenant);
        }
    }

    async fn measure_session(&self, tenant: &TenantId, id: Uuid) {
        let root = self.dir(id).root().to_owned();
        match self.warden.measure(tenant, &root, ALL).await {
            Ok(used) => self.storage.measured(tenant, id, used.bytes),
            // Its directory is gone.
            Err(_) => self.storage.removed(id),
        }
    }

    async fn measure_agents(&self, tenant: &TenantId) {
        let root = agents_of(&self.config.now().data_dir, tenant);
        let used = self.warden.measure(tenant, &root, ALL).await.map_or(0, |used| used.bytes);
        self.storage.agents_measured(tenant, used);
    }

    /// Keeps the accounts. Earlier values hold until everything was measured.
    pub async fn keep_storage(self: &Arc<Self>) -> Result<(), SessionError> {
        for tenant in self.store.tenants_with_use().await? {
            let used = self.store.tenant_use(&tenant).await?;
            self.storage.settled(&tenant, Some(used.database));
            self.storage.known_before(&tenant, used.files);
        }
        for (tenant, limit) in self.store.storage_limits().await? {
            self.storage.set_limit(&tenant, Some(limit));
        }
        let shared = Arc::clone(self);
        tasks::spawn_restarting("storage-accounts", move || Arc::clone(&shared).account());
        Ok(())
    }

    async fn account(self: Arc<Self>) {
        let shared = self;
        match shared.store.tenant_use_check().await {
            Ok(0) => {}
            Ok(wrong) => tracing::warn!(wrong, "the storage counters of tenants were wrong and have been corrected"),
            Err(e) => tracing::warn!("cannot check the storage counters of tenants: {e}"),
        }
        let mut written = HashMap::new();
        let mut looks = HashMap::<TenantId, JoinHandle<()>>::new();
        let (mut swept, mut wrote) = (None::<Instant>, Instant::now());
        loop {
            if swept.is_none_or(|at| at.elapsed() >= SWEEP) {
                shared.sweep().await;
                swept = Some(Instant::now());
            }
            looks.retain(|_, look| !look.is_finished());
            for tenant in shared.storage.unsettled() {
                // A tenant with many files takes long, so tenants are measured concurrently.
                looks.entry(tenant.clone()).or_insert_with(|| tokio::spawn(Arc::clone(&shared).settle_in_time(tenant)));
            }
            if wrote.elapsed() >= WRITE_DOWN {
                wrote = Instant::now();
                shared.write_down(&mut written).await;
            }
            let _ = tokio::time::timeout(WRITE_DOWN, shared.storage.changed()).await;
            tokio::time::sleep(SETTLE).await;
        }
    }

    /// Measures everything on the disk.
    async fn sweep(&self) {
        let data = self.config.now().data_dir.clone();
        let names = |dir: &Path| -> Vec<String> {
            let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
        };
        for id in names(&data.join("sessions")).iter().filter_map(|name| Uuid::try_parse(name).ok()) {
            // A directory without a row belongs to no tenant yet; the cleaning handles it.
            if let Ok(Some(tenant)) = self.store.tenant_of_session(id).await {
                self.measure_session(&tenant, id).await;
            }
        }
        for tenant in names(&data.join("agents")).into_iter().filter_map(|name| TenantId::try_from(name).ok()) {
            self.measure_agents(&tenant).await;
        }
        for tenant in self.storage.tenants() {
            self.storage.all_measured(&tenant);
        }
    }

    async fn write_down(&self, written: &mut HashMap<TenantId, u64>) {
        for tenant in self.storage.tenants() {
            let files = self.storage.stored(&tenant).files;
            if written.get(&tenant).copied().unwrap_or(0).abs_diff(files) < WORTH {
                continue;
            }
            match self.store.tenant_files_put(&tenant, files).await {
                Ok(()) => drop(written.insert(tenant, files)),
                Err(e) => tracing::warn!(ASH_TENANT = %tenant, "cannot store the measured bytes of the tenant: {e}"),
            }
        }
    }

    /// Sessions that were paused for the tenant's storage may continue.
    pub fn room_again(&self, tenant: &TenantId) {
        for (_, handle) in self.registry.all().into_iter().filter(|(_, handle)| handle.tenant == *tenant) {
            // Not awaited: if the queue is full, the client can resume the session.
            let _ = handle.requests.try_send(Request::FilesChanged);
        }
    }
}

fn exceeded(would: u64, limit: u64) -> SessionError {
    SessionError::Full(exceeded_text(would, limit))
}

pub fn exceeded_text(would: u64, limit: u64) -> String {
    format!(
        "tenant storage limit exceeded ({} of {} MiB). Delete sessions (DELETE /api/sessions/:id?purge=true), attachments or \
         agents, or ask the admin to raise `storageBytes`.",
        would.div_ceil(1 << 20),
        limit >> 20
    )
}

impl Sessions {
    /// See [`Shared::check_write`].
    ///
    /// # Errors
    /// `Full`, with what to do.
    pub async fn check_write(&self, tenant: &TenantId, bytes: u64) -> Result<(), SessionError> {
        self.shared.check_write(tenant, bytes).await
    }

    /// A request of the tenant changed files or rows: schedules a measurement.
    pub fn touched(&self, tenant: &TenantId, session: Option<Uuid>, agents: bool) {
        self.shared.storage.touched(tenant, session, agents);
    }

    /// Accounts bytes of a body of unknown length.
    pub fn arrived(&self, tenant: &TenantId, bytes: u64) {
        self.shared.storage.add(tenant, bytes);
    }

    /// A tenant's limit, and what it stores.
    pub async fn storage(&self, tenant: &TenantId) -> (StorageLimit, Stored) {
        self.shared.settle(tenant, AT_REFUSAL).await;
        (self.shared.storage.limit(tenant), self.shared.storage.stored(tenant))
    }

    /// A tenant's sandboxes, and their maximum.
    pub fn sandboxes(&self, tenant: &TenantId) -> (usize, Option<usize>) {
        self.shared.pool.of_tenant(tenant)
    }

    /// The limits of a tenant as a whole, with its use.
    pub(in crate::sessions) async fn tenant_report(&self, tenant: &TenantId, admin: bool) -> [(String, LimitState); 2] {
        let (limit, stored) = self.storage(tenant).await;
        let (sandboxes, most) = self.sandboxes(tenant);
        let storage = LimitState {
            value: Some(limit.value),
            unit: "bytes",
            enforced: true,
            decided_by: limit.by,
            set: limit.set,
            most: Some(if admin { limit.ceiling } else { limit.value }),
            used: Some(stored.total()),
            split: Some(stored),
        };
        let most = most.map(|most| most as u64);
        let sandboxes = LimitState {
            value: most,
            unit: "live sandboxes",
            enforced: true,
            decided_by: Level::Config,
            set: None,
            most,
            used: Some(sandboxes as u64),
            split: None,
        };
        [(STORAGE.to_owned(), storage), ("sandboxes".to_owned(), sandboxes)]
    }

    /// Checks an admin's limit for a tenant; `None`: the configuration's.
    ///
    /// # Errors
    /// `Invalid` above the ceiling.
    pub fn check_storage_limit(&self, bytes: Option<u64>) -> Result<(), SessionError> {
        let ceiling = self.shared.config.now().tenants.storage_ceiling_bytes;
        if let Some(bytes) = bytes.filter(|bytes| *bytes > ceiling) {
            return Err(SessionError::Invalid(format!(
                "storageBytes: {bytes} is above the host's ceiling (tenants.storage_ceiling_bytes in ashd.toml), which is {ceiling}"
            )));
        }
        Ok(())
    }

    /// Sets a checked limit.
    ///
    /// # Errors
    /// `Store`.
    pub async fn set_storage_limit(&self, tenant: &TenantId, bytes: Option<u64>) -> Result<(), SessionError> {
        self.shared.store.storage_limit_put(tenant, bytes).await?;
        self.shared.storage.set_limit(tenant, bytes);
        if self.shared.is_storage_full(tenant).is_none() {
            self.shared.room_again(tenant);
        }
        Ok(())
    }

    /// Whether a copy of this session fits.
    pub(in crate::sessions) async fn check_copy(&self, own: &Own) -> Result<(), SessionError> {
        let root = self.shared.dir(own.id()).root().to_owned();
        let files = self.shared.warden.measure(own.tenant(), &root, ALL).await.map_or(0, |used| used.bytes);
        let rows = self.shared.store.history_bytes(own.id()).await?;
        self.shared.check_write(own.tenant(), files.saturating_add(rows)).await
    }

    /// Ends a session and removes everything but its usage: files, row, messages, timeline and
    /// attachments. Returns the session as it was.
    ///
    /// # Errors
    /// As for the end of a session.
    pub async fn purge(&self, own: &Own) -> Result<crate::store::Session, SessionError> {
        let ended = self.end(own).await?;
        self.remove_session(own.tenant(), own.id()).await?;
        Ok(ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_names_both_numbers() {
        let text = exceeded_text((10_240 << 20) + 1, 10_240 << 20);
        assert!(text.starts_with("tenant storage limit exceeded (10241 of 10240 MiB). Delete sessions"), "{text}");
    }
}
