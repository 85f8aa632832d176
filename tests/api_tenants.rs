//! Removal of a tenant with sessions in every state and running requests.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::api::text;
use common::{Api, Daemon, Options, leftovers};
use serde_json::{Value, json};

async fn tenant(admin: &Api, name: &str) -> Api {
    let made = admin.post("/api/internal/api-keys", json!({"label": "l", "tenantId": name})).await.expect(201);
    admin.with_key(made["key"].as_str())
}

/// Names that ashd created below a directory of the data directory.
fn names(daemon: &Daemon, below: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(daemon.data().join(below)) else { return Vec::new() };
    let mut all: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    all.sort();
    all
}

async fn furnish(api: &Api) {
    api.deploy("a").await;
    for (state, verb) in [("paused", "pause"), ("stopped", "stop")] {
        let id = api.session("a").await;
        api.turn(&id, "@text hello\n@write f.txt words").await;
        assert_eq!(api.verb(&id, verb).await, state);
        api.post(&format!("/api/sessions/{id}/fork"), json!({})).await.expect(201);
    }
    let ended = api.session("a").await;
    api.delete(&format!("/api/sessions/{ended}")).await.expect(200);
    let failed = api.session("a").await;
    api.turn(&failed, "@kill").await;
    let idle = api.session("a").await;
    let attachment = json!({"filename": "x", "content": "eA=="});
    api.post(&format!("/api/sessions/{idle}/attachments"), attachment).await.expect(201);
    let limits = json!({"pids": 200});
    api.call("PATCH", &format!("/api/sessions/{idle}/limits"), Some(limits.clone())).await.expect(200);
    api.call("PATCH", "/api/agents/a/limits", Some(limits)).await.expect(200);
    api.post("/api/credentials", json!({"type": "anthropic", "key": "sk-ant-x", "label": "c"})).await.expect(201);
    api.post("/api/agents/a/eval-cases", json!({"question": "q"})).await.expect(201);
}

#[tokio::test]
async fn a_tenant_goes_with_everything_it_has_and_nothing_else_does() {
    let (daemon, admin) = Daemon::deployed(Options::default()).await;
    let [acme, other] = [tenant(&admin, "acme").await, tenant(&admin, "other").await];
    other.deploy("a").await;
    let kept = other.session("a").await;
    other.turn(&kept, "@text kept").await;
    furnish(&acme).await;
    // A running turn with a reader, and a queued prompt that waits for its end.
    let busy = acme.session("a").await;
    let (stream, _) = acme.waiting_turn(&busy).await;
    acme.post("/api/queue", json!({"agentName": "a", "prompt": "@text begun\n@wait 60s"})).await.expect(201);
    let used = acme.get("/api/usage/stats").await.expect(200);
    assert_ne!(used["stats"]["totalMessages"], json!(0), "{used}");

    let start = Instant::now();
    let gone = admin.delete("/api/tenants/acme").await.expect(200);
    assert!(start.elapsed() < crate::common::patience::patient(Duration::from_secs(20)), "{:?}", start.elapsed());
    assert_eq!((&gone["deleted"]["keys"], &gone["deleted"]["agents"]), (&json!(1), &json!(1)));
    // Eight created here, and possibly one of the queue.
    assert!(gone["deleted"]["sessions"].as_u64().is_some_and(|n| n == 8 || n == 9), "{gone}");
    stream.rest().await;

    acme.get("/api/sessions").await.expect(401);
    assert_eq!(names(&daemon, "sessions"), std::slice::from_ref(&kept), "only the other tenant's files are left");
    assert!(!names(&daemon, "agents").contains(&"acme".to_owned()));
    assert!(text(&other.turn(&kept, "@recall").await).contains("kept"));
    assert_eq!(other.info(&kept).await["status"], "active");
    let health = admin.get("/health").await.expect(200);
    assert_eq!((&health["activeSessions"], &health["pool"]["total"]), (&json!(1), &json!(1)), "{health}");
    let acmes = |path: &std::path::PathBuf| path.components().any(|part| part.as_os_str() == "acme");
    let left: Vec<_> = leftovers::cgroups(&daemon.cgroup).into_iter().filter(acmes).collect();
    assert!(left.is_empty(), "{left:?}");
    admin.delete("/api/tenants/acme").await.expect(404);

    // The name can be used again; the record of usage stays.
    let again = tenant(&admin, "acme").await;
    for (path, field) in
        [("sessions", "sessions"), ("agents", "agents"), ("credentials", "credentials"), ("queue", "items")]
    {
        assert_eq!(again.get(&format!("/api/{path}")).await.expect(200)[field], json!([]), "{path}");
    }
    again.deploy("a").await;
    assert_eq!(again.get("/api/agents/a/eval-cases").await.expect(200)["cases"], json!([]));
    let limits = again.get("/api/agents/a/limits").await.expect(200);
    assert_eq!(limits["limits"]["pids"]["value"], json!(512), "{limits}");
    assert_eq!(again.get("/api/usage/stats").await.expect(200), used);
}

#[tokio::test]
async fn deleting_a_tenant_while_its_clients_go_on_wedges_nobody() {
    let (daemon, admin) = Daemon::deployed(Options::default().env("ASH_MAX_SANDBOXES", "6")).await;
    for _ in 0..3 {
        let acme = tenant(&admin, "acme").await;
        acme.deploy("a").await;
        let (over, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let clients: Vec<_> = (0..4)
            .map(|n| {
                let (acme, over, done) = (acme.clone(), Arc::clone(&over), Arc::clone(&done));
                tokio::spawn(async move {
                    let mut statuses = Vec::new();
                    while !over.load(Ordering::Relaxed) {
                        let made = acme.post("/api/sessions", json!({"agent": "a"})).await;
                        statuses.push(made.status);
                        done.fetch_add(usize::from(made.status == 201), Ordering::Relaxed);
                        let id = made.json["session"]["id"].as_str().unwrap_or_default().to_owned();
                        for verb in [&["pause", "fork", "resume"][..], &["stop", "resume"], &["fork", "pause"]][n % 3] {
                            statuses.push(acme.call("POST", &format!("/api/sessions/{id}/{verb}"), None).await.status);
                        }
                        let message = json!({"content": "@text x\n@wait 30s"});
                        if n == 3 {
                            let body = ("application/json", message.to_string().into_bytes());
                            drop(acme.open("POST", &format!("/api/sessions/{id}/messages"), Some(body)).await);
                        }
                        statuses.push(acme.delete("/api/agents/none").await.status);
                    }
                    statuses
                })
            })
            .collect();
        let start = Instant::now();
        while done.load(Ordering::Relaxed) < 6 {
            assert!(start.elapsed() < crate::common::patience::patient(Duration::from_secs(60)), "no sessions");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let start = Instant::now();
        admin.delete("/api/tenants/acme").await.expect(200);
        assert!(start.elapsed() < crate::common::patience::patient(Duration::from_secs(30)), "{:?}", start.elapsed());
        over.store(true, Ordering::Relaxed);
        for client in clients {
            let statuses = client.await.unwrap();
            assert!(statuses.last() == Some(&401) && !statuses.contains(&500), "{statuses:?}");
        }
        assert_eq!(names(&daemon, "sessions"), [""; 0]);
        let health = admin.get("/health").await.expect(200);
        assert_eq!((&health["activeSessions"], &health["pool"]["total"]), (&json!(0), &json!(0)), "{health}");
    }
}

#[tokio::test]
async fn a_deletion_that_was_cut_short_is_finished_by_asking_again() {
    let (mut daemon, admin) = Daemon::deployed(Options::default()).await;
    let acme = tenant(&admin, "acme").await;
    furnish(&acme).await;
    let asked = tokio::spawn(async move { admin.try_call("DELETE", "/api/tenants/acme").await });
    tokio::time::sleep(Duration::from_millis(60)).await;
    daemon.kill9();
    let cut = asked.await.unwrap();
    daemon.restart();
    let admin = daemon.api();
    let gone = admin.delete("/api/tenants/acme").await;
    // If the deletion was over before the kill, with or without its answer, the tenant no longer exists.
    let over = cut.is_none_or(|answer| answer.status == 200);
    assert!(gone.status == 200 || (gone.status == 404 && over), "{} {}", gone.status, gone.text);
    assert_eq!(names(&daemon, "sessions"), [""; 0]);
    daemon.api().with_key(acme.key()).get("/api/sessions").await.expect(401);
}

#[tokio::test]
async fn who_may_not_delete_a_tenant_is_told_why() {
    let (_daemon, admin) = Daemon::deployed(Options::default()).await;
    let acme = tenant(&admin, "acme").await;
    let said = |answer: Value| answer["error"].as_str().unwrap().to_owned();
    assert!(said(admin.delete("/api/tenants/default").await.expect(400)).contains("default tenant"));
    assert!(said(acme.delete("/api/tenants/acme").await.expect(403)).contains("admin"));
    assert!(said(acme.delete("/api/tenants/other").await.expect(403)).contains("admin"));
    assert_eq!(said(admin.delete("/api/tenants/nobody").await.expect(404)), "Tenant \"nobody\" not found");
    admin.delete("/api/tenants/a..b").await.expect(400);
    acme.get("/api/sessions").await.expect(200);
}

#[tokio::test]
async fn what_is_parked_for_a_tenant_goes_with_it() {
    let daemon = Daemon::start(Options::default().parked(1));
    let admin = daemon.api();
    let acme = tenant(&admin, "acme").await;
    acme.deploy("a").await;
    let session = acme.session("a").await;
    // The session's own group, and a parked one where the tenant's next session would start.
    let groups = || {
        let all = leftovers::cgroups(&daemon.cgroup);
        let mut ids: Vec<_> =
            all.iter().filter(|dir| dir.parent().is_some_and(|above| above.ends_with("tenants/acme"))).collect();
        ids.sort_by_key(|dir| dir.file_name());
        ids.dedup_by_key(|dir| dir.file_name());
        ids.len()
    };
    let start = Instant::now();
    while groups() < 2 {
        assert!(
            start.elapsed() < crate::common::patience::patient(Duration::from_secs(20)),
            "nothing is parked for the tenant\n{}",
            daemon.logs()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    admin.delete("/api/tenants/acme").await.expect(200);
    assert_eq!(groups(), 0, "{}", daemon.logs());
    assert!(!names(&daemon, "sessions").contains(&session));
}
