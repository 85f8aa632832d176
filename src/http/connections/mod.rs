//! Connections from the listening socket to the router: admission and time limits.
//!
//! ```text
//!   accept ──> place in the table ──> first head, within 10 s ──> HTTP server ──> router
//!     │            │ none free: closes the oldest                      │
//!     │            │ connection without a request                      └─ 75 s between requests, 30 s without a byte
//!     └─ no descriptors: the same; the listener continues                of the answer written, 431, 64 KiB ahead
//! ```
//!
//! A connection needs a place first. A complete request always finds one, because connections
//! without a request are closed first ([`table`]). Reaching a limit never ends the listener.

mod bounds;
mod connection;
mod opening;
mod socket;
mod table;

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use axum::http::{StatusCode, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::errno::Errno;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

pub use bounds::Bounds;
pub use connection::Connection;

use super::held::hold;
use super::local::LocalPeer;
use bounds::{MAX_BUFFER, MAX_HEAD, MAX_HEADERS, MAX_UNIX, MAX_UNIX_PER_USER};
use connection::Places;
use opening::Opening;
use socket::{Client, Socket};
use table::{Full, Peer};

/// Connections that lost their place and are still open; each holds a descriptor. The maximum,
/// lower when few connections are allowed.
const CLOSING: usize = 64;
const EXHAUSTED: Duration = Duration::from_millis(20);
/// Minimum time between two log lines about the same limit.
const QUIET: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Serves the router on any number of sockets. The TCP sockets share their limits.
#[derive(Clone, Debug)]
pub struct Server {
    router: Router,
    bounds: Bounds,
    tcp: Places,
    unix: Places,
}

impl Server {
    pub fn new(router: Router, bounds: Bounds) -> Self {
        let tcp = Places::new(bounds.connections, bounds.per_address);
        Self { router, bounds, tcp, unix: Places::new(MAX_UNIX, MAX_UNIX_PER_USER) }
    }

    /// Accepts until `stop`, then closes idle connections and waits for running answers. Limits and
    /// faults never end it.
    pub async fn serve(self, listener: Listener, stop: CancellationToken) {
        let (places, most) = match listener {
            Listener::Tcp(_) => (&self.tcp, self.bounds.connections),
            Listener::Unix(_) => (&self.unix, MAX_UNIX),
        };
        let descriptors = Arc::new(Semaphore::new(most + (most / 8).clamp(2, CLOSING)));
        let tasks = TaskTracker::new();
        let mut told = Told::default();
        loop {
            let next = async {
                let descriptor = Arc::clone(&descriptors).acquire_owned().await;
                (listener.accept().await, descriptor)
            };
            let (accepted, descriptor) = tokio::select! {
                next = next => next,
                () = stop.cancelled() => break,
            };
            let Ok(descriptor) = descriptor else { break };
            match accepted {
                Ok((socket, peer, local)) => match places.admit(peer) {
                    Ok(connection) => {
                        tracing::trace!(open = places.open(), "connection accepted");
                        let served = self.clone().connection(socket, local, Arc::clone(&connection), stop.clone());
                        let task = tasks.spawn(keep(served, descriptor));
                        connection.attach(task.abort_handle());
                    }
                    Err(full) => {
                        let text = refusal(full, &self.bounds, peer);
                        if told.now() {
                            tracing::warn!(open = places.open(), "connection refused: {text}");
                        }
                        answer(&socket, StatusCode::SERVICE_UNAVAILABLE, &text);
                    }
                },
                Err(why) => {
                    // A connection that was reset in the queue says nothing about the next one.
                    if why.kind() == io::ErrorKind::ConnectionAborted {
                        continue;
                    }
                    let closed = exhausted(&why) && places.relieve();
                    if told.now() {
                        tracing::warn!(%why, open = places.open(), closed, "cannot accept a connection");
                    }
                    tokio::time::sleep(EXHAUSTED).await;
                }
            }
        }
        drop(listener);
        tasks.close();
        tasks.wait().await;
    }

    async fn connection(
        self,
        socket: Socket,
        local: Option<LocalPeer>,
        connection: Arc<Connection>,
        stop: CancellationToken,
    ) {
        let mut head = Vec::new();
        let opening = tokio::select! {
            opening = tokio::time::timeout(self.bounds.head, opening::read(&socket, &mut head)) => opening,
            () = stop.cancelled() => return,
        };
        match opening {
            Ok(Ok(Opening::Head(head))) => {
                let client = Client::new(socket, head, self.bounds.stall, Arc::clone(&connection));
                // Boxed, so that a connection without a request does not hold this state.
                Box::pin(self.http(client, local, connection, stop)).await;
            }
            Ok(Ok(Opening::TooLarge)) => {
                let text = format!("request line and headers are larger than {MAX_HEAD} bytes");
                answer(&socket, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, &text);
            }
            Err(_) if !head.is_empty() => {
                let text = format!(
                    "request line and headers did not arrive within {} ms (server.head_timeout_ms)",
                    self.bounds.head.as_millis()
                );
                answer(&socket, StatusCode::REQUEST_TIMEOUT, &text);
            }
            Ok(Ok(Opening::Closed) | Err(_)) | Err(_) => {}
        }
    }

    async fn http(
        self,
        client: Client,
        local: Option<LocalPeer>,
        connection: Arc<Connection>,
        stop: CancellationToken,
    ) {
        let router = self.router;
        let service = service_fn(move |request: Request<Incoming>| {
            let (router, connection) = (router.clone(), Arc::clone(&connection));
            let answering = connection.answer();
            let mut request = request.map(Body::new);
            if let Some(peer) = local {
                request.extensions_mut().insert(ConnectInfo(peer));
            }
            request.extensions_mut().insert(Arc::clone(&connection));
            async move {
                let answer = router.oneshot(request).await?;
                let kind = answer.headers().get(header::CONTENT_TYPE).map(|kind| kind.as_bytes());
                if kind.is_some_and(|kind| kind.starts_with(b"text/event-stream")) {
                    connection.set_stream();
                }
                Ok::<_, Infallible>(answer.map(|body| hold(body, answering)))
            }
        });
        let mut served = std::pin::pin!(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(self.bounds.idle)
                .max_header_size(MAX_HEAD)
                .max_headers(MAX_HEADERS)
                .max_buf_size(MAX_BUFFER)
                .serve_connection(TokioIo::new(client), service)
        );
        let over = tokio::select! {
            over = served.as_mut() => over,
            () = stop.cancelled() => {
                served.as_mut().graceful_shutdown();
                served.await
            }
        };
        if let Err(why) = over {
            tracing::trace!(%why, "connection ended");
        }
    }
}

impl Listener {
    async fn accept(&self) -> io::Result<(Socket, Peer, Option<LocalPeer>)> {
        match self {
            Self::Tcp(socket) => {
                let (stream, address) = socket.accept().await?;
                // Frames of a stream are small and must leave at once.
                let _ = stream.set_nodelay(true);
                Ok((Socket::Tcp(stream), Peer::of(address.ip()), None))
            }
            Self::Unix(socket) => {
                let (stream, _) = socket.accept().await?;
                let peer = stream.peer_cred()?;
                let local = LocalPeer::of(peer.uid(), peer.gid());
                Ok((Socket::Unix(stream), Peer::User(peer.uid()), Some(local)))
            }
        }
    }
}

/// Holds the descriptor's permit until the connection is closed.
async fn keep(served: impl Future<Output = ()>, descriptor: OwnedSemaphorePermit) {
    served.await;
    drop(descriptor);
}

fn refusal(full: Full, bounds: &Bounds, peer: Peer) -> String {
    match (full, peer) {
        (Full::All, Peer::User(_)) => format!("all {MAX_UNIX} connections of the unix socket are in use; try again"),
        (Full::Peer, Peer::User(_)) => {
            format!("connection limit of this user reached: {MAX_UNIX_PER_USER} on the unix socket")
        }
        (Full::All, _) => format!("all {} connections are in use (server.max_connections)", bounds.connections),
        (Full::Peer, _) => format!(
            "connection limit of this address reached: {} (server.max_connections_per_address)",
            bounds.per_address
        ),
    }
}

/// Sends a whole answer, as far as the socket accepts it at once. The caller closes the connection.
fn answer(socket: &Socket, status: StatusCode, text: &str) {
    let body = serde_json::json!({"error": text, "statusCode": status.as_u16()}).to_string();
    let again = if status == StatusCode::SERVICE_UNAVAILABLE { "retry-after: 1\r\n" } else { "" };
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{again}connection: close\r\n\r\n",
        body.len()
    );
    // The connection is closed in any case.
    let _ = socket.try_write((head + &body).as_bytes());
}

/// Whether the process or the host is out of resources, so that the next accept fails too.
fn exhausted(why: &io::Error) -> bool {
    let errno = why.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM))
}

#[derive(Debug, Default)]
struct Told(Option<std::time::Instant>);

impl Told {
    fn now(&mut self) -> bool {
        let due = self.0.is_none_or(|last| last.elapsed() >= QUIET);
        if due {
            self.0 = Some(std::time::Instant::now());
        }
        due
    }
}
