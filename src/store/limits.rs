//! Table `limits`: the limits of tenants, agents and sessions.

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use uuid::Uuid;

use super::columns::unreadable;
use super::writer::{Counters, Write};
use super::{Store, StoreError};
use ash_model::{PartialLimits, TenantId};

/// The level of a limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LimitScope {
    Tenant,
    Agent(String),
    Session(Uuid),
}

impl LimitScope {
    fn columns(&self) -> (&'static str, String) {
        match self {
            Self::Tenant => ("tenant", String::new()),
            Self::Agent(name) => ("agent", name.clone()),
            Self::Session(id) => ("session", id.to_string()),
        }
    }
}

/// The limits of each level; empty if not set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredLimits {
    pub tenant: PartialLimits,
    pub agent: PartialLimits,
    pub session: PartialLimits,
}

impl Store {
    /// The limits of the tenant, and of an agent and a session if given.
    pub async fn limits(
        &self,
        tenant: &TenantId,
        agent: Option<&str>,
        session: Option<Uuid>,
    ) -> Result<StoredLimits, StoreError> {
        let rows = sqlx::query(
            "SELECT scope, limits FROM limits WHERE tenant = ?1
             AND (scope = 'tenant' OR (scope = 'agent' AND name = ?2) OR (scope = 'session' AND name = ?3))",
        )
        .bind(tenant.as_str())
        .bind(agent)
        .bind(session.map(|id| id.to_string()))
        .fetch_all(self.reader())
        .await?;
        let mut stored = StoredLimits::default();
        for row in &rows {
            let level = match row.try_get("scope")? {
                "tenant" => &mut stored.tenant,
                "agent" => &mut stored.agent,
                _ => &mut stored.session,
            };
            *level = partial(row)?;
        }
        Ok(stored)
    }

    /// Replaces the limits of a level; an empty map removes them.
    pub async fn limits_put(
        &self,
        tenant: &TenantId,
        scope: LimitScope,
        limits: PartialLimits,
    ) -> Result<(), StoreError> {
        self.write(Put { tenant: tenant.clone(), scope, limits }).await
    }
}

struct Put {
    tenant: TenantId,
    scope: LimitScope,
    limits: PartialLimits,
}

impl Write for Put {
    type Out = ();
    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<(), StoreError> {
        let (scope, name) = self.scope.columns();
        let query = if self.limits.is_empty() {
            sqlx::query("DELETE FROM limits WHERE tenant = ?1 AND scope = ?2 AND name = ?3")
        } else {
            sqlx::query(
                "INSERT INTO limits (tenant, scope, name, limits) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (tenant, scope, name) DO UPDATE SET limits = excluded.limits",
            )
        };
        let mut query = query.bind(self.tenant.as_str()).bind(scope).bind(name);
        if !self.limits.is_empty() {
            query = query.bind(serde_json::to_string(&self.limits).expect("a map of numbers has a JSON form"));
        }
        query.execute(conn).await?;
        Ok(())
    }
}

fn partial(row: &SqliteRow) -> Result<PartialLimits, StoreError> {
    serde_json::from_str(row.try_get("limits")?).map_err(|why| unreadable("limits of a level", why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ash_model::Limit;

    #[tokio::test]
    async fn each_level_is_its_own_and_each_tenants() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        let (own, other) = (TenantId::default_tenant(), "other".parse::<TenantId>().unwrap());
        let id = Uuid::new_v4();
        let said = |value| PartialLimits::from([(Limit::Pids, value)]);
        for (scope, value) in
            [(LimitScope::Tenant, 1), (LimitScope::Agent("a".into()), 2), (LimitScope::Session(id), 3)]
        {
            store.limits_put(&own, scope, said(value)).await.unwrap();
        }
        let all = store.limits(&own, Some("a"), Some(id)).await.unwrap();
        assert_eq!(all, StoredLimits { tenant: said(1), agent: said(2), session: said(3) });
        let some = store.limits(&own, Some("b"), None).await.unwrap();
        assert_eq!(some, StoredLimits { tenant: said(1), ..StoredLimits::default() });
        assert_eq!(store.limits(&other, Some("a"), Some(id)).await.unwrap(), StoredLimits::default());
        store.limits_put(&own, LimitScope::Tenant, said(9)).await.unwrap();
        store.limits_put(&own, LimitScope::Agent("a".into()), PartialLimits::new()).await.unwrap();
        let all = store.limits(&own, Some("a"), None).await.unwrap();
        assert_eq!((all.tenant, all.agent), (said(9), PartialLimits::new()));
    }
}
