//! System calls: [`ALLOWED`] by group with the reason, [`ANSWERED`] without execution, [`REFUSED`]
//! by name or by argument. All others return `ENOSYS`, as on an older kernel, and programs use
//! their fallback. Among them are io_uring, clone3 (a filter cannot read its flags; the C library
//! then uses clone, which is checked below) and asynchronous I/O (`io_setup` and related calls: its
//! events are one quota of the whole machine, fs.aio-max-nr. InnoDB and nginx then use threads or
//! plain reads, and glibc's aio(7) does not use it).

use ash_kernel::seccomp::{Answer, Arg, Refusal};
use ash_kernel::syscalls::{BASE, BESIDE_INTERNET, BESIDE_UNIX, Group, HANDLES, MACHINE, NAMESPACES, PORTS, TERMINALS};
use libc as sys;

/// System calls that return `EPERM`, always or with certain arguments.
#[derive(Clone, Copy, Debug)]
pub struct RefusedGroup {
    pub why: &'static str,
    pub calls: &'static [i64],
    /// Alternatives: refused if all comparisons of one alternative match. Empty: always.
    pub when: &'static [&'static [Arg]],
}

impl RefusedGroup {
    pub fn refusals(&self) -> Vec<Refusal<'static>> {
        const ALWAYS: &[&[Arg]] = &[&[]];
        let when = if self.when.is_empty() { ALWAYS } else { self.when };
        self.calls.iter().flat_map(|call| when.iter().map(|args| (*call, *args))).collect()
    }
}

pub const ALLOWED: &[&[Group]] = &[BASE, MORE];

/// The calls that agents' programs need in addition to [`BASE`].
#[rustfmt::skip]
const MORE: &[Group] = &[
    Group { why: "memory: allocators, JITs (bun, node, the JVM), the dynamic loader", calls: &[
        sys::SYS_mlockall, sys::SYS_munlockall, sys::SYS_pkey_alloc, sys::SYS_pkey_free, sys::SYS_pkey_mprotect,
        sys::SYS_process_madvise] },
    Group { why: "processes and threads", calls: &[
        sys::SYS_execve, sys::SYS_execveat, sys::SYS_setpgid, sys::SYS_setsid, sys::SYS_sched_setparam,
        sys::SYS_sched_setscheduler, sys::SYS_sched_getattr, sys::SYS_sched_setattr, sys::SYS_sched_rr_get_interval,
        sys::SYS_ioprio_get, sys::SYS_ioprio_set, sys::SYS_personality] },
    Group { why: "debuggers (gdb, strace) and sanitizers; landlock and the uids keep it within one command", calls: &[
        sys::SYS_ptrace, sys::SYS_process_vm_readv, sys::SYS_process_vm_writev] },
    Group { why: "identity: asked for by many programs, harmless without capabilities; init needs some to start commands", calls: &[
        sys::SYS_setuid, sys::SYS_setgid, sys::SYS_setreuid, sys::SYS_setregid, sys::SYS_setresuid, sys::SYS_setresgid,
        sys::SYS_setgroups, sys::SYS_setfsuid, sys::SYS_setfsgid] },
    Group { why: "System V and POSIX message passing within the sandbox's own ipc namespace: databases", calls: &[
        sys::SYS_shmget, sys::SYS_shmat, sys::SYS_shmdt, sys::SYS_shmctl, sys::SYS_semget, sys::SYS_semop,
        sys::SYS_semtimedop, sys::SYS_semctl, sys::SYS_msgget, sys::SYS_msgsnd, sys::SYS_msgrcv, sys::SYS_msgctl,
        sys::SYS_mq_open, sys::SYS_mq_unlink, sys::SYS_mq_timedsend, sys::SYS_mq_timedreceive, sys::SYS_mq_notify,
        sys::SYS_mq_getsetattr] },
    #[cfg(target_arch = "x86_64")]
    Group { why: "older forms of the calls above, still used by programs and C libraries on x86_64", calls: &[
        sys::SYS_futimesat, sys::SYS_mknod, sys::SYS_fork, sys::SYS_vfork, sys::SYS_pause, sys::SYS_alarm] },
];

/// Calls that succeed or fail without being executed: the call and the errno (0: success).
pub const ANSWERED: &[(&str, Answer)] = &[
    (
        "sync(2) writes dirty pages of all users to every disk, and cannot fail; fsync and fdatasync are executed",
        (sys::SYS_sync, 0),
    ),
    ("syncfs(2) does so for the whole file system, which holds every session", (sys::SYS_syncfs, 0)),
    // Also allowed, because init uses it to install its second filter.
    (
        "filters of a program's own: their machine code is outside of the memory limit, in net.core.bpf_jit_limit of the whole machine, \
        without which no sandbox can be made; EINVAL is what a kernel without filters says, and programs go on without",
        (sys::SYS_seccomp, libc::EINVAL as u16),
    ),
];

/// Matches AF_INET (2) and AF_INET6 (10).
const INTERNET: Arg = Arg::Masked(0, !8, libc::AF_INET as u32);
/// `SOCK_TYPE_MASK`: the other bits are SOCK_CLOEXEC and SOCK_NONBLOCK.
const TYPE: u32 = 0xf;

/// Everything except TCP streams and UDP datagrams. Other pairs reach the kernel's table of
/// protocols (SCTP, DCCP, MPTCP, UDPLITE, L2TP, SMC), which runs `modprobe` as root for each
/// missing one before it checks capabilities.
const PROTOCOLS: &[&[Arg]] = &[
    // Types 1 (SOCK_STREAM) and 2 (SOCK_DGRAM) are neither 0 nor 3 (SOCK_RAW), and have none of the
    // bits 4 and 8.
    &[INTERNET, Arg::Masked(1, TYPE, 0)],
    &[INTERNET, Arg::Masked(1, TYPE, libc::SOCK_RAW as u32)],
    &[INTERNET, Arg::Has(1, 4)],
    &[INTERNET, Arg::Has(1, 8)],
    &[INTERNET, Arg::Masked(1, TYPE, libc::SOCK_STREAM as u32), Arg::Not(2, 0), Arg::Not(2, libc::IPPROTO_TCP as u32)],
    &[INTERNET, Arg::Masked(1, TYPE, libc::SOCK_DGRAM as u32), Arg::Not(2, 0), Arg::Not(2, libc::IPPROTO_UDP as u32)],
    // The protocol PF_UNIX is the same as 0.
    &[Arg::Is(0, libc::AF_UNIX as u32), Arg::Not(2, 0), Arg::Not(2, libc::AF_UNIX as u32)],
];

/// Requests of ioctl(2) without a constant in `libc`.
mod request {
    pub const SIOCGIFVLAN: u32 = 0x8982;
    pub const SIOCSIFVLAN: u32 = 0x8983;
    pub const SIOCGIFBR: u32 = 0x8940;
    pub const SIOCSIFBR: u32 = 0x8941;
    pub const SIOCBRADDBR: u32 = 0x89a0;
    pub const SIOCBRDELBR: u32 = 0x89a1;
    /// `_IOC_TYPE`: the letter of a request, which identifies its driver.
    pub const TYPE: u32 = 0xff00;
    pub const BTRFS: u32 = 0x9400;
    pub const FICLONE: u32 = 0x4004_9409;
    pub const FICLONERANGE: u32 = 0x4020_940d;
    pub const FIDEDUPERANGE: u32 = 0xc018_9436;
    pub const EXT4: u32 = 0x6600;
    pub const FS_IOC_GETFLAGS: u32 = 0x8008_6601;
    pub const FS_IOC_SETFLAGS: u32 = 0x4008_6602;
    pub const FS_IOC_FIEMAP: u32 = 0xc020_660b;
    pub const XFS: u32 = 0x5800;
    pub const FS_IOC_FSGETXATTR: u32 = 0x801c_581f;
    pub const FS_IOC_FSSETXATTR: u32 = 0x401c_5820;
    /// `FS_IOC_GETFSUUID`, `FS_IOC_GETFSSYSFSPATH`.
    pub const FS_NAMES: u32 = 0x1500;
}

/// Options of setsockopt(2) and prctl(2) without a constant in `libc`.
mod option {
    pub const TCP_MD5SIG: u32 = 14;
    pub const TCP_ULP: u32 = 31;
    pub const TCP_MD5SIG_EXT: u32 = 32;
    pub const TCP_AO_ADD_KEY: u32 = 38;
    pub const TCP_AO_DEL_KEY: u32 = 39;
    pub const TCP_AO_INFO: u32 = 40;
    pub const UDP_ENCAP: u32 = 100;
    /// Of prctl(2).
    pub const PR_SCHED_CORE: u32 = 62;
    pub const IPV6_FLOWLABEL_MGR: u32 = 32;
    pub const SO_ATTACH_BPF: u32 = 50;
    pub const SO_ATTACH_REUSEPORT_CBPF: u32 = 51;
    pub const SO_ATTACH_REUSEPORT_EBPF: u32 = 52;
}

const fn socket_option(level: i32, name: u32) -> [Arg; 2] {
    [Arg::Is(1, level as u32), Arg::Is(2, name)]
}

#[rustfmt::skip]
pub const REFUSED: &[RefusedGroup] = &[
    RefusedGroup { why: "namespaces", calls: &[sys::SYS_clone], when: NAMESPACES },
    RefusedGroup { why: "namespaces, the other ways in", calls: &[sys::SYS_unshare, sys::SYS_setns], when: &[] },
    // NETLINK with protocol 0 (ROUTE) is allowed: getifaddrs(3), and so node's
    // os.networkInterfaces, uses it. The network namespace contains only lo, and changes need a
    // capability.
    RefusedGroup { why: "socket families beside UNIX, INET, INET6: packet, vsock, alg, bluetooth, and what comes next; netlink protocols beside \
        ROUTE: audit, kobject, netfilter, generic", calls: &[sys::SYS_socket], when: BESIDE_INTERNET },
    RefusedGroup { why: "types and protocols beside streams of TCP, datagrams of UDP and unix sockets", calls: &[sys::SYS_socket],
        when: PROTOCOLS },
    RefusedGroup { why: "pairs beside unix sockets: no other family has them, and the kernel finds that out last",
        calls: &[sys::SYS_socketpair], when: BESIDE_UNIX },
    RefusedGroup { why: "typing into a terminal on behalf of another, line disciplines", calls: &[sys::SYS_ioctl], when: TERMINALS },
    RefusedGroup { why: "bridges and VLANs: the kernel loads their modules before it looks at capabilities", calls: &[sys::SYS_ioctl],
        when: &[&[Arg::Is(1, request::SIOCGIFVLAN)], &[Arg::Is(1, request::SIOCSIFVLAN)], &[Arg::Is(1, request::SIOCGIFBR)],
            &[Arg::Is(1, request::SIOCSIFBR)], &[Arg::Is(1, request::SIOCBRADDBR)], &[Arg::Is(1, request::SIOCBRDELBR)]] },
    // By the letter of the file system, because each has its own requests: snapshots and subvolumes
    // of btrfs (which a disk watch does not see), encryption and verity with kernel keys and
    // ciphers, moved extents, the map of the whole disk (GETFSMAP), its UUID, label and device.
    // FICLONE and FIDEDUPERANGE are allowed: cp and git use them, and they reach only the session's
    // files. FS_IOC_SETFLAGS and FS_IOC_FSSETXATTR are allowed: privileged attributes (immutable,
    // append-only, project ids) need capabilities of the host.
    RefusedGroup { why: "requests of a file system beside clones, flags and extents of one file: code that no agent needs, and names of the host's disks",
        calls: &[sys::SYS_ioctl], when: &[
            &[Arg::Masked(1, request::TYPE, request::BTRFS), Arg::Not(1, request::FICLONE), Arg::Not(1, request::FICLONERANGE),
                Arg::Not(1, request::FIDEDUPERANGE)],
            &[Arg::Masked(1, request::TYPE, request::EXT4), Arg::Not(1, request::FS_IOC_GETFLAGS), Arg::Not(1, request::FS_IOC_SETFLAGS),
                Arg::Not(1, request::FS_IOC_FIEMAP)],
            &[Arg::Masked(1, request::TYPE, request::XFS), Arg::Not(1, request::FS_IOC_FSGETXATTR), Arg::Not(1, request::FS_IOC_FSSETXATTR)],
            &[Arg::Masked(1, request::TYPE, request::FS_NAMES)]] },
    RefusedGroup { why: "filters of sockets: their machine code is outside of the memory limit, in one quota of the machine \
        (net.core.bpf_jit_limit) without which no seccomp filter, and so no sandbox, can be made", calls: &[sys::SYS_setsockopt],
        when: &[&socket_option(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER as u32), &socket_option(libc::SOL_SOCKET, option::SO_ATTACH_BPF),
            &socket_option(libc::SOL_SOCKET, option::SO_ATTACH_REUSEPORT_CBPF),
            &socket_option(libc::SOL_SOCKET, option::SO_ATTACH_REUSEPORT_EBPF)] },
    RefusedGroup { why: "seccomp filters by their older call", calls: &[sys::SYS_prctl],
        when: &[&[Arg::Is(0, libc::PR_SET_SECCOMP as u32)]] },
    RefusedGroup { why: "flow labels of IPv6: 4096 for the whole machine", calls: &[sys::SYS_setsockopt],
        when: &[&socket_option(libc::IPPROTO_IPV6, option::IPV6_FLOWLABEL_MGR)] },
    // TCP_CONGESTION is allowed: loading modules for it needs CAP_NET_ADMIN of the host. The tables
    // of iptables need CAP_NET_ADMIN in the namespace.
    RefusedGroup { why: "protocols on top of TCP (kernel TLS and others); TLS libraries then do it themselves", calls: &[sys::SYS_setsockopt],
        when: &[&socket_option(libc::IPPROTO_TCP, option::TCP_ULP)] },
    RefusedGroup { why: "signed TCP segments (routers use them) and IPsec in UDP: the kernel loads ciphers for them, TCP-AO by any name it is given",
        calls: &[sys::SYS_setsockopt],
        when: &[&socket_option(libc::IPPROTO_TCP, option::TCP_MD5SIG), &socket_option(libc::IPPROTO_TCP, option::TCP_MD5SIG_EXT),
            &socket_option(libc::IPPROTO_TCP, option::TCP_AO_ADD_KEY), &socket_option(libc::IPPROTO_TCP, option::TCP_AO_DEL_KEY),
            &socket_option(libc::IPPROTO_TCP, option::TCP_AO_INFO), &socket_option(libc::IPPROTO_UDP, option::UDP_ENCAP)] },
    RefusedGroup { why: "core scheduling: a thread with a cookie of its own keeps the other threads of its core idle, beyond its limit of processor time",
        calls: &[sys::SYS_prctl], when: &[&[Arg::Is(0, option::PR_SCHED_CORE)]] },
    RefusedGroup { why: "leases of files: whoever else opens the file, ashd included, waits up to fs.lease-break-time (45 s)",
        calls: &[sys::SYS_fcntl], when: &[&[Arg::Is(1, libc::F_SETLEASE as u32)]] },
    RefusedGroup { why: "personalities beside the default, the query and gdb's ADDR_NO_RANDOMIZE", calls: &[sys::SYS_personality],
        when: &[&[Arg::Not(0, 0), Arg::Not(0, u32::MAX), Arg::Not(0, libc::ADDR_NO_RANDOMIZE as u32)]] },
    RefusedGroup { why: "mounts and roots", when: &[], calls: &[
        sys::SYS_mount, sys::SYS_umount2, sys::SYS_pivot_root, sys::SYS_chroot, sys::SYS_open_tree,
        sys::SYS_move_mount, sys::SYS_fsopen, sys::SYS_fsconfig, sys::SYS_fsmount, sys::SYS_fspick,
        sys::SYS_mount_setattr] },
    RefusedGroup { why: "files by handle, which pass by the mount namespace", when: &[], calls: HANDLES },
    RefusedGroup { why: "kernel interfaces with a record of escalations", when: &[], calls: &[
        sys::SYS_bpf, sys::SYS_perf_event_open, sys::SYS_userfaultfd, sys::SYS_keyctl, sys::SYS_add_key,
        sys::SYS_request_key, sys::SYS_memfd_secret, sys::SYS_pidfd_getfd, sys::SYS_kcmp, sys::SYS_migrate_pages,
        sys::SYS_move_pages, sys::SYS_mbind, sys::SYS_set_mempolicy] },
    RefusedGroup { why: "the machine itself", when: &[], calls: MACHINE },
    RefusedGroup { why: "the host's name", when: &[], calls: &[sys::SYS_sethostname] },
    #[cfg(target_arch = "x86_64")]
    RefusedGroup { why: "ports and segments", when: &[], calls: PORTS },
];

#[cfg(test)]
mod tests {
    use super::*;
    use ash_kernel::syscalls::of;
    use std::collections::HashSet;

    #[test]
    fn no_call_is_listed_twice_or_on_both_lists() {
        let mut seen = HashSet::new();
        for call in of(ALLOWED) {
            assert!(seen.insert(call), "system call {call} is listed twice");
        }
        for (why, (call, _)) in ANSWERED {
            assert!(REFUSED.iter().all(|group| !group.calls.contains(call)), "{call} is answered and refused: {why}");
        }
        for group in REFUSED.iter().filter(|group| group.when.is_empty()) {
            for call in group.calls {
                assert!(!seen.contains(call), "system call {call} is allowed and refused ({})", group.why);
            }
        }
        for group in REFUSED.iter().filter(|group| !group.when.is_empty()) {
            for call in group.calls {
                assert!(seen.contains(call), "a check of system call {call}, which is not allowed at all");
            }
        }
        for call in [sys::SYS_clone3, sys::SYS_io_uring_setup, sys::SYS_io_setup, sys::SYS_io_submit] {
            assert!(!seen.contains(&call), "system call {call} must answer ENOSYS");
        }
    }

    #[test]
    fn the_filters_fit_the_kernels_bound() {
        let filters = crate::policy::Policies::compile().unwrap().seccomp;
        assert!((200..4096).contains(&filters.instructions()), "{}", filters.instructions());
    }
}
