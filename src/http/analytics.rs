//! `GET /api/analytics`: counts and usage of a tenant in one answer.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::AppState;
use super::args::Args;
use super::auth::Caller;
use super::error::{ApiError, ErrorBody};
use super::usage::{self, UsageStats};

/// Number of agents.
#[derive(Debug, Serialize, ToSchema)]
pub struct AgentCount {
    pub total: u64,
}

/// Number of sessions created, by status.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SessionCount {
    pub total: u64,
    /// By status. Statuses without sessions are absent.
    #[schema(example = json!({"active": 2, "ended": 40}))]
    pub by_status: BTreeMap<String, u64>,
}

/// Number of eval runs created, by status.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct EvalCount {
    pub total_runs: u64,
    /// By status. Statuses without runs are absent.
    #[schema(example = json!({"completed": 3}))]
    pub by_status: BTreeMap<String, u64>,
}

/// Counts of the tenant.
#[derive(Debug, Serialize, ToSchema)]
pub struct AnalyticsBody {
    pub agents: AgentCount,
    pub sessions: SessionCount,
    pub usage: UsageStats,
    pub evals: EvalCount,
}

/// Get counts and usage of the tenant
///
/// `after` and `before` filter sessions and eval runs by creation, and usage by time. Agents are
/// those that exist now.
#[utoipa::path(
    get, path = "/api/analytics", tag = "usage",
    params(
        ("after" = Option<String>, Query, description = "ISO-8601, exclusive", example = "2026-01-15T10:00:00Z"),
        ("before" = Option<String>, Query, description = "ISO-8601, exclusive"),
    ),
    responses((status = 200, body = AnalyticsBody), (status = 400, body = ErrorBody))
)]
pub async fn get(State(state): State<AppState>, caller: Caller, args: Args) -> Result<Json<AnalyticsBody>, ApiError> {
    let filter = usage::period(&args)?;
    state.sessions.collect_usage().await;
    let counts = state.store.analytics(&caller.tenant, filter.after, filter.before).await?;
    let totals = state.store.usage_totals(&caller.tenant, &filter).await?;
    let sum = |by: &BTreeMap<String, u64>| by.values().sum();
    Ok(Json(AnalyticsBody {
        agents: AgentCount { total: counts.agents },
        sessions: SessionCount { total: sum(&counts.sessions), by_status: counts.sessions },
        usage: totals.into(),
        evals: EvalCount { total_runs: sum(&counts.eval_runs), by_status: counts.eval_runs },
    }))
}
