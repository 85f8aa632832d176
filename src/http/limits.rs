//! `.../limits` of sessions, agents and tenants, and the usage of a session.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::AppState;
use super::args::{AgentName, OwnSession, TenantName};
use super::auth::Caller;
use super::body::JsonBody;
use super::error::{ApiError, ErrorBody};
use crate::sessions::api::limits::{LimitState, LimitsReport, NotFollowed, SessionStats};
use crate::sessions::api::storage_limit::STORAGE;
use crate::sessions::policy::limit_levels::Change;
use ash_model::TenantId;

/// Bytes of a request: a few numbers. Parsed JSON may need a hundred times as much memory.
const MAX_BODY: usize = 16 << 10;

/// The limits to change; absent limits stay. `null` unsets a limit at this level, so the levels
/// above decide.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = LimitsChange)]
#[expect(dead_code, reason = "the schema of what `Change::parse` reads")]
pub struct ChangeSchema {
    /// Bytes of memory, including the tmpfs mounts of the sandbox. At the limit the kernel kills
    /// processes.
    pub memory_bytes: Option<u64>,
    /// Bytes of swap, in addition.
    pub swap_bytes: Option<u64>,
    /// Thousandths of one core. At the limit: throttled.
    pub cpu_millis: Option<u64>,
    /// Share of the CPU when cores are scarce, 1 to 10000.
    pub cpu_weight: Option<u64>,
    /// Processes and threads. At the limit forks fail.
    pub pids: Option<u64>,
    /// Bytes on the disk. At the limit the session is frozen and gets a message.
    pub disk_bytes: Option<u64>,
    /// Files and directories. Same behaviour as for bytes.
    pub disk_files: Option<u64>,
    /// Milliseconds of one turn. At the limit the turn is interrupted.
    pub turn_ms: Option<u64>,
    /// Bytes per second from and to the disk of the sessions. At the limit: throttled.
    pub io_read_bps: Option<u64>,
    pub io_write_bps: Option<u64>,
    /// Operations per second; same behaviour as for bytes.
    pub io_read_iops: Option<u64>,
    pub io_write_iops: Option<u64>,
    /// Tenants only: bytes of all files and rows of the tenant. At the limit new work and uploads
    /// are refused (507).
    pub storage_bytes: Option<u64>,
}

/// Limits by name.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LimitsBody {
    #[schema(value_type = BTreeMap<String, LimitState>)]
    pub limits: LimitsReport,
    /// Sessions that use more than the new limit and keep their old one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_followed: Vec<NotFollowed>,
}

/// Usage of a session.
#[derive(Debug, Serialize, ToSchema)]
pub struct StatsBody {
    pub stats: SessionStats,
}

fn body(limits: LimitsReport) -> Json<LimitsBody> {
    Json(LimitsBody { limits, not_followed: Vec::new() })
}

fn change(body: &Map<String, Value>) -> Result<Change, ApiError> {
    Change::parse(body).map_err(ApiError::bad_request)
}

/// Get a session's limits, and the level that sets each
#[utoipa::path(
    get, path = "/api/sessions/{id}/limits", tag = "limits", params(("id" = Uuid, Path)),
    responses((status = 200, body = LimitsBody), (status = 404, description = "Session not found", body = ErrorBody))
)]
pub async fn session(
    State(state): State<AppState>,
    caller: Caller,
    OwnSession(session): OwnSession,
) -> Result<Json<LimitsBody>, ApiError> {
    Ok(body(state.sessions.limits(&session, caller.admin).await?))
}

/// Change a session's limits
///
/// Takes effect at once, without a restart, and stays. All values are applied, or none: a value
/// below the current use or above the limits of the levels above is refused with the reason.
#[utoipa::path(
    patch, path = "/api/sessions/{id}/limits", tag = "limits", params(("id" = Uuid, Path)),
    request_body(content = ChangeSchema, example = json!({"memoryBytes": 1073741824, "pids": 256})),
    responses(
        (status = 200, body = LimitsBody),
        (status = 400, description = "A value that cannot be met; the text names it", body = ErrorBody),
        (status = 404, description = "Session not found", body = ErrorBody),
    )
)]
pub async fn patch_session(
    State(state): State<AppState>,
    caller: Caller,
    OwnSession(session): OwnSession,
    given: JsonBody<Map<String, Value>, MAX_BODY>,
) -> Result<Json<LimitsBody>, ApiError> {
    let change = change(&given.value)?;
    Ok(body(state.sessions.change_limits(&session, change, caller.admin).await?))
}

/// Get a session's use of memory, CPU, processes and disk
///
/// Read from the cgroup; a frozen session stays frozen.
#[utoipa::path(
    get, path = "/api/sessions/{id}/stats", tag = "limits", params(("id" = Uuid, Path)),
    responses((status = 200, body = StatsBody), (status = 404, description = "Session not found", body = ErrorBody))
)]
pub async fn stats(
    State(state): State<AppState>,
    OwnSession(session): OwnSession,
) -> Result<Json<StatsBody>, ApiError> {
    Ok(Json(StatsBody { stats: state.sessions.stats(&session).await? }))
}

/// Get the limits of an agent's sessions
#[utoipa::path(
    get, path = "/api/agents/{name}/limits", tag = "limits", params(("name" = String, Path)),
    responses((status = 200, body = LimitsBody), (status = 404, description = "No such agent", body = ErrorBody))
)]
pub async fn agent(
    State(state): State<AppState>,
    caller: Caller,
    AgentName(name): AgentName,
) -> Result<Json<LimitsBody>, ApiError> {
    Ok(body(state.sessions.limits_above(&caller.tenant, Some(&name), caller.admin).await?))
}

/// Change the limits of an agent's sessions
///
/// Running sessions follow at once. Those that use more are listed in `notFollowed` and keep their
/// limits.
#[utoipa::path(
    patch, path = "/api/agents/{name}/limits", tag = "limits", params(("name" = String, Path)),
    request_body(content = ChangeSchema, example = json!({"cpuMillis": 500})),
    responses(
        (status = 200, body = LimitsBody),
        (status = 400, description = "A value that cannot be met; the text names it", body = ErrorBody),
        (status = 404, description = "No such agent", body = ErrorBody),
    )
)]
pub async fn patch_agent(
    State(state): State<AppState>,
    caller: Caller,
    AgentName(name): AgentName,
    given: JsonBody<Map<String, Value>, MAX_BODY>,
) -> Result<Json<LimitsBody>, ApiError> {
    let change = change(&given.value)?;
    let changed = state.sessions.change_limits_above(&caller.tenant, Some(&name), &change, caller.admin).await?;
    Ok(Json(LimitsBody { limits: changed.0, not_followed: changed.1 }))
}

/// Get the limits of the tenant's sessions
#[utoipa::path(
    get, path = "/api/tenant/limits", tag = "limits",
    responses((status = 200, body = LimitsBody))
)]
pub async fn own_tenant(State(state): State<AppState>, caller: Caller) -> Result<Json<LimitsBody>, ApiError> {
    Ok(body(state.sessions.limits_above(&caller.tenant, None, caller.admin).await?))
}

/// Change the limits of the tenant's sessions (admin)
#[utoipa::path(
    patch, path = "/api/tenant/limits", tag = "limits",
    request_body(content = ChangeSchema, example = json!({"memoryBytes": 4294967296_u64})),
    responses(
        (status = 200, body = LimitsBody),
        (status = 400, description = "A value that cannot be met; the text names it", body = ErrorBody),
        (status = 403, description = "The key has no admin role", body = ErrorBody),
    )
)]
pub async fn patch_own_tenant(
    State(state): State<AppState>,
    caller: Caller,
    given: JsonBody<Map<String, Value>, MAX_BODY>,
) -> Result<Json<LimitsBody>, ApiError> {
    let tenant = caller.tenant.clone();
    change_tenant(&state, &caller, &tenant, &given.value).await
}

/// Get the limits of a tenant's sessions (admin, or the tenant itself)
#[utoipa::path(
    get, path = "/api/tenants/{id}/limits", tag = "limits", params(("id" = String, Path)),
    responses((status = 200, body = LimitsBody), (status = 403, description = "Another tenant, and the caller is no admin", body = ErrorBody))
)]
pub async fn tenant(
    State(state): State<AppState>,
    caller: Caller,
    TenantName(tenant): TenantName,
) -> Result<Json<LimitsBody>, ApiError> {
    if tenant != caller.tenant {
        caller.check_admin("can read the limits of another tenant")?;
    }
    Ok(body(state.sessions.limits_above(&tenant, None, caller.admin).await?))
}

/// Change the limits of a tenant's sessions (admin)
#[utoipa::path(
    patch, path = "/api/tenants/{id}/limits", tag = "limits", params(("id" = String, Path)),
    request_body(content = ChangeSchema, example = json!({"memoryBytes": 4294967296_u64})),
    responses(
        (status = 200, body = LimitsBody),
        (status = 400, description = "A value that cannot be met; the text names it", body = ErrorBody),
        (status = 403, description = "The key has no admin role", body = ErrorBody),
    )
)]
pub async fn patch_tenant(
    State(state): State<AppState>,
    caller: Caller,
    TenantName(tenant): TenantName,
    given: JsonBody<Map<String, Value>, MAX_BODY>,
) -> Result<Json<LimitsBody>, ApiError> {
    change_tenant(&state, &caller, &tenant, &given.value).await
}

/// A value of `storageBytes`; `null` unsets it.
fn bytes(value: &Value) -> Result<Option<u64>, ApiError> {
    match value {
        Value::Null => Ok(None),
        value => value.as_u64().map(Some).ok_or_else(|| {
            ApiError::bad_request(format!("{STORAGE} must be a whole number (bytes), or null to unset it, not {value}"))
        }),
    }
}

/// Admins only: otherwise a tenant could lift its own limits.
async fn change_tenant(
    state: &AppState,
    caller: &Caller,
    tenant: &TenantId,
    given: &Map<String, Value>,
) -> Result<Json<LimitsBody>, ApiError> {
    caller.check_admin("can change the limits of a tenant")?;
    let mut given = given.clone();
    let storage = given.remove(STORAGE).map(|value| bytes(&value)).transpose()?;
    // Read before anything changes.
    let sandboxes = if given.is_empty() && storage.is_some() { None } else { Some(change(&given)?) };
    if let Some(bytes) = storage {
        state.sessions.check_storage_limit(bytes)?;
    }
    let not_followed = match &sandboxes {
        Some(change) => state.sessions.change_limits_above(tenant, None, change, true).await?.1,
        None => Vec::new(),
    };
    if let Some(bytes) = storage {
        state.sessions.set_storage_limit(tenant, bytes).await?;
    }
    let limits = state.sessions.limits_above(tenant, None, true).await?;
    Ok(Json(LimitsBody { limits, not_followed }))
}
