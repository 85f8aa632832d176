//! `/api/queue`: prompts that run without an open connection.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::{Api, Daemon, Options};
use serde_json::{Value, json};

async fn put(api: &Api, agent: &str, prompt: &str, more: Value) -> String {
    let mut body = json!({"agentName": agent, "prompt": prompt});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let made = api.post("/api/queue", body).await.expect(201);
    assert_eq!(made["item"]["status"], "pending");
    made["item"]["id"].as_str().unwrap().to_owned()
}

async fn item(api: &Api, id: &str) -> Value {
    api.get(&format!("/api/queue/{id}")).await.expect(200)["item"].clone()
}

async fn until(api: &Api, id: &str, status: &str) -> Value {
    let start = Instant::now();
    loop {
        let item = item(api, id).await;
        if item["status"] == status {
            return item;
        }
        assert!(start.elapsed() < crate::common::patience::patient(Duration::from_secs(40)), "not {status}: {item}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn prompts_are_answered_each_with_its_own_result() {
    let (_daemon, api) = Daemon::deployed(Options::default()).await;
    let mut ids = Vec::new();
    for n in 0..12 {
        ids.push(put(&api, "a", &format!("@text answer {n}"), json!({})).await);
    }
    for (n, id) in ids.iter().enumerate() {
        let done = until(&api, id, "completed").await;
        assert_eq!(done["result"], format!("answer {n}"));
        assert!(done["completedAt"].is_string() && done["error"].is_null() && done["retryCount"] == 0, "{done}");
        // Its session can be resumed, and takes no place meanwhile.
        let session = api.get(&format!("/api/sessions/{}", done["sessionId"].as_str().unwrap())).await.expect(200);
        assert!(["stopped", "active"].contains(&session["session"]["status"].as_str().unwrap()), "{session}");
    }
    let stats = api.get("/api/queue/stats").await.expect(200);
    assert_eq!(stats["stats"], json!({"pending": 0, "processing": 0, "completed": 12, "failed": 0, "cancelled": 0}));
    let listed = api.get("/api/queue?status=completed&limit=5").await.expect(200);
    let newest: Vec<_> = listed["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap()).collect();
    assert_eq!(newest, ids.iter().rev().take(5).collect::<Vec<_>>());

    // In a session of the client, one after the other, although it was paused.
    let session = api.session("a").await;
    api.call("POST", &format!("/api/sessions/{session}/pause"), None).await.expect(200);
    let first = put(&api, "a", "@wait 1s\n@text one", json!({"sessionId": session})).await;
    let second = put(&api, "a", "@text two", json!({"sessionId": session})).await;
    assert_eq!(until(&api, &first, "completed").await["result"], "one");
    let second = until(&api, &second, "completed").await;
    assert_eq!((&second["result"], &second["sessionId"]), (&json!("two"), &json!(session)));
    let after = api.get(&format!("/api/sessions/{session}")).await.expect(200);
    assert_eq!(after["session"]["status"], "active", "the client's own session stays as it is");
}

#[tokio::test]
async fn failures_are_retried_with_a_delay_or_told_at_once() {
    let (_daemon, api) = Daemon::deployed(Options::default()).await;
    let start = Instant::now();
    let id = put(&api, "a", "@exit 3", json!({"maxRetries": 1})).await;
    let failed = until(&api, &id, "failed").await;
    assert!(start.elapsed() > Duration::from_secs(1), "the second try came after a delay");
    assert_eq!(failed["retryCount"], 1);
    assert!(failed["error"].as_str().unwrap().contains('3'), "{failed}");
    let id = put(&api, "a", "@fail it went wrong", json!({"maxRetries": 0})).await;
    assert!(until(&api, &id, "failed").await["error"].as_str().unwrap().contains("it went wrong"));

    api.post("/api/queue", json!({"agentName": "nobody", "prompt": "x"})).await.expect(404);
    let missing = json!({"agentName": "a", "prompt": "x", "sessionId": "00000000-0000-4000-8000-000000000000"});
    api.post("/api/queue", missing).await.expect(404);
    for bad in [json!({"agentName": "a"}), json!({"agentName": "a", "prompt": "x", "sessionId": "no"})] {
        api.post("/api/queue", bad).await.expect(400);
    }
    let session = api.session("a").await;
    api.delete(&format!("/api/sessions/{session}")).await.expect(200);
    let id = put(&api, "a", "@text x", json!({"sessionId": session})).await;
    let failed = until(&api, &id, "failed").await;
    assert!(failed["error"].as_str().unwrap().contains("has ended") && failed["retryCount"] == 0, "{failed}");
}

#[tokio::test]
async fn only_what_waits_can_be_cancelled_and_nobody_sees_anothers() {
    let (_daemon, api) = Daemon::deployed(Options::default().env("ASH_MAX_SANDBOXES", "1")).await;
    let running = put(&api, "a", "@wait 4s\n@text done", json!({})).await;
    until(&api, &running, "processing").await;
    let waits = put(&api, "a", "@text never", json!({})).await;
    // It may have been tried and put back because no place was free: cancelled once it is pending.
    let start = Instant::now();
    loop {
        let answer = api.delete(&format!("/api/queue/{waits}")).await;
        if answer.status == 200 {
            assert_eq!(answer.json["item"]["status"], "cancelled");
            break;
        }
        answer.expect(400);
        assert!(start.elapsed() < crate::common::patience::patient(Duration::from_secs(10)));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let error = api.delete(&format!("/api/queue/{waits}")).await.expect(400);
    assert!(error["error"].as_str().unwrap().contains("cancelled"), "{error}");
    let minted = api.post("/api/api-keys", json!({"label": "b", "tenantId": "b"})).await.expect(201);
    let other = api.with_key(minted["key"].as_str());
    other.get(&format!("/api/queue/{running}")).await.expect(404);
    other.delete(&format!("/api/queue/{running}")).await.expect(404);
    assert_eq!(other.get("/api/queue").await.expect(200)["items"], json!([]));
    assert_eq!(until(&api, &running, "completed").await["result"], "done");
    assert_eq!(item(&api, &waits).await["status"], "cancelled");
}

#[tokio::test]
async fn a_killed_daemon_loses_no_prompt_and_sends_none_twice() {
    let (mut daemon, api) = Daemon::deployed(Options::default()).await;
    let session = api.session("a").await;
    let mine = put(&api, "a", "@wait 3s\n@text mine", json!({"sessionId": session})).await;
    let mut own = Vec::new();
    for n in 0..10 {
        own.push(put(&api, "a", &format!("@wait 2s\n@text own {n}"), json!({})).await);
    }
    until(&api, &mine, "processing").await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    daemon.kill9();
    daemon.restart();
    let api = daemon.api();
    assert_eq!(until(&api, &mine, "completed").await["result"], "mine");
    for (n, id) in own.iter().enumerate() {
        assert_eq!(until(&api, id, "completed").await["result"], format!("own {n}"));
    }
    let messages = api.get(&format!("/api/sessions/{session}/messages")).await.expect(200);
    let asked = messages["messages"].as_array().unwrap().iter().filter(|m| m["role"] == "user").count();
    assert_eq!(asked, 1, "the prompt was sent once");
    let all = api.get("/api/sessions?includeTotal=true&limit=1000").await.expect(200);
    let mut said = std::collections::HashMap::new();
    for session in all["sessions"].as_array().unwrap() {
        let path = format!("/api/sessions/{}/messages", session["id"].as_str().unwrap());
        for message in api.get(&path).await.expect(200)["messages"].as_array().unwrap() {
            if message["role"] == "user" {
                *said.entry(message["content"].as_str().unwrap().to_owned()).or_insert(0) += 1;
            }
        }
    }
    assert!(said.values().all(|times| *times == 1) && said.len() == 11, "{said:?}");
}
