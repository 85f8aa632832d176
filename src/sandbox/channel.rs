//! A packet socket in tokio: [`ash_kernel::seqpacket`] with readiness.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use ash_kernel::seqpacket;
use ash_kernel::watch::watch;
use ash_protocol::launcher::MAX_PACKET;

/// One connection. Sends and receives whole packets; both may happen concurrently.
#[derive(Debug)]
pub(super) struct Channel {
    socket: AsyncFd<OwnedFd>,
}

impl Channel {
    /// Connects to `name` in `directory`, through a descriptor of the directory: a socket address
    /// holds 107 bytes, and the run directory's path may be longer.
    ///
    /// # Errors
    /// Those of open(2) and connect(2).
    pub(super) fn connect(directory: &Path, name: &str) -> io::Result<Self> {
        let dir = rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()));
        Self::new(seqpacket::connect(&path, true)?)
    }

    /// # Errors
    /// tokio cannot poll it.
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self { socket: watch(socket, Interest::READABLE | Interest::WRITABLE)? })
    }

    /// # Errors
    /// Those of [`seqpacket::send`], except `WouldBlock`, on which it waits.
    pub(super) async fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.socket.async_io(Interest::WRITABLE, |socket| seqpacket::send(socket.as_fd(), bytes, fds)).await
    }

    /// The next packet; `None` when the peer has closed. Cancel-safe.
    ///
    /// # Errors
    /// Those of [`seqpacket::recv`], except `WouldBlock`, on which it waits.
    pub(super) async fn recv(&self) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
        let read = |socket: &OwnedFd| {
            let mut buffer = vec![0; MAX_PACKET];
            let packet = seqpacket::recv(socket.as_fd(), &mut buffer)?;
            buffer.truncate(packet.len);
            Ok((buffer, packet.fds))
        };
        let received = match self.socket.async_io(Interest::READABLE, read).await {
            // The peer closed with our packet unread: the kernel reports that once, before the
            // peer's last packets, which contain the reason.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                self.socket.async_io(Interest::READABLE, read).await
            }
            received => received,
        };
        let (bytes, fds) = received?;
        Ok((!bytes.is_empty()).then_some((bytes, fds)))
    }
}
