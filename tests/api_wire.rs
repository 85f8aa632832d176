//! Errors about agents that are missing or unreadable, and warnings about variables without effect.
//! No answer contains a path of the host.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::{Api, Daemon, Options};
use serde_json::json;

async fn read(api: &Api, session: &str, file: &str) -> String {
    let ran =
        api.post(&format!("/api/sessions/{session}/exec"), json!({"command": format!("cat {file}; echo $KEPT")})).await;
    ran.expect(200)["stdout"].as_str().unwrap().to_owned()
}

/// A session stays as it was created, whatever happens to its agent.
#[tokio::test]
async fn a_session_outlives_its_agent() {
    let mut daemon = Daemon::start(Options::default());
    let api = daemon.api();
    let body = |text: &str| {
        let files = json!([{"path": "CLAUDE.md", "content": "WA=="}, {"path": "data.txt", "content": text}]);
        json!({"name": "gone", "files": files, "env": {"KEPT": text}})
    };
    api.post("/api/agents", body("b2xk")).await.expect(201);
    let dir = daemon.agent_dir("named", &[("CLAUDE.md", "X"), ("data.txt", "old")]);
    api.post("/api/agents", json!({"name": "named", "path": dir, "env": {"KEPT": "b2xk"}})).await.expect(201);
    let sessions = [api.session("gone").await, api.session("named").await];
    // Another version, then no agent.
    api.post("/api/agents", body("bmV3")).await.expect(201);
    fs::write(dir.join("data.txt"), "new").unwrap();
    for name in ["gone", "named"] {
        api.delete(&format!("/api/agents/{name}")).await.expect(200);
    }
    fs::remove_dir_all(&dir).unwrap();
    for session in &sessions {
        assert_eq!(read(&api, session, "data.txt").await, "oldb2xk\n");
        api.verb(session, "stop").await;
        assert_eq!(api.verb(session, "resume").await, "active");
        assert_eq!(read(&api, session, "data.txt").await, "oldb2xk\n", "after a start of new processes");
        api.verb(session, "pause").await;
    }
    daemon.restart();
    let api = daemon.api();
    for session in &sessions {
        api.verb(session, "resume").await;
        assert_eq!(read(&api, session, "data.txt").await, "oldb2xk\n", "after a restart of ashd");
        let fork = api.call("POST", &format!("/api/sessions/{session}/fork"), None).await.expect(201);
        let fork = fork["session"]["id"].as_str().unwrap().to_owned();
        api.verb(&fork, "resume").await;
        assert_eq!(read(&api, &fork, "data.txt").await, "oldb2xk\n", "in a copy");
    }
    let error = api.post("/api/sessions", json!({"agent": "gone"})).await.expect(404);
    assert_eq!(error["error"], "Agent \"gone\" not found");
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn an_agent_that_may_not_be_read_says_what_to_do() {
    let daemon = Daemon::start(Options::default());
    let api = daemon.api();
    let deploy = async |dir: &Path| api.post("/api/agents", json!({"name": "closed", "path": dir})).await;
    let told = |error: &serde_json::Value| {
        let text = error["error"].as_str().unwrap().to_owned();
        assert!(text.contains("may not read") || text.contains("may not be read"), "{text}");
        assert!(text.contains("chmod"), "the way out: {text}");
        text
    };
    let dir = daemon.agent_dir("closed", &[("CLAUDE.md", "X"), ("sub/data.txt", "x")]);
    // As root's `mkdir` with umask 077 leaves it; then the directory above it; then only the file.
    chmod(&dir, 0o700);
    told(&deploy(&dir).await.expect(400));
    chmod(&dir, 0o755);
    chmod(dir.parent().unwrap(), 0o700);
    told(&deploy(&dir).await.expect(400));
    chmod(dir.parent().unwrap(), 0o755);
    chmod(&dir.join("CLAUDE.md"), 0o600);
    assert!(told(&deploy(&dir).await.expect(400)).contains("CLAUDE.md"));
    chmod(&dir.join("CLAUDE.md"), 0o644);
    deploy(&dir).await.expect(201);
    // Closed afterwards: the client gets the agent and the cause, not the path.
    let create = async || {
        let text = told(&api.post("/api/sessions", json!({"agent": "closed"})).await.expect(422));
        assert!(text.contains("agent \"closed\"") && !text.contains(daemon.dir.to_str().unwrap()), "{text}");
        text
    };
    chmod(&dir, 0o700);
    create().await;
    chmod(&dir, 0o755);
    chmod(&dir.join("sub/data.txt"), 0o600);
    assert!(create().await.contains("sub/data.txt"));
    chmod(&dir.join("sub/data.txt"), 0o644);
    api.session("closed").await;
    let away = dir.with_file_name("away");
    fs::rename(&dir, &away).unwrap();
    let gone = api.post("/api/sessions", json!({"agent": "closed"})).await.expect(422);
    assert_eq!(gone["error"], "The directory of agent \"closed\" no longer exists. Deploy the agent again.");
    fs::write(&dir, "a file").unwrap();
    let file = api.post("/api/sessions", json!({"agent": "closed"})).await.expect(422);
    assert_eq!(file["error"], "The directory of agent \"closed\" is no longer a directory. Deploy the agent again.");
    let relative = deploy(Path::new("agents/closed")).await.expect(400);
    let text = relative["error"].as_str().unwrap();
    assert!(text.starts_with("path \"agents/closed\" is relative; give the absolute path"), "{text}");
}

#[tokio::test]
async fn variables_of_the_reference_without_effect_are_named_once() {
    let mut options = Options::default();
    for name in ["ASH_DATABASE_URL", "ASH_MODE", "ASH_RUNNER_ID", "ASH_RUNNER_PORT", "OTEL_EXPORTER_OTLP_ENDPOINT"] {
        options = options.env(name, "planted-value");
    }
    let mut daemon = Daemon::start(options);
    let log = daemon.logs();
    for (names, instead) in [
        ("ASH_DATABASE_URL has", "SQLite below ASH_DATA_DIR"),
        ("ASH_MODE has", "remove the variable"),
        ("ASH_RUNNER_ID, ASH_RUNNER_PORT have", "ASH_MAX_SANDBOXES"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT has", "GET /metrics"),
    ] {
        let said: Vec<_> = log.lines().filter(|line| line.contains(&format!("{names} no effect"))).collect();
        assert!(said.len() == 1 && said[0].contains(instead), "{names}: {said:?}\n{log}");
    }
    assert!(!log.contains("planted-value"), "a value may be a secret");
    assert!(!log.contains("ASH_SNAPSHOT_URL"), "only what is set");
    // Logged at each start, and only for such variables.
    daemon.restart();
    assert!(!Daemon::start(Options::default()).logs().contains("no effect"));
}

/// A version has a number and an id, and one request can copy it.
#[tokio::test]
async fn versions_by_number_and_by_id() {
    let daemon = Daemon::start(Options::default());
    let api = daemon.api();
    for name in ["a", "b"] {
        api.deploy(name).await;
    }
    let body = br#"{"systemPrompt": "one", "knowledgeFiles": [{"z":1,"a":"x.md"}], "releaseNotes": "first"}"#.to_vec();
    let one = api.call_raw("POST", "/api/agents/a/versions", Some(("application/json", body))).await;
    let one = one.expect(201)["version"].clone();
    let id = one["id"].as_str().unwrap();
    let versions = "/api/agents/a/versions";
    assert_eq!(
        api.get(&format!("{versions}/{id}")).await.expect(200),
        api.get(&format!("{versions}/1")).await.expect(200)
    );
    for from in [json!(1), json!(id)] {
        let clone = api.post(versions, json!({"cloneFrom": from, "name": "copy"})).await;
        assert!(clone.text.contains(r#"[{"z":1,"a":"x.md"}]"#), "as it was sent: {}", clone.text);
        let clone = clone.expect(201)["version"].clone();
        assert_eq!(
            (&clone["systemPrompt"], &clone["name"], &clone["isActive"]),
            (&json!("one"), &json!("copy"), &json!(false))
        );
        assert_eq!(clone["releaseNotes"], json!(null), "notes are those of one version");
    }
    let own = api.post(versions, json!({"cloneFrom": 1, "systemPrompt": "own"})).await.expect(201)["version"].clone();
    assert_eq!((&own["systemPrompt"], &own["knowledgeFiles"]), (&json!("own"), &one["knowledgeFiles"]));
    let other = api.post("/api/agents/b/versions", json!({})).await.expect(201)["version"]["id"].clone();
    for (from, text) in [
        (json!(9), "cloneFrom: the agent has no version 9"),
        (other.clone(), "cloneFrom: the agent has no version"),
        (json!(0), "cloneFrom must be the number or the UUID of a version"),
        (json!(1.5), "cloneFrom must be the number or the UUID of a version"),
        (json!("1"), "cloneFrom must be the number or the UUID of a version"),
        (json!({"a": 1}), "cloneFrom must be the number or the UUID of a version"),
    ] {
        let error = api.post(versions, json!({"cloneFrom": from})).await.expect(400);
        assert!(error["error"].as_str().unwrap().starts_with(text), "{from}: {error}");
    }
    assert_eq!(
        api.get(versions).await.expect(200)["versions"].as_array().unwrap().len(),
        4,
        "what was refused made none"
    );
    api.post("/api/agents/nobody/versions", json!({"cloneFrom": 1})).await.expect(404);
    api.get(&format!("{versions}/{}", other.as_str().unwrap())).await.expect(404);
    let activated = api.post(&format!("{versions}/{id}/activate"), json!({})).await.expect(200);
    assert_eq!(activated, json!({"activated": true, "versionNumber": 1}));
    let refused = api.delete(&format!("{versions}/{id}")).await.expect(400);
    assert!(refused["error"].as_str().unwrap().contains("activate another one first"), "{refused}");
    let changed =
        api.call("PATCH", &format!("{versions}/{id}"), Some(json!({"systemPrompt": "two"}))).await.expect(200);
    assert_eq!(changed["version"]["systemPrompt"], "two");
    api.post(&format!("{versions}/2/activate"), json!({})).await.expect(200);
    api.delete(&format!("{versions}/{id}")).await.expect(204);
    api.get(&format!("{versions}/1")).await.expect(404);
    // Another tenant can use neither.
    let minted = api.post("/api/api-keys", json!({"label": "b", "tenantId": "b"})).await.expect(201);
    let stranger = api.with_key(minted["key"].as_str());
    stranger.deploy("a").await;
    stranger.get(&format!("{versions}/{}", own["id"].as_str().unwrap())).await.expect(404);
    stranger.post(versions, json!({"cloneFrom": own["id"]})).await.expect(400);
}

#[tokio::test]
async fn analytics_count_what_the_tenant_has() {
    let daemon = Daemon::start(Options::default());
    let api = daemon.api();
    api.deploy("a").await;
    let session = api.session("a").await;
    api.turn(&session, "@text hi").await;
    let ended = api.session("a").await;
    api.delete(&format!("/api/sessions/{ended}")).await.expect(200);
    let all = api.get("/api/analytics").await.expect(200);
    assert_eq!(all["agents"], json!({"total": 1}));
    assert_eq!(all["sessions"], json!({"total": 2, "byStatus": {"active": 1, "ended": 1}}));
    assert_eq!(all["evals"], json!({"totalRuns": 0, "byStatus": {}}));
    assert_eq!(all["usage"], api.get("/api/usage/stats").await.expect(200)["stats"]);
    assert_eq!(all["usage"]["totalMessages"], 1);
    let none = api.get("/api/analytics?before=2020-01-01T00:00:00Z").await.expect(200);
    assert_eq!((&none["agents"]["total"], &none["sessions"]["total"]), (&json!(1), &json!(0)));
    assert_eq!(none["usage"]["totalMessages"], 0);
    let error = api.get("/api/analytics?after=yesterday").await.expect(400);
    assert_eq!(error["error"], "after must be an ISO-8601 time, not \"yesterday\"");
    let minted = api.post("/api/api-keys", json!({"label": "b", "tenantId": "b"})).await.expect(201);
    let stranger = api.with_key(minted["key"].as_str()).get("/api/analytics").await.expect(200);
    assert_eq!((&stranger["agents"]["total"], &stranger["sessions"]["total"]), (&json!(0), &json!(0)));
    assert_eq!(stranger["usage"]["totalMessages"], 0);
}
