//! Creates processes: clone3(2) into new namespaces and a cgroup, and plain fork.
//!
//! Both are sound only in a process with one thread. The child runs ordinary Rust code (it
//! allocates, formats, opens files), and a lock held by another thread would stay locked forever.
//! The launcher and a sandbox's init have one thread; both calls require a proof of it
//! ([`super::single`]).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::single::{Forked, SingleThreaded};

#[derive(Debug)]
pub enum Side {
    Child(Forked),
    Parent(Child),
}

/// A new child of this process, which the caller must reap.
#[derive(Debug)]
pub struct Child {
    /// In the caller's pid namespace.
    pub pid: i32,
    pub pidfd: OwnedFd,
}

/// The initial namespaces of a sandbox. The cgroup namespace is not included: its root is the group
/// of the *caller*. The child unshares it later, when it is in its own groups
/// (cgroup_namespaces(7)).
pub const SANDBOX_NAMESPACES: u64 = (libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWNET) as u64;

/// From clone3(2). The constant of the libc crate is an int, which is too small.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args` of clone3(2), the version with `cgroup` (88 bytes, Linux 5.7).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Forks with these `CLONE_NEW*` flags. The child starts in `cgroup` (a cgroup v2 directory). It
/// has a copy of this process, including descriptors, and ends with [`exit_now`] or when it drops
/// its [`Forked`].
///
/// # Errors
/// `EPERM` without the capability, `ENOSPC` at a `user.max_*_namespaces` limit,
/// `EBUSY`/`EOPNOTSUPP`/`EACCES`/`EBADF` if the group cannot take processes; see clone3(2). Also if
/// this process has several threads.
pub fn clone_into(one: &SingleThreaded, flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Side> {
    one.check()?;
    let mut pidfd: libc::c_int = -1;
    let into = if cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 };
    let args = CloneArgs {
        flags: flags | libc::CLONE_PIDFD as u64 | into,
        pidfd: &raw mut pidfd as u64,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: cgroup.map_or(0, |fd| fd.as_raw_fd() as u64),
        ..CloneArgs::default()
    };
    // SAFETY: without CLONE_VM and with stack 0 this is a fork: the child continues with a copy of
    // this memory. `args` and `pidfd` outlive the call. `one` proves that no other thread holds a
    // lock.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Side::Child(Forked::here())),
        // SAFETY: CLONE_PIDFD made the kernel store a new descriptor there, and nothing else owns
        // it.
        pid => Ok(Side::Parent(Child { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })),
    }
}

/// Ends this process at once, without destructors or exit handlers of the copied parent.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit(2) never returns and touches nothing.
    unsafe { libc::_exit(status) }
}

/// Forks. The child ends with [`exit_now`] or execve, or when it drops its [`Forked`].
///
/// (Not [`clone_into`]: init's own seccomp filter does not allow clone3.)
///
/// # Errors
/// As for fork(2); also if this process has several threads.
pub fn fork(one: &SingleThreaded) -> io::Result<Fork> {
    one.check()?;
    // SAFETY: this process has one thread, so the child's copy of its memory is consistent.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Child => Ok(Fork::Child(Forked::here())),
        nix::unistd::ForkResult::Parent { child } => Ok(Fork::Parent(child.as_raw())),
    }
}

#[derive(Debug)]
pub enum Fork {
    Child(Forked),
    /// The child's process id. The caller must reap it.
    Parent(i32),
}
