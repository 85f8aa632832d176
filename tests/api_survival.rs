//! Events that must not end a session, or must end it with a reason: a lost conversation, a deleted
//! agent, a planned stop of the daemon, clients that do not read.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::api::{Stream, text};
use common::{Api, Daemon, Options, procs};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn started(options: Options) -> (Daemon, Api) {
    let (daemon, api) = Daemon::deployed(options).await;
    (daemon, api)
}

async fn call(api: &Api, id: &str, verb: &str) -> (u16, Value) {
    let answer = api.call("POST", &format!("/api/sessions/{id}/{verb}"), None).await;
    (answer.status, answer.json)
}

#[tokio::test]
async fn a_conversation_that_is_gone_is_said_and_never_replaced_by_a_blank_one() {
    let (daemon, api) = started(Options::default()).await;
    let id = api.session("a").await;
    api.turn(&id, "remember me").await;
    assert_eq!(call(&api, &id, "stop").await.0, 200);
    let home = daemon.data().join("sessions").join(&id).join("home/.claude/projects/-workspace");
    let record = home.join(format!("{id}.jsonl"));
    let kept = daemon.dir.join("kept.jsonl");
    std::fs::rename(&record, &kept).unwrap();
    for _ in 0..2 {
        let (status, said) = call(&api, &id, "resume").await;
        let why = said["error"].as_str().unwrap_or_default().to_owned();
        assert!(status == 500 && why.contains("conversation") && why.contains("is lost"), "{status}: {why}");
        assert!(procs::of_session(&daemon, &id).is_empty(), "nothing runs");
    }
    // The messages can still be read. With the conversation restored the session continues.
    let list = api.get(&format!("/api/sessions/{id}/messages")).await.expect(200);
    assert!(list["messages"].to_string().contains("remember me"));
    std::fs::rename(&kept, &record).unwrap();
    assert_eq!(call(&api, &id, "resume").await.0, 200);
    assert_eq!(text(&api.turn(&id, "@recall").await), "remember me");
}

#[tokio::test]
async fn an_agent_that_is_deleted_leaves_its_sessions_alone_in_every_state() {
    let (daemon, api) = started(Options::default()).await;
    let (busy, paused, stopped) = (api.session("a").await, api.session("a").await, api.session("a").await);
    for id in [&paused, &stopped] {
        api.turn(id, "remember me").await;
    }
    assert_eq!(call(&api, &paused, "pause").await.0, 200);
    assert_eq!(call(&api, &stopped, "stop").await.0, 200);
    let body = json!({"content": "@delay 20ms\n@repeat 40 word", "includePartialMessages": true});
    let mut stream = api.send(&busy, body).await;
    let first = stream.until("text_delta").await;
    api.delete("/api/agents/a").await.expect(200);
    let said = format!("{}{}", first.data["delta"].as_str().unwrap(), text(&stream.rest().await));
    assert_eq!(said, "word ".repeat(40));
    for id in [&paused, &stopped] {
        assert_eq!(call(&api, id, "resume").await.0, 200);
        assert_eq!(text(&api.turn(id, "@recall").await), "remember me");
    }
    assert_eq!(api.post("/api/sessions", json!({"agent": "a"})).await.status, 404);
    let mut ends = tokio::task::JoinSet::new();
    for n in 0..12 {
        let (api, id) = (api.clone(), [&busy, &paused, &stopped][n % 3].clone());
        ends.spawn(async move {
            let answer = match n % 4 {
                0 => api.call("POST", &format!("/api/sessions/{id}/stop"), None).await,
                1 => api.call("POST", &format!("/api/sessions/{id}/pause"), None).await,
                _ => api.delete(&format!("/api/sessions/{id}")).await,
            };
            assert!(matches!(answer.status, 200 | 400 | 409 | 410), "{n}: {} {}", answer.status, answer.text);
        });
    }
    while let Some(done) = ends.join_next().await {
        done.unwrap();
    }
    for id in [&busy, &paused, &stopped] {
        let session = api.get(&format!("/api/sessions/{id}")).await.expect(200);
        assert_eq!(session["session"]["status"], "ended");
        assert!(procs::of_session(&daemon, id).is_empty());
    }
}

#[tokio::test]
async fn a_planned_stop_takes_less_than_a_second_and_turns_go_on() {
    let (mut daemon, api) = started(Options::default()).await;
    let mut streams = Vec::new();
    for _ in 0..4 {
        let id = api.session("a").await;
        let body = json!({"content": "@delay 50ms\n@repeat 60 word", "includePartialMessages": true});
        let mut stream = api.send(&id, body).await;
        let first = stream.until("text_delta").await;
        streams.push((id, stream, vec![first]));
    }
    let took = daemon.terminate();
    assert!(took < Duration::from_secs(1), "{took:?}");
    for (id, stream, seen) in &mut streams {
        assert!(!procs::of_session(&daemon, id).is_empty(), "its sandbox goes on");
        // The body ends by itself, and never reports the end of the turn.
        while let Some(frame) = stream.next().await {
            assert_ne!(frame.event, "done");
            seen.push(frame);
        }
    }
    daemon.restart();
    let api = daemon.api();
    for (id, _, mut seen) in streams {
        let last = seen.last().unwrap().id.clone().unwrap();
        let path = format!("/api/sessions/{id}/stream?after={last}&includePartialMessages=true");
        let mut again = Stream::of(api.open("GET", &path, None).await).await;
        while seen.last().unwrap().event != "done" {
            seen.push(again.next().await.unwrap());
        }
        assert_eq!(text(&seen), "word ".repeat(60));
    }
}

#[tokio::test]
async fn readers_that_stall_cost_no_memory_and_delay_nobody() {
    const READERS: usize = 30;
    let (daemon, api) = started(Options::default()).await;
    let (loud, other) = (api.session("a").await, api.session("a").await);
    // About 5 MB, which would be 150 MB for 30 readers.
    api.turn(&loud, "@repeat 20000 x").await;
    let resident = || procs::Proc { pid: daemon.pid() as i32, name: String::new() }.status("VmRSS");
    let kib = |text: String| text.trim_end_matches(" kB").parse::<u64>().unwrap();
    let before = kib(resident());
    let mut stalled = Vec::new();
    for _ in 0..READERS {
        let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", daemon.port)).await.unwrap();
        let path = format!("/api/sessions/{loud}/stream?after=0:0:0&includePartialMessages=true");
        let head = format!("GET {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\n\r\n", daemon.key);
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut first = [0; 15];
        socket.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200 OK");
        stalled.push(socket);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let grown = kib(resident()).saturating_sub(before);
    assert!(grown < 32 * 1024, "{grown} KiB more for {READERS} readers that do not read");
    let start = Instant::now();
    assert_eq!(text(&api.turn(&other, "@text quick").await), "quick");
    assert_eq!(text(&api.turn(&loud, "@text quick too").await), "quick too");
    assert!(start.elapsed() < crate::common::patience::patient(Duration::from_secs(3)), "{:?}", start.elapsed());
    // A client that reads gets all of it, while the others stall.
    let path = format!("/api/sessions/{loud}/stream?after=0:0:0&includePartialMessages=true");
    let mut reader = Stream::of(api.open("GET", &path, None).await).await;
    let mut deltas = 0;
    loop {
        let frame = reader.next().await.unwrap();
        deltas += usize::from(frame.event == "text_delta");
        if frame.event == "done" {
            break;
        }
    }
    assert_eq!(deltas, 20_000);
    drop(stalled);
}
