//! Sessions over HTTP with the fake claude: states, turns, failures during turns, capacity,
//! restarts.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::api::{names, text};
use common::{Daemon, Options};
use serde_json::{Value, json};

#[tokio::test]
async fn a_turn_streams_what_claude_says_in_the_order_of_the_contract() {
    let (_daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let frames =
        api.turn(&id, "@think hm\n@text one two\n@tool Bash {\"command\":\"echo out; pwd\"}\n@text three").await;
    let names = names(&frames);
    assert_eq!(names.first().map(String::as_str), Some("session_start"));
    assert_eq!(names.last().map(String::as_str), Some("done"));
    assert_eq!(text(&frames), "one twothree");
    let place = |name: &str| names.iter().position(|n| n == name).unwrap_or_else(|| panic!("no {name} in {names:?}"));
    assert!(place("tool_use") < place("tool_result") && place("tool_result") < place("turn_complete"));
    assert_eq!(names[place("tool_use") + 1], "message/assistant");
    assert_eq!(names[place("turn_complete") + 1], "message/result");
    let result = &frames[place("tool_result")].data;
    assert_eq!(result["content"], "out\n/workspace");
    assert_eq!(result["is_error"], false);
    assert_eq!(frames[place("thinking_delta")].data, json!({"delta": "hm"}));
    assert!(frames.iter().all(|f| f.id.is_some()), "a frame without an id");
    // Without partial messages: no stream_event and no delta, otherwise equal.
    let plain = api.send(&id, json!({"content": "@text again"})).await.rest().await;
    assert!(plain.iter().all(|f| f.data["type"] != "stream_event" && f.event != "text_delta"));
    assert_eq!(plain.last().unwrap().data, json!({"sessionId": id}));
}

#[tokio::test]
async fn blocks_and_awkward_text_arrive_as_they_were_sent() {
    let (_daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let awkward = "quote \" back \\ nul-ish \u{1} line\u{2028}sep\u{85} emoji 🦀 123";
    let frames = api.turn(&id, awkward).await;
    assert_eq!(text(&frames), format!("You said: {awkward}"));
    let blocks = json!([{"type": "text", "text": "@text block"}, {"type": "text", "text": "12345"}]);
    let frames = api.send(&id, json!({"content": blocks, "includePartialMessages": true})).await.rest().await;
    assert_eq!(text(&frames), "block");
    let list = api.get(&format!("/api/sessions/{id}/messages")).await.expect(200);
    let users: Vec<Value> = list["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| serde_json::from_str(m["content"].as_str().unwrap()).unwrap())
        .filter(|c: &Value| c["type"] == "user" && c.get("message").is_none())
        .collect();
    assert_eq!(users, [json!({"type": "user", "content": awkward}), json!({"type": "user", "content": blocks})]);
    // A line too large to be held in memory.
    let large = "0123456789".repeat(200_000);
    assert!(text(&api.turn(&id, &large).await) == format!("You said: {large}"));
}

#[tokio::test]
async fn each_state_allows_what_the_contract_says() {
    let (_daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let path = |verb: &str| format!("/api/sessions/{id}/{verb}");
    let say = json!({"content": "hello"});
    assert_eq!(api.call("POST", &path("resume"), None).await.expect(200)["session"]["status"], "active");
    assert_eq!(api.call("POST", &path("pause"), None).await.expect(200)["session"]["status"], "paused");
    let refused = api.call("POST", &path("pause"), None).await.expect(400);
    assert_eq!(refused["error"], "Cannot pause session with status \"paused\"");
    assert_eq!(api.post(&path("messages"), say.clone()).await.expect(400)["error"], "Session is paused");
    assert_eq!(api.post(&path("resume"), json!({})).await.expect(200)["session"]["status"], "active");
    assert_eq!(text(&api.turn(&id, "@text back").await), "back");
    assert_eq!(api.call("POST", &path("stop"), None).await.expect(200)["session"]["status"], "stopped");
    assert_eq!(api.post(&path("messages"), say.clone()).await.expect(400)["error"], "Session is stopped");
    assert_eq!(api.call("POST", &path("resume"), None).await.expect(200)["session"]["status"], "active");
    // The conversation survives the loss of the processes.
    assert_eq!(text(&api.turn(&id, "@recall").await), "@text back");
    for _ in 0..2 {
        assert_eq!(api.delete(&format!("/api/sessions/{id}")).await.expect(200)["session"]["status"], "ended");
    }
    assert_eq!(api.call("POST", &path("resume"), None).await.expect(410)["statusCode"], 410);
    assert_eq!(api.post(&path("messages"), say).await.expect(400)["error"], "Session is ended");
    let events = api.get(&path("events?type=lifecycle")).await.expect(200);
    let actions: Vec<String> = events["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| {
            serde_json::from_str::<Value>(e["data"].as_str().unwrap()).unwrap()["action"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(actions, ["created", "paused", "resumed", "stopped", "resumed", "ended"]);
}

#[tokio::test]
async fn a_second_message_in_mid_turn_is_409_and_harms_nothing() {
    let (_daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let mut first =
        api.send(&id, json!({"content": "@delay 20ms\n@repeat 30 word", "includePartialMessages": true})).await;
    first.until("text_delta").await;
    api.post(&format!("/api/sessions/{id}/messages"), json!({"content": "no"})).await.expect(409);
    let rest = first.rest().await;
    assert_eq!(text(&rest), "word ".repeat(29));
}

#[tokio::test]
async fn an_interrupt_ends_the_turn_and_not_the_session() {
    let (_daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let (stream, _) = api.waiting_turn(&id).await;
    let start = Instant::now();
    api.call("POST", &format!("/api/sessions/{id}/interrupt"), None).await.expect(200);
    assert_eq!(stream.rest().await.last().unwrap().event, "done");
    assert!(start.elapsed() < crate::common::patience::patient(Duration::from_secs(5)), "{:?}", start.elapsed());
    assert_eq!(text(&api.turn(&id, "@text next").await), "next");
}

#[tokio::test]
async fn claude_dying_in_mid_turn_is_an_error_and_done_and_a_session_that_resumes() {
    let (_daemon, api) = Daemon::deployed(Options::default()).await;
    for death in ["@kill", "@exit 7", "@half"] {
        let id = api.session("a").await;
        assert_eq!(text(&api.turn(&id, "@text first").await), "first");
        let frames = api.turn(&id, &format!("@text going\n{death}")).await;
        let names = names(&frames);
        assert_eq!(names[names.len() - 2..], ["error", "done"], "{death}: {names:?}");
        let cause = frames[frames.len() - 2].data["error"].as_str().unwrap().to_owned();
        assert!(!cause.is_empty(), "{death}");
        let session = api.get(&format!("/api/sessions/{id}")).await.expect(200);
        assert_eq!(session["session"]["status"], "error", "{death}");
        let error = api.post(&format!("/api/sessions/{id}/messages"), json!({"content": "x"})).await.expect(400);
        assert_eq!(error["error"], "Session is error");
        api.call("POST", &format!("/api/sessions/{id}/resume"), None).await.expect(200);
        assert_eq!(text(&api.turn(&id, "@recall").await), "@text first", "{death}");
    }
}

#[tokio::test]
async fn a_hostile_stdout_harms_its_own_session_only() {
    let (_daemon, api) = Daemon::deployed(Options::default()).await;
    let good = api.session("a").await;
    for deed in
        ["@truncate\n@text x", "@raw not json\n@text x", "@raw {\"type\":\"result\"}\n@text x", "@raw {}\n@text x"]
    {
        let id = api.session("a").await;
        let frames = api.turn(&id, deed).await;
        assert_eq!(frames.last().unwrap().event, "done", "{deed}");
        assert_eq!(text(&api.turn(&good, "@text fine").await), "fine", "after {deed}");
        api.delete(&format!("/api/sessions/{id}")).await.expect(200);
    }
    let huge = api.turn(&good, "@huge 3000000").await;
    assert_eq!(text(&huge).len(), 3_000_000);
}

#[tokio::test]
async fn a_client_that_goes_away_does_not_stop_the_turn() {
    let (_daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let mut stream = api
        .send(
            &id,
            json!({"content": "@delay 20ms\n@repeat 20 word\n@write left.txt here", "includePartialMessages": true}),
        )
        .await;
    stream.until("text_delta").await;
    drop(stream);
    let start = Instant::now();
    loop {
        let file = api.get(&format!("/api/sessions/{id}/files/left.txt")).await;
        if file.status == 200 {
            assert_eq!(file.text, "here");
            break;
        }
        assert!(start.elapsed() < crate::common::patience::patient(Duration::from_secs(10)), "the turn did not go on");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn at_capacity_the_answer_is_503_and_room_can_be_made() {
    let (_daemon, api) = Daemon::deployed(Options::default().env("ASH_MAX_SANDBOXES", "2")).await;
    let mut streams = Vec::new();
    let mut ids = Vec::new();
    for _ in 0..2 {
        let id = api.session("a").await;
        // Sessions with a running turn are not evicted.
        streams.push(api.waiting_turn(&id).await);
        ids.push(id);
    }
    let refused = api.post("/api/sessions", json!({"agent": "a"})).await;
    assert!(refused.headers.contains_key("retry-after"), "{:?}", refused.headers);
    assert_eq!(refused.expect(503)["statusCode"], 503);
    assert_eq!(api.get("/health").await.expect(200)["activeSandboxes"], 2);
    api.delete(&format!("/api/sessions/{}", ids[0])).await.expect(200);
    let id = api.session("a").await;
    assert_eq!(text(&api.turn(&id, "@text room").await), "room");
}

#[tokio::test]
async fn sessions_survive_a_killed_daemon_and_streams_go_on_where_they_were() {
    let (mut daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let mut stream = api
        .send(
            &id,
            json!({"content": "@delay 50ms\n@repeat 60 word\n@write end.txt done", "includePartialMessages": true}),
        )
        .await;
    let mut seen = Vec::new();
    for _ in 0..12 {
        seen.push(stream.next().await.unwrap());
    }
    drop(stream);
    daemon.kill9();
    daemon.restart();
    let api = daemon.api();
    let session = api.get(&format!("/api/sessions/{id}")).await.expect(200);
    assert_eq!(session["session"]["status"], "active");
    let last = seen.last().unwrap().id.clone().unwrap();
    let path = format!("/api/sessions/{id}/stream?after={last}&includePartialMessages=true");
    let mut again = common::api::Stream::of(api.open("GET", &path, None).await).await;
    loop {
        let frame = again.next().await.unwrap();
        let done = frame.event == "done";
        seen.push(frame);
        if done {
            break;
        }
    }
    assert_eq!(text(&seen), "word ".repeat(60));
    let ids: Vec<_> = seen.iter().map(|f| f.id.clone().unwrap()).collect();
    let mut unique = ids.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), ids.len(), "an event came twice");
}

#[tokio::test]
async fn a_favoured_daemon_does_not_hand_its_priority_on() {
    rustix::process::setpriority_process(None, -5).unwrap();
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    assert_eq!(rustix::process::getpriority_process(None).unwrap(), -5);
    assert_eq!(text(&api.turn(&id, "@text x").await), "x");
    let claude = common::procs::claude(&daemon, &id);
    // Field 19 of the line is the niceness; the first field after the name is field 3.
    let stat = claude.read("stat");
    let niceness = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(16).unwrap();
    assert_eq!(niceness, "0", "{stat}");
}
