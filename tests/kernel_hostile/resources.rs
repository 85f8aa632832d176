//! Exhaustion of processes, memory, descriptors and temporary files. It may affect the sandbox, but
//! not its neighbour or the host.

use std::time::{Duration, Instant};

use ash_model::Limits;
use ash_protocol::init::{Exit, SpawnSpec};
use ashd::sandbox::{Sandbox, SandboxEvent};

use crate::host::{Events, Host, output, patient, run, spec};

/// Limit for a neighbour's command that takes milliseconds, beside a bomb on a busy machine.
const NEIGHBOUR_WITHIN: Duration = Duration::from_secs(10);

struct Bomb {
    name: &'static str,
    /// Python, run as the payload. It prints `bounded` when it reaches its limit.
    script: &'static str,
    end: End,
}

enum End {
    Said,
    /// It prints it, or the kernel kills it at the memory limit.
    SaidOrKilled,
    /// It continues until it is destroyed.
    Endless,
}

const BOMBS: &[Bomb] = &[
    Bomb {
        name: "processes until there are no more",
        script: "import os, time\ntry:\n for n in range(100000):\n  if os.fork() == 0: time.sleep(1000)\nexcept OSError: print('bounded', n < 64, flush=True)",
        end: End::Said,
    },
    Bomb {
        name: "zombies by the thousand",
        script: "import os\ntry:\n for n in range(100000):\n  if os.fork() == 0: os._exit(0)\nexcept OSError: print('bounded', n < 64, flush=True)",
        end: End::Said,
    },
    Bomb {
        name: "threads until there are no more",
        script: "import threading, time, os\ntry:\n for n in range(100000): threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\nexcept (RuntimeError, OSError, MemoryError): print('bounded', n < 64, flush=True)\nos._exit(0)",
        end: End::Said,
    },
    Bomb {
        name: "descriptors until there are no more",
        script: "import os\ntry:\n for n in range(10**7): os.dup(0)\nexcept OSError: print('bounded', n < 65536, flush=True)",
        end: End::Said,
    },
    Bomb {
        name: "memory until there is no more",
        script: "held = []\ntry:\n while True: held.append(b'x' * (8 << 20))\nexcept MemoryError: print('bounded True', flush=True)",
        end: End::SaidOrKilled,
    },
    Bomb {
        name: "/tmp until it is full",
        script: "f = open('/tmp/fill', 'wb')\ntry:\n while True: f.write(b'x' * (1 << 20)); f.flush()\nexcept OSError: print('bounded True', flush=True)",
        end: End::SaidOrKilled,
    },
    Bomb {
        name: "names in /run until there are no more",
        script: "try:\n for n in range(10**6): open(f'/run/{n}', 'w').close()\nexcept OSError: print('bounded', n < 5000, flush=True)",
        end: End::Said,
    },
    Bomb {
        name: "anonymous files",
        script: "import os\nfd = os.memfd_create('x')\ntry:\n while True: os.write(fd, b'x' * (1 << 20))\nexcept OSError: print('bounded True', flush=True)",
        end: End::SaidOrKilled,
    },
    Bomb {
        name: "shared memory until there is no more",
        script: "f = open('/dev/shm/fill', 'wb')\ntry:\n while True: f.write(b'x' * (1 << 20)); f.flush()\nexcept OSError: print('bounded True', flush=True)",
        end: End::SaidOrKilled,
    },
    Bomb {
        name: "pseudo-terminals until there are no more",
        script: "import os\ntry:\n for n in range(100000): os.openpty()\nexcept OSError: print('bounded', n < 5000, flush=True)",
        end: End::Said,
    },
    Bomb {
        name: "watches on files",
        script: "import ctypes\nlibc = ctypes.CDLL(None)\nn = 0\nwhile libc.inotify_init() >= 0 and n < 10**6: n += 1\nprint('bounded', n < 70000, flush=True)",
        end: End::Said,
    },
    Bomb {
        name: "a fork bomb that never ends",
        script: "import os\nwhile True:\n try: os.fork()\n except OSError: pass",
        end: End::Endless,
    },
    Bomb {
        name: "processes that ignore every signal",
        script: "import os, signal\nfor s in range(1, 32):\n try: signal.signal(s, signal.SIG_IGN)\n except (OSError, ValueError): pass\nfor n in range(20):\n if os.fork() == 0: break\nwhile True: pass",
        end: End::Endless,
    },
];

fn python(script: &str) -> SpawnSpec {
    SpawnSpec { argv: vec!["/usr/bin/python3".into(), "-c".into(), script.into()], ..spec("") }
}

/// The exit of the child, or `None` when the whole sandbox died with it (cgroup v2 kills the
/// group).
async fn ended(events: &mut Events, child: u32, within: Duration) -> Option<Exit> {
    let wait = async {
        loop {
            match events.recv().await {
                Some(SandboxEvent::Exited { child: ended, status }) if ended == child => return Some(status),
                Some(SandboxEvent::Died) | None => return None,
                Some(_) => {}
            }
        }
    };
    tokio::time::timeout(within, wait).await.unwrap_or_else(|_| panic!("no end within {within:?}"))
}

async fn alive(neighbour: &Sandbox, events: &mut Events, child: u32, beside: &str) {
    let began = Instant::now();
    let (exit, text) = run(neighbour, events, child, "echo alive > /tmp/x && cat /tmp/x").await;
    assert_eq!((exit, text.as_str()), (Exit::Code(0), "alive\n"), "beside: {beside}");
    assert!(began.elapsed() < patient(NEIGHBOUR_WITHIN), "{:?} beside: {beside}", began.elapsed());
}

#[tokio::test]
async fn what_exhausts_resources_exhausts_its_own() {
    let host = Host::start("bombs");
    let launcher = host.client().await;
    let limits = Limits { memory_bytes: 128 << 20, swap_bytes: 0, pids: 64, cpu_millis: 500, ..Limits::default() };
    let neighbour = host.sandbox(&launcher, limits).await;
    let mut beside = neighbour.take_events().expect("events");
    for (child, bomb) in (1..).zip(BOMBS) {
        let sandbox = host.sandbox(&launcher, limits).await;
        let mut events = sandbox.take_events().expect("events");
        let file = tempfile::NamedTempFile::new().expect("output");
        let (out, err) = output(file.path());
        sandbox.spawn(1, &python(bomb.script), out, err).await.expect("spawned");
        let said = || std::fs::read_to_string(file.path()).unwrap_or_default();
        match bomb.end {
            End::Endless => {
                tokio::time::sleep(Duration::from_millis(500)).await;
                alive(&neighbour, &mut beside, child, bomb.name).await;
            }
            End::Said => {
                let exit = ended(&mut events, 1, patient(Duration::from_secs(60))).await;
                assert_eq!(
                    (exit, said().contains("bounded True")),
                    (Some(Exit::Code(0)), true),
                    "{}: {}",
                    bomb.name,
                    said()
                );
            }
            End::SaidOrKilled => {
                let exit = ended(&mut events, 1, patient(Duration::from_secs(60))).await;
                let killed = matches!(exit, None | Some(Exit::Signal(9)));
                assert!(killed || said().contains("bounded True"), "{}: {exit:?} {}", bomb.name, said());
            }
        }
        alive(&neighbour, &mut beside, 1000 + child, bomb.name).await;
        let began = Instant::now();
        launcher.destroy(sandbox.id()).await.unwrap_or_else(|error| panic!("{}: {error}", bomb.name));
        println!("{:<42} bounded; gone in {:?}", bomb.name, began.elapsed());
    }
    launcher.destroy(neighbour.id()).await.expect("destroyed");
}
