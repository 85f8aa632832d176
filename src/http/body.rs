//! Request bodies: bounded, timed, strict about types, and with errors that name the field.
//!
//! Accepted alike: no body, an empty body, `{}`; any content type whose body is JSON (curl's `-d` says
//! `application/x-www-form-urlencoded`). Unknown fields are ignored. Nothing is coerced.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRef, FromRequest, Request};
use axum::http::header::{CONTENT_LENGTH, EXPECT};
use axum::http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;

/// Bytes in one MiB.
pub const MIB: usize = 1 << 20;
/// A sender that is silent for this long is given up (408).
const SILENCE: Duration = Duration::from_secs(30);
/// Bytes of all request bodies in memory at once; above, new ones get 503. Counted in KiB.
const BUDGET_KIB: usize = 512 << 10;
/// What is read and thrown away after a 413, so that the client gets to read the answer instead of a broken pipe.
const DISCARD: usize = 256 * MIB;

/// Memory for request bodies, shared by all requests.
#[derive(Clone, Debug)]
pub struct BodyBudget(Arc<Semaphore>);

impl Default for BodyBudget {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(BUDGET_KIB)))
    }
}

/// A JSON body of at most `MAX` bytes. Keep the whole value until the answer is made: it holds the body's share of
/// the [`BodyBudget`].
#[derive(Debug)]
pub struct JsonBody<T, const MAX: usize = MIB> {
    pub value: T,
    _share: Vec<OwnedSemaphorePermit>,
}

impl<S, T, const MAX: usize> FromRequest<S> for JsonBody<T, MAX>
where
    S: Send + Sync,
    BodyBudget: FromRef<S>,
    T: DeserializeOwned,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let (bytes, share) = read(&parts.headers, body, MAX, &BodyBudget::from_ref(state)).await?;
        let value = parse(if bytes.iter().all(u8::is_ascii_whitespace) { b"{}" } else { &bytes })?;
        Ok(Self { value, _share: share })
    }
}

pub async fn read(
    headers: &HeaderMap,
    mut body: Body,
    max: usize,
    budget: &BodyBudget,
) -> Result<(Bytes, Vec<OwnedSemaphorePermit>), ApiError> {
    let announced = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<usize>().ok());
    let too_large = || ApiError::too_large(format!("the request body is larger than the limit of {max} bytes here"));
    if announced.is_some_and(|length| length > max) {
        if !headers.contains_key(EXPECT) {
            discard(body).await;
        }
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(announced.unwrap_or(0).min(MIB));
    let mut share = Vec::new();
    let mut paid = 0;
    loop {
        let frame = match tokio::time::timeout(SILENCE, body.frame()).await {
            Ok(None) => return Ok((bytes.into(), share)),
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => {
                return Err(ApiError::bad_request(format!("the request body broke off: {error}")));
            }
            Err(_) => {
                return Err(ApiError::new(
                    StatusCode::REQUEST_TIMEOUT,
                    format!("the request body stopped arriving for {} s", SILENCE.as_secs()),
                ));
            }
        };
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > max {
            drop((bytes, share));
            discard(body).await;
            return Err(too_large());
        }
        bytes.extend_from_slice(&data);
        let due = bytes.len() >> 10;
        if due > paid {
            let more = u32::try_from(due - paid).unwrap_or(u32::MAX);
            let permit = budget.0.clone().try_acquire_many_owned(more).map_err(|_| {
                ApiError::unavailable("too many large request bodies are being received at once; try again", 1)
            })?;
            share.push(permit);
            paid = due;
        }
    }
}

/// Reads on without keeping anything, within bounds of bytes and time.
async fn discard(mut body: Body) {
    let drain = async {
        let mut seen = 0;
        while let Some(Ok(frame)) = body.frame().await {
            seen += frame.data_ref().map_or(0, Bytes::len);
            if seen > DISCARD {
                break;
            }
        }
    };
    // Too slow or too much: the connection is cut, which is what the client was told.
    let _ = tokio::time::timeout(Duration::from_secs(10), drain).await;
}

/// Parses an object. axum's own parser tracks the path of a wrong field; only its wording is replaced here.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    // serde also reads a struct from an array; the contract has objects only.
    let first = bytes.iter().find(|b| !b.is_ascii_whitespace());
    let what = match first {
        Some(b'[') => Some("an array"),
        Some(b'"') => Some("a string"),
        Some(b'0'..=b'9' | b'-') => Some("a number"),
        _ => None,
    };
    if let Some(what) = what
        && serde_json::from_slice::<serde::de::IgnoredAny>(bytes).is_ok()
    {
        return Err(ApiError::bad_request(format!("the request body must be a JSON object, not {what}")));
    }
    axum::Json::<T>::from_bytes(bytes).map(|axum::Json(value)| value).map_err(|rejection| {
        use axum::extract::rejection::JsonRejection as R;
        let cause = rejection.source().map_or_else(|| rejection.to_string(), ToString::to_string);
        match rejection {
            R::JsonSyntaxError(_) => ApiError::bad_request(format!("the request body is not valid JSON: {cause}")),
            _ => ApiError::bad_request(cause.strip_prefix(".: ").unwrap_or(&cause).to_owned()),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sessions::{CreateSession, SendMessage};

    fn refusal<T: DeserializeOwned + std::fmt::Debug>(json: &str) -> String {
        let error = parse::<T>(json.as_bytes()).expect_err(json);
        assert_eq!(error.status(), StatusCode::BAD_REQUEST);
        error.text().to_owned()
    }

    #[test]
    fn wrong_types_name_the_field() {
        for (json, field, reason) in [
            (r#"{"agent": 5}"#, "agent:", "expected a string"),
            (r#"{"agent":"a","extraEnv":{"A":1}}"#, "extraEnv.A:", "expected a string"),
            (r#"{"agent":"a","allowedTools":"Bash"}"#, "allowedTools:", "expected a sequence"),
            (r#"{"agent":"a","allowedTools":["Bash",7]}"#, "allowedTools[1]:", "expected a string"),
            (r#"{"agent":"a","mcpServers":[]}"#, "mcpServers:", "expected a map"),
        ] {
            let text = refusal::<CreateSession>(json);
            assert!(text.starts_with(field) && text.contains(reason), "{json}: {text}");
        }
        let text = refusal::<SendMessage>(r#"{"content":"x","maxTurns":"5"}"#);
        assert!(text.starts_with("maxTurns:") && text.contains("string \"5\""), "{text}");
        let text = refusal::<SendMessage>(r#"{"content":"x","includePartialMessages":"true"}"#);
        assert!(text.starts_with("includePartialMessages:"), "{text}");
    }

    #[test]
    fn malformed_json_says_where() {
        for json in ["{", r#"{"agent": }"#, "{} x", "{'agent':1}"] {
            let text = refusal::<CreateSession>(json);
            assert!(text.contains("not valid JSON") && text.contains("line 1 column"), "{json}: {text}");
        }
    }

    #[test]
    fn only_objects_are_bodies() {
        for (json, what) in [("[]", "an array"), ("[\"a\"]", "an array"), ("\"a\"", "a string"), ("5", "a number")] {
            assert_eq!(
                refusal::<CreateSession>(json),
                format!("the request body must be a JSON object, not {what}"),
                "{json}"
            );
        }
        assert!(refusal::<CreateSession>("null").contains("null"));
    }

    #[test]
    fn unknown_fields_are_ignored() {
        let body: CreateSession = parse(br#"{"agent":"a","somethingNew":{"x":1}}"#).unwrap();
        assert_eq!(body.agent, "a");
    }
}
