//! The gateway's own answers, in the error format of the Messages API
//! (`{"type":"error","error":{"type":...,"message":...}}`), which Claude Code displays.

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;

/// Error of a body; it ends the connection.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A body that is sent to a sandbox.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;

/// The error object in the body.
#[derive(Debug, Serialize)]
pub struct ErrorBody<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    pub error: ErrorDetail<'a>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ErrorDetail<'a> {
    #[serde(rename = "type")]
    pub kind: &'a str,
    pub message: &'a str,
}

/// A body of known length.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

pub fn json(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    let bytes = serde_json::to_vec(value).expect("the gateway's own types serialise");
    let mut response = Response::new(full(bytes));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An error in the format of the Messages API. A refusal (4xx) has a header that stops retries of
/// Anthropic's clients; without it they retry a 401 for more than 30 s.
pub fn error(status: StatusCode, message: &str) -> Response<Body> {
    let detail = ErrorDetail { kind: error_kind(status.as_u16()), message };
    let mut response = json(status, &ErrorBody { kind: "error", error: detail });
    if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS {
        response.headers_mut().insert("x-should-retry", HeaderValue::from_static("false"));
    }
    response
}

/// The API's `error.type` for a status (docs of the Messages API, "Errors").
pub fn error_kind(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        402 => "billing_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        504 => "timeout_error",
        529 => "overloaded_error",
        400..=499 => "invalid_request_error",
        _ => "api_error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_refusal_has_the_format_of_the_api_and_is_not_retried() {
        let response = error(StatusCode::UNAUTHORIZED, "wrong token");
        assert_eq!(response.headers()["x-should-retry"], "false");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let value: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            value,
            serde_json::json!({"type": "error", "error": {"type": "authentication_error", "message": "wrong token"}})
        );
        assert!(!error(StatusCode::BAD_GATEWAY, "down").headers().contains_key("x-should-retry"));
    }
}
