//! Other processes, and more privileges for this one.

use std::path::Path;

use libc as sys;
use libc::{EACCES, EINVAL, ENODATA, ENOENT, EPERM, ESRCH};

use crate::act::Act::{Call, Do};
use crate::act::Control::{IfThere, Not, Shown};
use crate::act::{Attempt, Context, Outcome, at, attempt, call, errno, read, require};

const PERM: &[i32] = &[EPERM];
/// Hidden, or forbidden.
const NO: &[i32] = &[EPERM, EACCES, ESRCH, ENOENT, ENODATA];
const HOST_INIT: crate::act::Control = Not("the host's PID 1 is left alone");
const CONT: i64 = sys::SIGCONT as i64;

#[rustfmt::skip]
pub const ATTEMPTS: &[Attempt] = &[
    attempt(Call("signal init", sys::SYS_kill, &[1, CONT]), NO, Shown),
    attempt(Call("signal 0 to init", sys::SYS_kill, &[1, 0]), NO, Shown),
    attempt(Call("kill init", sys::SYS_kill, &[1, sys::SIGKILL as i64]), NO, HOST_INIT),
    attempt(Call("tgkill init", sys::SYS_tgkill, &[1, 1, CONT]), NO, Shown),
    attempt(Do("queue a signal to init", |_| queue(1)), NO, Shown),
    attempt(Do("signal init by a pidfd", |_| by_pidfd(1)), NO, Shown),
    attempt(Do("signal another command", |c| call(sys::SYS_kill, &[c.victim(), CONT]).map(drop)), NO, Shown),
    attempt(Do("signal another command by a pidfd", |c| by_pidfd(c.victim())), NO, Shown),
    attempt(Do("queue a signal to another command", |c| queue(c.victim())), NO, Shown),
    attempt(Do("signal a process of the host by its pid", |c| call(sys::SYS_kill, &[c.number("H_HOST").into(), CONT]).map(drop)), NO, Shown),
    attempt(Do("signal another session's process by its pid", |c| call(sys::SYS_kill, &[c.number("H_OTHER").into(), CONT]).map(drop)), NO, Shown),
    attempt(Do("ptrace init", |_| trace(1)), NO, HOST_INIT),
    attempt(Do("ptrace another command", |c| trace(c.victim())), NO, Shown),
    attempt(Do("ptrace a process of the host", |c| trace(c.number("H_HOST").into())), NO, Shown),
    attempt(Do("read init's memory", |_| vm(sys::SYS_process_vm_readv, 1)), NO, HOST_INIT),
    attempt(Do("read another command's memory", |c| vm(sys::SYS_process_vm_readv, c.victim())), NO, Not("needs an address of the other")),
    attempt(Do("write another command's memory", |c| vm(sys::SYS_process_vm_writev, c.victim())), NO, Not("needs an address of the other")),
    attempt(Do("open another command's memory", |c| write_proc(c, "mem")), NO, Shown),
    attempt(Do("read another command's environment", |c| read_proc(c, "environ")), NO, Shown),
    attempt(Do("read another command's maps", |c| read_proc(c, "maps")), NO, Shown),
    attempt(Do("read another command's descriptors", |c| read_proc(c, "fd")), NO, Shown),
    attempt(Do("read another command's auxiliary vector", |c| read_proc(c, "auxv")), NO, Shown),
    attempt(Do("write another command's name", |c| write_proc(c, "comm")), NO, Not("a thread may only write its own group's")),
    attempt(Do("make another command the OOM killer's first", |c| write_proc(c, "oom_score_adj")), NO, Shown),
    attempt(Do("take another command's descriptor", take_descriptor), PERM, Shown),
    attempt(Call("take one of init's descriptors", sys::SYS_pidfd_getfd, &[-1, 0, 0]), PERM, Not("needs a pidfd")),
    attempt(Do("advise on init's memory", |_| advise(1)), NO, HOST_INIT),
    attempt(Call("move init's pages", sys::SYS_move_pages, &[1, 0, 0, 0, 0, 0]), PERM, IfThere),
    attempt(Call("migrate init's pages", sys::SYS_migrate_pages, &[1, 0, 0, 0]), PERM, IfThere),
    attempt(Do("limit init", |_| limit_of(1)), NO, HOST_INIT),
    attempt(Call("re-nice init", sys::SYS_setpriority, &[0, 1, 19]), NO, HOST_INIT),
    attempt(Call("init's I/O priority", sys::SYS_ioprio_set, &[1, 1, 3 << 13]), NO, HOST_INIT),
    attempt(Do("pin init to a core", |_| call(sys::SYS_sched_setaffinity, &[1, 8, at(&1_u64)]).map(drop)), NO, HOST_INIT),
    attempt(Do("init's scheduler", |_| call(sys::SYS_sched_setscheduler, &[1, 5, at(&0_i32)]).map(drop)), NO, HOST_INIT),
    attempt(Call("init's robust list", sys::SYS_get_robust_list, &[1, 0, 0]), NO, Not("EFAULT outside")),
    attempt(Call("join init's process group", sys::SYS_setpgid, &[0, 1]), NO, Not("one session only")),
    attempt(Do("more than its own processes in /proc", count), PERM, Shown),
    attempt(Call("setuid 0", sys::SYS_setuid, &[0]), &[EPERM, EINVAL], Shown),
    attempt(Call("setuid to init's", sys::SYS_setuid, &[999]), &[EPERM, EINVAL], Shown),
    attempt(Call("setgid 0", sys::SYS_setgid, &[0]), &[EPERM, EINVAL], Shown),
    attempt(Call("setgid tty", sys::SYS_setgid, &[5]), &[EPERM, EINVAL], Shown),
    attempt(Call("setresuid", sys::SYS_setresuid, &[0, 0, 0]), &[EPERM, EINVAL], Shown),
    attempt(Call("setreuid", sys::SYS_setreuid, &[999, 999]), &[EPERM, EINVAL], Shown),
    attempt(Call("setresgid", sys::SYS_setresgid, &[0, 0, 0]), &[EPERM, EINVAL], Shown),
    attempt(Call("drop all groups", sys::SYS_setgroups, &[0, 0]), PERM, Shown),
    attempt(Do("join group 0", |_| call(sys::SYS_setgroups, &[1, at(&0_u32)]).map(drop)), PERM, Shown),
    attempt(Do("setfsuid 0", |_| { call(sys::SYS_setfsuid, &[0])?; require(call(sys::SYS_setfsuid, &[-1])? == 0) }), PERM, Shown),
    attempt(Do("raise capabilities", raise), PERM, Shown),
    attempt(Call("an ambient capability", sys::SYS_prctl, &[47, 2, 21, 0, 0]), PERM, Not("needs it inheritable first")),
    attempt(Call("drop from the bounding set", sys::SYS_prctl, &[24, 21, 0, 0, 0]), PERM, Shown),
    attempt(Call("a core of its own (PR_SCHED_CORE)", sys::SYS_prctl, &[62, 1, 0, 0, 0]), PERM, IfThere),
    attempt(Call("secure bits", sys::SYS_prctl, &[28, 0x10, 0, 0, 0]), PERM, Shown),
    attempt(Do("another program as its own (PR_SET_MM)", |_| call(sys::SYS_prctl, &[35, 1, 0x1000, 0, 0]).map(drop)), PERM, Not("EINVAL outside")),
    attempt(Do("more descriptors than its hard limit", |_| raise_limit(sys::RLIMIT_NOFILE as i64, 1)), PERM, IfThere),
    attempt(Do("core files", |_| raise_limit(sys::RLIMIT_CORE as i64, 1)), PERM, Not("no limit outside")),
    attempt(Do("real-time priority", |_| call(sys::SYS_sched_setscheduler, &[0, sys::SCHED_FIFO.into(), at(&1_i32)]).map(drop)), PERM, IfThere),
    attempt(Do("deadline scheduling", deadline), PERM, IfThere),
    attempt(Call("a niceness below 0", sys::SYS_setpriority, &[0, 0, -5]), &[EACCES, EPERM], Shown),
    attempt(Call("real-time I/O", sys::SYS_ioprio_set, &[1, 0, 1 << 13]), PERM, Shown),
    attempt(Do("wake the machine by a timer", alarm), PERM, IfThere),
    attempt(Do("su", |_| as_root(&["/usr/bin/su", "-s", "/bin/true", "root"])), PERM, IfThere),
    attempt(Do("mount(8), setuid", |_| as_root(&["/usr/bin/mount", "-t", "tmpfs", "none", "/dev/shm"])), PERM, Shown),
    attempt(Do("passwd(1), setuid", |_| as_root(&["/usr/bin/passwd", "-S", "root"])), PERM, IfThere),
    attempt(Do("newgrp root", |_| as_root(&["/usr/bin/sg", "root", "-c", "/bin/true"])), PERM, IfThere),
    attempt(Do("unshare(1)", |_| as_root(&["/usr/bin/unshare", "-Ur", "/bin/true"])), PERM, IfThere),
    attempt(Do("nsenter(1) into init", |_| as_root(&["/usr/bin/nsenter", "-t", "1", "-m", "/bin/true"])), PERM, IfThere),
    attempt(Do("read another session's shared memory", shared_memory), NO, Shown),
];

fn queue(pid: i64) -> Outcome {
    // siginfo: signo, errno, code (SI_QUEUE), and the sender's data.
    let mut info = [0_i32; 32];
    info[0] = sys::SIGCONT;
    info[2] = -1;
    call(sys::SYS_rt_sigqueueinfo, &[pid, CONT, at(&info)]).map(drop)
}

fn by_pidfd(pid: i64) -> Outcome {
    let fd = call(sys::SYS_pidfd_open, &[pid, 0])?;
    call(sys::SYS_pidfd_send_signal, &[fd, CONT, 0, 0]).map(drop)
}

fn trace(pid: i64) -> Outcome {
    const SEIZE: i64 = 0x4206;
    call(sys::SYS_ptrace, &[SEIZE, pid, 0, 0]).map(drop)
}

fn vm(number: i64, pid: i64) -> Outcome {
    let byte = [0_u8; 1];
    let vector = [at(&byte), 1];
    call(number, &[pid, at(&vector), 1, at(&vector), 1, 0]).map(drop)
}

fn read_proc(context: &Context, name: &str) -> Outcome {
    read(Path::new(&format!("/proc/{}/{name}", context.victim())))
}

fn write_proc(context: &Context, name: &str) -> Outcome {
    std::fs::OpenOptions::new().write(true).open(format!("/proc/{}/{name}", context.victim())).map(drop)
}

fn take_descriptor(context: &Context) -> Outcome {
    let fd = call(sys::SYS_pidfd_open, &[context.victim(), 0])?;
    call(sys::SYS_pidfd_getfd, &[fd, 1, 0]).map(drop)
}

fn advise(pid: i64) -> Outcome {
    let fd = call(sys::SYS_pidfd_open, &[pid, 0])?;
    let vector = [0x1000_i64, 0x1000];
    call(sys::SYS_process_madvise, &[fd, at(&vector), 1, 20, 0]).map(drop)
}

fn limit_of(pid: i64) -> Outcome {
    let limit = [10_u64, 10];
    call(sys::SYS_prlimit64, &[pid, sys::RLIMIT_NOFILE as i64, at(&limit), 0]).map(drop)
}

/// Names of processes in /proc: a sandbox has few; the host has more, or kernel threads.
fn count(context: &Context) -> Outcome {
    let pids = std::fs::read_dir("/proc")?.flatten();
    let seen = pids.filter(|entry| entry.file_name().to_string_lossy().parse::<i32>().is_ok()).count();
    require(if context.outside { seen > 3 } else { seen > 6 })
}

fn raise(_: &Context) -> Outcome {
    let header = [0x2008_0522_u32, 0];
    let all = [u32::MAX, u32::MAX, 0, 0x1FF, 0x1FF, 0];
    call(sys::SYS_capset, &[at(&header), at(&all)]).map(drop).or_else(|error| {
        // Outside, a machine may lack some of them: one is enough.
        let one = [1_u32 << 21, 1 << 21, 0, 0, 0, 0];
        call(sys::SYS_capset, &[at(&header), at(&one)]).map(drop).map_err(|_| error)
    })
}

fn raise_limit(which: i64, by: u64) -> Outcome {
    let now = [0_u64; 2];
    call(sys::SYS_prlimit64, &[0, which, 0, at(&now)])?;
    let more = now[1].checked_add(by).ok_or_else(|| errno(EINVAL))?;
    call(sys::SYS_prlimit64, &[0, which, at(&[more, more]), 0]).map(drop)
}

fn deadline(_: &Context) -> Outcome {
    // struct sched_attr: size, SCHED_DEADLINE, flags, nice, priority, then runtime, deadline and
    // period in ns.
    let attr = [48_u64 | 6 << 32, 0, 0, 1_000_000, 10_000_000, 10_000_000];
    call(sys::SYS_sched_setattr, &[0, at(&attr), 0]).map(drop)
}

fn alarm(_: &Context) -> Outcome {
    const REALTIME_ALARM: i64 = 8;
    call(sys::SYS_timerfd_create, &[REALTIME_ALARM, 0]).map(drop)
}

/// A program that would act as root; its success is the harm.
fn as_root(argv: &[&str]) -> Outcome {
    let (program, arguments) = argv.split_first().expect("a program");
    let mut command = std::process::Command::new(program);
    command.args(arguments).stdin(std::process::Stdio::null());
    let status = command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).status();
    match status {
        Ok(status) => require(status.success()),
        // Not installed here: harmless.
        Err(error) if error.raw_os_error() == Some(ENOENT) => Err(errno(EPERM)),
        Err(error) => Err(error),
    }
}

/// The segment that the victim of another session created with this key.
fn shared_memory(context: &Context) -> Outcome {
    call(sys::SYS_shmget, &[context.number("H_KEY").into(), 1, 0]).map(drop)
}
