//! System calls and argument checks shared by the policies of the sandboxes (`launcher::policy`)
//! and the daemons (`confine`). Each policy adds the calls of its programs to [`BASE`] and refuses
//! escapes.

use libc as sys;

use super::seccomp::Arg;

#[derive(Clone, Copy, Debug)]
pub struct Group {
    pub why: &'static str,
    pub calls: &'static [i64],
}

pub fn of(groups: &[&[Group]]) -> Vec<i64> {
    groups.iter().flat_map(|groups| groups.iter()).flat_map(|group| group.calls).copied().collect()
}

/// The calls of any program with threads, files, sockets and timers. All are harmless without
/// capabilities.
#[rustfmt::skip]
pub const BASE: &[Group] = &[
    Group { why: "files: everything that reads or writes; landlock restricts the paths", calls: &[
        sys::SYS_read, sys::SYS_write, sys::SYS_readv, sys::SYS_writev, sys::SYS_pread64, sys::SYS_pwrite64,
        sys::SYS_preadv, sys::SYS_pwritev, sys::SYS_preadv2, sys::SYS_pwritev2, sys::SYS_openat, sys::SYS_openat2,
        sys::SYS_close, sys::SYS_close_range, sys::SYS_lseek, sys::SYS_dup, sys::SYS_dup3, sys::SYS_fcntl,
        sys::SYS_ioctl, sys::SYS_flock, sys::SYS_fsync, sys::SYS_fdatasync, sys::SYS_sync_file_range,
        sys::SYS_fallocate, sys::SYS_truncate, sys::SYS_ftruncate, sys::SYS_fadvise64, sys::SYS_readahead,
        sys::SYS_sendfile, sys::SYS_splice, sys::SYS_tee, sys::SYS_vmsplice, sys::SYS_copy_file_range, sys::SYS_memfd_create] },
    Group { why: "directories and attributes", calls: &[
        sys::SYS_newfstatat, sys::SYS_fstat, sys::SYS_statx, sys::SYS_statfs, sys::SYS_fstatfs, sys::SYS_faccessat,
        sys::SYS_faccessat2, sys::SYS_getdents64, sys::SYS_getcwd, sys::SYS_chdir, sys::SYS_fchdir, sys::SYS_mkdirat,
        sys::SYS_unlinkat, sys::SYS_renameat, sys::SYS_renameat2, sys::SYS_linkat, sys::SYS_symlinkat,
        sys::SYS_readlinkat, sys::SYS_fchmod, sys::SYS_fchmodat, sys::SYS_fchmodat2, sys::SYS_fchown,
        sys::SYS_fchownat, sys::SYS_utimensat, sys::SYS_umask, sys::SYS_mknodat, sys::SYS_getxattr,
        sys::SYS_lgetxattr, sys::SYS_fgetxattr, sys::SYS_listxattr, sys::SYS_llistxattr, sys::SYS_flistxattr,
        sys::SYS_setxattr, sys::SYS_lsetxattr, sys::SYS_fsetxattr, sys::SYS_removexattr, sys::SYS_lremovexattr,
        sys::SYS_fremovexattr,
        sys::SYS_inotify_init1, sys::SYS_inotify_add_watch, sys::SYS_inotify_rm_watch] },
    Group { why: "memory, threads and the dynamic loader", calls: &[
        sys::SYS_mmap, sys::SYS_munmap, sys::SYS_mprotect, sys::SYS_mremap, sys::SYS_madvise, sys::SYS_msync,
        sys::SYS_mincore, sys::SYS_mlock, sys::SYS_mlock2, sys::SYS_munlock, sys::SYS_brk, sys::SYS_membarrier,
        sys::SYS_mseal, sys::SYS_get_mempolicy, sys::SYS_clone, sys::SYS_exit, sys::SYS_exit_group,
        sys::SYS_set_tid_address, sys::SYS_set_robust_list, sys::SYS_get_robust_list, sys::SYS_futex,
        sys::SYS_futex_waitv, sys::SYS_rseq, sys::SYS_prctl, sys::SYS_restart_syscall] },
    Group { why: "child processes, limits, identity", calls: &[
        sys::SYS_wait4, sys::SYS_waitid, sys::SYS_getpid, sys::SYS_getppid, sys::SYS_gettid, sys::SYS_getpgid,
        sys::SYS_getsid, sys::SYS_pidfd_open, sys::SYS_pidfd_send_signal, sys::SYS_getrlimit, sys::SYS_setrlimit,
        sys::SYS_prlimit64, sys::SYS_getrusage, sys::SYS_times, sys::SYS_sysinfo, sys::SYS_uname, sys::SYS_getcpu,
        sys::SYS_sched_yield, sys::SYS_sched_getaffinity, sys::SYS_sched_setaffinity, sys::SYS_sched_getparam,
        sys::SYS_sched_getscheduler, sys::SYS_sched_get_priority_max, sys::SYS_sched_get_priority_min,
        sys::SYS_getpriority, sys::SYS_setpriority, sys::SYS_getuid, sys::SYS_geteuid, sys::SYS_getgid,
        sys::SYS_getegid, sys::SYS_getresuid, sys::SYS_getresgid, sys::SYS_getgroups, sys::SYS_capget, sys::SYS_capset] },
    Group { why: "signals", calls: &[
        sys::SYS_rt_sigaction, sys::SYS_rt_sigprocmask, sys::SYS_rt_sigreturn, sys::SYS_rt_sigpending,
        sys::SYS_rt_sigsuspend, sys::SYS_rt_sigtimedwait, sys::SYS_rt_sigqueueinfo, sys::SYS_rt_tgsigqueueinfo,
        sys::SYS_sigaltstack, sys::SYS_kill, sys::SYS_tkill, sys::SYS_tgkill, sys::SYS_signalfd4] },
    Group { why: "clocks, timers, waiting, random bytes", calls: &[
        sys::SYS_clock_gettime, sys::SYS_clock_getres, sys::SYS_clock_nanosleep, sys::SYS_nanosleep,
        sys::SYS_gettimeofday, sys::SYS_timerfd_create, sys::SYS_timerfd_settime, sys::SYS_timerfd_gettime,
        sys::SYS_timer_create, sys::SYS_timer_settime, sys::SYS_timer_gettime, sys::SYS_timer_getoverrun, sys::SYS_timer_delete,
        sys::SYS_setitimer, sys::SYS_getitimer, sys::SYS_ppoll, sys::SYS_pselect6, sys::SYS_epoll_create1,
        sys::SYS_epoll_ctl, sys::SYS_epoll_pwait, sys::SYS_epoll_pwait2, sys::SYS_eventfd2, sys::SYS_pipe2,
        sys::SYS_getrandom] },
    Group { why: "sockets; each policy restricts the families by argument", calls: &[
        sys::SYS_socket, sys::SYS_socketpair, sys::SYS_bind, sys::SYS_listen, sys::SYS_accept, sys::SYS_accept4,
        sys::SYS_connect, sys::SYS_getsockname, sys::SYS_getpeername, sys::SYS_sendto, sys::SYS_recvfrom,
        sys::SYS_sendmsg, sys::SYS_recvmsg, sys::SYS_sendmmsg, sys::SYS_recvmmsg, sys::SYS_setsockopt,
        sys::SYS_getsockopt, sys::SYS_shutdown] },
    Group { why: "programs that confine themselves further", calls: &[
        sys::SYS_landlock_create_ruleset, sys::SYS_landlock_add_rule, sys::SYS_landlock_restrict_self, sys::SYS_seccomp] },
    #[cfg(target_arch = "x86_64")]
    Group { why: "older forms of the calls above, still used by C libraries on x86_64", calls: &[
        sys::SYS_open, sys::SYS_creat, sys::SYS_stat, sys::SYS_lstat, sys::SYS_access, sys::SYS_mkdir, sys::SYS_rmdir,
        sys::SYS_unlink, sys::SYS_rename, sys::SYS_link, sys::SYS_symlink, sys::SYS_readlink, sys::SYS_chmod,
        sys::SYS_chown, sys::SYS_lchown, sys::SYS_utime, sys::SYS_utimes, sys::SYS_getdents, sys::SYS_dup2,
        sys::SYS_pipe, sys::SYS_poll, sys::SYS_select, sys::SYS_epoll_create, sys::SYS_epoll_wait, sys::SYS_eventfd,
        sys::SYS_signalfd, sys::SYS_inotify_init, sys::SYS_getpgrp, sys::SYS_time, sys::SYS_arch_prctl] },
];

/// `CLONE_NEW*` in the flags of clone(2). In a namespace of its own a process has capabilities, and
/// reaches kernel code that is otherwise unreachable.
pub const NAMESPACES: &[&[Arg]] = &[
    &[Arg::Has(0, libc::CLONE_NEWUSER as u32)],
    &[Arg::Has(0, libc::CLONE_NEWNS as u32)],
    &[Arg::Has(0, libc::CLONE_NEWPID as u32)],
    &[Arg::Has(0, libc::CLONE_NEWNET as u32)],
    &[Arg::Has(0, libc::CLONE_NEWIPC as u32)],
    &[Arg::Has(0, libc::CLONE_NEWUTS as u32)],
    &[Arg::Has(0, libc::CLONE_NEWCGROUP as u32)],
];
/// Terminals: input on behalf of another process (TIOCSTI, TIOCLINUX), and line disciplines
/// (TIOCSETD), each of which is a driver that the kernel loads by its number.
pub const TERMINALS: &[&[Arg]] =
    &[&[Arg::Is(1, libc::TIOCSTI as u32)], &[Arg::Is(1, libc::TIOCLINUX as u32)], &[Arg::Is(1, libc::TIOCSETD as u32)]];
pub const BESIDE_UNIX: &[&[Arg]] = &[&[Arg::Not(0, libc::AF_UNIX as u32)]];
/// Socket families except UNIX, INET, INET6 and NETLINK, and netlink protocols except ROUTE (0),
/// which getifaddrs(3) and the C library's resolver use.
pub const BESIDE_INTERNET: &[&[Arg]] = &[
    &[
        Arg::Not(0, libc::AF_UNIX as u32),
        Arg::Not(0, libc::AF_INET as u32),
        Arg::Not(0, libc::AF_INET6 as u32),
        Arg::Not(0, libc::AF_NETLINK as u32),
    ],
    &[Arg::Is(0, libc::AF_NETLINK as u32), Arg::Not(2, libc::NETLINK_ROUTE as u32)],
];

pub const MACHINE: &[i64] = &[
    sys::SYS_reboot,
    sys::SYS_kexec_load,
    sys::SYS_kexec_file_load,
    sys::SYS_init_module,
    sys::SYS_finit_module,
    sys::SYS_delete_module,
    sys::SYS_swapon,
    sys::SYS_swapoff,
    sys::SYS_acct,
    sys::SYS_settimeofday,
    sys::SYS_clock_settime,
    sys::SYS_clock_adjtime,
    sys::SYS_adjtimex,
    sys::SYS_vhangup,
    sys::SYS_nfsservctl,
    sys::SYS_syslog,
    sys::SYS_quotactl,
    sys::SYS_quotactl_fd,
    sys::SYS_setdomainname,
];
/// Files by handle, which bypass the mount namespace and roots of path lookups.
pub const HANDLES: &[i64] =
    &[sys::SYS_name_to_handle_at, sys::SYS_open_by_handle_at, sys::SYS_fanotify_init, sys::SYS_fanotify_mark];
#[cfg(target_arch = "x86_64")]
pub const PORTS: &[i64] = &[sys::SYS_iopl, sys::SYS_ioperm, sys::SYS_modify_ldt];
/// Other architectures have none.
#[cfg(not(target_arch = "x86_64"))]
pub const PORTS: &[i64] = &[];
