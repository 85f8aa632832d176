//! `/api/tenants/{id}`: removal of a tenant.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::AppState;
use super::args::TenantName;
use super::auth::Caller;
use super::error::{ApiError, ErrorBody};
use crate::sessions::TenantRemoved;

/// Number of removed rows.
#[derive(Debug, Serialize, ToSchema)]
pub struct TenantDeleted {
    pub deleted: TenantRemoved,
}

/// Delete a tenant with all its data (admin)
///
/// Its keys become invalid at once. Its sessions end in whatever state they are, and their files,
/// messages and timelines are removed with its agents, credentials and queue. The record of its
/// usage (`/api/usage`) stays. If it is interrupted, repeat the request.
#[utoipa::path(
    delete, path = "/api/tenants/{id}", tag = "tenants", params(("id" = String, Path)),
    responses(
        (status = 200, body = TenantDeleted),
        (status = 400, description = "The default tenant, or the caller's own", body = ErrorBody),
        (status = 403, description = "The key has no admin role", body = ErrorBody),
        (status = 404, description = "The tenant does not exist", body = ErrorBody),
        (status = 503, description = "Its requests are still running; try again", body = ErrorBody),
    )
)]
pub async fn delete(
    State(state): State<AppState>,
    caller: Caller,
    TenantName(tenant): TenantName,
) -> Result<Json<TenantDeleted>, ApiError> {
    caller.check_admin("can delete a tenant")?;
    if tenant == caller.tenant && caller.tenant.as_str() != "default" {
        return Err(ApiError::bad_request(
            "a key cannot delete its own tenant; use the unix socket, or the key of another admin",
        ));
    }
    let removed = state.sessions.delete_tenant(&tenant).await?;
    let deleted = removed.ok_or_else(|| ApiError::not_found(format!("Tenant \"{tenant}\" not found")))?;
    Ok(Json(TenantDeleted { deleted }))
}
