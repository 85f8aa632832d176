//! One step of one session: its row, turn, messages, events and usage, in one transaction.
//!
//! The offset in the stdout file changes in the same transaction as the messages parsed up to it.
//! So after a crash the next ashd continues exactly where the database ends: no message is lost or
//! stored twice.

use sqlx::sqlite::Sqlite;
use sqlx::{QueryBuilder, Row, SqliteConnection};
use uuid::Uuid;

use super::columns::{count, limits_text};
use super::pages::LARGE;
use super::writer::{Counters, Write};
use super::{Commit, Committed, OnDisk, Store, StoreError, Text, Turn, Usage};
use ash_model::{Millis, SessionStatus, now_ms};

/// Rows per INSERT; eight values each stay far below SQLite's 32766 parameters.
const ROWS: usize = 256;

impl Store {
    /// Stores all changes of one step of a session in one transaction. The writer assigns sequence
    /// numbers: per session from 1, without gaps. Returns when it is on the disk.
    ///
    /// # Errors
    /// [`StoreError::NoSession`] when the tenant has no such session; nothing is stored then.
    pub async fn commit(&self, commit: Commit) -> Result<Committed, StoreError> {
        self.write(Step { commit, now: now_ms() }).await
    }

    /// As [`Store::commit`], but returns when the change survives the end of ashd. [`OnDisk`]
    /// reports when it survives a power failure. `at_once`: a caller will wait for that.
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
    /// A stop or an end without messages.
    fn frees(&self) -> bool {
        let ends = matches!(self.commit.status, Some((SessionStatus::Stopped | SessionStatus::Ended, _)));
        ends && self.commit.messages.is_empty()
    }

    async fn apply(&self, conn: &mut SqliteConnection, counters: &mut Counters) -> Result<Committed, StoreError> {
        let Self { commit, .. } = self;
        let before = match counters.get(commit.session, &commit.tenant) {
            Some(known) => known,
            None => newest(conn, commit).await?,
        };
        let mut script = Script::default();
        let newest = self.write(&mut script, before);
        let rest = std::mem::take(&mut script.rest);
        script.run(conn, commit.session).await?;
        for message in &rest {
            message.insert(conn, commit).await?;
        }
        counters.set(commit.session, &commit.tenant, newest.clone());
        Ok(newest)
    }
}

/// All statements of a step as one text: each call to SQLite's thread costs two context switches,
/// while a client waits.
struct Script {
    sql: QueryBuilder<Sqlite>,
    /// Rows that change when the session exists.
    rows: u64,
    /// Messages of which these statements insert only the first row.
    rest: Vec<Rest>,
}

/// The rest of a large message.
struct Rest {
    sequence: i64,
    text: Text,
    from: usize,
}

impl Rest {
    /// One row per piece, so that SQLite never holds more than one.
    async fn insert(&self, conn: &mut SqliteConnection, commit: &Commit) -> Result<(), StoreError> {
        let mut from = self.from;
        while from < self.text.len() {
            let piece = beginning(&self.text[from..]);
            sqlx::query("INSERT INTO message_rest (session, sequence, at, tenant, text) VALUES (?1, ?2, ?3, ?4, ?5)")
                .bind(commit.session.to_string())
                .bind(self.sequence)
                .bind(count(from as u64))
                .bind(commit.tenant.as_str())
                .bind(piece.as_bytes())
                .execute(&mut *conn)
                .await?;
            from += piece.len();
        }
        Ok(())
    }
}

/// The part of a text in the message's own row.
fn first_row(text: &Text) -> Text {
    match beginning(text) {
        whole if whole.len() == text.len() => Text::clone(text),
        first => first.into(),
    }
}

/// The beginning of a text: at most [`LARGE`] bytes, whole characters.
fn beginning(text: &str) -> &str {
    &text[..text.floor_char_boundary(LARGE)]
}

impl Default for Script {
    fn default() -> Self {
        Self { sql: QueryBuilder::new(""), rows: 0, rest: Vec::new() }
    }
}

impl Script {
    /// Maximum rows of a script whose prepared statement is cached. Larger ones rarely have the
    /// same shape again, and each cached one uses memory.
    const KEPT: u64 = 8;

    /// [`StoreError::NoSession`] when the session's row does not exist: no row refers to it then,
    /// and the statements change nothing.
    async fn run(mut self, conn: &mut SqliteConnection, session: Uuid) -> Result<(), StoreError> {
        if self.rows == 0 {
            return Ok(());
        }
        match self.sql.build().persistent(self.rows <= Self::KEPT).execute(conn).await {
            Ok(done) if done.rows_affected() == self.rows => Ok(()),
            Ok(_) => Err(StoreError::NoSession(session)),
            Err(sqlx::Error::Database(e)) if e.is_foreign_key_violation() => Err(StoreError::NoSession(session)),
            Err(e) => Err(e.into()),
        }
    }
}

impl Step {
    /// Returns the newest sequence numbers after it.
    fn write(&self, script: &mut Script, before: Committed) -> Committed {
        let commit = &self.commit;
        self.update_session(script);
        if let Some(turn) = &commit.turn {
            put_turn(script, turn, self.opens(turn).then_some(before.message_sequence + 1));
        }
        for (sequence, (_, content)) in (before.message_sequence + 1..).zip(&commit.messages) {
            let from = beginning(content).len();
            if from < content.len() {
                script.rest.push(Rest { sequence, text: Text::clone(content), from });
            }
        }
        let messages = commit.messages.iter().map(|(role, content)| (role.as_str(), first_row(content)));
        let message_sequence = self.append(
            script,
            "INSERT INTO messages (session, sequence, id, tenant, role, content, created_at, turn) ",
            before.message_sequence,
            messages,
        );
        let events = commit.events.iter().map(|(kind, data)| (*kind, Text::clone(data)));
        let event_sequence = self.append(
            script,
            "INSERT INTO events (session, sequence, id, tenant, type, data, created_at, turn) ",
            before.event_sequence,
            events,
        );
        if let Some(usage) = &commit.usage {
            add_usage(script, commit, usage, self.now);
        }
        Committed { message_sequence, event_sequence }
    }

    /// Whether this step begins the turn, with its message.
    fn opens(&self, turn: &Turn) -> bool {
        turn.end.is_none() && !turn.unasked && !turn.delivered && !self.commit.messages.is_empty()
    }

    fn update_session(&self, script: &mut Script) {
        let commit = &self.commit;
        let mut changes: Vec<(&str, Value)> = Vec::new();
        if let Some((status, error)) = &commit.status {
            changes.push(("status", Value::Text(Some(status.to_string()))));
            changes.push(("error", Value::Text(error.clone())));
        }
        if let Some(offset) = commit.stdout_offset {
            changes.push(("stdout_offset", Value::Number(count(offset))));
        }
        if let Some(model) = &commit.model {
            changes.push(("model", Value::Text(model.clone())));
        }
        if let Some(config) = &commit.config {
            changes.push(("config", Value::Text(config.as_ref().map(|config| config.get().to_owned()))));
        }
        if let Some(launch) = &commit.launch {
            changes.push(("launch", Value::Text(Some(launch.get().to_owned()))));
        }
        if let Some((conversation, turn)) = &commit.conversation {
            changes.push(("conversation", Value::Text(Some(conversation.to_string()))));
            changes.push(("conversation_turn", Value::Number(*turn)));
        }
        if let Some(limits) = &commit.limits {
            changes.push(("limits", Value::Text(Some(limits_text(limits)))));
        }
        if commit.touch {
            changes.push(("last_active_at", Value::Number(self.now)));
        }
        if changes.is_empty() {
            return;
        }
        let mut set = script.sql.push("UPDATE sessions SET ").separated(", ");
        for (name, value) in changes {
            set.push(name).push_unseparated(" = ");
            match value {
                Value::Text(text) => set.push_bind_unseparated(text),
                Value::Number(number) => set.push_bind_unseparated(number),
            };
        }
        script.sql.push(" WHERE id = ").push_bind(commit.session.to_string());
        script.sql.push(" AND tenant = ").push_bind(commit.tenant.to_string()).push("; ");
        script.rows += 1;
    }

    /// Adds rows after `last` and returns the number of the newest.
    fn append(
        &self,
        script: &mut Script,
        insert: &'static str,
        last: i64,
        rows: impl Iterator<Item = (&'static str, Text)>,
    ) -> i64 {
        let session: Text = self.commit.session.to_string().into();
        let tenant: Text = self.commit.tenant.as_str().into();
        let numbered: Vec<(i64, &'static str, Text)> =
            (last + 1..).zip(rows).map(|(number, (word, text))| (number, word, text)).collect();
        for chunk in numbered.chunks(ROWS) {
            script.sql.push(insert).push_values(chunk, |mut row, (number, word, text)| {
                row.push_bind(Text::clone(&session))
                    .push_bind(*number)
                    .push_bind(Uuid::now_v7().to_string())
                    .push_bind(Text::clone(&tenant))
                    .push_bind(*word)
                    .push_bind(Text::clone(text))
                    .push_bind(self.now)
                    .push_bind(self.commit.of_turn);
            });
            script.sql.push("; ");
            script.rows += chunk.len() as u64;
        }
        numbered.last().map_or(last, |(number, _, _)| *number)
    }
}

enum Value {
    Text(Option<String>),
    Number(i64),
}

/// The newest numbers in the tables; also proves that the tenant has the session.
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

fn put_turn(script: &mut Script, turn: &Turn, message: Option<i64>) {
    let mut values = script
        .sql
        .push(
            "INSERT INTO turns (session, number, from_offset, to_offset, error, delivered, unasked, started_at, ended_at, \
             message, id, partial) VALUES (",
        )
        .separated(", ");
    values
        .push_bind(turn.session.to_string())
        .push_bind(turn.number)
        .push_bind(count(turn.start))
        .push_bind(turn.end.map(count))
        .push_bind(turn.error.clone())
        .push_bind(turn.delivered)
        .push_bind(turn.unasked)
        .push_bind(turn.started_at)
        .push_bind(turn.ended_at)
        .push_bind(message)
        .push_bind(turn.id.to_string())
        .push_bind(turn.partial);
    script.sql.push(
        ") ON CONFLICT (session, number) DO UPDATE SET from_offset = excluded.from_offset, to_offset = excluded.to_offset, \
         error = excluded.error, delivered = excluded.delivered, unasked = excluded.unasked, \
         started_at = excluded.started_at, ended_at = excluded.ended_at; ",
    );
    script.rows += 1;
}

fn add_usage(script: &mut Script, commit: &Commit, usage: &Usage, now: Millis) {
    let mut values = script
        .sql
        .push(
            "INSERT INTO usage (input_tokens, output_tokens, cache_creation_tokens, cache_read_tokens, tool_calls, \
             compute_ms, messages, created_at, id, turn, session, tenant, agent_name) SELECT ",
        )
        .separated(", ");
    values
        .push_bind(count(usage.input_tokens))
        .push_bind(count(usage.output_tokens))
        .push_bind(count(usage.cache_creation_tokens))
        .push_bind(count(usage.cache_read_tokens))
        .push_bind(count(usage.tool_calls))
        .push_bind(count(usage.compute_ms))
        .push_bind(count(usage.messages))
        .push_bind(now)
        .push_bind(Uuid::now_v7().to_string())
        .push_bind(commit.of_turn)
        .push("id, tenant, agent_name FROM sessions WHERE id = ");
    script.sql.push_bind(commit.session.to_string());
    script.sql.push(" AND tenant = ").push_bind(commit.tenant.to_string()).push("; ");
    script.rows += 1;
}
