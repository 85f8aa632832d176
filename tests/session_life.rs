//! Unrequested transitions of sessions and their combinations: failed starts, memory, eviction,
//! idleness, options of one message, restarts while paused, concurrent requests.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::api::{Api, text};
use common::{Daemon, Options, procs};
use serde_json::{Value, json};

async fn status(api: &Api, id: &str) -> String {
    api.info(id).await["status"].as_str().unwrap().to_owned()
}

async fn within(limit: Duration, what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !is_so().await {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_start_that_fails_says_where_and_why_and_leaves_a_row_only() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let body = json!({"agent": "a", "extraEnv": {"FAKE_FAIL_START": "1"}});
    let error = api.post("/api/sessions", body).await.expect(500)["error"].as_str().unwrap().to_owned();
    for part in ["initialize", "exited with status 3", "told to fail at its start"] {
        assert!(error.contains(part), "{part} in {error}");
    }
    let list = api.get("/api/sessions").await.expect(200);
    let session = &list["sessions"][0];
    assert_eq!(session["status"], "error");
    let id = session["id"].as_str().unwrap();
    assert!(!daemon.data().join("sessions").join(id).exists());
    assert!(!daemon.run().join("sandboxes").join(id).exists());
    assert_eq!(api.lifecycle(id).await.last().unwrap()["reason"], "start");
    assert_eq!(api.get("/health").await.expect(200)["activeSandboxes"], 0);
    // Its place is free and its state is resumable; with the same options it fails again.
    api.call("POST", &format!("/api/sessions/{id}/resume"), None).await.expect(500);
    assert_eq!(status(&api, id).await, "error");
    assert_eq!(api.delete(&format!("/api/sessions/{id}")).await.expect(200)["session"]["status"], "ended");
}

#[tokio::test]
async fn a_claude_that_takes_too_much_memory_ends_with_that_cause() {
    let (_daemon, api) =
        Daemon::deployed(Options::default().config("[limits]\nmemory_bytes = '128MiB'\nswap_bytes = 0")).await;
    let id = api.session("a").await;
    let frames = api.turn(&id, "@alloc 300000000\n@text never").await;
    let error = &frames[frames.len() - 2];
    assert_eq!((error.event.as_str(), frames.last().unwrap().event.as_str()), ("error", "done"));
    assert!(error.data["error"].as_str().unwrap().contains("memory limit of 128 MiB"), "{}", error.data);
    assert_eq!(status(&api, &id).await, "error");
    assert_eq!(api.lifecycle(&id).await.last().unwrap()["reason"], "oom");
    assert_eq!(api.verb(&id, "resume").await, "active");
    assert_eq!(text(&api.turn(&id, "@text small again").await), "small again");
}

#[tokio::test]
async fn the_session_paused_longest_makes_room_and_comes_back() {
    let (_daemon, api) = Daemon::deployed(Options::default().env("ASH_MAX_SANDBOXES", "2")).await;
    let (first, second) = (api.session("a").await, api.session("a").await);
    api.turn(&first, "remember me").await;
    api.post("/api/sessions", json!({"agent": "a"})).await.expect(503);
    api.verb(&first, "pause").await;
    api.verb(&second, "pause").await;
    let third = api.session("a").await;
    assert_eq!(api.lifecycle(&first).await.last().unwrap(), &json!({"action": "parked", "reason": "evicted"}));
    assert_eq!(api.lifecycle(&second).await.last().unwrap()["action"], "paused");
    assert_eq!(status(&api, &first).await, "paused");
    let health = api.get("/health").await.expect(200);
    assert_eq!((&health["pool"]["total"], &health["pool"]["cold"]), (&json!(3), &json!(1)));
    // Its own resume evicts the other paused session.
    assert_eq!(api.verb(&first, "resume").await, "active");
    assert_eq!(api.lifecycle(&second).await.last().unwrap()["reason"], "evicted");
    assert_eq!(text(&api.turn(&first, "@recall").await), "remember me");
    api.call("POST", &format!("/api/sessions/{second}/resume"), None).await.expect(503);
    api.delete(&format!("/api/sessions/{third}")).await.expect(200);
    assert_eq!(api.verb(&second, "resume").await, "active");
}

#[tokio::test]
async fn an_active_session_that_is_idle_for_long_makes_room_and_a_turn_never_does() {
    let options = Options::default().env("ASH_MAX_SANDBOXES", "2").config("[pool]\nevict_after_ms = 300");
    let (_daemon, api) = Daemon::deployed(options).await;
    let (idle, busy) = (api.session("a").await, api.session("a").await);
    api.turn(&idle, "remember me").await;
    let body = json!({"content": "@text begun\n@wait 3s\n@text over", "includePartialMessages": true});
    let mut stream = api.send(&busy, body).await;
    stream.until("text_delta").await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    let third = api.session("a").await;
    let last = api.lifecycle(&idle).await.last().unwrap().clone();
    assert_eq!((&last["action"], &last["reason"]), (&json!("paused"), &json!("evicted")));
    assert_eq!(text(&stream.rest().await), "over", "the turn was not disturbed");
    api.call("POST", &format!("/api/sessions/{third}/pause"), None).await.expect(200);
    assert_eq!(api.verb(&idle, "resume").await, "active");
    assert_eq!(text(&api.turn(&idle, "@recall").await), "remember me");
}

#[tokio::test]
async fn an_idle_claude_is_frozen_by_itself_but_not_what_it_left_running() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let (idle, busy) = (api.session("a").await, api.session("a").await);
    api.turn(&idle, "@text x").await;
    api.turn(&busy, "@fork 1").await;
    within(Duration::from_secs(10), "the idle one is frozen", async || procs::frozen(&daemon, &idle)).await;
    assert_eq!(status(&api, &idle).await, "active", "the client notices nothing");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!procs::frozen(&daemon, &busy), "a process of the agent is at work in there");
    assert_eq!(text(&api.turn(&idle, "@text thawed").await), "thawed");
    assert!(!procs::frozen(&daemon, &idle));
}

#[tokio::test]
async fn after_the_idle_timeout_a_session_is_cold_and_remembers() {
    let (daemon, api) = Daemon::deployed(Options::default().env("ASH_IDLE_TIMEOUT_MS", "1200")).await;
    let id = api.session("a").await;
    api.turn(&id, "first words").await;
    within(Duration::from_secs(10), "parked", async || status(&api, &id).await == "paused").await;
    assert_eq!(api.lifecycle(&id).await.last().unwrap()["reason"], "idle");
    within(Duration::from_secs(5), "no process", async || procs::of_session(&daemon, &id).is_empty()).await;
    assert_eq!(api.verb(&id, "resume").await, "active");
    assert_eq!(api.lifecycle(&id).await.last().unwrap()["path"], "cold");
    assert_eq!(text(&api.turn(&id, "@recall").await), "first words");
}

#[tokio::test]
async fn options_of_one_message_hold_for_that_message() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let flags = || procs::claude(&daemon, &id).read("cmdline");
    api.turn(&id, "first words").await;
    let before = procs::claude(&daemon, &id);
    let body = json!({"content": "@recall", "includePartialMessages": true, "maxTurns": 3});
    assert_eq!(text(&api.send(&id, body).await.rest().await), "first words");
    assert!(flags().contains("--max-turns=3"), "{}", flags());
    assert_ne!(procs::claude(&daemon, &id), before);
    assert_eq!(text(&api.turn(&id, "@recall").await), "first words");
    assert!(!flags().contains("--max-turns"), "{}", flags());
    // The model needs no new process, and does not persist either.
    let same = procs::claude(&daemon, &id);
    let model = async |body: Value| {
        let frames = api.send(&id, body).await.rest().await;
        let init = frames.iter().find(|f| f.data["subtype"] == "init").unwrap();
        init.data["model"].as_str().unwrap().to_owned()
    };
    let usual = model(json!({"content": "x"})).await;
    assert_eq!(model(json!({"content": "x", "model": "other"})).await, "other");
    assert_ne!(model(json!({"content": "x"})).await, "other", "usually {usual}");
    assert_eq!(procs::claude(&daemon, &id), same);
    for (body, field) in [
        (json!({"content": "x", "maxTurns": 0}), "maxTurns"),
        (json!({"content": "x", "maxBudgetUsd": -1}), "maxBudgetUsd"),
        (json!({"content": "x", "outputFormat": {"type": "xml"}}), "outputFormat"),
        (json!({"content": "x", "thinking": {"type": "much"}}), "thinking"),
        (json!({"content": []}), "content"),
    ] {
        let refused = api.post(&format!("/api/sessions/{id}/messages"), body).await.expect(400);
        assert!(refused["error"].as_str().unwrap().contains(field), "{refused}");
    }
}

#[tokio::test]
async fn paused_in_mid_turn_survives_a_killed_daemon() {
    let (mut daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let body = json!({"content": "@delay 50ms\n@repeat 40 word", "includePartialMessages": true});
    let mut stream = api.send(&id, body).await;
    stream.until("text_delta").await;
    assert_eq!(api.verb(&id, "pause").await, "paused");
    drop(stream);
    daemon.kill9();
    daemon.restart();
    let api = daemon.api();
    assert_eq!(status(&api, &id).await, "paused");
    within(Duration::from_secs(5), "frozen again", async || procs::frozen(&daemon, &id)).await;
    let start = Instant::now();
    assert_eq!(api.verb(&id, "resume").await, "active");
    assert!(
        start.elapsed() < crate::common::patience::patient(Duration::from_secs(2)),
        "warm, not {:?}",
        start.elapsed()
    );
    assert_eq!(api.lifecycle(&id).await.last().unwrap()["path"], "warm");
    let mut stream =
        common::api::Stream::of(api.open("GET", &format!("/api/sessions/{id}/stream?after=0:0:0"), None).await).await;
    stream.until("done").await;
    let messages = api.get(&format!("/api/sessions/{id}/messages")).await.expect(200);
    let whole = "word ".repeat(40);
    let answers = messages["messages"].as_array().unwrap().iter().filter(|m| m["role"] == "assistant");
    let texts: Vec<&str> = answers.map(|m| m["content"].as_str().unwrap()).collect();
    assert!(texts.iter().any(|t| t.contains(whole.trim_end())), "{texts:?}");
    assert_eq!(text(&api.turn(&id, "@text next").await), "next");
}

#[tokio::test]
async fn without_its_sandbox_a_restarted_daemon_says_so_and_loses_nothing() {
    let (mut daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    api.turn(&id, "first words").await;
    let _stream = api.waiting_turn(&id).await;
    daemon.kill9();
    for process in procs::of_session(&daemon, &id) {
        let pid = nix::unistd::Pid::from_raw(process.pid);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    }
    daemon.restart();
    let api = daemon.api();
    within(Duration::from_secs(5), "the session is not active", async || status(&api, &id).await != "active").await;
    let last = api.lifecycle(&id).await.last().unwrap().clone();
    assert!(last["error"].is_string() || last["detail"].is_string(), "no cause: {last}");
    assert_eq!(api.verb(&id, "resume").await, "active");
    assert_eq!(text(&api.turn(&id, "@recall").await), "first words");
}

#[tokio::test]
async fn an_end_overtakes_a_start() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    // If claude is stopped before it reads, it waits for its first line: the start hangs on
    // `initialize`.
    let creating = {
        let api = api.clone();
        tokio::spawn(async move { api.post("/api/sessions", json!({"agent": "a"})).await })
    };
    let mut id = None;
    within(Duration::from_secs(5), "the row is there", async || {
        let list = api.get("/api/sessions").await.expect(200);
        id = list["sessions"][0]["id"].as_str().map(str::to_owned);
        id.is_some()
    })
    .await;
    let id = id.unwrap();
    assert_eq!(api.delete(&format!("/api/sessions/{id}")).await.expect(200)["session"]["status"], "ended");
    let answer = creating.await.unwrap();
    // Either it was ready just before, or the answer has the reason; never a session that
    // continues.
    assert!(matches!(answer.status, 201 | 400), "{}", answer.text);
    assert_eq!(status(&api, &id).await, "ended");
    assert!(procs::of_session(&daemon, &id).is_empty());
    assert_eq!(api.get("/health").await.expect(200)["activeSandboxes"], 0);
}

/// Concurrent requests on one session: each gets a valid answer, each change of state is a valid
/// one.
#[tokio::test]
async fn requests_at_the_same_time_leave_a_state_of_the_contract() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..48_u64 {
        let (api, id) = (api.clone(), id.clone());
        tasks.spawn(async move {
            tokio::time::sleep(Duration::from_millis(n * 13 % 400)).await;
            let verb = ["pause", "resume", "messages", "interrupt", "stop", "resume"][(n % 6) as usize];
            let body = json!({"content": "@delay 5ms\n@repeat 10 w"});
            let answer = api.post(&format!("/api/sessions/{id}/{verb}"), body).await;
            assert!(matches!(answer.status, 200 | 400 | 409), "{verb}: {} {}", answer.status, answer.text);
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let mut state = "starting";
    for event in api.lifecycle(&id).await {
        let next = match event["action"].as_str().unwrap() {
            "created" | "resumed" => "active",
            "paused" => "paused",
            "stopped" => "stopped",
            other => panic!("{other}: {event}"),
        };
        let legal = matches!(
            (state, next),
            ("starting", "active") | ("active", "paused" | "stopped") | ("paused" | "stopped", "active")
        );
        assert!(legal, "{state} -> {next}");
        state = next;
    }
    assert_eq!(status(&api, &id).await, state);
    let ends = [api.clone(), api.clone(), api.clone()].map(|api| {
        let path = format!("/api/sessions/{id}");
        tokio::spawn(async move { api.delete(&path).await.expect(200)["session"]["status"].clone() })
    });
    for end in ends {
        assert_eq!(end.await.unwrap(), "ended");
    }
    assert!(procs::of_session(&daemon, &id).is_empty());
}
