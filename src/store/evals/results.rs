//! Table `eval_results`: answers, and their scores by people and by later scoring.

use sqlx::SqliteConnection;
use uuid::Uuid;

use super::super::columns::{id_of, unreadable};
use super::super::writer::{Counters, Write};
use super::super::{Store, StoreError};
use super::{EvalCase, EvalResult, EvalRun, case, result, runs};
use ash_model::{Millis, TenantId, now_ms};

/// New scores of one result.
#[derive(Clone, Copy, Debug)]
pub struct Scored {
    pub result: Uuid,
    pub topic_score: f64,
    pub safety_score: f64,
}

impl Store {
    /// Changes a person's score and notes of a result; outer `None` leaves one unchanged. `None`
    /// when the agent has no such result.
    pub async fn eval_result_judge(
        &self,
        tenant: &TenantId,
        agent: &str,
        id: Uuid,
        score: Option<Option<i64>>,
        notes: Option<Option<String>>,
    ) -> Result<Option<EvalResult>, StoreError> {
        self.write(Judge { tenant: tenant.clone(), agent: agent.to_owned(), id, score, notes }).await
    }

    /// Ids of a run's results that have an answer and whose case still exists, with the case.
    pub async fn eval_answered(&self, run: &EvalRun) -> Result<Vec<(Uuid, Uuid)>, StoreError> {
        let rows = sqlx::query(
            "SELECT id, case_id FROM eval_results WHERE run = ?1 AND tenant = ?2 AND status = 'completed'
                 AND EXISTS (SELECT 1 FROM eval_cases WHERE eval_cases.id = case_id) ORDER BY position",
        )
        .bind(run.id.to_string())
        .bind(run.tenant.as_str())
        .fetch_all(self.reader())
        .await?;
        rows.iter().map(|row| Ok((id_of(row, "id")?, id_of(row, "case_id")?))).collect()
    }

    pub async fn eval_result(&self, tenant: &TenantId, id: Uuid) -> Result<Option<EvalResult>, StoreError> {
        let row = sqlx::query("SELECT * FROM eval_results WHERE id = ?1 AND tenant = ?2")
            .bind(id.to_string())
            .bind(tenant.as_str())
            .fetch_optional(self.reader())
            .await?;
        row.as_ref().map(result).transpose()
    }

    /// Stores all scores, and updates the run's summary.
    pub async fn eval_score(&self, run: &EvalRun, scores: Vec<Scored>) -> Result<(), StoreError> {
        self.write(Score { tenant: run.tenant.clone(), run: run.id, scores, now: now_ms() }).await
    }

    /// Cases with a result in at least one of two runs, in the order of the runs.
    pub async fn eval_compared(&self, a: &EvalRun, b: &EvalRun) -> Result<Vec<Uuid>, StoreError> {
        let ids: Vec<String> = sqlx::query_scalar(
            "SELECT case_id FROM eval_results WHERE run IN (?1, ?2) AND tenant = ?3 GROUP BY case_id
             ORDER BY MIN(CASE run WHEN ?1 THEN position ELSE position + 1000000 END)",
        )
        .bind(a.id.to_string())
        .bind(b.id.to_string())
        .bind(a.tenant.as_str())
        .fetch_all(self.reader())
        .await?;
        ids.iter().map(|id| id.parse().map_err(|why| unreadable("case_id", why))).collect()
    }

    /// The result of this case in a run.
    pub async fn eval_result_of(&self, run: &EvalRun, case: Uuid) -> Result<Option<EvalResult>, StoreError> {
        let row = sqlx::query("SELECT * FROM eval_results WHERE run = ?1 AND case_id = ?2 AND tenant = ?3")
            .bind(run.id.to_string())
            .bind(case.to_string())
            .bind(run.tenant.as_str())
            .fetch_optional(self.reader())
            .await?;
        row.as_ref().map(result).transpose()
    }

    /// The case of a result, if it still exists.
    pub async fn eval_case_of(&self, run: &EvalRun, id: Uuid) -> Result<Option<EvalCase>, StoreError> {
        let row = sqlx::query("SELECT * FROM eval_cases WHERE id = ?1 AND tenant = ?2")
            .bind(id.to_string())
            .bind(run.tenant.as_str())
            .fetch_optional(self.reader())
            .await?;
        row.as_ref().map(case).transpose()
    }
}

struct Judge {
    tenant: TenantId,
    agent: String,
    id: Uuid,
    score: Option<Option<i64>>,
    notes: Option<Option<String>>,
}

impl Write for Judge {
    type Out = Option<EvalResult>;
    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<Self::Out, StoreError> {
        let row = sqlx::query(
            "UPDATE eval_results SET human_score = CASE ?4 WHEN 1 THEN ?5 ELSE human_score END,
                 human_notes = CASE ?6 WHEN 1 THEN ?7 ELSE human_notes END
             WHERE id = ?1 AND tenant = ?2
                 AND EXISTS (SELECT 1 FROM eval_runs WHERE eval_runs.id = run AND eval_runs.agent_name = ?3)
             RETURNING *",
        )
        .bind(self.id.to_string())
        .bind(self.tenant.as_str())
        .bind(&self.agent)
        .bind(self.score.is_some())
        .bind(self.score.flatten())
        .bind(self.notes.is_some())
        .bind(self.notes.as_ref().and_then(Option::as_deref))
        .fetch_optional(conn)
        .await?;
        row.as_ref().map(result).transpose()
    }
}

struct Score {
    tenant: TenantId,
    run: Uuid,
    scores: Vec<Scored>,
    now: Millis,
}

impl Write for Score {
    type Out = ();
    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<(), StoreError> {
        for scored in &self.scores {
            sqlx::query(
                "UPDATE eval_results SET topic_score = ?3, safety_score = ?4
                 WHERE id = ?1 AND tenant = ?2 AND status = 'completed'",
            )
            .bind(scored.result.to_string())
            .bind(self.tenant.as_str())
            .bind(scored.topic_score)
            .bind(scored.safety_score)
            .execute(&mut *conn)
            .await?;
        }
        runs::settle(conn, self.run, self.now).await
    }
}
