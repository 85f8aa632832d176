//! Limits through the whole daemon: which level decides, what the kernel gets, refusals, and the
//! usage of a session.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};

use common::api::{Api, text};
use common::{Daemon, MIB, Options};
use serde_json::{Value, json};

/// The kernel's value in a file of the session's group, by its name on v1 and v2.
fn in_force(daemon: &Daemon, id: &str, controller: &str, [v1, v2]: [&str; 2]) -> String {
    let below = |mount: &str| Path::new(mount).join(&daemon.cgroup).join("tenants/default").join(id);
    let old: PathBuf = below(&format!("/sys/fs/cgroup/{controller}")).join(v1);
    let path = if old.exists() { old } else { below("/sys/fs/cgroup").join(v2) };
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).trim().to_owned()
}

fn memory(daemon: &Daemon, id: &str) -> u64 {
    in_force(daemon, id, "memory", ["memory.limit_in_bytes", "memory.max"]).parse().unwrap()
}

fn pids(daemon: &Daemon, id: &str) -> String {
    in_force(daemon, id, "pids", ["pids.max", "pids.max"])
}

async fn patch(api: &Api, path: &str, body: Value) -> Value {
    api.call("PATCH", path, Some(body)).await.expect(200)["limits"].clone()
}

#[tokio::test]
async fn a_change_is_in_force_at_once_and_says_who_decided() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let path = format!("/api/sessions/{id}/limits");
    let limits = api.get(&path).await.expect(200)["limits"].clone();
    assert_eq!(limits.as_object().unwrap().len(), 12);
    for (_, limit) in limits.as_object().unwrap() {
        assert_eq!((&limit["decidedBy"], &limit["set"]), (&json!("config"), &Value::Null), "{limit}");
    }
    assert_eq!(limits["memoryBytes"]["enforced"], true);
    assert_eq!(memory(&daemon, &id), 2048 * MIB);

    let changed = patch(&api, &path, json!({"memoryBytes": 512 * MIB, "pids": 100, "cpuMillis": 500})).await;
    assert_eq!(changed["memoryBytes"]["value"], 512 * MIB);
    assert_eq!(changed["memoryBytes"]["decidedBy"], "session");
    assert_eq!((memory(&daemon, &id), pids(&daemon, &id).as_str()), (512 * MIB, "100"));
    let quota = in_force(&daemon, &id, "cpu", ["cpu.cfs_quota_us", "cpu.max"]);
    assert_eq!(quota.split(' ').next(), Some("50000"));

    // The agent lowers it further; unsetting the agent's limit restores the session's own.
    let answer = api.call("PATCH", "/api/agents/a/limits", Some(json!({"memoryBytes": 256 * MIB}))).await.expect(200);
    assert_eq!(answer["limits"]["memoryBytes"]["decidedBy"], "agent");
    assert!(answer.get("notFollowed").is_none(), "{answer}");
    assert_eq!(memory(&daemon, &id), 256 * MIB);
    assert_eq!(api.get(&path).await.expect(200)["limits"]["memoryBytes"]["decidedBy"], "agent");
    patch(&api, "/api/tenant/limits", json!({"pids": 80})).await;
    assert_eq!(pids(&daemon, &id), "80");
    patch(&api, "/api/agents/a/limits", json!({"memoryBytes": null})).await;
    assert_eq!(memory(&daemon, &id), 512 * MIB);
    patch(&api, "/api/tenants/default/limits", json!({"pids": null})).await;
    assert_eq!(pids(&daemon, &id), "100");
    // None of it restarted claude.
    assert_eq!(text(&api.turn(&id, "@text still the first").await), "still the first");
    // A new session of the tenant has the defaults.
    let second = api.session("a").await;
    assert_eq!(memory(&daemon, &second), 2048 * MIB);
}

#[tokio::test]
async fn what_cannot_be_met_is_refused_and_changes_nothing() {
    let (daemon, api) = Daemon::deployed(Options::default().config("[launcher.ceiling]\nmemory_bytes = '4GiB'")).await;
    let id = api.session("a").await;
    let path = format!("/api/sessions/{id}/limits");
    // A process that continues to run holds 100 MiB.
    api.turn(&id, "@alloc 104857600\n@text held").await;
    for (body, fault) in [
        (json!({"memoryBytes": 0}), "memoryBytes: 0 is below the minimum"),
        (json!({"memoryBytes": "1GiB"}), "memoryBytes must be a whole number"),
        (json!({"memoryBytes": -5}), "memoryBytes must be"),
        (json!({"memoryBytes": 1.5}), "memoryBytes must be"),
        (json!({"memoryBytes": 5_u64 << 30}), "above the host's ceiling"),
        (json!({"memoryBytes": 64 * MIB}), "below what the session uses now"),
        (json!({"pids": 0}), "pids: 0"),
        (json!({"cpuWeight": 20_000}), "cpuWeight"),
        (json!({"turnMs": 1}), "turnMs"),
        (json!({"pids": 50, "diskBytes": 5}), "diskBytes"),
        (json!({"mem": 5}), "name at least one limit"),
        (json!({}), "name at least one limit"),
        (json!([]), "must be a JSON object"),
    ] {
        let refused = api.call("PATCH", &path, Some(body.clone())).await;
        assert_eq!(refused.status, 400, "{body}: {}", refused.text);
        assert!(refused.json["error"].as_str().unwrap().contains(fault), "{body}: {}", refused.text);
    }
    assert_eq!((memory(&daemon, &id), pids(&daemon, &id).as_str()), (2048 * MIB, "512"));
    let limits = api.get(&path).await.expect(200)["limits"].clone();
    assert!(limits.as_object().unwrap().values().all(|limit| limit["set"].is_null()), "{limits}");
    // An agent's limit is stored, and the session that cannot follow is listed.
    let body = Some(json!({"memoryBytes": 64 * MIB}));
    let answer = api.call("PATCH", "/api/agents/a/limits", body).await.expect(200);
    assert_eq!(answer["notFollowed"][0]["sessionId"], id.as_str(), "{answer}");
    assert_eq!(memory(&daemon, &id), 2048 * MIB);
}

#[tokio::test]
async fn a_tenant_cannot_give_itself_more() {
    let (_daemon, api) = Daemon::deployed(Options::default()).await;
    let minted = api.post("/api/api-keys", json!({"label": "x", "tenantId": "acme"})).await.expect(201);
    let acme = api.with_key(minted["key"].as_str());
    acme.deploy("b").await;
    let id = acme.session("b").await;
    let path = format!("/api/sessions/{id}/limits");
    let ask = |api: &Api, path: &str, body: Value| {
        let (api, path) = (api.clone(), path.to_owned());
        async move { api.call("PATCH", &path, Some(body)).await }
    };
    let refused = ask(&acme, &path, json!({"memoryBytes": 3_u64 << 30})).await;
    assert!(refused.status == 400 && refused.text.contains("configuration's limit"), "{}", refused.text);
    ask(&acme, &path, json!({"memoryBytes": 1 << 30})).await.expect(200);
    ask(&acme, "/api/tenant/limits", json!({"memoryBytes": 1 << 30})).await.expect(403);
    ask(&acme, "/api/tenants/default/limits", json!({"memoryBytes": 1 << 30})).await.expect(403);
    acme.get("/api/tenants/default/limits").await.expect(403);
    acme.get("/api/tenants/acme/limits").await.expect(200);
    // Sessions and agents of another tenant do not exist.
    ask(&api, &path, json!({"pids": 100})).await.expect(404);
    api.get(&path).await.expect(404);
    api.get(&format!("/api/sessions/{id}/stats")).await.expect(404);
    ask(&api, "/api/agents/b/limits", json!({"pids": 100})).await.expect(404);
    // After the admin raises its limit, the tenant can distribute it.
    ask(&api, "/api/tenants/acme/limits", json!({"memoryBytes": 4_u64 << 30})).await.expect(200);
    ask(&acme, &path, json!({"memoryBytes": 3_u64 << 30})).await.expect(200);
    let refused = ask(&acme, &path, json!({"memoryBytes": 5_u64 << 30})).await;
    assert!(refused.status == 400 && refused.text.contains("tenant's limit"), "{}", refused.text);
}

#[tokio::test]
async fn limits_outlive_a_kill_a_stop_and_a_fork() {
    let (mut daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    patch(&api, &format!("/api/sessions/{id}/limits"), json!({"memoryBytes": 300 * MIB})).await;
    daemon.kill9();
    daemon.restart();
    let api = daemon.api();
    assert_eq!(memory(&daemon, &id), 300 * MIB);
    patch(&api, &format!("/api/sessions/{id}/limits"), json!({"memoryBytes": 400 * MIB})).await;
    assert_eq!(memory(&daemon, &id), 400 * MIB);
    api.call("POST", &format!("/api/sessions/{id}/stop"), None).await.expect(200);
    // Changed while it has no process: applies from its next start.
    patch(&api, "/api/agents/a/limits", json!({"pids": 99})).await;
    api.call("POST", &format!("/api/sessions/{id}/resume"), None).await.expect(200);
    assert_eq!((memory(&daemon, &id), pids(&daemon, &id).as_str()), (400 * MIB, "99"));
    let fork = api.call("POST", &format!("/api/sessions/{id}/fork"), None).await.expect(201);
    let fork = fork["session"]["id"].as_str().unwrap().to_owned();
    api.call("POST", &format!("/api/sessions/{fork}/resume"), None).await.expect(200);
    assert_eq!(memory(&daemon, &fork), 400 * MIB);
}

#[tokio::test]
async fn looking_wakes_nothing() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let path = format!("/api/sessions/{id}/stats");
    api.turn(&id, "@alloc 50000000\n@busy 300ms\n@write /workspace/f 12345\n@text done").await;
    let stats = api.get(&path).await.expect(200)["stats"].clone();
    assert!(stats["memory"]["currentBytes"].as_u64().unwrap() > 50_000_000, "{stats}");
    assert!(stats["memory"]["peakBytes"].as_u64() >= stats["memory"]["unreclaimableBytes"].as_u64(), "{stats}");
    assert!(stats["cpu"]["usageUs"].as_u64().unwrap() > 50_000, "{stats}");
    assert!(stats["pids"]["current"].as_u64().unwrap() >= 2, "{stats}");
    assert_eq!(stats["limits"]["pids"], 512);

    api.call("POST", &format!("/api/sessions/{id}/pause"), None).await.expect(200);
    let events = || {
        let unified = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(PathBuf::from);
        let at = unified.into_iter().find(|at| at.join("cgroup.procs").exists()).unwrap();
        let at = at.join(&daemon.cgroup).join("tenants/default").join(&id);
        std::fs::read_to_string(at.join("cgroup.events")).unwrap()
    };
    let before = api.get(&path).await.expect(200)["stats"].clone();
    assert_eq!((&before["live"], &before["frozen"]), (&json!(true), &json!(true)));
    for _ in 0..5 {
        api.get(&path).await.expect(200);
        api.get(&format!("/api/sessions/{id}/limits")).await.expect(200);
        assert!(events().contains("frozen 1"));
    }
    // Setting limits does not wake it either.
    patch(&api, &format!("/api/sessions/{id}/limits"), json!({"pids": 77})).await;
    assert!(events().contains("frozen 1"));
    assert_eq!(pids(&daemon, &id), "77");
    let after = api.get(&path).await.expect(200)["stats"].clone();
    assert_eq!(before["cpu"]["usageUs"], after["cpu"]["usageUs"]);

    api.call("POST", &format!("/api/sessions/{id}/resume"), None).await.expect(200);
    api.call("POST", &format!("/api/sessions/{id}/stop"), None).await.expect(200);
    let cold = api.get(&path).await.expect(200)["stats"].clone();
    assert_eq!((&cold["live"], &cold["memory"]), (&json!(false), &Value::Null), "{cold}");
    assert!(cold["disk"]["files"].as_u64().unwrap() > 3, "{cold}");
    let metrics = api.get("/metrics").await.text;
    for name in [
        "ash_limited_total{reason=\"disk\"} 0",
        "ash_sandboxes_memory_bytes ",
        "ash_sandboxes_memory_peak_bytes ",
        "ash_sandboxes_stalled_seconds_total{resource=\"cpu\"} ",
        "ash_disk_free_bytes ",
    ] {
        assert!(metrics.contains(name), "{name}\n{metrics}");
    }
}

#[tokio::test]
async fn nothing_new_begins_on_a_full_disk() {
    let (mut daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    // The same disk with a daemon whose reserve exceeds the free space.
    daemon.terminate();
    let file = daemon.dir.join("ashd.toml");
    let config = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{config}\n[disk]\nreserve_bytes = '1000TiB'\n")).unwrap();
    daemon.restart();
    let api = daemon.api();
    let path = format!("/api/sessions/{id}");
    for (what, body) in [
        ("/api/sessions".to_owned(), json!({"agent": "a"})),
        (format!("{path}/messages"), json!({"content": "hello"})),
        (format!("{path}/fork"), json!({})),
        (format!("{path}/files"), json!({"files": [{"path": "f", "content": "aGVsbG8="}]})),
        ("/api/agents".to_owned(), json!({"name": "b", "files": [{"path": "CLAUDE.md", "content": "aGVsbG8="}]})),
    ] {
        let refused = api.post(&what, body).await;
        assert_eq!((refused.status, &refused.json["statusCode"]), (507, &json!(507)), "{what}: {}", refused.text);
        assert!(refused.text.contains("disk.reserve_bytes"), "{what}: {}", refused.text);
    }
    // Requests that only read, or free space, continue to work.
    api.get(&path).await.expect(200);
    api.delete(&path).await.expect(200);
}

#[tokio::test]
async fn ashctl_shows_and_sets() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let run = |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_ashctl"));
        command.args(args).env_clear().env("ASH_URL", format!("http://127.0.0.1:{}", daemon.port));
        let out = command.env("ASH_DATA_DIR", daemon.data()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (out.status.code(), text(&out.stdout), text(&out.stderr))
    };
    let (code, out, err) = run(&["limits", "set", "--session", &id, "memory=300MiB", "cpu=0.5", "turn=90s"]);
    assert_eq!(code, Some(0), "{err}");
    let line = out.lines().find(|line| line.trim_start().starts_with("memory")).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words, ["memory", "300MiB", "session", "300MiB", "yes"], "{out}");
    assert_eq!(memory(&daemon, &id), 300 * MIB);
    let (code, _, err) = run(&["limits", "set", "--agent", "a", "memory=64MiB", "pids=none"]);
    assert_eq!(code, Some(0), "{err}");
    let (_, out, _) = run(&["limits", "show", "--session", &id, "-o", "json"]);
    let shown: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(shown["limits"]["memoryBytes"]["decidedBy"], "agent");
    let (code, _, err) = run(&["limits", "set", "--session", &id, "memory=1TiB"]);
    assert!(code == Some(1) && err.contains("memoryBytes"), "{code:?} {err}");
    let (code, _, err) = run(&["limits", "set", "--session", &id, "memory=much"]);
    assert!(code == Some(2) && err.contains("expected 2GiB"), "{code:?} {err}");
    let (code, _, err) = run(&["limits", "show", "--agent", "nobody"]);
    assert!(code == Some(1) && err.contains("nobody"), "{code:?} {err}");
}
