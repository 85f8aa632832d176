//! The sessions that ashd registered: their tokens, listeners, connections and counters.
//!
//! ```text
//!  register --> accepting --(register again: new token and listener, connections stay)--+
//!                 |    ^                                                                |
//!                 |    +----------------------------------------------------------------+
//!                 +-- unregister --> connections closed, counters kept until read once --> gone
//!                 +-- drain -------> accepting ends, connections finish their answer
//! ```

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockaddrLike, getsockname, getsockopt, sockopt};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::charge::{Bill, Counters};
use super::ledger::{Ledger, MAX_NAME, Payer};
use super::pace::{Pace, Rate};
use super::relay::Buffers;
use super::serve;
use super::settings::Key;
use super::share::{Bounds, Share, Shares};
use super::upstream::Model;
use super::window::Window;
use ash_observe::tasks;
use ash_protocol::gateway::{Refused, Register, SessionUsage};

/// Unregistered sessions whose counts were not read yet.
const MAX_DEPARTED: usize = 10_000;
/// Maximum bytes of a token.
const MAX_TOKEN: usize = 512;

/// Limits of what one sandbox can make the gateway hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections of a session; further ones wait in the kernel's queue.
    pub connections: usize,
    /// Timeout for the head of the next request, idle time included; then the connection is closed.
    pub idle: Duration,
    /// Bytes of one answer that wait for the sandbox; at the limit the gateway stops reading.
    pub buffer: usize,
    /// The same for all connections of a session together.
    pub session_buffer: usize,
    /// Requests of a session, including those refused or answered by the gateway; excess ones wait.
    pub requests: Rate,
    /// New connections of a session; excess ones wait in the kernel's queue.
    pub accepts: Rate,
    /// Bytes of requests and answers of a session; excess ones wait.
    pub bytes: Rate,
    /// Limits shared by tenants and by all.
    pub bounds: Bounds,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            idle: Duration::from_secs(300),
            buffer: 8 << 20,
            session_buffer: 32 << 20,
            requests: Rate { per_second: 20.0, burst: 200.0 },
            accepts: Rate { per_second: 20.0, burst: 200.0 },
            bytes: Rate { per_second: 64.0 * 1024.0 * 1024.0, burst: 256.0 * 1024.0 * 1024.0 },
            bounds: Bounds::here(),
        }
    }
}

/// The token that a sandbox must send, and the payer of its requests.
#[derive(Clone, Debug)]
pub struct Secrets {
    pub token: Arc<str>,
    pub key: Option<Key>,
}

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
    /// Requests sent to the model, including those whose client left.
    pub asking: Arc<Semaphore>,
    pub buffers: Buffers,
    pub share: Arc<Share>,
    /// `None`: requests are always admitted.
    pub window: Option<Window>,
    pub pace: Paces,
    payer: Arc<Payer>,
}

/// Rate limits of a session.
#[derive(Debug)]
pub struct Paces {
    pub requests: Pace,
    pub accepts: Pace,
    pub bytes: Arc<Pace>,
}

impl Session {
    pub fn secrets(&self) -> Secrets {
        lock(&self.secrets).clone()
    }

    /// The bill of one answer.
    pub fn bill(&self, ledger: Option<&Ledger>) -> Bill {
        Bill::new(Arc::clone(&self.counters), ledger.map(|ledger| (ledger.clone(), Arc::clone(&self.payer))))
    }
}

/// See [`Refused`].
#[derive(Debug, Default)]
pub struct Refusals {
    pub outside: AtomicU64,
    pub slowed: AtomicU64,
    pub unrecorded: AtomicU64,
}

impl Refusals {
    pub fn snapshot(&self) -> Refused {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Refused { outside: read(&self.outside), slowed: read(&self.slowed), unrecorded: read(&self.unrecorded) }
    }
}

/// All sessions. Shared by the control socket and the connections.
#[derive(Debug)]
pub struct Registry {
    pub model: Model,
    pub limits: Limits,
    /// The ledger of usage; `None` in tests of other parts.
    pub ledger: Option<Ledger>,
    pub shares: Shares,
    pub refused: Refusals,
    sessions: Mutex<HashMap<Uuid, Arc<Session>>>,
    /// Final counts of unregistered sessions, until ashd has read them.
    departed: Mutex<Vec<SessionUsage>>,
    /// Cancelled once, by [`Registry::drain`].
    pub draining: CancellationToken,
    pub tasks: TaskTracker,
}

impl Registry {
    pub fn new(model: Model, limits: Limits, ledger: Option<Ledger>) -> Arc<Self> {
        Arc::new(Self {
            model,
            limits,
            ledger,
            shares: Shares::new(limits.bounds),
            refused: Refusals::default(),
            sessions: Mutex::default(),
            departed: Mutex::default(),
            draining: CancellationToken::new(),
            tasks: TaskTracker::new(),
        })
    }

    /// Serves a session's listener, or gives a known session a new token, key and listener.
    ///
    /// # Errors
    /// Names the invalid token, key or descriptor; changes nothing then.
    pub fn register(self: &Arc<Self>, register: Register, listener: OwnedFd) -> Result<(), String> {
        let Register { session: id, token, key, tenant, agent, window } = register;
        if token.is_empty() || token.len() > MAX_TOKEN || !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(format!("token: expected one word of 1 to {MAX_TOKEN} printable characters"));
        }
        if tenant.len() > MAX_NAME || agent.len() > MAX_NAME {
            return Err(format!("tenant, agent: longer than {MAX_NAME} bytes"));
        }
        let key = key.as_deref().map(Key::parse).transpose()?;
        let secrets = Secrets { token: token.into(), key };
        if self.draining.is_cancelled() {
            return Err("the gateway is shutting down".into());
        }
        let listener = listening(listener)?;
        let accepting = CancellationToken::new();
        let mut sessions = lock(&self.sessions);
        let known = sessions.get(&id).filter(|known| known.window.is_some() == window.is_some());
        let session = if let Some(session) = known {
            *lock(&session.secrets) = secrets;
            if let (Some(open), Some(gate)) = (window, &session.window) {
                gate.set(open);
            }
            std::mem::replace(&mut *lock(&session.accepting), accepting.clone()).cancel();
            Arc::clone(session)
        } else {
            let most = self.limits.bounds.sessions;
            if sessions.len() >= most {
                return Err(format!(
                    "session limit reached ({most}); raise the gateway's descriptor limit (LimitNOFILE=)"
                ));
            }
            let payer = Payer { session: id, tenant, agent };
            let session = Arc::new(self.session(payer, secrets, window, accepting.clone()));
            if let Some(old) = sessions.insert(id, Arc::clone(&session)) {
                old.closed.cancel();
            }
            session
        };
        let (registry, listener) = (Arc::clone(self), Arc::new(listener));
        self.tasks.spawn(tasks::restart("sandbox-listener", move || {
            serve::accept(Arc::clone(&registry), Arc::clone(&session), Arc::clone(&listener), accepting.clone())
        }));
        Ok(())
    }

    fn session(&self, payer: Payer, secrets: Secrets, window: Option<bool>, accepting: CancellationToken) -> Session {
        let limits = &self.limits;
        let share = self.shares.of(&payer.tenant);
        let own = Arc::new(Semaphore::new(limits.session_buffer));
        let shared = [own, Arc::clone(&share.buffer), Arc::clone(&self.shares.all.buffer)];
        Session {
            id: payer.session,
            secrets: Mutex::new(secrets),
            counters: Arc::default(),
            closed: CancellationToken::new(),
            accepting: Mutex::new(accepting),
            connections: Arc::new(Semaphore::new(limits.connections)),
            asking: Arc::new(Semaphore::new(limits.connections)),
            buffers: Buffers { connection: limits.buffer, shared },
            share,
            window: window.map(Window::new),
            pace: Paces {
                requests: Pace::new(limits.requests),
                accepts: Pace::new(limits.accepts),
                bytes: Arc::new(Pace::new(limits.bytes)),
            },
            payer: Arc::new(payer),
        }
    }

    /// Opens or closes windows. Ignores unknown sessions.
    pub fn windows(&self, ids: &[Uuid], open: bool) {
        let sessions = lock(&self.sessions);
        for session in ids.iter().filter_map(|id| sessions.get(id)) {
            if let Some(window) = &session.window {
                window.set(open);
            }
        }
    }

    /// Closes the session's listener and connections. Ignores an unknown session.
    pub fn unregister(&self, id: Uuid) {
        let Some(session) = lock(&self.sessions).remove(&id) else { return };
        session.closed.cancel();
        let mut departed = lock(&self.departed);
        if departed.len() >= MAX_DEPARTED {
            departed.remove(0);
        }
        departed.push(session.counters.snapshot(id));
    }

    /// Usage per session. Includes an unregistered session once, then forgets it.
    pub fn usage(&self) -> Vec<SessionUsage> {
        let mut all = std::mem::take(&mut *lock(&self.departed));
        all.extend(lock(&self.sessions).values().map(|session| session.counters.snapshot(session.id)));
        all
    }

    /// Stops accepting; connections end after their current answer. `tasks` is empty when all
    /// ended.
    pub fn drain(&self) {
        self.draining.cancel();
        self.tasks.close();
    }
}

/// Takes the descriptor if it is a listening TCP socket.
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
