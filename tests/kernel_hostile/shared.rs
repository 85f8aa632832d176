//! Files of the host that are visible in every sandbox: kernel state of a file (locks, watches)
//! stays within its sandbox.

use std::process::Command;
use std::time::Duration;

use ash_model::Limits;
use ash_protocol::init::SpawnSpec;

use crate::host::{Host, output, patient, run, spec};

/// Locks and watches each path, reports it, and counts the events until a file tells it to end.
const ATTACK: &str = "
import ctypes, errno, fcntl, os, time
libc = ctypes.CDLL(None, use_errno=True)
watch = libc.inotify_init1(os.O_NONBLOCK)
kept = []
for path in PATHS:
    fd = os.open(path, os.O_RDONLY)
    kept.append(fd)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if not os.path.isdir(path) and not path.startswith('/dev'): fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    # IN_ALL_EVENTS
    if libc.inotify_add_watch(watch, path.encode(), 0xfff) < 0: raise OSError(ctypes.get_errno(), path)
own = open(PATHS[0]).close()
time.sleep(0.1)
# Its own events are there: the watch works.
assert os.read(watch, 1 << 20)
print('holds', flush=True)
while not os.path.exists('/workspace/end'): time.sleep(0.01)
try: print('saw', len(os.read(watch, 1 << 20)), flush=True)
except BlockingIOError: print('saw 0', flush=True)
";

const VICTIM: &str = "
import fcntl, os
for path in PATHS:
    fd = os.open(path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)
print('locked', flush=True)
";

const FILES: &[&str] = &[
    "/usr/bin/env",
    "/usr/lib",
    "/usr",
    "/etc/ld.so.cache",
    "/etc/ssl/certs",
    "/etc/protocols",
    "/dev/null",
    "/dev/urandom",
];
/// Only in sandboxes.
const PROGRAMS: &[&str] = &["/opt/claude/claude", "/opt/ashd/ash-probe"];

fn script(text: &str, paths: &[&str]) -> String {
    format!("import os\nPATHS = [path for path in {paths:?} if os.path.exists(path)]\n{text}")
}

#[tokio::test]
async fn locks_and_watches_on_the_hosts_files_stay_within_the_sandbox() {
    let host = Host::start("shared");
    let launcher = host.client().await;
    let attacker = host.sandbox(&launcher, Limits::default()).await;
    let neighbour = host.sandbox(&launcher, Limits::default()).await;
    let paths = [FILES, PROGRAMS].concat();
    let python = |text: &str| {
        let argv = ["/usr/bin/python3", "-c", &script(text, &paths)].map(str::to_owned).to_vec();
        SpawnSpec { argv, ..spec("") }
    };
    let file = tempfile::NamedTempFile::new().expect("output");
    let (out, err) = output(file.path());
    let said = || std::fs::read_to_string(file.path()).unwrap_or_default();
    attacker.spawn(1, &python(ATTACK), out, err).await.expect("spawned");
    let until = async |word: &str| {
        let started = std::time::Instant::now();
        while !said().contains(word) && started.elapsed() < patient(Duration::from_secs(20)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(said().contains(word), "the attacker: {}", said());
    };
    until("holds").await;

    let mut beside = neighbour.take_events().expect("events");
    let (_, inside) = crate::run(&neighbour, &mut beside, 1, &python(VICTIM)).await;
    assert_eq!(inside.trim(), "locked", "the neighbour");
    let root =
        Command::new("/usr/bin/python3").args(["-c", &script(VICTIM, FILES)]).output().expect("python on the host");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    assert_eq!(text(&root.stdout), "locked", "root: {}", text(&root.stderr));
    // A new sandbox can run all of the programs.
    let fresh = host.sandbox(&launcher, Limits::default()).await;
    let mut events = fresh.take_events().expect("events");
    run(&fresh, &mut events, 1, "/usr/bin/env true </dev/null >/dev/null; head -c 1 /dev/urandom >/dev/null").await;

    std::fs::write(host.session_dir(attacker.id()).join("workspace/end"), "").expect("the word to end");
    until("saw").await;
    assert!(said().ends_with("saw 0\n"), "what others do is told to a sandbox: {}", said());
    for sandbox in [attacker, neighbour, fresh] {
        launcher.destroy(sandbox.id()).await.expect("destroyed");
    }
}
