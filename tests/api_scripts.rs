//! `install.sh` and `startup.sh` of an agent, and the environment that identifies a session to its
//! processes.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::api::{Answer, Api};
use common::patience::patient;
use common::{Daemon, Options};
use serde_json::{Value, json};

const CLAUDE_MD: (&str, &str) = ("CLAUDE.md", "You are a test.\n");

async fn deploy(daemon: &Daemon, api: &Api, name: &str, files: &[(&str, &str)]) {
    let dir = daemon.agent_dir(name, &[&[CLAUDE_MD], files].concat());
    api.post("/api/agents", json!({"name": name, "path": dir.display().to_string()})).await.expect(201);
}

async fn create(api: &Api, agent: &str) -> Answer {
    api.post("/api/sessions", json!({"agent": agent})).await
}

async fn out(api: &Api, id: &str, command: &str) -> String {
    let said = api.post(&format!("/api/sessions/{id}/exec"), json!({"command": command})).await.expect(200);
    said["stdout"].as_str().unwrap().to_owned()
}

async fn actions(api: &Api, id: &str) -> Vec<Value> {
    api.lifecycle(id).await.iter().map(|event| event["action"].clone()).collect()
}

/// The newest session in any state, once there is one.
async fn newest(api: &Api) -> Value {
    let start = Instant::now();
    loop {
        let all = api.get("/api/sessions").await.expect(200);
        if let Some(session) = all["sessions"].as_array().unwrap().first() {
            return session.clone();
        }
        assert!(start.elapsed() < patient(Duration::from_secs(10)), "no session");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < patient(Duration::from_secs(10)), "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn install_runs_once_and_startup_at_every_start_inside_the_sandbox() {
    let daemon = Daemon::start(Options::default());
    let api = daemon.api();
    let install =
        "echo $ASH_SESSION_ID $ASH_AGENT_NAME $ASH_WORKSPACE_DIR $(id -u) $PWD >> installs; hostname >> installs\n";
    let startup = "echo up >> startups; (while sleep 0.1; do echo tick; echo . >> ticks; done) &\n";
    deploy(&daemon, &api, "a", &[("install.sh", install), ("startup.sh", startup)]).await;
    let id = api.session("a").await;
    let host = format!("ash-{}", &id[..8]);
    assert_eq!(
        out(&api, &id, "cat installs startups").await,
        format!("{id} a /workspace 1000 /workspace\n{host}\nup\n")
    );
    // Its background process continues to run and print.
    let many = out(&api, &id, "until [ $(wc -l < ticks) -gt 5 ]; do sleep 0.05; done; echo many").await;
    assert_eq!(many, "many\n");
    // Claude and commands know their session and agent.
    assert_eq!(out(&api, &id, "echo $ASH_SESSION_ID $ASH_AGENT_NAME").await, format!("{id} a\n"));

    assert_eq!(api.verb(&id, "stop").await, "stopped");
    assert_eq!(api.verb(&id, "resume").await, "active");
    assert_eq!(out(&api, &id, "grep -c . installs; cat startups").await, "2\nup\nup\n");
    // A fork has the installed files.
    let fork = api.post(&format!("/api/sessions/{id}/fork"), json!({})).await.expect(201)["session"]["id"].clone();
    let fork = fork.as_str().unwrap();
    assert_eq!(api.verb(fork, "resume").await, "active");
    assert_eq!(
        out(&api, fork, "grep -c . installs; cat startups; echo $ASH_SESSION_ID").await,
        format!("2\nup\nup\nup\n{fork}\n")
    );
    assert_eq!(actions(&api, &id).await, ["created", "stopped", "resumed"]);
}

#[tokio::test]
async fn a_failed_install_fails_the_create_with_its_last_lines_and_leaves_nothing() {
    let daemon = Daemon::start(Options::default());
    let api = daemon.api();
    let script = "for i in $(seq 2000); do echo line $i; done; echo the reason >&2; exit 7\n";
    deploy(&daemon, &api, "a", &[("install.sh", script)]).await;
    let error = create(&api, "a").await.expect(422)["error"].as_str().unwrap().to_owned();
    assert!(error.starts_with("install.sh of agent \"a\" failed with exit code 7. Its last lines:\nline "), "{error}");
    assert!(error.ends_with("line 2000\nthe reason") && error.len() < 5000, "{error}");
    let session = newest(&api).await;
    assert_eq!(session["status"], "error");
    let dir = daemon.data().join("sessions").join(session["id"].as_str().unwrap());
    until("the directory goes", || !dir.exists()).await;

    for (script, part) in [
        ("kill -9 $$\n", "was killed by signal 9"),
        (
            "no-such-program\n",
            "failed with exit code 127. Its last lines:\n/workspace/install.sh: line 1: no-such-program",
        ),
    ] {
        deploy(&daemon, &api, "b", &[("install.sh", script)]).await;
        let error = create(&api, "b").await.expect(422)["error"].as_str().unwrap().to_owned();
        assert!(error.contains(part), "{error}");
    }
    // The disk limit applies to install.sh too.
    deploy(&daemon, &api, "c", &[("install.sh", "head -c 30000000 /dev/urandom > big; sleep 60\n")]).await;
    api.call("PATCH", "/api/agents/c/limits", Some(json!({"diskBytes": 10 << 20}))).await.expect(200);
    let began = Instant::now();
    let error = create(&api, "c").await.expect(422)["error"].as_str().unwrap().to_owned();
    assert!(error.contains("diskBytes 10485760"), "{error}");
    assert!(began.elapsed() < patient(Duration::from_secs(20)), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_failed_startup_is_told_and_the_session_starts() {
    let daemon = Daemon::start(Options::default());
    let api = daemon.api();
    deploy(&daemon, &api, "a", &[("startup.sh", "echo no database; exit 3\n")]).await;
    let id = api.session("a").await;
    let told = |events: Vec<Value>| events.into_iter().filter(|e| e["action"] == "startup-failed").collect::<Vec<_>>();
    let why = told(api.lifecycle(&id).await);
    assert_eq!(why.len(), 1);
    assert_eq!(why[0]["error"], "startup.sh failed with exit code 3. Its last lines:\nno database");
    // The agent owns the workspace: it may change or replace the script.
    out(&api, &id, "echo true > startup.sh").await;
    api.verb(&id, "stop").await;
    api.verb(&id, "resume").await;
    assert_eq!(told(api.lifecycle(&id).await).len(), 1);
    out(&api, &id, "rm startup.sh; ln -s /etc/shadow startup.sh").await;
    api.verb(&id, "stop").await;
    api.verb(&id, "resume").await;
    let why = told(api.lifecycle(&id).await);
    assert!(why[1]["error"].as_str().unwrap().contains("No such file"), "{why:?}");
    assert_eq!(common::api::text(&api.turn(&id, "@text works").await), "works");
}

#[tokio::test]
async fn an_install_blocks_no_one_and_can_be_ended_and_survives_a_restart_in_a_known_state() {
    let mut daemon = Daemon::start(Options::default());
    let api = daemon.api();
    // The test ends it through a file in the workspace.
    deploy(&daemon, &api, "slow", &[("install.sh", "touch begun; sleep 300\n")]).await;
    deploy(&daemon, &api, "a", &[]).await;
    let begin = |api: &Api| {
        let api = api.clone();
        tokio::spawn(async move { api.post("/api/sessions", json!({"agent": "slow"})).await })
    };
    let begun = |daemon: &Daemon, id: &str| daemon.data().join("sessions").join(id).join("workspace/begun");
    let creating = begin(&api);
    let session = newest(&api).await;
    assert_eq!(session["status"], "starting");
    let id = session["id"].as_str().unwrap().to_owned();
    let file = begun(&daemon, &id);
    until("the install runs", || file.exists()).await;
    let began = Instant::now();
    api.session("a").await;
    assert!(began.elapsed() < patient(Duration::from_secs(10)), "{:?}", began.elapsed());
    api.delete(&format!("/api/sessions/{id}")).await.expect(200);
    assert_eq!(api.info(&id).await["status"], "ended");
    let answer = creating.await.unwrap();
    assert!(answer.status >= 400, "{}", answer.text);

    // Interrupted by the end of ashd: the session is paused, and a resume installs again.
    let creating = begin(&api);
    let start = Instant::now();
    let id = loop {
        let session = newest(&api).await;
        if session["status"] == "starting" {
            break session["id"].as_str().unwrap().to_owned();
        }
        assert!(start.elapsed() < patient(Duration::from_secs(10)), "{session}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let file = begun(&daemon, &id);
    until("the install runs", || file.exists()).await;
    daemon.kill9();
    creating.abort();
    daemon.restart();
    let api = daemon.api();
    assert_eq!(api.info(&id).await["status"], "paused");
    let script = daemon.data().join("sessions").join(&id).join("workspace/install.sh");
    std::fs::write(script, "echo again >> begun\n").unwrap();
    assert_eq!(api.verb(&id, "resume").await, "active");
    assert_eq!(out(&api, &id, "cat begun").await, "again\n");
    api.verb(&id, "stop").await;
    api.verb(&id, "resume").await;
    assert_eq!(out(&api, &id, "cat begun").await, "again\n", "once is enough");
}

/// Variables are checked in the same way wherever they come from.
#[tokio::test]
async fn variables_that_no_session_could_have_are_refused_at_once() {
    let daemon = Daemon::start(Options::default());
    let api = daemon.api();
    deploy(&daemon, &api, "a", &[]).await;
    let dir = daemon.dir.join("agents/a").display().to_string();
    for (name, part) in [
        ("HOME", "cannot be set: ashd sets it for the sandbox"),
        ("ASH_SESSION_ID", "cannot be set: ashd sets it for the sandbox"),
        ("LD_PRELOAD", "cannot be set"),
        ("A B", "\"A B\" is not a variable name"),
    ] {
        let env = json!({name: "planted-secret"});
        for (method, path, body, field) in [
            ("POST", "/api/agents", json!({"name": "b", "path": dir, "env": env}), "env"),
            ("PATCH", "/api/agents/a", json!({"env": env}), "env"),
            ("POST", "/api/sessions", json!({"agent": "a", "extraEnv": env}), "extraEnv"),
        ] {
            let answer = api.call(method, path, Some(body)).await;
            let error = answer.expect(400)["error"].as_str().unwrap().to_owned();
            assert!(
                error.starts_with(field) && error.contains(part) && !error.contains("planted"),
                "{method} {path}: {error}"
            );
        }
    }
    api.get("/api/agents/b").await.expect(404);
    assert_eq!(api.get("/api/agents/a").await.expect(200)["agent"]["version"], 1);
}
