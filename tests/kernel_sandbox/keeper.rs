//! Commands with a deadline: none of their processes outlives it, and no other process is affected.

use std::time::{Duration, Instant};

use ash_protocol::init::{Exit, InitReply};

use crate::patience::patient;
use crate::sandbox::{Ended, Sandbox, spec, text};

pub const TESTS: &[crate::Test] = &[
    ("keeper::ends_are_told_as_a_shell_tells_them", ends_are_told_as_a_shell_tells_them),
    ("keeper::the_deadline_ends_every_descendant_and_nobody_else", the_deadline_ends_every_descendant_and_nobody_else),
    ("keeper::what_a_command_leaves_in_the_background_goes_on", what_a_command_leaves_in_the_background_goes_on),
    ("keeper::the_payload_cannot_harm_its_keeper", the_payload_cannot_harm_its_keeper),
    ("keeper::a_failed_start_leaves_no_keeper", a_failed_start_leaves_no_keeper),
];

const TIMED_OUT: Exit = Exit::Signal(14);

fn timed(sandbox: &mut Sandbox, child: u32, argv: &[&str], within_ms: u64) -> Ended {
    let (out, err) = (sandbox.file(&format!("out{child}")), sandbox.file(&format!("err{child}")));
    let mut spec = spec(argv);
    spec.within_ms = Some(within_ms);
    let reply = sandbox.spawn_with(child, &spec, &out, &err);
    assert!(matches!(reply, InitReply::Spawned { .. }), "{argv:?}: {reply:?}");
    let exit = sandbox.await_exit(child);
    Ended { exit, out: text(&out), err: text(&err) }
}

/// Names of all running processes except init.
fn running(sandbox: &Sandbox) -> Vec<String> {
    let procs = sandbox.ground.leaf.as_ref().unwrap().paths().unified.join("cgroup.procs");
    let pids = std::fs::read_to_string(procs).unwrap();
    let init = sandbox.started.pid.to_string();
    let name = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned();
    pids.lines().filter(|pid| *pid != init).map(name).collect()
}

fn ends_are_told_as_a_shell_tells_them() {
    let mut sandbox = Sandbox::new();
    for (child, (script, exit)) in (1..).zip([
        ("true", Exit::Code(0)),
        ("exit 7", Exit::Code(7)),
        ("exit 124", Exit::Code(124)),
        ("kill -9 $$", Exit::Code(137)),
        // The exit status of a time-out, reported differently.
        ("kill -14 $$", Exit::Code(142)),
        ("kill -64 $$", Exit::Code(192)),
        ("echo out; echo err >&2; (sleep 0.05; exit 3) & wait $!", Exit::Code(3)),
    ]) {
        let ended = timed(&mut sandbox, child, &["/bin/bash", "-c", script], 20_000);
        assert_eq!(ended.exit, exit, "{script}: {ended:?}");
    }
    assert_eq!(running(&sandbox), Vec::<String>::new());
}

fn the_deadline_ends_every_descendant_and_nobody_else() {
    let mut sandbox = Sandbox::new();
    let (out, err) = (sandbox.file("out"), sandbox.file("err"));
    let beside = spec(&["/bin/sleep", "999"]);
    assert!(matches!(sandbox.spawn_with(1, &beside, &out, &err), InitReply::Spawned { .. }));
    // Two daemons with the classical double fork; one is a subreaper and ignores all signals it
    // can.
    let daemons = r"
import ctypes, os, signal, time
libc = ctypes.CDLL(None)
for reaper in (0, 1):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            libc.prctl(36, reaper)
            for s in (1, 2, 14, 15): signal.signal(s, signal.SIG_IGN)
            for _ in range(3):
                if os.fork() == 0: os.setsid(); time.sleep(999)
            time.sleep(999)
        os._exit(0)
    os.wait()
";
    // A chain: each process forks the next and ends, so that none lives for long.
    let chain = "import os\nwhile True:\n    if os.fork(): os._exit(0)\n    os.setsid()\n";
    for (child, argv) in (2..).zip([
        vec!["/bin/sleep", "998"],
        vec!["/bin/bash", "-c", "trap '' TERM INT HUP ALRM; while :; do sleep 998; done"],
        vec!["/bin/bash", "-c", "setsid sleep 998 & setsid -f sleep 998; (setsid setsid -f sleep 998 &); sleep 998"],
        vec!["/bin/bash", "-c", "setsid -f bash -c 'sleep 998 & sleep 998' </dev/null >/dev/null 2>&1; sleep 998"],
        vec!["/usr/bin/python3", "-c", &format!("{daemons}\ntime.sleep(999)")],
        vec!["/bin/bash", "-c", "kill -STOP $$"],
        // The command itself has ended before the deadline: its chain counts as the command.
        vec!["/usr/bin/python3", "-c", &format!("import os,time\nif os.fork():\n    time.sleep(999)\n{chain}")],
        vec!["/bin/bash", "-c", "f() { sleep 998 & f2; }; for i in $(seq 60); do setsid sleep 998 & done; wait"],
    ]) {
        let began = Instant::now();
        let ended = timed(&mut sandbox, child, &argv, 700);
        let took = began.elapsed();
        assert_eq!(ended.exit, TIMED_OUT, "{argv:?}: {ended:?}");
        assert!(
            (Duration::from_millis(700)..patient(Duration::from_secs(6))).contains(&took),
            "{argv:?} took {took:?}"
        );
        assert_eq!(running(&sandbox), ["sleep"], "only the command beside is left after {argv:?}");
    }
    assert_eq!(sandbox.sh(90, "echo still here").out, "still here\n");
}

fn what_a_command_leaves_in_the_background_goes_on() {
    let mut sandbox = Sandbox::new();
    let script = "setsid sleep 997 >/dev/null 2>&1 & echo left";
    let ended = timed(&mut sandbox, 1, &["/bin/bash", "-c", script], 500);
    assert_eq!((ended.exit, ended.out.as_str()), (Exit::Code(0), "left\n"));
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(running(&sandbox), ["sleep"]);
}

fn the_payload_cannot_harm_its_keeper() {
    let mut sandbox = Sandbox::new();
    let script = "for s in 9 15 19 14 17; do kill -$s $PPID && echo sent $s; done 2>&1; \
        echo 999 > /proc/$PPID/oom_score_adj && echo written; ls /proc/$PPID/fd && echo listed; sleep 996";
    let ended = timed(&mut sandbox, 1, &["/bin/bash", "-c", script], 800);
    assert_eq!(ended.exit, TIMED_OUT, "{ended:?}");
    assert_eq!(ended.out.matches("not permitted").count(), 5, "{ended:?}");
    for word in ["sent", "written", "listed"] {
        assert!(!ended.out.contains(word), "{ended:?}");
    }
    assert_eq!(running(&sandbox), Vec::<String>::new());
}

fn a_failed_start_leaves_no_keeper() {
    let mut sandbox = Sandbox::new();
    let null = std::fs::File::open("/dev/null").unwrap().into();
    let mut missing = spec(&["/usr/bin/no-such-program"]);
    missing.within_ms = Some(1000);
    let reply = sandbox.spawn_with(1, &missing, &null, &null);
    let InitReply::Error { step, message } = reply else { panic!("no error: {reply:?}") };
    assert_eq!(step, "execve", "{message}");
    let began = Instant::now();
    while !running(&sandbox).is_empty() {
        assert!(began.elapsed() < patient(Duration::from_secs(5)), "{:?}", running(&sandbox));
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(sandbox.events.is_empty(), "{:?}", sandbox.events);
}
