//! Tables `usage` and `usage_ledgers`: the gateway's counts, stored exactly once.

use std::collections::{HashMap, HashSet};

use sqlx::sqlite::Sqlite;
use sqlx::{QueryBuilder, Row, SqliteConnection};
use uuid::Uuid;

use super::columns::{count, count_of, id_of};
use super::writer::{Counters, Write};
use super::{Store, StoreError, Usage, credentials};
use ash_model::Millis;

/// Rows per INSERT; eleven values each stay far below SQLite's 32766 parameters.
const ROWS: usize = 256;

/// The gateway's count of one answer, or of a part of it.
#[derive(Clone, Debug, PartialEq)]
pub struct UsageEntry {
    pub ledger: Uuid,
    pub number: u64,
    pub session: Uuid,
    pub tenant: String,
    pub agent_name: String,
    pub at: Millis,
    /// 1 for the first part of an answer.
    pub requests: u64,
    /// Tokens only.
    pub usage: Usage,
}

impl Store {
    /// The newest durably stored number of each ledger.
    pub async fn usage_marks(&self) -> Result<HashMap<Uuid, u64>, StoreError> {
        let rows = sqlx::query("SELECT id, sequence FROM usage_ledgers").fetch_all(self.reader()).await?;
        rows.iter().map(|row| Ok((id_of(row, "id")?, count_of(row, "sequence")?))).collect()
    }

    /// Stores new entries, and forgets the numbers of all ledgers except `kept`. Returns when this
    /// is on the disk. Entries of a ledger are in order.
    pub async fn usage_collect(&self, entries: Vec<UsageEntry>, kept: Vec<Uuid>) -> Result<(), StoreError> {
        self.write(Collect { entries, kept: kept.into_iter().collect() }).await
    }
}

struct Collect {
    entries: Vec<UsageEntry>,
    kept: HashSet<Uuid>,
}

impl Write for Collect {
    type Out = ();
    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<(), StoreError> {
        let mut marks: HashMap<Uuid, u64> = HashMap::new();
        for row in sqlx::query("SELECT id, sequence FROM usage_ledgers").fetch_all(&mut *conn).await? {
            marks.insert(id_of(&row, "id")?, count_of(&row, "sequence")?);
        }
        let gone: Vec<Uuid> = marks.keys().filter(|id| !self.kept.contains(id)).copied().collect();
        let mut new = Vec::new();
        let mut moved: HashMap<Uuid, u64> = HashMap::new();
        for entry in &self.entries {
            let mark = marks.entry(entry.ledger).or_default();
            if entry.number > *mark {
                *mark = entry.number;
                moved.insert(entry.ledger, entry.number);
                new.push(entry);
            }
        }
        for some in new.chunks(ROWS) {
            insert(conn, some).await?;
        }
        let mut newest: HashMap<Uuid, Millis> = HashMap::new();
        for entry in &new {
            let at = newest.entry(entry.session).or_insert(entry.at);
            *at = (*at).max(entry.at);
        }
        credentials::used(conn, newest.into_iter()).await?;
        for (id, sequence) in moved {
            let put = "INSERT INTO usage_ledgers (id, sequence) VALUES (?1, ?2)
                       ON CONFLICT (id) DO UPDATE SET sequence = excluded.sequence";
            sqlx::query(put).bind(id.to_string()).bind(count(sequence)).execute(&mut *conn).await?;
        }
        for id in gone {
            sqlx::query("DELETE FROM usage_ledgers WHERE id = ?1").bind(id.to_string()).execute(&mut *conn).await?;
        }
        Ok(())
    }
}

async fn insert(conn: &mut SqliteConnection, entries: &[&UsageEntry]) -> Result<(), StoreError> {
    let mut query = QueryBuilder::<Sqlite>::new(
        "INSERT INTO usage (id, session, created_at, input_tokens, output_tokens, cache_creation_tokens,
                            cache_read_tokens, requests, tool_calls, compute_ms, messages, tenant, agent_name) ",
    );
    // A gateway that an older ashd registered its sessions with does not know their tenants.
    let unnamed = named_by_session(conn, entries).await?;
    query.push_values(entries, |mut row, entry| {
        let named = (entry.tenant.clone(), entry.agent_name.clone());
        let (tenant, agent) = match entry.tenant.is_empty() {
            true => unnamed.get(&entry.session).cloned().unwrap_or_else(|| ("unknown".to_owned(), named.1)),
            false => named,
        };
        row.push_bind(Uuid::now_v7().to_string())
            .push_bind(entry.session.to_string())
            .push_bind(entry.at)
            .push_bind(count(entry.usage.input_tokens))
            .push_bind(count(entry.usage.output_tokens))
            .push_bind(count(entry.usage.cache_creation_tokens))
            .push_bind(count(entry.usage.cache_read_tokens))
            .push_bind(count(entry.requests))
            .push("0, 0, 0")
            .push_bind(tenant)
            .push_bind(agent);
    });
    query.build().persistent(false).execute(conn).await?;
    Ok(())
}

/// Tenant and agent for entries without them, if their sessions still exist.
async fn named_by_session(
    conn: &mut SqliteConnection,
    entries: &[&UsageEntry],
) -> Result<HashMap<Uuid, (String, String)>, StoreError> {
    let sessions: HashSet<Uuid> = entries.iter().filter(|e| e.tenant.is_empty()).map(|e| e.session).collect();
    let mut found = HashMap::new();
    for id in sessions {
        let row = sqlx::query("SELECT tenant, agent_name FROM sessions WHERE id = ?1").bind(id.to_string());
        if let Some(row) = row.fetch_optional(&mut *conn).await? {
            found.insert(id, (row.try_get("tenant")?, row.try_get("agent_name")?));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{a_session, fresh, tenant};
    use super::super::{Commit, UsageFilter};
    use super::*;

    fn entry(ledger: Uuid, number: u64, session: Uuid, tenant: &str) -> UsageEntry {
        let usage = Usage { input_tokens: 10, output_tokens: number, ..Usage::default() };
        UsageEntry { ledger, number, session, tenant: tenant.into(), agent_name: "a".into(), at: 5, requests: 1, usage }
    }

    #[tokio::test]
    async fn every_entry_is_stored_once_however_often_it_comes() {
        let (_dir, store) = fresh().await;
        let acme = tenant("acme");
        let [one, two, session] = [Uuid::now_v7(), Uuid::now_v7(), Uuid::new_v4()];
        let some = |numbers: &[u64]| numbers.iter().map(|n| entry(one, *n, session, "acme")).collect::<Vec<_>>();
        store.usage_collect(some(&[1, 2]), vec![one]).await.unwrap();
        store.usage_collect(some(&[1, 2, 3]), vec![one, two]).await.unwrap();
        store.usage_collect(some(&[2, 3, 3]), vec![one, two]).await.unwrap();
        let mut both = some(&[4]);
        both.push(entry(two, 1, session, "acme"));
        store.usage_collect(both, vec![one, two]).await.unwrap();
        assert_eq!(store.usage_marks().await.unwrap(), HashMap::from([(one, 4), (two, 1)]));
        let totals = store.usage_totals(&acme, &UsageFilter::default()).await.unwrap();
        assert_eq!((totals.usage.input_tokens, totals.usage.output_tokens, totals.results), (50, 1 + 2 + 3 + 4 + 1, 0));
        // A removed ledger is forgotten, its entries are not.
        store.usage_collect(vec![], vec![two]).await.unwrap();
        assert_eq!(store.usage_marks().await.unwrap(), HashMap::from([(two, 1)]));
        assert_eq!(store.usage_totals(&acme, &UsageFilter::default()).await.unwrap().usage.input_tokens, 50);
    }

    #[tokio::test]
    async fn an_entry_of_nobody_is_its_sessions() {
        let (_dir, store) = fresh().await;
        let acme = tenant("acme");
        let session = a_session(&acme, "helper", 1);
        store.session_insert(&session).await.unwrap();
        let ledger = Uuid::now_v7();
        store.usage_collect(vec![entry(ledger, 1, session.id, "")], vec![ledger]).await.unwrap();
        let rows = store.usage(&acme, &UsageFilter::default()).await.unwrap();
        assert_eq!((rows.len(), rows[0].agent_name.as_str(), rows[0].session), (1, "helper", session.id));
        // A result counted by ashd is stored beside it.
        let usage = Some(Usage { messages: 1, compute_ms: 7, ..Usage::default() });
        store.commit(Commit { usage, ..Commit::of(&session) }).await.unwrap();
        let totals = store.usage_totals(&acme, &UsageFilter::default()).await.unwrap();
        assert_eq!((totals.results, totals.usage.compute_ms, totals.usage.input_tokens), (1, 7, 10));
    }
}
