//! Memory that request bodies cost the daemon: limited per tenant, and charged to that tenant
//! alone.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::patience::patient;
use common::raw::{self, answer, comes, memory, request};
use common::{Api, Daemon, MIB, Options};
use futures_util::future::join_all;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

async fn other(api: &Api) -> Api {
    let made = api.post("/api/internal/api-keys", json!({"tenantId": "other", "label": "x"})).await.expect(201);
    let other = api.with_key(made["key"].as_str());
    other.deploy("b").await;
    other
}

/// The body of an upload with this many bytes, in base64 and in files of at most 50 MB.
fn upload(bytes: usize) -> Vec<u8> {
    let mut body = br#"{"files":["#.to_vec();
    let mut left = bytes;
    for n in 0.. {
        let length = left.min(50_000_000) / 3 * 3;
        body.extend_from_slice(format!(r#"{{"path":"large-{n}","content":""#).as_bytes());
        body.resize(body.len() + length / 3 * 4, b'A');
        body.extend_from_slice(br#""}"#);
        left -= length;
        if left < 3 {
            break;
        }
        body.push(b',');
    }
    body.extend_from_slice(b"]}");
    body
}

/// Sends nearly all of a body at full speed, then a little at a time. Returns the answer.
async fn slow(mut socket: TcpStream, bytes: usize) -> String {
    let (mut reading, mut writing) = socket.split();
    let send = async {
        let body = vec![b' '; 1 << 20];
        for _ in 0..bytes >> 20 {
            if writing.write_all(&body).await.is_err() {
                break;
            }
        }
        while writing.write_all(&[b' '; 16 << 10]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        std::future::pending::<()>().await;
    };
    let mut said = vec![0; 4096];
    tokio::select! {
        () = send => String::new(),
        read = tokio::io::AsyncReadExt::read(&mut reading, &mut said) => {
            String::from_utf8_lossy(&said[..read.unwrap_or(0)]).into_owned()
        }
    }
}

#[tokio::test]
async fn slow_uploads_of_one_tenant_keep_no_other_out() {
    const EACH: usize = 64 * MIB as usize;
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let other = other(&api).await;
    let (id, theirs) = (api.session("a").await, other.session("b").await);
    let line = format!("POST /api/sessions/{id}/files");
    let mut sending = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let socket = request(daemon.port, &line, Some(&daemon.key), Some(EACH + (16 << 20))).await;
        sending.spawn(slow(socket, EACH));
    }
    // Two of eight fit: each counts twice.
    for _ in 0..6 {
        let said = tokio::time::timeout(patient(Duration::from_secs(30)), sending.join_next()).await;
        let said = said.expect("more than two are taken").unwrap().unwrap();
        assert!(said.starts_with("HTTP/1.1 429") && said.to_ascii_lowercase().contains("retry-after: "), "{said}");
        assert!(said.contains("384 MiB") && said.contains("server.request_memory_per_tenant"), "{said}");
    }
    // Another tenant can upload, and so can an administrator of this host without a key.
    let path = format!("/api/sessions/{theirs}/files");
    let done = other.call_raw("POST", &path, Some(("application/json", upload(40 * MIB as usize)))).await;
    assert_eq!(done.status, 200, "{}", done.text);
    // Small requests of the tenant itself are served.
    assert_eq!(api.info(&id).await["status"], "active");
    assert_eq!(sending.len(), 2);
    drop(sending);
    // Large ones fit again when the slow ones are gone.
    let start = Instant::now();
    loop {
        let path = format!("/api/sessions/{id}/files");
        let done = api.call_raw("POST", &path, Some(("application/json", upload(95 * MIB as usize)))).await;
        if done.status == 200 {
            break;
        }
        assert!(done.status == 429 && start.elapsed() < patient(Duration::from_secs(20)), "{}", done.text);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    daemon.stop();
}

#[tokio::test]
async fn a_body_that_hardly_arrives_is_given_up() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let line = format!("POST /api/sessions/{id}/files");
    let mut socket = request(daemon.port, &line, Some(&daemon.key), Some(MIB as usize)).await;
    let (mut reading, mut writing) = socket.split();
    // Never silent for long, but at this rate it would take twelve days.
    let drip = async {
        while writing.write_all(b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let mut said = Vec::new();
    let read = async {
        let _ = tokio::io::AsyncReadExt::read_to_end(&mut reading, &mut said).await;
    };
    let limit = patient(Duration::from_secs(50));
    tokio::select! {
        () = drip => {}
        done = tokio::time::timeout(limit, read) => assert!(done.is_ok(), "the connection is still open after {limit:?}"),
    }
    let said = String::from_utf8_lossy(&said);
    assert!(said.starts_with("HTTP/1.1 408") && said.contains("too slowly"), "{said}");
    daemon.stop();
}

#[tokio::test]
async fn a_body_without_a_key_is_not_read() {
    let daemon = Daemon::start(Options::default());
    let before = memory(&daemon, "RssAnon");
    let mut sockets = Vec::new();
    for _ in 0..16 {
        let mut socket = request(daemon.port, "POST /api/agents", Some("ash_wrong"), Some(100 * MIB as usize)).await;
        let body = vec![b' '; 8 * MIB as usize];
        // The daemon closes after its answer and does not read the rest.
        let _ = tokio::time::timeout(Duration::from_secs(1), socket.write_all(&body)).await;
        sockets.push(socket);
    }
    let grown = memory(&daemon, "RssAnon").saturating_sub(before) / MIB;
    assert!(grown < 16, "{grown} MiB for bodies of strangers");
    daemon.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_two_largest_uploads_at_once_cost_a_bounded_amount() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let other = other(&api).await;
    let (id, theirs) = (api.session("a").await, other.session("b").await);
    let body = upload(95 * MIB as usize);
    let before = memory(&daemon, "VmRSS");
    raw::reset_peak(&daemon);
    let path = format!("/api/sessions/{id}/files");
    let crowd = (0..32).map(|_| api.call_raw("POST", &path, Some(("application/json", body.clone()))));
    let neighbour = async {
        let path = format!("/api/sessions/{theirs}/files");
        for _ in 0..5 {
            let done = other.call_raw("POST", &path, Some(("application/json", upload(10 * MIB as usize)))).await;
            assert_eq!(done.status, 200, "{}", done.text);
        }
    };
    let (answers, ()) = tokio::join!(join_all(crowd), neighbour);
    let grown = memory(&daemon, "VmHWM").saturating_sub(before) / MIB;
    assert!(grown < 512, "32 uploads of 95 MiB cost {grown} MiB");
    let taken = answers.iter().filter(|answer| answer.status == 200).count();
    assert!(taken >= 1, "{}", answers[0].text);
    for refused in answers.iter().filter(|answer| answer.status != 200) {
        assert_eq!(refused.status, 429, "{}", refused.text);
        assert!(refused.headers.contains_key("retry-after"), "{}", refused.text);
        assert!(refused.text.contains("server.request_memory_per_tenant"), "{}", refused.text);
    }
    println!("{taken} of 32 taken; the daemon grew by {grown} MiB");
    daemon.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_goes_back_after_a_load() {
    raw::many_files(20_000);
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let path = format!("/api/sessions/{id}/files");
    let send = async |bytes: usize| {
        let body = Some(("application/json", upload(bytes)));
        assert_eq!(api.call_raw("POST", &path, body).await.status, 200);
    };
    // Run each code path once first, so that its pages of the program file are loaded.
    send(MIB as usize).await;
    api.turn(&id, "@text first").await;
    api.get(&format!("/api/sessions/{id}/messages")).await.expect(200);
    let start = memory(&daemon, "VmRSS");

    for bytes in [20, 60, 95] {
        send(bytes * MIB as usize).await;
    }
    let mut streams = Vec::new();
    for _ in 0..500 {
        let line = format!("GET /api/sessions/{id}/stream?includePartialMessages=true");
        streams.push(request(daemon.port, &line, Some(&daemon.key), None).await);
    }
    for socket in &mut streams {
        assert!(answer(socket).await.starts_with("HTTP/1.1 200"));
    }
    api.turn(&id, "@repeat 100 several words for each of many clients").await;
    let list = join_all((0..32).map(|_| api.get("/api/sessions?limit=1000"))).await;
    assert!(list.iter().all(|answer| answer.status == 200));
    let mut crowd = Vec::new();
    for n in 0..5000 {
        let mut socket = raw::connect(daemon.port, 1 + (n % 100) as u8).await.unwrap();
        socket.write_all(b"GET /health HTTP/1.1\r\nhost: raw\r\n").await.unwrap();
        crowd.push(socket);
    }
    let loaded = memory(&daemon, "VmRSS");
    drop((streams, crowd));
    let back = |now: u64| now < start + 20 * MIB;
    let came = comes(Duration::from_secs(60), || back(memory(&daemon, "VmRSS"))).await;
    let now = memory(&daemon, "VmRSS");
    println!("{} MiB at the start, {} under load, {} after it", start / MIB, loaded / MIB, now / MIB);
    assert!(came, "{} MiB at the start, {} after a minute of quiet", start / MIB, now / MIB);
    daemon.stop();
}
