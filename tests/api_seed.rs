//! The two seed pages of the API: every `curl` line runs unchanged with the real curl, and every
//! statement of the overview is checked.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::process::Command;

use common::{Api, Daemon, Options};
use serde_json::{Value, json};

/// The command lines of the curl page, by name.
fn page() -> Vec<(&'static str, &'static str)> {
    include_str!("fixtures/seed-curl.sh")
        .split("\n\n")
        .filter_map(|block| block.strip_prefix("# ")?.split_once('\n'))
        .collect()
}

struct Curl<'a> {
    daemon: &'a Daemon,
    session: String,
    agent_dir: String,
    used: Vec<&'static str>,
}

impl Curl<'_> {
    fn text(&mut self, name: &str) -> (u16, String) {
        let (name, line) = page().into_iter().find(|(n, _)| *n == name).expect("a line of the page");
        self.used.push(name);
        let line = line
            .replace("localhost:4100", &format!("localhost:{}", self.daemon.port))
            .replace("YOUR_KEY", &self.daemon.key)
            .replace("SESSION_ID", &self.session)
            .replace("/path/to/agent/directory", &self.agent_dir);
        // Options that do not change the request are in a file, so that the line stays unchanged.
        fs::write(self.daemon.dir.join(".curlrc"), "silent\nshow-error\nwrite-out = \"\\n%{http_code}\"\n").unwrap();
        let out = Command::new("/bin/bash").args(["-c", &line]).env("CURL_HOME", &self.daemon.dir).output().unwrap();
        assert!(out.status.success(), "{name}: {}", String::from_utf8_lossy(&out.stderr));
        let text = String::from_utf8(out.stdout).unwrap();
        let (body, status) = text.rsplit_once('\n').unwrap();
        (status.parse().unwrap(), body.to_owned())
    }

    fn json(&mut self, name: &str, status: u16) -> Value {
        let (got, body) = self.text(name);
        assert_eq!(got, status, "{name}: {body}");
        serde_json::from_str(&body).unwrap_or_else(|e| panic!("{name}: {e}: {body}"))
    }
}

fn is_time(value: &Value) -> bool {
    let text = value.as_str().unwrap_or_default();
    text.len() == 24 && text.ends_with('Z') && text.as_bytes()[19] == b'.' && text.as_bytes()[10] == b'T'
}

#[test]
fn every_curl_line_works_as_written() {
    let daemon = Daemon::start(Options::default());
    let files = [("CLAUDE.md", "You are a test.\n"), ("src/index.ts", "export {};\n")];
    let dir = daemon.agent_dir("my-agent", &files);
    let mut curl =
        Curl { daemon: &daemon, session: String::new(), agent_dir: dir.display().to_string(), used: Vec::new() };

    let health = curl.json("health", 200);
    assert_eq!(health["status"], "ok");
    for field in ["activeSessions", "activeSandboxes", "uptime"] {
        assert!(health[field].is_u64(), "{field} of {health}");
    }
    for field in
        ["total", "cold", "warming", "warm", "waiting", "running", "maxCapacity", "resumeWarmHits", "resumeColdHits"]
    {
        assert!(health["pool"][field].is_u64(), "pool.{field} of {health}");
    }
    assert_eq!(health["pool"]["maxCapacity"], 1000);

    let agent = curl.json("deploy", 201)["agent"].clone();
    assert_eq!(agent["name"], "my-agent");
    assert_eq!(agent["version"], 1);
    assert!(is_time(&agent["createdAt"]), "{agent}");
    assert_eq!(curl.json("agents", 200)["agents"].as_array().unwrap().len(), 1);
    assert_eq!(curl.json("agent", 200)["agent"]["id"], agent["id"]);

    let session = curl.json("create", 201)["session"].clone();
    assert_eq!(session["status"], "active");
    assert_eq!(session["agentName"], "my-agent");
    for field in ["createdAt", "lastActiveAt"] {
        assert!(is_time(&session[field]), "{field} of {session}");
    }
    for field in ["id", "sandboxId"] {
        assert!(session[field].as_str().is_some_and(|id| id.len() == 36), "{field} of {session}");
    }
    curl.session = session["id"].as_str().unwrap().to_owned();

    for (name, partial) in [("send", false), ("send-partial", true)] {
        let (status, body) = curl.text(name);
        assert_eq!(status, 200, "{name}: {body}");
        let frames = common::wire::frames(&mut body.clone().into_bytes());
        let names = common::api::names(&frames);
        assert_eq!(names.last().map(String::as_str), Some("done"), "{name}: {names:?}");
        assert_eq!(frames.last().unwrap().data, json!({"sessionId": curl.session}));
        for expected in ["message/assistant", "message/result"] {
            assert!(names.iter().any(|n| n == expected), "{name}: no {expected} in {names:?}");
        }
        assert_eq!(names.iter().any(|n| n == "message/stream_event"), partial, "{name}: {names:?}");
        assert_eq!(names.iter().any(|n| n == "text_delta"), partial, "{name}: {names:?}");
    }

    assert_eq!(curl.json("sessions", 200)["sessions"][0]["id"], curl.session.as_str());
    assert_eq!(curl.json("sessions-of-agent", 200)["sessions"].as_array().unwrap().len(), 1);
    assert_eq!(curl.json("session", 200)["session"]["id"], curl.session.as_str());
    assert_eq!(curl.json("pause", 200)["session"]["status"], "paused");
    assert_eq!(curl.json("resume", 200)["session"]["status"], "active");

    let messages = curl.json("messages", 200)["messages"].as_array().unwrap().clone();
    let sequences: Vec<u64> = messages.iter().map(|m| m["sequence"].as_u64().unwrap()).collect();
    assert_eq!(sequences, (1..=sequences.len() as u64).collect::<Vec<_>>());
    let first: Value = serde_json::from_str(messages[0]["content"].as_str().unwrap()).unwrap();
    assert_eq!(first, json!({"type": "user", "content": "What files are in the workspace?"}));
    let after = curl.json("messages-page", 200)["messages"].as_array().unwrap().len();
    assert_eq!(after, messages.len().saturating_sub(10));
    let events = curl.json("events", 200)["events"].as_array().unwrap().clone();
    assert_eq!(events[0]["type"], "lifecycle");
    let texts = curl.json("events-of-type", 200)["events"].as_array().unwrap().clone();
    assert!(!texts.is_empty() && texts.iter().all(|e| e["type"] == "text"), "{texts:?}");

    let listed = curl.json("files", 200)["files"].as_array().unwrap().clone();
    assert!(
        listed.iter().any(|f| f["path"] == "src/index.ts" && f["size"] == 11 && is_time(&f["modifiedAt"])),
        "{listed:?}"
    );
    assert_eq!(curl.text("file"), (200, "export {};\n".to_owned()));

    assert_eq!(curl.json("end", 200)["session"]["status"], "ended");
    assert_eq!(curl.json("resume", 410)["statusCode"], 410);
    assert_eq!(curl.json("delete-agent", 200), json!({"ok": true}));
    let unused: Vec<_> = page().into_iter().filter(|(name, _)| !curl.used.contains(name)).collect();
    assert!(unused.is_empty(), "lines of the page not tried: {unused:?}");
}

#[tokio::test]
async fn public_pages_need_no_key_and_everything_else_does() {
    let daemon = Daemon::start(Options::default());
    let nobody = Api::new(daemon.port, None);
    for path in ["/health", "/metrics", "/docs", "/docs/json"] {
        let status = nobody.get(path).await.status;
        assert!(matches!(status, 200 | 301 | 302 | 303 | 307 | 308), "{path}: {status}");
    }
    let metrics = nobody.get("/metrics").await;
    assert_eq!(metrics.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    assert!(metrics.text.contains("\nash_up 1\n"), "{}", metrics.text);
    let page = nobody.get("/docs/").await;
    assert!(page.status == 200 && page.text.contains("swagger"), "{} {}", page.status, page.text);
    assert!(!page.text.contains("https://"), "the page needs a network: {}", page.text);
    let document = nobody.get("/docs/json").await.expect(200);
    assert!(document["openapi"].as_str().is_some_and(|v| v.starts_with("3.")), "{document}");

    for path in ["/api/agents", "/api/sessions", "/api/sessions/x/messages", "/api/api-keys"] {
        let refused = nobody.get(path).await.expect(401);
        assert_eq!(refused, json!({"error": "Missing Authorization header", "statusCode": 401}), "{path}");
    }
    let wrong = nobody.with_key(Some("ash_wrong")).get("/api/agents").await.expect(401);
    assert_eq!(wrong, json!({"error": "Invalid API key", "statusCode": 401}));
    daemon.api().get("/api/agents").await.expect(200);
}

#[tokio::test]
async fn a_configured_key_is_the_only_one() {
    let daemon = Daemon::start(Options::default().env("ASH_API_KEY", "a-key-of-my-own"));
    let api = daemon.api();
    api.get("/api/agents").await.expect(200);
    let made = api.post("/api/api-keys", json!({"label": "x"})).await;
    assert!(made.status == 201 || made.status >= 400, "{}", made.text);
    api.with_key(Some("a-key-of-my-owN")).get("/api/agents").await.expect(401);
}

#[tokio::test]
async fn every_operation_of_the_page_is_in_the_openapi_document() {
    let daemon = Daemon::start(Options::default());
    let document = daemon.api().get("/docs/json").await.expect(200);
    let paths = document["paths"].as_object().unwrap();
    for (path, methods) in [
        ("/health", &["get"][..]),
        ("/metrics", &["get"]),
        ("/api/agents", &["get", "post"]),
        ("/api/agents/{name}", &["get", "delete"]),
        ("/api/sessions", &["get", "post"]),
        ("/api/sessions/{id}", &["get", "delete"]),
        ("/api/sessions/{id}/messages", &["get", "post"]),
        ("/api/sessions/{id}/events", &["get"]),
        ("/api/sessions/{id}/pause", &["post"]),
        ("/api/sessions/{id}/resume", &["post"]),
        ("/api/sessions/{id}/files", &["get"]),
    ] {
        let found = paths.get(path).unwrap_or_else(|| panic!("{path} is not in {:?}", paths.keys()));
        for method in methods {
            assert!(found[*method]["responses"].is_object(), "{method} {path}");
        }
    }
}
