//! Table `sessions`.

use sqlx::sqlite::{Sqlite, SqliteRow};
use sqlx::{QueryBuilder, Row, SqliteConnection};
use uuid::Uuid;

use super::columns::{count, count_of, id_of, id_or_none, json_or_none, limits_of, limits_text, tenant_of, unreadable};
use super::writer::{Counters, Write};
use super::{Session, SessionFilter, Store, StoreError};
use ash_model::{Millis, SessionStatus, TenantId};

/// The columns of a session that requests see.
macro_rules! shown_columns {
    () => {
        "id, tenant, agent_name, status, error, model, config, '{}' AS launch, limits, parent, stdout_offset, \
         conversation, conversation_turn, created_at, last_active_at"
    };
}
pub(super) use shown_columns;

impl Store {
    pub async fn session_insert(&self, session: &Session) -> Result<(), StoreError> {
        self.write(Insert(session.clone())).await
    }

    /// Without its launch options, which may have megabytes and are never shown.
    pub async fn session(&self, tenant: &TenantId, id: Uuid) -> Result<Option<Session>, StoreError> {
        let row = sqlx::query(concat!("SELECT ", shown_columns!(), " FROM sessions WHERE id = ?1 AND tenant = ?2"))
            .bind(id.to_string())
            .bind(tenant.as_str())
            .fetch_optional(self.reader())
            .await?;
        row.as_ref().map(session).transpose()
    }

    /// A session of any tenant: for adoption at start, never for a request.
    pub async fn session_of_any_tenant(&self, id: Uuid) -> Result<Option<Session>, StoreError> {
        let row = sqlx::query("SELECT * FROM sessions WHERE id = ?1")
            .bind(id.to_string())
            .fetch_optional(self.reader())
            .await?;
        row.as_ref().map(session).transpose()
    }

    /// The tenant of a session.
    pub async fn tenant_of_session(&self, id: Uuid) -> Result<Option<TenantId>, StoreError> {
        let row = sqlx::query("SELECT tenant FROM sessions WHERE id = ?1").bind(id.to_string());
        row.fetch_optional(self.reader()).await?.as_ref().map(tenant_of).transpose()
    }

    /// Sessions of all tenants that a daemon left unfinished: starting, active, or with a turn
    /// without an end. For adoption at start. Does not read the rows, which may be very many.
    pub async fn sessions_unsettled(&self) -> Result<Vec<(Uuid, TenantId, SessionStatus)>, StoreError> {
        let rows = sqlx::query(
            "SELECT id, tenant, status FROM sessions WHERE status IN ('starting', 'active') OR (status = 'paused' AND
                 EXISTS (SELECT 1 FROM turns WHERE session = sessions.id AND to_offset IS NULL))
             ORDER BY created_at, rowid",
        )
        .fetch_all(self.reader())
        .await?;
        rows.iter().map(|row| Ok((id_of(row, "id")?, tenant_of(row)?, status_of(row)?))).collect()
    }

    /// The tenant of the newest session.
    pub async fn newest_tenant(&self) -> Result<Option<TenantId>, StoreError> {
        let row = sqlx::query("SELECT tenant FROM sessions ORDER BY rowid DESC LIMIT 1").fetch_optional(self.reader());
        row.await?.as_ref().map(tenant_of).transpose()
    }

    /// The number of sessions of all tenants by state.
    pub async fn session_statuses(&self) -> Result<Vec<(SessionStatus, u64)>, StoreError> {
        let rows = sqlx::query("SELECT status, COUNT(*) AS n FROM sessions GROUP BY status").fetch_all(self.reader());
        rows.await?.iter().map(|row| Ok((status_of(row)?, count_of(row, "n")?))).collect()
    }

    /// Sessions of all tenants that ended, and had their last event, before this moment.
    pub async fn sessions_ended_before(&self, moment: Millis) -> Result<Vec<Uuid>, StoreError> {
        let rows = sqlx::query(
            "SELECT id FROM sessions WHERE status = 'ended' AND last_active_at < ?1 AND NOT EXISTS
                 (SELECT 1 FROM events WHERE events.session = sessions.id AND events.created_at >= ?1)",
        )
        .bind(moment)
        .fetch_all(self.reader())
        .await?;
        rows.iter().map(|row| id_of(row, "id")).collect()
    }

    /// Newest first.
    pub async fn sessions(&self, tenant: &TenantId, filter: &SessionFilter) -> Result<Vec<Session>, StoreError> {
        let mut query = QueryBuilder::<Sqlite>::new("SELECT * ");
        matching(&mut query, tenant, filter);
        query.push(" ORDER BY created_at DESC, rowid DESC LIMIT ");
        // SQLite reads a negative limit as none.
        query.push_bind(filter.limit.map_or(-1, i64::from)).push(" OFFSET ").push_bind(i64::from(filter.offset));
        query.build().fetch_all(self.reader()).await?.iter().map(session).collect()
    }

    /// Number of sessions, ignoring the filter's limit and offset.
    pub async fn session_count(&self, tenant: &TenantId, filter: &SessionFilter) -> Result<u64, StoreError> {
        let mut query = QueryBuilder::<Sqlite>::new("SELECT COUNT(*) AS n ");
        matching(&mut query, tenant, filter);
        count_of(&query.build().fetch_one(self.reader()).await?, "n")
    }
}

fn matching(query: &mut QueryBuilder<Sqlite>, tenant: &TenantId, filter: &SessionFilter) {
    query.push("FROM sessions WHERE tenant = ").push_bind(tenant.to_string());
    narrowed(query, filter);
}

/// Further conditions.
pub(super) fn narrowed(query: &mut QueryBuilder<Sqlite>, filter: &SessionFilter) {
    if let Some(agent) = &filter.agent {
        query.push(" AND agent_name = ").push_bind(agent.clone());
    }
    if let Some(status) = filter.status {
        query.push(" AND status = ").push_bind(status.as_str());
    }
}

struct Insert(Session);

impl Write for Insert {
    type Out = ();
    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<(), StoreError> {
        let new = &self.0;
        sqlx::query(
            "INSERT INTO sessions (id, tenant, agent_name, status, error, model, config, launch, limits, parent, stdout_offset,
                                   created_at, last_active_at, conversation, conversation_turn)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
        )
        .bind(new.id.to_string())
        .bind(new.tenant.as_str())
        .bind(&new.agent_name)
        .bind(new.status.as_str())
        .bind(&new.error)
        .bind(&new.model)
        .bind(new.config.as_ref().map(|config| config.get().to_owned()))
        .bind(new.launch.get())
        .bind(limits_text(&new.limits))
        .bind(new.parent.map(|id| id.to_string()))
        .bind(count(new.stdout_offset))
        .bind(new.created_at)
        .bind(new.last_active_at)
        .bind((new.conversation != new.id).then(|| new.conversation.to_string()))
        .bind(new.conversation_turn)
        .execute(conn)
        .await?;
        Ok(())
    }
}

fn status_of(row: &SqliteRow) -> Result<SessionStatus, StoreError> {
    row.try_get::<&str, _>("status")?.parse().map_err(|why| unreadable("status", why))
}

pub(super) fn session(row: &SqliteRow) -> Result<Session, StoreError> {
    Ok(Session {
        id: id_of(row, "id")?,
        tenant: tenant_of(row)?,
        agent_name: row.try_get("agent_name")?,
        status: status_of(row)?,
        error: row.try_get("error")?,
        model: row.try_get("model")?,
        config: json_or_none(row, "config")?,
        launch: json_or_none(row, "launch")?.ok_or_else(|| unreadable("launch", "it is null"))?,
        limits: limits_of(row)?,
        parent: id_or_none(row, "parent")?,
        stdout_offset: count_of(row, "stdout_offset")?,
        conversation: id_or_none(row, "conversation")?.map_or_else(|| id_of(row, "id"), Ok)?,
        conversation_turn: row.try_get("conversation_turn")?,
        created_at: row.try_get("created_at")?,
        last_active_at: row.try_get("last_active_at")?,
    })
}
