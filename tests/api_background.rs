//! Background processes of commands, and the limit of processes.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::api::Api;
use common::{Daemon, Options};
use serde_json::{Value, json};

async fn exec(api: &Api, id: &str, command: &str) -> Value {
    api.post(&format!("/api/sessions/{id}/exec"), json!({"command": command})).await.expect(200)
}

async fn out(api: &Api, id: &str, command: &str) -> String {
    exec(api, id, command).await["stdout"].as_str().unwrap().to_owned()
}

/// gominimal/minimal#1342, PrimeIntellect-ai/prime-agent#1198, tinylibs/tinyexec#138.
#[tokio::test]
async fn a_job_in_the_background_outlives_the_answer_and_prints_on() {
    let (mut daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let began = Instant::now();
    let job =
        "(sleep 3; for i in 1 2 3 4 5; do echo tick; echo oops >&2; echo $i >> ticks; sleep 0.3; done) & echo launched";
    assert_eq!(exec(&api, &id, job).await, json!({"exitCode": 0, "stdout": "launched\n", "stderr": ""}));
    assert!(began.elapsed() < crate::common::patience::patient(Duration::from_secs(3)), "{:?}", began.elapsed());
    assert_eq!(out(&api, &id, "until grep -q 5 ticks; do sleep 0.05; done; tr -d '\\n' < ticks").await, "12345");

    // A server logs each request to stderr. Later commands call it, also those of the next daemon.
    out(&api, &id, "/usr/bin/python3 -m http.server 8123 & for i in $(seq 50); do sleep 0.1; curl -s -o /dev/null 127.0.0.1:8123 && break; done").await;
    let ask =
        "curl -s -o /dev/null -o /dev/null -w '%{http_code} ' http://127.0.0.1:8123/ http://127.0.0.1:8123/CLAUDE.md";
    assert_eq!(out(&api, &id, ask).await, "200 200 ");
    daemon.kill9();
    daemon.restart();
    let api = daemon.api();
    for _ in 0..3 {
        assert_eq!(out(&api, &id, ask).await, "200 200 ", "after a restart of ashd");
    }

    // Endless output does not slow down other answers.
    let printed = "echo begun; (yes | tee >(head -c 100000000 >/dev/null; touch printed)) &";
    assert!(out(&api, &id, printed).await.contains("begun"));
    let began = Instant::now();
    assert_eq!(out(&api, &id, "until [ -e printed ]; do sleep 0.05; done; echo quick").await, "quick\n");
    assert!(began.elapsed() < crate::common::patience::patient(Duration::from_secs(20)), "{:?}", began.elapsed());
}

/// 256 outputs are read at the same time; further output is reported as lost.
#[tokio::test]
async fn there_is_a_bound_for_outputs_that_are_discarded() {
    let (_daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let mut refused = None;
    for n in 0..140 {
        let said = exec(&api, &id, "(until [ -e end ]; do sleep 0.2; done) & echo begun").await;
        assert_eq!(said["stdout"], "begun\n", "{n}: {said}");
        if said["stderr"] != "" {
            refused = Some((n, said["stderr"].as_str().unwrap().to_owned()));
            break;
        }
    }
    let (n, why) = refused.expect("the bound is never reached");
    assert_eq!(n, 128, "two pipes a command");
    assert!(why.contains("256 outputs of background jobs are read already") && why.contains("to a file"), "{why}");
    out(&api, &id, "touch end; sleep 1").await;
    let said = exec(&api, &id, "sleep 300 & echo again").await;
    assert_eq!(said["stderr"], "", "those that ended made room");
}

/// At the limit `pids` the command fails, and claude continues (docs/limits.md).
#[tokio::test]
async fn commands_leave_claude_its_share_of_the_processes() {
    let (_daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    api.call("PATCH", &format!("/api/sessions/{id}/limits"), Some(json!({"pids": 64}))).await.expect(200);
    assert_eq!(out(&api, &id, "ulimit -u; ulimit -Hu").await, "48\n48\n");
    let many = "seq 200 | xargs -P 100 -I{} sh -c 'sleep 1' 2>&1 | tail -2; echo end";
    let said = exec(&api, &id, many).await;
    assert!(
        said["stdout"].as_str().unwrap().contains("Cannot fork")
            || said["stdout"].as_str().unwrap().contains("temporarily"),
        "{said}"
    );
    let limited = api.cause(&id, "limited", "pids").await;
    assert_eq!((&limited["limit"], &limited["value"], &limited["commands"]), (&json!("pids"), &json!(64), &json!(48)));
    // At the limit, a command that needs no other process still runs.
    exec(&api, &id, "for i in $(seq 60); do sleep 300 & done 2>/dev/null; true").await;
    assert_eq!(out(&api, &id, "echo still here").await, "still here\n");
    assert!(common::api::text(&api.turn(&id, "@fork 3").await).contains("started 3"), "claude itself has room");
    assert_eq!(api.info(&id).await["status"], "active");
    api.call("PATCH", &format!("/api/sessions/{id}/limits"), Some(json!({"pids": 512}))).await.expect(200);
    assert_eq!(out(&api, &id, "ulimit -u").await, "384\n");
}
