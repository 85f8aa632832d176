//! Failures of the host: a full disk, a read-only disk, a locked database, no file descriptors
//! left. Acknowledged data is not lost, refusals have a reason, and ashd continues without a
//! restart.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use common::api::text;
use common::{Api, Daemon, Options};
use serde_json::json;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{Connection, Executor};
use tokio::io::AsyncWriteExt;

fn fill(path: &Path) {
    let mut file = std::fs::File::create(path).unwrap();
    for size in [1 << 20, 4096, 1] {
        let block = vec![b'x'; size];
        while file.write_all(&block).is_ok() {}
    }
}

async fn users(api: &Api, id: &str) -> Vec<String> {
    let list = api.get(&format!("/api/sessions/{id}/messages?limit=1000")).await.expect(200);
    let content =
        |m: &serde_json::Value| -> serde_json::Value { serde_json::from_str(m["content"].as_str().unwrap()).unwrap() };
    let all = list["messages"].as_array().unwrap().iter().map(content);
    all.filter(|c| c["type"] == "user").filter_map(|c| c["content"].as_str().map(str::to_owned)).collect()
}

async fn back_to_active(api: &Api, id: &str) {
    let start = Instant::now();
    loop {
        let answer = api.call("POST", &format!("/api/sessions/{id}/resume"), None).await;
        if answer.status == 200 {
            return;
        }
        assert!(
            start.elapsed() < crate::common::patience::patient(Duration::from_secs(15)),
            "the session does not come back: {}",
            answer.text
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_full_disk_refuses_and_loses_nothing() {
    // With the reserve, and without it: then the write itself fails.
    for config in ["", "[disk]\nreserve_bytes = 0"] {
        let daemon = Daemon::start(Options::default().disk("48m").config(config));
        let api = daemon.api();
        api.deploy("a").await;
        let id = api.session("a").await;
        assert_eq!(text(&api.turn(&id, "@text first").await), "first");
        let running = api.session("a").await;
        let body = json!({"content": "@text begun\n@delay 30ms\n@repeat 30 word", "includePartialMessages": true});
        let mut stream = api.send(&running, body).await;
        stream.until("text_delta").await;

        let filler = daemon.data().join("filler");
        fill(&filler);
        // The reserve is measured at intervals.
        tokio::time::sleep(Duration::from_millis(1200)).await;
        let refused = api.post(&format!("/api/sessions/{id}/messages"), json!({"content": "@text lost"})).await;
        assert!(matches!(refused.status, 507 | 503), "{config}: {} {}", refused.status, refused.text);
        let why = refused.json["error"].as_str().unwrap();
        assert!(why.contains("disk") || why.contains("full"), "{config}: {why}");
        api.get("/health").await.expect(200);
        assert_eq!(users(&api, &id).await, ["@text first"], "{config}: not accepted, so not there");
        // A running turn ends, with the reason if it could not continue.
        let rest = stream.rest().await;
        assert_eq!(rest.last().unwrap().event, "done", "{config}");

        std::fs::remove_file(&filler).unwrap();
        tokio::time::sleep(Duration::from_millis(1200)).await;
        for id in [&id, &running] {
            back_to_active(&api, id).await;
            assert_eq!(text(&api.turn(id, "@text after").await), "after", "{config}");
        }
        assert_eq!(users(&api, &id).await, ["@text first", "@text after"], "{config}");
    }
}

#[tokio::test]
async fn a_read_only_disk_is_refused_at_the_start_and_nothing_is_lost() {
    let (mut daemon, api) = Daemon::deployed(Options::default().disk("48m")).await;
    let id = api.session("a").await;
    assert_eq!(text(&api.turn(&id, "@text first").await), "first");
    api.call("POST", &format!("/api/sessions/{id}/stop"), None).await.expect(200);
    daemon.terminate();
    daemon.mount(&["-o", "remount,ro"]);
    let said = daemon.refuses_to_start();
    assert!(said.contains("ead-only"), "{said}");
    daemon.mount(&["-o", "remount,rw"]);
    daemon.restart();
    let api = daemon.api();
    back_to_active(&api, &id).await;
    assert_eq!(text(&api.turn(&id, "@recall").await), "@text first");
}

/// The disk fails right after a client received `done`: everything the client received is on it.
#[tokio::test]
async fn a_disk_that_fails_in_mid_turn_is_said_and_keeps_what_was_told() {
    let (mut daemon, api) = Daemon::deployed(Options { breakable: Some("96m"), ..Options::default() }).await;
    let (id, running) = (api.session("a").await, api.session("a").await);
    assert_eq!(text(&api.turn(&id, "@text first").await), "first");
    // By then the session is frozen and claude's own record is saved.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let body = json!({"content": "@text begun\n@delay 30ms\n@repeat 100 word", "includePartialMessages": true});
    let mut stream = api.send(&running, body).await;
    stream.until("text_delta").await;
    let mut told = api.send(&id, json!({"content": "@text second", "includePartialMessages": true})).await;
    told.until("done").await;
    daemon.breakable.as_ref().unwrap().fail();

    let refused = api.post(&format!("/api/sessions/{id}/messages"), json!({"content": "@text lost"})).await;
    assert!(refused.status >= 500, "{} {}", refused.status, refused.text);
    let why = refused.json["error"].as_str().unwrap();
    assert!(why.contains("ead-only") || why.contains("database"), "{why}");
    api.get("/health").await.expect(200);
    assert_eq!(users(&api, &id).await, ["@text first", "@text second"], "what is there can be read");
    // The running turn ends with its claude, which cannot write any more.
    let rest = stream.rest().await;
    assert_eq!(rest.last().unwrap().event, "done");
    assert!(rest.iter().any(|frame| frame.event == "error"), "{:?}", common::api::names(&rest));

    daemon.halt();
    daemon.breakable.as_ref().unwrap().repair();
    daemon.restart();
    let api = daemon.api();
    let path = daemon.data().join("ashd.db");
    let options = SqliteConnectOptions::new().filename(path).read_only(true);
    let mut db = SqliteConnection::connect_with(&options).await.unwrap();
    let sound: String = sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&mut db).await.unwrap();
    assert_eq!(sound, "ok");
    assert_eq!(users(&api, &id).await, ["@text first", "@text second"]);
    let list = api.get(&format!("/api/sessions/{id}/messages?limit=1000")).await.expect(200);
    assert!(list["messages"].to_string().contains("second"), "and its answer: {list}");
    assert_eq!(users(&api, &running).await.len(), 1, "accepted, so kept");
    back_to_active(&api, &id).await;
    assert_eq!(text(&api.turn(&id, "@recall").await), "@text first");
    assert_eq!(text(&api.turn(&id, "@text after").await), "after");
}

#[tokio::test]
async fn a_host_short_of_memory_starts_nothing_new_and_says_so() {
    let (mut daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    api.call("POST", &format!("/api/sessions/{id}/stop"), None).await.expect(200);
    // A daemon that requires more free space on the same disk.
    let config = daemon.dir.join("ashd.toml");
    let before = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("{before}\n[pool]\nmin_available_bytes = \"100TiB\"\n")).unwrap();
    daemon.restart();
    let api = daemon.api();
    for path in ["/api/sessions".to_owned(), format!("/api/sessions/{id}/resume")] {
        let refused = api.post(&path, json!({"agent": "a"})).await;
        assert!(refused.headers.contains_key("retry-after"), "{path}: {:?}", refused.headers);
        let why = refused.expect(503)["error"].as_str().unwrap().to_owned();
        assert!(why.contains("short of memory") && why.contains("min_available_bytes"), "{path}: {why}");
    }
    assert_eq!(api.get("/health").await.expect(200)["activeSandboxes"], 0);
    std::fs::write(&config, before).unwrap();
    daemon.restart();
    back_to_active(&daemon.api(), &id).await;
}

#[tokio::test]
async fn a_locked_database_delays_and_loses_nothing() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let body = json!({"content": "@delay 20ms\n@repeat 30 word", "includePartialMessages": true});
    let mut stream = api.send(&id, body).await;
    let mut frames = vec![stream.until("text_delta").await];

    let path = daemon.data().join("ashd.db");
    let mut other = SqliteConnection::connect_with(&SqliteConnectOptions::new().filename(path)).await.unwrap();
    other.execute("BEGIN IMMEDIATE").await.unwrap();
    let start = Instant::now();
    // The deltas continue; only the end of the turn waits until it is durable.
    while frames.iter().filter(|f| f.event == "text_delta").count() < 30 {
        frames.push(stream.next().await.unwrap());
    }
    assert!(
        start.elapsed() < crate::common::patience::patient(Duration::from_secs(5)),
        "the stream waited for the database"
    );
    api.get("/health").await.expect(200);
    tokio::time::sleep(Duration::from_millis(1500).saturating_sub(start.elapsed())).await;
    assert!(!frames.iter().any(|f| f.event == "done"));
    other.execute("ROLLBACK").await.unwrap();
    frames.extend(stream.rest().await);
    assert_eq!(text(&frames), "word ".repeat(30));
    assert_eq!(frames.last().unwrap().event, "done");
    assert_eq!(users(&api, &id).await.len(), 1);
}

#[tokio::test]
async fn with_few_descriptors_turns_go_on_and_some_are_kept() {
    const MOST: u32 = 96;
    let (daemon, api) = Daemon::deployed(Options { descriptors: Some(MOST), ..Options::default() }).await;
    let id = api.session("a").await;
    let body = json!({"content": "@delay 30ms\n@repeat 60 word", "includePartialMessages": true});
    let mut stream = api.send(&id, body).await;
    let first = stream.until("text_delta").await;

    let mut crowd = Vec::new();
    for _ in 0..2 * MOST {
        let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", daemon.port)).await.unwrap();
        let request = format!(
            "GET /api/sessions/{id}/stream HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\n\r\n",
            daemon.key
        );
        socket.write_all(request.as_bytes()).await.unwrap();
        crowd.push(socket);
    }
    // Two thirds of the descriptors are reserved for other uses: excess connections are refused or
    // closed.
    let left = || daemon.descriptors() < MOST as usize - 4;
    assert!(common::raw::comes(Duration::from_secs(5), left).await, "{} of {MOST} are in use", daemon.descriptors());
    api.get("/health").await.expect(200);
    // The running turn is not disturbed by them.
    let rest = stream.rest().await;
    assert_eq!(format!("{}{}", first.data["delta"].as_str().unwrap(), text(&rest)), "word ".repeat(60));
    assert!(!daemon.logs().contains("cannot be written"), "the database had no descriptor\n{}", daemon.logs());
    drop(crowd);
    back_to_active(&api, &id).await;
    assert_eq!(text(&api.turn(&id, "@text after").await), "after");
}
