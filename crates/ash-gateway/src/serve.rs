//! The sandboxes' side of the gateway: accepts on a session's listener and speaks HTTP/1.1.
//!
//! The peer is hostile. Each connection is its own task and counts against its session's limits, so
//! a sandbox can delay only itself.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio_util::sync::CancellationToken;

use super::admit::{Route, admit};
use super::answer::{Body, error, json};
use super::ledger::Ledger;
use super::meter::Meter;
use super::paced::Paced;
use super::registry::{Registry, Session};
use super::relay::relay;
use super::upstream::Call;

/// Maximum bytes of a request head; a longer one is answered 431. Claude Code sends about 1 KiB.
const MAX_HEAD: usize = 64 << 10;
/// Maximum headers of a request; more are answered 431.
const MAX_HEADERS: usize = 100;

/// Error text for requests outside the session's window.
const OUTSIDE: &str = "this session may not use the model now: neither a turn nor a command of it is running. Requests are \
                       admitted while one does; a process that was left running in the background is not served";

/// Accepts until the session is unregistered, its listener replaced, or the gateway drains.
pub async fn accept(
    registry: Arc<Registry>,
    session: Arc<Session>,
    listener: Arc<TcpListener>,
    accepting: CancellationToken,
) {
    loop {
        let next = async {
            // At the limit, connections wait in the kernel's queue.
            let own = Arc::clone(&session.connections).acquire_owned().await;
            session.pace.accepts.take(1.0).await;
            let accepted = listener.accept().await;
            // This holds at most one connection above the tenant's share, and none for an idle
            // session.
            let tenant = Arc::clone(&session.share.connections).acquire_owned().await;
            let all = Arc::clone(&registry.shares.all.connections).acquire_owned().await;
            (accepted, [own, tenant, all])
        };
        let (accepted, permits) = tokio::select! {
            next = next => next,
            () = session.closed.cancelled() => return,
            () = accepting.cancelled() => return,
            () = registry.draining.cancelled() => return,
        };
        let Ok(permits) = permits.into_iter().collect::<Result<Vec<_>, _>>() else { return };
        match accepted {
            Ok((stream, _)) => {
                registry.tasks.spawn(connection(Arc::clone(&registry), Arc::clone(&session), stream, permits));
            }
            Err(why) => {
                // No descriptors left, or a reset connection: do not spin and do not end the loop.
                tracing::warn!(ASH_SESSION = %session.id, %why, "accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(
    registry: Arc<Registry>,
    session: Arc<Session>,
    stream: TcpStream,
    permits: Vec<OwnedSemaphorePermit>,
) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| {
        let (registry, session) = (Arc::clone(&registry), Arc::clone(&session));
        async move { Ok::<_, Infallible>(answer(&registry, &session, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(registry.limits.idle)
        .max_header_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let mut drained = false;
    loop {
        tokio::select! {
            over = connection.as_mut() => {
                if let Err(why) = over {
                    tracing::debug!(ASH_SESSION = %session.id, %why, "connection");
                }
                break;
            }
            () = session.closed.cancelled() => break,
            () = registry.draining.cancelled(), if !drained => {
                drained = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
    drop(permits);
}

async fn answer(registry: &Arc<Registry>, session: &Arc<Session>, request: Request<Incoming>) -> Response<Body> {
    if session.pace.requests.take(1.0).await {
        registry.refused.slowed.fetch_add(1, Ordering::Relaxed);
    }
    let (head, body) = request.into_parts();
    let secrets = session.secrets();
    let route = match admit(&head, &secrets.token) {
        Ok(Route::Hello) => return json(StatusCode::OK, &serde_json::json!({"message": "hello"})),
        Ok(route) => route,
        Err(refusal) => {
            tracing::debug!(ASH_SESSION = %session.id, status = refusal.status.as_u16(), "refused");
            return error(refusal.status, refusal.message);
        }
    };
    if let Some(window) = &session.window
        && !window.admits().await
    {
        registry.refused.outside.fetch_add(1, Ordering::Relaxed);
        return error(StatusCode::FORBIDDEN, OUTSIDE);
    }
    if let Some(Err(why)) = registry.ledger.as_ref().map(Ledger::admits) {
        registry.refused.unrecorded.fetch_add(1, Ordering::Relaxed);
        return error(StatusCode::SERVICE_UNAVAILABLE, why);
    }
    let Ok(place) = Arc::clone(&session.asking).acquire_owned().await else {
        return error(StatusCode::SERVICE_UNAVAILABLE, "the session is being removed");
    };
    let call = Call {
        session: session.id,
        route,
        method: head.method,
        query: head.uri.query().map(str::to_owned),
        headers: head.headers,
        key: secrets.key,
        room: Arc::clone(&session.buffers.shared[0]),
        body: Paced::new(body, Arc::clone(&session.pace.bytes)),
    };
    let (tell, told) = oneshot::channel();
    registry.tasks.spawn(ask(Arc::clone(registry), Arc::clone(session), call, tell, place));
    told.await.unwrap_or_else(|_| error(StatusCode::INTERNAL_SERVER_ERROR, "the gateway lost the request"))
}

/// Sends the request to the model and relays its answer. A separate task: a sandbox that closes the
/// connection just before the answer is still charged.
async fn ask(
    registry: Arc<Registry>,
    session: Arc<Session>,
    call: Call<Paced<Incoming>>,
    mut tell: oneshot::Sender<Response<Body>>,
    place: OwnedSemaphorePermit,
) {
    let metered = call.route == Route::Messages;
    let answered = registry.model.send(call);
    let (head, body) = tokio::select! {
        answered = answered => answered.into_parts(),
        () = tell.closed(), if !metered => return,
    };
    let kind = head.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let meter = if metered { Meter::new(head.status.as_u16(), kind) } else { Meter::off() };
    let body = Paced::new(body, Arc::clone(&session.pace.bytes)).boxed_unsync();
    let (body, pump) = relay(body, session.buffers.clone(), meter, session.bill(registry.ledger.as_ref()));
    // Without a receiver the body is dropped, which the pump notices.
    let _ = tell.send(Response::from_parts(head, body));
    pump.await;
    drop(place);
}
