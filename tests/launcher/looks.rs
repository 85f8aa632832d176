//! Information that the launcher collects for ashd: OOM kills, and disk space held by files without
//! a name.

use std::time::Duration;

use ash_model::Limits;
use ash_protocol::init::{Exit, SpawnSpec};
use ashd::sandbox::Sandbox;

use crate::host::{Host, exit_of, output, patient, run, spec};

fn python(script: &str) -> SpawnSpec {
    SpawnSpec { argv: vec!["/usr/bin/python3".into(), "-c".into(), script.into()], ..spec("") }
}

async fn background(sandbox: &Sandbox, child: u32, spec: &SpawnSpec) {
    let file = tempfile::NamedTempFile::new().expect("output");
    let (out, err) = output(file.path());
    sandbox.spawn(child, spec, out, err).await.expect("spawned");
}

#[tokio::test]
async fn the_killed_are_named_each_to_its_own_sandbox_and_over_a_new_program() {
    let host = Host::start("victims");
    let launcher = host.client().await;
    let small = Limits { memory_bytes: 64 << 20, swap_bytes: 0, ..Limits::default() };
    let (one, other) = (host.sandbox(&launcher, small).await, host.sandbox(&launcher, small).await);
    let mut events = one.take_events().expect("events");
    assert_eq!(launcher.victims(one.id()).await.expect("asked"), Some(Vec::new()), "the log can be read here");
    // The new program reads log entries from before the exec; it could not open the log itself.
    background(&one, 1, &spec("tail /dev/zero")).await;
    if one.info.cgroup.v1 {
        assert_eq!(exit_of(&mut events, 1).await, Exit::Code(137));
    } else {
        tokio::time::sleep(patient(Duration::from_secs(2))).await;
    }
    host.signal(nix::sys::signal::Signal::SIGUSR2);
    let victims = launcher.victims(one.id()).await.expect("asked").expect("readable");
    assert_eq!(victims.iter().map(|v| v.process.as_str()).collect::<Vec<_>>(), ["tail"], "{}", host.log());
    assert!(victims[0].resident_bytes > 32 << 20 && !victims[0].of_host, "{victims:?}");
    assert_eq!(launcher.victims(other.id()).await.expect("asked"), Some(Vec::new()));
    let uid = one.info.uid;
    launcher.destroy(one.id()).await.expect("destroyed");
    assert!(launcher.victims(one.id()).await.is_err());
    // The next sandbox has another uid, so nothing of this one is attributed to it.
    let next = host.sandbox(&launcher, small).await;
    assert_ne!(next.info.uid, uid);
    assert_eq!(launcher.victims(next.id()).await.expect("asked"), Some(Vec::new()));
    for sandbox in [other, next] {
        launcher.destroy(sandbox.id()).await.expect("destroyed");
    }
}

#[tokio::test]
async fn what_has_no_name_is_counted_however_it_is_held() {
    let host = Host::start("held");
    let launcher = host.client().await;
    let sandbox = host.sandbox(&launcher, Limits::default()).await;
    let mut events = sandbox.take_events().expect("events");
    let held = async || launcher.held(sandbox.id()).await.expect("asked");
    let before = held().await;
    assert!(!before.hidden && before.bytes < 1 << 20, "{before:?}");
    // An open descriptor, a mapping, a thread with its own descriptors, and a file with a name,
    // which does not count.
    let scripts = [
        "import os, time\nf = open('/workspace/a', 'wb'); f.write(b'x' * (8 << 20)); f.flush(); os.unlink('/workspace/a'); time.sleep(60)",
        "import mmap, os, time\nf = os.open('/workspace/b', os.O_RDWR | os.O_CREAT); os.write(f, b'x' * (8 << 20))\n\
         m = mmap.mmap(f, 8 << 20); os.close(f); os.unlink('/workspace/b'); time.sleep(60)",
        "import os, time\nf = os.open('/workspace', os.O_TMPFILE | os.O_RDWR); os.write(f, b'x' * (8 << 20)); os.write(os.dup(f), b'')\ntime.sleep(60)",
        "import time\nf = open('/workspace/d', 'wb'); f.write(b'x' * (8 << 20)); f.flush(); time.sleep(60)",
    ];
    for (child, script) in (1..).zip(scripts) {
        background(&sandbox, child, &python(script)).await;
    }
    let wanted = (3 * (8 << 20) + before.bytes)..(3 * (8 << 20) + before.bytes + (2 << 20));
    let mut now = held().await;
    for _ in 0..100 {
        if wanted.contains(&now.bytes) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        now = held().await;
    }
    assert!(wanted.contains(&now.bytes) && now.files >= 3 && !now.hidden, "{now:?}");
    // In transit between processes, without a descriptor: it cannot be counted, and that is
    // reported.
    let send = "import os, socket, time\na, b = socket.socketpair(socket.AF_UNIX)\n\
        f = os.open('/workspace', os.O_TMPFILE | os.O_RDWR)\nsocket.send_fds(a, [b'x'], [f]); os.close(f); time.sleep(60)";
    background(&sandbox, 9, &python(send)).await;
    for _ in 0..100 {
        if held().await.hidden {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(held().await.hidden);
    // A frozen one is inspected as well, and others are served meanwhile.
    assert_eq!(run(&sandbox, &mut events, 20, "echo here").await, (Exit::Code(0), "here\n".into()));
    launcher.destroy(sandbox.id()).await.expect("destroyed");
}
