//! Descriptors in tokio's reactor.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor that the result owns. Must be called inside a tokio runtime.
///
/// # Errors
/// As for epoll_ctl(2): `EPERM` for a file that cannot be polled.
pub fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, is closed by no one else, and keeps its number until the
    // `AsyncFd` that owns it is dropped. No reference that could replace it is returned (callers
    // only borrow it).
    let watched = unsafe { AsyncFd::register_with_interest(fd, interest) };
    watched.map_err(|error| error.into_parts().1)
}
