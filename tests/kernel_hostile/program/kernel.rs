//! Kernel interfaces: namespaces, mounts, and interfaces with past privilege escalations.

use libc as sys;
use libc::{EACCES, EINVAL, ENOENT, ENOSYS, EPERM};

use crate::act::Act::{Call, Do};
use crate::act::Control::{IfThere, Not, Shown};
use crate::act::{Attempt, Context, Outcome, at, attempt, call, cstring, mount};

const PERM: &[i32] = &[EPERM];
const NOSYS: &[i32] = &[ENOSYS];
const MACHINE: crate::act::Control = Not("would change the machine");

const fn new(flag: i32) -> [i64; 1] {
    [flag as i64]
}
const USER: [i64; 1] = new(sys::CLONE_NEWUSER);
const NS: [i64; 1] = new(sys::CLONE_NEWNS);
const PID: [i64; 1] = new(sys::CLONE_NEWPID);
const NET: [i64; 1] = new(sys::CLONE_NEWNET);
const IPC: [i64; 1] = new(sys::CLONE_NEWIPC);
const UTS: [i64; 1] = new(sys::CLONE_NEWUTS);
const CGROUP: [i64; 1] = new(sys::CLONE_NEWCGROUP);
const TIME: [i64; 1] = [0x80];

#[rustfmt::skip]
pub const ATTEMPTS: &[Attempt] = &[
    attempt(Call("unshare user", sys::SYS_unshare, &USER), PERM, Shown),
    attempt(Call("unshare mount", sys::SYS_unshare, &NS), PERM, Shown),
    attempt(Call("unshare pid", sys::SYS_unshare, &PID), PERM, Shown),
    attempt(Call("unshare net", sys::SYS_unshare, &NET), PERM, Shown),
    attempt(Call("unshare ipc", sys::SYS_unshare, &IPC), PERM, Shown),
    attempt(Call("unshare uts", sys::SYS_unshare, &UTS), PERM, Shown),
    attempt(Call("unshare cgroup", sys::SYS_unshare, &CGROUP), PERM, Shown),
    attempt(Call("unshare time", sys::SYS_unshare, &TIME), PERM, IfThere),
    attempt(Do("clone user", |_| clone(sys::CLONE_NEWUSER)), PERM, Shown),
    attempt(Do("clone mount", |_| clone(sys::CLONE_NEWNS)), PERM, Shown),
    attempt(Do("clone pid", |_| clone(sys::CLONE_NEWPID)), PERM, Shown),
    attempt(Do("clone net", |_| clone(sys::CLONE_NEWNET)), PERM, Shown),
    attempt(Do("clone ipc", |_| clone(sys::CLONE_NEWIPC)), PERM, Shown),
    attempt(Do("clone uts", |_| clone(sys::CLONE_NEWUTS)), PERM, Shown),
    attempt(Do("clone cgroup", |_| clone(sys::CLONE_NEWCGROUP)), PERM, Shown),
    attempt(Do("clone user and net together", |_| clone(sys::CLONE_NEWUSER | sys::CLONE_NEWNET)), PERM, Shown),
    attempt(Do("clone3 user", clone3), NOSYS, Shown),
    attempt(Do("setns own user namespace", |_| setns("user")), PERM, Not("one's own cannot be entered anywhere")),
    attempt(Do("setns own mount namespace", |_| setns("mnt")), PERM, Shown),
    attempt(Do("setns own net namespace", |_| setns("net")), PERM, Shown),
    attempt(Do("setns own ipc namespace", |_| setns("ipc")), PERM, Shown),
    attempt(Do("setns init's mount namespace", |_| enter("/proc/1/ns/mnt")), &[EPERM, EACCES, ENOENT], IfThere),
    attempt(Do("setns init's net namespace", |_| enter("/proc/1/ns/net")), &[EPERM, EACCES, ENOENT], IfThere),
    attempt(Do("setns by a pidfd", setns_pidfd), PERM, Shown),
    attempt(Do("mount tmpfs", |_| mount("none", "/dev/shm", "tmpfs", 0)), PERM, Shown),
    attempt(Do("mount proc", |_| mount("none", "/dev/shm", "proc", 0)), PERM, Shown),
    attempt(Do("mount sysfs", |_| mount("none", "/dev/shm", "sysfs", 0)), PERM, Shown),
    attempt(Do("mount cgroup2", |_| mount("none", "/dev/shm", "cgroup2", 0)), PERM, Shown),
    attempt(Do("mount devpts", |_| mount("none", "/dev/shm", "devpts", 0)), PERM, Shown),
    attempt(Do("mount mqueue", |_| mount("none", "/dev/shm", "mqueue", 0)), PERM, IfThere),
    attempt(Do("mount debugfs", |_| mount("none", "/dev/shm", "debugfs", 0)), PERM, IfThere),
    attempt(Do("bind /proc over /dev/shm", |_| mount("/proc", "/dev/shm", "none", sys::MS_BIND)), PERM, Shown),
    attempt(Do("remount /usr writable", |_| remount("/usr")), PERM, Shown),
    attempt(Do("remount / writable", |_| mount("none", "/", "none", sys::MS_REMOUNT | sys::MS_BIND)), PERM, IfThere),
    attempt(Do("make / shared", |_| mount("none", "/", "none", sys::MS_SHARED)), PERM, Shown),
    attempt(Do("uncover /proc/kcore", |_| umount("/proc/kcore")), PERM, Not("nothing covers it outside")),
    attempt(Do("unmount /proc", |_| umount("/proc")), PERM, Shown),
    attempt(Do("unmount the workspace", |_| umount("/workspace")), PERM, Not("only in a sandbox")),
    attempt(Do("chroot", chroot), PERM, Shown),
    attempt(Do("pivot_root", pivot), PERM, Not("needs a root made for it")),
    attempt(Do("open_tree", open_tree), PERM, Shown),
    attempt(Call("move_mount", sys::SYS_move_mount, &[-1, 0, -1, 0, 0]), PERM, Not("needs a detached mount")),
    attempt(Do("fsopen", |_| { let kind = cstring("tmpfs"); call(sys::SYS_fsopen, &[kind.as_ptr() as i64, 0]).map(drop) }), PERM, Shown),
    attempt(Call("fsconfig", sys::SYS_fsconfig, &[-1, 0, 0, 0, 0]), PERM, Not("needs fsopen")),
    attempt(Call("fsmount", sys::SYS_fsmount, &[-1, 0, 0]), PERM, Not("needs fsopen")),
    attempt(Do("fspick", |_| { let path = cstring("/dev/shm"); call(sys::SYS_fspick, &[sys::AT_FDCWD.into(), path.as_ptr() as i64, 0]).map(drop) }), PERM, Shown),
    attempt(Do("mount_setattr", mount_setattr), PERM, Shown),
    attempt(Call("swapoff", sys::SYS_swapoff, &[0]), PERM, MACHINE),
    attempt(Call("swapon", sys::SYS_swapon, &[0, 0]), PERM, MACHINE),
    attempt(Call("quotactl", sys::SYS_quotactl, &[0x0080_0001_i64, 0, 0, 0]), PERM, Not("needs a quota")),
    attempt(Do("bpf map", bpf_map), PERM, Shown),
    attempt(Do("bpf program", bpf_program), PERM, Shown),
    attempt(Call("bpf: next program", sys::SYS_bpf, &[11, 0, 0]), PERM, Not("needs a program")),
    attempt(Do("io_uring_setup", io_uring), NOSYS, IfThere),
    attempt(Call("io_uring_enter", sys::SYS_io_uring_enter, &[-1, 0, 0, 0, 0, 0]), NOSYS, Not("needs a ring")),
    attempt(Call("io_uring_register", sys::SYS_io_uring_register, &[-1, 0, 0, 0]), NOSYS, Not("needs a ring")),
    attempt(Do("perf_event_open", perf), PERM, IfThere),
    attempt(Call("userfaultfd", sys::SYS_userfaultfd, &[0]), PERM, IfThere),
    attempt(Call("userfaultfd, user mode only", sys::SYS_userfaultfd, &[1]), PERM, IfThere),
    attempt(Call("keyctl: join a session keyring", sys::SYS_keyctl, &[1, 0]), PERM, IfThere),
    attempt(Call("keyctl: the id of a keyring", sys::SYS_keyctl, &[0, -3, 1]), PERM, IfThere),
    attempt(Do("add_key", add_key), PERM, IfThere),
    attempt(Call("request_key", sys::SYS_request_key, &[0, 0, 0, 0]), PERM, Not("needs a key")),
    attempt(Call("kexec_load", sys::SYS_kexec_load, &[0, 0, 0, 0]), PERM, MACHINE),
    attempt(Call("kexec_file_load", sys::SYS_kexec_file_load, &[-1, -1, 0, 0, 0]), PERM, MACHINE),
    attempt(Call("init_module", sys::SYS_init_module, &[0, 0, 0]), PERM, MACHINE),
    attempt(Call("finit_module", sys::SYS_finit_module, &[-1, 0, 0]), PERM, MACHINE),
    attempt(Call("delete_module", sys::SYS_delete_module, &[0, 0]), PERM, MACHINE),
    attempt(Call("reboot", sys::SYS_reboot, &[0, 0, 0, 0]), PERM, MACHINE),
    attempt(Call("acct", sys::SYS_acct, &[0]), PERM, MACHINE),
    attempt(Call("size of the kernel's log", sys::SYS_syslog, &[10, 0, 0]), PERM, Shown),
    attempt(Call("clear the kernel's log", sys::SYS_syslog, &[5, 0, 0]), PERM, MACHINE),
    attempt(Do("sethostname", |_| call(sys::SYS_sethostname, &[at(b"ash"), 3]).map(drop)), PERM, Shown),
    attempt(Do("setdomainname", |_| call(sys::SYS_setdomainname, &[at(b"ash"), 3]).map(drop)), PERM, Shown),
    attempt(Call("settimeofday", sys::SYS_settimeofday, &[0, 0]), PERM, MACHINE),
    attempt(Call("clock_settime", sys::SYS_clock_settime, &[0, 0]), PERM, MACHINE),
    attempt(Call("clock_adjtime", sys::SYS_clock_adjtime, &[0, 0]), PERM, MACHINE),
    attempt(Call("adjtimex", sys::SYS_adjtimex, &[0]), PERM, MACHINE),
    attempt(Call("vhangup", sys::SYS_vhangup, &[]), PERM, MACHINE),
    attempt(Call("memfd_secret", sys::SYS_memfd_secret, &[0]), PERM, IfThere),
    attempt(Call("fanotify_init", sys::SYS_fanotify_init, &[0, 0]), PERM, IfThere),
    attempt(Call("fanotify_init, unprivileged form", sys::SYS_fanotify_init, &[0x200, 0]), PERM, IfThere),
    attempt(Call("kcmp", sys::SYS_kcmp, &[0, 0, 0, 0, 0]), PERM, Not("asks of itself")),
    attempt(Call("set_mempolicy", sys::SYS_set_mempolicy, &[0, 0, 0]), PERM, IfThere),
    attempt(Call("mbind", sys::SYS_mbind, &[0, 0, 0, 0, 0, 0]), PERM, IfThere),
    attempt(Call("personality READ_IMPLIES_EXEC", sys::SYS_personality, &[0x0040_0000]), PERM, Shown),
    attempt(Call("personality of another system", sys::SYS_personality, &[0x0002]), PERM, IfThere),
    attempt(Call("personality ADDR_COMPAT_LAYOUT", sys::SYS_personality, &[0x0020_0000]), PERM, Shown),
    attempt(Do("TIOCSTI", |_| terminal(sys::TIOCSTI as i64)), PERM, IfThere),
    attempt(Do("TIOCSTI with high bits set", |_| terminal(sys::TIOCSTI as i64 | 0x77 << 32)), PERM, IfThere),
    attempt(Do("TIOCSETD", |_| terminal(sys::TIOCSETD as i64)), PERM, IfThere),
    attempt(Do("a lease of a file", lease), PERM, Shown),
    attempt(Call("io_setup", sys::SYS_io_setup, &[1, 0]), NOSYS, Not("needs memory for its answer")),
    attempt(Call("verity of a file", sys::SYS_ioctl, &[-1, 0x4080_6685, 0]), PERM, Not("needs a file system with verity")),
    attempt(Call("a subvolume of btrfs", sys::SYS_ioctl, &[-1, 0x5000_940e, 0]), PERM, Not("needs btrfs")),
    attempt(Call("a snapshot of btrfs", sys::SYS_ioctl, &[-1, 0x5000_9417, 0]), PERM, Not("needs btrfs")),
    attempt(Call("ext4: extents of a file anew", sys::SYS_ioctl, &[-1, 0x6609, 0]), PERM, Not("needs a file")),
    attempt(Call("the map of the disk (GETFSMAP)", sys::SYS_ioctl, &[-1, 0xc0c0_583b, 0]), PERM, Not("needs a file")),
    attempt(Call("the UUID of the disk", sys::SYS_ioctl, &[-1, 0x8011_1500, 0]), PERM, Not("needs a file")),
    attempt(Call("the device of the disk", sys::SYS_ioctl, &[-1, 0x8081_1501, 0]), PERM, Not("needs a file")),
    attempt(Call("the label of the disk", sys::SYS_ioctl, &[-1, 0x8100_9431, 0]), PERM, Not("needs a file")),
    attempt(Do("TIOCLINUX", |_| terminal(sys::TIOCLINUX as i64)), PERM, Not("needs a console")),
    attempt(Call("lookup_dcookie", DCOOKIE, &[0, 0, 0]), NOSYS, Not("gone from the kernel")),
    attempt(Call("a number past the last call", 4000, &[]), NOSYS, Not("refused everywhere")),
    #[cfg(target_arch = "x86_64")]
    attempt(Call("iopl", sys::SYS_iopl, &[3]), PERM, IfThere),
    #[cfg(target_arch = "x86_64")]
    attempt(Call("ioperm", sys::SYS_ioperm, &[0x80, 1, 1]), PERM, IfThere),
    #[cfg(target_arch = "x86_64")]
    attempt(Call("modify_ldt", sys::SYS_modify_ldt, &[0, 0, 0]), PERM, IfThere),
    #[cfg(target_arch = "x86_64")]
    attempt(Call("unshare by its x32 number", 0x4000_0000 + 272, &USER), NOSYS, Not("needs a kernel with x32")),
    #[cfg(target_arch = "x86_64")]
    attempt(Call("_sysctl", 156, &[0]), NOSYS, Not("gone from the kernel")),
    #[cfg(target_arch = "x86_64")]
    attempt(Call("uselib", 134, &[0]), NOSYS, Not("gone from many kernels")),
    #[cfg(target_arch = "x86_64")]
    attempt(Call("sysfs", 139, &[3]), NOSYS, IfThere),
    attempt(Do("lift the filter by a wider one", lift), &[EINVAL], Shown),
    attempt(Do("a filter by the older call", older_filter), PERM, Shown),
    attempt(Do("drop no_new_privs", |_| call(sys::SYS_prctl, &[sys::PR_SET_NO_NEW_PRIVS.into(), 0, 0, 0, 0]).map(drop)), &[EINVAL], Not("refused everywhere")),
    attempt(Do("leave landlock by a ruleset of one's own", landlock), &[EACCES], Not("nothing confines it outside")),
    attempt(Call("a bad pointer to a refused call", sys::SYS_mount, &[1, 1, 1, 0, 1]), PERM, Not("EFAULT outside")),
];

#[cfg(target_arch = "x86_64")]
const DCOOKIE: i64 = 212;
#[cfg(not(target_arch = "x86_64"))]
const DCOOKIE: i64 = 18;

/// clone(2) as fork, with a namespace.
fn clone(flags: i32) -> Outcome {
    let pid = call(sys::SYS_clone, &[i64::from(flags | sys::SIGCHLD), 0, 0, 0, 0])?;
    if pid == 0 {
        std::process::exit(0);
    }
    call(sys::SYS_wait4, &[pid, 0, 0, 0]).map(drop)
}

fn clone3(_: &Context) -> Outcome {
    let args = [sys::CLONE_NEWUSER as u64, 0, 0, 0, sys::SIGCHLD as u64, 0, 0, 0];
    let pid = call(sys::SYS_clone3, &[at(&args), 64])?;
    if pid == 0 {
        std::process::exit(0);
    }
    call(sys::SYS_wait4, &[pid, 0, 0, 0]).map(drop)
}

fn enter(path: &str) -> Outcome {
    let file = std::fs::File::open(path)?;
    call(sys::SYS_setns, &[std::os::fd::AsRawFd::as_raw_fd(&file).into(), 0]).map(drop)
}

fn setns(name: &str) -> Outcome {
    enter(&format!("/proc/self/ns/{name}"))
}

fn setns_pidfd(context: &Context) -> Outcome {
    let fd = call(sys::SYS_pidfd_open, &[context.victim(), 0])?;
    call(sys::SYS_setns, &[fd, sys::CLONE_NEWUTS.into()]).map(drop)
}

fn remount(path: &str) -> Outcome {
    // Outside, /usr may not be a mount: make it one first.
    let _ = mount(path, path, "none", sys::MS_BIND);
    mount("none", path, "none", sys::MS_REMOUNT | sys::MS_BIND)
}

fn umount(path: &str) -> Outcome {
    let path = cstring(path);
    call(sys::SYS_umount2, &[path.as_ptr() as i64, sys::MNT_DETACH.into()]).map(drop)
}

fn chroot(_: &Context) -> Outcome {
    let path = cstring("/tmp");
    call(sys::SYS_chroot, &[path.as_ptr() as i64]).map(drop)
}

fn pivot(_: &Context) -> Outcome {
    let path = cstring("/tmp");
    call(sys::SYS_pivot_root, &[path.as_ptr() as i64, path.as_ptr() as i64]).map(drop)
}

fn open_tree(_: &Context) -> Outcome {
    let path = cstring("/usr");
    call(sys::SYS_open_tree, &[sys::AT_FDCWD.into(), path.as_ptr() as i64, 1]).map(drop)
}

fn mount_setattr(_: &Context) -> Outcome {
    let (path, attr) = (cstring("/dev/shm"), [0_u64, 1, 0, 0]);
    call(sys::SYS_mount_setattr, &[sys::AT_FDCWD.into(), path.as_ptr() as i64, 0, at(&attr), 32]).map(drop)
}

fn bpf_map(_: &Context) -> Outcome {
    let mut attr = [0_u32; 32];
    attr[..4].copy_from_slice(&[2, 4, 4, 1]);
    call(sys::SYS_bpf, &[0, at(&attr), 128]).map(drop)
}

fn bpf_program(_: &Context) -> Outcome {
    // r0 = 0; exit
    let code = [0x0000_00b7_u64, 0x0000_0095];
    let license = cstring("GPL");
    let mut attr = [0_u64; 16];
    attr[0] = 1 | 2 << 32;
    attr[1] = at(&code) as u64;
    attr[2] = license.as_ptr() as u64;
    call(sys::SYS_bpf, &[5, at(&attr), 128]).map(drop)
}

fn io_uring(_: &Context) -> Outcome {
    let params = [0_u64; 15];
    call(sys::SYS_io_uring_setup, &[1, at(&params)]).map(drop)
}

fn perf(_: &Context) -> Outcome {
    // PERF_TYPE_SOFTWARE, size 128, PERF_COUNT_SW_TASK_CLOCK.
    let mut attr = [0_u64; 16];
    attr[0] = 1 | 128 << 32;
    attr[1] = 1;
    call(sys::SYS_perf_event_open, &[at(&attr), 0, -1, -1, 0]).map(drop)
}

fn add_key(_: &Context) -> Outcome {
    let (kind, name) = (cstring("user"), cstring("ash"));
    call(sys::SYS_add_key, &[kind.as_ptr() as i64, name.as_ptr() as i64, at(b"x"), 1, -2]).map(drop)
}

/// An ioctl on a terminal of its own.
fn terminal(request: i64) -> Outcome {
    let path = cstring("/dev/ptmx");
    let master =
        call(sys::SYS_openat, &[sys::AT_FDCWD.into(), path.as_ptr() as i64, i64::from(sys::O_RDWR | sys::O_NOCTTY)])?;
    call(sys::SYS_ioctl, &[master, sys::TIOCSPTLCK as i64, at(&0_i32)])?;
    let slave = call(sys::SYS_ioctl, &[master, sys::TIOCGPTPEER as i64, i64::from(sys::O_RDWR | sys::O_NOCTTY)])?;
    call(sys::SYS_ioctl, &[slave, request, at(b"x")]).map(drop)
}

fn lease(_: &Context) -> Outcome {
    let path = cstring(&format!("/tmp/ash-hostile-lease-{}", std::process::id()));
    let flags = i64::from(sys::O_RDWR | sys::O_CREAT);
    let file = call(sys::SYS_openat, &[sys::AT_FDCWD.into(), path.as_ptr() as i64, flags, 0o600])?;
    let taken = call(sys::SYS_fcntl, &[file, sys::F_SETLEASE.into(), sys::F_WRLCK.into()]);
    call(sys::SYS_unlinkat, &[sys::AT_FDCWD.into(), path.as_ptr() as i64, 0])?;
    taken.map(drop)
}

/// A filter that allows everything, then a call that the older filters refuse.
fn lift(_: &Context) -> Outcome {
    // BPF_RET | BPF_K, SECCOMP_RET_ALLOW
    let code = [0x06_u64 | 0x7fff_0000 << 32];
    let program = [1_u64, at(&code) as u64];
    call(sys::SYS_prctl, &[sys::PR_SET_NO_NEW_PRIVS.into(), 1, 0, 0, 0])?;
    call(sys::SYS_seccomp, &[1, 0, at(&program)])?;
    call(sys::SYS_unshare, &[sys::CLONE_NEWUTS.into()]).map(drop)
}

fn older_filter(_: &Context) -> Outcome {
    let code = [0x06_u64 | 0x7fff_0000 << 32];
    let program = [1_u64, at(&code) as u64];
    call(sys::SYS_prctl, &[sys::PR_SET_NO_NEW_PRIVS.into(), 1, 0, 0, 0])?;
    call(sys::SYS_prctl, &[sys::PR_SET_SECCOMP.into(), 2, at(&program), 0, 0]).map(drop)
}

/// A new ruleset cannot restore what an older one has removed.
fn landlock(_: &Context) -> Outcome {
    // Only MAKE_SYM is handled, so this ruleset does not forbid writing.
    let attr = [1_u64 << 12, 0, 0];
    let fd = call(sys::SYS_landlock_create_ruleset, &[at(&attr), 24, 0])?;
    call(sys::SYS_landlock_restrict_self, &[fd, 0])?;
    std::fs::OpenOptions::new().write(true).open("/proc/self/comm").map(drop)
}
