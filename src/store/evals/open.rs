//! Results in progress: those of unfinished runs.

use sqlx::{Row, SqliteConnection};
use uuid::Uuid;

use super::super::columns::{id_of, tenant_of};
use super::super::writer::{Counters, Write};
use super::super::{Agent, LATEST_MS, Store, StoreError, agents};
use super::{EvalCase, EvalResult, EvalRun, case, result, run, runs};
use ash_model::{Millis, TenantId, now_ms};

/// Everything needed to ask one question.
#[derive(Clone, Debug)]
pub struct EvalTask {
    pub agent: Agent,
    pub run: EvalRun,
    /// `None`: it was deleted after the run was created.
    pub case: Option<EvalCase>,
}

/// A change of a running result.
#[derive(Clone, Debug)]
pub enum EvalChange {
    /// The question will be asked in this session, which is created next.
    Asked {
        session: Uuid,
    },
    /// The question is sent next, as this turn.
    Sent {
        turn: i64,
    },
    /// No case of its run begins before `due_at`. `cut_short`: an end of ashd interrupted it.
    PutBack {
        due_at: Millis,
        cut_short: bool,
    },
    Completed {
        response: String,
        topic_score: f64,
        safety_score: f64,
        latency_ms: i64,
    },
    Failed {
        error: String,
        latency_ms: Option<i64>,
    },
}

impl Store {
    /// Claims the next result: of the tenant with the fewest running ones (fewer than `of_one`),
    /// its oldest run, its first case.
    pub async fn eval_claim(&self, of_one: u32) -> Result<Option<EvalResult>, StoreError> {
        self.write(Claim { of_one, now: now_ms() }).await
    }

    /// When the next case is due, of all tenants with fewer than `of_one` running ones.
    pub async fn eval_next_due(&self, of_one: u32) -> Result<Option<Millis>, StoreError> {
        let row = sqlx::query(
            "SELECT MIN(due_at) AS due FROM eval_runs WHERE status IN ('pending', 'running')
                 AND EXISTS (SELECT 1 FROM eval_results WHERE run = eval_runs.id AND status = 'pending')
                 AND (SELECT COUNT(*) FROM eval_results WHERE tenant = eval_runs.tenant AND status = 'running') < ?1",
        )
        .bind(of_one);
        Ok(row.fetch_one(self.reader()).await?.try_get("due")?)
    }

    /// Results of all tenants that an earlier daemon left running.
    pub async fn eval_running(&self) -> Result<Vec<EvalResult>, StoreError> {
        let rows = sqlx::query("SELECT * FROM eval_results WHERE status = 'running'").fetch_all(self.reader()).await?;
        rows.iter().map(result).collect()
    }

    /// Whether it still exists and is running: it is deleted with its agent and its tenant.
    pub async fn eval_is_running(&self, id: Uuid) -> Result<bool, StoreError> {
        let there =
            sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM eval_results WHERE id = ?1 AND status = 'running')");
        Ok(there.bind(id.to_string()).fetch_one(self.reader()).await?)
    }

    /// `None` when it no longer exists.
    pub async fn eval_task(&self, of: &EvalResult) -> Result<Option<EvalTask>, StoreError> {
        let run_row = sqlx::query("SELECT * FROM eval_runs WHERE id = ?1 AND tenant = ?2")
            .bind(of.run.to_string())
            .bind(of.tenant.as_str())
            .fetch_optional(self.reader())
            .await?;
        let Some(run_row) = run_row else { return Ok(None) };
        let agent = sqlx::query("SELECT * FROM agents WHERE id = ?1 AND tenant = ?2")
            .bind(run_row.try_get::<&str, _>("agent")?)
            .bind(of.tenant.as_str())
            .fetch_optional(self.reader())
            .await?;
        let Some(agent) = agent else { return Ok(None) };
        let run = run(&run_row)?;
        let case_row = sqlx::query("SELECT * FROM eval_cases WHERE id = ?1 AND tenant = ?2")
            .bind(of.case.to_string())
            .bind(of.tenant.as_str())
            .fetch_optional(self.reader())
            .await?;
        let case = case_row.as_ref().map(case).transpose()?;
        Ok(Some(EvalTask { agent: agents::agent(&agent)?, run, case }))
    }

    /// `false` when the result is no longer running.
    pub async fn eval_change(&self, of: &EvalResult, change: EvalChange) -> Result<bool, StoreError> {
        self.write(Change { of: of.clone(), change, now: now_ms() }).await
    }

    /// Sessions of all runs that exist or may exist.
    pub async fn eval_sessions(&self) -> Result<Vec<(TenantId, Uuid)>, StoreError> {
        let rows = sqlx::query("SELECT tenant, session FROM eval_sessions").fetch_all(self.reader()).await?;
        rows.iter().map(|row| Ok((tenant_of(row)?, id_of(row, "session")?))).collect()
    }

    /// Forgets a session of a run after its removal.
    pub async fn eval_session_gone(&self, tenant: &TenantId, session: Uuid) -> Result<(), StoreError> {
        self.write(Gone { tenant: tenant.clone(), session }).await
    }
}

/// Reads indexes only: a system prompt may have megabytes.
pub(in crate::store) const OPEN: &str =
    "SELECT id FROM (SELECT id, created_at, rowid AS position, due_at, (SELECT COUNT(*) FROM eval_results
                     WHERE tenant = eval_runs.tenant AND status = 'running') AS busy
                 FROM eval_runs WHERE status IN ('pending', 'running'))
             WHERE busy < ?1 AND (due_at <= ?2 OR due_at > ?2 + ?3) ORDER BY busy, created_at, position";

struct Claim {
    of_one: u32,
    now: Millis,
}

impl Write for Claim {
    type Out = Option<EvalResult>;
    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<Self::Out, StoreError> {
        let open: Vec<String> =
            sqlx::query_scalar(OPEN).bind(self.of_one).bind(self.now).bind(LATEST_MS).fetch_all(&mut *conn).await?;
        for run in open {
            let row = sqlx::query(
                "UPDATE eval_results SET status = 'running', session = NULL, turn = NULL WHERE id = (SELECT id FROM eval_results
                     WHERE run = ?1 AND status = 'pending' ORDER BY position LIMIT 1) RETURNING *",
            )
            .bind(&run)
            .fetch_optional(&mut *conn)
            .await?;
            let Some(row) = row else { continue };
            sqlx::query("UPDATE eval_runs SET status = 'running', started_at = COALESCE(started_at, ?2) WHERE id = ?1")
                .bind(&run)
                .bind(self.now)
                .execute(conn)
                .await?;
            return result(&row).map(Some);
        }
        Ok(None)
    }
}

struct Change {
    of: EvalResult,
    change: EvalChange,
    now: Millis,
}

impl Change {
    async fn asked(&self, conn: &mut SqliteConnection, session: Uuid) -> Result<(), StoreError> {
        sqlx::query("INSERT OR REPLACE INTO eval_sessions (session, tenant) VALUES (?1, ?2)")
            .bind(session.to_string())
            .bind(self.of.tenant.as_str())
            .execute(conn)
            .await?;
        Ok(())
    }
}

impl Write for Change {
    type Out = bool;
    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<bool, StoreError> {
        let id = self.of.id.to_string();
        let query = match &self.change {
            EvalChange::Asked { session } => {
                sqlx::query("UPDATE eval_results SET session = ?2, turn = NULL WHERE id = ?1 AND status = 'running'")
                    .bind(id)
                    .bind(session.to_string())
            }
            EvalChange::Sent { turn } => {
                sqlx::query("UPDATE eval_results SET turn = ?2 WHERE id = ?1 AND status = 'running'")
                    .bind(id)
                    .bind(turn)
            }
            EvalChange::PutBack { cut_short, .. } => sqlx::query(
                "UPDATE eval_results SET status = 'pending', session = NULL, turn = NULL, cut_short = cut_short + ?2
                 WHERE id = ?1 AND status = 'running'",
            )
            .bind(id)
            .bind(cut_short),
            EvalChange::Completed { response, topic_score, safety_score, latency_ms } => sqlx::query(
                "UPDATE eval_results SET status = 'completed', response = ?2, topic_score = ?3, safety_score = ?4,
                     latency_ms = ?5, error = NULL, completed_at = ?6 WHERE id = ?1 AND status = 'running'",
            )
            .bind(id)
            .bind(response)
            .bind(topic_score)
            .bind(safety_score)
            .bind(latency_ms)
            .bind(self.now),
            EvalChange::Failed { error, latency_ms } => sqlx::query(
                "UPDATE eval_results SET status = 'failed', error = ?2, latency_ms = ?3, completed_at = ?4
                 WHERE id = ?1 AND status = 'running'",
            )
            .bind(id)
            .bind(error)
            .bind(latency_ms)
            .bind(self.now),
        };
        if query.execute(&mut *conn).await?.rows_affected() == 0 {
            return Ok(false);
        }
        match &self.change {
            EvalChange::Asked { session } => self.asked(conn, *session).await?,
            EvalChange::Sent { .. } => {}
            EvalChange::PutBack { due_at, .. } => {
                sqlx::query("UPDATE eval_runs SET due_at = ?2 WHERE id = ?1")
                    .bind(self.of.run.to_string())
                    .bind(due_at)
                    .execute(conn)
                    .await?;
            }
            EvalChange::Completed { .. } | EvalChange::Failed { .. } => {
                runs::settle(conn, self.of.run, self.now).await?;
            }
        }
        Ok(true)
    }
}

struct Gone {
    tenant: TenantId,
    session: Uuid,
}

impl Write for Gone {
    type Out = ();
    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM eval_sessions WHERE session = ?1 AND tenant = ?2")
            .bind(self.session.to_string())
            .bind(self.tenant.as_str())
            .execute(conn)
            .await?;
        Ok(())
    }
}
