//! `/api/agents/{name}/files`: the files that sessions are copied from.

use std::fs::File;
use std::path::Path;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use rustix::fs::Stat;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::super::AppState;
use super::super::args::{AgentName, Args, FilePath};
use super::super::auth::Caller;
use super::super::body::JsonBody;
use super::super::error::{ApiError, ErrorBody};
use super::super::files::{FileEntry, answer, beneath, listing, path, write};
use super::super::threads::blocking;
use super::wire::Files;
use super::{MAX_DEPLOY, UploadedFile, check, directory, not_found};
use crate::config::Config;
use crate::sessions::launch::agent_directory::AgentDirectory;
use crate::store::Agent;
use ash_model::{TenantId, names};

/// The files of an agent.
#[derive(Debug, Serialize, ToSchema)]
pub struct AgentFilesBody {
    pub files: Vec<FileEntry>,
    /// Present and true when the agent has more files than one answer holds.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

/// A file of an agent.
#[derive(Debug, Serialize, ToSchema)]
pub struct AgentFileBody {
    #[schema(example = "CLAUDE.md")]
    pub path: String,
    pub content: String,
    /// Bytes.
    pub size: usize,
}

/// Body of the POST.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct NewAgentFiles {
    #[schema(value_type = Vec<UploadedFile>)]
    pub files: Files,
}

/// How many files were written.
#[derive(Debug, Serialize, ToSchema)]
pub struct WrittenBody {
    pub written: usize,
}

/// A deleted file.
#[derive(Debug, Serialize, ToSchema)]
pub struct AgentFileDeleted {
    pub deleted: bool,
}

async fn agent(state: &AppState, caller: &Caller, name: &str) -> Result<Agent, ApiError> {
    state.store.agent(&caller.tenant, name).await?.ok_or_else(not_found)
}

/// Tells whether a file may be read.
type Takes = fn(&Stat) -> bool;

/// Opens the agent's directory. Returns it with the rule for which of its files may be read.
fn open(config: &Config, agent: &Agent) -> Result<(File, Takes), ApiError> {
    let directory = AgentDirectory::of(config, agent)?;
    let root =
        directory.to_file().map_err(|cause| ApiError::internal("the agent's directory cannot be opened", &cause))?;
    Ok((root, directory.takes()))
}

/// Only uploaded agents can be changed.
fn check_uploaded(state: &AppState, tenant: &TenantId, agent: &Agent) -> Result<(), ApiError> {
    if Path::new(&agent.path).starts_with(directory::home(&state.config.now(), tenant, &agent.name)) {
        return Ok(());
    }
    Err(ApiError::bad_request(format!(
        "Agent \"{}\" was deployed from \"{}\" on the server; change its files there, or deploy it with files",
        agent.name, agent.path
    )))
}

/// List an agent's files
#[utoipa::path(
    get, path = "/api/agents/{name}/files", tag = "agents", params(("name" = String, Path)),
    responses(
        (status = 200, body = AgentFilesBody),
        (status = 404, description = "Agent not found", body = ErrorBody),
        (status = 422, description = "The agent's directory is gone", body = ErrorBody),
    )
)]
pub async fn list(
    State(state): State<AppState>,
    caller: Caller,
    AgentName(name): AgentName,
) -> Result<Json<AgentFilesBody>, ApiError> {
    let agent = agent(&state, &caller, &name).await?;
    let config = state.config.now();
    let listing = blocking(move || {
        let (root, takes) = open(&config, &agent)?;
        listing::list_of(&root, listing::Show::Hidden, takes)
            .map_err(|cause| ApiError::internal("the agent cannot be listed", &cause))
    })
    .await?;
    Ok(Json(AgentFilesBody { files: listing.files, truncated: listing.truncated }))
}

/// Read a file of an agent
#[utoipa::path(
    get, path = "/api/agents/{name}/files/{*path}", tag = "agents",
    params(
        ("name" = String, Path),
        ("path" = String, Path, description = "Relative to the agent's directory", example = "CLAUDE.md"),
        ("format" = Option<String>, Query, description = "json (default, at most 1 MiB) or raw"),
    ),
    responses(
        (status = 200, content((AgentFileBody = "application/json"), (Vec<u8> = "application/octet-stream"))),
        (status = 400, body = ErrorBody),
        (status = 404, description = "Agent not found, or file not found", body = ErrorBody),
        (status = 413, description = "Larger than the limit", body = ErrorBody),
    )
)]
pub async fn read(
    State(state): State<AppState>,
    caller: Caller,
    AgentName(name): AgentName,
    FilePath(path): FilePath,
    args: Args,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let format = args.one_of("format", &["json", "raw"])?.unwrap_or("json");
    let asked = path::Asked::new(&path)?;
    let agent = agent(&state, &caller, &name).await?;
    let config = state.config.now();
    let (file, size, path) = blocking(move || {
        let (root, takes) = open(&config, &agent)?;
        let ((file, size), shown) = asked.find(|path| beneath::read(&root, path))?;
        let stat = rustix::fs::fstat(&file).map_err(|cause| ApiError::internal("the file cannot be read", &cause))?;
        if !takes(&stat) {
            return Err(ApiError::bad_request(format!("path: \"{shown}\" is a second name of a file of ashd")));
        }
        Ok((file, size, shown))
    })
    .await?;
    if format == "raw" {
        return answer::raw(file, size, &path, "snapshot", &headers).await;
    }
    let shown = path.clone();
    let content = blocking(move || answer::text(file, size, &shown)).await?;
    Ok(Json(AgentFileBody { path, size: content.len(), content }).into_response())
}

/// Write files of an uploaded agent
///
/// New sessions use them. Running sessions keep their own copies.
#[utoipa::path(
    post, path = "/api/agents/{name}/files", tag = "agents", params(("name" = String, Path)),
    request_body(content = NewAgentFiles, example = json!({"files": [{"path": "CLAUDE.md", "content": "aGVsbG8="}]})),
    responses(
        (status = 200, body = WrittenBody),
        (status = 400, description = "A path escapes, or the agent was deployed from a path", body = ErrorBody),
        (status = 404, description = "Agent not found", body = ErrorBody),
    )
)]
pub async fn write(
    State(state): State<AppState>,
    caller: Caller,
    AgentName(name): AgentName,
    body: JsonBody<NewAgentFiles, MAX_DEPLOY>,
) -> Result<Json<WrittenBody>, ApiError> {
    if body.value.files.count == 0 {
        return Err(ApiError::bad_request("files is required: at least one {path, content}"));
    }
    let tree = check::decode_files(body.value.files)?;
    let _publishing = state.publishing.wait(&caller.tenant).await;
    let agent = agent(&state, &caller, &name).await?;
    check_uploaded(&state, &caller.tenant, &agent)?;
    let config = state.config.now();
    let written = blocking(move || {
        let (root, _) = open(&config, &agent)?;
        for (path, bytes) in &tree {
            let mode = directory::mode(bytes);
            write::put(&root, path, bytes, write::Bits::Set(mode))
                .map_err(|why| why.for_client(&names::shown(path)))?;
        }
        Ok(tree.len())
    })
    .await?;
    Ok(Json(WrittenBody { written }))
}

/// Delete a file of an uploaded agent
#[utoipa::path(
    delete, path = "/api/agents/{name}/files/{*path}", tag = "agents",
    params(("name" = String, Path), ("path" = String, Path, description = "Relative to the agent's directory")),
    responses(
        (status = 200, body = AgentFileDeleted),
        (status = 400, description = "CLAUDE.md, or the agent was deployed from a path", body = ErrorBody),
        (status = 404, description = "Agent not found, or file not found", body = ErrorBody),
    )
)]
pub async fn delete(
    State(state): State<AppState>,
    caller: Caller,
    AgentName(name): AgentName,
    FilePath(path): FilePath,
) -> Result<Json<AgentFileDeleted>, ApiError> {
    let asked = path::Asked::new(&path)?;
    if asked.is(Path::new("CLAUDE.md")) {
        return Err(ApiError::bad_request("Agent directory must contain CLAUDE.md"));
    }
    let _publishing = state.publishing.wait(&caller.tenant).await;
    let agent = agent(&state, &caller, &name).await?;
    check_uploaded(&state, &caller.tenant, &agent)?;
    let config = state.config.now();
    blocking(move || {
        let (root, _) = open(&config, &agent)?;
        asked.find(|path| write::delete(&root, path, false))
    })
    .await?;
    Ok(Json(AgentFileDeleted { deleted: true }))
}
