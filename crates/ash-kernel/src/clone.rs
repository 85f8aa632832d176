//! New processes: clone3(2) into fresh namespaces and a cgroup, and plain fork.
//!
//! Both are sound only in a process with one thread: the child runs ordinary Rust code (it allocates, formats, opens
//! files), and a lock that another thread held at that moment would stay locked in it for ever. The launcher and a
//! sandbox's init have one thread; both calls take a proof of it ([`super::single`]).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use super::single::{Forked, SingleThreaded};

/// Which side of a clone or fork this is.
#[derive(Debug)]
pub enum Side {
    Child(Forked),
    Parent(Child),
}

/// A new child of this process. It must be reaped by the caller.
#[derive(Debug)]
pub struct Child {
    /// In the caller's pid namespace.
    pub pid: i32,
    pub pidfd: OwnedFd,
}

/// The namespaces a sandbox is born into. The cgroup namespace is not among them: it takes the group of the *caller*
/// as its root, so it is unshared later, when the child sits in its own groups (cgroup_namespaces(7)).
pub const SANDBOX_NAMESPACES: u64 = (libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWNET) as u64;

/// clone3(2); the constant of the libc crate is an int, which it does not fit.
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

/// Forks with these `CLONE_NEW*` flags, and with `cgroup` (a cgroup v2 directory) as the child's group from its first
/// instruction. The child has a copy of this process, descriptors included, and ends with
/// [`exit_now`], or when it drops its [`Forked`].
///
/// # Errors
/// `EPERM` without the capability, `ENOSPC` at a `user.max_*_namespaces` limit, `EBUSY`/`EOPNOTSUPP`/`EACCES`/`EBADF`
/// where the group takes no processes; see clone3(2). Also when this process has several threads by now.
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
    // SAFETY: without CLONE_VM and with stack 0 this is a fork: the child goes on with a copy of this memory. `args`
    // and `pidfd` outlive the call. `one` says that no other thread holds a lock, which makes the copy usable.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Side::Child(Forked::here())),
        // SAFETY: CLONE_PIDFD made the kernel store a new descriptor there, and nobody else owns it.
        pid => Ok(Side::Parent(Child { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })),
    }
}

/// Ends this process at once: no destructor and no exit handler of the copied parent runs.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit(2) never returns and touches nothing.
    unsafe { libc::_exit(status) }
}

/// Forks. The child ends with [`exit_now`] or execve, or when it drops its [`Forked`].
///
/// (Not [`clone_into`]: init's own seccomp filter has no clone3.)
///
/// # Errors
/// What fork(2) answers; also when this process has several threads by now.
pub fn fork(one: &SingleThreaded) -> io::Result<Fork> {
    one.check()?;
    // SAFETY: this process has one thread, so the child's copy of its memory is consistent.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Child => Ok(Fork::Child(Forked::here())),
        nix::unistd::ForkResult::Parent { child } => Ok(Fork::Parent(child.as_raw())),
    }
}

/// Which side of a [`fork`] this is.
#[derive(Debug)]
pub enum Fork {
    Child(Forked),
    /// The child's process id. It must be reaped by the caller.
    Parent(i32),
}
