//! `/api/credentials`: keys of model providers, sealed. None is ever shown again.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::AppState;
use super::args::Id;
use super::auth::Caller;
use super::body::JsonBody;
use super::error::{ApiError, ErrorBody};
use crate::model::iso;
use crate::store::Credential;

const KINDS: [&str; 4] = ["anthropic", "openai", "bedrock", "custom"];
/// Longest label, in bytes.
const MAX_LABEL: usize = 200;
/// Longest key, in bytes: some providers' are JSON documents with a certificate in them.
const MAX_KEY: usize = 64 << 10;

/// Body of the POST.
#[derive(Default, Deserialize, ToSchema)]
#[serde(default)]
pub struct NewCredential {
    /// anthropic, openai, bedrock or custom. Sessions use those of type anthropic and custom.
    #[serde(rename = "type")]
    #[schema(example = "anthropic")]
    pub kind: String,
    /// The provider's key.
    #[schema(example = "sk-ant-...")]
    pub key: String,
    /// What it is for; the type when absent.
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
}

impl From<Credential> for CredentialView {
    fn from(credential: Credential) -> Self {
        let Credential { id, kind, label, active, created_at, .. } = credential;
        Self { id, kind, label, active, created_at: iso(created_at) }
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
    if !KINDS.contains(&new.kind.as_str()) {
        return Err(ApiError::bad_request(format!(
            "type is required, one of {}, not \"{}\"",
            KINDS.join(", "),
            new.kind.chars().take(40).collect::<String>()
        )));
    }
    // It goes into a header of the gateway's requests. The text never repeats a secret.
    let fits = (1..=MAX_KEY).contains(&new.key.len()) && !new.key.trim().is_empty();
    // One of bedrock may be a document of several lines.
    if !fits || new.key.chars().any(|c| c.is_control() && (c != '\n' || new.kind != "bedrock")) {
        return Err(ApiError::bad_request(format!("key is required: 1 to {MAX_KEY} bytes without control characters")));
    }
    let label = new.label.clone().unwrap_or_else(|| new.kind.clone());
    if label.is_empty() || label.len() > MAX_LABEL {
        return Err(ApiError::bad_request(format!("label must have 1 to {MAX_LABEL} bytes")));
    }
    Ok(label)
}

/// Keep a key for sessions to use
///
/// It is sealed before it is stored and never shown again; a session names it in `credentialId`.
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
pub async fn list(State(state): State<AppState>, caller: Caller) -> Result<Json<CredentialsBody>, ApiError> {
    let credentials = state.store.credentials(&caller.tenant).await?;
    Ok(Json(CredentialsBody { credentials: credentials.into_iter().map(Into::into).collect() }))
}

/// Delete a credential
///
/// A session that runs with it keeps it until its process ends; after that it can no longer be resumed.
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
