//! Comparison of two runs. Only one case at a time is in memory: an answer has up to 256 KiB, and a
//! run up to 1000 of them.

use std::collections::VecDeque;
use std::io;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;
use uuid::Uuid;

use super::super::AppState;
use super::super::args::Args;
use super::super::error::{ApiError, ErrorBody};
use super::wire::{ComparedView, ComparisonBody, RunView};
use super::{OwnAgent, runs};
use crate::store::{EvalRun, Store, StoreError};

/// Compare two runs, case by case
#[utoipa::path(
    get, path = "/api/agents/{name}/eval-runs/compare", tag = "evals",
    params(("name" = String, Path), ("runA" = Uuid, Query), ("runB" = Uuid, Query)),
    responses(
        (status = 200, body = ComparisonBody),
        (status = 400, description = "runA or runB is missing", body = ErrorBody),
        (status = 404, description = "Eval run not found", body = ErrorBody),
    )
)]
pub async fn compare(State(state): State<AppState>, agent: OwnAgent, args: Args) -> Result<Response, ApiError> {
    let mut both = Vec::with_capacity(2);
    for name in ["runA", "runB"] {
        let id = args.text(name).filter(|id| !id.is_empty());
        let id = id.ok_or_else(|| ApiError::bad_request(format!("{name} is required: the id of a run")))?;
        both.push(runs::find(&state, &agent, Uuid::try_parse(id).ok()).await?);
    }
    let [a, b] = <[EvalRun; 2]>::try_from(both).map_err(|_| ApiError::not_found("Eval run not found"))?;
    let cases = state.store.eval_compared(&a, &b).await?;
    let head = format!(
        "{{\"comparison\":{{\"runA\":{},\"runB\":{},\"results\":[",
        text(&RunView::from(a.clone()))?,
        text(&RunView::from(b.clone()))?
    );
    let rest = Rest { store: state.store.clone(), a, b, cases: cases.into(), first: true, ended: false };
    let rest = stream::try_unfold(rest, |mut rest| async move {
        let chunk = rest.next().await.map_err(|error| {
            tracing::warn!(%error, "comparison cut short");
            io::Error::other(error)
        })?;
        Ok::<_, io::Error>(chunk.map(|chunk| (Bytes::from(chunk), rest)))
    });
    let body = Body::from_stream(futures_util::StreamExt::chain(stream::iter([Ok(Bytes::from(head))]), rest));
    Ok(([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response())
}

fn text(value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|e| StoreError::Unreadable { what: "comparison", why: e.to_string() })
}

/// What is still to be sent.
struct Rest {
    store: Store,
    a: EvalRun,
    b: EvalRun,
    cases: VecDeque<Uuid>,
    first: bool,
    ended: bool,
}

impl Rest {
    async fn next(&mut self) -> Result<Option<String>, StoreError> {
        let Some(case_id) = self.cases.pop_front() else {
            return Ok((!std::mem::replace(&mut self.ended, true)).then(|| "]}}".to_owned()));
        };
        let row = ComparedView {
            case_id,
            question: self.store.eval_case_of(&self.a, case_id).await?.map(|case| case.question),
            result_a: self.store.eval_result_of(&self.a, case_id).await?.map(Into::into),
            result_b: self.store.eval_result_of(&self.b, case_id).await?.map(Into::into),
        };
        let comma = if std::mem::take(&mut self.first) { "" } else { "," };
        Ok(Some(format!("{comma}{}", text(&row)?)))
    }
}
