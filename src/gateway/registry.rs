//! The sessions that ashd registered: their tokens, listeners, connections and counters.
//!
//! ```text
//!  register --> accepting --(register again: new token, new listener; connections go on)--> accepting
//!                   |
//!                   +-- unregister --> connections closed, counters kept until they were read once --> gone
//!                   +-- drain -------> accepting ends, connections finish their answer
//! ```

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockaddrLike, getsockname, getsockopt, sockopt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::protocol::{Register, SessionUsage};
use super::relay::{Buffers, Counters};
use super::serve;
use super::settings::Key;
use super::upstream::Model;

/// Sessions at once; one more is refused.
const MAX_SESSIONS: usize = 10_000;
/// Bytes of a token.
const MAX_TOKEN: usize = 512;

/// The bounds of what one sandbox can make the gateway hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections a session may have at once; further ones wait in the kernel's queue.
    pub connections: usize,
    /// How long a connection may take to send the head of its next request, idle time included; then it is closed.
    pub idle: Duration,
    /// Bytes of one answer that wait for the sandbox to read them; then the model is made to wait.
    pub buffer: usize,
    /// The same for all connections of a session together.
    pub session_buffer: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 64, idle: Duration::from_secs(300), buffer: 8 << 20, session_buffer: 32 << 20 }
    }
}

/// What a sandbox must show, and what its requests are paid with.
#[derive(Clone, Debug)]
pub struct Secrets {
    pub token: Arc<str>,
    pub key: Option<Key>,
}

/// One registered session.
#[derive(Debug)]
pub struct Session {
    pub id: Uuid,
    secrets: Mutex<Secrets>,
    pub counters: Arc<Counters>,
    /// Cancelled by `unregister`: closes everything.
    pub closed: CancellationToken,
    /// Cancelled when this listener is replaced.
    accepting: Mutex<CancellationToken>,
    pub connections: Arc<Semaphore>,
    pub buffers: Buffers,
}

impl Session {
    pub fn secrets(&self) -> Secrets {
        lock(&self.secrets).clone()
    }
}

/// All of them. Shared by the control socket and the connections.
#[derive(Debug)]
pub struct Registry {
    pub model: Model,
    pub limits: Limits,
    sessions: Mutex<HashMap<Uuid, Arc<Session>>>,
    /// Final counts of sessions that are gone, until ashd read them.
    departed: Mutex<Vec<SessionUsage>>,
    /// Cancelled once, by [`Registry::drain`].
    pub draining: CancellationToken,
    pub tasks: TaskTracker,
}

impl Registry {
    pub fn new(model: Model, limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            model,
            limits,
            sessions: Mutex::default(),
            departed: Mutex::default(),
            draining: CancellationToken::new(),
            tasks: TaskTracker::new(),
        })
    }

    /// Serves a session's listener, or gives a known session a new token, key and listener.
    ///
    /// # Errors
    /// Names what is wrong with the token, the key or the descriptor; nothing is changed then.
    pub fn register(self: &Arc<Self>, register: Register, listener: OwnedFd) -> Result<(), String> {
        let Register { session: id, token, key } = register;
        if token.is_empty() || token.len() > MAX_TOKEN || !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(format!("token: not one word of 1 to {MAX_TOKEN} printable characters"));
        }
        let key = key.as_deref().map(Key::parse).transpose()?;
        let secrets = Secrets { token: token.into(), key };
        if self.draining.is_cancelled() {
            return Err("the gateway is shutting down".into());
        }
        let listener = listening(listener)?;
        let accepting = CancellationToken::new();
        let mut sessions = lock(&self.sessions);
        let session = if let Some(session) = sessions.get(&id) {
            *lock(&session.secrets) = secrets;
            std::mem::replace(&mut *lock(&session.accepting), accepting.clone()).cancel();
            Arc::clone(session)
        } else {
            if sessions.len() >= MAX_SESSIONS {
                return Err(format!("{MAX_SESSIONS} sessions are registered, no more fit"));
            }
            let session = Arc::new(Session {
                id,
                secrets: Mutex::new(secrets),
                counters: Arc::default(),
                closed: CancellationToken::new(),
                accepting: Mutex::new(accepting.clone()),
                connections: Arc::new(Semaphore::new(self.limits.connections)),
                buffers: Buffers {
                    connection: self.limits.buffer,
                    session: Arc::new(Semaphore::new(self.limits.session_buffer)),
                },
            });
            sessions.insert(id, Arc::clone(&session));
            session
        };
        self.tasks.spawn(serve::accept(Arc::clone(self), session, listener, accepting));
        Ok(())
    }

    /// Closes the session's listener and connections. A session that is not there is no error.
    pub fn unregister(&self, id: Uuid) {
        let Some(session) = lock(&self.sessions).remove(&id) else { return };
        session.closed.cancel();
        let mut departed = lock(&self.departed);
        if departed.len() >= MAX_SESSIONS {
            departed.remove(0);
        }
        departed.push(session.counters.snapshot(id));
    }

    /// What each session used. A session that was unregistered is in it once more, and then forgotten.
    pub fn usage(&self) -> Vec<SessionUsage> {
        let mut all = std::mem::take(&mut *lock(&self.departed));
        all.extend(lock(&self.sessions).values().map(|session| session.counters.snapshot(session.id)));
        all
    }

    /// Stops accepting; connections end after the answer they are in. `tasks` is empty when all did.
    pub fn drain(&self) {
        self.draining.cancel();
        self.tasks.close();
    }
}

/// Takes the descriptor if it is a TCP socket that listens.
fn listening(listener: OwnedFd) -> Result<TcpListener, String> {
    let refuse = |why: &str| format!("listener: {why}");
    if !getsockopt(&listener, sockopt::AcceptConn).unwrap_or(false) {
        return Err(refuse("the descriptor is not a listening socket"));
    }
    let family = getsockname::<nix::sys::socket::SockaddrStorage>(std::os::fd::AsRawFd::as_raw_fd(&listener))
        .ok()
        .and_then(|address| address.family());
    if !matches!(family, Some(AddressFamily::Inet | AddressFamily::Inet6)) {
        return Err(refuse("not a TCP socket"));
    }
    let listener = std::net::TcpListener::from(listener);
    listener.set_nonblocking(true).map_err(|why| refuse(&why.to_string()))?;
    TcpListener::from_std(listener).map_err(|why| refuse(&why.to_string()))
}

/// A poisoned lock only means that another task panicked between two plain assignments.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
