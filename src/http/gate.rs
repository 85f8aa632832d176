//! The check before every request that stores something: the disk's reserve, and the tenant's
//! storage limit. Routes that are not named here are checked.
//!
//! ```text
//!   GET, HEAD, DELETE, and the routes of EXEMPT -----------------------> handler
//!   the routes of RESERVE_ONLY: reserve of the disk ----------------------> handler
//!   every other: reserve, then used + length of the body <= storageBytes? -> handler -> the change is measured
//!                                                     no: 507
//! ```

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{Method, header};
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::BodyExt;
use uuid::Uuid;

use super::AppState;
use super::auth::Caller;
use super::body;
use super::error::ApiError;
use crate::sessions::SessionError;

/// Routes that change something without this check, each with the reason.
pub const EXEMPT: &[(&str, &str)] = &[
    ("/api/sessions/{id}/pause", "it frees memory, and stores one event"),
    ("/api/sessions/{id}/stop", "it frees memory, and stores one event"),
    ("/api/sessions/{id}/interrupt", "it ends the writing turn"),
    ("/api/sessions/{id}/resume", "it stores nothing new; the session's own task checks a session paused for storage"),
    (
        "/api/sessions/{id}/exec",
        "it can delete files in the sandbox; diskBytes and storageBytes limit what a command writes",
    ),
    ("/api/sessions/{id}/limits", "it can raise the limit, and stores a few numbers"),
    ("/api/agents/{name}/limits", "it can raise the limit, and stores a few numbers"),
    ("/api/tenant/limits", "it can raise the limit, and stores a few numbers"),
    ("/api/tenants/{id}/limits", "it can raise the limit, and stores a few numbers"),
    (
        "/api/agents/{name}/warm",
        "it stores one number; fewer warm sandboxes free storage, and more are created only while there is room",
    ),
];

/// Routes that store a row of bounded size for another tenant.
const RESERVE_ONLY: &[&str] = &["/api/internal/api-keys"];

/// What is checked before a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asks {
    Nothing,
    Reserve,
    Storage,
}

fn asks(method: &Method, route: &str) -> Asks {
    let reads = [Method::GET, Method::HEAD, Method::OPTIONS, Method::DELETE].contains(method);
    if reads || EXEMPT.iter().any(|(exempt, _)| *exempt == route) {
        Asks::Nothing
    } else if RESERVE_ONLY.contains(&route) {
        Asks::Reserve
    } else {
        Asks::Storage
    }
}

/// The session of `/api/sessions/<id>/files` and other routes that change its directory. What its
/// processes write is measured while it has any.
fn session_of(path: &str) -> Option<Uuid> {
    let mut parts = path.trim_start_matches('/').split('/');
    (parts.next() == Some("api") && parts.next() == Some("sessions")).then_some(())?;
    let id = Uuid::try_parse(parts.next()?).ok()?;
    matches!(parts.next(), Some("files" | "workspace" | "attachments")).then_some(id)
}

/// Middleware of every route below `/api`, after the authentication.
pub async fn gate(State(state): State<AppState>, request: Request, next: Next) -> Result<Response, ApiError> {
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map(|route| route.as_str().to_owned()).unwrap_or_default();
    if method == Method::GET || method == Method::HEAD {
        return Ok(next.run(request).await);
    }
    let Some(tenant) = request.extensions().get::<Caller>().map(|caller| caller.tenant.clone()) else {
        return Err(ApiError::unauthorized("Missing Authorization header"));
    };
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    let refused = match asks(&method, &route) {
        Asks::Nothing => None,
        Asks::Reserve => state.sessions.check_reserve().err(),
        Asks::Storage => state.sessions.check_write(&tenant, announced.unwrap_or(0)).await.err(),
    };
    if let Some(error) = refused {
        return Err(refuse(error, request).await);
    }
    let session = session_of(request.uri().path());
    let agents = request.uri().path().starts_with("/api/agents");
    let counted = tenant.clone();
    let request = if announced.is_none() && asks(&method, &route) == Asks::Storage {
        let sessions = state.sessions.clone();
        request.map(|body| {
            Body::new(body.map_frame(move |frame| {
                sessions.arrived(&counted, frame.data_ref().map_or(0, |data| data.len() as u64));
                frame
            }))
        })
    } else {
        request
    };
    let answer = next.run(request).await;
    state.sessions.touched(&tenant, session, agents);
    Ok(answer)
}

/// Reads and discards the body, so that the client can read the answer.
async fn refuse(error: SessionError, request: Request) -> ApiError {
    if !request.headers().contains_key(header::EXPECT) {
        body::discard(request.into_body());
    }
    error.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stores_something_is_asked() {
        for (method, route, expected) in [
            (Method::POST, "/api/sessions", Asks::Storage),
            (Method::POST, "/api/sessions/{id}/messages", Asks::Storage),
            (Method::PATCH, "/api/agents/{name}", Asks::Storage),
            (Method::POST, "/api/something/new", Asks::Storage),
            (Method::PUT, "", Asks::Storage),
            (Method::POST, "/api/internal/api-keys", Asks::Reserve),
            (Method::POST, "/api/sessions/{id}/pause", Asks::Nothing),
            (Method::PATCH, "/api/tenant/limits", Asks::Nothing),
            (Method::DELETE, "/api/sessions/{id}", Asks::Nothing),
            (Method::GET, "/api/sessions", Asks::Nothing),
        ] {
            assert_eq!(asks(&method, route), expected, "{method} {route}");
        }
    }

    #[test]
    fn whose_directory_is_touched() {
        let id = Uuid::from_u128(7);
        assert_eq!(session_of(&format!("/api/sessions/{id}/files")), Some(id));
        assert_eq!(session_of(&format!("/api/sessions/{id}/messages")), None);
        assert_eq!(session_of(&format!("/api/agents/{id}/files")), None);
        assert_eq!(session_of("/api/sessions"), None);
    }
}
