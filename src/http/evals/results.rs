//! `/api/agents/{name}/eval-results`.

use axum::Json;
use axum::extract::State;

use super::super::AppState;
use super::super::body::JsonBody;
use super::super::error::{ApiError, ErrorBody};
use super::wire::{JudgementIn, ResultBody};
use super::{OwnAgentAnd, check};

/// Store a person's judgement of an answer
#[utoipa::path(
    patch, path = "/api/agents/{name}/eval-results/{id}", tag = "evals", params(("name" = String, Path), ("id" = Uuid, Path)),
    request_body(content = JudgementIn, example = json!({"humanScore": 4, "humanNotes": "right, and too long"})),
    responses((status = 200, body = ResultBody), (status = 404, description = "Eval result not found", body = ErrorBody))
)]
pub async fn patch(
    State(state): State<AppState>,
    OwnAgentAnd { agent, id }: OwnAgentAnd,
    body: JsonBody<JudgementIn>,
) -> Result<Json<ResultBody>, ApiError> {
    let missing = || ApiError::not_found("Eval result not found");
    let id = id.ok_or_else(missing)?;
    // Nothing changes: check only that it exists.
    state.store.eval_result_judge(&agent.tenant, &agent.name, id, None, None).await?.ok_or_else(missing)?;
    let (score, notes) = check::judgement(body.value)?;
    let judged = state.store.eval_result_judge(&agent.tenant, &agent.name, id, score, notes).await?;
    Ok(Json(ResultBody { result: judged.ok_or_else(missing)?.into() }))
}
