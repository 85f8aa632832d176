//! `GET /health` per second, with no session in the database and with 10,000, two daemons in turns.
//! And the list of these sessions.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::chown;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ash_model::{SessionStatus, TenantId};
use ashd::store::{Session, Store};
use http_body_util::BodyExt;
use uuid::Uuid;

use crate::common::{Daemon, Options};
use crate::figures::{Figure, Form, Samples};
use crate::procfs;

const SESSIONS: u64 = 10_000;
const CLIENTS: usize = 4;
const AT_LEAST: f64 = 10_000.0;
/// Maximum factor on the CPU time of one request with all the sessions.
const FLAT: f64 = 1.15;
/// Milliseconds of the whole list; 146 when each row was read column by column.
const LIST_MS: f64 = 75.0;

pub async fn measure(form: Form) -> Vec<Figure> {
    let empty = Daemon::start(Options::default());
    let mut full = Daemon::start(Options::default());
    full.terminate();
    fill(&full).await;
    full.restart();
    let listed = full.api().get("/api/sessions?limit=1&includeTotal=true").await.expect(200);
    assert_eq!(listed["total"], SESSIONS, "{listed}");

    let window = Duration::from_millis(form.rounds(250, 1000) as u64);
    let (mut of_empty, mut of_full) = (Vec::new(), Vec::new());
    for round in 0..form.rounds(4, 10) + 1 {
        let (a, b) = (load(&empty, window), load(&full, window));
        // The first round only warms up.
        if round > 0 {
            of_empty.push(a);
            of_full.push(b);
        }
    }
    let (api, mut lists) = (full.api(), Vec::new());
    for _ in 0..form.rounds(10, 30) {
        let start = Instant::now();
        let answer = api.open("GET", "/api/sessions", None).await;
        let bytes = answer.into_body().collect().await.expect("a whole list").to_bytes().len();
        lists.push(start.elapsed().as_secs_f64() * 1e3);
        assert!(bytes as u64 > SESSIONS * 200, "{bytes} bytes");
    }
    let list = Samples::of_ms(lists.iter().copied()).at(0.5);
    let memory = procfs::pss(full.pid() as i32).expect("ashd lives") as f64 / 1e6;
    empty.stop();
    full.stop();

    let rate = |loads: &[Load]| Samples::of_ms(loads.iter().map(|l| l.requests / l.seconds)).at(0.5);
    let cost = |loads: &[Load]| Samples::of_ms(loads.iter().map(|l| l.cpu_seconds / l.requests * 1e6)).at(0.5);
    let n = of_full.len();
    vec![
        Figure::single("GET /health, no sessions", "1/s", rate(&of_empty)).of(n).at_least(AT_LEAST).noisy(),
        Figure::single("GET /health, 10,000 sessions", "1/s", rate(&of_full)).of(n).at_least(AT_LEAST).noisy(),
        Figure::single("GET /health, processor time, no sessions", "us", cost(&of_empty)).of(n),
        Figure::single("GET /health, processor time, 10,000 sessions", "us", cost(&of_full)).of(n),
        Figure::single("GET /health, 10,000 sessions against none", "ratio", cost(&of_full) / cost(&of_empty))
            .of(n)
            .at_most(FLAT)
            .noisy(),
        Figure::single("GET /api/sessions, 10,000 sessions", "ms", list).of(lists.len()).at_most(LIST_MS).noisy(),
        Figure::single("memory of ashd, 10,000 sessions in the database", "MB", memory),
    ]
}

/// Writes the sessions as ashd itself would, while it does not run.
async fn fill(daemon: &Daemon) {
    let data = daemon.data();
    let (uid, gid) = procfs::owner(&data.join("ashd.db"));
    let store = Store::open(&data).await.expect("the database opens");
    let statuses = [SessionStatus::Paused, SessionStatus::Stopped, SessionStatus::Ended, SessionStatus::Error];
    let session = |n: u64| {
        let status = statuses[n as usize % statuses.len()];
        Session::new(Uuid::now_v7(), TenantId::default_tenant(), "perf", status)
    };
    for batch in 0..SESSIONS / 500 {
        let rows: Vec<Session> = (0..500).map(|n| session(batch * 500 + n)).collect();
        let done = futures_util::future::join_all(rows.iter().map(|row| store.session_insert(row))).await;
        assert!(done.iter().all(Result::is_ok), "{done:?}");
    }
    store.close().await;
    for entry in std::fs::read_dir(&data).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with("ashd.db") {
            chown(entry.path(), Some(uid), Some(gid)).unwrap();
        }
    }
}

struct Load {
    requests: f64,
    seconds: f64,
    cpu_seconds: f64,
}

/// As many requests as a few connections can send one after the other.
fn load(daemon: &Daemon, window: Duration) -> Load {
    let stop = AtomicBool::new(false);
    let (start, cpu) = (Instant::now(), procfs::cpu_seconds(daemon.pid()));
    let requests: u64 = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(|| client(daemon.port, &stop))).collect();
        std::thread::sleep(window);
        stop.store(true, Ordering::Relaxed);
        clients.into_iter().map(|client| client.join().expect("a client ends")).sum()
    });
    let cpu_seconds = procfs::cpu_seconds(daemon.pid()) - cpu;
    Load { requests: requests as f64, seconds: start.elapsed().as_secs_f64(), cpu_seconds }
}

fn client(port: u16, stop: &AtomicBool) -> u64 {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).expect("connected");
    socket.set_nodelay(true).expect("no delay");
    let mut buffer = [0; 4096];
    let mut done = 0;
    while !stop.load(Ordering::Relaxed) {
        socket.write_all(b"GET /health HTTP/1.1\r\nhost: perf\r\n\r\n").expect("asked");
        let mut filled = 0;
        while !whole(&buffer[..filled]) {
            let read = socket.read(&mut buffer[filled..]).expect("an answer");
            assert!(read > 0, "the connection was closed");
            filled += read;
        }
        assert!(buffer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&buffer[..filled]));
        done += 1;
    }
    done
}

/// Whether head and body of an answer are complete.
fn whole(answer: &[u8]) -> bool {
    let Some(head) = memchr::memmem::find(answer, b"\r\n\r\n") else { return false };
    let name = b"content-length: ";
    let at = memchr::memmem::find(&answer[..head], name).expect("a length") + name.len();
    let digits = answer[at..].iter().take_while(|byte| byte.is_ascii_digit());
    let length = digits.fold(0, |n, digit| n * 10 + usize::from(digit - b'0'));
    answer.len() >= head + 4 + length
}
