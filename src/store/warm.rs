//! Column `warm` of table `agents`: the number of warm sandboxes per agent.

use sqlx::{Row, SqliteConnection};

use super::agents::agent;
use super::writer::{Counters, Write};
use super::{Agent, Store, StoreError};
use ash_model::TenantId;

impl Store {
    /// The agent's own number: `None` when the tenant has no such agent, `Some(None)` for the
    /// default.
    pub async fn agent_warm(&self, tenant: &TenantId, name: &str) -> Result<Option<Option<u32>>, StoreError> {
        let row = sqlx::query("SELECT warm FROM agents WHERE tenant = ?1 AND name = ?2")
            .bind(tenant.as_str())
            .bind(name)
            .fetch_optional(self.reader())
            .await?;
        row.map(|row| Ok(row.try_get("warm")?)).transpose()
    }

    /// `None` restores the default. `true` when the tenant has that agent. Does not change its
    /// version and times.
    pub async fn agent_set_warm(&self, tenant: &TenantId, name: &str, count: Option<u32>) -> Result<bool, StoreError> {
        self.write(SetWarm { tenant: tenant.clone(), name: name.to_owned(), count }).await
    }

    /// Every agent of all tenants with warm sandboxes, and their number; `default` is for agents
    /// without their own.
    pub async fn agents_to_warm(&self, default: u32) -> Result<Vec<(Agent, u32)>, StoreError> {
        let rows =
            sqlx::query("SELECT *, COALESCE(warm, ?1) AS wanted FROM agents WHERE wanted > 0 ORDER BY updated_at DESC")
                .bind(default)
                .fetch_all(self.reader())
                .await?;
        rows.iter().map(|row| Ok((agent(row)?, row.try_get("wanted")?))).collect()
    }
}

struct SetWarm {
    tenant: TenantId,
    name: String,
    count: Option<u32>,
}

impl Write for SetWarm {
    type Out = bool;
    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<bool, StoreError> {
        let done = sqlx::query("UPDATE agents SET warm = ?3 WHERE tenant = ?1 AND name = ?2")
            .bind(self.tenant.as_str())
            .bind(&self.name)
            .bind(self.count)
            .execute(conn)
            .await?;
        Ok(done.rows_affected() > 0)
    }
}
