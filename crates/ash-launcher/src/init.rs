//! PID 1 of a sandbox: reaps, starts commands, writes claude's stdin, provides the loopback
//! listeners.
//!
//! ```text
//!               init.sock (ashd only)
//!                   |
//!   poll ---- accept / request ------> reply (init::requests)
//!     |  ---- SIGCHLD ---------------> reap, notify all connections   Exited
//!     |  ---- space in a stdin pipe -> copy, notify all               Delivered
//!     |  ---- output of background jobs -> discard
//! ```
//!
//! One thread without timers. Everything is bounded: [`MAX_CONNECTIONS`], the limits of
//! [`children`] and [`discard`], one packet of [`MAX_PACKET`] bytes at a time. A connection with
//! invalid data, or one that does not read, is closed. Nothing is lost, since a new connection can
//! ask `Stat`.

mod children;
mod discard;
mod keeper;
mod payload;
mod requests;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags};

use ash_kernel::{clone, landlock, seqpacket};
use ash_protocol::init::{FromInit, INIT_UID, InitEvent, Numbered, PAYLOAD_UID};
use ash_protocol::launcher::MAX_PACKET;
use children::Children;
use discard::Discards;

/// Most connections. A further one is closed at once. ashd has one, and a second during its
/// replacement.
pub const MAX_CONNECTIONS: usize = 16;

#[derive(Debug)]
pub struct Init {
    /// Listening socket at `<run dir>/sandboxes/<id>/init.sock`.
    pub socket: OwnedFd,
    pub model: OwnedFd,
    /// The rules for every command. `None` only with a floor that an administrator lowered to 0.
    pub rules: Option<landlock::Rules>,
}

/// Serves until the sandbox is killed. If it fails, it exits, and the kernel kills the sandbox.
pub fn serve(init: Init) -> ! {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&init)));
    clone::exit_now(if matches!(outcome, Ok(Ok(()))) { 0 } else { 2 })
}

/// The `pids.max` in force. `None`: there is none.
fn process_limit() -> Option<u64> {
    std::fs::read_to_string(ash_model::processes::LIMIT).ok()?.trim().parse().ok()
}

fn run(init: &Init) -> io::Result<()> {
    let mut sigchld = SigSet::empty();
    sigchld.add(Signal::SIGCHLD);
    sigchld.thread_block()?;
    let signals = SignalFd::with_flags(&sigchld, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let mut connections: Vec<OwnedFd> = Vec::new();
    let mut children = Children::default();
    let mut discards = Discards::default();
    let mut buffer = vec![0; MAX_PACKET];
    loop {
        let ready = wait(init, &signals, &connections, &children, &discards)?;
        let mut events = Vec::new();
        if ready.signal {
            while let Ok(Some(_)) = signals.read_signal() {}
            children.reap(&mut events);
        }
        discards.read(&ready.discards, &mut buffer);
        // In descending order: removing a closed one does not move the remaining ones.
        for index in ready.connections.into_iter().rev() {
            if !attend(&connections[index], &mut buffer, init, &mut children, &mut discards) {
                connections.swap_remove(index);
            }
        }
        if ready.accept {
            welcome(init.socket.as_fd(), &mut connections);
        }
        children.feed(&mut buffer, &mut events);
        for event in events {
            let text = serde_json::to_vec(&FromInit::Event { event }).map_err(io::Error::other)?;
            connections.retain(|connection| seqpacket::send(connection.as_fd(), &text, &[]).is_ok());
        }
    }
}

struct Ready {
    signal: bool,
    accept: bool,
    /// Indices, ascending.
    connections: Vec<usize>,
    discards: Vec<usize>,
}

fn wait(
    init: &Init,
    signals: &SignalFd,
    connections: &[OwnedFd],
    children: &Children,
    discards: &Discards,
) -> io::Result<Ready> {
    let mut fds = Vec::with_capacity(2 + connections.len() + discards.len() + 8);
    fds.push(PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN));
    fds.push(PollFd::from_borrowed_fd(init.socket.as_fd(), PollFlags::IN));
    fds.extend(connections.iter().map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)));
    fds.extend(discards.all().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
    fds.extend(children.hungry().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::OUT)));
    loop {
        match rustix::event::poll(&mut fds, None) {
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let woke = |index: usize| !fds[index].revents().is_empty();
    let (first, last) = (connections.len(), discards.len());
    let connections = (0..first).filter(|index| woke(2 + index)).collect();
    let discards = (0..last).filter(|index| woke(2 + first + index)).collect();
    Ok(Ready { signal: woke(0), accept: woke(1), connections, discards })
}

/// Accepts connections. The mode of the socket's directory excludes all users except ashd's.
/// Processes of the sandbox are refused by their uid.
fn welcome(socket: BorrowedFd<'_>, connections: &mut Vec<OwnedFd>) {
    while let Ok(connection) = seqpacket::accept(socket) {
        let inside = |uid| uid == PAYLOAD_UID || uid == INIT_UID;
        let trusted = seqpacket::peer(connection.as_fd()).is_ok_and(|peer| !inside(peer.uid));
        if trusted && connections.len() < MAX_CONNECTIONS {
            connections.push(connection);
        }
    }
}

/// Answers one packet. `false`: the connection is closed.
fn attend(
    connection: &OwnedFd,
    buffer: &mut [u8],
    init: &Init,
    children: &mut Children,
    discards: &mut Discards,
) -> bool {
    let packet = match seqpacket::recv(connection.as_fd(), buffer) {
        Ok(packet) if packet.len > 0 => packet,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
        _ => return false,
    };
    let Ok(Numbered { n, request }) = serde_json::from_slice(&buffer[..packet.len]) else { return false };
    let (reply, fds) = requests::answer(request, packet.fds, init, children, discards);
    let Ok(text) = serde_json::to_vec(&FromInit::Reply { n, reply }) else { return false };
    seqpacket::send(connection.as_fd(), &text, &fds).is_ok()
}

/// Events in the order of their delivery.
type Events = Vec<InitEvent>;
