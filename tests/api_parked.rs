//! Parked sandboxes over HTTP, with the fake claude as the payload: confined and empty in advance,
//! and used by the tenant's next session.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use common::api::text;
use common::patience::patient;
use common::{Api, Daemon, MIB, Options, leftovers, procs};
use serde_json::{Value, json};

async fn within(daemon: &Daemon, what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !is_so().await {
        assert!(start.elapsed() < patient(Duration::from_secs(20)), "not within 20 s: {what}\n{}", daemon.logs());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn pool(api: &Api, field: &str) -> u64 {
    api.get("/health").await.expect(200)["pool"][field].as_u64().unwrap()
}

async fn created(api: &Api, path: &str) -> u64 {
    let metrics = api.get("/metrics").await.text;
    let name = format!("ash_created_total{{path=\"{path}\"}} ");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&name)).unwrap_or_else(|| panic!("{metrics}"));
    line.parse().unwrap()
}

async fn create(api: &Api, body: Value) -> String {
    api.post("/api/sessions", body).await.expect(201)["session"]["id"].as_str().unwrap().to_owned()
}

/// How the session was created: the path in its first event, if it has one.
async fn path(api: &Api, id: &str) -> Value {
    let first = api.lifecycle(id).await.swap_remove(0);
    assert_eq!(first["action"], "created");
    first["path"].clone()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn sandboxes(daemon: &Daemon) -> Vec<String> {
    names(&daemon.run().join("sandboxes"))
}

fn directory(daemon: &Daemon, id: &str) -> PathBuf {
    daemon.data().join("sessions").join(id)
}

/// Waits until `count` sandboxes are parked. Returns those that are not in `known`.
async fn parked(daemon: &Daemon, api: &Api, count: u64, known: &[&str]) -> Vec<String> {
    within(daemon, "parked", async || pool(api, "warm").await == count && pool(api, "warming").await == 0).await;
    sandboxes(daemon).into_iter().filter(|id| !known.contains(&id.as_str())).collect()
}

/// The kernel's value of a limit, by the names of its file on v1 and v2, in the session's group.
fn in_force(daemon: &Daemon, id: &str, files: [&str; 2]) -> String {
    let groups = leftovers::cgroups(&daemon.cgroup).into_iter().filter(|dir| dir.ends_with(id));
    let found: Vec<_> = groups.flat_map(|dir| files.map(|file| dir.join(file))).filter(|path| path.exists()).collect();
    std::fs::read_to_string(found.first().unwrap_or_else(|| panic!("no {files:?}"))).unwrap().trim().to_owned()
}

fn memory(daemon: &Daemon, id: &str) -> u64 {
    in_force(daemon, id, ["memory.limit_in_bytes", "memory.max"]).parse().unwrap()
}

/// When its confinement was measured, and when the report was written.
fn measured(daemon: &Daemon, id: &str) -> (Value, SystemTime) {
    let path = directory(daemon, id).join("confinement.json");
    let report: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(report["confined"], true);
    (report["measuredAt"].clone(), std::fs::metadata(&path).unwrap().modified().unwrap())
}

#[tokio::test]
async fn any_new_session_takes_the_parked_sandbox_and_another_is_made() {
    let daemon = Daemon::start(Options::default().parked(1));
    let api = daemon.api();
    let first = parked(&daemon, &api, 1, &[]).await.remove(0);
    // It belongs to no session and is empty: only an init that sleeps.
    assert_eq!(pool(&api, "total").await, 1);
    assert_eq!(api.get("/api/sessions").await.expect(200)["sessions"], json!([]));
    api.get(&format!("/api/sessions/{first}")).await.expect(404);
    let inside = procs::of_session(&daemon, &first);
    assert_eq!(inside.len(), 1, "{inside:?}");
    assert_eq!(names(&directory(&daemon, &first)), ["confinement.json", "home", "workspace", "workspace.partial"]);
    assert!(names(&directory(&daemon, &first).join("workspace")).is_empty());
    assert!(names(&directory(&daemon, &first).join("home")).is_empty());
    let before = (measured(&daemon, &first), inside[0].ticks());
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(inside[0].ticks(), before.1, "it uses no processor");

    // An agent deployed after the sandbox was made, with options that no warm sandbox can serve.
    api.deploy("late").await;
    let body = json!({"agent": "late", "extraEnv": {"SECRET": "told late"}, "systemPrompt": "Be brief."});
    let start = Instant::now();
    let id = create(&api, body).await;
    println!("create from a parked one: {:?}", start.elapsed());
    assert_eq!(id, first);
    assert_eq!(path(&api, &id).await, "parked");
    assert_eq!(procs::of_session(&daemon, &id)[0].pid, inside[0].pid, "the same init");
    assert_eq!(measured(&daemon, &id), before.0, "its proof is that of before");
    assert!(!directory(&daemon, &id).join("workspace.partial").exists());
    let said = text(&api.turn(&id, "@tool Bash {\"command\":\"cat CLAUDE.md; pwd; ls -A $HOME\"}\n@env").await);
    assert!(said.contains("told late"), "{said}");
    let records = names(&directory(&daemon, &id).join("home/.claude/projects/-workspace"));
    assert_eq!(records, [format!("{id}.jsonl")], "one id for the session and its conversation");
    assert_eq!(api.get(&format!("/api/sessions/{id}/files/CLAUDE.md")).await.text, "You are a test.\n");
    let report = api.get(&format!("/api/sessions/{id}/confinement")).await.expect(200)["confinement"].clone();
    assert_eq!(report["confined"], true, "{report:#}");
    assert_eq!((created(&api, "parked").await, created(&api, "cold").await, created(&api, "prewarm").await), (1, 0, 0));
    assert_eq!(pool(&api, "preWarmHits").await, 0);
    assert!(daemon.logs().contains("parked="), "the steps of the start name it\n{}", daemon.logs());

    // Used once, then replaced.
    let second = parked(&daemon, &api, 1, &[&id]).await.remove(0);
    assert_eq!(api.session("late").await, second);
    for verb in ["pause", "resume", "stop", "resume"] {
        api.verb(&id, verb).await;
    }
    assert!(text(&api.turn(&id, "@recall").await).contains("CLAUDE.md"));
    assert_eq!((created(&api, "parked").await, created(&api, "cold").await), (2, 0));
}

#[tokio::test]
async fn the_limits_of_the_session_are_in_force_and_not_those_it_was_parked_with() {
    let (mut daemon, api) = Daemon::deployed(Options::default().parked(1)).await;
    let first = parked(&daemon, &api, 1, &[]).await.remove(0);
    assert_eq!((memory(&daemon, &first), in_force(&daemon, &first, ["pids.max"; 2])), (2048 * MIB, "512".to_owned()));
    let narrow = json!({"memoryBytes": 512 * MIB, "pids": 100});
    api.call("PATCH", "/api/agents/a/limits", Some(narrow)).await.expect(200);
    let id = api.session("a").await;
    assert_eq!((&id, path(&api, &id).await), (&first, json!("parked")));
    let holds = |daemon: &Daemon| {
        assert_eq!((memory(daemon, &id), in_force(daemon, &id, ["pids.max"; 2])), (512 * MIB, "100".to_owned()));
    };
    holds(&daemon);
    // The stored report has these limits too.
    let report = std::fs::read(directory(&daemon, &id).join("confinement.json")).unwrap();
    let report: Value = serde_json::from_slice(&report).unwrap();
    let limits = report["outside"]["limits"].as_array().unwrap();
    let kept = limits.iter().find(|limit| limit["name"] == "memoryBytes").unwrap();
    assert_eq!(kept["value"], 512 * MIB, "{report:#}");
    let stats = api.get(&format!("/api/sessions/{id}/stats")).await.expect(200);
    assert!(stats.to_string().contains(&(512 * MIB).to_string()), "{stats}");
    // The cause of its end names its own limit.
    let frames = api.turn(&id, "@alloc 900000000\n@text never").await;
    let error = &frames[frames.len() - 2];
    assert!(error.data["error"].as_str().unwrap().contains("memory limit of 512 MiB"), "{}", error.data);
    // The next one has the tenant's limits again, whatever the agent's are.
    let second = parked(&daemon, &api, 1, &[&id]).await.remove(0);
    assert_eq!(memory(&daemon, &second), 2048 * MIB);
    assert_eq!(api.verb(&id, "resume").await, "active");
    holds(&daemon);
    daemon.kill9();
    daemon.restart();
    holds(&daemon);
}

#[tokio::test]
async fn no_other_tenant_is_served_and_the_newest_one_gets_its_own() {
    let (mut daemon, api) = Daemon::deployed(Options::default().parked(1)).await;
    let first = parked(&daemon, &api, 1, &[]).await.remove(0);
    let of = |daemon: &Daemon, tenant: &str, id: &str| {
        let groups = leftovers::cgroups(&daemon.cgroup);
        groups.iter().any(|dir| dir.ends_with(format!("tenants/{tenant}/{id}")))
    };
    assert!(of(&daemon, "default", &first));
    let made = api.post("/api/internal/api-keys", json!({"tenantId": "other", "label": "x"})).await.expect(201);
    let other = api.with_key(made["key"].as_str());
    other.deploy("a").await;
    let theirs = other.session("a").await;
    assert_ne!(theirs, first);
    assert_eq!(path(&other, &theirs).await, Value::Null);
    // One now belongs to the other tenant; the first was removed with its contents.
    within(&daemon, "parked for them", async || {
        sandboxes(&daemon).iter().any(|id| *id != theirs && *id != first && of(&daemon, "other", id))
    })
    .await;
    assert!(!directory(&daemon, &first).exists());
    let second = parked(&daemon, &api, 1, &[&theirs]).await.remove(0);
    let mine = api.session("a").await;
    assert_ne!(mine, second);
    assert!(of(&daemon, "default", &mine) && path(&api, &mine).await.is_null());
    within(&daemon, "parked for me", async || {
        sandboxes(&daemon).iter().any(|id| *id != mine && *id != second && of(&daemon, "default", id))
    })
    .await;
    assert_eq!((created(&api, "parked").await, created(&api, "cold").await), (0, 2));

    // A restarted daemon parks for the last active tenant, and destroys what was parked.
    let last = other.session("a").await;
    let old = parked(&daemon, &api, 1, &[&theirs, &mine, &last]).await.remove(0);
    daemon.kill9();
    daemon.restart();
    let api = daemon.api();
    let new = parked(&daemon, &api, 1, &[&theirs, &mine, &last]).await.remove(0);
    assert_ne!(old, new);
    assert!(of(&daemon, "other", &new));
    within(&daemon, "its directory is removed", async || !directory(&daemon, &old).exists()).await;
    assert_eq!(text(&api.turn(&mine, "@text on").await), "on");
}

#[tokio::test]
async fn a_parked_one_makes_room_before_a_warm_one_and_that_before_a_paused_session() {
    let options = Options::default().env("ASH_MAX_SANDBOXES", "3").parked(1);
    let (daemon, api) = Daemon::deployed(options).await;
    let made = api.post("/api/internal/api-keys", json!({"tenantId": "other", "label": "x"})).await.expect(201);
    let other = api.with_key(made["key"].as_str());
    other.deploy("a").await;
    parked(&daemon, &api, 1, &[]).await;
    let paused = api.session("a").await;
    api.verb(&paused, "pause").await;
    api.call("PATCH", "/api/agents/a/warm", Some(json!({"count": 1}))).await.expect(200);
    let warm = async || api.get("/api/agents/a/warm").await.expect(200)["warm"]["ready"].as_u64().unwrap();
    within(&daemon, "one of each", async || warm().await == 1 && pool(&api, "warm").await == 2).await;
    let fall = async |left: [u64; 3]| {
        other.session("a").await;
        let last = api.lifecycle(&paused).await.last().unwrap()["action"].clone();
        let seen = [pool(&api, "warm").await - warm().await, warm().await, u64::from(last == "paused")];
        assert_eq!(seen, left, "parked, warm, the paused session's");
    };
    fall([0, 1, 1]).await;
    fall([0, 0, 1]).await;
    fall([0, 0, 0]).await;
    other.post("/api/sessions", json!({"agent": "a"})).await.expect(503);
}

#[tokio::test]
async fn the_last_room_is_the_parked_ones_and_a_warm_one_is_worth_more() {
    let options = Options::default().env("ASH_MAX_SANDBOXES", "2").parked(2);
    let (daemon, api) = Daemon::deployed(options).await;
    let two = parked(&daemon, &api, 2, &[]).await;
    // A warm sandbox takes the place of a parked one.
    api.call("PATCH", "/api/agents/a/warm", Some(json!({"count": 1}))).await.expect(200);
    let warm = async || api.get("/api/agents/a/warm").await.expect(200)["warm"]["ready"].as_u64().unwrap();
    within(&daemon, "warm", async || warm().await == 1).await;
    assert_eq!(sandboxes(&daemon).iter().filter(|id| two.contains(id)).count(), 1);
    // Full, and both are taken: nothing is evicted.
    let cold = create(&api, json!({"agent": "a", "extraEnv": {"A": "1"}})).await;
    assert!(two.contains(&cold));
    assert_eq!(path(&api, &cold).await, "parked");
    assert_eq!(path(&api, &create(&api, json!({"agent": "a"})).await).await, "prewarm");
    assert_eq!((pool(&api, "warm").await, pool(&api, "waiting").await), (0, 2));
    api.post("/api/sessions", json!({"agent": "a"})).await.expect(503);
}

#[tokio::test]
async fn the_number_follows_the_configuration_and_none_is_none() {
    let (daemon, api) = Daemon::deployed(Options::default().parked(0)).await;
    let id = api.session("a").await;
    assert_eq!(path(&api, &id).await, Value::Null);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let alone = vec![id.clone()];
    assert_eq!(sandboxes(&daemon), alone);
    daemon.park(3);
    let three = parked(&daemon, &api, 3, &[&id]).await;
    daemon.park(1);
    let one = parked(&daemon, &api, 1, &[&id]).await;
    assert!(one.len() == 1 && three.contains(&one[0]));
    daemon.park(0);
    within(&daemon, "given up", async || sandboxes(&daemon) == alone).await;
    within(&daemon, "with their directories", async || names(&daemon.data().join("sessions")) == alone).await;
    assert_eq!((pool(&api, "warm").await, pool(&api, "total").await), (0, 1));
    daemon.park(101);
    within(&daemon, "refused", async || daemon.logs().contains("pool.parked: expected a whole number from 0 to 100"))
        .await;
    // The daemon's next start and stop need a valid file.
    daemon.park(0);
}

#[tokio::test]
async fn a_parked_one_that_cannot_be_used_costs_no_session() {
    let (daemon, api) = Daemon::deployed(Options::default().parked(1)).await;
    let first = parked(&daemon, &api, 1, &[]).await.remove(0);
    procs::of_session(&daemon, &first)[0].kill9();
    let id = api.session("a").await;
    assert_eq!(text(&api.turn(&id, "@text alive").await), "alive");
    within(&daemon, "the dead one is cleared away", async || id == first || !sandboxes(&daemon).contains(&first)).await;

    // A parked sandbox found unusable when its session starts: the session keeps its id.
    let second = parked(&daemon, &api, 1, &[&id]).await.remove(0);
    let init = procs::of_session(&daemon, &second)[0].clone();
    std::fs::remove_dir(directory(&daemon, &second).join("workspace")).unwrap();
    let other = api.session("a").await;
    assert_eq!((&other, path(&api, &other).await), (&second, Value::Null));
    assert!(procs::of_session(&daemon, &other).iter().all(|process| process.pid != init.pid), "a sandbox of its own");
    assert!(daemon.logs().contains("parked-failed"), "{}", daemon.logs());
    assert_eq!(text(&api.turn(&other, "@tool Bash {\"command\":\"test -s CLAUDE.md\"}\n@text there").await), "there");

    // An agent whose claude cannot start: one sandbox is tried, one cause is reported, and nothing
    // is left.
    let third = parked(&daemon, &api, 1, &[&id, &other]).await.remove(0);
    let body = json!({"agent": "a", "extraEnv": {"FAKE_FAIL_START": "1"}});
    let error = api.post("/api/sessions", body).await.expect(500)["error"].as_str().unwrap().to_owned();
    assert!(error.contains("exited with status 3"), "{error}");
    assert!(!directory(&daemon, &third).exists() && !sandboxes(&daemon).contains(&third));
    assert_eq!(api.info(&third).await["status"], "error");
}

#[tokio::test]
async fn a_claude_that_was_replaced_is_the_one_that_starts() {
    // A copy, because the fake's own file must not change.
    let temp = tempfile::tempdir().unwrap();
    std::fs::set_permissions(temp.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let claude = temp.path().join("claude");
    std::fs::copy(common::fake_claude(), &claude).unwrap();
    let options = Options::default().parked(1).env("ASH_CLAUDE_BIN", claude.to_str().unwrap());
    let (daemon, api) = Daemon::deployed(options).await;
    api.call("PATCH", "/api/agents/a/warm", Some(json!({"count": 1}))).await.expect(200);
    within(&daemon, "one of each", async || pool(&api, "warm").await == 2).await;
    let old = sandboxes(&daemon);
    let new = temp.path().join("new");
    std::fs::copy(common::fake_claude(), &new).unwrap();
    std::fs::rename(&new, &claude).unwrap();
    let id = api.session("a").await;
    assert!(!old.contains(&id));
    assert_eq!(path(&api, &id).await, Value::Null, "neither the warm nor the parked one");
    use std::os::unix::fs::MetadataExt;
    let runs = std::fs::metadata(procs::claude(&daemon, &id).dir().join("exe")).unwrap().ino();
    assert_eq!(runs, std::fs::metadata(&claude).unwrap().ino());
    within(&daemon, "made anew", async || {
        pool(&api, "warm").await == 2 && old.iter().all(|old| !sandboxes(&daemon).contains(old))
    })
    .await;
}

#[tokio::test]
async fn a_workspace_that_was_not_filled_to_its_end_is_filled_anew() {
    let (daemon, api) = Daemon::deployed(Options::default().parked(1)).await;
    let id = parked(&daemon, &api, 1, &[]).await.remove(0);
    assert_eq!(api.session("a").await, id);
    api.verb(&id, "stop").await;
    // As left by a kill of ashd during the copy.
    let dir = directory(&daemon, &id);
    std::fs::remove_file(dir.join("workspace/CLAUDE.md")).unwrap();
    std::fs::write(dir.join("workspace/half"), "ha").unwrap();
    std::fs::create_dir(dir.join("workspace.partial")).unwrap();
    let owner = std::fs::metadata(&dir).unwrap();
    use std::os::unix::fs::MetadataExt;
    for path in ["workspace/half", "workspace.partial"] {
        std::os::unix::fs::chown(dir.join(path), Some(owner.uid()), Some(owner.gid())).unwrap();
    }
    api.call("POST", &format!("/api/sessions/{id}/fork"), None).await.expect(400);
    assert_eq!(api.verb(&id, "resume").await, "active");
    assert_eq!(names(&dir.join("workspace")), ["CLAUDE.md"]);
    assert!(!dir.join("workspace.partial").exists());
}
