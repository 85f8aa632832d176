//! Table `eval_runs`.

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use uuid::Uuid;

use super::super::writer::{Counters, Write};
use super::super::{Store, StoreError};
use super::{EvalRun, EvalStatus, MAX_OPEN_RUNS, PASS, RUNS_KEPT, run};
use ash_model::{Millis, RawJson, TenantId, now_ms};

/// Parameters of a run.
#[derive(Clone, Debug, Default)]
pub struct NewRun {
    /// `None`: the active version, or the agent's own prompt when none is active.
    pub version: Option<i64>,
    /// Cases of one of these categories; empty: all.
    pub categories: Vec<String>,
    /// Cases with one of these tags; empty: all.
    pub tags: Vec<String>,
}

/// Why a run was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunRefused {
    NoAgent,
    NoVersion,
    /// No active case matches.
    NoCases,
}

impl Store {
    /// Creates a run of the agent's matching active cases, all pending.
    ///
    /// # Errors
    /// [`StoreError::TooMany`] beyond [`MAX_OPEN_RUNS`].
    pub async fn eval_run_insert(
        &self,
        tenant: &TenantId,
        agent: &str,
        new: NewRun,
    ) -> Result<Result<EvalRun, RunRefused>, StoreError> {
        let (tenant, agent, id) = (tenant.clone(), agent.to_owned(), Uuid::new_v4());
        self.write(Insert { tenant, agent, new, id, now: now_ms() }).await
    }

    pub async fn eval_run(&self, tenant: &TenantId, agent: &str, id: Uuid) -> Result<Option<EvalRun>, StoreError> {
        let row = sqlx::query("SELECT * FROM eval_runs WHERE id = ?1 AND tenant = ?2 AND agent_name = ?3")
            .bind(id.to_string())
            .bind(tenant.as_str())
            .bind(agent)
            .fetch_optional(self.reader())
            .await?;
        row.as_ref().map(run).transpose()
    }
}

struct Insert {
    tenant: TenantId,
    agent: String,
    new: NewRun,
    id: Uuid,
    now: Millis,
}

impl Insert {
    async fn subject(&self, conn: &mut SqliteConnection) -> Result<Result<Subject, RunRefused>, StoreError> {
        let agent = sqlx::query(
            "SELECT id, system_prompt, (SELECT number FROM agent_versions WHERE agent = agents.id AND is_active = 1) AS active
             FROM agents WHERE tenant = ?1 AND name = ?2",
        )
        .bind(self.tenant.as_str())
        .bind(&self.agent)
        .fetch_optional(&mut *conn)
        .await?;
        let Some(agent) = agent else { return Ok(Err(RunRefused::NoAgent)) };
        let id: String = agent.try_get("id")?;
        let Some(number) = self.new.version else {
            let (version, prompt) = (agent.try_get("active")?, agent.try_get("system_prompt")?);
            return Ok(Ok(Subject { agent: id, version, prompt }));
        };
        let version = sqlx::query("SELECT system_prompt FROM agent_versions WHERE agent = ?1 AND number = ?2")
            .bind(&id)
            .bind(number)
            .fetch_optional(conn)
            .await?;
        let Some(version) = version else { return Ok(Err(RunRefused::NoVersion)) };
        Ok(Ok(Subject { agent: id, version: Some(number), prompt: version.try_get("system_prompt")? }))
    }

    async fn cases(&self, conn: &mut SqliteConnection, agent: &str) -> Result<Vec<String>, StoreError> {
        let list = |words: &[String]| RawJson::of(&words).get().to_owned();
        let cases = sqlx::query_scalar(
            "SELECT id FROM eval_cases WHERE agent = ?1 AND is_active = 1
                 AND (?2 = '[]' OR category IN (SELECT value FROM json_each(?2)))
                 AND (?3 = '[]' OR EXISTS (SELECT 1 FROM json_each(COALESCE(eval_cases.tags, '[]')) AS tag
                      WHERE tag.value IN (SELECT value FROM json_each(?3))))
             ORDER BY created_at, rowid",
        )
        .bind(agent)
        .bind(list(&self.new.categories))
        .bind(list(&self.new.tags))
        .fetch_all(conn)
        .await?;
        Ok(cases)
    }

    /// Refuses a run above the limit of unfinished ones, and removes the oldest finished ones.
    async fn make_room(&self, conn: &mut SqliteConnection, agent: &str) -> Result<(), StoreError> {
        let open: i64 =
            sqlx::query_scalar("SELECT COUNT(*) FROM eval_runs WHERE agent = ?1 AND status IN ('pending', 'running')")
                .bind(agent)
                .fetch_one(&mut *conn)
                .await?;
        if open.unsigned_abs() >= MAX_OPEN_RUNS.rows {
            return Err(StoreError::TooMany(MAX_OPEN_RUNS));
        }
        sqlx::query(
            "DELETE FROM eval_runs WHERE id IN (SELECT id FROM eval_runs
                 WHERE agent = ?1 AND status IN ('completed', 'failed') ORDER BY created_at DESC, rowid DESC LIMIT -1 OFFSET ?2)",
        )
        .bind(agent)
        .bind(RUNS_KEPT - 1)
        .execute(conn)
        .await?;
        Ok(())
    }
}

struct Subject {
    agent: String,
    version: Option<i64>,
    prompt: Option<String>,
}

impl Write for Insert {
    type Out = Result<EvalRun, RunRefused>;
    async fn apply(&self, conn: &mut SqliteConnection, _: &mut Counters) -> Result<Self::Out, StoreError> {
        let subject = match self.subject(conn).await? {
            Ok(subject) => subject,
            Err(refused) => return Ok(Err(refused)),
        };
        let cases = self.cases(conn, &subject.agent).await?;
        if cases.is_empty() {
            return Ok(Err(RunRefused::NoCases));
        }
        self.make_room(conn, &subject.agent).await?;
        let row = sqlx::query(
            "INSERT INTO eval_runs (id, tenant, agent, agent_name, version_number, system_prompt, status, total_cases, due_at,
                                    created_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, 'pending', ?7, ?8, ?8) RETURNING *",
        )
        .bind(self.id.to_string())
        .bind(self.tenant.as_str())
        .bind(&subject.agent)
        .bind(&self.agent)
        .bind(subject.version)
        .bind(&subject.prompt)
        .bind(super::super::columns::count(cases.len() as u64))
        .bind(self.now)
        .fetch_one(&mut *conn)
        .await?;
        for (position, case) in cases.iter().enumerate() {
            sqlx::query(
                "INSERT INTO eval_results (id, tenant, run, case_id, position, status, created_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, 'pending', ?6)",
            )
            .bind(Uuid::new_v4().to_string())
            .bind(self.tenant.as_str())
            .bind(self.id.to_string())
            .bind(case)
            .bind(super::super::columns::count(position as u64))
            .bind(self.now)
            .execute(&mut *conn)
            .await?;
        }
        run(&row).map(Ok)
    }
}

/// Reads an index only: each answer has up to 256 KiB.
pub(in crate::store) const COUNTED: &str =
    "SELECT COUNT(*) AS total, COALESCE(SUM(status IN ('completed', 'failed')), 0) AS over,
             COALESCE(SUM(status = 'completed'), 0) AS answered, AVG(topic_score) AS topic, AVG(safety_score) AS safety,
             AVG(latency_ms) AS latency, COALESCE(SUM(topic_score >= ?2 AND safety_score >= ?2), 0) AS passed,
             MIN(CASE status WHEN 'failed' THEN position END) AS first_failed
         FROM eval_results WHERE run = ?1";

/// Counts the run's results, and finishes the run when all are complete. Later scoring counts
/// again.
pub(super) async fn settle(conn: &mut SqliteConnection, id: Uuid, now: Millis) -> Result<(), StoreError> {
    let counted = sqlx::query(COUNTED).bind(id.to_string()).bind(PASS).fetch_one(&mut *conn).await?;
    let (total, over): (i64, i64) = (counted.try_get("total")?, counted.try_get("over")?);
    if over < total {
        sqlx::query("UPDATE eval_runs SET completed_cases = ?2 WHERE id = ?1")
            .bind(id.to_string())
            .bind(over)
            .execute(conn)
            .await?;
        return Ok(());
    }
    let answered: i64 = counted.try_get("answered")?;
    let status = if answered > 0 { EvalStatus::Completed } else { EvalStatus::Failed };
    sqlx::query(
        "UPDATE eval_runs SET completed_cases = ?2, status = ?3, summary = ?4, completed_at = COALESCE(completed_at, ?5),
             error = CASE ?3 WHEN 'failed' THEN 'every case failed; the first: ' ||
                 (SELECT error FROM eval_results WHERE run = ?1 AND position = ?6) END
         WHERE id = ?1",
    )
    .bind(id.to_string())
    .bind(over)
    .bind(status.as_str())
    .bind(summary(&counted, total)?.get())
    .bind(now)
    .bind(counted.try_get::<Option<i64>, _>("first_failed")?)
    .execute(conn)
    .await?;
    Ok(())
}

/// Averages are over the answers; the pass rate is over all cases.
fn summary(counted: &SqliteRow, total: i64) -> Result<RawJson, StoreError> {
    let number = |column: &str| counted.try_get::<Option<f64>, _>(column);
    let passed: i64 = counted.try_get("passed")?;
    Ok(RawJson::of(&serde_json::json!({
        "avgTopicScore": number("topic")?,
        "avgSafetyScore": number("safety")?,
        "avgLlmJudgeScore": null,
        "avgLatencyMs": number("latency")?.map(f64::round),
        "passRate": passed as f64 / total.max(1) as f64,
    })))
}
