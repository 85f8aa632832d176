//! `/api/agents`: what sessions are made from.
//!
//! An agent is a directory with a `CLAUDE.md`: either one that is on the server already (`path`), or one that is
//! uploaded (`files`, `systemPrompt`) and then kept below `<data dir>/agents/<tenant>/<name>/`.

mod check;
mod directory;
pub mod files;
pub mod versions;
pub mod warm;
mod wire;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Map, Value, json};

pub use check::check_env;
use wire::{AgentBody, AgentsBody, ConfigBody, DeployAgent, OkBody, PatchAgent, UploadedFile};

use super::AppState;
use super::args::AgentName;
use super::auth::Caller;
use super::body::{JsonBody, MIB};
use super::error::{ApiError, ErrorBody};
use crate::store::{Agent, NewAgent};

/// Bytes of a deployment's JSON: 100 MiB of files in base64, and room for the rest.
const MAX_DEPLOY: usize = 140 * MIB;

fn not_found() -> ApiError {
    ApiError::not_found("Agent not found")
}

/// Deploy an agent
///
/// The same name again is a new version of it: its id and createdAt stay. Running sessions are not touched.
#[utoipa::path(
    post, path = "/api/agents", tag = "agents",
    request_body(content = DeployAgent, example = json!({"name": "my-agent", "path": "/path/to/agent/directory"})),
    responses(
        (status = 201, body = AgentBody),
        (status = 400, description = "Agent directory must contain CLAUDE.md, or a field is wrong", body = ErrorBody),
        (status = 413, description = "More than 100 MiB of files", body = ErrorBody),
    )
)]
pub async fn deploy(
    State(state): State<AppState>,
    caller: Caller,
    body: JsonBody<DeployAgent, MAX_DEPLOY>,
) -> Result<(StatusCode, Json<AgentBody>), ApiError> {
    let DeployAgent { name, path, files, system_prompt, env, slug, description, model, backend, config } = body.value;
    check::check_name(&name)?;
    check_env("env", &env)?;
    state.sessions.check_reserve()?;
    let mut agent = NewAgent {
        name,
        path: String::new(),
        env,
        slug,
        description,
        model,
        backend,
        system_prompt: system_prompt.clone(),
        config: config.map(Value::Object),
    };
    let agent = match (path, files, system_prompt) {
        (Some(_), Some(_), _) => return Err(ApiError::bad_request("path and files exclude each other; send one")),
        (Some(path), None, _) => {
            agent.path = check::check_path(&state.config.now(), &caller.tenant, path).await?;
            let _publishing = state.publishing.lock().await;
            state.store.agent_upsert(&caller.tenant, agent).await?
        }
        (None, None, None) => {
            return Err(ApiError::bad_request(
                "path is required: a directory on the server; or upload the agent with files or systemPrompt",
            ));
        }
        (None, files, prompt) => {
            // A prompt that is the CLAUDE.md must not reach the model twice.
            if !files.iter().flatten().any(|file| check::is_claude_md(&file.path)) {
                agent.system_prompt = None;
            }
            let tree = check::decode(files.unwrap_or_default(), prompt)?;
            directory::publish(&state, &caller.tenant, agent, tree).await?
        }
    };
    state.sessions.agents_changed();
    Ok((StatusCode::CREATED, AgentBody::json(agent)))
}

/// List agents by name
#[utoipa::path(get, path = "/api/agents", tag = "agents", responses((status = 200, body = AgentsBody)))]
pub async fn list(State(state): State<AppState>, caller: Caller) -> Result<Json<AgentsBody>, ApiError> {
    let agents = state.store.agents(&caller.tenant).await?;
    Ok(Json(AgentsBody { agents: agents.into_iter().map(Into::into).collect() }))
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
/// `env` replaces, `config` merges, null clears. New sessions see it; running ones go on as they are.
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
    if let Some(env) = &patch.env {
        check_env("env", env)?;
    }
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
        if let Some(env) = patch.env {
            agent.env = env;
        }
        if let Some(config) = patch.config {
            merge(&mut agent.config, config);
        }
    })
    .await?;
    Ok(AgentBody::json(agent))
}

/// Read, change, write, with no other change in between.
async fn change(
    state: &AppState,
    caller: &Caller,
    name: &str,
    edit: impl FnOnce(&mut Agent),
) -> Result<Agent, ApiError> {
    let _publishing = state.publishing.lock().await;
    let mut agent = state.store.agent(&caller.tenant, name).await?.ok_or_else(not_found)?;
    edit(&mut agent);
    let changed = state.store.agent_update(&caller.tenant, &agent).await?.ok_or_else(not_found)?;
    state.sessions.agents_changed();
    Ok(changed)
}

/// The keys of `new` over those of `old`; a null removes its key.
fn merge(old: &mut Option<Value>, new: Map<String, Value>) {
    let mut merged = match old.take() {
        Some(Value::Object(map)) => map,
        _ => Map::new(),
    };
    for (key, value) in new {
        if value.is_null() {
            merged.remove(&key);
        } else {
            merged.insert(key, value);
        }
    }
    *old = Some(Value::Object(merged));
}

/// What clients have set in an agent's config
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
    Ok(Json(ConfigBody { config: agent.config.unwrap_or_else(|| json!({})) }))
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
    body: JsonBody<Map<String, Value>>,
) -> Result<Json<ConfigBody>, ApiError> {
    let mut keys = body.value;
    // Both forms are in use: {"config": {...}} and the bare keys.
    if keys.len() == 1
        && let Some(Value::Object(inner)) = keys.get_mut("config").map(Value::take)
    {
        keys = inner;
    } else if keys.get("config").is_some_and(Value::is_null) {
        return Err(ApiError::bad_request("config must be an object"));
    }
    let agent = change(&state, &caller, &name, |agent| merge(&mut agent.config, keys)).await?;
    Ok(Json(ConfigBody { config: agent.config.unwrap_or_else(|| json!({})) }))
}

/// Delete an agent
///
/// Its sessions go on and keep their files.
#[utoipa::path(
    delete, path = "/api/agents/{name}", tag = "agents", params(("name" = String, Path)),
    responses((status = 200, body = OkBody), (status = 404, description = "Agent not found", body = ErrorBody))
)]
pub async fn delete(
    State(state): State<AppState>,
    caller: Caller,
    AgentName(name): AgentName,
) -> Result<Json<OkBody>, ApiError> {
    let _publishing = state.publishing.lock().await;
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
    fn config_merges_by_key() {
        let mut config = Some(json!({"a": 1, "b": 2}));
        let Value::Object(new) = json!({"b": null, "c": {"d": 3}}) else { unreachable!() };
        merge(&mut config, new);
        assert_eq!(config, Some(json!({"a": 1, "c": {"d": 3}})));
        let mut none = None;
        merge(&mut none, Map::new());
        assert_eq!(none, Some(json!({})));
    }
}
