//! Table `tenant_use`: what each tenant stores here, by kind; triggers of migration 9 update it in
//! the transaction of each change. Table `tenant_limits`: an admin's limits for a tenant as a
//! whole.

use sqlx::{Row, SqliteConnection};

use super::columns::{count, count_of, tenant_of};
use super::writer::{Counters, Write};
use super::{Store, StoreError};
use ash_model::TenantId;

/// The name of `storageBytes` in `tenant_limits`.
const STORAGE: &str = "storageBytes";

/// Maximum rows of a kind per tenant, agent or session. One more is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Most {
    /// In the plural, for the error text.
    pub what: &'static str,
    pub rows: u64,
    /// How to free a place.
    pub way_out: &'static str,
}

pub const MAX_KEYS: Most = Most { what: "API keys of the tenant", rows: 1000, way_out: "revoke some" };
pub const MAX_AGENTS: Most = Most { what: "agents of the tenant", rows: 1000, way_out: "delete some" };
pub const MAX_VERSIONS: Most = Most { what: "versions of the agent", rows: 1000, way_out: "delete some" };
pub const MAX_CREDENTIALS: Most = Most { what: "credentials of the tenant", rows: 1000, way_out: "delete some" };
pub const MAX_ATTACHMENTS: Most = Most { what: "attachments of the session", rows: 1000, way_out: "delete some" };
/// Per day: the next request removes older ones.
pub const MAX_ONCE: Most =
    Most { what: "Idempotency-Keys of the tenant in 24 hours", rows: 100_000, way_out: "send requests without one" };
/// Finished items of the queue kept per tenant; the newest ones.
pub const FINISHED_KEPT: u64 = 10_000;

/// What a tenant stores in the database, and the measured size of its files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TenantUse {
    pub database: u64,
    /// The last stored measurement; `None`: never measured.
    pub files: Option<u64>,
}

impl Store {
    pub async fn tenant_use(&self, tenant: &TenantId) -> Result<TenantUse, StoreError> {
        let row = sqlx::query(
            "SELECT COALESCE(SUM(CASE kind WHEN 'files' THEN 0 ELSE bytes END), 0) AS database,
                 MAX(CASE kind WHEN 'files' THEN bytes END) AS files
             FROM tenant_use WHERE tenant = ?1",
        )
        .bind(tenant.as_str())
        .fetch_one(self.reader())
        .await?;
        let files: Option<i64> = row.try_get("files")?;
        Ok(TenantUse { database: count_of(&row, "database")?, files: files.map(i64::unsigned_abs) })
    }

    /// Every tenant that stores something.
    pub async fn tenants_with_use(&self) -> Result<Vec<TenantId>, StoreError> {
        let rows = sqlx::query("SELECT DISTINCT tenant FROM tenant_use").fetch_all(self.reader()).await?;
        rows.iter().map(tenant_of).collect()
    }

    /// Bytes of one session's history, for a copy of it.
    pub async fn history_bytes(&self, session: uuid::Uuid) -> Result<u64, StoreError> {
        let row = sqlx::query(
            "SELECT COALESCE((SELECT SUM(256 + octet_length(content)) FROM messages WHERE session = ?1), 0)
                  + COALESCE((SELECT SUM(octet_length(text)) FROM message_rest WHERE session = ?1), 0) AS bytes",
        )
        .bind(session.to_string())
        .fetch_one(self.reader())
        .await?;
        count_of(&row, "bytes")
    }

    /// Stores the measured size of a tenant's files, for the next daemon.
    pub async fn tenant_files_put(&self, tenant: &TenantId, bytes: u64) -> Result<(), StoreError> {
        self.write(Files { tenant: tenant.clone(), bytes }).await
    }

    /// Corrects counters that differ from their tables, and returns the number of affected tenants.
    /// None, unless the database was changed manually.
    pub async fn tenant_use_check(&self) -> Result<u64, StoreError> {
        let wrong: i64 = sqlx::query_scalar(WRONG).fetch_one(self.reader()).await?;
        if wrong > 0 {
            self.write(Recount).await?;
        }
        Ok(wrong.unsigned_abs())
    }

    /// `storageBytes` of all tenants with an admin's value.
    pub async fn storage_limits(&self) -> Result<Vec<(TenantId, u64)>, StoreError> {
        let rows = sqlx::query("SELECT tenant, value FROM tenant_limits WHERE name = ?1")
            .bind(STORAGE)
            .fetch_all(self.reader())
            .await?;
        rows.iter().map(|row| Ok((tenant_of(row)?, count_of(row, "value")?))).collect()
    }

    /// `None`: the configuration applies.
    pub async fn storage_limit_put(&self, tenant: &TenantId, bytes: Option<u64>) -> Result<(), StoreError> {
        self.write(Limit { tenant: tenant.clone(), bytes }).await
    }
}

/// The number of kinds whose counter and tables differ. A counter of zero rows has no entry in a
/// table, and is correct.
const WRONG: &str = "SELECT COUNT(*) FROM (SELECT tenant FROM (
        SELECT tenant, kind, rows, bytes FROM tenant_use WHERE kind <> 'files' AND rows <> 0
        UNION ALL SELECT tenant, kind, rows, bytes FROM tenant_use_counted
    ) GROUP BY tenant, kind, rows, bytes HAVING COUNT(*) <> 2)";

/// The tenant's rows of a kind.
pub(super) async fn rows_of(
    conn: &mut SqliteConnection,
    tenant: &TenantId,
    kind: &'static str,
) -> Result<u64, StoreError> {
    let rows: Option<i64> = sqlx::query_scalar("SELECT rows FROM tenant_use WHERE tenant = ?1 AND kind = ?2")
        .bind(tenant.as_str())
        .bind(kind)
        .fetch_optional(conn)
        .await?;
    Ok(rows.unwrap_or(0).unsigned_abs())
}

/// Refuses a row above the tenant's maximum of its kind.
pub(super) async fn check_rows(
    conn: &mut SqliteConnection,
    tenant: &TenantId,
    kind: &'static str,
    most: Most,
) -> Result<(), StoreError> {
    if rows_of(conn, tenant, kind).await? >= most.rows { Err(StoreError::TooMany(most)) } else { Ok(()) }
}

struct Files {
    tenant: TenantId,
    bytes: u64,
}

impl Write for Files {
    type Out = ();
    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<(), StoreError> {
        sqlx::query("INSERT OR REPLACE INTO tenant_use (tenant, kind, rows, bytes) VALUES (?1, 'files', 1, ?2)")
            .bind(self.tenant.as_str())
            .bind(count(self.bytes))
            .execute(conn)
            .await?;
        Ok(())
    }
}

struct Recount;

impl Write for Recount {
    type Out = ();
    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM tenant_use WHERE kind <> 'files'").execute(&mut *conn).await?;
        sqlx::query(
            "INSERT INTO tenant_use (tenant, kind, rows, bytes) SELECT tenant, kind, rows, bytes FROM tenant_use_counted",
        )
        .execute(conn)
        .await?;
        Ok(())
    }
}

struct Limit {
    tenant: TenantId,
    bytes: Option<u64>,
}

impl Write for Limit {
    type Out = ();
    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<(), StoreError> {
        let query = match self.bytes {
            Some(bytes) => {
                sqlx::query("INSERT OR REPLACE INTO tenant_limits (tenant, name, value) VALUES (?1, ?2, ?3)")
                    .bind(self.tenant.as_str())
                    .bind(STORAGE)
                    .bind(count(bytes))
            }
            None => sqlx::query("DELETE FROM tenant_limits WHERE tenant = ?1 AND name = ?2")
                .bind(self.tenant.as_str())
                .bind(STORAGE),
        };
        query.execute(conn).await?;
        Ok(())
    }
}

#[cfg(test)]
#[path = "tests_tenant_use.rs"]
mod tests;
