//! `POST` and `DELETE .../files`.

use axum::Json;
use axum::extract::State;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::super::AppState;
use super::super::args::{Args, FilePath, OwnSession};
use super::super::body::{JsonBody, MIB};
use super::super::error::{ApiError, ErrorBody};
use super::super::threads::blocking;
use super::beneath::Refused;
use super::{Workspace, open, path, write};
use ash_model::bounded::Counted;
use ash_model::names;

/// Maximum files of a batch; maximum bytes of one file and of all together.
const MAX_FILES: usize = 500;
const MAX_FILE: usize = 50 * MIB;
const MAX_BATCH: usize = 100 * MIB;

/// One file to write.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NewFile {
    /// Relative to `targetPath`. Bytes that are not UTF-8 are percent-encoded (`caf%E9`).
    #[schema(example = "notes.txt")]
    pub path: String,
    /// Base64.
    #[schema(example = "aGVsbG8=")]
    pub content: String,
    /// Accepted and ignored: the type follows the extension.
    pub mime_type: Option<String>,
}

/// The files, counted.
pub type Files = Counted<NewFile, MAX_FILES>;

/// Body of `POST .../files`.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct UploadFiles {
    /// 1 to 500 files.
    #[schema(value_type = Vec<NewFile>)]
    pub files: Files,
    /// A directory of the workspace, created if missing. Default: the workspace itself.
    pub target_path: Option<String>,
}

/// Result for one file.
#[derive(Debug, Serialize, ToSchema)]
pub struct WrittenFile {
    pub path: String,
    pub written: bool,
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Results in the order of the request.
#[derive(Debug, Serialize, ToSchema)]
pub struct UploadedBody {
    pub files: Vec<WrittenFile>,
}

/// A deleted file.
#[derive(Debug, Serialize, ToSchema)]
pub struct DeletedBody {
    pub path: String,
    pub deleted: bool,
}

/// Write files into a workspace
///
/// Each file is written atomically. A replaced file keeps its mode. A file that cannot be written
/// has an error; the others are written.
#[utoipa::path(
    post, path = "/api/sessions/{id}/files", tag = "files", params(("id" = Uuid, Path)),
    request_body(content = UploadFiles, example = json!({"files": [{"path": "notes.txt", "content": "aGVsbG8="}]})),
    responses(
        (status = 200, body = UploadedBody),
        (status = 400, body = ErrorBody),
        (status = 404, description = "Session not found", body = ErrorBody),
        (status = 413, description = "More than 50 MiB in a file or 100 MiB in all", body = ErrorBody),
        (status = 507, description = "The session's disk limit is exceeded, or the disk is full", body = ErrorBody),
    )
)]
pub async fn upload(
    State(state): State<AppState>,
    OwnSession(session): OwnSession,
    body: JsonBody<UploadFiles, { 140 * MIB }>,
) -> Result<Json<UploadedBody>, ApiError> {
    let UploadFiles { files, target_path } = body.value;
    let target = path::directory(&names::bytes_of(target_path.as_deref().unwrap_or(".")))
        .map_err(|why| ApiError::bad_request(format!("targetPath: {why}")))?;
    let files = decode(files)?;
    let Workspace { root, .. } = open(&state, &session).await?;
    let bytes = files.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    let _upload = state.uploads.wait(&session.id()).await;
    state.sessions.check_room(&session, bytes).await?;
    let files = blocking(move || {
        Ok(files
            .into_iter()
            .map(|(given, bytes)| {
                let result = path::of_text(&given).and_then(|relative| {
                    let put = write::put(&root, &target.join(relative), &bytes, write::Bits::KeepOr(0o644));
                    put.map_err(|why| in_words(&given, why))
                });
                match result {
                    Ok(()) => WrittenFile { path: given, written: true, size: Some(bytes.len()), error: None },
                    Err(why) => WrittenFile { path: given, written: false, size: None, error: Some(why) },
                }
            })
            .collect())
    })
    .await?;
    Ok(Json(UploadedBody { files }))
}

fn in_words(path: &str, why: Refused) -> String {
    match why {
        Refused::Io(cause) if cause.kind() == std::io::ErrorKind::StorageFull => "the disk is full".to_owned(),
        Refused::Io(cause) => {
            tracing::warn!(error = %cause, "cannot write a file into a workspace");
            "the file cannot be written; see the log of ashd for the cause".to_owned()
        }
        other => format!("\"{path}\" {other}"),
    }
}

/// Decodes the whole batch and checks its sizes, before anything is written.
fn decode(files: Files) -> Result<Vec<(String, Vec<u8>)>, ApiError> {
    let Files { first, count } = files;
    if count == 0 || count > MAX_FILES {
        return Err(ApiError::bad_request(format!("files must have 1 to {MAX_FILES} entries, not {count}")));
    }
    let mut total = 0;
    let mut decoded = Vec::with_capacity(first.len());
    for (index, file) in first.into_iter().enumerate() {
        let bytes = STANDARD
            .decode(file.content)
            .map_err(|why| ApiError::bad_request(format!("files[{index}].content must be base64: {why}")))?;
        if bytes.len() > MAX_FILE {
            return Err(ApiError::too_large(format!(
                "files[{index}] has {} bytes; the limit is {MAX_FILE} per file",
                bytes.len()
            )));
        }
        total += bytes.len();
        if total > MAX_BATCH {
            return Err(ApiError::too_large(format!("files have more than the limit of {MAX_BATCH} bytes together")));
        }
        decoded.push((file.path, bytes));
    }
    Ok(decoded)
}

/// Delete a file or a directory of a workspace
#[utoipa::path(
    delete, path = "/api/sessions/{id}/files/{*path}", tag = "files",
    params(
        ("id" = Uuid, Path),
        ("path" = String, Path, description = "Relative to the workspace"),
        ("recursive" = Option<bool>, Query, description = "Delete a directory with its contents (default false)"),
    ),
    responses(
        (status = 200, body = DeletedBody),
        (status = 400, description = "The path leaves the workspace, or is a directory that is not empty", body = ErrorBody),
        (status = 404, description = "Session not found, or file not found", body = ErrorBody),
    )
)]
pub async fn delete(
    State(state): State<AppState>,
    OwnSession(session): OwnSession,
    FilePath(path): FilePath,
    args: Args,
) -> Result<Json<DeletedBody>, ApiError> {
    let recursive = args.flag("recursive", false)?;
    // A directory may be written with a trailing slash.
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
    let asked = path::Asked::new(if path.starts_with(b"/") { &path } else { &path[..end] })?;
    let Workspace { root, .. } = open(&state, &session).await?;
    let ((), path) = blocking(move || asked.find(|path| write::delete(&root, path, recursive))).await?;
    state.sessions.files_changed(session.id()).await;
    Ok(Json(DeletedBody { path, deleted: true }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_checked_before_anything_is_written() {
        let decode = |files: Vec<NewFile>| super::decode(Files { count: files.len(), first: files });
        let file = |content: &str| NewFile { path: "a".into(), content: content.into(), mime_type: None };
        assert_eq!(decode(vec![]).unwrap_err().text(), "files must have 1 to 500 entries, not 0");
        let many = (0..501).map(|_| file("")).collect();
        assert_eq!(decode(many).unwrap_err().text(), "files must have 1 to 500 entries, not 501");
        let error = decode(vec![file(""), file("*")]).unwrap_err();
        assert!(error.text().starts_with("files[1].content must be base64"), "{}", error.text());
        let large = STANDARD.encode(vec![0; MAX_FILE + 1]);
        let error = decode(vec![file(&large)]).unwrap_err();
        assert_eq!(error.status(), axum::http::StatusCode::PAYLOAD_TOO_LARGE);
    }
}
