//! Warm sandboxes and automatic removal, over HTTP, with the fake claude as the payload.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::api::text;
use common::{Api, Daemon, Options, procs};
use serde_json::{Value, json};

async fn within(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !is_so().await {
        assert!(start.elapsed() < crate::common::patience::patient(Duration::from_secs(20)), "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

async fn pool(api: &Api, field: &str) -> u64 {
    api.get("/health").await.expect(200)["pool"][field].as_u64().unwrap()
}

async fn warm(api: &Api, agent: &str, count: u64) -> Value {
    let set = api.call("PATCH", &format!("/api/agents/{agent}/warm"), Some(json!({"count": count}))).await.expect(200);
    assert_eq!((&set["warm"]["count"], &set["warm"]["own"]), (&json!(count), &json!(true)));
    within("as many are ready as were asked for", async || ready(api, agent).await == count).await;
    set
}

async fn ready(api: &Api, agent: &str) -> u64 {
    api.get(&format!("/api/agents/{agent}/warm")).await.expect(200)["warm"]["ready"].as_u64().unwrap()
}

async fn create(api: &Api, body: Value) -> String {
    api.post("/api/sessions", body).await.expect(201)["session"]["id"].as_str().unwrap().to_owned()
}

/// How the session was created: the path in its first event, if it has one.
async fn path(api: &Api, id: &str) -> Value {
    let events = api.get(&format!("/api/sessions/{id}/events?type=lifecycle")).await.expect(200);
    let data: Value = serde_json::from_str(events["events"][0]["data"].as_str().unwrap()).unwrap();
    assert_eq!(data["action"], "created");
    data["path"].clone()
}

fn sandboxes(daemon: &Daemon) -> Vec<String> {
    let entries = std::fs::read_dir(daemon.run().join("sandboxes")).unwrap();
    let mut ids: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    ids.sort();
    ids
}

fn directories(daemon: &Daemon) -> Vec<String> {
    let entries = std::fs::read_dir(daemon.data().join("sessions")).unwrap();
    let mut ids: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    ids.sort();
    ids
}

#[tokio::test]
async fn a_session_takes_over_a_warm_sandbox_and_another_is_made() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    assert_eq!(
        api.get("/api/agents/a/warm").await.expect(200)["warm"],
        json!({"count": 0, "own": false, "ready": 0, "warming": false})
    );
    warm(&api, "a", 2).await;
    assert_eq!((pool(&api, "warm").await, pool(&api, "waiting").await, pool(&api, "total").await), (2, 0, 2));
    let prepared = sandboxes(&daemon);
    let claudes: Vec<i32> = prepared.iter().map(|id| procs::claude(&daemon, id).pid).collect();
    // They belong to no tenant: no list shows them, no request reaches them, and they use no CPU.
    assert_eq!(api.get("/api/sessions").await.expect(200)["sessions"], json!([]));
    api.get(&format!("/api/sessions/{}", prepared[0])).await.expect(404);
    let before: u64 = prepared.iter().map(|id| procs::ticks(&daemon, id)).sum();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(prepared.iter().map(|id| procs::ticks(&daemon, id)).sum::<u64>(), before);

    let start = Instant::now();
    let id = create(&api, json!({"agent": "a"})).await;
    println!("create from warm: {:?}", start.elapsed());
    assert!(prepared.contains(&id));
    assert!(claudes.contains(&procs::claude(&daemon, &id).pid), "the claude that was ready");
    assert_eq!(path(&api, &id).await, "prewarm");
    assert_eq!(pool(&api, "preWarmHits").await, 1);
    let metrics = api.get("/metrics").await.text;
    assert!(metrics.contains("ash_resume_total{path=\"prewarm\"} 1"), "{metrics}");
    assert_eq!(text(&api.turn(&id, "@tool Bash {\"command\":\"cat CLAUDE.md\"}\n@text yes").await), "yes");
    // The model is set in the running claude.
    let other = create(&api, json!({"agent": "a", "model": "another"})).await;
    assert!(prepared.contains(&other));
    assert_eq!(text(&api.turn(&other, "@text also").await), "also");
    within("two new ones", async || ready(&api, "a").await == 2).await;
    assert!(sandboxes(&daemon).len() == 4);
    for verb in ["pause", "resume", "stop", "resume"] {
        api.call("POST", &format!("/api/sessions/{id}/{verb}"), None).await.expect(200);
    }
    assert!(text(&api.turn(&id, "@recall").await).contains("CLAUDE.md"));
    warm(&api, "a", 0).await;
    within("given up with their directories", async || directories(&daemon).len() == 2).await;
    assert_eq!(sandboxes(&daemon).len(), 2);
    for (body, word) in
        [(json!({"count": 101}), "0 to 100"), (json!({}), "count is required"), (json!({"count": "2"}), "count")]
    {
        let error = api.call("PATCH", "/api/agents/a/warm", Some(body)).await.expect(400);
        assert!(error["error"].as_str().unwrap().contains(word), "{error}");
    }
    api.call("PATCH", "/api/agents/none/warm", Some(json!({"count": 1}))).await.expect(404);
}

#[tokio::test]
async fn what_a_start_must_say_is_started_cold() {
    let (daemon, api) = Daemon::deployed(Options::default().config("[pool]\nwarm = 1")).await;
    within("ready without being asked for", async || ready(&api, "a").await == 1).await;
    let prepared = sandboxes(&daemon);
    for (field, value) in [
        ("extraEnv", json!({"SECRET": "1"})),
        ("systemPrompt", json!("Be brief.")),
        ("mcpServers", json!({"m": {"command": "true"}})),
        ("permissionMode", json!("default")),
        ("allowedTools", json!(["Bash"])),
        ("disallowedTools", json!(["Bash"])),
    ] {
        let id = create(&api, json!({"agent": "a", field: value})).await;
        assert!(!prepared.contains(&id), "{field}");
        assert_eq!(path(&api, &id).await, Value::Null, "{field}");
    }
    assert_eq!(pool(&api, "preWarmHits").await, 0);
    assert_eq!(ready(&api, "a").await, 1);
}

#[tokio::test]
async fn no_other_tenant_and_no_former_agent_is_served() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    warm(&api, "a", 1).await;
    let first = sandboxes(&daemon);
    let made = api.post("/api/internal/api-keys", json!({"tenantId": "other", "label": "x"})).await.expect(201);
    let other = api.with_key(made["key"].as_str());
    other.deploy("a").await;
    assert_eq!(other.get("/api/agents/a/warm").await.expect(200)["warm"]["ready"], 0);
    let theirs = other.session("a").await;
    assert!(!first.contains(&theirs));
    assert_eq!(ready(&api, "a").await, 1);
    // Deployed again: a session gets the new files, never the old ones.
    let body = json!({"name": "a", "files": [{"path": "CLAUDE.md", "content": "bmV3"}]});
    api.post("/api/agents", body).await.expect(201);
    let id = api.session("a").await;
    assert!(!first.contains(&id));
    assert_eq!(api.get(&format!("/api/sessions/{id}/files/CLAUDE.md")).await.text, "new");
    within("the old one is destroyed", async || !sandboxes(&daemon).contains(&first[0])).await;
    within("a new one is made", async || ready(&api, "a").await == 1).await;
    let second: Vec<_> = sandboxes(&daemon).into_iter().filter(|s| *s != id && *s != theirs).collect();
    api.call("PATCH", "/api/agents/a", Some(json!({"env": {"A": "1"}}))).await.expect(200);
    within("made with the new variables", async || {
        ready(&api, "a").await == 1 && !sandboxes(&daemon).contains(&second[0])
    })
    .await;
    api.delete("/api/agents/a").await.expect(200);
    within("gone with the agent", async || pool(&api, "warm").await == 0).await;
}

#[tokio::test]
async fn an_agent_that_is_edited_in_place_is_seen_as_it_is_now() {
    let daemon = Daemon::start(Options::default());
    let api = daemon.api();
    let dir = daemon.agent_dir("p", &[("CLAUDE.md", "one")]);
    api.post("/api/agents", json!({"name": "p", "path": dir})).await.expect(201);
    warm(&api, "p", 1).await;
    std::fs::write(dir.join("CLAUDE.md"), "two").unwrap();
    let id = create(&api, json!({"agent": "p"})).await;
    assert_eq!(path(&api, &id).await, Value::Null);
    assert_eq!(api.get(&format!("/api/sessions/{id}/files/CLAUDE.md")).await.text, "two");
    within("a new one of the new files", async || ready(&api, "p").await == 1 && sandboxes(&daemon).len() == 2).await;
    let id = create(&api, json!({"agent": "p"})).await;
    assert_eq!(path(&api, &id).await, "prewarm");
    assert_eq!(api.get(&format!("/api/sessions/{id}/files/CLAUDE.md")).await.text, "two");
}

#[tokio::test]
async fn sessions_come_before_warm_ones_and_dead_ones_are_not_handed_out() {
    let (daemon, api) = Daemon::deployed(Options::default().env("ASH_MAX_SANDBOXES", "2")).await;
    api.deploy("b").await;
    warm(&api, "a", 2).await;
    // Two sessions of another agent evict both warm sandboxes; a third finds no place.
    let (one, two) = (api.session("b").await, api.session("b").await);
    assert_eq!((pool(&api, "warm").await, pool(&api, "waiting").await), (0, 2));
    api.post("/api/sessions", json!({"agent": "b"})).await.expect(503);
    api.delete(&format!("/api/sessions/{one}")).await.expect(200);
    api.call("PATCH", "/api/agents/a/warm", Some(json!({"count": 1}))).await.expect(200);
    within("room that came free is used", async || ready(&api, "a").await == 1).await;
    let id = sandboxes(&daemon).into_iter().find(|id| *id != two).unwrap();
    let claude = procs::claude(&daemon, &id);
    claude.kill9();
    within("it is dead (its frozen init cannot reap it)", async || {
        !claude.dir().exists() || claude.status("State").starts_with('Z')
    })
    .await;
    let made = api.session("a").await;
    assert_eq!(text(&api.turn(&made, "@text alive").await), "alive");
}

#[tokio::test]
async fn a_restart_destroys_what_was_warm_and_what_is_nobodys() {
    let (mut daemon, api) = Daemon::deployed(Options::default().config("[sessions]\nkeep_ended = \"2s\"")).await;
    warm(&api, "a", 1).await;
    let id = api.session("a").await;
    api.turn(&id, "@text hello").await;
    within("another one", async || ready(&api, "a").await == 1).await;
    let before: Vec<_> = sandboxes(&daemon).into_iter().filter(|s| *s != id).collect();
    daemon.kill9();
    let stray = daemon.data().join("sessions").join("11111111-1111-4111-8111-111111111111");
    std::fs::create_dir_all(stray.join("workspace")).unwrap();
    let mine = daemon.data().join("sessions/notes");
    std::fs::create_dir(&mine).unwrap();
    let owner = std::fs::metadata(daemon.data().join("sessions").join(&id)).unwrap();
    use std::os::unix::fs::MetadataExt;
    for path in [&stray, &stray.join("workspace")] {
        std::os::unix::fs::chown(path, Some(owner.uid()), Some(owner.gid())).unwrap();
    }
    daemon.restart();
    let api = daemon.api();
    assert!(!sandboxes(&daemon).contains(&before[0]));
    within("their directories are gone", async || {
        let left = directories(&daemon);
        !left.contains(&before[0]) && !stray.exists()
    })
    .await;
    assert!(mine.exists(), "what ashd did not make is not its to remove");
    std::fs::remove_dir(&mine).unwrap();
    assert_eq!(text(&api.turn(&id, "@recall").await), "@text hello");
    within("warm again", async || ready(&api, "a").await == 1).await;

    // Ended: the files stay for a while, then only the rows of the database.
    let hostile = "@tool Bash {\"command\":\"mkdir -p d/e/f && chmod 0 d/e && touch x\"}\n@text done";
    assert_eq!(text(&api.turn(&id, hostile).await), "done");
    api.delete(&format!("/api/sessions/{id}")).await.expect(200);
    assert_eq!(api.get(&format!("/api/sessions/{id}/files/CLAUDE.md")).await.status, 200);
    within("removed", async || !directories(&daemon).iter().any(|name| name.contains(&id))).await;
    let error = api.get(&format!("/api/sessions/{id}/files")).await.expect(404);
    assert_eq!(error["error"], "The files of this session are no longer kept");
    assert!(
        !api.get(&format!("/api/sessions/{id}/messages")).await.expect(200)["messages"].as_array().unwrap().is_empty()
    );
    let forked = api.call("POST", &format!("/api/sessions/{id}/fork"), None).await;
    assert!(forked.expect(400)["error"].as_str().unwrap().contains("no longer kept"));
}
