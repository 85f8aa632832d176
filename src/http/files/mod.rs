//! `/api/sessions/{id}/files`: the files of a session's workspace.
//!
//! The workspace belongs to a program that may be hostile and running. Every path is opened by the
//! kernel *beneath* the workspace's own descriptor, without following links ([`beneath`]).
//! Everything after that uses descriptors.

pub mod answer;
pub mod beneath;
mod bundle;
pub mod content_type;
pub mod listing;
pub mod path;
mod range;
mod unbundle;
pub mod upload;
pub mod workspace;
pub mod write;

use std::fs::File;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::AppState;
use super::args::{Args, FilePath, OwnSession};
use super::error::{ApiError, ErrorBody};
use super::threads::blocking;
use crate::sessions::Own;
use ash_model::SessionStatus;

pub use listing::FileEntry;

/// The files of a workspace.
#[derive(Debug, Serialize, ToSchema)]
pub struct FilesBody {
    pub files: Vec<FileEntry>,
    /// `sandbox` while the session can run; `snapshot` after it has ended or stopped.
    #[schema(example = "sandbox")]
    pub source: &'static str,
    /// Present and true when there are more files than one answer holds.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

/// A file as JSON.
#[derive(Debug, Serialize, ToSchema)]
pub struct FileBody {
    #[schema(example = "src/index.ts")]
    pub path: String,
    pub content: String,
    /// Bytes.
    pub size: u64,
    #[schema(example = "sandbox")]
    pub source: &'static str,
}

/// A session's workspace, opened.
struct Workspace {
    root: File,
    source: &'static str,
}

async fn open(state: &AppState, session: &Own) -> Result<Workspace, ApiError> {
    let source = match state.sessions.row(session).await?.status {
        SessionStatus::Ended | SessionStatus::Stopped | SessionStatus::Error => "snapshot",
        SessionStatus::Starting | SessionStatus::Active | SessionStatus::Paused => "sandbox",
    };
    let root = beneath::root(&state.sessions.workspace(session.id())).map_err(|cause| match cause.kind() {
        std::io::ErrorKind::NotFound => ApiError::not_found("The files of this session are no longer kept"),
        _ => ApiError::internal("the workspace cannot be opened", &cause),
    })?;
    Ok(Workspace { root, source })
}

/// List the files of a workspace
#[utoipa::path(
    get, path = "/api/sessions/{id}/files", tag = "files",
    params(
        ("id" = Uuid, Path),
        ("includeHidden" = Option<String>, Query, description = "true (default): includes caches, virtual environments and tmp; all: every file, including `.git`, `node_modules` and lock files"),
    ),
    responses((status = 200, body = FilesBody), (status = 404, description = "Session not found", body = ErrorBody))
)]
pub async fn list(
    State(state): State<AppState>,
    OwnSession(session): OwnSession,
    args: Args,
) -> Result<Json<FilesBody>, ApiError> {
    let show = match args.text("includeHidden") {
        Some("all") => listing::Show::All,
        _ if args.flag("includeHidden", true)? => listing::Show::Hidden,
        _ => listing::Show::Plain,
    };
    let Workspace { root, source } = open(&state, &session).await?;
    let listing = blocking(move || {
        listing::list(&root, show).map_err(|cause| ApiError::internal("the workspace cannot be listed", &cause))
    })
    .await?;
    Ok(Json(FilesBody { files: listing.files, source, truncated: listing.truncated }))
}

/// Read a file
///
/// Raw by default, with a content type by its extension. Supports ranges. At most 100 MiB raw, 1
/// MiB as JSON.
#[utoipa::path(
    get, path = "/api/sessions/{id}/files/{*path}", tag = "files",
    params(
        ("id" = Uuid, Path),
        ("path" = String, Path, description = "Relative to the workspace", example = "src/index.ts"),
        ("format" = Option<String>, Query, description = "raw (default) or json"),
    ),
    responses(
        (status = 200, description = "The file; with format=json a FileBody", content(
            (Vec<u8> = "application/octet-stream"), (FileBody = "application/json"))),
        (status = 206, description = "The requested range", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 400, description = "The path leaves the workspace, or is not a file", body = ErrorBody),
        (status = 404, description = "Session not found, or file not found", body = ErrorBody),
        (status = 413, description = "Larger than the limit", body = ErrorBody),
        (status = 416, description = "The range is outside the file", body = ErrorBody),
    )
)]
pub async fn read(
    State(state): State<AppState>,
    OwnSession(session): OwnSession,
    FilePath(path): FilePath,
    args: Args,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let format = args.one_of("format", &["raw", "json"])?.unwrap_or("raw");
    let asked = path::Asked::new(&path)?;
    let Workspace { root, source } = open(&state, &session).await?;
    let ((file, size), path) = blocking(move || asked.find(|path| beneath::read(&root, path))).await?;
    if format == "json" {
        let content = blocking({
            let path = path.clone();
            move || answer::text(file, size, &path)
        })
        .await?;
        return Ok(Json(FileBody { path, size: content.len() as u64, content, source }).into_response());
    }
    answer::raw(file, size, &path, source, &headers).await
}
