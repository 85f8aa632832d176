//! Whose a session is, found once for each request.

use uuid::Uuid;

use crate::sessions::{SessionError, Sessions};
use crate::store::Session;
use ash_model::TenantId;

/// A session that a tenant was found to have. That stays true: no row is ever given to another tenant, and none is removed while a
/// request of its tenant is under way ([`tenants`](super::tenants)).
#[derive(Clone, Debug)]
pub struct Own {
    tenant: TenantId,
    id: Uuid,
    /// Where it had to be read to find out. Its status and limits may be other ones by now.
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
    /// The tenant's session of this id. One that has a task is not looked up in the database.
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

    /// Its row: the one that was read when the session was found, else it is read now. A request that may have taken a while
    /// since then asks [`Sessions::get`] for what can change.
    pub async fn row(&self, own: &Own) -> Result<Session, SessionError> {
        match &own.row {
            Some(row) => Ok((**row).clone()),
            None => self.get(&own.tenant, own.id).await,
        }
    }
}
