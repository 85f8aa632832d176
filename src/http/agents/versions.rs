//! `/api/agents/{name}/versions`: stored prompts of an agent. New sessions use the active one.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, OneOfBuilder, Schema, SchemaFormat, Type};
use uuid::Uuid;

use super::super::AppState;
use super::super::args::{AgentName, VersionName, VersionNumber};
use super::super::auth::Caller;
use super::super::body::{JsonBody, MIB};
use super::super::error::{ApiError, ErrorBody};
use super::super::rows;
use super::wire::given;
use crate::store::{AgentVersion, VersionDelete, VersionFields};
use ash_model::{RawJson, iso};

/// Longest name, in bytes.
const MAX_NAME: usize = 200;

/// Body of the POST and the PATCH. The POST takes absent fields from the agent; the PATCH leaves
/// absent fields unchanged.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct VersionBodyIn {
    /// 1 to 200 bytes. Default: `v` and the number.
    pub name: Option<String>,
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub system_prompt: Option<Option<String>>,
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub release_notes: Option<Option<String>>,
    /// Stored as sent.
    #[schema(value_type = Option<Vec<Object>>)]
    pub knowledge_files: Option<RawJson>,
    /// Who created it, as free text. Ignored in a PATCH.
    pub created_by: Option<String>,
    /// The number or the id of a version of the same agent. Its prompt and knowledge files replace
    /// those that the body leaves out. Ignored in a PATCH.
    #[schema(schema_with = number_or_id)]
    pub clone_from: Option<RawJson>,
}

fn number_or_id() -> RefOr<Schema> {
    let item = |kind| ObjectBuilder::new().schema_type(kind);
    let id = item(Type::String).format(Some(SchemaFormat::KnownFormat(KnownFormat::Uuid)));
    let either = OneOfBuilder::new().item(item(Type::Integer)).item(id);
    let about = "The number or the id of a version of the same agent. Its prompt and knowledge files replace those that the body \
                 leaves out. Ignored in a PATCH.";
    Schema::OneOf(either.description(Some(about)).build()).into()
}

async fn cloned(
    state: &AppState,
    caller: &Caller,
    agent: &str,
    from: Option<RawJson>,
    fields: &mut VersionFields,
) -> Result<(), ApiError> {
    let Some(from) = from.filter(|from| !from.is_null()) else { return Ok(()) };
    let name = match serde_json::from_str(from.get()) {
        Ok(Value::Number(number)) => VersionName::parse(&number.to_string()),
        Ok(Value::String(text)) => Uuid::try_parse(&text).ok().map(VersionName::Id),
        _ => None,
    };
    let name = name.ok_or_else(|| ApiError::bad_request("cloneFrom must be the number or the UUID of a version"))?;
    let number = match name {
        VersionName::Number(number) => Some(number),
        VersionName::Id(id) => state.store.version_number(&caller.tenant, agent, id).await?,
    };
    let source = match number {
        Some(number) => state.store.version(&caller.tenant, agent, number).await?,
        None => None,
    };
    let Some(source) = source else {
        state.store.agent(&caller.tenant, agent).await?.ok_or_else(super::not_found)?;
        return Err(ApiError::bad_request(format!("cloneFrom: the agent has no version {}", from.get())));
    };
    fields.system_prompt.get_or_insert(source.system_prompt);
    fields.knowledge_files.get_or_insert(source.knowledge_files);
    Ok(())
}

/// A version of an agent.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = AgentVersion)]
pub struct VersionView {
    pub id: Uuid,
    pub tenant_id: String,
    pub agent_name: String,
    pub version_number: i64,
    pub name: String,
    pub is_active: bool,
    pub system_prompt: Option<String>,
    pub release_notes: Option<String>,
    #[schema(value_type = Vec<Object>)]
    pub knowledge_files: RawJson,
    pub created_by: Option<String>,
    pub created_at: String,
    pub updated_at: String,
}

impl From<AgentVersion> for VersionView {
    fn from(version: AgentVersion) -> Self {
        Self {
            id: version.id,
            tenant_id: version.tenant.to_string(),
            agent_name: version.agent_name,
            version_number: version.number,
            name: version.name,
            is_active: version.active,
            system_prompt: version.system_prompt,
            release_notes: version.release_notes,
            knowledge_files: version.knowledge_files,
            created_by: version.created_by,
            created_at: iso(version.created_at),
            updated_at: iso(version.updated_at),
        }
    }
}

/// One version.
#[derive(Debug, Serialize, ToSchema)]
pub struct VersionBody {
    pub version: VersionView,
}

/// Versions, newest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct VersionsBody {
    pub versions: Vec<VersionView>,
}

/// The version that new sessions use from now on.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ActivatedBody {
    pub activated: bool,
    pub version_number: i64,
}

fn check(body: VersionBodyIn) -> Result<VersionFields, ApiError> {
    if body.name.as_ref().is_some_and(|name| name.trim().is_empty() || name.len() > MAX_NAME) {
        return Err(ApiError::bad_request(format!("name must have 1 to {MAX_NAME} bytes")));
    }
    if let Some(files) = body.knowledge_files.as_ref().filter(|files| !files.is_array()) {
        return Err(ApiError::bad_request(format!("knowledgeFiles must be an array, not {}", files.kind())));
    }
    Ok(VersionFields {
        name: body.name,
        system_prompt: body.system_prompt,
        release_notes: body.release_notes,
        knowledge_files: body.knowledge_files,
        created_by: body.created_by,
    })
}

fn found(version: Option<AgentVersion>) -> Result<Json<VersionBody>, ApiError> {
    let version = version.ok_or_else(|| ApiError::not_found("Version not found"))?;
    Ok(Json(VersionBody { version: version.into() }))
}

/// Create a version of an agent
///
/// It has no effect until it is activated. `cloneFrom` copies prompt and knowledge files of another
/// version.
#[utoipa::path(
    post, path = "/api/agents/{name}/versions", tag = "agents", params(("name" = String, Path)),
    request_body(content = VersionBodyIn, example = json!({"name": "shorter answers", "systemPrompt": "Be brief."})),
    responses(
        (status = 201, body = VersionBody),
        (status = 400, description = "A field is wrong, or cloneFrom does not exist", body = ErrorBody),
        (status = 404, description = "Agent not found", body = ErrorBody),
    )
)]
pub async fn create(
    State(state): State<AppState>,
    caller: Caller,
    AgentName(name): AgentName,
    body: JsonBody<VersionBodyIn, { 2 * MIB }>,
) -> Result<(StatusCode, Json<VersionBody>), ApiError> {
    let mut body = body.value;
    let from = body.clone_from.take();
    let mut fields = check(body)?;
    cloned(&state, &caller, &name, from, &mut fields).await?;
    let made = state.store.version_insert(&caller.tenant, &name, fields).await?;
    let version = made.ok_or_else(super::not_found)?;
    Ok((StatusCode::CREATED, Json(VersionBody { version: version.into() })))
}

/// List an agent's versions, newest first
#[utoipa::path(
    get, path = "/api/agents/{name}/versions", tag = "agents", params(("name" = String, Path)),
    responses((status = 200, body = VersionsBody), (status = 404, description = "Agent not found", body = ErrorBody))
)]
pub async fn list(
    State(state): State<AppState>,
    caller: Caller,
    AgentName(name): AgentName,
) -> Result<Response, ApiError> {
    state.store.agent(&caller.tenant, &name).await?.ok_or_else(super::not_found)?;
    let places = state.store.version_places(&caller.tenant, &name).await?;
    rows::list::<AgentVersion, VersionView>(&state.store, &caller.tenant, "versions", places, "").await
}

/// One version
#[utoipa::path(
    get, path = "/api/agents/{name}/versions/{number}", tag = "agents",
    params(("name" = String, Path), ("number" = String, Path, description = "Its number or its id", example = "1")),
    responses((status = 200, body = VersionBody), (status = 404, description = "Version not found", body = ErrorBody))
)]
pub async fn get(
    State(state): State<AppState>,
    caller: Caller,
    AgentName(name): AgentName,
    VersionNumber(number): VersionNumber,
) -> Result<Json<VersionBody>, ApiError> {
    found(state.store.version(&caller.tenant, &name, number).await?)
}

/// Change a version
///
/// New sessions use a change of the active version's prompt.
#[utoipa::path(
    patch, path = "/api/agents/{name}/versions/{number}", tag = "agents",
    params(("name" = String, Path), ("number" = String, Path, description = "Its number or its id", example = "1")),
    request_body(content = VersionBodyIn, example = json!({"releaseNotes": "Shorter."})),
    responses((status = 200, body = VersionBody), (status = 404, description = "Version not found", body = ErrorBody))
)]
pub async fn patch(
    State(state): State<AppState>,
    caller: Caller,
    AgentName(name): AgentName,
    VersionNumber(number): VersionNumber,
    body: JsonBody<VersionBodyIn, { 2 * MIB }>,
) -> Result<Json<VersionBody>, ApiError> {
    let fields = check(body.value)?;
    let _publishing = state.publishing.wait(&caller.tenant).await;
    let updated = found(state.store.version_update(&caller.tenant, &name, number, fields).await?)?;
    state.sessions.agents_changed();
    Ok(updated)
}

/// Use a version's prompt for new sessions
#[utoipa::path(
    post, path = "/api/agents/{name}/versions/{number}/activate", tag = "agents",
    params(("name" = String, Path), ("number" = String, Path, description = "Its number or its id", example = "1")),
    responses((status = 200, body = ActivatedBody), (status = 404, description = "Version not found", body = ErrorBody))
)]
pub async fn activate(
    State(state): State<AppState>,
    caller: Caller,
    AgentName(name): AgentName,
    VersionNumber(number): VersionNumber,
) -> Result<Json<ActivatedBody>, ApiError> {
    // A PATCH of the agent reads and writes its whole row.
    let _publishing = state.publishing.wait(&caller.tenant).await;
    let Json(VersionBody { version }) = found(state.store.version_activate(&caller.tenant, &name, number).await?)?;
    state.sessions.agents_changed();
    Ok(Json(ActivatedBody { activated: true, version_number: version.version_number }))
}

/// Delete a version that is not active
#[utoipa::path(
    delete, path = "/api/agents/{name}/versions/{number}", tag = "agents",
    params(("name" = String, Path), ("number" = String, Path, description = "Its number or its id", example = "1")),
    responses(
        (status = 204),
        (status = 400, description = "The version is active", body = ErrorBody),
        (status = 404, description = "Version not found", body = ErrorBody),
    )
)]
pub async fn delete(
    State(state): State<AppState>,
    caller: Caller,
    AgentName(name): AgentName,
    VersionNumber(number): VersionNumber,
) -> Result<StatusCode, ApiError> {
    match state.store.version_delete(&caller.tenant, &name, number).await? {
        VersionDelete::Done => Ok(StatusCode::NO_CONTENT),
        VersionDelete::NotFound => Err(ApiError::not_found("Version not found")),
        VersionDelete::Active => {
            Err(ApiError::bad_request("Cannot delete the active version; activate another one first"))
        }
    }
}
