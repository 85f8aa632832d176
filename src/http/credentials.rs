//! `/api/credentials`: sealed keys of model providers. A stored key is never shown.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::AppState;
use super::args::Id;
use super::auth::Caller;
use super::body::JsonBody;
use super::error::{ApiError, ErrorBody};
use super::rows;
use crate::sessions::api::credentials::FOR_SESSIONS;
use crate::store::Credential;
use ash_model::iso;

/// Types that clients know and no session can use, with the alternative.
const OTHERS: [(&str, &str); 2] = [
    (
        "openai",
        "Claude Code uses only the Anthropic API: store a key of type anthropic, or one of type custom for a proxy with \
         this API, and set ANTHROPIC_BASE_URL of ashd to that proxy",
    ),
    (
        "bedrock",
        "requests are not signed for AWS: run a proxy that speaks the Anthropic API and signs for Bedrock, set ANTHROPIC_BASE_URL \
         of ashd to it, and store its key as type custom",
    ),
];
/// Longest label, in bytes.
const MAX_LABEL: usize = 200;
/// Longest key, in bytes.
const MAX_KEY: usize = 64 << 10;

/// Body of the POST.
#[derive(Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct NewCredential {
    /// `anthropic`, or `custom`: a key for the server that `ANTHROPIC_BASE_URL` of ashd names.
    /// Other types are refused, because no session could use them.
    #[serde(rename = "type")]
    #[schema(example = "anthropic")]
    pub kind: String,
    /// The provider's key.
    #[schema(example = "sk-ant-...")]
    pub key: String,
    /// Its purpose. Default: the type.
    #[schema(example = "team key")]
    pub label: Option<String>,
}

impl std::fmt::Debug for NewCredential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewCredential").field("kind", &self.kind).field("label", &self.label).finish_non_exhaustive()
    }
}

/// A credential, without its key.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Credential)]
pub struct CredentialView {
    pub id: Uuid,
    #[serde(rename = "type")]
    pub kind: String,
    pub label: String,
    pub active: bool,
    pub created_at: String,
    /// When it was last used for a request to the model; null: never.
    pub last_used_at: Option<String>,
}

impl From<Credential> for CredentialView {
    fn from(credential: Credential) -> Self {
        let Credential { id, kind, label, active, created_at, last_used_at, .. } = credential;
        Self { id, kind, label, active, created_at: iso(created_at), last_used_at: last_used_at.map(iso) }
    }
}

/// One credential.
#[derive(Debug, Serialize, ToSchema)]
pub struct CredentialBody {
    pub credential: CredentialView,
}

/// The tenant's credentials, oldest first.
#[derive(Debug, Serialize, ToSchema)]
pub struct CredentialsBody {
    pub credentials: Vec<CredentialView>,
}

fn check(new: &NewCredential) -> Result<String, ApiError> {
    let kind = new.kind.as_str();
    if let Some((_, instead)) = OTHERS.iter().find(|(other, _)| *other == kind) {
        return Err(ApiError::bad_request(format!("type \"{kind}\" is not supported: {instead}")));
    }
    if !FOR_SESSIONS.contains(&kind) {
        return Err(ApiError::bad_request(format!(
            "type is required, one of {}, not \"{}\"",
            FOR_SESSIONS.join(", "),
            kind.chars().take(40).collect::<String>()
        )));
    }
    // The key becomes a header of the gateway's requests. The error text never contains the key.
    let fits = (1..=MAX_KEY).contains(&new.key.len()) && !new.key.trim().is_empty();
    if !fits || new.key.chars().any(char::is_control) {
        return Err(ApiError::bad_request(format!("key is required: 1 to {MAX_KEY} bytes without control characters")));
    }
    let label = new.label.clone().unwrap_or_else(|| new.kind.clone());
    if label.is_empty() || label.len() > MAX_LABEL {
        return Err(ApiError::bad_request(format!("label must have 1 to {MAX_LABEL} bytes")));
    }
    Ok(label)
}

/// Store a key for sessions
///
/// The key is sealed before it is stored, and never shown again. A session names it in
/// `credentialId`.
#[utoipa::path(
    post, path = "/api/credentials", tag = "credentials",
    request_body(content = NewCredential, example = json!({"type": "anthropic", "key": "sk-ant-...", "label": "team"})),
    responses((status = 201, body = CredentialBody), (status = 400, body = ErrorBody))
)]
pub async fn create(
    State(state): State<AppState>,
    caller: Caller,
    body: JsonBody<NewCredential>,
) -> Result<(StatusCode, Json<CredentialBody>), ApiError> {
    let new = &body.value;
    let label = check(new)?;
    let credential = state.sessions.add_credential(&caller.tenant, &new.kind, label, new.key.trim()).await?;
    Ok((StatusCode::CREATED, Json(CredentialBody { credential: credential.into() })))
}

/// List the tenant's credentials
#[utoipa::path(get, path = "/api/credentials", tag = "credentials", responses((status = 200, body = CredentialsBody)))]
pub async fn list(State(state): State<AppState>, caller: Caller) -> Result<Response, ApiError> {
    // Include the last request of each session.
    state.sessions.collect_usage().await;
    let places = state.store.credential_places(&caller.tenant).await?;
    rows::list::<Credential, CredentialView>(&state.store, &caller.tenant, "credentials", places, "").await
}

/// Delete a credential
///
/// A session that uses it keeps it until its process ends, and cannot be resumed afterwards.
#[utoipa::path(
    delete, path = "/api/credentials/{id}", tag = "credentials", params(("id" = Uuid, Path)),
    responses((status = 204), (status = 404, description = "Credential not found", body = ErrorBody))
)]
pub async fn delete(State(state): State<AppState>, caller: Caller, Id(id): Id) -> Result<StatusCode, ApiError> {
    match id {
        Some(id) if state.store.credential_delete(&caller.tenant, id).await? => Ok(StatusCode::NO_CONTENT),
        _ => Err(ApiError::not_found("Credential not found")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_credential_is_checked_and_its_key_never_repeated() {
        let long = "secret".repeat(20_000);
        for (kind, key, label, part) in [
            ("", "secret", None, "type is required"),
            ("aws", "secret", None, "not \"aws\""),
            ("openai", "secret", None, "store a key of type anthropic"),
            ("bedrock", "{\"accessKeyId\":\"secret\"}", None, "run a proxy"),
            ("anthropic", "", None, "key is required"),
            ("anthropic", "  ", None, "key is required"),
            ("anthropic", "secret\r\nX: y", None, "control characters"),
            ("anthropic", long.as_str(), None, "key is required"),
            ("anthropic", "secret", Some(""), "label"),
        ] {
            let new = NewCredential { kind: kind.into(), key: key.into(), label: label.map(str::to_owned) };
            let error = check(&new).unwrap_err();
            assert!(error.text().contains(part) && !error.text().contains("secret"), "{}", error.text());
        }
        let new = NewCredential { kind: "custom".into(), key: "k".into(), label: None };
        assert_eq!(check(&new).unwrap(), "custom");
    }
}
