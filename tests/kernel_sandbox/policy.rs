//! Each entry of the policies is needed by a workload, which breaks without it and works with it.
//! Unneeded entries would be needless openings.

use std::time::{Duration, Instant};

use ash_kernel::seccomp::Filters;
use ash_launcher::policy::{Policies, landlock, seccomp};
use ash_protocol::init::{Exit, InitReply};
use libc as sys;

use crate::patience::patient;
use crate::sandbox::{Ground, Sandbox, spec};

pub const TESTS: &[crate::Test] = &[
    ("policy::a_workload_breaks_without_its_system_calls", a_workload_breaks_without_its_system_calls),
    ("policy::a_workload_breaks_without_its_path", a_workload_breaks_without_its_path),
    ("policy::cargo_and_job_control_work", cargo_and_job_control_work),
];

/// Calls that are removed together (one can replace another), and what then breaks: a shell script,
/// and its output when it works.
type Needed = (&'static [i64], &'static str, &'static str);

/// What python prints for a call that fails with an errno.
macro_rules! python {
    ($code:literal) => {
        concat!("/usr/bin/python3 -c '", $code, "'")
    };
}

#[rustfmt::skip]
const CALLS: &[Needed] = &[
    // files
    (&[sys::SYS_pread64], python!("import os; print(os.pread(os.open(\"/etc/passwd\", 0), 4, 0))"), "b'root'\n"),
    (&[sys::SYS_fcntl], python!("import fcntl; f = open(\"/tmp/l\", \"w\"); fcntl.lockf(f, 2); print(1)"), "1\n"),
    (&[sys::SYS_flock], "flock /tmp/f echo locked", "locked\n"),
    (&[sys::SYS_fsync], "echo a > /tmp/s; sync /tmp/s && echo ok", "ok\n"),
    (&[sys::SYS_ftruncate, sys::SYS_truncate], "truncate -s 5 /tmp/t && stat -c %s /tmp/t", "5\n"),
    (&[sys::SYS_fallocate], "fallocate -l 5 /tmp/t && echo ok", "ok\n"),
    (&[sys::SYS_sendfile], python!("import os; r, w = os.pipe(); print(os.sendfile(w, os.open(\"/etc/passwd\", 0), 0, 4))"), "4\n"),
    (&[sys::SYS_ioctl], "python3 -c 'import pty; pty.spawn([\"/bin/echo\", \"tty\"])'", "tty\r\n"),
    // directories and attributes
    (&[sys::SYS_getdents64], "ls /workspace; ls -d /usr; ls / | grep -c workspace", "/usr\n1\n"),
    (&[sys::SYS_mkdirat, sys::SYS_mkdir], "mkdir /tmp/d && echo ok", "ok\n"),
    (&[sys::SYS_unlinkat, sys::SYS_unlink, sys::SYS_rmdir], "touch /tmp/u && rm /tmp/u && echo ok", "ok\n"),
    (&[sys::SYS_renameat, sys::SYS_renameat2, sys::SYS_rename],
        "git init -q g && cd g && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m x && git log --format=%s", "x\n"),
    (&[sys::SYS_linkat, sys::SYS_link], "touch /tmp/h && ln /tmp/h /tmp/h2 && echo ok", "ok\n"),
    (&[sys::SYS_symlinkat, sys::SYS_symlink], "ln -s a /tmp/y && readlink /tmp/y", "a\n"),
    (&[sys::SYS_fchmodat, sys::SYS_fchmodat2, sys::SYS_chmod], "touch /tmp/c && chmod 700 /tmp/c && echo ok", "ok\n"),
    (&[sys::SYS_utimensat, sys::SYS_utimes, sys::SYS_utime, sys::SYS_futimesat], "touch -d 2020-01-01 /tmp/o && date -r /tmp/o +%Y", "2020\n"),
    (&[sys::SYS_mknodat, sys::SYS_mknod], "mkfifo /tmp/p && echo ok", "ok\n"),
    (&[sys::SYS_inotify_init1, sys::SYS_inotify_init], python!("import ctypes; print(ctypes.CDLL(None).inotify_init() >= 0)"), "True\n"),
    (&[sys::SYS_setxattr], python!("import os; open(\"x\", \"w\"); os.setxattr(\"x\", \"user.a\", b\"b\"); print(1)"), "1\n"),
    (&[sys::SYS_umask], "umask 077; touch /tmp/m; stat -c %a /tmp/m", "600\n"),
    // memory
    (&[sys::SYS_mprotect], "node -e 'console.log([1,2,3].map(x => x * 2).join())'", "2,4,6\n"),
    (&[sys::SYS_memfd_create], python!("import os; print(os.memfd_create(\"x\") > 0)"), "True\n"),
    (&[sys::SYS_mlock, sys::SYS_mlock2], python!("import ctypes; b = ctypes.create_string_buffer(16); print(ctypes.CDLL(None).mlock(b, 16))"), "0\n"),
    // processes and threads
    (&[sys::SYS_munlockall], python!("import ctypes; print(ctypes.CDLL(None).munlockall())"), "0\n"),
    (&[sys::SYS_clone], "(echo child); echo parent", "child\nparent\n"),
    (&[sys::SYS_execve], "/bin/echo run", "run\n"),
    (&[sys::SYS_wait4, sys::SYS_waitid], "/bin/sh -c 'exit 3'; echo $?", "3\n"),
    (&[sys::SYS_futex], python!("import threading; t = threading.Thread(target=print, args=(1,)); t.start(); t.join()"), "1\n"),
    (&[sys::SYS_setpgid], "set -m; sleep 1 & [ $(ps -o pgid= -p $!) = $! ] && echo own", "own\n"),
    (&[sys::SYS_sched_getaffinity], python!("import os; print(len(os.sched_getaffinity(0)) > 0)"), "True\n"),
    (&[sys::SYS_prlimit64, sys::SYS_getrlimit], "ulimit -c", "0\n"),
    (&[sys::SYS_pidfd_open], python!("import os; print(os.pidfd_open(os.getpid()) > 0)"), "True\n"),
    // debuggers
    (&[sys::SYS_ptrace], python!("import ctypes; print(ctypes.CDLL(None).ptrace(0, 0, 0, 0))"), "0\n"),
    // signals
    (&[sys::SYS_rt_sigaction], "trap 'echo caught' USR1; kill -USR1 $$; echo on", "caught\non\n"),
    (&[sys::SYS_kill], "sleep 100 & kill %1 && wait; echo ended", "ended\n"),
    // identity
    (&[sys::SYS_setresuid], "id -u", "1000\n"),
    (&[sys::SYS_capset], "id -u", "1000\n"),
    (&[sys::SYS_geteuid], "id -u", "1000\n"),
    // programs that confine themselves
    (&[sys::SYS_landlock_restrict_self], "id -u", "1000\n"),
    // time
    (&[sys::SYS_clock_nanosleep, sys::SYS_nanosleep], "sleep 0.01 && echo woke", "woke\n"),
    (&[sys::SYS_timerfd_create], python!("import ctypes; print(ctypes.CDLL(None).timerfd_create(1, 0) > 0)"), "True\n"),
    // event loops
    (&[sys::SYS_epoll_create1, sys::SYS_epoll_create], "node -e 'setTimeout(() => console.log(1), 1)'", "1\n"),
    (&[sys::SYS_epoll_pwait, sys::SYS_epoll_wait], python!("import select; print(select.epoll().poll(0))"), "[]\n"),
    (&[sys::SYS_eventfd2, sys::SYS_eventfd], "node -e 'console.log(2)'", "2\n"),
    (&[sys::SYS_pipe2, sys::SYS_pipe], "echo a | cat", "a\n"),
    (&[sys::SYS_ppoll, sys::SYS_poll], python!("import select; print(select.poll().poll(0))"), "[]\n"),
    (&[sys::SYS_pselect6, sys::SYS_select], python!("import select; print(select.select([], [], [], 0))"), "([], [], [])\n"),
    // sockets
    (&[sys::SYS_socket], SERVER, "hi\n"),
    (&[sys::SYS_bind], SERVER, "hi\n"),
    (&[sys::SYS_listen], SERVER, "hi\n"),
    (&[sys::SYS_accept4, sys::SYS_accept], SERVER, "hi\n"),
    (&[sys::SYS_connect], SERVER, "hi\n"),
    (&[sys::SYS_socketpair], python!("import socket; print(len(socket.socketpair()))"), "2\n"),
    // System V and POSIX message passing
    (&[sys::SYS_shmget], "ipcmk -M 10 > /dev/null && echo ok", "ok\n"),
    (&[sys::SYS_semget], "ipcmk -S 1 > /dev/null && echo ok", "ok\n"),
    (&[sys::SYS_msgget], "ipcmk -Q > /dev/null && echo ok", "ok\n"),
    // randomness
    (&[sys::SYS_getrandom], python!("import os; print(len(os.getrandom(4)))"), "4\n"),
    // older forms
    (&[sys::SYS_arch_prctl], "echo loaded", "loaded\n"),
];

const SERVER: &str = "python3 -c 'import socket, threading\ns = socket.create_server((\"127.0.0.1\", 0))\nthreading.Thread(target=lambda: s.accept()[0].sendall(b\"hi\")).start()\nprint(socket.create_connection(s.getsockname()).recv(2).decode())'";

/// Any script that ends does so within this time on a plain machine.
const WITHIN: Duration = Duration::from_secs(10);

/// The output of a script under the whole policy, and without one part of it. A program that waits
/// for ever has not worked either: the second run gets three times the time of the first, plus
/// [`WITHIN`].
fn both(broken: &Policies, script: &str) -> (Option<String>, Option<String>) {
    let began = Instant::now();
    let works = said(&Policies::compile().unwrap(), script, patient(WITHIN));
    (works, said(broken, script, WITHIN + began.elapsed() * 3))
}

/// `None` when it does not end in time, or at all: init may die as well.
fn said(policies: &Policies, script: &str, within: Duration) -> Option<String> {
    std::panic::catch_unwind(|| run(policies, script, within)).ok().flatten()
}

fn run(policies: &Policies, script: &str, within: Duration) -> Option<String> {
    let ground = Ground::new();
    let (started, socket) = ground.start(policies).ok()?;
    let mut sandbox = Sandbox::of(ground, started, &socket);
    let (out, err) = (sandbox.file("out"), sandbox.file("err"));
    match sandbox.spawn_with(1, &spec(&["/bin/bash", "-c", script]), &out, &err) {
        InitReply::Spawned { .. } => {}
        InitReply::Error { .. } => return None,
        other => panic!("{other:?}"),
    }
    let exit = sandbox.await_exit_within(1, within)?;
    matches!(exit, Exit::Code(_)).then(|| crate::sandbox::text(&out))
}

fn without(calls: &[i64]) -> Policies {
    let mut policies = Policies::compile().unwrap();
    let allowed: Vec<i64> = seccomp::ALLOWED
        .iter()
        .copied()
        .flatten()
        .flat_map(|group| group.calls)
        .copied()
        .filter(|call| !calls.contains(call))
        .collect();
    let refused: Vec<_> = seccomp::REFUSED.iter().flat_map(|group| group.refusals()).collect();
    let answered: Vec<_> = seccomp::ANSWERED.iter().map(|(_, answer)| *answer).collect();
    policies.seccomp = Filters::compile(&allowed, &answered, &refused).unwrap();
    policies
}

#[cfg(target_arch = "x86_64")]
fn a_workload_breaks_without_its_system_calls() {
    let mut wrong = Vec::new();
    for (calls, script, wanted) in CALLS {
        let (works, broken) = both(&without(calls), script);
        println!("{calls:?}: {}", if broken.is_none() { "does not start" } else { "goes wrong" });
        if works.as_deref() != Some(wanted) {
            wrong.push(format!("{script}: does not work with the whole policy: {works:?}"));
        }
        if broken.as_deref() == Some(wanted) {
            wrong.push(format!("{script}: works without {calls:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for group in seccomp::ALLOWED.iter().copied().flatten() {
        let needed = CALLS.iter().any(|(calls, ..)| calls.iter().any(|call| group.calls.contains(call)));
        assert!(needed, "no workload is shown to need the group \"{}\"", group.why);
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn a_workload_breaks_without_its_system_calls() {
    panic!("the older forms of the calls differ on this machine: the table is not written yet");
}

/// Path of a rule, and what breaks without it.
const PATHS: &[(&str, &str, &str)] = &[
    ("/", "ls / | grep -c workspace", "1\n"),
    ("/usr", "/usr/bin/id -u", "1000\n"),
    ("/etc", "id -un", "agent\n"),
    ("/opt/claude", "/opt/claude/claude && echo ran", "ran\n"),
    ("/proc", "head -c5 /proc/self/status", "Name:"),
    ("/dev", "echo x > /dev/null && echo ok", "ok\n"),
    ("/dev/shm", "python3 -c 'import multiprocessing as m; print(m.Pool(2).map(abs, [-1]))'", "[1]\n"),
    ("/run", "echo x > /run/pid && cat /run/pid", "x\n"),
    ("/tmp", "printf 'int main(){return 7;}' > t.c && gcc t.c -o t && ./t; echo $?", "7\n"),
    ("/workspace", "echo x > w && cat w", "x\n"),
    ("/home/agent", "git config --global a.b c && git config a.b", "c\n"),
];

/// Read only by ashd's own probe, which is not part of these sandboxes: api_confinement fails
/// without it.
const ELSEWHERE: &[&str] = &["/opt/ashd"];

fn a_workload_breaks_without_its_path() {
    let mut wrong = Vec::new();
    for (path, script, wanted) in PATHS {
        let mut policies = Policies::compile().unwrap();
        policies.landlock.retain(|rule| rule.path != *path);
        let (works, broken) = both(&policies, script);
        if works.as_deref() != Some(wanted) {
            wrong.push(format!("{path}: {script}: does not work with the whole policy: {works:?}"));
        }
        if broken.as_deref() == Some(wanted) {
            wrong.push(format!("{path}: {script}: works without the rule"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for rule in landlock::RULES {
        let shown = PATHS.iter().any(|(path, ..)| *path == rule.path) || ELSEWHERE.contains(&rule.path);
        assert!(shown, "nothing is shown to need the rule for {}", rule.path);
    }
}

/// The toolchain that built this test, linked into the workspace.
fn cargo_and_job_control_work() {
    let ground = Ground::new();
    let sysroot = std::process::Command::new("rustc").args(["--print", "sysroot"]).output().expect("rustc");
    let sysroot = String::from_utf8(sysroot.stdout).expect("a path");
    let to = ground.path("workspace").join("rust");
    std::fs::create_dir(&to).expect("a directory");
    for part in ["bin", "lib"] {
        let from = format!("{}/{part}", sysroot.trim());
        let copy = |how: &str| std::process::Command::new("cp").args([how, &from]).arg(&to).status().expect("cp");
        // Hard links cost nothing; another file system needs a copy.
        if !copy("-al").success() {
            std::fs::remove_dir_all(to.join(part)).ok();
            assert!(copy("-a").success(), "{from}");
        }
    }
    let mut sandbox = Sandbox::on(ground);
    let build = "export PATH=/workspace/rust/bin:$PATH && cargo new -q --vcs none x && cd x && cargo run -q --offline";
    let ended = sandbox.sh(1, build);
    assert_eq!(ended.out, "Hello, world!\n", "{}", ended.err);
    // An interactive shell on a terminal: a job is stopped, listed and continued.
    let shell = r#"
import os, pty, select, sys, time
pid, fd = pty.fork()
if pid == 0:
    os.environ.update(PS1='', PS2='')
    os.execv('/bin/bash', ['bash', '--norc', '-i'])
def until(word):
    seen, end = '', time.time() + 20
    while word not in seen and time.time() < end:
        if select.select([fd], [], [], 0.1)[0]: seen += os.read(fd, 4096).decode()
    assert word in seen, seen
os.write(fd, b'echo re""ady\n'); until('ready')
os.write(fd, b'sleep 1000\n'); time.sleep(0.3)
os.write(fd, b'\x1a'); until('Stopped')
os.write(fd, b'bg; jobs\n'); until('Running')
os.write(fd, b'kill %1; wait; echo go""ne\n'); until('gone')
print('job control works')
"#;
    let ended = sandbox.run(2, &["/usr/bin/python3", "-c", shell]);
    assert_eq!(ended.out, "job control works\n", "{}", ended.err);
}
