//! Request bodies: bounded in size and time, strict about types. Errors name the field.
//!
//! No body, an empty body and `{}` are equal. Any content type is accepted if the body is JSON
//! (curl's `-d` sends `application/x-www-form-urlencoded`). Unknown fields are ignored. Types are
//! not converted.

use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{FromRef, FromRequest, Request};
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, EXPECT};
use axum::http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;

use super::error::ApiError;
use super::load::{HeldMemory, Load, Memory};
use crate::sessions::quota::shares::Holder;

/// Bytes in one MiB.
pub const MIB: usize = 1 << 20;
/// A sender that is silent for this long is answered 408.
const SILENCE: Duration = Duration::from_secs(15);
/// Minimum average rate after [`GRACE`], in bytes per second.
const LEAST_RATE: u64 = 16 << 10;
const GRACE: Duration = Duration::from_secs(30);
/// Time limit of a whole body.
const DEADLINE: Duration = Duration::from_secs(15 * 60);
/// Bytes read and discarded after a refusal (and for how long), so that a client that still sends
/// sees the answer and not a broken pipe.
const DISCARD: usize = 256 * MIB;
const DISCARD_FOR: Duration = Duration::from_secs(20);
/// Step by which the memory of a body of unknown length grows.
const STEP: u64 = 256 << 10;

/// A JSON body of at most `MAX` bytes. Keep the whole value until the answer is made: it holds the
/// memory counted for the body.
#[derive(Debug)]
pub struct JsonBody<T, const MAX: usize = MIB> {
    pub value: T,
    /// The body's share of the tenant's memory, for a handler that takes the value apart.
    pub memory: HeldMemory,
}

/// A body that a middleware has read, in the extensions of its request.
#[derive(Clone, Debug)]
pub struct ReadBody {
    pub bytes: Bytes,
    pub memory: HeldMemory,
}

impl<S, T, const MAX: usize> FromRequest<S> for JsonBody<T, MAX>
where
    S: Send + Sync,
    Load: FromRef<S>,
    T: DeserializeOwned,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let (mut parts, body) = request.into_parts();
        let ReadBody { bytes, memory } = match parts.extensions.remove::<ReadBody>() {
            Some(read) if read.bytes.len() > MAX => return Err(larger_than(MAX)),
            Some(read) => read,
            None => {
                // A route without authentication reads no body.
                let holder = parts.extensions.get::<Holder>().cloned();
                let holder = holder.ok_or_else(|| ApiError::unauthorized("Missing Authorization header"))?;
                read(&parts.headers, body, MAX, &Load::from_ref(state), &holder).await?
            }
        };
        let value = parse(if bytes.iter().all(u8::is_ascii_whitespace) { b"{}" } else { &bytes })?;
        Ok(Self { value, memory })
    }
}

fn larger_than(max: usize) -> ApiError {
    ApiError::too_large(format!("the request body is larger than the limit of {max} bytes"))
}

/// Reads a body of at most `max` bytes. If the client sends the length, memory for all of it is
/// reserved first.
pub async fn read(
    headers: &HeaderMap,
    mut body: Body,
    max: usize,
    load: &Load,
    holder: &Holder,
) -> Result<ReadBody, ApiError> {
    if let Err(refusal) = check_coding(headers) {
        if !headers.contains_key(EXPECT) {
            discard(body);
        }
        return Err(refusal);
    }
    let announced = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<usize>().ok());
    let taken = match announced {
        Some(length) if length > max => Err(larger_than(max)),
        length => load.body(holder, length.unwrap_or(0) as u64),
    };
    let mut memory = match taken {
        Ok(memory) => memory,
        Err(refusal) => {
            if !headers.contains_key(EXPECT) {
                discard(body);
            }
            return Err(refusal);
        }
    };
    let mut paid = announced.unwrap_or(0);
    let mut bytes = Vec::with_capacity(paid);
    let start = Instant::now();
    loop {
        let data = match next(&mut body, start, bytes.len()).await {
            Ok(Some(data)) => data,
            Ok(None) => return Ok(ReadBody { bytes: bytes.into(), memory: HeldMemory::new(memory) }),
            Err(refusal) => return Err(refusal),
        };
        let length = bytes.len() + data.len();
        let room = if length > max { Err(larger_than(max)) } else { pay(&mut memory, &mut paid, length) };
        if let Err(refusal) = room {
            drop((bytes, memory));
            discard(body);
            return Err(refusal);
        }
        bytes.extend_from_slice(&data);
    }
}

/// Refuses coded bodies: a bound on the unpacked size would be needed first.
fn check_coding(headers: &HeaderMap) -> Result<(), ApiError> {
    let codings =
        headers.get_all(CONTENT_ENCODING).iter().flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let coded =
        codings.map(<[u8]>::trim_ascii).any(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity"));
    if !coded {
        return Ok(());
    }
    Err(ApiError::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "request bodies with a Content-Encoding are not supported; send the JSON without Content-Encoding",
    ))
}

/// Reserves memory when a body is longer than what was reserved so far.
fn pay(memory: &mut Memory, paid: &mut usize, length: usize) -> Result<(), ApiError> {
    if length > *paid {
        let more = (length - *paid).max(STEP as usize);
        memory.grow(more as u64)?;
        *paid += more;
    }
    Ok(())
}

/// The next bytes, if the sender is fast enough.
async fn next(body: &mut Body, start: Instant, received: usize) -> Result<Option<Bytes>, ApiError> {
    let slow = |text: String| Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, text));
    loop {
        let left = DEADLINE.saturating_sub(start.elapsed());
        let frame = match tokio::time::timeout(left.min(SILENCE), body.frame()).await {
            Ok(None) => return Ok(None),
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => {
                return Err(ApiError::bad_request(format!("the request body is incomplete: {error}")));
            }
            Err(_) if left <= SILENCE => {
                return slow(format!("the request body did not arrive within {} s", DEADLINE.as_secs()));
            }
            Err(_) => return slow(format!("no bytes of the request body arrived for {} s", SILENCE.as_secs())),
        };
        let Ok(data) = frame.into_data() else { continue };
        if too_slow(start.elapsed(), received + data.len()) {
            return slow(format!(
                "the request body arrives too slowly: {} bytes in {} s; the minimum is {LEAST_RATE} bytes/s after {} s",
                received + data.len(),
                start.elapsed().as_secs(),
                GRACE.as_secs()
            ));
        }
        return Ok(Some(data));
    }
}

fn too_slow(elapsed: Duration, received: usize) -> bool {
    let due = elapsed.saturating_sub(GRACE).as_secs().saturating_mul(LEAST_RATE);
    (received as u64) < due
}

/// Reads and discards the rest within limits of bytes and time, while the answer is sent.
pub fn discard(mut body: Body) {
    tokio::spawn(tokio::time::timeout(DISCARD_FOR, async move {
        let mut seen = 0;
        while let Some(Ok(frame)) = body.frame().await {
            seen += frame.data_ref().map_or(0, Bytes::len);
            // Too slow or too much: the connection closes. The client has its answer.
            if seen > DISCARD {
                break;
            }
        }
    }));
}

/// Parses an object.
///
/// # Errors
/// 400, in terms of JSON.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    super::wording::read(bytes).map_err(ApiError::bad_request)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;
    use crate::sessions::CreateSession;

    #[test]
    fn how_slow_is_too_slow() {
        for (seconds, received, expected) in [
            (0, 0, false),
            (30, 1, false),
            (31, 1, true),
            (31, 16 << 10, false),
            (60, 400 << 10, true),
            (60, 480 << 10, false),
        ] {
            assert_eq!(too_slow(Duration::from_secs(seconds), received), expected, "{seconds} s, {received} bytes");
        }
    }

    #[test]
    fn a_coded_body_is_refused() {
        let headers =
            |coding: &'static str| HeaderMap::from_iter([(CONTENT_ENCODING, HeaderValue::from_static(coding))]);
        for coding in ["gzip", "GZIP", "identity, gzip", "br", "zstd"] {
            let refused = check_coding(&headers(coding)).unwrap_err();
            assert_eq!(refused.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE, "{coding}");
            assert!(refused.text().contains("without Content-Encoding"), "{}", refused.text());
        }
        assert!(check_coding(&headers("identity")).is_ok() && check_coding(&headers("")).is_ok());
        assert!(check_coding(&HeaderMap::new()).is_ok());
    }

    #[test]
    fn unknown_fields_are_ignored() {
        let body: CreateSession = parse(br#"{"agent":"a","somethingNew":{"x":1}}"#).unwrap();
        assert_eq!(body.agent, "a");
    }
}
