//! Pauses during a turn, over HTTP: nothing is lost, and their length is limited.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::api::text;
use common::patience::patient;
use common::{Daemon, Options, procs};
use serde_json::json;

#[tokio::test]
async fn a_pause_in_mid_turn_loses_nothing() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let body = json!({"content": "@delay 20ms\n@repeat 40 word", "includePartialMessages": true});
    let mut stream = api.send(&id, body).await;
    let mut said = stream.until("text_delta").await.data["delta"].as_str().unwrap().to_owned();
    for _ in 0..3 {
        assert_eq!(api.verb(&id, "pause").await, "paused");
        assert!(procs::frozen(&daemon, &id));
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(api.verb(&id, "resume").await, "active");
        said.push_str(stream.until("text_delta").await.data["delta"].as_str().unwrap());
    }
    said.push_str(&text(&stream.rest().await));
    assert_eq!(said, "word ".repeat(40));
}

#[tokio::test]
async fn a_turn_paused_for_too_long_is_ended_and_its_client_told() {
    let (daemon, api) = Daemon::deployed(Options::default().config("[pause]\nmax_in_turn_ms = \"700ms\"")).await;
    let id = api.session("a").await;
    let (mut stream, _) = api.waiting_turn(&id).await;
    let start = Instant::now();
    assert_eq!(api.verb(&id, "pause").await, "paused");
    let why = stream.until("error").await.data["error"].as_str().unwrap().to_owned();
    assert!(why.contains("pause.max_in_turn_ms") && why.contains("700 ms"), "{why}");
    assert_eq!(stream.rest().await.last().unwrap().event, "done");
    assert!(start.elapsed() >= Duration::from_millis(700), "{:?}", start.elapsed());
    // Still paused, and frozen again after the interrupt.
    while !procs::frozen(&daemon, &id) {
        assert!(start.elapsed() < patient(Duration::from_secs(10)), "not frozen again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(api.info(&id).await["status"], "paused");
    assert_eq!(api.verb(&id, "resume").await, "active");
    assert_eq!(text(&api.turn(&id, "@text next").await), "next");
}

/// The limit holds across a restart: the new daemon counts the time before.
#[tokio::test]
async fn a_paused_turn_is_not_forgotten_by_a_restart() {
    let (mut daemon, api) = Daemon::deployed(Options::default().config("[pause]\nmax_in_turn_ms = \"1500ms\"")).await;
    let id = api.session("a").await;
    let (_stream, begun) = api.waiting_turn(&id).await;
    let last = begun.id.unwrap();
    assert_eq!(api.verb(&id, "pause").await, "paused");
    daemon.kill9();
    daemon.restart();
    let api = daemon.api();
    let path = format!("/api/sessions/{id}/stream?after={last}&includePartialMessages=true");
    let mut again = common::api::Stream::of(api.open("GET", &path, None).await).await;
    let why = again.until("error").await.data["error"].as_str().unwrap().to_owned();
    assert!(why.contains("pause.max_in_turn_ms"), "{why}");
    again.until("done").await;
    assert_eq!(api.verb(&id, "resume").await, "active");
    assert_eq!(text(&api.turn(&id, "@text next").await), "next");
}
