//! Shares of sandboxes per tenant: the largest holder is evicted first, and running turns never.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::api::text;
use common::patience::patient;
use common::{Api, Daemon, Options};
use serde_json::json;

async fn tenant(admin: &Api, name: &str) -> Api {
    let made = admin.post("/api/internal/api-keys", json!({"label": "l", "tenantId": name})).await.expect(201);
    let api = admin.with_key(made["key"].as_str());
    api.deploy("a").await;
    api
}

async fn statuses(api: &Api, ids: &[String]) -> Vec<String> {
    let mut all = Vec::new();
    for id in ids {
        all.push(api.info(id).await["status"].as_str().unwrap().to_owned());
    }
    all
}

#[tokio::test]
async fn a_tenant_that_holds_everything_gives_way_within_five_seconds() {
    let (_daemon, admin) = Daemon::deployed(Options::default().env("ASH_MAX_SANDBOXES", "3")).await;
    let [acme, other] = [tenant(&admin, "acme").await, tenant(&admin, "other").await];
    let mut ids = Vec::new();
    for n in 0..3 {
        ids.push(acme.session("a").await);
        acme.turn(&ids[n], "remember me").await;
    }
    let start = Instant::now();
    let id = other.session("a").await;
    assert!(start.elapsed() < patient(Duration::from_secs(5)), "{:?}", start.elapsed());
    assert_eq!(text(&other.turn(&id, "@text hello").await), "hello");
    // The session idle for longest is evicted, and has the reason.
    assert_eq!(statuses(&acme, &ids).await, ["paused", "active", "active"]);
    let last = acme.lifecycle(&ids[0]).await.last().unwrap().clone();
    assert_eq!((&last["action"], &last["reason"]), (&json!("paused"), &json!("evicted")));
    assert_eq!(text(&acme.turn(&ids[1], "@text still here").await), "still here");
    // Two and one is a fair share: neither tenant evicts the other's.
    acme.call("POST", &format!("/api/sessions/{}/resume", ids[0]), None).await.expect(503);
    assert_eq!(other.info(&id).await["status"], "active");
    other.delete(&format!("/api/sessions/{id}")).await.expect(200);
    assert_eq!(acme.verb(&ids[0], "resume").await, "active");
    assert_eq!(text(&acme.turn(&ids[0], "@recall").await), "remember me");
}

#[tokio::test]
async fn turns_are_not_hurt_and_what_comes_free_goes_to_whoever_holds_least() {
    let (_daemon, admin) = Daemon::deployed(Options::default().env("ASH_MAX_SANDBOXES", "3")).await;
    let [acme, other] = [tenant(&admin, "acme").await, tenant(&admin, "other").await];
    let (mut ids, mut streams) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let id = acme.session("a").await;
        streams.push(acme.waiting_turn(&id).await.0);
        ids.push(id);
    }
    let start = Instant::now();
    let refused = other.post("/api/sessions", json!({"agent": "a"})).await;
    assert!(start.elapsed() < patient(Duration::from_secs(6)), "{:?}", start.elapsed());
    assert_eq!(refused.headers["retry-after"], "5");
    assert!(refused.text.contains("no sandbox of another tenant can be evicted"), "{}", refused.text);
    refused.expect(503);
    assert_eq!(statuses(&acme, &ids).await, ["active"; 3], "no turn was hurt");
    // A free place is kept for the smaller holder, although the larger asks first.
    acme.delete(&format!("/api/sessions/{}", ids[0])).await.expect(200);
    acme.post("/api/sessions", json!({"agent": "a"})).await.expect(503);
    let id = other.session("a").await;
    assert_eq!(text(&other.turn(&id, "@text mine").await), "mine");
    for (id, stream) in ids.iter().zip(streams).skip(1) {
        acme.call("POST", &format!("/api/sessions/{id}/interrupt"), None).await.expect(200);
        assert_eq!(stream.rest().await.last().unwrap().event, "done");
    }
}

#[tokio::test]
async fn commands_and_background_work_are_not_given_up() {
    let (_daemon, admin) = Daemon::deployed(Options::default().env("ASH_MAX_SANDBOXES", "2")).await;
    let [acme, other] = [tenant(&admin, "acme").await, tenant(&admin, "other").await];
    let ids = [acme.session("a").await, acme.session("a").await];
    acme.turn(&ids[0], "@fork 1").await;
    let command = {
        let (acme, id) = (acme.clone(), ids[1].clone());
        let body = json!({"command": "sleep 8; echo done", "timeout": 60_000});
        tokio::spawn(async move { acme.post(&format!("/api/sessions/{id}/exec"), body).await })
    };
    tokio::time::sleep(Duration::from_secs(1)).await;
    other.post("/api/sessions", json!({"agent": "a"})).await.expect(503);
    assert_eq!(statuses(&acme, &ids).await, ["active"; 2]);
    assert_eq!(command.await.unwrap().expect(200)["stdout"], "done\n");
    // The command has ended and its session is idle: now it can be evicted.
    let id = other.session("a").await;
    assert_eq!(text(&other.turn(&id, "@text mine").await), "mine");
    assert_eq!(statuses(&acme, &ids).await, ["active", "paused"]);
}

#[tokio::test]
async fn one_tenant_has_no_more_than_its_maximum() {
    let options = Options::default().config("[pool]\nmax_sandboxes_per_tenant = 2");
    let (_daemon, admin) = Daemon::deployed(options).await;
    let [acme, other] = [tenant(&admin, "acme").await, tenant(&admin, "other").await];
    let ids = [acme.session("a").await, acme.session("a").await];
    let refused = acme.post("/api/sessions", json!({"agent": "a"})).await;
    assert!(refused.text.contains("limit of 2 sandboxes (pool.max_sandboxes_per_tenant)"), "{}", refused.text);
    assert!(refused.headers.contains_key("retry-after"));
    refused.expect(503);
    let limits = acme.get("/api/tenant/limits").await.expect(200);
    let sandboxes = &limits["limits"]["sandboxes"];
    assert_eq!((&sandboxes["value"], &sandboxes["used"]), (&json!(2), &json!(2)), "{limits}");
    other.session("a").await;
    // The tenant's own paused session is evicted for its next one.
    acme.verb(&ids[0], "pause").await;
    acme.session("a").await;
    assert_eq!(acme.lifecycle(&ids[0]).await.last().unwrap()["reason"], "evicted");
}

/// The session's task copies many files. No request waits for the place of its sandbox meanwhile.
#[tokio::test]
async fn a_session_that_is_being_copied_keeps_no_other_tenant_waiting() {
    let (daemon, admin) = Daemon::deployed(Options::default().env("ASH_MAX_SANDBOXES", "2")).await;
    let [acme, other] = [tenant(&admin, "acme").await, tenant(&admin, "other").await];
    let (copied, busy) = (acme.session("a").await, acme.session("a").await);
    let files = "for d in $(seq 90); do mkdir d$d; (cd d$d; seq 1000 | xargs touch); done; ls | wc -l";
    acme.turn(&copied, &format!("@tool Bash {}\n@text made", json!({ "command": files }))).await;
    let (_turn, _) = acme.waiting_turn(&busy).await;
    let fork = tokio::spawn({
        let (acme, path) = (acme.clone(), format!("/api/sessions/{copied}/fork"));
        async move { acme.call("POST", &path, None).await.status }
    });
    // Enough files to show that the copy has begun.
    let sessions = daemon.data().join("sessions");
    let copies = || std::fs::read_dir(&sessions).unwrap().count() > 2;
    assert!(common::raw::comes(Duration::from_secs(30), copies).await, "no copy");
    let start = Instant::now();
    let mut answers = Vec::new();
    while !fork.is_finished() {
        let asked = Instant::now();
        let answer = other.post("/api/sessions", json!({"agent": "a"})).await;
        answers.push((answer.status, asked.elapsed()));
        if answer.status == 201 {
            break;
        }
    }
    assert!(answers.iter().all(|(_, took)| *took < patient(Duration::from_secs(6))), "{answers:?}");
    println!("{answers:?} in {:?}", start.elapsed());
    assert_eq!(fork.await.unwrap(), 201);
}
