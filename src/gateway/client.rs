//! ashd's end of the gateway's control socket.
//!
//! One task owns the connection and sends queued requests one at a time. When the gateway goes
//! away, the task reconnects, at first every 20 ms, and reports it through [`Gateway::restarted`].

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, oneshot};
use uuid::Uuid;

use super::windows::{Hold, Windows};
use ash_kernel::seqpacket;
use ash_observe::events::{self, event};
use ash_observe::tasks;
use ash_protocol::gateway::{
    Collected, MAX_PACKET, MAX_USAGE, Marks, Refused, Register, Reply, Request, SOCKET, SessionUsage,
};
use ash_protocol::packets::PacketSocket;

/// Timeout of a call, including a restart of the gateway.
const PATIENCE: Duration = Duration::from_secs(5);
/// Queued calls; further ones wait for a place.
const QUEUE: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    #[error("the gateway at {path} does not answer: {source}")]
    Unreachable { path: String, source: io::Error },
    #[error("the gateway refused: {0}")]
    Refused(String),
}

/// What the gateway reports about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    pub version: String,
    pub pid: u32,
    /// `offline` or the base URL.
    pub upstream: String,
}

/// Cheap to clone; reconnects by itself.
#[derive(Clone, Debug)]
pub struct Gateway {
    path: Arc<PathBuf>,
    calls: mpsc::Sender<Call>,
    restarted: Arc<Notify>,
    windows: Arc<Windows>,
}

struct Call {
    request: Request,
    listener: Option<OwnedFd>,
    answer: oneshot::Sender<io::Result<Answer>>,
}

/// A reply, and the contents of the file passed with it.
type Answer = (Reply, Option<Vec<u8>>);

impl Gateway {
    /// Connects to `<run_dir>/gateway.sock` and sends hello.
    ///
    /// # Errors
    /// [`GatewayError::Unreachable`] when no process answers there.
    pub async fn connect(run_dir: &Path) -> Result<Self, GatewayError> {
        let path = Arc::new(run_dir.join(SOCKET));
        let unreachable = |source| GatewayError::Unreachable { path: path.display().to_string(), source };
        let connection = tokio::time::timeout(PATIENCE, Connection::open(&path))
            .await
            .map_err(|_| unreachable(io::ErrorKind::TimedOut.into()))?
            .map_err(unreachable)?;
        let (calls, queue) = mpsc::channel(QUEUE);
        let restarted = Arc::new(Notify::new());
        let windows = Arc::new(Windows::default());
        let (told, open) = (Arc::clone(&restarted), Arc::clone(&windows));
        tasks::spawn_essential("gateway-connection", keep_connected(Arc::clone(&path), connection, queue, told, open));
        Ok(Self { path, calls, restarted, windows })
    }

    /// The gateway's greeting.
    pub async fn hello(&self) -> Result<Greeting, GatewayError> {
        match self.call(Request::Hello, None).await? {
            (Reply::Hello { version, pid, upstream }, _) => Ok(Greeting { version, pid, upstream }),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Makes the gateway admit a session's requests as long as the value lives. Does not wait for
    /// the gateway.
    pub fn hold_open(&self, session: Uuid) -> Hold {
        self.windows.hold(session)
    }

    /// Usage after `marks`, and the number of refused requests. What the marks cover must be stored
    /// durably.
    pub async fn collect(&self, marks: Marks) -> Result<(Collected, Refused), GatewayError> {
        match self.call(Request::Collect { marks }, None).await? {
            (Reply::Collected { refused }, Some(bytes)) => serde_json::from_slice(&bytes)
                .map(|collected| (collected, refused))
                .map_err(|why| GatewayError::Refused(format!("invalid record of usage: {why}"))),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Makes the gateway serve a listening socket, which may stay open elsewhere too. Idempotent.
    /// The window has its current state, see [`Gateway::hold_open`].
    pub async fn register(&self, register: Register, listener: OwnedFd) -> Result<(), GatewayError> {
        self.done(Request::Register(register), Some(listener)).await
    }

    /// Idempotent.
    pub async fn unregister(&self, session: Uuid) -> Result<(), GatewayError> {
        self.done(Request::Unregister { session }, None).await
    }

    /// Tokens per session since its registration. Includes an unregistered session once.
    pub async fn usage(&self) -> Result<Vec<SessionUsage>, GatewayError> {
        match self.call(Request::Usage, None).await? {
            (Reply::Usage { sessions }, _) => Ok(sessions),
            (Reply::UsageFile, Some(bytes)) => {
                serde_json::from_slice(&bytes).map_err(|why| GatewayError::Refused(format!("invalid usage: {why}")))
            }
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Makes the gateway finish its open streams (10 minutes at most) and exit.
    pub async fn shutdown(&self) -> Result<(), GatewayError> {
        self.done(Request::Shutdown, None).await
    }

    /// Returns when the gateway's process was replaced and its sessions must be registered again. A
    /// restart without a waiter is remembered; one task waits at a time. A lost connection counts
    /// as a restart, because registering twice is harmless and a missed restart is not.
    pub async fn restarted(&self) {
        self.restarted.notified().await;
    }

    async fn done(&self, request: Request, listener: Option<OwnedFd>) -> Result<(), GatewayError> {
        match self.call(request, listener).await? {
            (Reply::Done, _) => Ok(()),
            (other, _) => Err(unexpected(&other)),
        }
    }

    async fn call(&self, request: Request, listener: Option<OwnedFd>) -> Result<Answer, GatewayError> {
        let unreachable = |source| GatewayError::Unreachable { path: self.path.display().to_string(), source };
        let (answer, answered) = oneshot::channel();
        let gone = || unreachable(io::ErrorKind::BrokenPipe.into());
        let exchange = async {
            self.calls.send(Call { request, listener, answer }).await.map_err(|_| gone())?;
            answered.await.map_err(|_| gone())?.map_err(unreachable)
        };
        let reply = tokio::time::timeout(PATIENCE, exchange)
            .await
            .map_err(|_| unreachable(io::Error::new(io::ErrorKind::TimedOut, "no answer within 5 s")))??;
        match reply {
            (Reply::Error { message }, _) => Err(GatewayError::Refused(message)),
            reply => Ok(reply),
        }
    }
}

fn unexpected(reply: &Reply) -> GatewayError {
    GatewayError::Refused(format!("unexpected answer to the request: {reply:?}"))
}

/// Ends when the last [`Gateway`] is dropped.
async fn keep_connected(
    path: Arc<PathBuf>,
    mut connection: Connection,
    mut queue: mpsc::Receiver<Call>,
    restarted: Arc<Notify>,
    windows: Arc<Windows>,
) {
    // A call to a gateway that ended meanwhile is sent to the next one, once.
    let mut again: Option<Call> = None;
    loop {
        tokio::select! {
            // A lost connection loses nothing: every registration includes the window's state.
            () = windows.changed.notified() => {
                let Some(news) = windows.news() else { continue };
                if connection.exchange(&news, None).await.is_ok() {
                    continue;
                }
            }
            call = async { match again.take() { Some(call) => Some((call, true)), None => queue.recv().await.map(|call| (call, false)) } } => {
                let Some((mut call, second)) = call else { return };
                if call.answer.is_closed() {
                    continue; // its caller is gone: it must not change anything late
                }
                if let Request::Register(register) = &mut call.request {
                    register.window = Some(windows.is_open(register.session));
                }
                let result = connection.exchange(&call.request, call.listener.as_ref()).await;
                let lost = result.is_err();
                if lost && !second && !matches!(call.request, Request::Shutdown) {
                    again = Some(call);
                } else {
                    let _ = call.answer.send(result);
                }
                if !lost {
                    continue;
                }
            }
            () = connection.lost(), if again.is_none() => {}
        }
        let Some(again) = reconnect(&path, &queue).await else { return };
        connection = again;
        restarted.notify_one();
    }
}

/// Time after which the gateway counts as lost, not as being replaced.
const LOST: Duration = Duration::from_secs(5);

/// Retries until it works; `None` when no caller is left.
async fn reconnect(path: &Path, queue: &mpsc::Receiver<Call>) -> Option<Connection> {
    let mut pause = Duration::from_millis(20);
    let (start, mut said) = (Instant::now(), false);
    loop {
        match Connection::open(path).await {
            Ok(connection) => {
                tracing::info!(path = %path.display(), "connected to the gateway again");
                return Some(connection);
            }
            Err(why) => tracing::debug!(path = %path.display(), %why, "the gateway is away"),
        }
        if queue.is_closed() {
            return None;
        }
        if !said && start.elapsed() > LOST {
            said = true;
            event!(&events::GATEWAY_LOST, path = %path.display(), "the gateway does not answer");
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

struct Connection {
    socket: PacketSocket,
    buffer: Vec<u8>,
}

impl Connection {
    async fn open(path: &Path) -> io::Result<Self> {
        let mut connection =
            Self { socket: PacketSocket::new(seqpacket::connect(path, true)?)?, buffer: vec![0; MAX_PACKET] };
        match connection.exchange(&Request::Hello, None).await?.0 {
            Reply::Hello { .. } => Ok(connection),
            other => Err(io::Error::new(io::ErrorKind::InvalidData, format!("unexpected answer to hello: {other:?}"))),
        }
    }

    async fn exchange(&mut self, request: &Request, listener: Option<&OwnedFd>) -> io::Result<Answer> {
        let bytes = serde_json::to_vec(request)?;
        let fds: Vec<_> = listener.iter().map(AsFd::as_fd).collect();
        self.socket.send(&bytes, &fds).await?;
        let packet = self.socket.recv(&mut self.buffer).await?;
        if packet.len == 0 {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let file = packet.fds.first().map(|file| seqpacket::read_all(file.as_fd(), MAX_USAGE)).transpose()?;
        Ok((serde_json::from_slice(&self.buffer[..packet.len])?, file))
    }

    /// Returns when the peer closed the connection, or sent an unrequested packet. Performs a
    /// receive, because the reactor's readiness is stale until a receive would block.
    async fn lost(&self) {
        let _ = self.socket.recv(&mut [0; 16]).await;
    }
}
