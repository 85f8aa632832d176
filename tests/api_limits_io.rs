//! Limits of disk throughput: the kernel gets them, they hold, and they are restored.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::patience::patient;
use common::{Daemon, MIB, Options};
use serde_json::{Value, json};
const V1: [&str; 4] = [
    "blkio.throttle.read_bps_device",
    "blkio.throttle.write_bps_device",
    "blkio.throttle.read_iops_device",
    "blkio.throttle.write_iops_device",
];

/// The kernel's limits for the disk: read and write bytes, then operations, per second.
fn in_force(daemon: &Daemon, id: &str) -> [Option<u64>; 4] {
    let below = |mount: &str| Path::new(mount).join(&daemon.cgroup).join("tenants/default").join(id);
    let v1: PathBuf = below("/sys/fs/cgroup/blkio");
    if v1.exists() {
        return V1.map(|name| {
            let text = std::fs::read_to_string(v1.join(name)).unwrap();
            text.split_whitespace().nth(1)?.parse().ok()
        });
    }
    let text = std::fs::read_to_string(below("/sys/fs/cgroup").join("io.max")).unwrap();
    ["rbps", "wbps", "riops", "wiops"]
        .map(|word| text.split_whitespace().find_map(|part| part.strip_prefix(word)?.strip_prefix('='))?.parse().ok())
}

#[tokio::test]
async fn io_is_throttled_told_stored_and_given_back() {
    let (mut daemon, api) = Daemon::deployed(Options::default()).await;
    let id = api.session("a").await;
    let path = format!("/api/sessions/{id}/limits");
    let limits = api.get(&path).await.expect(200)["limits"].clone();
    for name in ["ioReadBps", "ioWriteBps", "ioReadIops", "ioWriteIops"] {
        assert_eq!((&limits[name]["value"], &limits[name]["most"]), (&Value::Null, &Value::Null), "{limits}");
        assert_eq!(limits[name]["enforced"], true, "this host has an io controller: {limits}");
    }
    assert_eq!(in_force(&daemon, &id), [None; 4]);

    let body = json!({"ioWriteBps": 4 * MIB, "ioReadIops": 500});
    let changed = api.call("PATCH", &path, Some(body)).await.expect(200)["limits"].clone();
    assert_eq!(
        (&changed["ioWriteBps"]["value"], &changed["ioWriteBps"]["decidedBy"]),
        (&json!(4 * MIB), &json!("session"))
    );
    assert_eq!(in_force(&daemon, &id), [None, Some(4 * MIB), Some(500), None]);
    let confinement = api.get(&format!("/api/sessions/{id}/confinement")).await.expect(200);
    assert!(confinement.to_string().contains(r#""name":"ioWriteBps","#), "{confinement}");

    // 24 MiB of direct writes at 4 MiB/s: at most 6 s (on cgroup v1 the kernel's own writers do
    // part of it), and 0.1 s without the limit.
    let write = json!({"command": "dd if=/dev/zero of=/workspace/f bs=1M count=24 conv=fsync", "timeoutMs": 60_000});
    let start = Instant::now();
    api.post(&format!("/api/sessions/{id}/exec"), write.clone()).await.expect(200);
    let slow = start.elapsed();
    assert!((Duration::from_millis(1500)..patient(Duration::from_secs(20))).contains(&slow), "{slow:?}");

    daemon.kill9();
    daemon.restart();
    let api = daemon.api();
    assert_eq!(in_force(&daemon, &id), [None, Some(4 * MIB), Some(500), None]);
    api.call("POST", &format!("/api/sessions/{id}/stop"), None).await.expect(200);
    api.call("POST", &format!("/api/sessions/{id}/resume"), None).await.expect(200);
    assert_eq!(in_force(&daemon, &id), [None, Some(4 * MIB), Some(500), None]);

    let refused = api.call("PATCH", &path, Some(json!({"ioWriteBps": 5}))).await;
    assert!(refused.status == 400 && refused.text.contains("ioWriteBps: 5 is below the minimum"), "{}", refused.text);
    let back = api.call("PATCH", &path, Some(json!({"ioWriteBps": null, "ioReadIops": null}))).await.expect(200);
    assert_eq!(back["limits"]["ioWriteBps"]["value"], Value::Null);
    assert_eq!(in_force(&daemon, &id), [None; 4]);
    let start = Instant::now();
    api.post(&format!("/api/sessions/{id}/exec"), write).await.expect(200);
    assert!(start.elapsed() < slow / 2, "{:?} after {slow:?}", start.elapsed());
}

#[tokio::test]
async fn the_ceiling_and_the_agent_bound_io_too() {
    let config = "[launcher.ceiling]\nio_read_bps = '100MiB'\n[limits]\nio_write_iops = 1000";
    let (daemon, api) = Daemon::deployed(Options::default().config(config)).await;
    let id = api.session("a").await;
    assert_eq!(in_force(&daemon, &id), [Some(100 * MIB), None, None, Some(1000)]);
    let path = format!("/api/sessions/{id}/limits");
    let limits = api.get(&path).await.expect(200)["limits"].clone();
    assert_eq!(
        (&limits["ioReadBps"]["decidedBy"], &limits["ioWriteIops"]["decidedBy"]),
        (&json!("host"), &json!("config"))
    );
    let above = api.call("PATCH", &path, Some(json!({"ioReadBps": 200 * MIB}))).await;
    assert!(above.status == 400 && above.text.contains("ceiling"), "{}", above.text);
    api.call("PATCH", "/api/agents/a/limits", Some(json!({"ioReadBps": 10 * MIB}))).await.expect(200);
    assert_eq!(in_force(&daemon, &id), [Some(10 * MIB), None, None, Some(1000)]);
}
