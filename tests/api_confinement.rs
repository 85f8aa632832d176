//! Confinement as clients see it: measured at each start, reported on demand, with a required
//! minimum for a start.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Api, Daemon, Options};
use serde_json::{Value, json};

async fn report(api: &Api, id: &str) -> Value {
    let body = api.get(&format!("/api/sessions/{id}/confinement")).await.expect(200);
    body["confinement"].clone()
}

#[tokio::test]
async fn a_session_tells_what_was_measured_of_it() {
    let (daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let report = report(&api, &id).await;
    assert_eq!(report["confined"], true, "{report:#}");
    for layer in report["layers"].as_array().unwrap() {
        assert_eq!(layer["inForce"], true, "{layer:#}");
    }
    let inside = &report["inside"];
    let failed: Vec<&Value> = inside["probes"].as_array().unwrap().iter().filter(|probe| probe["ok"] != true).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert!(inside["probes"].as_array().unwrap().len() >= 60);
    assert_eq!(inside["uid"], 1000);
    assert_eq!(inside["interfaces"], json!(["lo"]));
    // A listener that never accepts would block its clients.
    assert_eq!(inside["listeners"], json!(["127.0.0.1:4180"]));
    // Compared with the namespaces of the test's process: none is the host's.
    for (name, inode) in inside["namespaces"].as_object().unwrap() {
        let host = std::fs::metadata(format!("/proc/self/ns/{name}")).map(|m| std::os::unix::fs::MetadataExt::ino(&m));
        if name != "time" {
            assert_ne!(inode.as_u64(), host.ok(), "{name}");
        }
    }
    let limit = |name: &str| {
        let limits = report["outside"]["limits"].as_array().unwrap();
        limits.iter().find(|limit| limit["name"] == name).cloned().unwrap_or_default()
    };
    assert_eq!(limit("memoryBytes")["value"], 2_u64 << 30);
    assert_eq!(limit("pids")["value"], 512);
    assert_eq!(limit("cpuMillis")["value"], 1000);
    let ctl = std::process::Command::new(env!("CARGO_BIN_EXE_ashctl"))
        .args([
            "session",
            "confinement",
            &id,
            "--url",
            &format!("http://127.0.0.1:{}", daemon.port),
            "--key",
            &daemon.key,
        ])
        .output()
        .expect("ashctl runs");
    let table = String::from_utf8_lossy(&ctl.stdout);
    assert!(ctl.status.success() && table.contains("landlock") && table.contains("ABI"), "{table}");
    // The target is 10 ms on a quiet machine; this bound catches only gross errors.
    assert!(report["tookMicros"].as_u64().unwrap() < 2_000_000, "{}", report["tookMicros"]);
    println!("the probe took {} us, {} us of it inside", report["tookMicros"], inside["micros"]);
}

#[tokio::test]
async fn an_awake_session_is_measured_again_and_not_at_every_call() {
    let (_daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let first = report(&api, &id).await;
    let asked = std::time::Instant::now();
    let second = report(&api, &id).await;
    if asked.elapsed() < std::time::Duration::from_millis(500) {
        assert_eq!(first["measuredAt"], second["measuredAt"], "not twice within a second");
    }
    // A background command keeps it awake.
    api.turn(&id, r#"@tool Bash {"command": "setsid sleep 60 >/dev/null 2>&1 </dev/null &"}"#).await;
    tokio::time::sleep(std::time::Duration::from_millis(1200)).await;
    let (id, all) = (&id, (0..8).map(|_| report(&api, &id)));
    for answer in futures_util::future::join_all(all).await {
        assert_eq!(answer["confined"], true, "{id}: {answer:#}");
    }
    let later = report(&api, id).await;
    assert_ne!(first["measuredAt"], later["measuredAt"], "an awake session is measured anew");
}

#[tokio::test]
async fn asking_wakes_nothing_and_needs_no_process() {
    let (_daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    api.post(&format!("/api/sessions/{id}/pause"), json!({})).await.expect(200);
    let frozen = report(&api, &id).await;
    let again = report(&api, &id).await;
    assert_eq!(frozen["confined"], true);
    assert_eq!(frozen["measuredAt"], again["measuredAt"], "a frozen session is not measured again");
    let unified = frozen["outside"]["cgroups"].as_array().unwrap().last().unwrap().as_str().unwrap().to_owned();
    let events = std::fs::read_to_string(format!("{unified}/cgroup.events")).unwrap();
    assert!(events.contains("frozen 1"), "{events}");
    api.post(&format!("/api/sessions/{id}/stop"), json!({})).await;
    assert_eq!(report(&api, &id).await["inside"]["uid"], 1000, "a stopped session keeps its last report");
    let other = api.with_key(None).get(&format!("/api/sessions/{id}/confinement")).await;
    assert_eq!(other.status, 401);
    api.get("/api/sessions/00000000-0000-4000-8000-000000000000/confinement").await.expect(404);
}

/// No current kernel reaches this minimum: it stands for a host that lacks a layer.
#[tokio::test]
async fn below_the_floor_no_session_starts_and_the_reason_is_told() {
    let (daemon, api) = Daemon::deployed(Options::default().config("[confinement]\nlandlock_abi = 99")).await;
    let refused = api.post("/api/sessions", json!({"agent": "a"})).await;
    assert_eq!(refused.status, 500, "{}", refused.text);
    for word in ["landlock is not in force", "the floor is 99", "lsm=", "[confinement] floor"] {
        assert!(refused.text.contains(word), "{word} is not in {}", refused.text);
    }
    let logs = daemon.logs();
    assert!(logs.contains("not-confined") && logs.contains("landlock is not in force"), "{logs}");
    assert_eq!(api.get("/health").await.expect(200)["activeSandboxes"], 0, "nothing is left of it");
}

#[tokio::test]
async fn a_floor_is_lowered_by_name() {
    let lines = "[confinement]\nlandlock_abi = 99\nfloor = [\"all\", \"-landlock\"]";
    let (daemon, api) = Daemon::deployed(Options::default().config(lines)).await;
    let id = api.session("a").await;
    let report = report(&api, &id).await;
    assert_eq!(report["confined"], true);
    let layers = report["layers"].as_array().unwrap();
    let landlock = layers.iter().find(|layer| layer["layer"] == "landlock").unwrap();
    assert_eq!((&landlock["inForce"], &landlock["required"]), (&json!(false), &json!(false)));
    assert!(daemon.logs().contains("layer-missing"));
}
