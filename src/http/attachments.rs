//! Attachments: files that clients keep beside a session, out of the sandbox's sight.
//!
//! The bytes are `<data dir>/sessions/<id>/attachments/<attachment id>`, written whole before the row exists and removed
//! after it is gone, so a row always has its bytes.

use std::io;
use std::path::{Path, PathBuf};

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::AppState;
use super::args::{Id, OwnSession};
use super::auth::Caller;
use super::body::{JsonBody, MIB};
use super::error::{ApiError, ErrorBody};
use super::files::{answer, beneath, blocking, content_type, write};
use crate::model::{iso, now_ms};
use crate::store::Attachment;

/// Longest file name, in bytes.
const MAX_NAME: usize = 255;

/// Body of `POST .../attachments`.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NewAttachment {
    #[schema(example = "photo.png")]
    pub filename: String,
    /// Base64; at most 10 MiB, or what `ASH_MAX_ATTACHMENT_SIZE` says.
    pub content: Option<String>,
    /// Default: by the file name's extension.
    pub mime_type: Option<String>,
    /// The message it belongs to.
    pub message_id: Option<String>,
}

/// An attachment, without its bytes.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Attachment)]
pub struct AttachmentView {
    pub id: Uuid,
    pub session_id: Uuid,
    #[schema(example = "default")]
    pub tenant_id: String,
    #[schema(example = "photo.png")]
    pub filename: String,
    #[schema(example = "image/png")]
    pub mime_type: String,
    /// Bytes.
    pub size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    #[schema(example = "2026-01-15T10:00:00.000Z")]
    pub created_at: String,
}

impl From<Attachment> for AttachmentView {
    fn from(attachment: Attachment) -> Self {
        Self {
            id: attachment.id,
            session_id: attachment.session,
            tenant_id: attachment.tenant.to_string(),
            filename: attachment.filename,
            mime_type: attachment.mime_type,
            size: attachment.size,
            message_id: attachment.message_id,
            created_at: iso(attachment.created_at),
        }
    }
}

/// One attachment.
#[derive(Debug, Serialize, ToSchema)]
pub struct AttachmentBody {
    pub attachment: AttachmentView,
}

/// The attachments of a session, oldest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct AttachmentsBody {
    pub attachments: Vec<AttachmentView>,
}

fn not_found() -> ApiError {
    ApiError::not_found("Attachment not found")
}

/// `<data dir>/sessions/<id>/attachments`, beside the workspace.
fn directory(state: &AppState, session: Uuid) -> PathBuf {
    let workspace = state.sessions.workspace(session);
    workspace.parent().map(Path::to_owned).unwrap_or(workspace)
}

/// Keep a file beside a session
#[utoipa::path(
    post, path = "/api/sessions/{id}/attachments", tag = "attachments", params(("id" = Uuid, Path)),
    request_body(content = NewAttachment, example = json!({"filename": "note.txt", "content": "aGVsbG8="})),
    responses(
        (status = 201, body = AttachmentBody),
        (status = 404, description = "Session not found", body = ErrorBody),
        (status = 413, description = "Larger than the limit (10 MiB)", body = ErrorBody),
    )
)]
pub async fn create(
    State(state): State<AppState>,
    OwnSession(session): OwnSession,
    body: JsonBody<NewAttachment, { 140 * MIB }>,
) -> Result<(StatusCode, Json<AttachmentBody>), ApiError> {
    let NewAttachment { filename, content, mime_type, message_id } = body.value;
    state.sessions.check_reserve()?;
    check_name(&filename)?;
    let mime_type = mime_type.unwrap_or_else(|| content_type::of(&filename).to_owned());
    if mime_type.len() > MAX_NAME || !mime_type.contains('/') || HeaderValue::from_str(&mime_type).is_err() {
        return Err(ApiError::bad_request(format!(
            "mimeType must be a media type, not \"{}\"",
            mime_type.escape_debug()
        )));
    }
    let content = content.ok_or_else(|| ApiError::bad_request("content is required: the file in base64"))?;
    let bytes =
        STANDARD.decode(content).map_err(|why| ApiError::bad_request(format!("content must be base64: {why}")))?;
    let limit = state.config.now().attachments.max_bytes;
    if bytes.len() as u64 > limit {
        return Err(ApiError::too_large(format!(
            "content has {} bytes; the limit is {limit} (ASH_MAX_ATTACHMENT_SIZE)",
            bytes.len()
        )));
    }
    let attachment = Attachment {
        id: Uuid::new_v4(),
        session: session.id(),
        tenant: session.tenant().clone(),
        filename,
        mime_type,
        size: bytes.len() as u64,
        message_id,
        created_at: now_ms(),
    };
    let (id, directory) = (attachment.id, directory(&state, session.id()));
    let parent = directory.clone();
    blocking(move || {
        let failed = |cause: io::Error| ApiError::disk("the attachment could not be stored", &cause);
        let root = beneath::root(&parent).map_err(failed)?;
        write::put(&root, &path_of(id), &bytes[..], 0o600).map_err(|why| failed(io::Error::other(why)))
    })
    .await?;
    let stored = state.store.attachment_insert(attachment.clone()).await;
    if stored.is_err() {
        remove(directory, id).await;
    }
    stored?;
    Ok((StatusCode::CREATED, Json(AttachmentBody { attachment: attachment.into() })))
}

fn path_of(id: Uuid) -> PathBuf {
    Path::new("attachments").join(id.to_string())
}

async fn remove(directory: PathBuf, id: Uuid) {
    let removed = tokio::task::spawn_blocking(move || std::fs::remove_file(directory.join(path_of(id)))).await;
    if let Ok(Err(cause)) = removed {
        tracing::warn!(attachment = %id, error = %cause, "the bytes of an attachment could not be removed");
    }
}

fn check_name(name: &str) -> Result<(), ApiError> {
    let fits = (1..=MAX_NAME).contains(&name.len())
        && !name.contains('/')
        && !name.chars().any(char::is_control)
        && name != "."
        && name != "..";
    if fits {
        return Ok(());
    }
    Err(ApiError::bad_request(format!(
        "filename is required: 1 to {MAX_NAME} bytes without slashes and control characters"
    )))
}

/// List a session's attachments
#[utoipa::path(
    get, path = "/api/sessions/{id}/attachments", tag = "attachments", params(("id" = Uuid, Path)),
    responses(
        (status = 200, body = AttachmentsBody),
        (status = 404, description = "Session not found", body = ErrorBody),
    )
)]
pub async fn list(
    State(state): State<AppState>,
    OwnSession(session): OwnSession,
) -> Result<Json<AttachmentsBody>, ApiError> {
    let attachments = state.store.attachments(session.tenant(), session.id()).await?;
    Ok(Json(AttachmentsBody { attachments: attachments.into_iter().map(Into::into).collect() }))
}

async fn find(state: &AppState, caller: &Caller, Id(id): Id) -> Result<Attachment, ApiError> {
    let id = id.ok_or_else(not_found)?;
    state.store.attachment(&caller.tenant, id).await?.ok_or_else(not_found)
}

/// Download an attachment
#[utoipa::path(
    get, path = "/api/attachments/{id}", tag = "attachments", params(("id" = Uuid, Path)),
    responses(
        (status = 200, description = "Its bytes", body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 404, description = "Attachment not found", body = ErrorBody),
    )
)]
pub async fn download(
    State(state): State<AppState>,
    caller: Caller,
    id: Id,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let attachment = find(&state, &caller, id).await?;
    let directory = directory(&state, attachment.session);
    let (file, size) = blocking(move || {
        let root = beneath::root(&directory)
            .map_err(|cause| ApiError::internal("the session's directory could not be opened", &cause))?;
        beneath::read(&root, &path_of(attachment.id)).map_err(|why| why.for_client("attachment"))
    })
    .await?;
    let mut response = answer::raw(file, size, &attachment.filename, "snapshot", &headers).await?;
    // Checked when it was stored.
    if let Ok(kind) = HeaderValue::try_from(attachment.mime_type) {
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    let disposition = content_type::attachment(&attachment.filename);
    if let Ok(disposition) = HeaderValue::try_from(disposition) {
        response.headers_mut().insert(header::CONTENT_DISPOSITION, disposition);
    }
    Ok(response)
}

/// Delete an attachment
#[utoipa::path(
    delete, path = "/api/attachments/{id}", tag = "attachments", params(("id" = Uuid, Path)),
    responses((status = 204), (status = 404, description = "Attachment not found", body = ErrorBody))
)]
pub async fn delete(State(state): State<AppState>, caller: Caller, id: Id) -> Result<StatusCode, ApiError> {
    let attachment = find(&state, &caller, id).await?;
    if !state.store.attachment_delete(&caller.tenant, attachment.id).await? {
        return Err(not_found());
    }
    remove(directory(&state, attachment.session), attachment.id).await;
    Ok(StatusCode::NO_CONTENT)
}
