//! The launcher's loop: one thread, one poll.
//!
//! ```text
//!        +--------------------------- poll ---------------------------+
//!        | listener      connections       pidfds of inits    signals |
//!        +----+--------------+--------------------+--------------+----+
//!          accept      one packet each         reap         TERM: end all
//!        (uid checked)  -> one reply                        HUP: reload settings
//!                                                           USR2: replace the program
//! ```
//!
//! No client can block the loop: packets are read completely or not at all, a reply that does not
//! fit the socket closes it, and long operations (an end, [`super::again`]) are checked in passes
//! while their connection waits.

mod renewal;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use uuid::Uuid;

use super::again::Origin;
use super::ending::Waiter;
use super::sandboxes::{Answer, Sandboxes, failure};
use super::settings::Flags;
use ash_kernel::seqpacket;
use ash_protocol::launcher::{Failure, MAX_PACKET, PROTOCOL, Reply, Request};

/// ashd uses a few. Further ones get an error.
pub const MAX_CONNECTIONS: usize = 64;
/// The pause of the listener after accept(2) failed for lack of descriptors, so that the loop does
/// not spin.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Shown by `systemctl status`.
pub const STATUS: &str = concat!("version ", env!("CARGO_PKG_VERSION"));

#[derive(Debug)]
struct Connection {
    socket: OwnedFd,
    /// It waits for an end and is not read meanwhile: requests are answered in order.
    waiting: bool,
}

#[derive(Debug)]
pub struct Server {
    sandboxes: Sandboxes,
    flags: Flags,
    listener: OwnedFd,
    signals: SignalFd,
    connections: BTreeMap<Waiter, Connection>,
    next: Waiter,
    accept_from: Instant,
    /// Set by SIGTERM and Shutdown. The connections get a reply at the end.
    stopping: Option<Vec<Waiter>>,
    origin: Origin,
    /// Set by SIGUSR2: requests are no longer read, and without an end in progress the program is
    /// replaced.
    again: bool,
    buffer: Vec<u8>,
}

enum Source {
    Listener,
    Signals,
    Connection(Waiter),
    Init(Uuid),
    Reclaimer,
    Holder(Waiter),
    /// The process that started this launcher for itself has ended.
    Starter,
}

/// Blocks the signals that [`Server::run`] handles. Called before anything is created that must be
/// undone: a signal during the start would end it and leave groups and socket.
///
/// # Errors
/// As for sigprocmask(2).
pub fn block_signals() -> io::Result<SigSet> {
    let set = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR2]);
    set.thread_block()?;
    Ok(set)
}

impl Server {
    /// # Errors
    /// The signals cannot be blocked.
    pub fn new(sandboxes: Sandboxes, flags: Flags, listener: OwnedFd, origin: Origin) -> io::Result<Self> {
        let signals = SignalFd::with_flags(&block_signals()?, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self {
            sandboxes,
            flags,
            listener,
            signals,
            connections: BTreeMap::new(),
            next: 1,
            accept_from: Instant::now(),
            stopping: None,
            origin,
            again: false,
            buffer: vec![0; MAX_PACKET],
        })
    }

    /// Takes over the connections and the work of the previous program.
    pub fn resume(&mut self, connections: Vec<OwnedFd>, reclaims: Vec<Uuid>) {
        for socket in connections {
            self.connections.insert(self.next, Connection { socket, waiting: false });
            self.next += 1;
        }
        for id in reclaims {
            if let Err(error) = self.sandboxes.reclaim(id) {
                tracing::info!(ASH_SESSION = %id, %error, "the memory of the sandbox was not reclaimed");
            }
        }
    }

    /// Serves until it is stopped. `true`: every sandbox was ended and removed.
    ///
    /// # Errors
    /// poll(2) itself fails, which no client can cause.
    pub fn run(mut self) -> io::Result<bool> {
        let mut clean = true;
        loop {
            for ended in self.sandboxes.step_endings() {
                match &ended.outcome {
                    Ok(()) => tracing::info!(ASH_SESSION = %ended.id, "ended"),
                    Err(error) => {
                        tracing::error!(ASH_SESSION = %ended.id, %error, "the sandbox could not be ended");
                        clean &= self.stopping.is_none();
                    }
                }
                for waiter in ended.waiters {
                    let reply = ended.outcome.clone().map_or_else(Reply::Error, |()| Reply::Done);
                    self.answer(waiter, Answer::plain(reply));
                }
            }
            if let Some(waiters) = self.stopping.as_ref().filter(|_| self.sandboxes.endings.is_empty()).cloned() {
                self.sandboxes.unprepare();
                for waiter in waiters {
                    self.answer(waiter, Answer::plain(Reply::Done));
                }
                return Ok(clean);
            }
            let idle = self.sandboxes.endings.is_empty() && self.sandboxes.holdings.is_empty();
            if self.again && idle && self.stopping.is_none() {
                self.execute();
            }
            for source in self.next()? {
                match source {
                    Source::Listener => self.accept(),
                    Source::Signals => self.signal(),
                    Source::Connection(number) => self.serve(number),
                    Source::Init(id) => self.sandboxes.init_ended(id),
                    Source::Reclaimer => self.sandboxes.reclaimer_ended(),
                    Source::Holder(waiter) => self.held(waiter),
                    Source::Starter => {
                        tracing::info!("standard input was closed: ending every sandbox");
                        self.stop(None);
                    }
                }
            }
        }
    }

    /// The ready sources. Does background work while idle.
    fn next(&mut self) -> io::Result<Vec<Source>> {
        if self.sandboxes.unprepared() && !self.again && self.stopping.is_none() {
            let ready = self.wait(true)?;
            if !ready.is_empty() {
                return Ok(ready);
            }
            self.sandboxes.prepare();
        }
        self.wait(false)
    }

    /// `only_look`: without waiting.
    fn wait(&self, only_look: bool) -> io::Result<Vec<Source>> {
        let stdin = io::stdin();
        let mut sources = vec![Source::Signals];
        let mut fds = vec![PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN)];
        if self.flags.while_stdin_is_open && self.stopping.is_none() {
            sources.push(Source::Starter);
            // No events requested: a pipe without a writer is reported nevertheless.
            fds.push(PollFd::new(&stdin, PollFlags::empty()));
        }
        let rest = self.accept_from.checked_duration_since(Instant::now());
        let reading = !self.again || self.stopping.is_some();
        if rest.is_none() && reading {
            sources.push(Source::Listener);
            fds.push(PollFd::from_borrowed_fd(self.listener.as_fd(), PollFlags::IN));
        }
        for (number, connection) in self.connections.iter().filter(|_| reading) {
            sources.push(Source::Connection(*number));
            // A hang-up is reported even if no events are requested.
            let wanted = if connection.waiting { PollFlags::empty() } else { PollFlags::IN };
            fds.push(PollFd::from_borrowed_fd(connection.socket.as_fd(), wanted));
        }
        for (id, entry) in &self.sandboxes.table {
            if let Some(pidfd) = &entry.pidfd {
                sources.push(Source::Init(*id));
                fds.push(PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN));
            }
        }
        if let Some(pidfd) = self.sandboxes.reclaims.worker() {
            sources.push(Source::Reclaimer);
            fds.push(PollFd::from_borrowed_fd(pidfd, PollFlags::IN));
        }
        for (waiter, pipe) in self.sandboxes.holdings.workers() {
            sources.push(Source::Holder(waiter));
            fds.push(PollFd::from_borrowed_fd(pipe, PollFlags::IN));
        }
        let timeout = [rest, self.sandboxes.look_again()].into_iter().flatten().min();
        let timeout = timeout.map(|wait| Timespec { tv_sec: 0, tv_nsec: i64::from(wait.subsec_nanos().max(1)) });
        let timeout = if only_look { Some(Timespec { tv_sec: 0, tv_nsec: 0 }) } else { timeout };
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
        let ready = fds.iter().map(|fd| !fd.revents().is_empty());
        Ok(sources.into_iter().zip(ready).filter_map(|(source, ready)| ready.then_some(source)).collect())
    }

    /// Accepts one connection. The loop returns for the next.
    fn accept(&mut self) {
        let socket = match seqpacket::accept(self.listener.as_fd()) {
            Ok(socket) => socket,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) => {
                tracing::error!(%error, "accept");
                self.accept_from = Instant::now() + ACCEPT_REST;
                return;
            }
        };
        let refusal = match seqpacket::peer(socket.as_fd()) {
            Err(error) => failure("connect", error),
            Ok(peer) if peer.uid != 0 && peer.uid != self.sandboxes.settings.client_uid => {
                tracing::warn!(uid = peer.uid, pid = peer.pid, "refused a connection");
                let wanted = self.sandboxes.settings.client_uid;
                failure(
                    "connect",
                    format!(
                        "uid {} must not connect to the launcher: only uid {wanted} and root are allowed",
                        peer.uid
                    ),
                )
            }
            Ok(_) if self.connections.len() >= MAX_CONNECTIONS => {
                failure("connect", format!("the limit of {MAX_CONNECTIONS} connections is reached"))
            }
            Ok(_) => {
                self.connections.insert(self.next, Connection { socket, waiting: false });
                self.next += 1;
                return;
            }
        };
        send(socket.as_fd(), Answer::plain(Reply::Error(refusal))).ok();
    }

    fn signal(&mut self) {
        // Handled once, however many signals came: the check takes time, and repeated signals would
        // block the loop.
        let mut again = false;
        while let Ok(Some(info)) = self.signals.read_signal() {
            match i32::try_from(info.ssi_signo).map(Signal::try_from) {
                Ok(Ok(Signal::SIGHUP)) => self.reload(),
                Ok(Ok(Signal::SIGUSR2)) => again = true,
                _ => {
                    tracing::info!(signal = info.ssi_signo, "ending every sandbox");
                    self.stop(None);
                }
            }
        }
        if again {
            self.prepare_again();
        }
    }

    fn stop(&mut self, waiter: Option<Waiter>) {
        self.stopping.get_or_insert_default().extend(waiter);
        let ids: Vec<Uuid> = self.sandboxes.table.keys().copied().collect();
        for id in ids {
            if let Some(Err(error)) = self.sandboxes.begin_end(id, None) {
                tracing::error!(ASH_SESSION = %id, %error, "the sandbox could not be ended");
            }
        }
    }

    fn serve(&mut self, number: Waiter) {
        let Some(connection) = self.connections.get(&number) else { return };
        if connection.waiting {
            // Readable without requested events: the client is gone. The end continues without it.
            self.connections.remove(&number);
            return;
        }
        let packet = match seqpacket::recv(connection.socket.as_fd(), &mut self.buffer) {
            Ok(packet) if packet.len == 0 => {
                self.connections.remove(&number);
                return;
            }
            Ok(packet) => packet,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => return,
            Err(error) => {
                self.answer(number, Answer::plain(Reply::Error(failure("read request", error))));
                self.connections.remove(&number);
                return;
            }
        };
        // No request has descriptors. Received ones are closed here.
        drop(packet.fds);
        let request = serde_json::from_slice::<Request>(&self.buffer[..packet.len]);
        let answer = match request {
            // Its client has given up, and assumes that nothing was changed.
            Ok(Request::Create(_) | Request::SetLimits { .. }) if seqpacket::hung_up(connection.socket.as_fd()) => {
                self.connections.remove(&number);
                return;
            }
            Ok(request) => self.handle(number, request),
            Err(error) => Some(Err(failure("read request", error))),
        };
        match answer {
            Some(answer) => {
                let answer = answer.unwrap_or_else(|error: Failure| Answer::plain(Reply::Error(error)));
                self.answer(number, answer);
            }
            None => {
                if let Some(connection) = self.connections.get_mut(&number) {
                    connection.waiting = true;
                }
            }
        }
    }

    /// `None`: the reply comes later.
    fn handle(&mut self, number: Waiter, request: Request) -> Option<Result<Answer, Failure>> {
        match request {
            Request::Hello => Some(Ok(Answer::plain(Reply::Hello {
                protocol: PROTOCOL,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
            }))),
            Request::Create(_) if self.stopping.is_some() => Some(Err(failure("create", "the launcher is stopping"))),
            Request::Create(create) => {
                let made = self.sandboxes.create(&create);
                match &made {
                    Ok(_) => tracing::info!(ASH_SESSION = %create.id, ASH_TENANT = %create.tenant, "created"),
                    Err(error) => {
                        tracing::warn!(ASH_SESSION = %create.id, ASH_TENANT = %create.tenant, %error, "not created")
                    }
                }
                Some(made)
            }
            Request::Attach { id } => Some(self.sandboxes.attach(id)),
            Request::SetLimits { id, limits } => Some(self.sandboxes.set_limits(id, &limits)),
            Request::Reclaim { id } => Some(self.sandboxes.reclaim(id)),
            Request::Victims { id } => Some(self.sandboxes.victims(id)),
            Request::Held { id } => self.sandboxes.begin_hold(id, number).err().map(Err),
            Request::List { after } => Some(Ok(self.sandboxes.list(after))),
            Request::Destroy { id } => {
                let now = self.sandboxes.begin_end(id, Some(number))?;
                Some(now.map(|()| Answer::plain(Reply::Done)))
            }
            Request::Shutdown => {
                self.stop(Some(number));
                None
            }
        }
    }

    fn held(&mut self, waiter: Waiter) {
        if let Some(held) = self.sandboxes.held(waiter) {
            self.answer(waiter, Answer::plain(held.unwrap_or_else(Reply::Error)));
        }
    }

    /// Sends a reply. A client that does not read it is disconnected.
    fn answer(&mut self, number: Waiter, answer: Answer) {
        let Some(connection) = self.connections.get_mut(&number) else { return };
        connection.waiting = false;
        if let Err(error) = send(connection.socket.as_fd(), answer) {
            tracing::warn!(%error, "a client did not read its reply");
            self.connections.remove(&number);
        }
    }
}

fn send(socket: BorrowedFd<'_>, answer: Answer) -> io::Result<()> {
    let bytes = serde_json::to_vec(&answer.reply)?;
    let fds: Vec<BorrowedFd<'_>> = answer.fds.iter().map(AsFd::as_fd).collect();
    seqpacket::send(socket, &bytes, &fds)
}
