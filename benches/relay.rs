//! How many of claude's 200-byte stream events per second reach one client: from the file to bytes,
//! and through axum over loopback. `cargo bench --bench relay`. Fails below 300,000 events per
//! second of CPU time of the serving thread. Other work on the machine does not affect CPU time.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ashd::sessions::stream::reader::{Published, Turns, turn_stream};
use ashd::store::Turn;
use axum::body::Body;
use axum::routing::get;
use futures_util::StreamExt;
use nix::sys::resource::{UsageWho, getrusage};
use tokio::sync::watch;
use uuid::Uuid;

const EVENTS: usize = 600_000;
const TARGET: f64 = 300_000.0;

/// Only the published turn exists.
#[derive(Clone)]
struct NoOthers;

impl Turns for NoOthers {
    async fn turn(&self, _: Uuid, _: i64) -> Result<Option<Turn>, String> {
        Ok(None)
    }
}

fn main() {
    // `cargo test --benches` only checks that it builds and runs.
    let events = if std::env::args().any(|a| a == "--bench") { EVENTS } else { 1000 };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("stdout");
    let published = write_turn(&path, events);
    println!("{events} stream events of 200 bytes, one client, median of 5");
    let mut ok = true;
    for (name, partial) in [("file -> bytes, with partial messages", true), ("file -> bytes, without", false)] {
        ok &= report(name, events, || from_file(&path, &published, partial, events));
    }
    ok &= report("file -> axum -> loopback -> client, with partial messages", events, || {
        over_http(&path, &published, events)
    });
    if !ok && events == EVENTS {
        eprintln!("below the target of {TARGET} events per second of CPU time");
        std::process::exit(1);
    }
}

fn write_turn(path: &Path, events: usize) -> watch::Sender<Published> {
    let mut file = BufWriter::new(File::create(path).expect("created"));
    let head = r#"{"type":"stream_event","event":{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":""#;
    let tail = r#""}},"session_id":"0b5c8c3e-9f0e-4d6e-8a53-5f6a8d6b1c11","parent_tool_use_id":null}"#;
    let text = "x".repeat(199 - head.len() - tail.len());
    for _ in 0..events {
        writeln!(file, "{head}{text}{tail}").expect("written");
    }
    file.flush().expect("written");
    let end = path.metadata().expect("its size").len();
    assert_eq!(end, events as u64 * 200);
    let turn = Turn {
        session: Uuid::nil(),
        id: Uuid::nil(),
        number: 1,
        start: 0,
        end: Some(end),
        error: None,
        delivered: true,
        unasked: false,
        partial: false,
        started_at: 0,
        ended_at: Some(0),
    };
    watch::Sender::new(Published { watermark: end, turn: Some(turn), ..Published::default() })
}

fn stream(path: PathBuf, rx: watch::Receiver<Published>, partial: bool) -> ashd::sessions::FrameStream {
    let turn = rx.borrow().turn.clone().expect("the turn");
    turn_stream(path, Uuid::nil(), NoOthers, turn, rx, partial)
}

/// Wall time, and CPU time of the serving thread.
type Cost = (Duration, Duration);

fn from_file(path: &Path, published: &watch::Sender<Published>, partial: bool, events: usize) -> Cost {
    measured(async {
        let mut frames = stream(path.to_owned(), published.subscribe(), partial);
        let mut messages = 0;
        while let Some(Ok(bytes)) = frames.next().await {
            messages += count(&bytes);
        }
        assert_eq!(messages, if partial { events } else { 0 });
    })
}

fn over_http(path: &Path, published: &watch::Sender<Published>, events: usize) -> Cost {
    measured(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let client = std::thread::spawn(move || {
            let mut socket = TcpStream::connect(address).expect("connected");
            socket.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("asked");
            let mut buffer = vec![0; 1 << 20];
            let mut bytes = 0;
            loop {
                match socket.read(&mut buffer).expect("readable") {
                    0 => return bytes,
                    n => bytes += n,
                }
            }
        });
        let (path, published) = (path.to_owned(), published.clone());
        let (done, finished) = tokio::sync::oneshot::channel::<()>();
        let app = axum::Router::new().route(
            "/",
            get(move || async move { Body::from_stream(stream(path.clone(), published.subscribe(), true)) }),
        );
        let server = tokio::spawn(async move {
            let stop = async { finished.await.unwrap_or_default() };
            axum::serve(listener, app).with_graceful_shutdown(stop).await.expect("served");
        });
        let bytes = tokio::task::spawn_blocking(|| client.join().expect("read to the end")).await.expect("joined");
        done.send(()).expect("still serving");
        server.await.expect("stopped");
        assert!(bytes > events * 300, "{bytes}");
    })
}

fn count(bytes: &[u8]) -> usize {
    memchr::memmem::find_iter(bytes, b"\nevent: message\n").count()
}

fn measured(work: impl Future<Output = ()>) -> Cost {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let cpu = || {
        let usage = getrusage(UsageWho::RUSAGE_THREAD).expect("the thread's usage");
        let ms = |t: nix::sys::time::TimeVal| Duration::new(t.tv_sec() as u64, t.tv_usec() as u32 * 1000);
        ms(usage.user_time()) + ms(usage.system_time())
    };
    let (began, used) = (Instant::now(), cpu());
    runtime.block_on(work);
    (began.elapsed(), cpu() - used)
}

fn report(name: &str, events: usize, mut run: impl FnMut() -> Cost) -> bool {
    run();
    let mut costs: Vec<Cost> = (0..5).map(|_| run()).collect();
    costs.sort_by_key(|cost| cost.1);
    let (wall, cpu) = costs[2];
    let rate = |time: Duration| events as f64 / time.as_secs_f64().max(1e-9);
    println!("{name}: {:.0} a second of wall time, {:.0} a second of CPU time", rate(wall), rate(cpu));
    rate(cpu) >= TARGET
}
