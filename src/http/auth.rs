//! Authentication of callers.
//!
//! ```text
//! Authorization: Bearer T ──> ASH_API_KEY set?  yes: T equals it (constant time)  -> tenant "default", admin
//!                                               no:  SHA-256(T) in api_keys       -> the key's tenant and role
//! ```
//!
//! On the unix socket, root and ashd's group need no token: tenant "default", admin
//! ([`super::local`]).
//!
//! Tokens are compared by digest, so the response time reveals neither their length nor their first
//! wrong byte.

use std::sync::Arc;

use axum::extract::{ConnectInfo, FromRequestParts, MatchedPath, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use hyper::body::Body as _;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tracing::Instrument as _;

use super::AppState;
use super::body;
use super::connections::Connection;
use super::error::ApiError;
use super::held::hold;
use super::local::LocalPeer;
use super::threads;
use crate::config::AuthConfig;
use crate::sessions::quota::shares::Holder;
use crate::store::Store;
use ash_model::TenantId;

/// Checks tokens. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Authenticator {
    /// Digest of `ASH_API_KEY`.
    single: Option<Arc<[u8; 32]>>,
    store: Store,
}

/// The caller of a request that passed [`authenticate`].
#[derive(Clone, Debug)]
pub struct Caller {
    pub tenant: TenantId,
    /// The admin role, see [`crate::store::ApiKey::admin`].
    pub admin: bool,
}

impl Caller {
    /// # Errors
    /// 403, in the words "only a key with the admin role <does>".
    pub fn check_admin(&self, does: &str) -> Result<(), ApiError> {
        if self.admin {
            return Ok(());
        }
        let text = format!("only a key with the admin role {does}; ask the administrator of this ashd");
        Err(ApiError::new(StatusCode::FORBIDDEN, text))
    }
}

impl Authenticator {
    pub fn new(config: &AuthConfig, store: Store) -> Self {
        let single = config.api_key.as_ref().map(|key| Arc::new(digest(key)));
        Self { single, store }
    }

    /// Whether `ASH_API_KEY` is the only key.
    pub fn single_tenant(&self) -> bool {
        self.single.is_some()
    }

    async fn check(&self, headers: &HeaderMap) -> Result<Caller, ApiError> {
        let hash = digest(bearer(headers)?);
        let invalid = || ApiError::unauthorized("Invalid API key");
        match &self.single {
            Some(single) if bool::from(single.ct_eq(&hash)) => {
                Ok(Caller { tenant: TenantId::default_tenant(), admin: true })
            }
            Some(_) => Err(invalid()),
            None => {
                let key = self.store.key_by_hash(hash).await?.ok_or_else(invalid)?;
                Ok(Caller { tenant: key.tenant, admin: key.admin })
            }
        }
    }
}

/// SHA-256 of a token. Only the digest is stored.
pub fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// The token of `Authorization: Bearer <token>`; the scheme is case-insensitive (RFC 9110 §11.1).
fn bearer(headers: &HeaderMap) -> Result<&str, ApiError> {
    let Some(value) = headers.get(AUTHORIZATION) else {
        return Err(ApiError::unauthorized("Missing Authorization header"));
    };
    value
        .to_str()
        .ok()
        .and_then(|text| text.trim().split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim_start())
        .filter(|token| !token.is_empty() && !token.contains(' '))
        .ok_or_else(|| ApiError::unauthorized("Invalid Authorization header format"))
}

/// Middleware of every route below `/api`: identifies the caller and applies its rate limit.
pub async fn authenticate(
    State(state): State<AppState>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let local = request.extensions().get::<ConnectInfo<LocalPeer>>().is_some_and(|ConnectInfo(peer)| peer.admin);
    let (caller, holder) = if local && !request.headers().contains_key(AUTHORIZATION) {
        (Caller { tenant: TenantId::default_tenant(), admin: true }, Holder::Local)
    } else {
        let caller = state.auth.check(request.headers()).await?;
        state.rates.count(&caller.tenant, state.config.now().server.requests_per_minute)?;
        let holder = Holder::Tenant(caller.tenant.clone());
        (caller, holder)
    };
    if let Some(connection) = request.extensions().get::<Arc<Connection>>() {
        connection.known();
    }
    let path = request.extensions().get::<MatchedPath>();
    let mut working = match state.load.begin(&holder, request.method(), path).await {
        Ok(working) => working,
        Err(refusal) => {
            body::discard(request.into_body());
            return Err(refusal);
        }
    };
    let threads = state.load.threads(&holder);
    request.extensions_mut().insert(holder);
    // Log lines of the request carry both fields. The extractor of the session sets ASH_SESSION.
    let span = tracing::error_span!("request", ASH_TENANT = %caller.tenant, ASH_SESSION = tracing::field::Empty);
    // Held until the head of the answer is known: a tenant is not removed while one of its requests
    // runs.
    let visit = state.sessions.enter(&caller.tenant)?;
    request.extensions_mut().insert(caller);
    let work = async move {
        let answer = next.run(request).await;
        drop(visit);
        working.answered(answer.body().size_hint().exact())?;
        Ok(answer.map(|body| hold(body, working)))
    };
    // A task of its own: when the client disconnects, the request continues to its end. It leaves
    // nothing half done, and what it occupies counts for as long as it occupies it.
    let task = tokio::spawn(threads::scope(threads, work).instrument(span));
    task.await.unwrap_or_else(|gone| match gone.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => Err(ApiError::unavailable("ashd is shutting down", 1)),
    })
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        // Fail closed on a route outside the middleware.
        parts.extensions.get::<Self>().cloned().ok_or_else(|| {
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "this route is served without authentication")
        })
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn bearer_tokens() {
        for (header, expected) in [
            ("Bearer abc", Ok("abc")),
            ("bearer abc", Ok("abc")),
            ("BEARER  abc ", Ok("abc")),
            ("Bearer", Err("Invalid Authorization header format")),
            ("Bearer ", Err("Invalid Authorization header format")),
            ("Bearer a b", Err("Invalid Authorization header format")),
            ("Basic abc", Err("Invalid Authorization header format")),
            ("abc", Err("Invalid Authorization header format")),
            ("", Err("Invalid Authorization header format")),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, HeaderValue::from_str(header).unwrap());
            let got = bearer(&headers).map_err(|e| e.text().to_owned());
            assert_eq!(got, expected.map_err(str::to_owned), "{header:?}");
        }
        assert_eq!(bearer(&HeaderMap::new()).unwrap_err().text(), "Missing Authorization header");
        let mut raw = HeaderMap::new();
        raw.insert(AUTHORIZATION, HeaderValue::from_bytes(b"Bearer \xff").unwrap());
        assert_eq!(bearer(&raw).unwrap_err().text(), "Invalid Authorization header format");
    }
}
