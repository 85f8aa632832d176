//! Behaviour at each limit: the session gets a message, the timeline has the cause, and the session
//! can continue.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::api::{Api, text};
use common::patience::patient;
use common::{Daemon, MIB, Options};
use serde_json::{Value, json};

async fn wait_for(api: &Api, id: &str, status: &str) {
    let start = Instant::now();
    while api.info(id).await["status"] != status {
        assert!(start.elapsed() < patient(Duration::from_secs(5)), "not {status}: {}", api.info(id).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn on_disk(daemon: &Daemon, id: &str, file: &str) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let path = daemon.data().join("sessions").join(id).join("workspace").join(file);
    std::fs::metadata(path).map_or(0, |meta| meta.blocks() * 512)
}

#[tokio::test]
async fn a_disk_filler_is_stopped_within_a_second_and_goes_on_when_files_are_deleted() {
    let (daemon, api) = Daemon::deployed(Options::default().config("[limits]\ndisk_bytes = '64MiB'")).await;
    let id = api.session("a").await;
    // 20 MiB every 100 ms: 64 MiB are exceeded after 0.3 s; a second later it would be 200 MiB
    // more.
    let fill = r#"@tool Bash {"command": "for n in $(seq 200); do head -c 20971520 /dev/zero >> /workspace/big; sleep 0.1; done"}"#;
    let start = Instant::now();
    let frames = api.turn(&id, fill).await;
    assert!(start.elapsed() < patient(Duration::from_secs(5)), "{:?}", start.elapsed());
    let [.., error, done] = &frames[..] else { panic!("{frames:?}") };
    assert_eq!((error.event.as_str(), done.event.as_str()), ("error", "done"));
    let said = error.data["error"].as_str().unwrap();
    assert!(
        said.starts_with("Session paused: disk limit exceeded (")
            && said.contains("of 64 MiB)")
            && said.contains("DELETE"),
        "{said}"
    );
    let written = on_disk(&daemon, &id, "big");
    assert!((64 * MIB..264 * MIB).contains(&written), "{} MiB", written / MIB);
    let now = api.info(&id).await;
    assert_eq!((&now["status"], now["error"].as_str()), (&json!("paused"), Some(said)));
    let limited = api.cause(&id, "limited", "disk").await;
    assert_eq!((&limited["limit"], &limited["value"]), (&json!("diskBytes"), &json!(64 * MIB)));
    assert!(limited["used"].as_u64().unwrap() > 64 * MIB, "{limited}");
    assert_eq!(api.cause(&id, "paused", "disk").await["error"], said);

    // It is paused: it cannot be resumed, nor filled through the API.
    tokio::time::sleep(Duration::from_millis(300)).await;
    // Reserved blocks may still be allocated in the file system.
    assert!(on_disk(&daemon, &id, "big") < written + MIB);
    let refused = api.call("POST", &format!("/api/sessions/{id}/resume"), None).await;
    assert_eq!(refused.status, 507, "{}", refused.text);
    let more = json!({"files": [{"path": "more", "content": "aGVsbG8="}]});
    api.post(&format!("/api/sessions/{id}/files"), more.clone()).await.expect(507);

    // Space freed through the API: the session continues by itself, and the rest of the turn is
    // skipped.
    api.delete(&format!("/api/sessions/{id}/files/big")).await.expect(200);
    wait_for(&api, &id, "active").await;
    assert_eq!(api.info(&id).await["error"], Value::Null);
    api.post(&format!("/api/sessions/{id}/files"), more).await.expect(200);
}

#[tokio::test]
async fn a_raised_limit_lets_it_go_on() {
    let (_daemon, api) = Daemon::deployed(Options::default().config("[limits]\ndisk_files = 200")).await;
    let id = api.session("a").await;
    let frames = api.turn(&id, r#"@tool Bash {"command": "cd /workspace; touch $(seq 300); sleep 30"}"#).await;
    let said = frames[frames.len() - 2].data["error"].as_str().unwrap();
    assert!(said.contains("of 200 files)"), "{said}");
    wait_for(&api, &id, "paused").await;
    let path = format!("/api/sessions/{id}/limits");
    api.call("PATCH", &path, Some(json!({"diskFiles": 250}))).await.expect(200);
    assert_eq!(api.info(&id).await["status"], "paused");
    api.call("PATCH", &path, Some(json!({"diskFiles": 1000}))).await.expect(200);
    assert_eq!(api.info(&id).await["status"], "active");
    // A limit below the current use is refused.
    let refused = api.call("PATCH", &path, Some(json!({"diskFiles": 250}))).await;
    assert!(refused.status == 400 && refused.text.contains("uses now"), "{}", refused.text);
}

#[tokio::test]
async fn a_held_session_stays_held_across_a_restart() {
    let (mut daemon, api) = Daemon::deployed(Options::default().config("[limits]\ndisk_bytes = '32MiB'")).await;
    let id = api.session("a").await;
    api.turn(&id, r#"@tool Bash {"command": "head -c 60000000 /dev/zero > /workspace/big; sleep 30"}"#).await;
    wait_for(&api, &id, "paused").await;
    daemon.kill9();
    daemon.restart();
    let api = daemon.api();
    assert!(api.info(&id).await["error"].as_str().unwrap().contains("of 32 MiB)"));
    api.call("POST", &format!("/api/sessions/{id}/resume"), None).await.expect(507);
    api.delete(&format!("/api/sessions/{id}/files/big")).await.expect(200);
    wait_for(&api, &id, "active").await;
}

#[tokio::test]
async fn a_fork_bomb_meets_its_limit_and_the_timeline_says_so() {
    let (_daemon, api) = Daemon::deployed(Options::default().config("[limits]\npids = 64")).await;
    let id = api.session("a").await;
    let said = text(&api.turn(&id, "@fork 200").await);
    let started: u64 = said.split(' ').nth(1).unwrap().parse().unwrap();
    assert!((1..64).contains(&started), "{said}");
    let limited = api.cause(&id, "limited", "pids").await;
    assert_eq!((&limited["limit"], &limited["value"]), (&json!("pids"), &json!(64)));
    assert!(limited["refused"].as_u64().unwrap() >= 1, "{limited}");
    assert_eq!(api.info(&id).await["status"], "active");
    let stats = api.get(&format!("/api/sessions/{id}/stats")).await.expect(200)["stats"].clone();
    assert!(stats["pids"]["refused"].as_u64().unwrap() >= 1, "{stats}");
    assert!(api.get("/metrics").await.text.contains("ash_limited_total{reason=\"pids\"} 1"));
}

#[tokio::test]
async fn a_memory_hog_is_killed_with_limit_peak_and_process() {
    let (_daemon, api) =
        Daemon::deployed(Options::default().config("[limits]\nmemory_bytes = '128MiB'\nswap_bytes = 0")).await;
    let id = api.session("a").await;
    let frames = api.turn(&id, "@alloc 300000000").await;
    let said = frames[frames.len() - 2].data["error"].as_str().unwrap().to_owned();
    assert!(said.contains("memory limit of 128 MiB"), "{said}");
    let killed = api.cause(&id, "killed", "oom").await;
    assert_eq!((&killed["limit"], &killed["value"]), (&json!("memoryBytes"), &json!(128 * MIB)));
    assert!(killed["peakBytes"].as_u64().unwrap() > 100 * MIB, "{killed}");
    assert!(killed["process"].as_str().is_some(), "{killed}");
    let now = api.info(&id).await;
    assert_eq!((&now["status"], now["error"].as_str()), (&json!("error"), Some(said.as_str())));
    api.call("POST", &format!("/api/sessions/{id}/resume"), None).await.expect(200);
    assert_eq!(text(&api.turn(&id, "@text again").await), "again");
}

#[tokio::test]
async fn a_killed_tool_is_told_too() {
    let (_daemon, api) =
        Daemon::deployed(Options::default().config("[limits]\nmemory_bytes = '128MiB'\nswap_bytes = 0")).await;
    let id = api.session("a").await;
    let frames = api.turn(&id, "@tool Bash {\"command\": \"tail /dev/zero\"}\n@text went on").await;
    let killed = api.cause(&id, "killed", "oom").await;
    assert_eq!(killed["value"], 128 * MIB, "{killed}");
    // On cgroup v2 the whole group dies; on v1 the kernel kills one process, and claude continues.
    let v2 = !std::path::Path::new("/sys/fs/cgroup/memory").exists();
    assert_eq!(api.info(&id).await["status"], if v2 { "error" } else { "active" });
    if !v2 {
        assert_eq!(text(&frames), "went on");
        assert_eq!(killed["processes"], 1, "{killed}");
    }
}

#[tokio::test]
async fn an_endless_turn_is_ended() {
    let (_daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    api.call("PATCH", &format!("/api/sessions/{id}/limits"), Some(json!({"turnMs": 1000}))).await.expect(200);
    let start = Instant::now();
    let frames = api.turn(&id, "@wait 60s\n@text never").await;
    assert!(
        (Duration::from_secs(1)..patient(Duration::from_secs(8))).contains(&start.elapsed()),
        "{:?}",
        start.elapsed()
    );
    let said = frames[frames.len() - 2].data["error"].as_str().unwrap();
    assert!(said.contains("longer than 1000 ms"), "{said}");
    let limited = api.cause(&id, "limited", "turn-time").await;
    assert_eq!((&limited["limit"], &limited["value"]), (&json!("turnMs"), &json!(1000)));
    assert_eq!(api.info(&id).await["status"], "active");
    assert_eq!(text(&api.turn(&id, "@text short").await), "short");
}

#[tokio::test]
async fn a_kill_from_outside_is_named() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let frames = api.turn(&id, "@kill").await;
    assert!(frames[frames.len() - 2].data["error"].as_str().unwrap().contains("SIGKILL"));
    let killed = api.cause(&id, "killed", "signal").await;
    assert_eq!((&killed["signal"], &killed["process"]), (&json!(9), &json!("claude")));
    let logs = daemon.logs();
    assert!(logs.contains("\"ASH_EVENT\":\"killed\"") || logs.contains("ASH_EVENT=\"killed\""), "{logs}");
}

#[tokio::test]
async fn what_the_limit_of_the_processor_stopped_is_counted_for_one_and_for_all() {
    let (_daemon, api) = Daemon::deployed(Options::default()).await;
    let [one, other] = [api.session("a").await, api.session("a").await];
    let all = async || {
        let metrics = api.get("/metrics").await.text;
        let line = metrics.lines().find(|line| line.starts_with("ash_cpu_throttled_seconds_total ")).unwrap();
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    let throttled = async |id: &String| {
        let stats = api.get(&format!("/api/sessions/{id}/stats")).await.expect(200);
        stats["stats"]["cpu"]["throttledUs"].as_u64().unwrap() as f64 / 1e6
    };
    let little = json!({"cpuMillis": 20});
    api.call("PATCH", &format!("/api/sessions/{one}/limits"), Some(little)).await.expect(200);
    // Forks that were refused at a limit are reported within a second.
    tokio::time::sleep(Duration::from_millis(1300)).await;
    let (before, mut own) = (all().await, throttled(&one).await + throttled(&other).await);
    api.turn(&one, "@busy 2s").await;
    own = throttled(&one).await + throttled(&other).await - own;
    assert!(own > 0.5, "a fiftieth of a core for 2 s: {own}");
    // Counts include ended processes.
    tokio::time::sleep(Duration::from_millis(1300)).await;
    api.delete(&format!("/api/sessions/{one}")).await.expect(200);
    let counted = all().await - before;
    assert!((own - 0.2..own + 0.2).contains(&counted), "{counted} of {own}");
}
