//! Stream events of about 200 bytes from the stdout file through the whole of ashd to one client
//! that replays them; ashd on one core, the client on another. `benches/relay.rs` measures the
//! parts in-process.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use memchr::memmem;
use serde_json::json;

use crate::common::{Daemon, Options};
use crate::figures::{Figure, Form, Samples};
use crate::procfs;

const AT_LEAST: f64 = 300_000.0;

pub async fn measure(form: Form) -> Vec<Figure> {
    // At most 64 MiB stay replayable.
    let events = form.rounds(60_000, 240_000);
    let daemon = Daemon::start(Options::default());
    let api = daemon.api();
    api.deploy("perf").await;
    let session = api.session("perf").await;
    let mut turn = api.send(&session, json!({"content": format!("@repeat {events} x")})).await;
    turn.until("done").await;
    drop(turn);
    let stdout = daemon.data().join("sessions").join(&session).join("stdout");
    let size = std::fs::metadata(&stdout).unwrap_or_else(|e| panic!("{}: {e}", stdout.display())).len();
    let line = size as f64 / events as f64;

    procfs::pin(daemon.pid(), 0);
    let path = format!("/api/sessions/{session}/stream?after=0:0:0&includePartialMessages=true");
    let (mut walls, mut costs) = (Vec::new(), Vec::new());
    for round in 0..6 {
        let (port, key, path) = (daemon.port, daemon.key.clone(), path.clone());
        let cpu = procfs::cpu_seconds(daemon.pid());
        let (seen, wall) = tokio::task::spawn_blocking(move || replay(port, &key, &path)).await.unwrap();
        let cpu = procfs::cpu_seconds(daemon.pid()) - cpu;
        assert_eq!(seen, events, "events that reached the client");
        // The first round only warms up.
        if round > 0 {
            walls.push(events as f64 / wall.as_secs_f64());
            costs.push(events as f64 / cpu);
        }
    }
    api.delete(&format!("/api/sessions/{session}")).await.expect(200);
    daemon.stop();
    let median = |rates: Vec<f64>| Samples::of_ms(rates).at(0.5);
    vec![
        Figure::single("relay: bytes of an event in the file", "bytes", line).of(events),
        Figure::single("relay: events to one client, wall-clock, ashd on one core", "1/s", median(walls)).of(5),
        Figure::single("relay: events to one client, a second of ashd's processor time", "1/s", median(costs))
            .of(5)
            .at_least(AT_LEAST)
            .noisy(),
    ]
}

/// Reads the session's stream from its beginning to the end of the turn. Returns the deltas and the
/// time.
fn replay(port: u16, key: &str, path: &str) -> (usize, Duration) {
    pin_self(1);
    let mut socket = TcpStream::connect(("127.0.0.1", port)).expect("connected");
    socket.set_read_timeout(Some(Duration::from_secs(30))).expect("a time limit");
    let start = Instant::now();
    write!(socket, "GET {path} HTTP/1.1\r\nhost: perf\r\nauthorization: Bearer {key}\r\n\r\n").expect("asked");
    let mut buffer = vec![0; 1 << 20];
    // Bytes of the last piece that may be the beginning of a split name.
    let mut kept = 0;
    let mut seen = 0;
    let (delta, done) = (&b"\nevent: text_delta\n"[..], &b"\nevent: done\n"[..]);
    loop {
        let read = socket.read(&mut buffer[kept..]).expect("readable");
        assert!(read > 0, "the stream ended after {seen} deltas");
        let filled = &buffer[..kept + read];
        seen += memmem::find_iter(filled, delta).count();
        if memmem::find(filled, done).is_some() {
            return (seen, start.elapsed());
        }
        let keep = (delta.len() - 1).min(filled.len());
        buffer.copy_within(kept + read - keep..kept + read, 0);
        kept = keep;
    }
}

/// With only one core, that one.
fn pin_self(core: usize) {
    let mut set = nix::sched::CpuSet::new();
    set.set(core).expect("a core's number");
    let _ = nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set);
}
