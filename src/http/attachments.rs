//! Attachments: files that clients give to a session.
//!
//! ```text
//!   <data dir>/sessions/<id>/attachments/<attachment id>    the original, invisible to the sandbox: used for downloads
//!                            workspace/attachments/<name>   a copy that belongs to the agent
//! ```
//!
//! Both files are complete before the row is inserted, and the original is removed after the row.
//! So every row has its file.

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
use super::files::{self, answer, beneath, content_type, write};
use super::rows;
use super::threads::blocking;
use crate::store::Attachment;
use ash_model::{iso, names, now_ms};

/// Longest file name, in bytes.
const MAX_NAME: usize = 255;
/// The `messageId` of an attachment without a message.
const UNLINKED: &str = "unlinked";
/// The workspace directory of the copies.
const PLACE: &str = "attachments";
/// Copies with the same name.
const MAX_COPIES: usize = 1000;

/// Body of `POST .../attachments`.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NewAttachment {
    #[schema(example = "photo.png")]
    pub filename: String,
    /// Base64; at most 10 MiB, or `ASH_MAX_ATTACHMENT_SIZE`.
    pub content: Option<String>,
    /// Default: by the extension of the file name.
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
    /// `unlinked` when none was given.
    #[schema(example = "unlinked")]
    pub message_id: String,
    /// The copy in the workspace. Absent when the files of the session are no longer kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "attachments/photo.png")]
    pub storage_path: Option<String>,
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
            message_id: attachment.message_id.unwrap_or_else(|| UNLINKED.to_owned()),
            storage_path: attachment.path,
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

fn directory(state: &AppState, session: Uuid) -> PathBuf {
    let workspace = state.sessions.workspace(session);
    workspace.parent().map(Path::to_owned).unwrap_or(workspace)
}

/// Attach a file to a session
///
/// The file is stored with the session, and copied into the workspace as `attachments/<name>`,
/// where `<name>` is the base name of `filename`. A second file of that name gets `-2`.
#[utoipa::path(
    post, path = "/api/sessions/{id}/attachments", tag = "attachments", params(("id" = Uuid, Path)),
    request_body(content = NewAttachment, example = json!({"filename": "note.txt", "content": "aGVsbG8="})),
    responses(
        (status = 201, body = AttachmentBody),
        (status = 400, description = "A field is wrong, or the workspace has a conflicting entry", body = ErrorBody),
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
    let name = base_name(&filename)?.to_owned();
    let mime_type = mime_type.unwrap_or_else(|| content_type::of(&filename).to_owned());
    if mime_type.len() > MAX_NAME || !mime_type.contains('/') || HeaderValue::from_str(&mime_type).is_err() {
        let shown: String = mime_type.chars().take(100).collect();
        return Err(ApiError::bad_request(format!("mimeType must be a media type, not \"{}\"", shown.escape_debug())));
    }
    if message_id.as_ref().is_some_and(|id| id.len() > MAX_NAME) {
        return Err(ApiError::bad_request(format!("messageId must have at most {MAX_NAME} bytes")));
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
    // The original and the copy.
    let _upload = state.uploads.wait(&session.id()).await;
    state.sessions.check_room(&session, 2 * bytes.len() as u64).await?;
    let mut attachment = Attachment {
        id: Uuid::new_v4(),
        session: session.id(),
        tenant: session.tenant().clone(),
        filename,
        mime_type,
        size: bytes.len() as u64,
        message_id,
        path: None,
        created_at: now_ms(),
    };
    let (id, directory) = (attachment.id, directory(&state, session.id()));
    let (parent, workspace) = (directory.clone(), state.sessions.workspace(session.id()));
    let written = blocking(move || {
        let failed = |cause: io::Error| ApiError::disk("the attachment cannot be stored", &cause);
        let root = beneath::root(&parent).map_err(failed)?;
        write::put(&root, &path_of(id), &bytes, write::Bits::Set(0o600))
            .map_err(|why| failed(io::Error::other(why)))?;
        copy_for_the_agent(&workspace, &name, &bytes)
    })
    .await;
    let stored = match written {
        Ok(path) => {
            attachment.path = path;
            state.store.attachment_insert(attachment.clone()).await.map_err(ApiError::from)
        }
        Err(why) => Err(why),
    };
    if stored.is_err() {
        remove(directory, id).await;
        if let Some(path) = attachment.path.take() {
            remove_copy(state.sessions.workspace(session.id()), path).await;
        }
    }
    stored?;
    Ok((StatusCode::CREATED, Json(AttachmentBody { attachment: attachment.into() })))
}

/// Copies the file into the workspace and returns its path; `None` when there is no workspace any
/// more.
fn copy_for_the_agent(workspace: &Path, name: &str, bytes: &[u8]) -> Result<Option<String>, ApiError> {
    let root = match beneath::root(workspace) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        root => root.map_err(|cause| ApiError::disk("the workspace cannot be opened", &cause))?,
    };
    let free = (1..=MAX_COPIES).map(|copy| numbered(name, copy));
    match write::put_new(&root, Path::new(PLACE), free, bytes, 0o644) {
        Ok(Some(path)) => Ok(Some(names::shown(&path))),
        Ok(None) => Err(ApiError::bad_request(format!(
            "filename: {PLACE}/ has {MAX_COPIES} files of this name; delete some of them"
        ))),
        Err(why) => Err(why.for_client(&format!("{PLACE}/{name}"))),
    }
}

/// The n-th file name of a name: `a.png`, `a-2.png`. Shortened to the longest allowed name.
fn numbered(name: &str, copy: usize) -> String {
    if copy == 1 {
        return name.to_owned();
    }
    let (stem, ending) = match name.rfind('.') {
        Some(at) if at > 0 && name.len() - at < 32 => name.split_at(at),
        _ => (name, ""),
    };
    let suffix = format!("-{copy}{ending}");
    let most = MAX_NAME - suffix.len();
    let end = (0..=stem.len().min(most)).rev().find(|at| stem.is_char_boundary(*at)).unwrap_or(0);
    format!("{}{suffix}", &stem[..end])
}

async fn remove_copy(workspace: PathBuf, path: String) {
    let removed = tokio::task::spawn_blocking(move || {
        let relative = files::path::of_text(&path).map_err(io::Error::other)?;
        write::delete(&beneath::root(&workspace)?, &relative, false).map_err(io::Error::other)
    });
    if let Ok(Err(cause)) = removed.await {
        tracing::warn!(error = %cause, "cannot remove the copy of an attachment from a workspace");
    }
}

fn path_of(id: Uuid) -> PathBuf {
    Path::new("attachments").join(id.to_string())
}

async fn remove(directory: PathBuf, id: Uuid) {
    let removed = tokio::task::spawn_blocking(move || std::fs::remove_file(directory.join(path_of(id)))).await;
    if let Ok(Err(cause)) = removed {
        tracing::warn!(attachment = %id, error = %cause, "cannot remove the file of an attachment");
    }
}

/// The last part of a file name that may contain a path.
fn base_name(sent: &str) -> Result<&str, ApiError> {
    let name = sent.rsplit('/').next().unwrap_or_default();
    let fits = (1..=MAX_NAME).contains(&name.len())
        && sent.len() <= 16 * MAX_NAME
        && !sent.chars().any(char::is_control)
        && name != "."
        && name != "..";
    if fits {
        return Ok(name);
    }
    Err(ApiError::bad_request(format!(
        "filename is required: a name of 1 to {MAX_NAME} bytes without control characters"
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
pub async fn list(State(state): State<AppState>, OwnSession(session): OwnSession) -> Result<Response, ApiError> {
    let places = state.store.attachment_places(session.tenant(), session.id()).await?;
    rows::list::<Attachment, AttachmentView>(&state.store, session.tenant(), "attachments", places, "").await
}

async fn find(state: &AppState, caller: &Caller, Id(id): Id) -> Result<Attachment, ApiError> {
    let id = id.ok_or_else(not_found)?;
    state.store.attachment(&caller.tenant, id).await?.ok_or_else(not_found)
}

/// Download an attachment
#[utoipa::path(
    get, path = "/api/attachments/{id}", tag = "attachments", params(("id" = Uuid, Path)),
    responses(
        (status = 200, description = "The bytes of the file", body = Vec<u8>, content_type = "application/octet-stream"),
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
            .map_err(|cause| ApiError::internal("the session's directory cannot be opened", &cause))?;
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
    state.sessions.touched(&caller.tenant, Some(attachment.session), false);
    Ok(StatusCode::NO_CONTENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_file_of_a_name_gets_a_number() {
        let long = "ü".repeat(126) + ".png";
        for (name, copy, want) in [
            ("a.png", 1, "a.png"),
            ("a.png", 2, "a-2.png"),
            ("a.tar.gz", 3, "a.tar-3.gz"),
            (".env", 2, ".env-2"),
            ("Makefile", 12, "Makefile-12"),
        ] {
            assert_eq!(numbered(name, copy), want);
        }
        let second = numbered(&long, 2);
        assert!(second.len() <= MAX_NAME && second.ends_with("ü-2.png"), "{second}");
    }

    #[test]
    fn only_the_last_part_of_a_name_counts() {
        for (sent, want) in [
            ("a.png", Some("a.png")),
            ("dir/a.png", Some("a.png")),
            ("../../x", Some("x")),
            ("", None),
            ("a/", None),
            ("a/..", None),
            ("a\nb", None),
        ] {
            assert_eq!(base_name(sent).ok(), want, "{sent:?}");
        }
    }
}
