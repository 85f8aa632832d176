//! Table `queue`: prompts waiting for a session of their agent.
//!
//! ```text
//!   pending --claim--> processing --+--> completed
//!     |  ^                 |        +--> failed
//!     |  +----put back-----+
//!     +--> cancelled
//! ```

use std::str::FromStr;

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use uuid::Uuid;

use super::columns::{count_of, id_of, id_or_none, tenant_of, unreadable};
use super::tenant_use::{FINISHED_KEPT, Most, check_rows, rows_of};
use super::writer::{Counters, Write};
use super::{Store, StoreError};
use ash_model::{Millis, TenantId, now_ms};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueStatus {
    Pending,
    Processing,
    Completed,
    Failed,
    Cancelled,
}

impl QueueStatus {
    pub const ALL: [Self; 5] = [Self::Pending, Self::Processing, Self::Completed, Self::Failed, Self::Cancelled];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Processing => "processing",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

impl FromStr for QueueStatus {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|status| status.as_str() == word).ok_or_else(|| {
            format!(
                "\"{word}\" is not a status of the queue; expected one of {}",
                Self::ALL.map(Self::as_str).join(", ")
            )
        })
    }
}

#[derive(Clone, Debug)]
pub struct QueueItem {
    pub id: Uuid,
    pub tenant: TenantId,
    pub agent_name: String,
    pub prompt: String,
    /// Higher values first, within the tenant.
    pub priority: i64,
    pub status: QueueStatus,
    pub retry_count: u64,
    pub max_retries: u64,
    /// The session that the client named.
    pub wanted: Option<Uuid>,
    /// The session and turn of the prompt.
    pub session: Option<Uuid>,
    pub turn: Option<Uuid>,
    pub result: Option<String>,
    pub error: Option<String>,
    pub due_at: Millis,
    pub created_at: Millis,
    pub started_at: Option<Millis>,
    pub completed_at: Option<Millis>,
}

/// Maximum milliseconds until a returned item is due. A later due time comes from a clock that was
/// wrong, and counts as due now.
pub const LATEST_MS: i64 = 60_000;

/// Pending items per tenant.
pub const MAX_PENDING: Most =
    Most { what: "pending items in the queue", rows: 10_000, way_out: "wait until some are processed, or cancel some" };

/// A change of an item in progress.
#[derive(Clone, Debug)]
pub enum QueueChange {
    /// The prompt is sent to this session next, as this turn.
    Bound {
        session: Uuid,
        turn: Uuid,
    },
    /// The item is retried at `due_at`; `counted` when the attempt counts as one of its retries.
    PutBack {
        due_at: Millis,
        error: Option<String>,
        counted: bool,
    },
    Completed {
        result: String,
    },
    Failed {
        error: String,
    },
}

impl Store {
    pub async fn queue_insert(&self, item: QueueItem) -> Result<(), StoreError> {
        self.write(Insert(item)).await
    }

    pub async fn queue_item(&self, tenant: &TenantId, id: Uuid) -> Result<Option<QueueItem>, StoreError> {
        let row = sqlx::query("SELECT * FROM queue WHERE id = ?1 AND tenant = ?2")
            .bind(id.to_string())
            .bind(tenant.as_str())
            .fetch_optional(self.reader())
            .await?;
        row.as_ref().map(item).transpose()
    }

    /// Newest first.
    pub async fn queue_items(
        &self,
        tenant: &TenantId,
        status: Option<QueueStatus>,
        limit: u32,
    ) -> Result<Vec<QueueItem>, StoreError> {
        let rows = sqlx::query(
            "SELECT * FROM queue WHERE tenant = ?1 AND (?2 IS NULL OR status = ?2) ORDER BY created_at DESC, rowid DESC LIMIT ?3",
        )
        .bind(tenant.as_str())
        .bind(status.map(QueueStatus::as_str))
        .bind(limit)
        .fetch_all(self.reader())
        .await?;
        rows.iter().map(item).collect()
    }

    /// The number of the tenant's items by status.
    pub async fn queue_counts(&self, tenant: &TenantId) -> Result<Vec<(QueueStatus, u64)>, StoreError> {
        let rows = sqlx::query("SELECT status, COUNT(*) AS n FROM queue WHERE tenant = ?1 GROUP BY status")
            .bind(tenant.as_str())
            .fetch_all(self.reader())
            .await?;
        rows.iter().map(|row| Ok((status_of(row)?, count_of(row, "n")?))).collect()
    }

    /// Items of all tenants that an earlier daemon left in progress.
    pub async fn queue_processing(&self) -> Result<Vec<QueueItem>, StoreError> {
        let rows = sqlx::query("SELECT * FROM queue WHERE status = 'processing'").fetch_all(self.reader()).await?;
        rows.iter().map(item).collect()
    }

    /// When the next pending item is due, of all tenants with fewer than `of_one` in progress.
    pub async fn queue_next_due(&self, of_one: u32) -> Result<Option<Millis>, StoreError> {
        let row = sqlx::query(NEXT_DUE).bind(of_one);
        Ok(row.fetch_one(self.reader()).await?.try_get("due")?)
    }

    /// Claims the next due item: of the tenant with the fewest in progress (fewer than `of_one`),
    /// its highest priority, its oldest.
    pub async fn queue_claim(&self, of_one: u32) -> Result<Option<QueueItem>, StoreError> {
        self.write(Claim { of_one, now: now_ms() }).await
    }

    /// `false` when the item is no longer in progress.
    pub async fn queue_change(&self, id: Uuid, change: QueueChange) -> Result<bool, StoreError> {
        self.write(Change { id, change, now: now_ms() }).await
    }

    /// `true` when it was pending and is now cancelled.
    pub async fn queue_cancel(&self, tenant: &TenantId, id: Uuid) -> Result<bool, StoreError> {
        self.write(Cancel { tenant: tenant.clone(), id, now: now_ms() }).await
    }
}

struct Insert(QueueItem);

impl Write for Insert {
    type Out = ();
    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<(), StoreError> {
        let new = &self.0;
        check_rows(conn, &new.tenant, "pending", MAX_PENDING).await?;
        // Keeps the newest finished items.
        if rows_of(conn, &new.tenant, "queue").await? > FINISHED_KEPT {
            sqlx::query(
                "DELETE FROM queue WHERE id IN (SELECT id FROM queue
                     WHERE tenant = ?1 AND status IN ('completed', 'failed', 'cancelled')
                     ORDER BY completed_at DESC LIMIT -1 OFFSET ?2)",
            )
            .bind(new.tenant.as_str())
            .bind(super::columns::count(FINISHED_KEPT))
            .execute(&mut *conn)
            .await?;
        }
        sqlx::query(
            "INSERT INTO queue (id, tenant, agent_name, prompt, priority, status, max_retries, wanted, due_at, created_at)
             VALUES (?1, ?2, ?3, ?4, ?5, 'pending', ?6, ?7, ?8, ?8)",
        )
        .bind(new.id.to_string())
        .bind(new.tenant.as_str())
        .bind(&new.agent_name)
        .bind(&new.prompt)
        .bind(new.priority)
        .bind(super::columns::count(new.max_retries))
        .bind(new.wanted.map(|id| id.to_string()))
        .bind(new.created_at)
        .execute(conn)
        .await?;
        Ok(())
    }
}

/// Reads indexes only: a prompt may have megabytes.
pub(super) const CLAIM: &str = "UPDATE queue SET status = 'processing', started_at = ?1 WHERE id = (
                 SELECT id FROM queue AS q INDEXED BY queue_pending WHERE status = 'pending' AND (due_at <= ?1 OR due_at > ?1 + ?2)
                     AND tenant NOT IN (SELECT tenant FROM queue WHERE status = 'processing' GROUP BY tenant HAVING COUNT(*) >= ?3)
                 ORDER BY (SELECT COUNT(*) FROM queue AS other WHERE other.tenant = q.tenant AND other.status = 'processing'),
                     priority DESC, created_at, rowid LIMIT 1)
             RETURNING *";
/// The same.
pub(super) const NEXT_DUE: &str =
    "SELECT MIN(due_at) AS due FROM queue INDEXED BY queue_pending WHERE status = 'pending' AND tenant NOT IN
                 (SELECT tenant FROM queue WHERE status = 'processing' GROUP BY tenant HAVING COUNT(*) >= ?1)";

struct Claim {
    of_one: u32,
    now: Millis,
}

impl Write for Claim {
    type Out = Option<QueueItem>;
    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<Self::Out, StoreError> {
        let row = sqlx::query(CLAIM).bind(self.now).bind(LATEST_MS).bind(self.of_one).fetch_optional(conn).await?;
        row.as_ref().map(item).transpose()
    }
}

struct Change {
    id: Uuid,
    change: QueueChange,
    now: Millis,
}

impl Write for Change {
    type Out = bool;
    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<bool, StoreError> {
        let id = self.id.to_string();
        let query = match &self.change {
            QueueChange::Bound { session, turn } => {
                sqlx::query("UPDATE queue SET session = ?2, turn_id = ?3 WHERE id = ?1 AND status = 'processing'")
                    .bind(id)
                    .bind(session.to_string())
                    .bind(turn.to_string())
            }
            QueueChange::PutBack { due_at, error, counted } => sqlx::query(
                "UPDATE queue SET status = 'pending', session = NULL, turn_id = NULL, due_at = ?2, error = ?3,
                     retry_count = retry_count + ?4 WHERE id = ?1 AND status = 'processing'",
            )
            .bind(id)
            .bind(due_at)
            .bind(error)
            .bind(counted),
            QueueChange::Completed { result } => sqlx::query(
                "UPDATE queue SET status = 'completed', result = ?2, error = NULL, completed_at = ?3
                 WHERE id = ?1 AND status = 'processing'",
            )
            .bind(id)
            .bind(result)
            .bind(self.now),
            QueueChange::Failed { error } => sqlx::query(
                "UPDATE queue SET status = 'failed', error = ?2, completed_at = ?3 WHERE id = ?1 AND status = 'processing'",
            )
            .bind(id)
            .bind(error)
            .bind(self.now),
        };
        Ok(query.execute(conn).await?.rows_affected() > 0)
    }
}

struct Cancel {
    tenant: TenantId,
    id: Uuid,
    now: Millis,
}

impl Write for Cancel {
    type Out = bool;
    fn frees(&self) -> bool {
        true
    }

    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "UPDATE queue SET status = 'cancelled', completed_at = ?3
             WHERE id = ?1 AND tenant = ?2 AND status = 'pending'",
        )
        .bind(self.id.to_string())
        .bind(self.tenant.as_str())
        .bind(self.now)
        .execute(conn)
        .await?;
        Ok(done.rows_affected() > 0)
    }
}

fn status_of(row: &SqliteRow) -> Result<QueueStatus, StoreError> {
    row.try_get::<&str, _>("status")?.parse().map_err(|why: String| unreadable("queue.status", why))
}

pub(super) fn item(row: &SqliteRow) -> Result<QueueItem, StoreError> {
    Ok(QueueItem {
        id: id_of(row, "id")?,
        tenant: tenant_of(row)?,
        agent_name: row.try_get("agent_name")?,
        prompt: row.try_get("prompt")?,
        priority: row.try_get("priority")?,
        status: status_of(row)?,
        retry_count: count_of(row, "retry_count")?,
        max_retries: count_of(row, "max_retries")?,
        wanted: id_or_none(row, "wanted")?,
        session: id_or_none(row, "session")?,
        turn: id_or_none(row, "turn_id")?,
        result: row.try_get("result")?,
        error: row.try_get("error")?,
        due_at: row.try_get("due_at")?,
        created_at: row.try_get("created_at")?,
        started_at: row.try_get("started_at")?,
        completed_at: row.try_get("completed_at")?,
    })
}

#[cfg(test)]
#[path = "tests_queue.rs"]
mod tests;
