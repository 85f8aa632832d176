//! What a payload can see, and what it cannot do.

use ash_protocol::init::Exit;

use crate::sandbox::Sandbox;

pub const TESTS: &[crate::Test] = &[
    ("confinement::the_payload_has_nothing", the_payload_has_nothing),
    ("confinement::the_host_is_not_there", the_host_is_not_there),
    ("confinement::refused_calls_are_refused", refused_calls_are_refused),
    ("confinement::workloads_work", workloads_work),
    ("confinement::proc_tells_nothing_of_the_host", proc_tells_nothing_of_the_host),
    ("confinement::a_sync_of_all_disks_is_not_made", a_sync_of_all_disks_is_not_made),
    ("confinement::the_sandbox_owns_its_namespace_and_its_limits", the_sandbox_owns_its_namespace_and_its_limits),
];

fn the_payload_has_nothing() {
    let mut sandbox = Sandbox::new();
    let status = sandbox.sh(1, "cat /proc/self/status").out;
    ash_kernel::process::check_confined(&status, 1000).unwrap();
    let ended = sandbox.sh(2, "cat /proc/self/uid_map; hostname; cat /proc/self/cgroup | cut -d: -f3 | sort -u; ulimit -c; env | cut -d= -f1 | sort | tr '\\n' ' '; ls /proc/self/fd | wc -l");
    let uid = sandbox.ground.uid;
    let hostname = format!("ash-{}", &sandbox.ground.id.simple().to_string()[..8]);
    let lines: Vec<_> = ended.out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(&lines[..3], [format!("1000 {uid} 1"), format!("999 {} 1", uid + 1), hostname], "{ended:?}");
    assert_eq!(&lines[3..5], ["/", "0"], "the cgroup is the root of its namespace: {ended:?}");
    assert!(!ended.out.contains("CARGO"), "nothing of the launcher's environment: {ended:?}");
}

fn the_host_is_not_there() {
    let mut sandbox = Sandbox::new();
    let ended = sandbox.sh(1, "cat /proc/net/dev | tail -n +3 | cut -d: -f1 | tr -d ' '; echo --; ls /; echo --; ls /etc; echo --; ps -e -o pid= | wc -l; ls -d /proc/1 /sys /root /var /boot 2>&1");
    let parts: Vec<_> = ended.out.split("--\n").collect();
    assert_eq!(parts[0], "lo\n", "{ended:?}");
    for name in parts[1].lines() {
        let known = [
            "bin",
            "dev",
            "etc",
            "home",
            "lib",
            "lib32",
            "lib64",
            "libx32",
            "opt",
            "proc",
            "run",
            "sbin",
            "tmp",
            "usr",
            "workspace",
        ];
        assert!(known.contains(&name), "/{name} of the host is visible");
    }
    assert!(!parts[2].contains("shadow") && !parts[2].contains("cron"), "{ended:?}");
    assert_eq!(ended.out.matches("No such file").count(), 5, "{ended:?}");
    for (child, script) in (2..).zip([
        "echo > /usr/x",
        "echo > /etc/x",
        "echo > /x",
        "echo 1 > /proc/sys/kernel/panic",
        "echo b > /proc/sysrq-trigger",
        "echo 100 > /proc/self/oom_score_adj",
        "kill -9 1",
        "cat /proc/1/environ",
        "ls /proc/1/root",
        "mknod /tmp/sda b 8 0",
        "mknod /tmp/null c 1 3",
        "exec 3<>/dev/tcp/10.0.0.1/80",
        "ulimit -Hn 99999999",
        "mount -t tmpfs none /tmp",
        "chroot / true",
        "unshare -U true",
        "unshare -n true",
        "su -c true",
        "renice -n -5 -p $$",
        "head -c1 /dev/mem",
    ]) {
        let ended = sandbox.sh(child, script);
        assert!(ended.exit != Exit::Code(0) || !ended.err.is_empty(), "{script} worked: {ended:?}");
        assert_ne!(ended.exit, Exit::Signal(9), "{script}: {ended:?}");
    }
}

/// Raw calls by number (x86_64), with the required errno of each.
#[cfg(target_arch = "x86_64")]
fn refused_calls_are_refused() {
    let mut sandbox = Sandbox::new();
    let script = r#"
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
def call(n, *args):
    ctypes.set_errno(0)
    r = libc.syscall(ctypes.c_long(n), *[ctypes.c_long(a) for a in args])
    return 'OK' if r >= 0 else errno.errorcode[ctypes.get_errno()]
want = [
 ('unshare user', 'EPERM', (272, 0x10000000)), ('unshare net', 'EPERM', (272, 0x40000000)),
 ('clone newuser', 'EPERM', (56, 0x10000000 | 17, 0, 0, 0, 0)), ('clone3', 'ENOSYS', (435, 0, 0)),
 ('setns', 'EPERM', (308, 0, 0)), ('mount', 'EPERM', (165, 0, 0, 0, 0, 0)), ('bpf', 'EPERM', (321, 0, 0, 0)),
 ('perf', 'EPERM', (298, 0, 0, -1, -1, 0)), ('userfaultfd', 'EPERM', (323, 1)), ('keyctl', 'EPERM', (250, 0, -3, 0)),
 ('io_uring', 'ENOSYS', (425, 1, 0)), ('open_by_handle_at', 'EPERM', (304, -100, 0, 0)),
 ('pidfd_getfd', 'EPERM', (438, 0, 0, 0)), ('memfd_secret', 'EPERM', (447, 0)), ('fanotify', 'EPERM', (300, 0, 0)),
 ('personality READ_IMPLIES_EXEC', 'EPERM', (135, 0x0400000)), ('personality query', 'OK', (135, 0xffffffff)),
 ('TIOCSTI', 'EPERM', (16, 0, 0x5412, 0)), ('TIOCSTI with high bits', 'EPERM', (16, 0, 0x7700005412, 0)),
 ('socket packet', 'EPERM', (41, 17, 3, 0)), ('socket vsock', 'EPERM', (41, 40, 1, 0)), ('socket alg', 'EPERM', (41, 38, 5, 0)),
 ('netlink audit', 'EPERM', (41, 16, 3, 9)), ('netlink route', 'OK', (41, 16, 3, 0)), ('socket unix', 'OK', (41, 1, 1, 0)),
 ('socket inet', 'OK', (41, 2, 1, 0)), ('raw socket', 'EPERM', (41, 2, 3, 1)), ('reboot', 'EPERM', (169, 0, 0, 0)),
 ('x32 getpid', 'ENOSYS', (0x40000000 + 39,)), ('name_to_handle_at', 'EPERM', (303, 0, 0, 0, 0, 0)),
]
bad = [(name, wanted, got) for name, wanted, args in want if (got := call(*args)) != wanted]
print('bad', bad)
"#;
    let ended = sandbox.run(1, &["/usr/bin/python3", "-c", script]);
    assert_eq!(ended.out, "bad []\n", "{ended:?}");
}

#[cfg(not(target_arch = "x86_64"))]
fn refused_calls_are_refused() {
    panic!("the numbers of this machine's system calls are not written yet");
}

fn workloads_work() {
    let mut sandbox = Sandbox::new();
    for (child, (script, wanted)) in (1..).zip([
        ("git init -q r && cd r && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m x && git log --format=%s", "x\n"),
        ("python3 -c 'import multiprocessing as m; print(m.Pool(2).map(abs, [-1, 2]))'", "[1, 2]\n"),
        ("printf 'int main(){return 7;}' > t.c && gcc t.c -o t && ./t; echo $?", "7\n"),
        ("node -e 'const h=require(\"http\").createServer((q,r)=>r.end(\"hi\")).listen(0,\"127.0.0.1\",async()=>{console.log(await (await fetch(`http://127.0.0.1:${h.address().port}`)).text());require(\"os\").networkInterfaces();h.close()})'", "hi\n"),
        ("python3 -c 'import pty,os; pty.spawn([\"/bin/echo\",\"tty\"])'", "tty\r\n"),
        ("echo a > /dev/stderr; echo b | tee /dev/null | cat; df /tmp > /dev/null && echo ok", "b\nok\n"),
        ("mv /etc/passwd . 2>/dev/null; mkdir -p a/b && mv a /tmp/c && ls /tmp/c", "b\n"),
        ("getent hosts localhost | cut -d' ' -f1; id -un", "::1\nagent\n"),
    ]) {
        let ended = sandbox.sh(child, script);
        assert_eq!(ended.out, wanted, "{script}: {ended:?}");
    }
}

/// No file of /proc that a command can read identifies the host; only mountinfo has the paths of
/// the session's directories.
fn proc_tells_nothing_of_the_host() {
    let read = |path: &str| std::fs::read_to_string(path).unwrap().trim().to_owned();
    let mut sandbox = Sandbox::new();
    let directory = sandbox.ground.dir.path().display().to_string();
    let command_line = read("/proc/cmdline");
    let secrets = [
        read("/proc/sys/kernel/hostname"),
        read("/proc/sys/kernel/random/boot_id"),
        // Words that occur only in the command line, unchanged.
        command_line.split(' ').max_by_key(|word| word.len()).unwrap().to_owned(),
        command_line,
        read("/proc/version"),
        directory,
    ];
    assert!(secrets.iter().all(|secret| secret.len() > 1), "{secrets:?}");
    let script = r#"
import os, sys
secrets = [s.encode() for s in sys.argv[1:]]
for top, dirs, files in os.walk('/proc'):
    dirs[:] = [d for d in dirs if not (top == '/proc' and d.isdigit() and d != str(os.getpid())) and d not in ('task', 'cwd', 'root')]
    for name in files:
        path = os.path.join(top, name)
        # The arguments of this program.
        if name == 'cmdline' and top != '/proc' or name in ('kmsg', 'pagemap', 'mem'): continue
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError: continue
        try: text = os.read(fd, 1 << 20)
        except OSError: text = b''
        os.close(fd)
        for number, secret in enumerate(secrets):
            if secret in text: print(number, path.replace(str(os.getpid()), 'PID'))
print('read', flush=True)
"#;
    let mut argv = vec!["/usr/bin/python3", "-c", script];
    argv.extend(secrets.iter().map(String::as_str));
    let ended = sandbox.run(1, &argv);
    assert!(ended.out.ends_with("read\n"), "{ended:?}");
    let found: Vec<&str> =
        ended.out.lines().filter(|line| *line != "read" && *line != "5 /proc/PID/mountinfo").collect();
    // The kernel's name and a host named "vm" or "a" are part of many words; the test's host has a
    // distinctive name.
    let found: Vec<&&str> = found.iter().filter(|line| !(line.starts_with("0 ") && secrets[0].len() < 6)).collect();
    assert!(found.is_empty(), "{found:?} of {secrets:?}");
    let script = "free -b | grep -c Mem; nproc > /dev/null && uptime > /dev/null && ps -e > /dev/null && df / > /dev/null && cut -d' ' -f1-3 /proc/version; cat /proc/sys/fs/pipe-max-size";
    let ended = sandbox.sh(2, script);
    let release = read("/proc/sys/kernel/osrelease");
    assert_eq!(ended.out, format!("1\nLinux version {release}\n{}\n", read("/proc/sys/fs/pipe-max-size")), "{ended:?}");
}

/// syncfs(2) of a closed descriptor answers EBADF if the call is made.
fn a_sync_of_all_disks_is_not_made() {
    let mut sandbox = Sandbox::new();
    let script = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\nprint(libc.syncfs(-1), libc.fsync(-1))\nos.sync()\nf = open('x', 'w'); f.write('y'); f.flush(); os.fsync(f.fileno()); print('durable')";
    let ended = sandbox.run(1, &["/usr/bin/python3", "-c", script]);
    assert_eq!(ended.out, "0 -1\ndurable\n", "{ended:?}");
    assert_eq!(std::fs::read_to_string(sandbox.ground.path("workspace/x")).unwrap(), "y");
    let ended = sandbox.sh(2, "sync && sync -f . && sync x && echo ok");
    assert_eq!(ended.out, "ok\n", "{ended:?}");
}

fn the_sandbox_owns_its_namespace_and_its_limits() {
    let mut sandbox = Sandbox::new();
    // NS_GET_OWNER_UID, called from the host.
    let owner = "import fcntl, os, struct, sys\nfd = os.open('/proc/%s/ns/user' % sys.argv[1], os.O_RDONLY)\nprint(struct.unpack('I', fcntl.ioctl(fd, 0xb704, b'1234'))[0])";
    let pid = sandbox.started.pid.to_string();
    let said = std::process::Command::new("/usr/bin/python3").args(["-c", owner, &pid]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&said.stdout).trim(), (sandbox.ground.uid + 1).to_string(), "{said:?}");
    let ended = sandbox.sh(1, "ulimit -H -i; ulimit -H -q; ulimit -H -l; ulimit -H -r; ulimit -H -e; grep core /proc/self/limits | tr -s ' '; cat /proc/sys/user/max_user_namespaces /proc/sys/user/max_inotify_watches");
    let wanted = "4096\n819200\n8192\n0\n0\nMax core file size 1 1 bytes \n0\n131072\n";
    assert_eq!(ended.out, wanted, "{ended:?}");
    // The launcher is unchanged: root in every respect, and still dumpable.
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    assert!(status.contains("Uid:\t0\t0\t0\t0"), "{status}");
}
