//! Pauses in mid-turn, over HTTP: nothing is lost, and for how long one may last.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::api::{Api, text};
use common::patience::patient;
use common::{Daemon, Options};
use serde_json::{Value, json};

async fn verb(api: &Api, id: &str, verb: &str) -> Value {
    api.call("POST", &format!("/api/sessions/{id}/{verb}"), None).await.expect(200)["session"]["status"].clone()
}

fn frozen(daemon: &Daemon, id: &str) -> bool {
    let groups = common::leftovers::cgroups(&daemon.cgroup);
    let events = groups.iter().filter(|dir| dir.ends_with(id)).map(|dir| dir.join("cgroup.events"));
    events.filter_map(|file| std::fs::read_to_string(file).ok()).any(|text| text.contains("frozen 1"))
}

#[tokio::test]
async fn a_pause_in_mid_turn_loses_nothing() {
    let daemon = Daemon::start(Options::default());
    let api = daemon.api();
    api.deploy("a").await;
    let id = api.session("a").await;
    let body = json!({"content": "@delay 20ms\n@repeat 40 word", "includePartialMessages": true});
    let mut stream = api.send(&id, body).await;
    let mut said = stream.until("text_delta").await.data["delta"].as_str().unwrap().to_owned();
    for _ in 0..3 {
        assert_eq!(verb(&api, &id, "pause").await, "paused");
        assert!(frozen(&daemon, &id));
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(verb(&api, &id, "resume").await, "active");
        said.push_str(stream.until("text_delta").await.data["delta"].as_str().unwrap());
    }
    said.push_str(&text(&stream.rest().await));
    assert_eq!(said, "word ".repeat(40));
}

#[tokio::test]
async fn a_turn_paused_for_too_long_is_ended_and_its_client_told() {
    let daemon = Daemon::start(Options::default().config("[pause]\nmax_in_turn_ms = \"700ms\""));
    let api = daemon.api();
    api.deploy("a").await;
    let id = api.session("a").await;
    let mut stream = api.send(&id, json!({"content": "@text begun\n@wait 60s", "includePartialMessages": true})).await;
    stream.until("text_delta").await;
    let start = Instant::now();
    assert_eq!(verb(&api, &id, "pause").await, "paused");
    let why = stream.until("error").await.data["error"].as_str().unwrap().to_owned();
    assert!(why.contains("pause.max_in_turn_ms") && why.contains("700 ms"), "{why}");
    assert_eq!(stream.rest().await.last().unwrap().event, "done");
    assert!(start.elapsed() >= Duration::from_millis(700), "{:?}", start.elapsed());
    // Still paused, and frozen again behind the interrupt.
    while !frozen(&daemon, &id) {
        assert!(start.elapsed() < patient(Duration::from_secs(10)), "not frozen again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let session = api.get(&format!("/api/sessions/{id}")).await.expect(200);
    assert_eq!(session["session"]["status"], "paused");
    assert_eq!(verb(&api, &id, "resume").await, "active");
    assert_eq!(text(&api.turn(&id, "@text next").await), "next");
}

/// The bound holds across a restart: whoever takes over a paused turn counts on.
#[tokio::test]
async fn a_paused_turn_is_not_forgotten_by_a_restart() {
    let mut daemon = Daemon::start(Options::default().config("[pause]\nmax_in_turn_ms = \"1500ms\""));
    let api = daemon.api();
    api.deploy("a").await;
    let id = api.session("a").await;
    let mut stream = api.send(&id, json!({"content": "@text begun\n@wait 60s", "includePartialMessages": true})).await;
    let last = stream.until("text_delta").await.id.unwrap();
    assert_eq!(verb(&api, &id, "pause").await, "paused");
    daemon.kill9();
    daemon.restart();
    let api = daemon.api();
    let path = format!("/api/sessions/{id}/stream?after={last}&includePartialMessages=true");
    let mut again = common::api::Stream::of(api.open("GET", &path, None).await).await;
    let why = again.until("error").await.data["error"].as_str().unwrap().to_owned();
    assert!(why.contains("pause.max_in_turn_ms"), "{why}");
    again.until("done").await;
    assert_eq!(verb(&api, &id, "resume").await, "active");
    assert_eq!(text(&api.turn(&id, "@text next").await), "next");
}
