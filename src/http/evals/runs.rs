//! `/api/agents/{name}/eval-runs`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use uuid::Uuid;

use super::super::AppState;
use super::super::args::Args;
use super::super::body::JsonBody;
use super::super::error::{ApiError, ErrorBody};
use super::super::rows;
use super::wire::{ResultView, ResultsBody, RunBody, RunIn, RunView, RunsBody, ScoredBody};
use super::{MOST, OwnAgent, OwnAgentAnd, check, page};
use crate::store::{EvalResult, EvalRun, RunRefused};

const LISTED: i64 = 50;

pub async fn find(state: &AppState, agent: &OwnAgent, id: Option<Uuid>) -> Result<EvalRun, ApiError> {
    let found = match id {
        Some(id) => state.store.eval_run(&agent.tenant, &agent.name, id).await?,
        None => None,
    };
    found.ok_or_else(|| ApiError::not_found("Eval run not found"))
}

/// Start an eval run with all active cases
///
/// Each case runs in its own session, several in parallel; the sessions are removed afterwards. A
/// run survives a restart of ashd.
#[utoipa::path(
    post, path = "/api/agents/{name}/eval-runs", tag = "evals", params(("name" = String, Path)),
    request_body(content = RunIn, example = json!({"versionNumber": 1, "categories": ["geography"]})),
    responses(
        (status = 201, body = RunBody),
        (status = 400, description = "The version does not exist, or no active case matches", body = ErrorBody),
        (status = 404, description = "Agent not found", body = ErrorBody),
        (status = 429, description = "The agent has 20 unfinished runs", body = ErrorBody),
    )
)]
pub async fn create(
    State(state): State<AppState>,
    agent: OwnAgent,
    body: JsonBody<RunIn>,
) -> Result<(StatusCode, Json<RunBody>), ApiError> {
    let new = check::run(body.value)?;
    let version = new.version.unwrap_or_default();
    match state.sessions.start_evals(&agent.tenant, &agent.name, new).await? {
        Ok(run) => Ok((StatusCode::CREATED, Json(RunBody { run: run.into() }))),
        Err(RunRefused::NoAgent) => Err(ApiError::not_found("Agent not found")),
        Err(RunRefused::NoVersion) => {
            Err(ApiError::bad_request(format!("versionNumber: the agent has no version {version}")))
        }
        Err(RunRefused::NoCases) => Err(ApiError::bad_request(
            "no active eval case matches; add cases with POST .../eval-cases, or select other categories and tags",
        )),
    }
}

/// List the agent's runs, newest first
///
/// The newest 100 finished runs are kept.
#[utoipa::path(
    get, path = "/api/agents/{name}/eval-runs", tag = "evals",
    params(
        ("name" = String, Path),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 1000, description = "Default: 50"),
        ("offset" = Option<i64>, Query, minimum = 0),
    ),
    responses((status = 200, body = RunsBody), (status = 404, description = "Agent not found", body = ErrorBody))
)]
pub async fn list(State(state): State<AppState>, agent: OwnAgent, args: Args) -> Result<Response, ApiError> {
    let (limit, offset) = page(&args, LISTED)?;
    let places = state.store.eval_run_places(&agent.tenant, &agent.name, limit, offset).await?;
    rows::list::<EvalRun, RunView>(&state.store, &agent.tenant, "runs", places, "").await
}

/// Get a run
#[utoipa::path(
    get, path = "/api/agents/{name}/eval-runs/{id}", tag = "evals", params(("name" = String, Path), ("id" = Uuid, Path)),
    responses((status = 200, body = RunBody), (status = 404, description = "Eval run not found", body = ErrorBody))
)]
pub async fn get(
    State(state): State<AppState>,
    OwnAgentAnd { agent, id }: OwnAgentAnd,
) -> Result<Json<RunBody>, ApiError> {
    Ok(Json(RunBody { run: find(&state, &agent, id).await?.into() }))
}

/// List the results of a run, in the order of the cases
#[utoipa::path(
    get, path = "/api/agents/{name}/eval-runs/{id}/results", tag = "evals",
    params(
        ("name" = String, Path), ("id" = Uuid, Path),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 1000, description = "Default: 1000, the maximum number of results"),
        ("offset" = Option<i64>, Query, minimum = 0),
    ),
    responses((status = 200, body = ResultsBody), (status = 404, description = "Eval run not found", body = ErrorBody))
)]
pub async fn results(
    State(state): State<AppState>,
    OwnAgentAnd { agent, id }: OwnAgentAnd,
    args: Args,
) -> Result<Response, ApiError> {
    let run = find(&state, &agent, id).await?;
    let (limit, offset) = page(&args, MOST)?;
    let places = state.store.eval_result_places(&run, limit, offset).await?;
    rows::list::<EvalResult, ResultView>(&state.store, &run.tenant, "results", places, "").await
}

/// Score the answers of a run again
///
/// Uses the current topics of the cases.
#[utoipa::path(
    post, path = "/api/agents/{name}/eval-runs/{id}/score", tag = "evals",
    params(("name" = String, Path), ("id" = Uuid, Path)),
    responses((status = 200, body = ScoredBody), (status = 404, description = "Eval run not found", body = ErrorBody))
)]
pub async fn score(
    State(state): State<AppState>,
    OwnAgentAnd { agent, id }: OwnAgentAnd,
) -> Result<Response, ApiError> {
    let run = find(&state, &agent, id).await?;
    let scored = state.sessions.score_evals(&run).await?;
    let places = state.store.eval_result_places(&run, check::MAX_CASES as u32, 0).await?;
    let tail = format!(",\"scored\":{scored}");
    rows::list::<EvalResult, ResultView>(&state.store, &run.tenant, "results", places, &tail).await
}
