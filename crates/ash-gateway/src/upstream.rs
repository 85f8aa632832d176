//! The model behind the gateway: a base URL, or the offline model.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::admit::Route;
use super::answer::{Body, error};
use super::forward;
use super::mask::{Secrets, masked};
use super::offline::Offline;
use super::settings::{BaseUrl, Key, Upstream};
use ash_observe::events::{self, OncePerMinute, event};

/// Maximum bytes of a request body; the API's limit is 32 MB. More is answered 413.
pub const MAX_BODY: usize = 64 << 20;
/// Timeout for connecting to the model.
const CONNECT: Duration = Duration::from_secs(10);
/// Timeout for the beginning of an answer; then 504. The API ends a whole answer after 10 minutes.
const FIRST_BYTE: Duration = Duration::from_secs(15 * 60);
/// Idle connections kept, in total.
const POOL: usize = 64;

/// Limits log lines: all sessions meet the same fault at once.
static REFUSED: OncePerMinute = OncePerMinute::new();
static LIMITED: OncePerMinute = OncePerMinute::new();
static AWAY: OncePerMinute = OncePerMinute::new();

/// An admitted request.
#[derive(Debug)]
pub struct Call<B> {
    pub session: Uuid,
    pub route: Route,
    pub method: Method,
    pub query: Option<String>,
    pub headers: HeaderMap,
    /// The tenant's key, used instead of the gateway's.
    pub key: Option<Key>,
    /// Bytes of memory, one permit each, for the session's requests.
    pub room: Arc<Semaphore>,
    pub body: B,
}

#[derive(Debug)]
pub enum Model {
    Offline(Offline),
    Remote(Box<Remote>),
}

impl Model {
    /// # Errors
    /// TLS cannot be set up.
    pub fn new(upstream: &Upstream, key: Option<Key>, custom: Vec<(HeaderName, HeaderValue)>) -> Result<Self, String> {
        Ok(match upstream {
            Upstream::Offline => Model::Offline(Offline::default()),
            Upstream::Url(base) => Model::Remote(Box::new(Remote::new(base.clone(), key, custom)?)),
        })
    }

    /// The model's answer, or an error in its format.
    pub async fn send<B>(&self, call: Call<B>) -> Response<Body>
    where
        B: hyper::body::Body<Data = bytes::Bytes> + Send + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        if call.body.size_hint().lower() > MAX_BODY as u64 {
            return too_large();
        }
        match self {
            Model::Offline(offline) => offline.send(call).await,
            Model::Remote(remote) => remote.send(call).await,
        }
    }
}

pub fn too_large() -> Response<Body> {
    error(StatusCode::PAYLOAD_TOO_LARGE, &format!("the request's body is longer than {} MiB", MAX_BODY >> 20))
}

#[derive(Debug)]
pub struct Remote {
    client: Client<HttpsConnector<HttpConnector>, Body>,
    base: BaseUrl,
    key: Option<Key>,
    custom: Vec<(HeaderName, HeaderValue)>,
}

impl Remote {
    fn new(base: BaseUrl, key: Option<Key>, custom: Vec<(HeaderName, HeaderValue)>) -> Result<Self, String> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT));
        tcp.set_keepalive(Some(Duration::from_secs(60)));
        let provider = rustls::crypto::ring::default_provider;
        // The host's certificates first: they may include the admin's authority. Without any, the
        // built-in ones still reach Anthropic.
        let tls = match HttpsConnectorBuilder::new().with_provider_and_native_roots(provider()) {
            Ok(tls) => tls,
            Err(why) => {
                tracing::warn!(%why, "no CA certificates found on this host; using the built-in ones. Install ca-certificates to fix this");
                HttpsConnectorBuilder::new()
                    .with_provider_and_webpki_roots(provider())
                    .map_err(|why| format!("cannot set up TLS: {why}"))?
            }
        };
        let connector = tls.https_or_http().enable_http1().wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(POOL)
            .build(connector);
        Ok(Self { client, base, key, custom })
    }

    async fn send<B>(&self, call: Call<B>) -> Response<Body>
    where
        B: hyper::body::Body<Data = bytes::Bytes> + Send + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let Ok(uri) = forward::uri(&self.base, &call.route, call.query.as_deref()) else {
            return error(StatusCode::BAD_REQUEST, "the query is not valid");
        };
        let body = Limited::new(call.body, MAX_BODY).boxed_unsync();
        let mut request = Request::new(body);
        *request.method_mut() = call.method;
        *request.uri_mut() = uri;
        *request.headers_mut() =
            forward::request_headers(&call.headers, call.key.as_ref().or(self.key.as_ref()), &self.custom);
        let own = call.key.is_some();
        let secrets = self.secrets(call.key.as_ref());
        match tokio::time::timeout(FIRST_BYTE, self.client.request(request)).await {
            Ok(Ok(answer)) => {
                let (head, body) = answer.into_parts();
                answered(call.session, head.status, own);
                let mut body = body.map_err(Into::into).boxed_unsync();
                if !head.status.is_success() {
                    body = masked(body, secrets.clone());
                }
                let mut response = Response::new(body);
                *response.status_mut() = head.status;
                *response.headers_mut() = forward::response_headers(&head.headers, &secrets);
                response
            }
            Ok(Err(why)) if causes(&why).any(|cause| cause.is::<LengthLimitError>()) => too_large(),
            Ok(Err(why)) => self.unreachable(&why),
            Err(_) => {
                if AWAY.now() {
                    event!(&events::UPSTREAM_AWAY, upstream = %self.base, "no answer within {} s", FIRST_BYTE.as_secs());
                }
                let text = format!("the model at {} did not answer within {} s", self.base, FIRST_BYTE.as_secs());
                error(StatusCode::GATEWAY_TIMEOUT, &text)
            }
        }
    }

    /// Secrets that the model's side must not send to the sandbox.
    fn secrets(&self, own: Option<&Key>) -> Secrets {
        let keys = own.into_iter().chain(&self.key).map(Key::as_bytes);
        Secrets::new(keys.chain(self.custom.iter().map(|(_, value)| value.as_bytes())))
    }

    fn unreachable(&self, why: &hyper_util::client::legacy::Error) -> Response<Body> {
        let what = if why.is_connect() { "cannot be reached" } else { "closed the connection before it answered" };
        // The innermost cause is the useful one: "connection refused", "certificate expired".
        let cause = causes(why).last().map(ToString::to_string).unwrap_or_default();
        if AWAY.now() {
            event!(&events::UPSTREAM_AWAY, upstream = %self.base, cause, "the model {what}");
        }
        error(StatusCode::BAD_GATEWAY, &format!("the model at {} {what}: {cause}", self.base))
    }
}

/// Reports answers that need the admin. `own`: the request used the session's key, not the
/// gateway's.
fn answered(session: Uuid, status: StatusCode, own: bool) {
    let by = if own { "the session's credential" } else { "the gateway's key" };
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if REFUSED.now() => {
            event!(&events::KEY_REFUSED, ASH_SESSION = %session, status = status.as_u16(), "the model refuses {by}");
        }
        StatusCode::TOO_MANY_REQUESTS if LIMITED.now() => {
            event!(&events::RATE_LIMITED, ASH_SESSION = %session, status = status.as_u16(), "too many requests by {by}");
        }
        _ => {}
    }
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error: &&'a (dyn Error + 'static)| (*error).source())
}

impl std::fmt::Display for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Model::Offline(_) => f.write_str("offline"),
            Model::Remote(remote) => remote.base.fmt(f),
        }
    }
}
