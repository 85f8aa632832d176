//! `GET` and `POST .../workspace`: all files at once.

use std::io;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::super::AppState;
use super::super::args::OwnSession;
use super::super::body::{JsonBody, MIB};
use super::super::error::{ApiError, ErrorBody};
use super::{Workspace, blocking, bundle, open, unbundle};

/// Most bytes of an archive that is sent to us (contract §7).
const MAX_BUNDLE: usize = 100 * MIB;

/// Body of `POST .../workspace`.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct NewWorkspace {
    /// Base64 of a tar.gz, at most 100 MiB.
    #[schema(example = "H4sIAAAAAAAAA...")]
    pub bundle: String,
}

/// What was done.
#[derive(Debug, Serialize, ToSchema)]
pub struct MessageBody {
    #[schema(example = "Workspace restored: 12 files")]
    pub message: String,
}

/// Download a workspace as tar.gz
///
/// Everything but sockets, FIFOs and devices; links as links. Streamed: an archive that breaks off is not complete.
#[utoipa::path(
    get, path = "/api/sessions/{id}/workspace", tag = "files", params(("id" = Uuid, Path)),
    responses(
        (status = 200, description = "tar.gz", body = Vec<u8>, content_type = "application/gzip"),
        (status = 404, description = "Session not found", body = ErrorBody),
        (status = 413, description = "Its files have more than 64 GiB, holes included", body = ErrorBody),
        (status = 503, description = "Too many downloads at once; see Retry-After", body = ErrorBody),
    )
)]
pub async fn download(State(state): State<AppState>, OwnSession(session): OwnSession) -> Result<Response, ApiError> {
    let Workspace { root, source } = open(&state, &session).await?;
    let permit = Arc::clone(&state.bundles)
        .try_acquire_owned()
        .map_err(|_| ApiError::unavailable("too many workspaces are being downloaded at once; try again", 5))?;
    let name = format!("attachment; filename=\"workspace-{}.tar.gz\"", session.id());
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/gzip")),
        (header::CONTENT_DISPOSITION, HeaderValue::try_from(name).expect("an id is ASCII")),
        (HeaderName::from_static("x-ash-source"), HeaderValue::from_static(source)),
    ];
    let archive = bundle::stream(root, permit).await.map_err(|cause| match cause.kind() {
        io::ErrorKind::FileTooLarge => ApiError::too_large(format!("the workspace cannot be archived: {cause}")),
        _ => ApiError::disk("the workspace could not be archived", &cause),
    })?;
    Ok((headers, archive).into_response())
}

/// Unpack a tar.gz into a workspace
///
/// Nothing is written when any of its paths leaves the workspace. Files that are there and not in the archive stay.
#[utoipa::path(
    post, path = "/api/sessions/{id}/workspace", tag = "files", params(("id" = Uuid, Path)),
    request_body(content = NewWorkspace, example = json!({"bundle": "H4sIAAAAAAAAA..."})),
    responses(
        (status = 200, body = MessageBody),
        (status = 400, description = "No tar.gz, or a path that leaves the workspace", body = ErrorBody),
        (status = 404, description = "Session not found", body = ErrorBody),
        (status = 413, description = "Larger than 100 MiB, or than the session's disk", body = ErrorBody),
    )
)]
pub async fn restore(
    State(state): State<AppState>,
    OwnSession(session): OwnSession,
    body: JsonBody<NewWorkspace, { 140 * MIB }>,
) -> Result<Json<MessageBody>, ApiError> {
    if body.value.bundle.is_empty() {
        return Err(ApiError::bad_request("bundle is required: a tar.gz in base64"));
    }
    let archive = STANDARD
        .decode(&body.value.bundle)
        .map_err(|why| ApiError::bad_request(format!("bundle must be base64: {why}")))?;
    if archive.len() > MAX_BUNDLE {
        return Err(ApiError::too_large(format!("bundle has {} bytes; the limit is {MAX_BUNDLE}", archive.len())));
    }
    let Workspace { root, .. } = open(&state, &session).await?;
    let disk_bytes = state.sessions.check_room(&session, archive.len() as u64).await?;
    let report = blocking(move || unbundle::unpack(&root, &archive, disk_bytes)).await?;
    Ok(Json(MessageBody { message: report.in_words() }))
}
