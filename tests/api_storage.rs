//! The storage limit of a tenant covers files and database, and every write checks the disk's
//! reserve.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::api::text;
use common::{Api, Daemon, MIB, Options};
use serde_json::{Value, json};

async fn tenant(admin: &Api, name: &str) -> Api {
    let made = admin.post("/api/internal/api-keys", json!({"label": "l", "tenantId": name})).await.expect(201);
    let api = admin.with_key(made["key"].as_str());
    api.deploy("a").await;
    api
}

async fn may_store(admin: &Api, name: &str, bytes: Option<u64>) -> Value {
    let body = json!({"storageBytes": bytes});
    admin.call("PATCH", &format!("/api/tenants/{name}/limits"), Some(body)).await.expect(200)
}

/// `storageBytes` as the tenant sees it.
async fn storage(api: &Api) -> Value {
    api.get("/api/tenant/limits").await.expect(200)["limits"]["storageBytes"].clone()
}

fn attachment(bytes: u64) -> Value {
    json!({"filename": "x", "content": STANDARD.encode(vec![b'x'; usize::try_from(bytes).unwrap()])})
}

fn database(daemon: &Daemon) -> u64 {
    let size = |name: &str| std::fs::metadata(daemon.data().join(name)).map_or(0, |meta| meta.len());
    size("ashd.db") + size("ashd.db-wal")
}

async fn within(most: Duration, what: &str, is: impl AsyncFn() -> bool) {
    let start = Instant::now();
    while !is().await {
        assert!(start.elapsed() < common::patience::patient(most), "{what}: not within {most:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn at_its_bound_a_tenant_stores_nothing_more_and_its_neighbour_does() {
    let (mut daemon, admin) = Daemon::deployed(Options::default()).await;
    let [acme, other] = [tenant(&admin, "acme").await, tenant(&admin, "other").await];
    let id = acme.session("a").await;
    let path = format!("/api/sessions/{id}");
    assert_eq!(storage(&acme).await["value"], json!(10_u64 << 30));
    acme.call("PATCH", "/api/tenant/limits", Some(json!({"storageBytes": 1 << 20}))).await.expect(403);
    let wrong = admin.call("PATCH", "/api/tenants/acme/limits", Some(json!({"storageBytes": "1", "pids": 99}))).await;
    wrong.expect(400);
    assert_eq!(storage(&acme).await["set"], json!(null), "bad input changes nothing");
    may_store(&admin, "acme", Some(8 * MIB)).await;
    let (mut stored, mut refused) = (0, None);
    while refused.is_none() {
        let made = acme.post(&format!("{path}/attachments"), attachment(MIB)).await;
        match made.status {
            201 => stored += 1,
            _ => refused = Some(made),
        }
        assert!(stored < 9);
    }
    let refused = refused.unwrap();
    let words = "tenant storage limit exceeded (";
    assert!(refused.text.contains(words) && refused.text.contains("of 8 MiB)"), "{}", refused.text);
    refused.expect(507);
    // Each is stored twice: the original and the copy in the workspace.
    assert!(stored >= 3, "{stored}");

    let said = storage(&acme).await;
    let (files, rows) = (said["split"]["files"].as_u64().unwrap(), said["split"]["database"].as_u64().unwrap());
    assert!(files >= 2 * stored * MIB && rows > 0 && said["used"] == json!(files + rows), "{said}");
    assert_eq!((&said["value"], &said["decidedBy"]), (&json!(8 * MIB), &json!("tenant")));
    may_store(&admin, "acme", Some(files)).await;
    let version = json!({"systemPrompt": "x"});
    let files_of = json!({"files": [{"path": "CLAUDE.md", "content": "aGVsbG8="}]});
    let writes = [
        ("/api/sessions".to_owned(), json!({"agent": "a"})),
        (format!("{path}/messages"), json!({"content": "@text no"})),
        (format!("{path}/fork"), json!({})),
        (format!("{path}/files"), json!({"files": [{"path": "f", "content": "aGVsbG8="}]})),
        (format!("{path}/attachments"), attachment(1)),
        ("/api/agents/a/versions".to_owned(), version),
        ("/api/agents/a/files".to_owned(), files_of),
        ("/api/queue".to_owned(), json!({"agentName": "a", "prompt": "@text no"})),
        ("/api/api-keys".to_owned(), json!({"label": "l"})),
        ("/api/credentials".to_owned(), json!({"type": "anthropic", "key": "k"})),
    ];
    for (what, body) in &writes {
        let refused = acme.post(what, body.clone()).await;
        assert!(refused.text.contains(words), "{what}: {}", refused.text);
        assert_eq!(refused.status, 507, "{what}");
    }
    assert_eq!(acme.get(&format!("{path}/messages")).await.expect(200)["messages"], json!([]), "nothing was written");
    // Other tenants and the admin are not affected.
    let theirs = other.session("a").await;
    assert_eq!(text(&other.turn(&theirs, "@text hello").await), "hello");
    other.post(&format!("/api/sessions/{theirs}/attachments"), attachment(MIB)).await.expect(201);
    admin.session("a").await;

    // The use is known after a crash, before the next measurement.
    daemon.kill9();
    daemon.restart();
    let [acme, admin] = [&acme, &admin].map(|api| api.at(daemon.port));
    acme.post("/api/queue", writes[7].1.clone()).await.expect(507);
    // Deleting frees storage at once.
    let listed = acme.get(&format!("{path}/attachments")).await.expect(200);
    let one = listed["attachments"][0]["id"].as_str().unwrap();
    acme.delete(&format!("/api/attachments/{one}")).await.expect(204);
    acme.post("/api/api-keys", json!({"label": "l"})).await.expect(201);
    may_store(&admin, "acme", Some(20 * MIB)).await;
    let second = acme.session("a").await;
    acme.delete(&format!("{path}?purge=true")).await.expect(200);
    acme.get(&path).await.expect(404);
    assert!(!daemon.data().join("sessions").join(&id).exists());
    assert!(storage(&acme).await["used"].as_u64().unwrap() < 2 * MIB, "{}", storage(&acme).await);
    assert_eq!(text(&acme.turn(&second, "@text again").await), "again");
    may_store(&admin, "acme", None).await;
    assert_eq!(storage(&acme).await["decidedBy"], "config");
}

#[tokio::test]
async fn attachments_count_for_the_disk_of_their_session() {
    let (_daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let path = format!("/api/sessions/{id}");
    api.call("PATCH", &format!("{path}/limits"), Some(json!({"diskBytes": 8 * MIB}))).await.expect(200);
    let mut stored = 0;
    let refused = loop {
        let made = api.post(&format!("{path}/attachments"), attachment(2 * MIB)).await;
        if made.status != 201 {
            break made;
        }
        stored += 1;
        assert!(stored < 4, "more than the session may have on the disk");
    };
    assert!(refused.text.contains("diskBytes"), "{}", refused.text);
    refused.expect(507);
    assert!(stored > 0);
}

#[tokio::test]
async fn what_a_payload_prints_is_bounded_in_the_database_and_whole_in_the_stream() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let before = database(&daemon);
    for _ in 0..2 {
        let frames = api.turn(&id, "@huge 12000000").await;
        let line = frames
            .iter()
            .filter(|f| f.event == "message" && f.data["type"] == "assistant")
            .max_by_key(|f| f.data.to_string().len());
        assert!(line.unwrap().data.to_string().len() > 12_000_000, "the stream has all of it");
    }
    let path = format!("/api/sessions/{id}/messages");
    let listed = api.get(&path).await.expect(200);
    let stub = |message: &Value| -> Value { serde_json::from_str(message["content"].as_str().unwrap()).unwrap() };
    let stubs: Vec<Value> =
        listed["messages"].as_array().unwrap().iter().map(stub).filter(|m| m["omitted"].is_object()).collect();
    assert!(stubs.len() >= 2, "{stubs:?}");
    assert!(stubs[0]["omitted"]["bytes"].as_u64().unwrap() > 12_000_000, "{}", stubs[0]);
    let grew = database(&daemon).saturating_sub(before);
    assert!(grew < 12 * MIB, "24 MB of output made {grew} bytes of database");
    // Its result can still be read, as far as it exists.
    let events = api.get(&format!("/api/sessions/{id}/events?type=turn_complete")).await.expect(200);
    assert!(!events["events"].as_array().unwrap().is_empty());
    assert_eq!(text(&api.turn(&id, "@text fine").await), "fine");
}

#[tokio::test]
async fn a_turn_that_fills_the_history_is_interrupted_with_the_cause() {
    let (daemon, admin) = Daemon::deployed(Options::default()).await;
    let [acme, other] = [tenant(&admin, "acme").await, tenant(&admin, "other").await];
    let id = acme.session("a").await;
    may_store(&admin, "acme", Some(16 * MIB)).await;
    let before = database(&daemon);
    let chatter = format!("{}@wait 60s", "@huge 3000000\n".repeat(8));
    let frames = acme.turn(&id, &chatter).await;
    assert_eq!(frames.last().unwrap().event, "done");
    let cause = acme.cause(&id, "limited", "storage").await;
    assert_eq!((&cause["limit"], &cause["value"]), (&json!("storageBytes"), &json!(16 * MIB)), "{cause}");
    let grew = database(&daemon).saturating_sub(before);
    assert!(grew < 64 * MIB, "{grew}");
    let said = frames
        .iter()
        .filter(|f| f.event == "error")
        .any(|f| f.data.to_string().contains("tenant storage limit exceeded"));
    assert!(said, "the readers of the turn are told");
    let rows = storage(&acme).await["split"]["database"].as_u64().unwrap();
    assert!(rows < 28 * MIB, "{rows}");
    acme.post(&format!("/api/sessions/{id}/messages"), json!({"content": "@text no"})).await.expect(507);
    let theirs = other.session("a").await;
    assert_eq!(text(&other.turn(&theirs, "@text hello").await), "hello");
}

#[tokio::test]
async fn sessions_that_fill_the_disk_together_are_paused_at_their_tenants_bound() {
    let (_daemon, admin) = Daemon::deployed(Options::default()).await;
    let [acme, other] = [tenant(&admin, "acme").await, tenant(&admin, "other").await];
    may_store(&admin, "acme", Some(24 * MIB)).await;
    let ids = [acme.session("a").await, acme.session("a").await];
    let fill = format!(
        "@tool Bash {}",
        json!({"command": "for i in $(seq 200); do head -c 1048576 /dev/urandom > f$i || exit; sleep 0.1; done"})
    );
    let turns = ids.clone().map(|id| {
        let (acme, fill) = (acme.clone(), fill.clone());
        tokio::spawn(async move { acme.turn(&id, &fill).await })
    });
    for turn in turns {
        turn.await.unwrap();
    }
    let mut held = Vec::new();
    for id in &ids {
        let info = acme.info(id).await;
        if info["status"] == "paused" {
            held.push(id.clone());
        }
    }
    assert!(!held.is_empty(), "both write on");
    let cause = acme.cause(&held[0], "limited", "storage").await;
    assert_eq!(cause["limit"], "storageBytes", "{cause}");
    let used = storage(&acme).await["used"].as_u64().unwrap();
    assert!(used < 60 * MIB, "{used}");
    let path = format!("/api/sessions/{}", held[0]);
    let refused = acme.call("POST", &format!("{path}/resume"), None).await;
    assert!(refused.text.contains("tenant storage limit exceeded"), "{}", refused.text);
    refused.expect(507);
    // The other tenant can write; after the limit is raised, the session continues by itself.
    let theirs = other.session("a").await;
    let write = json!({"command": "head -c 12000000 /dev/urandom > big; ls"});
    other.post(&format!("/api/sessions/{theirs}/exec"), write).await.expect(200);
    assert_eq!(other.info(&theirs).await["status"], "active");
    may_store(&admin, "acme", Some(400 * MIB)).await;
    within(Duration::from_secs(5), "continues", async || acme.info(&held[0]).await["status"] == "active").await;
    let file = json!({"files": [{"path": "f", "content": "aGVsbG8="}]});
    acme.post(&format!("{path}/files"), file).await.expect(200);
}

/// Changes allowed when the disk's reserve is reached, with the reason.
const LET_THROUGH: &[(&str, &str)] = &[
    ("/api/sessions/{id}/pause", "frees memory"),
    ("/api/sessions/{id}/stop", "frees memory"),
    ("/api/sessions/{id}/interrupt", "ends what writes"),
    ("/api/sessions/{id}/resume", "brings back what is stored already"),
    ("/api/sessions/{id}/exec", "rm"),
    ("/api/sessions/{id}/limits", "a way out"),
    ("/api/agents/{name}/limits", "a way out"),
    ("/api/tenant/limits", "a way out"),
    ("/api/tenants/{id}/limits", "a way out"),
    ("/api/agents/{name}/warm", "a way out"),
];

#[tokio::test]
async fn every_route_that_stores_something_looks_at_the_reserve_of_the_disk() {
    let (daemon, api) = Daemon::deployed(Options::default().disk("64m")).await;
    let id = api.session("a").await;
    api.post("/api/agents/a/versions", json!({"systemPrompt": "x"})).await.expect(201);
    // Leaves 2 MiB; the reserve is a twentieth of the disk.
    let filler = daemon.data().join("filler");
    let free = || rustix::fs::statvfs(daemon.data().as_path()).map(|vfs| vfs.f_bavail * vfs.f_frsize).unwrap();
    std::fs::write(&filler, vec![1; usize::try_from(free() - 2 * MIB).unwrap()]).unwrap();
    let routes = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/http_routes.txt")).unwrap();
    let mut gated = 0;
    for line in routes.lines() {
        let (method, route) = line.split_once(' ').unwrap();
        if matches!(method, "GET" | "DELETE") {
            continue;
        }
        let path = route
            .replace("/sessions/{id}", &format!("/sessions/{id}"))
            .replace("/tenants/{id}", "/tenants/default")
            .replace("{name}", "a")
            .replace("{number}", "1")
            .replace("{id}", &id);
        assert!(!path.contains('{'), "{path}");
        let answer = api.call(method, &path, Some(json!({}))).await;
        if LET_THROUGH.iter().any(|(through, _)| *through == route) {
            assert_ne!(answer.status, 507, "{line}: {}", answer.text);
        } else {
            assert_eq!(answer.status, 507, "{line}: {}", answer.text);
            assert!(answer.text.contains("disk.reserve_bytes"), "{line}: {}", answer.text);
            gated += 1;
        }
    }
    assert!(gated >= 15, "{gated}");
    // A message with an idempotency key is refused too, and its key stays free.
    api.call("POST", &format!("/api/sessions/{id}/resume"), None).await.expect(200);
    let once = async |text: &str| {
        let body = json!({"content": text}).to_string();
        api.with_header("idempotency-key", "k1")
            .call_raw("POST", &format!("/api/sessions/{id}/messages"), Some(("application/json", body.into_bytes())))
            .await
    };
    let refused = once("@text hello").await;
    assert!(refused.text.contains("disk.reserve_bytes"), "{}", refused.text);
    refused.expect(507);
    assert_eq!(api.get(&format!("/api/sessions/{id}/messages")).await.expect(200)["messages"], json!([]));
    std::fs::remove_file(&filler).unwrap();
    assert!(once("@text hello").await.text.contains("event: done"));
}

#[tokio::test]
async fn keys_have_a_number() {
    let (_daemon, admin) = Daemon::deployed(Options::default()).await;
    let acme = tenant(&admin, "acme").await;
    let made: Vec<_> = (0..20)
        .map(|_| {
            let acme = acme.clone();
            tokio::spawn(async move {
                let mut made = 0;
                for _ in 0..50 {
                    made += u32::from(acme.post("/api/api-keys", json!({"label": "l"})).await.status == 201);
                }
                made
            })
        })
        .collect();
    let mut all = 0;
    for task in made {
        all += task.await.unwrap();
    }
    assert_eq!(all, 999, "with the one it began with");
    let refused = acme.post("/api/api-keys", json!({"label": "l"})).await;
    assert!(refused.text.contains("limit reached: 1000 API keys of the tenant"), "{}", refused.text);
    refused.expect(409);
    let first = acme.get("/api/api-keys").await.expect(200)["keys"][1]["id"].as_str().unwrap().to_owned();
    acme.delete(&format!("/api/api-keys/{first}")).await.expect(204);
    acme.post("/api/api-keys", json!({"label": "l"})).await.expect(201);
    admin.post("/api/api-keys", json!({"label": "l"})).await.expect(201);
}
