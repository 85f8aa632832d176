//! Sets the user that the kernel charges for the resources of a user namespace.
//!
//! The kernel counts inotify instances and watches, namespaces, queued signals, POSIX timers, bytes
//! of message queues, locked shared memory and processes for each user *in each user namespace*.
//! It also charges the **owner** of the namespace in the parent namespace: the effective uid of its
//! creator (user_namespaces(7), `kernel/ucount.c`). Namespaces created by root would all use root's
//! quota of the host. So each sandbox's namespace is created under its own uid.
//!
//! ```text
//!   sandbox A: uids 1000, 999 --> owner: init's uid of A
//!   sandbox B: uids 1000, 999 --> owner: init's uid of B        root: its own processes only
//! ```

use std::io;

use nix::unistd::{Uid, setfsuid, setresuid};
use rustix::process::{DumpableBehavior, dumpable_behavior, set_dumpable_behavior};
use rustix::thread::{CapabilitySets, capabilities, set_capabilities};

use super::clone::Side;

/// "Leave as it is" in setresuid(2).
const KEEP: Uid = Uid::from_raw(u32::MAX);
const ROOT: Uid = Uid::from_raw(0);

/// Calls `clone` with `owner` as the effective uid. The real and saved uid (so that no process of
/// `owner` can signal this one), the uid for file permissions and the effective capabilities stay.
///
/// The child starts with `owner` as its effective uid and not dumpable, so that its files in /proc
/// belong to root until it has dropped its privileges.
///
/// # Errors
/// As for `clone`, and `EPERM` without `CAP_SETUID`. This process is then unchanged.
///
/// # Panics
/// Root's effective uid or the capabilities cannot be restored. No request may be served in that
/// state.
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
    // setresuid(2) changes it as well. The group's directory and the new process's maps belong to
    // root.
    setfsuid(ROOT);
    // setfsuid(2) reports failure only by the old value.
    if setfsuid(KEEP) != ROOT {
        return Err(io::Error::from_raw_os_error(libc::EPERM));
    }
    // Leaving uid 0 clears the effective capabilities, and returning makes all permitted ones
    // effective (capabilities(7)).
    Ok(set_capabilities(None, before)?)
}

fn restore(before: CapabilitySets, dumpable: DumpableBehavior) -> io::Result<()> {
    setresuid(KEEP, ROOT, KEEP)?;
    set_capabilities(None, before)?;
    Ok(set_dumpable_behavior(dumpable)?)
}

/// The owner of this process's user namespace as seen inside it (ioctl_ns(2)). 65534 if the owner,
/// such as root, has no id inside.
///
/// # Errors
/// As for opening `/proc/self/ns/user` and the ioctl.
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
