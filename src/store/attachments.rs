//! Table `attachments`: metadata of attached files; the file itself is named by the id.

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use uuid::Uuid;

use super::columns::{count, count_of, id_of, tenant_of};
use super::owned::{DeleteOwned, OwnedTable};
use super::tenant_use::MAX_ATTACHMENTS;
use super::writer::{Counters, Write};
use super::{Attachment, Store, StoreError};
use ash_model::TenantId;

impl Store {
    /// # Errors
    /// [`StoreError::NoSession`] when the tenant has no such session.
    pub async fn attachment_insert(&self, attachment: Attachment) -> Result<(), StoreError> {
        self.write(Insert(attachment)).await
    }

    pub async fn attachment(&self, tenant: &TenantId, id: Uuid) -> Result<Option<Attachment>, StoreError> {
        let row = sqlx::query("SELECT * FROM attachments WHERE id = ?1 AND tenant = ?2")
            .bind(id.to_string())
            .bind(tenant.as_str())
            .fetch_optional(self.reader())
            .await?;
        row.as_ref().map(attachment).transpose()
    }

    pub async fn attachments(&self, tenant: &TenantId, session: Uuid) -> Result<Vec<Attachment>, StoreError> {
        let rows =
            sqlx::query("SELECT * FROM attachments WHERE session = ?1 AND tenant = ?2 ORDER BY created_at, rowid")
                .bind(session.to_string())
                .bind(tenant.as_str())
                .fetch_all(self.reader())
                .await?;
        rows.iter().map(attachment).collect()
    }

    /// `true` when the tenant had that attachment. The caller then removes its file.
    pub async fn attachment_delete(&self, tenant: &TenantId, id: Uuid) -> Result<bool, StoreError> {
        self.write(DeleteOwned { table: OwnedTable::Attachments, tenant: tenant.clone(), id }).await
    }
}

struct Insert(Attachment);

impl Write for Insert {
    type Out = ();
    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<(), StoreError> {
        let new = &self.0;
        let kept: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM attachments WHERE session = ?1")
            .bind(new.session.to_string())
            .fetch_one(&mut *conn)
            .await?;
        if kept.unsigned_abs() >= MAX_ATTACHMENTS.rows {
            return Err(StoreError::TooMany(MAX_ATTACHMENTS));
        }
        let done = sqlx::query(
            "INSERT INTO attachments (id, session, tenant, filename, mime_type, size, message_id, created_at, path)
             SELECT ?1, id, tenant, ?4, ?5, ?6, ?7, ?8, ?9 FROM sessions WHERE id = ?2 AND tenant = ?3",
        )
        .bind(new.id.to_string())
        .bind(new.session.to_string())
        .bind(new.tenant.as_str())
        .bind(&new.filename)
        .bind(&new.mime_type)
        .bind(count(new.size))
        .bind(&new.message_id)
        .bind(new.created_at)
        .bind(&new.path)
        .execute(conn)
        .await?;
        if done.rows_affected() == 1 { Ok(()) } else { Err(StoreError::NoSession(new.session)) }
    }
}

pub(super) fn attachment(row: &SqliteRow) -> Result<Attachment, StoreError> {
    Ok(Attachment {
        id: id_of(row, "id")?,
        session: id_of(row, "session")?,
        tenant: tenant_of(row)?,
        filename: row.try_get("filename")?,
        mime_type: row.try_get("mime_type")?,
        size: count_of(row, "size")?,
        message_id: row.try_get("message_id")?,
        path: row.try_get("path")?,
        created_at: row.try_get("created_at")?,
    })
}
