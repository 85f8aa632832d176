//! Unread data in sockets and pipes is kernel memory, and counts for the sandbox.

use std::time::Duration;

use ash_model::Limits;
use ash_protocol::init::{Exit, SpawnSpec};

use crate::host::{Host, output, patient, run, spec};

/// Bytes of one memory limit, and of TCP and UDP memory, which cgroup v1 counts separately.
const MEMORY: u64 = 256 << 20;
const SOCKETS: u64 = 32 << 20;
/// What the kernel allows each socket in any case, for all sockets of a test: one more page each
/// way.
const SLACK: u64 = 24 << 20;

/// Connections whose receiver never reads, filled until the kernel accepts no more.
const TCP: &str = "
import socket, resource
held = []
s = socket.create_server(('127.0.0.1', 0), backlog=512)
for n in range(400):
    a = socket.create_connection(s.getsockname()); b, _ = s.accept(); held += [a, b]
    a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20); b.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    a.setblocking(False)
    try:
        while True: a.send(b'x' * 65536)
    except BlockingIOError: pass
print('full', flush=True); import signal; signal.pause()";

const UDP: &str = "
import socket
held = []
for n in range(2000):
    b = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); b.bind(('127.0.0.1', 0)); b.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    a = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); a.connect(b.getsockname()); held += [b]
    for i in range(64): a.send(b'x' * 60000)
print('full', flush=True); import signal; signal.pause()";

/// Unix sockets and pipes count for the memory limit: filling them is refused, or ends in a kill.
const UNIX: &str = "
import socket
held = []
for n in range(8000):
    a, b = socket.socketpair(); held += [a, b]; a.setblocking(False)
    try:
        while True: a.send(b'x' * 65536)
    except BlockingIOError: pass
print('full', flush=True); import signal; signal.pause()";

const PIPES: &str = "
import os, fcntl
held = []
for n in range(8000):
    r, w = os.pipe(); held += [r, w]; os.set_blocking(w, False)
    try:
        while True: os.write(w, b'x' * 65536)
    except BlockingIOError: pass
print('full', flush=True); import signal; signal.pause()";

/// TCP pages of the whole machine (proc(5), `sockstat`), in bytes; and of UDP.
fn of_the_machine(protocol: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/net/sockstat").expect("sockstat");
    let line = text.lines().find(|line| line.starts_with(&format!("{protocol}:"))).expect("a line");
    let mut words = line.split(' ').skip_while(|word| *word != "mem").skip(1);
    words.next().and_then(|word| word.parse::<u64>().ok()).expect("pages") * 4096
}

fn python(script: &str) -> SpawnSpec {
    SpawnSpec { argv: vec!["/usr/bin/python3".into(), "-c".into(), script.into()], ..spec("") }
}

#[tokio::test]
async fn what_is_queued_in_sockets_counts_as_the_sandboxs() {
    let host = Host::start("sockets");
    let launcher = host.client().await;
    let limits = Limits { memory_bytes: MEMORY, swap_bytes: 0, pids: 64, ..Limits::default() };
    for (protocol, script) in [("TCP", TCP), ("UDP", UDP), ("unix", UNIX), ("pipes", PIPES)] {
        let sandbox = host.sandbox(&launcher, limits).await;
        let group = sandbox.info.cgroup.clone();
        let memory = group.memory.clone().expect("a memory controller");
        let number = |file: &str| -> u64 {
            std::fs::read_to_string(memory.join(file)).map_or(0, |text| text.trim().parse().unwrap_or(0))
        };
        let internet = protocol == "TCP" || protocol == "UDP";
        let before = if internet { of_the_machine(protocol) } else { 0 };
        let mut events = sandbox.take_events().expect("events");
        let file = tempfile::NamedTempFile::new().expect("output");
        let (out, err) = output(file.path());
        sandbox.spawn(1, &python(script), out, err).await.expect("spawned");
        let began = std::time::Instant::now();
        let said = || std::fs::read_to_string(file.path()).unwrap_or_default();
        let (mut most, mut killed) = (0, false);
        while !said().contains("full") && !killed {
            assert!(began.elapsed() < patient(Duration::from_secs(60)), "{protocol}: {}", said());
            tokio::time::sleep(Duration::from_millis(20)).await;
            if internet {
                most = most.max(of_the_machine(protocol).saturating_sub(before));
            }
            killed = sandbox.stat().await.is_ok_and(|all| all.iter().any(|child| child.exited.is_some()));
        }
        if internet {
            most = most.max(of_the_machine(protocol).saturating_sub(before));
        }
        let (used, beside) = (number("memory.usage_in_bytes"), number("memory.kmem.tcp.usage_in_bytes"));
        println!(
            "{protocol}: the machine {} MiB more, the group {} MiB, beside it {} MiB{}",
            most >> 20,
            used >> 20,
            beside >> 20,
            if killed { ", killed" } else { "" }
        );
        let bound = if group.v1 { SOCKETS + SLACK } else { MEMORY };
        assert!(most <= bound, "{protocol}: {} MiB of buffers, {} MiB are allowed", most >> 20, bound >> 20);
        assert!(!killed || !internet, "{protocol}: it is slowed down, not killed: {}", said());
        if !internet {
            // 8000 sockets or pipes exceed the limit: either it was reached, or the kernel's own
            // limits came first.
            assert!(killed || used <= MEMORY, "{protocol}: {} MiB", used >> 20);
        }
        // Another sandbox is served meanwhile.
        let neighbour = host.sandbox(&launcher, limits).await;
        let mut beside = neighbour.take_events().expect("events");
        let script = "python3 -c \"import socket, threading; s = socket.create_server(('127.0.0.1', 0)); c = socket.create_connection(s.getsockname()); a, _ = s.accept(); threading.Thread(target=lambda: (c.sendall(b'x' * (1 << 20)), c.close())).start(); print(sum(len(p) for p in iter(lambda: a.recv(65536), b'')))\"";
        let (exit, text) = run(&neighbour, &mut beside, 1, script).await;
        assert_eq!((exit, text.as_str()), (Exit::Code(0), "1048576\n"), "beside {protocol}");
        launcher.destroy(neighbour.id()).await.expect("destroyed");
        drop(events.try_recv());
        launcher.destroy(sandbox.id()).await.expect("destroyed");
    }
}

#[tokio::test]
async fn buffers_of_sockets_follow_a_changed_memory_limit() {
    let host = Host::start("follow");
    let launcher = host.client().await;
    let sandbox = host.sandbox(&launcher, Limits { memory_bytes: MEMORY, ..Limits::default() }).await;
    let group = sandbox.info.cgroup.clone();
    let sockets = || {
        let memory = group.memory.clone().expect("a memory controller");
        std::fs::read_to_string(memory.join("memory.kmem.tcp.limit_in_bytes")).map(|text| text.trim().parse::<u64>())
    };
    if group.v1 {
        assert_eq!(sockets().expect("v1"), Ok(SOCKETS));
        for (memory, wanted) in [(64 << 20, 8 << 20), (8 << 30, 64 << 20), (MEMORY, SOCKETS)] {
            let limits = Limits { memory_bytes: memory, ..Limits::default() };
            launcher.set_limits(sandbox.id(), limits).await.expect("changed");
            assert_eq!(sockets().expect("v1"), Ok(wanted));
        }
    } else {
        // cgroup v2 counts them in memory.max, and has no separate file.
        let stat =
            std::fs::read_to_string(group.memory.expect("a controller").join("memory.stat")).expect("memory.stat");
        assert!(stat.lines().any(|line| line.starts_with("sock ")), "{stat}");
    }
    launcher.destroy(sandbox.id()).await.expect("destroyed");
}
