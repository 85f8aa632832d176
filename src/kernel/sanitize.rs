//! What a privileged process does before it reads anything: nothing inherited stays by accident.

use std::ffi::OsStr;
use std::io;

/// Closes every descriptor from `first` on.
///
/// # Errors
/// What close_range(2) answers (`ENOSYS` before Linux 5.9).
pub fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: plain integers; called first thing in main, when no owner of such a descriptor exists in this process.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// How many sockets systemd passed to this process: 0 unless `LISTEN_PID` is its own id.
pub fn passed_sockets(listen_pid: Option<&str>, listen_fds: Option<&str>, own_pid: u32) -> u32 {
    let for_us = listen_pid.and_then(|pid| pid.parse().ok()) == Some(own_pid);
    listen_fds.filter(|_| for_us).and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// Removes every variable from the environment but these.
pub fn clear_environment(keep: &[&str]) {
    let gone = std::env::vars_os().map(|(name, _)| name).filter(|name| !keep.iter().any(|k| OsStr::new(k) == name));
    for name in gone.collect::<Vec<_>>() {
        // SAFETY: the launcher is single-threaded, so nobody reads the environment at the same time.
        unsafe { std::env::remove_var(name) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_only_taken_when_they_are_ours() {
        assert_eq!(passed_sockets(Some("7"), Some("1"), 7), 1);
        assert_eq!(passed_sockets(Some("8"), Some("1"), 7), 0);
        assert_eq!(passed_sockets(None, Some("1"), 7), 0);
        assert_eq!(passed_sockets(Some("7"), Some("x"), 7), 0);
    }
}
