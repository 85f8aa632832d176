//! Attributes of this process: descriptors, signals, limits, keyring, and their verification.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal};

use super::single::Forked;

/// Closes every descriptor from 3 on except `keep`.
///
/// `_child` proves that no code of the parent runs any more, so owners in the copied memory do not
/// notice. Descriptors opened by the child must be in `keep` or forgotten.
pub fn close_all_but(_child: &Forked, keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut keep: Vec<u32> = keep.iter().map(|fd| fd.as_raw_fd() as u32).filter(|fd| *fd > 2).collect();
    keep.sort_unstable();
    let mut first = 3;
    for fd in keep {
        if fd > first {
            close_range(first, fd - 1, 0)?;
        }
        first = first.max(fd + 1);
    }
    close_range(first, u32::MAX, 0)
}

pub fn close_on_exec_from_3() -> io::Result<()> {
    close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
}

fn close_range(first: u32, last: u32, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: numbers only. Closed descriptors have no other user: `close_all_but` requires a
    // proof. Marking changes nothing now.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Resets every signal to its default and unblocks all. Rust ignores SIGPIPE, and execve would
/// inherit that.
pub fn default_signals() -> io::Result<()> {
    for signal in Signal::iterator().filter(|s| !matches!(s, Signal::SIGKILL | Signal::SIGSTOP)) {
        // SAFETY: the default disposition runs no code of this process.
        unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl)? };
    }
    nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    Ok(())
}

/// Sets soft and hard rlimits (getrlimit(2)) to these values, or to the hard limit if it is lower.
/// Nothing is raised.
///
/// # Errors
/// As for getrlimit(2) and setrlimit(2).
pub fn limit(values: &[(Resource, u64)]) -> io::Result<()> {
    for (resource, value) in values {
        let (_, hard) = getrlimit(*resource)?;
        let value = (*value).min(hard);
        setrlimit(*resource, value, value)?;
    }
    Ok(())
}

/// Protects `/proc/<pid>/{mem,environ,fd}` of this process, and disables ptrace(2) and core files
/// for others of the same user (prctl(2)). A change of the user resets it.
///
/// # Errors
/// Also if the kernel then still reports the process as dumpable.
pub fn not_dumpable() -> io::Result<()> {
    nix::sys::prctl::set_dumpable(false)?;
    if nix::sys::prctl::get_dumpable()? { Err(io::Error::other("the process is still dumpable")) } else { Ok(()) }
}

/// Disables core files for this process and its children.
pub fn no_cores() -> io::Result<()> {
    // systemd has already set this, and its filter refuses to set it.
    if getrlimit(Resource::RLIMIT_CORE)? != (0, 0) {
        setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    }
    Ok(())
}

/// Resets a raised priority: a higher priority of the launcher (`Nice=-5` in a drop-in, renice)
/// must not apply to agents. A lowered priority is kept.
pub fn ordinary_priority() -> io::Result<()> {
    if rustix::process::getpriority_process(None)? < 0 {
        rustix::process::setpriority_process(None, 0)?;
    }
    Ok(())
}

/// Replaces the inherited session keyring with a new one (session-keyring(7)).
pub fn new_session_keyring() -> io::Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: a null name requests an anonymous keyring.
    let id = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) };
    let error = io::Error::last_os_error();
    // A kernel without keys has none to inherit.
    if id >= 0 || error.raw_os_error() == Some(libc::ENOSYS) { Ok(()) } else { Err(error) }
}

/// Whether `status` (the text of /proc/self/status) shows a fully confined payload with this uid
/// and gid.
///
/// # Errors
/// The first line with a wrong value.
pub fn check_confined(status: &str, id: u32) -> Result<(), String> {
    let ids = format!("{id} {id} {id} {id}");
    let none = "0000000000000000";
    let wanted = [
        ("Uid", ids.as_str()),
        ("Gid", ids.as_str()),
        ("Groups", ""),
        ("CapInh", none),
        ("CapPrm", none),
        ("CapEff", none),
        ("CapBnd", none),
        ("CapAmb", none),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
    ];
    for (key, value) in wanted {
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        let found = line.map(|rest| rest.split_ascii_whitespace().collect::<Vec<_>>().join(" "));
        if found.as_deref() != Some(value) {
            return Err(format!("{key} is \"{}\" instead of \"{value}\"", found.unwrap_or_default()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFINED: &str = "Name:\tx\nUid:\t1000\t1000\t1000\t1000\nGid:\t1000\t1000\t1000\t1000\nGroups:\t \n\
        CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\n\
        CapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t2\n";

    #[test]
    fn each_missing_layer_is_named() {
        assert_eq!(check_confined(CONFINED, 1000), Ok(()));
        for (from, to, key) in [
            ("Uid:\t1000", "Uid:\t999", "Uid"),
            ("Groups:\t ", "Groups:\t4 ", "Groups"),
            ("CapBnd:\t0", "CapBnd:\t1", "CapBnd"),
            ("NoNewPrivs:\t1", "NoNewPrivs:\t0", "NoNewPrivs"),
            ("Seccomp:\t2", "Seccomp:\t0", "Seccomp"),
            ("CapEff", "Other", "CapEff"),
        ] {
            let error = check_confined(&CONFINED.replace(from, to), 1000).unwrap_err();
            assert!(error.starts_with(key), "{error}");
        }
    }
}
