//! No secret in any log: every path of a secret is used at log level TRACE, then all logs and every
//! file that should not contain it are searched.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Api, Daemon, Options};
use serde_json::json;

const MODEL_KEY: &str = "sk-ant-planted-model-1f0e";
const HEADER: &str = "planted-header-2d1c";
const SEAL: &str = "planted-seal-3c2b-0123456789abcdef0123";
const CREDENTIAL: &str = "sk-ant-planted-tenant-4b3a";
const VARIABLE: &str = "planted-variable-5a49";
const MESSAGE: &str = "planted-message-6958";

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .flat_map(|entry| {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                files(&entry.path())
            } else if kind.is_file() {
                vec![entry.path()]
            } else {
                Vec::new()
            }
        })
        .collect()
}

fn holds(bytes: &[u8], needle: &str) -> bool {
    memchr::memmem::find(bytes, needle.as_bytes()).is_some()
}

#[tokio::test]
async fn no_log_and_no_stray_file_holds_a_secret() {
    let options = Options::default()
        .env("ASH_LOG", "trace")
        .env("ANTHROPIC_API_KEY", MODEL_KEY)
        .env("ANTHROPIC_CUSTOM_HEADERS", &format!("x-team: {HEADER}"))
        .env("ASH_CREDENTIAL_KEY", SEAL);
    let (mut daemon, api) = Daemon::deployed(options).await;
    let made = api.post("/api/api-keys", json!({"label": "x", "tenantId": "acme"})).await.expect(201);
    let tenant_key = made["key"].as_str().unwrap().to_owned();
    let body = json!({"type": "anthropic", "key": CREDENTIAL});
    let credential = api.post("/api/credentials", body).await.expect(201)["credential"]["id"].clone();
    let body = json!({"agent": "a", "credentialId": credential, "extraEnv": {"PLANTED": VARIABLE}});
    let session = api.post("/api/sessions", body).await.expect(201)["session"]["id"].as_str().unwrap().to_owned();
    let path = format!("/api/sessions/{session}");
    // The token of the gateway, as the session itself knows it.
    let env = api
        .post(&format!("{path}/exec"), json!({"command": "cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'"}))
        .await;
    let env = env.expect(200)["stdout"].as_str().unwrap().to_owned();
    let token = env
        .lines()
        .find_map(|line| line.strip_prefix("ANTHROPIC_AUTH_TOKEN=").or(line.strip_prefix("ANTHROPIC_API_KEY=")));
    let token = token.unwrap_or_else(|| panic!("no token in {env}")).to_owned();
    assert!(token.len() > 20 && env.contains(VARIABLE), "{env}");
    api.turn(&session, &format!("@text {MESSAGE}")).await;
    let strangers = Api::new(daemon.port, Some("planted-guess-7867"));
    assert_eq!(strangers.get("/api/agents").await.status, 401);
    assert_eq!(Api::new(daemon.port, Some(&tenant_key)).get(&path).await.status, 404);
    assert_eq!(api.post("/api/credentials", json!({"type": "no", "key": CREDENTIAL})).await.status, 400);
    assert_eq!(api.post("/api/sessions", json!({"agent": "none", "extraEnv": {"P": VARIABLE}})).await.status, 404);
    api.post(&format!("{path}/pause"), json!({})).await.expect(200);
    api.post(&format!("{path}/resume"), json!({})).await.expect(200);
    api.send(&session, json!({"content": format!("@text {MESSAGE}\n@kill")})).await.rest().await;
    daemon.kill9();
    daemon.restart();
    daemon.api().get(&path).await.expect(200);

    let key = daemon.key.clone();
    let secrets: Vec<&str> =
        vec![MODEL_KEY, HEADER, SEAL, CREDENTIAL, VARIABLE, MESSAGE, &tenant_key, &key, &token, "planted-guess-7867"];
    let (mut logs, mut talk) = (0, String::new());
    for file in files(&daemon.dir) {
        let bytes = fs::read(&file).unwrap_or_default();
        let name = file.strip_prefix(&daemon.dir).unwrap().display().to_string();
        let is_log = name.ends_with(".log");
        if is_log {
            logs += 1;
            talk.push_str(&String::from_utf8_lossy(&bytes));
        }
        // Messages and an agent's variables belong to the session; the first key has its file; the
        // session's token is in its record.
        let own = |secret: &str| match secret {
            MESSAGE | VARIABLE => name.starts_with("data/sessions/") || name.starts_with("data/ashd.db"),
            secret if secret == key => name == "data/initial-api-key",
            secret if secret == token => name.starts_with(&format!("data/sessions/{session}/process")),
            _ => false,
        };
        for secret in &secrets {
            assert!(!holds(&bytes, secret) || (!is_log && own(secret)), "{name} holds {secret}");
        }
    }
    assert!(logs >= 4, "only {logs} logs");
    // The search works, and there was something to search.
    assert!(talk.contains(&session) && talk.contains("\"level\":\"TRACE\"") && talk.contains("turn-begin"));
    for line in talk.lines().filter(|line| line.contains("\"turn-begin\"")) {
        for word in ["\"ASH_TURN\":", "\"ASH_TENANT\":\"default\"", "\"ASH_AGENT\":\"a\"", &session] {
            assert!(line.contains(word), "{word} is not in {line}");
        }
    }
    assert!(
        talk.contains("ec71f07a18af46fdb8cf3b2ad2942e0c") || talk.contains("0a7c5b71405c4901bc73bff9eda31fcf"),
        "no MESSAGE_ID of the kill"
    );
    daemon.stop();
}
