//! Table `agent_versions`: stored prompts of an agent. Activating one copies its prompt to the
//! agent and increments the agent's version, in one transaction: new sessions read only the agent.

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use uuid::Uuid;

use super::columns::{id_of, json_or_none, tenant_of};
use super::tenant_use::MAX_VERSIONS;
use super::writer::{Counters, Write};
use super::{Store, StoreError};
use ash_model::{Millis, RawJson, TenantId, now_ms};

#[derive(Clone, Debug, PartialEq)]
pub struct AgentVersion {
    pub id: Uuid,
    pub tenant: TenantId,
    pub agent_name: String,
    /// From 1; never reused.
    pub number: i64,
    pub name: String,
    pub active: bool,
    pub system_prompt: Option<String>,
    pub release_notes: Option<String>,
    /// As the client sent it: an array.
    pub knowledge_files: RawJson,
    pub created_by: Option<String>,
    pub created_at: Millis,
    pub updated_at: Millis,
}

/// Fields of a request for a version; outer `None` leaves a field unchanged (or takes the agent's,
/// in a new version).
#[derive(Clone, Debug, Default)]
pub struct VersionFields {
    pub name: Option<String>,
    pub system_prompt: Option<Option<String>>,
    pub release_notes: Option<Option<String>>,
    pub knowledge_files: Option<RawJson>,
    pub created_by: Option<String>,
}

/// The outcome of a deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionDelete {
    Done,
    /// The active version cannot be deleted.
    Active,
    NotFound,
}

impl Store {
    /// `None` when the tenant has no such agent. A new version is not active.
    pub async fn version_insert(
        &self,
        tenant: &TenantId,
        agent: &str,
        fields: VersionFields,
    ) -> Result<Option<AgentVersion>, StoreError> {
        let (tenant, agent, id) = (tenant.clone(), agent.to_owned(), Uuid::new_v4());
        self.write(Insert { tenant, agent, fields, id, now: now_ms() }).await
    }

    /// Newest first.
    pub async fn versions(&self, tenant: &TenantId, agent: &str) -> Result<Vec<AgentVersion>, StoreError> {
        let rows =
            sqlx::query("SELECT * FROM agent_versions WHERE tenant = ?1 AND agent_name = ?2 ORDER BY number DESC")
                .bind(tenant.as_str())
                .bind(agent)
                .fetch_all(self.reader())
                .await?;
        rows.iter().map(version).collect()
    }

    pub async fn version(
        &self,
        tenant: &TenantId,
        agent: &str,
        number: i64,
    ) -> Result<Option<AgentVersion>, StoreError> {
        let row = sqlx::query("SELECT * FROM agent_versions WHERE tenant = ?1 AND agent_name = ?2 AND number = ?3")
            .bind(tenant.as_str())
            .bind(agent)
            .bind(number)
            .fetch_optional(self.reader())
            .await?;
        row.as_ref().map(version).transpose()
    }

    /// The number of the agent's version with this id.
    pub async fn version_number(&self, tenant: &TenantId, agent: &str, id: Uuid) -> Result<Option<i64>, StoreError> {
        let number =
            sqlx::query_scalar("SELECT number FROM agent_versions WHERE id = ?1 AND tenant = ?2 AND agent_name = ?3");
        let number = number.bind(id.to_string()).bind(tenant.as_str()).bind(agent);
        Ok(number.fetch_optional(self.reader()).await?)
    }

    /// Changes a version, and the agent if it is the active one. `None` when there is none.
    pub async fn version_update(
        &self,
        tenant: &TenantId,
        agent: &str,
        number: i64,
        fields: VersionFields,
    ) -> Result<Option<AgentVersion>, StoreError> {
        self.write(Update { at: Place::new(tenant, agent, number), fields, now: now_ms() }).await
    }

    /// Makes it the agent's only active version. `None` when there is no such number.
    pub async fn version_activate(
        &self,
        tenant: &TenantId,
        agent: &str,
        number: i64,
    ) -> Result<Option<AgentVersion>, StoreError> {
        self.write(Activate { at: Place::new(tenant, agent, number), now: now_ms() }).await
    }

    pub async fn version_delete(
        &self,
        tenant: &TenantId,
        agent: &str,
        number: i64,
    ) -> Result<VersionDelete, StoreError> {
        self.write(Delete { at: Place::new(tenant, agent, number) }).await
    }
}

struct Place {
    tenant: TenantId,
    agent: String,
    number: i64,
}

impl Place {
    fn new(tenant: &TenantId, agent: &str, number: i64) -> Self {
        Self { tenant: tenant.clone(), agent: agent.to_owned(), number }
    }
}

struct Insert {
    tenant: TenantId,
    agent: String,
    fields: VersionFields,
    id: Uuid,
    now: Millis,
}

impl Write for Insert {
    type Out = Option<AgentVersion>;
    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<Self::Out, StoreError> {
        let agent = sqlx::query(
            "UPDATE agents SET versions_made = versions_made + 1 WHERE tenant = ?1 AND name = ?2
             RETURNING id, versions_made, system_prompt",
        )
        .bind(self.tenant.as_str())
        .bind(&self.agent)
        .fetch_optional(&mut *conn)
        .await?;
        let Some(agent) = agent else { return Ok(None) };
        let number: i64 = agent.try_get("versions_made")?;
        let (id, own): (String, Option<String>) = (agent.try_get("id")?, agent.try_get("system_prompt")?);
        let kept: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM agent_versions WHERE agent = ?1")
            .bind(&id)
            .fetch_one(&mut *conn)
            .await?;
        if kept.unsigned_abs() >= MAX_VERSIONS.rows {
            return Err(StoreError::TooMany(MAX_VERSIONS));
        }
        let new = &self.fields;
        let row = sqlx::query(
            "INSERT INTO agent_versions (id, tenant, agent, agent_name, number, name, is_active, system_prompt, release_notes,
                                         knowledge_files, created_by, created_at, updated_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, 0, ?7, ?8, ?9, ?10, ?11, ?11) RETURNING *",
        )
        .bind(self.id.to_string())
        .bind(self.tenant.as_str())
        .bind(id)
        .bind(&self.agent)
        .bind(number)
        .bind(new.name.clone().unwrap_or_else(|| format!("v{number}")))
        .bind(new.system_prompt.clone().unwrap_or(own))
        .bind(new.release_notes.clone().flatten())
        .bind(new.knowledge_files.as_ref().map_or("[]", RawJson::get))
        .bind(&new.created_by)
        .bind(self.now)
        .fetch_one(conn)
        .await?;
        version(&row).map(Some)
    }
}

struct Update {
    at: Place,
    fields: VersionFields,
    now: Millis,
}

impl Write for Update {
    type Out = Option<AgentVersion>;
    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<Self::Out, StoreError> {
        let new = &self.fields;
        let row = sqlx::query(
            "UPDATE agent_versions SET name = COALESCE(?4, name),
                 system_prompt = CASE ?5 WHEN 1 THEN ?6 ELSE system_prompt END,
                 release_notes = CASE ?7 WHEN 1 THEN ?8 ELSE release_notes END,
                 knowledge_files = COALESCE(?9, knowledge_files), updated_at = ?10
             WHERE tenant = ?1 AND agent_name = ?2 AND number = ?3 RETURNING *",
        )
        .bind(self.at.tenant.as_str())
        .bind(&self.at.agent)
        .bind(self.at.number)
        .bind(&new.name)
        .bind(new.system_prompt.is_some())
        .bind(new.system_prompt.clone().flatten())
        .bind(new.release_notes.is_some())
        .bind(new.release_notes.clone().flatten())
        .bind(new.knowledge_files.as_ref().map(RawJson::get))
        .bind(self.now)
        .fetch_optional(&mut *conn)
        .await?;
        let Some(changed) = row.as_ref().map(version).transpose()? else { return Ok(None) };
        if changed.active && new.system_prompt.is_some() {
            copy_to_agent(conn, &self.at, &changed, self.now).await?;
        }
        Ok(Some(changed))
    }
}

struct Activate {
    at: Place,
    now: Millis,
}

impl Write for Activate {
    type Out = Option<AgentVersion>;
    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<Self::Out, StoreError> {
        // Deactivate first: the index refuses two active ones.
        sqlx::query(
            "UPDATE agent_versions SET is_active = 0 WHERE tenant = ?1 AND agent_name = ?2 AND number <> ?3 AND EXISTS
                 (SELECT 1 FROM agent_versions WHERE tenant = ?1 AND agent_name = ?2 AND number = ?3)",
        )
        .bind(self.at.tenant.as_str())
        .bind(&self.at.agent)
        .bind(self.at.number)
        .execute(&mut *conn)
        .await?;
        let row = sqlx::query(
            "UPDATE agent_versions SET is_active = 1 WHERE tenant = ?1 AND agent_name = ?2 AND number = ?3 RETURNING *",
        )
        .bind(self.at.tenant.as_str())
        .bind(&self.at.agent)
        .bind(self.at.number)
        .fetch_optional(&mut *conn)
        .await?;
        let Some(active) = row.as_ref().map(version).transpose()? else { return Ok(None) };
        copy_to_agent(conn, &self.at, &active, self.now).await?;
        Ok(Some(active))
    }
}

async fn copy_to_agent(
    conn: &mut SqliteConnection,
    at: &Place,
    version: &AgentVersion,
    now: Millis,
) -> Result<(), StoreError> {
    sqlx::query(
        "UPDATE agents SET system_prompt = ?3, version = version + 1, updated_at = ?4 WHERE tenant = ?1 AND name = ?2",
    )
    .bind(at.tenant.as_str())
    .bind(&at.agent)
    .bind(&version.system_prompt)
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}

struct Delete {
    at: Place,
}

impl Write for Delete {
    type Out = VersionDelete;
    fn frees(&self) -> bool {
        true
    }

    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<VersionDelete, StoreError> {
        let row = sqlx::query(
            "SELECT id, is_active FROM agent_versions WHERE tenant = ?1 AND agent_name = ?2 AND number = ?3",
        )
        .bind(self.at.tenant.as_str())
        .bind(&self.at.agent)
        .bind(self.at.number)
        .fetch_optional(&mut *conn)
        .await?;
        let Some(row) = row else { return Ok(VersionDelete::NotFound) };
        if row.try_get("is_active")? {
            return Ok(VersionDelete::Active);
        }
        let id: String = row.try_get("id")?;
        sqlx::query("DELETE FROM agent_versions WHERE id = ?1").bind(id).execute(conn).await?;
        Ok(VersionDelete::Done)
    }
}

pub(super) fn version(row: &SqliteRow) -> Result<AgentVersion, StoreError> {
    Ok(AgentVersion {
        id: id_of(row, "id")?,
        tenant: tenant_of(row)?,
        agent_name: row.try_get("agent_name")?,
        number: row.try_get("number")?,
        name: row.try_get("name")?,
        active: row.try_get("is_active")?,
        system_prompt: row.try_get("system_prompt")?,
        release_notes: row.try_get("release_notes")?,
        knowledge_files: json_or_none(row, "knowledge_files")?.unwrap_or_default(),
        created_by: row.try_get("created_by")?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::NewAgent;

    #[tokio::test]
    async fn one_version_is_active_and_the_agent_has_its_prompt() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        let tenant = TenantId::default_tenant();
        let new =
            NewAgent { name: "a".into(), path: "/a".into(), system_prompt: Some("own".into()), ..NewAgent::default() };
        store.agent_upsert(&tenant, new.clone()).await.unwrap();
        let prompt = |text: &str| VersionFields { system_prompt: Some(Some(text.into())), ..VersionFields::default() };
        assert!(store.version_insert(&tenant, "b", VersionFields::default()).await.unwrap().is_none());
        let kept = store.version_insert(&tenant, "a", VersionFields::default()).await.unwrap().unwrap();
        assert_eq!((kept.number, kept.name.as_str(), kept.active), (1, "v1", false));
        assert_eq!(kept.system_prompt.as_deref(), Some("own"), "without a prompt, the agent's is used");
        let second = store.version_insert(&tenant, "a", prompt("two")).await.unwrap().unwrap();
        let own = async || store.agent(&tenant, "a").await.unwrap().unwrap();
        assert_eq!(own().await.system_prompt.as_deref(), Some("own"), "a new version changes nothing yet");
        assert!(store.version_activate(&tenant, "a", second.number).await.unwrap().unwrap().active);
        assert_eq!((own().await.system_prompt.as_deref(), own().await.version), (Some("two"), 2));
        assert!(store.version_activate(&tenant, "a", 9).await.unwrap().is_none());
        let active = async || {
            let all = store.versions(&tenant, "a").await.unwrap();
            all.into_iter().filter(|v| v.active).map(|v| v.number).collect::<Vec<_>>()
        };
        assert_eq!(active().await, [2], "activating a missing one changes nothing");
        store.version_update(&tenant, "a", 2, prompt("better")).await.unwrap().unwrap();
        assert_eq!(own().await.system_prompt.as_deref(), Some("better"));
        store.version_update(&tenant, "a", 1, prompt("aside")).await.unwrap().unwrap();
        assert_eq!(own().await.system_prompt.as_deref(), Some("better"));
        assert_eq!(store.version_delete(&tenant, "a", 2).await.unwrap(), VersionDelete::Active);
        store.version_activate(&tenant, "a", 1).await.unwrap().unwrap();
        assert_eq!((active().await, own().await.system_prompt.as_deref()), (vec![1], Some("aside")));
        assert_eq!(store.version_delete(&tenant, "a", 2).await.unwrap(), VersionDelete::Done);
        assert_eq!(store.version_delete(&tenant, "a", 2).await.unwrap(), VersionDelete::NotFound);
        let third = store.version_insert(&tenant, "a", VersionFields::default()).await.unwrap().unwrap();
        assert_eq!(third.number, 3, "a number is never reused");
        let other: TenantId = "acme".parse().unwrap();
        assert!(store.version(&other, "a", 1).await.unwrap().is_none());
        assert!(store.version_activate(&other, "a", 1).await.unwrap().is_none());
        store.agent_upsert(&tenant, new).await.unwrap();
        assert_eq!(store.versions(&tenant, "a").await.unwrap().len(), 2, "a deployment keeps them");
        store.agent_delete(&tenant, "a").await.unwrap();
        assert!(store.versions(&tenant, "a").await.unwrap().is_empty());
    }
}
