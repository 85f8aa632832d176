//! A stop or a deletion overtakes a start. Requests that wait for the start are answered at once.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::api::names;
use common::patience::patient;
use common::{Api, Daemon, Options};
use serde_json::json;

/// Milliseconds until claude answers at its start.
const SLOW: &str = "4000";
/// Time for earlier requests to reach the session's task.
const ARRIVED: Duration = Duration::from_millis(700);

async fn slow(api: &Api) -> String {
    let body = json!({"agent": "a", "extraEnv": {"FAKE_SLOW_START": SLOW}});
    api.post("/api/sessions", body).await.expect(201)["session"]["id"].as_str().unwrap().to_owned()
}

/// Sends a request without waiting. Returns its status, its text, and when it was answered.
fn ask(api: &Api, path: String) -> tokio::task::JoinHandle<(u16, String, Instant)> {
    let api = api.clone();
    tokio::spawn(async move {
        let answer = api.call("POST", &path, None).await;
        (answer.status, answer.text, Instant::now())
    })
}

#[tokio::test]
async fn requests_that_wait_for_an_abandoned_start_are_answered() {
    let (_daemon, api) = Daemon::deployed(Options::default().env("ASH_IDLE_TIMEOUT_MS", "500")).await;
    let id = slow(&api).await;
    // Parked: the next resume is a start.
    api.cause(&id, "paused", "idle").await;
    let first = ask(&api, format!("/api/sessions/{id}/resume"));
    tokio::time::sleep(ARRIVED).await;
    let waiting = ask(&api, format!("/api/sessions/{id}/resume"));
    tokio::time::sleep(ARRIVED).await;
    api.delete(&format!("/api/sessions/{id}")).await.expect(200);
    let ended = Instant::now();
    let (status, text, _) = first.await.unwrap();
    assert!(status == 400 && text.contains("while it was starting"), "{status} {text}");
    let (status, text, at) = waiting.await.unwrap();
    assert_eq!(status, 410, "{text}");
    assert!(at.saturating_duration_since(ended) < patient(Duration::from_secs(1)), "{:?}", at - ended);
}

#[tokio::test]
async fn requests_that_wait_for_the_process_of_a_turn_are_answered_when_the_session_is_stopped() {
    let (_daemon, api) = Daemon::deployed(Options::default()).await;
    let id = slow(&api).await;
    // An option that needs a new process.
    let turn = api.send(&id, json!({"content": "@text never", "maxTurns": 3})).await;
    tokio::time::sleep(ARRIVED).await;
    let waiting = ask(&api, format!("/api/sessions/{id}/pause"));
    tokio::time::sleep(ARRIVED).await;
    assert_eq!(api.verb(&id, "stop").await, "stopped");
    let stopped = Instant::now();
    let (status, text, at) = waiting.await.unwrap();
    assert_eq!(status, 400, "{text}");
    assert!(at.saturating_duration_since(stopped) < patient(Duration::from_secs(1)), "{:?}", at - stopped);
    assert_eq!(names(&turn.rest().await).last().map(String::as_str), Some("done"));
}
