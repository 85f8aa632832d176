//! The tenant of a session, found once per request.

use uuid::Uuid;

use crate::sessions::{SessionError, Sessions};
use crate::store::Session;
use ash_model::TenantId;

/// A session that belongs to a tenant. This stays true: no row moves to another tenant, and none is
/// removed during a request of its tenant ([`tenants`](super::tenants)).
#[derive(Clone, Debug)]
pub struct Own {
    tenant: TenantId,
    id: Uuid,
    /// Set if the row was read to find out. Its status and limits may have changed since.
    row: Option<Box<Session>>,
}

impl Own {
    pub fn id(&self) -> Uuid {
        self.id
    }

    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }
}

impl From<Session> for Own {
    fn from(row: Session) -> Self {
        Self { tenant: row.tenant.clone(), id: row.id, row: Some(Box::new(row)) }
    }
}

impl Sessions {
    /// The tenant's session of this id. The database is not read for a session with a task.
    ///
    /// # Errors
    /// `NotFound`, also for another tenant's.
    pub async fn own(&self, tenant: &TenantId, id: Uuid) -> Result<Own, SessionError> {
        match self.shared.registry.get(id) {
            Some(handle) if handle.tenant == *tenant => Ok(Own { tenant: handle.tenant, id, row: None }),
            Some(_) => Err(SessionError::NotFound),
            None => self.get(tenant, id).await.map(Own::from),
        }
    }

    /// Its row, from when the session was found, or read now. Use [`Sessions::get`] for current
    /// values after a longer operation.
    pub async fn row(&self, own: &Own) -> Result<Session, SessionError> {
        match &own.row {
            Some(row) => Ok((**row).clone()),
            None => self.get(&own.tenant, own.id).await,
        }
    }
}
