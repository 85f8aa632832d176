//! PID 1: reaping, stdin, signals, hostile packets.

use std::io::Write;
use std::os::fd::AsFd;

use ash_kernel::seqpacket;
use ash_protocol::init::{Exit, InitEvent, InitReply, InitRequest, Listener};

use crate::sandbox::{Sandbox, spec, text};

pub const TESTS: &[crate::Test] = &[
    ("init::reaps_a_hundred_orphans", reaps_a_hundred_orphans),
    ("init::delivers_whole_and_once", delivers_whole_and_once),
    ("init::a_reader_that_stops_loses_nothing_of_others", a_reader_that_stops_loses_nothing_of_others),
    ("init::signals_reach_the_group", signals_reach_the_group),
    ("init::bad_requests_are_answered_or_cut_off", bad_requests_are_answered_or_cut_off),
    ("init::listeners_are_handed_out", listeners_are_handed_out),
    ("init::a_failed_exec_is_told_and_reaped", a_failed_exec_is_told_and_reaped),
    ("init::output_of_background_jobs_is_discarded", output_of_background_jobs_is_discarded),
];

fn error(reply: InitReply) -> String {
    match reply {
        InitReply::Error { step, message } => format!("{step}: {message}"),
        other => panic!("no error: {other:?}"),
    }
}

fn reaps_a_hundred_orphans() {
    let mut sandbox = Sandbox::new();
    let ended = sandbox.sh(1, "for i in $(seq 100); do (sleep 0.2 & ); done; sleep 1");
    assert_eq!(ended.exit, Exit::Code(0), "{}", ended.err);
    let procs = std::fs::read_to_string(sandbox.ground.leaf.as_ref().unwrap().paths().unified.join("cgroup.procs"));
    assert_eq!(procs.unwrap().lines().count(), 1, "only init is left, and no zombie");
}

fn delivers_whole_and_once() {
    let mut sandbox = Sandbox::new();
    let (out, err) = (sandbox.file("out"), sandbox.file("err"));
    let mut cat = spec(&["/bin/cat"]);
    cat.stdin = true;
    assert!(matches!(sandbox.spawn_with(7, &cat, &out, &err), InitReply::Spawned { .. }));
    let large: Vec<u8> = (0..5_000_000_u32).map(|i| b'a' + (i % 23) as u8).collect();
    let parts: [&[u8]; 4] = [b"one\n", &large, b"", b"three\n"];
    for (number, part) in (1..).zip(parts) {
        let file = sandbox.message(part);
        for _twice in 0..2 {
            let reply = sandbox.ask(InitRequest::Deliver { child: 7, message: number }, &[&file]);
            assert!(matches!(reply, InitReply::Done), "{reply:?}");
        }
    }
    assert!(matches!(sandbox.ask(InitRequest::CloseStdin { child: 7 }, &[]), InitReply::Done));
    for number in 1..=4 {
        sandbox.await_event(|event| *event == InitEvent::Delivered { child: 7, message: number });
    }
    assert_eq!(sandbox.await_exit(7), Exit::Code(0));
    assert!(text(&out).as_bytes() == parts.concat(), "what came out is not what went in");
    let InitReply::Stat { children } = sandbox.ask(InitRequest::Stat, &[]) else { panic!("no stat") };
    assert_eq!((children[0].accepted, children[0].delivered), (Some(4), Some(4)));
    assert_eq!(children[0].exited, Some(Exit::Code(0)));
    assert!(sandbox.events.is_empty(), "{:?}", sandbox.events);
    let file = sandbox.message(b"late");
    let late = error(sandbox.ask(InitRequest::Deliver { child: 7, message: 5 }, &[&file]));
    assert!(late.contains("closed"), "{late}");
}

fn a_reader_that_stops_loses_nothing_of_others() {
    let mut sandbox = Sandbox::new();
    let (out, err) = (sandbox.file("out"), sandbox.file("err"));
    let mut deaf = spec(&["/bin/sleep", "1000"]);
    deaf.stdin = true;
    assert!(matches!(sandbox.spawn_with(1, &deaf, &out, &err), InitReply::Spawned { .. }));
    let file = sandbox.message(&[b'x'; 100_000]);
    for message in 0..256 {
        assert!(
            matches!(sandbox.ask(InitRequest::Deliver { child: 1, message }, &[&file]), InitReply::Done),
            "{message}"
        );
    }
    let full = error(sandbox.ask(InitRequest::Deliver { child: 1, message: 256 }, &[&file]));
    assert!(full.contains("256"), "{full}");
    let ended = sandbox.sh(2, "echo still here");
    assert_eq!(ended.out, "still here\n");
    assert!(matches!(sandbox.ask(InitRequest::Signal { child: 1, signal: 9, group: false }, &[]), InitReply::Done));
    assert_eq!(sandbox.await_exit(1), Exit::Signal(9));
    let InitReply::Stat { children } = sandbox.ask(InitRequest::Stat, &[]) else { panic!("no stat") };
    assert_eq!((children[0].accepted, children[0].delivered), (Some(255), None));
}

fn signals_reach_the_group() {
    let mut sandbox = Sandbox::new();
    let (out, err) = (sandbox.file("out"), sandbox.file("err"));
    let spec = spec(&["/bin/bash", "-c", "sleep 1000 & echo started; wait"]);
    assert!(matches!(sandbox.spawn_with(1, &spec, &out, &err), InitReply::Spawned { .. }));
    while text(&out).is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let odd = error(sandbox.ask(InitRequest::Signal { child: 1, signal: 999, group: true }, &[]));
    assert!(odd.contains("999"), "{odd}");
    assert!(matches!(sandbox.ask(InitRequest::Signal { child: 1, signal: 15, group: true }, &[]), InitReply::Done));
    assert_eq!(sandbox.await_exit(1), Exit::Signal(15));
    // A signal after its end is not an error.
    assert!(matches!(sandbox.ask(InitRequest::Signal { child: 1, signal: 9, group: false }, &[]), InitReply::Done));
    assert_eq!(sandbox.sh(2, "ps -e -o comm= | grep -c sleep").out, "0\n");
}

fn bad_requests_are_answered_or_cut_off() {
    let mut sandbox = Sandbox::new();
    let memfd = |bytes: &[u8]| seqpacket::sealed_memfd("spec", bytes).unwrap();
    let null = std::fs::File::open("/dev/null").unwrap().into();
    for (bytes, word) in [
        (&b"{"[..], "read spec"),
        (br#"{"argv":[],"env":[],"cwd":"/","stdin":false}"#, "absolute"),
        (br#"{"argv":["true"],"env":[],"cwd":"/","stdin":false}"#, "absolute"),
        (br#"{"argv":["/bin/true"],"env":[["A=B","x"]],"cwd":"/","stdin":false}"#, "A=B"),
        (br#"{"argv":["/bin/true"],"env":[["A","x\u0000"]],"cwd":"/","stdin":false}"#, "zero byte"),
        (br#"{"argv":["/bin/true"],"env":[],"cwd":"/root","stdin":false}"#, "/root"),
        (&vec![b' '; (1 << 20) + 1], "longer than"),
    ] {
        let spec = memfd(bytes);
        let refused = error(sandbox.ask(InitRequest::Spawn { child: 1 }, &[&spec, &null, &null]));
        assert!(refused.contains(word), "{refused}");
    }
    for request in [
        InitRequest::Signal { child: 5, signal: 9, group: false },
        InitRequest::Deliver { child: 5, message: 1 },
        InitRequest::CloseStdin { child: 5 },
        InitRequest::Spawn { child: 5 },
    ] {
        error(sandbox.ask(request, &[]));
    }
    // One hostile connection after the other: each is closed, and the test's connection survives.
    let path = sandbox.ground.path("init.sock");
    for packet in [&b"nonsense"[..], br#"{"n":1,"op":"unknown"}"#, &[b'x'; 100_000], br#"{"n":-1,"op":"stat"}"#] {
        let other = seqpacket::connect(&path, false).unwrap();
        seqpacket::send(other.as_fd(), packet, &[null.as_fd()]).unwrap();
        // Reset, when the packet was longer than what init reads of one.
        assert!(seqpacket::recv(other.as_fd(), &mut [0; 64]).map_or(true, |packet| packet.len == 0));
    }
    let crowd: Vec<_> = (0..15).map(|_| seqpacket::connect(&path, false).unwrap()).collect();
    let turned_away = seqpacket::connect(&path, false).unwrap();
    assert_eq!(seqpacket::recv(turned_away.as_fd(), &mut [0; 64]).unwrap().len, 0);
    drop(crowd);
    assert!(matches!(sandbox.ask(InitRequest::Stat, &[]), InitReply::Stat { children } if children.is_empty()));
}

fn listeners_are_handed_out() {
    let mut sandbox = Sandbox::new();
    let (reply, fds) = sandbox.ask_with(InitRequest::Listener { which: Listener::Model }, &[]);
    assert!(matches!(reply, InitReply::Listener) && fds.len() == 1);
    let listener = std::net::TcpListener::from(fds.into_iter().next().unwrap());
    listener.set_nonblocking(false).unwrap();
    let (out, err) = (sandbox.file("out"), sandbox.file("err"));
    let spec = spec(&["/bin/bash", "-c", "read line < /dev/tcp/127.0.0.1/4180 && echo got $line"]);
    assert!(matches!(sandbox.spawn_with(1, &spec, &out, &err), InitReply::Spawned { .. }));
    let (mut stream, _) = listener.accept().unwrap();
    stream.write_all(b"from outside\n").unwrap();
    assert_eq!(sandbox.await_exit(1), Exit::Code(0), "{}", text(&err));
    assert_eq!(text(&out), "got from outside\n");
}

fn a_failed_exec_is_told_and_reaped() {
    let mut sandbox = Sandbox::new();
    let null = std::fs::File::open("/dev/null").unwrap().into();
    let refused = error(sandbox.spawn_with(1, &spec(&["/usr/bin/no-such-program"]), &null, &null));
    assert!(refused.starts_with("execve: /usr/bin/no-such-program: ENOENT"), "{refused}");
    let InitReply::Stat { children } = sandbox.ask(InitRequest::Stat, &[]) else { panic!("no stat") };
    assert!(children.is_empty(), "{children:?}");
    assert_eq!(sandbox.run(1, &["/bin/true"]).exit, Exit::Code(0), "the number is free again");
}

/// gominimal/minimal#1342, PrimeIntellect-ai/prime-agent#1198, tinylibs/tinyexec#138: without a
/// reader the job dies of SIGPIPE.
fn output_of_background_jobs_is_discarded() {
    let mut sandbox = Sandbox::new();
    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let (out, err) = (pipe(), pipe());
    // The second job never stops printing; init still executes its commands. The shell prints before
    // its jobs can fill the pipe, which is not read until it has ended.
    let script = "echo said; (for i in 1 2 3 4 5 6 7 8; do head -c 100000 /dev/zero; echo $i >> ticks; sleep 0.05; done) & \
                  (trap 'touch ended' EXIT; head -c 1000000000 /dev/zero >&2) &";
    let started = sandbox.spawn_with(1, &spec(&["/bin/bash", "-c", script]), &out.1, &err.1);
    assert!(matches!(started, InitReply::Spawned { .. }), "{started:?}");
    drop((out.1, err.1));
    assert_eq!(sandbox.await_exit(1), Exit::Code(0));
    assert!(matches!(sandbox.ask(InitRequest::Discard, &[&out.0, &err.0]), InitReply::Done));
    drop((out.0, err.0));
    // In time, although the other job prints a gigabyte.
    let ended = sandbox.sh(
        2,
        "until grep -q 8 ticks; do sleep 0.02; done; until [ -e ended ]; do sleep 0.02; done; tr -d '\\n' < ticks",
    );
    assert_eq!((ended.exit, ended.out.as_str()), (Exit::Code(0), "12345678"), "{}", ended.err);
    let file = sandbox.file("no pipe");
    let refused = error(sandbox.ask(InitRequest::Discard, &[&file]));
    assert!(refused.contains("not a pipe"), "{refused}");
    assert!(error(sandbox.ask(InitRequest::Discard, &[])).contains("1 descriptor"));
}
