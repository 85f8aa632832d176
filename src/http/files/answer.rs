//! An open file as an answer.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use axum::body::Body;
use axum::http::header::{
    ACCEPT_RANGES, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_SECURITY_POLICY, CONTENT_TYPE, IF_RANGE,
    RANGE, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::Response;
use tokio::io::AsyncReadExt;
use tokio_util::io::ReaderStream;

use super::super::error::ApiError;
use super::content_type;
use super::range::{Wanted, wanted};

/// Maximum bytes of one raw answer. Larger files are read in ranges.
pub const MAX_RAW: u64 = 100 << 20;
/// Maximum bytes of a file as JSON.
pub const MAX_JSON: u64 = 1 << 20;
/// Bytes read from disk at a time.
const CHUNK: usize = 64 << 10;

pub fn text(file: File, size: u64, path: &str) -> Result<String, ApiError> {
    let too_large = || {
        ApiError::too_large(format!(
            "\"{path}\" is larger than the limit of {MAX_JSON} bytes for format=json; use format=raw"
        ))
    };
    if size > MAX_JSON {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    // It may grow while it is read.
    file.take(MAX_JSON + 1)
        .read_to_end(&mut bytes)
        .map_err(|cause| ApiError::internal("the file cannot be read", &cause))?;
    if bytes.len() as u64 > MAX_JSON {
        return Err(too_large());
    }
    String::from_utf8(bytes)
        .map_err(|_| ApiError::bad_request(format!("\"{path}\" is not UTF-8 text; use format=raw for its bytes")))
}

/// Streams the file, or the requested range of it.
pub async fn raw(
    mut file: File,
    size: u64,
    path: &str,
    source: &'static str,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    // A file that its owner may be writing has no validator, so If-Range never matches.
    let header = if headers.contains_key(IF_RANGE) { None } else { headers.get(RANGE).and_then(|v| v.to_str().ok()) };
    let part = match wanted(header, size) {
        Wanted::Whole => None,
        Wanted::Part(range) => Some(range),
        Wanted::Unsatisfiable => return Err(ApiError::range(size)),
    };
    let range = part.clone().unwrap_or(0..size);
    let length = range.end - range.start;
    if length > MAX_RAW {
        return Err(ApiError::too_large(format!(
            "\"{path}\" has {size} bytes; one answer has at most {MAX_RAW}: request it in ranges"
        )));
    }
    file.seek(SeekFrom::Start(range.start)).map_err(|cause| unreadable(&cause))?;
    let body = tokio::fs::File::from_std(file).take(length);
    let mut response = Response::new(Body::from_stream(ReaderStream::with_capacity(body, CHUNK)));
    let out = response.headers_mut();
    out.insert(CONTENT_TYPE, HeaderValue::from_static(content_type::of(path)));
    out.insert(CONTENT_LENGTH, HeaderValue::from(length));
    out.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    out.insert("x-ash-source", HeaderValue::from_static(source));
    out.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    out.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox"));
    // Both are ASCII without control characters by construction.
    if let Ok(value) = HeaderValue::try_from(content_type::disposition(path)) {
        out.insert(CONTENT_DISPOSITION, value);
    }
    if let Some(range) = part {
        let value = format!("bytes {}-{}/{size}", range.start, range.end - 1);
        out.insert(CONTENT_RANGE, HeaderValue::try_from(value).expect("digits are a header value"));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

fn unreadable(cause: &io::Error) -> ApiError {
    ApiError::internal("the file cannot be read", cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> File {
        use std::io::Write;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        file
    }

    async fn get(bytes: &[u8], range: Option<&str>) -> (StatusCode, HeaderMap, Vec<u8>) {
        let mut headers = HeaderMap::new();
        if let Some(range) = range {
            headers.insert(RANGE, range.parse().unwrap());
        }
        let response = raw(file(bytes), bytes.len() as u64, "a/b.txt", "sandbox", &headers).await.unwrap();
        let (parts, body) = response.into_parts();
        (parts.status, parts.headers, axum::body::to_bytes(body, 1 << 20).await.unwrap().to_vec())
    }

    #[tokio::test]
    async fn whole_and_part() {
        let (status, headers, body) = get(b"0123456789", None).await;
        assert_eq!((status, body.as_slice()), (StatusCode::OK, &b"0123456789"[..]));
        assert_eq!(headers[CONTENT_LENGTH], "10");
        assert_eq!(headers[CONTENT_TYPE], "text/plain; charset=utf-8");
        assert_eq!(headers["x-ash-source"], "sandbox");
        let (status, headers, body) = get(b"0123456789", Some("bytes=3-5")).await;
        assert_eq!((status, body.as_slice()), (StatusCode::PARTIAL_CONTENT, &b"345"[..]));
        assert_eq!(headers[CONTENT_RANGE], "bytes 3-5/10");
    }

    #[tokio::test]
    async fn limits() {
        let sparse = tempfile::tempfile().unwrap();
        sparse.set_len(MAX_RAW + 1).unwrap();
        let error = raw(sparse.try_clone().unwrap(), MAX_RAW + 1, "x", "sandbox", &HeaderMap::new()).await.unwrap_err();
        assert_eq!(error.status(), StatusCode::PAYLOAD_TOO_LARGE);
        let mut headers = HeaderMap::new();
        headers.insert(RANGE, HeaderValue::from_static("bytes=0-9"));
        assert!(raw(sparse, MAX_RAW + 1, "x", "sandbox", &headers).await.is_ok());
        headers.insert(RANGE, HeaderValue::from_static("bytes=20-"));
        let error = raw(file(b"0123456789"), 10, "x", "sandbox", &headers).await.unwrap_err();
        assert_eq!(error.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    }

    #[test]
    fn json_is_small_utf8_text() {
        assert_eq!(text(file("grüß".as_bytes()), 6, "x").unwrap(), "grüß");
        assert_eq!(text(file(b"\xff"), 1, "x").unwrap_err().status(), StatusCode::BAD_REQUEST);
        let large = vec![b'x'; MAX_JSON as usize + 1];
        // The size says one byte: the file has grown since.
        assert_eq!(text(file(&large), 1, "x").unwrap_err().status(), StatusCode::PAYLOAD_TOO_LARGE);
    }
}
