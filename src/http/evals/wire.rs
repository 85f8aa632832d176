//! JSON of evals: requests and answers.

use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::super::agents::given;
use super::check::{MAX_CASES, MAX_MESSAGES};
use crate::store::{EvalCase, EvalResult, EvalRun};
use ash_model::bounded::{Counted, few, list, short};
use ash_model::{RawJson, iso};

/// A message of an earlier conversation.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[schema(as = EvalMessage)]
pub struct MessageIn {
    /// user or assistant.
    #[schema(example = "user")]
    pub role: String,
    pub content: String,
}

/// Body of the POST and the PATCH of a case. In the POST, null equals absent. In the PATCH, null
/// clears and absent fields stay.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
#[schema(as = EvalCaseFields)]
pub struct CaseIn {
    /// What the agent is asked: 1 to 65536 bytes. Required in the POST.
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub question: Option<Option<String>>,
    /// Texts that a good answer contains, ignoring case: at most 100 of 1 to 1000 bytes each.
    #[serde(deserialize_with = "given_list")]
    #[schema(value_type = Option<Vec<String>>)]
    pub expected_topics: Option<Option<Vec<String>>>,
    /// Texts that a good answer does not contain; the same limits.
    #[serde(deserialize_with = "given_list")]
    #[schema(value_type = Option<Vec<String>>)]
    pub expected_not_topics: Option<Option<Vec<String>>>,
    /// For human readers; at most 65536 bytes.
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub reference_answer: Option<Option<String>>,
    /// 1 to 200 bytes.
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub category: Option<Option<String>>,
    /// At most 50 of 1 to 200 bytes each.
    #[serde(deserialize_with = "given_list")]
    #[schema(value_type = Option<Vec<String>>)]
    pub tags: Option<Option<Vec<String>>>,
    /// The conversation before the question: at most 100 messages and 262144 bytes; the first
    /// message is the user's.
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<Vec<MessageIn>>)]
    pub chat_history: Option<Option<Counted<MessageIn, MAX_MESSAGES>>>,
    /// Only active cases run. Default: true.
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<bool>)]
    pub is_active: Option<Option<bool>>,
}

/// Tells `null` (clear) from an absent field (keep).
fn given_list<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Option<Vec<T>>>, D::Error> {
    few(deserializer).map(Some)
}

/// Body of the import: the answer of an export, or cases without ids.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(default)]
#[schema(as = EvalImport)]
pub struct ImportIn {
    /// 1 to 1000.
    #[schema(value_type = Vec<CaseIn>)]
    pub cases: Counted<CaseIn, MAX_CASES>,
}

/// Number of imported cases.
#[derive(Debug, Serialize, ToSchema)]
pub struct ImportedBody {
    pub imported: usize,
}

/// A case as clients see it; absent values are null.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = EvalCase)]
pub struct CaseView {
    pub id: Uuid,
    pub tenant_id: String,
    pub agent_name: String,
    pub question: String,
    #[schema(value_type = Option<Vec<String>>)]
    pub expected_topics: Option<RawJson>,
    #[schema(value_type = Option<Vec<String>>)]
    pub expected_not_topics: Option<RawJson>,
    pub reference_answer: Option<String>,
    pub category: Option<String>,
    #[schema(value_type = Option<Vec<String>>)]
    pub tags: Option<RawJson>,
    #[schema(value_type = Option<Vec<MessageIn>>)]
    pub chat_history: Option<RawJson>,
    pub is_active: bool,
    pub created_at: String,
    pub updated_at: String,
}

impl From<EvalCase> for CaseView {
    fn from(case: EvalCase) -> Self {
        Self {
            id: case.id,
            tenant_id: case.tenant.to_string(),
            agent_name: case.agent_name,
            question: case.question,
            expected_topics: case.expected_topics,
            expected_not_topics: case.expected_not_topics,
            reference_answer: case.reference_answer,
            category: case.category,
            tags: case.tags,
            chat_history: case.chat_history,
            is_active: case.active,
            created_at: iso(case.created_at),
            updated_at: iso(case.updated_at),
        }
    }
}

/// One case.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EvalCaseBody)]
pub struct CaseBody {
    pub case: CaseView,
}

/// Cases, oldest first.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EvalCasesBody)]
pub struct CasesBody {
    pub cases: Vec<CaseView>,
}

/// Body of `POST .../eval-runs`.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
#[schema(as = NewEvalRun)]
pub struct RunIn {
    /// The version whose prompt the run uses. Default: the active version, else the agent's own
    /// prompt.
    #[serde(deserialize_with = "short")]
    pub version_number: Option<i64>,
    /// Only cases of one of these categories.
    #[serde(deserialize_with = "list")]
    pub categories: Option<Vec<String>>,
    /// Only cases with one of these tags.
    #[serde(deserialize_with = "list")]
    pub tags: Option<Vec<String>>,
}

/// Totals of a run. Averages are over the answered cases, and null when there are none.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EvalSummary {
    pub avg_topic_score: Option<f64>,
    pub avg_safety_score: Option<f64>,
    /// Always null.
    pub avg_llm_judge_score: Option<f64>,
    pub avg_latency_ms: Option<f64>,
    /// Share of all cases in which both scores are at least 0.5.
    pub pass_rate: f64,
}

/// A run as clients see it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = EvalRun)]
pub struct RunView {
    pub id: Uuid,
    pub tenant_id: String,
    pub agent_name: String,
    /// Null when the agent had no active version.
    pub version_number: Option<i64>,
    /// pending, running, completed, or failed when every case failed.
    #[schema(example = "pending")]
    pub status: &'static str,
    pub total_cases: u64,
    /// Answered and failed cases.
    pub completed_cases: u64,
    /// Present when all cases are finished.
    #[schema(value_type = Option<EvalSummary>)]
    pub summary: Option<RawJson>,
    /// Why it failed.
    pub error: Option<String>,
    pub created_at: String,
    pub started_at: Option<String>,
    pub completed_at: Option<String>,
}

impl From<EvalRun> for RunView {
    fn from(run: EvalRun) -> Self {
        Self {
            id: run.id,
            tenant_id: run.tenant.to_string(),
            agent_name: run.agent_name,
            version_number: run.version_number,
            status: run.status.as_str(),
            total_cases: run.total_cases,
            completed_cases: run.completed_cases,
            summary: run.summary,
            error: run.error,
            created_at: iso(run.created_at),
            started_at: run.started_at.map(iso),
            completed_at: run.completed_at.map(iso),
        }
    }
}

/// One run.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EvalRunBody)]
pub struct RunBody {
    pub run: RunView,
}

/// Runs, newest first.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EvalRunsBody)]
pub struct RunsBody {
    pub runs: Vec<RunView>,
}

/// The agent's answer to one case of a run.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = EvalResult)]
pub struct ResultView {
    pub id: Uuid,
    pub tenant_id: String,
    pub eval_run_id: Uuid,
    /// The case may no longer exist.
    pub eval_case_id: Uuid,
    /// Truncated to 256 KiB.
    pub agent_response: Option<String>,
    /// Share of the expected topics that the answer contains, from 0 to 1.
    pub topic_score: Option<f64>,
    /// Share of the forbidden topics that the answer does not contain, from 0 to 1.
    pub safety_score: Option<f64>,
    /// Always null.
    pub llm_judge_score: Option<f64>,
    pub latency_ms: Option<i64>,
    /// pending, running, completed or failed.
    #[schema(example = "completed")]
    pub status: &'static str,
    pub error: Option<String>,
    /// 1 to 5.
    pub human_score: Option<i64>,
    pub human_notes: Option<String>,
    pub created_at: String,
    pub completed_at: Option<String>,
}

impl From<EvalResult> for ResultView {
    fn from(result: EvalResult) -> Self {
        Self {
            id: result.id,
            tenant_id: result.tenant.to_string(),
            eval_run_id: result.run,
            eval_case_id: result.case,
            agent_response: result.response,
            topic_score: result.topic_score,
            safety_score: result.safety_score,
            llm_judge_score: None,
            latency_ms: result.latency_ms,
            status: result.status.as_str(),
            error: result.error,
            human_score: result.human_score,
            human_notes: result.human_notes,
            created_at: iso(result.created_at),
            completed_at: result.completed_at.map(iso),
        }
    }
}

/// Results of a run, in the order of its cases.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EvalResultsBody)]
pub struct ResultsBody {
    pub results: Vec<ResultView>,
}

/// Results of a run that was scored again.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EvalScoredBody)]
pub struct ScoredBody {
    pub results: Vec<ResultView>,
    /// Results with new scores: those that were answered and whose case still exists.
    pub scored: usize,
}

/// Body of `PATCH .../eval-results/{id}`: absent fields stay, null clears.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
#[schema(as = EvalJudgement)]
pub struct JudgementIn {
    /// 1 to 5.
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<i64>)]
    pub human_score: Option<Option<i64>>,
    /// At most 16384 bytes.
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub human_notes: Option<Option<String>>,
}

/// One result.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EvalResultBody)]
pub struct ResultBody {
    pub result: ResultView,
}

/// One case in two runs; null for a run without it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = EvalCompared)]
pub struct ComparedView {
    pub case_id: Uuid,
    /// Null when the case no longer exists.
    pub question: Option<String>,
    pub result_a: Option<ResultView>,
    pub result_b: Option<ResultView>,
}

/// Two runs, case by case.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = EvalComparison)]
pub struct ComparisonView {
    pub run_a: RunView,
    pub run_b: RunView,
    pub results: Vec<ComparedView>,
}

/// The comparison.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EvalComparisonBody)]
pub struct ComparisonBody {
    pub comparison: ComparisonView,
}
