//! Bug reports about turns, each with its smallest input and the expected value.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::api::{Stream, names, text};
use common::{Api, Daemon, Options};
use serde_json::{Value, json};

/// The assistant's text in these frames, from whole messages.
fn said(frames: &[common::wire::Frame]) -> String {
    let whole = frames.iter().filter(|f| f.event == "message" && f.data["type"] == "assistant");
    let blocks = whole.flat_map(|f| f.data["message"]["content"].as_array().unwrap().clone());
    blocks.filter_map(|block| block["text"].as_str().map(str::to_owned)).collect()
}

async fn real() -> (Daemon, Api, String) {
    let (daemon, api) = Daemon::deployed(Options::default().real_claude()).await;
    let id = api.session("a").await;
    (daemon, api, id)
}

/// With 500 items over three sessions, an item had another item's answer. Expected: each its own.
#[tokio::test]
async fn each_item_of_the_queue_has_its_own_answer() {
    let (_daemon, api) = Daemon::deployed(Options::default()).await;
    let sessions = [api.session("a").await, api.session("a").await, api.session("a").await];
    let mut items = Vec::new();
    for n in 0..120 {
        let body = json!({"agentName": "a", "prompt": format!("@text item {n}"), "sessionId": sessions[n % 3]});
        let made = api.post("/api/queue", body).await.expect(201);
        items.push(made["item"]["id"].as_str().unwrap().to_owned());
    }
    let start = Instant::now();
    loop {
        let stats = api.get("/api/queue/stats").await.expect(200)["stats"].clone();
        if stats["pending"] == 0 && stats["processing"] == 0 {
            break;
        }
        assert!(start.elapsed() < crate::common::patience::patient(Duration::from_secs(150)), "{stats}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    for (n, id) in items.iter().enumerate() {
        let item = api.get(&format!("/api/queue/{id}")).await.expect(200)["item"].clone();
        assert_eq!((&item["status"], &item["result"]), (&json!("completed"), &json!(format!("item {n}"))), "{item}");
    }
}

/// A promised wake-up never fires. Expected: the tool is not offered, and the agent is told so.
#[tokio::test]
async fn a_wake_up_that_would_not_be_kept_is_not_offered() {
    let (_daemon, api, id) = real().await;
    for (tool, input) in [
        ("ScheduleWakeup", json!({"delaySeconds": 60, "prompt": "x", "reason": "r"})),
        ("CronCreate", json!({"cron": "* * * * *", "prompt": "x"})),
    ] {
        let frames = api.turn(&id, &format!("@tool {tool} {input}\n@text told")).await;
        let result = frames.iter().find(|f| f.event == "tool_result").unwrap();
        let content = result.data["content"].to_string();
        assert_eq!(result.data["is_error"], true, "{content}");
        assert!(content.contains("No such tool available") && content.contains("disabled"), "{content}");
        assert_eq!(said(&frames), "told");
    }
}

/// At the next message two turns shared one stream. Expected: a turn that claude starts itself is
/// separate.
#[tokio::test]
async fn a_turn_of_claudes_own_is_not_in_the_stream_of_a_message() {
    let (mut daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    // From its first report on, the process is known to report on its messages.
    api.turn(&id, "@reports\n@text first").await;
    let frames = api.turn(&id, "@foreign woken up\n@text second").await;
    assert_eq!(said(&frames), "second");
    assert_eq!(names(&frames).iter().filter(|name| *name == "turn_complete").count(), 1, "{:?}", names(&frames));
    let body = json!({"content": "@reports\n@text third"});
    assert_eq!(said(&api.send(&id, body).await.rest().await), "third");
    // A client that follows the session gets all of them, one after the other, each with start and
    // end.
    let all = followed(&api, &id, "0:0:0", 4).await;
    let turns: Vec<String> = all.iter().map(|turn| said(turn)).collect();
    assert_eq!(turns, ["first", "second", "woken up", "third"]);
    for turn in &all {
        assert_eq!(
            (names(turn).first().unwrap().as_str(), turn.last().unwrap().event.as_str()),
            ("session_start", "done")
        );
    }
    // A reader reconnects with the first frame of the turn, whose beginning has moved since.
    let first = all[1][0].id.clone().unwrap();
    assert_eq!(said(&followed(&api, &id, &first, 1).await[0]), "second");
    // A process that stops reporting still has its turns.
    assert_eq!(said(&api.turn(&id, "@text fourth").await), "fourth");
    // The history is complete, and the next ashd finds all turns finished.
    let history = api.get(&format!("/api/sessions/{id}/messages")).await.expect(200).to_string();
    assert!(["first", "woken up", "second", "third"].iter().all(|word| history.contains(word)));
    daemon.restart();
    let api = daemon.api();
    let turns: Vec<String> = followed(&api, &id, "0:0:0", 4).await.iter().map(|turn| said(turn)).collect();
    assert_eq!(turns, ["first", "second", "woken up", "third"]);
    daemon.stop();
}

/// The session's stream from an event id on, split into turns.
async fn followed(api: &Api, id: &str, after: &str, turns: usize) -> Vec<Vec<common::wire::Frame>> {
    let mut stream = Stream::of(api.open("GET", &format!("/api/sessions/{id}/stream?after={after}"), None).await).await;
    let mut all = Vec::new();
    for _ in 0..turns {
        let mut turn = Vec::new();
        while turn.last().is_none_or(|frame: &common::wire::Frame| frame.event != "done") {
            turn.push(stream.next().await.unwrap());
        }
        all.push(turn);
    }
    all
}

/// After `/clear`, stop and resume the cleared conversation was back. Expected: claude's
/// conversation is followed.
#[tokio::test]
async fn a_cleared_conversation_stays_cleared() {
    let (mut daemon, api, id) = real().await;
    api.turn(&id, "@text old words").await;
    let cleared = api.turn(&id, "/clear").await;
    assert_eq!(cleared.last().unwrap().event, "done");
    api.turn(&id, "@text new words").await;
    let fork = api.call("POST", &format!("/api/sessions/{id}/fork"), None).await.expect(201)["session"]["id"].clone();
    let fork = fork.as_str().unwrap().to_owned();
    api.verb(&id, "stop").await;
    daemon.restart();
    let api = daemon.api();
    for one in [&id, &fork] {
        api.call("POST", &format!("/api/sessions/{one}/resume"), None).await.expect(200);
        let first = text(&api.turn(one, "@recall").await);
        assert!(first.contains("new words") && !first.contains("old words"), "{one}: {first}");
    }
    daemon.stop();
}

/// With `/clear` as the first message every resume was 500. Expected: 200, with an empty
/// conversation.
#[tokio::test]
async fn a_session_that_begins_with_clear_is_resumed() {
    let (_daemon, api, id) = real().await;
    api.turn(&id, "/clear").await;
    for _ in 0..2 {
        api.verb(&id, "stop").await;
        api.call("POST", &format!("/api/sessions/{id}/resume"), None).await.expect(200);
    }
    api.turn(&id, "@text one").await;
    api.turn(&id, "/clear").await;
    api.verb(&id, "stop").await;
    api.call("POST", &format!("/api/sessions/{id}/resume"), None).await.expect(200);
    assert!(text(&api.turn(&id, "@recall").await).contains("@recall"), "the conversation is blank");
}

/// `{"content":[{"type":"text"}]}` was 200 and then silent for an hour. Expected: a message that
/// claude does not start ends its turn with the cause.
#[tokio::test]
async fn a_turn_that_claude_does_not_begin_ends_with_its_cause() {
    let (_daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let start = Instant::now();
    let frames = api.turn(&id, "@ignored").await;
    assert!(start.elapsed() < crate::common::patience::patient(Duration::from_secs(5)), "{:?}", start.elapsed());
    let error = frames.iter().find(|f| f.event == "error").unwrap();
    assert!(error.data["error"].as_str().unwrap().contains("did not begin this turn"), "{}", error.data);
    assert_eq!(said(&api.turn(&id, "@text still here").await), "still here");
}

/// <https://github.com/anthropics/claude-code/issues/68325>, anthropics/claude-code#61301: tool
/// input with a lone surrogate, or nested deeply, ended the session's task for good. Expected: the
/// turn ends, the session can be used and deleted.
#[tokio::test]
async fn any_input_of_a_tool_leaves_the_session_usable() {
    let (_daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let deep = format!("{}{}", "[".repeat(3000), "]".repeat(3000));
    for input in
        [r#"{"command":"echo x","description":"bad \ud99c here"}"#, r#"{"\ud800":"\udc00\ud800"}"#, &deep, "1e999"]
    {
        let block = format!(r#"{{"type":"tool_use","id":"t","name":"Bash","input":{input}}}"#);
        let line = format!(r#"{{"type":"assistant","message":{{"role":"assistant","content":[{block}]}}}}"#);
        let body = json!({"content": format!("@raw {line}\n@text end")}).to_string().into_bytes();
        let path = format!("/api/sessions/{id}/messages");
        let stream = api.call_raw("POST", &path, Some(("application/json", body))).await.text;
        assert!(stream.contains(&format!(r#""input":{input}"#)), "passed on as it is: {input:.80} {stream:.600}");
        assert!(stream.contains("event: done\n") && !stream.contains("event: error\n"), "{input:.80}: {stream:.600}");
    }
    let run = api.post(&format!("/api/sessions/{id}/exec"), json!({"command": "echo alive"})).await.expect(200);
    assert_eq!(run["stdout"], "alive\n");
    api.delete(&format!("/api/sessions/{id}")).await.expect(200);
}

/// <https://github.com/anthropics/claude-code/issues/69927>: a lone surrogate in a result lost its
/// error, text and usage. Expected: nothing else of the line is lost.
#[tokio::test]
async fn a_result_with_a_lone_surrogate_counts() {
    let (_daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let deep = format!("{}{}", "[".repeat(3000), "]".repeat(3000));
    let result = format!(
        r#"{{"type":"result","subtype":"success","is_error":true,"result":"bad \ud99c here","num_turns":3,"duration_ms":7000,"x":{deep},"y":1e999}}"#
    );
    // The frames carry the line unchanged, which the parser of these tests rejects.
    let body = json!({"content": format!("@raw {result}")}).to_string().into_bytes();
    let path = format!("/api/sessions/{id}/messages");
    let stream = api.call_raw("POST", &path, Some(("application/json", body))).await.text;
    assert!(stream.contains(r#"data: {"numTurns":3,"result":"bad \ud99c here"}"#), "{stream:.600}");
    assert!(stream.contains("event: error\ndata: {\"error\":\"bad \u{FFFD} here\"}"), "{stream:.600}");
    assert!(stream.trim_end().ends_with('}') && stream.contains("event: done\n"), "{stream:.600}");
    let stats: Value = api.get("/api/usage/stats").await.expect(200)["stats"].clone();
    assert_eq!(stats["totalComputeSeconds"].as_f64(), Some(7.0), "{stats}");
}
