//! Client of the launcher's socket. A connection carries one request at a time; connections are
//! reused, and opened again after a restart of the launcher.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use uuid::Uuid;

use super::channel::Channel;
use crate::sandbox::Sandbox;
use ash_kernel::held::Held;
use ash_model::Limits;
use ash_observe::events::{self, event};
use ash_protocol::launcher::{Create, Failure, PROTOCOL, Reply, Request, SANDBOX_FDS, SandboxInfo, Victim};

/// Concurrent requests, each on its own connection: the launcher serves one at a time, but a
/// destroy that waits for a process to end must not delay the next start.
const PARALLEL: usize = 8;
/// Creating a sandbox takes 5 to 20 ms; even with many queued before it, far less than this.
const CREATE_WITHIN: Duration = Duration::from_secs(30);
/// The launcher itself gives up on a destroy after 10 s.
const DESTROY_WITHIN: Duration = Duration::from_secs(20);
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// For optional information: a session's end is reported without it rather than late.
const LOOK_WITHIN: Duration = Duration::from_secs(1);
/// A crashed launcher is back within a second; idempotent requests are repeated for this time.
const AWAY: Duration = Duration::from_secs(5);
const ASK_AGAIN: Duration = Duration::from_millis(50);

#[derive(Debug, thiserror::Error)]
pub enum LauncherError {
    /// The launcher cannot be reached; it may be restarting.
    #[error("the launcher at {path} does not answer: {source}")]
    Unreachable { path: String, source: io::Error },
    /// The launcher refused, or a step of the set-up failed.
    #[error(transparent)]
    Failed(#[from] Failure),
    #[error("launcher and ashd do not use the same protocol: {0}")]
    Protocol(String),
    /// No answer in time. A frozen sandbox's init does not answer.
    #[error("no answer to {request} within {} s", .within.as_secs())]
    TimedOut { request: &'static str, within: Duration },
    /// init has ended, and with it every process of the sandbox.
    #[error("the sandbox has ended")]
    Gone,
    /// The kernel did not freeze the sandbox; it was thawed again.
    #[error("cannot freeze the sandbox: {0}")]
    Freeze(#[from] ash_kernel::freeze::FreezeError),
}

#[derive(Debug)]
struct Inner {
    run_dir: PathBuf,
    idle: Mutex<Vec<Channel>>,
    slots: Semaphore,
    /// The loss was reported.
    lost: AtomicBool,
}

/// Cheap to clone; all clones share the connections.
#[derive(Clone, Debug)]
pub struct Launcher {
    inner: Arc<Inner>,
}

impl Launcher {
    /// A client that connects at its first request.
    pub fn at(run_dir: &Path) -> Self {
        let (idle, slots) = (Mutex::new(Vec::new()), Semaphore::new(PARALLEL));
        let inner = Inner { run_dir: run_dir.to_owned(), idle, slots, lost: AtomicBool::new(false) };
        Self { inner: Arc::new(inner) }
    }

    /// Connects and sends hello. `run_dir` contains `launcher.sock` and `sandboxes/`.
    ///
    /// # Errors
    /// `Unreachable` without a launcher, `Failed` when it refuses this user, `Protocol` when its
    /// version differs.
    pub async fn connect(run_dir: &Path) -> Result<Self, LauncherError> {
        let launcher = Self::at(run_dir);
        match launcher.ask("hello", &Request::Hello, ANSWER_WITHIN).await?.0 {
            Reply::Hello { protocol: PROTOCOL, .. } => Ok(launcher),
            Reply::Hello { protocol, version, .. } => {
                let ours = format!("ashd uses {PROTOCOL}; restart the older of the two");
                Err(LauncherError::Protocol(format!("launcher {version} uses {protocol}, {ours}")))
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Creates a sandbox and connects to its init. An error leaves nothing behind.
    ///
    /// # Errors
    /// `Failed` names the step; `TimedOut` after 30 s.
    pub async fn create(&self, create: Create) -> Result<Sandbox, LauncherError> {
        let id = create.id;
        let request = Request::Create(create);
        let mut made = self.ask("create", &request, CREATE_WITHIN).await;
        if matches!(made, Err(LauncherError::Unreachable { .. })) {
            // It may have created the sandbox before it ended.
            self.destroy(id).await?;
            made = self.ask("create", &request, CREATE_WITHIN).await;
        }
        let opened = match made {
            Ok(answer) => self.open(answer).await,
            // A refusal left nothing, and the sandbox with that id may be another's.
            Err(error @ LauncherError::Failed(_)) => return Err(error),
            Err(error) => Err(error),
        };
        if opened.is_err() {
            // It may have been created after the timeout.
            self.destroy(id).await.ok();
        }
        opened
    }

    /// A handle of a sandbox that already runs.
    ///
    /// # Errors
    /// `Failed` when there is none, or its init has ended.
    pub async fn attach(&self, id: Uuid) -> Result<Sandbox, LauncherError> {
        let answer = self.insist("attach", &Request::Attach { id }, ANSWER_WITHIN).await?;
        self.open(answer).await
    }

    /// # Errors
    /// `Failed` names the limit; the old limits then stay in force.
    pub async fn set_limits(&self, id: Uuid, limits: Limits) -> Result<(), LauncherError> {
        match self.insist("set limits", &Request::SetLimits { id, limits }, ANSWER_WITHIN).await?.0 {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Starts to reclaim a frozen sandbox's memory to swap, in the background; a thaw ends it.
    ///
    /// # Errors
    /// `Failed` when there is no such sandbox.
    pub async fn reclaim(&self, id: Uuid) -> Result<(), LauncherError> {
        match self.insist("reclaim", &Request::Reclaim { id }, ANSWER_WITHIN).await?.0 {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Its processes killed out of memory, oldest first; `None` if the kernel's log cannot be read.
    ///
    /// # Errors
    /// `Failed` when there is no such sandbox, or the launcher's version does not support it.
    pub async fn victims(&self, id: Uuid) -> Result<Option<Vec<Victim>>, LauncherError> {
        match self.ask("victims", &Request::Victims { id }, LOOK_WITHIN).await?.0 {
            Reply::Victims { victims, readable } => Ok(readable.then_some(victims)),
            other => Err(unexpected(&other)),
        }
    }

    /// The disk space of its deleted but open files.
    ///
    /// # Errors
    /// As [`Launcher::victims`].
    pub async fn held(&self, id: Uuid) -> Result<Held, LauncherError> {
        match self.ask("held", &Request::Held { id }, LOOK_WITHIN).await?.0 {
            Reply::Held { bytes, files, hidden } => Ok(Held { bytes, files, hidden }),
            other => Err(unexpected(&other)),
        }
    }

    /// Kills and removes it; returns when it is gone. A missing sandbox is no error.
    ///
    /// # Errors
    /// `Failed` when a process outlives SIGKILL for 10 s; the call may be repeated.
    pub async fn destroy(&self, id: Uuid) -> Result<(), LauncherError> {
        match self.insist("destroy", &Request::Destroy { id }, DESTROY_WITHIN).await?.0 {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// All sandboxes; `pid` is 0 if init has ended.
    ///
    /// # Errors
    /// `Unreachable`, `TimedOut`.
    pub async fn list(&self) -> Result<Vec<SandboxInfo>, LauncherError> {
        let mut all: Vec<SandboxInfo> = Vec::new();
        loop {
            let after = all.last().map(|info| info.id);
            match self.insist("list", &Request::List { after }, ANSWER_WITHIN).await?.0 {
                Reply::List { sandboxes, more } => {
                    let done = !more || sandboxes.is_empty();
                    all.extend(sandboxes);
                    if done {
                        return Ok(all);
                    }
                }
                other => return Err(unexpected(&other)),
            }
        }
    }

    /// Ends every sandbox, then the launcher. Returns when all are gone.
    ///
    /// # Errors
    /// `Unreachable`, `TimedOut`.
    pub async fn shutdown(&self) -> Result<(), LauncherError> {
        match self.ask("shutdown", &Request::Shutdown, DESTROY_WITHIN).await?.0 {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// For idempotent requests: repeats while the launcher is away.
    async fn insist(
        &self,
        name: &'static str,
        request: &Request,
        within: Duration,
    ) -> Result<(Reply, Vec<OwnedFd>), LauncherError> {
        let start = Instant::now();
        loop {
            match self.ask(name, request, within).await {
                Err(LauncherError::Unreachable { .. }) if start.elapsed() < AWAY => {
                    tokio::time::sleep(ASK_AGAIN).await;
                }
                // A hanging launcher is treated as a lost one.
                Err(error @ (LauncherError::Unreachable { .. } | LauncherError::TimedOut { .. })) => {
                    if !self.inner.lost.swap(true, Ordering::Relaxed) {
                        let path = self.inner.run_dir.join("launcher.sock");
                        event!(&events::LAUNCHER_LOST, path = %path.display(), %error, "the launcher does not answer");
                    }
                    return Err(error);
                }
                answer => {
                    if self.inner.lost.swap(false, Ordering::Relaxed) {
                        tracing::info!(ASH_EVENT = "launcher-back", "the launcher answers again");
                    }
                    return answer;
                }
            }
        }
    }

    async fn open(&self, (reply, fds): (Reply, Vec<OwnedFd>)) -> Result<Sandbox, LauncherError> {
        let Reply::Sandbox(info) = reply else { return Err(unexpected(&reply)) };
        let fds: [OwnedFd; SANDBOX_FDS] = fds.try_into().map_err(|fds: Vec<_>| {
            LauncherError::Protocol(format!("expected {SANDBOX_FDS} descriptors of a sandbox, got {}", fds.len()))
        })?;
        let directory = self.inner.run_dir.join("sandboxes").join(info.id.to_string());
        Sandbox::open(info, fds, &directory)
    }

    fn unreachable(&self, source: io::Error) -> LauncherError {
        LauncherError::Unreachable { path: self.inner.run_dir.join("launcher.sock").display().to_string(), source }
    }

    /// One request and its reply. A reused connection may be of an ended launcher: only then is the
    /// request sent again on a new one, since a closed socket delivered nothing.
    async fn ask(
        &self,
        name: &'static str,
        request: &Request,
        within: Duration,
    ) -> Result<(Reply, Vec<OwnedFd>), LauncherError> {
        let exchange = async {
            let _slot = self.inner.slots.acquire().await.map_err(|e| self.unreachable(io::Error::other(e)))?;
            let bytes = serde_json::to_vec(request).map_err(|e| LauncherError::Protocol(e.to_string()))?;
            let kept = self.idle().pop();
            let sent = match kept {
                Some(channel) => channel.send(&bytes, &[]).await.ok().map(|()| channel),
                None => None,
            };
            let channel = match sent {
                Some(channel) => channel,
                None => {
                    let channel =
                        Channel::connect(&self.inner.run_dir, "launcher.sock").map_err(|e| self.unreachable(e))?;
                    // When sending fails, a refusal may be waiting to be read.
                    channel.send(&bytes, &[]).await.or_else(|error| match error.kind() {
                        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Ok(()),
                        _ => Err(self.unreachable(error)),
                    })?;
                    channel
                }
            };
            let closed = || io::Error::new(io::ErrorKind::UnexpectedEof, "the launcher closed the connection");
            let (bytes, fds) =
                channel.recv().await.and_then(|p| p.ok_or_else(closed)).map_err(|e| self.unreachable(e))?;
            let reply = serde_json::from_slice(&bytes).map_err(|e| LauncherError::Protocol(e.to_string()))?;
            // Only a connection with a complete exchange is reused.
            self.idle().push(channel);
            match reply {
                Reply::Error(failure) => Err(LauncherError::Failed(failure)),
                reply => Ok((reply, fds)),
            }
        };
        let timed_out = |_| LauncherError::TimedOut { request: name, within };
        tokio::time::timeout(within, exchange).await.map_err(timed_out)?
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Channel>> {
        self.inner.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unexpected(reply: &Reply) -> LauncherError {
    LauncherError::Protocol(format!("unexpected reply {reply:?}"))
}
