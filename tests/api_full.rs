//! A process fills the disk and keeps trying. Sessions can still be stopped, ended and removed,
//! which frees space.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::api::text;
use common::patience::patient;
use common::raw::comes;
use common::{Daemon, Options};
use serde_json::json;

fn free(daemon: &Daemon) -> u64 {
    let disk = rustix::fs::statvfs(daemon.data()).unwrap();
    disk.f_bavail * disk.f_frsize
}

#[tokio::test]
async fn a_full_disk_is_freed_by_those_who_filled_it() {
    let (mut daemon, api) = Daemon::deployed(Options::default().disk("96m")).await;
    let made = api.post("/api/internal/api-keys", json!({"tenantId": "other", "label": "x"})).await.expect(201);
    let other = api.with_key(made["key"].as_str());
    other.deploy("b").await;
    let theirs = other.session("b").await;
    let (filler, first, second) = (api.session("a").await, api.session("a").await, api.session("a").await);
    let fill =
        "setsid sh -c 'while :; do head -c 65536 /dev/zero >> /workspace/big; done' >/dev/null 2>&1 </dev/null &";
    api.turn(&filler, &format!("@tool Bash {}\n@text ok", json!({ "command": fill }))).await;
    assert!(comes(Duration::from_secs(60), || free(&daemon) < 1 << 16).await, "{} bytes are free", free(&daemon));
    let refused = other.post(&format!("/api/sessions/{theirs}/messages"), json!({"content": "@text lost"})).await;
    assert_eq!(refused.status, 507, "{}", refused.text);

    // Meanwhile the process takes all space that becomes free.
    assert_eq!(api.verb(&first, "stop").await, "stopped");
    api.delete(&format!("/api/sessions/{second}")).await.expect(200);
    api.delete(&format!("/api/sessions/{second}?purge=true")).await.expect(200);
    // The writes survive a crash.
    daemon.kill9();
    daemon.restart();
    let (api, other) = (api.at(daemon.port), other.at(daemon.port));
    assert_eq!(api.info(&first).await["status"], "stopped");
    assert_eq!(api.get(&format!("/api/sessions/{second}")).await.status, 404);
    let start = Instant::now();
    api.delete(&format!("/api/sessions/{filler}?purge=true")).await.expect(200);
    assert!(start.elapsed() < patient(Duration::from_secs(10)), "{:?}", start.elapsed());
    assert!(comes(Duration::from_secs(10), || free(&daemon) > 48 << 20).await, "{} bytes are free", free(&daemon));

    // The neighbour works again as soon as ashd notices the free space.
    let start = Instant::now();
    let path = format!("/api/sessions/{theirs}/messages");
    while other.post(&path, json!({"content": "@text again"})).await.status != 200 {
        assert!(start.elapsed() < patient(Duration::from_secs(10)), "still full");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert_eq!(text(&other.turn(&theirs, "@text and again").await), "and again");
}
