//! The stored messages and timeline of a session: page by page, gapless under load, and only for
//! its tenant.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Api, Daemon, Options};
use serde_json::{Value, json};

#[tokio::test]
async fn pages_of_history_and_timeline_join_without_a_gap() {
    let (_daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    for turn in 0..5 {
        api.turn(&id, &format!("@text turn {turn}\n@tool Bash {{\"command\":\"true\"}}")).await;
    }
    for list in ["messages", "events"] {
        let whole = api.get(&format!("/api/sessions/{id}/{list}")).await.expect(200)[list].as_array().unwrap().clone();
        assert!(whole.len() >= 15, "{list}: {}", whole.len());
        let mut pages = Vec::new();
        let mut after = 0;
        loop {
            let path = format!("/api/sessions/{id}/{list}?limit=4&after={after}");
            let page = api.get(&path).await.expect(200)[list].as_array().unwrap().clone();
            let Some(last) = page.last() else { break };
            assert!(page.len() <= 4);
            after = last["sequence"].as_u64().unwrap();
            pages.extend(page);
        }
        assert_eq!(pages, whole);
        for (n, row) in whole.iter().enumerate() {
            assert_eq!(row["sequence"], n as u64 + 1, "{list}");
            assert_eq!(row["sessionId"], id.as_str());
        }
        for bad in ["limit=0", "limit=1001", "limit=x", "after=x"] {
            let refused = api.get(&format!("/api/sessions/{id}/{list}?{bad}")).await.expect(400);
            let field = bad.split('=').next().unwrap();
            assert!(refused["error"].as_str().unwrap().contains(field), "{bad}: {refused}");
        }
    }
    let known = ["lifecycle", "text", "tool_start", "tool_result", "reasoning", "error", "turn_complete"];
    let events = api.get(&format!("/api/sessions/{id}/events")).await.expect(200)["events"].as_array().unwrap().clone();
    for event in &events {
        assert!(known.contains(&event["type"].as_str().unwrap()), "{event}");
        assert!(serde_json::from_str::<Value>(event["data"].as_str().unwrap()).unwrap().is_object());
    }
    assert_eq!(events.iter().filter(|e| e["type"] == "turn_complete").count(), 5);
}

#[tokio::test]
async fn many_sessions_at_once_keep_their_own_history() {
    let (_daemon, api) = Daemon::deployed(Options::default()).await;
    let work = (0..8).map(|n| {
        let api = api.clone();
        tokio::spawn(async move {
            let id = api.session("a").await;
            for turn in 0..3 {
                let said = common::api::text(&api.turn(&id, &format!("@repeat 50 s{n}t{turn}")).await);
                assert_eq!(said, format!("s{n}t{turn} ").repeat(50));
            }
            let list = api.get(&format!("/api/sessions/{id}/messages")).await.expect(200);
            let list = list["messages"].as_array().unwrap().clone();
            for (at, message) in list.iter().enumerate() {
                assert_eq!(message["sequence"], at as u64 + 1);
                let content = message["content"].as_str().unwrap();
                assert!(!content.contains("text\":\"s") || content.contains(&format!("s{n}t")), "{content}");
            }
            id
        })
    });
    let work: Vec<_> = work.collect();
    for task in work {
        let id = task.await.unwrap();
        api.delete(&format!("/api/sessions/{id}")).await.expect(200);
    }
    assert_eq!(api.get("/health").await.expect(200)["activeSandboxes"], 0);
}

#[tokio::test]
async fn the_list_of_sessions_is_filtered_counted_and_newest_first() {
    let (_daemon, api) = Daemon::deployed(Options::default()).await;
    api.deploy("b").await;
    let ids = [api.session("a").await, api.session("b").await, api.session("a").await];
    api.delete(&format!("/api/sessions/{}", ids[0])).await.expect(200);
    let list = async |query: &str| {
        let answer = api.get(&format!("/api/sessions{query}")).await.expect(200);
        let found: Vec<String> =
            answer["sessions"].as_array().unwrap().iter().map(|s| s["id"].as_str().unwrap().to_owned()).collect();
        (found, answer["total"].clone())
    };
    let of = |places: &[usize]| places.iter().map(|at| ids[*at].clone()).collect::<Vec<_>>();
    assert_eq!(list("").await.0, of(&[2, 1, 0]));
    assert_eq!(list("?agent=a").await.0, of(&[2, 0]));
    assert_eq!(list("?status=active").await.0, of(&[2, 1]));
    assert_eq!(list("?agent=a&status=ended").await.0, of(&[0]));
    assert_eq!(list("?limit=1&offset=1&includeTotal=true").await, (of(&[1]), json!(3)));
    let refused = api.get("/api/sessions?status=running").await.expect(400);
    assert!(refused["error"].as_str().unwrap().contains("running"), "{refused}");
}

#[tokio::test]
async fn another_tenants_objects_are_404_everywhere() {
    let daemon = Daemon::start(Options::default());
    let admin = daemon.api();
    let made = admin.post("/api/internal/api-keys", json!({"tenantId": "other", "label": "o"})).await;
    assert!(matches!(made.status, 200 | 201), "{} {}", made.status, made.text);
    let other: Api = admin.with_key(made.json["key"].as_str());
    admin.deploy("a").await;
    let id = admin.session("a").await;
    admin.turn(&id, "@write secret.txt mine").await;

    assert_eq!(other.get("/api/agents").await.expect(200), json!({"agents": []}));
    assert_eq!(other.get("/api/sessions").await.expect(200)["sessions"], json!([]));
    other.get("/api/agents/a").await.expect(404);
    other.delete("/api/agents/a").await.expect(404);
    assert_eq!(other.post("/api/sessions", json!({"agent": "a"})).await.expect(404)["error"], "Agent \"a\" not found");
    for (method, path) in [
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/pause"),
        ("POST", "/resume"),
        ("POST", "/stop"),
        ("POST", "/fork"),
        ("POST", "/interrupt"),
        ("GET", "/messages"),
        ("GET", "/events"),
        ("GET", "/files"),
        ("GET", "/files/secret.txt"),
        ("GET", "/stream"),
    ] {
        let refused = other.call(method, &format!("/api/sessions/{id}{path}"), None).await.expect(404);
        assert_eq!(refused, json!({"error": "Session not found", "statusCode": 404}), "{method} {path}");
    }
    other.post(&format!("/api/sessions/{id}/messages"), json!({"content": "x"})).await.expect(404);
    let keys = admin.get("/api/api-keys").await.expect(200)["keys"].as_array().unwrap().clone();
    for key in &keys {
        other.delete(&format!("/api/api-keys/{}", key["id"].as_str().unwrap())).await.expect(404);
    }
    // Agents of different tenants with the same name are independent.
    other.deploy("a").await;
    assert_eq!(other.get("/api/agents/a").await.expect(200)["agent"]["version"], 1);
    assert_eq!(admin.get(&format!("/api/sessions/{id}/files/secret.txt")).await.text, "mine");
}
