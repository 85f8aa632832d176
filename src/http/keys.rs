//! `/api/api-keys`: keys of the caller's own tenant. Keys of other tenants and keys with the admin
//! role need the admin role.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::AppState;
use super::args::Id;
use super::auth::{Caller, digest};
use super::body::JsonBody;
use super::error::{ApiError, ErrorBody};
use super::rows;
use crate::store::{ApiKey, KeyDelete};
use ash_model::{TenantId, iso, now_ms};

/// Longest label, in bytes.
const MAX_LABEL: usize = 200;

/// Body of the POSTs.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NewKey {
    /// Its purpose; 1 to 200 bytes.
    #[schema(example = "ci")]
    pub label: String,
    /// The key's tenant. Default: the caller's own.
    pub tenant_id: Option<String>,
    /// Gives the key the admin role (needs the admin role; tenant `default` only).
    pub admin: bool,
}

/// A new key. It is shown only once.
#[derive(Debug, Serialize, ToSchema)]
pub struct MintedKey {
    pub id: Uuid,
    #[schema(example = "ash_0YwD...")]
    pub key: String,
}

/// A new key and its tenant.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct MintedTenantKey {
    pub id: Uuid,
    pub key: String,
    pub tenant_id: String,
}

/// A key as it is listed.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyView {
    pub id: Uuid,
    pub label: String,
    /// Its first characters, to tell keys apart.
    #[schema(example = "ash_0YwD")]
    pub key_prefix: String,
    pub created_at: String,
    /// Present and true for keys with the admin role, which only admins can list.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub admin: bool,
}

impl From<ApiKey> for KeyView {
    fn from(key: ApiKey) -> Self {
        Self { id: key.id, label: key.label, key_prefix: key.prefix, created_at: iso(key.created_at), admin: key.admin }
    }
}

/// The tenant's keys.
#[derive(Debug, Serialize, ToSchema)]
pub struct KeysBody {
    pub keys: Vec<KeyView>,
}

/// A token of 256 random bits: `ash_` and 43 characters of base64url.
pub fn mint_token() -> Result<String, ApiError> {
    let mut random = [0u8; 32];
    getrandom::fill(&mut random)
        .map_err(|cause| ApiError::internal("no random bytes available", &std::io::Error::other(cause)))?;
    Ok(format!("ash_{}", URL_SAFE_NO_PAD.encode(random)))
}

async fn mint(state: &AppState, caller: &Caller, body: NewKey) -> Result<(MintedKey, TenantId), ApiError> {
    if state.auth.single_tenant() {
        return Err(ApiError::bad_request(
            "ASH_API_KEY is set and is the only valid key; unset it and restart ashd to use keys of the database",
        ));
    }
    if body.label.is_empty() || body.label.len() > MAX_LABEL {
        return Err(ApiError::bad_request(format!("label is required: 1 to {MAX_LABEL} bytes")));
    }
    let tenant = match body.tenant_id {
        None => caller.tenant.clone(),
        Some(name) => name.parse().map_err(|why| ApiError::bad_request(format!("tenantId: {why}")))?,
    };
    if tenant != caller.tenant {
        caller.check_admin("can create keys for another tenant")?;
    }
    if body.admin {
        caller.check_admin("can create keys with the admin role")?;
        if tenant != TenantId::default_tenant() {
            return Err(ApiError::bad_request(format!(
                "admin: keys with the admin role belong to tenant \"default\", not to \"{tenant}\"; leave tenantId or admin out"
            )));
        }
    }
    let token = mint_token()?;
    let key = ApiKey {
        id: Uuid::new_v4(),
        tenant: tenant.clone(),
        label: body.label,
        hash: digest(&token),
        prefix: token[..8].to_owned(),
        admin: body.admin,
        created_at: now_ms(),
    };
    let id = key.id;
    state.store.key_insert(key).await?;
    Ok((MintedKey { id, key: token }, tenant))
}

/// Create a key; it is shown only once
#[utoipa::path(
    post, path = "/api/api-keys", tag = "api keys",
    request_body(content = NewKey, example = json!({"label": "ci"})),
    responses(
        (status = 201, body = MintedKey),
        (status = 400, body = ErrorBody),
        (status = 403, description = "Another tenant or the admin role, and the caller is no admin", body = ErrorBody),
    )
)]
pub async fn create(
    State(state): State<AppState>,
    caller: Caller,
    body: JsonBody<NewKey>,
) -> Result<(StatusCode, Json<MintedKey>), ApiError> {
    let (minted, _) = mint(&state, &caller, body.value).await?;
    Ok((StatusCode::CREATED, Json(minted)))
}

/// Create a key for any tenant (admin)
#[utoipa::path(
    post, path = "/api/internal/api-keys", tag = "api keys",
    request_body(content = NewKey, example = json!({"label": "ci", "tenantId": "acme"})),
    responses(
        (status = 201, body = MintedTenantKey),
        (status = 400, body = ErrorBody),
        (status = 403, description = "The key has no admin role", body = ErrorBody),
    )
)]
pub async fn create_for_tenant(
    State(state): State<AppState>,
    caller: Caller,
    body: JsonBody<NewKey>,
) -> Result<(StatusCode, Json<MintedTenantKey>), ApiError> {
    caller.check_admin("can create keys for any tenant")?;
    if body.value.tenant_id.is_none() {
        return Err(ApiError::bad_request("tenantId is required: the tenant the key is for"));
    }
    let (MintedKey { id, key }, tenant) = mint(&state, &caller, body.value).await?;
    Ok((StatusCode::CREATED, Json(MintedTenantKey { id, key, tenant_id: tenant.to_string() })))
}

/// List the tenant's keys
///
/// Keys with the admin role are listed only for admins.
#[utoipa::path(get, path = "/api/api-keys", tag = "api keys", responses((status = 200, body = KeysBody)))]
pub async fn list(State(state): State<AppState>, caller: Caller) -> Result<Response, ApiError> {
    let places = state.store.key_places(&caller.tenant, caller.admin).await?;
    rows::list::<ApiKey, KeyView>(&state.store, &caller.tenant, "keys", places, "").await
}

/// Revoke a key
///
/// Takes effect at once. Only admins can revoke a key with the admin role, and the last of those
/// cannot be revoked.
#[utoipa::path(
    delete, path = "/api/api-keys/{id}", tag = "api keys", params(("id" = Uuid, Path)),
    responses(
        (status = 204),
        (status = 404, description = "API key not found, or it has the admin role and the caller does not", body = ErrorBody),
        (status = 409, description = "It is the last key with the admin role", body = ErrorBody),
    )
)]
pub async fn revoke(State(state): State<AppState>, caller: Caller, Id(id): Id) -> Result<StatusCode, ApiError> {
    let done = match id {
        Some(id) => state.store.key_delete(&caller.tenant, id, caller.admin).await?,
        None => KeyDelete::NotFound,
    };
    match done {
        KeyDelete::Done => Ok(StatusCode::NO_CONTENT),
        KeyDelete::NotFound => Err(ApiError::not_found("API key not found")),
        KeyDelete::LastAdmin => Err(ApiError::new(
            StatusCode::CONFLICT,
            "the last key with the admin role cannot be revoked; create another one first (`ashctl keys create LABEL \
             --admin`, or POST /api/api-keys with \"admin\": true), then revoke this one with it",
        )),
    }
}
