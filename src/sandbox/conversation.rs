//! The callers that wait for replies of a sandbox's init, and the task that reads them.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

use super::channel::Channel;
use super::handle::SandboxEvent;
use ash_kernel::watch::watch;
use ash_protocol::init::{Exit, FromInit, InitEvent, InitReply};

/// Time between init's last message and its end: its processes need milliseconds to end if none
/// hangs in the kernel.
const DEAD_WITHIN: Duration = Duration::from_secs(5);

/// A reply with its descriptors.
type Answer = (InitReply, Vec<OwnedFd>);

#[derive(Debug, Default)]
struct State {
    next: u32,
    waiting: HashMap<u32, oneshot::Sender<Answer>>,
    /// Children whose end a caller awaits.
    watched: HashMap<u32, oneshot::Sender<Exit>>,
    over: bool,
}

#[derive(Debug, Default)]
pub(super) struct Conversation {
    state: Mutex<State>,
}

/// The number of a pending request. Dropping it removes the caller, so that a late answer is
/// ignored.
#[derive(Debug)]
pub(super) struct Number {
    conversation: Arc<Conversation>,
    number: u32,
}

impl Number {
    pub(super) fn get(&self) -> u32 {
        self.number
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        self.conversation.lock().waiting.remove(&self.number);
    }
}

/// The end of a watched child. Dropping it leaves the child alone; its end is then an ordinary
/// event.
#[derive(Debug)]
pub struct Watched {
    conversation: Arc<Conversation>,
    child: u32,
    end: oneshot::Receiver<Exit>,
}

impl Watched {
    /// Waits for the child's end; `None` when the whole sandbox has ended.
    pub async fn ended(&mut self) -> Option<Exit> {
        (&mut self.end).await.ok()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.conversation.lock().watched.remove(&self.child);
    }
}

impl Conversation {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a caller. `None` when init has ended.
    pub(super) fn expect_reply(self: &Arc<Self>, sender: oneshot::Sender<Answer>) -> Option<Number> {
        let mut state = self.lock();
        if state.over {
            return None;
        }
        state.next = state.next.wrapping_add(1);
        let number = state.next;
        state.waiting.insert(number, sender);
        Some(Number { conversation: Arc::clone(self), number })
    }

    /// Registers a watcher of this child, before it starts. `None` when init has ended.
    pub(super) fn watch(self: &Arc<Self>, child: u32) -> Option<Watched> {
        let (sender, end) = oneshot::channel();
        let mut state = self.lock();
        if state.over {
            return None;
        }
        state.watched.insert(child, sender);
        Some(Watched { conversation: Arc::clone(self), child, end })
    }

    /// `false`: this child has no watcher.
    fn ended(&self, child: u32, status: Exit) -> bool {
        let watcher = self.lock().watched.remove(&child);
        watcher.is_some_and(|watcher| watcher.send(status).is_ok())
    }

    fn resolve(&self, number: u32, answer: Answer) {
        if let Some(waiter) = self.lock().waiting.remove(&number) {
            // The caller may be gone.
            waiter.send(answer).ok();
        }
    }

    /// Drops the senders, which wakes every caller with an error.
    fn end(&self) {
        let mut state = self.lock();
        state.over = true;
        state.waiting.clear();
        state.watched.clear();
    }
}

/// Reads until init has ended. The last event is [`SandboxEvent::Died`].
pub(super) async fn read(
    channel: Arc<Channel>,
    pidfd: OwnedFd,
    conversation: Arc<Conversation>,
    events: mpsc::UnboundedSender<SandboxEvent>,
) {
    let pidfd = watch(pidfd, Interest::READABLE);
    // A panic is an end like any other: every caller is notified.
    let listened = AssertUnwindSafe(listen(&channel, pidfd.as_ref().ok(), &conversation, &events)).catch_unwind().await;
    if listened.is_err() {
        tracing::error!("the task that reads from a sandbox's init panicked; treating the sandbox as dead");
    }
    conversation.end();
    // init closes its socket before the kernel has ended the other processes, which may still
    // write. Callers notified of the end must find all their output.
    if let Ok(pidfd) = &pidfd {
        drop(tokio::time::timeout(DEAD_WITHIN, pidfd.readable()).await);
    }
    events.send(SandboxEvent::Died).ok();
}

async fn listen(
    channel: &Channel,
    pidfd: Option<&AsyncFd<OwnedFd>>,
    conversation: &Conversation,
    events: &mpsc::UnboundedSender<SandboxEvent>,
) {
    loop {
        let packet = match pidfd {
            // Read what init sent before it ended first.
            Some(pidfd) => tokio::select! {
                biased;
                packet = channel.recv() => packet,
                _ = pidfd.readable() => break,
            },
            None => channel.recv().await,
        };
        let Ok(Some((bytes, fds))) = packet else { break };
        match serde_json::from_slice(&bytes) {
            Ok(FromInit::Reply { n, reply }) => conversation.resolve(n, (reply, fds)),
            Ok(FromInit::Event { event }) => {
                let event = match event {
                    InitEvent::Exited { child, status } if conversation.ended(child, status) => continue,
                    InitEvent::Exited { child, status } => SandboxEvent::Exited { child, status },
                    InitEvent::Delivered { child, message } => SandboxEvent::Delivered { child, message },
                };
                // No receiver is fine: the handle may be used only for requests.
                events.send(event).ok();
            }
            Err(error) => {
                tracing::error!(%error, "invalid message from a sandbox's init");
                break;
            }
        }
    }
}
