//! Reading what commits wrote: turns, messages, events.

use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use super::columns::{count_of, id_of, tenant_of};
use super::{Event, Message, Store, StoreError, Turn};
use crate::model::TenantId;

impl Store {
    /// The turn that runs or ran last.
    pub async fn last_turn(&self, session: Uuid) -> Result<Option<Turn>, StoreError> {
        let row = sqlx::query("SELECT * FROM turns WHERE session = ?1 ORDER BY number DESC LIMIT 1")
            .bind(session.to_string())
            .fetch_optional(self.reader())
            .await?;
        row.as_ref().map(turn).transpose()
    }

    /// The turn with this number; the reader of a stream walks turns with it.
    pub async fn turn(&self, session: Uuid, number: i64) -> Result<Option<Turn>, StoreError> {
        let row = sqlx::query("SELECT * FROM turns WHERE session = ?1 AND number = ?2")
            .bind(session.to_string())
            .bind(number)
            .fetch_optional(self.reader())
            .await?;
        row.as_ref().map(turn).transpose()
    }

    /// The message that began this turn, as it is in the history; `None` when claude began it by itself.
    pub async fn message_of(&self, turn: &Turn) -> Result<Option<String>, StoreError> {
        let row = sqlx::query(
            "SELECT content FROM turns JOIN messages ON messages.session = turns.session AND messages.sequence = turns.message
             WHERE turns.session = ?1 AND turns.number = ?2",
        )
        .bind(turn.session.to_string())
        .bind(turn.number)
        .fetch_optional(self.reader())
        .await?;
        Ok(row.map(|row| row.try_get("content")).transpose()?)
    }

    /// Ascending, `sequence > after`.
    pub async fn messages(
        &self,
        tenant: &TenantId,
        session: Uuid,
        limit: u32,
        after: i64,
    ) -> Result<Vec<Message>, StoreError> {
        let rows = sqlx::query(
            "SELECT * FROM messages WHERE session = ?1 AND tenant = ?2 AND sequence > ?3 ORDER BY sequence LIMIT ?4",
        )
        .bind(session.to_string())
        .bind(tenant.as_str())
        .bind(after)
        .bind(limit)
        .fetch_all(self.reader())
        .await?;
        rows.iter().map(message).collect()
    }

    /// Ascending, `sequence > after`, and with `kind` only those of that type.
    pub async fn events(
        &self,
        tenant: &TenantId,
        session: Uuid,
        limit: u32,
        after: i64,
        kind: Option<&str>,
    ) -> Result<Vec<Event>, StoreError> {
        let rows = sqlx::query(
            "SELECT * FROM events WHERE session = ?1 AND tenant = ?2 AND sequence > ?3 AND (?4 IS NULL OR type = ?4)
             ORDER BY sequence LIMIT ?5",
        )
        .bind(session.to_string())
        .bind(tenant.as_str())
        .bind(after)
        .bind(kind)
        .bind(limit)
        .fetch_all(self.reader())
        .await?;
        rows.iter().map(event).collect()
    }

    /// Data of the `turn_complete` event of a turn that has ended. Turns do not overlap, so it is the first one after the
    /// turn's start.
    pub async fn result_of(&self, tenant: &TenantId, session: Uuid, turn: &Turn) -> Result<Option<String>, StoreError> {
        let row = sqlx::query(
            "SELECT data FROM events WHERE session = ?1 AND tenant = ?2 AND type = 'turn_complete' AND created_at > ?3
             ORDER BY sequence LIMIT 1",
        )
        .bind(session.to_string())
        .bind(tenant.as_str())
        .bind(turn.started_at)
        .fetch_optional(self.reader())
        .await?;
        Ok(row.map(|row| row.try_get("data")).transpose()?)
    }
}

fn turn(row: &SqliteRow) -> Result<Turn, StoreError> {
    let to_offset: Option<i64> = row.try_get("to_offset")?;
    Ok(Turn {
        session: id_of(row, "session")?,
        number: row.try_get("number")?,
        start: count_of(row, "from_offset")?,
        end: to_offset.map(|_| count_of(row, "to_offset")).transpose()?,
        error: row.try_get("error")?,
        delivered: row.try_get("delivered")?,
        unasked: row.try_get("unasked")?,
        started_at: row.try_get("started_at")?,
        ended_at: row.try_get("ended_at")?,
    })
}

fn message(row: &SqliteRow) -> Result<Message, StoreError> {
    Ok(Message {
        id: id_of(row, "id")?,
        session: id_of(row, "session")?,
        tenant: tenant_of(row)?,
        role: row.try_get("role")?,
        content: row.try_get("content")?,
        sequence: row.try_get("sequence")?,
        created_at: row.try_get("created_at")?,
    })
}

fn event(row: &SqliteRow) -> Result<Event, StoreError> {
    Ok(Event {
        id: id_of(row, "id")?,
        session: id_of(row, "session")?,
        tenant: tenant_of(row)?,
        kind: row.try_get("type")?,
        data: row.try_get("data")?,
        sequence: row.try_get("sequence")?,
        created_at: row.try_get("created_at")?,
    })
}
