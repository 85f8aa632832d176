//! Table `api_keys`: hashes of the clients' tokens.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use uuid::Uuid;

use super::columns::{id_of, tenant_of, unreadable};
use super::tenant_use::{MAX_KEYS, check_rows};
use super::writer::{Counters, Write};
use super::{ApiKey, Store, StoreError};
use ash_model::TenantId;

/// Keys cached after their first use, so that a request needs no read of the database. Above this
/// number, the cache is cleared.
const CACHED: usize = 4096;

/// Cached keys, by hash. A deletion increments the generation, so that a concurrent earlier lookup
/// cannot insert the deleted key again.
#[derive(Debug, Default)]
pub(super) struct KeyCache {
    state: Mutex<Cached>,
}

#[derive(Debug, Default)]
struct Cached {
    generation: u64,
    keys: HashMap<[u8; 32], ApiKey>,
}

impl KeyCache {
    fn with<T>(&self, act: impl FnOnce(&mut Cached) -> T) -> T {
        act(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn get(&self, hash: &[u8; 32]) -> (u64, Option<ApiKey>) {
        self.with(|cached| (cached.generation, cached.keys.get(hash).cloned()))
    }

    fn put(&self, generation: u64, key: &ApiKey) {
        self.with(|cached| {
            if cached.generation == generation {
                if cached.keys.len() >= CACHED {
                    cached.keys.clear();
                }
                cached.keys.insert(key.hash, key.clone());
            }
        });
    }

    fn forget(&self, gone: impl Fn(&ApiKey) -> bool) {
        self.with(|cached| {
            cached.generation += 1;
            cached.keys.retain(|_, key| !gone(key));
        });
    }

    pub fn forget_tenant(&self, tenant: &TenantId) {
        self.forget(|key| key.tenant == *tenant);
    }
}

impl Store {
    pub async fn key_insert(&self, key: ApiKey) -> Result<(), StoreError> {
        self.write(Insert(key)).await
    }

    /// Finds a key by the SHA-256 of its token.
    pub async fn key_by_hash(&self, hash: [u8; 32]) -> Result<Option<ApiKey>, StoreError> {
        let (generation, cached) = self.inner.keys.get(&hash);
        if cached.is_some() {
            return Ok(cached);
        }
        let row =
            sqlx::query("SELECT * FROM api_keys WHERE hash = ?1").bind(&hash[..]).fetch_optional(self.reader()).await?;
        let Some(row) = row else { return Ok(None) };
        let key = key(&row)?;
        self.inner.keys.put(generation, &key);
        Ok(Some(key))
    }

    /// Oldest first; includes admin keys only `with_admins`.
    pub async fn key_list(&self, tenant: &TenantId, with_admins: bool) -> Result<Vec<ApiKey>, StoreError> {
        let rows =
            sqlx::query("SELECT * FROM api_keys WHERE tenant = ?1 AND (?2 OR NOT admin) ORDER BY created_at, rowid")
                .bind(tenant.as_str())
                .bind(with_admins)
                .fetch_all(self.reader())
                .await?;
        rows.iter().map(key).collect()
    }

    /// Revokes a key of the tenant; an admin key only `by_admin`, and never the last one. The key
    /// is refused from the moment this returns.
    pub async fn key_delete(&self, tenant: &TenantId, id: Uuid, by_admin: bool) -> Result<KeyDelete, StoreError> {
        let done = self.write(Delete { tenant: tenant.clone(), id, by_admin }).await?;
        if done == KeyDelete::Done {
            self.inner.keys.forget(|key| key.id == id);
        }
        Ok(done)
    }

    pub async fn key_count(&self) -> Result<u64, StoreError> {
        let count: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM api_keys").fetch_one(self.reader()).await?;
        Ok(count.unsigned_abs())
    }
}

/// The outcome of a revocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyDelete {
    Done,
    /// The tenant has no such key, or it is an admin key and the caller is not an admin.
    NotFound,
    /// It is the only key with the admin role.
    LastAdmin,
}

struct Delete {
    tenant: TenantId,
    id: Uuid,
    by_admin: bool,
}

impl Write for Delete {
    type Out = KeyDelete;
    fn frees(&self) -> bool {
        true
    }

    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<KeyDelete, StoreError> {
        // One transaction: if two admins revoke each other concurrently, one stays.
        let (id, tenant) = (self.id.to_string(), self.tenant.as_str());
        let admin: Option<bool> = sqlx::query_scalar("SELECT admin FROM api_keys WHERE id = ?1 AND tenant = ?2")
            .bind(&id)
            .bind(tenant)
            .fetch_optional(&mut *conn)
            .await?;
        match admin {
            None => return Ok(KeyDelete::NotFound),
            Some(true) if !self.by_admin => return Ok(KeyDelete::NotFound),
            Some(true) => {
                let admins: i64 =
                    sqlx::query_scalar("SELECT COUNT(*) FROM api_keys WHERE admin").fetch_one(&mut *conn).await?;
                if admins < 2 {
                    return Ok(KeyDelete::LastAdmin);
                }
            }
            Some(false) => {}
        }
        sqlx::query("DELETE FROM api_keys WHERE id = ?1 AND tenant = ?2").bind(&id).bind(tenant).execute(conn).await?;
        Ok(KeyDelete::Done)
    }
}

struct Insert(ApiKey);

impl Write for Insert {
    type Out = ();
    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<(), StoreError> {
        let key = &self.0;
        check_rows(conn, &key.tenant, "keys", MAX_KEYS).await?;
        sqlx::query(
            "INSERT INTO api_keys (id, tenant, label, hash, prefix, admin, created_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )
        .bind(key.id.to_string())
        .bind(key.tenant.as_str())
        .bind(&key.label)
        .bind(&key.hash[..])
        .bind(&key.prefix)
        .bind(key.admin)
        .bind(key.created_at)
        .execute(conn)
        .await?;
        Ok(())
    }
}

pub(super) fn key(row: &SqliteRow) -> Result<ApiKey, StoreError> {
    let hash: Vec<u8> = row.try_get("hash")?;
    Ok(ApiKey {
        id: id_of(row, "id")?,
        tenant: tenant_of(row)?,
        label: row.try_get("label")?,
        hash: hash.try_into().map_err(|_| unreadable("hash of a key", "not 32 bytes"))?,
        prefix: row.try_get("prefix")?,
        admin: row.try_get("admin")?,
        created_at: row.try_get("created_at")?,
    })
}
