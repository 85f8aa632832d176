//! Two causes that a cgroup and a directory walk do not reveal: which process was killed, and files
//! without a name.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::api::{Stream, text};
use common::patience::patient;
use common::{Daemon, MIB, Options};
use serde_json::json;

fn is_v2() -> bool {
    !std::path::Path::new("/sys/fs/cgroup/memory").exists()
}

const HUNGRY: &str = "[limits]\nmemory_bytes = '128MiB'\nswap_bytes = 0";

#[tokio::test]
async fn the_process_the_kernel_chose_is_named() {
    let (daemon, api) = Daemon::deployed(Options::default().config(HUNGRY)).await;
    let id = api.session("a").await;
    // Two levels below claude, reaped by its own parent: only the kernel's log has its name.
    let tool = r#"@tool Bash {"command": "cp /usr/bin/tail /tmp/my-hog; sh -c '/tmp/my-hog /dev/zero; true'"}"#;
    let frames = api.turn(&id, &format!("{tool}\n@text went on")).await;
    let killed = api.cause(&id, "killed", "oom").await;
    assert_eq!((&killed["process"], &killed["limit"]), (&json!("my-hog"), &json!("memoryBytes")), "{killed}");
    assert!(killed["pid"].as_u64().unwrap() > 1, "{killed}");
    assert!((50 * MIB..=160 * MIB).contains(&killed["residentBytes"].as_u64().unwrap()), "{killed}");
    assert!(killed["error"].as_str().unwrap().contains("my-hog ("), "{killed}");
    assert!(killed["peakBytes"].as_u64().unwrap() > 100 * MIB, "{killed}");
    assert!(daemon.logs().contains("my-hog"), "the journal names it too");
    if is_v2() {
        // The whole sandbox dies, and the report names the chosen process.
        assert!(api.info(&id).await["error"].as_str().unwrap().contains("my-hog"));
    } else {
        assert_eq!(text(&frames), "went on");
    }
}

#[tokio::test]
async fn who_listens_hears_of_it_at_once_in_a_turn_and_between_two() {
    let (_daemon, api) =
        Daemon::deployed(Options::default().config("[limits]\npids = 64\nmemory_bytes = '128MiB'\nswap_bytes = 0"))
            .await;
    let id = api.session("a").await;
    let listen = |id: &str, place: &str| {
        let (api, path) = (api.clone(), format!("/api/sessions/{id}/stream{place}"));
        async move { api.open("GET", &path, None).await }
    };
    let mut stream = Stream::of(listen(&id, "").await).await;
    api.turn(&id, "@fork 200\n@wait 2s\n@text done").await;
    let heard = stream.until("lifecycle").await;
    assert_eq!((&heard.data["action"], &heard.data["reason"]), (&json!("limited"), &json!("pids")), "{heard:?}");
    assert_eq!(listen(&id, &format!("?after={}", heard.id.unwrap())).await.status(), 200);

    // No turn is running, and a command of a client is killed.
    let id = api.session("a").await;
    let mut stream = Stream::of(listen(&id, "").await).await;
    api.turn(&id, "@text done").await;
    let done = stream.until("done").await;
    api.post(&format!("/api/sessions/{id}/exec"), json!({"command": "tail /dev/zero"})).await;
    let heard = stream.until("lifecycle").await;
    assert_eq!((&heard.data["reason"], &heard.data["process"]), (&json!("oom"), &json!("tail")), "{heard:?}");
    assert_eq!(heard.id, done.id, "the place that was reached");
    assert_eq!(listen(&id, &format!("?after={}", heard.id.unwrap())).await.status(), 200);
}

#[tokio::test]
async fn a_command_of_exec_that_is_killed_says_by_what() {
    let (_daemon, api) = Daemon::deployed(Options::default().config(HUNGRY)).await;
    let id = api.session("a").await;
    let body = json!({"command": "tail /dev/zero"});
    let answer = api.post(&format!("/api/sessions/{id}/exec"), body).await;
    if is_v2() {
        assert!(answer.text.contains("memory limit of 128 MiB"), "{}", answer.text);
    } else {
        let done = answer.expect(200);
        assert_eq!(done["exitCode"], 137, "{done}");
        let said = done["stderr"].as_str().unwrap();
        assert!(
            said.contains("[ashd: memory: ") && said.contains("limit of 128 MiB: the kernel killed tail ("),
            "{said}"
        );
    }
    api.cause(&id, "killed", "oom").await;
    // A kill for another reason is not reported as out of memory.
    if !is_v2() {
        let other = api.post(&format!("/api/sessions/{id}/exec"), json!({"command": "kill -9 $$"})).await.expect(200);
        assert_eq!((&other["exitCode"], &other["stderr"]), (&json!(137), &json!("")), "{other}");
    }
}

#[tokio::test]
async fn a_budget_that_is_used_up_is_told() {
    let (_daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let result = r#"@raw {"type":"result","subtype":"error_max_turns","is_error":true,"num_turns":2,"total_cost_usd":0.1,"session_id":"x"}"#;
    let body = json!({"content": format!("@text some\n{result}\n@wait 1s"), "maxTurns": 2});
    api.send(&id, body).await.rest().await;
    let limited = api.cause(&id, "limited", "budget").await;
    assert_eq!(
        (&limited["limit"], &limited["value"], &limited["used"]),
        (&json!("maxTurns"), &json!(2), &json!(2)),
        "{limited}"
    );
    assert_eq!(api.info(&id).await["status"], "active");
    assert!(api.get("/metrics").await.text.contains("ash_limited_total{reason=\"budget\"} 1"));
}

#[tokio::test]
async fn a_deleted_open_file_is_bounded_within_a_second() {
    // The real Claude Code: the fake does not end tools when it is interrupted.
    let (_daemon, api) =
        Daemon::deployed(Options::default().real_claude().config("[limits]\ndisk_bytes = '256MiB'")).await;
    let id = api.session("a").await;
    // 20 MiB every 100 ms into a file without a name; 256 MiB are exceeded after 1.3 s.
    let fill = r#"@tool Bash {"command": "exec 9> /workspace/f; rm /workspace/f; for n in $(seq 400); do head -c 20971520 /dev/zero >&9; echo $n > /tmp/count; sleep 0.1; done"}"#;
    let start = Instant::now();
    let frames = api.turn(&id, fill).await;
    assert!(start.elapsed() < patient(Duration::from_secs(10)), "{:?}", start.elapsed());
    let said = frames[frames.len() - 2].data["error"].as_str().unwrap();
    assert!(said.contains("in deleted files that are still open") && said.contains("of 256 MiB"), "{said}");
    let limited = api.cause(&id, "limited", "disk").await;
    let used = limited["used"].as_u64().unwrap();
    // A second later it would be 200 MiB more.
    assert!((256 * MIB..456 * MIB).contains(&used), "{} MiB", used / MIB);
    assert_eq!(api.info(&id).await["status"], "paused");
    let stats = api.get(&format!("/api/sessions/{id}/stats")).await.expect(200)["stats"].clone();
    assert!(stats["disk"]["bytes"].as_u64().unwrap() >= 256 * MIB, "{stats}");

    // Its writer is interrupted when the session resumes, which frees the space.
    api.call("POST", &format!("/api/sessions/{id}/resume"), None).await.expect(200);
    assert_eq!(text(&api.turn(&id, "@text again").await), "again");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(api.info(&id).await["status"], "active");
}

#[tokio::test]
async fn one_huge_file_in_a_moment_is_bounded_within_a_second() {
    let (_daemon, api) = Daemon::deployed(Options::default().config("[limits]\ndisk_bytes = '64MiB'")).await;
    let id = api.session("a").await;
    // fallocate takes the blocks at once, whatever the size; then the file is mapped and the
    // descriptor closed.
    let script = "import mmap, os, time\nf = os.open('/workspace/huge', os.O_RDWR | os.O_CREAT)\nos.posix_fallocate(f, 0, 1 << 30)\n\
        m = mmap.mmap(f, 1 << 30)\nos.close(f)\nos.unlink('/workspace/huge')\ntime.sleep(60)";
    api.post(&format!("/api/sessions/{id}/files"), json!({"files": [{"path": "huge.py", "content": base64(script)}]}))
        .await
        .expect(200);
    let start = Instant::now();
    let frames = api.turn(&id, r#"@tool Bash {"command": "python3 /workspace/huge.py"}"#).await;
    assert!(start.elapsed() < patient(Duration::from_secs(5)), "{:?}", start.elapsed());
    let said = frames[frames.len() - 2].data["error"].as_str().unwrap();
    assert!(said.contains("1024 of them in files that were deleted") || said.contains("1025 MiB"), "{said}");
    assert_eq!(api.info(&id).await["status"], "paused");
}

#[tokio::test]
async fn who_holds_on_is_ended_at_the_second_time() {
    let (_daemon, api) = Daemon::deployed(Options::default().config("[limits]\ndisk_bytes = '64MiB'")).await;
    let id = api.session("a").await;
    // A daemon process: an interrupt of the turn does not reach it.
    let daemon = r#"@tool Bash {"command": "setsid bash -c 'exec 9> /workspace/f; rm /workspace/f; while sleep 0.1; do head -c 5242880 /dev/zero >&9; done' > /dev/null 2>&1 & sleep 30"}"#;
    api.turn(&id, daemon).await;
    assert_eq!(api.info(&id).await["status"], "paused");
    api.call("POST", &format!("/api/sessions/{id}/resume"), None).await.expect(200);
    let start = Instant::now();
    while api.info(&id).await["status"] != "error" {
        assert!(start.elapsed() < patient(Duration::from_secs(10)), "{}", api.info(&id).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let said = api.info(&id).await["error"].as_str().unwrap().to_owned();
    assert!(said.contains("its processes were ended"), "{said}");
    api.call("POST", &format!("/api/sessions/{id}/resume"), None).await.expect(200);
    assert_eq!(text(&api.turn(&id, "@text again").await), "again");
}

fn base64(text: &str) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(text)
}
