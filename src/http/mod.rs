//! The REST API. This layer parses, checks and answers; [`crate::sessions`] decides.
//!
//! ```text
//! socket ──> place, time-outs ([`connections`]) ──> request
//! request ─> panics caught ─> CORS ─┬─> /health /metrics /docs        public
//!                                   ├─> /api/...  ─> authenticate ─> handler ─> Sessions, Store, files
//!                                   └─> 404, 405                       every failure: {"error","statusCode"}
//! ```
//!
//! The running requests of each tenant have limits ([`load`], [`crate::sessions::quota::shares`]).
//!
//! One file per resource. All paths, schemas and examples of the OpenAPI description come from the
//! handlers ([`openapi`]).

mod agents;
mod analytics;
mod args;
mod attachments;
mod auth;
mod body;
mod coding;
mod confinement;
mod connections;
mod credentials;
mod error;
mod evals;
mod events;
mod exec;
mod files;
mod gate;
mod health;
mod held;
mod idempotency;
mod keys;
mod limits;
mod load;
mod local;
mod logs;
mod messages;
mod openapi;
mod queue;
mod rate;
mod rows;
mod runners;
mod schemas;
mod sessions;
mod tenants;
mod threads;
mod usage;
mod wording;

use std::time::Instant;

use axum::Router;
use axum::extract::FromRef;
use axum::http::{HeaderName, HeaderValue, Method, header};
use nix::sys::resource::{Resource, getrlimit};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{Any, CorsLayer};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

pub use auth::{Authenticator, Caller};
pub use connections::{Listener, Server};
pub use error::{ApiError, ErrorBody};
pub use local::LocalPeer;

pub use agents::sweep as sweep_agents;

use crate::config::Live;
use crate::sessions::Sessions;
use crate::sessions::quota::admission::Admissions;
use crate::sessions::quota::shares::{Bounds, Holder, Shares};
use crate::store::Store;
use ash_model::TenantId;

/// Shared state of the handlers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AppState {
    pub config: Live,
    pub store: Store,
    pub sessions: Sessions,
    pub started: Instant,
    auth: Authenticator,
    /// Limits of the sockets that serve it.
    connections: connections::Bounds,
    load: load::Load,
    in_flight: idempotency::InFlight,
    rates: rate::Rates,
    /// Held while an agent's directory is put in place and recorded, so that two deployments of one
    /// name cannot mix: one of a tenant at a time.
    publishing: Admissions<TenantId>,
    /// Running workspace downloads; each holds a thread while it is sent.
    bundles: Shares<Holder>,
    /// Uploads into a session: one at a time.
    uploads: Admissions<Uuid>,
}

/// Limits of [`AppState`]'s `bundles`: per tenant, and in all.
const BUNDLES: Bounds = Bounds { each: 8, all: 32 };

impl AppState {
    pub fn new(config: impl Into<Live>, store: Store, sessions: Sessions) -> Self {
        let config = config.into();
        let now = config.now();
        let (descriptors, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((1024, 1024));
        let connections = connections::Bounds::new(&now.server, descriptors, now.pool.max_sandboxes);
        let load = load::Load::new(config.clone(), &connections);
        let auth = Authenticator::new(&config.now().auth, store.clone());
        Self {
            config,
            store,
            sessions,
            started: Instant::now(),
            auth,
            connections,
            load,
            in_flight: idempotency::InFlight::default(),
            rates: rate::Rates::default(),
            publishing: Admissions::new(1),
            bundles: Shares::default(),
            uploads: Admissions::new(1),
        }
    }
}

impl FromRef<AppState> for load::Load {
    fn from_ref(state: &AppState) -> Self {
        state.load.clone()
    }
}

/// The API with the limits of its connections, for any number of sockets.
pub fn server(state: AppState) -> Server {
    let connections = state.connections;
    Server::new(router(state), connections)
}

/// The routes without the sockets.
pub fn router(state: AppState) -> Router {
    let (router, api) = documented(&state).split_for_parts();
    debug_assert!(
        schemas::stale(&api).is_empty(),
        "http::schemas names {:?}, which no longer exist",
        schemas::stale(&api)
    );
    let mut router = router.with_state(state.clone()).merge(openapi::pages(&openapi::finish(api)));
    router = router.fallback(error::no_route).method_not_allowed_fallback(error::wrong_method);
    if let Some(cors) = cors(&state.config.now().server.cors_origins) {
        router = router.layer(cors);
    }
    router.layer(CatchPanicLayer::custom(error::panicked)).layer(axum::middleware::from_fn(coding::compress))
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
        .routes(routes!(evals::cases::create, evals::cases::list))
        .routes(routes!(evals::cases::export))
        .routes(routes!(evals::cases::import))
        .routes(routes!(evals::cases::get, evals::cases::patch, evals::cases::delete))
        .routes(routes!(evals::runs::create, evals::runs::list))
        .routes(routes!(evals::compare::compare))
        .routes(routes!(evals::runs::get))
        .routes(routes!(evals::runs::results))
        .routes(routes!(evals::runs::score))
        .routes(routes!(evals::results::patch))
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
        .routes(routes!(analytics::get))
        .routes(routes!(credentials::create, credentials::list))
        .routes(routes!(credentials::delete))
        .routes(routes!(keys::create, keys::list))
        .routes(routes!(keys::create_for_tenant))
        .routes(routes!(keys::revoke))
        .routes(routes!(runners::list))
        .routes(routes!(runners::register))
        .routes(routes!(runners::heartbeat))
        .routes(routes!(runners::deregister))
        // The layer below is the outer one: it identifies the caller first.
        .route_layer(axum::middleware::from_fn_with_state(state.clone(), idempotency::once))
        .route_layer(axum::middleware::from_fn_with_state(state.clone(), gate::gate))
        .route_layer(axum::middleware::from_fn_with_state(state.clone(), auth::authenticate));
    public.merge(api)
}

/// Cross-origin rules, if the configuration names origins; `*` allows all.
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
            HeaderName::from_static("x-ash-skipped"),
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
                .inspect_err(|_| tracing::warn!(origin, "ignoring an invalid origin in server.cors_origins"))
                .ok()
        })
        .collect();
    Some(layer.allow_origin(known))
}
