//! The side of the gateway that sandboxes see: accepts on a session's listener and speaks HTTP/1.1.
//!
//! What is on the other end is hostile. Each connection is its own task, counted against its session's own bounds, so a
//! sandbox can only make itself wait.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::admit::{Route, admit};
use super::answer::{Body, error, json};
use super::meter::Meter;
use super::registry::{Registry, Session};
use super::relay::relay;
use super::upstream::Call;

/// Bytes of a request's head; more is answered 431. Claude Code sends about 1 KiB.
const MAX_HEAD: usize = 64 << 10;
/// Headers of a request; more is answered 431.
const MAX_HEADERS: usize = 100;

/// Accepts until the session is unregistered, its listener replaced, or the gateway drains.
pub async fn accept(
    registry: Arc<Registry>,
    session: Arc<Session>,
    listener: TcpListener,
    accepting: CancellationToken,
) {
    loop {
        let next = async {
            // At the bound, connections wait in the kernel's queue.
            let permit = Arc::clone(&session.connections).acquire_owned().await;
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            next = next => next,
            () = session.closed.cancelled() => return,
            () = accepting.cancelled() => return,
            () = registry.draining.cancelled() => return,
        };
        let Ok(permit) = permit else { return };
        match accepted {
            Ok((stream, _)) => {
                registry.tasks.spawn(connection(Arc::clone(&registry), Arc::clone(&session), stream, permit));
            }
            Err(why) => {
                // Out of descriptors, or a connection that was reset in the queue: neither may spin or end the loop.
                tracing::warn!(ASH_SESSION = %session.id, %why, "accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(registry: Arc<Registry>, session: Arc<Session>, stream: TcpStream, permit: OwnedSemaphorePermit) {
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
    drop(permit);
}

async fn answer(registry: &Registry, session: &Session, request: Request<Incoming>) -> Response<Body> {
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
    let metered = route == Route::Messages;
    if metered {
        session.counters.add_request();
    }
    let call = Call {
        session: session.id,
        route,
        method: head.method,
        query: head.uri.query().map(str::to_owned),
        headers: head.headers,
        key: secrets.key,
        room: Arc::clone(&session.buffers.session),
        body,
    };
    let (head, body) = registry.model.send(call).await.into_parts();
    let kind = head.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let meter = if metered { Meter::new(head.status.as_u16(), kind) } else { Meter::off() };
    let body = relay(body, session.buffers.clone(), meter, Arc::clone(&session.counters));
    Response::from_parts(head, body)
}
