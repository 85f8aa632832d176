//! Who is charged for what a user namespace uses.
//!
//! The kernel counts inotify instances and watches, namespaces, queued signals, POSIX timers, bytes of message queues, locked shared
//! memory and processes for each user *in each user namespace*, and once more for the **owner** of that namespace in the one above it:
//! the effective uid of the process that made it (user_namespaces(7), `kernel/ucount.c`). Namespaces made by root all draw on root's own
//! quota of the host. So a sandbox's namespace is made under a uid of its own.
//!
//! ```text
//!   sandbox A: uid 1000 --+                           sandbox B: uid 1000 --+
//!              uid  999 --+-> owner: init's uid of A             uid  999 --+-> owner: init's uid of B      root: its own processes alone
//! ```

use std::io;

use nix::unistd::{Uid, setfsuid, setresuid};
use rustix::process::{DumpableBehavior, dumpable_behavior, set_dumpable_behavior};
use rustix::thread::{CapabilitySets, capabilities, set_capabilities};

use super::clone::Side;

/// "Leave as it is" in setresuid(2).
const KEEP: Uid = Uid::from_raw(u32::MAX);
const ROOT: Uid = Uid::from_raw(0);

/// Calls `clone` with `owner` as the effective uid. Everything else stays: the real and the saved uid (so no process of that uid can
/// signal this one), the uid that file permissions are checked with, and the capabilities in effect.
///
/// The child starts with `owner` as its effective uid and without a dump, so that its files in /proc belong to root until it has
/// given up what it does not need.
///
/// # Errors
/// Those of `clone`, and `EPERM` without `CAP_SETUID`. This process is as it was before.
///
/// # Panics
/// When root's effective uid, or the capabilities, cannot be taken back: no request may be served in that state.
pub fn clone_as(owner: u32, clone: impl FnOnce() -> io::Result<Side>) -> io::Result<Side> {
    let before = capabilities(None)?;
    let dumpable = dumpable_behavior()?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let outcome = become_owner(Uid::from_raw(owner), before).and_then(|()| clone());
    if !matches!(outcome, Ok(Side::Child(_))) {
        restore(before, dumpable).expect("the launcher takes back its own uid and capabilities");
    }
    outcome
}

fn become_owner(owner: Uid, before: CapabilitySets) -> io::Result<()> {
    setresuid(KEEP, owner, KEEP)?;
    // setresuid(2) changes it as well. The group's directory and the new process's maps are root's.
    setfsuid(ROOT);
    // setfsuid(2) tells failure by the old value alone.
    if setfsuid(KEEP) != ROOT {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    // Leaving uid 0 takes all capabilities out of effect, and coming back puts all permitted ones into it (capabilities(7)).
    Ok(set_capabilities(None, before)?)
}

fn restore(before: CapabilitySets, dumpable: DumpableBehavior) -> io::Result<()> {
    setresuid(KEEP, ROOT, KEEP)?;
    set_capabilities(None, before)?;
    Ok(set_dumpable_behavior(dumpable)?)
}

/// The owner of this process's user namespace, as its own ids see it (ioctl_ns(2)); 65534 for one that has no id in it, root included.
///
/// # Errors
/// What opening `/proc/self/ns/user` and the ioctl answer.
pub fn of_this_namespace() -> io::Result<u32> {
    /// `_IO(0xb7, 4)`.
    const NS_GET_OWNER_UID: u64 = 0xb704;
    let namespace = std::fs::File::open("/proc/self/ns/user")?;
    let mut owner: libc::uid_t = 0;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&namespace);
    // SAFETY: the request writes one uid_t, which outlives the call.
    let done = unsafe { libc::ioctl(fd, NS_GET_OWNER_UID as _, &raw mut owner) };
    if done == 0 { Ok(owner) } else { Err(io::Error::last_os_error()) }
}
