//! One step of one session: its row, turn, messages, events and usage, in one transaction.
//!
//! The offset in the stdout file moves in the same transaction as the messages parsed up to it. So after any crash the
//! next ashd reads on exactly where the database stops: no message is lost, none is stored twice.

use sqlx::sqlite::Sqlite;
use sqlx::{QueryBuilder, Row, SqliteConnection};
use uuid::Uuid;

use super::columns::{count, limits_text};
use super::writer::{Counters, Write};
use super::{Commit, Committed, OnDisk, Store, StoreError, Turn, Usage};
use crate::model::{Millis, now_ms};

/// Rows of one INSERT; seven values each stay far below SQLite's 32766 parameters.
const ROWS: usize = 256;

impl Store {
    /// Everything one step of a session changes, in one transaction. Sequence numbers are given by the writer: per
    /// session from 1, without gaps. Returns when it is on the disk.
    ///
    /// # Errors
    /// [`StoreError::NoSession`] when the tenant has no such session; nothing is stored then.
    pub async fn commit(&self, commit: Commit) -> Result<Committed, StoreError> {
        self.write(Step { commit, now: now_ms() }).await
    }

    /// The same, returned when it survives the end of ashd; [`OnDisk`] tells when it survives a power cut as well.
    /// `at_once`: somebody is going to wait for that.
    ///
    /// # Errors
    /// As for [`Store::commit`].
    pub async fn commit_early(&self, commit: Commit, at_once: bool) -> Result<(Committed, OnDisk), StoreError> {
        self.inner.writer.commit(Step { commit, now: now_ms() }, at_once).await
    }
}

struct Step {
    commit: Commit,
    now: Millis,
}

impl Write for Step {
    type Out = Committed;
    async fn apply(&self, conn: &mut SqliteConnection, counters: &mut Counters) -> Result<Committed, StoreError> {
        let Self { commit, now } = self;
        let mut newest = match counters.get(commit.session, &commit.tenant) {
            Some(known) => known,
            None => newest(conn, commit).await?,
        };
        self.update_session(conn).await?;
        if let Some(turn) = &commit.turn {
            put_turn(conn, commit.session, turn).await?;
        }
        let messages = commit.messages.iter().map(|(role, content)| (role.as_str(), content.as_str()));
        newest.message_sequence = self
            .append(
                conn,
                "INSERT INTO messages (session, sequence, id, tenant, role, content, created_at) ",
                newest.message_sequence,
                messages,
            )
            .await?;
        let events = commit.events.iter().map(|(kind, data)| (*kind, data.as_str()));
        newest.event_sequence = self
            .append(
                conn,
                "INSERT INTO events (session, sequence, id, tenant, type, data, created_at) ",
                newest.event_sequence,
                events,
            )
            .await?;
        if let Some(usage) = &commit.usage {
            add_usage(conn, commit, usage, *now).await?;
        }
        counters.set(commit.session, &commit.tenant, newest.clone());
        Ok(newest)
    }
}

impl Step {
    async fn update_session(&self, conn: &mut SqliteConnection) -> Result<(), StoreError> {
        let commit = &self.commit;
        let mut query = QueryBuilder::<Sqlite>::new("UPDATE sessions SET ");
        let mut set = query.separated(", ");
        let mut changes = 0;
        let mut column = |name: &str, value: Value| {
            set.push(name).push_unseparated(" = ");
            match value {
                Value::Text(text) => set.push_bind_unseparated(text),
                Value::Number(number) => set.push_bind_unseparated(number),
            };
            changes += 1;
        };
        if let Some((status, error)) = &commit.status {
            column("status", Value::Text(Some(status.to_string())));
            column("error", Value::Text(error.clone()));
        }
        if let Some(offset) = commit.stdout_offset {
            column("stdout_offset", Value::Number(count(offset)));
        }
        if let Some(model) = &commit.model {
            column("model", Value::Text(model.clone()));
        }
        if let Some(config) = &commit.config {
            column("config", Value::Text(config.as_ref().map(ToString::to_string)));
        }
        if let Some(launch) = &commit.launch {
            column("launch", Value::Text(Some(launch.to_string())));
        }
        if let Some(limits) = &commit.limits {
            column("limits", Value::Text(Some(limits_text(limits))));
        }
        if commit.touch {
            column("last_active_at", Value::Number(self.now));
        }
        if changes == 0 {
            return Ok(());
        }
        query.push(" WHERE id = ").push_bind(commit.session.to_string());
        query.push(" AND tenant = ").push_bind(commit.tenant.to_string());
        let done = query.build().execute(conn).await?;
        if done.rows_affected() == 1 { Ok(()) } else { Err(StoreError::NoSession(commit.session)) }
    }

    /// Adds rows behind `last` and returns the number of the newest.
    async fn append<'a>(
        &self,
        conn: &mut SqliteConnection,
        insert: &'static str,
        last: i64,
        rows: impl Iterator<Item = (&'a str, &'a str)> + Send,
    ) -> Result<i64, StoreError> {
        let session = self.commit.session.to_string();
        let numbered: Vec<(i64, &str, &str)> =
            (last + 1..).zip(rows).map(|(number, (word, text))| (number, word, text)).collect();
        for chunk in numbered.chunks(ROWS) {
            let mut query = QueryBuilder::<Sqlite>::new(insert);
            query.push_values(chunk, |mut row, (number, word, text)| {
                row.push_bind(session.clone())
                    .push_bind(*number)
                    .push_bind(Uuid::now_v7().to_string())
                    .push_bind(self.commit.tenant.to_string())
                    .push_bind((*word).to_owned())
                    .push_bind((*text).to_owned())
                    .push_bind(self.now);
            });
            query.build().execute(&mut *conn).await?;
        }
        Ok(numbered.last().map_or(last, |(number, _, _)| *number))
    }
}

enum Value {
    Text(Option<String>),
    Number(i64),
}

/// The newest numbers as the tables have them, and the proof that the tenant has that session.
async fn newest(conn: &mut SqliteConnection, commit: &Commit) -> Result<Committed, StoreError> {
    let row = sqlx::query(
        "SELECT COALESCE((SELECT MAX(sequence) FROM messages WHERE session = ?1), 0) AS message,
                COALESCE((SELECT MAX(sequence) FROM events WHERE session = ?1), 0) AS event
         FROM sessions WHERE id = ?1 AND tenant = ?2",
    )
    .bind(commit.session.to_string())
    .bind(commit.tenant.as_str())
    .fetch_optional(conn)
    .await?
    .ok_or(StoreError::NoSession(commit.session))?;
    Ok(Committed { message_sequence: row.try_get("message")?, event_sequence: row.try_get("event")? })
}

async fn put_turn(conn: &mut SqliteConnection, session: Uuid, turn: &Turn) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT OR REPLACE INTO turns (session, number, from_offset, to_offset, error, delivered, unasked, started_at, ended_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )
    .bind(session.to_string())
    .bind(turn.number)
    .bind(count(turn.start))
    .bind(turn.end.map(count))
    .bind(&turn.error)
    .bind(turn.delivered)
    .bind(turn.unasked)
    .bind(turn.started_at)
    .bind(turn.ended_at)
    .execute(conn)
    .await?;
    Ok(())
}

async fn add_usage(conn: &mut SqliteConnection, commit: &Commit, usage: &Usage, now: Millis) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO usage (id, session, tenant, agent_name, input_tokens, output_tokens, cache_creation_tokens,
                            cache_read_tokens, tool_calls, compute_ms, created_at)
         SELECT ?1, id, tenant, agent_name, ?4, ?5, ?6, ?7, ?8, ?9, ?10 FROM sessions WHERE id = ?2 AND tenant = ?3",
    )
    .bind(Uuid::now_v7().to_string())
    .bind(commit.session.to_string())
    .bind(commit.tenant.as_str())
    .bind(count(usage.input_tokens))
    .bind(count(usage.output_tokens))
    .bind(count(usage.cache_creation_tokens))
    .bind(count(usage.cache_read_tokens))
    .bind(count(usage.tool_calls))
    .bind(count(usage.compute_ms))
    .bind(now)
    .execute(conn)
    .await?;
    Ok(())
}
