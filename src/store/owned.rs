//! Deletes a tenant's row by id: one statement for all tables of that form.

use sqlx::SqliteConnection;
use uuid::Uuid;

use super::StoreError;
use super::writer::{Counters, Write};
use ash_model::TenantId;

/// Deletes a row of `tenant`; `true` when there was one.
pub(super) struct DeleteOwned {
    pub table: OwnedTable,
    pub tenant: TenantId,
    pub id: Uuid,
}

/// Tables with the columns `id` and `tenant`.
#[derive(Clone, Copy)]
pub(super) enum OwnedTable {
    Attachments,
    Credentials,
}

impl OwnedTable {
    fn delete(self) -> &'static str {
        match self {
            Self::Attachments => "DELETE FROM attachments WHERE id = ?1 AND tenant = ?2",
            Self::Credentials => "DELETE FROM credentials WHERE id = ?1 AND tenant = ?2",
        }
    }
}

impl Write for DeleteOwned {
    type Out = bool;
    fn frees(&self) -> bool {
        true
    }

    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<bool, StoreError> {
        let done =
            sqlx::query(self.table.delete()).bind(self.id.to_string()).bind(self.tenant.as_str()).execute(conn).await?;
        Ok(done.rows_affected() > 0)
    }
}
