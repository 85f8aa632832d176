//! Files, workspaces, attachments, logs, usage and histories of an ended session, through the
//! router: none of them needs a sandbox.
#![allow(clippy::unwrap_used)]

mod http_support;

use ashd::store::{Commit, Role, Usage};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http_support::Api;
use serde_json::{Value, json};
use uuid::Uuid;

struct Ended {
    api: Api,
    id: Uuid,
    workspace: std::path::PathBuf,
}

impl Ended {
    async fn start() -> Self {
        let api = Api::start().await;
        let id = Uuid::new_v4();
        let session = api.ended_session(id).await;
        let mut commit = Commit::of(&session);
        commit.messages =
            (0..3).map(|n| (Role::User, json!({"type": "user", "content": n}).to_string().into())).collect();
        commit.events = vec![("lifecycle", "{\"action\":\"created\"}".into()), ("text", "{\"text\":\"x\"}".into())];
        commit.usage =
            Some(Usage { input_tokens: 10, output_tokens: 5, compute_ms: 1500, messages: 1, ..Usage::default() });
        api.store.commit(commit).await.unwrap();
        let workspace = api.data.path().join("sessions").join(id.to_string()).join("workspace");
        std::fs::create_dir_all(&workspace).unwrap();
        Self { api, id, workspace }
    }

    /// `{}` in the request is the session's id.
    async fn own(&self, head: &str, body: impl Into<axum::body::Body>) -> http_support::Answer {
        self.api.own(&head.replace("{}", &self.id.to_string()), body).await
    }
}

#[tokio::test]
async fn a_session_is_shown_without_its_secrets() {
    let ended = Ended::start().await;
    let answer = ended.own("GET /api/sessions/{}", "").await;
    let session = answer.json()["session"].clone();
    let mut fields: Vec<_> = session.as_object().unwrap().keys().map(String::as_str).collect();
    fields.sort_unstable();
    assert_eq!(
        fields,
        [
            "agentName",
            "config",
            "createdAt",
            "id",
            "lastActiveAt",
            "model",
            "parentSessionId",
            "runnerId",
            "sandboxId",
            "status",
            "tenantId"
        ]
    );
    assert_eq!((&session["status"], &session["runnerId"]), (&json!("ended"), &Value::Null));
    assert!(!String::from_utf8_lossy(&answer.body).contains("hunter2"));
    let list = ended.own("GET /api/sessions?agent=a&status=ended&includeTotal=true", "").await.json();
    assert_eq!((list["sessions"][0]["id"].as_str(), list["total"].as_u64()), (Some(&*ended.id.to_string()), Some(1)));
    assert_eq!(ended.own("GET /api/sessions?status=active", "").await.json(), json!({"sessions": []}));
}

#[tokio::test]
async fn histories_are_paged_by_sequence() {
    let ended = Ended::start().await;
    let page = ended.own("GET /api/sessions/{}/messages?limit=2&after=1", "").await.json();
    let sequences: Vec<_> = page["messages"].as_array().unwrap().iter().map(|m| m["sequence"].as_i64()).collect();
    assert_eq!(sequences, [Some(2), Some(3)]);
    assert_eq!(page["messages"][0]["content"], "{\"content\":1,\"type\":\"user\"}");
    let events = ended.own("GET /api/sessions/{}/events?type=lifecycle", "").await.json();
    assert_eq!(events["events"].as_array().unwrap().len(), 1);
    assert_eq!(events["events"][0]["data"], "{\"action\":\"created\"}");
    let stats = ended.own("GET /api/usage/stats?sessionId={}", "").await.json();
    assert_eq!(stats["stats"]["totalInputTokens"], 10);
    assert_eq!(stats["stats"]["totalComputeSeconds"], 1.5);
    let usage = ended.own("GET /api/usage?before=2999-01-01T00:00:00", "").await.json();
    let kinds: Vec<_> = usage["events"].as_array().unwrap().iter().map(|e| e["eventType"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["message", "input_tokens", "output_tokens", "compute_seconds"]);
    assert_eq!(ended.own("GET /api/usage?after=yesterday", "").await.status, 400);
}

#[tokio::test]
async fn files_are_written_listed_read_and_deleted() {
    let ended = Ended::start().await;
    let batch = json!({"targetPath": "src", "files": [
        {"path": "a b/ü.txt", "content": STANDARD.encode("grüß")}, {"path": "../../out", "content": ""}]});
    let answer = ended.own("POST /api/sessions/{}/files", batch.to_string()).await.json();
    assert_eq!(answer["files"][0], json!({"path": "a b/ü.txt", "written": true, "size": 6}));
    assert_eq!(answer["files"][1]["written"], false);
    let list = ended.own("GET /api/sessions/{}/files", "").await.json();
    assert_eq!((list["files"][0]["path"].as_str(), list["source"].as_str()), (Some("src/a b/ü.txt"), Some("snapshot")));
    assert_eq!(list["files"][0]["size"], 6);

    // A slash may be encoded, as on Swagger's page.
    for path in ["src/a%20b/%C3%BC.txt", "src%2Fa%20b%2F%C3%BC.txt"] {
        let file = ended.own(&format!("GET /api/sessions/{{}}/files/{path}"), "").await;
        assert_eq!((file.status.as_u16(), file.body.as_slice()), (200, "grüß".as_bytes()));
        assert_eq!(file.headers["content-type"], "text/plain; charset=utf-8");
        assert_eq!(file.headers["content-length"], "6");
        assert_eq!(file.headers["x-ash-source"], "snapshot");
    }
    let part = ended.own("GET /api/sessions/{}/files/src/a%20b/%C3%BC.txt\nRange: bytes=0-1", "").await;
    assert_eq!((part.status.as_u16(), part.body.as_slice()), (206, &b"gr"[..]));
    let file = ended.own("GET /api/sessions/{}/files/src/a%20b/%C3%BC.txt?format=json", "").await.json();
    assert_eq!(file, json!({"path": "src/a b/ü.txt", "content": "grüß", "size": 6, "source": "snapshot"}));

    let deleted = ended.own("DELETE /api/sessions/{}/files/src/a%20b/%C3%BC.txt", "").await.json();
    assert_eq!(deleted, json!({"path": "src/a b/ü.txt", "deleted": true}));
    assert_eq!(ended.own("GET /api/sessions/{}/files/src/a%20b/%C3%BC.txt", "").await.status, 404);
}

#[tokio::test]
async fn no_path_leaves_the_workspace() {
    let ended = Ended::start().await;
    std::fs::write(ended.workspace.parent().unwrap().join("secret"), "outside").unwrap();
    for (name, target) in [("up", "../secret"), ("etc", "/etc"), ("self", ".")] {
        std::os::unix::fs::symlink(target, ended.workspace.join(name)).unwrap();
    }
    let fifo = rustix::fs::Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(rustix::fs::CWD, ended.workspace.join("fifo"), rustix::fs::FileType::Fifo, fifo, 0).unwrap();
    for path in
        ["up", "etc/passwd", "self/self/up", "..%2fsecret", "%2e%2e/secret", "/etc/passwd", "%2fetc%2fpasswd", "fifo"]
    {
        for (method, body) in [("GET", ""), ("DELETE", "")] {
            if method == "DELETE" && (path == "up" || path == "fifo") {
                continue; // The link or FIFO itself may go.
            }
            let answer = ended.own(&format!("{method} /api/sessions/{{}}/files/{path}"), body).await;
            assert_eq!(answer.status, 400, "{method} {path}: {}", String::from_utf8_lossy(&answer.body));
        }
    }
    let batch = json!({"files": [{"path": "etc/x", "content": ""}, {"path": "up", "content": "eA=="}]});
    let answer = ended.own("POST /api/sessions/{}/files", batch.to_string()).await.json();
    assert_eq!((&answer["files"][0]["written"], &answer["files"][1]["written"]), (&json!(false), &json!(true)));
    assert_eq!(std::fs::read(ended.workspace.parent().unwrap().join("secret")).unwrap(), b"outside");
    assert!(!std::path::Path::new("/etc/x").exists());
}

#[tokio::test]
async fn a_workspace_goes_out_and_comes_back() {
    let ended = Ended::start().await;
    std::fs::write(ended.workspace.join("a.txt"), "one").unwrap();
    let archive = ended.own("GET /api/sessions/{}/workspace", "").await;
    assert_eq!(
        (archive.status.as_u16(), &archive.headers["content-type"]),
        (200, &"application/gzip".parse().unwrap())
    );
    std::fs::write(ended.workspace.join("a.txt"), "two").unwrap();
    let body = json!({"bundle": STANDARD.encode(&archive.body)}).to_string();
    let answer = ended.own("POST /api/sessions/{}/workspace", body).await;
    assert_eq!(answer.json(), json!({"message": "Workspace restored: 1 file"}));
    assert_eq!(std::fs::read(ended.workspace.join("a.txt")).unwrap(), b"one");
    for (body, text) in [("{}", "bundle is required"), (r#"{"bundle":"eA=="}"#, "bundle is not a readable tar archive")]
    {
        let answer = ended.own("POST /api/sessions/{}/workspace", body).await;
        assert!(answer.status == 400 && answer.json()["error"].as_str().unwrap().starts_with(text), "{body}");
    }
}

#[tokio::test]
async fn attachments_are_kept_beside_the_workspace_and_copied_into_it() {
    let ended = Ended::start().await;
    let body = json!({"filename": "n.txt", "content": STANDARD.encode("note"), "messageId": "m"}).to_string();
    let answer = ended.own("POST /api/sessions/{}/attachments", body.clone()).await;
    assert_eq!(answer.status, 201);
    let attachment = answer.json()["attachment"].clone();
    assert_eq!((&attachment["size"], &attachment["messageId"]), (&json!(4), &json!("m")));
    assert_eq!(attachment["mimeType"], "text/plain; charset=utf-8");
    let at = format!("/api/attachments/{}", attachment["id"].as_str().unwrap());
    let got = ended.own(&format!("GET {at}"), "").await;
    assert_eq!(got.body, b"note");
    assert!(got.headers["content-disposition"].to_str().unwrap().starts_with("attachment; filename=\"n.txt\""));
    assert_eq!(ended.own("GET /api/sessions/{}/attachments", "").await.json()["attachments"][0], attachment);
    assert_eq!(attachment["storagePath"], "attachments/n.txt");
    let second = json!({"filename": "dir/n.txt", "content": STANDARD.encode("other")}).to_string();
    let second = ended.own("POST /api/sessions/{}/attachments", second).await.json()["attachment"].clone();
    assert_eq!(
        (&second["storagePath"], &second["messageId"], &second["filename"]),
        (&json!("attachments/n-2.txt"), &json!("unlinked"), &json!("dir/n.txt"))
    );
    assert_eq!(ended.own("GET /api/sessions/{}/files/attachments/n.txt", "").await.body, b"note");
    assert_eq!(ended.own("GET /api/sessions/{}/files/attachments/n-2.txt", "").await.body, b"other");
    let second = format!("DELETE /api/attachments/{}", second["id"].as_str().unwrap());
    assert_eq!(ended.own(&second, "").await.status, 204);
    for request in [format!("GET {at}"), format!("DELETE {at}")] {
        assert_eq!(ended.api.other(&request, "").await.status, 404, "{request} by another tenant");
    }
    assert_eq!(ended.own(&format!("DELETE {at}"), "").await.status, 204);
    assert_eq!(ended.own(&format!("GET {at}"), "").await.status, 404);
    let left = std::fs::read_dir(ended.workspace.parent().unwrap().join("attachments")).unwrap().count();
    assert_eq!(left, 0, "the bytes go with the row");
    let large = json!({"filename": "x", "content": STANDARD.encode(vec![0; (10 << 20) + 1])}).to_string();
    assert_eq!(ended.own("POST /api/sessions/{}/attachments", large).await.status, 413);
    for bad in
        [json!({"filename": "a/..", "content": ""}), json!({"filename": "a"}), json!({"filename": "a", "content": "*"})]
    {
        assert_eq!(ended.own("POST /api/sessions/{}/attachments", bad.to_string()).await.status, 400, "{bad}");
    }
}

#[tokio::test]
async fn another_tenants_session_is_not_found_on_every_route() {
    let ended = Ended::start().await;
    std::fs::write(ended.workspace.join("a.txt"), "one").unwrap();
    let routes = include_str!("http_routes.txt");
    let mut tried = 0;
    for route in routes.lines().filter(|route| route.contains("/sessions/{id}")) {
        let request = route.replace("{id}", &ended.id.to_string()).replace("{path}", "a.txt");
        let good =
            json!({"content": "eA==", "filename": "x", "bundle": "eA==", "files": [{"path": "x", "content": ""}]});
        // A bad query or body does not get its own error: that would reveal that the session
        // exists.
        for (query, body) in [("", good.to_string()), ("?limit=x&after=x&format=x", "{".into()), ("", "[]".into())] {
            let answer = ended.api.other(&format!("{request}{query}"), body.clone()).await;
            let got = (answer.status.as_u16(), answer.json()["error"].as_str().map(str::to_owned));
            assert_eq!(got, (404, Some("Session not found".into())), "{route}{query} {body}");
        }
        tried += 1;
    }
    assert!(tried >= 20, "{tried} routes of a session");
    assert_eq!(std::fs::read(ended.workspace.join("a.txt")).unwrap(), b"one");
}

#[tokio::test]
async fn the_log_is_what_claude_printed() {
    let ended = Ended::start().await;
    assert_eq!(ended.own("GET /api/sessions/{}/logs", "").await.json(), json!({"logs": [], "source": "sandbox"}));
    std::fs::write(ended.workspace.parent().unwrap().join("stderr"), "one\ntwo\n").unwrap();
    let logs = ended.own("GET /api/sessions/{}/logs?after=0", "").await.json();
    assert_eq!((&logs["logs"][0]["text"], &logs["logs"][0]["index"]), (&json!("two"), &json!(4)));
    assert_eq!(ended.own("GET /api/sessions/{}/logs?after=-2", "").await.status, 400);
}

#[tokio::test]
async fn files_of_an_agent() {
    let ended = Ended::start().await;
    assert_eq!(ended.own("POST /api/agents", r#"{"name":"up","systemPrompt":"Be kind."}"#).await.status, 201);
    let body = json!({"files": [{"path": "skills/a.md", "content": STANDARD.encode("A")}]}).to_string();
    assert_eq!(ended.own("POST /api/agents/up/files", body.clone()).await.json(), json!({"written": 1}));
    let list = ended.own("GET /api/agents/up/files", "").await.json();
    let paths: Vec<_> = list["files"].as_array().unwrap().iter().map(|file| file["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["CLAUDE.md", "skills/a.md"]);
    let file = ended.own("GET /api/agents/up/files/CLAUDE.md", "").await.json();
    assert_eq!(file, json!({"path": "CLAUDE.md", "content": "Be kind.", "size": 8}));
    assert_eq!(ended.own("GET /api/agents/up/files/CLAUDE.md?format=raw", "").await.body, b"Be kind.");
    assert_eq!(ended.own("DELETE /api/agents/up/files/CLAUDE.md", "").await.status, 400);
    assert_eq!(ended.own("DELETE /api/agents/up/files/skills/a.md", "").await.json(), json!({"deleted": true}));
    // Files on the server are not changed.
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("CLAUDE.md"), "x").unwrap();
    ended.own("POST /api/agents", json!({"name": "local", "path": dir.path()}).to_string()).await;
    assert_eq!(ended.own("GET /api/agents/local/files/CLAUDE.md", "").await.json()["content"], "x");
    assert_eq!(ended.own("POST /api/agents/local/files", body).await.status, 400);
    std::fs::remove_dir_all(dir.path()).unwrap();
    assert_eq!(ended.own("GET /api/agents/local/files", "").await.status, 422);
}

#[tokio::test]
async fn health_and_metrics_are_public() {
    let api = Api::start().await;
    let health = api.call("GET /health", "").await;
    let json = health.json();
    assert_eq!((health.status.as_u16(), &json["status"], &json["activeSessions"]), (200, &json!("ok"), &json!(0)));
    for field in [
        "total",
        "cold",
        "warming",
        "warm",
        "waiting",
        "running",
        "maxCapacity",
        "resumeWarmHits",
        "resumeColdHits",
        "preWarmHits",
    ] {
        assert!(json["pool"][field].is_u64(), "pool.{field}: {json}");
    }
    let metrics = api.call("GET /metrics", "").await;
    assert_eq!(metrics.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    assert!(String::from_utf8(metrics.body).unwrap().contains("\nash_up 1\n"));
}
