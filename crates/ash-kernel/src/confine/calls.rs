//! System calls of the daemons, as data: [`COMMON`] and additions for one daemon, refusals by
//! argument ([`refused`]), and [`NEVER`] for the launcher.
//!
//! The lists are wide for calls that are harmless without capabilities, because a library update
//! may need them. They are narrow for calls that lead out: other socket families, other programs,
//! namespaces, the machine.

use libc as sys;

use crate::seccomp::Refusal;
use crate::syscalls::{BASE, BESIDE_INTERNET, BESIDE_UNIX, Group, HANDLES, MACHINE, NAMESPACES, PORTS, TERMINALS};

/// ashd and the gateway.
pub const COMMON: &[&[Group]] =
    &[BASE, &[Group { why: "a session's files and the store on the disk", calls: &[sys::SYS_syncfs] }]];

/// The gateway starts its successor. ashd starts no programs.
#[rustfmt::skip]
pub const SUCCESSOR: &[Group] = &[
    Group { why: "the gateway's own program again", calls: &[sys::SYS_execve, sys::SYS_setpgid, sys::SYS_setsid] },
    #[cfg(target_arch = "x86_64")]
    Group { why: "older forms of clone", calls: &[sys::SYS_vfork, sys::SYS_fork] },
];

#[derive(Clone, Copy, Debug)]
pub enum Sockets {
    Unix,
    Internet,
}

pub fn refused(sockets: Sockets) -> Vec<Refusal<'static>> {
    let families = match sockets {
        // ashd has no access to a network: it accepts from existing sockets only.
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

/// The calls that the launcher will never need, in this or the next version. The filter is
/// inherited by a new launcher program and by every sandbox, whose own filter is far stricter.
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
