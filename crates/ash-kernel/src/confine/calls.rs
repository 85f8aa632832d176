//! System calls of the daemons, as data: [`COMMON`] and what one of them needs besides, [`REFUSED`] by their arguments, and for the
//! launcher [`NEVER`].
//!
//! The lists are wide where a call is harmless without capabilities, as a library may begin to use it with any update, and narrow
//! where a call leads out: other families of sockets, other programs, namespaces, the machine.

use libc as sys;

use crate::seccomp::Refusal;
use crate::syscalls::{BASE, BESIDE_INTERNET, BESIDE_UNIX, Group, HANDLES, MACHINE, NAMESPACES, PORTS, TERMINALS};

/// ashd and the gateway.
pub const COMMON: &[&[Group]] =
    &[BASE, &[Group { why: "a session's files and the store on the disk", calls: &[sys::SYS_syncfs] }]];

/// The gateway starts its successor; ashd starts nothing.
#[rustfmt::skip]
pub const SUCCESSOR: &[Group] = &[
    Group { why: "the gateway's own program again", calls: &[sys::SYS_execve, sys::SYS_setpgid, sys::SYS_setsid] },
    #[cfg(target_arch = "x86_64")]
    Group { why: "older forms of clone", calls: &[sys::SYS_vfork, sys::SYS_fork] },
];

/// Which sockets a daemon may make.
#[derive(Clone, Copy, Debug)]
pub enum Sockets {
    Unix,
    Internet,
}

/// The refusals by argument.
pub fn refused(sockets: Sockets) -> Vec<Refusal<'static>> {
    let families = match sockets {
        // ashd has no way out to a network: it accepts from sockets that were made before.
        Sockets::Unix => BESIDE_UNIX,
        Sockets::Internet => BESIDE_INTERNET,
    };
    let all = [
        (sys::SYS_clone, NAMESPACES),
        (sys::SYS_ioctl, TERMINALS),
        (sys::SYS_socket, families),
        (sys::SYS_socketpair, BESIDE_UNIX),
    ];
    all.into_iter().flat_map(|(call, when)| when.iter().map(move |args| (call, *args))).collect()
}

/// What the launcher will never need, in this version or the next: the filter is inherited by the program that is executed in its
/// place, and by every sandbox, whose own filter is far shorter.
#[rustfmt::skip]
pub const NEVER: &[Group] = &[
    Group { why: "the machine itself", calls: MACHINE },
    Group { why: "files by handle", calls: HANDLES },
    Group { why: "kernel interfaces with a record of escalations", calls: &[
        sys::SYS_bpf, sys::SYS_perf_event_open, sys::SYS_userfaultfd, sys::SYS_add_key, sys::SYS_request_key,
        sys::SYS_memfd_secret, sys::SYS_io_uring_setup, sys::SYS_io_uring_enter, sys::SYS_io_uring_register] },
    Group { why: "descriptors out of other processes: what it needs is sent to it", calls: &[sys::SYS_pidfd_getfd] },
    #[cfg(target_arch = "x86_64")]
    Group { why: "ports and segments", calls: PORTS },
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::syscalls::of;

    #[test]
    fn no_call_is_listed_twice_and_what_leads_out_not_at_all() {
        let mut seen = HashSet::new();
        for call in of(COMMON).into_iter().chain(of(&[SUCCESSOR])) {
            assert!(seen.insert(call), "system call {call} is listed twice");
        }
        for call in of(&[NEVER]) {
            assert!(!seen.contains(&call), "system call {call} is allowed to one and never needed by another");
        }
        for call in [
            sys::SYS_ptrace,
            sys::SYS_process_vm_readv,
            sys::SYS_mount,
            sys::SYS_unshare,
            sys::SYS_setns,
            sys::SYS_clone3,
            sys::SYS_chroot,
            sys::SYS_keyctl,
            sys::SYS_setresuid,
            sys::SYS_personality,
        ] {
            assert!(!seen.contains(&call), "system call {call}");
        }
        assert!(!of(COMMON).contains(&sys::SYS_execve), "ashd starts no programs");
        for (call, _) in refused(Sockets::Unix) {
            assert!(seen.contains(&call), "a check of system call {call}, which is not allowed at all");
        }
    }
}
