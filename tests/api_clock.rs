//! The wall clock jumps a day ahead and two days back. Turns, time-outs, the queue and retention
//! follow the real elapsed time.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::api::{Stream, text};
use common::{Api, Daemon, Options};
use serde_json::json;

const DAY_MS: i64 = 86_400_000;

/// The day of the session's last turn, as the API shows it.
async fn day(api: &Api, id: &str) -> String {
    api.info(id).await["lastActiveAt"].as_str().unwrap()[..10].to_owned()
}

async fn words(stream: &mut Stream, n: usize) -> String {
    let mut said = String::new();
    for _ in 0..n {
        said.push_str(stream.until("text_delta").await.data["delta"].as_str().unwrap());
    }
    said
}

#[tokio::test]
async fn a_jump_of_the_clock_ends_nothing_and_delays_nothing() {
    let options = Options { skewed: true, ..Options::default() };
    let (mut daemon, api) = Daemon::deployed(options.env("ASH_IDLE_TIMEOUT_MS", "600000")).await;
    let (id, idle) = (api.session("a").await, api.session("a").await);
    api.turn(&idle, "remember me").await;
    let today = day(&api, &idle).await;

    let body = json!({"content": "@delay 20ms\n@repeat 60 word", "includePartialMessages": true});
    let mut stream = api.send(&id, body).await;
    let mut said = words(&mut stream, 10).await;
    let clock = |ms| daemon.skew.as_ref().unwrap().set(ms);
    clock(DAY_MS);
    said.push_str(&words(&mut stream, 20).await);
    clock(-DAY_MS);
    said.push_str(&text(&stream.rest().await));
    assert_eq!(said, "word ".repeat(60));
    let yesterday = day(&api, &id).await;
    assert!(yesterday < today, "the clock did not jump: {yesterday}, {today}");

    clock(DAY_MS);
    for id in [&id, &idle] {
        assert_eq!(api.info(id).await["status"], "active", "no time-out has passed");
    }
    assert_eq!(text(&api.turn(&idle, "@recall").await), "remember me");
    assert!(day(&api, &idle).await > today);

    // An item that was put back while the clock was ahead would be due only a day later.
    let busy = json!({"agentName": "a", "prompt": "@text asked", "sessionId": id});
    let mut stream = api.send(&id, json!({"content": "@text begun\n@wait 2s", "includePartialMessages": true})).await;
    stream.until("text_delta").await;
    let item = api.post("/api/queue", busy).await.expect(201)["item"]["id"].as_str().unwrap().to_owned();
    tokio::time::sleep(Duration::from_millis(300)).await;
    clock(-DAY_MS);
    stream.rest().await;
    let start = Instant::now();
    loop {
        let item = api.get(&format!("/api/queue/{item}")).await.expect(200)["item"].clone();
        if item["status"] == "completed" {
            assert_eq!(item["result"], "asked");
            break;
        }
        // Due items are looked for at least once a minute.
        assert!(start.elapsed() < crate::common::patience::patient(Duration::from_secs(70)), "{item}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    // The clock at a start does not matter either.
    daemon.kill9();
    daemon.skew.as_ref().unwrap().set(-2 * DAY_MS);
    daemon.restart();
    let api = daemon.api();
    assert_eq!(text(&api.turn(&idle, "@recall").await), "remember me");
    let list = api.get(&format!("/api/sessions/{idle}/messages?limit=1000")).await.expect(200);
    let sequences: Vec<i64> =
        list["messages"].as_array().unwrap().iter().map(|m| m["sequence"].as_i64().unwrap()).collect();
    assert_eq!(sequences, (1..=sequences.len() as i64).collect::<Vec<_>>());
    assert_eq!(api.info(&id).await["status"], "active");
}

#[tokio::test]
async fn a_clock_that_jumps_ahead_does_not_remove_what_is_to_be_kept() {
    let options = Options { skewed: true, ..Options::default() };
    let (daemon, api) = Daemon::deployed(options.config("[sessions]\nkeep_ended = \"8s\"")).await;
    let id = api.session("a").await;
    api.turn(&id, "@write kept.txt here").await;
    let start = Instant::now();
    api.delete(&format!("/api/sessions/{id}")).await.expect(200);
    daemon.skew.as_ref().unwrap().set(DAY_MS);
    let dir = daemon.data().join("sessions").join(&id);
    // Ended sessions are looked for every 2 s.
    tokio::time::sleep(Duration::from_secs(5)).await;
    if start.elapsed() < Duration::from_secs(8) {
        assert!(dir.join("workspace/kept.txt").is_file(), "removed {:?} after its end", start.elapsed());
    }
    while dir.exists() {
        assert!(start.elapsed() < crate::common::patience::patient(Duration::from_secs(30)), "it is never removed");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(start.elapsed() >= Duration::from_secs(8), "{:?}", start.elapsed());
}
