//! Compressed answers for clients that send `Accept-Encoding`.
//!
//! ```text
//!   answer of a GET: JSON, 1 KiB or more (or of unknown length), not coded yet --> gzip or zstd, chunk by chunk
//!   everything else (event streams, files, archives, small answers)            --> unchanged
//! ```
//!
//! Each chunk is compressed when it arrives, so a long list is never held in memory. The coding
//! with the highest weight is used; zstd if both are equal.

use std::io::Write;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::header::{
    ACCEPT_ENCODING, ACCEPT_RANGES, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE,
    ETAG, VARY,
};
use axum::http::{HeaderMap, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};

use super::error::ApiError;
use ash_archive::coding::{Coding, Encoder};

/// Compressing a smaller answer gains nothing.
const LEAST: u64 = 1024;
/// Bytes up to which an answer of known length is compressed as a whole. Longer ones and lists, whose
/// length is unknown, are compressed while they are sent.
const AT_ONCE: u64 = 1 << 20;

pub fn accepted(headers: &HeaderMap) -> Option<Coding> {
    let mut best: Option<(u32, Coding)> = None;
    let given = headers.get_all(ACCEPT_ENCODING);
    for item in given.iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')) {
        let mut parts = item.split(';').map(str::trim);
        let coding = match parts.next() {
            Some(word) if word.eq_ignore_ascii_case("zstd") => Coding::Zstd,
            Some(word) if word.eq_ignore_ascii_case("gzip") || word.eq_ignore_ascii_case("x-gzip") => Coding::Gzip,
            _ => continue,
        };
        let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        let weight = weight.map_or(Some(1.0), |q| q.trim().parse::<f32>().ok().filter(|q| (0.0..=1.0).contains(q)));
        // RFC 9110 §12.4.2: weights have three digits.
        let Some(weight) = weight.map(|q| (q * 1000.0).round() as u32).filter(|weight| *weight > 0) else { continue };
        let better = best.is_none_or(|(known, other)| weight > known || (weight == known && other == Coding::Gzip));
        if better {
            best = Some((weight, coding));
        }
    }
    best.map(|(_, coding)| coding)
}

/// Compresses answers that qualify.
pub async fn compress(request: Request, next: Next) -> Response {
    // The pages outside of /api need no key: each answer with an encoder of its own would cost memory.
    let api = request.uri().path().starts_with("/api/");
    let coding = (api && request.method() == Method::GET).then(|| accepted(request.headers())).flatten();
    let response = next.run(request).await;
    if !is_worth_it(&response) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    parts.headers.append(VARY, HeaderValue::from_static("accept-encoding"));
    let Some(coding) = coding else { return Response::from_parts(parts, body) };
    let Ok(encoder) = Encoder::small(Vec::new(), coding) else { return Response::from_parts(parts, body) };
    parts.headers.remove(CONTENT_LENGTH);
    parts.headers.remove(ETAG);
    parts.headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.word()));
    if body.size_hint().exact().is_some_and(|bytes| bytes <= AT_ONCE) {
        // Without an encoder that lives as long as a slow client.
        return match at_once(body, encoder).await {
            Ok(body) => Response::from_parts(parts, body),
            Err(error) => ApiError::internal("the answer cannot be compressed", &error).into_response(),
        };
    }
    Response::from_parts(parts, coded(body, encoder))
}

async fn at_once(body: Body, mut encoder: Encoder<Vec<u8>>) -> std::io::Result<Body> {
    let bytes = axum::body::to_bytes(body, usize::MAX).await.map_err(std::io::Error::other)?;
    encoder.write_all(&bytes)?;
    Ok(Body::from(encoder.finish()?))
}

fn is_worth_it(response: &Response) -> bool {
    let headers = response.headers();
    let json = headers
        .get(CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok())
        .is_some_and(|kind| kind.starts_with("application/json"));
    // A file of a workspace is sent as it is: its length and its ranges are those of its bytes.
    let file = [ACCEPT_RANGES, CONTENT_RANGE, CONTENT_DISPOSITION].iter().any(|name| headers.contains_key(name));
    json && !file
        && response.status().is_success()
        && !headers.contains_key(CONTENT_ENCODING)
        && response.body().size_hint().upper().is_none_or(|most| most >= LEAST)
}

/// The compressed body. If the body fails, the compressed body fails too and has no end marker.
fn coded(body: Body, encoder: Encoder<Vec<u8>>) -> Body {
    let state = (body.into_data_stream(), Some(encoder));
    let coded = stream::unfold(state, |(mut from, encoder)| async move {
        let mut encoder = encoder?;
        loop {
            let step = match from.next().await {
                Some(Ok(chunk)) => encoder.write_all(&chunk).map(|()| std::mem::take(encoder.get_mut())),
                Some(Err(error)) => return Some((Err(error), (from, None))),
                None => {
                    let end = encoder.finish().map(Bytes::from).map_err(axum::Error::new);
                    return Some((end, (from, None)));
                }
            };
            match step {
                // The encoder buffers until it has more.
                Ok(bytes) if bytes.is_empty() => {}
                Ok(bytes) => return Some((Ok(Bytes::from(bytes)), (from, Some(encoder)))),
                Err(error) => return Some((Err(axum::Error::new(error)), (from, None))),
            }
        }
    });
    Body::from_stream(coded)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use axum::Router;
    use axum::routing::get;
    use tower::ServiceExt;

    use super::*;
    use ash_archive::coding::decoder;

    #[test]
    fn the_client_chooses() {
        for (text, want) in [
            ("", None),
            ("identity", None),
            ("gzip", Some(Coding::Gzip)),
            ("gzip, deflate, br, zstd", Some(Coding::Zstd)),
            ("zstd;q=0, gzip;q=0.5", Some(Coding::Gzip)),
            ("GZIP;q=0.9, zstd;q=0.8", Some(Coding::Gzip)),
            ("zstd; q=0.001", Some(Coding::Zstd)),
            ("*", None),
            ("gzip;q=x", None),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static(text))]);
            assert_eq!(accepted(&headers), want, "{text}");
        }
    }

    async fn ask(kind: &'static str, body: Vec<u8>, accept: &'static str) -> (HeaderMap, Vec<u8>) {
        let answer = move || async move { ([(CONTENT_TYPE, kind)], body) };
        let app: Router = Router::new().route("/api/x", get(answer)).layer(axum::middleware::from_fn(compress));
        let request = Request::get("/api/x").header(ACCEPT_ENCODING, accept).body(Body::empty()).unwrap();
        let (parts, body) = app.oneshot(request).await.unwrap().into_parts();
        (parts.headers, axum::body::to_bytes(body, 1 << 24).await.unwrap().to_vec())
    }

    #[tokio::test]
    async fn large_json_is_compressed_and_nothing_else() {
        let list = b"{\"id\":1},".repeat(10_000);
        for (accept, word) in [("gzip", "gzip"), ("zstd, gzip", "zstd")] {
            let (headers, body) = ask("application/json", list.clone(), accept).await;
            assert!(headers[CONTENT_ENCODING] == word && headers[VARY] == "accept-encoding", "{headers:?}");
            let length = headers.get(CONTENT_LENGTH).map(|length| length.to_str().unwrap().to_owned());
            assert!(length.is_none_or(|length| length == body.len().to_string()) && body.len() < list.len() / 10);
            let mut read = Vec::new();
            decoder(&body[..]).unwrap().read_to_end(&mut read).unwrap();
            assert!(read == list);
        }
        for (kind, body, accept) in [
            ("application/json", list.clone(), "identity"),
            ("application/json", b"{}".to_vec(), "gzip"),
            ("text/event-stream; charset=utf-8", list.clone(), "gzip"),
            ("application/gzip", list.clone(), "gzip"),
        ] {
            let (headers, answer) = ask(kind, body.clone(), accept).await;
            assert!(!headers.contains_key(CONTENT_ENCODING) && answer == body, "{kind} {accept}");
        }
    }
}
