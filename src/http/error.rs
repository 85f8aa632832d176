//! The format of every failure: `{"error": "...", "statusCode": n}`.
//!
//! ```text
//! SessionError ──┐
//! StoreError ────┼──> ApiError ──> status, Retry-After / WWW-Authenticate, JSON
//! extractors ────┘
//! ```

use std::any::Any;

use axum::Json;
use axum::http::header::{CONTENT_RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::sessions::SessionError;
use crate::store::{self, StoreError};

/// Default of `Retry-After`, in seconds.
const RETRY_AFTER_S: u64 = 2;

/// Body of every answer that is not a success.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = ApiError, example = json!({"error": "Session not found", "statusCode": 404}))]
pub struct ErrorBody {
    /// What is wrong and which field, for people.
    pub error: String,
    /// The HTTP status.
    pub status_code: u16,
}

#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    text: String,
    header: Option<(HeaderName, HeaderValue)>,
}

impl ApiError {
    pub fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, text: text.into(), header: None }
    }
    pub fn bad_request(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }
    pub fn not_found(text: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, text)
    }
    pub fn too_large(text: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, text)
    }
    /// 401 with the challenge that RFC 9110 §11.6.1 requires.
    pub fn unauthorized(text: &'static str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, text).with(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
    }
    pub fn unavailable(text: impl Into<String>, retry_after_s: u64) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, text).with(RETRY_AFTER, HeaderValue::from(retry_after_s))
    }
    pub fn too_many(text: impl Into<String>, retry_after_s: u64) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, text).with(RETRY_AFTER, HeaderValue::from(retry_after_s))
    }
    pub fn conflict(text: impl Into<String>, retry_after_s: u64) -> Self {
        Self::new(StatusCode::CONFLICT, text).with(RETRY_AFTER, HeaderValue::from(retry_after_s))
    }
    /// 416 for a range outside a file of `size` bytes.
    pub fn range(size: u64) -> Self {
        let error = Self::new(
            StatusCode::RANGE_NOT_SATISFIABLE,
            format!("the Range header is outside the file, which has {size} bytes"),
        );
        match HeaderValue::try_from(format!("bytes */{size}")) {
            Ok(value) => error.with(CONTENT_RANGE, value),
            Err(_) => error,
        }
    }
    /// 500. The cause is logged; the client gets only `what`.
    pub fn internal(what: &str, cause: &dyn std::error::Error) -> Self {
        tracing::error!(error = %cause, "{what}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, format!("{what}; see the log of ashd for the cause"))
    }
    /// A failure of the disk: 507 when it is full, else 500.
    pub fn disk(what: &str, cause: &std::io::Error) -> Self {
        match cause.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                Self::new(StatusCode::INSUFFICIENT_STORAGE, format!("{what}: the disk is full"))
            }
            _ => Self::internal(what, cause),
        }
    }

    fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.header = Some((name, value));
        self
    }
    pub fn status(&self) -> StatusCode {
        self.status
    }
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = ErrorBody { error: self.text, status_code: self.status.as_u16() };
        let mut response = (self.status, Json(body)).into_response();
        if let Some((name, value)) = self.header {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

impl From<SessionError> for ApiError {
    fn from(error: SessionError) -> Self {
        use SessionError as E;
        let text = error.to_string();
        match error {
            E::NotFound | E::AgentNotFound(_) => Self::not_found(text),
            E::AgentDirectoryGone { .. } | E::AgentDirectoryRefused { .. } | E::Install { .. } => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, text)
            }
            E::NotActive(_) | E::Transition { .. } | E::Invalid(_) => Self::bad_request(text),
            E::Ended => Self::new(StatusCode::GONE, text),
            E::TurnRunning => Self::new(StatusCode::CONFLICT, text),
            E::Capacity { retry_after_s, .. }
            | E::Owed { retry_after_s, .. }
            | E::TenantCapacity { retry_after_s, .. } => Self::unavailable(text, retry_after_s),
            E::Unavailable(_) => Self::unavailable(text, RETRY_AFTER_S),
            E::TooLarge(_) => Self::too_large(text),
            E::Full(_) => Self::new(StatusCode::INSUFFICIENT_STORAGE, text),
            E::Failed(_) => {
                tracing::error!(error = %text, "request to a session failed");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, without_host_paths(&text))
            }
            E::Store(store) => store.into(),
        }
    }
}

/// Replaces paths of the host, which mean nothing to a client; the log has them. Paths of a sandbox
/// and of the API stay.
fn without_host_paths(text: &str) -> String {
    const KNOWN: [&str; 4] = ["/workspace", "/home", "/api", "/interrupt"];
    let is_end = |c: char| c.is_whitespace() || matches!(c, ':' | ';' | ',' | '"' | '\'' | '`' | '(' | ')' | '[' | ']');
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('/') {
        let (before, path) = rest.split_at(at);
        let path = &path[..path.find(is_end).unwrap_or(path.len())];
        out.push_str(before);
        let absolute = before.is_empty() && out.is_empty() || before.ends_with(is_end);
        let hidden = absolute && path.len() > 1 && !KNOWN.iter().any(|known| path.starts_with(known));
        out.push_str(if hidden { "(a path on the host)" } else { path });
        rest = &rest[at + path.len()..];
    }
    out + rest
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Full => Self::new(StatusCode::INSUFFICIENT_STORAGE, error.to_string()),
            StoreError::NotOnDisk(_) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
            // Waiting frees these; the others need a deletion.
            StoreError::TooMany(most) if [store::MAX_PENDING, store::MAX_ONCE, store::MAX_OPEN_RUNS].contains(most) => {
                Self::too_many(error.to_string(), RETRY_AFTER_S)
            }
            StoreError::TooMany(_) => Self::new(StatusCode::CONFLICT, error.to_string()),
            StoreError::NoSession(_) => Self::not_found("Session not found"),
            StoreError::Closed => Self::unavailable("ashd is stopping", RETRY_AFTER_S),
            StoreError::Busy => Self::unavailable(error.to_string(), RETRY_AFTER_S),
            _ => Self::internal("the database failed", &error),
        }
    }
}

pub async fn no_route(method: Method, uri: Uri) -> ApiError {
    ApiError::not_found(format!("No route for {method} {}; see /docs for the existing routes", uri.path()))
}

/// 405; axum adds the `Allow` header.
pub async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("Method {method} is not allowed on {}; see the Allow header for the allowed methods", uri.path()),
    )
}

/// 500 for a panic in a handler. The message may contain anything, so it is only logged.
pub fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response {
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    tracing::error!(panic = message, "request handler panicked");
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "Internal server error; see the log of ashd for the cause")
        .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_on_the_host_are_not_told() {
        for (text, told) in [
            ("no path at all", "no path at all"),
            ("open claude: /srv/claude/2.1/claude: No such file", "open claude: (a path on the host): No such file"),
            ("/var/lib/ashd/x: gone", "(a path on the host): gone"),
            ("\"/var/lib/a\", (/run/ashd)", "\"(a path on the host)\", ((a path on the host))"),
            ("/workspace/a/b and /home/agent stay", "/workspace/a/b and /home/agent stay"),
            ("read/write at 3/4 of a/b", "read/write at 3/4 of a/b"),
            ("a / b", "a / b"),
        ] {
            assert_eq!(without_host_paths(text), told);
        }
        let error = ApiError::from(SessionError::Failed("mount /var/lib/ashd: denied".to_owned()));
        assert_eq!((error.status().as_u16(), error.text()), (500, "mount (a path on the host): denied"));
    }
}
