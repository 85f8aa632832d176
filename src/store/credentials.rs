//! Table `credentials`: keys of tenants, sealed before they come here.

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use uuid::Uuid;

use super::columns::{id_of, tenant_of};
use super::owned::{DeleteOwned, OwnedTable};
use super::writer::{Counters, Write};
use super::{Credential, Store, StoreError};
use crate::model::TenantId;

impl Store {
    pub async fn credential_insert(&self, credential: Credential) -> Result<(), StoreError> {
        self.write(Insert(credential)).await
    }

    pub async fn credential(&self, tenant: &TenantId, id: Uuid) -> Result<Option<Credential>, StoreError> {
        let row = sqlx::query("SELECT * FROM credentials WHERE id = ?1 AND tenant = ?2")
            .bind(id.to_string())
            .bind(tenant.as_str())
            .fetch_optional(self.reader())
            .await?;
        row.as_ref().map(credential).transpose()
    }

    /// Oldest first.
    pub async fn credentials(&self, tenant: &TenantId) -> Result<Vec<Credential>, StoreError> {
        let rows = sqlx::query("SELECT * FROM credentials WHERE tenant = ?1 ORDER BY created_at, rowid")
            .bind(tenant.as_str())
            .fetch_all(self.reader())
            .await?;
        rows.iter().map(credential).collect()
    }

    /// `true` when the tenant had that credential.
    pub async fn credential_delete(&self, tenant: &TenantId, id: Uuid) -> Result<bool, StoreError> {
        self.write(DeleteOwned { table: OwnedTable::Credentials, tenant: tenant.clone(), id }).await
    }
}

struct Insert(Credential);

impl Write for Insert {
    type Out = ();
    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<(), StoreError> {
        let new = &self.0;
        sqlx::query(
            "INSERT INTO credentials (id, tenant, type, label, sealed, active, created_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )
        .bind(new.id.to_string())
        .bind(new.tenant.as_str())
        .bind(&new.kind)
        .bind(&new.label)
        .bind(&new.sealed)
        .bind(new.active)
        .bind(new.created_at)
        .execute(conn)
        .await?;
        Ok(())
    }
}

fn credential(row: &SqliteRow) -> Result<Credential, StoreError> {
    Ok(Credential {
        id: id_of(row, "id")?,
        tenant: tenant_of(row)?,
        kind: row.try_get("type")?,
        label: row.try_get("label")?,
        sealed: row.try_get("sealed")?,
        active: row.try_get("active")?,
        created_at: row.try_get("created_at")?,
    })
}
