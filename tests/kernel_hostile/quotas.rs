//! Kernel quotas per user, per namespace, or of the whole machine. One sandbox takes all it can get
//! of each and keeps it. Then its neighbour, root on the host, and a new sandbox do the same
//! operation.
//!
//! ```text
//!   attacker   python: TAKE until it fails, prints "holds N ERRNO", sleeps
//!   neighbour  python: TAKE once, prints "took" or the errno
//!   root       the same script, outside
//! ```

use std::process::Command;
use std::time::Duration;

use ash_model::Limits;
use ash_protocol::init::{Exit, SpawnSpec};

use crate::host::{Host, output, patient, run, spec};

struct Quota {
    name: &'static str,
    /// Python: defines `take(n)`, which takes one more unit, keeps it, and raises `OSError` if
    /// there is none.
    take: &'static str,
    /// Units at which the attacker stops, to save time.
    most: u32,
    /// Units at which the sandbox's own limit must have stopped it; `None`: `most` is below the
    /// limit.
    bound: Option<u32>,
    /// The result of `take` in every sandbox if the kernel's interface is refused altogether.
    refused: Option<i32>,
}

impl Quota {
    const fn new(name: &'static str, most: u32, bound: Option<u32>, take: &'static str) -> Self {
        Self { name, take, most, bound, refused: None }
    }

    const fn refused(name: &'static str, errno: i32, take: &'static str) -> Self {
        Self { name, take, most: 1, bound: None, refused: Some(errno) }
    }
}

/// Raises the errno of a C library call that returned -1.
const PRELUDE: &str = "
import ctypes, errno, fcntl, os, resource, signal, socket, struct, sys, tempfile
libc = ctypes.CDLL(None, use_errno=True)
kept = []
def ok(result):
    if result < 0: raise OSError(ctypes.get_errno(), 'call')
    kept.append(result)
    return result
";

const QUOTAS: &[Quota] = &[
    Quota::new("inotify instances", 100_000, Some(512), "def take(n): ok(libc.inotify_init())"),
    Quota::new(
        "inotify watches",
        300_000,
        Some(131_072),
        "
fds = []
def take(n):
    path = b'/tmp/watched-%d' % (n % 4000)
    if n < 4000: os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    if n % 4000 == 0: fds.append(ok(libc.inotify_init()))
    ok(libc.inotify_add_watch(fds[-1], path, 2))
    if sys.argv[1] != 'take': return
    os.unlink(path)",
    ),
    Quota::new(
        "queued signals",
        200_000,
        Some(4096),
        "
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN])
def take(n): ok(libc.sigqueue(os.getpid(), int(signal.SIGRTMIN), None))",
    ),
    Quota::new(
        "POSIX timers",
        200_000,
        Some(4096),
        "
timer = ctypes.c_void_p()
def take(n): ok(libc.timer_create(1, None, ctypes.byref(timer)))",
    ),
    // Landlock has no rule for the file system of message queues, so they cannot be opened at all.
    Quota::refused(
        "bytes of POSIX message queues",
        libc::EACCES,
        "
def take(n):
    name = b'/ash-quota-%d' % (n if sys.argv[1] != 'take' else os.getpid())
    attr = (ctypes.c_long * 8)(0, 10, 8192)
    ok(libc.mq_open(name, os.O_CREAT | os.O_RDWR, 0o600, attr))
    if sys.argv[1] == 'take': libc.mq_unlink(name)",
    ),
    Quota::new(
        "locked shared memory",
        1000,
        Some(9),
        "
def take(n):
    segment = ok(libc.shmget(0, 1 << 20, 0o600))
    try: ok(libc.shmctl(segment, 11, None))
    finally:
        if sys.argv[1] == 'take': libc.shmctl(segment, 0, None)",
    ),
    Quota::new(
        "pages of pipes",
        3000,
        None,
        "
def take(n):
    pair = os.pipe()
    kept.extend(pair)
    # Beyond the quota a pipe gets two pages instead of sixteen.
    if fcntl.fcntl(pair[0], 1032) < 65536: raise OSError(errno.ENOSPC, 'a small pipe')",
    ),
    Quota::new("pseudo-terminals", 5000, Some(64), "def take(n): kept.append(os.openpty())"),
    Quota::new("open files", 65_536, None, "def take(n): kept.append(os.open('/dev/null', os.O_RDONLY))"),
    Quota::new(
        "processes",
        10_000,
        Some(64),
        "
def take(n):
    pid = os.fork()
    if pid == 0: signal.pause() if sys.argv[1] != 'take' else os._exit(0)",
    ),
    Quota::new("System V segments", 5000, Some(4096), "
def take(n):
    segment = ok(libc.shmget(0, 1, 0o600))
    if sys.argv[1] == 'take': libc.shmctl(segment, 0, None)"),
    Quota::new("System V semaphores", 40_000, Some(32_000), "
def take(n):
    array = ok(libc.semget(0, 1, 0o600))
    if sys.argv[1] == 'take': libc.semctl(array, 0, 0)"),
    Quota::new("System V message queues", 40_000, Some(32_000), "
def take(n):
    queue = ok(libc.msgget(0, 0o600))
    if sys.argv[1] == 'take': libc.msgctl(queue, 0, None)"),
    Quota::new("epoll watches", 200_000, None, "
polls = []
def take(n):
    if n % 4000 == 0: polls.append(ok(libc.epoll_create1(0)))
    if n < 4000: kept.append(os.dup(os.pipe()[0]))
    event = struct.pack('=IQ', 1, 0)
    target = kept[(n % 4000) + 1] if n >= 4000 else kept[-1]
    if libc.epoll_ctl(polls[-1], 1, target, event) < 0 and ctypes.get_errno() != errno.EEXIST:
        raise OSError(ctypes.get_errno(), 'epoll_ctl')"),
    Quota::new("descriptors in flight", 300, None, "
pairs = []
def take(n):
    if n % 200 == 0: pairs.append(socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)); pairs[-1][0].setblocking(False)
    try: socket.send_fds(pairs[-1][0], [b'x'], [0] * 100)
    except BlockingIOError: pairs.append(socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)); pairs[-1][0].setblocking(False)"),
    Quota::new("ports of loopback", 20_000, None, "
def take(n):
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(('127.0.0.1', 20000 + n if sys.argv[1] != 'take' else 0))
    kept.append(s)"),
    Quota::new("locks on files", 3000, None, "
lock, path = tempfile.mkstemp()
os.unlink(path)
def take(n): fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 2 * n)"),
    Quota::refused("asynchronous I/O", libc::ENOSYS, AIO),
    Quota::refused("flow labels of IPv6", libc::EPERM, "
def take(n):
    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    kept.append(s)
    # struct in6_flowlabel_req: dst, label, action GET, share EXCL, flags CREATE, expires, linger
    s.setsockopt(41, 32, socket.inet_pton(socket.AF_INET6, '::1') + struct.pack('=IBBHHHI', 0, 0, 1, 1, 6, 6, 0))"),
    Quota::refused("programs of socket filters", libc::EPERM, "
def take(n):
    s = socket.socket()
    kept.append(s)
    code = ctypes.create_string_buffer(struct.pack('=HBBI', 6, 0, 0, 0xffff))
    s.setsockopt(socket.SOL_SOCKET, 26, struct.pack('@HP', 1, ctypes.addressof(code)))"),
    Quota::refused("leases of files", libc::EPERM, "
lease, path = tempfile.mkstemp()
os.unlink(path)
def take(n): fcntl.fcntl(lease, 1024, fcntl.F_WRLCK)"),
];

/// All AIO events of the machine in one call, if available.
const AIO: &str = "
context = ctypes.c_ulong(0)
def take(n):
    context.value = 0
    number = {'x86_64': 206}.get(os.uname().machine, 0)
    ok(libc.syscall(number, 65536 if sys.argv[1] != 'take' else 1, ctypes.byref(context)))";

const HOLD: &str = "
n, why = 0, 0
try:
    while n < int(sys.argv[2]): take(n); n += 1
except OSError as error: why = error.errno
except (MemoryError, BlockingIOError): why = errno.ENOMEM
print('holds', n, why, flush=True)
signal.pause()
";

const TAKE: &str = "
try: take(0); print('took', flush=True)
except OSError as error: print(error.errno, flush=True)
";

impl Quota {
    fn script(&self, end: &str) -> String {
        format!("{PRELUDE}\n{}\n{end}", self.take)
    }

    fn inside(&self, end: &str, how: &str) -> SpawnSpec {
        let most = self.most.to_string();
        let argv = ["/usr/bin/python3", "-c", &self.script(end), how, &most].map(str::to_owned).to_vec();
        SpawnSpec { argv, ..spec("") }
    }

    /// As root, outside of every sandbox.
    fn outside(&self) -> String {
        let output = Command::new("/usr/bin/python3")
            .args(["-c", &self.script(TAKE), "take", "1"])
            .output()
            .expect("python on the host");
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    }
}

#[tokio::test]
async fn who_takes_all_of_a_quota_takes_it_from_itself_alone() {
    let host = Host::start("quotas");
    let launcher = host.client().await;
    let limits = Limits { memory_bytes: 512 << 20, swap_bytes: 0, pids: 64, cpu_millis: 1000, ..Limits::default() };
    let neighbour = host.sandbox(&launcher, limits).await;
    let mut beside = neighbour.take_events().expect("events");
    let mut wrong = Vec::new();
    for (child, quota) in (1..).zip(QUOTAS) {
        let attacker = host.sandbox(&launcher, limits).await;
        let file = tempfile::NamedTempFile::new().expect("output");
        let (out, err) = output(file.path());
        attacker.spawn(1, &quota.inside(HOLD, "hold"), out, err).await.expect("spawned");
        let holds = || std::fs::read_to_string(file.path()).unwrap_or_default();
        let started = std::time::Instant::now();
        while !holds().contains("holds") && started.elapsed() < patient(Duration::from_secs(60)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let held = holds();
        let words: Vec<&str> = held.split_whitespace().collect();
        let (taken, why): (u32, i32) = match words[..] {
            ["holds", n, why] => (n.parse().expect("a number"), why.parse().expect("an errno")),
            _ => panic!("{}: {held}", quota.name),
        };
        // While the attacker holds all of it.
        let (_, took) = crate::run(&neighbour, &mut beside, child, &quota.inside(TAKE, "take")).await;
        let root = quota.outside();
        let fresh = host.sandbox(&launcher, limits).await;
        let mut events = fresh.take_events().expect("events");
        let started = run(&fresh, &mut events, 1, "echo started").await;
        launcher.destroy(fresh.id()).await.expect("destroyed");
        launcher.destroy(attacker.id()).await.expect("destroyed");

        println!("{:<32} holds {taken} ({why}); neighbour {}, root {}", quota.name, took.trim(), root.trim());
        let wanted = quota.refused.map_or("took".to_owned(), |errno| errno.to_string());
        let mut check = |holds: bool, what: String| {
            if !holds {
                wrong.push(format!("{}: {what}", quota.name));
            }
        };
        check(took.trim() == wanted, format!("the neighbour got \"{}\" instead of {wanted}", took.trim()));
        check(root.trim() == "took", format!("root got \"{}\"", root.trim()));
        check(started == (Exit::Code(0), "started\n".to_owned()), format!("a new sandbox: {started:?}"));
        match (quota.refused, quota.bound) {
            (Some(errno), _) => check(taken == 0 && why == errno, format!("it took {taken}, then {why}")),
            (None, Some(bound)) => {
                check(taken <= bound && why != 0, format!("it took {taken} (then {why}), its own bound is {bound}"));
            }
            (None, None) => {}
        }
    }
    launcher.destroy(neighbour.id()).await.expect("destroyed");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
