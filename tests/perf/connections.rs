//! `GET /health` while 15,000 connections hold half a request each, their memory, and the time
//! until it is free.

use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;

use crate::common::{Daemon, Options, raw};
use crate::figures::{Figure, Form, Samples};

const CROWD: usize = 15_000;
const HEALTH_MS: f64 = 50.0;
/// Limit of memory for half requests, and for what remains of them, in MB.
const CROWD_MB: f64 = 64.0;
const LEFT_MB: f64 = 20.0;
const MB: f64 = 1e6;

pub async fn measure(form: Form) -> Vec<Figure> {
    raw::many_files(CROWD as u64 + 1000);
    let daemon = Daemon::start(Options::default());
    let size = |field: &str| raw::memory(&daemon, field) as f64 / MB;
    let _ = health(daemon.port).await;
    let start = size("VmRSS");
    let mut crowd = Vec::new();
    for n in 0..CROWD {
        let mut socket = raw::connect(daemon.port, 1 + (n % 200) as u8).await.expect("connected");
        // Earlier ones may have been closed already.
        let _ = socket.write_all(b"GET /health HTTP/1.1\r\nhost: raw\r\nx-half: ").await;
        crowd.push(socket);
    }
    let mut times = Vec::new();
    for _ in 0..form.rounds(300, 1000) {
        times.push(health(daemon.port).await);
    }
    let loaded = size("VmRSS");
    drop(crowd);
    raw::comes(Duration::from_secs(60), || size("VmRSS") < start + LEFT_MB / 2.0).await;
    let left = size("VmRSS") - start;
    daemon.stop();
    vec![
        Figure::times("GET /health on a new connection, 15,000 half requests", &Samples::of(times))
            .p99_at_most(HEALTH_MS),
        Figure::single("memory of ashd for 15,000 half requests", "MB", loaded - start).at_most(CROWD_MB),
        Figure::single("what is left of it a minute later", "MB", left).at_most(LEFT_MB),
    ]
}

async fn health(port: u16) -> Duration {
    let start = Instant::now();
    let mut socket = raw::request(port, "GET /health", None, None).await;
    let said = raw::answer(&mut socket).await;
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    start.elapsed()
}
