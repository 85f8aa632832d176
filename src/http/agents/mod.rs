//! `/api/agents`: what sessions are made from.
//!
//! An agent is a directory with a `CLAUDE.md`: either one that is on the server already (`path`), or one that is
//! uploaded (`files`, `systemPrompt`) and then kept below `<data dir>/agents/<tenant>/<name>/`.

mod check;
mod directory;
pub mod files;

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;
use uuid::Uuid;

pub use check::check_env;

use super::AppState;
use super::args::AgentName;
use super::auth::Caller;
use super::body::{JsonBody, MIB};
use super::error::{ApiError, ErrorBody};
use crate::model::iso;
use crate::store::{Agent, NewAgent};

/// Bytes of a deployment's JSON: 100 MiB of files in base64, and room for the rest.
const MAX_DEPLOY: usize = 140 * MIB;

/// An agent as clients see it (contract §4).
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Agent)]
pub struct AgentView {
    pub id: Uuid,
    #[schema(example = "my-agent")]
    pub name: String,
    #[schema(example = "default")]
    pub tenant_id: String,
    /// 1, and one more with every deployment.
    pub version: i64,
    /// The directory on the server that sessions are copied from.
    #[schema(example = "/srv/agents/my-agent")]
    pub path: String,
    #[schema(example = "2026-01-15T10:00:00.000Z")]
    pub created_at: String,
    #[schema(example = "2026-01-15T10:00:00.000Z")]
    pub updated_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slug: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_prompt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    #[schema(value_type = Option<Object>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<Value>,
    /// Names of the agent's variables; the values are never shown.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, &'static str>,
}

impl From<Agent> for AgentView {
    fn from(agent: Agent) -> Self {
        Self {
            id: agent.id,
            name: agent.name,
            tenant_id: agent.tenant.to_string(),
            version: agent.version,
            path: agent.path,
            created_at: iso(agent.created_at),
            updated_at: iso(agent.updated_at),
            slug: agent.slug,
            description: agent.description,
            model: agent.model,
            backend: agent.backend,
            system_prompt: agent.system_prompt,
            status: agent.status,
            config: agent.config,
            env: agent.env.into_keys().map(|name| (name, "***")).collect(),
        }
    }
}

/// One agent.
#[derive(Debug, Serialize, ToSchema)]
pub struct AgentBody {
    pub agent: AgentView,
}

impl AgentBody {
    fn json(agent: Agent) -> Json<Self> {
        Json(Self { agent: agent.into() })
    }
}

/// Agents by name.
#[derive(Debug, Serialize, ToSchema)]
pub struct AgentsBody {
    pub agents: Vec<AgentView>,
}

/// What clients set freely.
#[derive(Debug, Serialize, ToSchema)]
pub struct ConfigBody {
    #[schema(value_type = Object)]
    pub config: Value,
}

/// Answer of a deletion.
#[derive(Debug, Serialize, ToSchema)]
pub struct OkBody {
    pub ok: bool,
}

/// One uploaded file.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct UploadedFile {
    /// Relative to the agent's directory.
    #[schema(example = "CLAUDE.md")]
    pub path: String,
    /// Base64.
    #[schema(example = "WW91IGFyZSBoZWxwZnVsLg==")]
    pub content: String,
}

/// Body of `POST /api/agents`: `path`, or `files` and/or `systemPrompt`.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DeployAgent {
    /// 1 to 255 of A-Z a-z 0-9 _ -
    pub name: String,
    /// A directory on the server; it must contain a CLAUDE.md.
    pub path: Option<String>,
    pub files: Option<Vec<UploadedFile>>,
    /// Becomes CLAUDE.md when `files` has none (and is then not a field of the agent); else it is added to the prompt.
    pub system_prompt: Option<String>,
    pub env: BTreeMap<String, String>,
    pub slug: Option<String>,
    pub description: Option<String>,
    pub model: Option<String>,
    pub backend: Option<String>,
    #[schema(value_type = Option<Object>)]
    pub config: Option<Map<String, Value>>,
}

/// Body of `PATCH /api/agents/{name}`: what is absent stays, what is null is cleared.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PatchAgent {
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub slug: Option<Option<String>>,
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub description: Option<Option<String>>,
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub model: Option<Option<String>>,
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub backend: Option<Option<String>>,
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub system_prompt: Option<Option<String>>,
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub status: Option<Option<String>>,
    /// Replaces all variables.
    pub env: Option<BTreeMap<String, String>>,
    /// Merged into what is there; a null removes its key.
    #[schema(value_type = Option<Object>)]
    pub config: Option<Map<String, Value>>,
}

/// Tells `null` (clear it) from an absent field (leave it).
fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

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
            agent.path = check::check_path(&state.config, &caller.tenant, path).await?;
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
    state.store.agent_update(&caller.tenant, &agent).await?.ok_or_else(not_found)
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
    directory::remove(&state.config, &caller.tenant, &name).await;
    Ok(Json(OkBody { ok: true }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_clears_and_absent_leaves() {
        let patch: PatchAgent = serde_json::from_str(r#"{"model":null,"slug":"s"}"#).unwrap();
        assert_eq!(patch.model, Some(None));
        assert_eq!(patch.slug, Some(Some("s".into())));
        assert_eq!(patch.description, None);
    }

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
