//! Memory that one request, or one line of a payload, costs ashd: the peak resident size while it
//! is served, minus the size before. The bound is 64 MiB plus twice the body.
#![allow(clippy::unwrap_used)]

mod common;

use std::future::Future;
use std::io::Write;
use std::process::{Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::api::names;
use common::{Api, Daemon, MIB, Options};
use serde_json::{Value, json};

/// Maximum MiB for any request, and for anything a payload writes.
const MOST: u64 = 64;

fn of_status(daemon: &Daemon, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// Runs `done`. Returns the growth of the daemon's peak memory in MiB, and the result.
async fn growth<T>(daemon: &Daemon, what: &str, done: impl Future<Output = T>) -> (u64, T) {
    // 5 resets the peak to the current size.
    std::fs::write(format!("/proc/{}/clear_refs", daemon.pid()), "5").unwrap();
    let before = of_status(daemon, "VmRSS:");
    let out = done.await;
    let grown = of_status(daemon, "VmHWM:").saturating_sub(before) / MIB;
    println!("{what}: {grown} MiB");
    (grown, out)
}

async fn bounded<T>(daemon: &Daemon, what: &str, body: usize, done: impl Future<Output = T>) -> T {
    let (grown, out) = growth(daemon, what, done).await;
    let most = MOST + 2 * body as u64 / MIB;
    assert!(grown <= most, "{what} cost {grown} MiB, more than {most}");
    out
}

/// `head`, the unit repeated up to about this many bytes, `tail`.
fn fill(bytes: usize, head: &str, unit: &str, tail: &str) -> Vec<u8> {
    format!("{head}{}{tail}", unit.repeat(bytes / unit.len())).into_bytes()
}

async fn post(daemon: &Daemon, api: &Api, what: &str, path: &str, body: Vec<u8>, status: u16) -> Value {
    let bytes = body.len();
    let answer = bounded(daemon, what, bytes, api.call_raw("POST", path, Some(("application/json", body)))).await;
    assert!(answer.text.len() < 4096 || answer.status < 300, "{what}: an error of {} bytes", answer.text.len());
    answer.expect(status)
}

const SMALL: &str = "[limits]\nmemory_bytes = '256MiB'\nswap_bytes = 0";

#[tokio::test]
async fn a_body_costs_twice_its_bytes_whatever_it_holds() {
    let (daemon, api) = Daemon::deployed(Options::default().config(SMALL)).await;
    let id = api.session("a").await;
    let messages = format!("/api/sessions/{id}/messages");
    let size = 49 * MIB as usize;
    // None of these is a message.
    for (what, head, unit, tail, text) in [
        (
            "content of objects",
            r#"{"content":[{"type":"text","x":["#,
            r#"{"":0},"#,
            "0]}]}",
            "content[0].text is required",
        ),
        ("blocks without a type", r#"{"content":["#, "[],", "[]]}", "content[0] must be an object with a type"),
        ("a long string for a number", r#"{"content":"x","maxTurns":""#, "\u{7f}", "\"}", "maxTurns: a string of"),
        ("a long option", r#"{"content":"x","thinking":["#, "0,", "0]}", "thinking: an array of"),
        (
            "a long schema",
            r#"{"content":"x","outputFormat":{"type":"json_schema","schema":{"a":["#,
            "0,",
            "0]}}}",
            "outputFormat.schema is too long",
        ),
    ] {
        let error = post(&daemon, &api, what, &messages, fill(size, head, unit, tail), 400).await;
        assert!(error["error"].as_str().unwrap().contains(text), "{error}");
    }
    let creates = 4 * MIB as usize - 100;
    for (what, head, unit, tail) in [
        ("mcpServers", r#"{"agent":"a","mcpServers":{"m":{"command":["#, r#"{"":0},"#, "0]}}}"),
        ("subagents", r#"{"agent":"a","subagents":["#, r#"{"":0},"#, "0]}"),
        ("allowedTools", r#"{"agent":"a","allowedTools":["#, r#""","#, r#"""]}"#),
    ] {
        post(&daemon, &api, what, "/api/sessions", fill(creates, head, unit, tail), 400).await;
    }
    for (what, path, head, unit, tail) in [
        ("files of an agent", "/api/agents", r#"{"name":"b","files":["#, r#"{"path":"","content":""},"#, "0]}"),
        (
            "config of an agent",
            "/api/agents",
            r#"{"name":"b","systemPrompt":"x","config":{"a":["#,
            r#"{"":0},"#,
            "0]}}",
        ),
        ("env of an agent", "/api/agents", r#"{"name":"b","systemPrompt":"x","env":""#, "\u{7f}", "\"}"),
        ("files that are strings", "/api/agents/a/files", r#"{"files":[""#, "\u{7f}", "\"]}"),
        (
            "files of a workspace",
            &format!("/api/sessions/{id}/files"),
            r#"{"files":["#,
            r#"{"path":"","content":""},"#,
            "0]}",
        ),
    ] {
        post(&daemon, &api, what, path, fill(size, head, unit, tail), 400).await;
    }
    let tree = fill(15 << 10, r#"{"x":["#, r#"{"":0},"#, "0]}");
    bounded(
        &daemon,
        "limits",
        tree.len(),
        api.call_raw("PATCH", "/api/agents/a/limits", Some(("application/json", tree))),
    )
    .await;
    assert_eq!(api.info(&id).await["status"], "active");
}

#[tokio::test]
async fn a_message_of_fifty_mib_is_sent_stored_and_read_in_bounds() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let messages = format!("/api/sessions/{id}/messages");
    // The longest text of a message, and an image. The script is the last line of the text.
    let image = "A".repeat(19 * MIB as usize);
    let head = format!(
        r#"{{"content":[{{"type":"image","source":{{"type":"base64","media_type":"image/png","data":"{image}"}}}},{{"zebra":1,"type":"text","text":""#
    );
    let body = fill(30 * MIB as usize, &head, "\\\"y", "\\n@text got it\"}]}");
    let sent = body.len();
    let turn = async {
        let answer = api.open("POST", &messages, Some(("application/json", body.clone()))).await;
        common::api::Stream::of(answer).await.rest().await
    };
    let frames = bounded(&daemon, "a large message", sent, turn).await;
    assert_eq!(frames.last().unwrap().event, "done", "{:?}", names(&frames));
    assert!(frames.iter().all(|frame| frame.event != "error"), "{:?}", names(&frames));
    let page = bounded(&daemon, "a page of one large message", 0, api.get(&format!("{messages}?limit=1000")))
        .await
        .expect(200);
    assert_eq!((page["messages"].as_array().unwrap().len(), &page["truncated"]), (1, &json!(true)));
    let content = page["messages"][0]["content"].as_str().unwrap();
    let expected = String::from_utf8(body).unwrap();
    assert!(
        content == expected.replacen("{\"content\"", "{\"type\":\"user\",\"content\"", 1),
        "it is stored as it was sent"
    );
    let more = api.get(&format!("{messages}?limit=1000&after=1")).await.expect(200);
    assert!(more["messages"][0]["sequence"] == 2 && more["truncated"].is_null());
    let path = format!("/api/sessions/{id}/fork");
    let fork = bounded(&daemon, "a fork with a large message", 0, api.call("POST", &path, None)).await.expect(201);
    let fork = fork["session"]["id"].as_str().unwrap();
    let copied = api.get(&format!("/api/sessions/{fork}/messages?limit=1")).await.expect(200);
    assert!(copied["messages"][0]["content"] == page["messages"][0]["content"]);
}

#[tokio::test]
async fn nothing_a_payload_prints_costs_more_than_a_bound_or_breaks_a_turn() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let long = 31 * MIB;
    let held = 4 * MIB - 100;
    for (what, script) in [
        ("a long text", format!("@huge {long}")),
        ("a long line of objects", format!(r#"@fill {long} {{"type":"assistant","message":{{"content":[~{{"":0}},~{{}}]}}}}"#)),
        ("a long tool result", format!(
            r#"@fill {long} {{"type":"user","message":{{"content":[{{"type":"tool_result","tool_use_id":"t","content":"~\ud99c~"}}]}}}}"#
        )),
        ("a held line of objects", format!(r#"@fill {held} {{"type":"assistant","message":{{"content":[~{{}},~{{}}]}}}}"#)),
        ("a held line of blocks", format!(
            r#"@fill {held} {{"type":"assistant","message":{{"content":[~{{"type":"tool_use"}},~{{}}]}}}}"#
        )),
        ("a held tool result", format!(
            r#"@fill {held} {{"type":"user","message":{{"content":[{{"type":"tool_result","content":"~\ud99c~"}}]}}}}"#
        )),
        ("held lines, one after the other", format!(
            "@fill {held} {{\"type\":\"assistant\",\"message\":{{\"content\":[{{\"type\":\"text\",\"text\":\"~x~\"}}]}}}}\n"
        ).repeat(8)),
        ("nesting", format!(r#"@fill {held} {{"type":"assistant","message":{{"content":[{{"type":"tool_use","input":~[~"#)
            + &"]".repeat(10) + "}]}}"),
        ("small lines", r#"@flood 300000 {"type":"user"}"#.to_owned()),
    ] {
        let turn = async { api.send(&id, json!({"content": format!("{script}\n@text end")})).await.rest().await };
        let frames = bounded(&daemon, what, 0, turn).await;
        let names = names(&frames);
        assert_eq!(names[names.len() - 3..], ["turn_complete", "message/result", "done"], "{what}");
        assert!(!names.contains(&"error".to_owned()), "{what}: {names:?}");
    }
    // The history has the long lines shortened and marked; the stream had them whole.
    let frames = api.send(&id, json!({"content": format!("@huge {long}")})).await.rest().await;
    let text = |frame: &common::wire::Frame| frame.data["message"]["content"][0]["text"].as_str().map(str::len);
    assert!(frames.iter().filter_map(text).any(|length| length == long as usize), "whole in the stream");
    let result = frames.iter().find(|frame| frame.data["type"] == "result").unwrap();
    assert_eq!(result.data["result"].as_str().unwrap().len(), long as usize);
    let last = api.get(&format!("/api/sessions/{id}/events?type=turn_complete&limit=1000")).await.expect(200);
    let last = last["events"].as_array().unwrap().last().unwrap()["data"].as_str().unwrap().to_owned();
    assert!(last.contains(&format!("[cut by ashd, {long} bytes]")), "{} bytes", last.len());
    let last: Value = serde_json::from_str(&last).unwrap();
    assert!(last["omitted"]["bytes"].as_u64().unwrap() > long, "{}", last["omitted"]);
    assert_eq!(api.info(&id).await["status"], "active");
    api.delete(&format!("/api/sessions/{id}")).await.expect(200);
}

#[tokio::test]
async fn lists_are_not_in_memory_whole() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let line = r#"@fill 3900000 {"type":"assistant","message":{"content":[{"type":"text","text":"~x~"}]}}"#;
    // A turn adds at most 64 MiB; each line is a message and an event.
    for _ in 0..3 {
        api.turn(&id, &[line; 7].join("\n")).await;
    }
    for (what, name) in [("messages", "messages"), ("events", "events")] {
        let path = format!("/api/sessions/{id}/{name}");
        let (mut after, mut count, mut pages) = (0, 0, 0);
        loop {
            let page = bounded(&daemon, what, 0, api.get(&format!("{path}?limit=1000&after={after}"))).await;
            assert!(page.text.len() < 9 * MIB as usize, "{}", page.text.len());
            let page = page.expect(200);
            let rows = page[name].as_array().unwrap();
            (count, pages) = (count + rows.len(), pages + 1);
            if page["truncated"].is_null() {
                break;
            }
            after = rows.last().unwrap()["sequence"].as_i64().unwrap();
        }
        assert!(count >= 24 && pages >= 10, "{name}: {count} in {pages} pages");
    }
    let prompt = "p".repeat(2 * MIB as usize - 200);
    for _ in 0..60 {
        api.post("/api/agents/a/versions", json!({"systemPrompt": prompt})).await.expect(201);
    }
    let versions = bounded(&daemon, "versions", 0, api.get("/api/agents/a/versions")).await.expect(200);
    let versions = versions["versions"].as_array().unwrap();
    assert!(versions.len() == 60 && versions.iter().all(|v| v["systemPrompt"] == prompt), "the list is whole");
    assert_eq!((&versions[0]["versionNumber"], &versions[59]["versionNumber"]), (&json!(60), &json!(1)));
}

/// A tar with one entry that claims a long name: all zeros but for a few bytes at the end.
fn long_name(kind: u8, mib: u64) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_size(mib * MIB);
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_cksum();
    let gzip = "{ cat; head -c \"$BYTES\" /dev/zero; } | gzip -1";
    let mut gzip = Command::new("sh")
        .args(["-c", gzip])
        .env("BYTES", (mib * MIB).to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    gzip.stdin.take().unwrap().write_all(header.as_bytes()).unwrap();
    gzip.wait_with_output().unwrap().stdout
}

#[tokio::test]
async fn an_archive_is_read_entry_by_entry() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let path = format!("/api/sessions/{id}/workspace");
    for (what, kind) in
        [("a long name", b'L'), ("a long link", b'K'), ("pax fields", b'x'), ("global pax fields", b'g')]
    {
        let bundle = json!({"bundle": STANDARD.encode(long_name(kind, 1000))}).to_string().into_bytes();
        let error = post(&daemon, &api, what, &path, bundle, 400).await;
        assert!(error["error"].as_str().unwrap().contains("a header of 1048576000 bytes"), "{error}");
    }
    let bundle = json!({"bundle": STANDARD.encode(long_name(b'0', 2000))}).to_string().into_bytes();
    post(&daemon, &api, "a bomb", &path, bundle, 413).await;
    let files = api.get(&format!("/api/sessions/{id}/files")).await.expect(200);
    assert!(!files.to_string().contains("holes"), "{files}");
}
