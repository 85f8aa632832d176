//! A payload process prints lines in claude's name that cost ashd work: unrequested turns,
//! questions, refusals. Its session ends with the cause; its tenant, other tenants and the log are
//! hardly affected.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::api::{names, text};
use common::patience::patient;
use common::raw::comes;
use common::{Api, Daemon, MIB, Options};
use serde_json::json;

const TURN: &str = r#"{"type":"system","subtype":"init"}~{"type":"result"}"#;
const QUESTION: &str =
    r#"{"type":"control_request","request_id":"r","request":{"subtype":"can_use_tool","tool_name":"Bash","input":{}}}"#;
const REFUSAL: &str = r#"{"type":"control_response","response":{"subtype":"error","request_id":"?","error":"?"}}"#;

/// A message whose turn prints the lines this many times.
fn flood(lines: &str, times: usize) -> String {
    format!("@flood {times} {lines}\n@text end")
}

async fn other(api: &Api) -> (Api, String) {
    let made = api.post("/api/internal/api-keys", json!({"tenantId": "other", "label": "x"})).await.expect(201);
    let other = api.with_key(made["key"].as_str());
    other.deploy("b").await;
    let id = other.session("b").await;
    (other, id)
}

async fn status_is(api: &Api, id: &str, wanted: &str) -> serde_json::Value {
    let start = Instant::now();
    loop {
        let info = api.info(id).await;
        if info["status"] == wanted {
            return info;
        }
        assert!(start.elapsed() < patient(Duration::from_secs(30)), "not {wanted}: {info}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_flood_of_turns_or_questions_ends_its_session_alone_with_the_cause() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let (other, theirs) = other(&api).await;
    for (lines, cause) in [(TURN, "began unasked turns"), (QUESTION, "requested permissions")] {
        let id = api.session("a").await;
        // Without a limit, 400,000 lines would take hours.
        let ((), frames) = tokio::join!(
            async {
                let _ = api.send(&id, json!({"content": flood(lines, 400_000)})).await.rest().await;
            },
            async {
                let mut turns = Vec::new();
                for n in 0..5 {
                    turns.push(text(&other.turn(&theirs, &format!("@text beside {n}")).await));
                }
                turns
            }
        );
        assert_eq!(frames, ["beside 0", "beside 1", "beside 2", "beside 3", "beside 4"], "turns of another tenant");
        let info = status_is(&api, &id, "error").await;
        let error = info["error"].as_str().unwrap();
        assert!(error.contains(cause) && error.contains("Resume"), "{error}");
        // Unread output is skipped: the session can be used again.
        assert_eq!(api.verb(&id, "resume").await, "active");
        let frames = api.turn(&id, "@text again").await;
        assert_eq!((text(&frames), names(&frames).last().map(String::as_str)), ("again".to_owned(), Some("done")));
        let start = Instant::now();
        api.delete(&format!("/api/sessions/{id}")).await.expect(200);
        assert!(start.elapsed() < patient(Duration::from_secs(20)), "{:?}", start.elapsed());
    }
    assert!(daemon.logs().len() < MIB as usize, "{} bytes of log", daemon.logs().len());
}

#[tokio::test]
async fn stop_deletion_and_the_tenants_end_do_not_wait_for_a_flood() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let (other, theirs) = other(&api).await;
    for way in ["stop", "delete", "tenant"] {
        let id = if way == "tenant" { theirs.clone() } else { api.session("a").await };
        let owner = if way == "tenant" { &other } else { &api };
        // The request arrives while the output is read.
        let stdout = daemon.data().join("sessions").join(&id).join("stdout");
        let size = || std::fs::metadata(&stdout).map_or(0, |file| file.len());
        let before = size();
        let stream = owner.send(&id, json!({"content": flood(TURN, 400_000)})).await;
        assert!(comes(Duration::from_secs(20), || size() > before + 100_000).await, "no flood");
        let start = Instant::now();
        match way {
            // 400 if the flood has already ended the session.
            "stop" => {
                let answer = api.call("POST", &format!("/api/sessions/{id}/stop"), None).await;
                assert!(matches!(answer.status, 200 | 400), "{}", answer.text);
            }
            "delete" => drop(api.delete(&format!("/api/sessions/{id}")).await.expect(200)),
            _ => drop(api.delete("/api/tenants/other").await.expect(200)),
        }
        assert!(start.elapsed() < patient(Duration::from_secs(30)), "{way}: {:?}", start.elapsed());
        drop(stream);
    }
}

/// Lines that are two rows of the history each, in unlimited number: unexpected results, tool
/// calls.
#[tokio::test]
async fn a_flood_of_rows_holds_up_neither_its_own_stop_nor_other_tenants_nor_memory() {
    const RESULT: &str = r#"{"type":"result"}"#;
    const CALL: &str = r#"{"type":"assistant","message":{"content":[{"type":"tool_use","name":"x"}]}}"#;
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let (other, theirs) = other(&api).await;
    for (what, lines, times) in [("results", RESULT, 1_000_000), ("calls", CALL, 250_000)] {
        let id = api.session("a").await;
        let before = memory(&daemon, "VmRSS:");
        std::fs::write(format!("/proc/{}/clear_refs", daemon.pid()), "5").unwrap();
        let stdout = daemon.data().join("sessions").join(&id).join("stdout");
        let stream = api.send(&id, json!({"content": flood(lines, times)})).await;
        assert!(
            comes(Duration::from_secs(20), || std::fs::metadata(&stdout).is_ok_and(|file| file.len() > 4 << 20)).await,
            "no flood"
        );
        let stopping = tokio::spawn({
            let (api, id) = (api.clone(), id.clone());
            async move {
                let start = Instant::now();
                (api.call("POST", &format!("/api/sessions/{id}/stop"), None).await.status, start.elapsed())
            }
        });
        for n in 0..5 {
            let start = Instant::now();
            assert_eq!(text(&other.turn(&theirs, &format!("@text beside {n}")).await), format!("beside {n}"));
            assert!(start.elapsed() < patient(Duration::from_secs(3)), "{what}: {:?} beside", start.elapsed());
        }
        let (status, took) = stopping.await.unwrap();
        assert!(status == 200 && took < patient(Duration::from_secs(15)), "{what}: stop {status} in {took:?}");
        drop(stream);
        let start = Instant::now();
        api.delete(&format!("/api/sessions/{id}")).await.expect(200);
        assert!(start.elapsed() < patient(Duration::from_secs(10)), "{what}: {:?}", start.elapsed());
        let grown = memory(&daemon, "VmHWM:").saturating_sub(before);
        assert!(grown < 96 * MIB, "{what}: {} MiB", grown / MIB);
    }
}

fn memory(daemon: &Daemon, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[tokio::test]
async fn refusals_that_a_payload_forges_are_logged_a_few_times_and_short() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let line = REFUSAL.replace('?', &"x".repeat(4000));
    let before = daemon.logs().len();
    let frames = api.turn(&id, &flood(&line, 2000)).await;
    assert_eq!(text(&frames), "end");
    let more = daemon.logs().len() - before;
    assert!(more < 64 << 10, "16 MB of output are {more} bytes of log");
}

#[tokio::test]
async fn deletions_that_wait_for_each_other_are_answered() {
    let (_daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let path = format!("/api/sessions/{id}?purge=true");
    let answers = futures_util::future::join_all((0..5).map(|_| api.delete(&path))).await;
    let mut statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
    statuses.sort_unstable();
    assert!(statuses[0] == 200 && statuses.iter().all(|status| matches!(status, 200 | 404)), "{statuses:?}");
}
