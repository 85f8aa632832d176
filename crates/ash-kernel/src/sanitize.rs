//! Removes inherited state at the start of a privileged process.

use std::ffi::OsStr;
use std::io;

use super::inherited;
use super::single::{SingleThreaded, require_single_thread};

/// The number of sockets passed by systemd: 0 unless `LISTEN_PID` is this process.
pub fn passed_sockets(listen_pid: Option<&str>, listen_fds: Option<&str>, own_pid: u32) -> u32 {
    let for_us = listen_pid.and_then(|pid| pid.parse().ok()) == Some(own_pid);
    listen_fds.filter(|_| for_us).and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// Closes all inherited descriptors except stdin, stdout, stderr and the next `passed` ones, which
/// are systemd's sockets. An unprivileged process must not keep descriptors of root's shell or
/// container. Descriptors opened by this process or [claimed](super::inherited::claim) stay.
///
/// # Errors
/// This process has several threads, or /proc cannot be read.
pub fn close_inherited(passed: u32) -> io::Result<()> {
    let first = i32::try_from(passed).ok().and_then(|passed| passed.checked_add(3));
    let first = first.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "LISTEN_FDS"))?;
    inherited::close_strays(&require_single_thread()?, first)
}

/// The number of sockets passed by systemd, from the environment.
pub fn passed_here() -> u32 {
    let variable = |name| std::env::var(name).ok();
    passed_sockets(variable("LISTEN_PID").as_deref(), variable("LISTEN_FDS").as_deref(), std::process::id())
}

/// Removes every variable from the environment except `keep`.
///
/// # Errors
/// This process has several threads. Nothing was removed then.
pub fn clear_environment(one: &SingleThreaded, keep: &[&str]) -> io::Result<()> {
    one.check()?;
    let gone = std::env::vars_os().map(|(name, _)| name).filter(|name| !keep.iter().any(|k| OsStr::new(k) == name));
    for name in gone.collect::<Vec<_>>() {
        // SAFETY: this process has one thread, so nothing reads the environment concurrently.
        unsafe { std::env::remove_var(name) };
    }
    Ok(())
}

/// Sets a variable in this process's environment.
///
/// # Errors
/// This process has several threads. Nothing was set then.
pub fn set_variable(one: &SingleThreaded, name: &str, value: impl AsRef<OsStr>) -> io::Result<()> {
    one.check()?;
    // SAFETY: this process has one thread, so nothing reads the environment concurrently.
    unsafe { std::env::set_var(name, value) };
    Ok(())
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
