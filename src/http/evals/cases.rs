//! `/api/agents/{name}/eval-cases`.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;

use super::super::AppState;
use super::super::args::Args;
use super::super::body::{JsonBody, MIB};
use super::super::error::{ApiError, ErrorBody};
use super::super::rows;
use super::wire::{CaseBody, CaseIn, CaseView, CasesBody, ImportIn, ImportedBody};
use super::{MOST, OwnAgent, OwnAgentAnd, check, page};
use crate::store::{CaseFilter, EvalCase};

fn found(case: Option<EvalCase>) -> Result<Json<CaseBody>, ApiError> {
    let case = case.ok_or_else(missing)?;
    Ok(Json(CaseBody { case: case.into() }))
}

fn missing() -> ApiError {
    ApiError::not_found("Eval case not found")
}

/// Create an eval case
#[utoipa::path(
    post, path = "/api/agents/{name}/eval-cases", tag = "evals", params(("name" = String, Path)),
    request_body(content = CaseIn, example = json!({"question": "What is the capital of France?", "expectedTopics": ["Paris"]})),
    responses(
        (status = 201, body = CaseBody),
        (status = 404, description = "Agent not found", body = ErrorBody),
        (status = 409, description = "The agent has 1000 cases already", body = ErrorBody),
    )
)]
pub async fn create(
    State(state): State<AppState>,
    agent: OwnAgent,
    body: JsonBody<CaseIn, { 2 * MIB }>,
) -> Result<(StatusCode, Json<CaseBody>), ApiError> {
    let new = check::new_case(body.value, "")?;
    let made = state.store.eval_cases_insert(&agent.tenant, &agent.name, vec![new]).await?;
    let case = made.and_then(|mut made| made.pop()).ok_or_else(|| ApiError::not_found("Agent not found"))?;
    Ok((StatusCode::CREATED, Json(CaseBody { case: case.into() })))
}

/// List the agent's cases, oldest first
#[utoipa::path(
    get, path = "/api/agents/{name}/eval-cases", tag = "evals",
    params(
        ("name" = String, Path),
        ("category" = Option<String>, Query),
        ("isActive" = Option<bool>, Query),
        ("limit" = Option<i64>, Query, minimum = 1, maximum = 1000, description = "Default: 1000, the maximum number of cases"),
        ("offset" = Option<i64>, Query, minimum = 0),
    ),
    responses((status = 200, body = CasesBody), (status = 404, description = "Agent not found", body = ErrorBody))
)]
pub async fn list(State(state): State<AppState>, agent: OwnAgent, args: Args) -> Result<Response, ApiError> {
    let (limit, offset) = page(&args, MOST)?;
    let active = args.text("isActive").map(|_| args.flag("isActive", true)).transpose()?;
    let filter = CaseFilter { category: args.text("category").map(str::to_owned), active, limit, offset };
    answer(&state, &agent, &filter).await
}

/// Export all cases in the format of the import
#[utoipa::path(
    get, path = "/api/agents/{name}/eval-cases/export", tag = "evals", params(("name" = String, Path)),
    responses((status = 200, body = CasesBody), (status = 404, description = "Agent not found", body = ErrorBody))
)]
pub async fn export(State(state): State<AppState>, agent: OwnAgent) -> Result<Response, ApiError> {
    let filter = CaseFilter { category: None, active: None, limit: check::MAX_CASES as u32, offset: 0 };
    answer(&state, &agent, &filter).await
}

async fn answer(state: &AppState, agent: &OwnAgent, filter: &CaseFilter) -> Result<Response, ApiError> {
    let places = state.store.eval_case_places(&agent.tenant, &agent.name, filter).await?;
    rows::list::<EvalCase, CaseView>(&state.store, &agent.tenant, "cases", places, "").await
}

/// Import cases
///
/// All or none. Each becomes a new case, even if an equal one exists.
#[utoipa::path(
    post, path = "/api/agents/{name}/eval-cases/import", tag = "evals", params(("name" = String, Path)),
    request_body(content = ImportIn, example = json!({"cases": [{"question": "What is 2 + 2?", "expectedTopics": ["4"]}]})),
    responses(
        (status = 200, body = ImportedBody),
        (status = 404, description = "Agent not found", body = ErrorBody),
        (status = 409, description = "The agent would have more than 1000 cases", body = ErrorBody),
        (status = 413, description = "Larger than 16 MiB", body = ErrorBody),
    )
)]
pub async fn import(
    State(state): State<AppState>,
    agent: OwnAgent,
    body: JsonBody<ImportIn, { 16 * MIB }>,
) -> Result<Json<ImportedBody>, ApiError> {
    let cases = check::import(body.value)?;
    let made = state.store.eval_cases_insert(&agent.tenant, &agent.name, cases).await?;
    let made = made.ok_or_else(|| ApiError::not_found("Agent not found"))?;
    Ok(Json(ImportedBody { imported: made.len() }))
}

/// Get a case
#[utoipa::path(
    get, path = "/api/agents/{name}/eval-cases/{id}", tag = "evals", params(("name" = String, Path), ("id" = Uuid, Path)),
    responses((status = 200, body = CaseBody), (status = 404, description = "Eval case not found", body = ErrorBody))
)]
pub async fn get(
    State(state): State<AppState>,
    OwnAgentAnd { agent, id }: OwnAgentAnd,
) -> Result<Json<CaseBody>, ApiError> {
    let id = id.ok_or_else(missing)?;
    found(state.store.eval_case(&agent.tenant, &agent.name, id).await?)
}

/// Change a case
#[utoipa::path(
    patch, path = "/api/agents/{name}/eval-cases/{id}", tag = "evals", params(("name" = String, Path), ("id" = Uuid, Path)),
    request_body(content = CaseIn, example = json!({"isActive": false})),
    responses((status = 200, body = CaseBody), (status = 404, description = "Eval case not found", body = ErrorBody))
)]
pub async fn patch(
    State(state): State<AppState>,
    OwnAgentAnd { agent, id }: OwnAgentAnd,
    body: JsonBody<CaseIn, { 2 * MIB }>,
) -> Result<Json<CaseBody>, ApiError> {
    let id = id.ok_or_else(missing)?;
    state.store.eval_case(&agent.tenant, &agent.name, id).await?.ok_or_else(missing)?;
    let fields = check::patch(body.value)?;
    found(state.store.eval_case_update(&agent.tenant, &agent.name, id, fields).await?)
}

/// Delete a case
///
/// Its results stay. A run that has not asked it yet records it as failed.
#[utoipa::path(
    delete, path = "/api/agents/{name}/eval-cases/{id}", tag = "evals", params(("name" = String, Path), ("id" = Uuid, Path)),
    responses((status = 204), (status = 404, description = "Eval case not found", body = ErrorBody))
)]
pub async fn delete(
    State(state): State<AppState>,
    OwnAgentAnd { agent, id }: OwnAgentAnd,
) -> Result<StatusCode, ApiError> {
    let id = id.ok_or_else(missing)?;
    match state.store.eval_case_delete(&agent.tenant, &agent.name, id).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(missing()),
    }
}
