//! Changes of a tenant as a whole.

use sqlx::SqliteConnection;
use uuid::Uuid;

use super::columns::unreadable;
use super::writer::{Counters, Write};
use super::{Store, StoreError};
use ash_model::TenantId;

/// Rows that [`Store::tenant_forget`] removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forgotten {
    pub keys: u64,
    pub agents: u64,
    /// Rows of credentials, queue, limits and repeated requests.
    pub others: u64,
}

impl Store {
    /// Removes everything of a tenant except its sessions and usage records: keys, agents with
    /// their versions, credentials, queue, limits, answers kept for repeated requests. Its keys are
    /// refused from the moment this returns. Idempotent.
    pub async fn tenant_forget(&self, tenant: &TenantId) -> Result<Forgotten, StoreError> {
        let keys = self.write(ForgetKeys(tenant.clone())).await?;
        self.inner.keys.forget_tenant(tenant);
        let mut others = 0;
        for piece in TENANT_PIECES {
            while self.write(Piece { tenant: tenant.clone(), of: None, statement: piece }).await? {
                others += 1;
            }
        }
        for agent in self.agent_names(tenant).await? {
            self.agent_empty(tenant, &agent).await?;
        }
        let forgotten = self.write(Forget(tenant.clone())).await?;
        Ok(Forgotten { keys, others: forgotten.others + others, ..forgotten })
    }

    async fn agent_names(&self, tenant: &TenantId) -> Result<Vec<String>, StoreError> {
        let names = sqlx::query_scalar("SELECT name FROM agents WHERE tenant = ?1").bind(tenant.as_str());
        Ok(names.fetch_all(self.reader()).await?)
    }

    /// Removes the large rows of an agent that is about to be deleted, in several transactions:
    /// answers of its eval runs, the cases, all versions but the newest.
    pub(super) async fn agent_empty(&self, tenant: &TenantId, name: &str) -> Result<(), StoreError> {
        for piece in AGENT_PIECES {
            while self.write(Piece { tenant: tenant.clone(), of: Some(name.to_owned()), statement: piece }).await? {}
        }
        Ok(())
    }

    /// Every session of a tenant, in any state.
    pub async fn session_ids(&self, tenant: &TenantId) -> Result<Vec<Uuid>, StoreError> {
        let ids: Vec<String> =
            sqlx::query_scalar("SELECT id FROM sessions WHERE tenant = ?1 ORDER BY created_at, rowid")
                .bind(tenant.as_str())
                .fetch_all(self.reader())
                .await?;
        ids.iter().map(|id| Uuid::try_parse(id).map_err(|e| unreadable("id of a session", e))).collect()
    }

    /// Removes a session's row with its turns, messages, events, attachments and limits. Its usage
    /// stays. `true` when the tenant had that session. No task may work on it. A large history is
    /// removed first, in several transactions, so that other changes can run in between.
    pub async fn session_remove(&self, tenant: &TenantId, id: Uuid) -> Result<bool, StoreError> {
        for piece in PIECES {
            while self.write(Clear { tenant: tenant.clone(), id, piece }).await? {}
        }
        self.write(Remove { tenant: tenant.clone(), id }).await
    }
}

/// Parts of what a tenant stores beside its sessions: at most 16 rows of at most 10 MiB.
const TENANT_PIECES: [&str; 1] =
    ["DELETE FROM queue WHERE rowid IN (SELECT rowid FROM queue WHERE tenant = ?1 AND ?2 IS NULL LIMIT 16)"];

/// Parts of what hangs on an agent: at most 16 MiB.
const AGENT_PIECES: [&str; 3] = [
    "DELETE FROM eval_results WHERE rowid IN (SELECT eval_results.rowid FROM agents JOIN eval_runs ON eval_runs.agent = agents.id \
     JOIN eval_results ON eval_results.run = eval_runs.id WHERE agents.tenant = ?1 AND agents.name = ?2 LIMIT 48)",
    "DELETE FROM eval_cases WHERE rowid IN (SELECT eval_cases.rowid FROM agents JOIN eval_cases ON eval_cases.agent = agents.id \
     WHERE agents.tenant = ?1 AND agents.name = ?2 LIMIT 32)",
    "DELETE FROM agent_versions WHERE rowid IN (SELECT agent_versions.rowid FROM agents \
     JOIN agent_versions ON agent_versions.agent = agents.id WHERE agents.tenant = ?1 AND agents.name = ?2 \
     AND agent_versions.is_active = 0 LIMIT 8)",
];

/// Removes one part; returns whether there was one.
struct Piece {
    tenant: TenantId,
    of: Option<String>,
    statement: &'static str,
}

impl Write for Piece {
    type Out = bool;
    fn frees(&self) -> bool {
        true
    }

    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<bool, StoreError> {
        let query = sqlx::query(self.statement).bind(self.tenant.as_str()).bind(self.of.as_deref());
        Ok(query.execute(conn).await?.rows_affected() > 0)
    }
}

struct ForgetKeys(TenantId);

impl Write for ForgetKeys {
    type Out = u64;
    fn frees(&self) -> bool {
        true
    }

    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<u64, StoreError> {
        let query = sqlx::query("DELETE FROM api_keys WHERE tenant = ?1").bind(self.0.as_str());
        Ok(query.execute(conn).await?.rows_affected())
    }
}

struct Forget(TenantId);

impl Write for Forget {
    type Out = Forgotten;
    fn frees(&self) -> bool {
        true
    }

    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<Forgotten, StoreError> {
        let mut removed = [0; 6];
        for (count, statement) in removed.iter_mut().zip([
            "DELETE FROM agents WHERE tenant = ?1",
            "DELETE FROM credentials WHERE tenant = ?1",
            "DELETE FROM queue WHERE tenant = ?1",
            "DELETE FROM limits WHERE tenant = ?1",
            "DELETE FROM idempotency WHERE tenant = ?1",
            "DELETE FROM tenant_limits WHERE tenant = ?1",
        ]) {
            *count = sqlx::query(statement).bind(self.0.as_str()).execute(&mut *conn).await?.rows_affected();
        }
        let files = sqlx::query("DELETE FROM tenant_use WHERE tenant = ?1 AND kind = 'files'");
        files.bind(self.0.as_str()).execute(&mut *conn).await?;
        let [agents, others @ ..] = removed;
        Ok(Forgotten { keys: 0, agents, others: others.iter().sum() })
    }
}

/// A part of a session's history: 16 rows of at most 1 MiB, or 1,024 rows. Sequence numbers have no
/// gaps.
const PIECES: [&str; 3] = [
    "DELETE FROM message_rest WHERE session = ?1 AND tenant = ?2 AND (sequence, at) IN \
     (SELECT sequence, at FROM message_rest WHERE session = ?1 ORDER BY sequence, at LIMIT 16)",
    "DELETE FROM messages WHERE session = ?1 AND tenant = ?2 AND sequence < \
     (SELECT MIN(sequence) + 1024 FROM messages WHERE session = ?1)",
    "DELETE FROM events WHERE session = ?1 AND tenant = ?2 AND sequence < \
     (SELECT MIN(sequence) + 1024 FROM events WHERE session = ?1)",
];

/// Removes one part; returns whether there was one.
struct Clear {
    tenant: TenantId,
    id: Uuid,
    piece: &'static str,
}

impl Write for Clear {
    type Out = bool;
    fn frees(&self) -> bool {
        true
    }

    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<bool, StoreError> {
        let cleared = sqlx::query(self.piece).bind(self.id.to_string()).bind(self.tenant.as_str());
        Ok(cleared.execute(conn).await?.rows_affected() > 0)
    }
}

struct Remove {
    tenant: TenantId,
    id: Uuid,
}

impl Write for Remove {
    type Out = bool;
    fn frees(&self) -> bool {
        true
    }

    async fn apply(&self, conn: &mut SqliteConnection, counters: &mut Counters) -> Result<bool, StoreError> {
        let (tenant, id) = (self.tenant.as_str(), self.id.to_string());
        sqlx::query("DELETE FROM limits WHERE tenant = ?1 AND scope = 'session' AND name = ?2")
            .bind(tenant)
            .bind(&id)
            .execute(&mut *conn)
            .await?;
        let done = sqlx::query("DELETE FROM sessions WHERE tenant = ?1 AND id = ?2").bind(tenant).bind(&id);
        let removed = done.execute(&mut *conn).await?.rows_affected() > 0;
        counters.forget(self.id, &self.tenant);
        Ok(removed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{a_session, fresh, tenant};
    use super::super::{Commit, Role, StoreError, Usage};

    #[tokio::test]
    async fn a_session_goes_with_all_that_hangs_on_it_but_its_usage() {
        let (_dir, store) = fresh().await;
        let (acme, other) = (tenant("acme"), tenant("other"));
        let [gone, kept] = [a_session(&acme, "a", 1), a_session(&other, "a", 2)];
        let said = |session| Commit {
            messages: vec![(Role::User, "m".into())],
            events: vec![("lifecycle", "{}".into())],
            usage: Some(Usage { input_tokens: 7, ..Usage::default() }),
            ..Commit::of(session)
        };
        for session in [&gone, &kept] {
            store.session_insert(session).await.unwrap();
            store.commit(said(session)).await.unwrap();
        }
        assert!(!store.session_remove(&other, gone.id).await.unwrap(), "another tenant's");
        assert_eq!(store.session_ids(&acme).await.unwrap(), [gone.id]);
        assert!(store.session_remove(&acme, gone.id).await.unwrap());
        assert!(!store.session_remove(&acme, gone.id).await.unwrap());
        let count = async |table: &str| {
            let sql = format!("SELECT COUNT(*) FROM {table}");
            sqlx::query_scalar::<_, i64>(sqlx::AssertSqlSafe(sql)).fetch_one(store.reader()).await.unwrap()
        };
        for (table, rows) in [("sessions", 1), ("messages", 1), ("events", 1), ("usage", 2)] {
            assert_eq!(count(table).await, rows, "{table}");
        }
        // Its sequence numbers are forgotten too: a step of it is refused.
        assert!(matches!(store.commit(said(&gone)).await, Err(StoreError::NoSession(id)) if id == gone.id));
        assert_eq!(store.commit(said(&kept)).await.unwrap().message_sequence, 2);
    }

    #[tokio::test]
    async fn changes_of_others_come_in_between_the_pieces_of_a_large_history() {
        let (_dir, store) = fresh().await;
        let owner = tenant("acme");
        let [gone, kept] = [a_session(&owner, "a", 1), a_session(&owner, "a", 2)];
        for session in [&gone, &kept] {
            store.session_insert(session).await.unwrap();
        }
        let large = (Role::User, "x".repeat(40 << 20).into());
        let rows = std::iter::repeat_n((Role::User, "m".into()), 5000);
        let messages = std::iter::once(large).chain(rows).collect();
        store.commit(Commit { messages, ..Commit::of(&gone) }).await.unwrap();
        let (mut removal, mut between) = (std::pin::pin!(store.session_remove(&owner, gone.id)), 0);
        let step = || Commit { events: vec![("lifecycle", "{}".into())], ..Commit::of(&kept) };
        loop {
            tokio::select! {
                biased;
                removed = &mut removal => break assert!(removed.unwrap()),
                committed = store.commit(step()) => between += u32::from(committed.is_ok()),
            }
        }
        // Changes before the first part and after the last one do not count.
        assert!(between >= 4, "{between}");
        let left: i64 =
            sqlx::query_scalar("SELECT (SELECT COUNT(*) FROM messages) + (SELECT COUNT(*) FROM message_rest)")
                .fetch_one(store.reader())
                .await
                .unwrap();
        assert_eq!(left, 0);
    }
}
