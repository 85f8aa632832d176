//! SQLite: everything that must outlive all processes. One writer task commits in batches; readers
//! never wait for it. Every query of a tenant's object has the tenant in its WHERE clause.
//!
//! ```text
//!   write: caller --Write--> queue (1024) --> writer task: BEGIN, all that is queued, COMMIT
//!                                         --> fdatasync --> answers to all callers
//!   read:  caller -----------------------------> one of 4 read-only connections
//! ```
//!
//! The first write of an idle moment is committed immediately. Writes that arrive meanwhile share
//! the next transaction, and all commits before a sync share it. The answer is sent when the change
//! is on the disk, so acknowledged changes survive a power failure. [`Store::commit_early`] answers
//! twice: when the change survives the end of this process, and when it is on the disk.

mod agents;
mod analytics;
mod api_keys;
mod attachments;
mod columns;
mod commit;
mod credentials;
mod durable;
mod error;
mod evals;
mod history;
mod idempotency;
mod ledgers;
mod limits;
mod open;
mod owned;
mod pages;
mod queue;
mod room;
mod rows;
mod sessions;
mod tenant_use;
mod tenants;
mod usage;
mod versions;
mod warm;
mod writer;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_durable;
#[cfg(test)]
mod tests_large;
#[cfg(test)]
mod tests_open;

pub use analytics::Counts;
pub use api_keys::KeyDelete;
pub use durable::OnDisk;
pub use error::StoreError;
pub use evals::{
    CaseFields, CaseFilter, EvalCase, EvalChange, EvalResult, EvalRun, EvalStatus, EvalTask, MAX_OPEN_RUNS, NewRun,
    RunRefused, Scored,
};
pub use idempotency::{Earlier, KEEP_MS};
pub use ledgers::UsageEntry;
pub use limits::{LimitScope, StoredLimits};
pub use pages::{LARGE, Listed, Place, Window};
pub use queue::{LATEST_MS, MAX_PENDING, QueueChange, QueueItem, QueueStatus};
pub use rows::*;
pub use tenant_use::{FINISHED_KEPT, MAX_ONCE, Most, TenantUse};
pub use tenants::Forgotten;
pub use usage::{UsageFilter, UsageRow, UsageTotals};
pub use versions::{AgentVersion, VersionDelete, VersionFields};

use std::path::Path;
use std::sync::Arc;

use sqlx::SqlitePool;

use api_keys::KeyCache;
use writer::{Write, Writer};

#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    readers: SqlitePool,
    writer: Writer,
    keys: KeyCache,
}

impl Store {
    /// Opens `<data_dir>/ashd.db`, creates it if needed, and migrates it (keeping a copy as
    /// `ashd.db.before-<version>`). Only one process at a time can open it.
    ///
    /// # Errors
    /// [`StoreError::Newer`] when a newer ashd wrote it, [`StoreError::InUse`] when another process
    /// holds it.
    pub async fn open(data_dir: &Path) -> Result<Self, StoreError> {
        let log = data_dir.join("ashd.db-wal");
        Self::open_with(data_dir, Arc::new(move || std::fs::File::open(&log)?.sync_data())).await
    }

    /// With another way to sync the log, for tests.
    async fn open_with(data_dir: &Path, sync: durable::SyncLog) -> Result<Self, StoreError> {
        let opened = open::open(data_dir).await?;
        let writer = Writer::start(opened.writer, opened.lock, sync, room::Room::new(data_dir));
        let inner = Inner { readers: opened.readers, writer, keys: KeyCache::default() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Commits what is queued and closes the database; later calls return [`StoreError::Closed`]. A
    /// process that exits without it loses nothing that was acknowledged.
    pub async fn close(&self) {
        self.inner.readers.close().await;
        self.inner.writer.close().await;
    }

    /// Returns when the writer has processed everything queued before.
    ///
    /// # Errors
    /// What keeps it from writing: a full or read-only disk, a lock of another program. The task
    /// itself works then.
    pub async fn pulse(&self) -> Result<(), StoreError> {
        self.write(Nothing).await
    }

    fn reader(&self) -> &SqlitePool {
        &self.inner.readers
    }

    async fn write<W: Write>(&self, write: W) -> Result<W::Out, StoreError> {
        self.inner.writer.write(write).await
    }
}

/// A transaction that changes nothing.
#[derive(Debug)]
struct Nothing;

impl Write for Nothing {
    type Out = ();
    async fn apply(&self, _: &mut sqlx::SqliteConnection, _: &mut writer::Counters) -> Result<(), StoreError> {
        Ok(())
    }
}
