//! The real Claude Code at the limit of processes (docs/limits.md, "claude's share of the
//! processes").
#![allow(clippy::unwrap_used)]

mod common;

use common::api::{Api, text};
use common::{Daemon, Options};
use serde_json::json;

async fn bash(api: &Api, id: &str, command: &str) -> String {
    let frames = api.turn(id, &format!("@tool Bash {}\n@text ok", json!({"command": command}))).await;
    let result = frames.iter().find(|frame| frame.event == "tool_result").expect("a tool result");
    match &result.data["content"] {
        serde_json::Value::String(text) => text.clone(),
        other => other[0]["text"].as_str().unwrap_or_default().to_owned(),
    }
}

#[tokio::test]
async fn a_tool_that_meets_the_limit_fails_by_itself() {
    let (_daemon, api) = Daemon::deployed(Options::default().real_claude()).await;
    let id = api.session("a").await;
    assert!(bash(&api, &id, "echo limit $(ulimit -Hu) in $0").await.contains("limit 384 in /bin/bash"));
    api.call("PATCH", &format!("/api/sessions/{id}/limits"), Some(json!({"pids": 64}))).await.expect(200);
    for _ in 0..3 {
        let said =
            bash(&api, &id, "ulimit -Hu; seq 200 | xargs -P 100 -I{} sh -c 'sleep 1' 2>&1 | tail -2; echo the end")
                .await;
        assert!(said.starts_with("48\n") && said.contains("the end"), "{said}");
        assert!(said.contains("fork") || said.contains("temporarily unavailable"), "the limit was never met: {said}");
    }
    assert_eq!(api.info(&id).await["status"], "active");
    assert_eq!(text(&api.turn(&id, "@text still here").await), "still here");
}
