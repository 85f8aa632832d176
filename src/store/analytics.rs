//! Counts over a tenant's rows.

use std::collections::BTreeMap;

use sqlx::sqlite::Sqlite;
use sqlx::{QueryBuilder, Row};

use super::columns::count_of;
use super::{Store, StoreError};
use ash_model::{Millis, TenantId};

/// A tenant's counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub agents: u64,
    /// By status.
    pub sessions: BTreeMap<String, u64>,
    /// By status.
    pub eval_runs: BTreeMap<String, u64>,
}

/// The tables that are counted by status.
#[derive(Clone, Copy)]
enum Counted {
    Sessions,
    EvalRuns,
}

impl Store {
    /// Sessions and eval runs created between the two times, both exclusive; all agents.
    pub async fn analytics(
        &self,
        tenant: &TenantId,
        after: Option<Millis>,
        before: Option<Millis>,
    ) -> Result<Counts, StoreError> {
        let agents = sqlx::query("SELECT COUNT(*) AS n FROM agents WHERE tenant = ?1").bind(tenant.as_str());
        let agents = count_of(&agents.fetch_one(self.reader()).await?, "n")?;
        let sessions = self.by_status(Counted::Sessions, tenant, after, before).await?;
        let eval_runs = self.by_status(Counted::EvalRuns, tenant, after, before).await?;
        Ok(Counts { agents, sessions, eval_runs })
    }

    async fn by_status(
        &self,
        of: Counted,
        tenant: &TenantId,
        after: Option<Millis>,
        before: Option<Millis>,
    ) -> Result<BTreeMap<String, u64>, StoreError> {
        let mut query = QueryBuilder::<Sqlite>::new("SELECT status, COUNT(*) AS n FROM ");
        query.push(match of {
            Counted::Sessions => "sessions WHERE tenant = ",
            Counted::EvalRuns => "eval_runs WHERE tenant = ",
        });
        query.push_bind(tenant.to_string());
        if let Some(after) = after {
            query.push(" AND created_at > ").push_bind(after);
        }
        if let Some(before) = before {
            query.push(" AND created_at < ").push_bind(before);
        }
        query.push(" GROUP BY status");
        let rows = query.build().fetch_all(self.reader()).await?;
        rows.iter().map(|row| Ok((row.try_get("status")?, count_of(row, "n")?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{a_session, fresh, tenant};
    use super::*;
    use crate::store::NewAgent;
    use ash_model::SessionStatus;

    #[tokio::test]
    async fn counts_are_the_tenants_and_of_the_time() {
        let (_dir, store) = fresh().await;
        let acme = tenant("acme");
        let of = |pairs: &[(&str, u64)]| pairs.iter().map(|(k, n)| ((*k).to_owned(), *n)).collect::<BTreeMap<_, _>>();
        assert_eq!(store.analytics(&acme, None, None).await.unwrap(), Counts::default());
        store.agent_upsert(&acme, NewAgent { name: "a".into(), ..NewAgent::default() }).await.unwrap();
        for (at, status) in [(10, SessionStatus::Active), (20, SessionStatus::Ended), (30, SessionStatus::Ended)] {
            let mut session = a_session(&acme, "a", at);
            (session.status, session.created_at) = (status, at);
            store.session_insert(&session).await.unwrap();
        }
        store.session_insert(&a_session(&tenant("other"), "a", 20)).await.unwrap();
        let all = store.analytics(&acme, None, None).await.unwrap();
        assert_eq!((all.agents, all.sessions), (1, of(&[("active", 1), ("ended", 2)])));
        let some = store.analytics(&acme, Some(10), Some(30)).await.unwrap();
        assert_eq!((some.agents, some.sessions), (1, of(&[("ended", 1)])), "both bounds are exclusive");
    }
}
