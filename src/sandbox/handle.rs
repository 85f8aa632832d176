//! One running sandbox: descriptors from the launcher and a connection to its init.
//! Dropping the handle leaves the sandbox running; [`super::Launcher::destroy`] ends it.
//!
//! ```text
//!   spawn, signal, deliver, ...  --numbered request-->  init
//!            ^                                           |
//!            |  reply with the number        +-----------+
//!       waiting callers <---- reader task <--+  events --> take_events()
//!                                  ^
//!                                  +-- pidfd readable, or socket closed: Died; callers get Gone
//! ```

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use super::channel::Channel;
use super::conversation::{Conversation, Watched, read};
use crate::sandbox::LauncherError;
use ash_kernel::{freeze, seqpacket};
use ash_protocol::init::{ChildStat, Exit, InitReply, InitRequest, Listener, Numbered, SpawnSpec};
use ash_protocol::launcher::{Failure, SANDBOX_FDS, SandboxInfo};

/// init answers within a millisecond; only a frozen sandbox takes longer.
const INIT_WITHIN: Duration = Duration::from_secs(30);

/// An unrequested event of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SandboxEvent {
    Exited {
        child: u32,
        status: Exit,
    },
    Delivered {
        child: u32,
        message: u64,
    },
    /// init has ended, and with it every process of the sandbox. The last event.
    Died,
}

#[derive(Debug)]
struct Inner {
    channel: Arc<Channel>,
    conversation: Arc<Conversation>,
    reader: tokio::task::JoinHandle<()>,
    /// Bounded by ashd's own requests: one event per child and message.
    events: Mutex<Option<mpsc::UnboundedReceiver<SandboxEvent>>>,
    /// `cgroup.freeze` and `cgroup.events`. Locked while waiting: two waiters would take each
    /// other's notification.
    cgroup: tokio::sync::Mutex<Arc<(OwnedFd, OwnedFd)>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Sandbox {
    pub info: Arc<SandboxInfo>,
    inner: Arc<Inner>,
}

impl Sandbox {
    /// Connects to the init whose socket is in `directory`.
    pub(super) fn open(
        info: SandboxInfo,
        [pidfd, wish, events]: [OwnedFd; SANDBOX_FDS],
        directory: &Path,
    ) -> Result<Self, LauncherError> {
        let failed = |error: io::Error| {
            let message = format!("{}/init.sock: {error}", directory.display());
            LauncherError::Failed(Failure { step: "connect to init".to_owned(), message, hint: None })
        };
        let channel = Arc::new(Channel::connect(directory, "init.sock").map_err(failed)?);
        let conversation = Arc::new(Conversation::default());
        let (sender, receiver) = mpsc::unbounded_channel();
        let reader = tokio::spawn(read(Arc::clone(&channel), pidfd, Arc::clone(&conversation), sender));
        let inner = Inner {
            channel,
            conversation,
            reader,
            events: Mutex::new(Some(receiver)),
            cgroup: tokio::sync::Mutex::new(Arc::new((wish, events))),
        };
        Ok(Self { info: Arc::new(info), inner: Arc::new(inner) })
    }

    pub fn id(&self) -> Uuid {
        self.info.id
    }

    /// Starts a process as the payload (see [`SpawnSpec`]) with these descriptors as stdout and
    /// stderr.
    ///
    /// # Errors
    /// `Failed` with init's error (a missing program, too many children); `Gone`; `TimedOut`.
    pub async fn spawn(
        &self,
        child: u32,
        spec: &SpawnSpec,
        stdout: OwnedFd,
        stderr: OwnedFd,
    ) -> Result<(), LauncherError> {
        let text = serde_json::to_vec(spec).map_err(|error| LauncherError::Protocol(error.to_string()))?;
        let spec = seqpacket::sealed_memfd("spawn", &text).map_err(|error| {
            LauncherError::Failed(Failure { step: "spawn".to_owned(), message: error.to_string(), hint: None })
        })?;
        let fds = [spec.as_fd(), stdout.as_fd(), stderr.as_fd()];
        match self.ask("spawn", InitRequest::Spawn { child }, &fds).await?.0 {
            InitReply::Spawned { .. } => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// As [`Sandbox::spawn`], but the caller awaits the process's end, which is then not an event.
    ///
    /// # Errors
    /// As [`Sandbox::spawn`].
    pub async fn spawn_watched(
        &self,
        child: u32,
        spec: &SpawnSpec,
        stdout: OwnedFd,
        stderr: OwnedFd,
    ) -> Result<Watched, LauncherError> {
        // Registered first: a short command can end before the reply to its start is read.
        let watched = self.inner.conversation.watch(child).ok_or(LauncherError::Gone)?;
        self.spawn(child, spec, stdout, stderr).await?;
        Ok(watched)
    }

    /// # Errors
    /// `Failed` when there is no such child; `Gone`; `TimedOut`.
    pub async fn signal(&self, child: u32, signal: i32, group: bool) -> Result<(), LauncherError> {
        self.done("signal", InitRequest::Signal { child, signal, group }, &[]).await
    }

    /// Queues the whole file for the child's stdin; returns when queued. Idempotent per number.
    ///
    /// # Errors
    /// `Failed` when there is no such child or its queue is full; `Gone`; `TimedOut`.
    pub async fn deliver(&self, child: u32, message: u64, file: OwnedFd) -> Result<(), LauncherError> {
        self.done("deliver", InitRequest::Deliver { child, message }, &[file.as_fd()]).await
    }

    /// Closes the child's stdin after its queued files.
    ///
    /// # Errors
    /// `Failed` when there is no such child; `Gone`; `TimedOut`.
    pub async fn close_stdin(&self, child: u32) -> Result<(), LauncherError> {
        self.done("close stdin", InitRequest::CloseStdin { child }, &[]).await
    }

    /// Passes reading ends of pipes: init reads them to their end and discards the data.
    ///
    /// # Errors
    /// `Failed` when init reads too many already; `Gone`; `TimedOut`.
    pub async fn discard(&self, pipes: &[OwnedFd]) -> Result<(), LauncherError> {
        let fds: Vec<BorrowedFd<'_>> = pipes.iter().map(AsFd::as_fd).collect();
        self.done("discard", InitRequest::Discard, &fds).await
    }

    /// # Errors
    /// `Gone`; `TimedOut`.
    pub async fn stat(&self) -> Result<Vec<ChildStat>, LauncherError> {
        match self.ask("stat", InitRequest::Stat, &[]).await?.0 {
            InitReply::Stat { children } => Ok(children),
            other => Err(unexpected(&other)),
        }
    }

    /// The listening socket on the sandbox's loopback.
    ///
    /// # Errors
    /// `Gone`; `TimedOut`.
    pub async fn listener(&self, which: Listener) -> Result<OwnedFd, LauncherError> {
        match self.ask("listener", InitRequest::Listener { which }, &[]).await? {
            (InitReply::Listener, mut fds) if fds.len() == 1 => Ok(fds.remove(0)),
            (InitReply::Listener, fds) => {
                Err(LauncherError::Protocol(format!("expected 1 descriptor of a listener, got {}", fds.len())))
            }
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// The event stream of this handle; `None` when it was already taken.
    pub fn take_events(&self) -> Option<mpsc::UnboundedReceiver<SandboxEvent>> {
        self.inner.events.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Freezes every process and waits up to 5 s for the kernel's confirmation; otherwise thaws
    /// again.
    ///
    /// # Errors
    /// `Freeze` gives the reason; the sandbox then runs (unless it has ended).
    pub async fn freeze(&self) -> Result<(), LauncherError> {
        let files = self.inner.cgroup.lock().await;
        // Also undoes the freeze when this future is dropped before its end.
        let mut undo = ThawOnDrop(Some(Arc::clone(&files)));
        let begun = freeze::begin(files.0.as_fd(), files.1.as_fd(), true);
        let reached = match begun {
            Ok(freeze::Progress::Reached) => Ok(()),
            Ok(freeze::Progress::Pending) => {
                let files = Arc::clone(&files);
                let wait = move || freeze::finish(files.1.as_fd(), true, freeze::FREEZE_WITHIN);
                tokio::task::spawn_blocking(wait).await.unwrap_or_else(|error| Err(io::Error::other(error)))
            }
            Err(error) => Err(error),
        };
        undo.0 = None;
        Ok(freeze::settle(files.0.as_fd(), reached, freeze::FREEZE_WITHIN)?)
    }

    /// Lets every process continue.
    ///
    /// # Errors
    /// `Freeze` when the cgroup is gone.
    pub async fn thaw(&self) -> Result<(), LauncherError> {
        let files = self.inner.cgroup.lock().await;
        Ok(freeze::thaw(files.0.as_fd()).map_err(freeze::FreezeError::Io)?)
    }

    /// Whether the kernel reports every process as frozen.
    ///
    /// # Errors
    /// `Freeze` when the cgroup is gone.
    pub async fn frozen(&self) -> Result<bool, LauncherError> {
        let files = self.inner.cgroup.lock().await;
        Ok(freeze::read_events(files.1.as_fd()).map_err(freeze::FreezeError::Io)?.frozen)
    }

    async fn done(
        &self,
        name: &'static str,
        request: InitRequest,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), LauncherError> {
        match self.ask(name, request, fds).await?.0 {
            InitReply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    async fn ask(
        &self,
        name: &'static str,
        request: InitRequest,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(InitReply, Vec<OwnedFd>), LauncherError> {
        let (sender, answer) = oneshot::channel();
        // Removed when this future ends in any way.
        let number = self.inner.conversation.expect_reply(sender).ok_or(LauncherError::Gone)?;
        let request = serde_json::to_vec(&Numbered { n: number.get(), request });
        let request = request.map_err(|error| LauncherError::Protocol(error.to_string()))?;
        let exchange = async {
            self.inner.channel.send(&request, fds).await.map_err(|_| LauncherError::Gone)?;
            answer.await.map_err(|_| LauncherError::Gone)
        };
        let timed_out = |_| LauncherError::TimedOut { request: name, within: INIT_WITHIN };
        match tokio::time::timeout(INIT_WITHIN, exchange).await.map_err(timed_out)?? {
            (InitReply::Error { step, message }, _) => Err(Failure { step, message, hint: None }.into()),
            reply => Ok(reply),
        }
    }
}

/// Undoes an unfinished freeze.
struct ThawOnDrop(Option<Arc<(OwnedFd, OwnedFd)>>);

impl Drop for ThawOnDrop {
    fn drop(&mut self) {
        if let Some(files) = self.0.take() {
            freeze::thaw(files.0.as_fd()).ok();
        }
    }
}

fn unexpected(reply: &InitReply) -> LauncherError {
    LauncherError::Protocol(format!("unexpected reply of init: {reply:?}"))
}
