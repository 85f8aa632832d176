//! Processes by descriptor: signals and waits cannot hit a later process with the same pid.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::process::{Signal, WaitIdOptions, pidfd_send_signal};

/// Sends SIGKILL. A process that has ended is no error.
pub fn kill(pidfd: BorrowedFd<'_>) {
    pidfd_send_signal(pidfd, Signal::KILL).ok();
}

/// [`kill`] for a child, and waits for it.
pub fn kill_and_reap(pidfd: BorrowedFd<'_>) {
    kill(pidfd);
    while let Err(rustix::io::Errno::INTR) =
        rustix::process::waitid(rustix::process::WaitId::PidFd(pidfd), WaitIdOptions::EXITED)
    {}
}

/// Waits until the descriptor is readable (a pidfd: until the process has ended), at most `within`.
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
