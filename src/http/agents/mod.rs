//! `/api/agents`: the agents that sessions are created from.
//!
//! An agent is a directory with a `CLAUDE.md`. It exists on the server (`path`), or it is uploaded
//! (`files`, `systemPrompt`) and stored below `<data dir>/agents/<tenant>/<name>/`.

mod check;
mod directory;
pub mod files;
pub mod versions;
pub mod warm;
pub mod wire;

pub use directory::sweep;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::json;

pub use wire::given;
use wire::{AgentBody, AgentsBody, ConfigBody, DeployAgent, DeployedBody, OkBody, PatchAgent, UploadedFile};

use super::AppState;
use super::args::AgentName;
use super::auth::Caller;
use super::body::{JsonBody, MIB};
use super::error::{ApiError, ErrorBody};
use super::rows;
use crate::store::{Agent, NewAgent};
use ash_model::raw::RawObject;
use ash_model::{RawJson, Skipped};

/// Bytes of a deployment's JSON: 100 MiB of files in base64, plus the rest.
const MAX_DEPLOY: usize = 140 * MIB;

fn not_found() -> ApiError {
    ApiError::not_found("Agent not found")
}

/// Deploy an agent
///
/// Deploying an existing name creates its next version: id and createdAt stay. Running sessions do
/// not change.
#[utoipa::path(
    post, path = "/api/agents", tag = "agents",
    request_body(content = DeployAgent, example = json!({"name": "my-agent", "path": "/path/to/agent/directory"})),
    responses(
        (status = 201, body = DeployedBody),
        (status = 400, description = "Agent directory must contain CLAUDE.md, the key may not use this path, or a field is wrong", body = ErrorBody),
        (status = 413, description = "More than 100 MiB of files", body = ErrorBody),
    )
)]
pub async fn deploy(
    State(state): State<AppState>,
    caller: Caller,
    body: JsonBody<DeployAgent, MAX_DEPLOY>,
) -> Result<(StatusCode, Json<DeployedBody>), ApiError> {
    let DeployAgent { name, path, files, system_prompt, env, slug, description, model, backend, config } = body.value;
    check::check_name(&name)?;
    let env = check::env(env)?;
    check::check_texts([
        ("systemPrompt", system_prompt.as_ref()),
        ("slug", slug.as_ref()),
        ("description", description.as_ref()),
        ("model", model.as_ref()),
        ("backend", backend.as_ref()),
    ])?;
    let config = check::check_config(config)?;
    let mut agent = NewAgent {
        name,
        path: String::new(),
        path_by_admin: false,
        env,
        slug,
        description,
        model,
        backend,
        system_prompt: system_prompt.clone(),
        config: config.as_ref().map(RawJson::of),
    };
    let mut skipped = Skipped::default();
    let agent = match (path, files, system_prompt) {
        (Some(_), Some(_), _) => return Err(ApiError::bad_request("path and files exclude each other; send one")),
        (Some(path), None, _) => {
            (agent.path, skipped) = check::check_path(state.config.now(), &caller, path).await?;
            agent.path_by_admin = caller.admin;
            let _publishing = state.publishing.wait(&caller.tenant).await;
            state.store.agent_upsert(&caller.tenant, agent).await?
        }
        (None, None, None) => {
            return Err(ApiError::bad_request(
                "path is required: a directory on the server. Or upload the agent with files or systemPrompt",
            ));
        }
        (None, files, prompt) => {
            // The model must not get a prompt twice when it is also the CLAUDE.md.
            if !files.iter().flat_map(|files| &files.first).any(|file| check::is_claude_md(&file.path)) {
                agent.system_prompt = None;
            }
            let tree = check::decode(files.unwrap_or_default(), prompt)?;
            directory::publish(&state, &caller.tenant, agent, tree).await?
        }
    };
    state.sessions.agents_changed();
    let Skipped { entries: skipped, more: skipped_more } = skipped;
    Ok((StatusCode::CREATED, Json(DeployedBody { agent: agent.into(), skipped, skipped_more })))
}

/// List agents by name
#[utoipa::path(get, path = "/api/agents", tag = "agents", responses((status = 200, body = AgentsBody)))]
pub async fn list(State(state): State<AppState>, caller: Caller) -> Result<Response, ApiError> {
    let places = state.store.agent_places(&caller.tenant).await?;
    rows::list::<Agent, wire::AgentView>(&state.store, &caller.tenant, "agents", places, "").await
}

/// One agent
#[utoipa::path(
    get, path = "/api/agents/{name}", tag = "agents", params(("name" = String, Path)),
    responses((status = 200, body = AgentBody), (status = 404, description = "Agent not found", body = ErrorBody))
)]
pub async fn get(
    State(state): State<AppState>,
    caller: Caller,
    AgentName(name): AgentName,
) -> Result<Json<AgentBody>, ApiError> {
    state.store.agent(&caller.tenant, &name).await?.map(AgentBody::json).ok_or_else(not_found)
}

/// Change an agent's fields
///
/// `env` replaces, `config` merges, null clears. New sessions use the change; running sessions do
/// not.
#[utoipa::path(
    patch, path = "/api/agents/{name}", tag = "agents", params(("name" = String, Path)),
    request_body(content = PatchAgent, example = json!({"description": "Writes haiku"})),
    responses(
        (status = 200, body = AgentBody),
        (status = 400, body = ErrorBody),
        (status = 404, description = "Agent not found", body = ErrorBody),
    )
)]
pub async fn patch(
    State(state): State<AppState>,
    caller: Caller,
    AgentName(name): AgentName,
    body: JsonBody<PatchAgent>,
) -> Result<Json<AgentBody>, ApiError> {
    let patch = body.value;
    let env = patch.env.map(check::env).transpose()?;
    let config = check::check_config(patch.config)?;
    let agent = change(&state, &caller, &name, |agent| {
        let fields = [
            (patch.slug, &mut agent.slug),
            (patch.description, &mut agent.description),
            (patch.model, &mut agent.model),
            (patch.backend, &mut agent.backend),
            (patch.system_prompt, &mut agent.system_prompt),
            (patch.status, &mut agent.status),
        ];
        for (new, field) in fields {
            if let Some(new) = new {
                *field = new;
            }
        }
        if let Some(env) = env {
            agent.env = env;
        }
        config.map_or(Ok(()), |config| merge(&mut agent.config, config))
    })
    .await?;
    Ok(AgentBody::json(agent))
}

/// Reads, changes and writes the agent under a lock.
async fn change(
    state: &AppState,
    caller: &Caller,
    name: &str,
    edit: impl FnOnce(&mut Agent) -> Result<(), ApiError>,
) -> Result<Agent, ApiError> {
    let _publishing = state.publishing.wait(&caller.tenant).await;
    let mut agent = state.store.agent(&caller.tenant, name).await?.ok_or_else(not_found)?;
    edit(&mut agent)?;
    let changed = state.store.agent_update(&caller.tenant, &agent).await?.ok_or_else(not_found)?;
    state.sessions.agents_changed();
    Ok(changed)
}

fn merge(old: &mut Option<RawJson>, new: RawObject) -> Result<(), ApiError> {
    let mut merged = old.as_ref().and_then(RawObject::read).unwrap_or_default();
    for (key, value) in new.iter() {
        if value.is_null() {
            merged.remove(key);
        } else {
            merged.set(key, value.clone());
        }
    }
    check::check_merged(&merged)?;
    *old = Some(RawJson::of(&merged));
    Ok(())
}

/// Get an agent's config
#[utoipa::path(
    get, path = "/api/agents/{name}/config", tag = "agents", params(("name" = String, Path)),
    responses((status = 200, body = ConfigBody), (status = 404, description = "Agent not found", body = ErrorBody))
)]
pub async fn config(
    State(state): State<AppState>,
    caller: Caller,
    AgentName(name): AgentName,
) -> Result<Json<ConfigBody>, ApiError> {
    let agent = state.store.agent(&caller.tenant, &name).await?.ok_or_else(not_found)?;
    Ok(Json(config_body(agent)))
}

/// Merge into an agent's config
#[utoipa::path(
    patch, path = "/api/agents/{name}/config", tag = "agents", params(("name" = String, Path)),
    request_body(content = ConfigBody, example = json!({"config": {"colour": "blue"}})),
    responses((status = 200, body = ConfigBody), (status = 404, description = "Agent not found", body = ErrorBody))
)]
pub async fn patch_config(
    State(state): State<AppState>,
    caller: Caller,
    AgentName(name): AgentName,
    body: JsonBody<RawJson>,
) -> Result<Json<ConfigBody>, ApiError> {
    let given = check::check_config(Some(body.value))?.unwrap_or_default();
    // Clients send both forms: {"config": {...}} and the bare keys.
    let inner = given.get("config").filter(|inner| inner.is_null() || (given.len() == 1 && inner.is_object()));
    let keys = match inner {
        Some(inner) => check::check_config(Some(inner.clone()))?.unwrap_or_default(),
        None => given,
    };
    let agent = change(&state, &caller, &name, |agent| merge(&mut agent.config, keys)).await?;
    Ok(Json(config_body(agent)))
}

fn config_body(agent: Agent) -> ConfigBody {
    ConfigBody { config: agent.config.unwrap_or_else(|| json!({}).into()) }
}

/// Delete an agent
///
/// Its sessions continue and keep their files.
#[utoipa::path(
    delete, path = "/api/agents/{name}", tag = "agents", params(("name" = String, Path)),
    responses((status = 200, body = OkBody), (status = 404, description = "Agent not found", body = ErrorBody))
)]
pub async fn delete(
    State(state): State<AppState>,
    caller: Caller,
    AgentName(name): AgentName,
) -> Result<Json<OkBody>, ApiError> {
    let _publishing = state.publishing.wait(&caller.tenant).await;
    if !state.store.agent_delete(&caller.tenant, &name).await? {
        return Err(not_found());
    }
    state.sessions.agents_changed();
    directory::remove(&state.config.now(), &caller.tenant, &name).await;
    Ok(Json(OkBody { ok: true }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_merges_by_key_and_keeps_the_order() {
        let raw = |text: &str| RawJson::parse(text).unwrap();
        let object = |text: &str| RawObject::read(&raw(text)).unwrap();
        let mut config = Some(raw(r#"{"z":1,"b":2}"#));
        merge(&mut config, object(r#"{"b":null,"a":{"y":3,"c":"\ud99c"}}"#)).unwrap();
        assert_eq!(config, Some(raw(r#"{"z":1,"a":{"y":3,"c":"\ud99c"}}"#)));
        let mut none = None;
        merge(&mut none, RawObject::default()).unwrap();
        assert_eq!(none, Some(raw("{}")));
        let half = format!(r#"{{"a":"{}"}}"#, "x".repeat(check::MAX_TEXT / 2 + 100));
        let mut config = Some(raw(&half));
        assert!(merge(&mut config, object(&half.replace("\"a\"", "\"b\""))).is_err(), "the merged size is limited");
        assert_eq!(config, Some(raw(&half)), "nothing changes");
    }
}
