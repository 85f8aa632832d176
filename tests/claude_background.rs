//! The real Claude Code with a background agent that continues after the turn: it may ask the
//! model, and its usage is counted.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::api::text;
use common::{Api, Daemon, Options};
use serde_json::json;

async fn output_tokens(api: &Api) -> u64 {
    api.get("/api/usage/stats").await.expect(200)["stats"]["totalOutputTokens"].as_u64().unwrap()
}

#[tokio::test]
async fn an_agent_in_the_background_is_served_after_the_turn() {
    let (daemon, api) = Daemon::deployed(Options::default().real_claude()).await;
    let id = api.session("a").await;
    let tools = text(&api.turn(&id, "@show tools").await);
    let tool = ["Agent", "Task"].into_iter().find(|name| tools.contains(name)).expect("a tool that starts agents");
    // Two answers of the agent; the second starts well after the turn's end.
    let prompt = "@delay 40ms\n@repeat 50 word\n@tool Bash {\"command\":\"true\"}\n@delay 40ms\n@repeat 50 more";
    let input = json!({"description": "count", "prompt": prompt, "subagent_type": "general-purpose", "run_in_background": true});
    let frames = api.turn(&id, &format!("@tool {tool} {input}\n@text It works.")).await;
    assert!(text(&frames).contains("It works."));
    let over = output_tokens(&api).await;
    let start = Instant::now();
    // The agent's tokens exceed all tokens before.
    while output_tokens(&api).await < over + 100 {
        let (usage, metrics) = (output_tokens(&api).await, api.get("/metrics").await.text);
        assert!(
            start.elapsed() < crate::common::patience::patient(Duration::from_secs(40)),
            "{over}, then {usage}\n{metrics}\n{}",
            daemon.logs()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("{over} tokens at the turn's end, {} after {:?}", output_tokens(&api).await, start.elapsed());
    let metrics = api.get("/metrics").await.text;
    assert!(metrics.contains("ash_gateway_refused_total{reason=\"outside\"} 0\n"), "{metrics}");
    daemon.stop();
}
