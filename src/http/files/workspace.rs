//! `GET` and `POST .../workspace`: the whole workspace.

use std::io;
use std::os::fd::AsFd;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use base64::engine::general_purpose::{GeneralPurpose, STANDARD};
use base64::read::DecoderReader;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::super::args::OwnSession;
use super::super::body::{JsonBody, MIB};
use super::super::error::{ApiError, ErrorBody};
use super::super::threads::blocking;
use super::super::{AppState, BUNDLES, coding};
use super::{Workspace, bundle, open, unbundle};
use crate::sessions::quota::shares::{Holder, Over};
use ash_archive::coding::Coding;
use ash_archive::pack;
use ash_model::Skipped;
use ash_model::skipped::{SkippedEntry, is_zero};

/// Maximum bytes of an uploaded archive.
const MAX_BUNDLE: usize = 100 * MIB;
/// `Retry-After` of downloads, in seconds.
const RETRY_S: u64 = 5;

/// Body of `POST .../workspace`.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct NewWorkspace {
    /// Base64 of a tar archive, plain or compressed with gzip or zstd; at most 100 MiB.
    #[schema(example = "H4sIAAAAAAAAA...")]
    pub bundle: String,
}

/// The result of the upload.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MessageBody {
    #[schema(example = "Workspace restored: 12 files")]
    pub message: String,
    /// Entries of the archive that the workspace lacks or has changed: devices, named pipes, setuid
    /// bits. Absent when there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<SkippedEntry>,
    /// How many more there are: at most 100 are listed.
    #[serde(skip_serializing_if = "is_zero")]
    pub skipped_more: u64,
}

/// Download a workspace as an archive
///
/// A tar.gz; with `Accept-Encoding: zstd` a tar in zstd, as `Content-Encoding` says. Keeps links,
/// hard links, modes, times, holes and names of any bytes. Entries that cannot be kept (sockets,
/// named pipes, devices) are listed in `X-Ash-Skipped`. Streamed: a transfer that is cut short is
/// incomplete.
#[utoipa::path(
    get, path = "/api/sessions/{id}/workspace", tag = "files", params(("id" = Uuid, Path)),
    responses(
        (status = 200, description = "tar.gz, or a tar in zstd", content(
            (Vec<u8> = "application/gzip"), (Vec<u8> = "application/x-tar"))),
        (status = 404, description = "Session not found", body = ErrorBody),
        (status = 429, description = "The tenant already downloads 8 workspaces; see Retry-After", body = ErrorBody),
        (status = 503, description = "Too many downloads of all tenants; see Retry-After", body = ErrorBody),
    )
)]
pub async fn download(
    State(state): State<AppState>,
    Extension(holder): Extension<Holder>,
    OwnSession(session): OwnSession,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let Workspace { root, source } = open(&state, &session).await?;
    let permit = state.bundles.take(&holder, 1, BUNDLES).map_err(|over| match over {
        Over::Own => ApiError::too_many(
            format!("{holder} downloads {} workspaces, the limit per tenant; try again later", BUNDLES.each),
            RETRY_S,
        ),
        Over::All => ApiError::unavailable(
            format!("no free download for {holder}: all tenants share {} concurrent downloads; try again", BUNDLES.all),
            RETRY_S,
        ),
    })?;
    let look = root.try_clone().map_err(|cause| ApiError::internal("the workspace cannot be opened", &cause))?;
    let failed = |cause: io::Error| ApiError::disk("the workspace cannot be archived", &cause);
    let skipped = blocking(move || pack::would_skip(look.as_fd()).map_err(failed)).await?;
    // Clients of this route expect gzip without Content-Encoding.
    let (coding, kind, ending) = match coding::accepted(&headers) {
        Some(Coding::Zstd) => (Coding::Zstd, "application/x-tar", "tar"),
        _ => (Coding::Gzip, "application/gzip", "tar.gz"),
    };
    let name = format!("attachment; filename=\"workspace-{}.{ending}\"", session.id());
    let mut response = bundle::stream(root, coding, permit).await.map_err(failed)?.into_response();
    let out = response.headers_mut();
    out.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    out.insert(header::CONTENT_DISPOSITION, HeaderValue::try_from(name).expect("an id is ASCII"));
    out.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    out.insert("x-ash-source", HeaderValue::from_static(source));
    if coding == Coding::Zstd {
        out.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding.word()));
    }
    if let Some(value) = in_a_header(&skipped) {
        out.insert("x-ash-skipped", value);
    }
    Ok(response)
}

/// The skipped entries as an ASCII header of at most 4 KiB.
fn in_a_header(skipped: &Skipped) -> Option<HeaderValue> {
    const MOST: usize = 4096;
    let (mut text, mut left) = (String::new(), skipped.count());
    for entry in &skipped.entries {
        let path: String = entry.path.bytes().map(in_ascii).collect();
        let this = format!("{}{path} ({})", if text.is_empty() { "" } else { ", " }, entry.reason);
        if text.len() + this.len() > MOST {
            break;
        }
        text.push_str(&this);
        left -= 1;
    }
    if left > 0 {
        text.push_str(&format!("{}{left} more", if text.is_empty() { "" } else { ", and " }));
    }
    (!text.is_empty()).then(|| HeaderValue::try_from(text).ok()).flatten()
}

fn in_ascii(byte: u8) -> String {
    match byte {
        b' '..=b'~' if byte != b',' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    }
}

fn decoded(bundle: &str) -> DecoderReader<'_, GeneralPurpose, &[u8]> {
    DecoderReader::new(bundle.as_bytes(), &STANDARD)
}

/// Unpack an archive into a workspace
///
/// A tar archive of any tar program, plain or compressed with gzip or zstd. Nothing is written when
/// one of its paths leaves the workspace. Existing files that are not in the archive stay. Links
/// are kept unchanged, and never followed.
#[utoipa::path(
    post, path = "/api/sessions/{id}/workspace", tag = "files", params(("id" = Uuid, Path)),
    request_body(content = NewWorkspace, example = json!({"bundle": "H4sIAAAAAAAAA..."})),
    responses(
        (status = 200, body = MessageBody),
        (status = 400, description = "Not a tar archive, or a path leaves the workspace", body = ErrorBody),
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
        return Err(ApiError::bad_request("bundle is required: a tar archive (gzip, zstd or plain) in base64"));
    }
    let JsonBody { value: NewWorkspace { bundle }, memory } = body;
    // Decoded while reading, so there is no second copy.
    let (bundle, size) = blocking(move || match io::copy(&mut decoded(&bundle), &mut io::sink()) {
        Ok(size) => Ok((bundle, size)),
        Err(why) => Err(ApiError::bad_request(format!("bundle must be base64: {why}"))),
    })
    .await?;
    if size > MAX_BUNDLE as u64 {
        return Err(ApiError::too_large(format!("bundle has {size} bytes; the limit is {MAX_BUNDLE}")));
    }
    let Workspace { root, .. } = open(&state, &session).await?;
    // One upload of a session at a time: each is checked against what those before it left.
    let _upload = state.uploads.wait(&session.id()).await;
    let room = state.sessions.check_room(&session, size).await?;
    let report = blocking(move || {
        let _memory = memory;
        unbundle::unpack(&root, || decoded(&bundle), room)
    })
    .await?;
    let message = report.in_words();
    let Skipped { entries: skipped, more: skipped_more } = report.skipped;
    Ok(Json(MessageBody { message, skipped, skipped_more }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_skipped_fits_a_header() {
        let mut skipped = Skipped::default();
        assert_eq!(in_a_header(&skipped), None);
        skipped.add(std::path::Path::new("run/a\n,ü.sock"), "a socket");
        assert_eq!(in_a_header(&skipped).unwrap(), "run/a%0A%2C%C3%BC.sock (a socket)");
        for n in 0..300 {
            skipped.add(std::path::Path::new(&format!("{n}{}", "x".repeat(100))), "a socket");
        }
        let text = in_a_header(&skipped).unwrap();
        assert!(text.len() < 4200 && text.to_str().unwrap().ends_with(" more"), "{text:?}");
    }
}
