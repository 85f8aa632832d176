//! Handles one request.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::children::Children;
use super::discard::Discards;
use super::{Init, payload};
use ash_protocol::init::{InitReply, InitRequest, Listener};

/// Why a request is refused: step and message of [`InitReply::Error`].
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal {
    pub step: &'static str,
    pub message: String,
}

impl Refusal {
    pub fn new(step: &'static str, message: impl ToString) -> Self {
        Self { step, message: message.to_string() }
    }
}

/// The reply and its descriptors. Unexpected descriptors of the request are closed.
pub fn answer<'a>(
    request: InitRequest,
    fds: Vec<OwnedFd>,
    init: &'a Init,
    children: &mut Children,
    discards: &mut Discards,
) -> (InitReply, Vec<BorrowedFd<'a>>) {
    let done = match request {
        InitRequest::Spawn { child } => spawn(child, fds, init, children),
        InitRequest::Signal { child, signal, group } => children.signal(child, signal, group).map(|()| InitReply::Done),
        InitRequest::Deliver { child, message } => match <[OwnedFd; 1]>::try_from(fds) {
            Ok([file]) => children.deliver(child, message, file).map(|()| InitReply::Done),
            Err(fds) => Err(Refusal::new("deliver", format!("1 descriptor is required, got {}", fds.len()))),
        },
        InitRequest::CloseStdin { child } => children.close_stdin(child).map(|()| InitReply::Done),
        InitRequest::Discard => discards.take(fds).map(|()| InitReply::Done),
        InitRequest::Stat => Ok(InitReply::Stat { children: children.stat() }),
        InitRequest::Listener { which } => {
            let listener = match which {
                Listener::Model => &init.model,
            };
            return (InitReply::Listener, vec![listener.as_fd()]);
        }
    };
    let reply = done.unwrap_or_else(|Refusal { step, message }| InitReply::Error { step: step.into(), message });
    (reply, Vec::new())
}

fn spawn(child: u32, fds: Vec<OwnedFd>, init: &Init, children: &mut Children) -> Result<InitReply, Refusal> {
    let fds = <[OwnedFd; 3]>::try_from(fds)
        .map_err(|fds| Refusal::new("spawn", format!("3 descriptors are required, got {}", fds.len())))?;
    children.admit(child)?;
    let payload = payload::start(fds, init.rules.as_ref())?;
    let pid = payload.pid;
    children.add(child, payload);
    Ok(InitReply::Spawned { pid })
}
