//! `/api/agents/{name}/eval-...`: eval cases, runs and results. [`crate::sessions::api::evals`]
//! executes the runs.

pub mod cases;
mod check;
pub mod compare;
pub mod results;
pub mod runs;
mod wire;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use uuid::Uuid;

use super::AppState;
use super::args::{AgentName, Args, Id};
use super::auth::Caller;
use super::error::ApiError;
use ash_model::TenantId;

/// Most rows of one page.
const MOST: i64 = 1000;

/// An agent of the caller's tenant, otherwise 404. Checked before query and body.
#[derive(Clone, Debug)]
pub struct OwnAgent {
    pub tenant: TenantId,
    pub name: String,
}

impl FromRequestParts<AppState> for OwnAgent {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let caller = Caller::from_request_parts(parts, state).await?;
        let AgentName(name) = AgentName::from_request_parts(parts, state).await?;
        match state.store.agent(&caller.tenant, &name).await? {
            Some(agent) => Ok(Self { tenant: agent.tenant, name: agent.name }),
            None => Err(ApiError::not_found("Agent not found")),
        }
    }
}

/// The same, with the `{id}` of a route, which need not exist.
#[derive(Clone, Debug)]
pub struct OwnAgentAnd {
    pub agent: OwnAgent,
    pub id: Option<Uuid>,
}

impl FromRequestParts<AppState> for OwnAgentAnd {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let agent = OwnAgent::from_request_parts(parts, state).await?;
        let Id(id) = Id::from_request_parts(parts, state).await?;
        Ok(Self { agent, id })
    }
}

/// `limit` (1 to 1000) and `offset` (0 or more).
fn page(args: &Args, default: i64) -> Result<(u32, u32), ApiError> {
    let limit = args.int("limit", 1..=MOST)?.unwrap_or(default);
    let offset = args.int("offset", 0..=i64::from(u32::MAX))?.unwrap_or(0);
    Ok((u32::try_from(limit).unwrap_or(u32::MAX), u32::try_from(offset).unwrap_or(u32::MAX)))
}
