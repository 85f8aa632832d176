//! The gateway's end of the control socket.
//!
//! The socket is created under its own name and renamed into place, so that a new gateway takes the
//! path over without a moment in which no process listens. A gateway removes the path at its end
//! only if it still belongs to it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{SockType, getsockopt, sockopt};
use nix::unistd::Uid;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::ledger::Marks;
use super::registry::Registry;
use ash_kernel::seqpacket::{self, Access};
use ash_observe::events::OncePerMinute;
use ash_protocol::gateway::{MAX_PACKET, Reply, Request, SOCKET, SessionUsage};
use ash_protocol::packets::PacketSocket;

/// Limits log lines: any user of the host can connect any number of times.
static STRANGER: OncePerMinute = OncePerMinute::new();

/// Concurrent connections: ashd has one, ashctl and a successor may have one each. More wait in the
/// kernel's queue.
const MAX_CONNECTIONS: usize = 16;

/// The socket, and the path to remove with it.
#[derive(Debug)]
pub struct ControlSocket {
    fd: OwnedFd,
    /// The path and its inode, if this process created it.
    made: Option<(PathBuf, u64)>,
}

impl ControlSocket {
    /// Creates `<run dir>/gateway.sock`. Any process can connect; [`Peers`] decides who is served.
    ///
    /// # Errors
    /// The path and the cause.
    pub fn bind(run_dir: &Path) -> io::Result<Self> {
        let path = run_dir.join(SOCKET);
        let name = format!("{SOCKET}.{}", std::process::id());
        let own = run_dir.join(&name);
        let named = |why: io::Error| io::Error::new(why.kind(), format!("{}: {why}", path.display()));
        let _ = std::fs::remove_file(&own);
        let dir = std::fs::File::open(run_dir).map_err(named)?;
        let access = Access { mode: 0o666, uid: None, gid: None };
        let fd = seqpacket::listen_in(dir.as_fd(), &name, access).map_err(named)?;
        let placed =
            std::fs::symlink_metadata(&own).and_then(|metadata| std::fs::rename(&own, &path).map(|()| metadata.ino()));
        match placed {
            Ok(inode) => Ok(Self { fd, made: Some((path, inode)) }),
            Err(why) => {
                let _ = std::fs::remove_file(&own);
                Err(named(why))
            }
        }
    }

    /// Takes a socket that systemd created and keeps. Connections wait in it while no gateway runs,
    /// and systemd owns its path.
    ///
    /// # Errors
    /// It is not a listening packet socket.
    pub fn inherited(fd: OwnedFd) -> io::Result<Self> {
        let kind = getsockopt(&fd, sockopt::SockType)?;
        if kind != SockType::SeqPacket || !getsockopt(&fd, sockopt::AcceptConn)? {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a listening SOCK_SEQPACKET socket"));
        }
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self { fd, made: None })
    }

    /// A descriptor of the socket for a successor, if the socket outlives this process.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn lasting(&self) -> io::Result<Option<OwnedFd>> {
        self.made.is_none().then(|| self.fd.try_clone()).transpose()
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let Some((path, inode)) = &self.made else { return };
        if std::fs::metadata(path).is_ok_and(|metadata| metadata.ino() == *inode) {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Who is served on the control socket, by `SO_PEERCRED`: ashd's user, the gateway's own (its
/// successor), and root.
#[derive(Clone, Copy, Debug)]
pub struct Peers {
    pub client: Uid,
}

impl Peers {
    fn hears(self, uid: u32) -> bool {
        uid == self.client.as_raw() || uid == Uid::effective().as_raw() || uid == 0
    }
}

/// Serves until `stop` is cancelled; a `Shutdown` request cancels it too.
///
/// # Errors
/// The socket cannot be polled.
pub async fn serve(
    socket: ControlSocket,
    peers: Peers,
    registry: Arc<Registry>,
    stop: CancellationToken,
) -> io::Result<()> {
    let listener = PacketSocket::new(socket.fd.try_clone()?)?;
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let next = async {
            let permit = Arc::clone(&connections).acquire_owned().await;
            let accepted = listener.accept().await;
            (accepted, permit)
        };
        let (accepted, permit) = tokio::select! {
            next = next => next,
            () = stop.cancelled() => return Ok(()),
        };
        let fd = match accepted {
            Ok(fd) => fd,
            Err(why) => {
                tracing::warn!(%why, "control socket: accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        match seqpacket::peer(fd.as_fd()) {
            Ok(peer) if peers.hears(peer.uid) => {
                let (registry, stop) = (Arc::clone(&registry), stop.clone());
                tokio::spawn(async move {
                    let ended = stop.clone();
                    tokio::select! {
                        over = connection(fd, &registry, &stop) => {
                            if let Err(why) = over {
                                tracing::warn!(%why, "control connection closed");
                            }
                        }
                        () = ended.cancelled() => {}
                    }
                    drop(permit);
                });
            }
            Ok(peer) if STRANGER.now() => {
                tracing::warn!(uid = peer.uid, pid = peer.pid, "control connection refused: not ashd's user");
            }
            Ok(_) => {}
            Err(why) => tracing::debug!(%why, "control connection refused: no credentials"),
        }
    }
}

async fn connection(fd: OwnedFd, registry: &Arc<Registry>, stop: &CancellationToken) -> io::Result<()> {
    let socket = PacketSocket::new(fd)?;
    let mut buffer = vec![0; MAX_PACKET];
    loop {
        let packet = socket.recv(&mut buffer).await?;
        if packet.len == 0 {
            return Ok(());
        }
        // A request may hold a tenant's key: an invalid one is not echoed.
        let request = serde_json::from_slice::<Request>(&buffer[..packet.len]);
        buffer[..packet.len].fill(0);
        let shutdown = matches!(request, Ok(Request::Shutdown));
        let (reply, file) = match request {
            Ok(Request::Collect { marks }) if packet.fds.is_empty() => collect(registry, marks).await,
            Ok(request) => answer(request, packet.fds, registry),
            Err(why) => (refusal(format!("invalid request ({:?} at column {})", why.classify(), why.column())), None),
        };
        let bytes = serde_json::to_vec(&reply)?;
        let files: Vec<_> = file.iter().map(AsFd::as_fd).collect();
        let sent = socket.send(&bytes, &files).await;
        if shutdown {
            // The client may not have waited for the answer: a successor that takes over does not.
            tracing::info!("shutdown requested");
            stop.cancel();
            return Ok(());
        }
        sent?;
    }
}

fn refusal(message: String) -> Reply {
    Reply::Error { message }
}

fn answer(request: Request, mut fds: Vec<OwnedFd>, registry: &Arc<Registry>) -> (Reply, Option<OwnedFd>) {
    let wanted = usize::from(matches!(request, Request::Register(_)));
    if fds.len() != wanted {
        return (refusal(format!("this request needs {wanted} descriptors, got {}", fds.len())), None);
    }
    let reply = match request {
        Request::Hello => Reply::Hello {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            upstream: registry.model.to_string(),
        },
        Request::Register(register) => {
            let session = register.session;
            let listener = fds.pop().expect("counted above");
            match registry.register(register, listener) {
                Ok(()) => {
                    tracing::info!(ASH_SESSION = %session, "registered");
                    Reply::Done
                }
                Err(why) => refusal(why),
            }
        }
        Request::Unregister { session } => {
            registry.unregister(session);
            tracing::info!(ASH_SESSION = %session, "unregistered");
            Reply::Done
        }
        Request::Windows { open, closed } => {
            registry.windows(&open, true);
            registry.windows(&closed, false);
            Reply::Done
        }
        Request::Usage => return usage(registry.usage()),
        Request::Shutdown => Reply::Done,
        // `collect` answers it when it has no descriptors, as required.
        Request::Collect { .. } => refusal("this request needs 0 descriptors".to_owned()),
    };
    (reply, None)
}

/// Usage after `marks`, in a file. Reads and removes files without delaying other requests.
async fn collect(registry: &Arc<Registry>, marks: Marks) -> (Reply, Option<OwnedFd>) {
    let Some(ledger) = registry.ledger.clone() else {
        return (refusal("this gateway keeps no ledger".to_owned()), None);
    };
    let read = tokio::task::spawn_blocking(move || {
        let collected = ledger.collect(&marks).map_err(|why| why.to_string())?;
        let bytes = serde_json::to_vec(&collected).map_err(|why| why.to_string())?;
        seqpacket::sealed_memfd("gateway-ledger", &bytes).map_err(|why| why.to_string())
    });
    match read.await.map_err(|why| why.to_string()).and_then(|read| read) {
        Ok(file) => (Reply::Collected { refused: registry.refused.snapshot() }, Some(file)),
        Err(why) => (refusal(format!("cannot read the ledger: {why}")), None),
    }
}

/// In the packet if it fits, else in a file.
fn usage(sessions: Vec<SessionUsage>) -> (Reply, Option<OwnedFd>) {
    // A row has about 180 bytes with small counts and at most 270.
    if sessions.len() * 270 + 64 <= MAX_PACKET {
        return (Reply::Usage { sessions }, None);
    }
    let bytes = serde_json::to_vec(&sessions).expect("numbers and ids serialise");
    match seqpacket::sealed_memfd("gateway-usage", &bytes) {
        Ok(file) => (Reply::UsageFile, Some(file)),
        Err(why) => (refusal(format!("cannot send the usage of {} sessions: {why}", sessions.len())), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_goes_in_a_packet_or_in_a_file() {
        let row = SessionUsage {
            session: uuid::Uuid::max(),
            requests: u64::MAX,
            input_tokens: u64::MAX,
            output_tokens: u64::MAX,
            cache_creation_tokens: u64::MAX,
            cache_read_tokens: u64::MAX,
        };
        let most = (MAX_PACKET - 64) / 270;
        let (reply, file) = usage(vec![row.clone(); most]);
        assert!(file.is_none() && serde_json::to_vec(&reply).unwrap().len() <= MAX_PACKET);
        let (reply, file) = usage(vec![row.clone(); 10_000]);
        assert!(matches!(reply, Reply::UsageFile));
        let bytes = seqpacket::read_all(file.unwrap().as_fd(), ash_protocol::gateway::MAX_USAGE).unwrap();
        assert_eq!(serde_json::from_slice::<Vec<SessionUsage>>(&bytes).unwrap(), vec![row; 10_000]);
    }

    #[test]
    fn the_path_is_taken_over_and_left_to_the_successor() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(SOCKET);
        let old = ControlSocket::bind(directory.path()).unwrap();
        let new = ControlSocket::bind(directory.path()).unwrap();
        drop(old);
        assert!(path.exists(), "the old one keeps the new one's path");
        drop(new);
        assert!(!path.exists());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "nothing is left");
    }
}
