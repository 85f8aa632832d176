//! System calls: [`ALLOWED`] by group with the reason, [`REFUSED`] by name. What is on neither list answers `ENOSYS`,
//! as an older kernel would, and programs fall back: among them io_uring and clone3 (whose flags a filter cannot read;
//! the C library then uses clone, which is checked below).

use crate::kernel::seccomp::{Arg, Refusal};
use libc as sys;

/// System calls that one kind of work needs.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    pub why: &'static str,
    pub calls: &'static [i64],
}

/// System calls that are refused with `EPERM`, always or with certain arguments.
#[derive(Clone, Copy, Debug)]
pub struct RefusedGroup {
    pub why: &'static str,
    pub calls: &'static [i64],
    /// Alternatives: refused when all comparisons of one of them hold. Empty: always.
    pub when: &'static [&'static [Arg]],
}

impl RefusedGroup {
    pub fn refusals(&self) -> Vec<Refusal<'static>> {
        const ALWAYS: &[&[Arg]] = &[&[]];
        let when = if self.when.is_empty() { ALWAYS } else { self.when };
        self.calls.iter().flat_map(|call| when.iter().map(|args| (*call, *args))).collect()
    }
}

#[rustfmt::skip]
pub const ALLOWED: &[Group] = &[
    Group { why: "files: everything that reads or writes", calls: &[
        sys::SYS_read, sys::SYS_write, sys::SYS_readv, sys::SYS_writev, sys::SYS_pread64, sys::SYS_pwrite64,
        sys::SYS_preadv, sys::SYS_pwritev, sys::SYS_preadv2, sys::SYS_pwritev2, sys::SYS_openat, sys::SYS_openat2,
        sys::SYS_close, sys::SYS_close_range, sys::SYS_lseek, sys::SYS_dup, sys::SYS_dup3, sys::SYS_fcntl,
        sys::SYS_ioctl, sys::SYS_flock, sys::SYS_fsync, sys::SYS_fdatasync, sys::SYS_sync_file_range, sys::SYS_sync,
        sys::SYS_syncfs, sys::SYS_fallocate, sys::SYS_truncate, sys::SYS_ftruncate, sys::SYS_fadvise64,
        sys::SYS_readahead, sys::SYS_sendfile, sys::SYS_splice, sys::SYS_tee, sys::SYS_vmsplice,
        sys::SYS_copy_file_range] },
    Group { why: "directories and attributes: shells, git, package managers, tar", calls: &[
        sys::SYS_newfstatat, sys::SYS_fstat, sys::SYS_statx, sys::SYS_statfs, sys::SYS_fstatfs, sys::SYS_faccessat,
        sys::SYS_faccessat2, sys::SYS_getdents64, sys::SYS_getcwd, sys::SYS_chdir, sys::SYS_fchdir, sys::SYS_mkdirat,
        sys::SYS_unlinkat, sys::SYS_renameat, sys::SYS_renameat2, sys::SYS_linkat, sys::SYS_symlinkat,
        sys::SYS_readlinkat, sys::SYS_fchmod, sys::SYS_fchmodat, sys::SYS_fchmodat2, sys::SYS_fchown,
        sys::SYS_fchownat, sys::SYS_utimensat, sys::SYS_umask, sys::SYS_mknodat, sys::SYS_getxattr,
        sys::SYS_lgetxattr, sys::SYS_fgetxattr, sys::SYS_setxattr, sys::SYS_lsetxattr, sys::SYS_fsetxattr,
        sys::SYS_listxattr, sys::SYS_llistxattr, sys::SYS_flistxattr, sys::SYS_removexattr, sys::SYS_lremovexattr,
        sys::SYS_fremovexattr, sys::SYS_inotify_init1, sys::SYS_inotify_add_watch, sys::SYS_inotify_rm_watch] },
    Group { why: "memory: allocators, JITs (bun, node, the JVM), the dynamic loader", calls: &[
        sys::SYS_mmap, sys::SYS_munmap, sys::SYS_mprotect, sys::SYS_mremap, sys::SYS_madvise, sys::SYS_msync,
        sys::SYS_mincore, sys::SYS_mlock, sys::SYS_mlock2, sys::SYS_munlock, sys::SYS_mlockall, sys::SYS_munlockall,
        sys::SYS_brk, sys::SYS_membarrier, sys::SYS_memfd_create, sys::SYS_pkey_alloc, sys::SYS_pkey_free,
        sys::SYS_pkey_mprotect, sys::SYS_get_mempolicy, sys::SYS_process_madvise, sys::SYS_mseal] },
    Group { why: "processes and threads", calls: &[
        sys::SYS_clone, sys::SYS_execve, sys::SYS_execveat, sys::SYS_exit, sys::SYS_exit_group, sys::SYS_wait4,
        sys::SYS_waitid, sys::SYS_getpid, sys::SYS_getppid, sys::SYS_gettid, sys::SYS_getpgid, sys::SYS_setpgid,
        sys::SYS_getsid, sys::SYS_setsid, sys::SYS_set_tid_address, sys::SYS_set_robust_list,
        sys::SYS_get_robust_list, sys::SYS_futex, sys::SYS_futex_waitv,
        sys::SYS_rseq, sys::SYS_prctl, sys::SYS_getrlimit, sys::SYS_setrlimit,
        sys::SYS_prlimit64, sys::SYS_getrusage, sys::SYS_times, sys::SYS_sysinfo, sys::SYS_uname, sys::SYS_getcpu,
        sys::SYS_sched_yield, sys::SYS_sched_getaffinity, sys::SYS_sched_setaffinity, sys::SYS_sched_getparam,
        sys::SYS_sched_setparam, sys::SYS_sched_getscheduler, sys::SYS_sched_setscheduler, sys::SYS_sched_getattr,
        sys::SYS_sched_setattr, sys::SYS_sched_get_priority_max, sys::SYS_sched_get_priority_min,
        sys::SYS_sched_rr_get_interval, sys::SYS_getpriority, sys::SYS_setpriority, sys::SYS_ioprio_get,
        sys::SYS_ioprio_set, sys::SYS_personality, sys::SYS_restart_syscall, sys::SYS_pidfd_open,
        sys::SYS_pidfd_send_signal] },
    Group { why: "debuggers (gdb, strace) and sanitizers; landlock and the uids keep it within one command", calls: &[
        sys::SYS_ptrace, sys::SYS_process_vm_readv, sys::SYS_process_vm_writev] },
    Group { why: "signals", calls: &[
        sys::SYS_rt_sigaction, sys::SYS_rt_sigprocmask, sys::SYS_rt_sigreturn, sys::SYS_rt_sigpending,
        sys::SYS_rt_sigsuspend, sys::SYS_rt_sigtimedwait, sys::SYS_rt_sigqueueinfo, sys::SYS_rt_tgsigqueueinfo,
        sys::SYS_sigaltstack, sys::SYS_kill, sys::SYS_tkill, sys::SYS_tgkill, sys::SYS_signalfd4] },
    Group { why: "identity: asked for by many programs, harmless without capabilities; init needs some to start commands", calls: &[
        sys::SYS_getuid, sys::SYS_geteuid, sys::SYS_getgid, sys::SYS_getegid, sys::SYS_getresuid, sys::SYS_getresgid,
        sys::SYS_getgroups, sys::SYS_setuid, sys::SYS_setgid, sys::SYS_setreuid, sys::SYS_setregid,
        sys::SYS_setresuid, sys::SYS_setresgid, sys::SYS_setgroups, sys::SYS_setfsuid, sys::SYS_setfsgid,
        sys::SYS_capget, sys::SYS_capset] },
    Group { why: "programs that confine themselves further; init confines its commands with them", calls: &[
        sys::SYS_seccomp, sys::SYS_landlock_create_ruleset, sys::SYS_landlock_add_rule,
        sys::SYS_landlock_restrict_self] },
    Group { why: "time", calls: &[
        sys::SYS_clock_gettime, sys::SYS_clock_getres, sys::SYS_clock_nanosleep, sys::SYS_nanosleep,
        sys::SYS_gettimeofday, sys::SYS_getitimer, sys::SYS_setitimer, sys::SYS_timer_create,
        sys::SYS_timer_settime, sys::SYS_timer_gettime, sys::SYS_timer_getoverrun, sys::SYS_timer_delete,
        sys::SYS_timerfd_create, sys::SYS_timerfd_settime, sys::SYS_timerfd_gettime] },
    Group { why: "event loops: bun, node, python's asyncio", calls: &[
        sys::SYS_epoll_create1, sys::SYS_epoll_ctl, sys::SYS_epoll_pwait, sys::SYS_epoll_pwait2, sys::SYS_ppoll,
        sys::SYS_pselect6, sys::SYS_eventfd2, sys::SYS_pipe2] },
    Group { why: "sockets: servers and clients on loopback, unix sockets; families are checked below", calls: &[
        sys::SYS_socket, sys::SYS_socketpair, sys::SYS_bind, sys::SYS_listen, sys::SYS_accept, sys::SYS_accept4,
        sys::SYS_connect, sys::SYS_getsockname, sys::SYS_getpeername, sys::SYS_setsockopt, sys::SYS_getsockopt,
        sys::SYS_sendto, sys::SYS_recvfrom, sys::SYS_sendmsg, sys::SYS_recvmsg, sys::SYS_sendmmsg,
        sys::SYS_recvmmsg, sys::SYS_shutdown] },
    Group { why: "System V and POSIX message passing within the sandbox's own ipc namespace: databases", calls: &[
        sys::SYS_shmget, sys::SYS_shmat, sys::SYS_shmdt, sys::SYS_shmctl, sys::SYS_semget, sys::SYS_semop,
        sys::SYS_semtimedop, sys::SYS_semctl, sys::SYS_msgget, sys::SYS_msgsnd, sys::SYS_msgrcv, sys::SYS_msgctl,
        sys::SYS_mq_open, sys::SYS_mq_unlink, sys::SYS_mq_timedsend, sys::SYS_mq_timedreceive, sys::SYS_mq_notify,
        sys::SYS_mq_getsetattr] },
    Group { why: "asynchronous file access of older databases", calls: &[
        sys::SYS_io_setup, sys::SYS_io_destroy, sys::SYS_io_submit, sys::SYS_io_cancel, sys::SYS_io_getevents] },
    Group { why: "randomness", calls: &[sys::SYS_getrandom] },
    #[cfg(target_arch = "x86_64")]
    Group { why: "older forms of the calls above, still used by programs and C libraries on x86_64", calls: &[
        sys::SYS_open, sys::SYS_creat, sys::SYS_stat, sys::SYS_lstat, sys::SYS_access, sys::SYS_mkdir,
        sys::SYS_rmdir, sys::SYS_unlink, sys::SYS_rename, sys::SYS_link, sys::SYS_symlink, sys::SYS_readlink,
        sys::SYS_chmod, sys::SYS_chown, sys::SYS_lchown, sys::SYS_utime, sys::SYS_utimes, sys::SYS_futimesat,
        sys::SYS_mknod, sys::SYS_getdents, sys::SYS_dup2, sys::SYS_pipe, sys::SYS_poll, sys::SYS_select,
        sys::SYS_epoll_create, sys::SYS_epoll_wait, sys::SYS_eventfd, sys::SYS_signalfd, sys::SYS_inotify_init,
        sys::SYS_fork, sys::SYS_vfork, sys::SYS_getpgrp, sys::SYS_pause, sys::SYS_alarm, sys::SYS_time,
        sys::SYS_arch_prctl] },
];

/// `CLONE_NEW*`: a namespace of its own would give a payload capabilities over it, and with them kernel code that no
/// capability-less process reaches.
const NAMESPACES: &[&[Arg]] = &[
    &[Arg::Has(0, libc::CLONE_NEWUSER as u32)],
    &[Arg::Has(0, libc::CLONE_NEWNS as u32)],
    &[Arg::Has(0, libc::CLONE_NEWPID as u32)],
    &[Arg::Has(0, libc::CLONE_NEWNET as u32)],
    &[Arg::Has(0, libc::CLONE_NEWIPC as u32)],
    &[Arg::Has(0, libc::CLONE_NEWUTS as u32)],
    &[Arg::Has(0, libc::CLONE_NEWCGROUP as u32)],
];

#[rustfmt::skip]
pub const REFUSED: &[RefusedGroup] = &[
    RefusedGroup { why: "namespaces", calls: &[sys::SYS_clone], when: NAMESPACES },
    RefusedGroup { why: "namespaces, the other ways in", calls: &[sys::SYS_unshare, sys::SYS_setns], when: &[] },
    // NETLINK with protocol 0 (ROUTE) stays: getifaddrs(3), and so node's os.networkInterfaces, asks it. The network
    // namespace holds lo alone, and changing that takes a capability.
    RefusedGroup { why: "socket families beside UNIX, INET, INET6: packet, vsock, alg, bluetooth, and what comes next",
        calls: &[sys::SYS_socket, sys::SYS_socketpair], when: &[&[
            Arg::Not(0, libc::AF_UNIX as u32), Arg::Not(0, libc::AF_INET as u32), Arg::Not(0, libc::AF_INET6 as u32),
            Arg::Not(0, libc::AF_NETLINK as u32)]] },
    RefusedGroup { why: "netlink protocols beside ROUTE: audit, kobject, netfilter, generic", calls: &[sys::SYS_socket],
        when: &[&[Arg::Is(0, libc::AF_NETLINK as u32), Arg::Not(2, libc::NETLINK_ROUTE as u32)]] },
    RefusedGroup { why: "typing into a terminal on behalf of another (TIOCSTI, TIOCLINUX)", calls: &[sys::SYS_ioctl],
        when: &[&[Arg::Is(1, libc::TIOCSTI as u32)], &[Arg::Is(1, libc::TIOCLINUX as u32)]] },
    RefusedGroup { why: "personalities beside the default, the query and gdb's ADDR_NO_RANDOMIZE", calls: &[sys::SYS_personality],
        when: &[&[Arg::Not(0, 0), Arg::Not(0, u32::MAX), Arg::Not(0, libc::ADDR_NO_RANDOMIZE as u32)]] },
    RefusedGroup { why: "mounts and roots", when: &[], calls: &[
        sys::SYS_mount, sys::SYS_umount2, sys::SYS_pivot_root, sys::SYS_chroot, sys::SYS_open_tree,
        sys::SYS_move_mount, sys::SYS_fsopen, sys::SYS_fsconfig, sys::SYS_fsmount, sys::SYS_fspick,
        sys::SYS_mount_setattr, sys::SYS_quotactl, sys::SYS_quotactl_fd, sys::SYS_swapon, sys::SYS_swapoff] },
    RefusedGroup { why: "files by handle, which pass by the mount namespace", when: &[], calls: &[
        sys::SYS_name_to_handle_at, sys::SYS_open_by_handle_at, sys::SYS_fanotify_init, sys::SYS_fanotify_mark] },
    RefusedGroup { why: "kernel interfaces with a record of escalations", when: &[], calls: &[
        sys::SYS_bpf, sys::SYS_perf_event_open, sys::SYS_userfaultfd, sys::SYS_keyctl, sys::SYS_add_key,
        sys::SYS_request_key, sys::SYS_memfd_secret, sys::SYS_pidfd_getfd, sys::SYS_kcmp, sys::SYS_migrate_pages,
        sys::SYS_move_pages, sys::SYS_mbind, sys::SYS_set_mempolicy] },
    RefusedGroup { why: "the machine itself", when: &[], calls: &[
        sys::SYS_reboot, sys::SYS_kexec_load, sys::SYS_kexec_file_load, sys::SYS_init_module,
        sys::SYS_finit_module, sys::SYS_delete_module, sys::SYS_syslog, sys::SYS_acct, sys::SYS_sethostname,
        sys::SYS_setdomainname, sys::SYS_settimeofday, sys::SYS_clock_settime, sys::SYS_clock_adjtime,
        sys::SYS_adjtimex, sys::SYS_vhangup, sys::SYS_nfsservctl] },
    #[cfg(target_arch = "x86_64")]
    RefusedGroup { why: "ports and segments", when: &[], calls: &[sys::SYS_iopl, sys::SYS_ioperm, sys::SYS_modify_ldt] },
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_call_is_listed_twice_or_on_both_lists() {
        let mut seen = HashSet::new();
        for call in ALLOWED.iter().flat_map(|group| group.calls) {
            assert!(seen.insert(*call), "system call {call} is listed twice");
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
        for call in [sys::SYS_clone3, sys::SYS_io_uring_setup] {
            assert!(!seen.contains(&call), "system call {call} must answer ENOSYS");
        }
    }

    #[test]
    fn the_filters_fit_the_kernels_bound() {
        let filters = crate::launcher::policy::Policies::compile().unwrap().seccomp;
        assert!((200..4096).contains(&filters.instructions()), "{}", filters.instructions());
    }
}
