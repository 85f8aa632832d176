//! SQLite: what must outlive every process. One writer task commits in batches; readers never wait for it.
//! Every query of a tenant's object has the tenant in its WHERE clause.

mod rows;

pub use rows::*;

use std::path::Path;

use uuid::Uuid;

use crate::model::{SessionStatus, TenantId};

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the database: {0}")]
    Sqlx(#[from] sqlx::Error),
    #[error("the database cannot be migrated: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// Written by a newer ashd.
    #[error("{0}")]
    Newer(String),
    /// The disk (or the quota of the data directory) is full; nothing was written.
    #[error("the disk that holds the database is full")]
    Full,
    #[error("the database's writer has stopped")]
    Closed,
}

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {}

impl Store {
    /// Opens `<data_dir>/ashd.db`, makes it if need be, and migrates it forward.
    pub async fn open(_data_dir: &Path) -> Result<Self, StoreError> {
        unimplemented!()
    }

    // -- api keys ------------------------------------------------------------------------------------------------
    pub async fn key_insert(&self, _key: ApiKey) -> Result<(), StoreError> {
        unimplemented!()
    }
    /// Looked up by the SHA-256 of the token.
    pub async fn key_by_hash(&self, _hash: [u8; 32]) -> Result<Option<ApiKey>, StoreError> {
        unimplemented!()
    }
    pub async fn key_list(&self, _tenant: &TenantId) -> Result<Vec<ApiKey>, StoreError> {
        unimplemented!()
    }
    /// `true` when the tenant had that key.
    pub async fn key_delete(&self, _tenant: &TenantId, _id: Uuid) -> Result<bool, StoreError> {
        unimplemented!()
    }
    pub async fn key_count(&self) -> Result<u64, StoreError> {
        unimplemented!()
    }

    // -- agents --------------------------------------------------------------------------------------------------
    /// A new agent, or the same name again: id and createdAt kept, version + 1.
    pub async fn agent_upsert(&self, _tenant: &TenantId, _agent: NewAgent) -> Result<Agent, StoreError> {
        unimplemented!()
    }
    pub async fn agent(&self, _tenant: &TenantId, _name: &str) -> Result<Option<Agent>, StoreError> {
        unimplemented!()
    }
    /// By name.
    pub async fn agents(&self, _tenant: &TenantId) -> Result<Vec<Agent>, StoreError> {
        unimplemented!()
    }
    /// Replaces the optional fields of an agent (`None` when there is no such agent).
    pub async fn agent_update(&self, _tenant: &TenantId, _agent: &Agent) -> Result<Option<Agent>, StoreError> {
        unimplemented!()
    }
    pub async fn agent_delete(&self, _tenant: &TenantId, _name: &str) -> Result<bool, StoreError> {
        unimplemented!()
    }

    // -- sessions ------------------------------------------------------------------------------------------------
    pub async fn session_insert(&self, _session: &Session) -> Result<(), StoreError> {
        unimplemented!()
    }
    pub async fn session(&self, _tenant: &TenantId, _id: Uuid) -> Result<Option<Session>, StoreError> {
        unimplemented!()
    }
    /// Whoever's it is: for adoption at start, never for a request.
    pub async fn session_of_any_tenant(&self, _id: Uuid) -> Result<Option<Session>, StoreError> {
        unimplemented!()
    }
    /// Every session in one of these states, of all tenants: for adoption at start.
    pub async fn sessions_in(&self, _statuses: &[SessionStatus]) -> Result<Vec<Session>, StoreError> {
        unimplemented!()
    }
    /// Newest first.
    pub async fn sessions(&self, _tenant: &TenantId, _filter: &SessionFilter) -> Result<Vec<Session>, StoreError> {
        unimplemented!()
    }
    pub async fn session_count(&self, _tenant: &TenantId, _filter: &SessionFilter) -> Result<u64, StoreError> {
        unimplemented!()
    }
    /// Everything one step of a session changes, in one transaction. Sequence numbers are given by the writer: per
    /// session from 1, without gaps. Returns when it is durable.
    pub async fn commit(&self, _commit: Commit) -> Result<Committed, StoreError> {
        unimplemented!()
    }
    /// The turn that runs or ran last.
    pub async fn last_turn(&self, _session: Uuid) -> Result<Option<Turn>, StoreError> {
        unimplemented!()
    }
    /// The turn with this number; the reader of a stream walks turns with it.
    pub async fn turn(&self, _session: Uuid, _number: i64) -> Result<Option<Turn>, StoreError> {
        unimplemented!()
    }
    /// Ascending, `sequence > after`.
    pub async fn messages(
        &self,
        _tenant: &TenantId,
        _session: Uuid,
        _limit: u32,
        _after: i64,
    ) -> Result<Vec<Message>, StoreError> {
        unimplemented!()
    }
    pub async fn events(
        &self,
        _tenant: &TenantId,
        _session: Uuid,
        _limit: u32,
        _after: i64,
        _kind: Option<&str>,
    ) -> Result<Vec<Event>, StoreError> {
        unimplemented!()
    }
}
