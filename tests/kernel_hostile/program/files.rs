//! The host's files: by path, by link, by device, by handle.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use libc::{
    EACCES, EBUSY, EINVAL, ELOOP, ENODATA, ENODEV, ENOENT, ENOSYS, ENOTDIR, ENOTSUP, ENXIO, EPERM, EROFS, EXDEV,
};

use crate::act::Act::{Create, Do, Read, Write};
use crate::act::Control::{IfThere, Not, Shown};
use crate::act::{Attempt, Context, Outcome, at, attempt, call, cstring, errno, read, require};

/// Missing, or not accessible.
const NO: &[i32] = &[ENOENT, EACCES, EPERM, EROFS, ENOTDIR, ENODATA];
const GONE: &[i32] = &[ENOENT];
const DENIED: &[i32] = &[EACCES, EPERM, EROFS];
/// Covered by an empty file, or missing in this kernel.
const EMPTY: &[i32] = &[ENODATA, ENOENT];
const DEVICE: &[i32] = &[ENOENT, EACCES, EPERM, ENXIO];

#[rustfmt::skip]
pub const ATTEMPTS: &[Attempt] = &[
    attempt(Read("/etc/shadow"), GONE, Shown),
    attempt(Read("/etc/gshadow"), GONE, IfThere),
    attempt(Read("/etc/sudoers"), GONE, IfThere),
    attempt(Read("/etc/fstab"), GONE, IfThere),
    attempt(Read("/etc/ssh"), GONE, IfThere),
    attempt(Read("/etc/ssl/private"), GONE, IfThere),
    attempt(Read("/etc/systemd"), GONE, IfThere),
    attempt(Read("/etc/ashd"), GONE, IfThere),
    attempt(Read("/root"), GONE, Shown),
    attempt(Read("/var"), GONE, Shown),
    attempt(Read("/var/lib/ashd"), GONE, IfThere),
    attempt(Read("/boot"), GONE, IfThere),
    attempt(Read("/srv"), GONE, IfThere),
    attempt(Read("/mnt"), GONE, IfThere),
    attempt(Read("/media"), GONE, IfThere),
    attempt(Read("/sys"), GONE, Shown),
    attempt(Read("/sys/kernel/security"), GONE, IfThere),
    attempt(Read("/sys/fs/cgroup"), GONE, Shown),
    attempt(Read("/sys/class/net"), GONE, Shown),
    attempt(Read("/sys/kernel/debug"), GONE, IfThere),
    attempt(Read("/sys/firmware"), GONE, IfThere),
    attempt(Read("/proc/1/environ"), NO, IfThere),
    attempt(Read("/proc/1/maps"), NO, IfThere),
    attempt(Read("/proc/1/mem"), NO, Not("offset 0 is never mapped")),
    attempt(Read("/proc/1/root"), NO, IfThere),
    attempt(Read("/proc/1/root/etc/shadow"), NO, IfThere),
    attempt(Read("/proc/1/cwd"), NO, IfThere),
    attempt(Read("/proc/1/fd"), NO, IfThere),
    attempt(Read("/proc/1/fdinfo"), NO, IfThere),
    attempt(Read("/proc/1/stack"), NO, IfThere),
    attempt(Read("/proc/1/syscall"), NO, IfThere),
    attempt(Read("/proc/1/task/1/environ"), NO, IfThere),
    attempt(Read("/proc/self/root/../../../../etc/shadow"), GONE, Shown),
    attempt(Read("/proc/self/cwd/../../../../../../etc/shadow"), GONE, Shown),
    attempt(Read("/proc/thread-self/root/var"), GONE, Shown),
    attempt(Read("/proc/cmdline"), EMPTY, Shown),
    attempt(Read("/proc/config.gz"), EMPTY, IfThere),
    attempt(Read("/proc/modules"), EMPTY, IfThere),
    attempt(Read("/proc/partitions"), EMPTY, IfThere),
    attempt(Read("/proc/diskstats"), EMPTY, IfThere),
    attempt(Read("/proc/swaps"), EMPTY, Shown),
    attempt(Read("/proc/interrupts"), EMPTY, IfThere),
    attempt(Read("/proc/locks"), EMPTY, IfThere),
    attempt(Read("/proc/pressure"), EMPTY, IfThere),
    attempt(Read("/proc/fs"), EMPTY, IfThere),
    attempt(Read("/proc/bus"), EMPTY, IfThere),
    attempt(Read("/proc/irq"), EMPTY, IfThere),
    attempt(Read("/proc/sys/kernel/random/boot_id"), EMPTY, Shown),
    attempt(Read("/proc/sys/kernel/core_pattern"), EMPTY, Shown),
    attempt(Read("/proc/kcore"), NO, IfThere),
    attempt(Read("/proc/kmsg"), NO, Not("reading it waits for the kernel")),
    attempt(Read("/proc/kallsyms"), NO, IfThere),
    attempt(Read("/proc/keys"), NO, IfThere),
    attempt(Read("/proc/key-users"), NO, IfThere),
    attempt(Read("/proc/timer_list"), NO, IfThere),
    attempt(Read("/proc/slabinfo"), NO, IfThere),
    attempt(Read("/proc/vmallocinfo"), NO, IfThere),
    attempt(Read("/proc/pagetypeinfo"), NO, IfThere),
    attempt(Read("/proc/kpagecount"), NO, IfThere),
    attempt(Read("/proc/kpageflags"), NO, IfThere),
    attempt(Read("/proc/sys/kernel/cap_last_cap/../../../1/environ"), NO, Not("not a directory")),
    attempt(Read("/dev/mem"), DEVICE, IfThere),
    attempt(Read("/dev/port"), DEVICE, IfThere),
    attempt(Read("/dev/kmsg"), DEVICE, IfThere),
    attempt(Read("/dev/vda"), DEVICE, IfThere),
    attempt(Read("/dev/sda"), DEVICE, IfThere),
    attempt(Read("/dev/nvme0n1"), DEVICE, IfThere),
    attempt(Read("/dev/dm-0"), DEVICE, IfThere),
    attempt(Read("/dev/loop0"), DEVICE, IfThere),
    attempt(Read("/dev/hwrng"), DEVICE, IfThere),
    attempt(Write("/dev/kvm"), DEVICE, IfThere),
    attempt(Write("/dev/fuse"), DEVICE, IfThere),
    attempt(Write("/dev/net/tun"), DEVICE, IfThere),
    attempt(Write("/dev/loop-control"), DEVICE, IfThere),
    attempt(Write("/dev/mapper/control"), DEVICE, IfThere),
    attempt(Write("/dev/vhost-net"), DEVICE, IfThere),
    attempt(Write("/dev/uinput"), DEVICE, IfThere),
    attempt(Write("/dev/userfaultfd"), DEVICE, IfThere),
    attempt(Write("/dev/watchdog"), DEVICE, Not("opening it arms it")),
    attempt(Write("/dev/console"), DEVICE, IfThere),
    attempt(Write("/dev/tty0"), DEVICE, IfThere),
    attempt(Write("/dev/ttyS0"), DEVICE, IfThere),
    attempt(Write("/proc/sysrq-trigger"), NO, IfThere),
    attempt(Write("/proc/sys/kernel/core_pattern"), DENIED, Shown),
    attempt(Write("/proc/sys/kernel/modprobe"), NO, IfThere),
    attempt(Write("/proc/sys/kernel/hostname"), DENIED, Shown),
    attempt(Write("/proc/sys/kernel/panic"), DENIED, Shown),
    attempt(Write("/proc/sys/kernel/ns_last_pid"), NO, IfThere),
    attempt(Write("/proc/sys/kernel/yama/ptrace_scope"), NO, IfThere),
    attempt(Write("/proc/sys/vm/drop_caches"), DENIED, Shown),
    attempt(Write("/proc/sys/vm/overcommit_memory"), DENIED, Shown),
    attempt(Write("/proc/sys/fs/file-max"), DENIED, Shown),
    attempt(Write("/proc/sys/fs/binfmt_misc/register"), NO, IfThere),
    attempt(Write("/proc/sys/user/max_user_namespaces"), DENIED, IfThere),
    attempt(Write("/proc/sys/net/ipv4/ip_forward"), DENIED, Shown),
    attempt(Write("/proc/irq/default_smp_affinity"), NO, IfThere),
    attempt(Write("/proc/bus/pci/00/00.0"), NO, IfThere),
    attempt(Write("/proc/self/oom_score_adj"), DENIED, Shown),
    attempt(Write("/proc/self/oom_adj"), DENIED, Shown),
    attempt(Write("/proc/self/uid_map"), DENIED, Shown),
    attempt(Write("/proc/self/gid_map"), DENIED, Shown),
    attempt(Write("/proc/self/setgroups"), DENIED, Shown),
    attempt(Write("/proc/self/projid_map"), DENIED, Shown),
    attempt(Write("/proc/self/loginuid"), NO, IfThere),
    attempt(Write("/proc/self/attr/current"), NO, IfThere),
    attempt(Write("/proc/self/attr/exec"), NO, IfThere),
    attempt(Write("/proc/self/coredump_filter"), DENIED, IfThere),
    attempt(Write("/proc/self/clear_refs"), DENIED, IfThere),
    attempt(Write("/proc/self/timerslack_ns"), DENIED, Shown),
    attempt(Write("/proc/self/comm"), DENIED, Shown),
    attempt(Write("/proc/self/mem"), DENIED, Shown),
    attempt(Write("/proc/self/sched"), DENIED, IfThere),
    attempt(Write("/sys/fs/cgroup/unified/cgroup.procs"), GONE, IfThere),
    attempt(Write("/sys/fs/cgroup/cgroup.procs"), GONE, IfThere),
    attempt(Write("/sys/fs/cgroup/memory/cgroup.procs"), GONE, IfThere),
    attempt(Write("/sys/fs/cgroup/memory/release_agent"), GONE, IfThere),
    attempt(Write("/sys/kernel/uevent_helper"), GONE, IfThere),
    attempt(Write("/sys/power/state"), GONE, IfThere),
    attempt(Write("/usr/bin/env"), DENIED, Shown),
    attempt(Write("/bin/sh"), DENIED, Not("a program that runs cannot be opened so anywhere")),
    attempt(Write("/etc/passwd"), DENIED, Shown),
    attempt(Write("/etc/ld.so.cache"), DENIED, Shown),
    attempt(Write("/etc/resolv.conf"), DENIED, IfThere),
    attempt(Write("/opt/claude/claude"), DENIED, Not("only in a sandbox")),
    attempt(Write("/opt/ashd/ash-probe"), DENIED, Not("only in a sandbox")),
    attempt(Create("/"), DENIED, Shown),
    attempt(Create("/usr"), DENIED, Shown),
    attempt(Create("/usr/local/bin"), DENIED, Shown),
    attempt(Create("/etc"), DENIED, Shown),
    attempt(Create("/dev"), DENIED, Shown),
    attempt(Create("/opt"), DENIED, Shown),
    attempt(Create("/opt/claude"), DENIED, Not("only in a sandbox")),
    attempt(Create("/home"), DENIED, Shown),
    attempt(Do("read another session's workspace by its path on the host", |c| read(Path::new(&c.text("H_SECRET")))), GONE, Shown),
    attempt(Do("read it through init's root", |c| read(Path::new(&format!("/proc/1/root{}", c.text("H_SECRET"))))), NO, IfThere),
    attempt(Do("read it through a process of the host", |c| read(Path::new(&format!("/proc/{}/root{}", c.text("H_HOST"), c.text("H_SECRET"))))), NO, Shown),
    attempt(Do("follow a symbolic link to /etc/shadow", |_| link_to("/etc/shadow")), GONE, Shown),
    attempt(Do("follow a symbolic link to the host's root", |_| link_to("/proc/1/root/etc/shadow")), NO, IfThere),
    attempt(Do("follow a relative symbolic link out of the workspace", |_| link_to("../../../../../../etc/shadow")), GONE, Shown),
    attempt(Do("follow a magic link of descriptor 0", |_| read(Path::new("/proc/self/fd/0/../etc/shadow"))), NO, Not("not a directory")),
    attempt(Do("walk up from an inherited descriptor", walk_up), GONE, Not("nothing is inherited outside")),
    attempt(Do("hard link of a system program", |_| hard_link("/usr/bin/env")), &[EXDEV, EPERM, EACCES], Not("the same directory tree is not writable outside either")),
    attempt(Do("hard link of /etc/passwd", |_| hard_link("/etc/passwd")), &[EXDEV, EPERM, EACCES], Not("needs one file system")),
    attempt(Do("rename the workspace away", |_| fs::rename("/workspace", "/tmp/w")), &[EBUSY, EXDEV, EACCES], Not("only in a sandbox")),
    attempt(Do("rename a file of /etc away", |_| fs::rename("/etc/passwd", "/tmp/p")), &[EXDEV, EACCES, EROFS], Not("would harm the machine")),
    attempt(Do("remove the home's mount point", |_| fs::remove_dir("/home/agent")), &[EBUSY, EACCES, EPERM, EROFS], Not("only in a sandbox")),
    attempt(Do("remove /etc/passwd", |_| fs::remove_file("/etc/passwd")), DENIED, Not("would harm the machine")),
    attempt(Do("make a block device", |_| node(libc::S_IFBLK, 8, 0)), DENIED, Shown),
    attempt(Do("make a character device (mem)", |_| node(libc::S_IFCHR, 1, 1)), DENIED, Shown),
    attempt(Do("make a whiteout", |_| node(libc::S_IFCHR, 0, 0)), DENIED, Shown),
    attempt(Do("give a file to root", |_| chown(0)), &[EINVAL, EPERM], Shown),
    attempt(Do("give a file to init", |_| chown(999)), &[EINVAL, EPERM], Shown),
    attempt(Do("give a file capabilities", |_| attribute("security.capability", &CAPABILITY)), &[EPERM, ENOTSUP, EINVAL], Shown),
    attempt(Do("set a trusted attribute", |_| attribute("trusted.ash", b"x")), &[EPERM, ENOTSUP], Shown),
    attempt(Do("make a file immutable", immutable), &[EPERM, EACCES, ENOTSUP, libc::ENOTTY], Shown),
    attempt(Do("a file with setuid of another", setuid_file), &[EPERM], Shown),
    attempt(Do("take a handle of a file", handle), &[EPERM], Shown),
    attempt(Do("open a file by handle", open_by_handle), &[EPERM, ENOSYS], Shown),
    attempt(Do("openat2 out of the root", |_| openat2("/../../../etc/shadow")), GONE, Shown),
    attempt(Do("a loop of links", loop_of_links), &[ELOOP], Not("refused everywhere")),
    attempt(Do("a device by its old number", |_| node(libc::S_IFBLK, 254, 0)), &[EPERM, EACCES, ENODEV], Shown),
];

const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0, 0xFF, 0, 0, 0, 0, 0, 0, 0];

/// A scratch file in /tmp, removed with its guard.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new() -> std::io::Result<Self> {
        let path = Path::new("/tmp").join(format!("ash-hostile-{}", std::process::id()));
        fs::write(&path, b"#!/bin/sh\n")?;
        Ok(Self(path))
    }
    fn text(&self) -> &str {
        self.0.to_str().expect("ASCII")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn name() -> String {
    format!("/tmp/ash-hostile-{}-{}", std::process::id(), "link")
}

fn link_to(target: &str) -> Outcome {
    let name = name();
    symlink(target, &name)?;
    let got = read(Path::new(&name));
    fs::remove_file(&name)?;
    got
}

fn hard_link(of: &str) -> Outcome {
    let to = format!("/workspace/{}", std::process::id());
    fs::hard_link(of, &to)?;
    fs::remove_file(&to)
}

/// Descriptors 3 to 63: none should exist, and none may lead out.
fn walk_up(_: &Context) -> Outcome {
    for fd in 3..64 {
        let up = cstring("../../../../../../etc/shadow");
        if call(libc::SYS_openat, &[fd, up.as_ptr() as i64, 0]).is_ok() {
            return Ok(());
        }
    }
    Err(errno(ENOENT))
}

fn node(kind: u32, major: u32, minor: u32) -> Outcome {
    let path = cstring(&name());
    let device = libc::makedev(major, minor);
    call(libc::SYS_mknodat, &[libc::AT_FDCWD.into(), path.as_ptr() as i64, (kind | 0o666).into(), device as i64])?;
    fs::remove_file(path.to_str().expect("ASCII"))
}

fn chown(id: u32) -> Outcome {
    let scratch = Scratch::new()?;
    std::os::unix::fs::chown(&scratch.0, Some(id), Some(id))
}

fn attribute(name: &str, value: &[u8]) -> Outcome {
    let scratch = Scratch::new()?;
    let (path, name) = (cstring(scratch.text()), cstring(name));
    call(libc::SYS_setxattr, &[path.as_ptr() as i64, name.as_ptr() as i64, at(value), value.len() as i64, 0]).map(drop)
}

fn immutable(_: &Context) -> Outcome {
    const SETFLAGS: i64 = 0x4008_6602; // FS_IOC_SETFLAGS
    const FLAG: i64 = 0x10; // FS_IMMUTABLE_FL
    let scratch = Scratch::new()?;
    let file = fs::File::open(&scratch.0)?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
    call(libc::SYS_ioctl, &[fd.into(), SETFLAGS, at(&FLAG)])?;
    call(libc::SYS_ioctl, &[fd.into(), SETFLAGS, at(&0_i64)]).map(drop)
}

/// Creates a setuid file, and checks whether it would belong to root.
fn setuid_file(_: &Context) -> Outcome {
    let scratch = Scratch::new()?;
    fs::set_permissions(&scratch.0, fs::Permissions::from_mode(0o4755))?;
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(&scratch.0)?);
    require(owner == 0)
}

/// struct file_handle with room for 128 bytes.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    data: [u8; 128],
}

fn take_handle() -> std::io::Result<Handle> {
    let (handle, mount) = (Handle { bytes: 128, kind: 0, data: [0; 128] }, 0_i32);
    let path = cstring("/usr");
    call(libc::SYS_name_to_handle_at, &[libc::AT_FDCWD.into(), path.as_ptr() as i64, at(&handle), at(&mount), 0])?;
    Ok(handle)
}

fn handle(_: &Context) -> Outcome {
    take_handle().map(drop)
}

fn open_by_handle(_: &Context) -> Outcome {
    // Inode 2 is the root directory of ext file systems: a known escape from containers.
    let guess = || Handle {
        bytes: 8,
        kind: 1,
        data: {
            let mut data = [0; 128];
            data[0] = 2;
            data
        },
    };
    let handle = take_handle().unwrap_or_else(|_| guess());
    let dir = fs::File::open("/usr")?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&dir);
    call(libc::SYS_open_by_handle_at, &[fd.into(), at(&handle), libc::O_RDONLY.into()]).map(drop)
}

fn openat2(path: &str) -> Outcome {
    let how = [libc::O_RDONLY as u64, 0, 0];
    let path = cstring(path);
    call(libc::SYS_openat2, &[libc::AT_FDCWD.into(), path.as_ptr() as i64, at(&how), 24]).map(drop)
}

fn loop_of_links(_: &Context) -> Outcome {
    let name = name();
    symlink(&name, &name)?;
    let got = read(Path::new(&name));
    fs::remove_file(&name)?;
    got
}
