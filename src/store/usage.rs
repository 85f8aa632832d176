//! Table `usage`: tokens that the gateway counted ([`super::ledgers`]), and the results, tool calls
//! and time of turns.

use sqlx::sqlite::{Sqlite, SqliteRow};
use sqlx::{QueryBuilder, Row};
use uuid::Uuid;

use super::columns::{count_of, id_of};
use super::{Store, StoreError, Usage};
use ash_model::{Millis, TenantId};

/// Selects rows of a tenant's usage. Times are exclusive.
#[derive(Clone, Debug, Default)]
pub struct UsageFilter {
    pub session: Option<Uuid>,
    pub agent: Option<String>,
    pub after: Option<Millis>,
    pub before: Option<Millis>,
    pub limit: Option<u32>,
}

/// Usage of one answer of the model or one turn.
#[derive(Clone, Debug, PartialEq)]
pub struct UsageRow {
    pub id: Uuid,
    pub session: Uuid,
    pub agent_name: String,
    pub usage: Usage,
    pub created_at: Millis,
}

/// Sums over the selected rows, and the number of results among them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct UsageTotals {
    pub usage: Usage,
    pub results: u64,
}

impl Store {
    /// Newest first.
    pub async fn usage(&self, tenant: &TenantId, filter: &UsageFilter) -> Result<Vec<UsageRow>, StoreError> {
        let mut query = QueryBuilder::<Sqlite>::new("SELECT * ");
        matching(&mut query, tenant, filter);
        query.push(" ORDER BY created_at DESC, rowid DESC LIMIT ").push_bind(filter.limit.map_or(-1, i64::from));
        query.build().fetch_all(self.reader()).await?.iter().map(usage_row).collect()
    }

    /// Ignores the filter's limit.
    pub async fn usage_totals(&self, tenant: &TenantId, filter: &UsageFilter) -> Result<UsageTotals, StoreError> {
        let mut query = QueryBuilder::<Sqlite>::new(
            "SELECT COALESCE(SUM(messages), 0) AS messages, COALESCE(SUM(input_tokens), 0) AS input_tokens,
                    COALESCE(SUM(output_tokens), 0) AS output_tokens,
                    COALESCE(SUM(cache_creation_tokens), 0) AS cache_creation_tokens,
                    COALESCE(SUM(cache_read_tokens), 0) AS cache_read_tokens,
                    COALESCE(SUM(tool_calls), 0) AS tool_calls, COALESCE(SUM(compute_ms), 0) AS compute_ms ",
        );
        matching(&mut query, tenant, filter);
        let row = query.build().fetch_one(self.reader()).await?;
        let usage = usage(&row)?;
        Ok(UsageTotals { results: usage.messages, usage })
    }
}

fn matching(query: &mut QueryBuilder<Sqlite>, tenant: &TenantId, filter: &UsageFilter) {
    query.push("FROM usage WHERE tenant = ").push_bind(tenant.to_string());
    if let Some(session) = filter.session {
        query.push(" AND session = ").push_bind(session.to_string());
    }
    if let Some(agent) = &filter.agent {
        query.push(" AND agent_name = ").push_bind(agent.clone());
    }
    if let Some(after) = filter.after {
        query.push(" AND created_at > ").push_bind(after);
    }
    if let Some(before) = filter.before {
        query.push(" AND created_at < ").push_bind(before);
    }
}

fn usage(row: &SqliteRow) -> Result<Usage, StoreError> {
    Ok(Usage {
        input_tokens: count_of(row, "input_tokens")?,
        output_tokens: count_of(row, "output_tokens")?,
        cache_creation_tokens: count_of(row, "cache_creation_tokens")?,
        cache_read_tokens: count_of(row, "cache_read_tokens")?,
        tool_calls: count_of(row, "tool_calls")?,
        compute_ms: count_of(row, "compute_ms")?,
        messages: count_of(row, "messages")?,
    })
}

fn usage_row(row: &SqliteRow) -> Result<UsageRow, StoreError> {
    Ok(UsageRow {
        id: id_of(row, "id")?,
        session: id_of(row, "session")?,
        agent_name: row.try_get("agent_name")?,
        usage: usage(row)?,
        created_at: row.try_get("created_at")?,
    })
}
