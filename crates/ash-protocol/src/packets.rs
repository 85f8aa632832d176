//! A non-blocking packet socket for tokio, based on [`seqpacket`].

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use ash_kernel::seqpacket::{self, Packet};
use ash_kernel::watch::watch;

#[derive(Debug)]
pub struct PacketSocket(AsyncFd<OwnedFd>);

impl PacketSocket {
    /// Registers a non-blocking socket. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// As for epoll.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        watch(fd, Interest::READABLE | Interest::WRITABLE).map(Self)
    }

    pub async fn accept(&self) -> io::Result<OwnedFd> {
        self.0.async_io(Interest::READABLE, |fd| seqpacket::accept(fd.as_fd())).await
    }

    pub async fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.0.async_io(Interest::WRITABLE, |fd| seqpacket::send(fd.as_fd(), bytes, fds)).await
    }

    pub async fn recv(&self, buffer: &mut [u8]) -> io::Result<Packet> {
        self.0.async_io(Interest::READABLE, |fd| seqpacket::recv(fd.as_fd(), buffer)).await
    }
}
