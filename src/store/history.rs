//! Reads turns, messages and events.

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use uuid::Uuid;

use super::columns::{count_of, id_of, tenant_of};
use super::writer::{Counters, Write};
use super::{Event, Message, Store, StoreError, Turn};
use ash_model::{TenantId, now_ms};

impl Store {
    /// The running or last turn.
    pub async fn last_turn(&self, session: Uuid) -> Result<Option<Turn>, StoreError> {
        let row = sqlx::query("SELECT * FROM turns WHERE session = ?1 ORDER BY number DESC LIMIT 1")
            .bind(session.to_string())
            .fetch_optional(self.reader())
            .await?;
        row.as_ref().map(turn).transpose()
    }

    /// The turn with this number.
    pub async fn turn(&self, session: Uuid, number: i64) -> Result<Option<Turn>, StoreError> {
        let row = sqlx::query("SELECT * FROM turns WHERE session = ?1 AND number = ?2")
            .bind(session.to_string())
            .bind(number)
            .fetch_optional(self.reader())
            .await?;
        row.as_ref().map(turn).transpose()
    }

    pub async fn turn_of_id(&self, session: Uuid, id: Uuid) -> Result<Option<Turn>, StoreError> {
        let row = sqlx::query("SELECT * FROM turns WHERE id = ?2 AND session = ?1")
            .bind(session.to_string())
            .bind(id.to_string())
            .fetch_optional(self.reader())
            .await?;
        row.as_ref().map(turn).transpose()
    }

    /// Turns without an end: the running one, and turns that claude began before it. A turn begins
    /// after those, even if a killed ashd could not store that.
    pub async fn open_turns(&self, session: Uuid) -> Result<Vec<Turn>, StoreError> {
        let rows = sqlx::query(
            "SELECT *, COALESCE((SELECT MAX(to_offset) FROM turns AS later
                 WHERE later.session = turns.session AND later.number > turns.number), 0) AS free_from
             FROM turns WHERE session = ?1 AND to_offset IS NULL ORDER BY number",
        )
        .bind(session.to_string())
        .fetch_all(self.reader())
        .await?;
        let begins = |row| Ok(turn(row)?.beginning_at(count_of(row, "free_from")?));
        rows.iter().map(begins).collect()
    }

    /// The message that began this turn, as in the history; `None` when claude began it.
    pub async fn message_of(&self, turn: &Turn) -> Result<Option<String>, StoreError> {
        let rows = sqlx::query(
            "SELECT 0 AS at, CAST(content AS BLOB) AS text
             FROM turns JOIN messages ON messages.session = turns.session AND messages.sequence = turns.message
             WHERE turns.session = ?1 AND turns.number = ?2
             UNION ALL SELECT at, text
             FROM turns JOIN message_rest AS rest ON rest.session = turns.session AND rest.sequence = turns.message
             WHERE turns.session = ?1 AND turns.number = ?2
             ORDER BY at",
        )
        .bind(turn.session.to_string())
        .bind(turn.number)
        .fetch_all(self.reader())
        .await?;
        let mut text: Option<Vec<u8>> = None;
        for row in rows {
            text.get_or_insert_default().extend_from_slice(row.try_get("text")?);
        }
        let text = text.map(String::from_utf8).transpose();
        text.map_err(|e| StoreError::Unreadable { what: "message", why: e.to_string() })
    }

    /// Copies the messages of one session to another session of the tenant that has none. They stay
    /// within SQLite, one at a time, with a bounded number per transaction.
    pub async fn messages_copy(&self, tenant: &TenantId, from: Uuid, to: Uuid) -> Result<(), StoreError> {
        let mut after = 0;
        while let Some(last) = self.write(Copy { tenant: tenant.clone(), from, to, after }).await? {
            after = last;
        }
        Ok(())
    }

    /// Ascending, `sequence > after`; of a large message only its first row.
    #[cfg(test)]
    pub(crate) async fn messages(
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

    /// Ascending, `sequence > after`; with `kind` only that type.
    #[cfg(test)]
    pub(crate) async fn events(
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

    /// Data of this turn's `turn_complete` event.
    pub async fn result_of(&self, tenant: &TenantId, session: Uuid, turn: &Turn) -> Result<Option<String>, StoreError> {
        let row = sqlx::query(
            "SELECT data FROM events WHERE session = ?1 AND tenant = ?2 AND type = 'turn_complete' AND turn = ?3
             ORDER BY sequence DESC LIMIT 1",
        )
        .bind(session.to_string())
        .bind(tenant.as_str())
        .bind(turn.number)
        .fetch_optional(self.reader())
        .await?;
        Ok(row.map(|row| row.try_get("data")).transpose()?)
    }
}

/// Copies messages up to a number of bytes.
struct Copy {
    tenant: TenantId,
    from: Uuid,
    to: Uuid,
    after: i64,
}

impl Write for Copy {
    /// The sequence of the last one; `None` when there was none.
    type Out = Option<i64>;
    async fn apply(&self, conn: &mut SqliteConnection, counters: &mut Counters) -> Result<Option<i64>, StoreError> {
        const ROWS: i64 = 500;
        const BYTES: i64 = 8 << 20;
        // SQLite knows the length of a text without reading it.
        let rows = sqlx::query(
            "SELECT sequence, octet_length(content) AS bytes FROM messages
             WHERE session = ?1 AND tenant = ?2 AND sequence > ?3 ORDER BY sequence LIMIT ?4",
        )
        .bind(self.from.to_string())
        .bind(self.tenant.as_str())
        .bind(self.after)
        .bind(ROWS)
        .fetch_all(&mut *conn)
        .await?;
        let (mut bytes, mut last) = (0, None);
        for row in rows {
            let sequence: i64 = row.try_get("sequence")?;
            // SQLite holds a copied row several times in memory; `message_rest` keeps rows small.
            sqlx::query(
                "INSERT INTO messages (session, sequence, id, tenant, role, content, created_at)
                 SELECT ?1, sequence, ?2, tenant, role, content, ?3 FROM messages
                 WHERE session = ?4 AND tenant = ?5 AND sequence = ?6",
            )
            .bind(self.to.to_string())
            .bind(Uuid::now_v7().to_string())
            .bind(now_ms())
            .bind(self.from.to_string())
            .bind(self.tenant.as_str())
            .bind(sequence)
            .execute(&mut *conn)
            .await?;
            bytes += self.rest(conn, sequence).await?;
            last = Some(sequence);
            bytes += row.try_get::<i64, _>("bytes")?;
            if bytes > BYTES {
                break;
            }
        }
        counters.forget(self.to, &self.tenant);
        Ok(last)
    }
}

impl Copy {
    /// Copies the rest of a large message, piece by piece; returns its bytes.
    async fn rest(&self, conn: &mut SqliteConnection, sequence: i64) -> Result<i64, StoreError> {
        let pieces = sqlx::query(
            "SELECT at, octet_length(text) AS bytes FROM message_rest WHERE session = ?1 AND tenant = ?2 AND sequence = ?3
             ORDER BY at",
        )
        .bind(self.from.to_string())
        .bind(self.tenant.as_str())
        .bind(sequence)
        .fetch_all(&mut *conn)
        .await?;
        let mut bytes = 0;
        for piece in pieces {
            sqlx::query(
                "INSERT INTO message_rest (session, sequence, at, tenant, text)
                 SELECT ?1, sequence, at, tenant, text FROM message_rest
                 WHERE session = ?2 AND tenant = ?3 AND sequence = ?4 AND at = ?5",
            )
            .bind(self.to.to_string())
            .bind(self.from.to_string())
            .bind(self.tenant.as_str())
            .bind(sequence)
            .bind(piece.try_get::<i64, _>("at")?)
            .execute(&mut *conn)
            .await?;
            bytes += piece.try_get::<i64, _>("bytes")?;
        }
        Ok(bytes)
    }
}

fn turn(row: &SqliteRow) -> Result<Turn, StoreError> {
    let to_offset: Option<i64> = row.try_get("to_offset")?;
    Ok(Turn {
        session: id_of(row, "session")?,
        id: id_of(row, "id")?,
        number: row.try_get("number")?,
        start: count_of(row, "from_offset")?,
        end: to_offset.map(|_| count_of(row, "to_offset")).transpose()?,
        error: row.try_get("error")?,
        delivered: row.try_get("delivered")?,
        unasked: row.try_get("unasked")?,
        partial: row.try_get("partial")?,
        started_at: row.try_get("started_at")?,
        ended_at: row.try_get("ended_at")?,
    })
}

pub(super) fn message(row: &SqliteRow) -> Result<Message, StoreError> {
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

pub(super) fn event(row: &SqliteRow) -> Result<Event, StoreError> {
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

#[cfg(test)]
#[path = "tests_turns.rs"]
mod tests;
