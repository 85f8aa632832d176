//! `Idempotency-Key`: a POST that creates or sends is executed once, even if it is repeated because
//! its answer was lost.
//!
//! ```text
//!   new key       -> executed --2xx--> the answer is kept for a day
//!                            --else-> nothing was created: the key is free again
//!   known key     -> other request?           422
//!                    answered?                the same answer, Idempotent-Replayed: true
//!                    still running?           409, Retry-After
//!                    a message?               the stream of its turn, from the beginning; sent now if it never was
//!                    interrupted by a crash?  409, with what to do
//! ```
//!
//! A request with a key is executed to its end even if its client disconnects.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::AppState;
use super::auth::Caller;
use super::body::{self, MIB};
use super::error::ApiError;
use crate::sessions::quota::shares::Holder;
use crate::store::Earlier;
use ash_model::TenantId;

const HEADER: &str = "idempotency-key";
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
/// Bytes of the largest body: a deployment.
const MAX_BODY: usize = 140 * MIB;
/// Largest answer that is kept; answers of these routes are far smaller.
const MAX_ANSWER: usize = 16 * MIB;

/// Keys of running requests.
#[derive(Clone, Debug, Default)]
pub struct InFlight(Arc<Mutex<HashSet<(TenantId, String)>>>);

/// A running request. Dropping it frees the key.
struct Flight {
    all: InFlight,
    one: (TenantId, String),
}

impl InFlight {
    fn take(&self, tenant: &TenantId, key: &str) -> Option<Flight> {
        let one = (tenant.clone(), key.to_owned());
        let new = self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(one.clone());
        new.then(|| Flight { all: self.clone(), one })
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.all.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.one);
    }
}

/// For the handler of messages, whose answer is a stream.
#[derive(Clone, Debug)]
pub struct Once {
    pub key: String,
    /// The turn of this message; it may not have been sent when the daemon was killed.
    pub turn: Option<(Uuid, Uuid)>,
}

/// The routes that support keys: they create or send, and their answers contain no secret.
fn counts(method: &Method, path: &str) -> bool {
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    method == Method::POST
        && matches!(
            parts[..],
            ["api", "agents" | "sessions" | "queue" | "credentials"]
                | ["api", "agents", _, "versions" | "eval-cases" | "eval-runs"]
                | ["api", "agents", _, "eval-cases", "import"]
                | ["api", "sessions", _, "messages" | "fork" | "attachments"]
        )
}

/// The name under which a key is stored. Admin keys and ordinary keys of a tenant follow different
/// rules, so their names differ and neither gets the other's answer. No client can send the control
/// character.
fn kept_as(key: &str, admin: bool) -> String {
    if admin { format!("\u{1}admin:{key}") } else { key.to_owned() }
}

/// Middleware of every route below `/api`, after the authentication.
pub async fn once(State(state): State<AppState>, request: Request, next: Next) -> Result<Response, ApiError> {
    let Some(key) = request.headers().get(HEADER) else { return Ok(next.run(request).await) };
    if !counts(request.method(), request.uri().path()) {
        return Ok(next.run(request).await);
    }
    let key = key.to_str().ok().filter(|key| (1..=255).contains(&key.len()));
    let key =
        key.ok_or_else(|| ApiError::bad_request("Idempotency-Key must have 1 to 255 visible ASCII characters"))?;
    let caller = request.extensions().get::<Caller>().cloned();
    let Caller { tenant, admin } = caller.ok_or_else(|| ApiError::unauthorized("Missing Authorization header"))?;
    let key = kept_as(key, admin);
    let (mut parts, body) = request.into_parts();
    let holder = parts.extensions.get::<Holder>().cloned();
    let holder = holder.ok_or_else(|| ApiError::unauthorized("Missing Authorization header"))?;
    let read = body::read(&parts.headers, body, MAX_BODY, &state.load, &holder).await?;
    let mut hash = Sha256::new();
    hash.update(format!("{} {}\0", parts.method, parts.uri));
    hash.update(&read.bytes);
    let digest: [u8; 32] = hash.finalize().into();

    let flight = state
        .in_flight
        .take(&tenant, &key)
        .ok_or_else(|| ApiError::conflict("a request with this Idempotency-Key is still running; try again", 1))?;
    let earlier = state.store.idempotency_begin(&tenant, &key, digest).await?;
    let is_message = parts.uri.path().ends_with("/messages");
    let turn = match earlier {
        None => None,
        Some(Earlier { request, .. }) if request != digest => {
            return Err(ApiError::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "this Idempotency-Key was used for another request within the last 24 hours",
            ));
        }
        Some(Earlier { answer: Some((status, answer)), .. }) => return Ok(replay(status, answer)),
        Some(Earlier { turn, .. }) if is_message => turn,
        Some(_) => {
            return Err(ApiError::conflict(
                "ashd was restarted while a request with this Idempotency-Key was running: check with GET whether it \
                 took effect, and use another key to send it again",
                1,
            ));
        }
    };
    if is_message {
        parts.extensions.insert(Once { key: key.clone(), turn });
    }
    // The handler takes the body from here without a copy.
    parts.extensions.insert(read);
    let answer = next.run(Request::from_parts(parts, Body::empty())).await;
    let answer = keep(&state, &tenant, &key, answer).await;
    drop(flight);
    answer
}

/// Stores a success; any other answer frees the key.
async fn keep(state: &AppState, tenant: &TenantId, key: &str, answer: Response) -> Result<Response, ApiError> {
    if !answer.status().is_success() {
        state.store.idempotency_forget(tenant, key).await?;
        return Ok(answer);
    }
    let kind = answer.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if kind.starts_with("text/event-stream") {
        return Ok(answer);
    }
    let (parts, body) = answer.into_parts();
    let bytes = to_bytes(body, MAX_ANSWER)
        .await
        .map_err(|error| ApiError::internal("the answer cannot be stored", &std::io::Error::other(error)))?;
    state.store.idempotency_answer(tenant, key, parts.status.as_u16(), bytes.to_vec()).await?;
    Ok(Response::from_parts(parts, Body::from(bytes)))
}

fn replay(status: u16, answer: Vec<u8>) -> Response {
    let empty = answer.is_empty();
    let mut response = Response::new(Body::from(answer));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    if !empty {
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    mark(&mut response);
    response
}

/// Marks the answer as that of an earlier request.
pub fn mark(response: &mut Response) {
    response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_key_counts() {
        for (method, path, expected) in [
            (Method::POST, "/api/sessions", true),
            (Method::POST, "/api/sessions/x/messages", true),
            (Method::POST, "/api/sessions/x/fork", true),
            (Method::POST, "/api/agents", true),
            (Method::POST, "/api/queue", true),
            (Method::POST, "/api/api-keys", false),
            (Method::POST, "/api/sessions/x/pause", false),
            (Method::GET, "/api/sessions", false),
            (Method::PATCH, "/api/agents", false),
        ] {
            assert_eq!(counts(&method, path), expected, "{method} {path}");
        }
    }

    #[test]
    fn a_key_flies_once_at_a_time() {
        let all = InFlight::default();
        let tenant = TenantId::default_tenant();
        let flight = all.take(&tenant, "k").unwrap();
        assert!(all.take(&tenant, "k").is_none());
        assert!(all.take(&tenant, "l").is_some() && all.take(&"acme".parse().unwrap(), "k").is_some());
        drop(flight);
        assert!(all.take(&tenant, "k").is_some());
    }
}
