//! The real, pinned Claude Code with the offline model: it uses its tools, is paused, dies and is
//! restarted.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::api::{names, text};
use common::{Daemon, Options, procs};
use serde_json::json;

async fn real() -> (Daemon, common::Api, String) {
    let (daemon, api) = Daemon::deployed(Options::default().real_claude()).await;
    let id = api.session("a").await;
    (daemon, api, id)
}

#[tokio::test]
async fn a_tool_makes_a_file_which_the_files_api_reads_and_the_next_turn_remembers() {
    let (_daemon, api, id) = real().await;
    let first = "@write /workspace/hello.txt made by a tool\n@text It is there.";
    let frames = api.turn(&id, first).await;
    let order = names(&frames);
    assert!(order.iter().any(|n| n == "tool_use") && order.iter().any(|n| n == "tool_result"), "{order:?}");
    assert_eq!(order.last().map(String::as_str), Some("done"));
    assert!(text(&frames).contains("It is there."));
    let file = api.get(&format!("/api/sessions/{id}/files/hello.txt")).await;
    assert_eq!((file.status, file.text.trim_end()), (200, "made by a tool"));
    let frames = api.turn(&id, "@tool Bash {\"command\":\"cat hello.txt; echo; id -u\"}\n@text ok").await;
    let result = frames.iter().find(|f| f.event == "tool_result").unwrap();
    assert_eq!(result.data["content"], "made by a tool\n1000");
    assert!(text(&api.turn(&id, "@recall").await).contains(first));
}

#[tokio::test]
async fn a_paused_session_uses_no_processor_and_goes_on_afterwards() {
    let (daemon, api, id) = real().await;
    let mut stream =
        api.send(&id, json!({"content": "@delay 20ms\n@repeat 100 word", "includePartialMessages": true})).await;
    let first = stream.until("text_delta").await;
    let start = Instant::now();
    api.call("POST", &format!("/api/sessions/{id}/pause"), None).await.expect(200);
    assert!(start.elapsed() < crate::common::patience::patient(Duration::from_secs(2)), "{:?}", start.elapsed());
    let before = procs::ticks(&daemon, &id);
    assert!(before > 0 && procs::of_session(&daemon, &id).len() >= 2);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(procs::ticks(&daemon, &id), before, "a frozen process ran");
    api.call("POST", &format!("/api/sessions/{id}/resume"), None).await.expect(200);
    let rest = stream.rest().await;
    assert_eq!(rest.last().unwrap().event, "done");
    let words = format!("{}{}", first.data["delta"].as_str().unwrap(), text(&rest));
    assert_eq!(words.split_whitespace().count(), 100, "{words}");
    assert!(procs::ticks(&daemon, &id) > before);
}

#[tokio::test]
async fn killed_in_mid_turn_the_client_knows_within_200_ms_and_the_conversation_is_kept() {
    let (daemon, api, id) = real().await;
    api.turn(&id, "@text remember me").await;
    let body = json!({"content": "@delay 50ms\n@repeat 400 word", "includePartialMessages": true});
    let mut stream = api.send(&id, body).await;
    stream.until("text_delta").await;
    let claude = procs::claude(&daemon, &id);
    let start = Instant::now();
    claude.kill9();
    let error = stream.until("error").await;
    stream.until("done").await;
    let took = start.elapsed();
    assert!(took < Duration::from_millis(200), "error and done after {took:?}");
    assert!(error.data["error"].as_str().unwrap().contains("SIGKILL"), "{}", error.data);
    assert!(stream.next().await.is_none(), "done is the last frame");
    let session = api.get(&format!("/api/sessions/{id}")).await.expect(200);
    assert_eq!(session["session"]["status"], "error");
    api.call("POST", &format!("/api/sessions/{id}/resume"), None).await.expect(200);
    assert!(text(&api.turn(&id, "@recall").await).contains("remember me"));
}

#[tokio::test]
async fn stopped_resumed_and_forked_sessions_remember() {
    let (daemon, api, id) = real().await;
    api.turn(&id, "@write /workspace/f.txt kept\n@text remember this").await;
    let fork = api.call("POST", &format!("/api/sessions/{id}/fork"), None).await.expect(201)["session"].clone();
    assert_eq!(fork["status"], "paused");
    assert_eq!(fork["parentSessionId"], id.as_str());
    let fork = fork["id"].as_str().unwrap().to_owned();
    api.call("POST", &format!("/api/sessions/{id}/stop"), None).await.expect(200);
    assert!(procs::of_session(&daemon, &id).is_empty(), "a stopped session has no process");
    for one in [&id, &fork] {
        api.call("POST", &format!("/api/sessions/{one}/resume"), None).await.expect(200);
        assert!(text(&api.turn(one, "@recall").await).contains("remember this"), "{one}");
        assert_eq!(api.get(&format!("/api/sessions/{one}/files/f.txt")).await.text.trim_end(), "kept");
    }
}

#[tokio::test]
async fn an_interrupt_ends_a_turn_of_the_real_claude() {
    let (_daemon, api, id) = real().await;
    let body = json!({"content": "@delay 50ms\n@repeat 600 word", "includePartialMessages": true});
    let mut stream = api.send(&id, body).await;
    stream.until("text_delta").await;
    api.call("POST", &format!("/api/sessions/{id}/interrupt"), None).await.expect(200);
    let rest = stream.rest().await;
    assert_eq!(rest.last().unwrap().event, "done");
    assert!(text(&api.turn(&id, "@text after").await).contains("after"));
}

/// Not exactly once: claude asks the model again, and its client sees the earlier words again.
#[tokio::test]
async fn a_gateway_killed_in_mid_answer_is_replaced_and_claude_asks_again() {
    let (daemon, api, id) = real().await;
    let body = json!({"content": "@delay 30ms\n@repeat 60 word", "includePartialMessages": true});
    let mut stream = api.send(&id, body).await;
    let mut frames = vec![stream.until("text_delta").await];
    let gateway = common::leftovers::processes(&daemon)
        .into_iter()
        .find(|(pid, _)| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.ends_with("ash-gateway")));
    let gateway = nix::unistd::Pid::from_raw(gateway.expect("a gateway runs").0);
    nix::sys::signal::kill(gateway, nix::sys::signal::Signal::SIGKILL).unwrap();
    frames.extend(stream.rest().await);
    assert_eq!(frames.last().unwrap().event, "done");
    assert!(!frames.iter().any(|frame| frame.event == "error"), "{:?}", names(&frames));
    // The final answer is complete and occurs once; the deltas start again.
    let whole = "word ".repeat(60);
    let answers: Vec<&str> = frames
        .iter()
        .filter(|frame| frame.event == "message" && frame.data["type"] == "assistant")
        .filter_map(|frame| frame.data["message"]["content"][0]["text"].as_str())
        .collect();
    assert!(answers.last().is_some_and(|last| last.trim() == whole.trim()), "{answers:?}");
    let deltas = text(&frames).split_whitespace().count();
    assert!(deltas >= 60, "{deltas}");
    println!("{deltas} words were streamed for an answer of 60, in {} messages", answers.len());
    assert!(text(&api.turn(&id, "@text next").await).contains("next"));
}
