//! Attacks of an ordinary key on its neighbours and on the host, found by a review of the archives,
//! evals and files code (docs/review-2026.md): each was possible before.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::raw::{comes, many_files, memory, request, reset_peak};
use common::{Api, Daemon, MIB, Options};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

/// An archive of one file of zeros, a thousandth of that compressed.
fn zeros(name: &str, bytes: u64) -> String {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::best()));
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, std::io::Read::take(std::io::repeat(0), bytes)).unwrap();
    STANDARD.encode(tar.into_inner().unwrap().finish().unwrap())
}

/// Bytes below the sessions' directory, as the disk counts them.
fn stored(daemon: &Daemon) -> u64 {
    let out = std::process::Command::new("du").arg("-sB1").arg(daemon.data().join("sessions")).output().unwrap();
    String::from_utf8_lossy(&out.stdout).split_whitespace().next().unwrap().parse().unwrap()
}

fn sessions_on_disk(daemon: &Daemon) -> usize {
    std::fs::read_dir(daemon.data().join("sessions")).unwrap().count()
}

/// Small bodies of large archives, all at once: the session gets no more than its limit.
#[tokio::test]
async fn uploads_at_once_share_what_the_disk_limit_leaves() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    api.call("PATCH", &format!("/api/sessions/{id}/limits"), Some(json!({"diskBytes": 64 * MIB}))).await.expect(200);
    let uploads = (0..8).map(|n| {
        let (api, path) = (api.clone(), format!("/api/sessions/{id}/workspace"));
        tokio::spawn(async move { api.post(&path, json!({"bundle": zeros(&format!("f{n}"), 40 * MIB)})).await.status })
    });
    let mut codes = Vec::new();
    for upload in uploads.collect::<Vec<_>>() {
        codes.push(upload.await.unwrap());
    }
    assert_eq!(codes.iter().filter(|code| **code == 200).count(), 1, "{codes:?}");
    assert!(codes.iter().all(|code| [200, 413, 507].contains(code)), "{codes:?}");
    assert!(stored(&daemon) < 64 * MIB, "{} MiB", stored(&daemon) / MIB);
}

/// A client that hangs up in the middle of a fork: the fork is there and is its tenant's.
#[tokio::test]
async fn a_fork_that_nobody_waits_for_is_a_session_and_not_a_leftover() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let bundle = zeros("large", 100 * MIB);
    api.post(&format!("/api/sessions/{id}/workspace"), json!({"bundle": bundle})).await.expect(200);
    for wait in [0, 5, 20, 60, 150] {
        let line = format!("POST /api/sessions/{id}/fork");
        let mut socket = request(daemon.port, &line, api.key(), Some(2)).await;
        socket.write_all(b"{}").await.unwrap();
        tokio::time::sleep(Duration::from_millis(wait)).await;
        drop(socket);
    }
    let known =
        || async { api.get("/api/sessions?limit=100").await.expect(200)["sessions"].as_array().unwrap().clone() };
    let mut rows: Vec<Value> = Vec::new();
    for _ in 0..300 {
        rows = known().await;
        if rows.len() == sessions_on_disk(&daemon) && rows.len() >= 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(rows.len(), sessions_on_disk(&daemon), "{rows:?}");
    for row in rows {
        let path = format!("/api/sessions/{}?purge=true", row["id"].as_str().unwrap());
        api.delete(&path).await.expect(200);
    }
    assert!(stored(&daemon) < MIB, "{} MiB are left", stored(&daemon) / MIB);
}

/// Requests that hang up while their work continues are counted until it ends.
#[tokio::test]
async fn a_client_that_hangs_up_keeps_its_share_until_the_work_ends() {
    let (daemon, api) =
        Daemon::deployed(Options::default().config("[server]\nrequest_memory_per_tenant = '288MiB'")).await;
    let id = api.session("a").await;
    let bundle = {
        // Does not compress, so the body is large.
        let mut noise = vec![0_u8; 12 << 20];
        getrandom::fill(&mut noise).unwrap();
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(noise.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, "noise", &noise[..]).unwrap();
        json!({"bundle": STANDARD.encode(tar.into_inner().unwrap())}).to_string().into_bytes()
    };
    reset_peak(&daemon);
    let before = memory(&daemon, "VmRSS");
    for _ in 0..24 {
        let line = format!("POST /api/sessions/{id}/workspace");
        let mut socket = request(daemon.port, &line, api.key(), Some(bundle.len())).await;
        // Refused ones are closed before they are read.
        let _ = socket.write_all(&bundle).await;
        let _ = socket.flush().await;
    }
    let peak = memory(&daemon, "VmHWM").saturating_sub(before);
    assert!(peak < 400 * MIB, "{} MiB", peak / MIB);
    assert!(comes(Duration::from_secs(30), || memory(&daemon, "VmRSS") < before + 64 * MIB).await);
}

/// The launch options of a session (here 1 MiB, 4 at most) are not read for requests that do not show them.
#[tokio::test]
async fn requests_do_not_hold_the_launch_options_of_their_session() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let env: serde_json::Map<String, Value> = (0..30).map(|n| (format!("V{n}"), "x".repeat(32 << 10).into())).collect();
    let id = api.post("/api/sessions", json!({"agent": "a", "extraEnv": env})).await.expect(201)["session"]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    api.verb(&id, "stop").await;
    // Its task ends a second later: then requests read the row.
    tokio::time::sleep(Duration::from_secs(3)).await;
    many_files(4096);
    reset_peak(&daemon);
    let before = memory(&daemon, "VmRSS");
    let mut waiting = Vec::new();
    for _ in 0..200 {
        // The body never comes: the request has found its session and waits.
        waiting.push(request(daemon.port, &format!("POST /api/sessions/{id}/files"), api.key(), Some(100)).await);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let grown = memory(&daemon, "VmHWM").saturating_sub(before);
    assert!(grown < 48 * MIB, "{} MiB for 200 requests", grown / MIB);
}

/// Without a key: answers that are not read share one copy.
#[tokio::test]
async fn unread_descriptions_of_the_api_cost_little() {
    let (daemon, _api) = Daemon::deployed(Options::default()).await;
    many_files(4096);
    reset_peak(&daemon);
    let before = memory(&daemon, "VmRSS");
    let mut unread = Vec::new();
    for n in 0..600 {
        let mut socket = common::raw::connect(daemon.port, 1).await.unwrap();
        let accept = ["identity", "zstd", "gzip"][n % 3];
        let head = format!("GET /docs/json HTTP/1.1\r\nhost: raw\r\naccept-encoding: {accept}\r\n\r\n");
        socket.write_all(head.as_bytes()).await.unwrap();
        unread.push(socket);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let grown = memory(&daemon, "VmHWM").saturating_sub(before);
    assert!(grown < 48 * MIB, "{} MiB for 600 answers", grown / MIB);
}

/// One tenant's walks through large directories delay no upload of another tenant.
#[tokio::test]
async fn large_directories_of_one_tenant_delay_no_upload_of_another() {
    let (_daemon, admin) = Daemon::deployed(Options::default()).await;
    let key = admin.post("/api/internal/api-keys", json!({"label": "b", "tenantId": "beta"})).await.expect(201);
    let other: Api = admin.with_key(key["key"].as_str());
    other.deploy("a").await;
    let id = admin.session("a").await;
    let many = "for d in $(seq 60); do mkdir -p d$d; (cd d$d; seq 1000 | xargs touch); done";
    admin.post(&format!("/api/sessions/{id}/exec"), json!({"command": many})).await.expect(200);
    let theirs = other.session("a").await;
    let file = |n: usize| json!({"files": [{"path": format!("x{n}"), "content": "eA=="}]});
    let mut busy = Vec::new();
    for n in 0..60 {
        let (api, path) = (admin.clone(), format!("/api/sessions/{id}/files"));
        let body = file(n);
        busy.push(tokio::spawn(async move { api.post(&path, body).await.status }));
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let start = std::time::Instant::now();
    other.post(&format!("/api/sessions/{theirs}/files"), file(0)).await.expect(200);
    let took = start.elapsed();
    for one in busy {
        assert_eq!(one.await.unwrap(), 200);
    }
    assert!(took < start.elapsed() / 4, "{took:?} of {:?}", start.elapsed());
}

/// An attachment's content is written once, whatever names are taken.
#[tokio::test]
async fn taken_names_of_attachments_cost_no_writes() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let taken = "mkdir -p attachments; cd attachments; touch a.png; for n in $(seq 2 300); do touch a-$n.png; done";
    api.post(&format!("/api/sessions/{id}/exec"), json!({"command": taken})).await.expect(200);
    let written = || {
        let io = std::fs::read_to_string(format!("/proc/{}/io", daemon.pid())).unwrap();
        let line = io.lines().find(|line| line.starts_with("wchar:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let content = STANDARD.encode(vec![7; 1 << 20]);
    let before = written();
    api.post(&format!("/api/sessions/{id}/attachments"), json!({"filename": "a.png", "content": content}))
        .await
        .expect(201);
    let bytes = written() - before;
    assert!(bytes < 8 * MIB, "{} MiB", bytes / MIB);
}
