//! `/api/tenants/{id}`: the end of a tenant.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::AppState;
use super::args::TenantName;
use super::auth::Caller;
use super::error::{ApiError, ErrorBody};
use crate::sessions::TenantRemoved;

/// What a deletion removed.
#[derive(Debug, Serialize, ToSchema)]
pub struct TenantDeleted {
    pub deleted: TenantRemoved,
}

/// Delete a tenant with everything it has (admin)
///
/// Its keys are refused at once, its sessions are ended in whatever state they are, and their files, messages and timelines
/// are removed with its agents, credentials and queue. The record of what it used (`/api/usage`) stays. Cut short, it is finished
/// by asking again.
#[utoipa::path(
    delete, path = "/api/tenants/{id}", tag = "tenants", params(("id" = String, Path)),
    responses(
        (status = 200, body = TenantDeleted),
        (status = 400, description = "The default tenant, or the caller's own", body = ErrorBody),
        (status = 403, description = "The key has no admin role", body = ErrorBody),
        (status = 404, description = "There is no such tenant", body = ErrorBody),
        (status = 503, description = "Its requests are still under way; ask again", body = ErrorBody),
    )
)]
pub async fn delete(
    State(state): State<AppState>,
    caller: Caller,
    TenantName(tenant): TenantName,
) -> Result<Json<TenantDeleted>, ApiError> {
    caller.check_admin("deletes a tenant")?;
    if tenant == caller.tenant && caller.tenant.as_str() != "default" {
        return Err(ApiError::bad_request(
            "a tenant is not deleted by its own key, which would be gone before the answer; use the unix socket, or another admin's key",
        ));
    }
    // A task of its own: a client that goes away does not leave it half done.
    let sessions = state.sessions.clone();
    let name = tenant.clone();
    let removed = tokio::spawn(async move { sessions.delete_tenant(&name).await }).await;
    let removed = removed.map_err(|cause| ApiError::internal("the tenant could not be deleted", &cause))??;
    let deleted = removed.ok_or_else(|| ApiError::not_found(format!("Tenant \"{tenant}\" not found")))?;
    Ok(Json(TenantDeleted { deleted }))
}
