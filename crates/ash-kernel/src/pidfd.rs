//! Children by descriptor: a signal or a wait that cannot hit a later process of the same id.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::process::{Signal, WaitIdOptions, pidfd_send_signal};

/// Sends SIGKILL. One that is gone already is no error.
pub fn kill(pidfd: BorrowedFd<'_>) {
    pidfd_send_signal(pidfd, Signal::KILL).ok();
}

/// [`kill`], and, as its parent, waits for it.
pub fn kill_and_reap(pidfd: BorrowedFd<'_>) {
    kill(pidfd);
    while let Err(rustix::io::Errno::INTR) =
        rustix::process::waitid(rustix::process::WaitId::PidFd(pidfd), WaitIdOptions::EXITED)
    {}
}

/// Waits until the descriptor can be read (a pidfd: until the process ended), at most this long.
///
/// # Errors
/// `TimedOut`.
pub fn wait_readable(fd: BorrowedFd<'_>, within: Duration) -> io::Result<()> {
    let deadline = std::time::Instant::now() + within;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        let timeout = rustix::event::Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let mut fds = [rustix::event::PollFd::from_borrowed_fd(fd.as_fd(), rustix::event::PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
