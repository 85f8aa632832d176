//! Tables `eval_cases`, `eval_runs`, `eval_results`: questions for an agent, runs of them, and the
//! answers.
//!
//! ```text
//!   run:     pending --first case begins--> running --all cases complete--> completed
//!                                                   --every case failed---> failed
//!   result:  pending --claim--> running --+--> completed
//!               ^                 |       +--> failed
//!               +----put back-----+
//! ```
//!
//! All three are deleted with their agent. A result outlives its case.

mod cases;
mod lists;
mod open;
mod results;
mod runs;

#[cfg(test)]
mod tests;

use std::str::FromStr;

use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use super::StoreError;
use super::columns::{count_of, id_of, id_or_none, json_or_none, tenant_of, unreadable};
use super::tenant_use::Most;
use ash_model::{Millis, RawJson, TenantId};

pub use cases::{CaseFields, CaseFilter};
#[cfg(test)]
pub(in crate::store) use open::OPEN;
pub use open::{EvalChange, EvalTask};
pub use results::Scored;
#[cfg(test)]
pub(in crate::store) use runs::COUNTED;
pub use runs::{NewRun, RunRefused};

/// Cases per agent.
pub const MAX_CASES: Most = Most { what: "eval cases of the agent", rows: 1000, way_out: "delete some" };
/// Unfinished runs per agent.
pub const MAX_OPEN_RUNS: Most =
    Most { what: "unfinished eval runs of the agent", rows: 20, way_out: "wait until one is finished" };
/// Finished runs kept per agent; the newest ones.
pub const RUNS_KEPT: i64 = 100;
/// The minimum of both scores for an answer to pass.
pub const PASS: f64 = 0.5;

/// State of a run or a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EvalStatus {
    Pending,
    Running,
    Completed,
    Failed,
}

impl EvalStatus {
    pub const ALL: [Self; 4] = [Self::Pending, Self::Running, Self::Completed, Self::Failed];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }
}

impl FromStr for EvalStatus {
    type Err = String;
    fn from_str(word: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|status| status.as_str() == word);
        found.ok_or_else(|| {
            format!("\"{word}\" is not a status of an eval; expected one of {}", Self::ALL.map(Self::as_str).join(", "))
        })
    }
}

#[derive(Clone, Debug)]
pub struct EvalCase {
    pub id: Uuid,
    pub tenant: TenantId,
    pub agent_name: String,
    pub question: String,
    /// Arrays of strings.
    pub expected_topics: Option<RawJson>,
    pub expected_not_topics: Option<RawJson>,
    pub reference_answer: Option<String>,
    pub category: Option<String>,
    pub tags: Option<RawJson>,
    /// An array of `{"role","content"}`.
    pub chat_history: Option<RawJson>,
    pub active: bool,
    pub created_at: Millis,
    pub updated_at: Millis,
}

#[derive(Clone, Debug)]
pub struct EvalRun {
    pub id: Uuid,
    pub tenant: TenantId,
    pub agent_name: String,
    pub version_number: Option<i64>,
    /// The agent's prompt in this run.
    pub system_prompt: Option<String>,
    pub status: EvalStatus,
    pub error: Option<String>,
    pub total_cases: u64,
    pub completed_cases: u64,
    pub summary: Option<RawJson>,
    pub created_at: Millis,
    pub started_at: Option<Millis>,
    pub completed_at: Option<Millis>,
}

#[derive(Clone, Debug)]
pub struct EvalResult {
    pub id: Uuid,
    pub tenant: TenantId,
    pub run: Uuid,
    pub case: Uuid,
    pub status: EvalStatus,
    /// Attempts interrupted by an end of ashd.
    pub cut_short: u64,
    /// The session and turn of the question.
    pub session: Option<Uuid>,
    pub turn: Option<i64>,
    pub response: Option<String>,
    pub topic_score: Option<f64>,
    pub safety_score: Option<f64>,
    pub latency_ms: Option<i64>,
    pub error: Option<String>,
    pub human_score: Option<i64>,
    pub human_notes: Option<String>,
    pub created_at: Millis,
    pub completed_at: Option<Millis>,
}

fn status_of(row: &SqliteRow) -> Result<EvalStatus, StoreError> {
    row.try_get::<&str, _>("status")?.parse().map_err(|why: String| unreadable("status of an eval", why))
}

pub(super) fn case(row: &SqliteRow) -> Result<EvalCase, StoreError> {
    Ok(EvalCase {
        id: id_of(row, "id")?,
        tenant: tenant_of(row)?,
        agent_name: row.try_get("agent_name")?,
        question: row.try_get("question")?,
        expected_topics: json_or_none(row, "expected_topics")?,
        expected_not_topics: json_or_none(row, "expected_not_topics")?,
        reference_answer: row.try_get("reference_answer")?,
        category: row.try_get("category")?,
        tags: json_or_none(row, "tags")?,
        chat_history: json_or_none(row, "chat_history")?,
        active: row.try_get("is_active")?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
    })
}

pub(super) fn run(row: &SqliteRow) -> Result<EvalRun, StoreError> {
    Ok(EvalRun {
        id: id_of(row, "id")?,
        tenant: tenant_of(row)?,
        agent_name: row.try_get("agent_name")?,
        version_number: row.try_get("version_number")?,
        system_prompt: row.try_get("system_prompt")?,
        status: status_of(row)?,
        error: row.try_get("error")?,
        total_cases: count_of(row, "total_cases")?,
        completed_cases: count_of(row, "completed_cases")?,
        summary: json_or_none(row, "summary")?,
        created_at: row.try_get("created_at")?,
        started_at: row.try_get("started_at")?,
        completed_at: row.try_get("completed_at")?,
    })
}

pub(super) fn result(row: &SqliteRow) -> Result<EvalResult, StoreError> {
    Ok(EvalResult {
        id: id_of(row, "id")?,
        tenant: tenant_of(row)?,
        run: id_of(row, "run")?,
        case: id_of(row, "case_id")?,
        status: status_of(row)?,
        cut_short: count_of(row, "cut_short")?,
        session: id_or_none(row, "session")?,
        turn: row.try_get("turn")?,
        response: row.try_get("response")?,
        topic_score: row.try_get("topic_score")?,
        safety_score: row.try_get("safety_score")?,
        latency_ms: row.try_get("latency_ms")?,
        error: row.try_get("error")?,
        human_score: row.try_get("human_score")?,
        human_notes: row.try_get("human_notes")?,
        created_at: row.try_get("created_at")?,
        completed_at: row.try_get("completed_at")?,
    })
}
