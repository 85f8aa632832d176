//! `/api/usage`: tokens as counted by the gateway, results, tool calls and time of turns. Each
//! count of a row is an event of its own.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::AppState;
use super::args::Args;
use super::auth::Caller;
use super::error::{ApiError, ErrorBody};
use crate::store::{UsageFilter, UsageRow, UsageTotals};
use ash_model::{Millis, iso};

/// One count of a model answer or of a turn.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UsageEvent {
    pub id: Uuid,
    pub session_id: Uuid,
    #[schema(example = "default")]
    pub tenant_id: String,
    #[schema(example = "my-agent")]
    pub agent_name: String,
    /// input_tokens, output_tokens, cache_creation_tokens, cache_read_tokens, tool_call, message or
    /// compute_seconds.
    #[schema(example = "output_tokens")]
    pub event_type: &'static str,
    pub value: f64,
    #[schema(example = "2026-01-15T10:00:00.000Z")]
    pub created_at: String,
}

/// Usage, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct UsageBody {
    pub events: Vec<UsageEvent>,
}

/// Sums over the filtered events.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UsageStats {
    pub total_input_tokens: u64,
    pub total_output_tokens: u64,
    pub total_cache_creation_tokens: u64,
    pub total_cache_read_tokens: u64,
    pub total_tool_calls: u64,
    /// Turns with a result.
    pub total_messages: u64,
    pub total_compute_seconds: f64,
}

/// The sums.
#[derive(Debug, Serialize, ToSchema)]
pub struct UsageStatsBody {
    pub stats: UsageStats,
}

/// The counts of a row that are not zero. Their ids differ in the last byte, so that each event has
/// a stable id.
fn events(row: UsageRow, tenant: &str) -> impl Iterator<Item = UsageEvent> {
    let usage = row.usage;
    let counts = [
        ("message", usage.messages as f64),
        ("input_tokens", usage.input_tokens as f64),
        ("output_tokens", usage.output_tokens as f64),
        ("cache_creation_tokens", usage.cache_creation_tokens as f64),
        ("cache_read_tokens", usage.cache_read_tokens as f64),
        ("tool_call", usage.tool_calls as f64),
        ("compute_seconds", usage.compute_ms as f64 / 1000.0),
    ];
    let tenant = tenant.to_owned();
    counts.into_iter().zip(0u8..).filter(|((_, value), _)| *value > 0.0).map(move |((event_type, value), nth)| {
        let mut id = row.id.into_bytes();
        id[15] ^= nth;
        UsageEvent {
            id: Uuid::from_bytes(id),
            session_id: row.session,
            tenant_id: tenant.clone(),
            agent_name: row.agent_name.clone(),
            event_type,
            value,
            created_at: iso(row.created_at),
        }
    })
}

impl From<UsageTotals> for UsageStats {
    fn from(UsageTotals { usage, results }: UsageTotals) -> Self {
        Self {
            total_input_tokens: usage.input_tokens,
            total_output_tokens: usage.output_tokens,
            total_cache_creation_tokens: usage.cache_creation_tokens,
            total_cache_read_tokens: usage.cache_read_tokens,
            total_tool_calls: usage.tool_calls,
            total_messages: results,
            total_compute_seconds: usage.compute_ms as f64 / 1000.0,
        }
    }
}

pub fn period(args: &Args) -> Result<UsageFilter, ApiError> {
    Ok(UsageFilter { after: time(args, "after")?, before: time(args, "before")?, ..UsageFilter::default() })
}

fn filter(args: &Args) -> Result<UsageFilter, ApiError> {
    let session = args
        .text("sessionId")
        .map(|text| Uuid::try_parse(text).map_err(|_| ApiError::bad_request("sessionId must be a UUID")))
        .transpose()?;
    Ok(UsageFilter { session, agent: args.text("agentName").map(str::to_owned), ..period(args)? })
}

/// An ISO-8601 time; without an offset it is UTC (the published client sends naive times).
fn time(args: &Args, name: &str) -> Result<Option<Millis>, ApiError> {
    let Some(text) = args.text(name) else { return Ok(None) };
    // A plus that was not percent-encoded arrives as a space.
    let text = text.replace(' ', "+");
    text.parse::<jiff::Timestamp>()
        .or_else(|_| {
            text.parse::<jiff::civil::DateTime>()
                .and_then(|local| local.to_zoned(jiff::tz::TimeZone::UTC))
                .map(|at| at.timestamp())
        })
        .map(|at| Some(at.as_millisecond()))
        .map_err(|_| ApiError::bad_request(format!("{name} must be an ISO-8601 time, not \"{text}\"")))
}

/// List usage, newest first
#[utoipa::path(
    get, path = "/api/usage", tag = "usage",
    params(
        ("sessionId" = Option<Uuid>, Query),
        ("agentName" = Option<String>, Query),
        ("after" = Option<String>, Query, description = "ISO-8601, exclusive", example = "2026-01-15T10:00:00Z"),
        ("before" = Option<String>, Query, description = "ISO-8601, exclusive"),
        ("limit" = Option<i64>, Query, description = "Maximum number of events, default 100", minimum = 1, maximum = 1000),
    ),
    responses((status = 200, body = UsageBody), (status = 400, body = ErrorBody))
)]
pub async fn list(State(state): State<AppState>, caller: Caller, args: Args) -> Result<Json<UsageBody>, ApiError> {
    let limit = args.int("limit", 1..=1000)?.unwrap_or(100);
    // Every row is at least one event.
    let filter = UsageFilter { limit: u32::try_from(limit).ok(), ..filter(&args)? };
    state.sessions.collect_usage().await;
    let rows = state.store.usage(&caller.tenant, &filter).await?;
    let events = rows
        .into_iter()
        .flat_map(|row| events(row, caller.tenant.as_str()))
        .take(usize::try_from(limit).unwrap_or(usize::MAX))
        .collect();
    Ok(Json(UsageBody { events }))
}

/// Get sums of usage
#[utoipa::path(
    get, path = "/api/usage/stats", tag = "usage",
    params(
        ("sessionId" = Option<Uuid>, Query),
        ("agentName" = Option<String>, Query),
        ("after" = Option<String>, Query, description = "ISO-8601, exclusive"),
        ("before" = Option<String>, Query, description = "ISO-8601, exclusive"),
    ),
    responses((status = 200, body = UsageStatsBody), (status = 400, body = ErrorBody))
)]
pub async fn stats(
    State(state): State<AppState>,
    caller: Caller,
    args: Args,
) -> Result<Json<UsageStatsBody>, ApiError> {
    state.sessions.collect_usage().await;
    let totals = state.store.usage_totals(&caller.tenant, &filter(&args)?).await?;
    Ok(Json(UsageStatsBody { stats: totals.into() }))
}
