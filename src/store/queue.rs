//! Table `queue`: prompts that wait for a session of their agent.
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
use super::writer::{Counters, Write};
use super::{Store, StoreError};
use crate::model::{Millis, TenantId, now_ms};

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
            format!("\"{word}\" is not a status of the queue: {}", Self::ALL.map(Self::as_str).join(", "))
        })
    }
}

#[derive(Clone, Debug)]
pub struct QueueItem {
    pub id: Uuid,
    pub tenant: TenantId,
    pub agent_name: String,
    pub prompt: String,
    /// Higher goes first, within the tenant.
    pub priority: i64,
    pub status: QueueStatus,
    pub retry_count: u64,
    pub max_retries: u64,
    /// The client's own session, where it named one.
    pub wanted: Option<Uuid>,
    /// Where the prompt runs or ran, and as which turn.
    pub session: Option<Uuid>,
    pub turn: Option<i64>,
    pub result: Option<String>,
    pub error: Option<String>,
    pub due_at: Millis,
    pub created_at: Millis,
    pub started_at: Option<Millis>,
    pub completed_at: Option<Millis>,
}

/// Milliseconds that an item is put back for at most. One that is due later than that was put back by a clock that was
/// ahead of its time, and is due now.
pub const LATEST_MS: i64 = 60_000;

/// A change of one item that is being processed.
#[derive(Clone, Debug)]
pub enum QueueChange {
    /// The prompt is about to be sent to this session, as this turn.
    Bound {
        session: Uuid,
        turn: i64,
    },
    /// It is tried again at `due_at`; `counted` when the try was one of its retries.
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

    /// How many items of the tenant there are of each status that occurs.
    pub async fn queue_counts(&self, tenant: &TenantId) -> Result<Vec<(QueueStatus, u64)>, StoreError> {
        let rows = sqlx::query("SELECT status, COUNT(*) AS n FROM queue WHERE tenant = ?1 GROUP BY status")
            .bind(tenant.as_str())
            .fetch_all(self.reader())
            .await?;
        rows.iter().map(|row| Ok((status_of(row)?, count_of(row, "n")?))).collect()
    }

    /// Those of all tenants that a daemon before this one had begun.
    pub async fn queue_processing(&self) -> Result<Vec<QueueItem>, StoreError> {
        let rows = sqlx::query("SELECT * FROM queue WHERE status = 'processing'").fetch_all(self.reader()).await?;
        rows.iter().map(item).collect()
    }

    /// When the next pending item is due, of all tenants.
    pub async fn queue_next_due(&self) -> Result<Option<Millis>, StoreError> {
        let row = sqlx::query("SELECT MIN(due_at) AS due FROM queue WHERE status = 'pending'");
        Ok(row.fetch_one(self.reader()).await?.try_get("due")?)
    }

    /// Takes the item that is next, if one is due: of the tenant for which least runs, its highest priority, its oldest.
    pub async fn queue_claim(&self) -> Result<Option<QueueItem>, StoreError> {
        self.write(Claim { now: now_ms() }).await
    }

    /// `false` when the item is not being processed any more.
    pub async fn queue_change(&self, id: Uuid, change: QueueChange) -> Result<bool, StoreError> {
        self.write(Change { id, change, now: now_ms() }).await
    }

    /// `true` when it was pending, and is cancelled now.
    pub async fn queue_cancel(&self, tenant: &TenantId, id: Uuid) -> Result<bool, StoreError> {
        self.write(Cancel { tenant: tenant.clone(), id, now: now_ms() }).await
    }
}

struct Insert(QueueItem);

impl Write for Insert {
    type Out = ();
    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<(), StoreError> {
        let new = &self.0;
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

struct Claim {
    now: Millis,
}

impl Write for Claim {
    type Out = Option<QueueItem>;
    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<Self::Out, StoreError> {
        let row = sqlx::query(
            "UPDATE queue SET status = 'processing', started_at = ?1 WHERE id = (
                 SELECT id FROM queue AS q WHERE status = 'pending' AND (due_at <= ?1 OR due_at > ?1 + ?2)
                 ORDER BY (SELECT COUNT(*) FROM queue AS other WHERE other.tenant = q.tenant AND other.status = 'processing'),
                     priority DESC, created_at, rowid LIMIT 1)
             RETURNING *",
        )
        .bind(self.now)
        .bind(LATEST_MS)
        .fetch_optional(conn)
        .await?;
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
                sqlx::query("UPDATE queue SET session = ?2, turn = ?3 WHERE id = ?1 AND status = 'processing'")
                    .bind(id)
                    .bind(session.to_string())
                    .bind(turn)
            }
            QueueChange::PutBack { due_at, error, counted } => sqlx::query(
                "UPDATE queue SET status = 'pending', session = NULL, turn = NULL, due_at = ?2, error = ?3,
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

fn item(row: &SqliteRow) -> Result<QueueItem, StoreError> {
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
        turn: row.try_get("turn")?,
        result: row.try_get("result")?,
        error: row.try_get("error")?,
        due_at: row.try_get("due_at")?,
        created_at: row.try_get("created_at")?,
        started_at: row.try_get("started_at")?,
        completed_at: row.try_get("completed_at")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(tenant: &str, prompt: &str, priority: i64) -> QueueItem {
        QueueItem {
            id: Uuid::new_v4(),
            tenant: tenant.parse().unwrap(),
            agent_name: "a".into(),
            prompt: prompt.into(),
            priority,
            status: QueueStatus::Pending,
            retry_count: 0,
            max_retries: 3,
            wanted: None,
            session: None,
            turn: None,
            result: None,
            error: None,
            due_at: 0,
            created_at: now_ms(),
            started_at: None,
            completed_at: None,
        }
    }

    #[tokio::test]
    async fn items_are_claimed_once_and_in_order_and_fairly() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        for (tenant, prompt, priority) in
            [("a", "1", 0), ("a", "2", 0), ("a", "urgent", 5), ("a", "3", 0), ("b", "other", -1)]
        {
            store.queue_insert(new(tenant, prompt, priority)).await.unwrap();
        }
        let mut order = Vec::new();
        while let Some(item) = store.queue_claim().await.unwrap() {
            assert_eq!(item.status, QueueStatus::Processing);
            order.push(item.prompt);
        }
        // The other tenant's turn comes when the first has something that runs, whatever the priorities.
        assert_eq!(order, ["urgent", "other", "1", "2", "3"]);
        assert_eq!(store.queue_processing().await.unwrap().len(), 5);
        assert_eq!(store.queue_counts(&"a".parse().unwrap()).await.unwrap(), [(QueueStatus::Processing, 4)]);
    }

    #[tokio::test]
    async fn an_item_changes_only_while_it_is_processed_and_is_cancelled_only_before() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        let item = new("a", "x", 0);
        let (tenant, id, session) = (item.tenant.clone(), item.id, Uuid::new_v4());
        store.queue_insert(item).await.unwrap();
        assert!(!store.queue_change(id, QueueChange::Completed { result: "r".into() }).await.unwrap());
        store.queue_claim().await.unwrap().unwrap();
        assert!(!store.queue_cancel(&tenant, id).await.unwrap());
        assert!(store.queue_change(id, QueueChange::Bound { session, turn: 7 }).await.unwrap());
        let bound = store.queue_item(&tenant, id).await.unwrap().unwrap();
        assert_eq!((bound.session, bound.turn), (Some(session), Some(7)));
        let later = now_ms() + 60_000;
        let back = QueueChange::PutBack { due_at: later, error: Some("why".into()), counted: true };
        assert!(store.queue_change(id, back).await.unwrap());
        let back = store.queue_item(&tenant, id).await.unwrap().unwrap();
        assert_eq!((back.status, back.retry_count, back.session), (QueueStatus::Pending, 1, None));
        assert!(store.queue_claim().await.unwrap().is_none(), "not due yet");
        assert_eq!(store.queue_next_due().await.unwrap(), Some(later));
        // The clock was set back by an hour meanwhile.
        let mut ahead = new("a", "ahead", 0);
        ahead.created_at = now_ms() + 3_600_000;
        store.queue_insert(ahead).await.unwrap();
        assert_eq!(store.queue_claim().await.unwrap().unwrap().prompt, "ahead");
        assert!(!store.queue_cancel(&"b".parse().unwrap(), id).await.unwrap());
        assert!(store.queue_cancel(&tenant, id).await.unwrap());
        assert!(!store.queue_cancel(&tenant, id).await.unwrap());
        assert_eq!(store.queue_next_due().await.unwrap(), None);
        assert!(store.queue_items(&tenant, Some(QueueStatus::Pending), 10).await.unwrap().is_empty());
        assert_eq!(store.queue_items(&tenant, None, 10).await.unwrap().len(), 2);
        assert!("done".parse::<QueueStatus>().unwrap_err().contains("pending, processing"));
    }
}
