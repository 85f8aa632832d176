//! A run of eval cases with the real, pinned Claude Code and the offline model: the version's
//! prompt and the earlier conversation reach the model.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::{Daemon, Options};
use serde_json::json;

#[tokio::test]
async fn the_model_gets_the_versions_prompt_and_the_earlier_conversation() {
    let (_daemon, api) = Daemon::deployed(Options::default().real_claude()).await;
    for prompt in ["PROMPT-OF-ONE", "PROMPT-OF-TWO"] {
        api.post("/api/agents/a/versions", json!({"systemPrompt": prompt})).await.expect(201);
    }
    api.call("POST", "/api/agents/a/versions/2/activate", None).await.expect(200);
    let history =
        json!([{"role": "user", "content": "My name is Ada."}, {"role": "assistant", "content": "Hello Ada."}]);
    for case in [
        json!({"question": "@recall", "chatHistory": history, "expectedTopics": ["my name is ada"]}),
        json!({"question": "@show system", "expectedTopics": ["PROMPT-OF-ONE"], "expectedNotTopics": ["PROMPT-OF-TWO"]}),
        json!({"question": "@write /workspace/f.txt x\n@text made it", "expectedTopics": ["made it"]}),
    ] {
        api.post("/api/agents/a/eval-cases", case).await.expect(201);
    }
    let made = api.post("/api/agents/a/eval-runs", json!({"versionNumber": 1})).await.expect(201);
    let path = format!("/api/agents/a/eval-runs/{}", made["run"]["id"].as_str().unwrap());
    let start = Instant::now();
    let run = loop {
        let run = api.get(&path).await.expect(200)["run"].clone();
        if run["completedAt"].is_string() {
            break run;
        }
        assert!(start.elapsed() < crate::common::patience::patient(Duration::from_secs(120)), "{run}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    let results = api.get(&format!("{path}/results")).await.expect(200);
    assert_eq!((&run["status"], &run["summary"]["avgTopicScore"]), (&json!("completed"), &json!(1.0)), "{results}");
    assert_eq!(
        (&run["summary"]["avgSafetyScore"], &run["summary"]["passRate"]),
        (&json!(1.0), &json!(1.0)),
        "{results}"
    );
    assert_eq!(
        api.get("/api/agents/a").await.expect(200)["agent"]["systemPrompt"],
        "PROMPT-OF-TWO",
        "the run changes nothing"
    );
}
