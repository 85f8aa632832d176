//! Reads lists without having all rows in memory: first the positions and sizes of the rows, then a
//! few rows at a time.
//!
//! A row may have up to 50 MiB, and a list any number of rows. SQLite knows the length of a column
//! without reading it.

use std::collections::HashMap;

use sqlx::sqlite::{Sqlite, SqliteRow};
use sqlx::{QueryBuilder, Row};
use uuid::Uuid;

use super::{
    Agent, ApiKey, Attachment, Credential, EvalCase, EvalResult, EvalRun, Event, Message, QueueItem, QueueStatus,
    Session, SessionFilter, Store, StoreError, agents, api_keys, attachments, columns, credentials, evals, history,
    queue, sessions, versions,
};
use crate::store::AgentVersion;
use ash_model::TenantId;

/// Maximum bytes of a text in one row of a history, and of one piece of a larger text. SQLite holds
/// whole rows in memory.
pub const LARGE: usize = 1 << 20;

/// The position of a row of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    rowid: i64,
    /// Size of the columns that can be large.
    pub bytes: u64,
}

/// Selects a part of a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub limit: u32,
    /// Only greater sequence numbers.
    pub after: i64,
    /// Only smaller sequence numbers.
    pub before: Option<i64>,
    pub newest_first: bool,
}

impl Window {
    /// The oldest `limit` rows.
    pub fn first(limit: u32) -> Self {
        Self { limit, after: 0, before: None, newest_first: false }
    }

    fn push(self, query: &mut QueryBuilder<Sqlite>) {
        query.push(" AND sequence > ").push_bind(self.after);
        if let Some(before) = self.before {
            query.push(" AND sequence < ").push_bind(before);
        }
        query.push(if self.newest_first { " ORDER BY sequence DESC LIMIT " } else { " ORDER BY sequence LIMIT " });
        query.push_bind(self.limit);
    }
}

/// A kind of row in lists.
pub trait Listed: Sized + Send + 'static {
    const TABLE: &'static str;
    /// The columns to read.
    const COLUMNS: &'static str = "*";
    /// SQL for the size of a row.
    const BYTES: &'static str;
    /// The column that can be larger than memory allows; it is then read in pieces.
    const TEXT: Option<&'static str> = None;
    /// The table with the rest of that column, by `session`, `sequence` and the offset `at`.
    const REST: Option<&'static str> = None;
    /// SQL for a row as the clients' JSON, written by SQLite: ten times faster than reading its
    /// columns.
    const LINE: Option<&'static str> = None;
    fn read(row: &SqliteRow) -> Result<Self, StoreError>;
}

/// A session as JSON. It must be equal to the type in `http::sessions`, which a test checks.
const SESSION: &str = r#"'{"id":"' || id || '","tenantId":' || json_quote(tenant) || ',"agentName":' || json_quote(agent_name)
    || ',"sandboxId":"' || id || '","status":"' || status || '","model":' || json_quote(model) || ',"config":' || COALESCE(config, 'null')
    || ',"runnerId":null,"parentSessionId":' || json_quote(parent)
    || ',"createdAt":"' || strftime('%Y-%m-%dT%H:%M:%fZ', created_at / 1000.0, 'unixepoch')
    || '","lastActiveAt":"' || strftime('%Y-%m-%dT%H:%M:%fZ', last_active_at / 1000.0, 'unixepoch') || '"'
    || CASE WHEN error IS NULL THEN '' ELSE ',"error":' || json_quote(error) END || '}'"#;

impl Store {
    /// The tenant's rows at these places, in their order. Skips rows deleted meanwhile.
    pub async fn rows_at<T: Listed>(&self, tenant: &TenantId, places: &[Place]) -> Result<Vec<T>, StoreError> {
        self.rows_with(tenant, places, T::COLUMNS).await
    }

    /// The same as JSON, separated by commas, for a kind with a [`Listed::LINE`].
    pub async fn lines_at<T: Listed>(&self, tenant: &TenantId, places: &[Place]) -> Result<String, StoreError> {
        let line = T::LINE.unwrap_or("''");
        let sql = format!(
            "SELECT group_concat({line}, ',' ORDER BY place.nth)
             FROM (SELECT key AS nth, value AS wanted FROM json_each(?1)) AS place
             CROSS JOIN {} AS row ON row.rowid = place.wanted AND row.tenant = ?2",
            T::TABLE
        );
        let rowids: Vec<String> = places.iter().map(|place| place.rowid.to_string()).collect();
        let lines = sqlx::query_scalar::<_, Option<String>>(sqlx::AssertSqlSafe(sql))
            .bind(format!("[{}]", rowids.join(",")))
            .bind(tenant.as_str())
            .fetch_one(self.reader())
            .await?;
        Ok(lines.unwrap_or_default())
    }

    /// One row, with another text in place of its large one. `text` must need no quoting.
    pub async fn row_with_text<T: Listed>(
        &self,
        tenant: &TenantId,
        place: Place,
        text: &str,
    ) -> Result<Option<T>, StoreError> {
        debug_assert!(text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-'), "{text}");
        let columns = match T::TEXT {
            Some(column) => T::COLUMNS.replace(column, &format!("'{text}' AS {column}")),
            None => T::COLUMNS.to_owned(),
        };
        Ok(self.rows_with(tenant, &[place], &columns).await?.pop())
    }

    async fn rows_with<T: Listed>(
        &self,
        tenant: &TenantId,
        places: &[Place],
        columns: &str,
    ) -> Result<Vec<T>, StoreError> {
        let mut query = QueryBuilder::<Sqlite>::new("SELECT rowid AS place, ");
        query.push(columns).push(" FROM ").push(T::TABLE).push(" WHERE tenant = ").push_bind(tenant.to_string());
        query.push(" AND rowid IN (");
        let mut list = query.separated(", ");
        for place in places {
            list.push_bind(place.rowid);
        }
        query.push(")");
        let rows = query.build().persistent(false).fetch_all(self.reader()).await?;
        let at: HashMap<i64, usize> = places.iter().enumerate().map(|(n, place)| (place.rowid, n)).collect();
        let mut found = Vec::with_capacity(rows.len());
        for row in rows {
            let n = at.get(&row.try_get::<i64, _>("place")?).copied().unwrap_or(usize::MAX);
            found.push((n, T::read(&row)?));
        }
        found.sort_by_key(|(n, _)| *n);
        Ok(found.into_iter().map(|(_, row)| row).collect())
    }

    /// Bytes of the large text of a row from `from`, at most [`LARGE`]; empty at its end. `None`:
    /// the row was deleted.
    pub async fn text_piece<T: Listed>(
        &self,
        tenant: &TenantId,
        place: Place,
        from: u64,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let text = T::TEXT.unwrap_or("''");
        let mut sql = format!("SELECT substr(CAST({text} AS BLOB), ?1 + 1, ?2) AS piece FROM {} AS row", T::TABLE);
        if let Some(rest) = T::REST {
            sql = format!(
                "SELECT CASE WHEN ?1 < octet_length({text}) THEN substr(CAST({text} AS BLOB), ?1 + 1, ?2) ELSE COALESCE((
                     SELECT substr(text, ?1 - at + 1, ?2) FROM {rest} AS rest
                     WHERE rest.session = row.session AND rest.sequence = row.sequence AND at <= ?1
                     ORDER BY at DESC LIMIT 1), x'') END AS piece FROM {} AS row",
                T::TABLE
            );
        }
        sql.push_str(" WHERE row.rowid = ?3 AND row.tenant = ?4");
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(columns::count(from))
            .bind(columns::count(LARGE as u64))
            .bind(place.rowid)
            .bind(tenant.as_str())
            .fetch_optional(self.reader())
            .await?;
        Ok(row.map(|row| row.try_get("piece")).transpose()?)
    }

    /// Messages of a session.
    pub async fn message_places(
        &self,
        tenant: &TenantId,
        session: Uuid,
        window: Window,
    ) -> Result<Vec<Place>, StoreError> {
        self.places::<Message>(|query| {
            query.push(" WHERE session = ").push_bind(session.to_string()).push(" AND tenant = ");
            query.push_bind(tenant.to_string());
            window.push(query);
        })
        .await
    }

    /// Events of a session; with `kind` only that type.
    pub async fn event_places(
        &self,
        tenant: &TenantId,
        session: Uuid,
        window: Window,
        kind: Option<&'static str>,
    ) -> Result<Vec<Place>, StoreError> {
        self.places::<Event>(|query| {
            query.push(" WHERE session = ").push_bind(session.to_string()).push(" AND tenant = ");
            query.push_bind(tenant.to_string());
            if let Some(kind) = kind {
                query.push(" AND type = ").push_bind(kind);
            }
            window.push(query);
        })
        .await
    }

    /// Sessions, newest first.
    pub async fn session_places(&self, tenant: &TenantId, filter: &SessionFilter) -> Result<Vec<Place>, StoreError> {
        self.places::<Session>(|query| {
            query.push(" WHERE tenant = ").push_bind(tenant.to_string());
            sessions::narrowed(query, filter);
            query.push(" ORDER BY created_at DESC, rowid DESC LIMIT ");
            // SQLite reads a negative limit as none.
            query.push_bind(filter.limit.map_or(-1, i64::from)).push(" OFFSET ").push_bind(i64::from(filter.offset));
        })
        .await
    }

    /// Agents, by name.
    pub async fn agent_places(&self, tenant: &TenantId) -> Result<Vec<Place>, StoreError> {
        self.places::<Agent>(|query| {
            query.push(" WHERE tenant = ").push_bind(tenant.to_string()).push(" ORDER BY name");
        })
        .await
    }

    /// Versions of an agent, newest first.
    pub async fn version_places(&self, tenant: &TenantId, agent: &str) -> Result<Vec<Place>, StoreError> {
        self.places::<AgentVersion>(|query| {
            query.push(" WHERE tenant = ").push_bind(tenant.to_string()).push(" AND agent_name = ");
            query.push_bind(agent.to_owned()).push(" ORDER BY number DESC");
        })
        .await
    }

    /// Items of the queue, newest first.
    pub async fn queue_places(
        &self,
        tenant: &TenantId,
        status: Option<QueueStatus>,
        limit: u32,
    ) -> Result<Vec<Place>, StoreError> {
        self.places::<QueueItem>(|query| {
            query.push(" WHERE tenant = ").push_bind(tenant.to_string());
            if let Some(status) = status {
                query.push(" AND status = ").push_bind(status.as_str());
            }
            query.push(" ORDER BY created_at DESC, rowid DESC LIMIT ").push_bind(limit);
        })
        .await
    }

    /// Credentials, oldest first.
    pub async fn credential_places(&self, tenant: &TenantId) -> Result<Vec<Place>, StoreError> {
        self.places::<Credential>(|query| {
            query.push(" WHERE tenant = ").push_bind(tenant.to_string()).push(" ORDER BY created_at, rowid");
        })
        .await
    }

    /// API keys, oldest first; includes admin keys only `with_admins`.
    pub async fn key_places(&self, tenant: &TenantId, with_admins: bool) -> Result<Vec<Place>, StoreError> {
        self.places::<ApiKey>(|query| {
            query.push(" WHERE tenant = ").push_bind(tenant.to_string()).push(" AND (NOT admin OR ");
            query.push_bind(with_admins).push(") ORDER BY created_at, rowid");
        })
        .await
    }

    /// Attachments of a session, oldest first.
    pub async fn attachment_places(&self, tenant: &TenantId, session: Uuid) -> Result<Vec<Place>, StoreError> {
        self.places::<Attachment>(|query| {
            query.push(" WHERE session = ").push_bind(session.to_string()).push(" AND tenant = ");
            query.push_bind(tenant.to_string()).push(" ORDER BY created_at, rowid");
        })
        .await
    }

    pub(super) async fn places<T: Listed>(
        &self,
        which: impl FnOnce(&mut QueryBuilder<Sqlite>),
    ) -> Result<Vec<Place>, StoreError> {
        // As one text: each result row costs more than reading it.
        let mut query =
            QueryBuilder::<Sqlite>::new("SELECT group_concat(place || ':' || bytes) FROM (SELECT rowid AS place, ");
        query.push(T::BYTES).push(" AS bytes FROM ").push(T::TABLE);
        which(&mut query);
        query.push(")");
        let text = query.build_query_scalar::<Option<String>>().fetch_one(self.reader()).await?.unwrap_or_default();
        let place = |pair: &str| {
            let (rowid, bytes) = pair.split_once(':')?;
            Some(Place { rowid: rowid.parse().ok()?, bytes: bytes.parse().ok()? })
        };
        let places: Option<Vec<Place>> = text.split(',').filter(|pair| !pair.is_empty()).map(place).collect();
        let unreadable =
            || StoreError::Unreadable { what: T::TABLE, why: "the size of a row is not a number".to_owned() };
        places.ok_or_else(unreadable)
    }
}

/// Defines the kinds of list.
macro_rules! listed {
    ($($row:ty: $table:literal, $columns:expr, $bytes:literal, $text:expr, $rest:expr, $line:expr, $read:path;)*) => {$(
        impl Listed for $row {
            const TABLE: &'static str = $table;
            const COLUMNS: &'static str = $columns;
            const BYTES: &'static str = $bytes;
            const TEXT: Option<&'static str> = $text;
            const REST: Option<&'static str> = $rest;
            const LINE: Option<&'static str> = $line;
            fn read(row: &SqliteRow) -> Result<Self, StoreError> {
                $read(row)
            }
        }
    )*};
}

listed! {
    Message: "messages", "session, sequence, id, tenant, role, content, created_at",
        "octet_length(content) + COALESCE((SELECT SUM(octet_length(text)) FROM message_rest AS rest \
         WHERE rest.session = messages.session AND rest.sequence = messages.sequence), 0)",
        Some("content"), Some("message_rest"), None, history::message;
    Event: "events", "session, sequence, id, tenant, type, data, created_at", "octet_length(data)", Some("data"),
        None, None, history::event;
    // The launch options are never shown.
    Session: "sessions",
        sessions::shown_columns!(),
        "COALESCE(octet_length(config), 0) + COALESCE(octet_length(error), 0)", None, None, Some(SESSION), sessions::session;
    Agent: "agents", "*",
        "COALESCE(octet_length(system_prompt), 0) + COALESCE(octet_length(config), 0) + octet_length(env) + \
         COALESCE(octet_length(description), 0)", None, None, None, agents::agent;
    AgentVersion: "agent_versions", "*",
        "COALESCE(octet_length(system_prompt), 0) + COALESCE(octet_length(release_notes), 0) + \
         COALESCE(octet_length(knowledge_files), 0)", None, None, None, versions::version;
    QueueItem: "queue", "*",
        "octet_length(prompt) + COALESCE(octet_length(result), 0) + COALESCE(octet_length(error), 0)", None, None, None, queue::item;
    Credential: "credentials", "*", "octet_length(sealed)", None, None, None, credentials::credential;
    ApiKey: "api_keys", "*", "octet_length(label)", None, None, None, api_keys::key;
    Attachment: "attachments", "*", "octet_length(filename)", None, None, None, attachments::attachment;
    EvalCase: "eval_cases", "*",
        "octet_length(question) + COALESCE(octet_length(reference_answer), 0) + COALESCE(octet_length(chat_history), 0) + \
         COALESCE(octet_length(expected_topics), 0) + COALESCE(octet_length(expected_not_topics), 0)", None, None, None, evals::case;
    EvalRun: "eval_runs", "*", "COALESCE(octet_length(system_prompt), 0) + COALESCE(octet_length(error), 0)", None, None,
        None, evals::run;
    EvalResult: "eval_results", "*",
        "COALESCE(octet_length(response), 0) + COALESCE(octet_length(error), 0) + COALESCE(octet_length(human_notes), 0)", None,
        None, None, evals::result;
}
