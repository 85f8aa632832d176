//! The REST API: what the network may ask, and nothing else. This layer parses, checks and answers; what happens is
//! decided below it, in [`crate::sessions`].
//!
//! ```text
//! request ─> panics caught ─> CORS ─┬─> /health /metrics /docs        public
//!                                   ├─> /api/...  ─> authenticate ─> handler ─> Sessions, Store, files
//!                                   └─> 404, 405                       each failure is {"error","statusCode"}
//! ```
//!
//! One file per resource. Every path, schema and example of the OpenAPI page comes from the handlers themselves
//! ([`openapi`]).

mod agents;
mod args;
mod attachments;
mod auth;
mod body;
mod confinement;
mod credentials;
mod error;
mod events;
mod exec;
mod files;
mod health;
mod idempotency;
mod keys;
mod limits;
mod local;
mod logs;
mod messages;
mod openapi;
mod queue;
mod rate;
mod sessions;
mod tenants;
mod usage;

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::FromRef;
use axum::http::{HeaderName, HeaderValue, Method, header};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{Any, CorsLayer};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use auth::{Authenticator, Caller};
pub use error::{ApiError, ErrorBody};
pub use local::LocalPeer;

use crate::config::Live;
use crate::sessions::Sessions;
use crate::store::Store;

/// What the handlers share. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AppState {
    pub config: Live,
    pub store: Store,
    pub sessions: Sessions,
    pub started: Instant,
    auth: Authenticator,
    bodies: body::BodyBudget,
    in_flight: idempotency::InFlight,
    rates: rate::Rates,
    /// Held while an agent's directory is put in place and recorded, so that two deployments of one name cannot mix.
    publishing: Arc<tokio::sync::Mutex<()>>,
    /// Workspaces that may be downloaded at once: each holds a thread while it is sent.
    bundles: Arc<tokio::sync::Semaphore>,
}

/// See [`AppState`]'s `bundles`.
const MAX_BUNDLES: usize = 8;

impl AppState {
    pub fn new(config: impl Into<Live>, store: Store, sessions: Sessions) -> Self {
        let config = config.into();
        let auth = Authenticator::new(&config.now().auth, store.clone());
        Self {
            config,
            store,
            sessions,
            started: Instant::now(),
            auth,
            bodies: body::BodyBudget::default(),
            in_flight: idempotency::InFlight::default(),
            rates: rate::Rates::default(),
            publishing: Arc::default(),
            bundles: Arc::new(tokio::sync::Semaphore::new(MAX_BUNDLES)),
        }
    }
}

impl FromRef<AppState> for body::BodyBudget {
    fn from_ref(state: &AppState) -> Self {
        state.bodies.clone()
    }
}

/// The whole API, ready to be served.
pub fn router(state: AppState) -> Router {
    let (router, api) = documented(&state).split_for_parts();
    let mut router = router.with_state(state.clone()).merge(openapi::pages(&openapi::finish(api)));
    router = router.fallback(error::no_route).method_not_allowed_fallback(error::wrong_method);
    if let Some(cors) = cors(&state.config.now().server.cors_origins) {
        router = router.layer(cors);
    }
    router.layer(CatchPanicLayer::custom(error::panicked))
}

/// Every route with its documentation. A route that is not added here does not exist.
fn documented(state: &AppState) -> OpenApiRouter<AppState> {
    let public =
        OpenApiRouter::with_openapi(openapi::base()).routes(routes!(health::health)).routes(routes!(health::metrics));
    let api = OpenApiRouter::new()
        .routes(routes!(agents::deploy, agents::list))
        .routes(routes!(agents::get, agents::patch, agents::delete))
        .routes(routes!(agents::config, agents::patch_config))
        .routes(routes!(agents::versions::create, agents::versions::list))
        .routes(routes!(agents::versions::get, agents::versions::patch, agents::versions::delete))
        .routes(routes!(agents::versions::activate))
        .routes(routes!(agents::warm::get, agents::warm::set))
        .routes(routes!(agents::files::list, agents::files::write))
        .routes(routes!(agents::files::read, agents::files::delete))
        .routes(routes!(sessions::create, sessions::list))
        .routes(routes!(sessions::get, sessions::end))
        .routes(routes!(confinement::get))
        .routes(routes!(sessions::pause))
        .routes(routes!(sessions::resume))
        .routes(routes!(sessions::stop))
        .routes(routes!(sessions::fork))
        .routes(routes!(sessions::interrupt))
        .routes(routes!(sessions::patch_config))
        .routes(routes!(exec::exec))
        .routes(routes!(limits::session, limits::patch_session))
        .routes(routes!(limits::stats))
        .routes(routes!(limits::agent, limits::patch_agent))
        .routes(routes!(limits::own_tenant, limits::patch_own_tenant))
        .routes(routes!(limits::tenant, limits::patch_tenant))
        .routes(routes!(tenants::delete))
        .routes(routes!(messages::send, messages::list))
        .routes(routes!(events::list))
        .routes(routes!(files::list, files::upload::upload))
        .routes(routes!(files::read, files::upload::delete))
        .routes(routes!(files::workspace::download, files::workspace::restore))
        .routes(routes!(messages::stream))
        .routes(routes!(logs::logs))
        .routes(routes!(attachments::create, attachments::list))
        .routes(routes!(attachments::download, attachments::delete))
        .routes(routes!(queue::create, queue::list))
        .routes(routes!(queue::stats))
        .routes(routes!(queue::get, queue::cancel))
        .routes(routes!(usage::list))
        .routes(routes!(usage::stats))
        .routes(routes!(credentials::create, credentials::list))
        .routes(routes!(credentials::delete))
        .routes(routes!(keys::create, keys::list))
        .routes(routes!(keys::create_for_tenant))
        .routes(routes!(keys::revoke))
        // The layer below is the outer one: it knows the caller first.
        .route_layer(axum::middleware::from_fn_with_state(state.clone(), idempotency::once))
        .route_layer(axum::middleware::from_fn_with_state(state.clone(), auth::authenticate));
    public.merge(api)
}

/// Cross-origin rules, when the configuration names origins; `*` names all.
fn cors(origins: &[String]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let layer = CorsLayer::new()
        .allow_methods([Method::GET, Method::POST, Method::PATCH, Method::DELETE])
        .allow_headers([
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            header::RANGE,
            HeaderName::from_static("last-event-id"),
            HeaderName::from_static("idempotency-key"),
        ])
        .expose_headers([
            header::CONTENT_DISPOSITION,
            header::CONTENT_RANGE,
            header::RETRY_AFTER,
            HeaderName::from_static("x-ash-source"),
            HeaderName::from_static("idempotent-replayed"),
        ]);
    if origins.iter().any(|origin| origin == "*") {
        return Some(layer.allow_origin(Any));
    }
    let known: Vec<HeaderValue> = origins
        .iter()
        .filter_map(|origin| {
            HeaderValue::from_str(origin)
                .inspect_err(|_| tracing::warn!(origin, "server.cors_origins holds what no browser sends; left out"))
                .ok()
        })
        .collect();
    Some(layer.allow_origin(known))
}
