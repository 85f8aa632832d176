//! Table `agents`.

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use uuid::Uuid;

use super::columns::{id_of, json_or_none, tenant_of, unreadable};
use super::tenant_use::{MAX_AGENTS, check_rows};
use super::writer::{Counters, Write};
use super::{Agent, NewAgent, Store, StoreError};
use ash_model::{Millis, TenantId, now_ms};

impl Store {
    /// A new agent, or a new deployment of an existing one: keeps id and createdAt, increments the
    /// version. Fields that the deployment omits (an optional field, an empty `env`) stay
    /// unchanged, so that a new deployment does not undo a PATCH.
    pub async fn agent_upsert(&self, tenant: &TenantId, agent: NewAgent) -> Result<Agent, StoreError> {
        self.write(Upsert { tenant: tenant.clone(), agent, id: Uuid::now_v7(), now: now_ms() }).await
    }

    pub async fn agent(&self, tenant: &TenantId, name: &str) -> Result<Option<Agent>, StoreError> {
        let row = sqlx::query("SELECT * FROM agents WHERE tenant = ?1 AND name = ?2")
            .bind(tenant.as_str())
            .bind(name)
            .fetch_optional(self.reader())
            .await?;
        row.as_ref().map(agent).transpose()
    }

    /// Sorted by name.
    pub async fn agents(&self, tenant: &TenantId) -> Result<Vec<Agent>, StoreError> {
        let rows = sqlx::query("SELECT * FROM agents WHERE tenant = ?1 ORDER BY name")
            .bind(tenant.as_str())
            .fetch_all(self.reader())
            .await?;
        rows.iter().map(agent).collect()
    }

    /// Stores every field of `agent` except id, tenant, name, version and creation time; sets
    /// `updated_at` to now. `None` when the tenant has no agent of that name.
    pub async fn agent_update(&self, tenant: &TenantId, agent: &Agent) -> Result<Option<Agent>, StoreError> {
        self.write(Update { tenant: tenant.clone(), agent: agent.clone(), now: now_ms() }).await
    }

    /// `true` when the tenant had that agent. Its large rows are removed first, in several
    /// transactions, so that other changes can run in between.
    pub async fn agent_delete(&self, tenant: &TenantId, name: &str) -> Result<bool, StoreError> {
        self.agent_empty(tenant, name).await?;
        self.write(Delete { tenant: tenant.clone(), name: name.to_owned() }).await
    }
}

struct Upsert {
    tenant: TenantId,
    agent: NewAgent,
    id: Uuid,
    now: Millis,
}

impl Write for Upsert {
    type Out = Agent;
    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<Agent, StoreError> {
        let new = &self.agent;
        let known: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM agents WHERE tenant = ?1 AND name = ?2)")
            .bind(self.tenant.as_str())
            .bind(&new.name)
            .fetch_one(&mut *conn)
            .await?;
        if !known {
            check_rows(conn, &self.tenant, "agents", MAX_AGENTS).await?;
        }
        let row = sqlx::query(
            "INSERT INTO agents (id, tenant, name, version, path, env, slug, description, model, backend, system_prompt, config,
                                 created_at, updated_at, path_by_admin)
             VALUES (?1, ?2, ?3, 1, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?12, ?13)
             ON CONFLICT (tenant, name) DO UPDATE SET
                 version = version + 1,
                 path = excluded.path,
                 path_by_admin = excluded.path_by_admin,
                 env = CASE excluded.env WHEN '{}' THEN env ELSE excluded.env END,
                 slug = COALESCE(excluded.slug, slug),
                 description = COALESCE(excluded.description, description),
                 model = COALESCE(excluded.model, model),
                 backend = COALESCE(excluded.backend, backend),
                 system_prompt = COALESCE(excluded.system_prompt, system_prompt),
                 config = COALESCE(excluded.config, config),
                 updated_at = excluded.updated_at
             RETURNING *",
        )
        .bind(self.id.to_string())
        .bind(self.tenant.as_str())
        .bind(&new.name)
        .bind(&new.path)
        .bind(env_text(&new.env))
        .bind(&new.slug)
        .bind(&new.description)
        .bind(&new.model)
        .bind(&new.backend)
        .bind(&new.system_prompt)
        .bind(new.config.as_ref().map(|config| config.get().to_owned()))
        .bind(self.now)
        .bind(new.path_by_admin)
        .fetch_one(conn)
        .await?;
        agent(&row)
    }
}

struct Update {
    tenant: TenantId,
    agent: Agent,
    now: Millis,
}

impl Write for Update {
    type Out = Option<Agent>;
    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<Option<Agent>, StoreError> {
        let new = &self.agent;
        let row = sqlx::query(
            "UPDATE agents SET path = ?3, env = ?4, slug = ?5, description = ?6, model = ?7, backend = ?8, system_prompt = ?9,
                               status = ?10, config = ?11, updated_at = ?12
             WHERE tenant = ?1 AND name = ?2 RETURNING *",
        )
        .bind(self.tenant.as_str())
        .bind(&new.name)
        .bind(&new.path)
        .bind(env_text(&new.env))
        .bind(&new.slug)
        .bind(&new.description)
        .bind(&new.model)
        .bind(&new.backend)
        .bind(&new.system_prompt)
        .bind(&new.status)
        .bind(new.config.as_ref().map(|config| config.get().to_owned()))
        .bind(self.now)
        .fetch_optional(conn)
        .await?;
        row.as_ref().map(agent).transpose()
    }
}

struct Delete {
    tenant: TenantId,
    name: String,
}

impl Write for Delete {
    type Out = bool;
    fn frees(&self) -> bool {
        true
    }

    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<bool, StoreError> {
        // A later agent with the same name is another one.
        sqlx::query("DELETE FROM limits WHERE tenant = ?1 AND scope = 'agent' AND name = ?2")
            .bind(self.tenant.as_str())
            .bind(&self.name)
            .execute(&mut *conn)
            .await?;
        let done = sqlx::query("DELETE FROM agents WHERE tenant = ?1 AND name = ?2")
            .bind(self.tenant.as_str())
            .bind(&self.name)
            .execute(conn)
            .await?;
        Ok(done.rows_affected() > 0)
    }
}

fn env_text(env: &std::collections::BTreeMap<String, String>) -> String {
    serde_json::to_string(env).expect("a map of strings has a JSON form")
}

pub(super) fn agent(row: &SqliteRow) -> Result<Agent, StoreError> {
    Ok(Agent {
        id: id_of(row, "id")?,
        tenant: tenant_of(row)?,
        name: row.try_get("name")?,
        version: row.try_get("version")?,
        path: row.try_get("path")?,
        path_by_admin: row.try_get("path_by_admin")?,
        env: serde_json::from_str(row.try_get("env")?).map_err(|why| unreadable("env of an agent", why))?,
        slug: row.try_get("slug")?,
        description: row.try_get("description")?,
        model: row.try_get("model")?,
        backend: row.try_get("backend")?,
        system_prompt: row.try_get("system_prompt")?,
        status: row.try_get("status")?,
        config: json_or_none(row, "config")?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
    })
}
